//! Packets of both families, byte by byte, with every checksum computed in full.

use std::net::IpAddr;

use super::super::frame::{Mac, checksum};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;
pub(super) const ICMPV6: u8 = 58;

/// A frame on its way.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) from: Mac,
    pub(super) to: Mac,
    pub(super) tags: &'static [(u16, u16)],
    pub(super) packet: Vec<u8>,
}

impl Frame {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.to, self.from].concat();
        for (ethertype, content) in self.tags {
            bytes.extend(ethertype.to_be_bytes());
            bytes.extend(content.to_be_bytes());
        }
        let ethertype: u16 = if self.packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(&self.packet);
        bytes
    }
}

/// A TCP segment.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) source: (IpAddr, u16),
    pub(super) destination: (IpAddr, u16),
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledgment: u32,
    pub(super) hops: u8,
    pub(super) window: u16,
    /// A multiple of 4 bytes.
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Segment {
    pub(super) fn packet(&self) -> Vec<u8> {
        ip(self.source.0, self.destination.0, TCP, self.hops, &self.segment())
    }

    fn segment(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.1.to_be_bytes());
        bytes.extend(self.destination.1.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgment.to_be_bytes());
        let words = 5 + u8::try_from(self.options.len() / 4).unwrap_or(u8::MAX);
        bytes.extend([words << 4, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        let sum = covered(self.source.0, self.destination.0, TCP, &bytes);
        bytes[16..18].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// The checksum of a content with its pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
fn covered(source: IpAddr, destination: IpAddr, protocol: u8, content: &[u8]) -> u16 {
    let mut bytes = [octets(source), octets(destination)].concat();
    bytes.extend(u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(content);
    checksum(&bytes)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An IP packet as a Linux host sends it.
pub(super) fn ip(source: IpAddr, destination: IpAddr, protocol: u8, hops: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::new();
    if source.is_ipv4() {
        bytes.extend([0x45, 0]);
        bytes.extend((length + 20).to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, hops, protocol, 0, 0]);
        bytes.extend([octets(source), octets(destination)].concat());
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend([protocol, hops]);
        bytes.extend([octets(source), octets(destination)].concat());
    }
    bytes.extend(content);
    bytes
}

/// A UDP datagram, with a checksum or without.
pub(super) fn udp(
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    hops: u8,
    payload: &[u8],
    summed: bool,
) -> Vec<u8> {
    let mut bytes = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    bytes.extend(u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    if summed {
        let sum = covered(source.0, destination.0, UDP, &bytes);
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    ip(source.0, destination.0, UDP, hops, &bytes)
}

/// An ICMP message of its family.
pub(super) fn icmp(
    (source, destination): (IpAddr, IpAddr),
    hops: u8,
    (kind, code): (u8, u8),
    value: u32,
    repeated: &[u8],
) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(value.to_be_bytes());
    message.extend(repeated);
    let (protocol, sum) = if source.is_ipv4() {
        (ICMP, checksum(&message))
    } else {
        (ICMPV6, covered(source, destination, ICMPV6, &message))
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(source, destination, protocol, hops, &message)
}

/// As after another hop.
pub(super) fn one_hop_less(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] -= 1;
        packet[10..12].fill(0);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[7] -= 1;
    }
    packet
}
