//! The balancer's daemon and command line inside the lab.

use std::{
    env,
    fs::{self, OpenOptions},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    namespace::command,
    places::{Places, built_program},
};

/// Only a daemon that hangs takes so long: where twenty others want the same two cores, the kernel's verifier needs more
/// than half a minute. In an emulated machine it takes longer still: there `STEADFAST_LAB_STARTS_WITHIN` says how many seconds.
const STARTS_WITHIN: Duration = Duration::from_secs(120);
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Starts `steadfastd run`, as this program, and waits until the command line can talk to it.
pub(super) fn start(namespace: &str, places: &Places, program: &Path, extra: &[&str]) -> Result<Child> {
    let mut daemon = command(namespace, program, ["run", "--config"]);
    daemon.envs(environment(places)).arg(places.config()).args(extra);
    let log = OpenOptions::new().create(true).append(true).open(places.daemon_log())?;
    daemon.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = daemon.spawn().context("cannot start steadfastd")?;
    if let Err(error) = wait_until_ready(namespace, places, &mut child) {
        // It is the failed start that is reported.
        let _ = child.kill();
        let _ = child.wait();
        bail!("steadfastd did not become ready: {error:#}; the end of its log:\n{}", log_end(places));
    }
    Ok(child)
}

fn wait_until_ready(namespace: &str, places: &Places, child: &mut Child) -> Result<()> {
    let start = Instant::now();
    let within = starts_within()?;
    let mut last = String::from("no socket in its runtime directory accepts a connection");
    while start.elapsed() < within {
        if let Some(status) = child.try_wait()? {
            bail!("it ended: {status}");
        }
        // The tables can be read without a daemon: it is this one that must be there.
        if accepts(&places.runtime) {
            let shown = cli(namespace, places, &["vip", "show", "-j"])?;
            if shown.status.success() {
                return Ok(());
            }
            last = String::from_utf8_lossy(&shown.stderr).trim_end().to_owned();
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("not within {within:?}: {last}")
}

/// How long a daemon may take until it can be talked to.
///
/// # Errors
/// The environment's number is none.
pub fn starts_within() -> Result<Duration> {
    match env::var("STEADFAST_LAB_STARTS_WITHIN") {
        Ok(seconds) => {
            let seconds = seconds.parse().context("STEADFAST_LAB_STARTS_WITHIN is no number of seconds")?;
            Ok(Duration::from_secs(seconds))
        }
        Err(_) => Ok(STARTS_WITHIN),
    }
}

/// Whether a unix socket in the directory has somebody behind it.
fn accepts(runtime: &Path) -> bool {
    let Ok(entries) = fs::read_dir(runtime) else {
        return false;
    };
    entries.flatten().any(|entry| UnixStream::connect(entry.path()).is_ok())
}

/// Sends a signal and waits until the daemon has ended; after 10 s it is killed and that is an error.
pub(super) fn end(child: &mut Child, signal: Signal) -> Result<ExitStatus> {
    kill(Pid::from_raw(i32::try_from(child.id())?), signal).context("cannot signal steadfastd")?;
    let start = Instant::now();
    while start.elapsed() < ENDS_WITHIN {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()?;
    bail!("steadfastd was still there {ENDS_WITHIN:?} after {signal}")
}

/// Runs `steadfast` in the balancer's namespace.
pub(super) fn cli(namespace: &str, places: &Places, args: &[&str]) -> Result<Output> {
    let mut steadfast = in_lab(namespace, places, "steadfast", args)?;
    steadfast.stdin(Stdio::null()).output().context("cannot start steadfast")
}

/// One of the balancer's programs, in its namespace, told where this lab keeps things.
pub(super) fn in_lab(namespace: &str, places: &Places, program: &str, args: &[&str]) -> Result<Command> {
    let mut command = command(namespace, built_program(program)?, args);
    command.envs(environment(places));
    Ok(command)
}

/// How the balancer's programs find this lab's pins and directories.
pub(super) fn environment(places: &Places) -> [(&'static str, &Path); 3] {
    [
        ("STEADFAST_PIN_DIR", &places.pins),
        ("STEADFAST_RUNTIME_DIR", &places.runtime),
        ("STEADFAST_STATE_DIR", &places.state),
    ]
}

/// `steadfastd` of this build.
pub(super) fn built() -> Result<PathBuf> {
    built_program("steadfastd")
}

/// The last lines of the daemon's log.
pub(super) fn log_end(places: &Places) -> String {
    let log = fs::read(places.daemon_log()).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
