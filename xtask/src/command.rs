//! Child processes: printed, run, and blamed by name when they fail.

use std::{
    env,
    ffi::OsStr,
    fmt,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Error, Result, bail};

/// A command whose failure is an error that names it.
pub(crate) struct Cmd(Command);

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self(Command::new(program))
    }

    pub(crate) fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.0.arg(arg);
        self
    }

    pub(crate) fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.0.args(args);
        self
    }

    pub(crate) fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.0.env(name, value);
        self
    }

    pub(crate) fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.0.env_remove(name);
        self
    }

    pub(crate) fn dir(&mut self, dir: impl AsRef<Path>) -> &mut Self {
        self.0.current_dir(dir);
        self
    }

    pub(crate) fn stdin(&mut self, from: Stdio) -> &mut Self {
        self.0.stdin(from);
        self
    }

    pub(crate) fn stdout(&mut self, to: Stdio) -> &mut Self {
        self.0.stdout(to);
        self
    }

    pub(crate) fn stderr(&mut self, to: Stdio) -> &mut Self {
        self.0.stderr(to);
        self
    }

    /// Runs it with our own standard streams, or those it was given.
    pub(crate) fn status(&mut self) -> Result<ExitStatus> {
        self.0.status().with_context(|| format!("cannot start `{self}`"))
    }

    /// Starts it with our own standard streams, or those it was given.
    pub(crate) fn spawn(&mut self) -> Result<Child> {
        self.0.spawn().with_context(|| format!("cannot start `{self}`"))
    }

    /// Runs it with our own standard streams; anything but success is an error.
    pub(crate) fn run(&mut self) -> Result<()> {
        let status = self.status()?;
        if !status.success() {
            bail!("`{self}` failed: {status}");
        }
        Ok(())
    }

    /// Runs it in silence; true if it could be started and succeeded.
    pub(crate) fn succeeds(&mut self) -> bool {
        self.0.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.0.status().is_ok_and(|status| status.success())
    }

    /// What it prints on standard output; its complaints are part of the error.
    pub(crate) fn output(&mut self) -> Result<String> {
        self.0.stdin(Stdio::null());
        let output = self.0.output().with_context(|| format!("cannot start `{self}`"))?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("`{self}` failed: {}\n{}", output.status, complaint.trim_end());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Becomes it, so that signals reach it and its exit code is ours; returns only on failure.
    pub(crate) fn exec(&mut self) -> Error {
        let error = self.0.exec();
        Error::new(error).context(format!("cannot start `{self}`"))
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.get_program().display())?;
        for arg in self.0.get_args() {
            write!(f, " {}", arg.display())?;
        }
        Ok(())
    }
}

/// The first executable of that name on the PATH or in the system directories an ordinary user's PATH leaves out.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| is_executable(candidate))
}

pub(crate) fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
