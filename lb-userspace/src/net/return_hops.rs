//! Whether the MAC addresses that flows' answers go to are still alive, and where the answers go instead: the decisions, without
//! socket, table or clock (decision 15, `docs/decisions/0015-return-hops.md`).
//!
//! A flow's answers go to the MAC address that its client's packets came from. A client that only listens sends nothing from which
//! a change could be learnt, so the kernel's neighbour table is watched:
//!
//! | the flow's MAC address | its answers |
//! |---|---|
//! | some neighbour has it | stay |
//! | was its client's next hop's, which has another now | follow the next hop |
//! | neighbours had it, none has it any more | go to its client's next hop |
//! | no neighbour has had it | stay; the client is asked by way of its next hop, and its reply tells |
//!
//! Answers only ever go to the next hop that the host's own routes and neighbours name for that client, so a forged ARP answer turns
//! away what it would turn away from a proxy on this host, and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Mac;
use super::neighbour_state::{Entry, Nud};

/// A MAC address that answers go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReturnHop {
    /// The number of the interface.
    pub arm: u8,
    /// The MAC address.
    pub mac: Mac,
}

/// A neighbour on the interface of this number.
pub type Neighbour = (u8, IpAddr);

/// What to have the kernel do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// Ask the MAC address that it has whether it still is the address's.
    Confirm(Neighbour),
    /// Ask everyone who has the address.
    Resolve(Neighbour),
}

/// Why a MAC address that answers go to is doubted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// These neighbours had it, and have others now.
    Replaced(BTreeSet<IpAddr>),
    /// Neighbours had it, and none has any more.
    Lost,
    /// None has had it.
    Unknown,
}

/// What becomes of a flow whose MAC address is doubted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its answers go where they went.
    Stay,
    /// Its answers go there.
    Move(ReturnHop),
    /// Its client is asked by way of this one.
    AskClient(ReturnHop),
}

/// How often to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A neighbour that answers go to is confirmed when it has not been for this long.
    pub confirm: Duration,
    /// The pause between two attempts to resolve one.
    pub resolve: Duration,
    /// How long after a change flows follow it: those that learnt the old MAC address just then, too.
    pub change: Duration,
    /// How long a MAC address that no neighbour has is remembered.
    pub memory: Duration,
    /// Neighbours that the kernel is told to ask for at once, at most.
    pub burst: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            confirm: Duration::from_secs(5),
            resolve: Duration::from_secs(5),
            change: Duration::from_secs(5),
            memory: Duration::from_secs(24 * 3600),
            burst: 256,
        }
    }
}

/// What is known of neighbours.
#[derive(Debug)]
pub struct ReturnHops {
    timing: Timing,
    neighbours: BTreeMap<Neighbour, Known>,
    /// When a neighbour last had a MAC address.
    held: BTreeMap<ReturnHop, Instant>,
    /// Neighbours that had a MAC address and have another now, and since when.
    replaced: BTreeMap<ReturnHop, BTreeMap<IpAddr, Instant>>,
}

#[derive(Debug, Default)]
struct Known {
    /// The MAC address that it had last.
    mac: Option<Mac>,
    /// Whether frames may be sent there.
    usable: bool,
    /// Whether it has been asked for since, and has not answered.
    gone: bool,
    standing: Standing,
    asked: Option<Instant>,
}

/// Who has to move next for a neighbour's entry to be fresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    /// Nobody: it stays as it is.
    Fixed,
    /// We: it is to be confirmed.
    Known,
    /// The kernel: it is asking.
    Asking,
    /// We: it is to be resolved. That there is no entry says nothing of the neighbour: they are cleared away.
    #[default]
    Missing,
}

impl Standing {
    fn of(nud: Nud) -> Self {
        match nud {
            Nud::Permanent | Nud::NoArp => Self::Fixed,
            Nud::Reachable | Nud::Stale => Self::Known,
            Nud::Delay | Nud::Probe | Nud::Incomplete => Self::Asking,
            Nud::Failed | Nud::None => Self::Missing,
        }
    }
}

impl ReturnHops {
    /// Nothing is known.
    #[must_use]
    pub const fn new(timing: Timing) -> Self {
        Self { timing, neighbours: BTreeMap::new(), held: BTreeMap::new(), replaced: BTreeMap::new() }
    }

    /// Takes in the kernel's neighbour table of an interface.
    pub fn observe(&mut self, arm: u8, table: &BTreeMap<IpAddr, Entry>, now: Instant) {
        for (address, known) in self.neighbours.range_mut((arm, IpAddr::from([0; 4]))..) {
            if address.0 != arm {
                break;
            }
            if !table.contains_key(&address.1) {
                (known.standing, known.usable) = (Standing::Missing, false);
            }
        }
        for (address, entry) in table {
            self.observe_entry((arm, *address), entry, now);
        }
        let Timing { change, memory, resolve, .. } = self.timing;
        self.replaced.retain(|_, by| {
            by.retain(|_, since| now.duration_since(*since) <= change);
            !by.is_empty()
        });
        self.held.retain(|_, last| now.duration_since(*last) <= memory);
        let held = &self.held;
        self.neighbours.retain(|(arm, address), known| {
            table.contains_key(address)
                || known.asked.is_some_and(|last| now.duration_since(last) <= resolve)
                || known.mac.is_some_and(|mac| held.contains_key(&ReturnHop { arm: *arm, mac }))
        });
    }

