//! The built program against its model (`tests/src/model.rs`): kept sequences, some at random, and that a difference is seen.
#![cfg(test)]

use std::{fs, path::Path, time::Duration};

use lb_common::reason::Reason;
use tests::fuzz::{Day, Mistake, Options, Report, day, fuzz, replay};

/// Longer than any of these takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

fn sequences(seed: u64, sequences: u64, mistake: Option<Mistake>) -> Report {
    fuzz(&Options { seed, time: PATIENCE, sequences, mistake, shrink: false }).unwrap()
}

#[test]
fn kept_sequences_end_as_the_model_says_and_reach_every_reason() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut missing: Vec<Reason> = Reason::ALL.to_vec();
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<_> = files.map(|path| (name(&path), fs::read_to_string(path).unwrap())).collect();
    let texts: Vec<_> = kept.iter().map(|(_, text)| text.as_str()).collect();
    let reports = replay(&texts).unwrap();
    for ((name, _), report) in kept.iter().zip(&reports) {
        assert_eq!(report.difference, None, "{name}");
        let its = name.split('+').next();
        let reached = |reason: &Reason| report.reasons[*reason as usize] > 0;
        let is_reached = Reason::ALL.iter().any(|reason| Some(reason.label()) == its && reached(reason));
        assert!(is_reached, "{name} does not reach its reason any more: collect the corpus anew");
        missing.retain(|reason| !reached(reason));
    }
    assert_eq!(missing, [Reason::Carrying, Reason::EstablishedDisplacing], "{RARE}");
}

/// Why no kept sequence establishes a flow in the place of another.
const RARE: &str = "that needs a table full of open flows, which states at random have and known ones do not";

/// What the model does not have: rows that are carried over.
const ELSEWHERE: [Reason; 1] = [Reason::Carrying];

fn name(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

#[test]
fn random_sequences_end_as_the_model_says_and_reach_every_reason() {
    let report = sequences(1, 240, None);
    assert_eq!(report.difference, None);
    assert_eq!(report.sequences, 240);
    assert_eq!(report.missing().collect::<Vec<_>>(), ELSEWHERE);
}

#[test]
fn every_mistake_in_the_model_is_found() {
    for mistake in Mistake::ALL {
        let report = sequences(1, 1_000, Some(mistake));
        assert!(report.difference.is_some(), "{mistake:?} was not found");
        println!("{mistake:?}: found in sequence {}, packet {}", report.sequences, report.packets);
    }
}

#[test]
fn a_difference_is_told_with_the_shortest_sequence_that_shows_it() {
    let mistake = Some(Mistake::Persistence);
    let report = fuzz(&Options { seed: 1, time: PATIENCE, sequences: 100, mistake, shrink: true }).unwrap();
    let found = report.difference.unwrap();
    // From no connection to a record takes a SYN, its answer and the acknowledgement; a step or two may choose the port.
    let (_, shortest) = found.split_once("# The shortest sequence (").unwrap();
    let (steps, _) = shortest.split_once(" steps)").unwrap();
    assert!((1..=6).contains(&steps.parse::<u32>().unwrap()), "{found}");
    assert!(found.contains("seed ") && found.contains("\nsetup "), "{found}");
}

#[test]
fn a_day_of_clients_coming_and_going_ends_with_exact_counts_and_empty_tables() {
    let Day { packets, connections, most_open, server_gone, sweeps, .. } = day(1, 24).unwrap();
    println!(
        "24 hours: {packets} packets of {connections} connections, {most_open} open at most, \
         {server_gone} reset for a server that was down, {sweeps} sweeps"
    );
    assert!(connections > 2_000, "{connections}");
    assert!(most_open > 30 && server_gone > 10, "{most_open}, {server_gone}");
}
