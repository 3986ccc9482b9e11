//! What breaks: a real server, its cable, the daemon.
#![cfg(test)]

use std::{
    collections::BTreeMap,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use tests::{
    e2e::{
        Connection, End, Homes, Site, Turn, Wanted,
        crowd::{clients_of, moved, spread},
        downloads::Downloads,
        homes, kernel,
        records::{self, Sticky},
        site::said,
        until,
    },
    lab::{LabOptions, Ns, Port443, Signal, client, client_address},
};

const PATIENCE: Duration = Duration::from_secs(60);
const CHECKS: &str = "    health_check: { kind: tcp, interval: 500ms, timeout: 400ms, fall: 3, rise: 2 }\n";
const VICTIM: &str = "Hyperspace_Srv_1";
const VICTIM_NAME: &str = "Hyperspace/Hyperspace_Srv_1";

fn quickly_checked() -> Site {
    let wanted = Wanted { hyperspace_more: CHECKS.to_owned(), ..Wanted::default() };
    let site = Site::plain(Turn::shared(), &wanted).unwrap();
    // Its first verdict is not to be the one that is waited for.
    site.wait_for_health(VICTIM_NAME, "up", PATIENCE).unwrap();
    site
}

/// An open connection of a client, on which its server has answered once.
fn opened(site: &Site, client: IpAddr) -> (Connection, String) {
    let open = || {
        let mut connection = Connection::open(client, Site::HYPERSPACE, PATIENCE).unwrap();
        let home = connection.who().unwrap();
        (connection, home)
    };
    site.in_ns(Ns::Client, open).unwrap()
}

/// Open connections of a client of the victim, and of one of each other server.
fn one_of_each(site: &Site, known: &Homes) -> (Connection, Vec<Connection>) {
    let mut of_victim = None;
    let mut others = Vec::new();
    for label in spread(known).into_keys() {
        let (connection, home) = opened(site, clients_of(known, label).next().unwrap());
        assert_eq!(home, label);
        if label == VICTIM {
            of_victim = Some(connection);
        } else {
            others.push(connection);
        }
    }
    assert_eq!(others.len(), 2);
    (of_victim.unwrap(), others)
}

/// Those who were not the victim's are where they were, those who were are elsewhere.
fn assert_only_the_victims_moved(before: &Homes, after: &Homes) {
    for (client, from, to) in moved(before, after) {
        assert_eq!(from, VICTIM, "{client} moved from {from} to {to}");
    }
    let left: Vec<IpAddr> = clients_of(after, VICTIM).collect();
    assert_eq!(left, Vec::<IpAddr>::new());
}

#[test]
fn a_killed_servers_clients_land_elsewhere_and_nobody_else_moves() {
    let mut site = quickly_checked();
    let before = homes(&site, 0..120, Site::HYPERSPACE).unwrap();
    let (mut of_victim, mut others) = one_of_each(&site, &before);
    let waiting = clients_of(&before, VICTIM).nth(1).unwrap();
    let index = site.index(VICTIM).unwrap();

    let killed = Instant::now();
    site.stop_nginx(index).unwrap();
    // Its kernel ends what it had open, and the balancer lets that through.
    let end = of_victim.wait_for_end(PATIENCE).unwrap();
    assert_ne!(end, End::Open);
    println!("the open connection ended after {:?}: {end:?}", killed.elapsed());
    let (home, _) = until("a client of the killed server lands elsewhere", PATIENCE, || {
        let to = Site::HYPERSPACE;
        let home = site.in_ns(Ns::Client, || client::who_answers(waiting, to))??;
        Ok(Some(home))
    })
    .unwrap();
    println!("a client of the killed server was answered by {home} after {:?}", killed.elapsed());
    assert_ne!(home, VICTIM);

    let after = homes(&site, 0..120, Site::HYPERSPACE).unwrap();
    assert_only_the_victims_moved(&before, &after);
    let new = homes(&site, 200..300, Site::HYPERSPACE).unwrap();
    assert_eq!(clients_of(&new, VICTIM).count(), 0);
    for connection in &mut others {
        connection.who().unwrap();
    }

    site.start_nginx(index).unwrap();
    let took = site.wait_for_health(VICTIM_NAME, "up", PATIENCE).unwrap();
    println!("up again after {took:?}");
    let again = homes(&site, 0..120, Site::HYPERSPACE).unwrap();
    assert_eq!(moved(&after, &again), []);
    assert_eq!(moved(&new, &homes(&site, 200..300, Site::HYPERSPACE).unwrap()), []);
    let unknown = homes(&site, 300..400, Site::HYPERSPACE).unwrap();
    assert!(clients_of(&unknown, VICTIM).count() > 0, "{:?}", spread(&unknown));
}

#[test]
fn a_silent_client_of_a_server_that_vanished_is_reset() {
    let site = quickly_checked();
    let before = homes(&site, 0..60, Site::HYPERSPACE).unwrap();
    let (mut of_victim, mut others) = one_of_each(&site, &before);
    let index = site.index(VICTIM).unwrap();
    let pulled = Instant::now();
    site.plug(Ns::Server(index), false).unwrap();
    let down = site.wait_for_health(VICTIM_NAME, "down", PATIENCE).unwrap();
    let end = of_victim.wait_for_end(PATIENCE).unwrap();
    let took = pulled.elapsed();
    println!("down after {down:?}, {end:?} after {took:?}, without a word from the client");
    assert_eq!(end, End::Reset, "{:?}", records::stats(&site).unwrap().reasons);
    for connection in &mut others {
        connection.who().unwrap();
    }
    let after = homes(&site, 0..60, Site::HYPERSPACE).unwrap();
    assert_only_the_victims_moved(&before, &after);
    site.plug(Ns::Server(index), true).unwrap();
    site.wait_for_health(VICTIM_NAME, "up", PATIENCE).unwrap();
    assert_eq!(moved(&after, &homes(&site, 0..60, Site::HYPERSPACE).unwrap()), []);
}

#[test]
fn a_talking_client_of_a_server_that_vanished_is_reset_at_its_next_word() {
    let site = quickly_checked();
    let before = homes(&site, 0..60, Site::HYPERSPACE).unwrap();
    let (mut of_victim, _others) = one_of_each(&site, &before);
    let index = site.index(VICTIM).unwrap();
    let pulled = Instant::now();
    site.plug(Ns::Server(index), false).unwrap();
    let answer = of_victim.get("/").unwrap_err();
    println!("after {:?}: {answer:#}", pulled.elapsed());
    assert!(format!("{answer:#}").contains("reset"), "{answer:#}");
    let counted = records::stats(&site).unwrap();
    assert!(counted.reason("reset-server-gone").unwrap() > 0, "{:?}", counted.reasons);
}

/// Where the records lead.
fn recorded(sticky: &BTreeMap<IpAddr, Sticky>) -> Homes {
    sticky.iter().map(|(client, record)| (*client, record.server.clone())).collect()
}

#[test]
fn the_daemons_death_is_not_felt_by_200_downloads_nor_by_new_clients() {
    const DOWNLOADS: usize = 200;
    let options = LabOptions { port_443: Port443::Plain, big_bytes: 640 * 1024, ..LabOptions::default() };
    let mut site = Site::with(Turn::shared(), options, &Wanted::default()).unwrap();
    let known = homes(&site, 1000..1100, Site::HYPERSPACE).unwrap();
    let attached = kernel::attached(&site).unwrap();
    let downloads = Downloads::start(&site, 0..DOWNLOADS, Site::HYPERSPACE).unwrap();
    thread::sleep(Duration::from_secs(2));
    let before = records::stats(&site).unwrap();
    let sticky_before = recorded(&records::sticky(&site, "Hyperspace").unwrap());
    assert_eq!(sticky_before.len(), DOWNLOADS + 100);

    site.kill_daemon(Signal::SIGKILL).unwrap();
    let (bytes, whole) = downloads.progress();
    println!(
        "killed with {} of {DOWNLOADS} downloads running, {bytes} of {whole} bytes there",
        downloads.running()
    );
    assert_eq!(downloads.running(), DOWNLOADS);
    assert_eq!(kernel::attached(&site).unwrap(), attached);
    // New connections of known and unknown clients, and every reading command, without a daemon.
    assert_eq!(moved(&known, &homes(&site, 1000..1100, Site::HYPERSPACE).unwrap()), []);
    let unknown = homes(&site, 1100..1200, Site::HYPERSPACE).unwrap();
    assert_eq!(spread(&unknown).len(), 3);
    for command in [
        &["vip", "show"][..],
        &["server", "show"],
        &["sticky", "show"],
        &["sticky", "lookup", "10.85.0.1"],
        &["flow", "show"],
        &["flow", "count"],
        &["map", "list"],
        &["map", "dump", "SERVERS"],
        &["prog", "show"],
        &["stats"],
        &["explain", "10.85.0.1"],
    ] {
        let output = site.cli(command).unwrap();
        assert!(output.status.success(), "{command:?}: {}", said(&output));
    }
    let refused = site.cli(&["server", "drain", VICTIM_NAME]).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    println!("a change without a daemon: {}", said(&refused));

    site.start_daemon(&[]).unwrap();
    assert!(downloads.running() > 0, "the downloads were over before the daemon was back");
    assert_eq!(kernel::attached(&site).unwrap(), attached);
    let after = records::stats(&site).unwrap();
    assert_eq!(before.that_fell(&after), []);
    assert!(after.reason("forwarded").unwrap() > before.reason("forwarded").unwrap());
    let sticky_after = recorded(&records::sticky(&site, "Hyperspace").unwrap());
    assert_eq!(moved(&sticky_before, &sticky_after), []);
    assert_eq!(sticky_after.len(), DOWNLOADS + 200);
    site.wait_until_reachable().unwrap();
    assert_eq!(moved(&known, &homes(&site, 1000..1100, Site::HYPERSPACE).unwrap()), []);

    assert_eq!(downloads.finish(), Vec::<String>::new());
    println!("{DOWNLOADS} downloads came whole; program and link still {attached:?}");
    let again = homes(&site, 0..DOWNLOADS, Site::HYPERSPACE).unwrap();
    assert_eq!(moved(&sticky_before, &again), []);
    let redirect = site
        .curl(client_address(1), "http://192.168.85.150/", &["-o", "/dev/null", "-w", "%{http_code}"])
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&redirect), "301");
}
