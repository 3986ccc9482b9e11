//! Whole Ethernet frames as bytes: address announcements and a TCP probe. Pure: addresses in, bytes out.

mod probe;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::{Mac, NetError};

pub use self::probe::{address_probe, claim};

const BROADCAST: Mac = [0xff; 6];
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ICMPV6: u8 = 58;
/// What Linux sends with; any value that survives a few routers will do.
const HOP_LIMIT: u8 = 64;

/// The opcode of an ARP packet (RFC 826).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpForm {
    /// `ares_op$REQUEST`: an ARP announcement (RFC 5227 section 2.3); target hardware address zero.
    Request,
    /// `ares_op$REPLY`: a gratuitous reply (RFC 5944 section 4.6); target hardware address the sender's own.
    Reply,
}

/// A gratuitous ARP: "`address` is at `mac`", broadcast, with sender and target protocol address alike.
#[must_use]
pub fn gratuitous_arp(mac: Mac, address: Ipv4Addr, form: ArpForm) -> Vec<u8> {
    let (opcode, target_mac): (u16, Mac) = match form {
        ArpForm::Request => (1, [0; 6]),
        ArpForm::Reply => (2, mac),
    };
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    frame.extend_from_slice(&1u16.to_be_bytes()); // hardware: Ethernet
    frame.extend_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    frame.extend_from_slice(&[6, 4]); // lengths of the two kinds of address
    frame.extend_from_slice(&opcode.to_be_bytes());
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&address.octets());
    frame.extend_from_slice(&target_mac);
    frame.extend_from_slice(&address.octets());
    frame
}

/// An unsolicited Neighbour Advertisement to all nodes (RFC 4861 sections 4.4 and 7.2.6): "`address` is at
/// `mac`", with the override flag, so that what the neighbours had before gives way.
#[must_use]
pub fn unsolicited_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1]; // RFC 2464 section 7
    const OVERRIDE: u8 = 0x20;
    let mut message = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend_from_slice(&address.octets());
    message.extend_from_slice(&[2, 1]); // option: target link-layer address, one unit of 8 bytes
    message.extend_from_slice(&mac);
    let length = length_of(&message);
    fill_checksum(&mut message, 2, &pseudo_v6(address, ALL_NODES, PROTOCOL_ICMPV6, length));

    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    // A receiver drops neighbour discovery with any other hop limit (RFC 4861 section 7.1.2).
    frame.extend_from_slice(&ipv6_header(address, ALL_NODES, PROTOCOL_ICMPV6, 255, length));
    frame.extend_from_slice(&message);
    frame
}

/// A bare TCP SYN. Sent into an open connection (its exact four-tuple, any `seq`), it makes the end at `dst`
/// answer with a challenge ACK carrying its current numbers (RFC 5961 section 4.2), and changes nothing there.
/// Linux sends at most one such answer per connection in 500 ms (`net.ipv4.tcp_invalid_ratelimit`).
///
/// # Errors
/// [`NetError::MixedFamilies`] when one end is IPv4 and the other IPv6.
pub fn tcp_syn_probe(
    src_mac: Mac,
    dst_mac: Mac,
    src: SocketAddr,
    dst: SocketAddr,
    seq: u32,
) -> Result<Vec<u8>, NetError> {
    tcp_probe(src_mac, dst_mac, src, dst, &segment(src.port(), dst.port(), [seq, 0], SYN))
}

/// A keep-alive: a bare acknowledgement with a sequence number that the end at `dst` has long had, so that it answers with an
/// acknowledgement of its own (RFC 9293 sections 3.8.4 and 3.10.7.4), and changes nothing there.
///
/// # Errors
/// [`NetError::MixedFamilies`] when one end is IPv4 and the other IPv6.
pub fn tcp_keep_alive(
    src_mac: Mac,
    dst_mac: Mac,
    src: SocketAddr,
    dst: SocketAddr,
    [seq, ack]: [u32; 2],
) -> Result<Vec<u8>, NetError> {
    tcp_probe(src_mac, dst_mac, src, dst, &segment(src.port(), dst.port(), [seq, ack], ACK))
}

