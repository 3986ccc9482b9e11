//! Rows as they lie in the maps: read, written, and moved back in time.

use std::net::IpAddr;

use lb_common::{
    address::Address,
    clock::Ticks,
    flow::{Flow as PackedFlow, FlowKey, FlowServer, FlowSticky, STICKY_WORD, Sequences, StickyRef},
    hash::hash3,
    life::{Life, SlotState},
    ports::{Owner as PackedOwner, PortCell},
    sticky::{MADE_AT_TICKS, Sticky, StickyServer},
    table::{Slot, tag},
    tcp::{SYN_SEEN, TcpState},
    word::Word,
};

use lb_userspace::dataplane::FlowTable;

use super::Machine;
use crate::{
    golden::bench::{Bench, Verdict},
    model::{Cell, Chosen, Flow, Hold, Key, Model, Owner, Record, State, is_set},
};

fn words<const N: usize, const M: usize>(slot: &Slot<N>) -> [u64; M] {
    let mut out = [0; M];
    out[0] = slot.life.load();
    for (to, word) in out[1..].iter_mut().zip(&slot.words) {
        *to = word.load();
    }
    out
}

/// The slots that differ from what was seen of them last.
fn changed<const N: usize, const M: usize>(table: &[Slot<N>], seen: &mut [[u64; M]]) -> Vec<usize> {
    let mut slots = Vec::new();
    for (index, (slot, old)) in table.iter().zip(seen).enumerate() {
        let new = words(slot);
        if *old != new {
            *old = new;
            slots.push(index);
        }
    }
    slots
}

impl Machine {
    /// Remembers everything as it is.
    pub(super) fn look(&mut self) {
        let tables = &self.bench.tables;
        self.flows = tables.flows.iter().map(words).collect();
        self.half_open = tables.half_open.iter().map(words).collect();
        self.sticky = tables.sticky.iter().map(words).collect();
        self.cells = tables.cells.iter().map(Word::load).collect();
    }

    /// What the program has written since it was looked at.
    pub(super) fn changes(&mut self, model: &Model, verdict: &Verdict) -> Result<Chosen, String> {
        let mut chosen = Chosen { frame: verdict.frame.clone(), ..Chosen::default() };
        for slot in changed(&self.bench.tables.flows, &mut self.flows) {
            chosen.flows.push((slot, self.flow(&self.flows[slot], model)?));
        }
        for slot in changed(&self.bench.tables.half_open, &mut self.half_open) {
            chosen.half_open.push((slot, self.flow(&self.half_open[slot], model)?));
        }
        for slot in changed(&self.bench.tables.sticky, &mut self.sticky) {
            chosen.sticky.push((slot, self.record(&self.sticky[slot], model)?));
        }
        for (place, (cell, old)) in self.bench.tables.cells.iter().zip(&mut self.cells).enumerate() {
            let new = cell.load();
            if *old != new {
                *old = new;
                chosen.ports.push((place, None));
            }
        }
        for (place, cell) in &mut chosen.ports {
            *cell = self.cell(self.cells[*place], model);
        }
        Ok(chosen)
    }

    /// Writes all of the model's rows into empty tables.
    pub(super) fn write(&self, model: &Model) {
        let tables = &self.bench.tables;
        for (table, rows) in [(&tables.flows, &model.flows), (&tables.half_open, &model.half_open)] {
            for (index, row) in (0..).zip(rows) {
                if let Some(row) = row {
                    self.put_flow(table, index, row, model);
                }
            }
        }
        for (slot, row) in tables.sticky.iter().zip(&model.sticky) {
            if let Some(row) = row {
                let key = Address::from(row.client).0;
                let (service, server) = (row.service, row.server);
                let to = StickyServer {
                    service,
                    port: row.port.to_be(),
                    server,
                    made_at: self.tick,
                    verified: row.verified,
                };
                fill(slot, &[key[0], key[1], to.word()], row.flows, self.stamp(row.until, model));
            }
        }
        for (cell, row) in tables.cells.iter().zip(&model.ports) {
            cell.store(row.map_or(0, |row| self.cell_word(row, model)));
        }
    }

