//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4), weighted.
//!
//! A table of a prime number of places, each a server id. An unknown client goes to the server at
//! `hash(client) mod size`; when a server comes or goes, few other places change hands.

use crate::address::Address;
use crate::hash::mix;

/// The table sizes in use: primes, few of them, so that adding a server seldom changes the size (which would move
/// every unknown client's pick). Each serves up to a hundredth of its size in servers.
pub const SIZES: [u32; 3] = [4_099, 16_411, 65_537];
/// The most servers a service can have in its table.
pub const MAX_SERVERS: usize = 4_096;
/// The id in a place of a table without servers.
pub const NOBODY: u16 = u16::MAX;
/// Places in one 64-bit value of the inner map.
pub const LANES: u32 = 4;

/// The size of the table for this many servers.
#[must_use]
pub const fn size_for(servers: usize) -> u32 {
    if servers * 100 <= SIZES[0] as usize {
        SIZES[0]
    } else if servers * 100 <= SIZES[1] as usize {
        SIZES[1]
    } else {
        SIZES[2]
    }
}

/// The place of a client in a table of `size` places. `attempt` beyond zero gives others, for when the server at the
/// first has just gone.
#[inline(always)]
#[must_use]
pub const fn place(seed: u64, client: Address, size: u32, attempt: u32) -> u32 {
    let hash = mix(mix(seed ^ client.0[0]) ^ client.0[1]);
    let hash = if attempt == 0 { hash } else { mix(hash ^ attempt as u64) };
    ((hash >> 32) % size as u64) as u32
}

/// Where a place lies in the inner map: the value's index (after the header in value 0), and the shift of its lane.
#[inline(always)]
#[must_use]
pub const fn lane(place: u32) -> (u32, u32) {
    (1 + place / LANES, (place % LANES) * 16)
}

/// How many values the inner map of a table of `size` places has.
#[must_use]
pub const fn values_for(size: u32) -> u32 {
    1 + size.div_ceil(LANES)
}

#[cfg(not(target_arch = "bpf"))]
pub use build::{Candidate, Table, build};

#[cfg(not(target_arch = "bpf"))]
mod build {
    extern crate alloc;
    use super::{LANES, NOBODY, lane, place, values_for};
    use crate::address::Address;
    use crate::hash::mix;
    use alloc::vec;
    use alloc::vec::Vec;

    /// A server that may be given unknown clients.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Candidate {
        /// Its id, as it stands in the table.
        pub id: u16,
        /// What its preferences are computed from: the same on every node, whatever the ids are.
        pub address: Address,
        /// Its port, as on the wire.
        pub port: u16,
        /// Its share; zero gets no place.
        pub weight: u32,
    }

    /// A lookup table.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Table {
        places: Vec<u16>,
    }

    impl Table {
        /// The table with these server ids by place, at least one.
        pub(crate) const fn of(places: Vec<u16>) -> Self {
            Self { places }
        }

        /// The table read back from an inner map's values; `None` if they are not one.
        #[must_use]
        #[expect(clippy::cast_possible_truncation, reason = "lanes are 16 bits")]
        pub fn from_values(values: &[u64]) -> Option<Self> {
            let size = u32::try_from(*values.first()?).ok()?;
            if size == 0 || values.len() < values_for(size) as usize {
                return None;
            }
            let places = (0..size)
                .map(|place| {
                    let (value, shift) = lane(place);
                    (values[value as usize] >> shift) as u16
                })
                .collect();
            Some(Self { places })
        }

        /// The inner map's values: the size, then four places a value.
        #[must_use]
        pub fn to_values(&self) -> Vec<u64> {
            let mut values = vec![self.places.len() as u64];
            values.extend(
                self.places.chunks(LANES as usize).map(|places| {
                    places.iter().rev().fold(0, |value, place| value << 16 | u64::from(*place))
                }),
            );
            values
        }

        /// The server that an unknown client is sent to, if there is any.
        #[must_use]
        pub fn pick(&self, seed: u64, client: Address) -> Option<u16> {
            let id = self.places[place(seed, client, self.size(), 0) as usize];
            (id != NOBODY).then_some(id)
        }

        /// How many places there are.
        #[must_use]
        #[expect(clippy::cast_possible_truncation, reason = "at most 65,537 places")]
        pub const fn size(&self) -> u32 {
            self.places.len() as u32
        }

        /// The server ids by place.
        #[must_use]
        pub fn places(&self) -> &[u16] {
            &self.places
        }
    }

    struct Turn {
        id: u16,
        weight: u64,
        credit: u64,
        next: u64,
        skip: u64,
    }

    /// Fills a table of `size` places (a prime). Places are handed out in rounds; in each, the heaviest server takes one
    /// and the others save their weight until they have as much.
    #[must_use]
    pub fn build(seed: u64, candidates: &[Candidate], size: u32) -> Table {
        let mut places = vec![NOBODY; size as usize];
        let heaviest = candidates.iter().map(|candidate| u64::from(candidate.weight)).max().unwrap_or(0);
        let mut turns: Vec<Turn> = candidates
            .iter()
            .filter(|candidate| candidate.weight > 0)
            .map(|candidate| turn(seed, candidate, u64::from(size)))
            .collect();
        // The order of turns decides ties: it must not depend on the order in which servers were named.
        turns.sort_by_key(|turn| (turn.next, turn.skip, turn.id));
        let mut left = if turns.is_empty() { 0 } else { size };
        while left > 0 {
            for turn in &mut turns {
                turn.credit += turn.weight;
                if turn.credit < heaviest {
                    continue;
                }
                turn.credit -= heaviest;
                while places[usize_of(turn.next)] != NOBODY {
                    turn.next = (turn.next + turn.skip) % u64::from(size);
                }
                places[usize_of(turn.next)] = turn.id;
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        Table { places }
    }

    #[expect(clippy::cast_possible_truncation, reason = "below the table's size")]
    const fn usize_of(place: u64) -> usize {
        place as usize
    }

    fn turn(seed: u64, candidate: &Candidate, size: u64) -> Turn {
        let name =
            mix(mix(seed ^ candidate.address.0[0]) ^ candidate.address.0[1]) ^ u64::from(candidate.port);
        let offset = mix(name ^ 0x6f66_6673_6574);
        let skip = mix(name ^ 0x736b_6970);
        Turn {
            id: candidate.id,
            weight: u64::from(candidate.weight),
            credit: 0,
            next: offset % size,
            skip: skip % (size - 1) + 1,
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
#[path = "maglev_tests.rs"]
mod tests;
