//! One service and one server, in a mode, a family each, behind tags, on one interface or two.

use std::{fmt, net::IpAddr};

use lb_common::{
    TCP, UDP,
    address::Address,
    clock::Ticks,
    control::Snat,
    flow::mac_word,
    forwarding::Forwarding,
    maglev::{self, Candidate},
    mss::MssClamp,
    schedule::Scheduler,
    server::{Server, ServerState},
    service::{EntryKind, IndexEntry, Service},
};

use super::super::{
    bench::{Bench, LOOPBACK, USABLE},
    frame::Mac,
    hospital::{FIRST_PORT, PORTS, SEED, span},
};

pub(super) const SERVICE: u16 = 5;
pub(super) const SERVER: u16 = 40;
const ENDPOINT: u16 = 7;
/// The service's port, and the server's in the modes that change it.
pub(super) const SERVICE_PORT: u16 = 443;
const SERVER_PORT: u16 = 8443;
/// The MTU of every interface.
pub(super) const MTU: u16 = 1500;

/// The index of an interface that no test run comes by.
const ELSEWHERE: u64 = 0xffff;

pub(super) const OWN_MAC: Mac = [2, 0, 0, 0, 0, 0x10];
pub(super) const OTHER_MAC: Mac = [2, 0, 0, 0, 0, 0x11];
pub(super) const ROUTER_MAC: Mac = [2, 0, 0, 0, 0, 0xfe];
pub(super) const SERVER_MAC: Mac = [2, 0, 0, 0, 0, 0x20];

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    pub(super) forwarding: Forwarding,
    /// The number of the client.
    pub(super) client: u16,
    pub(super) clients_v6: bool,
    pub(super) servers_v6: bool,
    /// EtherTypes and contents of the VLAN tags.
    pub(super) tags: &'static [(u16, u16)],
    /// Whether the server is behind an interface of its own.
    pub(super) two_arms: bool,
    /// Whether the service is UDP; else TCP.
    pub(super) is_udp: bool,
    /// What the service has done with SYNs.
    pub(super) mss_clamp: MssClamp,
}

const TAGS: [&[(u16, u16)]; 3] = [&[], &[(0x8100, 0x0064)], &[(0x88a8, 0x0064), (0x8100, 0x2005)]];

fn ip(v6: bool, host: u16) -> IpAddr {
    if v6 {
        IpAddr::from([0x2001, 0xdb8, 0x85, 0, 0x1234, 0xff, 0xfe00, host])
    } else {
        let [high, low] = host.to_be_bytes();
        IpAddr::from([10, 85, high, low])
    }
}

impl World {
    /// Every combination that can be.
    pub(super) fn all() -> Vec<Self> {
        let mut out = Vec::new();
        for forwarding in Forwarding::ALL {
            for (clients_v6, servers_v6) in [(false, false), (true, true), (false, true), (true, false)] {
                if clients_v6 != servers_v6 && forwarding != Forwarding::Tunnel {
                    continue;
                }
                for tags in TAGS {
                    for two_arms in [false, true] {
                        for is_udp in [false, true] {
                            out.push(Self {
                                forwarding,
                                client: 77,
                                clients_v6,
                                servers_v6,
                                tags,
                                two_arms,
                                is_udp,
                                mss_clamp: MssClamp::None,
                            });
                        }
                    }
                }
            }
        }
        out
    }

    pub(super) fn service(&self) -> IpAddr {
        ip(self.clients_v6, 150)
    }

    pub(super) fn client(&self) -> IpAddr {
        ip(self.clients_v6, self.client)
    }

    pub(super) fn service_entry(&self) -> Service {
        let ticks = |span: i64| Ticks(u32::try_from(span).unwrap_or(u32::MAX));
        Service {
            address: Address::from(self.service()),
            persistence: ticks(span::PERSISTENCE),
            idle: ticks(span::IDLE),
            forwarding: self.forwarding,
            by_prefix: false,
            by_port: false,
            is_udp: self.is_udp,
            scheduler: Scheduler::SourceHash,
            mss_clamp: self.mss_clamp,
        }
    }

    /// A router on the way.
    pub(super) fn router(&self) -> IpAddr {
        ip(self.clients_v6, 254)
    }

    pub(super) fn server(&self) -> IpAddr {
        ip(self.servers_v6, 200)
    }

    /// Where packets to the server come from, where it does not see the client's address.
    pub(super) fn source(&self) -> IpAddr {
        ip(self.servers_v6, 10)
    }

    /// The server's port.
    pub(super) const fn server_port(&self) -> u16 {
        match self.forwarding {
            Forwarding::Snat | Forwarding::Nat => SERVER_PORT,
            Forwarding::Dr | Forwarding::Tunnel => SERVICE_PORT,
        }
    }

