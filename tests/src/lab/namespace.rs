//! Entering a network namespace, and nothing but the network namespace.
//!
//! `ip netns exec` also remounts /sys, which hides the BPF file system; a bare setns(2) does not.

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    fs::File,
    io,
    os::{fd::AsFd, unix::process::CommandExt as _},
    panic,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result};
use nix::{
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::{
        signal::{SigSet, SigmaskHow, sigprocmask},
        stat::Mode,
    },
};

/// Where `ip netns` keeps a namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// A command that will run inside the namespace, in a process group of its own: a Ctrl-C is the lab's to handle.
pub(super) fn command<A: AsRef<OsStr>>(
    name: &str,
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = host_command(program, args);
    command.process_group(0);
    // A namespace's name never holds a NUL; an empty path would fail at the start of the command.
    let path = CString::new(path(name).into_os_string().into_encoded_bytes()).unwrap_or_default();
    // SAFETY: between fork and exec it makes system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let namespace = open(path.as_c_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            enter(namespace)
        });
    }
    unblock_signals(&mut command);
    command
}

/// A command in our own namespace that finds the system's tools whatever our PATH is, and its libraries where an operator's would:
/// cargo names a dozen directories that are searched first, which takes a start of `steadfast` another millisecond.
pub(crate) fn host_command<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(program);
    command.args(args).env("PATH", path_with_sbin()).env_remove("LD_LIBRARY_PATH");
    command
}

/// The command will see signals that this process blocks to wait for them: a child inherits the mask.
pub fn unblock_signals(command: &mut Command) {
    // SAFETY: one system call on a set that is on the stack.
    unsafe {
        command.pre_exec(|| Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?));
    }
}

/// Runs the closure on a fresh thread inside the namespace. A socket made there stays there, wherever it is used.
///
/// # Errors
/// The namespace does not exist or may not be entered. A panic of the closure goes on in the caller.
pub(super) fn run_in<T: Send>(name: &str, closure: impl FnOnce() -> T + Send) -> Result<T> {
    let path = path(name);
    let namespace = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let entered = thread::scope(|scope| {
        let thread = scope.spawn(|| enter(namespace).map(|()| closure()));
        thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
    });
    entered.with_context(|| format!("cannot enter the network namespace {name}"))
}

fn enter(namespace: impl AsFd) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// The PATH with the system directories that an ordinary user's leaves out.
pub(super) fn path_with_sbin() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
    path
}
