//! Where things are on disk: the built programs, and the directories of one lab.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::namespace::path_with_sbin;

/// Labs register here, each under its name, so that one that was killed can be found and removed.
pub(super) const REGISTRY: &str = "/run/steadfast-lab";

/// The directories of one lab.
#[derive(Clone, Debug)]
pub struct Places {
    /// Its own directory: configuration, logs, certificates, files that are served.
    pub dir: PathBuf,
    /// `STEADFAST_PIN_DIR` of its daemon.
    pub pins: PathBuf,
    /// `STEADFAST_RUNTIME_DIR` of its daemon.
    pub runtime: PathBuf,
    /// `STEADFAST_STATE_DIR` of its daemon.
    pub state: PathBuf,
}

impl Places {
    /// Directories that no other lab and no real balancer uses.
    pub(super) fn new(name: &str) -> Self {
        let dir = Path::new(REGISTRY).join(name);
        Self {
            pins: Path::new("/sys/fs/bpf").join(name),
            runtime: dir.join("runtime"),
            state: dir.join("state"),
            dir,
        }
    }

    /// What lies outside of the lab's own directory and goes with it.
    pub(super) fn outside(&self) -> [&Path; 3] {
        [&self.pins, &self.runtime, &self.state]
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("config.yaml")
    }

    pub(super) fn daemon_log(&self) -> PathBuf {
        self.dir.join("steadfastd.log")
    }

    pub(super) fn big_file(&self) -> PathBuf {
        self.dir.join("big")
    }
}

/// A program of this workspace: in `STEADFAST_BIN_DIR`, else of the same build as the one that is running.
pub(super) fn built_program(name: &str) -> Result<PathBuf> {
    let dir = bin_dir()?;
    let program = dir.join(name);
    if !program.is_file() {
        bail!("{} is not built: run `cargo xtask build`", program.display());
    }
    Ok(program)
}

/// The directory of the built programs.
///
/// # Errors
/// The running program cannot tell where it is.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(named) = env::var_os("STEADFAST_BIN_DIR") {
        return Ok(PathBuf::from(named));
    }
    let exe = env::current_exe().context("cannot tell where this program is")?;
    let dir = exe.parent().context("this program is in no directory")?;
    // Test programs are one deeper.
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_path_buf())
}

/// An eBPF object of the build, such as `xdp-pass.o`.
///
/// # Errors
/// It is not built.
pub fn bpf_object(name: &str) -> Result<PathBuf> {
    let object = target_dir()?.join("bpf").join(name);
    if !object.is_file() {
        bail!("{} is missing: run `cargo xtask build`", object.display());
    }
    Ok(object)
}

/// A program on the PATH, else the one that `cargo xtask` unpacked.
pub(crate) fn tool(name: &str) -> Result<PathBuf> {
    let unpacked = target_dir()?.join("tools").join(name).join("usr/sbin");
    env::split_paths(&path_with_sbin())
        .chain([unpacked])
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!("{name} is missing: run `cargo xtask setup`, or `cargo xtask bench lab` for the bench's")
        })
}

/// The variable by which a program that was unpacked finds the libraries that were unpacked with it.
pub(crate) fn own_libraries(program: &Path) -> Option<(&'static str, PathBuf)> {
    let libraries = format!("usr/lib/{}-linux-gnu", env::consts::ARCH);
    program.ancestors().nth(3).map(|unpacked| ("LD_LIBRARY_PATH", unpacked.join(libraries)))
}

fn target_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("cannot tell where this program is")?;
    let target = exe.ancestors().skip(1).find(|dir| dir.join("CACHEDIR.TAG").is_file());
    target.map(Path::to_path_buf).with_context(|| format!("{} is in no target directory", exe.display()))
}