    fn observe_entry(&mut self, (arm, address): Neighbour, entry: &Entry, now: Instant) {
        let known = self.neighbours.entry((arm, address)).or_default();
        known.standing = Standing::of(entry.nud);
        known.gone |= entry.nud == Nud::Failed;
        known.usable = entry.usable_mac().is_some();
        let Some(mac) = entry.usable_mac() else { return };
        known.gone = false;
        let before = known.mac.replace(mac).filter(|before| *before != mac);
        if let Some(before) = before {
            self.replaced.entry(ReturnHop { arm, mac: before }).or_default().insert(address, now);
        }
        self.held.insert(ReturnHop { arm, mac }, now);
    }

    /// The MAC address that the kernel would send a neighbour's frames to.
    fn usable(&self, neighbour: Neighbour) -> Option<ReturnHop> {
        let known = self.neighbours.get(&neighbour).filter(|known| known.usable)?;
        Some(ReturnHop { arm: neighbour.0, mac: known.mac? })
    }

    /// The neighbours that have, or had last, one of these MAC addresses.
    fn holders<'a>(&'a self, of: &'a BTreeSet<ReturnHop>) -> impl Iterator<Item = (Neighbour, &'a Known)> {
        self.neighbours.iter().filter_map(|(neighbour, known)| {
            let hop = ReturnHop { arm: neighbour.0, mac: known.mac? };
            of.contains(&hop).then_some((*neighbour, known))
        })
    }

    /// What the kernel is to be told, so that the MAC addresses that are `used` do not go unnoticed, nor those of the `next` hops
    /// of their clients.
    pub fn ask(&mut self, used: &BTreeSet<ReturnHop>, next: &BTreeSet<Neighbour>, now: Instant) -> Vec<Ask> {
        let held: Vec<(Neighbour, Standing)> =
            self.holders(used).map(|(neighbour, known)| (neighbour, known.standing)).collect();
        let next = next.iter().map(|neighbour| {
            let standing = self.neighbours.get(neighbour).map_or(Standing::Missing, |known| known.standing);
            (*neighbour, standing)
        });
        let wanted: BTreeMap<Neighbour, Standing> = held.into_iter().chain(next).collect();
        let mut asks = Vec::new();
        for (neighbour, standing) in wanted {
            let (ask, pause) = match standing {
                Standing::Fixed | Standing::Asking => continue,
                Standing::Known => (Ask::Confirm(neighbour), self.timing.confirm),
                Standing::Missing => (Ask::Resolve(neighbour), self.timing.resolve),
            };
            let known = self.neighbours.entry(neighbour).or_default();
            if known.asked.is_none_or(|last| now.duration_since(last) >= pause) {
                if asks.len() == self.timing.burst {
                    break;
                }
                known.asked = Some(now);
                asks.push(ask);
            }
        }
        asks
    }

    /// Those of the `used` MAC addresses that are doubted.
    #[must_use]
    pub fn doubts(&self, used: &BTreeSet<ReturnHop>) -> BTreeMap<ReturnHop, Doubt> {
        let alive: BTreeSet<ReturnHop> = self
            .holders(used)
            .filter(|(_, known)| !known.gone)
            .filter_map(|((arm, _), known)| Some(ReturnHop { arm, mac: known.mac? }))
            .collect();
        let doubt = |hop: &ReturnHop| match (alive.contains(hop), self.replaced.get(hop)) {
            (_, Some(by)) => Some(Doubt::Replaced(by.keys().copied().collect())),
            (true, None) => None,
            (false, None) if self.held.contains_key(hop) => Some(Doubt::Lost),
            (false, None) => Some(Doubt::Unknown),
        };
        used.iter().filter_map(|hop| Some((*hop, doubt(hop)?))).collect()
    }

    /// What becomes of a flow whose answers go to `hop`, which is doubted; `next` are its client's next hops, the one that the
    /// kernel would take first.
    #[must_use]
    pub fn decide(&self, hop: ReturnHop, doubt: &Doubt, next: &[Neighbour]) -> Decision {
        let usable = next.iter().find_map(|neighbour| Some((neighbour.1, self.usable(*neighbour)?)));
        let Some((address, to)) = usable.filter(|(_, to)| *to != hop) else { return Decision::Stay };
        match doubt {
            Doubt::Lost => Decision::Move(to),
            Doubt::Replaced(by) if by.contains(&address) || !self.is_alive(hop) => Decision::Move(to),
            Doubt::Replaced(_) => Decision::Stay,
            Doubt::Unknown => Decision::AskClient(to),
        }
    }

    fn is_alive(&self, hop: ReturnHop) -> bool {
        let only = BTreeSet::from([hop]);
        self.holders(&only).any(|(_, known)| !known.gone)
    }
}

#[cfg(test)]
mod tests;
