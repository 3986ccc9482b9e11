//! `cargo xtask build`: the eBPF objects first, because the daemon carries one of them inside.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    toolchain::{self, TARGET},
    workspace::Workspace,
};

/// The programs of lb-ebpf, of the lab and of the bench: cargo's name and the object's file name.
const OBJECTS: [(&str, &str); 4] = [
    ("steadfast", "steadfast.o"),
    ("xdp-pass", "xdp-pass.o"),
    ("lab-xdp", "lab-xdp.o"),
    ("bench-xdp", "bench-xdp.o"),
];

#[derive(Args)]
pub(crate) struct Arguments {
    /// Optimised, as it is shipped: leaves target/release/steadfastd and target/release/steadfast
    #[arg(long)]
    pub(crate) release: bool,
}

pub(crate) fn build(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    objects(workspace)?;
    let profile = if arguments.release { Profile::Release } else { Profile::Debug };
    user_space(workspace, profile, &["steadfastd", "steadfast"])
}

/// How user space is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quickly: for tests and the lab's own program.
    Debug,
    /// Optimised and linked as a whole: what is shipped.
    Release,
}

impl Profile {
    /// Its directory below the target directory.
    const fn directory(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }

    /// How long a first build takes on two cores that do nothing else.
    const fn first_build(self) -> &'static str {
        match self {
            Self::Debug => "1 to 2 minutes",
            Self::Release => "2 to 4 minutes",
        }
    }
}

/// Builds the eBPF objects and leaves them in `<target>/bpf/`, touched only where they changed.
pub(crate) fn objects(workspace: &Workspace) -> Result<()> {
    toolchain::check_architecture(std::env::consts::ARCH)?;
    let (compiler, linker) = toolchain::require(workspace)?;
    let first = if workspace.bpf().join("steadfast.o").exists() { "" } else { ", a minute the first time" };
    println!("build: XDP program with {compiler}, linked by {}{first}", linker.display());
    let bpf = workspace.bpf();
    let mut cargo = compiler.cargo_build(workspace);
    cargo
        .args(["--release", "--package", "lb-ebpf", "--package", "lab-xdp", "--bins", "--target-dir"])
        .arg(&bpf);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(&linker));
    cargo.run()?;
    let built = bpf.join(TARGET).join("release");
    for (program, object) in OBJECTS {
        copy_if_changed(&built.join(program), &bpf.join(object))?;
    }
    Ok(())
}

/// `cargo build` of these programs alone, with the toolchain that runs us. Each program more is linked for seconds, and
/// optimised as a whole for a minute.
pub(crate) fn user_space(workspace: &Workspace, profile: Profile, programs: &[&str]) -> Result<()> {
    let directory = profile.directory();
    let is_first = programs.iter().any(|name| !workspace.program(directory, name).exists());
    let first = if is_first { format!(", {} the first time", profile.first_build()) } else { String::new() };
    println!("build: {} ({directory}{first})", programs.join(", "));
    let mut cargo = workspace.cargo();
    // Both packages are named for whatever is built: so their dependencies have the same features, and are built once.
    cargo.args(["build", "--package", "lb-userspace", "--package", "tests"]);
    for program in programs {
        cargo.args(["--bin", program]);
    }
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    cargo.run()
}

/// Compiler flags: a BPF v3 processor (32-bit and atomic instructions) and BTF, without which maps have no types.
fn flags(linker: &Path) -> String {
    let arch = std::env::consts::ARCH;
    let flags = [
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Cpanic=abort".to_owned(),
        // Loops stay loops: unrolled, the program takes the verifier ten times the work, or more than it does.
        "-Cllvm-args=-unroll-threshold=0".to_owned(),
        "-Clink-arg=--llvm-args=-unroll-threshold=0".to_owned(),
        format!("--cfg=bpf_target_arch=\"{arch}\""),
    ];
    flags.join("\x1f")
}

/// An unchanged file keeps its time stamp, so that what includes it is not built again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read the built object {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    // Renamed into place: a build that reads it at this moment sees the old one or the new one.
    let partial = to.with_extension("o.new");
    fs::write(&partial, new).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, to).with_context(|| format!("cannot write {}", to.display()))
}
