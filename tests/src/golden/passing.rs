//! What is not ours passes untouched, byte for byte, and writes nothing.

use std::net::Ipv4Addr;

use etherparse::{EtherType, IpNumber};
use lb_common::reason::Reason;

use super::{
    Case, Given, case,
    connection::{Connection, reset_by_acknowledgment},
    frame::{ECHO, ETHERNET, Frame, Link, datagram, flag, icmp, udp},
    hospital::{BALANCER, FIRST_PORT, HYPERSPACE, MYCHART, OTHER_PORT, PORTS, ROUTER, SOURCE, SRV_1},
};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 85, 0, 9);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 168, 85, 77);
const BROADCAST: [u8; 6] = [0xff; 6];
const MULTICAST: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 0x12];

fn inbound() -> Link {
    Link::new(ROUTER, BALANCER)
}

fn syn(destination: Ipv4Addr, port: u16) -> Frame {
    Frame::new(inbound(), (CLIENT, 40_000), (destination, port)).flags(flag::SYN).syn_options()
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [other_protocols(), other_addresses(), runts(), servers(), not_configured()]
        .into_iter()
        .flatten()
        .collect()
}

fn other_protocols() -> Vec<Case> {
    let arp = inbound().around(EtherType::ARP, &[0x11; 28]);
    let ipv6 = inbound().around(EtherType::IPV6, &[0x60; 60]);
    let ptp = inbound().around(EtherType(0x88f7), &[0; 50]);
    let lldp = inbound().around(EtherType(0x88cc), &[3; 50]);
    let spanning_tree = inbound().around(EtherType(38), &[0x42; 46]);
    let misdirected =
        Frame::new(Link::new(ROUTER, [2, 0x85, 0, 0, 0, 0x77]), (CLIENT, 40_000), (HYPERSPACE.address, 443))
            .flags(flag::SYN)
            .build();
    let quic = udp(&inbound(), (CLIENT, 40_000), (HYPERSPACE.address, 443), &[0xc0; 600]);
    let echo = icmp(&inbound(), 63, CLIENT, HYPERSPACE.address, ECHO, b"abcdefgh");
    let long_echo = icmp(&inbound(), 63, CLIENT, HYPERSPACE.address, ECHO, &[0x61; 1400]);
    let gre = datagram(&inbound(), 63, IpNumber::GRE, CLIENT, HYPERSPACE.address, &[0; 40]);
    let vrrp = datagram(&inbound(), 255, IpNumber(112), ELSEWHERE, Ipv4Addr::new(224, 0, 0, 18), &[0x21; 20]);
    let tagged = Link { tags: vec![(0x8100, 85)], ..inbound() };
    vec![
        case("ARP passes").passes(arp, Reason::NotIp),
        case("IPv6 to others passes").passes(ipv6, Reason::NotOurs),
        case("precision time protocol, LLDP and spanning tree pass")
            .passes(ptp, Reason::NotIp)
            .passes(lldp, Reason::NotIp)
            .passes(spanning_tree, Reason::NotIp),
        case("a frame for another host's MAC address passes, though a service's address is in it")
            .passes(misdirected, Reason::NotOurs),
        case("UDP to a service's port passes").passes(quic, Reason::NotOurs),
        case("an echo request to a service's address passes")
            .passes(echo, Reason::NotOurs)
            .passes(long_echo, Reason::NotOurs),
        case("GRE to a service's address, and VRRP, pass")
            .passes(gre, Reason::NotOurs)
            .passes(vrrp, Reason::NotOurs),
        case("ARP in a VLAN passes").passes(tagged.around(EtherType::ARP, &[0x11; 28]), Reason::NotIp),
        case("three VLAN tags are none of ours").passes(
            syn(HYPERSPACE.address, 443).tagged(&[(0x88a8, 1), (0x8100, 2), (0x8100, 3)]).build(),
            Reason::NotIp,
        ),
        case("IPv4 that is not version 4, or has a header of 16 bytes, passes")
            .passes(patched(syn(HYPERSPACE.address, 443).build(), ETHERNET, 0x65), Reason::Truncated)
            .passes(patched(syn(HYPERSPACE.address, 443).build(), ETHERNET, 0x44), Reason::Truncated),
    ]
}

