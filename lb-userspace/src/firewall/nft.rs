//! The program `nft`, which speaks to the kernel for us.

use std::ffi::OsStr;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::{env, fmt};

use anyhow::{Context as _, bail};
use tracing::{info, warn};

use super::{Guarded, InForce, Report, TABLE, read};

/// `nft` is not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing;

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the program nft is missing, so no firewall rule keeps the host from resetting connections while the XDP \
             program is off its interface: install it (`apt-get install nftables`)",
        )
    }
}

impl std::error::Error for Missing {}

/// Daemons often have no sbin in their PATH.
fn program() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    directories.map(|directory| directory.join("nft")).find(|program| program.is_file())
}

fn nft<S: AsRef<OsStr>>(arguments: &[S], input: &str) -> anyhow::Result<Output> {
    let mut child = Command::new(program().ok_or(Missing)?)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start nft")?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It has ended without reading: what it says tells why.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    Ok(child.wait_with_output()?)
}

fn check(what: &str, output: &Output) -> anyhow::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("nft could not {what} the table {TABLE}: {}", said.lines().next().unwrap_or("it said nothing"))
}

/// Our table in this network namespace, if it is there.
///
/// # Errors
/// [`Missing`], or `nft` failed.
pub fn look() -> anyhow::Result<Option<InForce>> {
    let (family, name) = TABLE.split_once(' ').unwrap_or((TABLE, ""));
    let output = nft(&["-j", "list", "table", family, name], "")?;
    if !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("No such file") {
        return Ok(None);
    }
    check("list", &output)?;
    read(&output.stdout).map(Some)
}

/// Puts the table in force, whatever was in its place.
///
/// # Errors
/// [`Missing`], or `nft` refused: nothing was changed then.
pub fn put(guarded: &Guarded) -> anyhow::Result<()> {
    let script = guarded.script();
    let changed = nft(&["-f", "-"], &script)?;
    if changed.status.success() && look()?.is_some_and(|there| there.is(&guarded.expected())) {
        return Ok(());
    }
    // Somebody has made of it what cannot be changed into this.
    check("make", &nft(&["-f", "-"], &format!("add table {TABLE}\ndelete table {TABLE}\n{script}"))?)
}

/// Removes the table. Says whether it was there.
///
/// # Errors
/// `nft` refused.
pub fn remove() -> anyhow::Result<bool> {
    match look() {
        Err(error) if error.is::<Missing>() => Ok(false),
        Err(error) => Err(error),
        Ok(None) => Ok(false),
        Ok(Some(_)) => {
            check("remove", &nft(&["-f", "-"], &format!("delete table {TABLE}\n"))?)?;
            Ok(true)
        }
    }
}

/// Keeps the table in step with what the program takes.
#[derive(Debug, Default)]
pub struct Follower {
    /// What was said last, so that it is said once.
    trouble: Option<String>,
}

impl Follower {
    /// Makes the table hold this, and says how it stands, or why it does not. It waits for `nft`, some milliseconds.
    ///
    /// # Errors
    /// What is in the way; it is logged when it is new.
    pub fn follow(&mut self, guarded: &Guarded) -> Result<Report, String> {
        let result = bring_about(guarded).map_err(|error| format!("{error:#}"));
        let trouble = result.as_ref().err().cloned();
        if let Some(trouble) = trouble.as_ref().filter(|trouble| self.trouble.as_ref() != Some(*trouble)) {
            warn!("{trouble}");
        }
        self.trouble = trouble;
        result
    }
}

fn bring_about(guarded: &Guarded) -> anyhow::Result<Report> {
    let report = Report::of(look()?.as_ref(), guarded);
    if report.in_force {
        return Ok(report);
    }
    put(guarded)?;
    info!(
        "the firewall table {TABLE} guards {} service and {} server ports: a gap of the program is a retransmission, not \
         a reset",
        guarded.services.len(),
        guarded.servers.len() + guarded.nat_servers.len()
    );
    Ok(Report { in_force: true, from_clients: 0, from_servers: 0 })
}
