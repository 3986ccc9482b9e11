//! Starting, adopting and removing the data path.
//!
//! Everything that carries sessions is pinned: the maps, the program and the link that holds it on its interface. The
//! daemon comes and goes; a start finds what is there and keeps it, and puts a newer program into the same link, from
//! one packet to the next. Only [`detach`] takes the program off.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use lb_common::{
    control::{Control, LAYOUT_VERSION, Snat},
    maps::{self, MapSpec, Users},
};

use super::{
    Geometry, Maps, Region,
    attach::{adopt, adopted, attach_pinned, pin_programs, pinned_link, refuse_foreign},
    bpf::{self, OpenFor},
    held::Held,
    host::{self, Interface},
    lock::Lock,
    migrate::{self, Carried, migrate},
    pinned::{self, Access, Pins},
    program::{self, Mode},
};
use crate::{config::XdpMode, object::PROGRAM};

/// The running data path. Dropping it changes nothing: the program stays where it is.
pub struct DataPath {
    /// The maps.
    pub maps: Arc<Maps>,
    /// Where the program is.
    pub attached: Attached,
    /// Where else it is.
    pub others: Vec<Attached>,
    pub(super) pin_dir: PathBuf,
    pub(super) held: Held,
    pub(super) lock: Lock,
}

/// How [`DataPath::start`] found things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// No program was on the interface. The maps may be older: a start that was interrupted, an interface made anew.
    Fresh,
    /// The program was there, with its sessions.
    Adopted {
        /// It was of another build, and has been replaced between two packets.
        program_replaced: bool,
    },
    /// The tables were of another size or an older layout, and everything in them was carried over.
    Migrated(Carried),
}

/// Where and how the program is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface's name.
    pub interface: String,
    /// The kernel's number of it; zero: there is none of that name.
    pub index: u32,
    /// The id of the running program, by which its log lines are found.
    pub program: u32,
    /// The id of the link; it stays the same for as long as the program is attached.
    pub link: u32,
    /// How the program runs.
    pub mode: Mode,
    /// Why it does not run as the configuration would have it.
    pub note: Option<String>,
}

impl Attached {
    /// To an interface that is not there.
    pub(super) fn awaited(interface: &str) -> Self {
        let interface = interface.to_owned();
        Self { interface, index: 0, program: 0, link: 0, mode: Mode::Native, note: None }
    }
}

impl DataPath {
    /// Attaches the program to an interface, or adopts the one that is there.
    ///
    /// The control map's `layout` is zero after the first start, and the program passes everything until it is written.
    /// This blocks for as long as the kernel's verifier takes, about a second; it may be called in an async runtime's
    /// blocking thread or before the runtime starts.
    ///
    /// # Errors
    /// One sentence: what the host lacks, what is in the way, or how the pinned maps differ; and what to do. What was
    /// there before is as it was.
    pub fn start(
        pin_dir: &Path,
        interface: &str,
        mode: XdpMode,
        geometry: Geometry,
    ) -> anyhow::Result<(Self, Started)> {
        host::check()?;
        geometry.check()?;
        let pins = Pins::new(pin_dir);
        refuse_foreign(&pins, &host::interface(interface)?)?;
        host::make_pin_dir(pin_dir)?;
        let lock = Lock::take(pin_dir)?;
        // Asked again: whoever had the lock a moment ago may have attached or detached.
        let target = host::interface(interface)?;
        let nothing_was_there = !pins.map(maps::CONTROL.name).exists();
        let resumed = migrate::recover(&pins)?;
        let geometry = match control(&pins)? {
            Some(control) if control[0].layout.load() != 0 => {
                geometry.beside(Snat::from_word(control[0].snat.load()))
            }
            _ => geometry,
        };
        let migrated =
            if settle_pins(&pins, &geometry)? { Some(migrate(&pins, &target, &geometry)?) } else { resumed };
        // A migration has put another program there.
        let target = if migrated.is_some() { host::interface(interface)? } else { target };
        let begun = bring_up(&pins, &target, mode, &geometry);
        if begun.is_err() && nothing_was_there {
            // Tables that nobody uses would hold their memory.
            let _the_first_error_counts = remove_pins(&pins);
        }
        let (attached, started) = begun?;
        let started = migrated.map_or(started, Started::Migrated);
        let maps = Arc::new(pinned::open(pin_dir, Access::ReadWrite)?);
        let held = Held::of(&pins, &[interface])?;
        Ok((Self { maps, attached, others: Vec::new(), pin_dir: pin_dir.to_owned(), held, lock }, started))
    }
}

/// Loads, and attaches or adopts.
fn bring_up(
    pins: &Pins,
    target: &Interface,
    mode: XdpMode,
    geometry: &Geometry,
) -> anyhow::Result<(Attached, Started)> {
    let mut object = program::load(pins, geometry)?;
    for spec in maps::ALL.iter().filter(|spec| spec.users == Users::UserSpace) {
        pinned::create(pins, spec, geometry.entries(spec))?;
    }
    if let Some((link, info)) = pinned_link(pins, target)? {
        let program_replaced = adopt(pins, &mut object, &link, info.program)?;
        let info = bpf::link_info(&link).context("cannot ask about the link")?;
        let attached = adopted(target, info, mode)?;
        return Ok((attached, Started::Adopted { program_replaced }));
    }
    pin_programs(pins, &mut object)?;
    let program = program::xdp(&mut object, PROGRAM)?.fd()?.try_clone()?;
    let attached = attach_pinned(pins, &program, target, mode)?;
    Ok((attached, Started::Fresh))
}

