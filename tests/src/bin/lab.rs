//! `cargo xtask run`'s lab: the whole of it with the balancer running, until Ctrl-C.

use std::{
    env,
    ffi::OsString,
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use nix::{
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::Pid,
};
use serde::Deserialize;
use tests::lab::{HYPERSPACE, Lab, LabOptions, MYCHART, Ns, bin_dir, namespace_path, sweep, unblock_signals};

/// A check of the example's is made every 2 s, and twice for a verdict.
const VERDICTS_WITHIN: Duration = Duration::from_secs(30);

/// The lab: a client host, the balancer and five servers in network namespaces on this machine.
#[derive(Parser)]
struct Arguments {
    /// Run CMD in a shell once the lab is up, then end with its exit code
    #[arg(long, value_name = "CMD", conflicts_with = "clean")]
    script: Option<OsString>,
    /// Remove what labs left behind that were killed
    #[arg(long)]
    clean: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = if arguments.clean { clean() } else { run(arguments.script) };
    outcome.unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn clean() -> Result<ExitCode> {
    let swept = sweep()?;
    match swept.as_slice() {
        [] => println!("clean: no lab was left behind"),
        names => println!("clean: removed {}", names.join(", ")),
    }
    Ok(ExitCode::SUCCESS)
}

fn run(script: Option<OsString>) -> Result<ExitCode> {
    // Blocked from the start: a Ctrl-C while the lab is being built is seen once it is up, and nothing is left behind.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;

    println!("lab: building the network");
    let mut lab = Lab::new(LabOptions::default())?;
    println!("lab: starting the servers");
    lab.start_all_nginx()?;
    println!("lab: starting the balancer");
    lab.start_daemon(&[])?;
    println!("lab: waiting for the first health checks");
    wait_for_verdicts(&lab)?;
    for object in ["vip", "server"] {
        print!("\n{}", shown(&lab, &[object, "show"])?);
    }
    if let Some(script) = script {
        return run_script(&lab, script, &signals);
    }
    print!("\n{}", commands(&lab)?);
    println!("\nCtrl-C ends the lab and removes all of it.");
    let signal = signals.wait().context("cannot wait for a signal")?;
    println!("lab: {signal}, removing everything");
    Ok(ExitCode::SUCCESS)
}

/// The first overview is to say how things are, not that nothing is known yet. A server that does not answer in time is
/// shown as it is.
fn wait_for_verdicts(lab: &Lab) -> Result<()> {
    let end = Instant::now() + VERDICTS_WITHIN;
    while Instant::now() < end {
        let servers: Vec<Checked> = serde_json::from_str(&shown(lab, &["server", "show", "-j"])?)?;
        if servers.iter().all(|server| server.health != "unknown") {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// What is waited for of a server's record.
#[derive(Deserialize)]
struct Checked {
    health: String,
}

fn shown(lab: &Lab, args: &[&str]) -> Result<String> {
    let output = lab.cli(args)?;
    if !output.status.success() {
        bail!(
            "`steadfast {}` failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What is worth trying, ready to be pasted into another shell.
fn commands(lab: &Lab) -> Result<String> {
    let sudo = if env::var_os("SUDO_USER").is_some() { "sudo " } else { "" };
    let client = format!("{sudo}nsenter --net=/run/netns/{}", lab.namespace(Ns::Client));
    // An alias, because it has to hold in any shell: the program is on nobody's PATH, and sudo keeps no environment.
    let places = lab.environment().map(|(name, value)| format!("{name}={} ", value.display())).concat();
    let steadfast = bin_dir()?.join("steadfast");
    let alias = format!("alias steadfast='{sudo}env {places}{}'", steadfast.display());
    let lines = [
        (
            "a clinician's connection; it is the same server every time",
            format!("{client} curl -sk https://{HYPERSPACE}/"),
        ),
        (
            "another clinician, perhaps another server",
            format!("{client} curl -sk --interface 10.85.0.7 https://{HYPERSPACE}/"),
        ),
        ("a patient, sent from port 80 to 443", format!("{client} curl -sI http://{MYCHART}/")),
        ("why this client is on that server", "steadfast explain 192.168.85.100".to_owned()),
        ("no new clients for this server", "steadfast server drain Hyperspace/Hyperspace_Srv_1".to_owned()),
        ("who is on which server", "steadfast server show".to_owned()),
        ("and back", "steadfast server online Hyperspace/Hyperspace_Srv_1".to_owned()),
        ("what happened to every packet", "steadfast stats".to_owned()),
    ];
    let mut text = format!(
        "In another shell, once, so that `steadfast` is this lab's:\n  {alias}\nThen worth trying there:\n"
    );
    for (why, command) in lines {
        text.push_str(&format!("  # {why}\n  {command}\n"));
    }
    Ok(text)
}

/// The script finds the programs on its PATH and the client host's namespace in `STEADFAST_LAB_CLIENT`.
fn run_script(lab: &Lab, script: OsString, signals: &SigSet) -> Result<ExitCode> {
    let mut path = bin_dir()?.into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).env("PATH", path);
    shell.env("STEADFAST_LAB_CLIENT", namespace_path(&lab.namespace(Ns::Client))).envs(lab.environment());
    unblock_signals(&mut shell);
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(signals, flags).context("cannot watch for signals")?;
    let mut shell = shell.spawn().context("cannot start sh")?;
    loop {
        if let Some(status) = shell.try_wait()? {
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        if signals.read_signal().context("cannot read a signal")?.is_some() {
            // A Ctrl-C reached it already, a signal to us alone did not.
            kill(Pid::from_raw(i32::try_from(shell.id())?), Signal::SIGTERM)?;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
