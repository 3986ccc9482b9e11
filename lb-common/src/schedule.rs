//! How a service picks a server for a new client, from its table and live counters. The program, `explain` and `plan`
//! ask this one function.
//!
//! | kind | the pick |
//! |---|---|
//! | `source-hash` | the place of the client's address |
//! | `least-conn` | of two servers that the client's address names, the one with fewer open flows for its weight |
//! | `round-robin` | the next place |

use crate::address::Address;
use crate::maglev::place;
use crate::word::Word;

/// How an unknown client's server is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scheduler {
    /// By the client's address alone: the same on every node.
    #[default]
    SourceHash = 0,
    /// By the servers' open flows, weighted.
    LeastConn = 1,
    /// In turn, weighted.
    RoundRobin = 2,
}

impl Scheduler {
    /// Every kind, by number.
    pub const ALL: [Self; 3] = [Self::SourceHash, Self::LeastConn, Self::RoundRobin];

    /// The kind with this number; `SourceHash` for a number that no kind has.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::LeastConn,
            2 => Self::RoundRobin,
            _ => Self::SourceHash,
        }
    }

    /// The name in configuration and views.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SourceHash => "source-hash",
            Self::LeastConn => "least-conn",
            Self::RoundRobin => "round-robin",
        }
    }

    /// Whether two picks for one client may differ: a first pick is then noted (see [`crate::picks`]).
    #[inline(always)]
    #[must_use]
    pub const fn is_live(self) -> bool {
        !matches!(self, Self::SourceHash)
    }
}

/// What is counted of a server: open established flows (signed: another core may count a flow's end before its
/// beginning), and weight:32. A weight counts only beside those of the same service.
pub type LoadSlot = [Word; LOAD_WORDS];
/// Words of [`LoadSlot`].
pub const LOAD_WORDS: usize = 2;
/// The word with the open flows.
pub const OPEN_WORD: usize = 0;
/// The word with the weight.
pub const WEIGHT_WORD: usize = 1;

#[cfg(not(loom))]
const _: () = assert!(size_of::<LoadSlot>() == 16);

/// The open flows and weight of a server, as they are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Open established flows.
    pub open: u32,
    /// Weight; zero: none is known.
    pub weight: u32,
}

impl Load {
    /// Reads a slot; a count below zero is none.
    #[inline(always)]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "there are fewer than 2^32 flows; weights have 32 bits"
    )]
    pub fn read(slot: &LoadSlot) -> Self {
        let open = slot[OPEN_WORD].load();
        Self { open: if open >> 63 == 0 { open as u32 } else { 0 }, weight: slot[WEIGHT_WORD].load() as u32 }
    }

    /// Whether it has more open flows for its weight than the other.
    #[inline(always)]
    #[must_use]
    pub const fn is_above(self, other: Self) -> bool {
        self.open as u64 * other.divisor() > other.open as u64 * self.divisor()
    }

    #[inline(always)]
    const fn divisor(self) -> u64 {
        if self.weight == 0 { 1 } else { self.weight as u64 }
    }
}

/// Who asks for a server, and of what table.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The secret of the tables.
    pub seed: u64,
    /// The client.
    pub client: Address,
    /// What tells the client's connections apart, where each is picked for alone; else zero.
    pub salt: u64,
    /// Places of the table, at least one.
    pub size: u32,
    /// How many picks before this one were of no use.
    pub attempt: u32,
}

/// How many places `least-conn` looks at for two servers. Of two with as many places, one client in 256 finds only the
/// fuller one.
pub const DRAWS: u32 = 8;

/// The pick. `turn` is how many were made before by `round-robin`, `at` gives the server of a place, `load` of a server.
#[inline(always)]
pub fn pick(
    scheduler: Scheduler,
    asked: Asked,
    turn: u64,
    load: impl Fn(u16) -> Load,
    at: impl Fn(u32) -> Option<u16>,
) -> Option<u16> {
    let hashed = |draw| at(place(asked.seed ^ asked.salt, asked.client, asked.size, draw));
    match scheduler {
        Scheduler::SourceHash => hashed(asked.attempt),
        Scheduler::RoundRobin => at(turn_place(turn, asked.size, asked.attempt)),
        // A server that has just gone may have the fewest flows each time.
        Scheduler::LeastConn if asked.attempt > 0 => hashed(DRAWS + asked.attempt),
        Scheduler::LeastConn => {
            let first = hashed(0)?;
            let mut draw = 1;
            while draw < DRAWS {
                let other = hashed(draw)?;
                if other != first {
                    return Some(if load(first).is_above(load(other)) { other } else { first });
                }
                draw += 1;
            }
            Some(first)
        }
    }
}

/// The place of a turn.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "below the size")]
pub const fn turn_place(turn: u64, size: u32, attempt: u32) -> u32 {
    (turn.wrapping_add(attempt as u64) % size as u64) as u32
}

#[cfg(not(target_arch = "bpf"))]
pub use build::build;

#[cfg(not(target_arch = "bpf"))]
mod build {
    extern crate alloc;
    use super::Scheduler;
    use crate::maglev::{self, Candidate, NOBODY, Table, size_for};
    use alloc::vec;
    use alloc::vec::Vec;

    /// The table of a service with so many configured `servers`, of which the candidates take new clients.
    ///
    /// By the number of configured servers, so that one that goes down does not change the size of a hashed table.
    #[must_use]
    pub fn build(scheduler: Scheduler, seed: u64, candidates: &[Candidate], servers: usize) -> Table {
        let size = size_for(servers);
        match scheduler {
            Scheduler::SourceHash | Scheduler::LeastConn => maglev::build(seed, candidates, size),
            Scheduler::RoundRobin => turns(candidates, size),
        }
    }

    /// A cycle in which each server has as many turns as its weight says, evenly spread; exactly, unless that takes more
    /// than `most` turns.
    fn turns(candidates: &[Candidate], most: u32) -> Table {
        let weighty = || candidates.iter().filter(|candidate| candidate.weight > 0);
        let divisor =
            weighty().fold(0, |divisor, candidate| gcd(divisor, u64::from(candidate.weight))).max(1);
        let sum = weighty().map(|candidate| u64::from(candidate.weight)).sum::<u64>() / divisor;
        let most = u64::from(most);
        let count = |candidate: &Candidate| {
            let weight = u64::from(candidate.weight) / divisor;
            if sum <= most { weight } else { (weight * most / sum).max(1) }
        };
        // The k-th of n turns is due in the middle of the k-th part of the cycle.
        let mut due: Vec<(u64, u16)> = weighty()
            .flat_map(|candidate| {
                let turns = count(candidate);
                (0..turns).map(move |turn| (((2 * turn + 1) << 32) / turns, candidate.id))
            })
            .collect();
        due.sort_unstable();
        if due.is_empty() {
            return Table::of(vec![NOBODY]);
        }
        Table::of(due.into_iter().map(|(_, id)| id).collect())
    }

    const fn gcd(mut a: u64, mut b: u64) -> u64 {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    }
}

#[cfg(test)]
#[cfg(not(loom))]
#[path = "schedule_tests.rs"]
mod tests;
