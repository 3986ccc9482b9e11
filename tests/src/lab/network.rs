//! Namespaces, bridges, veth pairs and offloads: everything between the hosts.

use std::{fmt::Write as _, io::Write as _, net::Ipv4Addr, process::Stdio};

use anyhow::{Context as _, Result, bail};

use super::{
    frame::{RawSocket, arp_announcement},
    hosts,
    layout::{Host, mac_text},
    namespace::{command, host_command, run_in},
    topology::{Cable, Tags, Topology},
};

/// Checksums must be complete on the wire, as they are between machines; offloads leave them to a card that is not there.
///
/// GRO is on for the NAPI that comes with it, and [`UNMERGED`]. A card has a connection's frames in one queue; a veth device
/// without NAPI has them in that of whichever core sent them, so that they overtake each other, and two cores receive
/// them at once. A server of Linux may then find no socket yet for what follows the handshake's last segment, and reset it.
const OFFLOADS: [&str; 10] = ["tx", "off", "tso", "off", "gso", "off", "gro", "on", "sg", "off"];
/// No two frames are merged into one of this length.
pub(super) const UNMERGED: &str = "gro_max_size 1";
/// A tag that is left to a card stands beside the frame, where the program at the other end of a veth does not see it.
const TAG_OFFLOADS: [&str; 2] = ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"];

/// Makes the namespace that holds the bridges.
pub(super) fn add_fabric(fabric: &str, bridges: &[&str]) -> Result<()> {
    ip(None, &format!("netns add {fabric}\n"))?;
    let mut lines = String::from("link set lo up\n");
    for bridge in bridges {
        writeln!(lines, "link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        writeln!(lines, "link set {bridge} up")?;
    }
    ip(Some(fabric), &lines)
}

/// Makes the hosts' namespaces and joins each to its bridges; `names` gives the namespace of each.
pub(super) fn add_hosts(topology: Topology, fabric: &str, hosts: &[(&Host, String)]) -> Result<()> {
    let mut namespaces = String::new();
    let mut links = String::new();
    for (host, name) in hosts {
        writeln!(namespaces, "netns add {name}")?;
        for Cable { interface, bridge, port, mac, .. } in topology.cables(host) {
            let mac = mac_text(mac);
            let mtu = topology.mtu();
            writeln!(
                links,
                "link add {port} mtu {mtu} {UNMERGED} type veth peer name {interface} address {mac} mtu {mtu} {UNMERGED} netns {name}"
            )?;
            writeln!(links, "link set {port} master {bridge} up")?;
        }
    }
    ip(None, &namespaces)?;
    ip(Some(fabric), &links)?;
    for (host, name) in hosts {
        run_in(name, || hosts::configure(topology, host))??;
        ip(Some(name), &hosts::addresses(topology, host))?;
        for cable in topology.cables(host) {
            run_in(name, || ethtool(cable.interface))??;
            run_in(fabric, || ethtool(&cable.port))??;
            if topology.tags != Tags::None {
                leave_tags_in_frames(name, cable.interface, true)?;
                leave_tags_in_frames(fabric, &cable.port, true)?;
            }
        }
    }
    for (host, name) in hosts {
        run_in(name, || topology.cables(host).iter().try_for_each(announce))??;
    }
    Ok(())
}

/// Joins the two routers of a narrow hop, by the names of their namespaces.
pub(super) fn join(topology: Topology, near: &str, far: &str) -> Result<()> {
    let [near_lines, far_lines] = hosts::narrow_hop(topology, far);
    ip(Some(near), &near_lines)?;
    ip(Some(far), &far_lines)?;
    run_in(near, || ethtool("hop0"))??;
    run_in(far, || ethtool("hop1"))?
}

/// A bridge floods frames to a MAC that never sent: every host says once where it is.
fn announce(cable: &Cable) -> Result<()> {
    RawSocket::open(cable.interface)?.send(&arp_announcement(cable.mac, cable.ipv4()))
}

/// The frames that an interface of a namespace has received.
pub(super) fn received_frames(name: &str, interface: &str) -> Result<u64> {
    let mut show = command(name, "ip", ["-s", "-j", "link", "show", interface]);
    let shown = show.output().context("cannot start ip")?;
    let links: serde_json::Value = serde_json::from_slice(&shown.stdout).context("ip printed no JSON")?;
    links[0]["stats64"]["rx"]["packets"].as_u64().context("ip shows no counter of received packets")
}

/// Pulls a host's cables or puts them back.
pub(super) fn plug(topology: Topology, fabric: &str, host: &Host, plugged: bool) -> Result<()> {
    let state = if plugged { "up" } else { "down" };
    let lines = topology
        .cables(host)
        .iter()
        .map(|cable| format!("link set {} {state}\n", cable.port))
        .collect::<String>();
    ip(Some(fabric), &lines)
}

/// Adds or removes an address of a host's loopback, /32.
pub(super) fn loopback_address(name: &str, address: Ipv4Addr, present: bool) -> Result<()> {
    let verb = if present { "add" } else { "del" };
    ip(Some(name), &format!("addr {verb} {address}/32 dev lo\n"))
}

/// Runs lines of `ip` commands, in a namespace or in ours, stopping at the first that fails.
pub(super) fn ip(namespace: Option<&str>, lines: &str) -> Result<()> {
    let batch = ["-batch", "-"];
    let mut ip = match namespace {
        // Not by `ip -n`, which remounts /sys: a container may not.
        Some(name) => command(name, "ip", batch),
        None => host_command("ip", batch),
    };
    let mut child = ip
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start ip: run `cargo xtask setup`")?;
    // Dropped after the write: the batch ends with its input. If ip ended before it had read all, its exit says why.
    let written = child.stdin.take().context("ip has no standard input")?.write_all(lines.as_bytes());
    let output = child.wait_with_output().context("cannot wait for ip")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("ip in {}: {}\n{lines}", namespace.unwrap_or("the host's namespace"), complaint.trim_end());
    }
    written.context("ip did not read its commands")
}

/// Whether VLAN tags stand in the frames that leave by an interface, or beside them, as for a card.
pub(super) fn leave_tags_in_frames(namespace: &str, interface: &str, inside: bool) -> Result<()> {
    let state = if inside { "off" } else { "on" };
    run_in(namespace, || set_offloads(interface, &TAG_OFFLOADS.map(|offload| [offload, state]).concat()))?
}

fn ethtool(interface: &str) -> Result<()> {
    set_offloads(interface, &OFFLOADS)
}

fn set_offloads(interface: &str, offloads: &[&str]) -> Result<()> {
    let mut ethtool = host_command("ethtool", ["-K", interface]);
    let output = ethtool.args(offloads).output().context("cannot start ethtool: run `cargo xtask setup`")?;
    if !output.status.success() {
        bail!("ethtool -K {interface}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}
