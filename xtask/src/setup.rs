//! `cargo xtask setup`: what is missing, why it is needed, and its installation. Nothing is done twice.

pub(crate) mod bpftool;
pub(crate) mod haproxy;
mod linker;
mod nginx;
mod packages;
mod unpack;

use anyhow::{Result, bail};

use crate::{
    kernel,
    privilege::Privilege,
    toolchain::{Compiler, find_linker},
    workspace::Workspace,
};

pub(crate) fn setup(workspace: &Workspace) -> Result<()> {
    println!("setup: {}", workspace.target().display());
    let privilege = Privilege::find();
    packages::install(privilege, &packages::wanted(find_linker(workspace).is_none()))?;
    let Some(compiler) = Compiler::find() else {
        bail!(
            "there is no compiler for the XDP program: on this system install a nightly, \
             `rustup toolchain install nightly --component rust-src`, then run this again"
        );
    };
    println!("  have     {compiler}");
    linker::install(workspace, &compiler)?;
    nginx::install(workspace)?;
    kernel::check(privilege)?;
    println!("setup: done");
    Ok(())
}
