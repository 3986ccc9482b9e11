//! Watching that the program stays where it was attached, and putting it back.

use std::fs;

use anyhow::Context as _;

use super::{
    attach::attach_pinned,
    bpf::{self, OpenFor},
    host,
    load::{Attached, DataPath},
    pinned::Pins,
};
use crate::{config::XdpMode, object::PROGRAM};

impl DataPath {
    /// Puts the program back if it was taken off by force (`bpftool link detach`); says so if it did. One system call or
    /// two if all is well.
    ///
    /// # Errors
    /// It is off, and can't be put back: why.
    pub fn put_back(&mut self, mode: XdpMode) -> anyhow::Result<Option<String>> {
        let pins = Pins::new(&self.pin_dir);
        let mut done = None;
        for place in std::iter::once(&mut self.attached).chain(&mut self.others) {
            done = put_back(&pins, place, mode)?.or(done);
        }
        Ok(done)
    }
}

fn put_back(pins: &Pins, place: &mut Attached, mode: XdpMode) -> anyhow::Result<Option<String>> {
    let name = &place.interface;
    let path = pins.link(name);
    let off = || format!("the program is off {name}");
    let link = bpf::open(&path, OpenFor::Everything).and_then(bpf::link_info);
    if link.as_ref().is_ok_and(|link| link.interface != 0) {
        return Ok(None);
    }
    let target = host::interface(name).with_context(off)?;
    if link.is_ok() {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let program = bpf::open(&pins.program(PROGRAM), OpenFor::Everything).with_context(off)?;
    let done =
        format!("somebody had taken the program off {name}, and it is back: no session was lost by it");
    *place = attach_pinned(pins, &program, &target, mode).with_context(off)?;
    Ok(Some(done))
}
