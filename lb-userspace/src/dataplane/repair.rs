//! Finds and mends what a process leaves behind that is killed in the middle of a change to the tables.
//!
//! The program itself can't be killed half-way. User space can, between claiming a slot and publishing or releasing it,
//! or between releasing a flow's sticky record and its port. Three things may then be left: a slot that stays claimed,
//! a port whose flow does not exist, and a sticky record that counts flows which do not exist and so never expires.
//!
//! Each of them also exists for microseconds in the normal course of things. So one pass notes [`Suspects`], and a later
//! one mends what is exactly as it was: every change leaves another life word or another cell behind.

use lb_common::{
    clock::Ticks,
    flow::{FLOW_WORDS, FlowKey, FlowSlot, FlowSticky, STICKY_WORD},
    life::{Life, SlotState},
    ports::{Owner, PortCell, give_back},
    sticky::{StickyKey, StickyServer, reference},
    table::{self, Slot},
    tcp::TcpState,
};

use super::{
    Maps,
    sweep::{cell_of, is_live, persistence},
};

/// What one pass found odd: indices, and what was there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    flows: Vec<(u32, Life)>,
    half_open: Vec<(u32, Life)>,
    sticky: Vec<(u32, Life)>,
    records: Vec<(u32, Life)>,
    cells: Vec<(u32, u64)>,
}

impl Suspects {
    /// Whether nothing is odd.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What was mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Slots that were claimed by nobody.
    pub slots: usize,
    /// Ports that belonged to no flow.
    pub ports: usize,
    /// Sticky records whose number of open flows was wrong.
    pub records: usize,
}

/// Looks for what a killed process may have left, without touching it.
#[must_use]
pub fn suspects(maps: &Maps) -> Suspects {
    let counts = open_flows_by_record(maps);
    let records = (0..).zip(maps.sticky.iter()).zip(counts).filter_map(|((index, slot), count)| {
        let life = slot.life();
        (is_live(life) && count.differs(life)).then_some((index, life))
    });
    let cells = (0..).zip(maps.port_cells.iter()).filter_map(|(index, cell)| {
        let seen = cell.load();
        (seen >> 62 != 0 && is_orphan(maps, index, seen)).then_some((index, seen))
    });
    Suspects {
        flows: unsettled(&maps.flows),
        half_open: unsettled(&maps.half_open),
        sticky: unsettled(&maps.sticky),
        records: records.collect(),
        cells: cells.collect(),
    }
}

/// Mends what an earlier pass found and what has not changed since.
///
/// Call it at least a second after that pass, with nobody else writing from user space. What a freed slot held shows
/// up in the next round.
pub fn repair(maps: &Maps, suspects: &Suspects, now: Ticks) -> Repaired {
    Repaired {
        slots: table::repair(&maps.flows, suspects.flows.iter().copied())
            + table::repair(&maps.half_open, suspects.half_open.iter().copied())
            + table::repair(&maps.sticky, suspects.sticky.iter().copied()),
        ports: free_orphans(maps, &suspects.cells, now),
        records: recount(maps, &suspects.records, now),
    }
}

fn unsettled<const N: usize>(slots: &[Slot<N>]) -> Vec<(u32, Life)> {
    let odd = |life: Life| matches!(life.state(), SlotState::Claimed | SlotState::Pending);
    let lives = (0..).zip(slots.iter().map(Slot::life));
    lives.filter(|(_, life)| odd(*life)).collect()
}

/// Whether a port belongs to a flow that does not exist, or that has another port.
fn is_orphan(maps: &Maps, cell: u32, seen: u64) -> bool {
    match PortCell::from_word(seen).owner {
        Owner::Free => false,
        Owner::Flow(slot) => !has_port(maps, maps.flows.get(slot as usize), cell),
        Owner::HalfOpen(slot) => !has_port(maps, maps.half_open.get(slot as usize), cell),
    }
}

fn has_port(maps: &Maps, slot: Option<&FlowSlot>, cell: u32) -> bool {
    slot.is_some_and(|slot| match slot.life().state() {
        SlotState::Free => false,
        // Its words mean nothing yet, or nothing any more: its owner knows.
        SlotState::Claimed => true,
        SlotState::Pending | SlotState::Live => {
            let own = maps.port_cells.get(cell as usize);
            match (cell_of(maps, &slot.read()), own) {
                (Some(of_flow), Some(own)) => std::ptr::eq(of_flow, own),
                _ => false,
            }
        }
    })
}

fn free_orphans(maps: &Maps, cells: &[(u32, u64)], now: Ticks) -> usize {
    cells
        .iter()
        .filter(|(index, seen)| {
            let Some(cell) = maps.port_cells.get(*index as usize) else {
                return false;
            };
            // A cell that was freed and taken again has another stamp.
            if cell.load() != *seen || !is_orphan(maps, *index, *seen) {
                return false;
            }
            match PortCell::from_word(*seen).owner {
                Owner::Free => return false,
                Owner::Flow(flow) => give_back(cell, flow, now),
                Owner::HalfOpen(_) => {
                    let _taken_by_another = cell.compare_exchange(*seen, 0);
                }
            }
            true
        })
        .count()
}

/// How many open flows refer to the record in a slot.
#[derive(Clone, Copy, Default)]
struct Count(u32);

impl Count {
    fn differs(self, life: Life) -> bool {
        // A note at its limit has lost count.
        life.note() != self.0 && life.note() != Life::MAX_NOTE
    }
}

/// Open flows that hold each sticky slot's present record.
fn open_flows_by_record(maps: &Maps) -> Vec<Count> {
    let mut counts = vec![Count::default(); maps.sticky.len()];
    for slot in maps.flows.iter() {
        if let Some(record) = held_by(maps, slot)
            && let Some(count) = counts.get_mut(record)
        {
            count.0 += 1;
        }
    }
    counts
}

/// The sticky slot whose record this slot's flow holds open.
fn held_by(maps: &Maps, slot: &FlowSlot) -> Option<usize> {
    let life = slot.life();
    if !is_live(life) || TcpState::from_note(life.note()).is_closed() {
        return None;
    }
    let words: [u64; FLOW_WORDS] = slot.read();
    let record = FlowSticky::from_word(words[STICKY_WORD]).record?;
    let key = FlowKey::from_words(&words);
    let key = maps.sticky_key(key.client, key.service, key.service_port);
    let held = maps.sticky.get(record.slot as usize)?;
    let same = reference(record.slot, held.life()) == record && key.may_hold(StickyKey::of(&held.read()));
    same.then_some(record.slot as usize)
}

fn recount(maps: &Maps, records: &[(u32, Life)], now: Ticks) -> usize {
    if records.is_empty() {
        return 0;
    }
    let counts = open_flows_by_record(maps);
    records
        .iter()
        .filter(|(index, seen)| {
            let place = *index as usize;
            let (Some(slot), Some(count)) = (maps.sticky.get(place), counts.get(place)) else {
                return false;
            };
            if !count.differs(*seen) {
                return false;
            }
            let timeout = persistence(maps, StickyServer::from_word(slot.words[2].load()).service);
            let mended = seen.with_note(count.0).with_deadline(now.plus(timeout));
            // Every flow that comes or goes writes the life: if it is as it was, the count still holds.
            slot.exchange(*seen, mended)
        })
        .count()
}

#[cfg(test)]
#[path = "repair_tests.rs"]
mod tests;
