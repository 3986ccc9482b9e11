//! Where things are: the sources, cargo's target directory and what is kept in it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    command::{Cmd, is_executable},
};

/// The directories that every command needs.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest)
            .parent()
            .context("xtask's own directory has no parent: run it as `cargo xtask`")?
            .to_path_buf();
        let target = target_dir(&root)?;
        Ok(Self { root, target })
    }

    /// The sources.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target directory.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The eBPF objects (`steadfast.o`, `xdp-pass.o`, `lab-xdp.o`), and cargo's own directory for them.
    pub(crate) fn bpf(&self) -> PathBuf {
        self.target.join("bpf")
    }

    /// Tools that set-up builds or unpacks for this workspace alone.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// A user-space program of a profile's directory (`debug`, `release`).
    pub(crate) fn program(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
    }

    /// A user-space program that was built already, the newer one of the two profiles; built now if it was not.
    pub(crate) fn built(&self, name: &str) -> Result<PathBuf> {
        let built = ["release", "debug"].map(|profile| self.program(profile, name));
        let age = |program: &PathBuf| fs::metadata(program).and_then(|file| file.modified()).ok();
        if let Some(program) = built.into_iter().filter(|program| is_executable(program)).max_by_key(age) {
            return Ok(program);
        }
        build::objects(self)
            .and_then(|()| build::user_space(self, Profile::Debug, &[name]))
            .with_context(|| format!("`{name}` is not built"))?;
        Ok(self.program("debug", name))
    }

    /// The cargo that runs xtask, in the workspace, writing to the same target directory.
    pub(crate) fn cargo(&self) -> Cmd {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Cmd::new(cargo);
        command.dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        for own in own_package_variables() {
            command.env_remove(own);
        }
        command
    }

    /// Another toolchain's cargo, free of all that the running one set for itself.
    pub(crate) fn foreign_cargo(&self, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        let mut command = Cmd::new(program.as_ref());
        command.dir(&self.root);
        let toolchain = ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER"];
        let toolchain = toolchain.into_iter().chain(["RUSTC_WORKSPACE_WRAPPER", "LD_LIBRARY_PATH"]);
        for variable in toolchain.map(str::to_owned).chain(own_package_variables()) {
            command.env_remove(variable);
        }
        command
    }
}

/// `CARGO_TARGET_DIR`, or the tagged directory that holds this very program, or `target`.
fn target_dir(root: &Path) -> Result<PathBuf> {
    if let Some(named) = env::var_os("CARGO_TARGET_DIR").filter(|named| !named.is_empty()) {
        // Cargo takes a relative one from where it was started.
        return std::path::absolute(&named)
            .with_context(|| format!("CARGO_TARGET_DIR={} is not a path", named.display()));
    }
    let exe = env::current_exe().context("cannot tell where this program is")?;
    let tagged = exe.ancestors().skip(1).find(|dir| dir.join("CACHEDIR.TAG").is_file());
    Ok(tagged.map_or_else(|| root.join("target"), Path::to_path_buf))
}

/// What `cargo run` sets to describe xtask itself; it would only make the children's builds look changed.
fn own_package_variables() -> impl Iterator<Item = String> {
    env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|name| {
        name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_BIN_")
            || name.starts_with("CARGO_MANIFEST_")
    })
}
