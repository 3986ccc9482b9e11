//! What is balanced: the hospital's services and servers, each service in a mode, of a protocol, of families of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{TCP, UDP, forwarding::Forwarding};

use super::{Key, server_number, service_number};
use crate::golden::hospital::{HYPERSPACE, OTHER_PORT, SERVERS, SERVICES, SOURCES};

/// How a service is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) forwarding: Forwarding,
    pub(crate) is_udp: bool,
    /// Whether clients, and the service's address, are IPv6.
    pub(crate) clients_v6: bool,
    /// Whether servers are; as the clients, but in a tunnel.
    pub(crate) servers_v6: bool,
    /// The ports that clients ask for.
    pub(crate) ports: &'static [u16],
    /// The servers' port; none: the one that was asked for.
    pub(crate) server_port: Option<u16>,
    /// Whether IPv6 clients of one /64 are one client to persistence and scheduler.
    pub(crate) by_prefix: bool,
    /// Whether a client has a record for each port.
    pub(crate) by_port: bool,
}

impl Kind {
    /// As a hospital begins: TCP over IPv4 on port 443, by source NAT.
    pub(crate) const PLAIN: Self = Self {
        forwarding: Forwarding::Snat,
        is_udp: false,
        clients_v6: false,
        servers_v6: false,
        ports: &[443],
        server_port: Some(443),
        by_prefix: false,
        by_port: false,
    };

    pub(crate) const fn protocol(&self) -> u8 {
        if self.is_udp { UDP } else { TCP }
    }

    /// Whether flows have SNAT ports.
    pub(crate) fn takes_port(&self) -> bool {
        self.forwarding == Forwarding::Snat
    }

    /// Whether servers answer by way of the balancer.
    pub(crate) fn sees_answers(&self) -> bool {
        matches!(self.forwarding, Forwarding::Snat | Forwarding::Nat)
    }

    /// The server's port of a connection to this one.
    pub(crate) fn port_for(&self, asked: u16) -> u16 {
        self.server_port.unwrap_or(asked)
    }
}

/// Both services, in the order of `SERVICES`, and the balancer between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) kinds: [Kind; 2],
    /// Bytes of a packet that the interface takes.
    pub(crate) mtu: u16,
}

/// Where what comes from a server's address and port goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    /// To SNAT ports of this endpoint.
    Ours(u16),
    /// To clients of this service and port.
    Clients(u16, u16),
}

impl Site {
    pub(crate) const PLAIN: Self = Self { kinds: [Kind::PLAIN; 2], mtu: 1500 };

    pub(crate) fn kind(&self, service: u16) -> &Kind {
        &self.kinds[service_number(service)]
    }

    /// A service's address.
    pub(crate) fn vip(&self, service: u16) -> IpAddr {
        let number = service_number(service);
        twin(SERVICES[number].address, self.kinds[number].clients_v6)
    }

    /// The address of the server of this place in `SERVERS`.
    pub(crate) fn server(&self, number: usize) -> IpAddr {
        let host = &SERVERS[number];
        twin(host.address, self.kind(host.service).servers_v6)
    }

    /// The balancer's own address of this number, towards the servers of a service.
    pub(crate) fn source(&self, service: u16, number: u8) -> IpAddr {
        twin(SOURCES[usize::from(number)], self.kind(service).servers_v6)
    }

    /// The service that is balanced at an address and port.
    pub(crate) fn service_at(&self, at: IpAddr, port: u16, protocol: u8) -> Option<u16> {
        let service = self.service_of_address(at, protocol)?;
        self.kind(service).ports.contains(&port).then_some(service)
    }

    /// The service that has this address, for a protocol.
    pub(crate) fn service_of_address(&self, at: IpAddr, protocol: u8) -> Option<u16> {
        let here = |id: &u16| self.vip(*id) == at && self.kind(*id).protocol() == protocol;
        SERVICES.iter().map(|service| service.id).find(here)
    }

    /// Whether the daemon itself answers there.
    pub(crate) fn is_local(&self, at: IpAddr, port: u16, protocol: u8) -> bool {
        (at, port, protocol) == (self.vip(HYPERSPACE.id), 80, TCP)
    }

    /// Every address and port from which servers answer by way of the balancer.
    pub(crate) fn answering(&self) -> Vec<(IpAddr, u16, u8, Answers)> {
        let mut out = Vec::new();
        for (number, host) in SERVERS.iter().enumerate() {
            let (kind, address) = (self.kind(host.service), self.server(number));
            for asked in kind.ports.iter().copied().filter(|_| kind.sees_answers()) {
                let answers = match kind.forwarding {
                    Forwarding::Nat => Answers::Clients(host.service, asked),
                    _ => Answers::Ours(host.endpoint),
                };
                out.push((address, kind.port_for(asked), kind.protocol(), answers));
            }
            // As of a server that other services reach at more ports.
            if number == 0 && kind.takes_port() {
                out.push((address, OTHER_PORT, kind.protocol(), Answers::Ours(host.endpoint)));
            }
        }
        out
    }

    /// Where what comes from this address and port goes, if a server answers from there.
    pub(crate) fn answers_from(&self, at: IpAddr, port: u16, protocol: u8) -> Option<Answers> {
        let found = self.answering().into_iter().find(|(a, p, q, _)| (*a, *p, *q) == (at, port, protocol));
        found.map(|(.., answers)| answers)
    }

    /// The port at which a flow's server is reached.
    pub(crate) fn server_port(&self, server: u16, asked: u16) -> u16 {
        let number = server_number(server).unwrap_or_default();
        self.kind(SERVERS[number].service).port_for(asked)
    }

    /// Whom a client's address stands for in the sticky table and to the scheduler.
    pub(crate) fn client(&self, client: IpAddr, service: u16) -> IpAddr {
        match client {
            IpAddr::V6(address) if self.kind(service).by_prefix => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            other => other,
        }
    }

    /// The port that a client's record is for: zero for all of them.
    pub(crate) fn record_port(&self, key: Key) -> u16 {
        if self.kind(key.service).by_port { key.service_port } else { 0 }
    }
}

/// An IPv4 address of the hospital, or the IPv6 address that stands for the same. A few neighbours share their /64.
pub(crate) fn twin(address: Ipv4Addr, v6: bool) -> IpAddr {
    if !v6 {
        return IpAddr::V4(address);
    }
    let [a, b, c, d] = address.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, high, u16::from(d % 4), 0, 0, 0, low))
}
