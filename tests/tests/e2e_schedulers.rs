//! Schedulers that count, and slow start, with real servers and clients.
#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{
    e2e::{
        Connection, Site, Turn, Wanted, ask_each,
        crowd::{clients_of, moved, spread},
        homes, records, until,
    },
    lab::{Ns, client_address},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than a slow start of these tests.
const GROWN_WITHIN: Duration = Duration::from_secs(120);
const SRV_1: &str = "Hyperspace_Srv_1";

/// Hyperspace and MyChart with a scheduler each.
fn site(hyperspace: &str, mychart: &str) -> Site {
    let wanted = Wanted {
        hyperspace_more: format!("    {hyperspace}\n"),
        mychart_more: format!("    {mychart}\n"),
        ..Wanted::default()
    };
    Site::plain(Turn::shared(), &wanted).unwrap()
}

/// Who answered each client, if it was one and the same server on all of its connections.
fn one_server_each(site: &Site, clients: std::ops::Range<usize>, to: SocketAddr) -> BTreeMap<IpAddr, String> {
    let answers = ask_each(site, clients, 20, to).unwrap();
    answers
        .into_iter()
        .map(|(client, told)| {
            let told: BTreeSet<String> = told.into_iter().map(Result::unwrap).collect();
            assert_eq!(told.len(), 1, "{client} was answered by {told:?}");
            (client, told.into_iter().collect())
        })
        .collect()
}

fn open(site: &Site, clients: std::ops::Range<usize>, to: SocketAddr) -> Vec<Connection> {
    let open = || clients.map(|n| Connection::open(client_address(n), to, PATIENCE)).collect();
    let opened: anyhow::Result<Vec<Connection>> = site.in_ns(Ns::Client, open).unwrap();
    opened.unwrap()
}

/// What the data path counts as open at each server.
fn counted(site: &Site) -> BTreeMap<String, u64> {
    let rows: Vec<Value> = records::ask(site, &["map", "dump", "SERVER_LOADS"]).unwrap();
    rows.iter()
        .map(|row| (row["server"].as_str().unwrap().to_owned(), row["open"].as_u64().unwrap()))
        .collect()
}

/// The weight in force of each server, in thousandths.
fn weight(site: &Site, server: &str) -> u64 {
    let rows: Vec<Value> = records::ask(site, &["map", "dump", "SERVER_LOADS"]).unwrap();
    rows.iter().find(|row| row["server"] == *server).map_or(0, |row| row["weight"].as_u64().unwrap())
}

#[test]
fn round_robin_spreads_clients_exactly_and_keeps_each_on_its_server() {
    let site = site("scheduler: round-robin", "scheduler: round-robin");
    for (to, servers) in [(Site::HYPERSPACE, 3), (Site::MYCHART, 2)] {
        let homes = one_server_each(&site, 0..300, to);
        let counts = spread(&homes);
        println!("300 clients by round-robin: {counts:?}");
        assert_eq!(counts.len(), servers);
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(most - least <= 1, "{counts:?}");
    }
    let explained = site.done(&["explain", "10.99.0.1", "--vip", "Hyperspace"]).unwrap();
    assert!(explained.contains("it is the turn of Hyperspace_Srv_"), "{explained}");
}

