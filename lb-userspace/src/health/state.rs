//! The state of one real server's health: pure, one probe's outcome at a time.
//!
//! ```text
//!                  first success
//!        Unknown ------------------> Up <--------------+
//!           |                        |                 |
//!           | `fall` failures        | `fall` failures | `rise` successes
//!           | in a row               | in a row        | in a row
//!           |                        v                 |
//!           +---------------------> Down --------------+
//! ```
//!
//! An outcome of the other kind starts a count again; one that is no verdict changes nothing. A fresh server is believed at its first
//! success, because nobody is on it yet; one that was down has to show `rise` successes.

use std::num::NonZeroU32;

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The server answered as it should.
    Ok,
    /// It did not; the words are for the engineer on call.
    Failed(String),
    /// It did not even answer a SYN in time, or ARP for it: it is gone, or the way there and back loses packets.
    Lost(String),
    /// It says nothing about the server: something on this machine, or on the way, was in the way. It changes no state and
    /// no count.
    NoVerdict(String),
}

impl Outcome {
    /// Why it is not a success, for the engineer on call.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Failed(why) | Self::Lost(why) | Self::NoVerdict(why) => Some(why),
        }
    }

    /// The same, said otherwise.
    #[must_use]
    pub fn map_why(self, words: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Ok => Self::Ok,
            Self::Failed(why) => Self::Failed(words(why)),
            Self::Lost(why) => Self::Lost(words(why)),
            Self::NoVerdict(why) => Self::NoVerdict(words(why)),
        }
    }

    /// Whether the server itself was heard: success or refusal.
    #[must_use]
    pub const fn is_answer(&self) -> bool {
        matches!(self, Self::Ok | Self::Failed(_))
    }
}

/// A server's health, once something is known about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// New clients may be sent there.
    Up,
    /// Nobody may be sent there.
    Down,
}

/// How many probes in a row change a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Failures in a row until `Down`.
    pub fall: NonZeroU32,
    /// Successes in a row until `Up` again.
    pub rise: NonZeroU32,
}

/// Where a server is; see the module's diagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is known yet.
    Unknown {
        /// Failures so far, fewer than `fall`.
        failures: u32,
    },
    /// The server is up.
    Up {
        /// Failures in a row, fewer than `fall`.
        failures: u32,
    },
    /// The server is down.
    Down {
        /// Successes in a row, fewer than `rise`.
        successes: u32,
    },
}

/// A change of verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The new verdict.
    pub to: Verdict,
    /// Why: the last failure's own words, or what the successes were.
    pub reason: String,
    /// Whether the probe that decided was [lost](Outcome::Lost).
    pub lost: bool,
}

impl State {
    /// A server about which nothing is known.
    pub const FRESH: Self = Self::Unknown { failures: 0 };

    /// What is known from before, taken over without a transition.
    #[must_use]
    pub fn adopted(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Up => Self::Up { failures: 0 },
            Verdict::Down => Self::Down { successes: 0 },
        }
    }

    /// The same, without the failures that it has counted.
    #[must_use]
    pub const fn restarted(self) -> Self {
        match self {
            Self::Unknown { .. } => Self::FRESH,
            Self::Up { .. } => Self::Up { failures: 0 },
            Self::Down { successes } => Self::Down { successes },
        }
    }

    /// The verdict, or `None` while nothing is known.
    #[must_use]
    pub fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Unknown { .. } => None,
            Self::Up { .. } => Some(Verdict::Up),
            Self::Down { .. } => Some(Verdict::Down),
        }
    }

    /// The state after one more probe, and the change of verdict if it made one.
    #[must_use]
    pub fn after(self, outcome: &Outcome, thresholds: Thresholds) -> (Self, Option<Transition>) {
        match (self, outcome) {
            (_, Outcome::NoVerdict(_)) => (self, None),
            (Self::Unknown { .. }, Outcome::Ok) => come_up("the first probe succeeded".to_owned()),
            (Self::Up { .. }, Outcome::Ok) => (Self::Up { failures: 0 }, None),
            (Self::Down { successes }, Outcome::Ok) => {
                let successes = successes.saturating_add(1);
                if successes < thresholds.rise.get() {
                    return (Self::Down { successes }, None);
                }
                come_up(match successes {
                    1 => "a probe succeeded".to_owned(),
                    many => format!("{many} probes in a row succeeded"),
                })
            }
            (Self::Unknown { failures }, bad) => {
                fail(failures, thresholds, bad, |failures| Self::Unknown { failures })
            }
            (Self::Up { failures }, bad) => fail(failures, thresholds, bad, |failures| Self::Up { failures }),
            (Self::Down { .. }, _) => (Self::Down { successes: 0 }, None),
        }
    }
}

fn come_up(reason: String) -> (State, Option<Transition>) {
    (State::Up { failures: 0 }, Some(Transition { to: Verdict::Up, reason, lost: false }))
}

