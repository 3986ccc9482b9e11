//! Frames, put together byte by byte.

use std::net::IpAddr;

use lb_common::{ICMP, ICMPV6, TCP, UDP};

use crate::{
    golden::frame::{Mac, mend},
    model::Ends,
};

/// A frame around a TCP segment, a UDP datagram or an ICMP error, good unless it is spoilt afterwards.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) to: Mac,
    pub(crate) from: Mac,
    /// EtherTypes of the VLAN tags, the outer one first.
    pub(crate) tags: Vec<u16>,
    pub(crate) ttl: u8,
    /// Bytes of IPv4 options, a multiple of four; with IPv6, whether there is an extension header.
    pub(crate) ip_options: usize,
    /// Flags and offset; with IPv6, in a fragment header unless the packet is whole.
    pub(crate) fragment: u16,
    /// Bytes of TCP options, a multiple of four.
    pub(crate) tcp_options: usize,
    pub(crate) payload: Vec<u8>,
    /// Whether UDP datagrams have a checksum.
    pub(crate) udp_sum: bool,
    /// What stands behind the packet.
    pub(crate) trailer: Vec<u8>,
}

/// The numbers and flags of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) flags: u8,
}

/// An IPv4 packet that may be cut in pieces, but is not.
pub(crate) const WHOLE: u16 = 0x4000;

impl Shape {
    /// A TCP segment, or a UDP datagram, which has no numbers.
    pub(crate) fn segment(&self, protocol: u8, ends: &Ends, numbers: Numbers) -> Vec<u8> {
        let packet = self.packet(protocol, ends, numbers);
        self.frame(&packet)
    }

    fn packet(&self, protocol: u8, ends: &Ends, numbers: Numbers) -> Vec<u8> {
        let mut content = Vec::with_capacity(60 + self.payload.len());
        content.extend(ends.source_port.to_be_bytes());
        content.extend(ends.destination_port.to_be_bytes());
        if protocol == UDP {
            let length = u16::try_from(8 + self.payload.len()).unwrap_or(u16::MAX);
            content.extend(length.to_be_bytes());
            // Anything but zero asks for the right one.
            content.extend(u16::from(self.udp_sum).to_be_bytes());
        } else {
            content.extend(numbers.sequence.to_be_bytes());
            content.extend(numbers.acknowledgment.to_be_bytes());
            let offset = u8::try_from(5 + self.tcp_options / 4).unwrap_or(15);
            content.extend([offset << 4, numbers.flags, 0x72, 0x10, 0, 0, 0, 0]);
            content.resize(content.len() + self.tcp_options, 1);
        }
        content.extend(&self.payload);
        self.ip(protocol, ends.source, ends.destination, &content)
    }

    /// An ICMP error of this type, and with this path MTU where it has one, about a packet between those ends, which repeats so many bytes behind its IP header.
    pub(crate) fn error(
        &self,
        (kind, mtu): (u8, u16),
        from: IpAddr,
        protocol: u8,
        about: &Ends,
        repeats: usize,
    ) -> Vec<u8> {
        let inner = Self { ttl: 60, ip_options: 0, fragment: WHOLE, ..self.clone() };
        let numbers = Numbers { sequence: 0x0102_0304, acknowledgment: 5, flags: 0x10 };
        let [high, low] = mtu.to_be_bytes();
        let mut message = vec![kind, 4, 0, 0, 0, 0, high, low];
        let (header, protocol_of_error) = if from.is_ipv4() { (20, ICMP) } else { (40, ICMPV6) };
        message.extend(inner.packet(protocol, about, numbers).iter().take(header + repeats));
        let packet = self.ip(protocol_of_error, from, about.source, &message);
        self.frame(&packet)
    }

