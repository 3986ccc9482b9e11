//! Frames, built field by field with every checksum computed in full: nothing of the program's arithmetic is used.

use std::net::Ipv4Addr;

use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options,
    SingleVlanHeader, TcpHeader, UdpHeader,
};

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// TCP flags, as in the header's byte.
pub(super) mod flag {
    pub(in crate::golden) const FIN: u8 = 0x01;
    pub(in crate::golden) const SYN: u8 = 0x02;
    pub(in crate::golden) const RST: u8 = 0x04;
    pub(in crate::golden) const PSH: u8 = 0x08;
    pub(in crate::golden) const ACK: u8 = 0x10;
}

/// Bytes before the IP header of a frame without tags.
pub(super) const ETHERNET: usize = 14;
/// Bytes of a frame with an IP and a TCP header and nothing else.
pub(super) const BARE: usize = 54;

/// The link layer of a frame.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) from: Mac,
    pub(super) to: Mac,
    /// EtherTypes and contents of the VLAN tags, the outer one first.
    pub(super) tags: Vec<(u16, u16)>,
    /// What stands behind the IP packet.
    pub(super) trailer: Vec<u8>,
}

impl Link {
    pub(super) const fn new(from: Mac, to: Mac) -> Self {
        Self { from, to, tags: Vec::new(), trailer: Vec::new() }
    }

    /// The frame around a packet.
    pub(super) fn around(&self, ether_type: EtherType, packet: &[u8]) -> Vec<u8> {
        let mut types = self.tags.iter().map(|(ether_type, _)| EtherType(*ether_type)).collect::<Vec<_>>();
        types.push(ether_type);
        let ethernet = Ethernet2Header { source: self.from, destination: self.to, ether_type: types[0] };
        let mut bytes = ethernet.to_bytes().to_vec();
        for ((_, control), inside) in self.tags.iter().zip(&types[1..]) {
            let [high, low] = control.to_be_bytes();
            let mut tag = SingleVlanHeader::from_bytes([high, low, 0, 0]);
            tag.ether_type = *inside;
            bytes.extend(tag.to_bytes());
        }
        bytes.extend(packet);
        bytes.extend(&self.trailer);
        bytes
    }
}

/// A TCP segment in a frame.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) link: Link,
    pub(super) ip: Ipv4Header,
    pub(super) tcp: TcpHeader,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// A segment with other than default values in fields that must survive.
    pub(super) fn new(link: Link, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        let ip = Ipv4Header {
            identification: 0x1234,
            dont_fragment: true,
            time_to_live: 63,
            protocol: IpNumber::TCP,
            source: source.0.octets(),
            destination: destination.0.octets(),
            ..Ipv4Header::default()
        };
        let tcp = TcpHeader::new(source.1, destination.1, 0, 29_200);
        Self { link, ip, tcp, payload: Vec::new() }
    }

    pub(super) fn flags(mut self, flags: u8) -> Self {
        self.tcp.fin = flags & flag::FIN != 0;
        self.tcp.syn = flags & flag::SYN != 0;
        self.tcp.rst = flags & flag::RST != 0;
        self.tcp.psh = flags & flag::PSH != 0;
        self.tcp.ack = flags & flag::ACK != 0;
        self
    }

    pub(super) fn numbers(mut self, sequence: u32, acknowledgment: u32) -> Self {
        self.tcp.sequence_number = sequence;
        self.tcp.acknowledgment_number = acknowledgment;
        self
    }

    pub(super) fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Options of a SYN as Linux sends it: MSS, SACK permitted, timestamps, window scale.
    pub(super) fn syn_options(mut self) -> Self {
        let options = [2, 4, 5, 180, 4, 2, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0, 1, 3, 3, 7];
        self.tcp.set_options_raw(&options).expect("20 bytes of options fit");
        self
    }

    /// A timestamp option as in every later segment.
    pub(super) fn timestamps(mut self) -> Self {
        self.tcp.set_options_raw(&[1, 1, 8, 10, 0, 1, 2, 9, 9, 8, 7, 6]).expect("12 bytes of options fit");
        self
    }

    pub(super) fn ip_options(mut self, options: [u8; 8]) -> Self {
        self.ip.options = Ipv4Options::from(options);
        self
    }

    pub(super) fn ttl(mut self, ttl: u8) -> Self {
        self.ip.time_to_live = ttl;
        self
    }

    pub(super) fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.ip.dont_fragment = false;
        self.ip.more_fragments = more;
        self.ip.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
        self
    }

    pub(super) fn tagged(mut self, tags: &[(u16, u16)]) -> Self {
        self.link.tags = tags.to_vec();
        self
    }

    pub(super) fn trailer(mut self, trailer: &[u8]) -> Self {
        self.link.trailer = trailer.to_vec();
        self
    }

    pub(super) fn link(mut self, from: Mac, to: Mac) -> Self {
        (self.link.from, self.link.to) = (from, to);
        self
    }

    /// The IP packet without the frame.
    pub(super) fn packet(&self) -> Vec<u8> {
        let mut ip = self.ip.clone();
        ip.set_payload_len(self.tcp.header_len() + self.payload.len()).expect("fits a packet");
        ip.header_checksum = ip.calc_header_checksum();
        let mut tcp = self.tcp.clone();
        tcp.checksum = tcp.calc_checksum_ipv4(&ip, &self.payload).expect("fits a packet");
        let mut bytes = ip.to_bytes().to_vec();
        bytes.extend(tcp.to_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    pub(super) fn build(&self) -> Vec<u8> {
        self.link.around(EtherType::IPV4, &self.packet())
    }
}

/// An ICMP error.
#[derive(Clone, Debug)]
pub(super) struct IcmpError {
    pub(super) link: Link,
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) ttl: u8,
    /// Type, code and the four bytes after the checksum.
    pub(super) kind: (u8, u8, [u8; 4]),
    /// The packet it is about.
    pub(super) about: Frame,
    /// How many bytes of that packet it repeats.
    pub(super) repeats: usize,
}

