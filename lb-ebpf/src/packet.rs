//! The packet's bytes: the one file that checks bounds, reads and writes them.
//!
//! [`Packet::parse`] turns headers into values; the stages decide on those values and give back a [`Rewrite`], which
//! only this file applies. Loads and stores are inline assembly of full width: a packet's fields are not aligned, and
//! `read_unaligned` becomes a load per byte on this target.

use core::arch::asm;

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_adjust_tail};
use lb_common::{
    ICMP, TCP,
    address::Address,
    checksum::{Delta, fold},
    reason::Reason,
    tcp::TcpFlags,
};

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
const IPV4: usize = 20;
const TCP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
/// What an ICMP error surely repeats of the packet it is about, beyond its IP header (RFC 792).
const REPEATED: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_VLAN: u16 = 0x8100_u16.to_be();
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8_u16.to_be();

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const DO_NOT_FRAGMENT: u16 = 0x4000;

macro_rules! access {
    ($load:ident, $store:ident, $type:ty, $bpf:literal) => {
        /// Loads from `$at + OFFSET` in one instruction.
        ///
        /// # Safety
        /// The bytes must lie within the packet, by a check that the verifier follows.
        #[inline(always)]
        unsafe fn $load<const OFFSET: usize>(at: *const u8) -> $type {
            let value: u64;
            // SAFETY: the caller vouches for the bytes; a load has no side effect.
            unsafe {
                asm!(
                    concat!("{value} = *(", $bpf, " *)({at} + {offset})"),
                    value = out(reg) value,
                    at = in(reg) at,
                    offset = const OFFSET,
                    options(pure, readonly, nostack),
                );
            }
            value as $type
        }

        /// Stores to `at + OFFSET` in one instruction.
        ///
        /// # Safety
        /// The bytes must lie within the packet, by a check that the verifier follows.
        #[inline(always)]
        unsafe fn $store<const OFFSET: usize>(at: *mut u8, value: $type) {
            // SAFETY: the caller vouches for the bytes.
            unsafe {
                asm!(
                    concat!("*(", $bpf, " *)({at} + {offset}) = {value}"),
                    value = in(reg) u64::from(value),
                    at = in(reg) at,
                    offset = const OFFSET,
                    options(nostack),
                );
            }
        }
    };
}

access!(load8, store8, u8, "u8");
access!(load16, store16, u16, "u16");
access!(load32, store32, u32, "u32");

/// A frame with an IPv4 header.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) context: *mut xdp_md,
    start: *mut u8,
    network: *mut u8,
    length: u32,
    /// Of the network header, from the start.
    offset: u32,
}

/// Who sends to whom; ports as on the wire.
#[derive(Clone, Copy)]
pub(crate) struct Tuple {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
}

/// A TCP segment with sound headers. What is needed later, or seldom, the packet tells when asked.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) tuple: Tuple,
    pub(crate) flags: TcpFlags,
}

/// What a frame turned out to be.
pub(crate) enum Parsed {
    Segment(Segment),
    /// A TCP packet that is dropped for this reason if it turns out to be for us.
    Odd(Tuple, Reason),
    /// A TCP fragment without the header; the address it is for.
    LaterFragment(Address),
    /// An ICMP error about a TCP packet. The tuple is the repeated one; the address is whom the error is for.
    IcmpError(Tuple, Address, u8),
}

/// What to make of a packet before it goes out again.
#[derive(Clone, Copy)]
pub(crate) struct Rewrite {
    /// MAC address it goes to, in the low 48 bits, bytes in memory order.
    pub next_hop: u64,
    pub tuple: Tuple,
}

