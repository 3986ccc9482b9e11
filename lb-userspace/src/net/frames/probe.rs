//! Asking whether anybody has an address, and hearing who says so. Pure: addresses in, bytes out; bytes in, claims out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    BROADCAST, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_ICMPV6, ethernet, fill_checksum,
    ipv6_header, length_of, pseudo_v6,
};
use crate::net::Mac;

/// Neighbour Solicitation and Advertisement (RFC 4861 section 4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Whoever has `address` answers this and learns nothing by it: an ARP probe (RFC 5227 section 2.1.1), or a Neighbour
/// Solicitation from the unspecified address (RFC 4862 section 5.4.2).
#[must_use]
pub fn address_probe(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp_probe(mac, address),
        IpAddr::V6(address) => solicitation(mac, address),
    }
}

fn arp_probe(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    frame.extend_from_slice(&1u16.to_be_bytes());
    frame.extend_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    frame.extend_from_slice(&[6, 4, 0, 1]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&address.octets());
    frame
}

fn solicitation(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = address.octets();
    let group = Ipv6Addr::from([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&address.octets());
    let length = length_of(&message);
    fill_checksum(&mut message, 2, &pseudo_v6(Ipv6Addr::UNSPECIFIED, group, PROTOCOL_ICMPV6, length));
    let mut frame = ethernet([0x33, 0x33, 0xff, a, b, c], mac, ETHERTYPE_IPV6);
    frame.extend_from_slice(&ipv6_header(Ipv6Addr::UNSPECIFIED, group, PROTOCOL_ICMPV6, 255, length));
    frame.extend_from_slice(&message);
    frame
}

/// Which address the sender of a frame says that it has, and its MAC address: of ARP in any form but a probe, and of a
/// Neighbour Advertisement. None of any other frame.
#[must_use]
pub fn claim(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let (_, rest) = frame.split_at_checked(6)?;
    let (sender, rest) = rest.split_first_chunk::<6>()?;
    let (ethertype, packet) = rest.split_first_chunk::<2>()?;
    match u16::from_be_bytes(*ethertype) {
        ETHERTYPE_ARP => arp_claim(packet),
        ETHERTYPE_IPV6 => advertised(packet).map(|address| (address, *sender)),
        _ => None,
    }
}

fn arp_claim(packet: &[u8]) -> Option<(IpAddr, Mac)> {
    const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    let rest = packet.strip_prefix(&ETHERNET_AND_IPV4)?;
    let (_, rest) = rest.split_at_checked(2)?;
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let (address, _) = rest.split_first_chunk::<4>()?;
    let address = Ipv4Addr::from(*address);
    (!address.is_unspecified()).then_some((address.into(), *mac))
}

fn advertised(packet: &[u8]) -> Option<IpAddr> {
    let (header, message) = packet.split_first_chunk::<40>()?;
    // A receiver takes it with this hop limit alone (RFC 4861 section 7.1.2): it comes from this link.
    let is_from_here = header[6] == PROTOCOL_ICMPV6 && header[7] == 255;
    let (head, rest) = message.split_first_chunk::<8>()?;
    let (address, _) = rest.split_first_chunk::<16>()?;
    (is_from_here && head[0] == ADVERTISEMENT && head[1] == 0).then(|| Ipv6Addr::from(*address).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::frames::announcement;
    use crate::net::testing::ip;

    const OURS: Mac = [0x02, 0, 0, 0, 0, 0x0a];

    #[test]
    fn an_arp_probe_is_this_byte_by_byte() {
        #[rustfmt::skip]
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff,  0x02, 0, 0, 0, 0, 0x0a,  0x08, 0x06,
            0x00, 0x01,  0x08, 0x00,  6, 4,  0x00, 0x01,
            0x02, 0, 0, 0, 0, 0x0a,  0, 0, 0, 0,
            0, 0, 0, 0, 0, 0,        192, 0, 2, 150,
        ];
        assert_eq!(address_probe(OURS, ip("192.0.2.150")), expected);
    }

    #[test]
    fn a_probe_over_ipv6_goes_to_the_addresss_own_group_and_names_no_sender() {
        let frame = address_probe(OURS, ip("2001:db8::ab:150"));
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0xab, 0x01, 0x50]);
        assert_eq!(frame[22..38], [0; 16], "from the unspecified address");
        let packet = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(etherparse::NetSlice::Ipv6(ip)) = &packet.net else { panic!("{packet:?}") };
        let header = ip.header();
        assert_eq!(
            (header.hop_limit(), header.destination_addr()),
            (255, "ff02::1:ffab:150".parse().unwrap())
        );
        let Some(etherparse::TransportSlice::Icmpv6(icmp)) = &packet.transport else { panic!("{packet:?}") };
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
        assert_eq!(icmp.type_u8(), SOLICITATION);
    }

    #[test]
    fn who_announces_or_answers_claims_and_who_probes_does_not() {
        for address in [ip("192.0.2.150"), ip("2001:db8::150")] {
            for frame in announcement(OURS, address) {
                assert_eq!(claim(&frame), Some((address, OURS)));
                for length in 0..frame.len() {
                    // Cut off anywhere it is no claim, or the same: options may be missing.
                    assert!(claim(&frame[..length]).is_none_or(|claimed| claimed == (address, OURS)));
                }
            }
            assert_eq!(claim(&address_probe(OURS, address)), None);
        }
        let mut routed = announcement(OURS, ip("2001:db8::150")).remove(0);
        routed[21] = 64;
        assert_eq!(claim(&routed), None, "from another link");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_taken_without_a_panic(frame: Vec<u8>) {
            let _claim = claim(&frame);
        }
    }
}
