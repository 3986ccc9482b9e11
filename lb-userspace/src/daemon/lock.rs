//! One daemon at a time for a runtime directory, and who that is.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::bail;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held while a daemon runs; the kernel lets it go when the process ends in whatever way.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    /// None where the file cannot be made.
    file: Option<Flock<File>>,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A daemon runs.
    #[error("{0}")]
    Taken(String),
    /// The file system refused.
    #[error("{0}")]
    Impossible(String),
}

impl RunLock {
    /// Takes the lock for `doing`, and writes this process's id into the file.
    ///
    /// # Errors
    /// A daemon runs: its process id is named. Or the file system's.
    pub fn take(path: &Path, doing: &str) -> Result<Self, LockError> {
        let impossible =
            |what: &str, error: &dyn std::fmt::Display| LockError::Impossible(format!("{what}: {error}"));
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)
            .map_err(|error| impossible(&format!("cannot make {}", directory.display()), &error))?;
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(path);
            let file =
                file.map_err(|error| impossible(&format!("cannot open {}", path.display()), &error))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // Whoever had it before may have removed the file.
                Ok(file) if !is_at(&file, path) => {}
                Ok(mut file) => {
                    // On a full file system the lock counts all the same.
                    let _told = write_id(&mut file);
                    return Ok(Self { path: path.to_owned(), file: Some(file) });
                }
                Err((mut file, Errno::EWOULDBLOCK)) => return Err(LockError::Taken(taken(&mut file, doing))),
                Err((_, error)) => {
                    return Err(impossible(&format!("cannot lock {}", path.display()), &error.desc()));
                }
            }
        }
    }

    /// As [`take`](Self::take), but where the file cannot be made, goes without it: the lock of the pins remains. Says
    /// what is wrong then.
    ///
    /// # Errors
    /// A daemon runs.
    pub fn take_if_possible(path: &Path, doing: &str) -> anyhow::Result<(Self, Option<String>)> {
        match Self::take(path, doing) {
            Ok(lock) => Ok((lock, None)),
            Err(LockError::Impossible(why)) => Ok((Self { path: path.to_owned(), file: None }, Some(why))),
            Err(taken) => bail!(taken),
        }
    }

    /// Takes the lock again if the file was removed, or could not be made before.
    pub fn renew(&mut self) {
        if self.file.as_ref().is_none_or(|file| !is_at(file, &self.path))
            && let Ok(again) = Self::take(&self.path, "start another")
        {
            *self = again;
        }
    }

    /// Gives the lock back and removes its file, and the directory if nothing else is in it.
    pub fn remove(self) {
        if self.file.as_ref().is_some_and(|file| is_at(file, &self.path)) {
            // What stays behind is found by the next who looks.
            let _removed = fs::remove_file(&self.path);
            let _empty = self.path.parent().map(fs::remove_dir);
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

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

fn write_id(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn taken(file: &mut File, doing: &str) -> String {
    let mut pid = String::new();
    let who = match file.read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
        _ => "another process".to_owned(),
    };
    format!("steadfastd is running already ({who}): stop it before you {doing}")
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

    #[test]
    fn a_file_that_was_removed_is_locked_again_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/steadfastd.lock");
        let mut lock = RunLock::take(&path, "start another").unwrap();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        lock.renew();
        assert!(matches!(RunLock::take(&path, "detach"), Err(LockError::Taken(_))));
        lock.remove();
        assert!(!path.parent().unwrap().exists());
    }

    #[test]
    fn where_no_file_can_be_made_the_daemon_goes_without_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("run"), "").unwrap();
        let path = directory.path().join("run/steadfastd.lock");
        let (mut lock, why) = RunLock::take_if_possible(&path, "start another").unwrap();
        assert!(why.unwrap().contains("cannot make"));
        fs::remove_file(directory.path().join("run")).unwrap();
        lock.renew();
        assert!(RunLock::take_if_possible(&path, "start another").is_err());
    }
}