impl Packet {
    /// Reads the headers.
    ///
    /// # Errors
    /// Why the packet is none of ours.
    #[inline(always)]
    pub(crate) fn parse(context: *mut xdp_md) -> Result<(Self, Parsed), Reason> {
        // Volatile, or the compiler passes the two 32-bit values between functions instead of the context, and the
        // verifier no longer knows them for pointers.
        // SAFETY: the context is the one that the kernel called the program with.
        let start = unsafe { (&raw const (*context).data).read_volatile() } as usize as *mut u8;
        // SAFETY: as above.
        let end = unsafe { (&raw const (*context).data_end).read_volatile() } as usize as *mut u8;
        let (network, offset) = network_header(start, end)?;
        if network.wrapping_add(IPV4) > end {
            return Err(Reason::Truncated);
        }
        let packet = Self { context, start, network, length: (end as usize - start as usize) as u32, offset };
        // SAFETY: 20 bytes of the network header are within the packet, checked above.
        let protocol = unsafe { load8::<9>(network) };
        match protocol {
            TCP => packet.tcp(end).map(|parsed| (packet, parsed)),
            ICMP => packet.icmp(end).map(|parsed| (packet, parsed)),
            _ => Err(Reason::NotOurs),
        }
    }

    /// Bytes of the frame.
    #[inline(always)]
    pub(crate) fn length(&self) -> u32 {
        self.length
    }

    #[inline(always)]
    fn tcp(&self, end: *mut u8) -> Result<Parsed, Reason> {
        let at = self.network;
        // SAFETY: 20 bytes of the network header were checked by `parse`.
        let (version, total, fragment) = unsafe { (load8::<0>(at), load16::<2>(at), load16::<6>(at)) };
        let fragment = u16::from_be(fragment);
        if version != 0x45 {
            return self.tcp_after_options(end, version, fragment);
        }
        if fragment & FRAGMENT_OFFSET != 0 {
            return Ok(Parsed::LaterFragment(addresses(at).1));
        }
        if at.wrapping_add(IPV4 + TCP_HEADER) > end {
            if at.wrapping_add(IPV4 + 4) > end {
                return Err(Reason::Truncated);
            }
            return Ok(Parsed::Odd(tuple(at), Reason::BadHeader));
        }
        let tuple = tuple(at);
        if fragment & MORE_FRAGMENTS != 0 {
            return Ok(Parsed::Odd(tuple, Reason::Fragment));
        }
        // SAFETY: 40 bytes were checked above.
        let (offset, flags) = unsafe { (load8::<32>(at), load8::<33>(at)) };
        let flags = TcpFlags(flags);
        let header = IPV4 + usize::from(offset >> 4) * 4;
        let total = usize::from(u16::from_be(total));
        let available = end as usize - at as usize;
        if offset < 0x50 || total < header || total > available || !plausible(flags) {
            return Ok(Parsed::Odd(tuple, Reason::BadHeader));
        }
        Ok(Parsed::Segment(Segment { tuple, flags }))
    }

    /// The ports behind a header with options, to know whether it is for us.
    #[inline(always)]
    fn tcp_after_options(&self, end: *mut u8, version: u8, fragment: u16) -> Result<Parsed, Reason> {
        let words = usize::from(version & 0xf);
        if version >> 4 != 4 || words < 5 {
            return Err(Reason::Truncated);
        }
        let (source, destination) = addresses(self.network);
        if fragment & FRAGMENT_OFFSET != 0 {
            return Ok(Parsed::LaterFragment(destination));
        }
        let ports = self.network.wrapping_add(words * 4);
        if ports.wrapping_add(4) > end {
            return Err(Reason::Truncated);
        }
        // SAFETY: four bytes at `ports` were checked above.
        let (source_port, destination_port) = unsafe { (load16::<0>(ports), load16::<2>(ports)) };
        Ok(Parsed::Odd(Tuple { source, destination, source_port, destination_port }, Reason::IpOptions))
    }

