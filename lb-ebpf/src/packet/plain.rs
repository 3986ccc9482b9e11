//! Packets that need the least: TCP data right behind an untagged IP header without options, whole and sound.

use aya_ebpf::bindings::xdp_md;
use lb_common::{TCP, address::Address, checksum::Delta};

use super::{
    ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_OFFSET, Hop, IPV4, IPV6, MORE_FRAGMENTS, TCP_HEADER,
    access::{load8, load16, load32, load64, store8, store16, store32, store64},
    bounds, receiver, sender, write_addresses,
};

/// What stands behind the Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    Other,
}

/// The family of an untagged packet that is long enough for IPv4 and TCP.
#[inline(always)]
pub(crate) fn family(context: *mut xdp_md) -> Family {
    let (start, end) = bounds(context);
    if start.wrapping_add(ETHERNET + IPV4 + TCP_HEADER) > end {
        return Family::Other;
    }
    // SAFETY: 54 bytes were checked.
    match unsafe { load16::<12>(start) } {
        ETHERTYPE_IPV4 => Family::V4,
        ETHERTYPE_IPV6 => Family::V6,
        _ => Family::Other,
    }
}

/// Such a packet.
#[derive(Clone, Copy)]
pub(crate) struct Plain<const V6: bool> {
    start: *mut u8,
    pub(crate) length: u32,
}

/// The first byte, and the protocol, of an IPv4 header as it must be here; the rest of the second word is flags, a
/// fragment's offset and the time to live.
const VERSION_AND_LENGTH: u8 = 0x45;
const WHOLE_TCP: u32 = u32::from_le_bytes([0, 0, 0, TCP]);
const FRAGMENT_AND_PROTOCOL: u32 = {
    let [high, low] = (MORE_FRAGMENTS | FRAGMENT_OFFSET).to_be_bytes();
    u32::from_le_bytes([high, low, 0, u8::MAX])
};

impl<const V6: bool> Plain<V6> {
    const HEADER: usize = if V6 { IPV6 } else { IPV4 };

    /// The packet, if it is that plain.
    #[inline(always)]
    pub(crate) fn read(context: *mut xdp_md) -> Option<Self> {
        let (start, end) = bounds(context);
        if start.wrapping_add(ETHERNET + Self::HEADER + TCP_HEADER) > end {
            return None;
        }
        let length = (end as usize - start as usize) as u32;
        let packet = Self { start, length };
        let network = packet.network();
        // SAFETY: all headers were checked.
        let (protocol_is_tcp, content) = unsafe {
            if V6 {
                let content = u32::from(u16::from_be(load16::<4>(network))) + IPV6 as u32;
                (load8::<0>(network) & 0xf0 == 0x60 && load8::<6>(network) == TCP, content)
            } else {
                let whole = load32::<6>(network) & FRAGMENT_AND_PROTOCOL == WHOLE_TCP;
                let content = u32::from(u16::from_be(load16::<2>(network)));
                (load8::<0>(network) == VERSION_AND_LENGTH && whole, content)
            }
        };
        // SAFETY: as above.
        let offset = unsafe { load8::<12>(packet.transport()) };
        let headers = Self::HEADER as u32 + u32::from(offset >> 4) * 4;
        let sound = offset >= 0x50 && content >= headers && content <= length - ETHERNET as u32;
        if protocol_is_tcp && sound { Some(packet) } else { None }
    }

    #[inline(always)]
    fn network(&self) -> *mut u8 {
        self.start.wrapping_add(ETHERNET)
    }

    #[inline(always)]
    fn transport(&self) -> *mut u8 {
        self.start.wrapping_add(ETHERNET + Self::HEADER)
    }

    /// Whether it carries an acknowledgement and nothing that changes a connection's state, and may go on by another hop.
    #[inline(always)]
    pub(crate) fn goes_on(&self) -> bool {
        // SAFETY: `read` checked all headers.
        let (flags, hops) = unsafe {
            let hops = if V6 { load8::<7>(self.network()) } else { load8::<8>(self.network()) };
            (load8::<13>(self.transport()), hops)
        };
        // ACK of FIN, SYN, RST and ACK.
        flags & 0x17 == 0x10 && hops > 1
    }

    #[inline(always)]
    pub(crate) fn receiver(&self) -> u64 {
        receiver(self.start)
    }

    #[inline(always)]
    pub(crate) fn sender(&self) -> u64 {
        sender(self.start)
    }

    #[inline(always)]
    pub(crate) fn source(&self) -> Address {
        // SAFETY: `read` checked all headers.
        unsafe {
            if V6 {
                Address([load64::<8>(self.network()), load64::<16>(self.network())])
            } else {
                Address::from_v4_word(load32::<12>(self.network()))
            }
        }
    }

    #[inline(always)]
    pub(crate) fn destination(&self) -> Address {
        // SAFETY: `read` checked all headers.
        unsafe {
            if V6 {
                Address([load64::<24>(self.network()), load64::<32>(self.network())])
            } else {
                Address::from_v4_word(load32::<16>(self.network()))
            }
        }
    }

    /// Source and destination port, in this order, as on the wire.
    #[inline(always)]
    pub(crate) fn ports(&self) -> u32 {
        // SAFETY: `read` checked all headers.
        unsafe { load32::<0>(self.transport()) }
    }

    /// Host byte order.
    #[inline(always)]
    pub(crate) fn sequence(&self) -> u32 {
        // SAFETY: `read` checked all headers.
        u32::from_be(unsafe { load32::<4>(self.transport()) })
    }

    /// Sends it from and to others, one hop further.
    #[inline(always)]
    pub(crate) fn send(&self, hop: &Hop, source: Address, destination: Address, ports: u32) {
        let (old_source, old_destination) = (self.source(), self.destination());
        let network = self.network();
        write_addresses(self.start, hop);
        let addresses = if V6 {
            let delta = Delta::NONE
                .replace64(old_source.0[0], source.0[0])
                .replace64(old_source.0[1], source.0[1])
                .replace64(old_destination.0[0], destination.0[0])
                .replace64(old_destination.0[1], destination.0[1]);
            // SAFETY: `read` checked all headers.
            unsafe {
                store8::<7>(network, load8::<7>(network).wrapping_sub(1));
                store64::<8>(network, source.0[0]);
                store64::<16>(network, source.0[1]);
                store64::<24>(network, destination.0[0]);
                store64::<32>(network, destination.0[1]);
            }
            delta
        } else {
            let delta = Delta::NONE
                .replace32(old_source.v4_word(), source.v4_word())
                .replace32(old_destination.v4_word(), destination.v4_word());
            // SAFETY: `read` checked all headers.
            unsafe {
                store8::<8>(network, load8::<8>(network).wrapping_sub(1));
                // The time to live is the first byte of its 16-bit word.
                store16::<10>(network, delta.replace16(1, 0).apply(load16::<10>(network)));
                store32::<12>(network, source.v4_word());
                store32::<16>(network, destination.v4_word());
            }
            delta
        };
        let transport = self.transport();
        let delta = addresses.replace32(self.ports(), ports);
        // SAFETY: `read` checked all headers.
        unsafe {
            store32::<0>(transport, ports);
            store16::<16>(transport, delta.apply(load16::<16>(transport)));
        }
    }
}
