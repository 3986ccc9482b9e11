//! SNAT ports on their way from one array of cells to another.

use lb_common::{
    clock::Ticks,
    control::Snat,
    flow::{FLOW_WORDS, FlowServer, SERVER_WORD},
    ports::{Owner, PortCell},
    word::Word,
};

use super::old::Old;
use crate::dataplane::{Maps, sweep::cell_of};

/// Where a cell of the old array is in the new one, if there is such a place.
pub(super) fn place(old: Snat, new: Snat, index: u32) -> Option<u32> {
    let (pair, offset) = (index.checked_div(old.ports)?, index.checked_rem(old.ports)?);
    let (endpoint, source) =
        (pair.checked_div(u32::from(old.rows()))?, pair.checked_rem(u32::from(old.rows()))?);
    let port = u32::from(old.first_port) + offset;
    let offset = port.checked_sub(u32::from(new.first_port)).filter(|offset| *offset < new.ports)?;
    if source >= u32::from(new.rows()) {
        return None;
    }
    let pair = endpoint.checked_mul(u32::from(new.rows()))? + source;
    pair.checked_mul(new.ports)?.checked_add(offset)
}

/// Carries over since when each free port rests, and where each round of ports is.
pub(super) fn carry_rests(old: &Old, new: &Maps) {
    let now = Snat::from_word(new.control().snat.load());
    for (index, cell) in (0..).zip(old.cells.iter()) {
        let word = cell.load();
        if word != 0
            && PortCell::from_word(word).owner == Owner::Free
            && let Some(to) = place(old.snat, now, index).and_then(|to| new.port_cells.get(to as usize))
        {
            to.store(word);
        }
    }
    carry_cursors(old, new);
}

/// Carries over where each round of ports is; elsewhere ports that rest would come first.
pub(super) fn carry_cursors(old: &Old, new: &Maps) {
    if (old.snat.ports, old.snat.first_port) == (ports(new).ports, ports(new).first_port) {
        for (to, from) in new.port_cursors.iter().zip(old.cursors.iter()) {
            to.store(from.load());
        }
    }
}

fn ports(new: &Maps) -> Snat {
    Snat::from_word(new.control().snat.load())
}

/// How many SNAT ports a row has.
pub(super) fn of(words: &[u64; FLOW_WORDS]) -> usize {
    usize::from(FlowServer::from_word(words[SERVER_WORD]).has_port())
}

/// Whether a row of the old tables still has the port that it says it has; where clients keep their addresses, none has one.
pub(super) fn has_its_port(old: &Old, words: &[u64; FLOW_WORDS], row: Owner) -> bool {
    let to = FlowServer::from_word(words[SERVER_WORD]);
    !to.has_port() || old_owner(old, to) == Some(row)
}

fn old_owner(old: &Old, to: FlowServer) -> Option<Owner> {
    let offset = old.snat.offset(to.snat_port)?;
    let pair = u32::from(to.endpoint).checked_mul(u32::from(old.snat.rows()))? + u32::from(to.source);
    let index = pair.checked_mul(old.snat.ports)?.checked_add(offset)?;
    Some(PortCell::from_word(old.cells.get(index as usize)?.load()).owner)
}

/// Gives the port of a row, if it has one, to its new slot. False if there is no such port now, or an established flow has it.
pub(super) fn give(new: &Maps, words: &[u64; FLOW_WORDS], owner: Owner, now: Ticks) -> bool {
    if of(words) == 0 {
        return true;
    }
    let Some(cell) = cell_of(new, words) else { return false };
    let seen = cell.load();
    if matches!(PortCell::from_word(seen).owner, Owner::Flow(_)) {
        return false;
    }
    cell.compare_exchange(seen, PortCell { owner, stamp: now }.word()).is_ok()
}

/// Has the port of a row rest from now on.
pub(super) fn rest(new: &Maps, words: &[u64; FLOW_WORDS], now: Ticks) {
    if let Some(cell) = cell_of(new, words) {
        let seen = cell.load();
        if PortCell::from_word(seen).owner == Owner::Free {
            let rests = PortCell { owner: Owner::Free, stamp: now };
            let _taken_in_this_moment = cell.compare_exchange(seen, rests.word());
        }
    }
}

/// Takes a port back from a half-open row that goes.
pub(super) fn take_back(cell: &Word, half_open: u32) {
    let seen = cell.load();
    if PortCell::from_word(seen).owner == Owner::HalfOpen(half_open) {
        let _given_to_its_flow = cell.compare_exchange(seen, 0);
    }
}
