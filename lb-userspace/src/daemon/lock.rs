//! One daemon at a time for a runtime directory, and who that is.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held while a daemon runs; the kernel lets it go when the process ends in whatever way.
#[derive(Debug)]
pub struct RunLock {
    _file: Flock<File>,
}

impl RunLock {
    /// Takes the lock for `doing`, and writes this process's id into the file.
    ///
    /// # Errors
    /// A daemon runs: its process id is named. Or the file system's.
    pub fn take(path: &Path, doing: &str) -> anyhow::Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id())?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let who = match file.read_to_string(&mut pid) {
                    Ok(_) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
                    _ => "another process".to_owned(),
                };
                bail!("steadfastd is running already ({who}): stop it before you {doing}");
            }
            Err((_, error)) => bail!("cannot lock {}: {}", path.display(), error.desc()),
        }
    }

    /// Who runs, if anybody does.
    #[must_use]
    pub fn holder(path: &Path) -> Option<String> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(_) => return Some("unknown".to_owned()),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => None,
            Err(_) => fs::read_to_string(path).ok().map(|pid| pid.trim().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_with_the_first_ones_process_id() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/steadfastd.lock");
        assert_eq!(RunLock::holder(&path), None);
        let first = RunLock::take(&path, "start another").unwrap();
        let pid = std::process::id().to_string();
        let refused = RunLock::take(&path, "start another").unwrap_err().to_string();
        assert!(refused.contains(&format!("process {pid}")), "{refused}");
        assert_eq!(RunLock::holder(&path), Some(pid));
        drop(first);
        assert_eq!(RunLock::holder(&path), None);
        RunLock::take(&path, "start another").unwrap();
    }
}
