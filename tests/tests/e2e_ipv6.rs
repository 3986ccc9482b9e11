//! What is served over IPv6, with the real program on the interface.
#![cfg(test)]

use std::fs;

use serde_json::Value;
use tests::{
    e2e::{Site, Turn, Wanted, records},
    lab::{HYPERSPACE, Ns, client_address},
};

const REDIRECT: &str =
    "  - { label: Six, address: fd85::150, ports: [80], protocol: http, force_https: true }\n";

/// A site whose balancer and client have IPv6 addresses, and whose configuration has a redirect at fd85::150.
fn site() -> Site {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    site.ip(Ns::Lb, "addr add fd85::10/64 dev eth0 nodad\n").unwrap();
    site.ip(Ns::Client, "addr add fd85::100/64 dev eth0 nodad\n").unwrap();
    let file = site.places().dir.join("six.yaml");
    fs::write(&file, Wanted::default().yaml() + REDIRECT).unwrap();
    site.done(&["config", "apply", file.to_str().unwrap()]).unwrap();
    site
}

#[test]
fn an_ipv6_redirect_is_served_beside_the_balanced_services() {
    let site = site();
    let mut curl = site.command(Ns::Client, "curl", ["-6", "-sgi", "--retry-connrefused", "--retry", "5"]);
    let output = curl.arg("http://[fd85::150]/a?b=c").output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(answer.starts_with("HTTP/1.1 301 "), "{answer}");
    assert!(answer.to_lowercase().contains("\r\nlocation: https://[fd85::150]/a?b=c\r\n"), "{answer}");
    site.who_answers(client_address(1), HYPERSPACE, 443).unwrap();

    let services: Vec<Value> = records::ask(&site, &["vip", "show"]).unwrap();
    assert!(services.iter().any(|service| service["address"] == "fd85::150"), "{services:?}");
    let findings: Vec<Value> = records::ask(&site, &["doctor"]).unwrap();
    let six: Vec<&Value> = findings.iter().filter(|finding| finding["check"] == "ipv6").collect();
    assert!(!six.is_empty() && six.iter().all(|finding| finding["status"] == "ok"), "{six:?}");
}
