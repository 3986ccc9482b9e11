//! The index of what is ours: virtual services, and the endpoints of real servers.
//!
//! An open-addressed array in two generations: the daemon fills the one that is not in use and then flips
//! [`Control::generation`](crate::control::Control), so a packet sees one whole index or the other.
//!
//! | word | content (least significant bits first) |
//! |---|---|
//! | 0, 1 | address, bytes as on the wire |
//! | 2 | port:16 (as on the wire), IP protocol:8, kind:8, id:16, zero:16 |
//! | 3 | of an endpoint in mode `nat`: port of the service:16 (as on the wire); else zero |
//!
//! What the data path needs of a service is in [`ServiceSlot`], by id.

use crate::address::Address;
use crate::clock::Ticks;
use crate::forwarding::Forwarding;
use crate::hash::{HashKey, hash3};
use crate::mss::MssClamp;
use crate::schedule::Scheduler;
use crate::sticky::StickyKey;
use crate::word::Word;
use crate::{TCP, UDP};

/// Words of an entry.
pub const INDEX_WORDS: usize = 4;
/// An entry of the index.
pub type IndexSlot = [Word; INDEX_WORDS];
/// Entries in one generation.
pub const INDEX_CAPACITY: u32 = 1 << 15;
/// Entries that are looked at for one key; the daemon refuses an index that needs more.
pub const INDEX_PROBES: u32 = 16;
/// Virtual services at most.
pub const MAX_SERVICES: u32 = 4_096;
/// Real servers at most, over all services.
pub const MAX_SERVERS: u32 = 8_192;

#[cfg(not(loom))]
const _: () = assert!(size_of::<IndexSlot>() == 32);
const _: () = assert!((2 * MAX_SERVICES + MAX_SERVERS) * 2 <= INDEX_CAPACITY);

/// What an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A virtual service that is balanced here.
    Service = 1,
    /// A virtual service that the daemon answers itself.
    Local = 2,
    /// The address and port of real servers: what comes from there is an answer.
    Endpoint = 3,
    /// The address of a virtual service, with port 0: for fragments, which show no port.
    Address = 4,
    /// The address and port of a real server in mode `nat`: an answer goes to the client itself. The id is the service's.
    NatEndpoint = 5,
}

/// An entry, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The address.
    pub address: Address,
    /// The port, as on the wire.
    pub port: u16,
    /// The IP protocol number.
    pub protocol: u8,
    /// What it is.
    pub kind: EntryKind,
    /// Service id or endpoint id.
    pub id: u16,
    /// Of a [`EntryKind::NatEndpoint`]: the port of the service whose connections come here, as on the wire.
    pub service_port: u16,
}

impl IndexEntry {
    /// The words that are stored.
    #[must_use]
    pub const fn words(&self) -> [u64; INDEX_WORDS] {
        [
            self.address.0[0],
            self.address.0[1],
            self.port as u64
                | (self.protocol as u64) << 16
                | (self.kind as u64) << 24
                | (self.id as u64) << 32,
            self.service_port as u64,
        ]
    }
}

/// What the data path needs of a service: 32 bytes, by id.
///
/// | word | content (least significant bits first) |
/// |---|---|
/// | 0, 1 | address, bytes as on the wire; zero: the id is not in use |
/// | 2 | persistence timeout:32, idle timeout of an established flow:32 (ticks) |
/// | 3 | [`Forwarding`]:8, IPv6 clients of one /64 are one client:1, UDP:1, a record a port:1, zero:5, [`Scheduler`]:8, zero:8, [`MssClamp`]:16, zero |
pub type ServiceSlot = [Word; SERVICE_WORDS];
/// Words of a service's entry.
pub const SERVICE_WORDS: usize = 4;

/// A service, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The address.
    pub address: Address,
    /// How long a sticky record outlives its last flow; zero: no persistence.
    pub persistence: Ticks,
    /// How long an established flow may be silent.
    pub idle: Ticks,
    /// How packets reach its servers.
    pub forwarding: Forwarding,
    /// Whether IPv6 clients whose addresses share their first 64 bits are one client to persistence and scheduler.
    pub by_prefix: bool,
    /// Whether it is UDP; else TCP.
    pub is_udp: bool,
    /// Whether a client has a sticky record for each of its ports; else one for all of them.
    pub by_port: bool,
    /// How an unknown client's server is picked.
    pub scheduler: Scheduler,
    /// What its connections' SYNs say of segments.
    pub mss_clamp: MssClamp,
}

