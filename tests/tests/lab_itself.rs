//! The lab proves itself without the balancer: what other tests see there is the balancer's doing, not the lab's.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    panic,
    path::{Path, PathBuf},
    time::Duration,
};

use tests::lab::{
    CLIENT, INTERFACE, Lab, LabOptions, Ns, PLAIN_PORT, Places, Port443, RawSocket, SynFlood,
    arp_announcement, client, client_address, namespace_path,
};

/// SHA-256 of the MiB that every lab serves, from an independent rewriting of its generator.
const BIG_MIB: &str = "1cde7f4f929537f2ce8fcf9b8aa5409bcaeabdc86098ae923810bfe1ab273201";

/// For what must come, on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(60);

fn lab(port_443: Port443) -> Lab {
    Lab::new(LabOptions { port_443, ..LabOptions::default() }).expect("the lab comes up")
}

#[test]
fn the_client_reaches_every_server_by_https_and_by_http() {
    let mut lab = lab(Port443::Tls);
    lab.start_all_nginx().unwrap();
    let hosts: Vec<_> = lab.servers().cloned().collect();
    assert_eq!(hosts.len(), 5);
    for host in hosts {
        assert_eq!(lab.who_answers(CLIENT, host.address, 443).unwrap(), host.label);
        assert_eq!(lab.who_answers(CLIENT, host.address, PLAIN_PORT).unwrap(), host.label);
    }
}

#[test]
fn each_server_has_a_certificate_of_its_own_name() {
    let mut lab = lab(Port443::Tls);
    lab.start_nginx(0).unwrap();
    lab.start_nginx(4).unwrap();
    for index in [0, 4] {
        let host = lab.host(Ns::Server(index)).unwrap();
        let mut curl = lab.command(Ns::Client, "curl", ["-svk", "-o", "/dev/null"]);
        let output = curl.arg(format!("https://{}/", host.address)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(&format!("subject: CN={}", host.label)), "{said}");
    }
}

#[test]
fn a_server_sees_the_source_address_that_the_client_chose() {
    let mut lab = lab(Port443::Plain);
    lab.start_nginx(1).unwrap();
    let server = SocketAddr::from((lab.host(Ns::Server(1)).unwrap().address, 443));
    let seen: Vec<IpAddr> = lab
        .in_ns(Ns::Client, || {
            let see = |n| {
                let body = client::get(client_address(n), server, "/client", PATIENCE).unwrap();
                String::from_utf8(body).unwrap().trim_end().parse().unwrap()
            };
            (0..300).map(see).collect()
        })
        .unwrap();
    let chosen: Vec<IpAddr> = (0..300).map(client_address).collect();
    assert_eq!(seen, chosen);
    assert!(chosen.contains(&"10.85.1.44".parse().unwrap()));
}

#[test]
fn a_mebibyte_arrives_whole_over_tls_and_without_a_bad_checksum() {
    let mut lab = lab(Port443::Tls);
    lab.start_nginx(0).unwrap();
    let server = lab.host(Ns::Server(0)).unwrap().address;
    let captures = [Ns::Client, Ns::Server(0)].map(|ns| lab.capture(ns, "tcp port 443").unwrap());
    let digest = lab.download_sha256(client_address(5), &format!("https://{server}/big")).unwrap();
    assert_eq!(digest, BIG_MIB);
    assert_eq!(lab.big_sha256(), BIG_MIB);
    for capture in captures {
        let captured = capture.stop().unwrap();
        assert_eq!(captured.lost(), 0);
        assert_eq!(captured.bad_checksums().unwrap(), Vec::<String>::new());
        let bytes: usize = captured.packets().iter().map(Vec::len).sum();
        assert!(bytes > 1024 * 1024, "only {bytes} bytes were captured");
        let longest = captured.packets().iter().map(Vec::len).max().unwrap();
        assert!(longest <= 1514, "a packet of {longest} bytes never was on a wire");
    }
}

#[test]
fn a_wrong_checksum_is_noticed() {
    let lab = lab(Port443::Plain);
    let capture = lab.capture(Ns::Server(0), "icmp").unwrap();
    let server = lab.host(Ns::Server(0)).unwrap();
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(lab.host(Ns::Client).unwrap().mac(), server.mac())
        .ipv4(CLIENT.octets(), server.address.octets(), 64)
        .icmpv4_echo_request(1, 1)
        .write(&mut frame, b"steadfast")
        .unwrap();
    let last = frame.len() - 1;
    let socket = lab.raw_socket(Ns::Client).unwrap();
    socket.send(&frame).unwrap();
    frame[last] ^= 1;
    socket.send(&frame).unwrap();
    let captured = capture.stop_after(3).unwrap();
    assert_eq!(captured.bad_checksums().unwrap().len(), 1, "{:?}", captured.bad_checksums());
    // The right one and its answer, and the wrong one, which the server did not answer.
    assert_eq!(captured.packets().len(), 3);
}

