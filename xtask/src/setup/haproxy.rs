//! HAProxy for the bench: what the balancer is measured beside.

use anyhow::Result;

use super::unpack::{self, Tool};
use crate::workspace::Workspace;

/// Takes an HAProxy that is there, else unpacks Debian's.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    let haproxy = Tool { name: "haproxy", why: "the bench's rival", version: "-v", has_libraries: true };
    unpack::install(workspace, &haproxy)
}
