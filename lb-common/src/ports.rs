//! SNAT source ports: per (source address, endpoint) an array of cells, one a port.
//!
//! A cell says who has the port, so handing one out is claiming a cell, and the return packet's flow is one
//! array read away. Ports go round: a cursor walks the array, so that a port rests as long as possible before it
//! is used again, and [`QUARANTINE_SECONDS`] if it can: a server in TIME-WAIT answers a
//! reused port by other rules (RFC 9293 section 3.6.1, RFC 6191), and the client may have to wait a second.
//!
//! A half-open flow's port may be taken by another half-open flow when nothing else is left, oldest first; the
//! port of an open flow never. Where there is neither, a port that has rested for [`least_rest`] will do: a second's wait is less than
//! a connection that is not made.

use crate::clock::Ticks;
use crate::word::Word;

/// How long a port rests after its flow has ended, unless ports are short.
pub const QUARANTINE_SECONDS: u64 = 120;

/// How long a port rests if nothing else is left: a sixty-fourth of the quarantine, nearly two seconds. By then segments of
/// the connection before have arrived, or are lost.
#[inline(always)]
#[must_use]
pub const fn least_rest(quarantine: Ticks) -> Ticks {
    Ticks(quarantine.0 / 64)
}

/// Cells that are looked at for one flow before the source is called exhausted.
pub const PROBES: u32 = 16;

/// Who has a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody, since the cell's stamp (zero: never used).
    Free,
    /// The half-open flow in this slot.
    HalfOpen(u32),
    /// The flow in this slot.
    Flow(u32),
}

/// A cell: `stamp:32 | slot:30 | kind:2`, least significant first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortCell {
    /// Who has the port.
    pub owner: Owner,
    /// Since when.
    pub stamp: Ticks,
}

const SLOT_MASK: u32 = (1 << 30) - 1;

impl PortCell {
    /// The word that is stored.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        let (kind, slot) = match self.owner {
            Owner::Free => (0u64, 0),
            Owner::HalfOpen(slot) => (1, slot),
            Owner::Flow(slot) => (2, slot),
        };
        self.stamp.0 as u64 | ((slot & SLOT_MASK) as u64) << 32 | kind << 62
    }

    /// The fields of a stored word.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are taken out of a packed word")]
    pub const fn from_word(word: u64) -> Self {
        let slot = (word >> 32) as u32 & SLOT_MASK;
        let owner = match word >> 62 {
            0 => Owner::Free,
            1 => Owner::HalfOpen(slot),
            _ => Owner::Flow(slot),
        };
        Self { owner, stamp: Ticks(word as u32) }
    }
}

/// Where the cells and cursors are.
pub trait Cells {
    /// The cell at `index`.
    fn cell(&self, index: u32) -> Option<&Word>;
    /// The cursor of a (source address, endpoint) pair.
    fn cursor(&self, pair: u32) -> Option<&Word>;
}

/// The part of the cells that belongs to one (source address, endpoint) pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The pair: `endpoint * sources + source`.
    pub pair: u32,
    /// Ports in the range.
    pub count: u32,
}

impl PortRange {
    /// The index of the cell for the range's `offset`-th port.
    #[inline(always)]
    #[must_use]
    pub const fn index(self, offset: u32) -> u32 {
        self.pair * self.count + offset
    }

    /// The offset so many ports after another; at most a whole range.
    #[inline(always)]
    const fn after(self, offset: u32, ports: u32) -> u32 {
        let offset = offset + ports;
        if offset >= self.count { offset - self.count } else { offset }
    }
}

/// Claims a port for the half-open flow in slot `owner`; gives the port's offset in the range.
///
/// `None` if [`PROBES`] cells in a row (or all of a smaller range) belong to established flows or rest.
#[inline(always)]
pub fn claim<C: Cells>(
    cells: &C,
    range: PortRange,
    owner: u32,
    now: Ticks,
    quarantine: Ticks,
) -> Option<u32> {
    if range.count == 0 {
        return None;
    }
    let cursor = cells.cursor(range.pair)?;
    #[expect(clippy::cast_possible_truncation, reason = "the cursor counts modulo the range")]
    let start = (cursor.fetch_add(1) % u64::from(range.count)) as u32;
    let taken = PortCell { owner: Owner::HalfOpen(owner), stamp: now }.word();
    // No `Option`: its empty half is undefined, and the verifier sees it copied about.
    let (mut second_best, mut second_seen) = (u32::MAX, 0);
    let mut probe = 0;
    // A range with fewer ports than that is gone round once: beyond it lie the next pair's.
    while probe < PROBES && probe < range.count {
        let cell = cells.cell(range.index(range.after(start, probe)))?;
        let seen = cell.load();
        let PortCell { owner, stamp } = PortCell::from_word(seen);
        match owner {
            Owner::Free
                if (seen == 0 || now.since(stamp).0 >= quarantine.0)
                    && cell.compare_exchange(seen, taken).is_ok() =>
            {
                pass_over(cursor, probe);
                return Some(range.after(start, probe));
            }
            Owner::HalfOpen(_) if second_best == u32::MAX => (second_best, second_seen) = (probe, seen),
            _ => {}
        }
        probe += 1;
    }
    if second_best == u32::MAX {
        return None;
    }
    let offset = range.after(start, second_best);
    let cell = cells.cell(range.index(offset))?;
    if cell.compare_exchange(second_seen, taken).is_err() {
        return None;
    }
    pass_over(cursor, second_best);
    Some(offset)
}

/// Moves the cursor over the ports that were looked at in vain. Else the next claim would come to the same port, and take
/// it from the half-open flow that has just got it.
#[inline(always)]
fn pass_over(cursor: &Word, probes: u32) {
    if probes > 0 {
        cursor.fetch_add(u64::from(probes));
    }
}

/// Hands a port from its half-open flow to the established one. False if another half-open flow took it.
#[inline(always)]
#[must_use]
pub fn promote(cell: &Word, half_open: u32, flow: u32, now: Ticks) -> bool {
    let seen = cell.load();
    if PortCell::from_word(seen).owner != Owner::HalfOpen(half_open) {
        return false;
    }
    cell.compare_exchange(seen, PortCell { owner: Owner::Flow(flow), stamp: now }.word()).is_ok()
}

/// Gives a port back; only its owner's flow can.
#[inline(always)]
pub fn give_back(cell: &Word, flow: u32, now: Ticks) {
    let seen = cell.load();
    if PortCell::from_word(seen).owner == Owner::Flow(flow) {
        // A stamp of zero would read as never used.
        let stamp = Ticks(if now.0 == 0 { 1 } else { now.0 });
        let _taken_by_nobody_else =
            cell.compare_exchange(seen, PortCell { owner: Owner::Free, stamp }.word());
    }
}

#[cfg(test)]
#[cfg(not(loom))]
#[path = "ports_tests.rs"]
mod tests;
