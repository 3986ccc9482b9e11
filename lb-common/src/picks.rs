//! What a scheduler that counts has just picked for a client that has no record yet, so that the client's other first
//! SYNs go to the same server. A word a pick; a client's hash says which, and another's pick may overwrite it.
//!
//! | bits | content |
//! |---|---|
//! | 0..16 | server |
//! | 16..32 | when it was picked, in ticks, the low 16 bits |
//! | 32..64 | the client's hash, its lowest bit set |

use crate::clock::Ticks;
use crate::word::Word;

/// Words of the table; a power of two.
pub const PICKS: u32 = 1 << 16;

/// The place of a client's hash.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "cut to the table's size")]
pub const fn place(hash: u64) -> u32 {
    hash as u32 & (PICKS - 1)
}

#[inline(always)]
const fn tag(hash: u64) -> u64 {
    (hash >> 32 | 1) << 32
}

#[inline(always)]
const fn word(hash: u64, server: u16, now: Ticks) -> u64 {
    tag(hash) | (now.0 as u64 & 0xffff) << 16 | server as u64
}

/// The server that a word has for a client, if that was picked within `lifetime`.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "fields are taken out of a packed word")]
pub const fn noted(word: u64, hash: u64, now: Ticks, lifetime: Ticks) -> Option<u16> {
    let age = (now.0 as u16).wrapping_sub((word >> 16) as u16);
    if word & !0xffff_ffff == tag(hash) && age as u32 <= lifetime.0 { Some(word as u16) } else { None }
}

/// Notes a pick in a cell that held `seen`; gives the server that the client goes to: another's, if another core has noted
/// one for this client in between.
#[inline(always)]
pub fn note(cell: &Word, seen: u64, hash: u64, server: u16, now: Ticks, lifetime: Ticks) -> u16 {
    match cell.compare_exchange(seen, word(hash, server, now)) {
        Ok(_) => server,
        Err(there) => match noted(there, hash, now, lifetime) {
            Some(noted) => noted,
            None => server,
        },
    }
}

/// Forgets a client's pick.
pub fn forget(cell: &Word, hash: u64) {
    let seen = cell.load();
    if seen & !0xffff_ffff == tag(hash) {
        let _overwritten_by_another = cell.compare_exchange(seen, 0);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    const HASH: u64 = 0x1234_5678_9abc_def0;
    const LIFETIME: Ticks = Ticks(60);

    #[test]
    fn a_pick_is_its_clients_for_its_lifetime() {
        let cell = Word::new(0);
        let now = Ticks(0x1_ffff);
        assert_eq!(noted(cell.load(), HASH, now, LIFETIME), None);
        assert_eq!(note(&cell, 0, HASH, 7, now, LIFETIME), 7);
        let at = |later: u32| noted(cell.load(), HASH, Ticks(now.0 + later), LIFETIME);
        assert_eq!([at(0), at(60), at(61)], [Some(7), Some(7), None]);
        assert_eq!(noted(cell.load(), HASH ^ 1 << 40, now, LIFETIME), None);
    }

    #[test]
    fn of_two_cores_that_pick_for_a_client_the_first_decides_and_another_client_may_overwrite() {
        let cell = Word::new(0);
        let now = Ticks(9);
        assert_eq!(note(&cell, 0, HASH, 7, now, LIFETIME), 7);
        assert_eq!(note(&cell, 0, HASH, 8, now, LIFETIME), 7, "it saw nothing, but was late");
        let other = HASH ^ 1 << 40;
        assert_eq!(note(&cell, 0, other, 9, now, LIFETIME), 9, "late, and of another client");
        assert_eq!(noted(cell.load(), HASH, now, LIFETIME), Some(7));
        assert_eq!(note(&cell, cell.load(), other, 9, now, LIFETIME), 9);
        assert_eq!(noted(cell.load(), HASH, now, LIFETIME), None);
        forget(&cell, HASH);
        assert_eq!(noted(cell.load(), other, now, LIFETIME), Some(9), "another's is left");
        forget(&cell, other);
        assert_eq!(cell.load(), 0);
    }
}
