//! What the running kernel must offer before the balancer or the lab can run.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::privilege::Privilege;

/// BPF links for XDP and 64-bit compare-exchange are older. It is the daemon's own limit, not one that was tested.
const OLDEST: (u32, u32) = (5, 15);
const BTF: &str = "/sys/kernel/btf/vmlinux";
const BPFFS: &str = "/sys/fs/bpf";

/// Each missing piece is one sentence; the BPF file system is mounted where it is not.
pub(crate) fn check(privilege: Privilege) -> Result<()> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let release = release.trim();
    if version(release).is_some_and(|version| version < OLDEST) {
        let (major, minor) = OLDEST;
        bail!("Linux {release} is too old: Steadfast needs {major}.{minor} or newer");
    }
    if !Path::new(BTF).exists() {
        bail!(
            "{BTF} is missing: this kernel was built without CONFIG_DEBUG_INFO_BTF; install a distribution kernel"
        );
    }
    if is_bpffs(Path::new(BPFFS)) {
        println!("  have     BPF file system at {BPFFS}");
        return Ok(());
    }
    println!("  mount    BPF file system at {BPFFS}: the program and its tables are pinned there");
    let mount = privilege.command("mount", &format!("to mount it (`sudo mount -t bpf bpf {BPFFS}`)"));
    mount?.args(["-t", "bpf", "bpf", BPFFS]).run()
}

/// Major and minor of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn is_bpffs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_to_its_minor_number() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert_eq!(version("6.18-rc1"), Some((6, 18)));
        assert_eq!(version("six"), None);
    }
}
