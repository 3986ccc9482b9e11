//! `cargo xtask fuzz`: the built program against its model, for a while.

use anyhow::{Result, bail};
use clap::Args;

use crate::{build, privilege::Privilege, setup, workspace::Workspace};

const WHY: &str = "to load the XDP program";

#[derive(Args)]
pub(crate) struct Arguments {
    /// For how long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The first sequence's number; the same number is the same sequence
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn fuzz(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let privilege = Privilege::require(WHY)?;
    setup::setup(workspace)?;
    build::objects(workspace)?;
    workspace.cargo().args(["build", "--release", "--package", "tests", "--bin", "fuzz"]).run()?;
    let program = workspace.program("release", "fuzz");
    let mut fuzz = privilege.command(program, WHY)?;
    fuzz.args(["--seconds", &arguments.seconds.to_string(), "--seed", &arguments.seed.to_string()]);
    if !fuzz.status()?.success() {
        bail!("the program and its model differ, or could not be compared: see above");
    }
    Ok(())
}
