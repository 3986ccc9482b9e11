//! `cargo xtask bench`: what the balancer costs, beside what would be used instead.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::{build, command::Cmd, privilege::Privilege, setup, workspace::Workspace};

const WHY: &str = "to load the XDP program";

#[derive(Args)]
pub(crate) struct Arguments {
    /// What to measure
    #[arg(value_enum, default_value_t = Suite::Packet)]
    suite: Suite,
    /// Rounds, in each of which everything is run once
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Write the results to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the curves of scale into this directory
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Hundredths of the usual number of requests, connections and downloads of lab
    #[arg(long)]
    percent: Option<u32>,
    /// Build this revision as well, run both by turns, and print the ratios of the two
    #[arg(long, value_name = "REV")]
    compare: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// A packet in the program, in nanoseconds of one core
    Packet,
    /// A packet in the program, in instructions, and where they come from: whatever else the machine does
    Instructions,
    /// The source lines of what a packet executes, and the program as the kernel has it, in files below `target/profile`
    Profile,
    /// Frames a second over a cable of veth devices, beside plain `XDP_TX`
    Veth,
    /// A packet's cost and memory against services, servers, sticky records and flows
    Scale,
    /// Spoofed SYNs, forged ACKs, fragments and malformed packets beside clients at work
    Flood,
    /// Changes: a drain, a table for 1,000 servers, 4,096 services, a restart with a million flows; the idle daemon
    Control,
    /// Connections, requests and bulk through the lab, beside HAProxy and nftables
    Lab,
}

impl Suite {
    const fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Instructions => "instructions",
            Self::Profile => "profile",
            Self::Veth => "veth",
            Self::Scale => "scale",
            Self::Flood => "flood",
            Self::Control => "control",
            Self::Lab => "lab",
        }
    }

    /// Whether it starts the balancer's programs.
    const fn runs_the_daemon(self) -> bool {
        matches!(self, Self::Flood | Self::Control | Self::Lab)
    }

    const fn needs_haproxy(self) -> bool {
        matches!(self, Self::Control | Self::Lab)
    }

    /// The arguments with which cargo builds what is run. Both packages are named for both: what is built for one is of use
    /// to the other.
    fn build(self) -> Vec<&'static str> {
        let mut build = vec!["build", "--release", "--package", "tests", "--package", "lb-userspace"];
        build.extend(["--bin", "bench"]);
        if self.runs_the_daemon() {
            build.extend(["--bin", "steadfastd", "--bin", "steadfast"]);
        }
        build
    }
}

pub(crate) fn bench(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.svg.is_none() || arguments.suite == Suite::Scale,
        "--svg is of scale: {} draws no curves",
        arguments.suite.name()
    );
    ensure!(
        arguments.percent.is_none() || arguments.suite == Suite::Lab,
        "--percent is of lab: {} has no requests",
        arguments.suite.name()
    );
    let privilege = Privilege::require(WHY)?;
    setup::setup(workspace)?;
    build::objects(workspace)?;
    if arguments.suite.needs_haproxy() {
        setup::haproxy::install(workspace)?;
    }
    if arguments.suite == Suite::Profile {
        ensure!(arguments.compare.is_none(), "--compare is of what is measured: profile gives files");
        setup::bpftool::install(workspace)?;
    }
    workspace.cargo().args(arguments.suite.build()).run()?;
    let program = workspace.program("release", "bench");
    let mut bench = privilege.command(program, WHY)?;
    bench.arg(arguments.suite.name()).args(["--rounds", &arguments.rounds.to_string()]);
    if let Some(path) = &arguments.json {
        bench.arg("--json").arg(path);
    }
    if arguments.suite == Suite::Profile {
        bench.arg("--into").arg(workspace.target().join("profile"));
    }
    if let Some(directory) = &arguments.svg {
        bench.arg("--svg").arg(directory);
    }
    if let Some(percent) = arguments.percent {
        bench.args(["--percent", &percent.to_string()]);
    }
    if let Some(revision) = &arguments.compare {
        bench.arg("--beside").arg(build_other(workspace, arguments.suite, revision)?);
    }
    if !bench.status()?.success() {
        bail!("the bench did not come to an end: see above");
    }
    Ok(())
}

/// Builds the bench of another revision, in a working tree and a target directory of its own; gives the program.
fn build_other(workspace: &Workspace, suite: Suite, revision: &str) -> Result<PathBuf> {
    let git = |arguments: &[&str]| {
        let mut git = Cmd::new("git");
        git.dir(workspace.root()).args(arguments);
        git
    };
    let commit = git(&["rev-parse", "--verify", "--short", &format!("{revision}^{{commit}}")])
        .output()
        .with_context(|| format!("there is no revision {revision}"))?;
    let commit = commit.trim();
    let place = workspace.target().join("compare").join(commit);
    let (tree, target) = (place.join("tree"), place.join("target"));
    if !tree.exists() {
        fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
        let tree = tree.to_string_lossy();
        git(&["worktree", "add", "--quiet", "--detach", &tree, commit]).run()?;
        // The linker is the same, and takes a minute to build.
        let tools = target.join("tools");
        symlink(workspace.tools(), &tools).with_context(|| format!("cannot create {}", tools.display()))?;
    }
    ensure!(
        tree.join("tests/src/bin/bench.rs").exists(),
        "{revision} ({commit}) has no bench yet: compare with a later one"
    );
    println!("build: {revision} ({commit}) in {}", tree.display());
    let cargo = |arguments: &[&str]| {
        let mut cargo = workspace.cargo();
        cargo.dir(&tree).env("CARGO_TARGET_DIR", &target).args(arguments).run()
    };
    cargo(&["run", "--quiet", "--package", "xtask", "--", "build"])?;
    cargo(&suite.build())?;
    Ok(target.join("release/bench"))
}
