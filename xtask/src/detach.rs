//! `cargo xtask detach`: takes the balancer off this machine's interfaces, on purpose and by hand.

use anyhow::Result;

use crate::{privilege::Privilege, workspace::Workspace};

pub(crate) fn detach(workspace: &Workspace) -> Result<()> {
    let steadfastd = workspace.built("steadfastd")?;
    Privilege::find().command(steadfastd, "to detach an XDP program")?.arg("detach").run()
}
