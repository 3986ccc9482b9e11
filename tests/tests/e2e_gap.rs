//! A gap: the program is off its interface while connections are open, and the host's own stack gets their packets.
#![cfg(test)]

use std::{net::SocketAddr, thread, time::Duration};

use serde_json::Value;
use tests::{
    e2e::{
        Site, Talkers, Turn, Wanted,
        crowd::moved,
        downloads::Downloads,
        homes,
        kernel::{self, attached, take_off},
        until,
    },
    lab::{
        Arms, Family, INTERFACE, LabOptions, Mode, Ns, Port443, Services, Signal, Topology,
        client::who_answers,
    },
};

const DOWNLOADS: usize = 100;
const GAP: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

fn site() -> Site {
    let options = LabOptions { port_443: Port443::Plain, big_bytes: 640 * 1024, ..LabOptions::default() };
    Site::with(Turn::shared(), options, &Wanted::default()).unwrap()
}

/// Downloads that have begun, and what `doctor` says of the firewall then.
fn begun(site: &Site) -> Downloads {
    let downloads = Downloads::start(site, 0..DOWNLOADS, Site::HYPERSPACE).unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(downloads.running(), DOWNLOADS);
    downloads
}

/// Doctor's finding about the firewall: its status and its sentence.
fn firewall(site: &Site) -> (String, String) {
    // Doctor fails when something else does; the finding is what counts.
    let output = site.cli(&["doctor", "-j"]).unwrap();
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut findings = findings.as_array().into_iter().flatten();
    let finding = findings.find(|finding| finding["check"] == "firewall").unwrap();
    let text = |field: &str| finding[field].as_str().unwrap().to_owned();
    (text("status"), text("finding"))
}

#[test]
fn two_seconds_without_the_program_break_no_download() {
    let mut site = site();
    let known = homes(&site, 1000..1050, Site::HYPERSPACE).unwrap();
    let downloads = begun(&site);
    let talkers = Talkers::start(&site, 2000..2020, Site::HYPERSPACE).unwrap();
    assert_eq!(firewall(&site).0, "ok");
    site.kill_daemon(Signal::SIGKILL).unwrap();
    take_off(&site).unwrap();
    thread::sleep(GAP);
    let (status, said) = firewall(&site);
    println!("{said}");
    assert_eq!(status, "ok");
    assert!(!said.contains(" 0 packets of clients") && !said.ends_with(" 0 of servers"), "{said}");
    let (before, whole) = downloads.progress();
    site.start_daemon(&[]).unwrap();
    attached(&site).unwrap();
    println!("{before} of {whole} bytes were there in the gap, {} downloads running", downloads.running());
    assert_eq!(downloads.running(), DOWNLOADS);
    assert_eq!(talkers.stop().unwrap().broken, Vec::<String>::new());
    assert_eq!(downloads.finish(), Vec::<String>::new());
    site.wait_until_reachable().unwrap();
    assert_eq!(moved(&known, &homes(&site, 1000..1050, Site::HYPERSPACE).unwrap()), []);
}

fn nat_site(topology: Topology) -> Site {
    let options =
        LabOptions { port_443: Port443::Plain, big_bytes: 640 * 1024, topology, ..LabOptions::default() };
    Site::serving(Turn::shared(), options, &Services::default().yaml(topology)).unwrap()
}

/// The balancer's host is the servers' router, too, and forwards what the program does not take.
#[test]
fn two_seconds_without_the_program_break_no_download_of_servers_that_know_clients() {
    for (family, arms) in
        [(Family::V4, Arms::One), (Family::V4, Arms::Two), (Family::V6, Arms::One), (Family::V6, Arms::Two)]
    {
        let topology = Topology { mode: Mode::Nat, family, arms, ..Topology::default() };
        let mut site = nat_site(topology);
        let downloads =
            Downloads::start(&site, 0..DOWNLOADS, SocketAddr::new(topology.hyperspace(), 443)).unwrap();
        thread::sleep(Duration::from_secs(1));
        assert_eq!(downloads.running(), DOWNLOADS);
        site.kill_daemon(Signal::SIGKILL).unwrap();
        take_off(&site).unwrap();
        thread::sleep(GAP);
        let (status, said) = firewall(&site);
        println!("{topology}: {said}");
        assert_eq!(status, "ok", "{said}");
        assert!(!said.ends_with(" 0 of servers"), "{said}");
        site.start_daemon(&[]).unwrap();
        attached(&site).unwrap();
        assert_eq!(downloads.finish(), Vec::<String>::new(), "{topology}");
    }
}

#[test]
fn who_speaks_with_a_server_that_knows_clients_by_way_of_the_host_is_answered() {
    let topology = Topology { mode: Mode::Nat, arms: Arms::Two, ..Topology::default() };
    let site = nat_site(topology);
    let server = SocketAddr::new(site.address(Ns::Server(0)).unwrap(), 443);
    let answer = site.in_ns(Ns::Client, || who_answers(site.client_address(0), server)).unwrap().unwrap();
    assert_eq!(answer, "Hyperspace_Srv_1");
    let nft = site.command(Ns::Lb, "nft", ["list", "set", "inet", "steadfast", "direct4"]).output().unwrap();
    let known = String::from_utf8_lossy(&nft.stdout).into_owned();
    assert!(known.contains(&format!("{} . {}", site.client_address(0), server.ip())), "{known}");
}

#[test]
fn without_the_firewall_table_the_same_gap_breaks_them() {
    let mut site = site();
    let downloads = begun(&site);
    site.kill_daemon(Signal::SIGKILL).unwrap();
    let nft = site.command(Ns::Lb, "nft", ["delete", "table", "inet", "steadfast"]).output().unwrap();
    assert!(nft.status.success(), "{nft:?}");
    assert_eq!(firewall(&site).0, "warn");
    take_off(&site).unwrap();
    thread::sleep(GAP);
    site.start_daemon(&[]).unwrap();
    let broken = downloads.finish();
    println!("{} of {DOWNLOADS} broke", broken.len());
    assert!(!broken.is_empty());
    // The daemon has made it again.
    until("the table is there", PATIENCE, || Ok((firewall(&site).0 == "ok").then_some(()))).unwrap();
}

#[test]
fn a_running_daemon_puts_the_program_back_and_keeps_the_table_in_step() {
    let site = site();
    let before = attached(&site).unwrap();
    let downloads = begun(&site);
    take_off(&site).unwrap();
    // The link that was detached may be pinned again for a moment.
    let by_another_link = || Ok(attached(&site).ok().filter(|after| after.link != before.link));
    let (after, took) = until("the program is back", PATIENCE, by_another_link).unwrap();
    println!("back after {took:?}: {before:?}, now {after:?}");
    assert_eq!(after.program, before.program);
    assert_eq!(kernel::xdp_on(&site, Ns::Lb, INTERFACE).unwrap(), Some(before.program));
    site.done(&["server", "add", "Hyperspace/New", "--address", "192.168.85.203"]).unwrap();
    until("the table has the new server", PATIENCE, || {
        let nft = site.command(Ns::Lb, "nft", ["list", "set", "inet", "steadfast", "servers4"]).output()?;
        Ok(String::from_utf8_lossy(&nft.stdout).contains("192.168.85.203 . 443").then_some(()))
    })
    .unwrap();
    let nft = site.command(Ns::Lb, "nft", ["list", "table", "inet", "steadfast"]).output().unwrap();
    let table = String::from_utf8_lossy(&nft.stdout).into_owned();
    assert!(table.contains("192.168.85.150 . 443") && !table.contains(". 80"), "{table}");
    assert_eq!(downloads.finish(), Vec::<String>::new());
}
