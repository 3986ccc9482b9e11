//! The lab of every forwarding mode proves itself without the balancer: the kernel's own routing, or a few lines of
//! encapsulation, stand in for it.
#![cfg(test)]

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use tests::{
    e2e::{Turn, until},
    lab::{
        Arms, Family, INTERFACE, Lab, LabOptions, Mode, Ns, PLAIN_PORT, Port443, RawSocket, Topology, client,
    },
};

const PATIENCE: Duration = Duration::from_secs(5);
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
            let lab = lab(Topology { mode, family, arms, narrow: false });
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

/// The source that a server sees of the client.
fn seen(lab: &Lab, client: IpAddr, to: SocketAddr) -> IpAddr {
    let body = lab.in_ns(Ns::Client, || client::get(client, to, "/client", PATIENCE)).unwrap().unwrap();
    String::from_utf8(body).unwrap().trim_end().parse().unwrap()
}

/// Has the client host send what is for the service to the balancer, which nothing answers for yet.
fn route_to_balancer(lab: &Lab) {
    let (vip, balancer) = (lab.topology().hyperspace(), lab.address(Ns::Lb).unwrap());
    lab.ip(Ns::Client, &format!("route add {vip} via {balancer}\n")).unwrap();
}

/// The client reaches the service, from its own address, and the balancer sees its packets, not the answers.
fn assert_answered_directly(lab: &Lab) {
    let (client, to) = (lab.client_address(5), service(lab));
    let vip = to.ip();
    let captures = [format!("dst host {vip}"), format!("src host {vip}")]
        .map(|filter| lab.capture_cables(Ns::Lb, 100_000, &filter).unwrap());
    let mut at_client = lab.capture_cables(Ns::Client, 100_000, "tcp").unwrap();
    assert_eq!(lab.who_answers(client, vip, PLAIN_PORT).unwrap(), "Hyperspace_Srv_1");
    assert_eq!(seen(lab, client, to), client);
    assert_eq!(lab.download_sha256(client, &format!("http://{to}/big")).unwrap(), lab.big_sha256());
    let count = |captures: Vec<tests::lab::Capture>| {
        captures.into_iter().map(|capture| capture.stop().unwrap().packets().len()).sum::<usize>()
    };
    let [forward, back] = captures.map(count);
    assert!(forward > 10, "{forward} packets came by the balancer");
    assert_eq!(back, 0, "answers came by the balancer");
    let at_client = at_client.remove(0).stop().unwrap();
    assert_eq!(at_client.bad_checksums().unwrap(), Vec::<String>::new());
    assert!(at_client.packets().len() > 700, "{} packets are no MiB", at_client.packets().len());
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
        assert_eq!(seen(&lab, client, to), client);
        lab.plug(Ns::Lb, false).unwrap();
        let connect = || client::connect(client, to, Duration::from_millis(700));
        let error = lab.in_ns(Ns::Client, connect).unwrap().unwrap_err();
        assert!(!format!("{error:#}").contains("refused"), "{error:#}");
    });
}

#[test]
fn dr_servers_answer_for_the_service_past_the_balancer() {
    each(Mode::Dr, |lab| {
        assert_servers_keep_quiet(&lab);
        route_to_balancer(&lab);
        let (vip, to) = (lab.topology().hyperspace(), server(&lab).ip());
        lab.ip(Ns::Lb, &format!("route add {vip} via {to}\n")).unwrap();
        lab.in_ns(Ns::Lb, || {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        })
        .unwrap();
        assert_answered_directly(&lab);
    });
}

#[test]
fn tunnel_servers_strip_the_outer_header_and_answer_past_the_balancer() {
    each(Mode::Tunnel, |lab| {
        assert_servers_keep_quiet(&lab);
        route_to_balancer(&lab);
        let outer = lab.address(Ns::Server(0)).unwrap();
        encapsulating(&lab, outer, || assert_answered_directly(&lab));
        if lab.topology().family == Family::V6 {
            // IPv6 in IPv4, and below IPv4 in IPv6.
            let outer = IpAddr::V4(lab.host(Ns::Server(0)).unwrap().address);
            encapsulating(&lab, outer, || assert_answered_directly(&lab));
        }
    });
}

#[test]
fn a_tunnel_over_ipv6_carries_ipv4() {
    let topology = Topology { mode: Mode::Tunnel, family: Family::V6, ..Topology::default() };
    let lab = lab(topology);
    let old = Topology { family: Family::V4, ..topology };
    let (vip, balancer) = (old.hyperspace(), lab.host(Ns::Lb).unwrap().address);
    lab.ip(Ns::Client, &format!("route add {vip} via {balancer}\n")).unwrap();
    encapsulating(&lab, lab.address(Ns::Server(0)).unwrap(), || {
        let client = old.client_address(5);
        assert_eq!(seen(&lab, client, SocketAddr::new(vip, PLAIN_PORT)), client);
    });
}

