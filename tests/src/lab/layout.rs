//! Who is in the lab: names, addresses and MAC addresses, decided here once.

use std::net::{IpAddr, Ipv4Addr};

/// The interface of every host.
pub const INTERFACE: &str = "eth0";
/// The bridge, in the fabric's namespace.
pub const BRIDGE: &str = "br0";
/// The balancer's own address, /24.
pub const LB: Ipv4Addr = Ipv4Addr::new(192, 168, 85, 10);
/// The client host's own address, /24.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 85, 100);
/// The virtual service of Hyperspace.
pub const HYPERSPACE: Ipv4Addr = Ipv4Addr::new(192, 168, 85, 150);
/// The virtual service of MyChart.
pub const MYCHART: Ipv4Addr = Ipv4Addr::new(192, 168, 85, 151);
/// All of it is local to the client host: any of its addresses can be bound there.
pub const CLIENTS: &str = "10.85.0.0/16";

/// Labels and last octets of the servers that a new lab has, in the order of [`Ns::Server`].
pub(super) const SERVERS: [(&str, u8); 5] = [
    ("Hyperspace_Srv_1", 200),
    ("Hyperspace_Srv_2", 201),
    ("Hyperspace_Srv_3", 202),
    ("MyChart_Srv_1", 210),
    ("MyChart_Srv_2", 211),
];

/// The configuration of the four services, as a hospital would write it.
pub(super) const CONFIG: &str = "\
version: 1
node:
  interfaces: [eth0]
virtual_services:
  - label: Hyperspace
    address: 192.168.85.150
    ports: [443]
    real_servers:
      - { label: Hyperspace_Srv_1, address: 192.168.85.200 }
      - { label: Hyperspace_Srv_2, address: 192.168.85.201 }
      - { label: Hyperspace_Srv_3, address: 192.168.85.202 }
  - label: Hyperspace_redirect
    address: 192.168.85.150
    ports: [80]
    protocol: http
    force_https: true
  - label: MyChart
    address: 192.168.85.151
    ports: [443]
    real_servers:
      - { label: MyChart_Srv_1, address: 192.168.85.210 }
      - { label: MyChart_Srv_2, address: 192.168.85.211 }
  - label: MyChart_redirect
    address: 192.168.85.151
    ports: [80]
    protocol: http
    force_https: true
";

/// A network namespace of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ns {
    /// The bridge and its ports.
    Fabric,
    /// The balancer.
    Lb,
    /// The client host.
    Client,
    /// A server, by its index: 0 to 2 are Hyperspace's, 3 and 4 MyChart's, further ones were added.
    Server(usize),
}

/// A host on the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Which namespace is its.
    pub ns: Ns,
    /// A server's label; `lb` and `client` for the others.
    pub label: String,
    /// Its own address, /24.
    pub address: Ipv4Addr,
}

impl Host {
    pub(super) fn lb() -> Self {
        Self { ns: Ns::Lb, label: "lb".to_owned(), address: LB }
    }

    pub(super) fn client() -> Self {
        Self { ns: Ns::Client, label: "client".to_owned(), address: CLIENT }
    }

    pub(super) fn server(index: usize, label: &str, octet: u8) -> Self {
        let address = Ipv4Addr::new(192, 168, 85, octet);
        Self { ns: Ns::Server(index), label: label.to_owned(), address }
    }

    /// Its MAC address: locally administered, ending in its address.
    pub fn mac(&self) -> [u8; 6] {
        let [_, _, _, octet] = self.address.octets();
        [0x02, 0x85, 0, 0, 0, octet]
    }

    /// Its port on the bridge, named by its last octet.
    pub fn port(&self) -> String {
        let [_, _, _, octet] = self.address.octets();
        format!("port{octet}")
    }

    /// The end of its namespace's name.
    pub(super) fn suffix(&self) -> String {
        let [_, _, _, octet] = self.address.octets();
        match self.ns {
            Ns::Fabric => "fabric".to_owned(),
            Ns::Lb => "lb".to_owned(),
            Ns::Client => "client".to_owned(),
            Ns::Server(_) => format!("srv{octet}"),
        }
    }
}

/// The `n`th of the client's extra addresses, 10.85.0.1 upward, starting again after 65,000.
pub fn client_address(n: usize) -> IpAddr {
    // Never .0.0 nor .255.255; the remainder fits 16 bits.
    let n = u16::try_from(n % 65_000).unwrap_or(0) + 1;
    let [high, low] = n.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 85, high, low))
}

/// A MAC address as text.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
