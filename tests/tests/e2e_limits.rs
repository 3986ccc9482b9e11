//! Floods and limits.
#![cfg(test)]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    e2e::{
        Connection, Homes, Site, Talkers, Turn, Wanted,
        crowd::{clients_of, moved},
        homes,
        records::{self, Server, Stats},
        until,
    },
    lab::{HYPERSPACE, Ns, SynFlood, client, client_address},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// New connections that were tried during a flood.
#[derive(Default)]
struct Newcomers {
    homes: Homes,
    failed: Vec<String>,
    times: Vec<Duration>,
}

impl Newcomers {
    fn tried(&self) -> usize {
        self.homes.len() + self.failed.len()
    }

    fn share(&self) -> String {
        let again = self.times.iter().filter(|time| **time > Duration::from_millis(900)).count();
        format!(
            "{} of {} new clients were answered, {again} of them only after a SYN sent again, the slowest after {:?}",
            self.homes.len(),
            self.tried(),
            self.times.iter().max()
        )
    }
}

/// Connects new clients, four at a time, while `flood` runs.
fn newcomers_during<T: Send>(site: &Site, first: usize, flood: impl FnOnce() -> T + Send) -> (Newcomers, T) {
    let (stop, next) = (AtomicBool::new(false), AtomicUsize::new(first));
    let newcomers = Mutex::new(Newcomers::default());
    let connect = || {
        while !stop.load(Ordering::Relaxed) {
            let client = client_address(next.fetch_add(1, Ordering::Relaxed));
            let start = Instant::now();
            let answer = client::who_answers(client, Site::HYPERSPACE);
            let mut newcomers = newcomers.lock().unwrap();
            newcomers.times.push(start.elapsed());
            match answer {
                Ok(home) => {
                    newcomers.homes.insert(client, home);
                }
                Err(error) => newcomers.failed.push(format!("{error:#}")),
            }
            drop(newcomers);
            thread::sleep(Duration::from_millis(5));
        }
    };
    let outcome = site.in_ns(Ns::Client, || {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(connect);
            }
            let outcome = flood();
            stop.store(true, Ordering::Relaxed);
            outcome
        })
    });
    (newcomers.into_inner().unwrap(), outcome.unwrap())
}

/// SYNs that the balancer has seen.
fn syns_seen(stats: &Stats) -> u64 {
    let reasons = [
        "new-by-scheduler",
        "new-by-sticky",
        "syn-repeated",
        "ports-exhausted",
        "half-open-busy",
        "no-neighbour",
    ];
    reasons.into_iter().map(|reason| stats.reason(reason).unwrap()).sum()
}

/// A part of a flood, from addresses of its own: 65,536 of the shared address space (RFC 6598).
fn part_of_flood(number: u8, frames: u64, rate: Option<u32>) -> SynFlood {
    SynFlood {
        first_source: Ipv4Addr::new(100, 64 + number, 0, 0),
        sources: 65_536,
        to: SocketAddrV4::new(HYPERSPACE, 443),
        frames,
        longest: Duration::from_secs(30),
        rate,
    }
}

/// Floods until the balancer has seen a million SYNs: queues on the way there drop some. Gives how many were sent, and in
/// what time.
fn a_million_syns(site: &Site) -> (u64, Duration) {
    let before = syns_seen(&records::stats(site).unwrap());
    let (mut sent, mut elapsed) = (0, Duration::ZERO);
    for number in 0..63 {
        let report = site.syn_flood(Ns::Lb, &part_of_flood(number, 250_000, None)).unwrap();
        sent += report.frames;
        elapsed += report.elapsed;
        let seen = syns_seen(&records::stats(site).unwrap()) - before;
        if seen >= 1_000_000 {
            println!("{sent} SYNs sent, {seen} seen by the balancer");
            return (sent, elapsed);
        }
    }
    panic!("of {sent} SYNs, no million reached the balancer")
}

