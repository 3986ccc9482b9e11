//! What asking for a neighbour puts on the wire, in both families: heard at the other end of the cable.

use etherparse::{Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};

use super::*;
use crate::net::testing::{Lab, ip, set_neighbour};

/// A question for a neighbour: the MAC address it was sent to, the address it was sent to (of IPv6 alone), and the
/// address it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Question {
    mac: Mac,
    to: Option<IpAddr>,
    asked: IpAddr,
}

/// `None` for what is no question of the balancer's, or not a valid one (RFC 826, RFC 4861 section 7.1.1).
fn question(frame: &[u8]) -> Option<Question> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let mac = Mac::try_from(frame.get(..6)?).ok()?;
    if frame.get(6..12)? != Lab::BALANCER_MAC {
        return None;
    }
    match (packet.net?, packet.transport) {
        (NetSlice::Arp(arp), _) if arp.operation().0 == 1 => {
            let asked = <[u8; 4]>::try_from(arp.target_protocol_addr()).ok()?;
            Some(Question { mac, to: None, asked: asked.into() })
        }
        (NetSlice::Ipv6(ip), Some(TransportSlice::Icmpv6(icmp))) => {
            let header = ip.header();
            let valid = header.hop_limit() == 255
                && icmp.is_checksum_valid(header.source(), header.destination())
                && icmp.payload().get(16..)? == [&[1, 1][..], &Lab::BALANCER_MAC].concat();
            let Icmpv6Type::NeighborSolicitation = icmp.icmp_type() else { return None };
            let asked = <[u8; 16]>::try_from(icmp.payload().get(..16)?).ok()?;
            let to = Some(IpAddr::V6(header.destination_addr()));
            valid.then_some(Question { mac, to, asked: asked.into() })
        }
        _ => None,
    }
}

/// Broadcast, or the solicited-node group of the address (RFC 4291 section 2.7.1, RFC 2464 section 7).
fn to_everyone(asked: IpAddr) -> Question {
    match asked {
        IpAddr::V4(_) => Question { mac: [0xff; 6], to: None, asked },
        IpAddr::V6(v6) => {
            let [.., a, b, c] = v6.octets();
            let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
            Question { mac: [0x33, 0x33, 0xff, a, b, c], to: Some(group.into()), asked }
        }
    }
}

fn to_one(mac: Mac, asked: IpAddr) -> Question {
    Question { mac, to: asked.is_ipv6().then_some(asked), asked }
}

fn heard(ear: &crate::net::testing::Ear, wanted: Question) {
    let found = ear.hears(Duration::from_secs(60), |frame| question(frame) == Some(wanted));
    assert!(found.is_some(), "{wanted:?} was not heard");
}

#[test]
fn an_unknown_neighbour_is_asked_for_by_a_question_to_its_group() {
    let lab = Lab::new();
    let index = lab.balancer_index();
    for address in [Lab::SERVER, Lab::SERVER_V6, "192.0.2.66", "2001:db8::1:2:66"].map(ip) {
        let ear = lab.server_ear();
        lab.balancer.run(async move || Net::open().unwrap().resolve_neighbour(index, address).await.unwrap());
        heard(&ear, to_everyone(address));
    }
}

#[test]
fn a_known_neighbour_is_asked_itself_whether_it_is_still_there() {
    let lab = Lab::new();
    let index = lab.balancer_index();
    for address in [Lab::SERVER, Lab::SERVER_V6].map(ip) {
        let ear = lab.server_ear();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            set_neighbour(&net, index, address, Lab::SERVER_MAC, NeighbourState::Stale).await;
            net.confirm_neighbour(index, address).await.unwrap();
        });
        heard(&ear, to_one(Lab::SERVER_MAC, address));
    }
}

#[test]
fn a_router_is_known_by_its_link_local_address() {
    let lab = Lab::new();
    let router = ip("fe80::b");
    let there = lab.server_index();
    lab.server.run(async move || {
        Net::open().unwrap().add_address(there, router).await.unwrap();
    });
    lab.balancer.run(async move || {
        let net = Net::open().unwrap();
        let link = net.link("lb0").await.unwrap();
        let timing = Timing { retry: Duration::from_millis(50), ..Timing::default() };
        let (_neighbours, mut events) =
            Neighbours::start(&net, link, timing, BTreeSet::from([router])).unwrap();
        let wanted = NetEvent::Neighbour(NeighbourEvent { address: router, mac: Some(Lab::SERVER_MAC) });
        let search = async { while events.recv().await.expect("the tracker lives") != wanted {} };
        tokio::time::timeout(Duration::from_secs(60), search).await.expect("the router's MAC address");
    });
}
