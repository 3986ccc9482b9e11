//! What goes through untouched (TLS, large files, path MTU discovery), and what the balancer answers itself.
#![cfg(test)]

use std::{
    env, fs,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use etherparse::{Icmpv4Type, PacketBuilder, SlicedPacket, TransportSlice};
use tests::{
    e2e::{Site, Turn, Wanted, far, http, records},
    lab::{CLIENT, HYPERSPACE, LabOptions, MYCHART, Ns, Port443, client_address},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of the large download: `STEADFAST_E2E_BIG`, else 1 GiB.
fn big_bytes() -> u64 {
    let bytes =
        env::var("STEADFAST_E2E_BIG").map(|text| text.parse().expect("STEADFAST_E2E_BIG is a number"));
    bytes.unwrap_or(1 << 30)
}

/// The base64 of the first certificate in a text.
fn certificate(text: &str) -> String {
    let begin = text.find("-----BEGIN CERTIFICATE-----").expect("a certificate") + 27;
    let end = begin + text[begin..].find("-----END").expect("the certificate's end");
    text[begin..end].split_whitespace().collect()
}

#[test]
fn tls_ends_at_the_server_with_its_own_certificate() {
    let site = Site::with(Turn::shared(), LabOptions::default(), &Wanted::default()).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..30 {
        let client = client_address(number);
        let vip = if number % 2 == 0 { HYPERSPACE } else { MYCHART };
        let label = site.who_answers(client, vip, 443).unwrap();
        let mut openssl = site.command(
            Ns::Client,
            "openssl",
            ["s_client", "-connect", &format!("{vip}:443"), "-bind", &format!("{client}:0")],
        );
        let output = openssl.stdin(Stdio::null()).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let octet = site.servers().find(|host| host.label == label).unwrap().address.octets()[3];
        let own = site.places().dir.join(format!("srv{octet}/certificate.pem"));
        let own = fs::read_to_string(own).unwrap();
        assert_eq!(certificate(&shown), certificate(&own), "{client} on {label}");
        assert!(shown.contains(&format!("CN = {label}")), "{shown}");
        seen.insert(label);
    }
    // Of fifteen clients each service's, one of three servers gets none in one lab of 146: the secret is another each time.
    for number in 30..120 {
        let vip = if number % 2 == 0 { HYPERSPACE } else { MYCHART };
        seen.insert(site.who_answers(client_address(number), vip, 443).unwrap());
    }
    assert_eq!(seen.len(), 5, "{seen:?}");
}

#[test]
fn a_large_download_over_tls_arrives_whole_and_without_a_bad_checksum() {
    const CAPTURED: u32 = 10_000;
    let options = LabOptions { big_bytes: big_bytes(), ..LabOptions::default() };
    let site = Site::with(Turn::alone(), options, &Wanted::default()).unwrap();
    let client = client_address(7);
    let label = site.who_answers(client, HYPERSPACE, 443).unwrap();
    let server = Ns::Server(site.index(&label).unwrap());
    // The beginning, with its handshakes, and a piece from the midst.
    let capture = || [Ns::Client, server].map(|ns| site.capture_first(ns, CAPTURED, "tcp port 443").unwrap());
    let first = capture();
    let start = Instant::now();
    let (digest, midst) = thread::scope(|scope| {
        let download =
            scope.spawn(|| site.download_sha256(client, &format!("https://{HYPERSPACE}/big")).unwrap());
        thread::sleep(Duration::from_secs(1));
        let midst = capture();
        (download.join().unwrap(), midst)
    });
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(digest, site.big_sha256());
    let megabytes = f64::from(u32::try_from(big_bytes() >> 10).unwrap()) / 1024.0;
    println!("{megabytes:.0} MiB over TLS in {seconds:.1} s: {:.0} MiB/s", megabytes / seconds);
    for capture in first.into_iter().chain(midst) {
        let captured = capture.stop().unwrap();
        assert!(captured.packets().len() <= CAPTURED as usize);
        assert_eq!(captured.bad_checksums().unwrap(), Vec::<String>::new());
        println!("{} packets captured, none with a bad checksum", captured.packets().len());
    }
    let counted = records::server(&site, &format!("Hyperspace/{label}")).unwrap();
    assert!(counted.bytes_out > big_bytes(), "{counted:?}");
}

#[test]
fn port_80_redirects_to_the_same_place_over_https() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    for vip in [HYPERSPACE, MYCHART] {
        let mut curl = site.command(Ns::Client, "curl", ["-si", "--interface", "10.85.0.1"]);
        let output = curl.arg(format!("http://{vip}/a?b=c")).output().unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(answer.starts_with("HTTP/1.1 301 "), "{answer}");
        assert_eq!(location(&answer).as_deref(), Some(&*format!("https://{vip}/a?b=c")), "{answer}");
    }
    let to = SocketAddr::from((HYPERSPACE, 80));
    let ask = |request: &str| {
        let request = request.as_bytes();
        site.in_ns(Ns::Client, || http::raw(client_address(3), to, request, PATIENCE))
            .unwrap()
            .unwrap_or_else(|error| panic!("{}: {error:#}", request.escape_ascii()))
    };
    for (host, path, expected) in [
        ("mychart.example.org", "/", "https://mychart.example.org/"),
        ("mychart.example.org:80", "/MyChart/?lang=de", "https://mychart.example.org/MyChart/?lang=de"),
        ("192.168.85.150:80", "/a%20b?c=%2F#", "https://192.168.85.150/a%20b?c=%2F"),
    ] {
        let path = path.trim_end_matches('#');
        let answer = ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 301 "), "{host}{path}: {answer}");
        assert_eq!(location(&answer).as_deref(), Some(expected), "{answer}");
    }
    for (what, request) in [
        ("no Host", "GET / HTTP/1.1\r\n\r\n"),
        ("two Hosts", "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n"),
        ("an empty Host", "GET / HTTP/1.1\r\nHost: \r\n\r\n"),
        ("a Host with a path", "GET / HTTP/1.1\r\nHost: evil.example/x\r\n\r\n"),
        ("a Host with a user", "GET / HTTP/1.1\r\nHost: a@evil.example\r\n\r\n"),
        ("a port that is none", "GET / HTTP/1.1\r\nHost: a.example:http\r\n\r\n"),
        ("no HTTP", "EHLO mail.example\r\n\r\n"),
        ("a target that is none", "GET a b c HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        ("a header without a name", "GET / HTTP/1.1\r\nHost: a.example\r\n: x\r\n\r\n"),
    ] {
        let answer = ask(request);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert_eq!(location(&answer), None, "{what}: {answer}");
    }
}

fn location(answer: &str) -> Option<String> {
    let head = answer.split("\r\n\r\n").next()?;
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
    })
}

