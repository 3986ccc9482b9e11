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
    let packages = ["lb-common", "lb-userspace", "tests"];
    user_space(workspace, &packages, arguments.release)
}

/// Builds the eBPF objects and leaves them in `<target>/bpf/`, touched only where they changed.
pub(crate) fn objects(workspace: &Workspace) -> Result<()> {
    let (compiler, linker) = toolchain::require(workspace)?;
    println!("build: XDP program with {compiler}, linked by {}", linker.display());
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

/// `cargo build` of host packages with the toolchain that runs us.
pub(crate) fn user_space(workspace: &Workspace, packages: &[&str], release: bool) -> Result<()> {
    let profile = if release { "release" } else { "debug" };
    println!("build: user space ({profile})");
    let mut cargo = workspace.cargo();
    cargo.arg("build");
    for package in packages {
        cargo.args(["--package", package]);
    }
    if release {
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
