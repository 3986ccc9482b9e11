//! A virtual service on several ports.
#![cfg(test)]

use std::{fs, time::Duration};

use serde_json::Value;
use tests::{
    e2e::{Connection, End, Homes, Site, Turn, Wanted, crowd::moved, homes, records},
    lab::{Ns, client_address},
};

const PATIENCE: Duration = Duration::from_secs(60);
const ADDRESS: [u8; 4] = [192, 168, 85, 152];

/// Hyperspace, MyChart, and a third service on these ports, with two of Hyperspace's servers.
fn write_with_print(site: &Site, ports: &str) -> String {
    write_with(site, ports, "")
}

/// The same, with this among the third service's settings.
fn write_with(site: &Site, ports: &str, more: &str) -> String {
    let file = site.config_path().with_file_name("print.yaml");
    let print = format!(
        "  - label: Print\n    address: 192.168.85.152\n    ports: {ports}\n{more}    real_servers:\n      - {{ label: Print_1, \
         address: 192.168.85.201 }}\n      - {{ label: Print_2, address: 192.168.85.202 }}\n"
    );
    fs::write(&file, Wanted::default().yaml() + &print).unwrap();
    file.display().to_string()
}

fn apply(site: &Site, file: &str) {
    site.done(&["config", "apply", file]).unwrap();
    site.wait_until_reachable().unwrap();
}

fn homes_on(site: &Site, port: u16) -> Homes {
    homes(site, 0..60, (ADDRESS, port).into()).unwrap()
}

fn open(site: &Site, number: usize, port: u16) -> Connection {
    let to = (ADDRESS, port).into();
    site.in_ns(Ns::Client, || {
        let mut connection = Connection::open(client_address(number), to, PATIENCE).unwrap();
        connection.who().unwrap();
        connection
    })
    .unwrap()
}

fn planned_resets(site: &Site, file: &str) -> Vec<Value> {
    let plan: Value = records::ask(site, &["config", "plan", file]).unwrap();
    plan["resets"].as_array().unwrap().clone()
}

#[test]
fn ports_come_and_go_and_a_client_has_one_server_on_all_of_them() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    apply(&site, &write_with_print(&site, "[443]"));
    let known = homes_on(&site, 443);
    let mut kept = open(&site, 0, 443);

    let both = write_with_print(&site, "[443, 8080, 9000-9002]");
    assert_eq!(planned_resets(&site, &both), Vec::<Value>::new());
    apply(&site, &both);
    kept.who().unwrap();
    let vip: Value = records::ask(&site, &["vip", "show", "Print"]).unwrap();
    assert_eq!(vip["ports"], serde_json::json!([443, 8080, 9000, 9001, 9002]));
    let shown = site.done(&["server", "show", "Print"]).unwrap();
    assert!(shown.contains("192.168.85.201:443,8080,9000-9002 "), "{shown}");
    assert_eq!(moved(&known, &homes_on(&site, 8080)), [], "a record holds for every port");
    assert_eq!(moved(&known, &homes_on(&site, 443)), []);
    // Each server listens on 443 and 8080 only: what it says on another port, the client hears.
    let refused =
        site.in_ns(Ns::Client, || Connection::open(client_address(1), (ADDRESS, 9001).into(), PATIENCE));
    assert!(format!("{:#}", refused.unwrap().err().unwrap()).contains("refused"));

    let mut ends = open(&site, 0, 8080);
    let one = write_with_print(&site, "[443]");
    let resets = planned_resets(&site, &one);
    assert_eq!(resets.len(), 1, "{resets:?}");
    assert_eq!(resets[0]["connections"], 1, "{resets:?}");
    apply(&site, &one);
    kept.who().unwrap();
    assert!(ends.who().is_err());
    assert_ne!(ends.wait_for_end(PATIENCE).unwrap(), End::Open);
    assert_eq!(moved(&known, &homes_on(&site, 443)), []);
    kept.who().unwrap();
}

/// The third service with turns, and a record for each of its ports or for all of them.
fn write_scoped(site: &Site, scope: &str) -> String {
    let more = format!("    scheduler: round-robin\n    persistence: {{ scope: {scope} }}\n");
    write_with(site, "[443, 8080]", &more)
}

/// The ports that a client's records are for.
fn recorded_ports(site: &Site, number: usize) -> Vec<Value> {
    let client = client_address(number).to_string();
    let records: Value = records::ask(site, &["sticky", "lookup", &client]).unwrap();
    records.as_array().unwrap().iter().map(|record| record["port"].clone()).collect()
}

#[test]
fn with_a_record_for_each_port_they_stick_apart_and_a_change_of_that_moves_whom_the_plan_says() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    apply(&site, &write_scoped(&site, "port"));
    let (web, other) = (homes_on(&site, 443), homes_on(&site, 8080));
    let apart = moved(&web, &other).len();
    assert!(apart > 0, "turns give a client one server on each port");
    assert_eq!(moved(&web, &homes_on(&site, 443)), []);
    assert_eq!(moved(&other, &homes_on(&site, 8080)), []);
    assert_eq!(recorded_ports(&site, 0), [443, 8080]);
    let client = client_address(0).to_string();
    let why = site.done(&["explain", &client, "--vip", "Print"]).unwrap();
    assert!(why.contains("Print:443: ") && why.contains("Print:8080: "), "{why}");

    let mut kept = open(&site, 1, 443);
    let shared = write_scoped(&site, "service");
    let plan: Value = records::ask(&site, &["config", "plan", &shared]).unwrap();
    let moves: u64 =
        plan["moves"].as_array().unwrap().iter().map(|moves| moves["clients"].as_u64().unwrap()).sum();
    assert_eq!(moves, apart as u64, "of two records of one client one gives in: {plan}");
    apply(&site, &shared);
    kept.who().unwrap();
    let now = homes_on(&site, 443);
    assert_eq!(moved(&now, &homes_on(&site, 8080)), []);
    assert_eq!(moved(&web, &now).len() + moved(&other, &now).len(), apart);
    let first = client_address(1);
    assert_eq!(now[&first], web[&first], "the record with an open flow stays");
    assert_eq!(recorded_ports(&site, 0), [Value::Null]);

    apply(&site, &write_scoped(&site, "port"));
    kept.who().unwrap();
    assert_eq!(moved(&now, &homes_on(&site, 443)), []);
    assert_eq!(moved(&now, &homes_on(&site, 8080)), []);
    let moves_all = site.done(&["sticky", "move", &client, "Print/Print_1"]).unwrap();
    assert!(moves_all.contains(" to port 443 ") && moves_all.contains(" to port 8080 "), "{moves_all}");
    let forgets = site.done(&["sticky", "forget", &client, "--vip", "Print"]).unwrap();
    assert!(forgets.starts_with("3 sticky records"), "{forgets}");
}
