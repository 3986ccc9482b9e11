//! Where the kernel handles received packets: in the interrupt's wake, or in a thread of their own.

use std::fs;

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// How NAPI is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Napi {
    /// In the soft interrupt.
    Softirq,
    /// In a kernel thread that the scheduler places.
    Threaded,
}

impl Napi {
    pub(super) const ALL: [Self; 2] = [Self::Softirq, Self::Threaded];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Softirq => "softirq NAPI",
            Self::Threaded => "threaded NAPI",
        }
    }

    /// Sets it of an interface of the calling thread's namespace, on a thread that ends with it.
    ///
    /// # Errors
    /// /sys cannot be seen, or the kernel refuses.
    pub(super) fn set(self, interface: &str) -> Result<()> {
        // /sys shows the namespace that it was mounted in: this thread mounts one that goes with it.
        unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).context("no /sys")?;
        let path = format!("/sys/class/net/{interface}/threaded");
        let value = if self == Self::Threaded { "1" } else { "0" };
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
    }
}
