//! The interfaces beside the first: servers and clients may be on different ones.

use std::path::Path;

use anyhow::Context as _;
use aya::programs::ProgramInfo;
use tracing::warn;

use super::{
    attach::{adopted, attach_pinned, pinned_link, refuse_foreign},
    bpf::{self, OpenFor},
    host,
    load::{Attached, DataPath},
    pinned::Pins,
    program,
};
use crate::{config::XdpMode, object::PROGRAM};

/// Looks for programs of others on the interfaces, before anything is done to any of them.
///
/// # Errors
/// Another program is on one of them.
pub fn check(pin_dir: &Path, interfaces: &[String]) -> anyhow::Result<()> {
    let pins = Pins::new(pin_dir);
    let there = host::interfaces()?;
    let named = there.iter().filter(|interface| interfaces.contains(&interface.name));
    named.into_iter().try_for_each(|interface| refuse_foreign(&pins, interface))
}

/// Says which interfaces have the program although nobody names them any more.
///
/// # Errors
/// The pinned links could not be listed.
pub fn warn_of_others(pin_dir: &Path, interfaces: &[String]) -> anyhow::Result<()> {
    for other in program::link_pins(&Pins::new(pin_dir))? {
        if !interfaces.contains(&other) {
            warn!(
                "the program is pinned on {other} too, from an earlier start: `steadfastd detach` takes it off"
            );
        }
    }
    Ok(())
}

impl DataPath {
    /// Attaches the program, which is on its first interface, to one more; or adopts it there, and puts the program of
    /// this build into its link. An interface that is not there gets it when it comes ([`DataPath::put_back`]).
    ///
    /// # Errors
    /// Another program is on the interface, or the kernel refused.
    pub fn extend(&mut self, interface: &str, mode: XdpMode) -> anyhow::Result<()> {
        let pins = Pins::new(&self.pin_dir);
        let Some(target) = host::interfaces()?.into_iter().find(|there| there.name == interface) else {
            self.others.push(Attached::awaited(interface));
            return Ok(());
        };
        refuse_foreign(&pins, &target)?;
        let path = pins.program(PROGRAM);
        let context = || format!("cannot open {}", path.display());
        let program = bpf::open(&path, OpenFor::Everything).with_context(context)?;
        let id = ProgramInfo::from_pin(&path).with_context(context)?.id();
        let attached = if let Some((link, info)) = pinned_link(&pins, &target)? {
            if info.program != id {
                bpf::replace(&link, &program)
                    .with_context(|| format!("cannot put the new program into the link on {interface}"))?;
            }
            adopted(&target, bpf::link_info(&link).context("cannot ask about the link")?, mode)?
        } else {
            attach_pinned(&pins, &program, &target, mode)?
        };
        self.others.push(attached);
        self.hold()
    }
}
