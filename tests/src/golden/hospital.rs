//! The hospital whose packets these are: its services, servers, clients and time limits.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::LazyLock,
};

use lb_common::{
    address::Address,
    maglev::{self, Candidate, Table},
};

use super::frame::Mac;

/// The secret of the scheduler's tables.
pub(crate) const SEED: u64 = 0x005e_ed0f_5eed;

/// The balancer's addresses towards the servers; the second is in use where a case says so.
pub(crate) const SOURCES: [Ipv4Addr; 2] = [SOURCE, Ipv4Addr::new(192, 168, 85, 11)];
/// The first of them.
pub(crate) const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 168, 85, 10);
/// The balancer's MAC address.
pub(crate) const BALANCER: Mac = [0x02, 0, 0, 0, 0, 0x0a];
/// The router from which clients' packets come.
pub(crate) const ROUTER: Mac = [0x02, 0, 0, 0, 0, 0x01];
/// The other router of the pair.
pub(crate) const OTHER_ROUTER: Mac = [0x02, 0, 0, 0, 0, 0x02];

/// The first SNAT port.
pub(crate) const FIRST_PORT: u16 = 1024;
/// SNAT ports of each pair of source address and endpoint.
pub(crate) const PORTS: u16 = 64;
/// Endpoints with ports of their own.
pub(crate) const ENDPOINTS: u16 = 8;

/// Time limits in ticks, so far apart that one is never taken for another.
pub(crate) mod span {
    /// After a SYN.
    pub(crate) const SYN: i64 = 400;
    /// After a SYN-ACK.
    pub(crate) const HANDSHAKE: i64 = 800;
    /// After both FIN, or an RST.
    pub(crate) const CLOSED: i64 = 1_600;
    /// After one FIN.
    pub(crate) const HALF_CLOSED: i64 = 3_200;
    /// How long a SNAT port rests.
    pub(crate) const QUARANTINE: i64 = 6_400;
    /// How long it rests where no other is left.
    pub(crate) const LEAST_REST: i64 = 100;
    /// How long a sticky record outlives its last flow.
    pub(crate) const PERSISTENCE: i64 = 25_600;
    /// How long an established flow may be silent.
    pub(crate) const IDLE: i64 = 51_200;
    /// How long an open flow has been silent before it may make way.
    pub(crate) const SPARED: i64 = 12_800;
    /// Two times are the same within this: what a test may take.
    pub(crate) const SLACK: i64 = 40;
}

/// A virtual service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) id: u16,
    pub(crate) address: Ipv4Addr,
}

/// Hyperspace, 192.168.85.150:443.
pub(crate) static HYPERSPACE: Service = Service { id: 1, address: Ipv4Addr::new(192, 168, 85, 150) };
/// MyChart, 192.168.85.151:443.
pub(crate) static MYCHART: Service = Service { id: 3, address: Ipv4Addr::new(192, 168, 85, 151) };
/// Both.
pub(crate) static SERVICES: [&Service; 2] = [&HYPERSPACE, &MYCHART];
/// The service that the daemon answers itself, on port 80 of Hyperspace's address.
pub(crate) const LOCAL_SERVICE: u16 = 2;

/// A real server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) id: u16,
    pub(crate) endpoint: u16,
    pub(crate) service: u16,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: Mac,
}

const fn host(id: u16, endpoint: u16, service: u16, octet: u8) -> Host {
    Host {
        id,
        endpoint,
        service,
        address: Ipv4Addr::new(192, 168, 85, octet),
        mac: [0x02, 0, 0, 0, 0, octet],
    }
}

/// Hyperspace's and MyChart's servers.
pub(crate) static SERVERS: [Host; 5] =
    [host(11, 0, 1, 200), host(12, 1, 1, 201), host(13, 2, 1, 202), host(14, 3, 3, 210), host(15, 4, 3, 211)];
pub(crate) static SRV_1: &Host = &SERVERS[0];
pub(crate) static SRV_2: &Host = &SERVERS[1];
pub(crate) static SRV_3: &Host = &SERVERS[2];
pub(crate) static MYCHART_1: &Host = &SERVERS[3];

/// Another port of the first server's endpoint.
pub(crate) const OTHER_PORT: u16 = 9443;

/// The servers of a service.
pub(crate) fn servers_of(service: &Service) -> impl Iterator<Item = &'static Host> {
    let id = service.id;
    SERVERS.iter().filter(move |server| server.service == id)
}

/// The scheduler's table over these servers, all of one weight.
pub(crate) fn schedule(servers: impl IntoIterator<Item = &'static Host>) -> Table {
    let candidates: Vec<_> = servers
        .into_iter()
        .map(|server| Candidate {
            id: server.id,
            address: address(server.address),
            port: 443_u16.to_be(),
            weight: 100,
        })
        .collect();
    maglev::build(SEED, &candidates, maglev::size_for(candidates.len()))
}

/// The scheduler's tables of the services, with all their servers.
pub(crate) static SCHEDULES: LazyLock<[Table; 2]> =
    LazyLock::new(|| SERVICES.map(|service| schedule(servers_of(service))));

/// The server that an unknown client of a service is sent to.
pub(crate) fn picked(service: &Service, client: Ipv4Addr) -> &'static Host {
    let table = &SCHEDULES[usize::from(service.id == MYCHART.id)];
    let id = table.pick(SEED, address(client));
    SERVERS.iter().find(|server| Some(server.id) == id).expect("the table has servers")
}

/// The clients of the hospital that the scheduler sends to this server.
pub(crate) fn clients_of(server: &Host) -> impl Iterator<Item = Ipv4Addr> {
    let service = SERVICES[usize::from(server.service == MYCHART.id)];
    let id = server.id;
    (1..=u8::MAX)
        .map(|number| Ipv4Addr::new(10, 85, 0, number))
        .filter(move |client| picked(service, *client).id == id)
}

/// An address as a key.
pub(crate) fn address(v4: Ipv4Addr) -> Address {
    Address::from(IpAddr::V4(v4))
}

/// An IPv4 address that was a key.
pub(crate) fn v4(address: Address) -> Ipv4Addr {
    match IpAddr::from(address) {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}
