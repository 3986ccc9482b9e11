//! Every forwarding mode, over both families, with one arm and with two: the rows of one table, each in a lab of its own.
//!
//! A row is skipped, with the reason beside its name, while [`NOT_YET`] has a word of it; `--include-ignored` runs it all
//! the same: `cargo test -p tests --test e2e_modes -- --include-ignored dr-ipv6`.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial, run};
use tests::{
    e2e::matrix,
    lab::{Arms, Family, Mode, Topology},
};

/// Words of rows that the balancer cannot do yet, with the reason.
const NOT_YET: [(&str, &str); 5] = [
    ("nat", "no forwarding nat"),
    ("dr", "no forwarding dr"),
    ("tunnel", "no forwarding tunnel"),
    ("ipv6", "no IPv6 services"),
    ("two", "no second interface"),
];

fn rows() -> impl Iterator<Item = Topology> {
    let modes = [Mode::Snat, Mode::Nat, Mode::Dr, Mode::Tunnel];
    let families = [Family::V4, Family::V6];
    let shapes = [(Arms::One, false), (Arms::Two, false), (Arms::One, true)];
    modes.into_iter().flat_map(move |mode| {
        families.into_iter().flat_map(move |family| {
            shapes.into_iter().map(move |(arms, narrow)| Topology { mode, family, arms, narrow })
        })
    })
}

fn trial(topology: Topology) -> Trial {
    let name = topology.to_string();
    let missing = NOT_YET.iter().find(|(word, _)| name.split('-').any(|part| part == *word));
    let trial = Trial::test(name.clone(), move || {
        matrix::check(topology).map_err(|error| format!("{error:#}").into())
    });
    match missing {
        Some((_, reason)) => trial.with_kind(*reason).with_ignored_flag(true),
        None => trial,
    }
}

fn main() -> ExitCode {
    run(&Arguments::from_args(), rows().map(trial).collect()).exit_code()
}
