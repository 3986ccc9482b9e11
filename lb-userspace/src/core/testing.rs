//! What the tests of the core share: maps on the heap, and rows as the program would write them.

use std::collections::BTreeMap;

use lb_common::address::Address;
use lb_common::clock::Ticks;
use lb_common::control::Snat;
use lb_common::flow::{Flow, FlowKey, FlowServer, FlowSticky, Flows, Sequences};
use lb_common::hash::hash3;
use lb_common::ports::{Owner, PortCell, PortRange};
use lb_common::server::{Server, Servers as _};
use lb_common::sticky::{Stickies, StickyServer, hold, reference};
use lb_common::table::{Insert, find, insert_if_absent};
use lb_common::tcp::TcpState;

use super::apply::{Applied, apply};
use super::desired::At;
use super::desired::{Desired, Inputs, Leaving, ServerHealth, desired};
use super::ids::{Ids, InUse};
use super::name::ServerName;
use super::overlay::Overlay;
use super::slow_start::Growth;
use crate::config::{self, Config};
use crate::dataplane::Maps;
use crate::dataplane::fake::{FakeKernel, maps};

/// A service of a test: label, host, and its servers' labels and hosts.
pub(crate) type TestService<'a> = (&'a str, u8, &'a [(&'a str, u8)]);

