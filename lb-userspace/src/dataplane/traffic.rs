//! Traffic without packets, for the tests: what the program does to the tables when connections come and go.

use lb_common::{
    address::Address,
    clock::Ticks,
    flow::{FLOW_WORDS, Flow, FlowKey, FlowServer, FlowSticky, Flows, STICKY_WORD, Sequences, StickyRef},
    forwarding::Forwarding,
    hash::{hash3, mix},
    life::{Life, SlotState},
    mss::MssClamp,
    ports::{Owner, PortCell, PortRange, claim, promote},
    schedule::Scheduler,
    service::Service,
    sticky::{STICKY_WORDS, Stickies, StickyKey, StickyServer, hold, let_go, reference},
    table::{Found, Insert, claim_any, find, insert_if_absent, publish},
    tcp::TcpState,
};

use super::{
    Maps, PortMaps,
    fake::{self, FakeKernel},
    sweep::cell_of,
};

/// The idle timeout of an established flow.
pub(super) const IDLE: Ticks = Ticks(50);
/// The persistence timeout.
pub(super) const PERSISTENCE: Ticks = Ticks(1000);
/// The idle timeout of a half-open flow.
pub(super) const HANDSHAKE: Ticks = Ticks(10);
/// How long a port rests.
pub(super) const QUARANTINE: Ticks = Ticks(120);

/// The service whose clients keep their addresses.
pub(super) const WITHOUT_PORTS: u16 = 2;

/// A client's connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub(super) client: u8,
    pub(super) port: u16,
    pub(super) service: u16,
    pub(super) server: u16,
}

/// Maps with services 0 to 3, one of them [`WITHOUT_PORTS`].
pub(super) fn maps() -> Maps {
    let maps = fake::maps(FakeKernel::default());
    // The hash spreads nothing with the small key that a fake map has.
    for (word, value) in maps.control().hash_key.iter().zip(1u64..) {
        word.store(mix(value));
    }
    for id in 0..4 {
        let service = Service {
            address: Address([0, 1 + id]),
            persistence: PERSISTENCE,
            idle: IDLE,
            forwarding: if id == u64::from(WITHOUT_PORTS) { Forwarding::Dr } else { Forwarding::Snat },
            by_prefix: false,
            by_port: false,
            is_udp: false,
            scheduler: Scheduler::SourceHash,
            mss_clamp: MssClamp::None,
        };
        let slot = &maps.services[usize::try_from(id).unwrap()];
        for (word, value) in slot.iter().zip(service.words()) {
            word.store(value);
        }
    }
    maps
}

impl Connection {
    fn key(self) -> FlowKey {
        FlowKey {
            client: Address([0, u64::from(self.client) + 1]),
            client_port: self.port.to_be(),
            service_port: 443u16.to_be(),
            service: self.service,
        }
    }

    pub(super) fn sticky_key(self) -> StickyKey {
        StickyKey { client: self.key().client, service: self.service, port: 0 }
    }

    /// Its SYN: a half-open flow and a port. The slot, if there was room.
    pub(super) fn open(self, maps: &Maps, now: Ticks) -> Option<u32> {
        let hash = hash3(&maps.key(), self.key().words());
        let (index, claimed) = claim_any::<FLOW_WORDS, Flows, _>(&maps.half_open, hash, now)?;
        let endpoint = self.server;
        let snat_port = if self.service == WITHOUT_PORTS {
            0
        } else {
            let range = PortRange { pair: u32::from(endpoint), count: 1024 };
            let offset = claim(&PortMaps(maps), range, index, now, QUARANTINE)?;
            1024 + u16::try_from(offset).unwrap()
        };
        let flow = Flow {
            key: self.key(),
            to: FlowServer { server: self.server, endpoint, snat_port: snat_port.to_be(), source: 0 },
            return_hop: [2; 6],
            arm: 0,
            may_fragment: false,
            sequences: Sequences { client: 1, server: 2 },
            sticky: FlowSticky { made_at: now, record: None },
            state: TcpState::SynSent,
            deadline: now,
        };
        let slot = &maps.half_open[index as usize];
        publish(slot, claimed, &flow.pack(), TcpState::SynSent as u32, now.plus(HANDSHAKE));
        Some(index)
    }

