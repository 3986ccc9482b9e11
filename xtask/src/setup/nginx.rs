//! nginx for the lab's servers.

use anyhow::Result;

use super::unpack::{self, Tool};
use crate::workspace::Workspace;

/// Takes an nginx that is there, else unpacks Debian's.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    let nginx = Tool { name: "nginx", why: "the lab's servers", version: "-v", has_libraries: false };
    unpack::install(workspace, &nginx)
}