    #[inline(always)]
    fn icmp(&self, end: *mut u8) -> Result<Parsed, Reason> {
        let at = self.network;
        if at.wrapping_add(IPV4 + ICMP_HEADER + IPV4 + REPEATED) > end {
            return Err(Reason::NotOurs);
        }
        let inner = at.wrapping_add(IPV4 + ICMP_HEADER);
        // SAFETY: 56 bytes were checked above.
        let (version, total, fragment, kind, ttl) =
            unsafe { (load8::<0>(at), load16::<2>(at), load16::<6>(at), load8::<IPV4>(at), load8::<8>(at)) };
        // What lies behind the message's own end is no part of it: not to be translated, nor in its checksum.
        let total = usize::from(u16::from_be(total));
        if total < IPV4 + ICMP_HEADER + IPV4 + REPEATED || total > end as usize - at as usize {
            return Err(Reason::NotOurs);
        }
        // SAFETY: as above.
        let (inner_version, inner_fragment, protocol) =
            unsafe { (load8::<0>(inner), load16::<6>(inner), load8::<9>(inner)) };
        let whole = u16::from_be(fragment) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) == 0
            && u16::from_be(inner_fragment) & FRAGMENT_OFFSET == 0;
        // Destination unreachable, time exceeded, parameter problem (RFC 792).
        let error = matches!(kind, 3 | 11 | 12);
        if version != 0x45 || inner_version != 0x45 || protocol != TCP || !whole || !error {
            return Err(Reason::NotOurs);
        }
        Ok(Parsed::IcmpError(tuple(inner), addresses(at).1, ttl))
    }

    /// The time to live.
    #[inline(always)]
    pub(crate) fn ttl(&self) -> u8 {
        // SAFETY: part of the network header, which was checked.
        unsafe { load8::<8>(self.network) }
    }

    /// A segment's sequence number, host byte order.
    #[inline(always)]
    pub(crate) fn sequence(&self, _: &Segment) -> u32 {
        // SAFETY: `parse` checked 40 bytes before it gave out a segment.
        u32::from_be(unsafe { load32::<24>(self.network) })
    }

    /// A segment's acknowledgement number, host byte order.
    #[inline(always)]
    pub(crate) fn acknowledgment(&self, _: &Segment) -> u32 {
        // SAFETY: as in `sequence`.
        u32::from_be(unsafe { load32::<28>(self.network) })
    }

    /// The MAC address that the frame is for, in the low 48 bits, bytes in memory order.
    #[inline(always)]
    pub(crate) fn receiver(&self) -> u64 {
        // SAFETY: the Ethernet header lies before the network header, which was checked.
        unsafe { u64::from(load32::<0>(self.start)) | u64::from(load16::<4>(self.start)) << 32 }
    }

    /// The MAC address that the frame came from, in the low 48 bits, bytes in memory order.
    #[inline(always)]
    pub(crate) fn sender(&self) -> u64 {
        // SAFETY: the Ethernet header lies before the network header, which was checked.
        unsafe { u64::from(load32::<6>(self.start)) | u64::from(load16::<10>(self.start)) << 32 }
    }

    /// Sends the frame on to `next_hop`, from the address it came to.
    #[inline(always)]
    fn address_frame(&self, next_hop: u64) {
        let at = self.start;
        // SAFETY: the Ethernet header lies before the network header, which was checked.
        unsafe {
            let own = (load32::<0>(at), load16::<4>(at));
            store32::<0>(at, next_hop as u32);
            store16::<4>(at, (next_hop >> 32) as u16);
            store32::<6>(at, own.0);
            store16::<10>(at, own.1);
        }
    }

    /// Rewrites a segment that was parsed from this packet, one hop further.
    #[inline(always)]
    pub(crate) fn rewrite_segment(&self, segment: &Segment, to: &Rewrite) {
        let at = self.network;
        self.address_frame(to.next_hop);
        let addresses = address_delta(&segment.tuple, &to.tuple);
        let hop = hop_delta(at);
        // SAFETY: `parse` checked 40 bytes before it gave out a segment.
        unsafe {
            store16::<10>(at, addresses.and(hop).apply(load16::<10>(at)));
            store16::<36>(at, addresses.and(port_delta(&segment.tuple, &to.tuple)).apply(load16::<36>(at)));
            store8::<8>(at, self.ttl().wrapping_sub(1));
            store_tuple(at, &to.tuple);
        }
    }

    /// Rewrites an ICMP error: the repeated packet's tuple, the addresses it goes from and to, one hop further.
    #[inline(always)]
    pub(crate) fn rewrite_icmp_error(
        &self,
        ttl: u8,
        old: &Tuple,
        to: &Rewrite,
        source: Address,
        destination: Address,
    ) {
        let at = self.network;
        let inner = at.wrapping_add(IPV4 + ICMP_HEADER);
        self.address_frame(to.next_hop);
        let outer = addresses(at);
        let outer_delta = Delta::NONE
            .replace32(outer.0.v4_word(), source.v4_word())
            .replace32(outer.1.v4_word(), destination.v4_word())
            .and(hop_delta(at));
        let inner_addresses = address_delta(old, &to.tuple);
        // SAFETY: `parse` checked 56 bytes before it gave out an ICMP error.
        unsafe {
            let inner_sum = load16::<10>(inner);
            let new_inner_sum = inner_addresses.apply(inner_sum);
            let icmp = inner_addresses
                .and(port_delta(old, &to.tuple))
                .replace16(inner_sum, new_inner_sum)
                .apply(load16::<{ IPV4 + 2 }>(at));
            store16::<10>(inner, new_inner_sum);
            store_tuple(inner, &to.tuple);
            store16::<{ IPV4 + 2 }>(at, icmp);
            store16::<10>(at, outer_delta.apply(load16::<10>(at)));
            store8::<8>(at, ttl.wrapping_sub(1));
            store32::<12>(at, source.v4_word());
            store32::<16>(at, destination.v4_word());
        }
    }

    /// Turns the segment into the RST that answers it (RFC 9293 section 3.10.7.1), and sends it back.
    #[inline(always)]
    pub(crate) fn answer_with_reset(&self, segment: &Segment) {
        let at = self.network;
        let (sequence, acknowledgment, flags) = self.reset_numbers(segment);
        self.address_frame(self.sender());
        let tuple = &segment.tuple;
        let source = tuple.destination.v4_word();
        let destination = tuple.source.v4_word();
        let length = ((IPV4 + TCP_HEADER) as u16).to_be();
        let fragment = DO_NOT_FRAGMENT.to_be();
        const TTL_AND_PROTOCOL: u16 = u16::from_ne_bytes([64, TCP]);
        let offset_and_flags = u16::from_ne_bytes([0x50, flags]);
        let pair = u64::from(source & 0xffff)
            + u64::from(source >> 16)
            + u64::from(destination & 0xffff)
            + u64::from(destination >> 16);
        let ip_sum = !fold(
            pair + u64::from(u16::from_ne_bytes([0x45, 0]))
                + u64::from(length)
                + u64::from(fragment)
                + u64::from(TTL_AND_PROTOCOL),
        );
        let tcp_sum = !fold(
            pair + u64::from(u16::from_ne_bytes([0, TCP]))
                + u64::from((TCP_HEADER as u16).to_be())
                + u64::from(tuple.source_port)
                + u64::from(tuple.destination_port)
                + u64::from(sequence)
                + u64::from(acknowledgment)
                + u64::from(offset_and_flags),
        );
        // SAFETY: `parse` checked 40 bytes before it gave out a segment.
        unsafe {
            store16::<0>(at, u16::from_ne_bytes([0x45, 0]));
            store16::<2>(at, length);
            store16::<4>(at, 0);
            store16::<6>(at, fragment);
            store16::<8>(at, TTL_AND_PROTOCOL);
            store16::<10>(at, ip_sum);
            store32::<12>(at, source);
            store32::<16>(at, destination);
            store16::<20>(at, tuple.destination_port);
            store16::<22>(at, tuple.source_port);
            store32::<24>(at, sequence);
            store32::<28>(at, acknowledgment);
            store16::<32>(at, offset_and_flags);
            store16::<34>(at, 0);
            store16::<36>(at, tcp_sum);
            store16::<38>(at, 0);
        }
        let surplus = self.length.wrapping_sub(self.offset + (IPV4 + TCP_HEADER) as u32);
        if surplus > 0 {
            // A failure leaves bytes behind the IP packet's end, which receivers ignore as padding.
            // SAFETY: the context is the one the program was called with; no packet pointer is used afterwards.
            unsafe { bpf_xdp_adjust_tail(self.context, -(surplus as i32)) };
        }
    }

    /// Sequence number, acknowledgement number (both as on the wire) and flags of the RST.
    #[inline(always)]
    fn reset_numbers(&self, segment: &Segment) -> (u32, u32, u8) {
        if segment.flags.has(TcpFlags::ACK) {
            return (self.acknowledgment(segment).to_be(), 0, TcpFlags::RST);
        }
        // SAFETY: `parse` checked 40 bytes before it gave out a segment.
        let (total, offset) = unsafe { (load16::<2>(self.network), load8::<32>(self.network)) };
        let payload = u32::from(u16::from_be(total)) - IPV4 as u32 - u32::from(offset >> 4) * 4;
        let ends = u32::from(segment.flags.has(TcpFlags::SYN)) + u32::from(segment.flags.has(TcpFlags::FIN));
        let next = self.sequence(segment).wrapping_add(payload).wrapping_add(ends);
        (0, next.to_be(), TcpFlags::RST | TcpFlags::ACK)
    }
}

