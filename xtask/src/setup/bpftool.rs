//! bpftool for the bench: it dumps the program as the kernel has it.

use anyhow::Result;

use super::unpack::{self, Tool};
use crate::workspace::Workspace;

/// Takes a bpftool that is there, else unpacks Debian's: installed, it would bring the system's perf up to its own version.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    let bpftool = Tool { name: "bpftool", why: "dumps the program", version: "version", has_libraries: true };
    unpack::install(workspace, &bpftool)
}
