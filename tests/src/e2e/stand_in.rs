//! A balancer that is none of ours: the kernel's own NAT and routing, or a few lines of encapsulation. What fails with it
//! is the lab's or the tests' fault.
//!
//! It picks a server by the client's address, as `source-hash` does, and keeps no records; health, drain and redirects are
//! not its business.

mod tunnel;

use std::{fmt::Write as _, fs, io::Write as _, net::IpAddr, process::Stdio};

use anyhow::{Context as _, Result, bail};

pub use self::tunnel::{End, Tunnel};
use crate::lab::{Arms, Family, INTERFACE, Lab, Mode, Ns, PLAIN_PORT, Topology};

/// nftables' table, and the first of the routing tables.
const TABLE: &str = "stand-in";
const FIRST_ROUTES: usize = 100;
const SEED: u32 = 0x5eed;

/// It works until it is dropped, or its lab is.
#[derive(Debug)]
pub struct StandIn {
    _tunnel: Option<Tunnel>,
}

impl StandIn {
    /// Balances Hyperspace, in the lab's mode, over the first so many servers.
    ///
    /// # Errors
    /// A tool failed.
    pub fn start(lab: &Lab, servers: usize) -> Result<Self> {
        lead_clients(lab)?;
        let topology = lab.topology();
        let servers: Result<Vec<IpAddr>> = (0..servers).map(|index| lab.address(Ns::Server(index))).collect();
        let servers = servers?;
        let tunnel = match topology.mode {
            Mode::Snat | Mode::Nat => {
                forward(lab)?;
                nft(lab, Ns::Lb, &translation(topology, &servers))?;
                None
            }
            Mode::Dr => {
                forward(lab)?;
                nft(lab, Ns::Lb, &marks(topology, servers.len()))?;
                route(lab, &servers)?;
                None
            }
            Mode::Tunnel => Some(Tunnel::start(lab, topology.hyperspace(), tunnel::ends(lab, &servers)?)?),
        };
        Ok(Self { _tunnel: tunnel })
    }
}

/// Has those on the clients' side send the service's packets to the balancer, though nobody answers for its address.
fn lead_clients(lab: &Lab) -> Result<()> {
    let (vip, balancer) = (lab.topology().hyperspace(), lab.address(Ns::Lb)?);
    let nearest = if lab.topology().narrow { Ns::Near } else { Ns::Client };
    lab.ip(nearest, &format!("route add {vip} via {balancer}\n"))
}

/// Makes a router of the balancer's host, which keeps it to itself that in a one-arm lab there is a shorter way.
fn forward(lab: &Lab) -> Result<()> {
    let set = |name: &str, value: &str| {
        let path = format!("/proc/sys/net/{name}");
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
    };
    lab.in_ns(Ns::Lb, || {
        set("ipv4/conf/all/send_redirects", "0")?;
        set(&format!("ipv4/conf/{INTERFACE}/send_redirects"), "0")?;
        set("ipv4/ip_forward", "1")?;
        set("ipv6/conf/all/forwarding", "1")
    })?
}

/// How nftables calls a family.
fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn pick(topology: Topology, servers: usize) -> String {
    format!("jhash {} saddr mod {servers} seed {SEED:#x}", word(topology.family))
}

/// Destination NAT for mode `nat`, and source NAT on top of it for `snat`.
fn translation(topology: Topology, servers: &[IpAddr]) -> String {
    let (ip, vip) = (word(topology.family), topology.hyperspace());
    let pick = pick(topology, servers.len());
    let map: Vec<String> =
        servers.iter().enumerate().map(|(index, server)| format!("{index} : {server}")).collect();
    let map = map.join(", ");
    let mut rules = format!(
        "table {ip} {TABLE} {{\n\
         chain in {{ type nat hook prerouting priority dstnat;\n\
         {ip} daddr {vip} tcp dport {{ 443, {PLAIN_PORT} }} dnat to {pick} map {{ {map} }}\n}}\n"
    );
    if topology.mode == Mode::Snat {
        let (own, servers) = (topology.balancer_to_servers(), set_of(servers));
        // Writing to a String has no way to fail.
        let _ = write!(
            rules,
            "chain out {{ type nat hook postrouting priority srcnat;\n\
             {ip} daddr {{ {servers} }} ct status dnat snat to {own}\n}}\n"
        );
    }
    rules + "}\n"
}

fn set_of(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    addresses.join(", ")
}

/// A mark for each client's server, from 1.
fn marks(topology: Topology, servers: usize) -> String {
    let (ip, vip) = (word(topology.family), topology.hyperspace());
    let pick = pick(topology, servers);
    format!(
        "table {ip} {TABLE} {{\n\
         chain in {{ type filter hook prerouting priority mangle;\n\
         {ip} daddr {vip} meta mark set {pick} offset 1\n}}\n}}\n"
    )
}

/// The way to the service by each mark: through the server.
fn route(lab: &Lab, servers: &[IpAddr]) -> Result<()> {
    let topology = lab.topology();
    let (vip, out) = (topology.hyperspace(), arm(topology));
    for (mark, server) in (1..).zip(servers) {
        let table = FIRST_ROUTES + mark;
        lab.ip(Ns::Lb, &format!("route add {vip} via {server} dev {out} table {table}\n"))?;
        // Nothing in a rule tells its family.
        let family = if vip.is_ipv4() { "-4" } else { "-6" };
        let rule = format!("{family} rule add fwmark {mark} table {table}");
        let output = lab.command(Ns::Lb, "ip", rule.split(' ')).output().context("cannot start ip")?;
        if !output.status.success() {
            bail!("ip {rule}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
    }
    Ok(())
}

/// The balancer's interface on the servers' side.
fn arm(topology: Topology) -> &'static str {
    match topology.arms {
        Arms::One => INTERFACE,
        Arms::Two => Topology::SECOND_INTERFACE,
    }
}

/// Loads rules of nftables into a host.
///
/// # Errors
/// nft is missing, or refuses them.
pub fn nft(lab: &Lab, ns: Ns, rules: &str) -> Result<()> {
    let mut nft = lab.command(ns, "nft", ["-f", "-"]);
    let mut nft = nft
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start nft: run `cargo xtask setup`")?;
    // Dropped after the write: the rules end with its input. If nft ended before it had read all, its exit says why.
    let written = nft.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes());
    let output = nft.wait_with_output()?;
    if !output.status.success() {
        bail!("nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    written.context("nft did not read its rules")
}
