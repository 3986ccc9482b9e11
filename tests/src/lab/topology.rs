//! What a lab can look like: how packets reach the servers, which addresses, one network or two, a narrow hop.
//!
//! ```text
//! one arm                        two arms
//!
//! client ── br0 ── lb            client ── br0 ── eth0 lb eth1 ── br1 ── servers
//!            └──── servers                  └─ eth1 of the servers in dr and tunnel ─┘
//!
//! narrow: client ── br2 ── far ──(MTU 1400)── near ── br0
//! ```

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::layout::{BRIDGE, CLIENTS, Host, INTERFACE, Ns};

/// The clients' network, and in a one-arm lab everybody's: 192.168.85.0/24 and 2001:db8:85::/64.
pub(super) const CLIENT_SIDE: u8 = 85;
/// The servers' network of a two-arm lab.
pub(super) const SERVER_SIDE: u8 = 86;
/// The client host's network behind a narrow hop.
pub(super) const FAR_SIDE: u8 = 84;
/// The narrow hop itself.
pub(super) const HOP: u8 = 83;
/// All of it is local to the client host in a lab with IPv6.
const CLIENTS_V6: &str = "2001:db8:c11e::/64";

/// How packets reach the servers: what the servers are set up for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// From an address of the balancer: servers need nothing.
    #[default]
    Snat,
    /// From the client's address: the balancer is the servers' default router, and forwards what is not its own.
    Nat,
    /// Unchanged: the services' addresses are on the servers' loopback, answers go to the clients directly.
    Dr,
    /// Encapsulated: as `dr`, and the servers strip an outer header.
    Tunnel,
}

/// The family of the services', servers' and clients' addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 alone.
    #[default]
    V4,
    /// IPv6; hosts have their IPv4 addresses as well.
    V6,
}

/// The balancer's interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arms {
    /// One, on everybody's network.
    #[default]
    One,
    /// `eth0` on the clients' network and `eth1` on the servers'.
    Two,
}

/// The VLAN tags around what hosts send: their addresses are on VLAN devices, and the balancer's interface is the trunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tags {
    /// None.
    #[default]
    None,
    /// 802.1Q, VLAN 85.
    One,
    /// The same within a provider's tag (802.1ad), VLAN 100.
    Two,
}

/// What a lab looks like. The default is a hospital's: one arm, `snat`, IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Topology {
    /// How packets reach the servers.
    pub mode: Mode,
    /// Which addresses.
    pub family: Family,
    /// The balancer's interfaces.
    pub arms: Arms,
    /// Whether clients are behind a hop of [`Topology::NARROW_MTU`] bytes, which they know nothing of.
    pub narrow: bool,
    /// What clients and servers wrap their frames in, on links with room for it.
    pub tags: Tags,
}

/// One veth pair of a host: its interface, and a port of a bridge.
#[derive(Clone, Debug)]
pub(super) struct Cable {
    pub(super) interface: &'static str,
    pub(super) bridge: &'static str,
    pub(super) port: String,
    pub(super) mac: [u8; 6],
    pub(super) network: u8,
    /// The host's number in the network.
    pub(super) number: u8,
    /// The VLAN devices on the interface, the outer tag's first.
    pub(super) vlans: &'static [Vlan],
}

/// A VLAN device: its name, its protocol as `ip` has it, its number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vlan {
    pub(super) device: &'static str,
    pub(super) protocol: &'static str,
    pub(super) id: u16,
}

impl Tags {
    /// The devices on an `eth0`, the outer tag's first.
    fn vlans(self) -> &'static [Vlan] {
        const ONE: [Vlan; 1] = [Vlan { device: "eth0.85", protocol: "802.1Q", id: 85 }];
        const TWO: [Vlan; 2] = [
            Vlan { device: "eth0.100", protocol: "802.1ad", id: 100 },
            Vlan { device: "eth0.100.85", protocol: "802.1Q", id: 85 },
        ];
        match self {
            Self::None => &[],
            Self::One => &ONE,
            Self::Two => &TWO,
        }
    }
}

