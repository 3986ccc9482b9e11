//! A UDP service with real sockets on both sides.
#![cfg(test)]

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;
use tests::{
    e2e::{Site, Turn, Wanted, records},
    lab::{Ns, client_address},
};

const SERVICE: ([u8; 4], u16) = ([192, 168, 85, 152], 53);

/// Says its name to everybody who asks.
struct Answering {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Answering {
    fn start(site: &Site, index: usize, name: &'static str) -> Self {
        let bound = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
        let socket = site.in_ns(Ns::Server(index), bound).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut question = [0; 512];
            while !told.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut question) {
                    let answer = [name.as_bytes(), b" ", &question[..length]].concat();
                    let _gone = socket.send_to(&answer, from);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn client(site: &Site, number: usize) -> UdpSocket {
    let bound = || UdpSocket::bind((client_address(number), 0)).unwrap();
    let socket = site.in_ns(Ns::Client, bound).unwrap();
    socket.connect(SocketAddr::from(SERVICE)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket
}

/// Who answers; asked again as a resolver would.
fn ask(socket: &UdpSocket, question: &str) -> String {
    let mut answer = [0; 512];
    for _ in 0..10 {
        socket.send(question.as_bytes()).unwrap();
        match socket.recv(&mut answer) {
            Ok(length) => {
                let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
                let (name, rest) = answer.split_once(' ').unwrap();
                assert_eq!(rest, question);
                return name.to_owned();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no answer to {question}");
}

fn site_with_dns() -> (Site, [Answering; 2]) {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    let answering = [Answering::start(&site, 1, "Dns_1"), Answering::start(&site, 2, "Dns_2")];
    let file = site.config_path().with_file_name("dns.yaml");
    let dns = "  - label: Dns\n    address: 192.168.85.152\n    ports: [53]\n    protocol: udp\n    real_servers:\n      \
               - { label: Dns_1, address: 192.168.85.201 }\n      - { label: Dns_2, address: 192.168.85.202 }\n";
    fs::write(&file, Wanted::default().yaml() + dns).unwrap();
    site.done(&["config", "apply", &file.display().to_string()]).unwrap();
    site.wait_until_reachable().unwrap();
    (site, answering)
}

#[test]
fn a_client_is_answered_by_one_server_from_all_its_ports_and_moves_only_when_it_must() {
    let (site, _answering) = site_with_dns();
    let vip: Value = records::ask(&site, &["vip", "show", "Dns"]).unwrap();
    assert_eq!((&vip["protocol"], &vip["idle_timeout"]), (&"udp".into(), &180.into()));
    let mut homes = Vec::new();
    for number in 0..30 {
        let sockets: Vec<UdpSocket> = (0..3).map(|_| client(&site, number)).collect();
        let home = ask(&sockets[0], "first");
        for (nth, socket) in sockets.iter().enumerate().flat_map(|pair| [pair, pair]) {
            assert_eq!(ask(socket, &format!("{number} on {nth}")), home);
        }
        homes.push((sockets, home));
    }
    assert!(["Dns_1", "Dns_2"].iter().all(|name| homes.iter().any(|(_, home)| home == name)));
    let sticky: Vec<Value> = records::ask(&site, &["sticky", "show", "--vip", "Dns"]).unwrap();
    assert_eq!(sticky.len(), 30, "who asked twice and was answered has a record");

    site.done(&["server", "drain", "Dns/Dns_1"]).unwrap();
    for (number, (_, home)) in homes.iter().enumerate() {
        assert_eq!(ask(&client(&site, number), "known"), *home);
    }
    site.done(&["server", "halt", "Dns/Dns_1"]).unwrap();
    for (sockets, _) in &homes {
        assert_eq!(ask(&sockets[1], "moved"), "Dns_2");
    }
}
