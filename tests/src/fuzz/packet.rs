//! Frames, put together byte by byte.

use std::net::Ipv4Addr;

use crate::{
    golden::frame::{Mac, mend},
    model::Ends,
};

/// A frame around a TCP segment or an ICMP error, good unless it is spoilt afterwards.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) to: Mac,
    pub(crate) from: Mac,
    /// EtherTypes of the VLAN tags, the outer one first.
    pub(crate) tags: Vec<u16>,
    pub(crate) ttl: u8,
    /// Bytes of IPv4 options, a multiple of four.
    pub(crate) ip_options: usize,
    /// Flags and offset.
    pub(crate) fragment: u16,
    /// Bytes of TCP options, a multiple of four.
    pub(crate) tcp_options: usize,
    pub(crate) payload: Vec<u8>,
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

impl Shape {
    /// A TCP segment.
    pub(crate) fn segment(&self, ends: &Ends, numbers: Numbers) -> Vec<u8> {
        let packet = self.packet(ends, numbers);
        self.frame(&packet)
    }

    fn packet(&self, ends: &Ends, numbers: Numbers) -> Vec<u8> {
        let mut tcp = Vec::with_capacity(60 + self.payload.len());
        tcp.extend(ends.source_port.to_be_bytes());
        tcp.extend(ends.destination_port.to_be_bytes());
        tcp.extend(numbers.sequence.to_be_bytes());
        tcp.extend(numbers.acknowledgment.to_be_bytes());
        let offset = u8::try_from(5 + self.tcp_options / 4).unwrap_or(15);
        tcp.extend([offset << 4, numbers.flags, 0x72, 0x10, 0, 0, 0, 0]);
        tcp.resize(tcp.len() + self.tcp_options, 1);
        tcp.extend(&self.payload);
        self.ip(6, ends.source, ends.destination, &tcp)
    }

    /// An ICMP error of this type about a segment between those ends, which repeats so many bytes behind its IP header.
    pub(crate) fn error(&self, kind: u8, from: Ipv4Addr, about: &Ends, repeats: usize) -> Vec<u8> {
        let inner = Self { ttl: 60, ip_options: 0, fragment: 0x4000, ..self.clone() };
        let numbers = Numbers { sequence: 0x0102_0304, acknowledgment: 5, flags: 0x10 };
        let mut message = vec![kind, 4, 0, 0, 0, 0, 5, 120];
        message.extend(inner.packet(about, numbers).iter().take(20 + repeats));
        let packet = self.ip(1, from, about.source, &message);
        self.frame(&packet)
    }

    /// An IPv4 packet of any protocol, with right checksums.
    pub(crate) fn ip(&self, protocol: u8, from: Ipv4Addr, to: Ipv4Addr, content: &[u8]) -> Vec<u8> {
        let header = 20 + self.ip_options;
        let total = u16::try_from(header + content.len()).unwrap_or(u16::MAX).to_be_bytes();
        let fragment = self.fragment.to_be_bytes();
        let version = 0x40 | u8::try_from(header / 4).unwrap_or(15);
        let mut packet = Vec::with_capacity(header + content.len());
        packet.extend([version, 0, total[0], total[1], 0x12, 0x34, fragment[0], fragment[1]]);
        packet.extend([self.ttl, protocol, 0, 0]);
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.resize(header, 1);
        packet.extend(content);
        mend(&mut packet);
        packet
    }

    /// The frame around a packet.
    pub(crate) fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(22 + packet.len() + self.trailer.len());
        frame.extend(self.to);
        frame.extend(self.from);
        for kind in &self.tags {
            frame.extend(kind.to_be_bytes());
            frame.extend([0, 85]);
        }
        frame.extend([0x08, 0x00]);
        frame.extend(packet);
        frame.extend(&self.trailer);
        frame
    }
}
