//! Carrying rows over in two passes: the first while the old program works on the old tables, the second, for what it
//! wrote meanwhile, when the new program works on the new ones and drops what it finds no row for.
//!
//! The passes run one after the other in one thread. In the second, the new program changes rows too; each change here is
//! an exchange of the life that is expected, and what the new program has changed is the newer truth.

use std::fmt;

use lb_common::{
    clock::Ticks,
    flow::{FLOW_WORDS, FlowKey, FlowSticky, Flows, SEQUENCE_WORD, STICKY_WORD},
    hash::hash3,
    life::{Life, SlotState},
    ports::Owner,
    sticky::{STICKY_WORDS, Stickies, StickyKey, hold, let_go, reference},
    table::{Found, Insert, Kind, claim_any, find, insert_if_absent, publish, release},
    tcp::TcpState,
};

use super::{old::Old, ports};
use crate::dataplane::{
    Maps,
    sweep::{cell_of, forget_flow, persistence, retire},
};

/// What was carried over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// The layout before.
    pub layout: u64,
    /// Established flows, and closed ones that are still remembered.
    pub flows: usize,
    /// Half-open flows.
    pub half_open: usize,
    /// Sticky records.
    pub sticky: usize,
    /// SNAT ports in use.
    pub ports: usize,
    /// Rows of these that the second pass found: the program had written them during the first.
    pub late: usize,
    /// Flows and records for which there was no room.
    pub lost: usize,
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} flows, {} sticky records, {} SNAT ports and {} half-open flows were carried over ({} of them written \
             meanwhile), {} were lost",
            self.flows, self.sticky, self.ports, self.half_open, self.late, self.lost
        )
    }
}

/// A row that was carried over.
#[derive(Clone, Copy)]
struct Moved {
    /// Its life in the old table.
    seen: Life,
    /// Its slot in the new one,
    to: u32,
    /// and the life it was given there.
    put: Life,
}

/// The rows of one table that were carried over, by old slot.
type Table = Vec<Option<Moved>>;

/// The migration under way.
pub(super) struct Carrier<'a> {
    old: &'a Old,
    new: &'a Maps,
    flows: Table,
    half_open: Table,
    sticky: Table,
    pub(super) carried: Carried,
}

impl<'a> Carrier<'a> {
    pub(super) fn new(old: &'a Old, new: &'a Maps) -> Self {
        let table = |slots: u32| vec![None; slots as usize];
        Self {
            old,
            new,
            flows: table(old.flows.slots()),
            half_open: table(old.half_open.slots()),
            sticky: table(old.sticky.slots()),
            carried: Carried { layout: old.layout, ..Carried::default() },
        }
    }

    /// Carries over everything as it is now. Nobody else may write the new tables.
    pub(super) fn first(&mut self, now: Ticks) {
        ports::carry_rests(self.old, self.new);
        self.sticky_records(now);
        self.established(now);
        self.handshakes(now);
    }

    /// Carries over what was written since. The old program does not run any more.
    pub(super) fn second(&mut self, now: Ticks) {
        let before = self.carried;
        ports::carry_cursors(self.old, self.new);
        self.sticky_records(now);
        self.established(now);
        self.handshakes(now);
        let rows = |carried: Carried| carried.flows + carried.half_open + carried.sticky;
        self.carried.late = rows(self.carried).saturating_sub(rows(before));
    }

    fn sticky_records(&mut self, now: Ticks) {
        for index in 0..self.old.sticky.slots() {
            let Some((life, words)) = self.old.sticky.live(index) else { continue };
            if Stickies::expired(life, now) {
                continue;
            }
            match self.sticky[index as usize] {
                Some(moved) if moved.seen.same_life(life) => self.refresh_record(moved, life, &words),
                _ => self.sticky[index as usize] = self.insert_record(life, &words, now),
            }
        }
    }

    /// Open flows are counted as they come; until then a record that has some is kept by its deadline.
    fn insert_record(&mut self, life: Life, words: &[u64; STICKY_WORDS], now: Ticks) -> Option<Moved> {
        let key = StickyKey::of(words);
        let deadline =
            if life.note() == 0 { life.deadline() } else { now.plus(persistence(self.new, key.service)) };
        let hash = hash3(&self.new.key(), key.words());
        let inserted = insert_if_absent::<STICKY_WORDS, Stickies, _>(
            &self.new.sticky,
            hash,
            words,
            0,
            deadline,
            now,
            |_, _, _| {},
        );
        match inserted {
            Insert::Inserted(to) => {
                self.carried.sticky += 1;
                Some(Moved { seen: life, to, put: self.new.sticky[to as usize].life() })
            }
            Insert::Present(_) => None,
            Insert::Full | Insert::Contended => {
                self.carried.lost += 1;
                None
            }
        }
    }

