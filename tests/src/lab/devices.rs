//! The kernel's own devices, which not every kernel has: tunnels' ends, and VLANs.

use std::{net::IpAddr, thread};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, unshare};

use super::{
    Lab,
    layout::{INTERFACE, Ns, mac_text},
    network,
    topology::{CLIENT_SIDE, Family, address},
};

/// What a tunnel's end is called at a server.
const TUNNEL: &str = "tunnel0";

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// IPv4 in IPv4 (RFC 2003).
    Ipip,
    /// IPv6 in IPv4 (RFC 4213).
    Sit,
    /// IPv6 in IPv6 (RFC 2473).
    Ip6Ip6,
    /// IPv4 in IPv6 (RFC 2473).
    IpIp6,
    /// A VLAN (802.1Q).
    Vlan,
    /// A provider's VLAN (802.1ad).
    ServiceVlan,
}

impl Device {
    /// As `ip` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Sit => "sit",
            Self::Ip6Ip6 => "ip6tnl ip6ip6",
            Self::IpIp6 => "ip6tnl ipip6",
            Self::Vlan => "vlan 802.1Q",
            Self::ServiceVlan => "vlan 802.1ad",
        }
    }

    /// The family of the outer header's addresses.
    fn outer(self) -> Family {
        if matches!(self, Self::Ip6Ip6 | Self::IpIp6) { Family::V6 } else { Family::V4 }
    }

    /// `ip link` commands that make one, between two addresses if it is a tunnel's end, else on an interface.
    fn commands(self, name: &str, [local, remote]: [IpAddr; 2], on: &str) -> String {
        let made = match self {
            Self::Ipip => format!("{name} type ipip local {local} remote {remote}"),
            Self::Sit => format!("{name} type sit mode ip6ip local {local} remote {remote}"),
            Self::Ip6Ip6 => format!("{name} type ip6tnl mode ip6ip6 local {local} remote {remote}"),
            Self::IpIp6 => format!("{name} type ip6tnl mode ipip6 local {local} remote {remote}"),
            Self::Vlan => format!("link {on} name {name} type vlan protocol 802.1Q id 85"),
            Self::ServiceVlan => format!("link {on} name {name} type vlan protocol 802.1ad id 100"),
        };
        format!("link add {made}\nlink set {name} up\n")
    }
}

/// What the kernel says when it is asked for such a device; nothing: it has made one.
///
/// # Errors
/// No network namespace could be made to try it in, or `ip` did not start.
pub fn refused(device: Device) -> Result<Option<String>> {
    let ends = [1, 2].map(|number| address(device.outer(), CLIENT_SIDE, number));
    let tried = thread::spawn(move || {
        // The namespace ends with the thread.
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        network::ip(None, "link add lower0 type veth peer name lower1\nlink set lower0 up\n")?;
        let made = network::ip(None, &device.commands("device0", ends, "lower0"));
        Ok(made.err().map(|error| format!("{error:#}").replace('\n', " ")))
    });
    tried.join().ok().context("a thread panicked")?
}

impl Lab {
    /// Makes a tunnel's end of a server, from the balancer, with the kernel's own device.
    ///
    /// # Errors
    /// There is no such server, or the kernel has no such device.
    pub fn add_tunnel_device(&self, ns: Ns, device: Device) -> Result<()> {
        let [_, _, network, number] = self.existing_host(ns)?.address.octets();
        let [_, _, _, balancer] = self.existing_host(Ns::Lb)?.address.octets();
        let ends = [number, balancer].map(|number| address(device.outer(), network, number));
        self.ip(ns, &device.commands(TUNNEL, ends, INTERFACE))
    }

    /// Packets that have come out of a server's tunnel.
    ///
    /// # Errors
    /// It has none.
    pub fn out_of_tunnel(&self, ns: Ns) -> Result<u64> {
        network::received_frames(&self.namespace(ns), TUNNEL)
    }

    /// Frames that a client's or server's addressed interface has received: its VLAN device, where there are tags.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn received_untagged(&self, ns: Ns) -> Result<u64> {
        network::received_frames(&self.namespace(ns), self.options.topology.addressed_interface())
    }

    /// Whether VLAN tags stand in the frames that come to the balancer, or beside them, as from a card that strips them.
    ///
    /// # Errors
    /// `ethtool` failed.
    pub fn leave_tags_in_frames(&self, inside: bool) -> Result<()> {
        network::leave_tags_in_frames(&self.namespace(Ns::Fabric), &self.lb.port(), inside)
    }

    /// Tells everybody the MAC addresses of everybody, for good: on a trunk the balancer's own kernel asks without a tag.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn know_each_other(&self) -> Result<()> {
        let topology = self.options.topology;
        let known = |address: IpAddr, mac: [u8; 6], interface: &str| {
            let mac = mac_text(mac);
            format!("neigh replace {address} lladdr {mac} dev {interface} nud permanent\n")
        };
        let interface = topology.addressed_interface();
        let mut of_balancer = String::new();
        for server in self.servers() {
            of_balancer += &known(topology.address_of(server), server.mac(), INTERFACE);
            let balancer = known(topology.balancer_to_servers(), self.lb.mac(), interface);
            self.ip(server.ns, &balancer)?;
        }
        self.ip(Ns::Lb, &of_balancer)?;
        let services = [topology.hyperspace(), topology.mychart()];
        let of_client: String = services.iter().map(|vip| known(*vip, self.lb.mac(), interface)).collect();
        self.ip(Ns::Client, &of_client)
    }
}