impl Cable {
    /// The interface that has the host's addresses.
    pub(super) fn addressed(&self) -> &'static str {
        self.vlans.last().map_or(self.interface, |vlan| vlan.device)
    }

    /// The interface's IPv4 address.
    pub(super) fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.network, self.number)
    }
}

impl Mode {
    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Snat => "snat",
            Self::Nat => "nat",
            Self::Dr => "dr",
            Self::Tunnel => "tunnel",
        }
    }

    /// Whether the servers own the services' addresses and answer the clients directly.
    pub fn answers_directly(self) -> bool {
        matches!(self, Self::Dr | Self::Tunnel)
    }
}

impl Topology {
    /// The balancer's second interface, and in a two-arm lab of mode `dr` or `tunnel` a server's.
    pub const SECOND_INTERFACE: &str = "eth1";
    /// The bridge of the servers' network in a two-arm lab.
    pub const SERVERS_BRIDGE: &str = "br1";
    /// The bridge between the client host and the narrow hop.
    pub const FAR_BRIDGE: &str = "br2";
    /// Of hosts, in bytes.
    pub(super) const MTU: u32 = 1500;
    /// The narrow hop's, in bytes.
    pub const NARROW_MTU: u32 = 1400;

    pub(super) fn bridges(self) -> Vec<&'static str> {
        let servers = (self.arms == Arms::Two).then_some(Self::SERVERS_BRIDGE);
        let far = self.narrow.then_some(Self::FAR_BRIDGE);
        [Some(BRIDGE), servers, far].into_iter().flatten().collect()
    }

    /// The families that hosts have addresses of.
    pub(super) fn families(self) -> &'static [Family] {
        match self.family {
            Family::V4 => &[Family::V4],
            Family::V6 => &[Family::V4, Family::V6],
        }
    }

    pub(super) fn server_network(self) -> u8 {
        match self.arms {
            Arms::One => CLIENT_SIDE,
            Arms::Two => SERVER_SIDE,
        }
    }

    pub(super) fn client_network(self) -> u8 {
        if self.narrow { FAR_SIDE } else { CLIENT_SIDE }
    }

    /// How a host is connected; the first is its `eth0`.
    pub(super) fn cables(self, host: &Host) -> Vec<Cable> {
        let [_, _, network, number] = host.address.octets();
        let bridge = match network {
            SERVER_SIDE => Self::SERVERS_BRIDGE,
            FAR_SIDE => Self::FAR_BRIDGE,
            _ => BRIDGE,
        };
        let (port, mac) = (host.port(), host.mac());
        let vlans = if host.ns == Ns::Lb { &[] } else { self.tags.vlans() };
        let first = Cable { interface: INTERFACE, bridge, port, mac, network, number, vlans };
        let second = match (self.arms, host.ns) {
            (Arms::Two, Ns::Lb) => Some((SERVER_SIDE, Self::SERVERS_BRIDGE)),
            (Arms::Two, Ns::Server(_)) if self.mode.answers_directly() => Some((CLIENT_SIDE, BRIDGE)),
            _ => None,
        };
        let second = second.map(|(network, bridge)| Cable {
            interface: Self::SECOND_INTERFACE,
            bridge,
            port: format!("{}b", first.port),
            mac: [0x02, 0x85, 0, 0, 1, number],
            network,
            number,
            vlans: &[],
        });
        [first].into_iter().chain(second).collect()
    }

    /// The MTU of every cable: a trunk has room for one tag beyond it, and needs more for the second.
    pub(super) fn mtu(self) -> u32 {
        if self.tags == Tags::Two { Self::MTU + 4 } else { Self::MTU }
    }

    /// The interface with a client's or server's addresses.
    pub fn addressed_interface(self) -> &'static str {
        self.tags.vlans().last().map_or(INTERFACE, |vlan| vlan.device)
    }

    /// A host's address of the lab's family on its `eth0`.
    pub fn address_of(self, host: &Host) -> IpAddr {
        let [_, _, network, number] = host.address.octets();
        address(self.family, network, number)
    }

    /// The balancer's address of the lab's family on the servers' side: what servers see in mode `snat`.
    pub fn balancer_to_servers(self) -> IpAddr {
        address(self.family, self.server_network(), 10)
    }

    /// The virtual service of Hyperspace.
    pub fn hyperspace(self) -> IpAddr {
        address(self.family, CLIENT_SIDE, 150)
    }

    /// The virtual service of `MyChart`.
    pub fn mychart(self) -> IpAddr {
        address(self.family, CLIENT_SIDE, 151)
    }

    /// The network of the client host's extra addresses.
    pub fn clients(self) -> &'static str {
        clients(self.family)
    }

    /// The `n`th of the client host's extra addresses, 10.85.0.1 or 2001:db8:c11e::1 upward, starting again after 65,000.
    pub fn client_address(self, n: usize) -> IpAddr {
        // Never .0.0 nor .255.255; the remainder fits 16 bits.
        let n = u16::try_from(n % 65_000).unwrap_or(0) + 1;
        let [high, low] = n.to_be_bytes();
        match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 85, high, low)),
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xc11e, 0, 0, 0, 0, n)),
        }
    }
}