fn other_addresses() -> Vec<Case> {
    vec![
        case("TCP to another address passes").passes(syn(ELSEWHERE, 443).build(), Reason::NotOurs),
        case("TCP to another port of a service's address passes")
            .passes(syn(HYPERSPACE.address, 22).build(), Reason::NotOurs)
            .passes(syn(HYPERSPACE.address, 444).build(), Reason::NotOurs),
        case("TCP to the balancer's own address passes")
            .passes(syn(SOURCE, 22).build(), Reason::NotOurs)
            .passes(syn(SOURCE, FIRST_PORT).build(), Reason::NotOurs),
        case("port 80 is the daemon's, whatever state the connection is in")
            .passes(syn(HYPERSPACE.address, 80).build(), Reason::LocalService)
            .passes(
                syn(HYPERSPACE.address, 80).flags(flag::ACK).payload(b"GET /").build(),
                Reason::LocalService,
            )
            .passes(syn(HYPERSPACE.address, 80).flags(flag::RST).build(), Reason::LocalService),
        case("port 80 of a service that has none there passes")
            .passes(syn(MYCHART.address, 80).build(), Reason::NotOurs),
        case("a SYN to a service in a broadcast or multicast frame passes")
            .passes(syn(HYPERSPACE.address, 443).link(ROUTER, BROADCAST).build(), Reason::NotOurs)
            .passes(syn(HYPERSPACE.address, 443).link(ROUTER, MULTICAST).build(), Reason::NotOurs),
        case("TCP to another address passes with its VLAN tags")
            .passes(syn(ELSEWHERE, 443).tagged(&[(0x8100, 0xe055)]).build(), Reason::NotOurs)
            .passes(syn(ELSEWHERE, 443).tagged(&[(0x88a8, 9), (0x8100, 85)]).build(), Reason::NotOurs),
        case("malformed TCP to another address passes")
            .passes(syn(ELSEWHERE, 443).flags(flag::SYN | flag::FIN).build(), Reason::NotOurs)
            .passes(syn(ELSEWHERE, 443).fragment(0, true).build(), Reason::NotOurs)
            .passes(syn(ELSEWHERE, 443).fragment(100, false).build(), Reason::NotOurs)
            .passes(syn(ELSEWHERE, 443).ip_options([1; 8]).build(), Reason::NotOurs)
            .passes(syn(ELSEWHERE, 443).ttl(1).build(), Reason::NotOurs),
    ]
}

/// The kernel runs no program on frames shorter than an Ethernet header.
fn runts() -> Vec<Case> {
    let whole = syn(ELSEWHERE, 443).build();
    let mut plain = case("a frame to another address passes however short it was cut");
    for length in ETHERNET..=60 {
        // Behind the ports it is known whom it is for.
        let reason = if length < 38 { Reason::Truncated } else { Reason::NotOurs };
        plain = plain.passes(whole[..length].to_vec(), reason);
    }
    let whole = syn(ELSEWHERE, 443).tagged(&[(0x88a8, 5), (0x8100, 6)]).build();
    let mut tagged = case("a frame with VLAN tags passes however short it was cut");
    for length in ETHERNET..=68 {
        let reason = if length < 46 { Reason::Truncated } else { Reason::NotOurs };
        tagged = tagged.passes(whole[..length].to_vec(), reason);
    }
    let options = syn(ELSEWHERE, 443).ip_options([1; 8]).build();
    let mut with_options = case("a frame with IP options passes however short it was cut");
    for length in ETHERNET..=60 {
        let reason = if length < 46 { Reason::Truncated } else { Reason::NotOurs };
        with_options = with_options.passes(options[..length].to_vec(), reason);
    }
    vec![plain, tagged, with_options]
}

fn servers() -> Vec<Case> {
    let connection = Connection::to(SRV_1);
    let (answer, response) = (connection.syn_ack(), connection.response());
    let refusal = connection.server_segment(flag::RST | flag::ACK, 0, 1);
    let mut health_check = answer.clone();
    health_check.tcp.destination_port = FIRST_PORT + PORTS;
    let mut below = answer.clone();
    below.tcp.destination_port = FIRST_PORT - 1;
    let mut other_service = answer.clone();
    other_service.tcp.source_port = 8443;
    let mut beside = connection.response();
    beside.tcp.source_port = OTHER_PORT;
    let mut routed = answer.clone();
    routed.ip.destination = CLIENT.octets();
    vec![
        case("a server's answer to a port outside the SNAT range passes: it is a health check's")
            .passes(health_check.build(), Reason::NotOurs)
            .passes(below.build(), Reason::NotOurs),
        case("a server's answer from another port passes").passes(other_service.build(), Reason::NotOurs),
        case("a server's segment from another port of its endpoint is not of the flow")
            .given(connection.established())
            .passes(beside.build(), Reason::NoReturnFlow),
        case("a server's segment to somebody else passes").passes(routed.build(), Reason::NotOurs),
        case("a server that speaks to a SNAT port without a flow is answered with RST")
            .sends(&answer, Reason::ResetNoReturnFlow, reset_by_acknowledgment(&answer))
            .sends(&response, Reason::ResetNoReturnFlow, reset_by_acknowledgment(&response)),
        case("a server's RST to a SNAT port without a flow is not answered")
            .drops(refusal.build(), Reason::StrayReset),
        case("a server's later fragment to the SNAT address passes")
            .passes(connection.response().fragment(185, false).build(), Reason::NotOurs),
    ]
}

fn not_configured() -> Vec<Case> {
    let connection = Connection::to(SRV_1);
    vec![
        case("nothing is touched until the daemon has set up the maps")
            .given(connection.established())
            .given([Given::NotConfigured])
            .passes(connection.syn().build(), Reason::NotConfigured)
            .passes(connection.request().build(), Reason::NotConfigured)
            .passes(connection.response().build(), Reason::NotConfigured)
            .passes(connection.syn().ip_options([1; 8]).build(), Reason::NotConfigured)
            .passes(inbound().around(EtherType::ARP, &[0x11; 28]), Reason::NotIp),
    ]
}

/// The frame with another byte at this place.
pub(super) fn patched(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    frame
}
