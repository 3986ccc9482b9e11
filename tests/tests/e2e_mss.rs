//! What SYNs announce is lowered, and large packets fit from the first on.
#![cfg(test)]

use std::net::{IpAddr, SocketAddr};

use tests::{
    e2e::{Site, Turn, records, site::said},
    lab::{Family, LabOptions, Mode, Ns, PLAIN_PORT, Port443, Services, Topology},
};

const LARGE: u64 = 1 << 20;
/// Reasons of packets that tell a sender that its packets are too large.
const TOLD: [&str; 3] = ["icmp-to-server", "icmp-to-client", "too-big"];

struct Row {
    site: Site,
    topology: Topology,
}

impl Row {
    fn with(topology: Topology, clamp: &str) -> Self {
        let options =
            LabOptions { port_443: Port443::Tls, big_bytes: LARGE, topology, ..LabOptions::default() };
        let mut site = Site::without_daemon(Turn::shared(), options).unwrap();
        site.write_config(&yaml(topology, clamp)).unwrap();
        site.start_daemon(&[]).unwrap();
        site.wait_until_reachable().unwrap();
        Self { site, topology }
    }

    fn clamp(&self, clamp: &str) {
        self.site.write_config(&yaml(self.topology, clamp)).unwrap();
        let path = self.site.config_path();
        self.site.done(&["config", "apply", path.to_str().unwrap()]).unwrap();
        let shown = records::ask::<serde_json::Value>(&self.site, &["vip", "show", "Hyperspace"]).unwrap();
        assert_eq!(shown["mss_clamp"].to_string().trim_matches('"'), clamp);
    }

    /// How often somebody was told that a packet was too large, in a download and an upload by hosts that know nothing of
    /// the way.
    fn told_during_transfers(&self) -> u64 {
        let told = || {
            let stats = records::stats(&self.site).unwrap();
            TOLD.iter().map(|reason| stats.reason(reason).unwrap()).sum::<u64>()
        };
        self.site.forget_paths(Ns::Client).unwrap();
        (0..self.site.servers().count()).for_each(|n| self.site.forget_paths(Ns::Server(n)).unwrap());
        let before = told();
        let client = self.site.client_address(20);
        let https =
            |path: &str| format!("https://{}/{path}", SocketAddr::new(self.topology.hyperspace(), 443));
        assert_eq!(self.site.download_sha256(client, &https("big")).unwrap(), self.site.big_sha256());
        self.site.upload(client, &https("upload/of-20")).unwrap();
        told() - before
    }

    /// What the servers read of segments in a client's SYN, as tcpdump writes it.
    fn announced_to_servers(&self) -> Vec<u16> {
        let client = self.site.client_address(30);
        let plain = SocketAddr::new(self.topology.hyperspace(), PLAIN_PORT);
        let filter = format!("tcp dst port {PLAIN_PORT}");
        let servers = 0..3;
        let captures: Vec<_> = servers.map(|n| self.site.capture(Ns::Server(n), &filter).unwrap()).collect();
        self.site.in_ns(Ns::Client, || tests::lab::client::who_answers(client, plain)).unwrap().unwrap();
        captures.into_iter().flat_map(|capture| announced(capture.stop().unwrap().packets())).collect()
    }
}

/// The values of the first options of the SYNs among these frames.
fn announced(frames: &[Vec<u8>]) -> Vec<u16> {
    let tcp = |frame: &Vec<u8>| {
        let at = 14 + if frame[14] >> 4 == 4 { 20 } else { 40 };
        frame[at..].to_vec()
    };
    let syns = frames.iter().map(tcp).filter(|tcp| tcp[13] & 0x12 == 2 && tcp[20..22] == [2, 4]);
    syns.map(|tcp| u16::from_be_bytes([tcp[22], tcp[23]])).collect()
}

fn yaml(topology: Topology, clamp: &str) -> String {
    let more = format!("    mss_clamp: {clamp}\n");
    Services { ports: format!("443, {PLAIN_PORT}"), more }.yaml(topology)
}

fn nobody_is_told_behind_a_narrow_hop(mode: Mode, family: Family, fits: &str) {
    let row = Row::with(Topology { mode, family, narrow: true, ..Topology::default() }, "none");
    let told = row.told_during_transfers();
    assert!(told > 0, "without the clamp every packet fits: the test shows nothing");
    row.clamp(fits);
    assert_eq!(row.told_during_transfers(), 0);
    row.clamp("none");
    assert!(row.told_during_transfers() > 0);
}

#[test]
fn with_a_clamp_no_packet_is_too_large_for_a_narrow_hop_in_snat() {
    nobody_is_told_behind_a_narrow_hop(Mode::Snat, Family::V4, "1360");
}

#[test]
fn with_a_clamp_no_packet_is_too_large_for_a_narrow_hop_in_nat_over_ipv6() {
    nobody_is_told_behind_a_narrow_hop(Mode::Nat, Family::V6, "1340");
}

/// The servers' own SYN-ACK does not pass the balancer in a tunnel, so a clamp lowers what servers send and not what clients
/// send: for that the servers have to announce less themselves.
fn a_tunnel_s_clamp(family: Family, fits: u16) {
    let row = Row::with(Topology { mode: Mode::Tunnel, family, ..Topology::default() }, "none");
    let link = if family == Family::V4 { 1460 } else { 1440 };
    assert_eq!(row.announced_to_servers(), [link]);
    assert!(row.told_during_transfers() > 0);
    row.clamp("auto");
    assert_eq!(row.announced_to_servers(), [fits]);
    let told = row.told_during_transfers();
    assert!(told > 0, "clients are limited too now: say so in docs/operations.md");
    let client = row.site.client_address(20);
    (0..row.site.servers().count()).for_each(|n| announce_less(&row.site, Ns::Server(n), client, fits));
    assert_eq!(row.told_during_transfers(), 0);
}

/// Has a server announce no more to this client's network.
fn announce_less(site: &Site, server: Ns, client: IpAddr, bytes: u16) {
    let ip = |args: &[&str]| {
        let output = site.command(server, "ip", args).output().unwrap();
        assert!(output.status.success(), "ip {args:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let family = if client.is_ipv4() { "-4" } else { "-6" };
    let shown = ip(&[family, "route", "show", "match", &client.to_string()]);
    let route = shown.lines().last().unwrap();
    let fields = route.split_whitespace().filter(|field| *field != "pref" && *field != "medium");
    let bytes = bytes.to_string();
    let mut args = vec![family, "route", "change"];
    args.extend(fields.chain(["advmss", &bytes]));
    ip(&args);
}

#[test]
fn a_clamp_in_a_tunnel_lowers_what_servers_are_told_and_advmss_what_clients_are() {
    a_tunnel_s_clamp(Family::V4, 1440);
}

#[test]
fn a_clamp_in_a_tunnel_over_ipv6_lowers_what_servers_are_told_and_advmss_what_clients_are() {
    a_tunnel_s_clamp(Family::V6, 1400);
}
