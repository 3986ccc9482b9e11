//! Maps filled by hand: two services as in the example configuration, clients, flows.

use std::{
    net::IpAddr,
    sync::{Mutex, atomic::Ordering},
};

use jiff::Timestamp;
use lb_common::{
    TCP,
    address::Address,
    clock::Ticks,
    flow::{FLOW_WORDS, Flow, FlowKey, FlowServer, FlowSticky, Flows, Sequences},
    forwarding::Forwarding,
    hash::hash3,
    maglev::{Candidate, build, size_for},
    maps::{ServerInfo, ServiceInfo, Traffic},
    mss::MssClamp,
    schedule::Scheduler,
    server::{Server, ServerState},
    service::{EntryKind, IndexEntry, Service, Spread, layout},
    sticky::{STICKY_WORDS, Stickies, StickyServer},
    table::{Insert, insert_if_absent},
    tcp::TcpState,
};

use super::{Snapshot, names::label_bytes};
use crate::dataplane::{
    CountersOf, Kernel, Maps,
    fake::{self, FakeKernel},
};

/// Jiffies of the tests' now, at HZ 1000: a hundred thousand ticks of 64 ms.
pub(crate) const NOW: u64 = 100_000 * 64;
pub(crate) const HOUR: Ticks = Ticks::span_of_millis(3_600_000, 1000);

/// The time of day of the tests' now.
pub(crate) fn wall() -> Timestamp {
    "2026-03-01T03:00:00Z".parse().unwrap()
}

/// A kernel whose counters can be set.
#[derive(Default)]
pub(crate) struct CountingKernel {
    inner: FakeKernel,
    pub(crate) reasons: Mutex<Vec<(usize, u64)>>,
}

impl Kernel for CountingKernel {
    fn jiffies(&self) -> anyhow::Result<u64> {
        self.inner.jiffies()
    }
    fn set_schedule(&self, service: u16, values: &[u64]) -> anyhow::Result<()> {
        self.inner.set_schedule(service, values)
    }
    fn set_arm(&self, arm: u8, interface: u32) -> anyhow::Result<()> {
        self.inner.set_arm(arm, interface)
    }
    fn schedule(&self, service: u16) -> anyhow::Result<Option<Vec<u64>>> {
        self.inner.schedule(service)
    }
    fn reasons(&self) -> anyhow::Result<Vec<u64>> {
        let mut reasons = self.inner.reasons()?;
        for (index, packets) in &*self.reasons.lock().unwrap() {
            reasons[*index] = *packets;
        }
        Ok(reasons)
    }
    fn service_traffic(&self, id: u16) -> anyhow::Result<Traffic> {
        Ok(traffic(u64::from(id) * 1000))
    }
    fn server_traffic(&self, id: u16) -> anyhow::Result<Traffic> {
        Ok(traffic(u64::from(id) * 100))
    }
    fn clear_traffic(&self, of: CountersOf) -> anyhow::Result<()> {
        self.inner.clear_traffic(of)
    }
}

fn traffic(n: u64) -> Traffic {
    Traffic {
        packets_in: n + 1,
        bytes_in: n + 2,
        packets_out: n + 3,
        bytes_out: n + 4,
        flows: n + 5,
        resets: n + 6,
    }
}

pub(crate) fn address(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().unwrap())
}

/// Maps that are filled one thing at a time.
pub(crate) struct Builder {
    pub(crate) maps: Maps,
}

impl Builder {
    /// Set up, empty, the daemon alive as process 4711.
    pub(crate) fn new() -> Self {
        let mut maps = fake::maps(FakeKernel::default());
        let inner = FakeKernel::default();
        inner.jiffies.store(NOW, Ordering::Relaxed);
        maps.kernel = Box::new(CountingKernel { inner, reasons: Mutex::new(vec![(6, 3), (7, 4)]) });
        let control = maps.control();
        control.heartbeat.store(NOW - 500);
        control.daemon.store(4711);
        let source = address("192.168.85.10");
        control.sources[0][0].store(source.0[0]);
        control.sources[0][1].store(source.0[1]);
        for word in
            [&control.idle_syn, &control.idle_handshake, &control.idle_half_closed, &control.idle_closed]
        {
            word.store(u64::from(Ticks::span_of_millis(60_000, 1000).0));
        }
        Self { maps }
    }

