//! What a host is set up with: kernel settings, addresses and routes, by its part in the topology.

use std::{fmt::Write as _, fs, net::IpAddr};

use anyhow::{Context as _, Result};

use super::{
    layout::{Host, Ns},
    network::UNMERGED,
    topology::{
        Arms, CLIENT_SIDE, FAR_SIDE, Family, HOP, Mode, SERVER_SIDE, Topology, Vlan, address, clients,
        network,
    },
};

/// Numbers of hosts in their networks.
const BALANCER: u8 = 10;
const CLIENT: u8 = 100;
const NEAR: u8 = 1;
const FAR: u8 = 2;
/// Of the services: [`Topology::hyperspace`] and [`Topology::mychart`].
const SERVICES: [u8; 2] = [150, 151];

/// Kernel settings of one host; runs inside its namespace, before its interfaces are up.
pub(super) fn configure(topology: Topology, host: &Host) -> Result<()> {
    // BBR, some machines' default, takes a client that reads slowly for a slow network, and goes on at its pace for minutes.
    set("ipv4/tcp_congestion_control", "reno")?;
    let cables = topology.cables(host);
    for scope in ["all", "default"].into_iter().chain(cables.iter().map(|cable| cable.interface)) {
        // A client's packet may come from an address that the route back does not lead to.
        set(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        // ARP asks in the name of the interface's own address, whatever the packet's source.
        set(&format!("ipv4/conf/{scope}/arp_announce"), "2")?;
        if matches!(host.ns, Ns::Server(_)) {
            // A server that owns the service's address on its loopback (forwarding `dr`) keeps quiet about it.
            set(&format!("ipv4/conf/{scope}/arp_ignore"), "1")?;
        }
        if topology != Topology::default() {
            // A packet's way is what the lab decided, not what a router learnt to be shorter.
            set(&format!("ipv4/conf/{scope}/accept_redirects"), "0")?;
            set(&format!("ipv4/conf/{scope}/send_redirects"), "0")?;
        }
        if topology.family == Family::V6 {
            for off in
                ["accept_dad", "dad_transmits", "accept_ra", "accept_redirects", "router_solicitations"]
            {
                set(&format!("ipv6/conf/{scope}/{off}"), "0")?;
            }
        }
    }
    if host.ns == Ns::Client {
        set("ipv4/ip_local_port_range", "1024 65535")?;
        if topology.family == Family::V6 {
            // A local route is enough to bind an IPv4 address, not an IPv6 one.
            set("ipv6/ip_nonlocal_bind", "1")?;
        }
    }
    if matches!(host.ns, Ns::Near | Ns::Far) || (host.ns == Ns::Lb && topology.mode == Mode::Nat) {
        forward(topology)?;
    }
    Ok(())
}

/// Makes a router of the calling thread's namespace.
fn forward(topology: Topology) -> Result<()> {
    set("ipv4/ip_forward", "1")?;
    // An ICMP error at once, for each packet.
    set("ipv4/icmp_ratelimit", "0")?;
    if topology.family == Family::V6 {
        set("ipv6/conf/all/forwarding", "1")?;
        set("ipv6/icmp/ratelimit", "0")?;
    }
    Ok(())
}

fn set(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
}

/// Addresses and routes of one host, as `ip` takes them, as often as one likes.
pub(super) fn addresses(topology: Topology, host: &Host) -> String {
    let mut lines = String::from("link set lo up\n");
    // Writing to a String has no way to fail.
    for cable in topology.cables(host) {
        let mut under = cable.interface;
        for Vlan { device, protocol, id } in cable.vlans {
            let mtu = Topology::MTU;
            let _ = write!(
                lines,
                "link set {under} up\n\
                 link add link {under} name {device} mtu {mtu} type vlan protocol {protocol} id {id}\n"
            );
            under = device;
        }
        let (interface, ipv4) = (cable.addressed(), cable.ipv4());
        let _ = writeln!(lines, "addr replace {ipv4}/24 dev {interface}");
        if topology.family == Family::V6 {
            let ipv6 = address(Family::V6, cable.network, cable.number);
            let _ = writeln!(lines, "addr replace {ipv6}/64 dev {interface} nodad");
        }
        let _ = writeln!(lines, "link set {interface} up");
    }
    for family in topology.families() {
        let _ = match host.ns {
            Ns::Fabric => Ok(()),
            Ns::Lb => to_clients(&mut lines, topology, *family),
            Ns::Client => of_client(&mut lines, topology, *family),
            Ns::Near => of_near(&mut lines, topology, *family),
            Ns::Far => of_far(&mut lines, *family),
            Ns::Server(_) => of_server(&mut lines, topology, *family),
        };
    }
    lines
}

/// The way to the client host, for those on the network with the service.
fn to_clients(lines: &mut String, topology: Topology, family: Family) -> std::fmt::Result {
    let gateway = address(family, CLIENT_SIDE, if topology.narrow { NEAR } else { CLIENT });
    writeln!(lines, "route replace {} via {gateway}", clients(family))?;
    if topology.narrow {
        writeln!(lines, "route replace {} via {gateway}", network(family, FAR_SIDE))?;
    }
    Ok(())
}

fn of_client(lines: &mut String, topology: Topology, family: Family) -> std::fmt::Result {
    writeln!(lines, "route add local {} dev lo", clients(family))?;
    if topology.narrow {
        writeln!(lines, "route add default via {}", address(family, FAR_SIDE, FAR))?;
    } else {
        to_servers(lines, topology, family)?;
    }
    Ok(())
}

/// The way to servers that the balancer is the router of.
fn to_servers(lines: &mut String, topology: Topology, family: Family) -> std::fmt::Result {
    if topology.mode == Mode::Nat && topology.arms == Arms::Two {
        let balancer = address(family, CLIENT_SIDE, BALANCER);
        writeln!(lines, "route replace {} via {balancer}", network(family, SERVER_SIDE))?;
    }
    Ok(())
}

fn of_server(lines: &mut String, topology: Topology, family: Family) -> std::fmt::Result {
    match topology.mode {
        // In a one-arm lab clients and servers reach each other past the balancer.
        Mode::Snat if topology.arms == Arms::One => to_clients(lines, topology, family),
        Mode::Snat => Ok(()),
        Mode::Nat => {
            let balancer = address(family, topology.server_network(), BALANCER);
            writeln!(lines, "route add default via {balancer}")
        }
        Mode::Dr | Mode::Tunnel => {
            for service in SERVICES.map(|number| address(family, CLIENT_SIDE, number)) {
                writeln!(lines, "addr add {} dev lo", single(service))?;
            }
            to_clients(lines, topology, family)
        }
    }
}

/// An address as a network of its own.
fn single(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}/32"),
        IpAddr::V6(address) => format!("{address}/128 nodad"),
    }
}