/// Makes sure that the maps that are pinned have the wanted sizes. Unused ones (a first start that was interrupted)
/// make way. True if those with sessions have others, and are to be carried over.
fn settle_pins(pins: &Pins, geometry: &Geometry) -> anyhow::Result<bool> {
    let control = control(pins)?;
    let layout = control.as_ref().map_or(0, |control| control[0].layout.load());
    let in_use = layout != 0 || !program::link_pins(pins)?.is_empty();
    refuse_layout(pins, layout)?;
    let mut differs = layout != 0 && layout != LAYOUT_VERSION;
    for spec in &maps::ALL {
        let carried = layout != 0 && migrate::REMADE.contains(&spec);
        if carried && layout != LAYOUT_VERSION {
            // Its values may have been others, too.
            continue;
        }
        let Some(entries) = other_size(pins, spec, geometry)? else { continue };
        if carried {
            differs = true;
        } else if in_use {
            bail!(
                "the table {} ({}) has {entries} entries and {} are wanted: it can't change under way, so end all \
                 sessions with `steadfastd detach` and start again",
                spec.name,
                spec.description,
                geometry.entries(spec)
            );
        } else {
            remove(&pins.map(spec.name))
                .with_context(|| format!("cannot remove the unused map {}", spec.name))?;
        }
    }
    let snat = Snat::from_word(control.map_or(0, |control| control[0].snat.load()));
    let wanted = geometry.snat();
    ensure!(
        layout == 0 || snat.adopt(wanted).is_some(),
        "the running data path has {} IPv4 and {} IPv6 source addresses, and {} and {} are wanted: open connections are \
         found by these, so keep them, or end all sessions with `steadfastd detach` and start again",
        snat.sources,
        snat.sources_v6,
        wanted.sources,
        wanted.sources_v6
    );
    let other_ports = (snat.first_port, snat.ports) != (wanted.first_port, wanted.ports);
    Ok(differs || (layout != 0 && other_ports))
}

fn refuse_layout(pins: &Pins, layout: u64) -> anyhow::Result<()> {
    ensure!(
        layout == 0 || migrate::is_readable(layout),
        "the maps under {} have layout {layout}, and this version of Steadfast carries over layouts up to \
         {LAYOUT_VERSION}: a newer version made them, and nothing can be carried back. It goes on forwarding: start the \
         newer version again, or give the sessions up with `steadfastd detach` and start this one",
        pins.dir.display()
    );
    Ok(())
}

/// How many entries a pinned map has, if it is there and has others than wanted.
fn other_size(pins: &Pins, spec: &MapSpec, geometry: &Geometry) -> anyhow::Result<Option<u32>> {
    if !pins.map(spec.name).exists() {
        return Ok(None);
    }
    let entries = pinned::open_map(pins, spec, Access::ReadOnly)?.info()?.max_entries();
    Ok((entries != geometry.entries(spec)).then_some(entries))
}

/// The pinned control map, if there is one.
fn control(pins: &Pins) -> anyhow::Result<Option<Region<Control>>> {
    if !pins.map(maps::CONTROL.name).exists() {
        return Ok(None);
    }
    pinned::region(pins, &maps::CONTROL, Access::ReadOnly).map(Some)
}

/// What [`detach`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// The interfaces that the program was taken off.
    pub interfaces: Vec<String>,
    /// Programs and maps that were unpinned.
    pub pins: usize,
}

/// A data path that nobody else can take over meanwhile, about to be removed.
pub struct Seized {
    pin_dir: PathBuf,
    lock: Option<Lock>,
}

impl Seized {
    /// Takes the lock of what is pinned. Nothing pinned is no error.
    ///
    /// # Errors
    /// A daemon is running.
    pub fn take(pin_dir: &Path) -> anyhow::Result<Self> {
        let lock = if pin_dir.exists() {
            ensure!(
                host::is_bpf(pin_dir),
                "{} is not in a BPF file system: nothing of Steadfast's is pinned there",
                pin_dir.display()
            );
            Some(Lock::take(pin_dir)?)
        } else {
            None
        };
        Ok(Self { pin_dir: pin_dir.to_owned(), lock })
    }

    /// Takes the program off and removes everything that is pinned: all sessions end.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove(self) -> anyhow::Result<Detached> {
        if self.lock.is_none() {
            return Ok(Detached::default());
        }
        remove_pins(&Pins::new(&self.pin_dir))
    }
}

/// Takes the program off and removes everything that is pinned: all sessions end. Nothing pinned is no error.
///
/// # Errors
/// A daemon is running, or the kernel refused.
pub fn detach(pin_dir: &Path) -> anyhow::Result<Detached> {
    Seized::take(pin_dir)?.remove()
}

fn remove_pins(pins: &Pins) -> anyhow::Result<Detached> {
    let mut detached = Detached::default();
    for interface in program::link_pins(pins)? {
        let path = pins.link(&interface);
        let context = || format!("cannot take the program off {interface}");
        let link = bpf::open(&path, OpenFor::Everything).with_context(context)?;
        let is_attached = bpf::link_info(&link).with_context(context)?.interface != 0;
        if is_attached {
            bpf::detach(&link).with_context(context)?;
        }
        remove(&path).with_context(context)?;
        detached.interfaces.push(interface);
    }
    for directory in [pins.programs(), pins.next(), pins.maps()] {
        for entry in list(&directory)? {
            remove(&entry).with_context(|| format!("cannot remove {}", entry.display()))?;
            detached.pins += 1;
        }
    }
    for directory in [pins.links(), pins.programs(), pins.next(), pins.maps(), pins.dir.clone()] {
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
            }
            _ => {}
        }
    }
    Ok(detached)
}

fn list(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Removes a file that may be there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
