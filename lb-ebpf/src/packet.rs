//! The packet's bytes: this module alone checks bounds, reads and writes them.
//!
//! [`Packet::parse`] turns headers into values; the stages decide on those values and give back a [`Rewrite`], which
//! only this module applies. Both families and all VLAN tags leave `parse` on one path: the headers' places are values
//! that the verifier does not know, and what lies behind is checked once.

mod access;
mod header;
mod icmp_error;
mod mss;
mod plain;
mod reset;
mod rewrite;
mod tunnel;

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_get_buff_len};
use lb_common::{
    ICMP, ICMPV6, TCP, UDP, address::Address, flow::ARM_SHIFT, hash::mix, reason::Reason, tcp::TcpFlags,
};

use self::{
    access::{ahead, load8, load8_anew, load16, load32, load64, same, store8, store16, store32},
    rewrite::hop_delta,
};
pub(crate) use self::{
    icmp_error::IcmpError,
    mss::clamp_mss,
    plain::{Family, Plain, Span, family},
    rewrite::{End, Rewrite},
    tunnel::{answer_too_big, encapsulate},
};

const ETHERNET: usize = 14;
const VLAN_TAG: u64 = 4;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
const ETHERTYPE_VLAN: u16 = 0x8100_u16.to_be();
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8_u16.to_be();

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// IPv6 extension headers that hide a transport header (RFC 8200 section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// A frame with an IP header.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) context: *mut xdp_md,
    start: *mut u8,
    /// 20 bytes from here are within the packet, and 40 if it is IPv6.
    network: *mut u8,
    /// 8 bytes from here are within the packet if there is a [`Segment`], and 20 if it is TCP.
    transport: *mut u8,
    length: u32,
    hops: u8,
    /// The number of the interface that it came by; [`Packet::parse`] does not know it.
    pub(crate) arm: u8,
}

/// Where a frame goes next.
#[derive(Clone, Copy)]
pub(crate) struct Hop {
    /// The MAC address of the next hop, in the low 48 bits, bytes in memory order.
    pub(crate) to: u64,
    /// The MAC address that it leaves from.
    pub(crate) from: u64,
    /// The number of the interface that it leaves by, or `SAME_ARM`.
    pub(crate) arm: u8,
}

/// Who sends to whom; ports as on the wire.
#[derive(Clone, Copy)]
pub(crate) struct Tuple {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
}

/// A TCP segment, or a UDP datagram, with sound headers.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) tuple: Tuple,
    pub(crate) is_udp: bool,
    /// None for UDP.
    pub(crate) flags: TcpFlags,
}

impl Segment {
    /// The IP protocol number.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u8 {
        if self.is_udp { UDP } else { TCP }
    }
}

/// What a frame turned out to be.
pub(crate) enum Parsed {
    Segment(Segment),
    /// A packet of this protocol that is dropped for this reason if it turns out to be for us.
    Odd(u8, Tuple, Reason),
    /// A packet of this protocol that shows no ports; the address it is for.
    Portless(u8, Address, Reason),
    /// Perhaps an [`IcmpError`].
    IcmpError,
}

/// What a network header tells.
struct Network {
    source: Address,
    destination: Address,
    protocol: u8,
    hops: u8,
    /// Bytes of the header, as the header has them: a multiple of 4.
    header: u64,
    /// Bytes of the packet without link header and padding.
    length: usize,
    /// A [`Reason`] to drop it for if it turns out to be for us; zero: none.
    odd: u32,
}

/// A header that hides the ports.
enum Hidden {
    Passed(Reason),
    Portless(u8, Address, Reason),
}

