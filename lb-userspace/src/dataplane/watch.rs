//! Watching that the program stays where it was attached and the maps where they are pinned, and putting them back.

use std::fs;

use anyhow::{Context as _, anyhow};

use super::{
    attach::attach_pinned,
    bpf::{self, OpenFor},
    held::Held,
    host::{self, Interface},
    load::{Attached, DataPath},
    lock::Lock,
    pinned::Pins,
};
use crate::{config::XdpMode, object::PROGRAM};

impl DataPath {
    /// Puts the program back where it was taken off by force (`bpftool link detach`) or the interface is another one of
    /// the same name, and pins anew what was removed from the pin directory; says so if it did. A few system calls if all
    /// is well. An interface that is not there is no error.
    ///
    /// # Errors
    /// Something is off, and can't be put back: what, and why.
    pub fn put_back(&mut self, mode: XdpMode) -> anyhow::Result<Option<String>> {
        let mut done = Vec::new();
        done.extend(self.pin_again()?);
        let pins = Pins::new(&self.pin_dir);
        let mut wrong = Vec::new();
        for place in std::iter::once(&mut self.attached).chain(&mut self.others) {
            match put_back(&pins, place, mode) {
                Ok(said) => done.extend(said),
                Err(error) => wrong.push(format!("{error:#}")),
            }
        }
        if !done.is_empty() {
            self.hold()?;
        }
        match wrong.as_slice() {
            [] => Ok((!done.is_empty()).then(|| done.join("; "))),
            wrong => Err(anyhow!(wrong.join("; "))),
        }
    }

    /// Takes descriptors of everything that is pinned now.
    ///
    /// # Errors
    /// Something could not be opened.
    pub(super) fn hold(&mut self) -> anyhow::Result<()> {
        let places = std::iter::once(&self.attached).chain(&self.others);
        let names: Vec<&str> = places.map(|place| place.interface.as_str()).collect();
        self.held = Held::of(&Pins::new(&self.pin_dir), &names)?;
        Ok(())
    }

    fn pin_again(&mut self) -> anyhow::Result<Option<String>> {
        let again = self.held.pin_again(&self.pin_dir)?;
        if !self.lock.is_of(&self.pin_dir) {
            self.lock = Lock::take(&self.pin_dir)?;
        }
        Ok((again > 0).then(|| {
            format!(
                "{again} pins were removed from {}, and are there again: the program, its link and the tables were never gone",
                self.pin_dir.display()
            )
        }))
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
    let Some(target) = host::interfaces()?.into_iter().find(|there| there.name == *name) else {
        return Ok(None);
    };
    if link.is_ok() {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let program = bpf::open(&pins.program(PROGRAM), OpenFor::Everything).with_context(off)?;
    let done = what_was_done(place, &target);
    *place = attach_pinned(pins, &program, &target, mode).with_context(off)?;
    Ok(Some(done))
}

fn what_was_done(place: &Attached, target: &Interface) -> String {
    let name = &target.name;
    match place.index {
        0 => format!("{name} is there, and the program is on it"),
        index if index != target.index => {
            format!(
                "{name} was made anew (it is number {} now), and the program is on it again",
                target.index
            )
        }
        _ => format!("somebody had taken the program off {name}, and it is back: no session was lost by it"),
    }
}