/// The router at the services' end of the narrow hop; the hop is made by `narrow::join`.
fn of_near(lines: &mut String, topology: Topology, family: Family) -> std::fmt::Result {
    to_servers(lines, topology, family)
}

/// The router at the clients' end.
fn of_far(lines: &mut String, family: Family) -> std::fmt::Result {
    writeln!(lines, "route add {} via {}", clients(family), address(family, FAR_SIDE, CLIENT))
}

/// Joins the two routers: `near` and `far` are the names of their namespaces. Two lists of `ip` commands, each for one of
/// them, in that order.
pub(super) fn narrow_hop(topology: Topology, far: &str) -> [String; 2] {
    let mtu = Topology::NARROW_MTU;
    let mut near_lines = format!(
        "link add hop0 mtu {mtu} {UNMERGED} type veth peer name hop1 mtu {mtu} {UNMERGED} netns {far}\nlink set hop0 up\n"
    );
    let mut far_lines = String::from("link set hop1 up\n");
    for &family in topology.families() {
        let length = if family == Family::V4 { "24" } else { "64 nodad" };
        let (near, far) = (address(family, HOP, NEAR), address(family, HOP, FAR));
        // Writing to a String has no way to fail.
        let _ = write!(
            near_lines,
            "addr add {near}/{length} dev hop0\n\
             route add {} via {far}\n\
             route add {} via {far}\n",
            clients(family),
            network(family, FAR_SIDE)
        );
        let _ = write!(far_lines, "addr add {far}/{length} dev hop1\nroute add default via {near}\n");
    }
    [near_lines, far_lines]
}