impl Packet {
    /// Reads the headers.
    ///
    /// # Errors
    /// Why the packet is none of ours.
    #[inline(always)]
    pub(crate) fn parse(context: *mut xdp_md) -> Result<(Self, Parsed), Reason> {
        let (start, end) = bounds(context);
        let (network, ethertype) = network_header(start, end)?;
        let header = match ethertype {
            ETHERTYPE_IPV4 => ipv4(network),
            _ => ipv6(network, end),
        };
        let length = length(context);
        let packet = Self { context, start, network, transport: network, length, hops: 0, arm: 0 };
        let header = match header {
            Ok(header) => header,
            Err(Hidden::Passed(reason)) => return Err(reason),
            Err(Hidden::Portless(protocol, destination, reason)) => {
                return Ok((packet, Parsed::Portless(protocol, destination, reason)));
            }
        };
        let packet = Self { transport: ahead(network, header.header), hops: header.hops, ..packet };
        match header.protocol {
            TCP | UDP => packet.transport(&header, end).map(|parsed| (packet, parsed)),
            ICMP | ICMPV6 => Ok((packet, Parsed::IcmpError)),
            _ => Err(Reason::NotOurs),
        }
    }

    #[inline(always)]
    fn transport(&self, header: &Network, end: *mut u8) -> Result<Parsed, Reason> {
        let at = self.transport;
        if at.wrapping_add(4) > end {
            return Err(Reason::Truncated);
        }
        // SAFETY: four bytes at `at` were checked.
        let (source_port, destination_port) = unsafe { (load16::<0>(at), load16::<2>(at)) };
        let tuple =
            Tuple { source: header.source, destination: header.destination, source_port, destination_port };
        if let Some(reason) = Reason::from_number(header.odd)
            && header.odd != 0
        {
            return Ok(Parsed::Odd(header.protocol, tuple, reason));
        }
        let sound = if header.protocol == UDP {
            self.is_sound_datagram(header, end)
        } else {
            self.is_sound_segment(header, end)
        };
        if !sound || is_group(self.sender()) {
            return Ok(Parsed::Odd(header.protocol, tuple, Reason::BadHeader));
        }
        if header.protocol == UDP {
            return Ok(Parsed::Segment(Segment { tuple, is_udp: true, flags: TcpFlags(0) }));
        }
        let at = self.transport;
        // Always so where the header is sound.
        if at.wrapping_add(TCP_HEADER) > end {
            return Err(Reason::Truncated);
        }
        // SAFETY: 20 bytes were checked.
        let flags = TcpFlags(unsafe { load8::<13>(at) });
        Ok(Parsed::Segment(Segment { tuple, is_udp: false, flags }))
    }

    /// Bytes from the network header to the frame's end.
    #[inline(always)]
    fn available(&self) -> usize {
        (self.length as usize).wrapping_sub(self.network as usize - self.start as usize)
    }

    #[inline(always)]
    fn is_sound_segment(&self, header: &Network, end: *mut u8) -> bool {
        let at = self.transport;
        if at.wrapping_add(TCP_HEADER) > end {
            return false;
        }
        // SAFETY: 20 bytes were checked.
        let (offset, flags) = unsafe { (load8::<12>(at), load8::<13>(at)) };
        let headers = header.header as usize + usize::from(offset >> 4) * 4;
        let available = self.available();
        offset >= 0x50 && header.length >= headers && header.length <= available && plausible(TcpFlags(flags))
    }

    #[inline(always)]
    fn is_sound_datagram(&self, header: &Network, end: *mut u8) -> bool {
        let at = self.transport;
        if at.wrapping_add(UDP_HEADER) > end {
            return false;
        }
        // SAFETY: 8 bytes were checked.
        let length = usize::from(u16::from_be(unsafe { load16::<4>(at) }));
        // Signed: a packet that says that it ends within its header has none.
        let content = header.length as isize - header.header as isize;
        let available = self.available();
        length >= UDP_HEADER && length as isize <= content && header.length <= available
    }

    /// A segment's sequence number, host byte order; zero for UDP.
    #[inline(always)]
    pub(crate) fn sequence(&self, segment: &Segment) -> u32 {
        if segment.is_udp {
            return 0;
        }
        // SAFETY: `tcp_header` checked 20 bytes.
        self.tcp_header().map_or(0, |at| u32::from_be(unsafe { load32::<4>(at) }))
    }

    /// A segment's acknowledgement number, host byte order; zero for UDP.
    #[inline(always)]
    pub(crate) fn acknowledgment(&self, segment: &Segment) -> u32 {
        if segment.is_udp {
            return 0;
        }
        // SAFETY: `tcp_header` checked 20 bytes.
        self.tcp_header().map_or(0, |at| u32::from_be(unsafe { load32::<8>(at) }))
    }

