//! Clients and their servers: who lands where, who stays, and what the command line says of it.
#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use serde_json::Value;
use tests::{
    e2e::{
        Connection, Site, Turn, Wanted, ask_each,
        crowd::{clients_of, moved, spread},
        homes,
        records::{self, Flow, Server, Sticky, Vip},
        until,
    },
    lab::{Ns, client_address},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn weighted() -> Wanted {
    let mut wanted = Wanted::default();
    for (server, weight) in wanted.hyperspace.iter_mut().zip([100, 150, 250]) {
        server.weight = weight;
    }
    wanted.mychart[1].weight = 200;
    wanted
}

/// How far a server's share of the clients is from its share of the weight, as a part of the latter, at most.
fn farthest_from_weights(counts: &BTreeMap<&str, usize>, servers: &[(String, u16)]) -> f64 {
    let clients: usize = counts.values().sum();
    let weights: u32 = servers.iter().map(|(_, weight)| u32::from(*weight)).sum();
    let share = |(label, weight): &(String, u16)| {
        let due = f64::from(u32::try_from(clients).unwrap()) * f64::from(*weight) / f64::from(weights);
        let got = f64::from(u32::try_from(counts.get(label.as_str()).copied().unwrap_or(0)).unwrap());
        println!("  {label}: weight {weight}, {got:.0} clients, {due:.0} are due");
        (got / due - 1.0).abs()
    };
    servers.iter().map(share).fold(0.0, f64::max)
}

#[test]
fn all_of_a_clients_connections_go_to_one_server_and_the_clients_spread_by_weight() {
    let wanted = weighted();
    let site = Site::plain(Turn::shared(), &wanted).unwrap();
    for (to, servers) in [(Site::HYPERSPACE, &wanted.hyperspace), (Site::MYCHART, &wanted.mychart)] {
        let servers: Vec<(String, u16)> =
            servers.iter().map(|server| (server.label.clone(), server.weight)).collect();
        let answers = ask_each(&site, 0..300, 20, to).unwrap();
        assert_eq!(answers.len(), 300);
        for (client, told) in &answers {
            let told: Vec<&String> = told
                .iter()
                .map(|answer| answer.as_ref().unwrap_or_else(|error| panic!("{error:#}")))
                .collect();
            assert_eq!(told.len(), 20);
            let different: BTreeSet<&&String> = told.iter().collect();
            assert_eq!(different.len(), 1, "{client} was answered by {different:?}");
        }
        let homes = homes(&site, 0..3000, to).unwrap();
        println!("{to}:");
        let farthest = farthest_from_weights(&spread(&homes), &servers);
        println!("  farthest from its share: {:.1} %", farthest * 100.0);
        assert!(farthest <= 0.15, "{:?}", spread(&homes));
    }
}

#[test]
fn a_server_of_weight_zero_gets_no_new_client_and_keeps_the_known_ones() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    let known = homes(&site, 0..600, Site::HYPERSPACE).unwrap();
    let of_third = clients_of(&known, "Hyperspace_Srv_3").count();
    assert!(of_third > 100, "{:?}", spread(&known));
    site.done(&["server", "set", "Hyperspace/Hyperspace_Srv_3", "--weight", "0"]).unwrap();
    let again = homes(&site, 0..600, Site::HYPERSPACE).unwrap();
    assert_eq!(moved(&known, &again), []);
    let new = homes(&site, 600..1200, Site::HYPERSPACE).unwrap();
    assert_eq!(clients_of(&new, "Hyperspace_Srv_3").count(), 0, "{:?}", spread(&new));
    println!(
        "{of_third} known clients stayed on the server of weight 0; of 600 new ones: {:?}",
        spread(&new)
    );
    site.done(&["server", "set", "Hyperspace/Hyperspace_Srv_3", "--weight", "100"]).unwrap();
    let later = homes(&site, 1200..1500, Site::HYPERSPACE).unwrap();
    assert!(clients_of(&later, "Hyperspace_Srv_3").count() > 50, "{:?}", spread(&later));
    assert_eq!(moved(&new, &homes(&site, 600..1200, Site::HYPERSPACE).unwrap()), []);
}

#[test]
fn explain_names_the_server_that_then_answers() {
    let site = Site::plain(Turn::shared(), &weighted()).unwrap();
    homes(&site, 0..100, Site::HYPERSPACE).unwrap();
    // Known ones that the scheduler would now send elsewhere are the ones that could be got wrong.
    site.done(&["server", "drain", "Hyperspace/Hyperspace_Srv_2"]).unwrap();
    let predict = |number| {
        let client = client_address(number);
        (client, records::predicted(&site, client, "Hyperspace").unwrap())
    };
    let predicted: BTreeMap<IpAddr, String> = (0..200).map(predict).collect();
    let landed = homes(&site, 0..200, Site::HYPERSPACE).unwrap();
    assert_eq!(moved(&predicted, &landed), []);
    let draining = clients_of(&landed, "Hyperspace_Srv_2").count();
    println!(
        "200 of 200 predicted, 100 known, 100 unknown; {draining} on the draining server: {:?}",
        spread(&landed)
    );
    assert!(draining > 0);
}