    /// The example: Hyperspace (0) with servers 1, 2, 3, its redirect (1), MyChart (2) with servers 4, 5.
    pub(crate) fn example() -> Self {
        let this = Self::new();
        this.service(0, "Hyperspace", "192.168.85.150", HOUR);
        this.redirect(1, "Hyperspace_redirect", "192.168.85.150");
        this.service(2, "MyChart", "192.168.85.151", HOUR);
        for (id, service, label, address) in [
            (1, 0, "Hyperspace_Srv_1", "192.168.85.200"),
            (2, 0, "Hyperspace_Srv_2", "192.168.85.201"),
            (3, 0, "Hyperspace_Srv_3", "192.168.85.202"),
            (4, 2, "MyChart_Srv_1", "192.168.85.210"),
            (5, 2, "MyChart_Srv_2", "192.168.85.211"),
        ] {
            this.server(id, service, label, address, UP);
        }
        this.schedule(0, &[1, 2, 3]);
        this.schedule(2, &[4, 5]);
        this
    }

    pub(crate) fn snapshot(&self) -> Snapshot<'_> {
        Snapshot::read(&self.maps, wall()).unwrap()
    }

    pub(crate) fn service(&self, id: u16, label: &str, at: &str, persistence: Ticks) {
        let service = Service {
            address: address(at),
            persistence,
            idle: Ticks(HOUR.0 * 3),
            forwarding: Forwarding::Snat,
            by_prefix: false,
            by_port: false,
            is_udp: false,
            scheduler: Scheduler::SourceHash,
            mss_clamp: MssClamp::None,
        };
        for (word, value) in self.maps.services[usize::from(id)].iter().zip(service.words()) {
            word.store(value);
        }
        self.info(id, label, at, 1, 443, persistence.as_millis(1000));
        let entry = IndexEntry {
            address: address(at),
            port: 443u16.to_be(),
            protocol: TCP,
            kind: EntryKind::Service,
            id,
            service_port: 0,
        };
        let generation = layout(Spread::Hashed, &self.maps.key(), &[entry]).unwrap();
        for (slot, words) in self.maps.service_index.iter().zip(generation) {
            if words[2] != 0 {
                for (word, value) in slot.iter().zip(words) {
                    word.store(value);
                }
            }
        }
    }

    fn redirect(&self, id: u16, label: &str, at: &str) {
        self.info(id, label, at, 2, 80, 0);
    }

    fn info(&self, id: u16, label: &str, at: &str, protocol: u8, port: u16, persistence_ms: u64) {
        let info = ServiceInfo {
            label: label_bytes(label),
            address: address(at).0,
            persistence_ms: persistence_ms / 1000 * 1000,
            idle_ms: 3 * 3_600_000,
            since: 1_700_000_000,
            port,
            protocol,
            forwarding: 1,
            listening: 0,
        };
        assert!(self.maps.service_info.write(usize::from(id), info));
    }

    /// A server on port 443 with these bits, weight 100, online and up since 02:00.
    pub(crate) fn server(&self, id: u16, service: u16, label: &str, at: &str, bits: u16) {
        let info = ServerInfo {
            label: label_bytes(label),
            address: address(at).0,
            health_since: u64::try_from(wall().as_second()).unwrap() - 3600,
            certificate_expires: 0,
            service,
            port: 443,
            weight: 100,
            state: 1,
            health: 1,
            health_reason: [0; 96],
        };
        assert!(self.maps.server_info.write(usize::from(id), info));
        self.bits(id, service, at, bits);
    }

    fn bits(&self, id: u16, service: u16, at: &str, bits: u16) {
        let server = Server {
            address: address(at),
            port: 443u16.to_be(),
            endpoint: id,
            service,
            forwarding: Forwarding::Snat,
            arm: 0,
            mac: [2, 0, 0, 0, 0, id.to_le_bytes()[0]],
            state: ServerState(bits),
        };
        for (word, value) in self.maps.servers[usize::from(id)].iter().zip(server.words()) {
            word.store(value);
        }
    }

    /// Changes a server's description and bits.
    pub(crate) fn change(&self, id: u16, bits: u16, change: impl Fn(&mut ServerInfo)) {
        let mut info = self.maps.server_info.read(usize::from(id)).unwrap();
        change(&mut info);
        assert!(self.maps.server_info.write(usize::from(id), info));
        let at = IpAddr::from(Address(info.address)).to_string();
        self.bits(id, info.service, &at, bits);
    }

    /// A scheduler table over these servers, each with weight 100.
    pub(crate) fn schedule(&self, service: u16, servers: &[u16]) {
        let candidates: Vec<Candidate> = servers
            .iter()
            .map(|id| Candidate {
                id: *id,
                address: Address(self.maps.server_info.read(usize::from(*id)).unwrap().address),
                port: 443,
                weight: 100,
            })
            .collect();
        let seed = self.maps.control().maglev_seed.load();
        let table = build(seed, &candidates, size_for(candidates.len()));
        self.maps.kernel.set_schedule(service, &table.to_values()).unwrap();
    }

    /// A sticky record made ten minutes ago, whose deadline is `left` ahead (behind, if negative).
    pub(crate) fn sticky(&self, service: u16, client: Address, server: u16, flows: u32, left: i32) {
        let now = Ticks::from_jiffies(NOW);
        let to = StickyServer {
            service,
            port: 0,
            server,
            made_at: Ticks(now.0 - Ticks::span_of_millis(600_000, 1000).0),
            verified: true,
        };
        let words = [client.0[0], client.0[1], to.word()];
        let hash = hash3(&self.maps.key(), [words[0], words[1], u64::from(service)]);
        let inserted = insert_if_absent::<STICKY_WORDS, Stickies, _>(
            &self.maps.sticky,
            hash,
            &words,
            flows,
            Ticks(now.0.wrapping_add_signed(left)),
            now,
            |_, _, _| {},
        );
        assert!(matches!(inserted, Insert::Inserted(_)), "{inserted:?}");
    }

    /// A flow made 64 s ago, with its last packet 6.4 s ago; in the table where its state belongs.
    pub(crate) fn flow(&self, service: u16, client: &str, port: u16, server: u16, state: TcpState) {
        let now = Ticks::from_jiffies(NOW);
        let idle = self.maps.control().idle(state, Ticks(HOUR.0 * 3));
        let flow = Flow {
            key: FlowKey {
                client: address(client),
                client_port: port.to_be(),
                service_port: 443u16.to_be(),
                service,
            },
            to: FlowServer { server, endpoint: server, snat_port: (1024 + port % 1024).to_be(), source: 0 },
            return_hop: [2, 0, 0, 0, 0, 9],
            arm: 0,
            may_fragment: false,
            sequences: Sequences { client: 1, server: 2 },
            sticky: FlowSticky { made_at: Ticks(now.0 - 1000), record: None },
            state,
            deadline: Ticks(now.0 - 100 + idle.0),
        };
        let half_open = matches!(state, TcpState::SynSent | TcpState::SynReceived | TcpState::Promoting);
        let table = if half_open { &self.maps.half_open } else { &self.maps.flows };
        let inserted = insert_if_absent::<FLOW_WORDS, Flows, _>(
            table,
            hash3(&self.maps.key(), flow.key.words()),
            &flow.pack(),
            state as u32,
            flow.deadline,
            now,
            |_, _, _| {},
        );
        assert!(matches!(inserted, Insert::Inserted(_)), "{inserted:?}");
    }
}

/// Online, up, reachable.
pub(crate) const UP: u16 =
    ServerState::PRESENT | ServerState::REACHABLE | ServerState::TAKES_NEW | ServerState::TAKES_KNOWN;
/// Draining, up, reachable.
pub(crate) const DRAINING: u16 = ServerState::PRESENT | ServerState::REACHABLE | ServerState::TAKES_KNOWN;
/// Down.
pub(crate) const DOWN: u16 = ServerState::PRESENT | ServerState::REACHABLE | ServerState::RESETS;
