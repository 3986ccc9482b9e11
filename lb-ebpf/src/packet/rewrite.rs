//! New addresses, ports and hop limits, with checksums updated incrementally (RFC 1624).

use lb_common::{address::Address, checksum::Delta};

use super::{
    Hop, Packet, Segment,
    access::{load8, load16, store8, store16, store32, store64},
    ipv4_addresses, ipv6_addresses,
};

/// An address and a port, as on the wire.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) address: Address,
    pub(crate) port: u16,
}

/// What to make of a packet before it goes out again: what stays as it is, is not named.
#[derive(Clone, Copy)]
pub(crate) struct Rewrite {
    pub(crate) hop: Hop,
    pub(crate) source: Option<End>,
    pub(crate) destination: Option<End>,
    /// An IPv4 packet may be fragmented from here on, whatever its sender wished.
    pub(crate) may_fragment: bool,
}

impl Packet {
    /// Rewrites a segment that was parsed from this packet, one hop further.
    ///
    /// The old values are read from the packet once more: that costs less than keeping them on the stack.
    #[inline(always)]
    pub(crate) fn rewrite_segment(&self, segment: &Segment, to: &Rewrite) {
        self.address_frame(&to.hop);
        let addresses = if let Some(at) = self.ipv6_header() {
            // SAFETY: `ipv6_header` checked 40 bytes.
            unsafe { store8::<7>(at, load8::<7>(at).wrapping_sub(1)) };
            rewrite_ipv6_addresses(at, to)
        } else {
            let at = self.network;
            let hop = hop_delta(at);
            let addresses = rewrite_ipv4_addresses(at, to);
            let flags = if to.may_fragment { allow_fragments(at) } else { Delta::NONE };
            // SAFETY: `parse` checked 20 bytes.
            unsafe {
                store16::<10>(at, addresses.and(hop).and(flags).apply(load16::<10>(at)));
                store8::<8>(at, load8::<8>(at).wrapping_sub(1));
            }
            addresses
        };
        let at = self.transport;
        // SAFETY: `parse` checked 8 bytes before it gave out a segment.
        let delta = addresses.and(unsafe { rewrite_ports(at, to) });
        if segment.is_udp {
            // SAFETY: as above.
            let sum = unsafe { load16::<6>(at) };
            // Zero says that there is none (RFC 768).
            if sum != 0 {
                let sum = delta.apply(sum);
                // SAFETY: as above.
                unsafe { store16::<6>(at, if sum == 0 { u16::MAX } else { sum }) };
            }
        } else if let Some(at) = self.tcp_header() {
            // SAFETY: `tcp_header` checked 20 bytes.
            unsafe { store16::<16>(at, delta.apply(load16::<16>(at))) };
        }
    }
}

/// Takes "don't fragment" out of an IPv4 header, whose 20 bytes the caller has checked.
#[inline(always)]
fn allow_fragments(at: *mut u8) -> Delta {
    const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();
    // SAFETY: see above.
    unsafe {
        let flags = load16::<6>(at);
        store16::<6>(at, flags & !DONT_FRAGMENT);
        Delta::NONE.replace16(flags, flags & !DONT_FRAGMENT)
    }
}

/// Puts the new addresses into an IPv4 header, whose 20 bytes the caller has checked.
#[inline(always)]
pub(super) fn rewrite_ipv4_addresses(at: *mut u8, to: &Rewrite) -> Delta {
    let (source, destination) = ipv4_addresses(at);
    let mut delta = Delta::NONE;
    // SAFETY: see above.
    unsafe {
        if let Some(new) = to.source {
            delta = delta.and(ipv4_delta(source, new.address));
            store32::<12>(at, new.address.v4_word());
        }
        if let Some(new) = to.destination {
            delta = delta.and(ipv4_delta(destination, new.address));
            store32::<16>(at, new.address.v4_word());
        }
    }
    delta
}

/// Puts the new addresses into an IPv6 header, whose 40 bytes the caller has checked.
#[inline(always)]
pub(super) fn rewrite_ipv6_addresses(at: *mut u8, to: &Rewrite) -> Delta {
    let (source, destination) = ipv6_addresses(at);
    let mut delta = Delta::NONE;
    // SAFETY: see above.
    unsafe {
        if let Some(new) = to.source {
            delta = delta.and(ipv6_delta(source, new.address));
            store64::<8>(at, new.address.0[0]);
            store64::<16>(at, new.address.0[1]);
        }
        if let Some(new) = to.destination {
            delta = delta.and(ipv6_delta(destination, new.address));
            store64::<24>(at, new.address.0[0]);
            store64::<32>(at, new.address.0[1]);
        }
    }
    delta
}

/// Puts the new ports into a transport header.
///
/// # Safety
/// Its first four bytes must have been checked.
#[inline(always)]
pub(super) unsafe fn rewrite_ports(at: *mut u8, to: &Rewrite) -> Delta {
    let mut delta = Delta::NONE;
    // SAFETY: the caller's.
    unsafe {
        if let Some(new) = to.source {
            delta = delta.replace16(load16::<0>(at), new.port);
            store16::<0>(at, new.port);
        }
        if let Some(new) = to.destination {
            delta = delta.replace16(load16::<2>(at), new.port);
            store16::<2>(at, new.port);
        }
    }
    delta
}

/// Stores the addresses of an IPv4 header.
///
/// # Safety
/// 20 bytes must have been checked.
#[inline(always)]
pub(super) unsafe fn store_ipv4_addresses(at: *mut u8, source: Address, destination: Address) {
    // SAFETY: the caller's.
    unsafe {
        store32::<12>(at, source.v4_word());
        store32::<16>(at, destination.v4_word());
    }
}

/// Stores the addresses of an IPv6 header.
///
/// # Safety
/// 40 bytes must have been checked.
#[inline(always)]
pub(super) unsafe fn store_ipv6_addresses(at: *mut u8, source: Address, destination: Address) {
    // SAFETY: the caller's.
    unsafe {
        store64::<8>(at, source.0[0]);
        store64::<16>(at, source.0[1]);
        store64::<24>(at, destination.0[0]);
        store64::<32>(at, destination.0[1]);
    }
}

/// What an IPv4 address, replaced, adds to a checksum.
#[inline(always)]
pub(super) fn ipv4_delta(old: Address, new: Address) -> Delta {
    Delta::NONE.replace32(old.v4_word(), new.v4_word())
}

/// What an address, replaced by one of its family, adds to a checksum.
#[inline(always)]
pub(super) fn ipv6_delta(old: Address, new: Address) -> Delta {
    Delta::NONE.replace64(old.0[0], new.0[0]).replace64(old.0[1], new.0[1])
}

/// One less in the time to live, which shares its 16-bit word with the protocol.
#[inline(always)]
pub(super) fn hop_delta(at: *const u8) -> Delta {
    // SAFETY: part of the network header that every packet view has checked.
    let word = unsafe { load16::<8>(at) };
    Delta::NONE.replace16(word, word.wrapping_sub(1))
}
