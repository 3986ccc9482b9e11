//! The decisions over every state that the kernel has.

use proptest::prelude::*;

use super::*;
use crate::net::testing::ip;

const OLD: Mac = [2, 0, 0, 0, 0, 1];
const NEW: Mac = [2, 0, 0, 0, 0, 2];
const ALL: [Nud; 9] = [
    Nud::None,
    Nud::Incomplete,
    Nud::Reachable,
    Nud::Stale,
    Nud::Delay,
    Nud::Probe,
    Nud::Failed,
    Nud::NoArp,
    Nud::Permanent,
];
const SECOND: Duration = Duration::from_secs(1);

fn server() -> IpAddr {
    ip("192.0.2.20")
}

fn table(now: Instant) -> NeighbourTable {
    let mut table = NeighbourTable::new(Timing::default());
    table.set_watched(&BTreeSet::from([server()]), now);
    table
}

fn entry(nud: Nud, mac: Mac) -> Option<Entry> {
    Some(Entry { nud, mac: Some(mac) })
}

/// A table whose server was reported as OLD, and had been asked for and confirmed at `now`.
fn table_with_old(now: Instant) -> NeighbourTable {
    let mut table = table(now);
    assert_eq!(table.poll(now), [Command::Resolve(server())]);
    let report = table.observe(server(), entry(Nud::Reachable, OLD), now);
    assert_eq!(report, Some(Command::Report(server(), Some(OLD))));
    table
}

#[test]
fn every_state_at_first_sight_reports_and_asks_as_it_should() {
    let confirm = vec![Command::Confirm(server())];
    let resolve = vec![Command::Resolve(server())];
    let nothing = Vec::new();
    for nud in ALL {
        // With a MAC address: is it reported, and what is asked at once and after the refresh time?
        let (usable, at_once, later) = match nud {
            Nud::None | Nud::Failed => (false, &resolve, &resolve),
            Nud::Incomplete => (false, &nothing, &nothing),
            Nud::Reachable => (true, &nothing, &confirm),
            Nud::Stale => (true, &confirm, &confirm),
            Nud::Delay | Nud::Probe | Nud::NoArp | Nud::Permanent => (true, &nothing, &nothing),
        };
        let now = Instant::now();
        let mut table = table(now);
        let report = table.observe(server(), entry(nud, OLD), now);
        assert_eq!(report, usable.then_some(Command::Report(server(), Some(OLD))), "{nud:?}");
        assert_eq!(&table.poll(now), at_once, "{nud:?}");
        assert_eq!(&table.poll(now + 15 * SECOND), later, "{nud:?}");
    }
}

#[test]
fn every_state_without_a_mac_address_is_not_usable() {
    for nud in ALL {
        for mac in [None, Some([0; 6])] {
            let now = Instant::now();
            let mut table = table(now);
            assert_eq!(table.observe(server(), Some(Entry { nud, mac }), now), None, "{nud:?}");
        }
    }
}

#[test]
fn every_state_after_a_known_mac_address_reports_the_new_one_or_its_loss() {
    for nud in ALL {
        let now = Instant::now();
        let mut table = table_with_old(now);
        let report = table.observe(server(), entry(nud, NEW), now);
        let expected = match nud {
            Nud::None | Nud::Incomplete | Nud::Failed => None,
            _ => Some(Command::Report(server(), Some(NEW))),
        };
        assert_eq!(report, expected, "{nud:?}");
        // What was not reported at once is held, and given up when the hold time is over.
        let is_held = matches!(nud, Nud::None | Nud::Incomplete | Nud::Failed);
        let before = table.poll(now + 59 * SECOND);
        assert!(!before.contains(&Command::Report(server(), None)), "{nud:?}");
        let after = table.poll(now + 60 * SECOND);
        assert_eq!(after.contains(&Command::Report(server(), None)), is_held, "{nud:?}");
    }
}

#[test]
fn the_same_mac_address_is_reported_once_through_all_states() {
    let now = Instant::now();
    let mut table = table_with_old(now);
    for nud in [Nud::Stale, Nud::Delay, Nud::Probe, Nud::Reachable, Nud::Permanent, Nud::Stale] {
        assert_eq!(table.observe(server(), entry(nud, OLD), now), None, "{nud:?}");
    }
}

#[test]
fn a_confirmed_entry_is_confirmed_again_each_refresh_time() {
    let start = Instant::now();
    let mut table = table_with_old(start);
    table.observe(server(), entry(Nud::Stale, OLD), start + 10 * SECOND);
    assert_eq!(table.poll(start + 14 * SECOND), [], "it became stale, yet was confirmed 14 s ago");
    assert_eq!(table.deadline(), Some(start + 15 * SECOND));
    assert_eq!(table.poll(start + 15 * SECOND), [Command::Confirm(server())]);
    table.observe(server(), entry(Nud::Probe, OLD), start + 15 * SECOND);
    assert_eq!(table.deadline(), None, "the kernel is probing");
    table.observe(server(), entry(Nud::Reachable, OLD), start + 16 * SECOND);
    assert_eq!(table.deadline(), Some(start + 31 * SECOND));
}

#[test]
fn a_confirmation_that_changes_nothing_is_asked_for_again() {
    let start = Instant::now();
    let mut table = table_with_old(start);
    assert_eq!(table.poll(start + 15 * SECOND), [Command::Confirm(server())]);
    assert_eq!(table.poll(start + 15 * SECOND), []);
    assert_eq!(table.poll(start + 30 * SECOND), [Command::Confirm(server())]);
}

