//! Which MAC address a neighbour has, and when to ask for it: the decisions, without socket or clock.
//!
//! The kernel keeps the neighbour table and does the ARP and neighbour discovery; but it only asks for
//! those whom its own stack talks to, and forwarded traffic never passes the stack. So each watched
//! address is kept fresh from here:
//!
//! ```text
//!                 usable                                     not usable
//!   .-----------------------------------.     .-----------------------------------------.
//!   | REACHABLE, STALE: Confirm, every  |     | FAILED, NONE, no entry: Resolve,        |
//!   |   `refresh`                       |     |   at once, then backing off             |
//!   | DELAY, PROBE: the kernel is at it |     | INCOMPLETE: the kernel is at it         |
//!   | PERMANENT, NOARP: nothing to ask  |     '-----------------------------------------'
//!   '-----------------------------------'
//! ```
//!
//! A MAC address is reported when it becomes usable or another. One that is no longer usable is kept for `hold`, while it
//! is resolved again: whether the kernel has asked and got no answer (FAILED), or the entry merely vanished (the kernel's
//! garbage collection, a link that lost its carrier). A flood on the link loses ARP's and neighbour discovery's few
//! frames as it loses others, and must not end the sessions of servers that are well; whether a server is there at all is
//! for the health checks to say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Mac;

/// The kernel's states of a neighbour entry (`NUD_*`, RFC 4861 section 7.3.2 and more).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nud {
    /// Just made; nothing known, nothing asked.
    None,
    /// Being resolved.
    Incomplete,
    /// Confirmed not long ago.
    Reachable,
    /// Known, not confirmed lately.
    Stale,
    /// Stale and in use: to be probed shortly.
    Delay,
    /// Being probed.
    Probe,
    /// Asked, and nobody answered.
    Failed,
    /// The interface does no address resolution.
    NoArp,
    /// Configured by hand.
    Permanent,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its state.
    pub nud: Nud,
    /// Its MAC address, where it has one.
    pub mac: Option<Mac>,
}

impl Entry {
    /// The MAC address that frames may be sent to.
    #[must_use]
    pub fn usable_mac(&self) -> Option<Mac> {
        match self.nud {
            Nud::Reachable | Nud::Stale | Nud::Delay | Nud::Probe | Nud::NoArp | Nud::Permanent => {
                self.mac.filter(|mac| *mac != [0; 6])
            }
            Nud::None | Nud::Incomplete | Nud::Failed => None,
        }
    }
}

/// How often to ask. The defaults see a changed MAC address within 18 s (refresh, then three of the kernel's
/// probes at one a second) when nothing announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A usable entry is confirmed when it has not been for this long.
    pub refresh: Duration,
    /// The first pause between two attempts to resolve; it doubles with each.
    pub retry: Duration,
    /// The longest pause between two attempts.
    pub retry_max: Duration,
    /// How long a MAC address is still used after the kernel has lost it.
    pub hold: Duration,
    /// How often the whole table is read again, whatever the events said.
    pub resync: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(15),
            retry: Duration::from_secs(1),
            retry_max: Duration::from_secs(10),
            hold: Duration::from_secs(60),
            resync: Duration::from_secs(60),
        }
    }
}

/// What the state machine wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Tell the daemon that the address's usable MAC is now this one, or none.
    Report(IpAddr, Option<Mac>),
    /// Have the kernel ask the known MAC address whether it still is the address's.
    Confirm(IpAddr),
    /// Have the kernel ask everyone who has the address.
    Resolve(IpAddr),
}

/// The watched addresses of one interface and what is known of each.
#[derive(Debug)]
pub struct NeighbourTable {
    timing: Timing,
    watches: BTreeMap<IpAddr, Watch>,
}

impl NeighbourTable {
    /// A table that watches nothing yet.
    #[must_use]
    pub fn new(timing: Timing) -> Self {
        Self { timing, watches: BTreeMap::new() }
    }

    /// Watches exactly these addresses. What is known of those already watched is kept; a new one is taken for
    /// missing, with no MAC address reported, until it is observed.
    pub fn set_watched(&mut self, wanted: &BTreeSet<IpAddr>, now: Instant) {
        self.watches.retain(|address, _| wanted.contains(address));
        for address in wanted {
            self.watches.entry(*address).or_insert_with(|| Watch::new(&self.timing, now));
        }
    }

    /// The kernel's entry of an address, or that there is none. Addresses that are not watched are ignored.
    pub fn observe(&mut self, address: IpAddr, entry: Option<Entry>, now: Instant) -> Option<Command> {
        let watch = self.watches.get_mut(&address)?;
        let changed = watch.observe(entry, &self.timing, now);
        changed.then_some(Command::Report(address, watch.reported))
    }

