//! The configuration of a lab's balancer: Hyperspace, MyChart, and their redirects.

use std::fmt::Write as _;

use super::{
    layout::SERVERS,
    topology::{Arms, Mode, Topology, address},
};

/// What is said of both services beyond their addresses and servers.
#[derive(Clone, Debug)]
pub struct Services {
    /// The list of ports.
    pub ports: String,
    /// Further lines of each, ended, indented by four.
    pub more: String,
}

impl Default for Services {
    fn default() -> Self {
        Self { ports: "443".to_owned(), more: String::new() }
    }
}

impl Services {
    /// The file, as a hospital with this topology would write it.
    pub fn yaml(&self, topology: Topology) -> String {
        let interfaces = match topology.arms {
            Arms::One => "eth0",
            Arms::Two => "eth0, eth1",
        };
        let mut out = format!("version: 1\nnode:\n  interfaces: [{interfaces}]\nvirtual_services:\n");
        // Writing to a String has no way to fail.
        for (label, vip) in [("Hyperspace", topology.hyperspace()), ("MyChart", topology.mychart())] {
            let _ = writeln!(out, "  - label: {label}\n    address: {vip}\n    ports: [{}]", self.ports);
            if topology.mode != Mode::default() {
                let _ = writeln!(out, "    forwarding: {}", topology.mode.name());
            }
            let _ = writeln!(out, "{}    real_servers:", self.more);
            for (server, octet) in SERVERS.into_iter().filter(|(server, _)| server.starts_with(label)) {
                let address = address(topology.family, topology.server_network(), octet);
                let _ = writeln!(out, "      - {{ label: {server}, address: {address} }}");
            }
            let _ = write!(
                out,
                "  - label: {label}_redirect\n    address: {vip}\n    ports: [80]\n    protocol: http\n    \
                 force_https: true\n"
            );
        }
        out
    }
}
