//! Floods and limits.
#![cfg(test)]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tests::{
    e2e::{
        Connection, Homes, Site, Talkers, Turn, Wanted,
        crowd::{clients_of, moved},
        homes,
        records::{self, Server},
    },
    lab::{HYPERSPACE, Ns, SynFlood, client, client_address},
};

/// New connections that were tried during a flood.
#[derive(Default)]
struct Newcomers {
    homes: Homes,
    failed: Vec<String>,
    slowest: Duration,
}

/// Connects one new client after another until it is told to stop.
fn newcomers(site: &Site, stop: &AtomicBool) -> Newcomers {
    let mut newcomers = Newcomers::default();
    let run = || {
        for number in 1000.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let (client, start) = (client_address(number), Instant::now());
            match client::who_answers(client, Site::HYPERSPACE) {
                Ok(home) => {
                    newcomers.slowest = newcomers.slowest.max(start.elapsed());
                    newcomers.homes.insert(client, home);
                }
                Err(error) => newcomers.failed.push(format!("{error:#}")),
            }
            thread::sleep(Duration::from_millis(10));
        }
    };
    site.in_ns(Ns::Client, run).unwrap();
    newcomers
}

#[test]
fn a_million_spoofed_syns_break_no_open_connection_and_leave_no_record() {
    const SPOOFED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
    let site = Site::plain(Turn::alone(), &Wanted::default()).unwrap();
    let talkers = Talkers::start(&site, 0..200, Site::HYPERSPACE).unwrap();
    let known = talkers.homes.clone();
    let before = records::stats(&site).unwrap();
    assert_eq!(before.table("sticky").unwrap().used, 200);
    let said_before = talkers.exchanges();
    let flood = SynFlood {
        first_source: SPOOFED,
        sources: 131_072,
        to: SocketAddrV4::new(HYPERSPACE, 443),
        frames: 1_000_000,
        longest: Duration::from_secs(60),
        rate: None,
    };
    let stop = AtomicBool::new(false);
    let (report, newcomers) = thread::scope(|scope| {
        let newcomers = scope.spawn(|| newcomers(&site, &stop));
        let report = site.syn_flood(Ns::Lb, &flood);
        stop.store(true, Ordering::Relaxed);
        (report.unwrap(), newcomers.join().unwrap())
    });
    let said_during = talkers.exchanges() - said_before;
    let after = records::stats(&site).unwrap();
    let opened = after.reason("new-by-scheduler").unwrap() - before.reason("new-by-scheduler").unwrap();
    let tried = newcomers.homes.len() + newcomers.failed.len();
    println!(
        "{} spoofed SYNs at {:.0} a second, {opened} of them and the new clients' seen by the balancer; during it 200 \
         clients had {said_during} answers; {} of {tried} new clients were answered, the slowest after {:?}",
        report.frames,
        report.rate(),
        newcomers.homes.len(),
        newcomers.slowest
    );
    println!(
        "half-open: {:?}; exhausted: {}; busy: {}",
        after.table("half_open").unwrap(),
        after.reason("ports-exhausted").unwrap(),
        after.reason("half-open-busy").unwrap()
    );
    assert_eq!(report.frames, 1_000_000);
    assert!(opened > 500_000, "only {opened} SYNs of the flood reached the balancer");

    let sticky = records::sticky(&site, "Hyperspace").unwrap();
    let spoofed: Vec<&IpAddr> =
        sticky.keys().filter(|client| client.to_string().starts_with("198.")).collect();
    assert_eq!(spoofed, Vec::<&IpAddr>::new());
    let recorded: Homes = sticky.iter().map(|(client, record)| (*client, record.server.clone())).collect();
    assert_eq!(moved(&known, &recorded), []);
    for client in known.keys() {
        assert!(recorded.contains_key(client), "the record of {client} is lost");
    }
    assert!(recorded.len() <= 200 + tried, "{} records", recorded.len());

    let talked = talkers.stop().unwrap();
    println!("the slowest answer on an open connection took {:?}", talked.slowest);
    assert_eq!(talked.broken, Vec::<String>::new());
    assert_eq!(talked.connections.len(), 200);
    assert_eq!(moved(&known, &homes(&site, 0..200, Site::HYPERSPACE).unwrap()), []);
    // Mostly: the flood may overwrite a handshake on its way, and the client then tries again.
    assert!(newcomers.homes.len() * 2 > tried, "{:?}", newcomers.failed);
    assert_eq!(moved(&newcomers.homes, &recorded), []);
}

#[test]
fn exhausted_snat_ports_are_counted_and_harm_only_new_connections_to_that_server() {
    const PORTS: u64 = 64;
    let wanted = Wanted { node: "  snat_ports: 20000-20063\n".to_owned(), ..Wanted::default() };
    let site = Site::plain(Turn::shared(), &wanted).unwrap();
    let next = AtomicUsize::new(0);
    let open = Mutex::new(Vec::new());
    let connect = || {
        while let number @ 0..400 = next.fetch_add(1, Ordering::Relaxed) {
            let quickly = Duration::from_millis(300);
            if let Ok(connection) = Connection::open(client_address(number), Site::HYPERSPACE, quickly) {
                open.lock().unwrap().push(connection);
            }
        }
    };
    site.in_ns(Ns::Client, || {
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(connect);
            }
        });
    })
    .unwrap();
    let mut open = open.into_inner().unwrap();
    let servers: Vec<Server> = records::ask(&site, &["server", "show", "Hyperspace"]).unwrap();
    let counts: Vec<u64> = servers.iter().map(|server| server.connections).collect();
    let exhausted = records::stats(&site).unwrap().reason("ports-exhausted").unwrap();
    println!("400 clients, {PORTS} ports: {counts:?} connections open, ports-exhausted {exhausted}");
    assert!(exhausted > 0);
    assert!(counts.iter().all(|count| *count <= PORTS), "{counts:?}");
    assert!(counts.iter().all(|count| *count >= PORTS - 2), "{counts:?}");

    // Everyone who is in goes on, each on a server of its own choice.
    let mut homes_of_open = Homes::new();
    for connection in &mut open {
        connection.set_patience(Duration::from_secs(5)).unwrap();
        homes_of_open.insert(connection.client, connection.who().unwrap());
    }
    for server in &servers {
        let clients = clients_of(&homes_of_open, &server.server).count();
        assert_eq!(u64::try_from(clients).unwrap(), server.connections);
    }
    // Another service's servers have ports of their own.
    homes(&site, 0..30, Site::MYCHART).unwrap();
    assert_eq!(records::stats(&site).unwrap().reason("ports-exhausted").unwrap(), exhausted);
}
