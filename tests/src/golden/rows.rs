//! The tables' rows as values: read from the maps, written into them, compared.

use std::{collections::BTreeMap, net::Ipv4Addr};

use lb_common::{
    clock::Ticks,
    flow::{Flow, FlowKey, FlowSlot, FlowSticky, STICKY_WORD},
    handshake::Answered,
    hash::{HashKey, hash3},
    life::{Life, SlotState},
    ports::{Owner, PortCell},
    sticky::{MADE_AT_TICKS, Sticky, StickyKey, StickyServer, StickySlot, reference},
    table::{BUCKET, Slot, Slots, WAYS, candidate, tag},
    tcp::TcpState,
    word::Word,
};
use lb_userspace::dataplane::{FlowTable, Region};

use super::{
    bench::{Bench, FLOWS},
    frame::Mac,
    hospital::{ENDPOINTS, FIRST_PORT, PORTS, address, span::SLACK, v4},
};

/// Who is connected, or who is remembered (with port 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Who {
    pub(super) service: u16,
    pub(super) client: Ipv4Addr,
    pub(super) port: u16,
}

impl Who {
    fn flow_key(self) -> FlowKey {
        FlowKey {
            client: address(self.client),
            client_port: self.port.to_be(),
            service_port: 443_u16.to_be(),
            service: self.service,
        }
    }

    fn sticky_key(self) -> StickyKey {
        StickyKey { client: address(self.client), service: self.service, port: 0 }
    }

    fn of_flow(key: FlowKey) -> Self {
        Self { service: key.service, client: v4(key.client), port: u16::from_be(key.client_port) }
    }

    /// Without the port: the key of the sticky record.
    pub(super) fn sticky(self) -> Self {
        Self { port: 0, ..self }
    }

    /// The slots of the half-open table and the flow table that this flow may lie in.
    pub(super) fn flow_slots(self, key: &HashKey, table: &FlowTable) -> impl Iterator<Item = usize> + use<> {
        ways(hash3(key, self.flow_key().words()), table.bucket_mask())
    }

    /// The slot of an empty flow table that this flow is put in.
    pub(super) fn first_slot(self) -> u32 {
        candidate(hash3(&Bench::key(), self.flow_key().words()), FLOWS / BUCKET - 1, 0)
    }
}

fn ways(hash: u64, mask: u32) -> impl Iterator<Item = usize> {
    (0..WAYS).map(move |way| candidate(hash, mask, way) as usize)
}

/// Whether a flow knows its client's sticky record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It holds none.
    None,
    /// It holds the record of its client.
    Record,
    /// What it refers to is not its client's record.
    Stale,
}

/// A row of the half-open table or of the flow table. Times are ticks from the beginning of the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowRow {
    pub(super) who: Who,
    pub(super) server: u16,
    pub(super) endpoint: u16,
    pub(super) source: u8,
    pub(super) snat_port: u16,
    pub(super) hop: Mac,
    pub(super) may_fragment: bool,
    pub(super) client_sequence: u32,
    pub(super) server_sequence: u32,
    pub(super) state: TcpState,
    pub(super) held: Held,
    pub(super) made_at: i64,
    pub(super) expires: i64,
}

/// A row of the sticky table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StickyRow {
    pub(super) who: Who,
    pub(super) server: u16,
    pub(super) verified: bool,
    pub(super) flows: u32,
    pub(super) made_at: i64,
    pub(super) expires: i64,
}

/// Who has a SNAT port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortOwner {
    /// It rests.
    Nobody,
    /// This half-open flow, whether or not its slot still says so.
    HalfOpen(Option<Who>),
    /// This flow.
    Flow(Option<Who>),
}

/// A SNAT port that was ever used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortRow {
    pub(super) endpoint: u16,
    pub(super) source: u8,
    pub(super) port: u16,
    pub(super) owner: PortOwner,
    pub(super) since: i64,
}

/// A row of any table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// Of the half-open table.
    HalfOpen(FlowRow),
    /// Of the flow table.
    Flow(FlowRow),
    /// Of the sticky table.
    Sticky(StickyRow),
    /// A SNAT port's cell.
    Port(PortRow),
    /// A slot that is claimed or pending.
    Unsettled,
}