fn fail(
    before: u32,
    thresholds: Thresholds,
    bad: &Outcome,
    stay: fn(u32) -> State,
) -> (State, Option<Transition>) {
    let failures = before.saturating_add(1);
    if failures < thresholds.fall.get() {
        return (stay(failures), None);
    }
    let transition = Transition {
        to: Verdict::Down,
        reason: bad.why().unwrap_or_default().to_owned(),
        lost: matches!(bad, Outcome::Lost(_)),
    };
    (State::Down { successes: 0 }, Some(transition))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn thresholds(fall: u32, rise: u32) -> Thresholds {
        Thresholds { fall: fall.try_into().unwrap(), rise: rise.try_into().unwrap() }
    }

    #[test]
    fn every_state_and_event() {
        use State::{Down, Unknown, Up};
        let ok = Outcome::Ok;
        let bad = Outcome::Failed("refused".to_owned());
        let (up, down) = (Some(Verdict::Up), Some(Verdict::Down));
        for (state, event, next, to) in [
            (Unknown { failures: 0 }, &ok, Up { failures: 0 }, up),
            (Unknown { failures: 2 }, &ok, Up { failures: 0 }, up),
            (Unknown { failures: 0 }, &bad, Unknown { failures: 1 }, None),
            (Unknown { failures: 1 }, &bad, Unknown { failures: 2 }, None),
            (Unknown { failures: 2 }, &bad, Down { successes: 0 }, down),
            (Up { failures: 0 }, &ok, Up { failures: 0 }, None),
            (Up { failures: 2 }, &ok, Up { failures: 0 }, None),
            (Up { failures: 0 }, &bad, Up { failures: 1 }, None),
            (Up { failures: 1 }, &bad, Up { failures: 2 }, None),
            (Up { failures: 2 }, &bad, Down { successes: 0 }, down),
            (Down { successes: 0 }, &ok, Down { successes: 1 }, None),
            (Down { successes: 1 }, &ok, Up { failures: 0 }, up),
            (Down { successes: 0 }, &bad, Down { successes: 0 }, None),
            (Down { successes: 1 }, &bad, Down { successes: 0 }, None),
            // The thresholds were lowered by a new configuration.
            (Up { failures: 7 }, &bad, Down { successes: 0 }, down),
            (Down { successes: u32::MAX }, &ok, Up { failures: 0 }, up),
        ] {
            let (found, transition) = state.after(event, thresholds(3, 2));
            assert_eq!((found, transition.map(|t| t.to)), (next, to), "{state:?} {event:?}");
        }
    }

    #[test]
    fn what_is_no_verdict_changes_neither_state_nor_count() {
        use State::{Down, Unknown, Up};
        let none = Outcome::NoVerdict("this process has no file descriptor left".to_owned());
        for state in [
            Unknown { failures: 0 },
            Unknown { failures: 2 },
            Up { failures: 0 },
            Up { failures: 2 },
            Up { failures: 7 },
            Down { successes: 0 },
            Down { successes: 1 },
        ] {
            assert_eq!(state.after(&none, thresholds(3, 2)), (state, None));
        }
    }

    #[test]
    fn a_transition_says_why() {
        let bad = Outcome::Failed("status 503, expected 200-399".to_owned());
        let (_, down) = State::adopted(Verdict::Up).after(&bad, thresholds(1, 1));
        let down = down.unwrap();
        assert_eq!((down.reason.as_str(), down.lost), ("status 503, expected 200-399", false));
        let lost = Outcome::Lost("timed out after 1s while connecting".to_owned());
        let (_, down) = State::adopted(Verdict::Up).after(&lost, thresholds(1, 1));
        assert!(down.unwrap().lost);
        let (_, up) = State::Down { successes: 1 }.after(&Outcome::Ok, thresholds(1, 2));
        assert_eq!(up.unwrap().reason, "2 probes in a row succeeded");
    }

    /// The rule said again, from the whole history: the verdict changes when the last `n` probes
    /// since the last change all say so.
    fn reference(history: &[bool], fall: usize, rise: usize) -> Option<bool> {
        let (mut verdict, mut since) = (None, 0);
        for end in 1..=history.len() {
            let seen = &history[since..end];
            let last_are =
                |n: usize, value: bool| seen.len() >= n && seen.iter().rev().take(n).all(|ok| *ok == value);
            let changed = match verdict {
                None => (last_are(1, true) || last_are(fall, false)).then(|| seen[seen.len() - 1]),
                Some(true) => last_are(fall, false).then_some(false),
                Some(false) => last_are(rise, true).then_some(true),
            };
            if let Some(value) = changed {
                (verdict, since) = (Some(value), end);
            }
        }
        verdict
    }

    proptest! {
        #[test]
        fn any_sequence_agrees_with_the_rule_over_the_whole_history(
            history in prop::collection::vec(any::<bool>(), 0..60), fall in 1u32..6, rise in 1u32..6,
        ) {
            let mut state = State::FRESH;
            for (index, ok) in history.iter().enumerate() {
                let outcome = if *ok { Outcome::Ok } else { Outcome::Failed("x".to_owned()) };
                let before = state.verdict();
                let (next, transition) = state.after(&outcome, thresholds(fall, rise));
                state = next;
                let expected = reference(&history[..=index], fall as usize, rise as usize);
                prop_assert_eq!(state.verdict().map(|v| v == Verdict::Up), expected);
                prop_assert_eq!(transition.map(|t| t.to), state.verdict().filter(|_| state.verdict() != before));
            }
        }
    }
}