#[test]
fn a_client_behind_a_shorter_link_downloads_by_path_mtu_discovery() {
    let options = LabOptions { port_443: Port443::Plain, big_bytes: 32 << 20, ..LabOptions::default() };
    let mut site = Site::with(Turn::shared(), options, &Wanted::default()).unwrap();
    let far = far::add(&mut site).unwrap();
    let longest_on_far_link = |packets: &[Vec<u8>]| packets.iter().map(Vec::len).max().unwrap_or(0);
    let captures = [
        site.capture_on(far.client, "far1", "tcp").unwrap(),
        site.capture_on(far.router, "eth0", "icmp").unwrap(),
    ];
    let start = Instant::now();
    let mut curl = site.command(far.client, "curl", ["-sSf", "--max-time", "300", "-o"]);
    let file = site.places().dir.join("downloaded");
    let output = curl.arg(&file).arg(format!("http://{HYPERSPACE}:443/big")).output().unwrap();
    let stats = records::stats(&site).unwrap();
    assert!(output.status.success(), "{}; {:?}", String::from_utf8_lossy(&output.stderr), stats.reasons);
    let digest = std::process::Command::new("sha256sum").arg(&file).output().unwrap();
    assert!(String::from_utf8_lossy(&digest.stdout).starts_with(site.big_sha256()));
    let translated = stats.reason("icmp-to-server").unwrap();
    assert!(translated > 0, "{:?}", stats.reasons);
    let [tcp, icmp] = captures.map(|capture| capture.stop().unwrap());
    assert!(longest_on_far_link(tcp.packets()) <= 1414);
    assert_eq!(icmp.bad_checksums().unwrap(), Vec::<String>::new());
    assert!(!icmp.packets().is_empty());
    println!(
        "32 MiB in {:.1} s behind an MTU of {}: {translated} frag-needed translated",
        start.elapsed().as_secs_f64(),
        far::FAR_MTU
    );
    // The server now knows the path: towards the balancer's source address, which all its clients share.
    let label = records::sticky(&site, "Hyperspace").unwrap()[&far::FAR_CLIENT].server.clone();
    let server = Ns::Server(site.index(&label).unwrap());
    let route = site.command(server, "ip", ["route", "get", "192.168.85.10"]).output().unwrap();
    let route = String::from_utf8_lossy(&route.stdout).into_owned();
    assert!(route.contains("mtu 1400"), "{route}");
}

#[test]
fn the_services_addresses_answer_ping() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    let (from, to) = (site.host(Ns::Client).unwrap().mac(), site.host(Ns::Lb).unwrap().mac());
    let mut socket = site.raw_socket(Ns::Client).unwrap();
    for (sequence, vip) in (1..).zip([HYPERSPACE, MYCHART]) {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(from, to)
            .ipv4(CLIENT.octets(), vip.octets(), 64)
            .icmpv4_echo_request(77, sequence)
            .write(&mut frame, b"are you there?")
            .unwrap();
        socket.send(&frame).unwrap();
        let answer = socket.receive(PATIENCE, |frame| is_echo_reply(frame, vip.into(), sequence)).unwrap();
        assert!(answer.is_some(), "{vip} did not answer");
    }
}

fn is_echo_reply(frame: &[u8], from: IpAddr, sequence: u16) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return false;
    };
    let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else {
        return false;
    };
    let Some(TransportSlice::Icmpv4(icmp)) = &packet.transport else {
        return false;
    };
    let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() else {
        return false;
    };
    ip.header().source_addr() == from && echo.seq == sequence && icmp.payload() == b"are you there?"
}