    /// A record that the old program moved to another server, or used again.
    fn refresh_record(&self, moved: Moved, life: Life, words: &[u64; STICKY_WORDS]) {
        let Some(slot) = self.new.sticky.get(moved.to as usize) else { return };
        let there = slot.life();
        if !there.same_life(moved.put) {
            return;
        }
        slot.words[2].store(words[2]);
        let later = !life.deadline().is_past(there.deadline());
        if later && life.deadline() != there.deadline() {
            let _used_in_this_moment = !slot.exchange(there, there.with_deadline(life.deadline()));
        }
    }

    fn established(&mut self, now: Ticks) {
        for index in 0..self.old.flows.slots() {
            let moved = self.flows[index as usize];
            let row = self.old.flows.live(index).filter(|(life, words)| {
                !Flows::expired(*life, now) && ports::has_its_port(self.old, words, Owner::Flow(index))
            });
            self.flows[index as usize] = match (moved, row) {
                (None, None) => None,
                (Some(moved), Some((life, words))) if moved.seen.same_life(life) => {
                    self.follow(moved, life, &words, now);
                    Some(moved)
                }
                (moved, row) => {
                    if let Some(gone) = moved {
                        self.forget(gone, now);
                    }
                    row.and_then(|(life, words)| self.insert_flow(life, words, now))
                }
            };
        }
    }

    fn insert_flow(&mut self, life: Life, mut words: [u64; FLOW_WORDS], now: Ticks) -> Option<Moved> {
        let is_closed = TcpState::from_note(life.note()).is_closed();
        let record = self.new_record(&words, now);
        let made_at = FlowSticky::from_word(words[STICKY_WORD]).made_at;
        let record_at = record.map(|found| reference(found.index, found.life));
        words[STICKY_WORD] = FlowSticky { made_at, record: record_at }.word();
        let hash = hash3(&self.new.key(), [words[0], words[1], words[2]]);
        let new = self.new;
        let inserted = insert_if_absent::<FLOW_WORDS, Flows, _>(
            &new.flows,
            hash,
            &words,
            life.note(),
            life.deadline(),
            now,
            |index, words, life| retire(new, index, words, life, now),
        );
        let to = match inserted {
            Insert::Inserted(to) => to,
            Insert::Present(_) => return None,
            Insert::Full | Insert::Contended if is_closed => {
                // Of a closed one it is enough to remember that its port rests.
                ports::rest(new, &words, now);
                return None;
            }
            Insert::Full | Insert::Contended => {
                self.carried.lost += 1;
                return None;
            }
        };
        let slot = &new.flows[to as usize];
        if !ports::give(new, &words, Owner::Flow(to), now) {
            release(slot, slot.life());
            self.carried.lost += 1;
            return None;
        }
        if !is_closed && let Some(found) = record {
            let service = FlowKey::from_words(&words).service;
            let _gone = !hold(&found, now.plus(persistence(new, service)));
        }
        self.carried.flows += 1;
        self.carried.ports += ports::of(&words);
        Some(Moved { seen: life, to, put: slot.life() })
    }