/// What a row is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// In the half-open table.
    HalfOpen(Who),
    /// In the flow table.
    Flow(Who),
    /// In the sticky table.
    Sticky(Who),
    /// Endpoint, source address and port.
    Port(u16, u8, u16),
    /// Table and slot.
    Unsettled(&'static str, usize),
}

impl Row {
    /// The row's key; an unsettled slot has that of its place.
    pub(super) fn key(&self) -> Key {
        match self {
            Self::HalfOpen(row) => Key::HalfOpen(row.who),
            Self::Flow(row) => Key::Flow(row.who),
            Self::Sticky(row) => Key::Sticky(row.who),
            Self::Port(row) => Key::Port(row.endpoint, row.source, row.port),
            Self::Unsettled => Key::Unsettled("", 0),
        }
    }

    /// Whether the two are the same but for the time that a test takes.
    pub(super) fn fits(&self, other: &Self) -> bool {
        let near = |a: i64, b: i64| (a - b).abs() <= SLACK;
        match (*self, *other) {
            (Self::HalfOpen(a), Self::HalfOpen(b)) | (Self::Flow(a), Self::Flow(b)) => {
                near(a.expires, b.expires)
                    && near(a.made_at, b.made_at)
                    && FlowRow { expires: b.expires, made_at: b.made_at, ..a } == b
            }
            (Self::Sticky(a), Self::Sticky(b)) => {
                near(a.expires, b.expires)
                    && (a.made_at - b.made_at).abs() <= SLACK + i64::from(MADE_AT_TICKS)
                    && StickyRow { expires: b.expires, made_at: b.made_at, ..a } == b
            }
            (Self::Port(a), Self::Port(b)) => near(a.since, b.since) && PortRow { since: b.since, ..a } == b,
            (a, b) => a == b,
        }
    }
}

/// The tables' memory.
pub(crate) struct Tables {
    pub(crate) flows: FlowTable,
    pub(crate) half_open: FlowTable,
    pub(crate) sticky: Region<StickySlot>,
    pub(crate) cells: Region<Word>,
    pub(crate) cursors: Region<Word>,
    /// How many source addresses are in use.
    pub(crate) sources: u16,
}

/// All rows at a moment.
pub(super) type Rows = BTreeMap<Key, Row>;

impl Tables {
    /// Everything free and unused.
    pub(super) fn clear(&self) {
        for slot in self.flows.iter().chain(self.half_open.iter()) {
            clear(slot);
        }
        self.sticky.iter().for_each(clear);
        let tags = self.flows.all_tags().iter().chain(self.half_open.all_tags().iter());
        for word in tags.chain(self.cells.iter()).chain(self.cursors.iter()) {
            word.store(0);
        }
    }