    /// The rest of its handshake: a sticky record and an established flow. The flow's slot.
    pub(super) fn establish(self, maps: &Maps, half_open: u32, now: Ticks) -> Option<u32> {
        let slot = &maps.half_open[half_open as usize];
        let mut words = slot.read();
        let record = self.stick(maps, now)?;
        words[STICKY_WORD] = FlowSticky { made_at: now, record: Some(record) }.word();
        let inserted = insert_if_absent::<FLOW_WORDS, Flows, _>(
            &maps.flows,
            hash3(&maps.key(), self.key().words()),
            &words,
            TcpState::Established as u32,
            now.plus(IDLE),
            now,
            |_, _, _| panic!("the tests sweep before they insert"),
        );
        let Insert::Inserted(index) = inserted else {
            let_go(&maps.sticky, record, self.sticky_key(), now.plus(PERSISTENCE));
            return None;
        };
        if self.service != WITHOUT_PORTS {
            assert!(promote(cell_of(maps, &words).unwrap(), half_open, index, now));
        }
        let life = slot.life();
        assert!(slot.exchange(life, life.with_state(SlotState::Free)));
        Some(index)
    }

    fn stick(self, maps: &Maps, now: Ticks) -> Option<StickyRef> {
        let to = StickyServer {
            service: self.service,
            port: 0,
            server: self.server,
            made_at: now,
            verified: true,
        };
        let key = maps.sticky_key(self.key().client, self.service, self.key().service_port).words();
        let inserted = insert_if_absent::<STICKY_WORDS, Stickies, _>(
            &maps.sticky,
            hash3(&maps.key(), key),
            &[key[0], key[1], to.word()],
            1,
            now.plus(PERSISTENCE),
            now,
            |_, _, _| {},
        );
        match inserted {
            Insert::Inserted(index) => Some(reference(index, maps.sticky[index as usize].life())),
            Insert::Present(index) => {
                let slot = &maps.sticky[index as usize];
                let life = slot.life();
                let found = Found { index, slot, life };
                hold(&found, now.plus(PERSISTENCE)).then(|| reference(index, life))
            }
            Insert::Full | Insert::Contended => None,
        }
    }

    /// The life of its client's sticky record.
    pub(super) fn record(self, maps: &Maps, now: Ticks) -> Option<Life> {
        let key = self.sticky_key().words();
        let found = find::<STICKY_WORDS, Stickies, _>(&maps.sticky, hash3(&maps.key(), key), key, now)?;
        Some(found.life)
    }

    /// Ends the flow in a slot, as both FINs do.
    pub(super) fn close(self, maps: &Maps, flow: u32, now: Ticks) {
        let slot = &maps.flows[flow as usize];
        let life = slot.life();
        let closed = life.with_note(TcpState::TimeWait as u32).with_deadline(now.plus(HANDSHAKE));
        assert!(slot.exchange(life, closed));
        let record = FlowSticky::from_word(slot.read()[STICKY_WORD]).record.unwrap();
        let_go(&maps.sticky, record, self.sticky_key(), now.plus(PERSISTENCE));
    }
}

/// Ports that a flow has.
pub(super) fn ports_in_use(maps: &Maps) -> usize {
    let cells = maps.port_cells.iter();
    cells.filter(|cell| PortCell::from_word(cell.load()).owner != Owner::Free).count()
}

/// Slots of a table that are not free.
pub(super) fn taken<const N: usize>(slots: &[lb_common::table::Slot<N>]) -> usize {
    slots.iter().filter(|slot| slot.life().state() != SlotState::Free).count()
}