    /// Bytes of data in a segment; none in a datagram.
    #[inline(always)]
    pub(crate) fn data(&self, segment: &Segment) -> u32 {
        if segment.is_udp {
            return 0;
        }
        let Some(tcp) = self.tcp_header() else { return 0 };
        let length = match self.ipv6_header() {
            // SAFETY: `ipv6_header` checked 40 bytes.
            Some(at) => IPV6 as u32 + u32::from(u16::from_be(unsafe { load16::<4>(at) })),
            // SAFETY: `parse` checked 20 bytes.
            None => u32::from(u16::from_be(unsafe { load16::<2>(self.network) })),
        };
        // SAFETY: `tcp_header` checked 20 bytes.
        let header = u32::from(unsafe { load8::<12>(tcp) } >> 4) * 4;
        let before = (self.transport as usize - self.network as usize) as u32;
        length.saturating_sub(before + header)
    }

    /// The TCP header of a segment; its 20 bytes are checked anew.
    #[inline(always)]
    fn tcp_header(&self) -> Option<*mut u8> {
        let (_, end) = bounds(self.context);
        if self.transport.wrapping_add(TCP_HEADER) <= end { Some(self.transport) } else { None }
    }

    /// Bytes of the frame.
    #[inline(always)]
    pub(crate) fn length(&self) -> u32 {
        self.length
    }

    /// Time to live, or hop limit.
    #[inline(always)]
    pub(crate) fn hops(&self) -> u8 {
        self.hops
    }

    /// A number of a segment's flow: it gives it one way through the network and one receive queue, and others others.
    #[inline(always)]
    pub(crate) fn entropy(&self, _: &Segment) -> u32 {
        // SAFETY: `parse` checked 8 bytes before it gave out a segment.
        let ports = unsafe { load32::<0>(self.transport) };
        mix(self.sender() ^ u64::from(ports) << 16) as u32
    }

    /// The MAC address that the frame is for, in the low 48 bits, bytes in memory order.
    #[inline(always)]
    pub(crate) fn receiver(&self) -> u64 {
        receiver(self.start)
    }

    /// The MAC address that the frame came from, in the low 48 bits, bytes in memory order.
    #[inline(always)]
    pub(crate) fn sender(&self) -> u64 {
        sender(self.start)
    }

    /// Where the frame came from: its sender's MAC address, and the arm above it.
    #[inline(always)]
    pub(crate) fn return_hop(&self) -> u64 {
        self.sender() | u64::from(self.arm) << ARM_SHIFT
    }

    /// Sends the packet on as it is, one hop further.
    #[inline(always)]
    pub(crate) fn send_on(&self, hop: &Hop) {
        self.address_frame(hop);
        if let Some(at) = self.ipv6_header() {
            // SAFETY: `ipv6_header` checked 40 bytes.
            unsafe { store8::<7>(at, load8::<7>(at).wrapping_sub(1)) };
            return;
        }
        let at = self.network;
        // SAFETY: `parse` checked 20 bytes.
        unsafe {
            store16::<10>(at, hop_delta(at).apply(load16::<10>(at)));
            store8::<8>(at, load8::<8>(at).wrapping_sub(1));
        }
    }

    /// Puts the frame's new addresses in.
    #[inline(always)]
    pub(crate) fn address_frame(&self, hop: &Hop) {
        write_addresses(self.start, hop);
    }

    /// The IPv6 header, if that is what the packet has; its 40 bytes are checked anew.
    #[inline(always)]
    fn ipv6_header(&self) -> Option<*mut u8> {
        let (_, end) = bounds(self.context);
        // SAFETY: 20 bytes of the network header were checked.
        let version = unsafe { load8_anew::<0>(self.network) } >> 4;
        if version == 6 && self.network.wrapping_add(IPV6) <= end { Some(self.network) } else { None }
    }
}

/// The index of the interface that a packet came by.
#[inline(always)]
pub(crate) fn interface(context: *mut xdp_md) -> u32 {
    // SAFETY: the context is the one that the kernel called the program with.
    unsafe { (&raw const (*context).ingress_ifindex).read_volatile() }
}

