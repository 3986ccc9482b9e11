//! `cargo xtask bench`'s program: what the balancer costs, beside what would be used instead.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use tests::bench::{
    control::{self, control},
    figures::Report,
    flood::{self, flood},
    instructions::instructions,
    lab::{self, lab},
    packet::{Options, packet},
    profile::profile,
    scale::{self, scale},
    veth::{self, veth},
};

/// Measures the built balancer.
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
    /// Run another build's bench by turns with this one, and print the ratios
    #[arg(long, global = true, value_name = "PROGRAM")]
    beside: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Suite {
    /// What a packet costs in the program, in nanoseconds of one core
    Packet {
        /// Packets of one kind in a round
        #[arg(long, default_value_t = 400_000)]
        repeat: u32,
    },
    /// What a packet takes of the program in instructions, and where; one round says it all
    Instructions,
    /// The source lines of what a packet executes, and the program as the kernel has it, in files
    Profile {
        /// Write them into this directory
        #[arg(long, value_name = "DIR")]
        into: PathBuf,
    },
    /// Frames a second over a cable of veth devices, beside plain `XDP_TX`
    Veth {
        /// Frames of one kind in a round
        #[arg(long, default_value_t = 1_000_000)]
        frames: u32,
    },
    /// A packet's cost and memory against services, servers, sticky records and flows
    Scale {
        /// Packets of one kind in a round
        #[arg(long, default_value_t = 200_000)]
        repeat: u32,
        /// Draw the curves into this directory
        #[arg(long, value_name = "DIR")]
        svg: Option<PathBuf>,
    },
    /// Spoofed SYNs, forged ACKs, fragments and malformed packets beside clients at work
    Flood {
        /// Packets of one kind in a round, where their cost is measured
        #[arg(long, default_value_t = 200_000)]
        repeat: u32,
    },
    /// Changes: a drain, a table for 1,000 servers, 4,096 services, a restart with a million flows; the idle daemon
    Control {
        /// Drains by each way in a round
        #[arg(long, default_value_t = 5)]
        drains: usize,
    },
    /// Connections, requests and downloads through the lab, beside HAProxy and nftables
    Lab {
        /// Hundredths of the usual number of requests, connections and downloads
        #[arg(long, default_value_t = 100)]
        percent: usize,
    },
}

impl Suite {
    const fn name(&self) -> &'static str {
        match self {
            Self::Packet { .. } => "packet",
            Self::Instructions => "instructions",
            Self::Profile { .. } => "profile",
            Self::Veth { .. } => "veth",
            Self::Scale { .. } => "scale",
            Self::Flood { .. } => "flood",
            Self::Control { .. } => "control",
            Self::Lab { .. } => "lab",
        }
    }
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
    let report = match &arguments.beside {
        None => measure(arguments)?,
        Some(other) => by_turns(arguments, other)?,
    };
    print!("{}", report.text());
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Report> {
    match arguments.suite {
        Suite::Packet { repeat } => packet(Options { rounds: arguments.rounds, repeat }),
        Suite::Instructions => instructions(),
        Suite::Profile { ref into } => profile(into),
        Suite::Veth { frames } => veth(veth::Options { rounds: arguments.rounds, frames }),
        Suite::Scale { repeat, ref svg } => {
            scale(&scale::Options { rounds: arguments.rounds, repeat, svg: svg.clone() })
        }
        Suite::Flood { repeat } => flood(flood::Options { rounds: arguments.rounds, repeat }),
        Suite::Control { drains } => control(control::Options { rounds: arguments.rounds, drains }),
        Suite::Lab { percent } => lab(lab::Options { rounds: arguments.rounds, percent }),
    }
}

/// A round of each build after the other, as often as there are rounds.
fn by_turns(arguments: &Arguments, other: &Path) -> Result<Report> {
    let own = env::current_exe().context("where is this program?")?;
    let directory = tempfile::tempdir()?;
    let (mut ours, mut others) = (Report::default(), Report::default());
    for _ in 0..arguments.rounds {
        for (program, sum) in [(own.as_path(), &mut ours), (other, &mut others)] {
            let json = directory.path().join("round.json");
            let mut command = Command::new(program);
            command.args([arguments.suite.name(), "--rounds", "1", "--json"]).arg(&json);
            let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
            ensure!(
                output.status.success(),
                "{}: {}",
                program.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
            let text = fs::read_to_string(&json)?;
            sum.extend(serde_json::from_str(&text).context("the other build writes other results")?);
        }
    }
    Ok(ours.beside(&others))
}