    fn put_flow(&self, table: &FlowTable, index: u32, row: &Flow, model: &Model) {
        let record = row.hold.map(|hold| StickyRef {
            slot: u32::try_from(hold.slot).unwrap_or(u32::MAX),
            version: u8::try_from(hold.version).unwrap_or(u8::MAX),
        });
        let flow = PackedFlow {
            key: FlowKey {
                client: Address::from(row.key.client),
                client_port: row.key.port.to_be(),
                service_port: row.key.service_port.to_be(),
                service: row.key.service,
            },
            to: FlowServer {
                server: row.server,
                endpoint: row.endpoint,
                snat_port: row.port.to_be(),
                source: row.source,
            },
            return_hop: row.hop,
            arm: 0,
            may_fragment: row.may_fragment,
            sequences: Sequences { client: row.numbers[0], server: row.numbers[1] },
            sticky: FlowSticky { made_at: self.tick, record },
            state: packed_state(row.state),
            deadline: self.stamp(row.until, model),
        };
        tag(table, index, hash3(&Bench::key(), flow.key.words()));
        let mut words = flow.pack();
        if record.is_none() {
            words[STICKY_WORD] |= u64::from(row.first) << 32;
        }
        let note = flow.state as u32 | if row.syn_seen { SYN_SEEN } else { 0 };
        fill(&table[index as usize], &words, note, flow.deadline);
    }

    fn cell_word(&self, cell: Cell, model: &Model) -> u64 {
        let index = |slot| u32::try_from(slot).unwrap_or(u32::MAX);
        let owner = match cell.owner {
            Owner::Nobody => PackedOwner::Free,
            Owner::HalfOpen(slot) => PackedOwner::HalfOpen(index(slot)),
            Owner::Flow(slot) => PackedOwner::Flow(index(slot)),
        };
        PortCell { owner, stamp: self.stamp(cell.since, model) }.word()
    }

    /// Whether it is in the time that has really gone by since the beginning.
    fn is_of_now(&self, made_at: Ticks) -> bool {
        made_at.since(self.begun).0 <= self.tick.since(self.begun).0 && !made_at.is_past(self.begun)
    }

    /// A moment of the model's as the program's.
    fn stamp(&self, moment: i64, model: &Model) -> Ticks {
        let ticks = i32::try_from(moment - model.now).unwrap_or_default();
        Ticks(self.tick.0.wrapping_add_signed(ticks))
    }

    /// A moment of the program's as the model's.
    fn moment(&self, stamp: Ticks, model: &Model) -> i64 {
        model.now + i64::from(stamp.0.wrapping_sub(self.tick.0).cast_signed())
    }

    /// The flow in a slot's words, if it is live.
    pub(super) fn flow(&self, words: &[u64; 8], model: &Model) -> Result<Option<Flow>, String> {
        let life = Life::from_word(words[0]);
        if !settled(life)? {
            return Ok(None);
        }
        let [_, row @ ..] = *words;
        let flow = PackedFlow::unpack(&row, life);
        if !self.is_of_now(flow.sticky.made_at) {
            return Err(format!("{flow:?} was not made at {:?}", self.tick));
        }
        let hold = |record: StickyRef| Hold { slot: record.slot as usize, version: record.version.into() };
        Ok(Some(Flow {
            key: Key {
                service: flow.key.service,
                client: IpAddr::from(flow.key.client),
                port: u16::from_be(flow.key.client_port),
                service_port: u16::from_be(flow.key.service_port),
            },
            server: flow.to.server,
            endpoint: flow.to.endpoint,
            source: flow.to.source,
            port: u16::from_be(flow.to.snat_port),
            hop: flow.return_hop,
            may_fragment: flow.may_fragment,
            numbers: [flow.sequences.client, flow.sequences.server],
            first: if flow.sticky.record.is_none() {
                u32::try_from(row[STICKY_WORD] >> 32).unwrap_or(u32::MAX)
            } else {
                0
            },
            syn_seen: life.note() & SYN_SEEN != 0,
            hold: flow.sticky.record.map(hold),
            state: unpacked_state(flow.state)?,
            until: self.moment(flow.deadline, model),
        }))
    }