/// Whether a MAC address is that of a group, which no frame can come from (IEEE 802.3 section 3.2.3): an answer would reach
/// the whole network.
#[inline(always)]
pub(crate) const fn is_group(mac: u64) -> bool {
    mac & 1 != 0
}

/// The MAC address that a frame is for; the caller has checked its first 14 bytes.
#[inline(always)]
fn receiver(start: *const u8) -> u64 {
    // SAFETY: see above.
    unsafe { u64::from(load32::<0>(start)) | u64::from(load16::<4>(start)) << 32 }
}

/// The MAC address that a frame came from; the caller has checked its first 14 bytes.
#[inline(always)]
fn sender(start: *const u8) -> u64 {
    // SAFETY: see above.
    unsafe { u64::from(load32::<6>(start)) | u64::from(load16::<10>(start)) << 32 }
}

/// Writes the MAC addresses of a frame, whose first 14 bytes the caller has checked.
#[inline(always)]
fn write_addresses(at: *mut u8, hop: &Hop) {
    // SAFETY: see above.
    unsafe {
        store32::<0>(at, hop.to as u32);
        store16::<4>(at, (hop.to >> 32) as u16);
        store32::<6>(at, hop.from as u32);
        store16::<10>(at, (hop.from >> 32) as u16);
    }
}

/// Bytes of a frame, in all of its buffers.
#[inline(always)]
fn length(context: *mut xdp_md) -> u32 {
    // SAFETY: the context is the one that the kernel called the program with.
    unsafe { bpf_xdp_get_buff_len(context) as u32 }
}

/// Where the packet begins, and where its first buffer ends.
#[inline(always)]
fn bounds(context: *mut xdp_md) -> (*mut u8, *mut u8) {
    // Volatile, or the compiler passes the two 32-bit values between functions instead of the context, and the
    // verifier no longer knows them for pointers.
    // SAFETY: the context is the one that the kernel called the program with.
    let start = unsafe { (&raw const (*context).data).read_volatile() } as usize as *mut u8;
    // SAFETY: as above.
    let end = unsafe { (&raw const (*context).data_end).read_volatile() } as usize as *mut u8;
    (start, end)
}

/// Flags that a TCP may send: one of SYN, RST, ACK, and no SYN together with FIN or RST.
#[inline(always)]
fn plausible(flags: TcpFlags) -> bool {
    let some = flags.0 & (TcpFlags::SYN | TcpFlags::RST | TcpFlags::ACK) != 0;
    let both = flags.has(TcpFlags::SYN) && flags.0 & (TcpFlags::FIN | TcpFlags::RST) != 0;
    some && !both
}

/// The network header, behind up to two VLAN tags, with 20 bytes that are within the packet; and its EtherType, which is IPv4's
/// or IPv6's.
#[inline(always)]
fn network_header(start: *mut u8, end: *mut u8) -> Result<(*mut u8, u16), Reason> {
    if start.wrapping_add(ETHERNET + IPV4) > end {
        return Err(short_frame(start, end));
    }
    // SAFETY: 34 bytes were checked.
    let (group, outer, middle) = unsafe { (load8::<0>(start), load16::<12>(start), load16::<16>(start)) };
    let one = same(outer, ETHERTYPE_VLAN) | same(outer, ETHERTYPE_SERVICE_VLAN);
    let two = one & same(middle, ETHERTYPE_VLAN);
    let behind_tags = ahead(start, VLAN_TAG * (one + two));
    if behind_tags.wrapping_add(ETHERNET + IPV4) > end {
        return Err(Reason::Truncated);
    }
    // SAFETY: 34 bytes were checked.
    let ethertype = unsafe { load16::<12>(behind_tags) };
    if ethertype != ETHERTYPE_IPV4 && ethertype != ETHERTYPE_IPV6 {
        return Err(Reason::NotIp);
    }
    // Broadcast and multicast frames are the host's business, whatever address is inside.
    if group & 1 != 0 { Err(Reason::NotOurs) } else { Ok((behind_tags.wrapping_add(ETHERNET), ethertype)) }
}