#[test]
fn a_silent_server_is_asked_for_with_pauses_that_double_up_to_the_longest() {
    let start = Instant::now();
    let mut table = table(start);
    let mut asked = Vec::new();
    for second in 0..40 {
        let now = start + second * SECOND;
        if table.poll(now) == [Command::Resolve(server())] {
            asked.push(second);
            table.observe(server(), Some(Entry { nud: Nud::Incomplete, mac: None }), now);
            table.observe(server(), Some(Entry { nud: Nud::Failed, mac: None }), now);
        }
    }
    assert_eq!(asked, [0, 2, 6, 14, 24, 34]);
    // Once it has answered, a loss is asked about at once again.
    let back = start + 40 * SECOND;
    table.observe(server(), entry(Nud::Reachable, OLD), back);
    table.observe(server(), entry(Nud::Failed, OLD), back + 20 * SECOND);
    assert_eq!(table.poll(back + 20 * SECOND), [Command::Resolve(server())]);
}

#[test]
fn a_mac_address_changed_behind_the_kernels_back_is_kept_until_the_new_one_is_found() {
    let start = Instant::now();
    let mut table = table_with_old(start);
    let refresh = start + 15 * SECOND;
    assert_eq!(table.poll(refresh), [Command::Confirm(server())]);
    table.observe(server(), entry(Nud::Probe, OLD), refresh);
    let failed = start + 18 * SECOND;
    assert_eq!(table.observe(server(), entry(Nud::Failed, OLD), failed), None);
    assert_eq!(table.poll(failed), [Command::Resolve(server())], "without waiting");
    table.observe(server(), Some(Entry { nud: Nud::Incomplete, mac: None }), failed);
    assert_eq!(
        table.observe(server(), entry(Nud::Reachable, NEW), failed),
        Some(Command::Report(server(), Some(NEW)))
    );
}

#[test]
fn an_entry_that_vanished_keeps_its_mac_address_while_it_is_resolved_again() {
    let start = Instant::now();
    let mut table = table_with_old(start);
    let gone = start + 3 * SECOND;
    assert_eq!(table.observe(server(), None, gone), None);
    assert_eq!(table.poll(gone), [Command::Resolve(server())]);
    table.observe(server(), Some(Entry { nud: Nud::Incomplete, mac: None }), gone);
    assert_eq!(table.observe(server(), entry(Nud::Reachable, OLD), gone + SECOND), None);
    assert_eq!(table.poll(gone + 10 * SECOND), [], "nothing is held any more");
}

#[test]
fn a_vanished_entry_is_not_held_for_longer_by_being_seen_missing_again() {
    let start = Instant::now();
    let mut table = table_with_old(start);
    for second in 0..60 {
        table.observe(server(), None, start + second * SECOND);
    }
    assert!(table.poll(start + 60 * SECOND).contains(&Command::Report(server(), None)));
}

#[test]
fn a_resync_finds_what_the_events_did_not_tell() {
    let now = Instant::now();
    let mut table = table_with_old(now);
    let kernel = BTreeMap::from([
        (server(), Entry { nud: Nud::Stale, mac: Some(NEW) }),
        (ip("192.0.2.99"), Entry { nud: Nud::Stale, mac: Some(OLD) }),
    ]);
    assert_eq!(table.resync(&kernel, now), [Command::Report(server(), Some(NEW))]);
    assert_eq!(table.resync(&kernel, now), []);
    table.resync(&BTreeMap::new(), now);
    assert!(table.poll(now + 60 * SECOND).contains(&Command::Report(server(), None)));
}

#[test]
fn a_link_that_comes_up_has_everyone_asked_at_once() {
    let start = Instant::now();
    let mut table = table(start);
    table.poll(start);
    table.observe(server(), Some(Entry { nud: Nud::Failed, mac: None }), start);
    assert_eq!(table.poll(start), []);
    table.link_changed(start);
    assert_eq!(table.poll(start), [Command::Resolve(server())]);
}

#[test]
fn an_address_no_longer_watched_is_forgotten() {
    let now = Instant::now();
    let mut table = table_with_old(now);
    table.set_watched(&BTreeSet::from([server()]), now);
    assert_eq!(table.observe(server(), entry(Nud::Stale, OLD), now), None, "it was kept");
    table.set_watched(&BTreeSet::new(), now);
    assert_eq!(table.observe(server(), entry(Nud::Stale, NEW), now), None);
    assert_eq!(table.deadline(), None);
}

proptest! {
    /// Whatever the kernel says and when: what was last reported is the last usable MAC address, except within
    /// the hold time; and after a poll nothing stays due.
    #[test]
    fn reports_follow_the_kernel_and_polls_make_progress(
        steps in prop::collection::vec((0usize..10, any::<bool>(), 0u64..20_000), 1..200)
    ) {
        let timing = Timing::default();
        let mut now = Instant::now();
        let mut table = table(now);
        let mut reported = None;
        let mut lost_at = None;
        for (state, other, millis) in steps {
            let mac = if other { NEW } else { OLD };
            let seen = ALL.get(state).map(|nud| Entry { nud: *nud, mac: Some(mac) });
            let usable = seen.and_then(|entry| entry.usable_mac());
            let mut commands: Vec<Command> = table.observe(server(), seen, now).into_iter().collect();
            if usable.is_some() { lost_at = None } else { lost_at = lost_at.or(Some(now)) }
            now += Duration::from_millis(millis);
            commands.extend(table.poll(now));
            for command in commands {
                if let Command::Report(_, mac) = command {
                    prop_assert_ne!(reported, mac, "the same is not reported twice");
                    reported = mac;
                }
            }
            let is_held = lost_at.is_some_and(|at| now < at + timing.hold);
            prop_assert!(reported == usable || is_held, "{:?} {:?}", reported, seen);
            prop_assert!(table.deadline().is_none_or(|at| at > now));
        }
    }
}