#[test]
fn a_slow_download_takes_its_time_and_dies_with_its_server() {
    let mut lab = lab(Port443::Plain);
    lab.start_nginx(2).unwrap();
    let server = lab.host(Ns::Server(2)).unwrap().address;
    let mut curl = lab.command(Ns::Client, "curl", ["-sf", "-o", "/dev/null"]);
    let mut curl = curl.arg(format!("http://{server}:{PLAIN_PORT}/slow")).spawn().unwrap();
    // A MiB at 64 KiB/s is 16 s.
    std::thread::sleep(Duration::from_secs(1));
    assert!(curl.try_wait().unwrap().is_none(), "the slow download was quick");
    lab.stop_nginx(2).unwrap();
    assert!(!curl.wait().unwrap().success());
    assert!(lab.who_answers(CLIENT, server, PLAIN_PORT).is_err());
    lab.start_nginx(2).unwrap();
    assert_eq!(lab.who_answers(CLIENT, server, PLAIN_PORT).unwrap(), "Hyperspace_Srv_3");
}

#[test]
fn a_pulled_cable_is_silent_and_can_be_put_back() {
    let mut lab = lab(Port443::Plain);
    lab.start_nginx(0).unwrap();
    let to = SocketAddr::from((lab.host(Ns::Server(0)).unwrap().address, 443));
    let connect = || client::connect(CLIENT.into(), to, Duration::from_millis(700));
    lab.plug(Ns::Server(0), false).unwrap();
    let error = lab.in_ns(Ns::Client, connect).unwrap().unwrap_err();
    assert!(format!("{error:#}").contains("timed out"), "{error:#}");
    lab.plug(Ns::Server(0), true).unwrap();
    lab.in_ns(Ns::Client, || client::connect(CLIENT.into(), to, PATIENCE)).unwrap().unwrap();
}

#[test]
fn a_server_added_at_run_time_answers() {
    let mut lab = lab(Port443::Tls);
    let index = lab.add_server("Hyperspace_Srv_4", 203).unwrap();
    lab.start_nginx(index).unwrap();
    assert_eq!(lab.who_answers(CLIENT, Ipv4Addr::new(192, 168, 85, 203), 443).unwrap(), "Hyperspace_Srv_4");
    assert!(lab.add_server("Hyperspace_Srv_5", 203).is_err());
}

#[test]
fn every_frame_of_a_flood_arrives_with_a_right_checksum() {
    let lab = lab(Port443::Plain);
    let flood = SynFlood {
        first_source: Ipv4Addr::new(198, 18, 0, 0),
        sources: 1000,
        to: SocketAddrV4::new(lab.host(Ns::Server(0)).unwrap().address, 443),
        frames: 5000,
        longest: PATIENCE,
        rate: Some(20_000),
    };
    let capture = lab.capture(Ns::Server(0), "tcp dst port 443").unwrap();
    let before = lab.received_frames(Ns::Server(0)).unwrap();
    // However late tcpdump is.
    capture.starve(true).unwrap();
    let report = lab.syn_flood(Ns::Server(0), &flood).unwrap();
    assert_eq!(report.frames, 5000);
    capture.starve(false).unwrap();
    let captured = capture.stop_after(5000).unwrap();
    let received = lab.received_frames(Ns::Server(0)).unwrap() - before;
    assert!(received >= 5000, "{received} frames of 5000 arrived");
    assert_eq!(captured.lost(), 0);
    assert_eq!(captured.packets().len(), 5000);
    assert_eq!(captured.bad_checksums().unwrap(), Vec::<String>::new());
}

#[test]
fn a_flood_ends_however_many_frames_were_asked_for() {
    let lab = lab(Port443::Plain);
    let flood = SynFlood {
        first_source: Ipv4Addr::new(198, 18, 0, 0),
        sources: 131_072,
        to: SocketAddrV4::new(lab.host(Ns::Lb).unwrap().address, 443),
        frames: u64::MAX,
        longest: Duration::from_millis(500),
        rate: None,
    };
    let report = lab.syn_flood(Ns::Lb, &flood).unwrap();
    assert!(report.frames > 0, "{report:?}");
}

#[test]
fn a_raw_frame_arrives_byte_for_byte() {
    let lab = lab(Port443::Plain);
    let mut receiver = lab.raw_socket(Ns::Lb).unwrap();
    // A MAC and an address that are nobody's.
    let frame = arp_announcement([0x02, 0x85, 0, 0, 0, 0xfe], Ipv4Addr::new(192, 168, 85, 254));
    lab.raw_socket(Ns::Client).unwrap().send(&frame).unwrap();
    let is_arp = |frame: &[u8]| frame[12..14] == [0x08, 0x06] && frame[6..12] == [0x02, 0x85, 0, 0, 0, 0xfe];
    let received = receiver.receive(PATIENCE, is_arp).unwrap();
    assert_eq!(received, Some(frame));
    assert_eq!(receiver.receive(Duration::from_millis(50), is_arp).unwrap(), None);
}

