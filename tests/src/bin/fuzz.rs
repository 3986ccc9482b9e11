//! `cargo xtask fuzz`'s program: the data path against its model, for a while.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use lb_common::reason::Reason;
use tests::fuzz::{Options, Report, collect, fuzz};

/// Feeds random sequences to the built XDP program and to its model, and compares them packet by packet.
#[derive(Parser)]
struct Arguments {
    /// For how long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The first sequence's number; the same number is the same sequence
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop after so many sequences
    #[arg(long, default_value_t = u64::MAX)]
    sequences: u64,
    /// Instead, play as many sequences as given from each known state, and write the shortest of each outcome to here
    #[arg(long, value_name = "DIRECTORY", requires = "sequences")]
    collect: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments { seconds, seed, sequences, collect: directory } = Arguments::parse();
    let start = Instant::now();
    let time = Duration::from_secs(seconds);
    let report = match directory {
        Some(directory) => collect(&directory, sequences),
        None => fuzz(&Options { seed, time, sequences, mistake: None, shrink: true }),
    };
    match report {
        Ok(report) => {
            print(&report, start.elapsed());
            if report.difference.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print(report: &Report, time: Duration) {
    for reason in Reason::ALL {
        println!("  {:>12}  {}", report.reasons[*reason as usize], reason.label());
    }
    let seconds = time.as_secs_f64();
    let rate = u128::from(report.packets) * 1_000_000 / time.as_micros().max(1);
    let differences = u8::from(report.difference.is_some());
    println!(
        "fuzz: {} packets in {} sequences, {seconds:.1} s, {rate} packets/s, {differences} differences",
        report.packets, report.sequences
    );
    if let Some(difference) = &report.difference {
        println!("\n{difference}");
    }
}
