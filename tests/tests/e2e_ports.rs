//! A virtual service on several ports.
#![cfg(test)]

use std::{fs, time::Duration};

use serde_json::Value;
use tests::{
    e2e::{Connection, End, Homes, Site, Turn, Wanted, crowd::moved, homes, records},
    lab::{Ns, client_address},
};

const PATIENCE: Duration = Duration::from_secs(5);
const ADDRESS: [u8; 4] = [192, 168, 85, 152];

/// Hyperspace, MyChart, and a third service on these ports, with two of Hyperspace's servers.
fn write_with_print(site: &Site, ports: &str) -> String {
    let file = site.config_path().with_file_name("print.yaml");
    let print = format!(
        "  - label: Print\n    address: 192.168.85.152\n    ports: {ports}\n    real_servers:\n      - {{ label: Print_1, \
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
