//! Who is in the lab: names, addresses and MAC addresses, decided here once.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::Range,
};

use super::topology::Topology;

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

/// The indices of Hyperspace's servers in a new lab.
pub const HYPERSPACE_SERVERS: Range<usize> = 0..3;

/// A network namespace of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ns {
    /// The bridges and their ports.
    Fabric,
    /// The balancer.
    Lb,
    /// The client host.
    Client,
    /// A server, by its index: 0 to 2 are Hyperspace's, 3 and 4 MyChart's, further ones were added.
    Server(usize),
    /// The router at the services' end of a narrow hop: `hop0` is its end of it.
    Near,
    /// The router at the clients' end of a narrow hop: `hop1` is its end of it.
    Far,
}

/// A host on a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Which namespace is its.
    pub ns: Ns,
    /// A server's label; `lb` and `client` for the others.
    pub label: String,
    /// Its own IPv4 address, /24, on its `eth0`; [`Lab::address`](super::Lab::address) is that of the lab's family.
    pub address: Ipv4Addr,
}

impl Host {
    pub(super) fn lb() -> Self {
        Self { ns: Ns::Lb, label: "lb".to_owned(), address: LB }
    }

    /// The client host in 192.168.`network`.0/24.
    pub(super) fn client(network: u8) -> Self {
        let [_, _, _, octet] = CLIENT.octets();
        Self { ns: Ns::Client, label: "client".to_owned(), address: Ipv4Addr::new(192, 168, network, octet) }
    }

    /// The routers of a narrow hop, between two networks.
    pub(super) fn routers(near: u8, far: u8) -> [Self; 2] {
        let router = |ns, label: &str, network, octet| {
            let address = Ipv4Addr::new(192, 168, network, octet);
            Self { ns, label: label.to_owned(), address }
        };
        [router(Ns::Near, "near", near, 1), router(Ns::Far, "far", far, 2)]
    }

    /// A server at 192.168.`network`.`octet`.
    pub(super) fn server(index: usize, label: &str, network: u8, octet: u8) -> Self {
        let address = Ipv4Addr::new(192, 168, network, octet);
        Self { ns: Ns::Server(index), label: label.to_owned(), address }
    }

    /// The MAC address of its `eth0`: locally administered, ending in its address.
    pub fn mac(&self) -> [u8; 6] {
        let [_, _, _, octet] = self.address.octets();
        [0x02, 0x85, 0, 0, 0, octet]
    }

    /// The bridge port of its `eth0`, named by its last octet.
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
            Ns::Near => "near".to_owned(),
            Ns::Far => "far".to_owned(),
            Ns::Server(_) => format!("srv{octet}"),
        }
    }
}

/// The `n`th of the client's extra addresses, 10.85.0.1 upward, starting again after 65,000.
pub fn client_address(n: usize) -> IpAddr {
    Topology::default().client_address(n)
}

/// A MAC address as text.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
