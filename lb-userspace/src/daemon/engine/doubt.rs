//! Whether the lost checks of one server are to be believed: pure, one check's result at a time. The network works, for
//! something else on its interface has answered ([`crate::health::hold`] has seen to that); so either the server is gone, or
//! its checks are lost while others get through.
//!
//! A flood on the balancer's own link loses checks first, and ending every session of a server that works would be the
//! flood's success. So a server whose SYNs stay unanswered, while packets of its connections still come back, is left
//! as it is. A check that was refused, or answered wrongly or late, is believed at once: its way was free.
//!
//! The sign of life is a packet returned since the check before failed, so that a server that has really vanished is
//! believed to be down at the check that says so. A server that hangs may still acknowledge for a while: hence
//! [`LONGEST`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::health::HealthEvent;
use crate::health::state::Verdict;

/// How long a server is left as it is at most.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// What is not believed yet, and since when: how long the daemon had run.
#[derive(Debug)]
struct Held {
    event: HealthEvent,
    since: Duration,
}

/// The servers whose last check failed.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// How many packets each had returned then.
    returned: BTreeMap<u16, u64>,
    /// What is not believed yet.
    held: BTreeMap<u16, Held>,
}

impl Doubts {
    /// A server's health changed when it had returned so many packets, and the daemon had run for `now`. Gives back what is to be
    /// believed.
    pub(super) fn changed(
        &mut self,
        id: u16,
        event: HealthEvent,
        returned: u64,
        now: Duration,
    ) -> Option<HealthEvent> {
        self.held.remove(&id);
        if event.health == Verdict::Up {
            self.returned.remove(&id);
            return Some(event);
        }
        let alive = self.sample(id, returned);
        if event.lost && alive {
            self.held.insert(id, Held { event, since: now });
            return None;
        }
        Some(event)
    }

    /// A check failed and changed nothing. Gives back what was held, and is to be believed now.
    pub(super) fn missed(&mut self, id: u16, now: Duration, returned: u64) -> Option<HealthEvent> {
        let alive = self.sample(id, returned);
        let held = self.held.get(&id)?;
        if alive && now.saturating_sub(held.since) < LONGEST {
            return None;
        }
        self.held.remove(&id).map(|held| held.event)
    }

    /// Forgets the servers that are not there any more.
    pub(super) fn retain(&mut self, there: impl Fn(u16) -> bool) {
        self.returned.retain(|id, _| there(*id));
        self.held.retain(|id, _| there(*id));
    }

    /// Whether the server has returned packets since its check before this one failed.
    fn sample(&mut self, id: u16, returned: u64) -> bool {
        self.returned.insert(id, returned).is_some_and(|before| before < returned)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    const fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn event(health: Verdict, lost: bool) -> HealthEvent {
        let reason = "timed out after 1s while connecting".to_owned();
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        HealthEvent { target_id: 1, health, reason, at, certificate_expires: None, lost }
    }

    fn down() -> HealthEvent {
        event(Verdict::Down, true)
    }

    /// Two checks have failed when the server had returned so many packets.
    fn after_two_misses(returned: u64) -> Doubts {
        let mut doubts = Doubts::default();
        for second in [0, 2] {
            assert_eq!(doubts.missed(1, at(second), returned), None);
        }
        doubts
    }

    #[test]
    fn a_server_that_has_vanished_is_down_at_the_check_that_says_so() {
        assert_eq!(after_two_misses(500).changed(1, down(), 500, at(4)), Some(down()));
    }

    #[test]
    fn a_server_whose_connections_answer_is_left_until_they_fall_silent() {
        let mut doubts = after_two_misses(500);
        assert_eq!(doubts.changed(1, down(), 501, at(4)), None);
        assert_eq!(doubts.missed(1, at(6), 502), None);
        assert_eq!(doubts.missed(1, at(8), 502), Some(down()));
        assert_eq!(doubts.missed(1, at(10), 502), None, "told twice");
    }

    #[test]
    fn a_server_that_only_acknowledges_is_down_after_a_minute() {
        let mut doubts = after_two_misses(500);
        assert_eq!(doubts.changed(1, down(), 501, at(4)), None);
        let told: Vec<u64> = (1..60).filter(|n| doubts.missed(1, at(4 + n * 2), 501 + n).is_some()).collect();
        assert_eq!(told, [30]);
    }

    #[test]
    fn a_refused_check_is_believed_at_once_whatever_comes_back() {
        let refused = event(Verdict::Down, false);
        assert_eq!(after_two_misses(500).changed(1, refused.clone(), 900, at(4)), Some(refused));
    }

    #[test]
    fn with_nothing_to_compare_the_check_is_believed() {
        assert_eq!(Doubts::default().changed(1, down(), 900, at(0)), Some(down()));
        // What was seen before it was up does not count either.
        let mut doubts = after_two_misses(500);
        assert!(doubts.changed(1, event(Verdict::Up, false), 600, at(4)).is_some());
        assert_eq!(doubts.changed(1, down(), 900, at(6)), Some(down()));
    }

    #[test]
    fn a_server_that_answers_again_is_up_and_not_told_down_later() {
        let mut doubts = after_two_misses(500);
        assert_eq!(doubts.changed(1, down(), 501, at(4)), None);
        assert!(doubts.changed(1, event(Verdict::Up, false), 600, at(8)).is_some());
        assert_eq!(doubts.missed(1, at(10), 600), None);
    }

    #[test]
    fn a_removed_servers_number_begins_anew() {
        let mut doubts = after_two_misses(500);
        doubts.retain(|_| false);
        assert_eq!(doubts.changed(1, down(), 900, at(4)), Some(down()));
    }
}
