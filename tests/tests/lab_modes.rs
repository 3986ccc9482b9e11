//! The lab of every forwarding mode proves itself without the balancer: the kernel's own routing, or a few lines of
//! encapsulation, stand in for it, and the rows of `e2e_modes.rs` hold for them too.
#![cfg(test)]

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use tests::{
    e2e::{
        Turn, matrix,
        stand_in::{End, StandIn, Tunnel, nft},
        until,
    },
    lab::{
        Arms, Capture, Family, INTERFACE, Lab, LabOptions, Mode, Ns, PLAIN_PORT, Port443, Topology, client,
    },
};

const PATIENCE: Duration = Duration::from_secs(60);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A lab whose first Hyperspace server runs.
fn lab(topology: Topology) -> Lab {
    let options = LabOptions { port_443: Port443::Plain, topology, ..LabOptions::default() };
    let mut lab = Lab::new(options).unwrap_or_else(|error| panic!("{topology}: {error:#}"));
    lab.start_nginx(0).unwrap();
    lab
}

/// Tests a mode over both families, with one arm and with two.
fn each(mode: Mode, test: impl Fn(Lab)) {
    let _turn = Turn::shared();
    for family in FAMILIES {
        for arms in [Arms::One, Arms::Two] {
            println!("{mode:?} {family:?} {arms:?}");
            let lab = lab(Topology { mode, family, arms, ..Topology::default() });
            assert_balancer_reaches_all(&lab);
            test(lab);
        }
    }
}

fn server(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.address(Ns::Server(0)).unwrap(), PLAIN_PORT)
}

fn service(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.topology().hyperspace(), PLAIN_PORT)
}

