//! The programs: the one that is attached, the one that tells the time, and others that are in the way.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::Map,
    programs::{ProgramError, ProgramInfo, Xdp, loaded_programs},
};
use jiff::Timestamp;
use lb_common::{
    maps::{self, MapSpec, Users},
    table::BUCKET,
};
use nix::{fcntl::OFlag, unistd::dup3_raw};
use serde::Serialize;

use super::{
    Geometry,
    bpf::{self, OpenFor},
    host::interfaces,
    pinned::{self, Access, Pins},
};
use crate::object::{CLOCK_PROGRAM, OBJECT, PROGRAM};

/// How an XDP program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
}

impl Mode {
    /// The name in configuration and views.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// A program that is pinned, for whoever asks what runs here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramStatus {
    /// Its name.
    pub name: String,
    /// The kernel's number of it.
    pub id: u32,
    /// The kernel's digest of its instructions.
    pub tag: String,
    /// When it was loaded.
    pub loaded_at: Option<Timestamp>,
    /// How often it ran and for how long, while the kernel counts that (sysctl `kernel.bpf_stats_enabled`).
    pub runs: Option<(u64, Duration)>,
    /// Instructions that the verifier walked through.
    pub verified_instructions: Option<u32>,
    /// Bytes of machine code.
    pub machine_code: u32,
    /// Where it is attached.
    pub attached: Vec<AttachedTo>,
}

/// A place where a program is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedTo {
    /// The interface's name when it was attached.
    pub interface: String,
    /// The id of the link.
    pub link: u32,
    /// How it runs; `None` if the interface is gone, or in another network namespace than the caller.
    pub mode: Option<Mode>,
}

/// The programs pinned under a pin directory.
///
/// # Errors
/// Nothing is pinned there, or the kernel would not tell.
pub fn status(pin_dir: &Path) -> anyhow::Result<Vec<ProgramStatus>> {
    let pins = Pins::new(pin_dir);
    let links = attached(&pins)?;
    [PROGRAM, CLOCK_PROGRAM]
        .into_iter()
        .map(|name| {
            let path = pins.program(name);
            let info = ProgramInfo::from_pin(&path).with_context(|| {
                format!("cannot open {}: the load balancer is not running here", path.display())
            })?;
            Ok(ProgramStatus::of(name, &info, &links))
        })
        .collect()
}

impl ProgramStatus {
    fn of(name: &str, info: &ProgramInfo, links: &[(u32, AttachedTo)]) -> Self {
        let mine = links.iter().filter(|(program, _)| *program == info.id());
        Self {
            name: name.to_owned(),
            id: info.id(),
            tag: format!("{:016x}", info.tag()),
            loaded_at: info.loaded_at().and_then(|at| Timestamp::try_from(at).ok()),
            runs: (info.run_count() > 0).then(|| (info.run_count(), info.run_time())),
            verified_instructions: info.verified_instruction_count(),
            machine_code: info.size_jitted(),
            attached: mine.map(|(_, attached)| attached.clone()).collect(),
        }
    }
}

/// The pinned links, each with the id of its program.
fn attached(pins: &Pins) -> anyhow::Result<Vec<(u32, AttachedTo)>> {
    let interfaces = interfaces()?;
    link_pins(pins)?
        .into_iter()
        .map(|interface| {
            let path = pins.link(&interface);
            let link = bpf::open(&path, OpenFor::Everything)
                .and_then(bpf::link_info)
                .with_context(|| format!("cannot ask about {}", path.display()))?;
            let on = interfaces.iter().find(|there| there.index == link.interface);
            let program = on.and_then(|there| there.program);
            let mode = program.and_then(|(id, mode)| (id == link.program).then_some(mode));
            let attached = AttachedTo { interface, link: link.id, mode };
            Ok((link.program, attached))
        })
        .collect()
}

/// The names of the interfaces that links are pinned for; none if there is no such directory.
pub(super) fn link_pins(pins: &Pins) -> anyhow::Result<Vec<String>> {
    let directory = pins.links();
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
    entries.map(|entry| Ok(Pins::interface_of(&entry?.file_name().to_string_lossy()))).collect()
}