/// Encapsulates what arrives at the balancer for the service, towards an address of the first server's, while the closure runs.
fn encapsulating(lab: &Lab, outer: IpAddr, closure: impl FnOnce()) {
    let (mac, server) = (lab.host(Ns::Lb).unwrap().mac(), lab.host(Ns::Server(0)).unwrap().mac());
    let (source, out) = match (outer, lab.topology().arms) {
        (IpAddr::V4(_), Arms::One) => ("192.168.85.10", INTERFACE),
        (IpAddr::V4(_), Arms::Two) => ("192.168.86.10", Topology::SECOND_INTERFACE),
        (IpAddr::V6(_), Arms::One) => ("2001:db8:85::10", INTERFACE),
        (IpAddr::V6(_), Arms::Two) => ("2001:db8:86::10", Topology::SECOND_INTERFACE),
    };
    let source = source.parse().unwrap();
    let mut receiver = lab.raw_socket(Ns::Lb).unwrap();
    let sender = lab.in_ns(Ns::Lb, || RawSocket::open(out)).unwrap().unwrap();
    let over = AtomicBool::new(false);
    let wanted = |frame: &[u8]| frame[..6] == mac && is_to_service(frame);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let received = receiver.receive(Duration::from_millis(50), wanted).unwrap();
                if let Some(frame) = received {
                    sender.send(&encapsulate(&frame, server, source, outer)).unwrap();
                }
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(closure));
        over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Whether it is TCP to 192.168.85.150 or to 2001:db8:85::150.
fn is_to_service(frame: &[u8]) -> bool {
    let [v4, v6] = FAMILIES.map(|family| Topology { family, ..Topology::default() }.hyperspace());
    let is = |at: usize, address: IpAddr| match address {
        IpAddr::V4(address) => frame.get(at..at + 4) == Some(&address.octets()),
        IpAddr::V6(address) => frame.get(at..at + 16) == Some(&address.octets()),
    };
    match frame[12..14] {
        [0x08, 0x00] => frame[23] == 6 && is(30, v4),
        [0x86, 0xdd] => frame[20] == 6 && is(38, v6),
        _ => false,
    }
}

/// The frame's packet in another, to the server's MAC address.
fn encapsulate(frame: &[u8], server: [u8; 6], source: IpAddr, outer: IpAddr) -> Vec<u8> {
    let inner = &frame[14..];
    let protocol = if frame[12..14] == [0x08, 0x00] { 4 } else { 41 };
    let own = frame[..6].try_into().unwrap();
    let link = etherparse::PacketBuilder::ethernet2(own, server);
    let packet = match (source, outer) {
        (IpAddr::V4(source), IpAddr::V4(outer)) => link.ipv4(source.octets(), outer.octets(), 64),
        (IpAddr::V6(source), IpAddr::V6(outer)) => link.ipv6(source.octets(), outer.octets(), 64),
        _ => unreachable!("both ends of a tunnel are of one family"),
    };
    let mut out = Vec::new();
    packet.write(&mut out, etherparse::IpNumber(protocol), inner).unwrap();
    out
}

#[test]
fn large_transfers_discover_the_narrow_hop_in_both_directions() {
    let _turn = Turn::shared();
    for family in FAMILIES {
        let lab = lab(Topology { family, narrow: true, ..Topology::default() });
        let (client, to) = (lab.client_address(5), server(&lab));
        let knows_the_path = |ns, peer: IpAddr| {
            let mut ip = lab.command(ns, "ip", ["route", "get", &peer.to_string()]);
            String::from_utf8(ip.output().unwrap().stdout).unwrap().contains("mtu 1400")
        };
        for (sender, receiver) in [(Ns::Server(0), client), (Ns::Client, to.ip())] {
            assert!(!knows_the_path(sender, receiver));
            let hop = lab.capture_on(Ns::Near, "hop0", "tcp").unwrap();
            if sender == Ns::Client {
                lab.upload(client, &format!("http://{to}/upload/big")).unwrap();
                assert_eq!(lab.uploaded_sha256(0, "big").unwrap(), lab.big_sha256());
            } else {
                assert_eq!(
                    lab.download_sha256(client, &format!("http://{to}/big")).unwrap(),
                    lab.big_sha256()
                );
            }
            assert_eq!(hop.stop().unwrap().packets().iter().map(Vec::len).max(), Some(1414));
            assert!(knows_the_path(sender, receiver));
            lab.forget_paths(Ns::Server(0)).unwrap();
        }
    }
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