    /// All rows, with times from `epoch`.
    ///
    /// # Errors
    /// A key is live in two slots, or where the program would not find it.
    pub(super) fn read(&self, epoch: Ticks) -> Result<Rows, String> {
        for (table, name) in [(&self.flows, "FLOWS"), (&self.half_open, "HALF_OPEN")] {
            if let Some(index) = table.untagged(&Bench::key()).next() {
                return Err(format!("slot {index} of {name} is live without its tag"));
            }
        }
        let mut rows = Rows::new();
        let mut add = |row: Row, name: &'static str, index: usize| {
            let key = if row == Row::Unsettled { Key::Unsettled(name, index) } else { row.key() };
            match rows.insert(key, row) {
                None => Ok(()),
                Some(twin) => Err(format!("{key:?} is live twice: {twin:?} and {row:?}")),
            }
        };
        for (index, slot) in self.flows.iter().enumerate() {
            match slot.life().state() {
                SlotState::Free => {}
                SlotState::Live => add(Row::Flow(self.flow_row(slot, epoch)), "FLOWS", index)?,
                _ => add(Row::Unsettled, "FLOWS", index)?,
            }
        }
        for (index, slot) in self.half_open.iter().enumerate() {
            match slot.life().state() {
                SlotState::Free => {}
                SlotState::Live => add(Row::HalfOpen(self.flow_row(slot, epoch)), "HALF_OPEN", index)?,
                _ => add(Row::Unsettled, "HALF_OPEN", index)?,
            }
        }
        for (index, slot) in self.sticky.iter().enumerate() {
            match slot.life().state() {
                SlotState::Free => {}
                SlotState::Live => add(Row::Sticky(sticky_row(slot, epoch)), "STICKY", index)?,
                _ => add(Row::Unsettled, "STICKY", index)?,
            }
        }
        for (index, cell) in self.cells.iter().enumerate() {
            if cell.load() != 0 {
                add(Row::Port(self.port_row(index, cell.load(), epoch)), "PORT_CELLS", index)?;
            }
        }
        Ok(rows)
    }

    fn flow_row(&self, slot: &FlowSlot, epoch: Ticks) -> FlowRow {
        let flow = Flow::unpack(&slot.read(), slot.life());
        let who = Who::of_flow(flow.key);
        let held = match flow.sticky.record {
            None => Held::None,
            Some(record) => match self.sticky.slot(record.slot) {
                Some(slot)
                    if reference(record.slot, slot.life()) == record
                        && slot.life().state() == SlotState::Live
                        && sticky_row(slot, epoch).who == who.sticky() =>
                {
                    Held::Record
                }
                _ => Held::Stale,
            },
        };
        FlowRow {
            who,
            server: flow.to.server,
            endpoint: flow.to.endpoint,
            source: flow.to.source,
            snat_port: u16::from_be(flow.to.snat_port),
            hop: flow.return_hop,
            may_fragment: flow.may_fragment,
            client_sequence: flow.sequences.client,
            server_sequence: flow.sequences.server,
            state: flow.state,
            held,
            made_at: since(flow.sticky.made_at, epoch),
            expires: since(flow.deadline, epoch),
        }
    }

    fn port_row(&self, index: usize, word: u64, epoch: Ticks) -> PortRow {
        let (pair, offset) = (index / usize::from(PORTS), index % usize::from(PORTS));
        let pair = u16::try_from(pair).unwrap_or(u16::MAX);
        let cell = PortCell::from_word(word);
        let who = |table: &FlowTable, slot: u32| {
            let slot = table.slot(slot)?;
            let live = slot.life().state() == SlotState::Live;
            live.then(|| Who::of_flow(FlowKey::from_words(&slot.read())))
        };
        PortRow {
            endpoint: pair / self.sources,
            source: u8::try_from(pair % self.sources).unwrap_or(u8::MAX),
            port: FIRST_PORT + u16::try_from(offset).unwrap_or(u16::MAX),
            owner: match cell.owner {
                Owner::Free => PortOwner::Nobody,
                Owner::HalfOpen(slot) => PortOwner::HalfOpen(who(&self.half_open, slot)),
                Owner::Flow(slot) => PortOwner::Flow(who(&self.flows, slot)),
            },
            since: since(cell.stamp, epoch),
        }
    }

    /// Writes a row where the program would look for it, over the one with its key if there is one. A flow's sticky record
    /// comes before the flow, and a flow before its port.
    pub(super) fn put(&self, row: &Row, key: &HashKey, epoch: Ticks) {
        match row {
            Row::HalfOpen(row) => self.put_flow(&self.half_open, row, key, epoch),
            Row::Flow(row) => self.put_flow(&self.flows, row, key, epoch),
            Row::Sticky(row) => {
                let words = row.who.sticky_key().words();
                let hash = hash3(key, words);
                let same = |slot: &StickySlot| sticky_row(slot, epoch).who == row.who;
                let slot = place(&self.sticky, hash, same);
                let to = StickyServer {
                    service: row.who.service,
                    port: 0,
                    server: row.server,
                    made_at: after(row.made_at, epoch),
                    verified: row.verified,
                };
                let words = [words[0], words[1], to.word()];
                fill(&self.sticky[slot], &words, row.flows, after(row.expires, epoch));
            }
            Row::Port(row) => {
                let owner = match row.owner {
                    PortOwner::Nobody => Owner::Free,
                    PortOwner::HalfOpen(who) => Owner::HalfOpen(self.slot_of(&self.half_open, who)),
                    PortOwner::Flow(who) => Owner::Flow(self.slot_of(&self.flows, who)),
                };
                let pair = row.endpoint * self.sources + u16::from(row.source);
                let index = usize::from(pair * PORTS + row.port - FIRST_PORT);
                self.cells[index].store(PortCell { owner, stamp: after(row.since, epoch) }.word());
            }
            Row::Unsettled => {}
        }
    }

    fn put_flow(&self, table: &FlowTable, row: &FlowRow, key: &HashKey, epoch: Ticks) {
        let flow_key = row.who.flow_key();
        let same = |slot: &FlowSlot| Who::of_flow(FlowKey::from_words(&slot.read())) == row.who;
        let hash = hash3(key, flow_key.words());
        let slot = place(table, hash, same);
        let sticky = self.sticky.iter().enumerate().find(|(_, slot)| {
            slot.life().state() == SlotState::Live && sticky_row(slot, epoch).who == row.who.sticky()
        });
        let record = match row.held {
            Held::Record => {
                let (index, slot) = sticky.expect("a flow's sticky record is put before it");
                Some(reference(u32::try_from(index).expect("a small table"), slot.life()))
            }
            Held::None | Held::Stale => None,
        };
        let flow = Flow {
            key: flow_key,
            to: lb_common::flow::FlowServer {
                server: row.server,
                endpoint: row.endpoint,
                snat_port: row.snat_port.to_be(),
                source: row.source,
            },
            return_hop: row.hop,
            arm: 0,
            may_fragment: row.may_fragment,
            sequences: lb_common::flow::Sequences {
                client: row.client_sequence,
                server: row.server_sequence,
            },
            sticky: FlowSticky { made_at: after(row.made_at, epoch), record },
            state: row.state,
            deadline: after(row.expires, epoch),
        };
        tag(table, u32::try_from(slot).expect("a small table"), hash);
        let mut words = flow.pack();
        if row.state == TcpState::SynReceived {
            words[STICKY_WORD] = Answered::new(row.server_sequence, 0).in_sticky(words[STICKY_WORD]);
        }
        fill(&table[slot], &words, u32::from(row.state as u8), flow.deadline);
    }

    /// The slot of a flow; of nobody's, one that never comes up.
    fn slot_of(&self, table: &FlowTable, who: Option<Who>) -> u32 {
        let found = who.and_then(|who| {
            table.iter().position(|slot| {
                slot.life().state() == SlotState::Live
                    && Who::of_flow(FlowKey::from_words(&slot.read())) == who
            })
        });
        assert!(who.is_none() || found.is_some(), "a port's flow is put before it: {who:?}");
        found.and_then(|index| u32::try_from(index).ok()).unwrap_or((1 << 30) - 1)
    }

    /// Fills every free slot of the flow table, or of the sticky table, with strangers that have long to live.
    pub(super) fn fill_up(&self, table: Full, epoch: Ticks) {
        let stranger = |index: usize| {
            let [_, _, high, low] = u32::try_from(index).unwrap_or(u32::MAX).to_be_bytes();
            Ipv4Addr::new(172, 16, high, low)
        };
        match table {
            Full::Flows => {
                for (index, slot) in free(&self.flows) {
                    let who = Who { service: 1, client: stranger(index), port: 1 };
                    let [first, second, third] = who.flow_key().words();
                    let words = [first, second, third, 0, 0, 0, 0];
                    let hash = hash3(&Bench::key(), [first, second, third]);
                    tag(&self.flows, u32::try_from(index).expect("a small table"), hash);
                    fill(
                        slot,
                        &words,
                        TcpState::Established as u32,
                        after(super::hospital::span::IDLE, epoch),
                    );
                }
            }
            Full::Sticky => {
                for (index, slot) in free(&self.sticky) {
                    let who = Who { service: 1, client: stranger(index), port: 0 };
                    let [first, second, _] = who.sticky_key().words();
                    let to =
                        StickyServer { service: 1, port: 0, server: 0, made_at: Ticks(0), verified: true };
                    let words = [first, second, to.word()];
                    fill(slot, &words, 0, after(super::hospital::span::PERSISTENCE, epoch));
                }
            }
        }
    }

    /// Everything in the flow table and the sticky table, word by word.
    pub(super) fn lasting(&self) -> Vec<u64> {
        let flows = self.flows.iter().flat_map(|slot| std::iter::once(slot.life.load()).chain(slot.read()));
        let sticky = self.sticky.iter().flat_map(|slot| std::iter::once(slot.life.load()).chain(slot.read()));
        flows.chain(sticky).collect()
    }

    /// Everything in all tables, word by word.
    pub(super) fn everything(&self) -> Vec<u64> {
        let mut words = self.lasting();
        words.extend(
            self.half_open.iter().flat_map(|slot| std::iter::once(slot.life.load()).chain(slot.read())),
        );
        words.extend(self.cells.iter().chain(self.cursors.iter()).map(Word::load));
        words
    }
}