impl fmt::Display for Topology {
    /// Such as `dr-ipv6-two-arm`, with `-narrow` where there is a narrow hop, `-vlan` or `-two-vlans` where there are tags.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        let arms = match self.arms {
            Arms::One => "one-arm",
            Arms::Two => "two-arm",
        };
        let narrow = if self.narrow { "-narrow" } else { "" };
        let tags = match self.tags {
            Tags::None => "",
            Tags::One => "-vlan",
            Tags::Two => "-two-vlans",
        };
        write!(f, "{}-{family}-{arms}{narrow}{tags}", self.mode.name())
    }
}

/// A host's address: 192.168.85.150, or with the same digits 2001:db8:85::150.
pub(super) fn address(family: Family, network: u8, number: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 168, network, number)),
        Family::V6 => {
            let (network, number) = (digits(network), digits(number));
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, number))
        }
    }
}

/// A network with its length.
pub(super) fn network(family: Family, network: u8) -> String {
    match family {
        Family::V4 => format!("192.168.{network}.0/24"),
        Family::V6 => format!("2001:db8:{network}::/64"),
    }
}

/// The network of the client host's extra addresses.
pub(super) fn clients(family: Family) -> &'static str {
    match family {
        Family::V4 => CLIENTS,
        Family::V6 => CLIENTS_V6,
    }
}

/// The number whose hexadecimal digits are this one's decimal ones.
fn digits(number: u8) -> u16 {
    let number = u16::from(number);
    (number / 100) * 0x100 + (number / 10 % 10) * 0x10 + number % 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_have_the_same_digits() {
        assert_eq!(address(Family::V4, 85, 209).to_string(), "192.168.85.209");
        assert_eq!(address(Family::V6, 85, 209).to_string(), "2001:db8:85::209");
        assert_eq!(network(Family::V6, 86), "2001:db8:86::/64");
        let topology = Topology { family: Family::V6, ..Topology::default() };
        assert_eq!(topology.client_address(299).to_string(), "2001:db8:c11e::12c");
        assert_eq!(Topology::default().client_address(299).to_string(), "10.85.1.44");
    }

    #[test]
    fn servers_that_answer_directly_have_a_way_past_a_two_arm_balancer() {
        for (mode, interfaces) in [(Mode::Snat, 1), (Mode::Nat, 1), (Mode::Dr, 2), (Mode::Tunnel, 2)] {
            let topology = Topology { mode, arms: Arms::Two, ..Topology::default() };
            let server = Host::server(0, "server", topology.server_network(), 200);
            let cables = topology.cables(&server);
            assert_eq!((cables.len(), cables[0].bridge), (interfaces, Topology::SERVERS_BRIDGE), "{mode:?}");
            assert!(cables.iter().skip(1).all(|cable| cable.bridge == BRIDGE));
        }
    }
}
