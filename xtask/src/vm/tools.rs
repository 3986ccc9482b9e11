//! QEMU and busybox: those on the PATH, else Debian's, unpacked beside the other tools with all their libraries.

use std::{fs, path::PathBuf};

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
            let partial = root.with_extension("partial");
            for leftover in [&root, &partial].into_iter().filter(|directory| directory.exists()) {
                fs::remove_dir_all(leftover)
                    .with_context(|| format!("cannot remove {}", leftover.display()))?;
            }
            Apt::open(&lists, RELEASE)?.unpack_whole(&names, &partial)?;
            fs::rename(&partial, &root).with_context(|| format!("cannot make {}", root.display()))?;
        }
        let tools = Self { unpacked: on_path.is_none().then_some(root), busybox };
        let version = tools.qemu().arg("--version").output().context("QEMU does not start here")?;
        println!("  have     {}", version.lines().next().unwrap_or(QEMU));
        Ok(tools)
    }

    /// QEMU, up to its arguments; it ends with us, however we end.
    pub(crate) fn qemu(&self) -> Cmd {
        let mut qemu = Cmd::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "--"]);
        let Some(root) = &self.unpacked else {
            qemu.arg(QEMU);
            return qemu;
        };
        // Its own C library and its own linker: this system's may be older.
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        qemu.arg(libraries.join("ld-linux-x86-64.so.2"));
        qemu.arg("--library-path").arg(&libraries).arg(root.join("usr/bin").join(QEMU));
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