/// Flags that a TCP may send: one of SYN, RST, ACK, and no SYN together with FIN or RST.
#[inline(always)]
fn plausible(flags: TcpFlags) -> bool {
    let some = flags.0 & (TcpFlags::SYN | TcpFlags::RST | TcpFlags::ACK) != 0;
    let both = flags.has(TcpFlags::SYN) && flags.0 & (TcpFlags::FIN | TcpFlags::RST) != 0;
    some && !both
}

/// The IPv4 header, behind up to two VLAN tags.
#[inline(always)]
fn network_header(start: *mut u8, end: *mut u8) -> Result<(*mut u8, u32), Reason> {
    let mut network = start.wrapping_add(ETHERNET);
    let mut offset = ETHERNET as u32;
    if network > end {
        return Err(Reason::Truncated);
    }
    // SAFETY: 14 bytes were checked.
    let (group, mut ethertype) = unsafe { (load8::<0>(start), load16::<12>(start)) };
    if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_SERVICE_VLAN {
        network = network.wrapping_add(VLAN_TAG);
        offset += VLAN_TAG as u32;
        if network > end {
            return Err(Reason::Truncated);
        }
        // SAFETY: 18 bytes were checked.
        ethertype = unsafe { load16::<16>(start) };
        if ethertype == ETHERTYPE_VLAN {
            network = network.wrapping_add(VLAN_TAG);
            offset += VLAN_TAG as u32;
            if network > end {
                return Err(Reason::Truncated);
            }
            // SAFETY: 22 bytes were checked.
            ethertype = unsafe { load16::<20>(start) };
        }
    }
    if ethertype != ETHERTYPE_IPV4 {
        return Err(Reason::NotIp);
    }
    // Broadcast and multicast frames are the host's business, whatever address is inside.
    if group & 1 != 0 { Err(Reason::NotOurs) } else { Ok((network, offset)) }
}

