//! A lab's topology at work: addresses, tunnels' ends, and what passes on the cables.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;

use super::{
    Lab,
    capture::Capture,
    hosts,
    layout::{INTERFACE, Ns},
    programs,
    topology::{Cable, Mode, Topology},
};

impl Lab {
    /// What the lab looks like.
    pub fn topology(&self) -> Topology {
        self.options.topology
    }

    /// A host's address of the lab's family on its `eth0`.
    ///
    /// # Errors
    /// There is no such host.
    pub fn address(&self, ns: Ns) -> Result<IpAddr> {
        Ok(self.options.topology.address_of(self.existing_host(ns)?))
    }

    /// The `n`th of the clients' addresses, of the lab's family.
    pub fn client_address(&self, n: usize) -> IpAddr {
        self.options.topology.client_address(n)
    }

    /// Sends every frame that arrives on one of a host's interfaces out of another, until the returned value is dropped.
    ///
    /// # Errors
    /// There is no such interface, or another program is on the first.
    pub fn hand_over(&self, ns: Ns, from: &str, to: &str) -> Result<Ebpf> {
        let index = self.in_ns(ns, || nix::net::if_::if_nametoindex(to))?;
        let index = index.with_context(|| format!("{ns:?} has no interface {to}"))?;
        programs::hand_over(&self.namespace(ns), from, index)
    }

    /// Makes a tunnel's end of a server, if the lab's mode is that and its options leave it to the lab.
    pub(super) fn end_tunnel(&mut self, index: usize) -> Result<()> {
        if self.options.topology.mode == Mode::Tunnel && !self.options.open_tunnels {
            let server = self.namespace(Ns::Server(index));
            self.programs.push(programs::decapsulate(&server, INTERFACE)?);
        }
        Ok(())
    }

    /// Captures no more than so many packets at each bridge port of a host: as they are between hosts, before a
    /// tunnel's end has stripped them.
    ///
    /// # Errors
    /// There is no such host, or tcpdump did not start.
    pub fn capture_cables(&self, ns: Ns, packets: u32, filter: &str) -> Result<Vec<Capture>> {
        let cables = self.options.topology.cables(self.existing_host(ns)?);
        let fabric = self.namespace(Ns::Fabric);
        let capture = |cable: &Cable| {
            Capture::start(&fabric, &cable.port, Some(packets), filter, self.next_capture_file())
        };
        cables.iter().map(capture).collect()
    }

    /// Sets a host's interfaces down, or up, with the addresses and routes that its own configuration gives it: the kernel
    /// forgets routes and IPv6 addresses of an interface that goes down.
    ///
    /// # Errors
    /// There is no such host, or `ip` failed.
    pub fn set_interfaces(&self, ns: Ns, up: bool) -> Result<()> {
        let (topology, host) = (self.options.topology, self.existing_host(ns)?);
        if up {
            return self.ip(ns, &hosts::addresses(topology, host));
        }
        let down = |cable: &Cable| format!("link set {} down\n", cable.interface);
        self.ip(ns, &topology.cables(host).iter().map(down).collect::<String>())
    }

    /// Has a host forget what it found out about the MTU of paths.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn forget_paths(&self, ns: Ns) -> Result<()> {
        for family in ["-4", "-6"] {
            let output = self.command(ns, "ip", [family, "route", "flush", "cache"]).output()?;
            if !output.status.success() {
                bail!(
                    "ip {family} route flush cache: {}",
                    String::from_utf8_lossy(&output.stderr).trim_end()
                );
            }
        }
        Ok(())
    }
}
