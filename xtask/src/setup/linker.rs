//! bpf-linker, built against the LLVM of the compiler that it serves.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{
    toolchain::{Compiler, LINKER_SERIES, find_linker},
    workspace::Workspace,
};

pub(crate) fn install(workspace: &Workspace, compiler: &Compiler) -> Result<()> {
    if let Some(linker) = find_linker(workspace) {
        println!("  have     bpf-linker: {}", linker.display());
        return Ok(());
    }
    let llvm = compiler.llvm().context("the compiler does not say which LLVM it has")?;
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if !Path::new(&prefix).join("include/llvm").exists() {
        bail!(
            "bpf-linker is built against LLVM {llvm}, whose headers are not in {prefix}: install llvm-{llvm}-dev"
        );
    }
    let tools = workspace.tools();
    println!(
        "  build    bpf-linker {LINKER_SERIES}: links the XDP program (into {}, one to three minutes)",
        tools.display()
    );
    let mut cargo = workspace.cargo();
    // Its own build directory: the workspace's would be filled with a tool's dependencies.
    cargo.env_remove("CARGO_TARGET_DIR").env(llvm_prefix_variable(llvm), &prefix).env("LLVM_PREFIX", &prefix);
    cargo.args(["install", "bpf-linker", "--locked", "--version", &format!("^{LINKER_SERIES}")]);
    cargo.args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"]).arg(&tools);
    cargo.run()?;
    find_linker(workspace).context("cargo installed a bpf-linker that does not start")?;
    Ok(())
}

/// The variable by which `llvm-sys` finds an LLVM, per major version.
fn llvm_prefix_variable(llvm: u32) -> String {
    format!("LLVM_SYS_{llvm}1_PREFIX")
}
