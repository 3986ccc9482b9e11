//! How long changes take: until packets obey a drain, until a table for 1,000 servers is in force, until 4,096 services
//! are, until a restarted daemon has adopted a million flows; and what the daemon takes while nothing happens.

mod daemon;
mod drain;
mod probe;
mod schedule;

use anyhow::{Result, ensure};

use self::{
    daemon::{Change, Idle},
    drain::{Balancer, Drained, Haproxy, How},
    schedule::Schedule,
};
use super::{
    figures::{Report, Rounds, Row, Table, Target},
    world::alone,
};
use crate::lab::tool;

/// How thoroughly.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rounds, in each of which everything is done once.
    pub rounds: usize,
    /// How often a server is drained by each way in a round; the median counts.
    pub drains: usize,
}

/// Runs the suite.
///
/// # Errors
/// Something did not start, or did not do what it was told.
pub fn control(options: Options) -> Result<Report> {
    ensure!(options.rounds > 0 && options.drains > 0, "a bench of no rounds");
    let (drains, idle) = drains(options)?;
    let schedule = alone(move |pins| schedule::measure(pins, options.rounds))?;
    let changes = daemon::changes(options.rounds)?;
    let restart = daemon::restarts(options.rounds)?;
    Ok(report(&drains, &schedule, &changes, &restart, &[("5 servers checked every 2 s", &idle)]))
}

/// A way of draining: until the first packet obeyed, and until the call returned; milliseconds.
#[derive(Debug, Default)]
struct Way {
    name: &'static str,
    obeyed: Rounds,
    returned: Rounds,
}

impl Way {
    const fn named(name: &'static str) -> Self {
        Self { name, obeyed: Rounds(Vec::new()), returned: Rounds(Vec::new()) }
    }

    /// Adds the medians of a round.
    fn add(&mut self, drains: &[Drained]) {
        let median = |of: fn(&Drained) -> f64| Rounds(drains.iter().map(of).collect()).median();
        self.obeyed.0.push(median(|drained| drained.obeyed.as_secs_f64() * 1e3));
        self.returned.0.push(median(|drained| drained.returned.as_secs_f64() * 1e3));
    }
}

const BY_COMMAND: &str = "Steadfast, `steadfast server drain`";
const BY_API: &str = "Steadfast, the API's socket";
const BY_HAPROXY: &str = "HAProxy, the runtime socket";

/// Drains by everybody in turn, and the daemon between them.
fn drains(options: Options) -> Result<(Vec<Way>, Idle)> {
    let mut balancer = Balancer::up()?;
    let mut haproxy = match tool("haproxy") {
        Ok(_) => Some(Haproxy::up()?),
        Err(_) => {
            eprintln!(
                "bench: HAProxy is neither installed nor unpacked (`cargo xtask bench lab` does it): left out"
            );
            None
        }
    };
    let mut ways = [BY_COMMAND, BY_API, BY_HAPROXY].map(Way::named);
    let mut idle = Idle::default();
    // The first is to warm up.
    for round in 0..=options.rounds {
        let [by_command, by_api, by_haproxy] = &mut ways;
        let mut measured = vec![];
        for (how, way) in [(How::Command, by_command), (How::Api, by_api)] {
            let drains: Result<Vec<_>> = (0..options.drains).map(|_| balancer.drain(how)).collect();
            measured.push((way, drains?));
        }
        if let Some(haproxy) = &mut haproxy {
            let drains: Result<Vec<_>> = (0..options.drains).map(|_| haproxy.drain()).collect();
            measured.push((by_haproxy, drains?));
        }
        let process = balancer.process()?;
        let looked = process.watch()?;
        if round > 0 {
            measured.into_iter().for_each(|(way, drains)| way.add(&drains));
            idle.add(&looked);
        }
    }
    let measured = ways.into_iter().filter(|way| !way.obeyed.0.is_empty());
    Ok((measured.collect(), idle))
}

fn report(
    drains: &[Way],
    schedule: &Schedule,
    changes: &[Change],
    restarts: &daemon::Restarts,
    idles: &[(&str, &Idle)],
) -> Report {
    let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let row = |name: &str, cells: Vec<Rounds>| Row { name: name.to_owned(), cells };
    let idles = idles.iter().copied().chain([("a million flows", &restarts.idle)]);
    let commanded = drains.iter().find(|way| way.name == BY_COMMAND);
    Report {
        tables: vec![
            Table {
                title: "A drain, ms from its start".to_owned(),
                columns: columns(&["first new client elsewhere", "call returned"]),
                rows: drains
                    .iter()
                    .map(|way| row(way.name, vec![way.obeyed.clone(), way.returned.clone()]))
                    .collect(),
            },
            Table {
                title: "A scheduler's table for 1,000 servers".to_owned(),
                columns: columns(&["ms"]),
                rows: vec![
                    row("built", vec![schedule.built.clone()]),
                    row("swapped for the one before", vec![schedule.swapped.clone()]),
                ],
            },
            Table {
                title: "Changes by the command line".to_owned(),
                columns: columns(&["ms"]),
                rows: changes.iter().map(|change| row(change.name, vec![change.took.clone()])).collect(),
            },
            Table {
                title: "A restarted daemon, until it answers".to_owned(),
                columns: columns(&["ms"]),
                rows: vec![
                    row("no flows", vec![restarts.empty.clone()]),
                    row("1,000,000 flows adopted", vec![restarts.full.clone()]),
                ],
            },
            Table {
                title: "The idle daemon".to_owned(),
                columns: columns(&["% of a processor", "MiB of its own", "MiB with mapped tables"]),
                rows: idles
                    .map(|(name, idle)| {
                        row(name, vec![idle.cpu.clone(), idle.own.clone(), idle.resident.clone()])
                    })
                    .collect(),
            },
        ],
        targets: vec![Target::at_most(
            "from `server drain` to the first packet that obeys it, ms",
            &commanded.map(|way| way.obeyed.clone()).unwrap_or_default(),
            5.0,
        )],
    }
}
