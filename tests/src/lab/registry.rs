//! Which labs exist, whose they are, and how one is removed: the same way by its owner's drop and after its owner's death.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    namespace,
    places::{Places, REGISTRY},
};

const OWNER: &str = "owner";
const OUTSIDE: &str = "outside";

/// Makes the lab's directory and writes down who owns it and what else goes with it.
pub(super) fn register(name: &str, places: &Places) -> Result<()> {
    let owner = Owner::of(process::id()).context("this process has no entry in /proc")?;
    let partial = Path::new(REGISTRY).join(format!(".{name}"));
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    fs::write(partial.join(OWNER), owner.to_text())?;
    let outside = places.outside().map(|path| path.display().to_string()).join("\n");
    fs::write(partial.join(OUTSIDE), outside)?;
    // Renamed whole: nobody finds a lab without an owner. It fails if there is one of that name.
    if let Err(error) = fs::rename(&partial, &places.dir) {
        fs::remove_dir_all(&partial)?;
        bail!("the lab {name} is up already ({}): {error}", places.dir.display());
    }
    Ok(())
}

/// Removes labs whose process is gone, and returns their names.
///
/// # Errors
/// Something could not be removed.
pub fn sweep() -> Result<Vec<String>> {
    let registry = match File::open(REGISTRY) {
        Ok(registry) => registry,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot open {REGISTRY}")),
    };
    // Labs that start together would else trip over each other's removals.
    let _sweeping = Flock::lock(registry, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {REGISTRY}"))?;
    let entries = fs::read_dir(REGISTRY).with_context(|| format!("cannot read {REGISTRY}"))?;
    let mut swept = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let owner =
            fs::read_to_string(entry.path().join(OWNER)).ok().and_then(|text| Owner::from_text(&text));
        // Without an owner it is being made, or its own process is removing it.
        let Some(owner) = owner else { continue };
        if !owner.is_alive() {
            remove(&name, &entry.path())?;
            swept.push(name);
        }
    }
    Ok(swept)
}

/// Removes a lab: its processes, its pins and directories, its namespaces, and last its entry here.
pub(super) fn remove(name: &str, dir: &Path) -> Result<()> {
    let namespaces = namespaces(name)?;
    for namespace in &namespaces {
        end_processes(namespace)?;
    }
    let outside = fs::read_to_string(dir.join(OUTSIDE)).unwrap_or_default();
    for path in outside.lines().map(Path::new) {
        remove_tree(path)?;
    }
    for namespace in &namespaces {
        delete(namespace)?;
    }
    remove_tree(dir)
}

/// The lab's namespaces: its name, a dash, and a host's.
fn namespaces(name: &str) -> Result<Vec<PathBuf>> {
    let prefix = format!("{name}-");
    let Ok(entries) = fs::read_dir(namespace::path("")) else {
        return Ok(Vec::new());
    };
    let mut namespaces = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            namespaces.push(entry.path());
        }
    }
    Ok(namespaces)
}

/// Kills what runs inside a namespace of the lab: nothing else ever enters one.
fn end_processes(namespace: &Path) -> Result<()> {
    for _ in 0..200 {
        let inside = processes(namespace);
        if inside.is_empty() {
            return Ok(());
        }
        for pid in inside {
            // One that has ended meanwhile is as wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
    bail!("processes in {} survive SIGKILL", namespace.display())
}

fn processes(namespace: &Path) -> Vec<i32> {
    let Ok(wanted) = fs::metadata(namespace) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = i32::try_from(process::id()).unwrap_or_default();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| pid != own)
        .filter(|pid| {
            let its = fs::metadata(format!("/proc/{pid}/ns/net"));
            its.is_ok_and(|its| (its.dev(), its.ino()) == (wanted.dev(), wanted.ino()))
        })
        .collect()
}

fn delete(namespace: &Path) -> Result<()> {
    let Some(name) = namespace.file_name() else {
        return Ok(());
    };
    let mut ip = namespace::host_command("ip", ["netns", "delete"]);
    ip.arg(name);
    let output = ip.output().context("cannot start ip")?;
    if !output.status.success() && namespace.exists() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("cannot delete {}: {}", namespace.display(), complaint.trim_end());
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A process, told apart from a later one of the same number by its start, in clock ticks after boot.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    pid: u32,
    start: u64,
}

impl Owner {
    /// None also of a process that has ended and is not yet waited for.
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold spaces; after it come fields 3, the state, to 22, the start (proc(5)).
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let state = fields.next()?;
        let start = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, start })
    }

    fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    fn to_text(&self) -> String {
        format!("{} {}\n", self.pid, self.start)
    }

    fn from_text(text: &str) -> Option<Self> {
        let (pid, start) = text.trim_end().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_alive_until_its_number_belongs_to_another_start() {
        let owner = Owner::of(process::id()).unwrap();
        assert!(owner.is_alive());
        assert_eq!(Owner::from_text(&owner.to_text()), Some(Owner { ..owner }));
        let later = Owner::of(process::id()).map(|owner| Owner { start: owner.start + 1, ..owner }).unwrap();
        assert!(!later.is_alive());
    }

    #[test]
    fn a_dead_process_owns_nothing_even_before_it_is_waited_for() {
        let mut child = process::Command::new("sleep").arg("1000").spawn().unwrap();
        let owner = Owner::of(child.id()).unwrap();
        child.kill().unwrap();
        let start = std::time::Instant::now();
        while owner.is_alive() {
            assert!(start.elapsed() < Duration::from_secs(60), "a killed process is alive");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(Path::new(&format!("/proc/{}", child.id())).exists());
        child.wait().unwrap();
    }
}
