//! Slow start: a server that takes new clients again begins with a tenth of its weight and has all of it after the time
//! that its service says. Clients with a record are not touched, because they do not ask the scheduler.
//!
//! The weight grows in steps, so that the scheduler's table is not made anew each second.

use std::collections::BTreeMap;
use std::time::Duration;

/// A whole weight, in the unit of [`Growth::share`].
pub const WHOLE: u32 = 1000;
/// What a server begins with.
const FIRST: u32 = WHOLE / 10;
/// Steps from the first share to the whole.
const STEPS: u32 = 12;

/// Which servers take new clients, and since when those that grow. Times are since any one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// `None` before the first look: who takes new clients then is taken for settled, so that a start of the daemon
    /// changes no share.
    taking: Option<BTreeMap<u16, Phase>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Settled,
    Growing { since: Duration },
}

/// What a look changed, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Servers that begin to grow.
    pub begun: Vec<u16>,
    /// Servers that have all of their weight from now on and had not.
    pub grown: Vec<u16>,
}

impl Growth {
    /// A server's share of its weight, in thousandths, at a time, with its service's slow start (zero: none). One that did
    /// not take new clients when last looked at begins now.
    #[must_use]
    pub fn share(&self, id: u16, slow_start: Duration, now: Duration) -> u32 {
        let Some(taking) = &self.taking else { return WHOLE };
        match taking.get(&id) {
            Some(Phase::Settled) => WHOLE,
            Some(Phase::Growing { since }) => share_after(now.saturating_sub(*since), slow_start),
            None => share_after(Duration::ZERO, slow_start),
        }
    }

    /// Takes in who takes new clients now, by id with their service's slow start.
    pub fn observe(&mut self, now: Duration, taking: impl IntoIterator<Item = (u16, Duration)>) -> Observed {
        let before = self.taking.take();
        let mut observed = Observed::default();
        let phase = |(id, slow_start): (u16, Duration)| {
            let known = before.as_ref().map(|before| before.get(&id));
            let phase = match known {
                None | Some(Some(Phase::Settled)) => Phase::Settled,
                Some(Some(Phase::Growing { since })) => Phase::Growing { since: *since },
                Some(None) => Phase::Growing { since: now },
            };
            match phase {
                Phase::Growing { since } if share_after(now.saturating_sub(since), slow_start) == WHOLE => {
                    if !slow_start.is_zero() {
                        observed.grown.push(id);
                    }
                    (id, Phase::Settled)
                }
                Phase::Growing { .. } if known == Some(None) => {
                    observed.begun.push(id);
                    (id, phase)
                }
                phase => (id, phase),
            }
        };
        self.taking = Some(taking.into_iter().map(phase).collect());
        observed
    }

    /// Whether any server grows.
    #[must_use]
    pub fn is_growing(&self) -> bool {
        self.taking
            .as_ref()
            .is_some_and(|taking| taking.values().any(|phase| matches!(phase, Phase::Growing { .. })))
    }
}

/// The share of a server that has taken new clients for so long.
fn share_after(elapsed: Duration, slow_start: Duration) -> u32 {
    if elapsed >= slow_start {
        return WHOLE;
    }
    let steps = elapsed.as_millis() * u128::from(STEPS) / slow_start.as_millis().max(1);
    let steps = u32::try_from(steps).unwrap_or(STEPS).min(STEPS);
    FIRST + (WHOLE - FIRST) * steps / STEPS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_server_that_returns_grows_from_a_tenth_to_its_weight_in_steps_of_five_seconds() {
        let mut growth = Growth::default();
        assert_eq!(growth.observe(at(0), [(1, MINUTE), (2, MINUTE)]), Observed::default());
        assert_eq!(growth.observe(at(10), [(1, MINUTE)]), Observed::default());
        assert_eq!(growth.share(2, MINUTE, at(100)), 100, "it would begin now");
        assert_eq!(growth.observe(at(100), [(1, MINUTE), (2, MINUTE)]).begun, [2]);
        let share = |growth: &Growth, seconds| growth.share(2, MINUTE, at(seconds));
        assert_eq!(
            [100, 104, 105, 130, 159, 160].map(|now| share(&growth, now)),
            [100, 100, 175, 550, 925, 1000]
        );
        assert_eq!(growth.share(1, MINUTE, at(100)), WHOLE);
        assert!(growth.is_growing());
        assert_eq!(growth.observe(at(159), [(1, MINUTE), (2, MINUTE)]), Observed::default());
        assert_eq!(growth.observe(at(160), [(1, MINUTE), (2, MINUTE)]).grown, [2]);
        assert!(!growth.is_growing());
    }

    #[test]
    fn the_first_look_takes_all_for_settled_and_a_relapse_begins_anew() {
        let mut growth = Growth::default();
        assert_eq!(growth.share(1, MINUTE, at(5)), WHOLE);
        growth.observe(at(5), []);
        growth.observe(at(6), [(1, MINUTE)]);
        growth.observe(at(50), []);
        growth.observe(at(51), [(1, MINUTE)]);
        assert_eq!(growth.share(1, MINUTE, at(51)), 100);
    }

    #[test]
    fn without_slow_start_nothing_grows_and_a_change_of_it_counts_at_once() {
        let mut growth = Growth::default();
        growth.observe(at(0), []);
        assert_eq!(growth.observe(at(1), [(1, Duration::ZERO), (2, MINUTE)]).begun, [2]);
        assert_eq!([1, 2].map(|id| growth.share(id, Duration::ZERO, at(1))), [WHOLE, WHOLE]);
        assert_eq!(growth.share(2, at(10), at(6)), 550);
        assert_eq!(growth.share(1, MINUTE, at(6)), WHOLE, "it is settled");
    }

    proptest! {
        #[test]
        fn a_share_never_shrinks_and_ends_whole(slow in 1u64..3600, times in prop::collection::vec(0u64..4000, 1..20)) {
            let mut growth = Growth::default();
            growth.observe(at(0), []);
            growth.observe(at(0), [(1, at(slow))]);
            let mut times = times;
            times.sort_unstable();
            let mut last = FIRST;
            for now in times {
                let share = growth.share(1, at(slow), at(now));
                prop_assert!(share >= last && share <= WHOLE);
                prop_assert_eq!(share == WHOLE, now >= slow);
                last = share;
                growth.observe(at(now), [(1, at(slow))]);
            }
        }
    }
}