/// Of a frame without room for an IP header.
#[inline(always)]
fn short_frame(start: *mut u8, end: *mut u8) -> Reason {
    if start.wrapping_add(ETHERNET) > end {
        return Reason::Truncated;
    }
    // SAFETY: 14 bytes were checked.
    match unsafe { load16::<12>(start) } {
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 | ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => Reason::Truncated,
        _ => Reason::NotIp,
    }
}

/// Reads an IPv4 header, whose first 20 bytes were checked.
#[inline(always)]
fn ipv4(at: *mut u8) -> Result<Network, Hidden> {
    // SAFETY: the caller has checked 20 bytes.
    let (version, total, fragment, hops, protocol) =
        unsafe { (load8::<0>(at), load16::<2>(at), load16::<6>(at), load8::<8>(at), load8::<9>(at)) };
    let (source, destination) = ipv4_addresses(at);
    let fragment = u16::from_be(fragment);
    if version & 0xf0 != 0x40 || version < 0x45 {
        return Err(Hidden::Passed(if protocol == TCP { Reason::Truncated } else { Reason::NotOurs }));
    }
    let mut odd = 0;
    if protocol == TCP || protocol == UDP {
        if fragment & FRAGMENT_OFFSET != 0 {
            return Err(Hidden::Portless(protocol, destination, Reason::Fragment));
        }
        if fragment & MORE_FRAGMENTS != 0 {
            odd = Reason::Fragment as u32;
        }
        if version != 0x45 {
            odd = Reason::IpOptions as u32;
        }
    }
    // SAFETY: as above.
    let header = (unsafe { load8_anew::<0>(at) } & 0xf) << 2;
    let length = usize::from(u16::from_be(total));
    Ok(Network { source, destination, protocol, hops, header, length, odd })
}

/// Reads an IPv6 header, whose first 20 bytes were checked.
#[inline(always)]
fn ipv6(at: *mut u8, end: *mut u8) -> Result<Network, Hidden> {
    if at.wrapping_add(IPV6) > end {
        return Err(Hidden::Passed(Reason::Truncated));
    }
    // SAFETY: 40 bytes were checked.
    let (version, payload, protocol, hops) =
        unsafe { (load8::<0>(at), load16::<4>(at), load8::<6>(at), load8::<7>(at)) };
    let (source, destination) = ipv6_addresses(at);
    if version >> 4 != 6 {
        return Err(Hidden::Passed(Reason::Truncated));
    }
    if matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
        return Err(extended(at, end, protocol, destination));
    }
    // 40 bytes, told in a way that the verifier takes for as unknown as an IPv4 header's length.
    // SAFETY: as above.
    let header = ((unsafe { load8_anew::<0>(at) } >> 4) << 3).wrapping_sub(8);
    let length = IPV6 + usize::from(u16::from_be(payload));
    Ok(Network { source, destination, protocol, hops, header, length, odd: 0 })
}

/// An IPv6 packet whose first extension header is this one: to be dropped if it hides TCP or UDP that is for us.
#[inline(always)]
fn extended(at: *mut u8, end: *mut u8, extension: u8, destination: Address) -> Hidden {
    if at.wrapping_add(IPV6 + 8) > end {
        return Hidden::Passed(Reason::Truncated);
    }
    // SAFETY: 48 bytes were checked.
    let protocol = unsafe { load8::<IPV6>(at) };
    if protocol != TCP && protocol != UDP {
        return Hidden::Passed(Reason::NotOurs);
    }
    let reason = if extension == FRAGMENT { Reason::Fragment } else { Reason::IpOptions };
    Hidden::Portless(protocol, destination, reason)
}

/// Source and destination of an IPv4 header, whose 20 bytes the caller has checked.
#[inline(always)]
fn ipv4_addresses(at: *const u8) -> (Address, Address) {
    // SAFETY: see above.
    unsafe { (Address::from_v4_word(load32::<12>(at)), Address::from_v4_word(load32::<16>(at))) }
}

/// Source and destination of an IPv6 header, whose 40 bytes the caller has checked.
#[inline(always)]
fn ipv6_addresses(at: *const u8) -> (Address, Address) {
    // SAFETY: see above.
    unsafe { (Address([load64::<8>(at), load64::<16>(at)]), Address([load64::<24>(at), load64::<32>(at)])) }
}
