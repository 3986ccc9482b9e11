//! From tables of another size or an older layout to those that are wanted, with everything in them, under traffic.
//!
//! 1. New tables are made beside the old ones, pinned in a directory of their own, and the new program is loaded with them.
//! 2. A first pass carries every row over, while the old program goes on. If something has no room, it ends here, and
//!    nothing has happened.
//! 3. The new program takes the old one's place in the link, between two packets. It forwards what it knows. What it finds
//!    no row for it drops ([`Reason::Carrying`](lb_common::reason::Reason::Carrying)), instead of answering with RST or
//!    giving out a port: whoever sent it sends it again.
//! 4. A second pass carries over what the old program wrote meanwhile. It takes milliseconds; should the daemon die in it,
//!    the program stops waiting after three seconds, and the next start does the pass again.
//! 5. The new pins take the old ones' places; the old tables go.

use std::{fs, os::fd::AsFd, time::Duration};

use anyhow::{Context as _, ensure};
use lb_common::{
    clock::Ticks,
    control::{LAYOUT_VERSION, Snat},
    maps::{self, MapSpec},
};
use tracing::{info, warn};

use super::{
    Geometry, Maps, Region,
    attach::{pin_programs, pinned_link},
    bpf::{self, OpenFor},
    host::Interface,
    pinned::{self, Access, Pins},
    program,
};
use crate::{core::apply::wait_for_packets, object::PROGRAM};

mod carry;
mod old;
mod ports;
#[cfg(test)]
mod tests;

pub use carry::Carried;
pub(super) use old::is_readable;

use carry::Carrier;
use old::{ControlWords, Old};

/// For how long the program waits for rows that may come.
const LONGEST: Duration = Duration::from_secs(3);

/// The maps that are made anew: the tables, and what says how they are to be read. All others are kept.
pub(super) const REMADE: [&MapSpec; 8] = [
    &maps::CONTROL,
    &maps::FLOWS,
    &maps::HALF_OPEN,
    &maps::FLOW_TAGS,
    &maps::HALF_OPEN_TAGS,
    &maps::STICKY,
    &maps::PORT_CELLS,
    &maps::PORT_CURSORS,
];

/// Carries everything over into tables of the wanted sizes and today's layout.
///
/// # Errors
/// Something has no room in them, or the kernel refused. If the new program was not running yet, all is as it was.
pub(super) fn migrate(pins: &Pins, target: &Interface, geometry: &Geometry) -> anyhow::Result<Carried> {
    let staged = pins.staged();
    fs::create_dir_all(pins.next()).with_context(|| format!("cannot make {}", pins.next().display()))?;
    let prepared = prepare(pins, &staged, target, geometry);
    if prepared.is_err() {
        discard(pins)?;
    }
    let carried = prepared?;
    swap(pins)?;
    Ok(carried)
}

fn prepare(pins: &Pins, staged: &Pins, target: &Interface, geometry: &Geometry) -> anyhow::Result<Carried> {
    let old = Old::open(pins)?;
    let mut object = program::load(staged, geometry)?;
    let new = pinned::open_at(staged, Access::ReadWrite)?;
    settle(&old, staged, &new, geometry)?;
    let mut carrier = Carrier::new(&old, &new);
    carrier.first(new.now()?);
    ensure!(
        carrier.carried.lost == 0,
        "{} flows and sticky records have no room in tables of {geometry}: choose larger ones (node.tables, \
         node.snat_ports), or wait until there are fewer; everything is as it was",
        carrier.carried.lost
    );
    let link = pinned_link(pins, target)?;
    let program = program::xdp(&mut object, PROGRAM)?.fd()?.try_clone()?;
    wait_for_rows(&new)?;
    pin_programs(pins, &mut object)?;
    if let Some((link, _)) = link {
        bpf::replace(&link, &program)
            .context("cannot put the new program into the link of the running one")?;
    }
    replace_elsewhere(pins, target, program.as_fd());
    // From here on there is no way back: the new program runs.
    finish(&mut carrier, &new);
    Ok(carrier.carried)
}

/// Puts the new program into the links on the other interfaces. The first one has it already, so there is no way back: what
/// fails is said, and tried again by whoever attaches there.
fn replace_elsewhere(pins: &Pins, target: &Interface, program: impl AsFd + Copy) {
    let names = program::link_pins(pins).unwrap_or_default();
    for name in names.iter().filter(|name| **name != target.name) {
        let replaced = bpf::open(&pins.link(name), OpenFor::Everything).and_then(|link| {
            if bpf::link_info(&link)?.interface == 0 { Ok(()) } else { bpf::replace(&link, program) }
        });
        if let Err(error) = replaced {
            warn!("the new program could not be put into the link on {name} yet: {error}");
        }
    }
}

