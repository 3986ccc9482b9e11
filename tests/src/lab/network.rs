//! Namespaces, veth pairs, addresses and offloads: everything between the hosts.

use std::{fmt::Write as _, fs, io::Write as _, net::Ipv4Addr, process::Stdio};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};

use super::{
    frame::{RawSocket, arp_announcement},
    layout::{BRIDGE, CLIENT, CLIENTS, Host, INTERFACE, Ns, mac_text},
    namespace::{command, host_command, run_in},
    places::bpf_object,
};

/// Checksums must be complete on the wire, as they are between machines; offloads leave them to a card that is not there.
const OFFLOADS: [&str; 10] = ["tx", "off", "tso", "off", "gso", "off", "gro", "off", "sg", "off"];

/// Makes the namespace that holds the bridge.
pub(super) fn add_fabric(fabric: &str) -> Result<()> {
    ip(None, &format!("netns add {fabric}\n"))?;
    ip(
        Some(fabric),
        &format!(
            "link set lo up\n\
             link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set {BRIDGE} up\n"
        ),
    )
}

/// Makes the hosts' namespaces and joins each to the bridge; `names` gives the namespace of each.
pub(super) fn add_hosts(fabric: &str, hosts: &[(&Host, String)]) -> Result<()> {
    let mut namespaces = String::new();
    let mut links = String::new();
    for (host, name) in hosts {
        let (port, mac) = (host.port(), mac_text(host.mac()));
        writeln!(namespaces, "netns add {name}")?;
        writeln!(links, "link add {port} type veth peer name {INTERFACE} address {mac} netns {name}")?;
        writeln!(links, "link set {port} master {BRIDGE} up")?;
    }
    ip(None, &namespaces)?;
    ip(Some(fabric), &links)?;
    for (host, name) in hosts {
        run_in(name, || configure(host))??;
        ip(Some(name), &addresses(host))?;
        run_in(name, || ethtool(INTERFACE))??;
        run_in(fabric, || ethtool(&host.port()))??;
    }
    for (host, name) in hosts {
        run_in(name, || announce(host))??;
    }
    Ok(())
}

/// Addresses and routes of one host.
fn addresses(host: &Host) -> String {
    let to_clients = match host.ns {
        Ns::Client => format!("route add local {CLIENTS} dev lo\n"),
        _ => format!("route add {CLIENTS} via {CLIENT}\n"),
    };
    let address = host.address;
    format!(
        "link set lo up\n\
         addr add {address}/24 dev {INTERFACE}\n\
         link set {INTERFACE} up\n\
         {to_clients}"
    )
}

/// Kernel settings of one host; runs inside its namespace.
fn configure(host: &Host) -> Result<()> {
    for scope in ["all", "default", INTERFACE] {
        // A client's packet may come from an address that the route back does not lead to.
        set(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        // ARP asks in the name of the interface's own address, whatever the packet's source.
        set(&format!("ipv4/conf/{scope}/arp_announce"), "2")?;
        if matches!(host.ns, Ns::Server(_)) {
            // A server that owns the service's address on its loopback (forwarding `dr`) keeps quiet about it.
            set(&format!("ipv4/conf/{scope}/arp_ignore"), "1")?;
        }
    }
    if host.ns == Ns::Client {
        set("ipv4/ip_local_port_range", "1024 65535")?;
    }
    Ok(())
}

fn set(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
}

/// A bridge floods frames to a MAC that never sent: every host says once where it is.
fn announce(host: &Host) -> Result<()> {
    RawSocket::open(INTERFACE)?.send(&arp_announcement(host.mac(), host.address))
}

/// Lets every frame pass at the bridge's end of a host's veth pair: a veth device hands the frames of `XDP_TX` over only
/// to a peer that runs an XDP program too. The program stays until the returned value is dropped.
pub(super) fn pass_at_port(fabric: &str, host: &Host) -> Result<Ebpf> {
    let object = bpf_object("xdp-pass.o")?;
    let port = host.port();
    run_in(fabric, || {
        let mut ebpf =
            Ebpf::load_file(&object).with_context(|| format!("cannot load {}", object.display()))?;
        let program = ebpf.program_mut("xdp_pass").context("xdp-pass.o has no program xdp_pass")?;
        let program: &mut Xdp = program.try_into()?;
        program.load()?;
        program.attach(&port, XdpMode::Driver).with_context(|| format!("cannot attach to {port}"))?;
        Ok(ebpf)
    })?
}

/// The frames that a namespace's `eth0` has received.
pub(super) fn received_frames(name: &str) -> Result<u64> {
    let mut show = command(name, "ip", ["-s", "-j", "link", "show", INTERFACE]);
    let shown = show.output().context("cannot start ip")?;
    let links: serde_json::Value = serde_json::from_slice(&shown.stdout).context("ip printed no JSON")?;
    links[0]["stats64"]["rx"]["packets"].as_u64().context("ip shows no counter of received packets")
}

/// Pulls a host's cable or puts it back.
pub(super) fn plug(fabric: &str, host: &Host, plugged: bool) -> Result<()> {
    let state = if plugged { "up" } else { "down" };
    ip(Some(fabric), &format!("link set {} {state}\n", host.port()))
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

fn ethtool(interface: &str) -> Result<()> {
    let mut ethtool = host_command("ethtool", ["-K", interface]);
    let output = ethtool.args(OFFLOADS).output().context("cannot start ethtool: run `cargo xtask setup`")?;
    if !output.status.success() {
        bail!("ethtool -K {interface}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}