#[test]
fn two_labs_do_not_see_each_other() {
    let mut first = lab(Port443::Plain);
    let second = lab(Port443::Plain);
    first.start_nginx(0).unwrap();
    let server = first.host(Ns::Server(0)).unwrap().address;
    assert!(first.who_answers(CLIENT, server, 443).is_ok());
    assert!(second.who_answers(CLIENT, server, 443).is_err());
}

/// What must not outlive a lab: its namespaces, its directories and the processes in it.
struct Traces {
    paths: Vec<PathBuf>,
    /// Process ids with the network namespace they ran in.
    processes: Vec<(u32, PathBuf)>,
}

impl Traces {
    fn of(lab: &Lab, processes: &[u32]) -> Self {
        let Places { dir, pins, runtime, state } = lab.places().clone();
        let namespaces = [Ns::Fabric, Ns::Lb, Ns::Client].into_iter().chain((0..5).map(Ns::Server));
        let namespaces = namespaces.map(|ns| namespace_path(&lab.namespace(ns)));
        let paths: Vec<_> = [dir, pins, runtime, state].into_iter().chain(namespaces).collect();
        let net = |pid: &u32| (*pid, fs::read_link(format!("/proc/{pid}/ns/net")).expect("it is running"));
        Self { paths, processes: processes.iter().map(net).collect() }
    }

    fn assert_gone(&self) {
        for path in &self.paths {
            assert!(!path.exists(), "{} is left", path.display());
        }
        for (pid, net) in &self.processes {
            let now = fs::read_link(format!("/proc/{pid}/ns/net")).ok();
            assert_ne!(now.as_ref(), Some(net), "process {pid} is left");
        }
    }
}

#[test]
fn nothing_is_left_of_a_lab_after_it_was_dropped() {
    let mut lab = lab(Port443::Tls);
    lab.start_all_nginx().unwrap();
    for path in [&lab.places().pins, &lab.places().runtime, &lab.places().state] {
        fs::create_dir_all(path.join("something")).unwrap();
    }
    // A process that the test forgot, and one that the kernel keeps by a socket of its own.
    let mut forgotten = lab.command(Ns::Server(0), "sleep", ["1000"]).spawn().unwrap();
    let _socket: RawSocket = lab.raw_socket(Ns::Client).unwrap();
    let traces = Traces::of(&lab, &[forgotten.id()]);
    assert!(traces.paths.iter().all(|path| path.exists()), "{:?}", traces.paths);
    drop(lab);
    forgotten.wait().unwrap();
    traces.assert_gone();
}

#[test]
fn nothing_is_left_of_a_lab_after_a_panic() {
    let mut traces = None;
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        let mut lab = lab(Port443::Tls);
        lab.start_nginx(0).unwrap();
        traces = Some(Traces::of(&lab, &[]));
        lab.in_ns(Ns::Client, || panic!("inside a namespace")).unwrap();
    }));
    assert_eq!(*outcome.unwrap_err().downcast::<&str>().unwrap(), "inside a namespace");
    traces.unwrap().assert_gone();
}

#[test]
fn what_a_killed_process_left_is_removed_by_the_next_lab() {
    let mut killed = lab(Port443::Plain);
    killed.start_nginx(0).unwrap();
    let traces = Traces::of(&killed, &[]);
    // No process has ever had this number: the largest is 4,194,304.
    fs::write(killed.places().dir.join("owner"), "4194305 1\n").unwrap();
    let next = lab(Port443::Plain);
    traces.assert_gone();
    drop(next);
}

#[test]
fn the_bridges_end_of_the_balancers_link_runs_a_native_program() {
    let lab = lab(Port443::Plain);
    let port = lab.host(Ns::Lb).unwrap().port();
    let mut show = lab.command(Ns::Fabric, "ip", ["-d", "link", "show", &port]);
    let shown = show.output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("prog/xdp") && !shown.contains("xdpgeneric"), "{shown}");
}

#[test]
fn the_pins_are_visible_to_what_runs_in_a_namespace() {
    let lab = lab(Port443::Plain);
    let pins = lab.places().pins.clone();
    fs::create_dir(&pins).unwrap();
    let mut stat = lab.command(Ns::Lb, "stat", ["-f", "-c", "%T"]);
    let output = stat.arg(&pins).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), "bpf_fs");
    // The namespace is the lab's all the same.
    let links = lab.command(Ns::Lb, "ip", ["-br", "link"]).output().unwrap();
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(links.contains(INTERFACE) && links.lines().count() == 2, "{links}");
    assert!(Path::new("/sys/fs/bpf").exists());
}