const BY_PREFIX: u64 = 1 << 8;
const UDP_BIT: u64 = 1 << 9;
const BY_PORT: u64 = 1 << 10;
const SCHEDULER_SHIFT: u32 = 16;
const MSS_CLAMP_SHIFT: u32 = 32;

impl Service {
    /// Its IP protocol number.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        if self.is_udp { UDP } else { TCP }
    }

    /// Whom a client's address stands for: itself, or all of its /64.
    #[inline(always)]
    #[must_use]
    pub const fn client(&self, address: Address) -> Address {
        if self.by_prefix && !address.is_v4() { Address([address.0[0], 0]) } else { address }
    }

    /// What a client's record is found by when it connects to this port (as on the wire) of the service, which has this id.
    #[inline(always)]
    #[must_use]
    pub const fn sticky_key(&self, id: u16, client: Address, port: u16) -> StickyKey {
        StickyKey { client: self.client(client), service: id, port: if self.by_port { port } else { 0 } }
    }

    /// Reads an entry; `None` if the id is not in use.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are taken out of packed words")]
    pub fn load(slot: &ServiceSlot) -> Option<Self> {
        let address = Address([slot[0].load(), slot[1].load()]);
        if address.0[1] == 0 && address.0[0] == 0 {
            return None;
        }
        let times = slot[2].load();
        let modes = slot[3].load();
        Some(Self {
            address,
            persistence: Ticks(times as u32),
            idle: Ticks((times >> 32) as u32),
            forwarding: Forwarding::from_number(modes as u8),
            by_prefix: modes & BY_PREFIX != 0,
            is_udp: modes & UDP_BIT != 0,
            by_port: modes & BY_PORT != 0,
            scheduler: Scheduler::from_number((modes >> SCHEDULER_SHIFT) as u8),
            mss_clamp: MssClamp::from_number((modes >> MSS_CLAMP_SHIFT) as u16),
        })
    }

    /// The words that are stored.
    #[must_use]
    pub const fn words(&self) -> [u64; SERVICE_WORDS] {
        [
            self.address.0[0],
            self.address.0[1],
            self.persistence.0 as u64 | (self.idle.0 as u64) << 32,
            self.forwarding as u64
                | if self.by_prefix { BY_PREFIX } else { 0 }
                | if self.is_udp { UDP_BIT } else { 0 }
                | if self.by_port { BY_PORT } else { 0 }
                | (self.scheduler as u64) << SCHEDULER_SHIFT
                | (self.mss_clamp.number() as u64) << MSS_CLAMP_SHIFT,
        ]
    }
}

/// A service or endpoint that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexHit {
    kind: u8,
    /// Service id or endpoint id.
    pub id: u16,
    /// As in [`IndexEntry`].
    pub service_port: u16,
}

impl IndexHit {
    /// Whether it is of this kind.
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, kind: EntryKind) -> bool {
        self.kind == kind as u8
    }
}

/// Where the index is.
pub trait Index {
    /// The entry at `index`, over both generations.
    fn entry(&self, index: u32) -> Option<&IndexSlot>;
}

/// How the place where an entry is looked for first follows from its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// By the tables' hash.
    #[default]
    Hashed,
    /// By one multiplication: names that somebody chose for that may all want one place, but only the configuration's are
    /// in the index, and how many are looked at for a name is bounded.
    Multiplied,
}

/// Which generation of the index is in force, and how its entries are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// Its number; the lowest bit counts.
    pub generation: u64,
    /// See there.
    pub spread: Spread,
}

impl InForce {
    /// Where its generation begins, over both.
    #[inline(always)]
    #[must_use]
    pub const fn base(self) -> u32 {
        base(self.generation)
    }
}

/// Where a generation of the index begins, over both.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "one of two generations")]
pub const fn base(generation: u64) -> u32 {
    (generation as u32 & 1) * INDEX_CAPACITY
}

/// Where in a generation an entry is looked for first.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the hash is cut to the capacity")]
pub const fn first_place(spread: Spread, key: &HashKey, address: Address, port: u16, protocol: u8) -> u32 {
    match spread {
        Spread::Hashed => {
            let name = port as u64 | (protocol as u64) << 16;
            hash3(key, [address.0[0], address.0[1], name]) as u32 & (INDEX_CAPACITY - 1)
        }
        Spread::Multiplied => multiplied(key.0[3], address, port),
    }
}

