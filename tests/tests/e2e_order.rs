//! Connections by the thousand, as fast as clients can make them: everyone is answered, always by one server, and no segment
//! overtakes another.
#![cfg(test)]

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use tests::{
    e2e::Turn,
    lab::{HYPERSPACE_SERVERS, Lab, LabOptions, Mode, Ns, PLAIN_PORT, Services, Signal, Topology, client},
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

/// A lab with Hyperspace's servers, and its balancer at work.
fn lab(mode: Mode) -> Lab {
    let topology = Topology { mode, ..Topology::default() };
    let mut lab = Lab::new(LabOptions { topology, ..LabOptions::default() }).unwrap();
    for server in HYPERSPACE_SERVERS {
        lab.start_nginx(server).unwrap();
    }
    let services = Services { ports: format!("443, {PLAIN_PORT}"), ..Services::default() };
    lab.write_config(&services.yaml(topology)).unwrap();
    lab.start_daemon(&[]).unwrap();
    lab
}

fn service(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.topology().hyperspace(), PLAIN_PORT)
}

fn check(mode: Mode) {
    let _turn = Turn::shared();
    let lab = lab(mode);
    assert_eq!(failures(&lab, service(&lab)), Vec::<String>::new());
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

/// What happened to a client that made one connection after the other.
struct Visits {
    count: usize,
    homes: BTreeSet<String>,
    failed: Vec<String>,
}

/// Clients that make one connection after the other until they are told to stop.
fn visitors(lab: &Lab, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<Visits>> {
    let to = service(lab);
    let visit = move |source, stop: Arc<AtomicBool>| {
        let mut visits = Visits { count: 0, homes: BTreeSet::new(), failed: Vec::new() };
        while !stop.load(Ordering::Relaxed) {
            visits.count += 1;
            match client::who_answers(source, to) {
                Ok(server) => drop(visits.homes.insert(server)),
                Err(error) => visits.failed.push(format!("{error:#}")),
            }
        }
        visits
    };
    let start = |number| {
        let (source, stop) = (lab.client_address(number), stop.clone());
        thread::spawn(move || visit(source, stop))
    };
    // A thread is in the network namespace of the one that starts it.
    lab.in_ns(Ns::Client, || (0..THREADS).map(start).collect()).unwrap()
}

#[test]
fn clients_notice_neither_killed_daemons_nor_drains_nor_weights() {
    let _turn = Turn::shared();
    let mut lab = lab(Mode::Snat);
    let stop = Arc::new(AtomicBool::new(false));
    let visitors = visitors(&lab, &stop);
    let server = "Hyperspace/Hyperspace_Srv_1";
    let changes: [&[&str]; 4] = [
        &["server", "drain", server],
        &["server", "online", server],
        &["server", "set", server, "--weight", "10"],
        &["server", "set", server, "--weight", "100"],
    ];
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        for change in changes {
            let output = lab.cli(change).unwrap();
            assert!(output.status.success(), "{change:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        lab.kill_daemon(signal).unwrap();
        lab.start_daemon(&[]).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let visits: Vec<Visits> = visitors.into_iter().map(|visitor| visitor.join().unwrap()).collect();
    println!("{} connections", visits.iter().map(|visits| visits.count).sum::<usize>());
    for visits in visits {
        assert_eq!(visits.failed, Vec::<String>::new());
        assert_eq!(visits.homes.len(), 1, "{:?}", visits.homes);
    }
}
