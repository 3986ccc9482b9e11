//! `cargo xtask test`: every rung of the ladder, from pure logic on the host to packets through the lab.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build,
    command::{Cmd, find_program},
    privilege::Privilege,
    setup,
    workspace::Workspace,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Write what was skipped to FILE, too, a line each
    #[arg(long, value_name = "FILE")]
    skipped: Option<PathBuf>,
}

/// One step of the ladder; it may take a filter of test names.
type Rung = fn(&Workspace, Option<&str>) -> Result<Outcome>;

/// How a rung ended.
enum Outcome {
    Passed,
    Failed,
    Skipped(&'static str),
}

pub(crate) fn test(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    Privilege::require("for tests that load the XDP program and make network namespaces")?;
    setup::setup(workspace)?;
    build::build(workspace, &build::Arguments { release: false })?;
    let filter = arguments.filter.as_deref();
    let rungs: [(&str, Rung); 5] = [
        ("host: pure logic of the data path", host),
        (
            "user space: configuration, plans, health checks, netlink (as root, in namespaces of their own)",
            user_space,
        ),
        ("loom: every interleaving of the tables' atomics", loom),
        ("miri: undefined behaviour in the shared code", miri),
        ("root: packets, the lab, end to end", root),
    ];
    let mut results = Vec::new();
    for (name, rung) in rungs {
        println!("\n=== {name}");
        let start = Instant::now();
        let outcome = rung(workspace, filter).unwrap_or_else(|error| {
            println!("{error:#}");
            Outcome::Failed
        });
        results.push((name, outcome, start.elapsed()));
    }
    println!("\n=== summary\n{}", table(&results));
    let skipped = skipped(&results);
    if let Some(file) = &arguments.skipped {
        let lines = skipped.iter().map(|line| format!("{line}\n")).collect::<String>();
        fs::write(file, lines).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let failed = results.iter().filter(|(_, outcome, _)| matches!(outcome, Outcome::Failed)).count();
    if failed > 0 {
        bail!("{failed} of {} rungs failed", results.len());
    }
    println!("\n{}", verdict(&skipped));
    Ok(())
}

/// The last words of a run without a failure: what was not run is not passed over.
fn verdict(skipped: &[String]) -> String {
    if skipped.is_empty() {
        return "test: all rungs passed".to_owned();
    }
    format!("test: the others passed; skipped were\n  {}", skipped.join("\n  "))
}

fn skipped(results: &[(&str, Outcome, Duration)]) -> Vec<String> {
    let skipped = results.iter().filter_map(|(name, outcome, _)| match outcome {
        Outcome::Skipped(why) => Some(format!("{name}: {why}")),
        Outcome::Passed | Outcome::Failed => None,
    });
    skipped.collect()
}

fn table(results: &[(&str, Outcome, Duration)]) -> String {
    let line = |(name, outcome, time): &(&str, Outcome, Duration)| {
        let seconds = time.as_secs_f64();
        match outcome {
            Outcome::Passed => format!("  passed  {seconds:7.1} s  {name}"),
            Outcome::Failed => format!("  FAILED  {seconds:7.1} s  {name}"),
            Outcome::Skipped(_) => format!("  skipped            {name}"),
        }
    };
    results.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn host(workspace: &Workspace, filter: Option<&str>) -> Result<Outcome> {
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--no-fail-fast", "--package", "lb-common", "--package", "xtask"]).args(filter);
    outcome_of(&mut cargo)
}

fn user_space(workspace: &Workspace, filter: Option<&str>) -> Result<Outcome> {
    as_root(workspace, "lb-userspace", filter)
}

/// The models are compiled with another `cfg`, so they have a target directory of their own.
fn loom(workspace: &Workspace, filter: Option<&str>) -> Result<Outcome> {
    let command = || {
        let mut cargo = workspace.cargo();
        cargo.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", workspace.target().join("loom"));
        cargo.args(["test", "--package", "lb-common", "--release", "--lib", "--"]).arg("loom");
        cargo
    };
    if !command().arg("--list").output()?.contains(": test") {
        return Ok(Outcome::Skipped("lb-common has no test with `loom` in its name"));
    }
    if filter.is_some_and(|filter| !filter.contains("loom")) {
        return Ok(Outcome::Skipped("the filter does not name it"));
    }
    outcome_of(&mut command())
}

fn miri(workspace: &Workspace, filter: Option<&str>) -> Result<Outcome> {
    if !Cmd::new("rustup").args(["run", "nightly", "cargo", "miri", "--version"]).succeeds() {
        return Ok(Outcome::Skipped(
            "miri is not installed (`rustup toolchain install nightly --component miri,rust-src`)",
        ));
    }
    let mut cargo = workspace.foreign_cargo("rustup");
    cargo.env("CARGO_TARGET_DIR", workspace.target().join("miri"));
    cargo.args(["run", "nightly", "cargo", "miri", "test", "--package", "lb-common", "--lib"]).args(filter);
    outcome_of(&mut cargo)
}

fn root(workspace: &Workspace, filter: Option<&str>) -> Result<Outcome> {
    as_root(workspace, "tests", filter)
}

/// Compiled as the user, run as root.
fn as_root(workspace: &Workspace, package: &str, filter: Option<&str>) -> Result<Outcome> {
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--no-fail-fast", "--package", package]).args(filter);
    match Privilege::find() {
        Privilege::Root => {}
        Privilege::Sudo => {
            cargo.env(runner_variable()?, "sudo -n -E --");
        }
        Privilege::None => bail!("these tests need root: run as root, or run `sudo -v` first"),
    }
    outcome_of(&mut cargo)
}

fn outcome_of(command: &mut Cmd) -> Result<Outcome> {
    Ok(if command.status()?.success() { Outcome::Passed } else { Outcome::Failed })
}

/// Cargo's variable for the program that runs this host's test binaries.
fn runner_variable() -> Result<String> {
    let rustc = find_program("rustc").context("rustc is not on the PATH")?;
    let verbose = Cmd::new(rustc).arg("-vV").output()?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc -vV does not name its host")?;
    Ok(format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_skipped_is_said_last_with_its_reason() {
        let passed = ("host: pure logic", Outcome::Passed, Duration::ZERO);
        assert_eq!(verdict(&skipped(&[passed])), "test: all rungs passed");
        let miri = ("miri: undefined behaviour", Outcome::Skipped("it is not installed"), Duration::ZERO);
        let results = [("host: pure logic", Outcome::Passed, Duration::ZERO), miri];
        let said = verdict(&skipped(&results));
        assert!(said.ends_with("skipped were\n  miri: undefined behaviour: it is not installed"), "{said}");
        assert!(!said.contains("all rungs"), "{said}");
        assert!(!table(&results).contains("installed"), "the reason is said once, at the end");
    }
}
