//! Everybody on one core, for requests that are made one at a time.
//!
//! There is never more than one at work then. On several cores each hands over to one that sleeps, and to wake a core of a
//! virtual machine is the host's business: it takes longer than the balancer, and now and then ten times as long.

use std::{
    collections::BTreeSet,
    fs::{self, DirEntry},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use super::stand::SERVERS;
use crate::lab::{Lab, Ns, namespace_path};

/// Keeps the threads of the balancer's and the servers' hosts on one core, until it is dropped.
pub(super) struct OneCore {
    core: CpuSet,
    /// Where they were allowed to run before.
    before: Vec<(Pid, CpuSet)>,
}

impl OneCore {
    /// # Errors
    /// /proc cannot be read, or the kernel refuses.
    pub(super) fn of(lab: &Lab) -> Result<Self> {
        let mut core = CpuSet::new();
        core.set(thread::available_parallelism()?.get() - 1)?;
        let hosts = [Ns::Lb].into_iter().chain((0..SERVERS).map(Ns::Server));
        let namespaces = hosts.map(|ns| number(&namespace_path(&lab.namespace(ns))));
        let namespaces: BTreeSet<u64> = namespaces.collect::<io::Result<_>>().context("a host of the lab")?;
        // From now on what was changed is put back, also after an error.
        let mut all = Self { core, before: Vec::new() };
        for process in numbered(Path::new("/proc")).context("/proc")? {
            // Whoever ends meanwhile needs no core.
            let Ok(threads) = numbered(&process.path().join("task")) else { continue };
            for thread in threads {
                if number(&thread.path().join("ns/net")).is_ok_and(|number| namespaces.contains(&number)) {
                    all.take(&thread)?;
                }
            }
        }
        Ok(all)
    }

    fn take(&mut self, thread: &DirEntry) -> Result<()> {
        let name = thread.file_name();
        let pid = Pid::from_raw(name.to_string_lossy().parse().context("a number that is none")?);
        match sched_getaffinity(pid).and_then(|before| Ok((before, sched_setaffinity(pid, &self.core)?))) {
            Ok((before, ())) => self.before.push((pid, before)),
            Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot keep thread {pid} on one core")),
        }
        Ok(())
    }

    /// Has the calling thread, and those that it starts, run there too.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn join(&self) -> Result<()> {
        sched_setaffinity(Pid::from_raw(0), &self.core).context("cannot keep the client on one core")
    }
}

impl Drop for OneCore {
    fn drop(&mut self) {
        for (thread, before) in &self.before {
            // It fails only where the thread has ended.
            let _ = sched_setaffinity(*thread, before);
        }
    }
}

/// What is named by a number in a directory: processes, or threads.
fn numbered(directory: &Path) -> io::Result<Vec<DirEntry>> {
    let entries = fs::read_dir(directory)?.filter_map(Result::ok);
    Ok(entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok()).collect())
}

/// The number of a namespace.
fn number(namespace: &Path) -> io::Result<u64> {
    Ok(fs::metadata(namespace)?.ino())
}
