//! Connections by the thousand, as fast as clients can make them: everyone is answered, and no segment overtakes another.
#![cfg(test)]

use std::{fs, net::SocketAddr, thread};

use tests::{
    e2e::Turn,
    lab::{HYPERSPACE_SERVERS, Lab, LabOptions, Mode, Ns, PLAIN_PORT, Services, Topology, client},
};

const THREADS: usize = 16;
const CONNECTIONS: usize = 1000;

/// Segments that came before one that was sent earlier.
const OVERTAKEN: &str = "TCPOFOQueue";
/// Acknowledgements that belong to no handshake: the listening socket resets them.
const UNEXPECTED: &str = "SyncookiesFailed";

/// What the kernel of a namespace counts under one of the names that `nstat` has.
fn count(lab: &Lab, ns: Ns, name: &str) -> u64 {
    let text = lab.in_ns(ns, || fs::read_to_string("/proc/thread-self/net/netstat")).unwrap().unwrap();
    let [names, values, ..] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs.find(|(this, _)| *this == name).unwrap().1.parse().unwrap()
}

/// The failures of connections that clients make at once, each of its own address.
fn failures(lab: &Lab, to: SocketAddr) -> Vec<String> {
    let client = |thread: usize| {
        let source = lab.client_address(thread);
        let answers = (0..CONNECTIONS).map(move |_| client::who_answers(source, to));
        answers.filter_map(Result::err).map(|error| format!("{error:#}")).collect::<Vec<_>>()
    };
    lab.in_ns(Ns::Client, || {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || client(thread))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        })
    })
    .unwrap()
}

fn check(mode: Mode) {
    let _turn = Turn::shared();
    let topology = Topology { mode, ..Topology::default() };
    let mut lab = Lab::new(LabOptions { topology, ..LabOptions::default() }).unwrap();
    for server in HYPERSPACE_SERVERS {
        lab.start_nginx(server).unwrap();
    }
    let services = Services { ports: format!("443, {PLAIN_PORT}"), ..Services::default() };
    lab.write_config(&services.yaml(topology)).unwrap();
    lab.start_daemon(&[]).unwrap();
    let to = SocketAddr::new(topology.hyperspace(), PLAIN_PORT);
    assert_eq!(failures(&lab, to), Vec::<String>::new());
    assert_eq!(count(&lab, Ns::Client, OVERTAKEN), 0);
    for server in HYPERSPACE_SERVERS.map(Ns::Server) {
        assert_eq!((count(&lab, server, OVERTAKEN), count(&lab, server, UNEXPECTED)), (0, 0), "{server:?}");
    }
}

#[test]
fn connections_in_snat_keep_their_order() {
    check(Mode::Snat);
}

#[test]
fn connections_in_nat_keep_their_order() {
    check(Mode::Nat);
}

#[test]
fn connections_in_dr_keep_their_order() {
    check(Mode::Dr);
}
