//! What the host must have before a program can be attached: privileges, a kernel that knows all that is used, the BPF
//! file system, an interface without another program.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use futures_util::TryStreamExt as _;
use nix::{
    mount::{MsFlags, mount},
    sys::{
        statfs::{BPF_FS_MAGIC, statfs},
        utsname::uname,
    },
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};

use super::program::Mode;

/// The kernel from which on everything in use is there (long-term support of 2021).
const OLDEST_KERNEL: (u32, u32) = (5, 15);
const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";

/// Everything about the host that has nothing to do with an interface.
pub(super) fn check() -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    privileges(&status)?;
    let release = uname().context("cannot ask for the kernel's version")?;
    kernel(&release.release().to_string_lossy())?;
    ensure!(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        "this kernel has no type information (/sys/kernel/btf/vmlinux is missing), without which the XDP program is \
         not taken: boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as all distributions' are"
    );
    Ok(())
}

/// Reads the effective capabilities from the text of /proc/self/status.
fn privileges(status: &str) -> anyhow::Result<()> {
    // Numbers of linux/capability.h. The kernel gives maps by their id (the scheduler's) to CAP_SYS_ADMIN alone.
    const NEEDED: [(&str, u32); 4] =
        [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .context("/proc/self/status has no capabilities")?;
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(_, bit)| effective & (1 << bit) == 0).map(|(name, _)| *name).collect();
    ensure!(
        missing.is_empty(),
        "this process may not load XDP programs (it lacks {}): run it as root, or give it these capabilities",
        missing.join(", ")
    );
    Ok(())
}

fn kernel(release: &str) -> anyhow::Result<()> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        bail!("cannot read the kernel's version {release:?}");
    };
    let (oldest_major, oldest_minor) = OLDEST_KERNEL;
    ensure!(
        (major, minor) >= OLDEST_KERNEL,
        "this kernel is {release}, and the XDP program needs {oldest_major}.{oldest_minor} or newer: boot a newer one"
    );
    Ok(())
}

/// Makes sure that the pin directory exists and is in a BPF file system; mounts that where it belongs.
pub(super) fn make_pin_dir(pin_dir: &Path) -> anyhow::Result<()> {
    let usual = Path::new(BPF_FILE_SYSTEM);
    if pin_dir.starts_with(usual) && !is_bpf(usual) {
        mount(Some("bpf"), usual, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("cannot mount the BPF file system on {BPF_FILE_SYSTEM}"))?;
    }
    let base = nearest_existing(pin_dir);
    ensure!(
        is_bpf(&base),
        "{} is not in a BPF file system, and programs can be pinned nowhere else: use a pin directory below \
         {BPF_FILE_SYSTEM}, or `mount -t bpf bpf {}`",
        pin_dir.display(),
        base.display()
    );
    for directory in ["maps", "programs", "links"].map(|name| pin_dir.join(name)) {
        fs::create_dir_all(&directory).with_context(|| {
            format!("cannot make {} (the BPF file system takes no dots in names)", directory.display())
        })?;
    }
    Ok(())
}

pub(super) fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|file_system| file_system.filesystem_type() == BPF_FS_MAGIC)
}

fn nearest_existing(path: &Path) -> PathBuf {
    let existing = path.ancestors().find(|path| path.exists());
    existing.unwrap_or(Path::new("/")).to_owned()
}

/// An interface, as far as XDP is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
    /// The program on it, and how it runs.
    pub(super) program: Option<(u32, Mode)>,
}

/// All interfaces of this network namespace.
pub(super) fn interfaces() -> anyhow::Result<Vec<Interface>> {
    // The caller may be inside an async runtime, which can't be entered twice; a thread keeps the namespace.
    let asking = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _unsolicited) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let messages: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
            connection.abort();
            anyhow::Ok(messages.iter().map(Interface::from_message).collect())
        })
    };
    let asked = thread::scope(|scope| scope.spawn(asking).join());
    asked
        .unwrap_or_else(|_| Err(anyhow!("the thread that asks ended in a panic")))
        .context("cannot list the network interfaces")
}

/// The interface of that name.
pub(super) fn interface(name: &str) -> anyhow::Result<Interface> {
    let interfaces = interfaces()?;
    let names: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
    let known = names.join(", ");
    match interfaces.iter().find(|interface| interface.name == name) {
        Some(interface) => Ok(interface.clone()),
        None => {
            bail!("there is no interface {name}: there are {known} (node.interfaces in the configuration)")
        }
    }
}

impl Interface {
    fn from_message(message: &LinkMessage) -> Self {
        let mut interface = Self { index: message.header.index, name: String::new(), mtu: 0, program: None };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
                LinkAttribute::Xdp(xdp) => interface.program = program_of(xdp),
                _ => {}
            }
        }
        interface
    }
}

fn program_of(attributes: &[LinkXdp]) -> Option<(u32, Mode)> {
    let id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
            Some(*id)
        }
        _ => None,
    })?;
    let generic =
        attributes.iter().any(|attribute| matches!(attribute, LinkXdp::Attached(XdpAttached::SocketBuffer)));
    Some((id, if generic { Mode::Generic } else { Mode::Native }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused_by_version() {
        for release in ["5.15.0-91-generic", "6.1.0-18-amd64", "6.18.3", "10.0"] {
            kernel(release).unwrap();
        }
        for release in ["5.14.21", "4.18.0-513.el8.x86_64"] {
            let error = kernel(release).unwrap_err().to_string();
            assert!(error.contains(release) && error.contains("5.15"), "{error}");
        }
        assert!(kernel("nonsense").is_err() && kernel("").is_err());
    }

    #[test]
    fn missing_capabilities_are_named() {
        privileges("Name:\tx\nCapEff:\t000001ffffffffff\n").unwrap();
        let error = privileges("CapEff:\t0000008000001000\n").unwrap_err().to_string();
        assert!(error.contains("lacks CAP_SYS_ADMIN, CAP_PERFMON)"), "{error}");
        assert!(privileges("Name:\tx\n").is_err());
    }

    #[test]
    fn a_directory_elsewhere_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let error = make_pin_dir(&directory.path().join("a/b")).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf"), "{error}");
        assert!(!directory.path().join("a").exists());
    }

    #[test]
    fn a_missing_interface_is_refused_with_those_there_are() {
        let error = interface("eth77").unwrap_err().to_string();
        assert!(error.contains("no interface eth77") && error.contains("lo"), "{error}");
    }
}
