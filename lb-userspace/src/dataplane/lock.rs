//! One daemon at a time: a lock on the pin directory, which the kernel lets go when its holder ends in whatever way.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use anyhow::{Context as _, anyhow, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::stat::{major, minor},
};

/// The lock; it lasts as long as this value.
pub(super) struct Lock {
    directory: Flock<File>,
}

impl Lock {
    /// Takes the lock of a pin directory that exists.
    ///
    /// # Errors
    /// Another process has it.
    pub(super) fn take(pin_dir: &Path) -> anyhow::Result<Self> {
        for _ in 0..3 {
            let file = File::open(pin_dir).with_context(|| format!("cannot open {}", pin_dir.display()))?;
            let locked = file.metadata()?;
            let directory =
                Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
                    Errno::EWOULDBLOCK => taken(pin_dir, &locked),
                    error => anyhow!("cannot lock {}: {}", pin_dir.display(), error.desc()),
                })?;
            // Whoever had it before may have removed the directory and another have made it anew.
            let same =
                fs::metadata(pin_dir).is_ok_and(|now| now.ino() == locked.ino() && now.dev() == locked.dev());
            if same {
                return Ok(Self { directory });
            }
        }
        bail!("{} is being removed by another process: try again", pin_dir.display())
    }
}

fn taken(pin_dir: &Path, locked: &fs::Metadata) -> anyhow::Error {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let who = match holder(&locks, locked) {
        Some(process) => format!("process {process}"),
        None => "another process".to_owned(),
    };
    anyhow!(
        "{who} runs the data path under {} already: there can be one steadfastd for each pin directory; \
         stop that one first (the data path goes on without it), or use another --pin-dir",
        pin_dir.display()
    )
}

impl Lock {
    /// Whether the directory is still the one that is locked: others may have removed it, and made it anew.
    pub(super) fn is_of(&self, pin_dir: &Path) -> bool {
        let (Ok(locked), Ok(now)) = (self.directory.metadata(), fs::metadata(pin_dir)) else { return false };
        (locked.dev(), locked.ino()) == (now.dev(), now.ino())
    }
}

/// Who holds the lock, by /proc/locks: `1: FLOCK  ADVISORY  WRITE 12345 00:1f:2 0 EOF`.
fn holder(locks: &str, locked: &fs::Metadata) -> Option<u32> {
    let device = locked.dev();
    let file = format!("{:02x}:{:02x}:{}", major(device), minor(device), locked.ino());
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, process, lock, ..] if *lock == file => process.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_who_is_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let first = Lock::take(directory.path()).unwrap();
        let error = Lock::take(directory.path()).map(drop).unwrap_err().to_string();
        let own = format!("process {} runs", std::process::id());
        assert!(error.contains(&own), "{error}");
        drop(first);
        Lock::take(directory.path()).map(drop).unwrap();
    }
}