#[test]
fn a_million_spoofed_syns_break_no_open_connection_and_leave_no_record() {
    let site = Site::plain(Turn::alone(), &Wanted::default()).unwrap();
    let talkers = Talkers::start(&site, 0..200, Site::HYPERSPACE).unwrap();
    let known = talkers.homes.clone();
    assert_eq!(records::stats(&site).unwrap().table("sticky").unwrap().used, 200);
    let said_before = talkers.exchanges();
    let (newcomers, (sent, elapsed)) = newcomers_during(&site, 1000, || a_million_syns(&site));
    let after = records::stats(&site).unwrap();
    println!(
        "{:.0} spoofed SYNs a second for {:.1} s; meanwhile 200 clients had {} answers on their open connections, and {}",
        f64::from(u32::try_from(sent).unwrap()) / elapsed.as_secs_f64(),
        elapsed.as_secs_f64(),
        talkers.exchanges() - said_before,
        newcomers.share()
    );
    println!(
        "half-open: {:?}; ports-exhausted: {}; half-open-busy: {}",
        after.table("half_open").unwrap(),
        after.reason("ports-exhausted").unwrap(),
        after.reason("half-open-busy").unwrap()
    );
    // At a rate that the lab's own links carry, what is lost is the balancer's doing.
    let part = part_of_flood(63, 200_000, Some(40_000));
    let (calmly, report) = newcomers_during(&site, 20_000, || site.syn_flood(Ns::Lb, &part).unwrap());
    println!("at {:.0} SYNs a second {}; {:?}", report.rate(), calmly.share(), calmly.failed);

    let sticky = records::sticky(&site, "Hyperspace").unwrap();
    let spoofed: Vec<&IpAddr> =
        sticky.keys().filter(|client| client.to_string().starts_with("100.")).collect();
    assert_eq!(spoofed, Vec::<&IpAddr>::new());
    let recorded: Homes = sticky.iter().map(|(client, record)| (*client, record.server.clone())).collect();
    assert_eq!(moved(&known, &recorded), []);
    for client in known.keys() {
        assert!(recorded.contains_key(client), "the record of {client} is lost");
    }
    let tried = newcomers.tried() + calmly.tried();
    assert!(recorded.len() <= 200 + tried, "{} records, {tried} new clients", recorded.len());

    let talked = talkers.stop().unwrap();
    println!("the slowest answer on an open connection took {:?}", talked.slowest);
    assert_eq!(talked.broken, Vec::<String>::new());
    assert_eq!(talked.connections.len(), 200);
    assert_eq!(moved(&known, &homes(&site, 0..200, Site::HYPERSPACE).unwrap()), []);
    // Mostly: a handshake may be overwritten on its way, or lost in a full queue, and the client tries again.
    assert!(newcomers.homes.len() * 2 > newcomers.tried(), "{:?}", newcomers.failed);
    assert!(calmly.homes.len() * 100 >= calmly.tried() * 95, "{:?}", calmly.failed);
    assert_eq!(moved(&newcomers.homes, &recorded), []);
    assert_eq!(moved(&calmly.homes, &recorded), []);
}

/// The connections of those of the clients, by number, who get one within moments and are answered on it.
fn connect_all(site: &Site, clients: Range<usize>) -> Vec<Connection> {
    let next = AtomicUsize::new(clients.start);
    let open = Mutex::new(Vec::new());
    let connect = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if !clients.contains(&number) {
                return;
            }
            let quickly = Duration::from_millis(300);
            let Ok(mut connection) = Connection::open(client_address(number), Site::HYPERSPACE, quickly)
            else {
                continue;
            };
            // Only now it is established for the balancer too: until then, another's SYN may take its port.
            connection.set_patience(PATIENCE).unwrap();
            if connection.who().is_ok() {
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
    open.into_inner().unwrap()
}

fn few_ports() -> Wanted {
    Wanted { node: "  snat_ports: 20000-20063\n".to_owned(), ..Wanted::default() }
}

#[test]
fn exhausted_snat_ports_come_back_seconds_after_their_connections() {
    let site = Site::plain(Turn::shared(), &few_ports()).unwrap();
    let open = connect_all(&site, 0..400);
    assert!(open.len() > 180, "{}", open.len());
    drop(open);
    assert_eq!(connect_all(&site, 1000..1010).len(), 0, "ports were given again at once");
    let (_, took) = until("ports are given again", Duration::from_secs(20), || {
        Ok((!connect_all(&site, 1000..1010).is_empty()).then_some(()))
    })
    .unwrap();
    println!("ports came back after {took:?}");
    thread::sleep(Duration::from_secs(3));
    assert!(connect_all(&site, 2000..2400).len() > 150);
}

#[test]
fn clients_that_come_faster_than_ports_rest_are_all_served() {
    let site = Site::plain(Turn::shared(), &few_ports()).unwrap();
    // Servers close first: each port that comes again finds its server in TIME-WAIT.
    let ask = |number| {
        thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        client::who_answers(client_address(number), Site::HYPERSPACE).map(|_| start.elapsed())
    };
    let asked: Vec<_> = site.in_ns(Ns::Client, || (0..500).map(ask).collect()).unwrap();
    let failed: Vec<_> = asked.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let slow = asked.iter().flatten().filter(|took| took.as_millis() > 500).count();
    println!("500 connections by 192 ports; {slow} had to send their SYN again");
    assert_eq!(records::stats(&site).unwrap().reason("ports-exhausted").unwrap(), 0);
}

#[test]
fn exhausted_snat_ports_are_counted_and_harm_only_new_connections_to_that_server() {
    const PORTS: u64 = 64;
    let site = Site::plain(Turn::shared(), &few_ports()).unwrap();
    let mut open = connect_all(&site, 0..400);
    let servers: Vec<Server> = records::ask(&site, &["server", "show", "Hyperspace"]).unwrap();
    let counts: Vec<u64> = servers.iter().map(|server| server.connections).collect();
    let exhausted = records::stats(&site).unwrap().reason("ports-exhausted").unwrap();
    println!("400 clients, {PORTS} ports: {counts:?} connections open, ports-exhausted {exhausted}");
    assert!(exhausted > 0);
    assert!(site.daemon_log().contains("no SNAT port was free"), "{}", site.daemon_log());
    assert!(counts.iter().all(|count| *count <= PORTS), "{counts:?}");
    assert!(counts.iter().all(|count| *count >= PORTS - 2), "{counts:?}");
    let shown: Value = records::ask(&site, &["server", "show", "Hyperspace/Hyperspace_Srv_1"]).unwrap();
    assert_eq!((&shown["snat_ports"]["all"], &shown["snat_ports"]["in_use"]), (&json!(PORTS), &json!(PORTS)));

    // Everyone who is in goes on, each on a server of its own choice.
    let mut homes_of_open = Homes::new();
    for connection in &mut open {
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
