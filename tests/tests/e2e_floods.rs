//! What an attacker does to 200 running downloads and 300 clients with records: nothing.
#![cfg(test)]

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_common::reason::Reason;
use tests::{
    e2e::{
        Site, Turn,
        busy::{Busy, DOWNLOADS},
        records::{self, Flow, Stats},
    },
    lab::{ForgedAcks, HYPERSPACE, Ns, SynFlood, Topology},
};

const SYNS: u64 = 2_000_000;
const ACKS: u64 = 2_000_000;
/// Those of 100.64.0.0/10 that are not others'.
const PARTS: u8 = 60;
/// From a server to a SNAT port, and no SYN-ACK.
const PASSED: &str = "tcp src port 443 and dst portrange 1024-32767 and tcp[13] & 2 == 0";
/// What could become of an open flow's packet that is not sent on. Nothing but SYNs has the other reasons of that kind,
/// but for `no-return-flow`: what has that is captured in the host's stack.
const HARMFUL: [Reason; 11] = [
    Reason::ResetServerGone,
    Reason::ResetNoFlow,
    Reason::ResetNoServer,
    Reason::BadHeader,
    Reason::Fragment,
    Reason::IpOptions,
    Reason::TtlExceeded,
    Reason::StrayReset,
    Reason::NoNeighbour,
    Reason::NotConfigured,
    Reason::Carrying,
];

/// SYNs that the balancer has seen of those that were sent.
fn syns_seen(stats: &Stats) -> u64 {
    ["new-by-scheduler", "new-by-sticky", "syn-repeated", "ports-exhausted", "half-open-busy"]
        .into_iter()
        .map(|reason| stats.reason(reason).unwrap())
        .sum()
}

/// Floods until the balancer has seen so many SYNs: queues on the way there drop some.
fn flood(site: &Site) {
    let before = syns_seen(&records::stats(site).unwrap());
    let (mut sent, mut seen, mut elapsed) = (0, 0, Duration::ZERO);
    for part in 0..PARTS {
        let flood = SynFlood {
            first_source: Ipv4Addr::new(100, 64 + part, 0, 0),
            sources: 65_536,
            to: SocketAddrV4::new(HYPERSPACE, 443),
            frames: 250_000,
            longest: Duration::from_secs(30),
            rate: None,
        };
        let report = site.syn_flood(Ns::Lb, &flood).unwrap();
        sent += report.frames;
        elapsed += report.elapsed;
        seen = syns_seen(&records::stats(site).unwrap()) - before;
        if seen >= SYNS {
            break;
        }
    }
    println!(
        "{sent} SYNs sent in {elapsed:.1?}, {} a second; {seen} seen by the balancer",
        rate(sent, elapsed)
    );
    assert!(seen >= SYNS, "{seen} of {sent} SYNs reached the balancer");
}

fn rate(frames: u64, elapsed: Duration) -> u128 {
    u128::from(frames) * 1000 / elapsed.as_millis().max(1)
}

