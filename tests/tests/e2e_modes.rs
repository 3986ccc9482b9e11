//! Every forwarding mode, over both families, with one arm and with two: the rows of one table, each in a lab of its own.
//!
//! One row alone: `cargo test -p tests --test e2e_modes -- dr-ipv6`.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial, run};
use tests::{
    e2e::matrix,
    lab::{Arms, Family, Mode, Topology},
};

fn rows() -> impl Iterator<Item = Topology> {
    let modes = [Mode::Snat, Mode::Nat, Mode::Dr, Mode::Tunnel];
    let families = [Family::V4, Family::V6];
    let shapes = [(Arms::One, false), (Arms::Two, false), (Arms::One, true)];
    modes.into_iter().flat_map(move |mode| {
        families.into_iter().flat_map(move |family| {
            shapes.into_iter().map(move |(arms, narrow)| Topology {
                mode,
                family,
                arms,
                narrow,
                ..Topology::default()
            })
        })
    })
}

fn trial(topology: Topology) -> Trial {
    Trial::test(topology.to_string(), move || {
        matrix::check(topology).map_err(|error| format!("{error:#}").into())
    })
}

fn main() -> ExitCode {
    run(&Arguments::from_args(), rows().map(trial).collect()).exit_code()
}
