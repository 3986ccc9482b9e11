//! nginx for the lab's servers: only the program, so that no service is ever installed, enabled or started.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{Cmd, find_program, is_executable},
    workspace::Workspace,
};

/// Takes an nginx that is there, else unpacks Debian's package beside the other tools without installing it.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    if let Some(nginx) = find_program("nginx") {
        println!("  have     nginx: {}", nginx.display());
        return Ok(());
    }
    let tools = workspace.tools();
    let program = tools.join("nginx/usr/sbin/nginx");
    if is_executable(&program) {
        println!("  have     nginx: {}", program.display());
        return Ok(());
    }
    if find_program("apt-get").is_none() {
        bail!("nginx is missing (the lab's servers): install it with this system's package manager");
    }
    println!("  unpack   nginx: the lab's servers (into {}, nothing is started or enabled)", tools.display());
    let download = tools.join("nginx-download");
    fs::create_dir_all(&download).with_context(|| format!("cannot make {}", download.display()))?;
    // Run as root, apt would complain that its own user cannot write here.
    Cmd::new("apt-get")
        .args(["download", "-q", "-o", "APT::Sandbox::User=root", "nginx"])
        .dir(&download)
        .run()?;
    for entry in fs::read_dir(&download).with_context(|| format!("cannot read {}", download.display()))? {
        Cmd::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(tools.join("nginx")).run()?;
    }
    fs::remove_dir_all(&download).with_context(|| format!("cannot remove {}", download.display()))?;
    Cmd::new(&program).arg("-v").run().context("Debian's nginx does not start here")
}