    /// The record in a slot's words, if it is live.
    pub(super) fn record(&self, words: &[u64; 4], model: &Model) -> Result<Option<Record>, String> {
        let life = Life::from_word(words[0]);
        if !settled(life)? {
            return Ok(None);
        }
        let [_, row @ ..] = *words;
        let record = Sticky::unpack(&row, life);
        if !(0..MADE_AT_TICKS).any(|ahead| self.is_of_now(record.to.made_at.plus(Ticks(ahead)))) {
            return Err(format!("{record:?} was not made at {:?}", self.tick));
        }
        Ok(Some(Record {
            service: record.to.service,
            port: u16::from_be(record.to.port),
            client: IpAddr::from(record.client),
            server: record.to.server,
            verified: record.to.verified,
            flows: record.flows,
            until: self.moment(record.deadline, model),
            version: life.version(),
        }))
    }

    /// The SNAT port in a cell's word.
    pub(super) fn cell(&self, word: u64, model: &Model) -> Option<Cell> {
        let cell = PortCell::from_word(word);
        let owner = match cell.owner {
            PackedOwner::Free => Owner::Nobody,
            PackedOwner::HalfOpen(slot) => Owner::HalfOpen(slot as usize),
            PackedOwner::Flow(slot) => Owner::Flow(slot as usize),
        };
        (word != 0).then(|| Cell { owner, since: self.moment(cell.stamp, model) })
    }

    /// Claims the half-open slots of these bits as another core would that overwrites them, and frees all that were claimed.
    pub(super) fn occupy(&self, slots: u16) {
        for (bit, slot) in self.bench.tables.half_open.iter().enumerate() {
            let (life, busy) = (slot.life(), is_set(slots, bit));
            match life.state() {
                SlotState::Claimed if !busy => slot.life.store(life.with_state(SlotState::Free).word()),
                SlotState::Claimed => {}
                _ if busy => slot.life.store(life.claimed().word()),
                _ => {}
            }
        }
    }

    /// Moves every stamp that decides something back by so many ticks.
    pub(super) fn age(&self, ticks: u32) {
        fn back<const N: usize>(slot: &Slot<N>, ticks: u32) {
            let life = slot.life();
            slot.life.store(life.with_deadline(Ticks(life.deadline().0.wrapping_sub(ticks))).word());
        }
        let tables = &self.bench.tables;
        tables.flows.iter().chain(tables.half_open.iter()).for_each(|slot| back(slot, ticks));
        tables.sticky.iter().for_each(|slot| back(slot, ticks));
        for cell in tables.cells.iter().filter(|cell| cell.load() != 0) {
            let old = PortCell::from_word(cell.load());
            cell.store(PortCell { stamp: Ticks(old.stamp.0.wrapping_sub(ticks)), ..old }.word());
        }
    }
}

impl Machine {
    /// Whether somebody else is writing the slot with this life word.
    pub(super) fn is_claimed(&self, life: u64) -> bool {
        matches!(Life::from_word(life).state(), SlotState::Claimed)
    }
}

/// Whether a slot is live, and not free; with one packet at a time nothing is left in between.
fn settled(life: Life) -> Result<bool, String> {
    match life.state() {
        SlotState::Free => Ok(false),
        SlotState::Live => Ok(true),
        state => Err(format!("a slot was left {state:?}")),
    }
}

fn fill<const N: usize>(slot: &Slot<N>, words: &[u64; N], note: u32, deadline: Ticks) {
    for (cell, word) in slot.words.iter().zip(words) {
        cell.store(*word);
    }
    let life = slot.life().claimed().with_state(SlotState::Live).with_note(note).with_deadline(deadline);
    slot.life.store(life.word());
}

const fn packed_state(state: State) -> TcpState {
    match state {
        State::SynSent => TcpState::SynSent,
        State::SynReceived => TcpState::SynReceived,
        State::Established => TcpState::Established,
        State::ClientFin => TcpState::ClientFin,
        State::ServerFin => TcpState::ServerFin,
        State::TimeWait => TcpState::TimeWait,
        State::ClientReset => TcpState::ClientReset,
        State::ServerReset => TcpState::ServerReset,
    }
}

fn unpacked_state(state: TcpState) -> Result<State, String> {
    Ok(match state {
        TcpState::SynSent => State::SynSent,
        TcpState::SynReceived => State::SynReceived,
        TcpState::Established => State::Established,
        TcpState::ClientFin => State::ClientFin,
        TcpState::ServerFin => State::ServerFin,
        TcpState::TimeWait => State::TimeWait,
        TcpState::ClientReset => State::ClientReset,
        TcpState::ServerReset => State::ServerReset,
        TcpState::Promoting => return Err("a flow was left half established".to_owned()),
    })
}