/// The place by [`Spread::Multiplied`], with the last word of the tables' secret.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the product is cut to the capacity")]
pub const fn multiplied(secret: u64, address: Address, port: u16) -> u32 {
    let name = (address.0[0] ^ address.0[1]).wrapping_add(port as u64);
    (name.wrapping_mul(secret | 1) >> (u64::BITS - INDEX_CAPACITY.trailing_zeros())) as u32
}

/// Whether the entry with this third word, of an address, port (as on the wire) and protocol, is the one of these.
#[inline(always)]
#[must_use]
pub fn is_named(slot: &IndexSlot, meta: u64, address: Address, port: u16, protocol: u8) -> bool {
    let wanted = u64::from(port) | u64::from(protocol) << 16;
    meta & 0xff_ffff == wanted && slot[0].load() == address.0[0] && slot[1].load() == address.0[1]
}

/// Finds what listens on (or answers from) an address, port (as on the wire) and protocol.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "fields are taken out of packed words")]
pub fn find_entry<I: Index>(
    index: &I,
    in_force: InForce,
    key: &HashKey,
    address: Address,
    port: u16,
    protocol: u8,
) -> Option<IndexHit> {
    let start = first_place(in_force.spread, key, address, port, protocol);
    let mut probe = 0;
    while probe < INDEX_PROBES {
        let at = start.wrapping_add(probe) & (INDEX_CAPACITY - 1);
        let slot = index.entry(in_force.base() + at)?;
        let meta = slot[2].load();
        if meta == 0 {
            return None;
        }
        if is_named(slot, meta, address, port, protocol) {
            let service_port = slot[3].load() as u16;
            return Some(IndexHit { kind: (meta >> 24) as u8, id: (meta >> 32) as u16, service_port });
        }
        probe += 1;
    }
    None
}

#[cfg(not(target_arch = "bpf"))]
pub use build::{IndexFull, layout};

#[cfg(not(target_arch = "bpf"))]
mod build {
    extern crate alloc;
    use super::{INDEX_CAPACITY, INDEX_PROBES, INDEX_WORDS, IndexEntry, Spread, first_place};
    use crate::hash::HashKey;
    use alloc::vec;
    use alloc::vec::Vec;

    /// The entries do not fit: more than [`INDEX_PROBES`] of them want one place.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IndexFull;

    /// An entry on its way to a place: where it would start, and its number.
    #[derive(Clone, Copy)]
    struct Wants {
        start: u32,
        number: usize,
    }

    impl Wants {
        const fn distance(self, place: u32) -> u32 {
            place.wrapping_sub(self.start) & (INDEX_CAPACITY - 1)
        }

        /// Whether it has come farther than `other`, or as far and was named earlier.
        const fn goes_before(self, other: Self, place: u32) -> bool {
            let (own, others) = (self.distance(place), other.distance(place));
            own > others || own == others && self.number < other.number
        }
    }

    /// Lays out one generation of the index. Of entries with one address, port and protocol the first is found.
    ///
    /// An entry that has come farther from where it would start takes the place of one that has come less far (Robin
    /// Hood hashing, Celis 1986). That evens out how many are looked at: with as many services and servers as there
    /// may be, 10 at most were seen, where first come, first served needs 26.
    ///
    /// # Errors
    /// [`IndexFull`], which with the limits on services and servers does not happen but by a freak of the key.
    pub fn layout(
        spread: Spread,
        key: &HashKey,
        entries: &[IndexEntry],
    ) -> Result<Vec<[u64; INDEX_WORDS]>, IndexFull> {
        let mut places: Vec<Option<Wants>> = vec![None; INDEX_CAPACITY as usize];
        for (number, entry) in entries.iter().enumerate() {
            let start = first_place(spread, key, entry.address, entry.port, entry.protocol);
            let mut carried = Wants { start, number };
            let mut place = start;
            while let Some(there) = places[place as usize] {
                if carried.goes_before(there, place) {
                    places[place as usize] = Some(carried);
                    carried = there;
                }
                place = (place + 1) & (INDEX_CAPACITY - 1);
                if carried.distance(place) >= INDEX_PROBES {
                    return Err(IndexFull);
                }
            }
            places[place as usize] = Some(carried);
        }
        Ok(places
            .into_iter()
            .map(|place| place.map_or([0; INDEX_WORDS], |wants| entries[wants.number].words()))
            .collect())
    }
}

#[cfg(test)]
#[cfg(not(loom))]
#[path = "service_tests.rs"]
mod tests;