/// A frame with this segment, whose checksum is still to be filled in.
fn tcp_probe(
    src_mac: Mac,
    dst_mac: Mac,
    src: SocketAddr,
    dst: SocketAddr,
    segment: &[u8],
) -> Result<Vec<u8>, NetError> {
    match (src, dst) {
        (SocketAddr::V4(src), SocketAddr::V4(dst)) => {
            Ok(tcp_v4(src_mac, dst_mac, src, dst, segment.to_vec()))
        }
        (SocketAddr::V6(src), SocketAddr::V6(dst)) => {
            Ok(tcp_v6(src_mac, dst_mac, src, dst, segment.to_vec()))
        }
        _ => Err(NetError::MixedFamilies { from: src, to: dst }),
    }
}

/// The announcement frames of an address: both forms of gratuitous ARP (some switches and hosts heed only
/// one), or one Neighbour Advertisement.
#[must_use]
pub fn announcement(mac: Mac, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(v4) => {
            vec![gratuitous_arp(mac, v4, ArpForm::Request), gratuitous_arp(mac, v4, ArpForm::Reply)]
        }
        IpAddr::V6(v6) => vec![unsolicited_advertisement(mac, v6)],
    }
}

fn tcp_v4(src_mac: Mac, dst_mac: Mac, src: SocketAddrV4, dst: SocketAddrV4, mut segment: Vec<u8>) -> Vec<u8> {
    let length = length_of(&segment);
    fill_checksum(&mut segment, 16, &pseudo_v4(*src.ip(), *dst.ip(), length));
    let mut frame = ethernet(dst_mac, src_mac, ETHERTYPE_IPV4);
    frame.extend_from_slice(&ipv4_header(*src.ip(), *dst.ip(), length));
    frame.extend_from_slice(&segment);
    frame
}

fn tcp_v6(src_mac: Mac, dst_mac: Mac, src: SocketAddrV6, dst: SocketAddrV6, mut segment: Vec<u8>) -> Vec<u8> {
    let length = length_of(&segment);
    fill_checksum(&mut segment, 16, &pseudo_v6(*src.ip(), *dst.ip(), PROTOCOL_TCP, length));
    let mut frame = ethernet(dst_mac, src_mac, ETHERTYPE_IPV6);
    frame.extend_from_slice(&ipv6_header(*src.ip(), *dst.ip(), PROTOCOL_TCP, HOP_LIMIT, length));
    frame.extend_from_slice(&segment);
    frame
}

/// RFC 9293 section 3.1, without options, the checksum still zero.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A bare segment without its checksum.
fn segment(src_port: u16, dst_port: u16, [seq, ack]: [u32; 2], flags: u8) -> Vec<u8> {
    const WORDS: u8 = 5;
    let mut segment = Vec::with_capacity(20);
    segment.extend_from_slice(&src_port.to_be_bytes());
    segment.extend_from_slice(&dst_port.to_be_bytes());
    segment.extend_from_slice(&seq.to_be_bytes());
    segment.extend_from_slice(&ack.to_be_bytes());
    segment.extend_from_slice(&[WORDS << 4, flags]);
    segment.extend_from_slice(&u16::MAX.to_be_bytes());
    segment.extend_from_slice(&[0; 4]); // checksum, urgent pointer
    segment
}

fn ethernet(dst: Mac, src: Mac, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend_from_slice(&dst);
    frame.extend_from_slice(&src);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame
}

fn ipv4_header(src: Ipv4Addr, dst: Ipv4Addr, payload: u16) -> Vec<u8> {
    const DONT_FRAGMENT: u8 = 0x40;
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&(payload + 20).to_be_bytes());
    header.extend_from_slice(&[0, 0, DONT_FRAGMENT, 0, HOP_LIMIT, PROTOCOL_TCP, 0, 0]);
    header.extend_from_slice(&src.octets());
    header.extend_from_slice(&dst.octets());
    fill_checksum(&mut header, 10, &[]);
    header
}

fn ipv6_header(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, hop_limit: u8, payload: u16) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend_from_slice(&payload.to_be_bytes());
    header.extend_from_slice(&[protocol, hop_limit]);
    header.extend_from_slice(&src.octets());
    header.extend_from_slice(&dst.octets());
    header
}

fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, length: u16) -> Vec<u8> {
    let mut pseudo = Vec::with_capacity(12);
    pseudo.extend_from_slice(&src.octets());
    pseudo.extend_from_slice(&dst.octets());
    pseudo.extend_from_slice(&[0, PROTOCOL_TCP]);
    pseudo.extend_from_slice(&length.to_be_bytes());
    pseudo
}