/// What the control map says is kept, but for what is new.
fn settle(old: &Old, staged: &Pins, new: &Maps, geometry: &Geometry) -> anyhow::Result<()> {
    let control: Region<ControlWords> = pinned::region(staged, &maps::CONTROL, Access::ReadWrite)?;
    for (to, from) in control.iter().flatten().zip(old.control.iter().flatten()) {
        to.store(from.load());
    }
    let ports = geometry.snat();
    let snat = Snat { first_port: ports.first_port, ports: ports.ports, ..old.snat };
    new.control().snat.store(snat.word());
    new.control().unused.store(0);
    new.control().layout.store(LAYOUT_VERSION);
    Ok(())
}

fn wait_for_rows(new: &Maps) -> anyhow::Result<()> {
    let milliseconds = u64::try_from(LONGEST.as_millis())?;
    let until = new.now()?.plus(Ticks::span_of_millis(milliseconds, new.control().hz.load()));
    new.control().carrying.store(1 << 32 | u64::from(until.0));
    Ok(())
}

/// The second pass, when no packet is under way in the old program any more. It must not fail: what can't be had, such as
/// the time, is done without.
fn finish(carrier: &mut Carrier<'_>, new: &Maps) {
    if let Err(error) = wait_for_packets(new) {
        warn!("packets under way were not waited for: {error:#}");
    }
    match new.now() {
        Ok(now) => carrier.second(now),
        Err(error) => warn!("what was written during the migration is lost: {error:#}"),
    }
    new.control().carrying.store(0);
}

/// Takes up a migration that was cut off: finishes it if the new program runs already, else clears it away.
///
/// # Errors
/// The kernel refused.
pub(super) fn recover(pins: &Pins) -> anyhow::Result<Option<Carried>> {
    if !pins.next().exists() {
        return Ok(None);
    }
    let running = running_maps(pins)?;
    let staged = pins.staged();
    let in_use = |spec: &MapSpec| -> anyhow::Result<bool> {
        let exists = pins.next().join(spec.name).exists();
        Ok(exists && running.contains(&pinned::open_map(&staged, spec, Access::ReadOnly)?.info()?.id()))
    };
    let carried = if in_use(&maps::CONTROL)? {
        info!("a migration was cut off after the new program began to run: it is finished now");
        let (old, new) = (Old::open(pins)?, pinned::open_at(&staged, Access::ReadWrite)?);
        let mut carrier = Carrier::new(&old, &new);
        wait_for_rows(&new)?;
        finish(&mut carrier, &new);
        Some(carrier.carried)
    } else {
        None
    };
    let mut kept = false;
    for spec in REMADE {
        kept |= in_use(spec)?;
    }
    if kept {
        swap(pins)?;
    } else {
        discard(pins)?;
    }
    Ok(carried)
}

/// The ids of the maps that the attached program uses.
fn running_maps(pins: &Pins) -> anyhow::Result<Vec<u32>> {
    let mut ids = Vec::new();
    for name in program::link_pins(pins)? {
        let path = pins.link(&name);
        let info = bpf::open(&path, OpenFor::Everything)
            .and_then(bpf::link_info)
            .with_context(|| format!("cannot ask about {}", path.display()))?;
        if let Some(program) = program::by_id(info.program) {
            ids.extend(program.map_ids()?.unwrap_or_default());
        }
    }
    Ok(ids)
}

/// The new pins take the old ones' places. The control map goes first: where it is tells a later start whether the rows
/// are all there.
fn swap(pins: &Pins) -> anyhow::Result<()> {
    for spec in REMADE {
        let (from, to) = (pins.next().join(spec.name), pins.map(spec.name));
        if from.exists() {
            fs::rename(&from, &to)
                .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))?;
        }
    }
    discard(pins)
}

fn discard(pins: &Pins) -> anyhow::Result<()> {
    let next = pins.next();
    for spec in REMADE {
        super::load::remove(&next.join(spec.name))
            .with_context(|| format!("cannot remove {}/{}", next.display(), spec.name))?;
    }
    fs::remove_dir(&next).with_context(|| format!("cannot remove {}", next.display()))
}
