//! A frame's headers as values: Ethernet, at most two VLAN tags (IEEE 802.1Q), IPv4 (RFC 791), IPv6 (RFC 8200), TCP
//! (RFC 9293), UDP (RFC 768), ICMP (RFC 792, RFC 4443).

use std::net::{IpAddr, Ipv4Addr};

use lb_common::{ICMP, ICMPV6, TCP, UDP, reason::Reason};

/// TCP's flags.
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
}

pub(super) const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;

/// Extension headers that may stand before a transport header.
const EXTENSIONS: [u8; 4] = [0, 43, FRAGMENT, 60];
const FRAGMENT: u8 = 44;

/// Who sends to whom; ports in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) source: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination: IpAddr,
    pub(crate) destination_port: u16,
}

/// A TCP segment, or a UDP datagram, whose headers make sense. A datagram has no flags, and numbers zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) ends: Ends,
    pub(super) protocol: u8,
    pub(super) ttl: u8,
    /// Bytes of the IP packet.
    pub(super) length: usize,
    /// Bytes of data in a segment; zero in a datagram.
    pub(super) data: usize,
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledgment: u32,
}

impl Segment {
    pub(super) const fn is_udp(&self) -> bool {
        self.protocol == UDP
    }

    /// Whether this flag is set.
    pub(super) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// A SYN that opens a connection.
    pub(super) const fn is_syn(&self) -> bool {
        self.has(flag::SYN) && !self.has(flag::ACK)
    }

    /// The answer to one.
    pub(super) const fn is_syn_ack(&self) -> bool {
        self.has(flag::SYN) && self.has(flag::ACK)
    }
}

/// An ICMP error about a TCP or UDP packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct IcmpError {
    /// The ends of the packet that it repeats.
    pub(super) about: Ends,
    /// That packet's protocol.
    pub(super) protocol: u8,
    /// Whom the error was sent to.
    pub(super) to: IpAddr,
    pub(super) ttl: u8,
    /// Bytes of the IP packet.
    pub(super) length: usize,
    /// The path's MTU, if that is what it tells.
    pub(super) mtu: Option<u32>,
}

/// What a frame is.
pub(super) enum Parsed {
    /// Nothing that could be ours.
    Neither(Reason),
    /// Of this protocol, and dropped for this reason, if it is ours.
    Odd(u8, Ends, Reason),
    /// Of this protocol, for this address, without ports: dropped for this reason, if it is ours.
    Portless(u8, IpAddr, Reason),
    IcmpError(IcmpError),
    Segment(Segment),
}

/// Where the packet begins in a frame with tags, and its ethertype; nothing if the frame ends before.
pub(super) fn network(frame: &[u8]) -> Option<(usize, u16)> {
    let kind = be16(frame, 12)?;
    match kind {
        0x8100 | 0x88a8 => match be16(frame, 16)? {
            0x8100 => Some((22, be16(frame, 20)?)),
            inner => Some((18, inner)),
        },
        _ => Some((14, kind)),
    }
}

pub(super) fn parse(frame: &[u8]) -> Parsed {
    if frame.len() < 34 {
        // Without room for an IP header, only its first EtherType is looked at.
        let kind = be16(frame, 12);
        let known = matches!(kind, None | Some(IPV4 | IPV6 | 0x8100 | 0x88a8));
        return Parsed::Neither(if known { Reason::Truncated } else { Reason::NotIp });
    }
    let Some((start, kind)) = network(frame) else {
        return Parsed::Neither(Reason::Truncated);
    };
    let packet = frame.get(start..).unwrap_or_default();
    if packet.len() < 20 {
        return Parsed::Neither(Reason::Truncated);
    }
    if kind != IPV4 && kind != IPV6 {
        return Parsed::Neither(Reason::NotIp);
    }
    if frame[0] & 1 == 1 {
        return Parsed::Neither(Reason::NotOurs);
    }
    let header = if kind == IPV4 { ipv4(packet) } else { ipv6(packet) };
    match header {
        Err(parsed) => parsed,
        Ok(header) => match header.protocol {
            TCP | UDP => transport(packet, &header),
            ICMP | ICMPV6 => icmp(packet, &header).map_or(FOREIGN, Parsed::IcmpError),
            _ => Parsed::Neither(Reason::NotOurs),
        },
    }
}

/// Looked at, and for no address that is ours.
const FOREIGN: Parsed = Parsed::Portless(0, IpAddr::V4(Ipv4Addr::UNSPECIFIED), Reason::Fragment);

/// An IP header.
struct Header {
    protocol: u8,
    ttl: u8,
    /// Its own length.
    bytes: usize,
    /// The packet's length, as it says.
    total: usize,
    /// Whether a part of the packet is in other packets.
    is_part: bool,
}

fn ipv4(packet: &[u8]) -> Result<Header, Parsed> {
    let (version, bytes, protocol) = (packet[0] >> 4, usize::from(packet[0] & 15) * 4, packet[9]);
    let carries_ports = protocol == TCP || protocol == UDP;
    if version != 4 || bytes < 20 {
        return Err(Parsed::Neither(if protocol == TCP { Reason::Truncated } else { Reason::NotOurs }));
    }
    let fragment = u16::from_be_bytes([packet[6], packet[7]]);
    if carries_ports && fragment & 0x1fff != 0 {
        return Err(Parsed::Portless(protocol, address(packet, 16, 4), Reason::Fragment));
    }
    let is_part = fragment & 0x3fff != 0;
    Ok(Header { protocol, ttl: packet[8], bytes, total: total(packet), is_part })
}