/// A configuration of services at 192.0.2.HOST:443 with servers at 192.0.2.HOST.
pub(crate) fn config(services: &[TestService<'_>]) -> Config {
    config::parse("test", &yaml(services)).unwrap()
}

/// The text of [`config`].
pub(crate) fn yaml(services: &[TestService<'_>]) -> String {
    use std::fmt::Write as _;
    let mut yaml =
        "version: 1\nnode: { interfaces: [eth0], tables: { endpoints: 16 } }\nvirtual_services:\n".to_owned();
    if services.is_empty() {
        yaml = yaml.replace("virtual_services:\n", "virtual_services: []\n");
    }
    for (label, host, servers) in services {
        writeln!(yaml, "  - label: {label}\n    address: 192.0.2.{host}\n    ports: [443]").unwrap();
        if servers.is_empty() {
            writeln!(yaml, "    real_servers: []").unwrap();
        } else {
            writeln!(yaml, "    real_servers:").unwrap();
        }
        for (label, host) in *servers {
            writeln!(yaml, "      - {{ label: {label}, address: 192.0.2.{host} }}").unwrap();
        }
    }
    yaml
}

/// A world in which to compute and apply.
pub(crate) struct Case {
    pub(crate) config: Config,
    pub(crate) overlay: Overlay,
    pub(crate) health: BTreeMap<u16, ServerHealth>,
    pub(crate) macs: BTreeMap<u16, At>,
    pub(crate) leaving: BTreeMap<u16, Leaving>,
    pub(crate) ids: Ids,
    pub(crate) maps: Maps,
}

impl Case {
    pub(crate) fn new(config: Config) -> Self {
        Self::with_kernel(config, FakeKernel::default())
    }

    pub(crate) fn with_kernel(config: Config, kernel: FakeKernel) -> Self {
        let mut case = Self {
            config: config.clone(),
            overlay: Overlay::default(),
            health: BTreeMap::new(),
            macs: BTreeMap::new(),
            leaving: BTreeMap::new(),
            ids: Ids::default(),
            maps: maps(kernel),
        };
        case.configure(config);
        case
    }

    /// Takes another configuration, with every neighbour known.
    pub(crate) fn configure(&mut self, config: Config) {
        self.configure_with(config, &InUse::default());
    }

    pub(crate) fn configure_with(&mut self, config: Config, in_use: &InUse) {
        self.ids = self.ids.assign(&config, in_use, 16, 1_700_000_000).unwrap();
        self.config = config;
        self.macs =
            (0..64).map(|id| (id, At { arm: 0, mac: [2, 0, 0, 0, 1, u8::try_from(id).unwrap()] })).collect();
    }

    pub(crate) fn desired(&self) -> Desired {
        desired(&Inputs {
            config: &self.config,
            overlay: &self.overlay,
            health: &self.health,
            macs: &self.macs,
            leaving: &self.leaving,
            ids: &self.ids,
            hz: 1000,
            seed: self.maps.control().maglev_seed.load(),
            growth: &Growth::default(),
            uptime: std::time::Duration::ZERO,
            listening: &BTreeMap::new(),
            unsure: &std::collections::BTreeSet::new(),
        })
        .unwrap()
    }

    pub(crate) fn apply(&self) -> anyhow::Result<Applied> {
        apply(&self.maps, &self.desired(), Ticks(100), &mut || Ok(()))
    }

    pub(crate) fn id(&self, service: &str, server: &str) -> u16 {
        self.ids.server(&ServerName::new(service, server)).unwrap()
    }

    pub(crate) fn server(&self, id: u16) -> Server {
        self.maps.servers.present(id).unwrap()
    }
}

/// A client of a test.
pub(crate) fn client(number: u32) -> Address {
    let [_, a, b, c] = number.to_be_bytes();
    Address::from(std::net::IpAddr::from([10, a, b, c]))
}

/// A sticky record without open flows, one hour before it ends (HZ 1000).
pub(crate) fn stick(maps: &Maps, service: u16, client: Address, server: u16, now: Ticks) {
    let to = StickyServer { service, port: 0, server, made_at: now, verified: true };
    let key = maps.sticky_key(client, service, 0).words();
    let words = [key[0], key[1], to.word()];
    let hash = hash3(&maps.key(), key);
    let deadline = now.plus(Ticks::span_of_millis(3_600_000, 1000));
    let inserted =
        insert_if_absent::<3, Stickies, _>(&maps.sticky, hash, &words, 0, deadline, now, |_, _, _| {});
    assert!(matches!(inserted, Insert::Inserted(_)), "{inserted:?}");
}

/// A flow from SNAT port `first + 7`, counted in the client's sticky record if it has one.
#[expect(clippy::too_many_arguments, reason = "a row has that many fields")]
pub(crate) fn flow(
    maps: &Maps,
    service: u16,
    client: Address,
    client_port: u16,
    server: u16,
    port: u16,
    state: TcpState,
    now: Ticks,
) -> u32 {
    let snat = Snat::from_word(maps.control().snat.load());
    let endpoint = maps.servers.present(server).unwrap().endpoint;
    let key = maps.sticky_key(client, service, port.to_be()).words();
    let found = find::<3, Stickies, _>(&maps.sticky, hash3(&maps.key(), key), key, now);
    let record = found.map(|found| {
        assert!(state.is_closed() || hold(&found, found.life.deadline()));
        reference(found.index, found.life)
    });
    let key = FlowKey { client, client_port: client_port.to_be(), service_port: port.to_be(), service };
    let flow = Flow {
        key,
        to: FlowServer { server, endpoint, snat_port: (snat.first_port + 7).to_be(), source: 0 },
        return_hop: [2, 0, 0, 0, 0, 1],
        arm: 0,
        may_fragment: false,
        sequences: Sequences { client: 1, server: 2 },
        sticky: FlowSticky { made_at: now, record },
        state,
        deadline: now,
    };
    let hash = hash3(&maps.key(), key.words());
    let deadline = now.plus(Ticks(100_000));
    let inserted = insert_if_absent::<7, Flows, _>(
        &maps.flows,
        hash,
        &flow.pack(),
        state as u32,
        deadline,
        now,
        |_, _, _| {},
    );
    let Insert::Inserted(index) = inserted else { unreachable!("{inserted:?}") };
    let range = PortRange { pair: u32::from(endpoint), count: snat.ports };
    let cell = PortCell { owner: Owner::Flow(index), stamp: now };
    maps.port_cells[range.index(7) as usize].store(cell.word());
    index
}