/// Loads the object: makes and pins the maps that are not there yet, and has the kernel verify both programs.
pub(super) fn load(pins: &Pins, geometry: &Geometry) -> anyhow::Result<Ebpf> {
    let masks = [
        ("FLOW_BUCKET_MASK", geometry.flows / BUCKET - 1),
        ("HALF_OPEN_BUCKET_MASK", geometry.half_open / BUCKET - 1),
        ("STICKY_BUCKET_MASK", geometry.sticky / BUCKET - 1),
    ];
    let mut loader = EbpfLoader::new();
    for (name, mask) in &masks {
        loader.override_global(name, mask, true);
    }
    for spec in maps::ALL.iter().filter(|spec| spec.users == Users::Both) {
        loader
            .map_max_entries(spec.name, geometry.entries(spec))
            .map_pin_path(spec.name, pins.map(spec.name));
    }
    let of_memory = || {
        let megabytes = bytes(geometry) >> 20;
        format!("cannot create the maps (they take {megabytes} MiB of memory)")
    };
    pinned::create(pins, &maps::CONTROL, maps::CONTROL.max_entries).with_context(of_memory)?;
    let mut object = loader.load(OBJECT).with_context(of_memory)?;
    let control = pinned::open_map(pins, &maps::CONTROL, Access::ReadWrite)?;
    put_control(&object, control.fd().as_fd())?;
    for name in [PROGRAM, CLOCK_PROGRAM] {
        verify(xdp(&mut object, name)?).map_err(|error| refused(name, error))?;
    }
    Ok(object)
}

/// How often a program is offered to a kernel that was interrupted while it verified it; as libbpf has it (`PROG_LOAD_ATTEMPTS`).
const ATTEMPTS: usize = 5;

/// Has the kernel verify a program. That takes a second or more, and a signal to the thread ends it with `EAGAIN`.
fn verify(program: &mut Xdp) -> Result<(), ProgramError> {
    for _ in 1..ATTEMPTS {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
            }
            loaded => return loaded,
        }
    }
    program.load()
}

/// Has the program find its settings in this map: to be called before it is loaded. The loader itself would write what the object has
/// in that section, zeros, over the settings of a running data path.
///
/// # Errors
/// The object has no such section, or the kernel refuses.
pub fn put_control(object: &Ebpf, control: BorrowedFd<'_>) -> anyhow::Result<()> {
    let section = object.map(maps::CONTROL_SECTION).context("the object has no section of settings")?;
    let Map::Array(section) = section else { bail!("the object's section of settings is no array") };
    let place = section.fd().as_fd().as_raw_fd();
    // SAFETY: the loader has the descriptor for as long as it lives, and only ever names it to the kernel; from now on it is one
    // of the other map, of the same kind and size.
    let same =
        unsafe { dup3_raw(control, place, OFlag::O_CLOEXEC) }.context("cannot put the settings there")?;
    // It is the loader's.
    let _place = same.into_raw_fd();
    Ok(())
}

/// A map for settings that is pinned nowhere.
///
/// # Errors
/// The kernel refuses.
pub fn control() -> io::Result<OwnedFd> {
    let MapSpec { name, value_size, max_entries, flags, .. } = maps::CONTROL;
    bpf::create_array(name, value_size, max_entries, flags)
}

/// Memory of all maps with one value an entry.
fn bytes(geometry: &Geometry) -> u64 {
    let of = |spec: &MapSpec| u64::from(spec.value_size) * u64::from(geometry.entries(spec));
    maps::ALL.iter().map(of).sum()
}

pub(super) fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = object.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    program.try_into().with_context(|| format!("{name} is not an XDP program"))
}

/// The verifier's log can have a million lines; its end says what is wrong.
fn refused(name: &str, error: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return anyhow::Error::new(error).context(format!("cannot load the program {name}"));
    };
    let log = verifier_log.to_string();
    let mut end: Vec<&str> = log.lines().rev().filter(|line| !line.is_empty()).take(6).collect();
    end.reverse();
    anyhow!(
        "the kernel does not take the program {name} ({io_error}), which is a defect of this version or of this \
         kernel; the verifier says: {}",
        end.join(" | ")
    )
}

/// The loaded program with this id, if there is one.
pub(super) fn by_id(id: u32) -> Option<ProgramInfo> {
    loaded_programs().filter_map(Result::ok).find(|program| program.id() == id)
}

/// A program's id and name, for a sentence.
pub(super) fn describe(id: u32) -> String {
    match by_id(id) {
        Some(info) => format!("program {id} ({})", String::from_utf8_lossy(info.name())),
        None => format!("program {id}"),
    }
}