/// The balancer reaches a server from its side of it, and the clients.
fn assert_balancer_reaches_all(lab: &Lab) {
    let to = server(lab);
    let source = lab.in_ns(Ns::Lb, || {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.local_addr()
    });
    assert_eq!(source.unwrap().unwrap().ip(), lab.topology().balancer_to_servers());
    // Nothing listens: what is refused was reached.
    let to = SocketAddr::new(lab.client_address(9), 9);
    let refused = lab.in_ns(Ns::Lb, || TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// Servers that own the service's address do not say so to the network.
fn assert_servers_keep_quiet(lab: &Lab) {
    let (vip, client) = (lab.topology().hyperspace(), lab.client_address(5));
    let known_mac = || {
        let shown =
            lab.command(Ns::Client, "ip", ["-j", "neigh", "show", &vip.to_string()]).output().unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown[0]["lladdr"].as_str().map(str::to_owned)
    };
    let within = Duration::from_millis(700);
    let asked = || lab.in_ns(Ns::Client, || client::connect(client, service(lab), within)).unwrap();
    assert!(asked().is_err());
    assert_eq!(known_mac(), None);
    // The same question is answered where somebody does.
    let host = if vip.is_ipv4() { format!("{vip}/32") } else { format!("{vip}/128") };
    let nodad = if vip.is_ipv4() { "" } else { "nodad" };
    lab.ip(Ns::Lb, &format!("addr add {host} dev eth0 {nodad}\n")).unwrap();
    lab.ip(Ns::Client, "neigh flush all\n").unwrap();
    assert!(format!("{:#}", asked().unwrap_err()).contains("refused"));
    assert_eq!(known_mac().as_deref(), Some("02:85:00:00:00:0a"));
    lab.ip(Ns::Lb, &format!("addr del {host} dev eth0\n")).unwrap();
}

#[test]
fn snat_servers_of_a_two_arm_lab_have_no_way_to_clients() {
    each(Mode::Snat, |lab| {
        let client = lab.client_address(0).to_string();
        let route = lab.command(Ns::Server(0), "ip", ["route", "get", &client]).output().unwrap();
        assert_eq!(route.status.success(), lab.topology().arms == Arms::One, "{route:?}");
    });
}

#[test]
fn nat_servers_answer_clients_through_the_balancer_alone() {
    each(Mode::Nat, |lab| {
        let (client, to) = (lab.client_address(5), server(&lab));
        let connect = |within| lab.in_ns(Ns::Client, || client::connect(client, to, within)).unwrap();
        connect(PATIENCE).unwrap();
        lab.plug(Ns::Lb, false).unwrap();
        let error = connect(Duration::from_millis(700)).unwrap_err();
        assert!(!format!("{error:#}").contains("refused"), "{error:#}");
    });
}

#[test]
fn servers_that_own_the_services_addresses_keep_quiet_and_answer_past_the_balancer() {
    for mode in [Mode::Dr, Mode::Tunnel] {
        each(mode, |lab| {
            assert_servers_keep_quiet(&lab);
            let _balancer = StandIn::start(&lab, 1).unwrap();
            assert_answered_directly(&lab);
        });
    }
}

/// The client reaches the service, and the balancer sees its packets, not the answers.
fn assert_answered_directly(lab: &Lab) {
    let vip = lab.topology().hyperspace();
    let captures = ["dst", "src"].map(|end| {
        let filter = format!("{end} host {vip}");
        lab.capture_cables(Ns::Lb, 100_000, &filter).unwrap()
    });
    let client = lab.client_address(5);
    assert_eq!(lab.who_answers(client, vip, PLAIN_PORT).unwrap(), "Hyperspace_Srv_1");
    let count = |captures: Vec<Capture>| {
        captures.into_iter().map(|capture| capture.stop().unwrap().packets().len()).sum::<usize>()
    };
    let [forward, back] = captures.map(count);
    assert!(forward >= 4, "{forward} packets came by the balancer");
    assert_eq!(back, 0, "answers came by the balancer");
}

#[test]
fn a_tunnel_of_either_family_carries_both() {
    let topology = Topology { mode: Mode::Tunnel, family: Family::V6, ..Topology::default() };
    let lab = lab(topology);
    let mac = lab.host(Ns::Server(0)).unwrap().mac();
    let ipv4 = |ns| IpAddr::V4(lab.host(ns).unwrap().address);
    let ipv6 = |ns| lab.address(ns).unwrap();
    for (family, address, source) in
        [(Family::V4, ipv6(Ns::Server(0)), ipv6(Ns::Lb)), (Family::V6, ipv4(Ns::Server(0)), ipv4(Ns::Lb))]
    {
        let inner = Topology { family, ..topology };
        let (vip, client) = (inner.hyperspace(), inner.client_address(5));
        let balancer = inner.balancer_to_servers();
        lab.ip(Ns::Client, &format!("route add {vip} via {balancer}\n")).unwrap();
        assert!(lab.who_answers(client, vip, PLAIN_PORT).is_err());
        let _tunnel = Tunnel::start(&lab, vip, vec![End { mac, address, source }]).unwrap();
        assert_eq!(lab.who_answers(client, vip, PLAIN_PORT).unwrap(), "Hyperspace_Srv_1");
    }
}

/// All rows of a mode's part of the matrix.
fn rows(mode: Mode) {
    for family in FAMILIES {
        for (arms, narrow) in [(Arms::One, false), (Arms::Two, false), (Arms::One, true)] {
            let topology = Topology { mode, family, arms, narrow, ..Topology::default() };
            matrix::check_lab(topology, |_| Ok(())).unwrap_or_else(|error| panic!("{topology}: {error:#}"));
        }
    }
}

#[test]
fn the_matrix_holds_for_a_balancer_by_source_nat() {
    rows(Mode::Snat);
}

#[test]
fn the_matrix_holds_for_a_balancer_by_destination_nat() {
    rows(Mode::Nat);
}

#[test]
fn the_matrix_holds_for_a_balancer_by_routes() {
    rows(Mode::Dr);
}

#[test]
fn the_matrix_holds_for_a_balancer_by_tunnels() {
    rows(Mode::Tunnel);
}

/// Why a row with destination NAT does not hold when the balancer has one rule more, in a chain of this kind.
fn spoilt(narrow: bool, chain: &str, rule: &str) -> String {
    let topology = Topology { mode: Mode::Nat, narrow, ..Topology::default() };
    let rules = format!("table ip spoilt {{\nchain one {{ type {chain};\n{rule}\n}}\n}}\n");
    format!("{:#}", matrix::check_lab(topology, |lab| nft(lab, Ns::Lb, &rules)).unwrap_err())
}

#[test]
fn a_row_fails_where_clients_wander_between_servers() {
    let said = spoilt(
        false,
        "nat hook prerouting priority -150",
        "ip daddr 192.168.85.150 dnat to numgen inc mod 2 map { 0 : 192.168.85.200, 1 : 192.168.85.201 }",
    );
    assert!(said.contains("was answered by") && said.contains("and by"), "{said}");
}

#[test]
fn a_row_fails_where_servers_see_another_source() {
    let said = spoilt(false, "nat hook postrouting priority 0", "ct status dnat masquerade");
    assert!(said.contains("the server sees 10.85.0.4 as 192.168.85.10, not as 10.85.0.4"), "{said}");
}

#[test]
fn a_row_fails_where_icmp_errors_are_lost() {
    let chain = "filter hook prerouting priority -300";
    let said = spoilt(true, chain, "icmp type destination-unreachable drop");
    assert!(said.contains("curl from 10.85.0.21"), "{said}");
}

#[test]
fn a_frame_redirected_to_the_other_arm_arrives_there() {
    let lab = lab(Topology { arms: Arms::Two, ..Topology::default() });
    let server = lab.host(Ns::Server(0)).unwrap().mac();
    let mut frame = vec![0x5f; 100];
    frame[..6].copy_from_slice(&server);
    frame[6..12].copy_from_slice(&lab.host(Ns::Client).unwrap().mac());
    // An EtherType for experiments (IEEE 802).
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    let mut receiver = lab.raw_socket(Ns::Server(0)).unwrap();
    let sender = lab.raw_socket(Ns::Client).unwrap();
    let is_it = |received: &[u8]| received == frame;
    sender.send(&frame).unwrap();
    assert_eq!(receiver.receive(Duration::from_millis(200), is_it).unwrap(), None);
    let program = lab.hand_over(Ns::Lb, INTERFACE, Topology::SECOND_INTERFACE).unwrap();
    sender.send(&frame).unwrap();
    assert!(receiver.receive(PATIENCE, is_it).unwrap().is_some());
    drop(program);
    until("the program is off", PATIENCE, || {
        sender.send(&frame)?;
        Ok(receiver.receive(Duration::from_millis(50), is_it)?.is_none().then_some(()))
    })
    .unwrap();
}