/// RFC 8200 section 8.1.
fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, length: u16) -> Vec<u8> {
    let mut pseudo = Vec::with_capacity(40);
    pseudo.extend_from_slice(&src.octets());
    pseudo.extend_from_slice(&dst.octets());
    pseudo.extend_from_slice(&u32::from(length).to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, protocol]);
    pseudo
}

/// Writes the Internet checksum (RFC 1071) of `pseudo` and `data` into the two zero bytes at `at`.
fn fill_checksum(data: &mut [u8], at: usize, pseudo: &[u8]) {
    let sum = internet_checksum(pseudo, data);
    if let Some(field) = data.get_mut(at..at + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

fn internet_checksum(pseudo: &[u8], data: &[u8]) -> u16 {
    let mut sum = word_sum(pseudo) + word_sum(data);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let [_, _, high, low] = sum.to_be_bytes();
    !u16::from_be_bytes([high, low])
}

fn word_sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum()
}

/// These payloads are a few dozen bytes.
fn length_of(payload: &[u8]) -> u16 {
    u16::try_from(payload.len()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;

    const OURS: Mac = [0x02, 0, 0, 0, 0, 0x0a];
    const THEIRS: Mac = [0x02, 0, 0, 0, 0, 0x0b];

    #[test]
    fn the_checksum_is_that_of_rfc_1071s_example() {
        // Section 3: 0001 f203 f4f5 f6f7 sum to ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet_checksum(&[], &bytes), !0xddf2);
        assert_eq!(internet_checksum(&bytes[..4], &bytes[4..]), !0xddf2);
        assert_eq!(internet_checksum(&[], &[0x12]), !0x1200, "an odd byte is the high one");
    }

    #[test]
    fn a_gratuitous_request_is_an_arp_announcement_byte_by_byte() {
        let frame = gratuitous_arp(OURS, Ipv4Addr::new(192, 0, 2, 150), ArpForm::Request);
        #[rustfmt::skip]
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff,  0x02, 0, 0, 0, 0, 0x0a,  0x08, 0x06,
            0x00, 0x01,  0x08, 0x00,  6, 4,  0x00, 0x01,
            0x02, 0, 0, 0, 0, 0x0a,  192, 0, 2, 150,
            0, 0, 0, 0, 0, 0,        192, 0, 2, 150,
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn a_gratuitous_reply_names_our_address_as_the_target_too() {
        let frame = gratuitous_arp(OURS, Ipv4Addr::new(192, 0, 2, 150), ArpForm::Reply);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Arp(arp)) = packet.net else { panic!("{packet:?}") };
        assert_eq!(arp.operation().0, 2);
        assert_eq!(arp.sender_hw_addr(), OURS);
        assert_eq!(arp.target_hw_addr(), OURS);
        assert_eq!(arp.sender_protocol_addr(), arp.target_protocol_addr());
    }

    #[test]
    fn an_unsolicited_advertisement_is_valid_by_rfc_4861() {
        let address: Ipv6Addr = "2001:db8::150".parse().unwrap();
        let frame = unsolicited_advertisement(OURS, address);
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &packet.net else { panic!("{packet:?}") };
        let header = ip.header();
        assert_eq!(header.hop_limit(), 255);
        assert_eq!(header.source_addr(), address);
        assert_eq!(header.destination_addr(), "ff02::1".parse::<Ipv6Addr>().unwrap());
        let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else { panic!("{packet:?}") };
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
        let Icmpv6Type::NeighborAdvertisement(flags) = icmp.icmp_type() else { panic!("{icmp:?}") };
        assert!(flags.r#override && !flags.solicited && !flags.router);
        assert_eq!(icmp.payload()[..16], address.octets());
        assert_eq!(icmp.payload()[16..], [2, 1, 0x02, 0, 0, 0, 0, 0x0a]);
    }

    #[test]
    fn an_unsolicited_advertisement_is_this_byte_by_byte() {
        let frame = unsolicited_advertisement(OURS, "2001:db8::150".parse().unwrap());
        #[rustfmt::skip]
        let expected = [
            0x33, 0x33, 0, 0, 0, 0x01,  0x02, 0, 0, 0, 0, 0x0a,  0x86, 0xdd,
            0x60, 0, 0, 0,  0, 32,  58, 255,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0x01, 0x50,
            0xff, 0x02, 0, 0, 0, 0, 0, 0,        0, 0, 0, 0, 0, 0, 0, 0x01,
            136, 0,  0xf6, 0x83,  0x20, 0, 0, 0,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0x01, 0x50,
            2, 1,  0x02, 0, 0, 0, 0, 0x0a,
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn a_probe_over_ipv6_is_this_byte_by_byte() {
        let (service, client) = ("[2001:db8::150]:443", "[2001:db8:1::7]:50000");
        let frame =
            tcp_syn_probe(OURS, THEIRS, service.parse().unwrap(), client.parse().unwrap(), 0x0102_0304)
                .unwrap();
        #[rustfmt::skip]
        let expected = [
            0x02, 0, 0, 0, 0, 0x0b,  0x02, 0, 0, 0, 0, 0x0a,  0x86, 0xdd,
            0x60, 0, 0, 0,  0, 20,  6, 64,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0,     0, 0, 0, 0, 0, 0, 0x01, 0x50,
            0x20, 0x01, 0x0d, 0xb8, 0, 0x01, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0x07,
            0x01, 0xbb,  0xc3, 0x50,  1, 2, 3, 4,  0, 0, 0, 0,
            0x50, 0x02,  0xff, 0xff,  0x8a, 0x07,  0, 0,
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn a_probe_between_two_families_is_refused() {
        let error = tcp_syn_probe(
            OURS,
            THEIRS,
            "192.0.2.1:443".parse().unwrap(),
            "[2001:db8::1]:5000".parse().unwrap(),
            0,
        )
        .unwrap_err();
        assert!(matches!(error, NetError::MixedFamilies { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn a_probe_of_either_family_is_a_syn_with_right_checksums(
            src_v4: [u8; 4], dst_v4: [u8; 4], src_v6: [u8; 16], dst_v6: [u8; 16],
            src_port: u16, dst_port: u16, seq: u32, v6: bool,
        ) {
            let (src, dst): (IpAddr, IpAddr) =
                if v6 { (src_v6.into(), dst_v6.into()) } else { (src_v4.into(), dst_v4.into()) };
            let src = SocketAddr::new(src, src_port);
            let dst = SocketAddr::new(dst, dst_port);
            let frame = tcp_syn_probe(OURS, THEIRS, src, dst, seq).unwrap();
            prop_assert_eq!(&frame[..6], &THEIRS);
            prop_assert_eq!(&frame[6..12], &OURS);
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { panic!("{packet:?}") };
            prop_assert_eq!((tcp.source_port(), tcp.destination_port()), (src_port, dst_port));
            prop_assert_eq!(tcp.sequence_number(), seq);
            prop_assert!(tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin());
            let keep_alive = tcp_keep_alive(OURS, THEIRS, src, dst, [seq, !seq]).unwrap();
            let keep_alive = SlicedPacket::from_ethernet(&keep_alive).unwrap();
            let Some(TransportSlice::Tcp(bare)) = &keep_alive.transport else { panic!("{keep_alive:?}") };
            prop_assert_eq!((bare.sequence_number(), bare.acknowledgment_number()), (seq, !seq));
            prop_assert!(bare.ack() && !bare.syn() && !bare.rst() && !bare.fin() && bare.payload().is_empty());
            match &packet.net {
                Some(NetSlice::Ipv4(ip)) => {
                    let header = ip.header().to_header();
                    prop_assert_eq!(IpAddr::from(header.source), src.ip());
                    prop_assert_eq!(IpAddr::from(header.destination), dst.ip());
                    prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                    let right = tcp.calc_checksum_ipv4(header.source, header.destination).unwrap();
                    prop_assert_eq!(tcp.checksum(), right);
                }
                Some(NetSlice::Ipv6(ip)) => {
                    let header = ip.header();
                    prop_assert_eq!(IpAddr::from(header.source_addr()), src.ip());
                    prop_assert_eq!(IpAddr::from(header.destination_addr()), dst.ip());
                    let right = tcp.calc_checksum_ipv6(header.source(), header.destination()).unwrap();
                    prop_assert_eq!(tcp.checksum(), right);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