/// A table without room.
#[derive(Clone, Copy, Debug)]
pub(super) enum Full {
    /// The flow table.
    Flows,
    /// The sticky table.
    Sticky,
}

/// Pairs of endpoint and source address.
pub(super) const PAIRS: u32 = 2 * ENDPOINTS as u32;
/// Ports of all pairs.
pub(super) const CELLS: u32 = PAIRS * PORTS as u32;

fn clear<const N: usize>(slot: &Slot<N>) {
    slot.life.store(0);
    for word in &slot.words {
        word.store(0);
    }
}

fn free<const N: usize>(table: &Region<Slot<N>>) -> impl Iterator<Item = (usize, &Slot<N>)> {
    table.iter().enumerate().filter(|(_, slot)| slot.life().state() == SlotState::Free)
}

/// The slot where a key is, else the first free one of its slots.
fn place<const N: usize>(table: &impl Slots<N>, hash: u64, same: impl Fn(&Slot<N>) -> bool) -> usize {
    let slots: Vec<_> = ways(hash, table.bucket_mask()).collect();
    let at =
        |index: usize| table.slot(u32::try_from(index).expect("a small table")).expect("a slot of the table");
    let there = slots.iter().find(|slot| at(**slot).life().state() == SlotState::Live && same(at(**slot)));
    let free = slots.iter().find(|slot| at(**slot).life().state() == SlotState::Free);
    *there.or(free).expect("one of a key's eight slots is free")
}

