//! `cargo xtask clean`: removes what labs left behind that were killed before they could do so themselves.

use anyhow::Result;

use crate::{privilege::Privilege, workspace::Workspace};

/// Leaves labs alone whose process is still there.
pub(crate) fn clean(workspace: &Workspace) -> Result<()> {
    let lab = workspace.built("lab")?;
    Privilege::find().command(lab, "to remove network namespaces")?.arg("--clean").run()
}