    /// An IP packet of any protocol, with right checksums.
    pub(crate) fn ip(&self, protocol: u8, from: IpAddr, to: IpAddr, content: &[u8]) -> Vec<u8> {
        let mut packet = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = 20 + self.ip_options;
                let total = u16::try_from(header + content.len()).unwrap_or(u16::MAX).to_be_bytes();
                let fragment = self.fragment.to_be_bytes();
                let version = 0x40 | u8::try_from(header / 4).unwrap_or(15);
                let mut packet = vec![version, 0, total[0], total[1], 0x12, 0x34, fragment[0], fragment[1]];
                packet.extend([self.ttl, protocol, 0, 0]);
                packet.extend(from.octets());
                packet.extend(to.octets());
                packet.resize(header, 1);
                packet
            }
            (from, to) => self.ipv6(protocol, from, to, content.len()),
        };
        packet.extend(content);
        mend_any(&mut packet);
        packet
    }

    fn ipv6(&self, protocol: u8, from: IpAddr, to: IpAddr, length: usize) -> Vec<u8> {
        // An extension header of eight bytes: a fragment's, or options to be ignored.
        let extension = match self.fragment {
            0 | WHOLE if self.ip_options == 0 => None,
            0 | WHOLE => Some([[0, 43, 60][self.ip_options / 4 % 3], protocol, 0, 1, 4, 0, 0, 0, 0]),
            fragment => {
                let [high, low] = (fragment << 3 | u16::from(fragment & 0x2000 != 0)).to_be_bytes();
                Some([44, protocol, 0, high, low, 0, 0, 0, 9])
            }
        };
        let more = if extension.is_some() { 8 } else { 0 };
        let [high, low] = u16::try_from(length + more).unwrap_or(u16::MAX).to_be_bytes();
        let next = extension.map_or(protocol, |extension| extension[0]);
        let mut packet = vec![0x60, 0x20, 0, 7, high, low, next, self.ttl];
        for address in [from, to] {
            packet.extend(match address {
                IpAddr::V6(v6) => v6.octets(),
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            });
        }
        packet.extend(extension.iter().flat_map(|extension| &extension[1..]));
        packet
    }

    /// The frame around a packet.
    pub(crate) fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let kind = if packet.first().is_some_and(|first| first >> 4 == 6) { 0x86dd } else { 0x0800 };
        self.frame_of(kind, packet)
    }

    /// The frame of this EtherType around something.
    pub(crate) fn frame_of(&self, kind: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(22 + packet.len() + self.trailer.len());
        frame.extend(self.to);
        frame.extend(self.from);
        for kind in &self.tags {
            frame.extend(kind.to_be_bytes());
            frame.extend([0, 85]);
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(packet);
        frame.extend(&self.trailer);
        frame
    }
}

/// Writes the checksums that a packet of either family ought to have, if its lengths make sense; a UDP datagram's, if it has one.
pub(crate) fn mend_any(packet: &mut [u8]) {
    match packet.first().map(|first| first >> 4) {
        Some(6) if packet.len() >= 40 => {
            let total = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            mend_content(packet, packet[6], 8..40, 40, total);
        }
        Some(4) if packet.len() >= 20 && packet[9] == UDP => {
            mend(packet);
            let header = usize::from(packet[0] & 15) * 4;
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            mend_content(packet, UDP, 12..20, header, total);
        }
        _ => mend(packet),
    }
}

fn mend_content(
    packet: &mut [u8],
    protocol: u8,
    addresses: std::ops::Range<usize>,
    header: usize,
    total: usize,
) {
    let field = header
        + match protocol {
            TCP => 16,
            UDP => 6,
            ICMPV6 => 2,
            _ => return,
        };
    if total < field + 2 || packet.len() < total {
        return;
    }
    if protocol == UDP && packet[field..field + 2] == [0, 0] {
        return;
    }
    packet[field..field + 2].fill(0);
    let words = |bytes: &[u8]| -> u64 {
        bytes
            .chunks(2)
            .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low)))
            .sum()
    };
    let mut sum = words(&packet[addresses]) + words(&packet[header..total]);
    sum += u64::from(protocol) + (total - header) as u64;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = match !u16::try_from(sum).unwrap_or_default() {
        0 if protocol == UDP => 0xffff,
        sum => sum,
    };
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}
