//! A frame's headers as values: Ethernet, at most two VLAN tags (IEEE 802.1Q), IPv4 (RFC 791), TCP (RFC 9293), ICMP (RFC 792).

use std::net::Ipv4Addr;

use lb_common::reason::Reason;

/// TCP's flags.
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
}

/// Who sends to whom; ports in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) source: Ipv4Addr,
    pub(crate) source_port: u16,
    pub(crate) destination: Ipv4Addr,
    pub(crate) destination_port: u16,
}

/// A TCP segment whose headers make sense.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) ends: Ends,
    pub(super) ttl: u8,
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledgment: u32,
}

impl Segment {
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

/// What a frame is.
pub(super) enum Parsed {
    /// Nothing that could be ours.
    Neither(Reason),
    /// TCP that is dropped for this reason, if it is ours.
    Odd(Ends, Reason),
    /// A fragment that is not the first, for this address.
    LaterFragment(Ipv4Addr),
    /// An ICMP error about a TCP packet between those ends.
    IcmpError {
        about: Ends,
        to: Ipv4Addr,
        ttl: u8,
    },
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
        let known = matches!(kind, None | Some(0x0800 | 0x86dd | 0x8100 | 0x88a8));
        return Parsed::Neither(if known { Reason::Truncated } else { Reason::NotIp });
    }
    let Some((start, kind)) = network(frame) else {
        return Parsed::Neither(Reason::Truncated);
    };
    let packet = frame.get(start..).unwrap_or_default();
    if packet.len() < 20 {
        return Parsed::Neither(Reason::Truncated);
    }
    if kind != 0x0800 && kind != 0x86dd {
        return Parsed::Neither(Reason::NotIp);
    }
    if frame[0] & 1 == 1 {
        return Parsed::Neither(Reason::NotOurs);
    }
    if kind == 0x86dd {
        return ipv6(packet);
    }
    if packet[9] != 6 && !(0x45..0x50).contains(&packet[0]) {
        return Parsed::Neither(Reason::NotOurs);
    }
    match packet.get(9) {
        Some(6) if packet.len() >= 20 => tcp(packet),
        Some(17) => udp(packet),
        Some(1) if packet.len() >= 20 => icmp(packet).unwrap_or(FOREIGN),
        _ if packet.len() >= 20 => Parsed::Neither(Reason::NotOurs),
        _ => Parsed::Neither(Reason::Truncated),
    }
}

/// Looked at, and for no address that is ours.
const FOREIGN: Parsed = Parsed::LaterFragment(Ipv4Addr::UNSPECIFIED);

/// No service here is IPv6: nothing is ours, as far as it can be told what it is.
fn ipv6(packet: &[u8]) -> Parsed {
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return Parsed::Neither(Reason::Truncated);
    }
    match (packet[6], packet.len()) {
        (0 | 43 | 44 | 60, ..48) | (6 | 17, ..44) => Parsed::Neither(Reason::Truncated),
        (0 | 43 | 44 | 60, _) if matches!(packet[40], 6 | 17) => FOREIGN,
        (1 | 6 | 17 | 58, _) => FOREIGN,
        _ => Parsed::Neither(Reason::NotOurs),
    }
}

/// No service here is UDP.
fn udp(packet: &[u8]) -> Parsed {
    let header = usize::from(packet[0] & 15) * 4;
    let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    if !fragment && packet.len() < header + 4 { Parsed::Neither(Reason::Truncated) } else { FOREIGN }
}

fn tcp(packet: &[u8]) -> Parsed {
    let (version, header) = (packet[0] >> 4, usize::from(packet[0] & 15) * 4);
    if version != 4 || header < 20 {
        return Parsed::Neither(Reason::Truncated);
    }
    let fragment = u16::from_be_bytes([packet[6], packet[7]]);
    if fragment & 0x1fff != 0 {
        return Parsed::LaterFragment(address(packet, 16));
    }
    let Some(ends) = ends(packet, header) else {
        return Parsed::Neither(Reason::Truncated);
    };
    if header > 20 {
        return Parsed::Odd(ends, Reason::IpOptions);
    }
    if fragment & 0x2000 != 0 {
        return Parsed::Odd(ends, Reason::Fragment);
    }
    if packet.len() < 40 {
        return Parsed::Odd(ends, Reason::BadHeader);
    }
    let (total, offset) = (total(packet), usize::from(packet[32] >> 4) * 4);
    let flags = packet[33];
    let is = |flag| flags & flag != 0;
    let possible = is(flag::SYN) || is(flag::RST) || is(flag::ACK);
    let impossible = is(flag::SYN) && (is(flag::FIN) || is(flag::RST));
    if offset < 20 || total < 20 + offset || total > packet.len() || !possible || impossible {
        return Parsed::Odd(ends, Reason::BadHeader);
    }
    Parsed::Segment(Segment {
        ends,
        ttl: packet[8],
        flags,
        sequence: be32(packet, 24),
        acknowledgment: be32(packet, 28),
    })
}

/// An error, if it is one about TCP that repeats enough of it.
fn icmp(packet: &[u8]) -> Option<Parsed> {
    let about = packet.get(28..)?;
    let whole = packet[0] == 0x45 && u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff == 0;
    let error = matches!(packet[20], 3 | 11 | 12);
    // The IP header and 64 bits (RFC 792), within the message's own length.
    let enough = (56..=packet.len()).contains(&total(packet));
    if !whole || !error || !enough || about[0] != 0x45 || about[9] != 6 {
        return None;
    }
    if u16::from_be_bytes([about[6], about[7]]) & 0x1fff != 0 {
        return None;
    }
    Some(Parsed::IcmpError { about: ends(about, 20)?, to: address(packet, 16), ttl: packet[8] })
}

/// The length that an IP header says.
pub(super) fn total(packet: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([packet[2], packet[3]]))
}

fn ends(packet: &[u8], header: usize) -> Option<Ends> {
    Some(Ends {
        source: address(packet, 12),
        destination: address(packet, 16),
        source_port: be16(packet, header)?,
        destination_port: be16(packet, header + 2)?,
    })
}

fn address(packet: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