/// Source and destination of an IPv4 header; the caller's packet view has checked its 20 bytes.
#[inline(always)]
fn addresses(at: *const u8) -> (Address, Address) {
    // SAFETY: see above.
    unsafe { (Address::from_v4_word(load32::<12>(at)), Address::from_v4_word(load32::<16>(at))) }
}

/// Addresses and ports of an IPv4 header without options; the caller has checked its first 24 bytes.
#[inline(always)]
fn tuple(at: *const u8) -> Tuple {
    let (source, destination) = addresses(at);
    // SAFETY: see above.
    let (source_port, destination_port) = unsafe { (load16::<20>(at), load16::<22>(at)) };
    Tuple { source, destination, source_port, destination_port }
}

/// # Safety
/// As of [`tuple`].
#[inline(always)]
unsafe fn store_tuple(at: *mut u8, tuple: &Tuple) {
    // SAFETY: the caller's.
    unsafe {
        store32::<12>(at, tuple.source.v4_word());
        store32::<16>(at, tuple.destination.v4_word());
        store16::<20>(at, tuple.source_port);
        store16::<22>(at, tuple.destination_port);
    }
}

#[inline(always)]
fn address_delta(old: &Tuple, new: &Tuple) -> Delta {
    Delta::NONE
        .replace32(old.source.v4_word(), new.source.v4_word())
        .replace32(old.destination.v4_word(), new.destination.v4_word())
}

#[inline(always)]
fn port_delta(old: &Tuple, new: &Tuple) -> Delta {
    Delta::NONE
        .replace16(old.source_port, new.source_port)
        .replace16(old.destination_port, new.destination_port)
}

/// One less in the time to live, which shares its 16-bit word with the protocol.
#[inline(always)]
fn hop_delta(at: *const u8) -> Delta {
    // SAFETY: part of the network header that every packet view has checked.
    let word = unsafe { load16::<8>(at) };
    Delta::NONE.replace16(word, word.wrapping_sub(1))
}