fn fill<const N: usize>(slot: &Slot<N>, words: &[u64; N], note: u32, deadline: Ticks) {
    let fresh = slot.life().state() == SlotState::Free;
    let life = if fresh { slot.life().claimed() } else { slot.life() };
    for (cell, word) in slot.words.iter().zip(words) {
        cell.store(*word);
    }
    slot.life.store(life.with_state(SlotState::Live).with_note(note).with_deadline(deadline).word());
}

fn sticky_row(slot: &StickySlot, epoch: Ticks) -> StickyRow {
    let sticky = Sticky::unpack(&slot.read(), slot.life());
    StickyRow {
        who: Who { service: sticky.to.service, client: v4(sticky.client), port: 0 },
        server: sticky.to.server,
        verified: sticky.to.verified,
        flows: sticky.flows,
        // A row may be younger than the test.
        made_at: since(sticky.to.made_before(epoch.plus(Ticks(1 << 20))), epoch),
        expires: since(sticky.deadline, epoch),
    }
}

/// A moment as ticks from `epoch`, before or after.
fn since(moment: Ticks, epoch: Ticks) -> i64 {
    i64::from(moment.0.wrapping_sub(epoch.0).cast_signed())
}

/// The moment that many ticks from `epoch`, before or after.
fn after(ticks: i64, epoch: Ticks) -> Ticks {
    let ticks = i32::try_from(ticks).expect("less than the clock's half");
    Ticks(epoch.0.wrapping_add_signed(ticks))
}

/// A claimed slot, as another core leaves it while it writes.
pub(super) fn being_written<const N: usize>(slot: &Slot<N>) {
    let claimed = Life::from_word(slot.life.load()).claimed();
    slot.life.store(claimed.word());
}