#[test]
fn the_command_line_keeps_its_contract_while_clients_are_at_work() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    homes(&site, 0..50, Site::MYCHART).unwrap();
    let mut open: Vec<Connection> = site
        .in_ns(Ns::Client, || {
            (0..20)
                .map(|n| Connection::open(client_address(n), Site::HYPERSPACE, PATIENCE).unwrap())
                .collect()
        })
        .unwrap();
    let homes: BTreeMap<IpAddr, String> =
        open.iter_mut().map(|connection| (connection.client, connection.who().unwrap())).collect();

    let vips: Vec<Vip> = records::ask(&site, &["vip", "show"]).unwrap();
    let labels: Vec<&str> = vips.iter().map(|vip| vip.service.as_str()).collect();
    assert_eq!(labels, ["Hyperspace", "Hyperspace_redirect", "MyChart", "MyChart_redirect"]);
    let hyperspace: Vip = records::ask(&site, &["vip", "show", "Hyperspace"]).unwrap();
    assert_eq!(hyperspace.address, Site::HYPERSPACE.ip());
    assert_eq!((hyperspace.ports, hyperspace.connections), (vec![443], 20));
    assert_eq!((hyperspace.protocol.as_str(), hyperspace.forwarding.as_deref()), ("tcp", Some("snat")));
    assert_eq!((vips[1].ports.as_slice(), vips[1].protocol.as_str()), (&[80][..], "http"));
    // SYN, ACK and a request of each; SYN-ACK and an answer.
    assert!(hyperspace.packets_in >= 60 && hyperspace.packets_out >= 40);
    assert!(hyperspace.bytes_in > 20 * 100 && hyperspace.bytes_out > 20 * 100);

    let servers: Vec<Server> = records::ask(&site, &["server", "show"]).unwrap();
    assert_eq!(servers.len(), 5);
    for server in &servers {
        assert_eq!((server.port, server.weight), (443, 100));
        assert_eq!(server.state, "online");
        assert!(["up", "unknown"].contains(&server.health.as_str()), "{server:?}");
        let expected = clients_of(&homes, &server.server).count();
        assert_eq!(server.connections, u64::try_from(expected).unwrap(), "{server:?}");
    }
    let one: Server = records::ask(&site, &["server", "show", "MyChart/MyChart_Srv_2"]).unwrap();
    assert_eq!((one.service.as_str(), one.address.to_string().as_str()), ("MyChart", "192.168.85.211"));

    let sticky: Vec<Sticky> = records::ask(&site, &["sticky", "show"]).unwrap();
    assert_eq!(sticky.len(), 70);
    for record in sticky.iter().filter(|record| record.service == "Hyperspace") {
        assert_eq!(Some(&record.server), homes.get(&record.client), "{record:?}");
        assert_eq!((record.flows, record.expires_in, record.verified), (1, None, true));
        assert!(is_rfc3339(&record.made_at) && is_rfc3339(&record.last_used), "{record:?}");
    }
    for record in sticky.iter().filter(|record| record.service == "MyChart") {
        assert_eq!(record.flows, 0, "{record:?}");
        let left = record.expires_in.unwrap();
        assert!((3500..=3601).contains(&left), "{record:?}");
    }

    let filter = ["flow", "show", "--vip", "Hyperspace", "--state", "established"];
    let flows: Vec<Flow> = records::ask(&site, &filter).unwrap();
    assert_eq!(flows.len(), 20);
    for connection in &open {
        let port = connection.local_port().unwrap();
        let flow = flows.iter().find(|flow| (flow.client, flow.client_port) == (connection.client, port));
        let flow = flow.unwrap_or_else(|| panic!("no flow of {connection:?}"));
        assert_eq!(Some(&flow.server), homes.get(&flow.client));
        assert_eq!(flow.snat_address.unwrap().to_string(), "192.168.85.10");
        assert!((1024..32768).contains(&flow.snat_port.unwrap()), "{flow:?}");
        assert!(flow.age <= 60 && flow.idle <= flow.age, "{flow:?}");
    }

    let stats = records::stats(&site).unwrap();
    assert_eq!((stats.services.len(), stats.servers.len()), (4, 5));
    assert_eq!(stats.reason("new-by-scheduler").unwrap(), 70);
    assert_eq!(stats.reason("established").unwrap(), 70);
    let (table, sticky) = (stats.table("flows").unwrap(), stats.table("sticky").unwrap());
    assert!(table.used >= 20 && table.used <= table.capacity, "{table:?}");
    assert_eq!(sticky.used, 70);
}

