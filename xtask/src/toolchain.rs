//! Which compiler and linker build the XDP program: Debian's, with a prebuilt `core`, or a rustup nightly.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command::{Cmd, find_program, is_executable},
    workspace::Workspace,
};

/// The target of the XDP program.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// The oldest Debian compiler that builds it.
pub(crate) const OLDEST_RUSTC: (u32, u32) = (1, 96);
/// The linker's release series: it is chosen with the compiler's LLVM in mind.
pub(crate) const LINKER_SERIES: &str = "0.13";

/// Whether the balancer is for machines of this kind, as Rust names them: said before anything is installed or built.
/// The code itself refuses it too (`lb-common/src/word.rs`).
///
/// # Errors
/// It is not.
pub(crate) fn check_architecture(architecture: &str) -> Result<()> {
    ensure!(
        architecture == "x86_64",
        "Steadfast is for x86-64 and this machine is {architecture}: the order of accesses to the shared tables is argued \
         for x86-64 alone (lb-common/src/word.rs)"
    );
    Ok(())
}

/// A compiler that can build for [`TARGET`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// `rustc-web`, `cargo-web` and `libstd-rust-web-dev-bpf`.
    Debian { version: String },
    /// A nightly with `rust-src`: `core` is built along.
    Nightly { version: String },
}

impl Compiler {
    /// Debian's if it is there and new enough, else a nightly.
    pub(crate) fn find() -> Option<Self> {
        Self::find_debian().or_else(Self::find_nightly)
    }

    pub(crate) fn find_debian() -> Option<Self> {
        let core = Path::new("/usr/lib/rustlib").join(TARGET).join("lib");
        if !core.is_dir() || !is_executable(Path::new("/usr/bin/cargo")) {
            return None;
        }
        let version = Cmd::new("/usr/bin/rustc").arg("--version").output().ok()?;
        let version = version.trim().to_owned();
        (release(&version)? >= OLDEST_RUSTC).then_some(Self::Debian { version })
    }

    pub(crate) fn find_nightly() -> Option<Self> {
        let rustc = |argument: &[&str]| {
            let mut rustup = Cmd::new("rustup");
            rustup.args(["run", "nightly", "rustc"]).args(argument).output().ok()
        };
        let sysroot = rustc(&["--print", "sysroot"])?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        let version = rustc(&["--version"])?.trim().to_owned();
        source.is_dir().then_some(Self::Nightly { version })
    }

    /// LLVM's major version, which the linker must know.
    pub(crate) fn llvm(&self) -> Option<u32> {
        let verbose = match self {
            Self::Debian { .. } => Cmd::new("/usr/bin/rustc").arg("-vV").output(),
            Self::Nightly { .. } => Cmd::new("rustup").args(["run", "nightly", "rustc", "-vV"]).output(),
        };
        llvm_major(&verbose.ok()?)
    }

    /// Its `cargo build` for [`TARGET`], up to the package.
    pub(crate) fn cargo_build(&self, workspace: &Workspace) -> Cmd {
        match self {
            Self::Debian { .. } => {
                let mut cargo = workspace.foreign_cargo("/usr/bin/cargo");
                // The target is unstable, the compiler is a release.
                cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
                cargo.args(["build", "--target", TARGET]);
                cargo
            }
            Self::Nightly { .. } => {
                let mut cargo = workspace.foreign_cargo("rustup");
                cargo.args(["run", "nightly", "cargo", "build", "--target", TARGET]);
                cargo.args(["-Z", "build-std=core"]);
                cargo
            }
        }
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian { version } => write!(f, "Debian's {version} with its prebuilt core"),
            Self::Nightly { version } => write!(f, "rustup's {version} with -Z build-std=core"),
        }
    }
}

/// A `bpf-linker` of the right series: on the PATH, or built by set-up.
pub(crate) fn find_linker(workspace: &Workspace) -> Option<PathBuf> {
    find_program("bpf-linker")
        .into_iter()
        .chain([workspace.tools().join("bin/bpf-linker")])
        .find(|candidate| is_wanted_linker(candidate))
}

fn is_wanted_linker(program: &Path) -> bool {
    let printed = Cmd::new(program).arg("--version").output();
    printed.is_ok_and(|text| {
        let version = text.split_whitespace().nth(1);
        version.is_some_and(|version| {
            version == LINKER_SERIES || version.starts_with(&format!("{LINKER_SERIES}."))
        })
    })
}

/// Both, or what to do about it.
pub(crate) fn require(workspace: &Workspace) -> Result<(Compiler, PathBuf)> {
    let compiler = Compiler::find().context(
        "no compiler for the XDP program (neither Debian's rustc-web with libstd-rust-web-dev-bpf nor a rustup \
         nightly with rust-src): run `cargo xtask setup`",
    )?;
    let linker = find_linker(workspace)
        .with_context(|| format!("no bpf-linker {LINKER_SERIES}: run `cargo xtask setup`"))?;
    Ok((compiler, linker))
}

/// Major and minor out of `rustc 1.96.0 (...)`.
pub(crate) fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn llvm_major(verbose: &str) -> Option<u32> {
    let line = verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_architecture_is_refused_by_name() {
        assert!(check_architecture("x86_64").is_ok());
        let refused = check_architecture("aarch64").unwrap_err().to_string();
        assert!(refused.contains("this machine is aarch64"), "{refused}");
    }

    #[test]
    fn a_compilers_release_and_llvm_are_read_from_what_it_prints() {
        assert_eq!(
            release("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"),
            Some((1, 96))
        );
        assert_eq!(release("rustc"), None);
        assert_eq!(llvm_major("release: 1.96.0\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("release: 1.96.0\n"), None);
    }
}
