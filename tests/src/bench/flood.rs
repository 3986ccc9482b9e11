//! Floods beside clients at work: what of their work is left, whether somebody's connection broke or record was lost; and
//! what a packet of a flood costs in the program.

mod cost;
mod site;

use anyhow::{Result, ensure};

use self::{
    cost::Costs,
    site::{Beside, Flooded},
};
use super::{
    figures::{Report, Rounds, Row, Table, Target},
    world::alone,
};

/// How thoroughly.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rounds, in each of which everything is sent once.
    pub rounds: usize,
    /// Packets of one kind in a round, where their cost is measured.
    pub repeat: u32,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    /// SYNs from addresses that nobody has.
    Syns,
    /// Acknowledgements, every other one in the name of an open connection.
    Acks,
    /// Fragments.
    Fragments,
    /// Headers that cannot be.
    Malformed,
}

impl Flood {
    const ALL: [Self; 4] = [Self::Syns, Self::Acks, Self::Fragments, Self::Malformed];

    const fn name(self) -> &'static str {
        match self {
            Self::Syns => "spoofed SYNs",
            Self::Acks => "forged ACKs",
            Self::Fragments => "fragments",
            Self::Malformed => "malformed headers",
        }
    }
}

/// Runs the suite.
///
/// # Errors
/// Something did not start, or the kernel refused something.
pub fn flood(options: Options) -> Result<Report> {
    ensure!(options.rounds > 0, "a bench of no rounds");
    let costs = alone(move |pins| cost::measure(pins, options))?;
    let beside = Beside::up()?;
    let mut all = Flood::ALL.map(|flood| (flood, Vec::new()));
    for _ in 0..options.rounds {
        for (flood, rounds) in &mut all {
            rounds.push(beside.suffer(*flood)?);
        }
    }
    Ok(report(&costs, &all))
}

fn report(costs: &Costs, all: &[(Flood, Vec<Flooded>)]) -> Report {
    let of = |rounds: &[Flooded], what: fn(&Flooded) -> f64| Rounds(rounds.iter().map(what).collect());
    let beside = all.iter().map(|(flood, rounds)| Row {
        name: flood.name().to_owned(),
        cells: vec![
            of(rounds, |flooded| flooded.sent / 1e6),
            of(rounds, |flooded| flooded.seen / 1e6),
            of(rounds, |flooded| flooded.kept),
            of(rounds, |flooded| flooded.slowest),
            of(rounds, |flooded| flooded.broken),
            of(rounds, |flooded| flooded.lost),
        ],
    });
    let columns = [
        "million/s sent",
        "million/s seen",
        "answers kept",
        "slowest answer, s",
        "connections broken",
        "records lost",
    ];
    let costs = costs.0.iter().map(|(name, rounds)| Row { name: name.clone(), cells: vec![rounds.clone()] });
    let sum = |what: fn(&Flooded) -> f64| {
        let rounds = all.iter().map(|(_, rounds)| of(rounds, what));
        rounds.reduce(|one, other| one.with(&other, |one, other| one + other)).unwrap_or_default()
    };
    Report {
        tables: vec![
            Table {
                title: "Floods beside 200 clients at work".to_owned(),
                columns: columns.map(str::to_owned).to_vec(),
                rows: beside.collect(),
            },
            Table {
                title: "A packet of a flood in the program, every table full".to_owned(),
                columns: vec!["ns".to_owned()],
                rows: costs.collect(),
            },
        ],
        targets: vec![
            Target::at_most(
                "connections broken by all floods of a round",
                &sum(|flooded| flooded.broken),
                0.0,
            ),
            Target::at_most(
                "sticky records lost in all floods of a round",
                &sum(|flooded| flooded.lost),
                0.0,
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_connection_in_most_rounds_is_a_broken_promise() {
        let flooded = |broken| Flooded { broken, ..Flooded::default() };
        let all = [
            (Flood::Syns, vec![flooded(0.0), flooded(1.0), flooded(0.0)]),
            (Flood::Acks, vec![flooded(0.0), flooded(0.0), flooded(1.0)]),
        ];
        let report = report(&Costs::default(), &all);
        assert!(!report.targets[0].met);
        assert!(report.targets[1].met);
    }
}