#[test]
fn json_is_one_line_or_indented_as_asked_for() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    homes(&site, 0..10, Site::HYPERSPACE).unwrap();
    for command in [
        &["vip", "show"][..],
        &["server", "show"],
        &["sticky", "show"],
        &["flow", "show"],
        &["stats"],
        &["prog", "show"],
        &["map", "list"],
        &["explain", "10.85.0.1"],
        &["config", "show"],
    ] {
        let print = |format: &str| {
            let args: Vec<&str> = command.iter().copied().chain([format]).collect();
            site.done(&args).unwrap()
        };
        let (line, indented) = (print("-j"), print("-p"));
        assert_eq!(line.trim_end().lines().count(), 1, "{command:?}: {line}");
        assert!(indented.lines().count() > 2, "{command:?}: {indented}");
        assert!(indented.lines().any(|line| line.starts_with("  ")), "{command:?}: {indented}");
        let parsed: [Value; 2] = [line, indented].map(|text| serde_json::from_str(&text).unwrap());
        assert_eq!(same_fields(&parsed[0]), same_fields(&parsed[1]), "{command:?}");
        if command.get(1) == Some(&"show") && command[0] != "config" {
            assert!(parsed[0].is_array(), "{command:?}");
        }
    }
    let wrong = site.cli(&["server", "shoe"]).unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    let refused = site.cli(&["vip", "show", "Hyperspcae"]).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(complaint.contains("Hyperspace"), "{complaint}");
}

/// Every path of field names, without the values, which change from one call to the next.
fn same_fields(value: &Value) -> BTreeSet<String> {
    fn walk(value: &Value, path: &str, out: &mut BTreeSet<String>) {
        out.insert(path.to_owned());
        match value {
            Value::Array(items) => items.iter().for_each(|item| walk(item, &format!("{path}[]"), out)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    walk(value, &format!("{path}.{name}"), out);
                }
            }
            _ => {}
        }
    }
    let mut out = BTreeSet::new();
    walk(value, "", &mut out);
    out
}

/// Such as `2026-03-01T03:00:00Z`.
fn is_rfc3339(text: &str) -> bool {
    let digits = |range: std::ops::Range<usize>| {
        text.get(range).is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    text.len() >= 20
        && text.ends_with('Z')
        && text.as_bytes()[10] == b'T'
        && [0..4, 5..7, 8..10, 11..13, 14..16, 17..19].into_iter().all(digits)
}

#[test]
fn open_connections_are_counted_exactly_and_end_at_zero() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    // Clients with one to three connections each.
    let mut open: Vec<Connection> = site
        .in_ns(Ns::Client, || {
            let numbers = (0..90).flat_map(|n| std::iter::repeat_n(n, n % 3 + 1));
            numbers
                .map(|n| Connection::open(client_address(n), Site::HYPERSPACE, PATIENCE).unwrap())
                .collect()
        })
        .unwrap();
    assert_eq!(open.len(), 180);
    let mut at_server: BTreeMap<String, u64> = BTreeMap::new();
    let mut of_client: BTreeMap<IpAddr, u64> = BTreeMap::new();
    for connection in &mut open {
        *at_server.entry(connection.who().unwrap()).or_default() += 1;
        *of_client.entry(connection.client).or_default() += 1;
    }
    let count = || -> (BTreeMap<String, u64>, BTreeMap<IpAddr, u64>) {
        let servers: Vec<Server> = records::ask(&site, &["server", "show", "Hyperspace"]).unwrap();
        let sticky = records::sticky(&site, "Hyperspace").unwrap();
        (
            servers.into_iter().map(|server| (server.server, server.connections)).collect(),
            sticky.into_values().map(|record| (record.client, record.flows)).collect(),
        )
    };
    assert_eq!(count(), (at_server.clone(), of_client.clone()));
    for (label, connections) in &at_server {
        assert_eq!(site.established_at(label).unwrap(), *connections, "{label}");
    }
    println!("180 open, by the balancer and by the servers' own ss: {at_server:?}");

    // Half of them close.
    let closing = open.split_off(90);
    for connection in &closing {
        *of_client.get_mut(&connection.client).unwrap() -= 1;
    }
    drop(closing);
    at_server.values_mut().for_each(|connections| *connections = 0);
    for connection in &mut open {
        *at_server.get_mut(&connection.who().unwrap()).unwrap() += 1;
    }
    until("half are counted", PATIENCE, || {
        Ok((count() == (at_server.clone(), of_client.clone())).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?} instead of {:?}", count(), (&at_server, &of_client)));
    for (label, connections) in &at_server {
        assert_eq!(site.established_at(label).unwrap(), *connections, "{label}");
    }

    drop(open);
    let none = |(servers, clients): &(BTreeMap<String, u64>, BTreeMap<IpAddr, u64>)| {
        servers.values().chain(clients.values()).all(|count| *count == 0) && clients.len() == 90
    };
    until("nothing is counted", PATIENCE, || Ok(none(&count()).then_some(())))
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", count()));
    let vip: Vip = records::ask(&site, &["vip", "show", "Hyperspace"]).unwrap();
    assert_eq!(vip.connections, 0);
}
