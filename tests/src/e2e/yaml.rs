//! Configurations of the lab: the four services, with what a test wants different.

use std::fmt::Write as _;

use crate::lab::{HYPERSPACE, MYCHART};

/// A real server's line.
#[derive(Clone, Debug)]
pub struct ServerLine {
    /// Its label.
    pub label: String,
    /// The last octet of its address.
    pub octet: u8,
    /// Its weight.
    pub weight: u16,
}

impl ServerLine {
    /// A server at 192.168.85.`octet`.
    pub fn new(label: &str, octet: u8, weight: u16) -> Self {
        Self { label: label.to_owned(), octet, weight }
    }
}

/// What is wanted of the lab's balancer.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Further lines of `node`, each ended, indented by two.
    pub node: String,
    /// Hyperspace's servers.
    pub hyperspace: Vec<ServerLine>,
    /// Further lines of Hyperspace, each ended, indented by four.
    pub hyperspace_more: String,
    /// MyChart's servers.
    pub mychart: Vec<ServerLine>,
    /// Further lines of MyChart, each ended, indented by four.
    pub mychart_more: String,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            node: String::new(),
            hyperspace: vec![
                ServerLine::new("Hyperspace_Srv_1", 200, 100),
                ServerLine::new("Hyperspace_Srv_2", 201, 100),
                ServerLine::new("Hyperspace_Srv_3", 202, 100),
            ],
            hyperspace_more: String::new(),
            mychart: vec![
                ServerLine::new("MyChart_Srv_1", 210, 100),
                ServerLine::new("MyChart_Srv_2", 211, 100),
            ],
            mychart_more: String::new(),
        }
    }
}

impl Wanted {
    /// The file.
    pub fn yaml(&self) -> String {
        let mut out = format!("version: 1\nnode:\n  interfaces: [eth0]\n{}virtual_services:\n", self.node);
        for (label, address, more, servers) in [
            ("Hyperspace", HYPERSPACE, &self.hyperspace_more, &self.hyperspace),
            ("MyChart", MYCHART, &self.mychart_more, &self.mychart),
        ] {
            // Writing to a String has no way to fail.
            let _ = write!(
                out,
                "  - label: {label}\n    address: {address}\n    ports: [443]\n{more}    real_servers:\n"
            );
            for ServerLine { label, octet, weight } in servers {
                let _ = writeln!(
                    out,
                    "      - {{ label: {label}, address: 192.168.85.{octet}, weight: {weight} }}"
                );
            }
            let _ = write!(
                out,
                "  - label: {label}_redirect\n    address: {address}\n    ports: [80]\n    protocol: http\n    \
                 force_https: true\n"
            );
        }
        out
    }
}
