//! Whether another machine answers for one of our addresses: the appliance that is still on, a forgotten virtual machine.
//! Claims and time go in; what to ask, and what to say, comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::net::Mac;

/// When an address is asked for after it came in, and how long after the last question nobody has it. Shorter than RFC 5227
/// has it (section 1.1), because clients wait; who answers later is found all the same.
const QUESTIONS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(700)];
const SETTLED: Duration = Duration::from_millis(1_100);
/// How often somebody who has one of our addresses is asked whether that is still so, and how much silence means no.
const AGAIN: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(17);

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Another machine has the address.
    Found(IpAddr, Mac),
    /// It has not been heard of again.
    Gone(IpAddr, Mac),
}

/// The addresses that are ours, or are to be.
#[derive(Debug, Default)]
pub struct Conflicts(BTreeMap<IpAddr, Watched>);

#[derive(Debug)]
struct Watched {
    since: Instant,
    asked: usize,
    other: Option<Other>,
}

#[derive(Debug)]
struct Other {
    mac: Mac,
    heard: Instant,
    asked: Instant,
}

impl Conflicts {
    /// Watches exactly these addresses. Gives those conflicts that end because nobody wants the address any more.
    pub fn watch(&mut self, wanted: &BTreeSet<IpAddr>, now: Instant) -> Vec<Change> {
        let mut ended = Vec::new();
        self.0.retain(|address, watched| {
            let keep = wanted.contains(address);
            if let (false, Some(other)) = (keep, &watched.other) {
                ended.push(Change::Gone(*address, other.mac));
            }
            keep
        });
        for address in wanted {
            self.0.entry(*address).or_insert(Watched { since: now, asked: 0, other: None });
        }
        ended
    }

    /// Somebody says that it has an address. `ours` are our own MAC addresses.
    pub fn claim(&mut self, address: IpAddr, mac: Mac, ours: &[Mac], now: Instant) -> Option<Change> {
        let watched = self.0.get_mut(&address).filter(|_| !ours.contains(&mac))?;
        let is_new = watched.other.as_ref().is_none_or(|other| other.mac != mac);
        let asked = watched.other.as_ref().map_or(now, |other| other.asked);
        watched.other = Some(Other { mac, heard: now, asked });
        is_new.then_some(Change::Found(address, mac))
    }

    /// The addresses to ask for now.
    pub fn due(&mut self, now: Instant) -> Vec<IpAddr> {
        let mut due = Vec::new();
        for (address, watched) in &mut self.0 {
            let first = QUESTIONS.get(watched.asked).is_some_and(|after| now >= watched.since + *after);
            let again = watched.other.as_mut().filter(|other| now >= other.asked + AGAIN);
            if first {
                watched.asked += 1;
            }
            if let Some(other) = again {
                other.asked = now;
            } else if !first {
                continue;
            }
            due.push(*address);
        }
        due
    }

    /// Who has fallen silent.
    pub fn gone(&mut self, now: Instant) -> Vec<Change> {
        let mut gone = Vec::new();
        for (address, watched) in &mut self.0 {
            if let Some(other) = watched.other.take_if(|other| now >= other.heard + SILENCE) {
                gone.push(Change::Gone(*address, other.mac));
            }
        }
        gone
    }

    /// Whether answers may still come to the first questions about an address.
    #[must_use]
    pub fn is_asking(&self, now: Instant) -> bool {
        self.0.values().any(|watched| now < watched.since + SETTLED)
    }

    /// Whether somebody who is to wait for the others to go may take an address now.
    #[must_use]
    pub fn is_free(&self, address: IpAddr, now: Instant) -> bool {
        self.0.get(&address).is_some_and(|watched| watched.other.is_none() && now >= watched.since + SETTLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::ip;

    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const THEIRS: Mac = [2, 0, 0, 0, 0, 2];

    struct World {
        began: Instant,
        conflicts: Conflicts,
    }

    impl World {
        fn at(&self, milliseconds: u64) -> Instant {
            self.began + Duration::from_millis(milliseconds)
        }

        fn due(&mut self, milliseconds: u64) -> usize {
            let now = self.at(milliseconds);
            self.conflicts.due(now).len()
        }

        fn claim(&mut self, mac: Mac, milliseconds: u64) -> Option<Change> {
            let now = self.at(milliseconds);
            self.conflicts.claim(ip("192.0.2.150"), mac, &[OURS], now)
        }
    }

    fn world(addresses: u8) -> World {
        let began = Instant::now();
        let mut conflicts = Conflicts::default();
        let wanted = (0..addresses).map(|host| IpAddr::from([192, 0, 2, 150 + host])).collect();
        assert_eq!(conflicts.watch(&wanted, began), []);
        World { began, conflicts }
    }

    #[test]
    fn all_addresses_are_asked_for_together_three_times_and_then_nobody_is_bothered() {
        let mut world = world(100);
        let asked: Vec<(u64, usize)> =
            (0..=60_000).step_by(100).map(|at| (at, world.due(at))).filter(|(_, count)| *count > 0).collect();
        assert_eq!(asked, [(0, 100), (300, 100), (700, 100)]);
        assert!(world.conflicts.is_asking(world.at(1_000)) && !world.conflicts.is_asking(world.at(1_100)));
        assert!(world.conflicts.is_free(ip("192.0.2.150"), world.at(1_100)));
        assert!(!world.conflicts.is_free(ip("192.0.2.150"), world.at(1_000)));
    }

    #[test]
    fn another_is_found_once_asked_for_as_long_as_it_answers_and_gone_when_it_does_not() {
        let mut world = world(1);
        assert_eq!(world.claim(OURS, 0), None);
        let address = ip("192.0.2.150");
        assert_eq!(world.claim(THEIRS, 5), Some(Change::Found(address, THEIRS)));
        let mut now = 0;
        for _ in 0..1_000 {
            now += 100;
            if world.due(now) > 0 {
                assert_eq!(world.claim(THEIRS, now + 1), None, "it was said");
            }
            let at = world.at(now);
            assert_eq!(world.conflicts.gone(at), []);
            assert!(!world.conflicts.is_free(address, at));
        }
        let gone: Vec<_> = (now..now + 60_000)
            .step_by(100)
            .flat_map(|at| {
                let asked = world.due(at);
                let at = world.at(at);
                world.conflicts.gone(at).into_iter().map(move |change| (asked, change))
            })
            .map(|(_, change)| change)
            .collect();
        assert_eq!(gone, [Change::Gone(address, THEIRS)]);
        assert!(world.conflicts.is_free(address, world.at(now + 60_000)));
    }

    #[test]
    fn a_third_machine_is_another_conflict_and_addresses_that_nobody_wants_are_none() {
        let mut world = world(1);
        let third = [2, 0, 0, 0, 0, 3];
        assert!(world.claim(THEIRS, 5).is_some());
        assert_eq!(world.claim(third, 6), Some(Change::Found(ip("192.0.2.150"), third)));
        let now = world.at(7);
        assert_eq!(world.conflicts.claim(ip("192.0.2.99"), THEIRS, &[OURS], now), None);
        assert_eq!(world.conflicts.watch(&BTreeSet::new(), now), [Change::Gone(ip("192.0.2.150"), third)]);
    }
}
