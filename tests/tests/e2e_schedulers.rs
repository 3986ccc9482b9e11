//! Schedulers that count, and slow start, with real servers and clients.
#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde_json::Value;
use tests::{
    e2e::{
        Connection, Site, Turn, Wanted, ask_each,
        crowd::{clients_of, moved, spread},
        homes, records, until,
    },
    lab::{Ns, client_address},
};

const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than a slow start of these tests.
const GROWN_WITHIN: Duration = Duration::from_secs(30);
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
    // Where all four places that are looked at are its own: 1 in 81.
    assert!(clients_of(&new, SRV_1).count() <= 10, "{counts:?}");

    let again = tests::e2e::homes(&site, 0..150, Site::HYPERSPACE).unwrap();
    assert_eq!(moved(&homes, &again), [], "a known client asks no scheduler");
}

#[test]
fn counts_survive_the_daemon_and_are_made_good_after_it() {
    let mut site = site("scheduler: least-conn", "scheduler: round-robin");
    let held = open(&site, 0..60, Site::HYPERSPACE);
    let before = counted(&site);
    assert_eq!(before.values().sum::<u64>(), 60, "{before:?}");
    site.kill_daemon().unwrap();
    let more = open(&site, 60..90, Site::HYPERSPACE);
    site.start_daemon(&[]).unwrap();
    site.wait_until_reachable().unwrap();
    assert_eq!(counted(&site).values().sum::<u64>(), 90);
    drop((held, more));
    let gone = || Ok((counted(&site).values().sum::<u64>() == 0).then_some(()));
    until("no connection is counted", PATIENCE, gone).unwrap();
}

#[test]
fn a_returning_server_takes_more_and_more_new_clients_until_it_has_its_share() {
    let mut site =
        site("scheduler: source-hash\n    slow_start: 24s", "scheduler: round-robin\n    slow_start: 24s");
    let known = homes(&site, 0..300, Site::HYPERSPACE).unwrap();
    for service in ["Hyperspace/Hyperspace_Srv_1", "MyChart/MyChart_Srv_1"] {
        site.done(&["server", "drain", service]).unwrap();
        site.done(&["server", "online", service]).unwrap();
    }
    assert_eq!(weight(&site, SRV_1), 10_000, "a tenth of 100, in thousandths");
    let early = homes(&site, 1000..1600, Site::HYPERSPACE).unwrap();
    let in_turn = homes(&site, 0..63, Site::MYCHART).unwrap();
    let (few, turns) = (clients_of(&early, SRV_1).count(), clients_of(&in_turn, "MyChart_Srv_1").count());
    println!("of 600 new clients {few} go to the server that has just returned; in turn {turns} of 63");
    // A share of a tenth in 2.1 is 29; while this is measured, it may have grown to a quarter: 67, and 13 of 63.
    assert!((5..100).contains(&few), "{few}");
    assert!((3..=16).contains(&turns), "{turns}");
    assert_eq!(moved(&known, &homes(&site, 0..300, Site::HYPERSPACE).unwrap()), []);
    let mut seen = Vec::new();
    let grown = || {
        let now = weight(&site, SRV_1);
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        Ok((now == 100_000).then_some(()))
    };
    until("the server has its whole weight", GROWN_WITHIN, grown).unwrap();
    println!("weights on the way: {seen:?}");
    assert!(seen.is_sorted() && seen.len() >= 3, "{seen:?}");
    let late = homes(&site, 2000..2600, Site::HYPERSPACE).unwrap();
    let many = clients_of(&late, SRV_1).count();
    println!("of 600 later ones {many}");
    assert!((150..250).contains(&many), "{many}");
    assert_eq!(moved(&known, &homes(&site, 0..300, Site::HYPERSPACE).unwrap()), []);
    site.stop_daemon().unwrap();
}