/// Destination unreachable, fragmentation needed (RFC 1191), with a next-hop MTU of 1400.
pub(super) const FRAGMENTATION_NEEDED: (u8, u8, [u8; 4]) = (3, 4, [0, 0, 5, 120]);
/// Destination unreachable, host.
pub(super) const HOST_UNREACHABLE: (u8, u8, [u8; 4]) = (3, 1, [0; 4]);
/// Time exceeded in transit.
pub(super) const TIME_EXCEEDED: (u8, u8, [u8; 4]) = (11, 0, [0; 4]);
/// Parameter problem at the header's first byte.
pub(super) const PARAMETER_PROBLEM: (u8, u8, [u8; 4]) = (12, 0, [0; 4]);
/// An echo request.
pub(super) const ECHO: (u8, u8, [u8; 4]) = (8, 0, [0, 7, 0, 1]);

impl IcmpError {
    pub(super) fn build(&self) -> Vec<u8> {
        let repeated = &self.about.packet()[..self.repeats];
        icmp(&self.link, self.ttl, self.source, self.destination, self.kind, repeated)
    }
}

/// An ICMP message in a frame.
pub(super) fn icmp(
    link: &Link,
    ttl: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    (type_u8, code_u8, bytes5to8): (u8, u8, [u8; 4]),
    payload: &[u8],
) -> Vec<u8> {
    let header = Icmpv4Header::with_checksum(Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 }, payload);
    let mut message = header.to_bytes().to_vec();
    message.extend(payload);
    datagram(link, ttl, IpNumber::ICMP, source, destination, &message)
}

/// A UDP datagram in a frame.
pub(super) fn udp(
    link: &Link,
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let (from, to) = (source.0.octets(), destination.0.octets());
    let ip = Ipv4Header { source: from, destination: to, ..Ipv4Header::default() };
    let udp = UdpHeader::with_ipv4_checksum(source.1, destination.1, &ip, payload).expect("fits a datagram");
    let mut bytes = udp.to_bytes().to_vec();
    bytes.extend(payload);
    datagram(link, 63, IpNumber::UDP, source.0, destination.0, &bytes)
}

/// An IP packet of any protocol in a frame.
pub(super) fn datagram(
    link: &Link,
    ttl: u8,
    protocol: IpNumber,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    content: &[u8],
) -> Vec<u8> {
    let mut ip = Ipv4Header {
        identification: 0x4321,
        time_to_live: ttl,
        protocol,
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv4Header::default()
    };
    ip.set_payload_len(content.len()).expect("fits a packet");
    ip.header_checksum = ip.calc_header_checksum();
    let mut packet = ip.to_bytes().to_vec();
    packet.extend(content);
    link.around(EtherType::IPV4, &packet)
}

/// The one's complement sum of the bytes (RFC 1071): zero if a checksum among them is right.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(u16::MAX)
}

/// Whether an IPv4 packet's header checksum is right, and that of the TCP segment or ICMP message in it.
pub(super) fn checksums_are_right(packet: &[u8]) -> bool {
    let header = usize::from(packet[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if header < 20 || total < header || packet.len() < total || checksum(&packet[..header]) != 0 {
        return false;
    }
    matches!(packet[9], 1 | 6) && content_sum(packet, header, total) == 0
}

/// The sum of what an IPv4 packet contains, with the pseudo-header if it is TCP.
fn content_sum(packet: &[u8], header: usize, total: usize) -> u16 {
    let content = &packet[header..total];
    let mut covered = Vec::with_capacity(12 + total);
    if packet[9] == 6 {
        covered.extend(&packet[12..20]);
        covered.extend([0, 6]);
        covered.extend(u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes());
    }
    covered.extend(content);
    checksum(&covered)
}

/// Writes the checksums that an IPv4 packet ought to have, if its lengths make sense.
pub(crate) fn mend(packet: &mut [u8]) {
    if packet.len() < 20 {
        return;
    }
    let header = usize::from(packet[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if header < 20 || total < header || packet.len() < total {
        return;
    }
    packet[10..12].fill(0);
    let sum = checksum(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let field = header + if packet[9] == 1 { 2 } else { 16 };
    if !matches!(packet[9], 1 | 6) || total < field + 2 {
        return;
    }
    packet[field..field + 2].fill(0);
    let sum = content_sum(packet, header, total);
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}
