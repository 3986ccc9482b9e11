//! Connections are counted exactly: while clients come and go in every way, the balancer's counts of each server are
//! compared with what that server's own kernel has.
//!
//! What is exact depends on what the balancer sees. In `snat` and `nat` it sees both directions: a connection is counted
//! from the client's acknowledgement until both ends have sent FIN, or one has sent RST. In `dr` and `tunnel` it does not
//! see the servers' answers: a connection whose client has sent FIN stays counted, as `client-fin`, for ten minutes, and
//! one that the server has ended until the client says something of it; what is compared is the others.
//!
//! Clients have so few ports that they use them again and again, also those of connections that they reset or that only
//! the server still has.
#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    e2e::{Site, Turn, comings::Comings, records, until},
    lab::{Family, LabOptions, Mode, Ns, Port443, Services, Topology},
};

/// From one comparison to the next.
const ROUND: Duration = Duration::from_secs(5);
/// What is on its way when clients pause arrives, also when it has to be sent again.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// The ports that each client's address has.
const CLIENT_PORTS: &str = "40000 40099";

type Counts = BTreeMap<String, u64>;
/// Server and what it sees of the client.
type Ends = (String, SocketAddr);
type Connections = BTreeMap<Ends, String>;

fn site(mode: Mode, family: Family) -> Site {
    let topology = Topology { mode, family, ..Topology::default() };
    let options = LabOptions { port_443: Port443::Plain, topology, ..LabOptions::default() };
    let site = Site::serving(Turn::shared(), options, &Services::default().yaml(topology)).unwrap();
    let ports = format!("net.ipv4.ip_local_port_range={CLIENT_PORTS}");
    let set = site.command(Ns::Client, "sysctl", ["-w", &ports]).output().unwrap();
    assert!(set.status.success(), "{set:?}");
    site
}

/// What the servers' kernels have with clients.
fn kernels(site: &Site) -> Result<BTreeSet<Ends>> {
    let mut all = BTreeSet::new();
    for server in site.servers().filter(|server| server.label.starts_with("Hyperspace")) {
        all.extend(site.peers_of(&server.label)?.into_iter().map(|peer| (server.label.clone(), peer)));
    }
    Ok(all)
}

/// The balancer's flows, closed ones too, and their states.
fn flows(site: &Site) -> Result<Connections> {
    let flows: Vec<records::Flow> = records::ask(site, &["flow", "show"])?;
    let ours = flows.into_iter().filter(|flow| flow.service == "Hyperspace");
    let seen = ours.map(|flow| {
        let address = flow.snat_address.unwrap_or(flow.client);
        let port = flow.snat_port.unwrap_or(flow.client_port);
        ((flow.server, SocketAddr::new(address, port)), flow.state)
    });
    Ok(seen.collect())
}

/// Both have the same connections, and the balancer's counts are their numbers.
fn reconcile(site: &Site) -> Result<Counts> {
    let is_open = |state: &str| match state {
        "established" | "server-fin" => true,
        "client-fin" => !site.topology().mode.answers_directly(),
        _ => false,
    };
    let mut differ = String::new();
    let same =
        until("the balancer and the servers' kernels have the same connections", SETTLES_WITHIN, || {
            let (kept, flows) = (kernels(site)?, flows(site)?);
            let open = flows.iter().filter(|(_, state)| is_open(state)).map(|(ends, _)| ends.clone());
            let open: BTreeSet<_> = open.collect();
            let missed = kept.difference(&open).map(|ends| (ends, flows.get(ends)));
            let invented = open.difference(&kept).map(|ends| (ends, flows.get(ends)));
            differ = format!(
                "not open in the flow table: {:?}; not the servers' own: {:?}",
                missed.collect::<Vec<_>>(),
                invented.collect::<Vec<_>>()
            );
            Ok((open == kept).then_some(open))
        });
    let (open, _) = same.with_context(|| differ)?;
    let counted = records::open_connections(site, "Hyperspace")?;
    let mut numbers: Counts = counted.keys().map(|server| (server.clone(), 0)).collect();
    for (server, _) in open {
        *numbers.entry(server).or_default() += 1;
    }
    ensure!(counted == numbers, "counted: {counted:?}, and there are {numbers:?}");
    let vip: records::Vip = records::ask(site, &["vip", "show", "Hyperspace"])?;
    let servers: Vec<records::Server> = records::ask(site, &["server", "show", "Hyperspace"])?;
    let sum: u64 = servers.iter().map(|server| server.connections).sum();
    ensure!(vip.connections == sum, "the service has {}, its servers {sum}", vip.connections);
    Ok(counted)
}

fn come_and_go(mode: Mode, family: Family, rounds: u64) {
    let site = site(mode, family);
    let to = SocketAddr::new(site.topology().hyperspace(), 443);
    let mut comings = Comings::new(to, rounds);
    for round in 1..=rounds {
        let done = comings.go_on(&site, ROUND).unwrap();
        let counted = reconcile(&site).unwrap();
        println!(
            "{mode:?} {family:?}, round {round}: {done:?}; {} are open at clients; {counted:?}",
            comings.open()
        );
        assert!(done.closed > 0 && done.reset > 0 && done.abandoned > 0, "{done:?}");
        let sum = usize::try_from(counted.values().sum::<u64>()).unwrap();
        assert!(sum >= comings.open(), "{sum} are counted, and clients have {}", comings.open());
    }
    comings.leave();
    let left = reconcile(&site).unwrap();
    println!("{mode:?} {family:?}: {left:?} of those that were abandoned are left");
}

#[test]
fn counts_are_the_servers_own_by_source_nat() {
    come_and_go(Mode::Snat, Family::V4, 3);
}

#[test]
#[ignore = "takes more than a minute"]
fn counts_are_the_servers_own_by_source_nat_for_longer() {
    come_and_go(Mode::Snat, Family::V4, 12);
}

#[test]
fn counts_are_the_servers_own_by_destination_nat() {
    come_and_go(Mode::Nat, Family::V6, 2);
}

#[test]
fn counts_are_the_servers_own_by_routes() {
    come_and_go(Mode::Dr, Family::V4, 2);
}

#[test]
fn counts_are_the_servers_own_by_tunnels() {
    come_and_go(Mode::Tunnel, Family::V6, 2);
}
