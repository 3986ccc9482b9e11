//! One run of QEMU: bounded in time, its two serial lines kept in files.

use std::{
    fs::{self, File},
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{kernels::Unpacked, tools::Tools};

/// In MiB: the initramfs, and the tables of a daemon in the lab.
const MEMORY: &str = "3072";
const LOOKS_EVERY: Duration = Duration::from_millis(100);

/// Where a run writes.
pub(crate) struct Lines<'a> {
    /// The kernel's console.
    pub(crate) console: &'a Path,
    /// What the first process and the tests print.
    pub(crate) report: &'a Path,
}

/// Boots the kernel with this initramfs and waits until the machine is off; what it printed in the report.
pub(crate) fn run(
    tools: &Tools,
    kernel: &Unpacked,
    initramfs: &Path,
    lines: &Lines<'_>,
    limit: Duration,
) -> Result<String> {
    // No KVM: where it is nested, as in most clouds, stock kernels do not start in it.
    let machine = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35"];
    let processor = ["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", MEMORY];
    let network = ["-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0"];
    let mut qemu = tools.qemu();
    qemu.args(machine).args(processor).args(network);
    qemu.arg("-serial").arg(format!("file:{}", lines.console.display()));
    qemu.arg("-serial").arg(format!("file:{}", lines.report.display()));
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    qemu.args(["-append", "console=ttyS0 panic=-1 oops=panic loglevel=4 mitigations=off"]);
    let complaints = lines.console.with_extension("qemu");
    let file = File::create(&complaints).with_context(|| format!("cannot write {}", complaints.display()))?;
    let mut child = qemu.stdin(Stdio::null()).stderr(Stdio::from(file)).spawn()?;
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for QEMU")? {
            break status;
        }
        if Instant::now() > end {
            child.kill().and_then(|()| child.wait()).context("cannot stop QEMU")?;
            bail!(
                "the machine was not done after {} s and was stopped: see {} and {}, or give it longer (--limit)",
                limit.as_secs(),
                lines.report.display(),
                lines.console.display()
            );
        }
        thread::sleep(LOOKS_EVERY);
    };
    if !status.success() {
        bail!("QEMU ended with {status}: {}", fs::read_to_string(&complaints).unwrap_or_default().trim_end());
    }
    let report = fs::read(lines.report);
    let report = report.with_context(|| format!("cannot read {}", lines.report.display()))?;
    Ok(String::from_utf8_lossy(&report).replace('\r', ""))
}
