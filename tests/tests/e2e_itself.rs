//! The end-to-end tests' own tools notice what they are there to notice: no balancer runs here.
#![cfg(test)]

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use tests::{
    e2e::{Connection, End, Site, Talkers, Turn, downloads::Downloads, far},
    lab::{LabOptions, Ns, Port443, client_address},
};

fn site(big_bytes: u64) -> Site {
    let options = LabOptions { port_443: Port443::Plain, big_bytes, ..LabOptions::default() };
    Site::without_daemon(Turn::shared(), options).unwrap()
}

fn first_server(site: &Site) -> SocketAddr {
    SocketAddr::from((site.host(Ns::Server(0)).unwrap().address, 443))
}

#[test]
fn talkers_and_downloads_notice_when_their_server_dies() {
    // More than a server's kernel takes of its hands.
    let mut site = site(8 << 20);
    let to = first_server(&site);
    let talkers = Talkers::start(&site, 0..20, to).unwrap();
    let downloads = Downloads::start(&site, 0..20, to).unwrap();
    let mut idle = site
        .in_ns(Ns::Client, || Connection::open(client_address(1), to, Duration::from_secs(60)))
        .unwrap()
        .unwrap();
    idle.who().unwrap();
    assert_eq!(idle.wait_for_end(Duration::from_millis(300)).unwrap(), End::Open);
    assert_eq!(downloads.running(), 20);
    site.stop_nginx(0).unwrap();
    assert_ne!(idle.wait_for_end(Duration::from_secs(60)).unwrap(), End::Open);
    let talked = talkers.stop().unwrap();
    assert_eq!(talked.broken.len(), 20, "{:?}", talked.broken);
    assert!(talked.exchanges >= 20);
    assert_eq!(downloads.finish().len(), 20);
}

#[test]
fn talkers_and_downloads_of_a_server_that_lives_come_whole() {
    let site = site(100 * 1024);
    let to = first_server(&site);
    let talkers = Talkers::start(&site, 0..20, to).unwrap();
    let downloads = Downloads::start(&site, 0..20, to).unwrap();
    assert_eq!(downloads.finish(), Vec::<String>::new());
    let talked = talkers.stop().unwrap();
    assert_eq!((talked.broken, talked.connections.len()), (Vec::new(), 20));
    // How often, within a time that depends on the machine, is no question here.
    assert!(talked.exchanges >= 20, "{}", talked.exchanges);
}

#[test]
fn a_far_client_depends_on_path_mtu_discovery() {
    let mut site = site(4 << 20);
    let far = far::add(&mut site).unwrap();
    site.ip(Ns::Server(0), "route add 10.99.0.0/24 via 192.168.85.1\n").unwrap();
    let known_path = || {
        let mut ip = site.command(Ns::Server(0), "ip", ["route", "get", &far::FAR_CLIENT.to_string()]);
        String::from_utf8_lossy(&ip.output().unwrap().stdout).into_owned()
    };
    assert!(!known_path().contains("mtu"), "{}", known_path());
    let mut curl = site.command(far.client, "curl", ["-sSf", "-o", "/dev/null", "--max-time", "20"]);
    let output = curl.arg(format!("http://{}/big", first_server(&site))).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(known_path().contains("mtu 1400"), "{}", known_path());
}

#[test]
fn a_test_that_is_alone_waits_until_no_other_runs() {
    static RUNNING: AtomicBool = AtomicBool::new(false);
    let shared = Turn::shared();
    let alone = thread::spawn(|| {
        let _alone = Turn::alone();
        RUNNING.store(true, Ordering::SeqCst);
    });
    thread::sleep(Duration::from_millis(200));
    assert!(!RUNNING.load(Ordering::SeqCst));
    drop(shared);
    alone.join().unwrap();
    assert!(RUNNING.load(Ordering::SeqCst));
}
