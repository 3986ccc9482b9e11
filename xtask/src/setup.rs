//! `cargo xtask setup`: what is missing, why it is needed, and its installation. Nothing is done twice.

pub(crate) mod bpftool;
mod deny;
pub(crate) mod haproxy;
mod linker;
mod nginx;
mod packages;
mod unpack;

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    kernel,
    privilege::Privilege,
    toolchain::{self, Compiler, find_linker},
    workspace::Workspace,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Install cargo-deny too, which `.ci/run` checks the dependencies with
    #[arg(long)]
    deny: bool,
}

/// What `cargo xtask setup` does.
pub(crate) fn with(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    setup(workspace)?;
    if arguments.deny {
        deny::install(workspace)?;
    }
    Ok(())
}

/// What every other command needs.
pub(crate) fn setup(workspace: &Workspace) -> Result<()> {
    toolchain::check_architecture(std::env::consts::ARCH)?;
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
