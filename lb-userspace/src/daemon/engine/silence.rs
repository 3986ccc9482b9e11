//! What is said of checks that say nothing, and of services that refuse clients: when it begins and when it is over.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::server::ServerState;
use tracing::{error, info};

use super::Engine;
use crate::core::desired::Desired;
use crate::core::text::unpadded;

/// How many servers are named.
const NAMED: usize = 5;
/// The kind of problem.
const CHECKS: &str = "checks";

/// Ticks for which a reason must not come up until it counts as over: one that comes and goes is one.
const OVER: u32 = 10;

/// Whose checks say nothing, by why.
#[derive(Debug, Default)]
pub(super) struct Silence {
    told: BTreeMap<String, Lasting>,
}

/// A reason that was told.
#[derive(Debug, Default)]
struct Lasting {
    /// Whom it has concerned, also those that it concerns no more: it is the same trouble.
    names: BTreeSet<String>,
    /// For how many ticks it has not come up.
    absent: u32,
}

impl Silence {
    /// What begins and what is over when these are silent, names by why: the reason and a sentence each. Once a tick.
    fn follow(&mut self, now: BTreeMap<String, BTreeSet<String>>) -> Told {
        let mut told = Told::default();
        self.told.values_mut().for_each(|lasting| lasting.absent += 1);
        for (why, names) in now {
            let lasting = self.told.entry(why.clone()).or_default();
            lasting.absent = 0;
            let before = lasting.names.len();
            lasting.names.extend(names);
            if lasting.names.len() > before {
                let said = format!(
                    "the checks of {} say nothing, and their servers stay as they were: {why}; see `steadfast server show`",
                    named(&lasting.names)
                );
                told.begun.push((why, said));
            }
        }
        self.told.retain(|why, lasting| {
            let lasts = lasting.absent < OVER;
            if !lasts {
                let names = named(&lasting.names);
                told.over.push((why.clone(), format!("over for the checks of {names}: {why}")));
            }
            lasts
        });
        told
    }
}

/// What is to be said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    begun: Vec<(String, String)>,
    over: Vec<(String, String)>,
}

/// The first names, and how many more.
fn named(names: &BTreeSet<String>) -> String {
    let first: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
    match names.len().saturating_sub(NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

impl Engine {
    /// Takes in whose checks say nothing, and says so.
    pub(super) fn look_for_silence(&mut self) {
        let (mut silent, mut reasons) = (BTreeMap::new(), BTreeMap::<String, BTreeSet<String>>::new());
        for (id, since, why) in self.health_table.silent() {
            let Ok(id) = u16::try_from(id) else { continue };
            if let Some(name) = self.name_of(id) {
                reasons.entry(why.clone()).or_default().insert(name.to_string());
            }
            silent.insert(id, format!("{why} (since {since:.0})"));
        }
        let (told, now) = (self.silence.follow(reasons), (self.clock)());
        for (why, words) in told.begun {
            self.problems.raise(CHECKS, &why, words, now);
        }
        for (why, words) in told.over {
            self.problems.clear(CHECKS, &why, &words);
        }
        let mut changed = false;
        for (id, health) in &mut self.health {
            let why = silent.remove(id);
            changed |= health.no_verdict != why;
            health.no_verdict = why;
        }
        for (id, why) in silent {
            changed = true;
            self.health.entry(id).or_default().no_verdict = Some(why);
        }
        let cut_off = self.health_table.cut_off();
        let cut_off = cut_off.into_iter().filter_map(|id| u16::try_from(id).ok()).collect();
        changed |= self.cut_off != cut_off;
        self.cut_off = cut_off;
        if changed {
            self.resync_or_warn("what health checks say");
        }
    }

    /// Says which services refuse new clients from now on, and which take some again: before anything else about a change.
    pub(super) fn say_who_refuses(&mut self, desired: &Desired) {
        let takes = |service: u16| {
            desired
                .servers
                .values()
                .any(|(server, _)| server.service == service && server.state.has(ServerState::TAKES_NEW))
        };
        let refusing: BTreeSet<u16> = desired.schedules.keys().copied().filter(|id| !takes(*id)).collect();
        for (id, (_, info)) in &desired.services {
            let label = unpadded(&info.label);
            if refusing.contains(id) && !self.refusing.contains(id) {
                error!("{label}: no server takes new clients; those without a record are refused");
            } else if !refusing.contains(id) && self.refusing.contains(id) {
                info!("{label}: new clients are taken again");
            }
        }
        self.refusing = refusing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(rows: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        rows.iter().map(|(why, of)| ((*why).to_owned(), names(of))).collect()
    }

    #[test]
    fn silence_is_told_with_who_and_why_and_again_when_it_is_over() {
        let mut silence = Silence::default();
        let told = silence.follow(now(&[("no descriptor", &["V/a", "V/b"])]));
        let [(why, words)] = &told.begun[..] else { panic!("{told:?}") };
        assert_eq!(why, "no descriptor");
        assert!(words.starts_with("the checks of V/a, V/b say nothing"), "{words}");
        assert!(silence.follow(now(&[("no descriptor", &["V/a", "V/b"])])).begun.is_empty());
        assert!(silence.follow(now(&[("no descriptor", &["V/b"])])).begun.is_empty());
        assert_eq!(ticks_until_over(&mut silence), ["over for the checks of V/a, V/b: no descriptor"]);
        assert_eq!(silence.follow(BTreeMap::new()), Told::default());
    }

    #[test]
    fn another_reason_is_told_and_many_servers_are_counted() {
        let mut silence = Silence::default();
        let names = ["1", "2", "3", "4", "5", "6", "7"];
        let told = silence.follow(now(&[("eth0 has no carrier", &names)]));
        assert!(told.begun[0].1.contains("5 and 2 more"), "{told:?}");
        let told = silence.follow(now(&[("eth0 works again", &names)]));
        assert_eq!((told.begun.len(), told.over.len()), (1, 0), "{told:?}");
        assert_eq!(ticks_until_over(&mut silence).len(), 1);
        assert_eq!(ticks_until_over(&mut silence).len(), 1);
    }

    #[test]
    fn a_reason_that_comes_and_goes_is_told_once() {
        let mut silence = Silence::default();
        let mut told = Vec::new();
        for tick in 0..60 {
            let silent: &[(&str, &[&str])] = if tick % 3 == 0 { &[("no descriptor", &["V/a"])] } else { &[] };
            let said = silence.follow(now(silent));
            told.extend(said.begun.into_iter().chain(said.over));
        }
        assert_eq!(told.len(), 1, "{told:?}");
    }

    /// What is over next, when nobody is silent any more.
    fn ticks_until_over(silence: &mut Silence) -> Vec<String> {
        for _ in 0..OVER {
            let told = silence.follow(BTreeMap::new());
            assert_eq!(told.begun, []);
            if !told.over.is_empty() {
                return told.over.into_iter().map(|(_, words)| words).collect();
            }
        }
        Vec::new()
    }
}
