//! What a hospital would notice: connections, requests and downloads through the balancer, beside what would be used
//! instead, with real clients and servers.
//!
//! Clients, contender and servers share this machine's processors. So the figure that counts is not how fast a contender
//! is here, but the processor time that it adds to what clients and servers take by themselves (`direct`).

mod constant;
mod cpu;
mod load;
mod napi;
mod one_core;
mod stand;
mod summary;
mod wire;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::health::client_config;

pub(super) use self::stand::start_haproxy;
use self::{
    load::{ADDRESSES, Load, Run, Way},
    napi::Napi,
    one_core::OneCore,
    stand::{Contender, Stand},
    summary::Figures,
};
use super::figures::{Report, Rounds};
use crate::lab::Ns;

/// Before each run, for what the one before left to the kernel.
const SETTLE: Duration = Duration::from_millis(100);
/// Of the usual count, to warm up.
const WARM: usize = 20;

/// How thoroughly.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rounds, in each of which every contender is run once under every load.
    pub rounds: usize,
    /// Hundredths of the usual number of requests, connections and downloads in a run.
    pub percent: usize,
}

/// Runs the suite.
///
/// # Errors
/// A contender did not start, or a client was not served.
pub fn lab(options: Options) -> Result<Report> {
    let tls = client_config(&[])?;
    let mut stands = Vec::new();
    for contender in Contender::ALL {
        let stand = Stand::up(contender).with_context(|| format!("setting up {}", contender.name()))?;
        stands.push(stand);
    }
    let mut figures = Figures::new();
    let mut number = 0;
    let mut unused = || {
        number += 1;
        addresses(number - 1)
    };
    let mut others = Rounds::default();
    for round in 0..=options.rounds {
        let mut pauses = Vec::new();
        for (napi, load) in plan() {
            let sources = unused();
            // Nobody is always the first.
            stands.rotate_left(1);
            for stand in &mut stands {
                stand.set_napi(napi)?;
                pauses.push(settle()?);
                let percent = if round == 0 { options.percent * WARM / 100 } else { options.percent };
                let contender = stand.contender;
                let mut serve = |numbers| -> Result<Run> {
                    let sources = stand.clients(numbers)?;
                    let way = Way { sources: &sources, to: &stand.to, tls: &tls };
                    let core = load.takes_turns().then(|| OneCore::of(&stand.lab)).transpose()?;
                    let run = stand.lab.in_ns(Ns::Client, || {
                        core.as_ref().map_or(Ok(()), OneCore::join)?;
                        load::run(load, percent, &way)
                    })?;
                    let through = contender.name();
                    run.with_context(|| format!("{} through {through}, {}", load.name(), napi.name()))
                };
                let run = match serve(sources.clone()) {
                    // Of a rival it is told, and tried once more; of us it is the end.
                    Err(error) if !matches!(contender, Contender::Steadfast(_)) => {
                        eprintln!("bench: {error:#}: once more");
                        serve(unused())?
                    }
                    outcome => outcome?,
                };
                // The first round is to warm up.
                if round > 0 {
                    figures.entry((napi, load, contender)).or_default().add(run);
                }
            }
        }
        if round > 0 {
            others.0.push(100.0 * pauses.iter().sum::<f64>() / pauses.len() as f64);
        }
    }
    ensure!(!figures.is_empty(), "a bench of no rounds");
    Ok(summary::report(&figures, others))
}

/// Pauses, and gives the share of all processors that were at work all the same.
fn settle() -> Result<f64> {
    let processors = thread::available_parallelism()?.get() as f64;
    let (start, before) = (Instant::now(), cpu::busy()?);
    thread::sleep(SETTLE);
    Ok((cpu::busy()? - before) / start.elapsed().as_secs_f64() / processors)
}

/// Under which loads everybody is run in a round, in which mode.
fn plan() -> impl Iterator<Item = (Napi, Load)> {
    Napi::ALL.into_iter().flat_map(|napi| {
        let all = Load::ALL.into_iter();
        all.filter(move |load| napi == Napi::Softirq || load.depends_on_napi()).map(move |load| (napi, load))
    })
}

/// The clients of the `number`th run; they come again after a thousand runs.
fn addresses(number: usize) -> std::ops::Range<usize> {
    let first = number % (64_000 / ADDRESSES) * ADDRESSES;
    first..first + ADDRESSES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_runs_in_a_row_share_a_client() {
        for number in 0..3000 {
            let (one, two) = (addresses(number), addresses(number + 1));
            assert!(one.end <= two.start || two.end <= one.start, "{one:?} and {two:?}");
        }
    }

    #[test]
    fn both_modes_are_measured() {
        let of = |mode| plan().filter(|(napi, _)| *napi == mode).count();
        assert_eq!((of(Napi::Softirq), of(Napi::Threaded)), (Load::ALL.len(), 2));
    }
}