/// As fast as the machine can send. The flood fills the link, and TCP's segments are lost beside the SYNs; that makes
/// downloads slow, and the test waits. What it shows is that the balancer's program lost and answered no packet of theirs.
///
/// Measured once on two shared cores, 3.5 million SYNs in 32 s, of which the program saw 2.1 million: 1,700,000 frames were
/// lost in the full ring of the balancer's interface, before the program; 16,000 in the ring behind it, after its verdict; 97,000
/// before the client's stack, and as many before one server's. Clients heard nothing for up to 21 s. In a slower run
/// servers sent segments of downloads again up to six times, after up to 20 s, and clients heard nothing for up to 34 s: more
/// than the 20 s of patience that downloads once had. In neither did a kernel count a reset of an established connection.
#[test]
fn two_million_spoofed_syns_break_no_download_and_move_nobody() {
    let busy = Busy::start(Turn::alone(), Topology::default()).unwrap();
    let before = records::stats(&busy.site).unwrap();
    let open = open_flows(&busy.site);
    let capture = busy.site.capture(Ns::Lb, PASSED).unwrap();
    flood(&busy.site);
    let after = records::stats(&busy.site).unwrap();
    // Of overwritten half-open rows: a server acknowledges a SYN that uses such a row's port again.
    let captured = capture.stop().unwrap();
    let passed: Vec<(Ipv4Addr, u16)> = captured.packets().iter().map(|frame| from_and_to(frame)).collect();
    println!("{} packets of servers were passed that are no answers to SYNs", passed.len());
    assert_eq!(passed.iter().filter(|ends| open.contains(ends)).count(), 0, "of open flows");
    let counted = |reason: &Reason| {
        let label = reason.label();
        let packets = after.reason(label).unwrap() - before.reason(label).unwrap();
        (packets > 0).then_some((label, packets))
    };
    assert_eq!(HARMFUL.iter().filter_map(counted).collect::<Vec<_>>(), [], "of open flows");
    let records = records::sticky(&busy.site, "Hyperspace").unwrap();
    assert_eq!(records.len(), 500, "a spoofed address left a record, or one was lost");
    assert_eq!(busy.unbroken().unwrap(), 0, "counts end at zero");
}

/// The server's address and the SNAT port of each open flow.
fn open_flows(site: &Site) -> BTreeSet<(Ipv4Addr, u16)> {
    let flows: Vec<Flow> = records::ask(site, &["flow", "show"]).unwrap();
    let open = flows.iter().filter(|flow| flow.state == "established");
    let open: BTreeSet<_> = open
        .map(|flow| {
            let server = Ns::Server(site.index(&flow.server).unwrap());
            (site.host(server).unwrap().address, flow.snat_port.unwrap())
        })
        .collect();
    assert_eq!(open.len(), DOWNLOADS);
    open
}

/// The source address and the destination port of a captured frame of TCP over IPv4.
fn from_and_to(frame: &[u8]) -> (Ipv4Addr, u16) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (packet.net, packet.transport) else {
        panic!("captured {frame:?}")
    };
    (ip.header().source_addr(), tcp.destination_port())
}

#[test]
fn forged_acknowledgements_break_no_download_and_move_nobody() {
    let busy = Busy::start(Turn::alone(), Topology::default()).unwrap();
    let flows: Vec<Flow> = records::ask(&busy.site, &["flow", "show"]).unwrap();
    let victims: Vec<SocketAddrV4> = flows
        .iter()
        .filter(|flow| flow.service == "Hyperspace" && flow.state == "established")
        .filter_map(|flow| match flow.client {
            IpAddr::V4(client) => Some(SocketAddrV4::new(client, flow.client_port)),
            IpAddr::V6(_) => None,
        })
        .collect();
    assert!(victims.len() >= 200, "{}", victims.len());
    let to = SocketAddrV4::new(HYPERSPACE, 443);
    let before = records::stats(&busy.site).unwrap();
    let forged = ForgedAcks { victims, to, frames: ACKS, longest: Duration::from_secs(60) };
    let report = busy.site.forged_acks(&forged).unwrap();
    let after = records::stats(&busy.site).unwrap();
    let seen = |reason| after.reason(reason).unwrap() - before.reason(reason).unwrap();
    println!(
        "{} forged ACKs in {:.1?}, {:.0} a second: {} answered with RST, {} of all packets forwarded",
        report.frames,
        report.elapsed,
        report.rate(),
        seen("reset-no-flow"),
        seen("forwarded")
    );
    assert!(seen("reset-no-flow") > report.frames / 20 && seen("forwarded") > report.frames / 20);
    assert_eq!(records::sticky(&busy.site, "Hyperspace").unwrap().len(), 500, "no record came or went");
    let counted = busy.unbroken().unwrap();
    // Guesses that were near have moved some recorded numbers away from where the FIN is (ARCHITECTURE.md, threats).
    println!("{counted} connections are still counted");
    assert!(counted < 100, "{counted}");
}