    /// The kernel's whole table: a watched address that is not in it has no entry.
    pub fn resync(&mut self, table: &BTreeMap<IpAddr, Entry>, now: Instant) -> Vec<Command> {
        let watched: Vec<IpAddr> = self.watches.keys().copied().collect();
        watched
            .into_iter()
            .filter_map(|address| self.observe(address, table.get(&address).copied(), now))
            .collect()
    }

    /// The link came up or changed its MAC address: ask again at once, without back-off.
    pub fn link_changed(&mut self, now: Instant) {
        for watch in self.watches.values_mut() {
            watch.forget_asking(&self.timing, now);
        }
    }

    /// What is due by now.
    pub fn poll(&mut self, now: Instant) -> Vec<Command> {
        let mut commands = Vec::new();
        for (address, watch) in &mut self.watches {
            watch.poll(*address, &self.timing, now, &mut commands);
        }
        commands
    }

    /// When [`Self::poll`] next has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.watches.values().filter_map(Watch::deadline).min()
    }
}

#[derive(Debug)]
struct Watch {
    entry: Option<Entry>,
    reported: Option<Mac>,
    /// The last time that we had the kernel ask.
    asked: Option<Instant>,
    /// The last time that the entry became REACHABLE.
    confirmed: Option<Instant>,
    /// The pause after the next attempt to resolve.
    pause: Duration,
    /// When to ask next.
    ask_at: Option<Instant>,
    /// When the reported MAC address is given up that the kernel has lost.
    hold_until: Option<Instant>,
}

/// Who has to move next.
enum Turn {
    /// Nobody: the entry stays as it is.
    Nobody,
    /// The kernel: it is asking, and will tell.
    Kernel,
    /// We: the entry is to be confirmed.
    Confirm,
    /// We: the entry is to be resolved.
    Resolve,
}

impl Watch {
    fn new(timing: &Timing, now: Instant) -> Self {
        Self {
            entry: None,
            reported: None,
            asked: None,
            confirmed: None,
            pause: timing.retry,
            ask_at: Some(now),
            hold_until: None,
        }
    }

    fn turn(&self) -> Turn {
        match self.entry {
            Some(Entry { nud: Nud::Permanent | Nud::NoArp, .. }) => Turn::Nobody,
            Some(Entry { nud: Nud::Delay | Nud::Probe | Nud::Incomplete, .. }) => Turn::Kernel,
            Some(entry) if entry.usable_mac().is_some() => Turn::Confirm,
            Some(_) | None => Turn::Resolve,
        }
    }

    /// Takes in what the kernel says; true when the MAC address to use has changed.
    fn observe(&mut self, entry: Option<Entry>, timing: &Timing, now: Instant) -> bool {
        let is_news = entry != self.entry;
        self.entry = entry;
        if is_news && entry.is_some_and(|entry| entry.nud == Nud::Reachable) {
            self.confirmed = Some(now);
        }
        let usable = entry.and_then(|entry| entry.usable_mac());
        if usable.is_some() {
            self.pause = timing.retry;
        }
        self.schedule(timing, now);
        if usable.is_none() && self.reported.is_some() {
            self.hold_until = self.hold_until.or(Some(now + timing.hold));
            return false;
        }
        self.hold_until = None;
        let changed = self.reported != usable;
        self.reported = usable;
        changed
    }

    fn schedule(&mut self, timing: &Timing, now: Instant) {
        self.ask_at = match self.turn() {
            Turn::Nobody | Turn::Kernel => None,
            Turn::Confirm => Some(self.asked.max(self.confirmed).map_or(now, |last| last + timing.refresh)),
            Turn::Resolve => Some(self.asked.map_or(now, |last| last + self.pause)),
        };
    }

    fn forget_asking(&mut self, timing: &Timing, now: Instant) {
        self.asked = None;
        self.confirmed = None;
        self.pause = timing.retry;
        self.schedule(timing, now);
    }

    fn poll(&mut self, address: IpAddr, timing: &Timing, now: Instant, commands: &mut Vec<Command>) {
        if self.hold_until.is_some_and(|at| at <= now) {
            self.hold_until = None;
            self.reported = None;
            commands.push(Command::Report(address, None));
        }
        if self.ask_at.is_none_or(|at| at > now) {
            return;
        }
        self.asked = Some(now);
        // The next time, should the kernel not tell of any change.
        self.schedule(timing, now);
        match self.turn() {
            Turn::Nobody | Turn::Kernel => {}
            Turn::Confirm => commands.push(Command::Confirm(address)),
            Turn::Resolve => {
                self.pause = timing.retry_max.min(self.pause * 2);
                commands.push(Command::Resolve(address));
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        [self.ask_at, self.hold_until].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
