//! Transfers through the kernel's own devices: tunnels' ends at the servers, VLANs around everybody's frames.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};

use super::{records, site::Site, turn::Turn};
use crate::lab::{
    Device, Family, HYPERSPACE_SERVERS, LabOptions, Mode, Ns, Port443, Services, Tags, Topology,
};

const LARGE: u64 = 8 << 20;
const CLIENTS: usize = 12;
/// Payload of a full segment, at most: what a transfer takes at least is counted by it.
const SEGMENT: u64 = 1460;

/// A balancer, and servers with these devices at their ends of the tunnels: clients and service are of one family, the
/// servers of the device's outer one.
///
/// # Errors
/// What did not hold.
pub fn tunnel_ends_at(device: Device, clients: Family, servers: Family) -> Result<()> {
    let family = if (clients, servers) == (Family::V4, Family::V4) { Family::V4 } else { Family::V6 };
    let lab = Topology { mode: Mode::Tunnel, family, ..Topology::default() };
    let [outside, inside] = [clients, servers].map(|family| Topology { family, ..lab });
    let mut yaml = Services::default().yaml(inside);
    for (is, must) in [(inside.hyperspace(), outside.hyperspace()), (inside.mychart(), outside.mychart())] {
        yaml = yaml.replace(&format!("address: {is}\n"), &format!("address: {must}\n"));
    }
    let site = site(lab, &yaml)?;
    let vip = SocketAddr::new(outside.hyperspace(), 443);
    let first = outside.client_address(0);
    ensure!(
        site.who_answers(first, vip.ip(), vip.port()).is_err(),
        "{first} was answered without a device at the tunnel's end"
    );
    for index in HYPERSPACE_SERVERS {
        site.add_tunnel_device(Ns::Server(index), device)?;
    }
    let server = transfers(&site, &outside, vip)?;
    let through = site.out_of_tunnel(server)?;
    ensure!(through > LARGE / SEGMENT, "{through} packets came out of {}", device.name());
    Ok(())
}

/// A balancer on a trunk, and clients and servers on VLANs.
///
/// # Errors
/// What did not hold.
pub fn behind_vlans(family: Family, tags: Tags) -> Result<()> {
    let topology = Topology { family, tags, ..Topology::default() };
    let services = Services { more: "    health_check: { kind: none }\n".to_owned(), ..Services::default() };
    let site = site(topology, &services.yaml(topology))?;
    let vip = SocketAddr::new(topology.hyperspace(), 443);
    let server = transfers(&site, &topology, vip)?;
    for end in [Ns::Client, server] {
        let through = site.received_untagged(end)?;
        ensure!(through > LARGE / SEGMENT, "{through} frames came out of the VLAN of {end:?}");
    }
    // The control: tags that stand beside frames are not in the program's sight, and its answers have none. Hosts take
    // a frame for their address without its tag too, but not out of the VLAN.
    let client = topology.client_address(CLIENTS);
    let asked = || {
        let interface = topology.addressed_interface();
        let answers = site.capture_on(Ns::Client, interface, &format!("tcp and dst host {client}"))?;
        let answered = site.who_answers(client, vip.ip(), vip.port()).is_ok();
        Ok::<_, anyhow::Error>((answered, answers.stop()?.packets().len()))
    };
    site.leave_tags_in_frames(false)?;
    let (_, hidden) = asked()?;
    ensure!(hidden == 0, "{hidden} answers came out of the client's VLAN, and the program saw no tag");
    site.leave_tags_in_frames(true)?;
    let (answered, seen) = asked()?;
    ensure!(answered && seen > 0, "with tags in its frames again, {client} got {seen} answers");
    Ok(())
}

fn site(topology: Topology, yaml: &str) -> Result<Site> {
    let options = LabOptions { port_443: Port443::Plain, big_bytes: LARGE, topology, open_tunnels: true };
    let mut site = Site::without_daemon(Turn::alone(), options)?;
    if topology.tags != Tags::None {
        site.know_each_other()?;
    }
    site.write_config(yaml)?;
    site.start_daemon(&[])?;
    site.wait_until_reachable()?;
    Ok(site)
}

/// Clients are answered, each by one server, and a file comes and goes whole; the server of those transfers.
fn transfers(site: &Site, clients: &Topology, vip: SocketAddr) -> Result<Ns> {
    let ask = |client: IpAddr| site.who_answers(client, vip.ip(), vip.port());
    let homes: Result<Vec<_>> = (0..CLIENTS).map(|n| ask(clients.client_address(n))).collect();
    let homes = homes?;
    let spread: BTreeSet<_> = homes.iter().collect();
    ensure!(spread.len() > 1, "all {CLIENTS} clients are on {spread:?}");
    let (client, home) = (clients.client_address(0), &homes[0]);
    ensure!(ask(client)? == *home, "{client} moved from {home}");
    let server = site.index(home)?;
    let before = records::stats(site)?.reason("forwarded")?;
    let digest = site.download_sha256(client, &format!("http://{vip}/big"))?;
    ensure!(digest == site.big_sha256(), "the download of {client} differs from the file");
    site.upload(client, &format!("http://{vip}/upload/large"))?;
    let digest = site.uploaded_sha256(server, "large").context("of the upload")?;
    ensure!(digest == site.big_sha256(), "the upload of {client} differs from the file");
    let forwarded = records::stats(site)?.reason("forwarded")? - before;
    ensure!(forwarded > LARGE / SEGMENT, "the program has forwarded {forwarded} packets of two transfers");
    Ok(Ns::Server(server))
}
