//! Frees what has expired: flows, with the sticky record and the port that they held; half-open flows; sticky records.
//!
//! Nothing depends on it for correctness: the program itself decides on expiry whenever it reads or wants a slot. It
//! makes the tables show what is, starts the timeouts of sticky records whose clients fell silent, and gives ports
//! back before they run short. The program works on the same slots meanwhile; whoever exchanges a slot's life owns
//! what the slot held, so everything is given back exactly once.

use lb_common::{
    clock::Ticks,
    control::Snat,
    flow::{FLOW_WORDS, FlowKey, FlowServer, FlowSlot, FlowSticky, Flows, SERVER_WORD, STICKY_WORD},
    life::{Life, SlotState},
    ports::{Owner, PortCell, PortRange, give_back},
    service::Service,
    sticky::{Stickies, let_go},
    table::{Kind as _, release},
    tcp::TcpState,
    word::Word,
};

use super::{Maps, loads};

pub use super::{
    census::{Census, Holdings, Usage, census},
    repair::{Repaired, Suspects, repair, suspects},
};

/// What [`sweep`] freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows.
    pub flows: usize,
    /// Half-open flows.
    pub half_open: usize,
    /// Sticky records.
    pub sticky: usize,
}

/// Frees everything that has expired by `now`.
///
/// Sticky records come last: one whose last flow expires in this pass is kept for its timeout, from now on.
pub fn sweep(maps: &Maps, now: Ticks) -> Swept {
    let flows = claim_expired(&maps.flows, now)
        .map(|(index, slot, life)| {
            retire(maps, index, &slot.read(), life, now);
            release(slot, life.claimed());
        })
        .count();
    let half_open = claim_expired(&maps.half_open, now)
        .map(|(index, slot, life)| {
            give_back_half_open(maps, index, &slot.read(), life, now);
            release(slot, life.claimed());
        })
        .count();
    let sticky = maps
        .sticky
        .iter()
        .filter(|slot| {
            let life = slot.life();
            let expired = is_live(life) && Stickies::expired(life, now);
            expired && slot.exchange(life, life.with_state(SlotState::Free))
        })
        .count();
    Swept { flows, half_open, sticky }
}

/// Takes a flow out of the table before its time, with everything that it held; false if it is gone or changed in this
/// moment. Its client's next packet is answered with RST.
#[must_use]
pub fn forget_flow(maps: &Maps, index: u32, seen: Life, now: Ticks) -> bool {
    let Some(slot) = maps.flows.get(index as usize) else {
        return false;
    };
    if !is_live(seen) || !slot.exchange(seen, seen.claimed()) {
        return false;
    }
    retire(maps, index, &slot.read(), seen, now);
    release(slot, seen.claimed());
    true
}

/// Claims the expired slots of a table, one by one: index, slot, and its life before the claim.
fn claim_expired(slots: &[FlowSlot], now: Ticks) -> impl Iterator<Item = (u32, &FlowSlot, Life)> {
    (0..).zip(slots).filter_map(move |(index, slot)| {
        let life = slot.life();
        let expired = is_live(life) && Flows::expired(life, now);
        (expired && slot.exchange(life, life.claimed())).then_some((index, slot, life))
    })
}

/// Gives back what the flow in a claimed slot held. `life` is the flow's own, from before the claim.
pub(super) fn retire(maps: &Maps, index: u32, words: &[u64; FLOW_WORDS], life: Life, now: Ticks) {
    // A closed flow gave up its count and its record when it was closed.
    if !TcpState::from_note(life.note()).is_closed() {
        loads::ended(maps, FlowServer::from_word(words[SERVER_WORD]).server);
        if let Some(record) = FlowSticky::from_word(words[STICKY_WORD]).record {
            let key = FlowKey::from_words(words);
            let deadline = now.plus(persistence(maps, key.service));
            let key = maps.sticky_key(key.client, key.service, key.service_port);
            let_go(&maps.sticky, record, key, deadline);
        }
    }
    if let Some(cell) = cell_of(maps, words) {
        give_back(cell, index, maps.control().over_since(life, now));
    }
}

/// Gives back the port of an expired half-open flow, if it still has it.
///
/// The port of a handshake that came to nothing has rested while it was waited for. A flow that is established (it
/// found no room in the flow table) has left a connection in the server's memory: its port rests from now.
fn give_back_half_open(maps: &Maps, index: u32, words: &[u64; FLOW_WORDS], life: Life, now: Ticks) {
    let Some(cell) = cell_of(maps, words) else { return };
    if TcpState::from_note(life.note()) == TcpState::Established {
        free_cell(cell, Owner::HalfOpen(index), now);
    } else {
        free_cell(cell, Owner::HalfOpen(index), Ticks(0));
    }
}

fn free_cell(cell: &Word, owner: Owner, stamp: Ticks) {
    let seen = cell.load();
    if PortCell::from_word(seen).owner == owner {
        let free = PortCell { owner: Owner::Free, stamp };
        let _taken_by_another = cell.compare_exchange(seen, free.word());
    }
}

pub(super) fn is_live(life: Life) -> bool {
    life.state() == SlotState::Live
}

/// How long a sticky record of a service outlives its last flow; one tick if the service is gone.
pub(super) fn persistence(maps: &Maps, service: u16) -> Ticks {
    let slot = maps.services.get(usize::from(service));
    slot.and_then(Service::load).map_or(Ticks(1), |service| service.persistence)
}

/// The cell of a flow's SNAT port.
pub(super) fn cell_of<'a>(maps: &'a Maps, words: &[u64; FLOW_WORDS]) -> Option<&'a Word> {
    let to = FlowServer::from_word(words[SERVER_WORD]);
    let snat = Snat::from_word(maps.control().snat.load());
    let offset = u32::from(u16::from_be(to.snat_port)).checked_sub(u32::from(snat.first_port))?;
    if offset >= snat.ports {
        return None;
    }
    let pair = u64::from(to.endpoint) * u64::from(snat.rows()) + u64::from(to.source);
    // Refuses numbers that would wrap: a torn row must not free another's port.
    let last = (pair + 1).checked_mul(u64::from(snat.ports))?;
    u32::try_from(last).ok()?;
    let range = PortRange { pair: u32::try_from(pair).ok()?, count: snat.ports };
    maps.port_cells.get(range.index(offset) as usize)
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