#[test]
fn least_conn_sends_new_clients_to_the_servers_with_fewer_connections() {
    let site = site("scheduler: least-conn", "scheduler: source-hash");
    let mut held = open(&site, 0..150, Site::HYPERSPACE);
    let mut homes: BTreeMap<IpAddr, String> = BTreeMap::new();
    for connection in &mut held {
        homes.insert(connection.client, connection.who().unwrap());
    }
    let counts = spread(&homes);
    println!("150 clients that stay: {counts:?}");
    assert!(counts.values().all(|count| (44..=56).contains(count)), "{counts:?}");

    // All but those of the first server go: it is now the fullest, by far.
    held.retain(|connection| homes[&connection.client] == SRV_1);
    let ended = || {
        let open = counted(&site);
        let of = |server: &str| open.iter().find(|(name, _)| name.ends_with(server)).map(|(_, open)| *open);
        Ok((of("Srv_2") == Some(0) && of("Srv_3") == Some(0)).then_some(of("Hyperspace_Srv_1")))
    };
    let (first, _) = until("the counts follow the connections", PATIENCE, ended).unwrap();
    assert_eq!(first, Some(held.len() as u64));
    let new = one_server_each(&site, 1000..1200, Site::HYPERSPACE);
    let counts = spread(&new);
    println!("200 new ones, with {} connections on the first server: {counts:?}", held.len());
    assert!(clients_of(&new, SRV_1).count() <= 2, "{counts:?}");

    let again = tests::e2e::homes(&site, 0..150, Site::HYPERSPACE).unwrap();
    assert_eq!(moved(&homes, &again), [], "a known client asks no scheduler");
}

#[test]
fn counts_survive_the_daemon_and_are_made_good_after_it() {
    let mut site = site("scheduler: least-conn", "scheduler: round-robin");
    let held = open(&site, 0..60, Site::HYPERSPACE);
    let before = counted(&site);
    assert_eq!(before.values().sum::<u64>(), 60, "{before:?}");
    site.kill_daemon(Signal::SIGKILL).unwrap();
    let more = open(&site, 60..90, Site::HYPERSPACE);
    site.start_daemon(&[]).unwrap();
    site.wait_until_reachable().unwrap();
    assert_eq!(counted(&site).values().sum::<u64>(), 90, "the program counts without the daemon");
    // As after an older version, which had no such maps.
    site.kill_daemon(Signal::SIGKILL).unwrap();
    for map in ["SERVER_LOADS", "TURNS", "PICKS"] {
        fs::remove_file(site.places().pins.join("maps").join(map)).unwrap();
    }
    site.start_daemon(&[]).unwrap();
    let all = || Ok((counted(&site).values().sum::<u64>() == 90).then_some(()));
    until("the connections of before are counted", PATIENCE, all).unwrap();
    drop((held, more));
    let gone = || Ok((counted(&site).values().sum::<u64>() == 0).then_some(()));
    until("no connection is counted", PATIENCE, gone).unwrap();
}

#[test]
fn a_returning_server_takes_few_new_clients_at_first_and_its_share_in_the_end() {
    // One starts so slowly that it stays at its first step, the other so fast that its end can be waited for.
    let site = site("slow_start: 1h", "scheduler: round-robin\n    slow_start: 12s");
    let known = homes(&site, 0..300, Site::HYPERSPACE).unwrap();
    for server in ["Hyperspace/Hyperspace_Srv_1", "MyChart/MyChart_Srv_1"] {
        site.done(&["server", "drain", server]).unwrap();
        site.done(&["server", "online", server]).unwrap();
    }
    assert_eq!(weight(&site, SRV_1), 10_000, "a tenth of 100, in thousandths");
    let mut seen = vec![0];
    let grown = || {
        let now = weight(&site, "MyChart_Srv_1");
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        Ok((now == 100_000).then_some(()))
    };
    until("the server has its whole weight", GROWN_WITHIN, grown).unwrap();
    println!("weights on the way: {seen:?}");
    assert!(seen.is_sorted() && seen.len() >= 4, "{seen:?}");
    let in_turn = homes(&site, 0..60, Site::MYCHART).unwrap();
    assert_eq!(spread(&in_turn).values().max(), Some(&30), "{:?}", spread(&in_turn));

    let new = homes(&site, 1000..1600, Site::HYPERSPACE).unwrap();
    let few = clients_of(&new, SRV_1).count();
    println!("of 600 new clients {few} go to the server that has just returned");
    // A tenth in 2.1 is 29, with a standard deviation of 5.
    assert!((9..=49).contains(&few), "{few}");
    assert_eq!(moved(&known, &homes(&site, 0..300, Site::HYPERSPACE).unwrap()), []);
    let log = site.daemon_log();
    assert!(log.contains("MyChart/MyChart_Srv_1 has its whole share of new clients"), "{log}");
}
