//! The guard of an attachment on trial: a process of its own that undoes it when the time is over and the daemon, which
//! does so itself while it lives, has not.
//!
//! It is in a session of its own, so that the end of the operator's is nothing to it, and one a runtime directory.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{Pid, setsid};
use tracing::{info, warn};

use super::lock::RunLock;
use crate::dataplane::confirm::{Trial, claim_undoing, trial};
use crate::dataplane::pinned::{self, Access};
use crate::paths::Paths;

/// The hidden command of `steadfastd` that runs it.
pub const COMMAND: &str = "guard";
/// How often it looks.
const LOOKS: Duration = Duration::from_millis(500);
/// How long the daemon, if there is one, has to undo the attachment itself, and then to end when it is told.
const DAEMON_HAS: Duration = Duration::from_secs(4);

/// Starts the guard; nothing happens if one is there already.
///
/// # Errors
/// The process cannot be started.
pub fn start(paths: &Paths) -> anyhow::Result<()> {
    let directory = &paths.runtime_dir;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let log = OpenOptions::new().create(true).append(true).open(directory.join("guard.log"))?;
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    // Dropping the handle ends nothing; the runtime reaps the process when it has ended.
    let _running = tokio::process::Command::new(program)
        .arg("--pin-dir")
        .arg(&paths.pin_dir)
        .arg("--runtime-dir")
        .arg(directory)
        .arg("--state-dir")
        .arg(&paths.state_dir)
        .arg(COMMAND)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot start the guard that undoes an attachment which is not confirmed")?;
    Ok(())
}

/// Waits until the attachment is confirmed, gone, or to be undone. True if the caller has to undo it now: no daemon
/// holds the lock then.
///
/// # Errors
/// The daemon is in the way and does not end.
pub fn wait(paths: &Paths) -> anyhow::Result<bool> {
    leave_session()?;
    let lock = File::create(paths.guard_lock())?;
    let Ok(_only_one) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
        return Ok(false);
    };
    let mut lost_since = None;
    let mut told = String::new();
    loop {
        match look(&paths.pin_dir) {
            Look::Gone | Look::Trial(Trial::Over) => return Ok(false),
            Look::Trial(Trial::Running(_)) => {}
            Look::Unreadable(why) => {
                let why = format!("{why:#}");
                if told != why {
                    warn!("{why}");
                }
                told = why;
            }
            Look::Trial(Trial::Lost) => {
                let since = *lost_since.get_or_insert_with(Instant::now);
                let daemon = RunLock::holder(&paths.lock());
                if daemon.is_none() || since.elapsed() >= DAEMON_HAS {
                    break;
                }
            }
        }
        sleep(LOOKS);
    }
    let maps = pinned::open(&paths.pin_dir, Access::ReadWrite)?;
    if !claim_undoing(maps.control()) {
        return Ok(false);
    }
    info!("the attachment was not confirmed in time: it is undone");
    end_daemon(paths)?;
    Ok(true)
}

/// The operator's session may end, and its terminal with it. Who stops the daemon by its group does not mean the guard.
fn leave_session() -> anyhow::Result<()> {
    setsid().context("cannot leave the session")?;
    for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    Ok(())
}

enum Look {
    Gone,
    Trial(Trial),
    Unreadable(anyhow::Error),
}

fn look(pin_dir: &Path) -> Look {
    // Opened anew each time: a daemon may have put other maps in the place of these.
    let seen = pinned::open(pin_dir, Access::ReadOnly)
        .and_then(|maps| Ok(trial(maps.control(), maps.kernel.jiffies()?)));
    match seen {
        Ok(trial) => Look::Trial(trial),
        Err(_) if !pin_dir.join("maps/CONTROL").exists() => Look::Gone,
        Err(error) => Look::Unreadable(error),
    }
}

/// A daemon that is told to end undoes the attachment itself; one that hangs is killed.
fn end_daemon(paths: &Paths) -> anyhow::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let Some(holder) = RunLock::holder(&paths.lock()) else { return Ok(()) };
        let Ok(pid) = holder.parse() else { bail!("the daemon's process id {holder:?} is no number") };
        // It may have ended in this moment.
        let _ = kill(Pid::from_raw(pid), signal);
        let told = Instant::now();
        while told.elapsed() < DAEMON_HAS {
            if RunLock::holder(&paths.lock()).is_none() {
                return Ok(());
            }
            sleep(Duration::from_millis(50));
        }
    }
    bail!("the daemon does not end: `steadfastd detach` undoes the attachment when it has")
}
