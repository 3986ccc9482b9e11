//! `cargo xtask bench`'s program: what the balancer costs, beside what would be used instead.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tests::bench::{
    figures::Report,
    packet::{Options, packet},
};

/// Measures the built XDP program.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    suite: Suite,
    /// Rounds, in each of which everything is run once
    #[arg(long, global = true, default_value_t = 9)]
    rounds: usize,
    /// Write the results to this file, too
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Suite {
    /// What a packet costs in the program, in nanoseconds of one core
    Packet {
        /// Packets of one kind in a round
        #[arg(long, default_value_t = 400_000)]
        repeat: u32,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let report: Report = match arguments.suite {
        Suite::Packet { repeat } => packet(Options { rounds: arguments.rounds, repeat })?,
    };
    print!("{}", report.text());
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