    /// The client as the server sees it, from this port of its own.
    pub(super) fn seen_client(&self, port: u16, snat: u16) -> (IpAddr, u16) {
        if self.forwarding == Forwarding::Snat {
            (self.source(), FIRST_PORT + snat)
        } else {
            (self.client(), port)
        }
    }

    /// The balancer's MAC address on the server's side.
    pub(super) const fn server_side(&self) -> Mac {
        if self.two_arms { OTHER_MAC } else { OWN_MAC }
    }

    pub(super) fn index(&self) -> Vec<IndexEntry> {
        let entry = |address: IpAddr, port: u16, kind, id, service_port: u16| IndexEntry {
            address: Address::from(address),
            port: port.to_be(),
            protocol: if self.is_udp { UDP } else { TCP },
            kind,
            id,
            service_port: service_port.to_be(),
        };
        let mut entries = vec![
            entry(self.service(), SERVICE_PORT, EntryKind::Service, SERVICE, 0),
            entry(self.service(), 0, EntryKind::Address, SERVICE, 0),
        ];
        match self.forwarding {
            Forwarding::Snat => {
                entries.push(entry(self.server(), SERVER_PORT, EntryKind::Endpoint, ENDPOINT, 0));
            }
            Forwarding::Nat => {
                entries.push(entry(
                    self.server(),
                    SERVER_PORT,
                    EntryKind::NatEndpoint,
                    SERVICE,
                    SERVICE_PORT,
                ));
            }
            Forwarding::Dr | Forwarding::Tunnel => {}
        }
        entries
    }

    pub(super) fn entry(&self, state: u16) -> Server {
        Server {
            address: Address::from(self.server()),
            port: self.server_port().to_be(),
            endpoint: ENDPOINT,
            service: SERVICE,
            forwarding: self.forwarding,
            arm: u8::from(self.two_arms),
            mac: SERVER_MAC,
            state: ServerState(state),
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |v6| if v6 { "IPv6" } else { "IPv4" };
        write!(
            f,
            "{}, {}, {} to {}, {} tags, {} interfaces",
            if self.is_udp { "UDP" } else { "TCP" },
            self.forwarding.name(),
            family(self.clients_v6),
            family(self.servers_v6),
            self.tags.len(),
            1 + u8::from(self.two_arms)
        )
    }
}

impl Bench {
    /// Sends every client to the one server.
    ///
    /// # Errors
    /// The kernel refused it.
    pub(super) fn schedule_the_server(&mut self) -> anyhow::Result<()> {
        let candidate = Candidate { id: SERVER, address: Address::default(), port: 0, weight: 1 };
        self.replace_schedule(SERVICE, &maglev::build(SEED, &[candidate], maglev::size_for(1)))
    }

    /// Makes the maps this world's.
    ///
    /// # Errors
    /// The index does not fit, or the kernel refused a map.
    pub(super) fn install(&mut self, world: &World) -> anyhow::Result<()> {
        self.reset()?;
        self.settle(world)
    }

    /// Makes the settings, the index and the service this world's.
    ///
    /// # Errors
    /// As of [`Bench::install`].
    pub(super) fn settle(&mut self, world: &World) -> anyhow::Result<()> {
        self.fill_index(&world.index())?;
        self.put_service_of(world);
        let control = self.control();
        let family = if world.servers_v6 { &control.sources_v6 } else { &control.sources };
        for (word, value) in family[0].iter().zip(Address::from(world.source()).0) {
            word.store(value);
        }
        let snat = Snat { first_port: FIRST_PORT, ports: u32::from(PORTS), sources: 1, sources_v6: 1 };
        control.snat.store(snat.word());
        control.arms[0].mac.store(mac_word(OWN_MAC));
        control.arms[1].mac.store(if world.two_arms { mac_word(OTHER_MAC) } else { 0 });
        self.come_by(0);
        self.connect_arms()
    }

    /// Makes the service this world's.
    pub(super) fn put_service_of(&self, world: &World) {
        self.put_service(SERVICE, &world.service_entry());
    }

    /// Empties the tables, with the server usable.
    pub(super) fn begin(&self, world: &World) {
        self.tables.clear();
        self.put_server_of(world);
    }

    /// Makes the server usable.
    pub(super) fn put_server_of(&self, world: &World) {
        self.put_server(SERVER, &world.entry(USABLE));
    }

    /// From now on, packets come by this interface.
    pub(super) fn come_by(&self, arm: usize) {
        let mtu = u64::from(MTU) << 32;
        let control = self.control();
        let arms = [(arm, LOOPBACK | mtu), (1 - arm, ELSEWHERE | mtu)];
        if arms.iter().any(|(arm, wanted)| control.arms[*arm].interface.load() != *wanted) {
            arms.iter().for_each(|(arm, wanted)| control.arms[*arm].interface.store(*wanted));
            control.changed();
        }
    }
}