    /// Where the record is now that a flow holds, if it held the one that its client has.
    fn new_record(&self, words: &[u64; FLOW_WORDS], now: Ticks) -> Option<Found<'a, STICKY_WORDS>> {
        let held = FlowSticky::from_word(words[STICKY_WORD]).record?;
        let (life, record) = self.old.sticky.live(held.slot)?;
        let key = StickyKey::of(&record);
        if reference(held.slot, life) != held || !self.record_of(words).may_hold(key) {
            return None;
        }
        let hash = hash3(&self.new.key(), key.words());
        find::<STICKY_WORDS, Stickies, _>(&self.new.sticky, hash, key.words(), now)
    }

    /// What the record of a flow's client is found by.
    fn record_of(&self, words: &[u64; FLOW_WORDS]) -> StickyKey {
        let FlowKey { client, service, service_port, .. } = FlowKey::from_words(words);
        self.new.sticky_key(client, service, service_port)
    }

    /// A flow whose state, deadline or sequence numbers the old program changed.
    fn follow(&self, moved: Moved, life: Life, words: &[u64; FLOW_WORDS], now: Ticks) {
        let Some(slot) = self.new.flows.get(moved.to as usize) else { return };
        let there = slot.life();
        let state = |life: Life| TcpState::from_note(life.note());
        if !there.same_life(moved.put) {
            return;
        }
        let untouched = there == moved.put;
        if untouched {
            slot.words[SEQUENCE_WORD].store(words[SEQUENCE_WORD]);
        }
        let closes = state(life).is_closed() && !state(there).is_closed();
        if life == moved.seen || !(untouched || closes) {
            return;
        }
        if !slot.exchange(there, there.with_note(life.note()).with_deadline(life.deadline())) {
            return;
        }
        let key = self.record_of(words);
        let timeout = persistence(self.new, key.service);
        let sticky = FlowSticky::from_word(slot.words[STICKY_WORD].load());
        let Some(record) = sticky.record else { return };
        if closes {
            let_go(&self.new.sticky, record, key, now.plus(timeout));
        } else if state(there).is_closed() && !state(life).is_closed() {
            let hash = hash3(&self.new.key(), key.words());
            let found = find::<STICKY_WORDS, Stickies, _>(&self.new.sticky, hash, key.words(), now);
            let _gone = found.is_some_and(|found| hold(&found, now.plus(timeout)));
        }
    }

    /// A flow that the old program took out of its table.
    fn forget(&mut self, gone: Moved, now: Ticks) {
        let Some(slot) = self.new.flows.get(gone.to as usize) else { return };
        let (there, words) = (slot.life(), slot.read());
        if there == gone.put && forget_flow(self.new, gone.to, there, now) {
            self.carried.flows -= 1;
            self.carried.ports -= ports::of(&words);
        }
    }

    fn handshakes(&mut self, now: Ticks) {
        for index in 0..self.old.half_open.slots() {
            let moved = self.half_open[index as usize];
            let row = self.old.half_open.live(index).filter(|(life, words)| {
                TcpState::from_note(life.note()) != TcpState::Promoting
                    && !Flows::expired(*life, now)
                    && ports::has_its_port(self.old, words, Owner::HalfOpen(index))
            });
            if let (Some(moved), Some((life, _))) = (moved, row)
                && moved.seen == life
            {
                continue;
            }
            if let Some(moved) = moved {
                self.drop_handshake(moved);
            }
            self.half_open[index as usize] =
                row.and_then(|(life, words)| self.insert_handshake(life, &words, now));
        }
    }

    fn insert_handshake(&mut self, life: Life, words: &[u64; FLOW_WORDS], now: Ticks) -> Option<Moved> {
        let table = &self.new.half_open;
        let key = [words[0], words[1], words[2]];
        let hash = hash3(&self.new.key(), key);
        if find::<FLOW_WORDS, Flows, _>(table, hash, key, now).is_some()
            || find::<FLOW_WORDS, Flows, _>(&self.new.flows, hash, key, now).is_some()
        {
            return None;
        }
        let (to, claimed) = claim_any::<FLOW_WORDS, Flows, _>(table, hash, now)?;
        let slot = &table[to as usize];
        // Whoever was there gives way, as to any SYN.
        if let Some(cell) = cell_of(self.new, &slot.read()) {
            ports::take_back(cell, to);
        }
        publish(slot, claimed, words, life.note(), life.deadline());
        if !ports::give(self.new, words, Owner::HalfOpen(to), now) {
            release(slot, slot.life());
            return None;
        }
        self.carried.half_open += 1;
        self.carried.ports += ports::of(words);
        Some(Moved { seen: life, to, put: slot.life() })
    }

    /// A half-open flow that went on, or went, in the old table.
    fn drop_handshake(&mut self, moved: Moved) {
        let Some(slot) = self.new.half_open.get(moved.to as usize) else { return };
        let words = slot.read();
        if slot.exchange(moved.put, moved.put.with_state(SlotState::Free)) {
            self.carried.half_open -= 1;
            self.carried.ports -= ports::of(&words);
            if let Some(cell) = cell_of(self.new, &words) {
                ports::take_back(cell, moved.to);
            }
        }
    }
}