fn ipv6(packet: &[u8]) -> Result<Header, Parsed> {
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return Err(Parsed::Neither(Reason::Truncated));
    }
    let next = packet[6];
    if !EXTENSIONS.contains(&next) {
        return Ok(Header {
            protocol: next,
            ttl: packet[7],
            bytes: 40,
            total: total(packet),
            is_part: false,
        });
    }
    if packet.len() < 48 {
        return Err(Parsed::Neither(Reason::Truncated));
    }
    let reason = if next == FRAGMENT { Reason::Fragment } else { Reason::IpOptions };
    Err(match packet[40] {
        protocol @ (TCP | UDP) => Parsed::Portless(protocol, address(packet, 24, 16), reason),
        _ => Parsed::Neither(Reason::NotOurs),
    })
}

fn transport(packet: &[u8], header: &Header) -> Parsed {
    let Some(ends) = ends(packet, header.bytes) else {
        return Parsed::Neither(Reason::Truncated);
    };
    let odd = |reason| Parsed::Odd(header.protocol, ends, reason);
    if is_v4(packet) && header.bytes > 20 {
        return odd(Reason::IpOptions);
    }
    if header.is_part {
        return odd(Reason::Fragment);
    }
    let content = packet.get(header.bytes..header.total).unwrap_or_default();
    let sound = if header.protocol == TCP { is_sound_tcp(content) } else { is_sound_udp(content) };
    if !sound {
        return odd(Reason::BadHeader);
    }
    let (flags, sequence, acknowledgment) =
        if header.protocol == TCP { (content[13], be32(content, 4), be32(content, 8)) } else { (0, 0, 0) };
    Parsed::Segment(Segment {
        ends,
        protocol: header.protocol,
        ttl: header.ttl,
        length: header.total,
        data: if header.protocol == TCP { content.len() - usize::from(content[12] >> 4) * 4 } else { 0 },
        flags,
        sequence,
        acknowledgment,
    })
}

fn is_sound_tcp(segment: &[u8]) -> bool {
    if segment.len() < 20 {
        return false;
    }
    let offset = usize::from(segment[12] >> 4) * 4;
    let is = |flag| segment[13] & flag != 0;
    let possible = is(flag::SYN) || is(flag::RST) || is(flag::ACK);
    let impossible = is(flag::SYN) && (is(flag::FIN) || is(flag::RST));
    (20..=segment.len()).contains(&offset) && possible && !impossible
}

fn is_sound_udp(datagram: &[u8]) -> bool {
    let length = be16(datagram, 4).map(usize::from);
    datagram.len() >= 8 && length.is_some_and(|length| (8..=datagram.len()).contains(&length))
}

/// An error, if it is one about TCP or UDP that repeats enough of it: its IP header and 64 bits, within the message's own length.
fn icmp(packet: &[u8], header: &Header) -> Option<IcmpError> {
    let v4 = is_v4(packet);
    let (bytes, protocol) = if v4 { (20, ICMP) } else { (40, ICMPV6) };
    let enough = 2 * bytes + 16;
    if header.protocol != protocol || header.bytes != bytes || header.is_part {
        return None;
    }
    if packet.len() < enough || !(enough..=packet.len()).contains(&header.total) {
        return None;
    }
    let kind = packet[bytes];
    let is_error = if v4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) };
    let repeated = &packet[bytes + 8..];
    let (whole, protocol) = if v4 {
        (repeated[0] == 0x45 && u16::from_be_bytes([repeated[6], repeated[7]]) & 0x1fff == 0, repeated[9])
    } else {
        (repeated[0] >> 4 == 6, repeated[6])
    };
    if !is_error || !whole || (protocol != TCP && protocol != UDP) {
        return None;
    }
    let to = if v4 { address(packet, 16, 4) } else { address(packet, 24, 16) };
    let about = ends(repeated, bytes)?;
    let mtu = match (v4, kind, packet[bytes + 1]) {
        (true, 3, 4) => Some(u32::from(be16(packet, bytes + 6)?)),
        (false, 2, _) => Some(be32(packet, bytes + 4)),
        _ => None,
    };
    Some(IcmpError { about, protocol, to, ttl: header.ttl, length: header.total, mtu })
}

pub(super) const fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

/// The length that an IP header says.
pub(super) fn total(packet: &[u8]) -> usize {
    let at = |at| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    if is_v4(packet) { at(2) } else { 40 + at(4) }
}

fn ends(packet: &[u8], header: usize) -> Option<Ends> {
    let (first, bytes) = if is_v4(packet) { (12, 4) } else { (8, 16) };
    Some(Ends {
        source: address(packet, first, bytes),
        destination: address(packet, first + bytes, bytes),
        source_port: be16(packet, header)?,
        destination_port: be16(packet, header + 2)?,
    })
}

/// An address of 4 or 16 bytes.
fn address(packet: &[u8], at: usize, bytes: usize) -> IpAddr {
    let bytes = &packet[at..at + bytes];
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default()),
    }
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
