//! QEMU and busybox: those on the PATH, else Debian's, unpacked beside the other tools with all their libraries.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::debian::Apt;
use crate::{
    command::{Cmd, find_program, is_executable},
    workspace::Workspace,
};

const RELEASE: &str = "trixie";
const QEMU: &str = "qemu-system-x86_64";

/// What boots a kernel, and what is in the machine when it has booted.
pub(crate) struct Tools {
    /// The directory that QEMU was unpacked in; `None`: it is on the PATH.
    unpacked: Option<PathBuf>,
    /// A busybox that needs no library.
    pub(crate) busybox: PathBuf,
}

impl Tools {
    pub(crate) fn find(workspace: &Workspace) -> Result<Self> {
        let root = workspace.tools().join("vm");
        let busybox = root.join("usr/bin/busybox");
        let unpacked_qemu = root.join("usr/bin").join(QEMU);
        let on_path = find_program(QEMU);
        if !is_executable(&busybox) || on_path.is_none() && !is_executable(&unpacked_qemu) {
            let packages: &[(&str, &str)] = match on_path {
                Some(_) => &[("busybox-static", "the machine's shell")],
                None => &[
                    ("busybox-static", "the machine's shell"),
                    ("qemu-system-x86", "the machine, with its libraries: nothing is installed"),
                ],
            };
            for (name, why) in packages {
                println!("  unpack   {name}: {why} (Debian {RELEASE}, into {})", root.display());
            }
            let names: Vec<&str> = packages.iter().map(|(name, _)| *name).collect();
            let lists = workspace.target().join("vm/apt").join(RELEASE);
            Apt::open(&lists, RELEASE)?.unpack_whole(&names, &root)?;
            link_merged_directories(&root)?;
        }
        let tools = Self { unpacked: on_path.is_none().then_some(root), busybox };
        let version = tools.qemu().arg("--version").output().context("QEMU does not start here")?;
        println!("  have     {}", version.lines().next().unwrap_or(QEMU));
        Ok(tools)
    }

    /// QEMU, up to its arguments.
    pub(crate) fn qemu(&self) -> Cmd {
        let Some(root) = &self.unpacked else { return Cmd::new(QEMU) };
        // Its own C library and its own linker: this system's may be older.
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        let private = ["pulseaudio", "systemd"].map(|name| libraries.join(name));
        let path = [libraries.clone()].into_iter().chain(private);
        let path: Vec<String> = path.map(|directory| directory.display().to_string()).collect();
        let mut qemu = Cmd::new(libraries.join("ld-linux-x86-64.so.2"));
        qemu.arg("--library-path").arg(path.join(":")).arg(root.join("usr/bin").join(QEMU));
        for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            qemu.arg("-L").arg(root.join(data));
        }
        qemu
    }

    /// One of busybox's programs, on this machine.
    pub(crate) fn applet(&self, name: &str) -> Cmd {
        let mut applet = Cmd::new(&self.busybox);
        applet.arg(name);
        applet
    }
}

/// Packages that still ship `/lib` or `/bin` beside `/usr`: in an unpacked tree nothing has merged them.
fn link_merged_directories(root: &Path) -> Result<()> {
    for directory in ["lib", "bin"] {
        let from = root.join(directory);
        if !from.is_dir() {
            continue;
        }
        let into = root.join("usr").join(directory);
        Cmd::new("cp").args(["-a", "--no-clobber"]).arg(from.join(".")).arg(&into).run()?;
        fs::remove_dir_all(&from).with_context(|| format!("cannot remove {}", from.display()))?;
    }
    Ok(())
}
