//! The maps as they are pinned in the BPF file system.
//!
//! Array maps become mapped memory; what is left for system calls (time, scheduler tables, counters) is
//! [`PinnedKernel`].

use std::{
    io::ErrorKind,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, ensure};
use aya::maps::{ArrayOfMaps, DevMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use lb_common::{
    control::{Control, LAYOUT_VERSION},
    maps::{self, INNER_MAP, MapKind, MapSpec, Traffic},
    reason::REASONS,
};

use super::{
    CountersOf, FlowTable, Kernel, Maps, Region,
    bpf::{self, OpenFor},
    migrate::REMADE,
    region::Plain,
};
use crate::object::CLOCK_PROGRAM;

/// What the maps are opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading: a write through the returned [`Maps`] ends the process with SIGSEGV, and calls that write fail.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// Where things are pinned below the pin directory.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    pub(super) dir: PathBuf,
    /// Whether the tables are those of a migration, in [`Pins::next`].
    staged: bool,
}

impl Pins {
    pub(super) fn new(pin_dir: &Path) -> Self {
        Self { dir: pin_dir.to_owned(), staged: false }
    }
    pub(super) fn maps(&self) -> PathBuf {
        self.dir.join("maps")
    }
    pub(super) fn map(&self, name: &str) -> PathBuf {
        let is_remade = self.staged && REMADE.iter().any(|spec| spec.name == name);
        if is_remade { self.next().join(name) } else { self.maps().join(name) }
    }
    /// Where a migration keeps its new tables until they take the old ones' places.
    pub(super) fn next(&self) -> PathBuf {
        self.dir.join("next")
    }
    /// The same with the tables of a migration.
    pub(super) fn staged(&self) -> Self {
        Self { dir: self.dir.clone(), staged: true }
    }
    pub(super) fn programs(&self) -> PathBuf {
        self.dir.join("programs")
    }
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }
    pub(super) fn links(&self) -> PathBuf {
        self.dir.join("links")
    }
    /// The file system takes no dots in names, and interfaces (VLANs) have them.
    pub(super) fn link(&self, interface: &str) -> PathBuf {
        self.links().join(interface.replace('%', "%25").replace('.', "%2E"))
    }
    pub(super) fn interface_of(file: &str) -> String {
        file.replace("%2E", ".").replace("%25", "%")
    }
}

/// Opens the pinned maps.
///
/// # Errors
/// Nothing is pinned, the caller may not open it, or it is of another version of Steadfast.
pub fn open(pin_dir: &Path, access: Access) -> anyhow::Result<Maps> {
    open_at(&Pins::new(pin_dir), access)
}

/// As [`open`].
pub(super) fn open_at(pins: &Pins, access: Access) -> anyhow::Result<Maps> {
    let control: Region<Control> = region(pins, &maps::CONTROL, access)?;
    // Maps of another layout may have other values.
    check_layout(&control[0], &pins.dir)?;
    Ok(Maps {
        control,
        service_index: region(pins, &maps::SERVICE_INDEX, access)?,
        services: region(pins, &maps::SERVICES, access)?,
        servers: region(pins, &maps::SERVERS, access)?,
        flows: flow_table(pins, &maps::FLOWS, &maps::FLOW_TAGS, access)?,
        half_open: flow_table(pins, &maps::HALF_OPEN, &maps::HALF_OPEN_TAGS, access)?,
        sticky: region(pins, &maps::STICKY, access)?,
        port_cells: region(pins, &maps::PORT_CELLS, access)?,
        port_cursors: region(pins, &maps::PORT_CURSORS, access)?,
        server_loads: region(pins, &maps::SERVER_LOADS, access)?,
        turns: region(pins, &maps::TURNS, access)?,
        picks: region(pins, &maps::RECENT_PICKS, access)?,
        service_info: region(pins, &maps::SERVICE_INFO, access)?,
        server_info: region(pins, &maps::SERVER_INFO, access)?,
        kernel: Box::new(PinnedKernel::open(pins, access)?),
    })
}

fn flow_table(pins: &Pins, rows: &MapSpec, tags: &MapSpec, access: Access) -> anyhow::Result<FlowTable> {
    Ok(FlowTable::new(region(pins, rows, access)?, region(pins, tags, access)?))
}

/// # Errors
/// The maps were set up by a version whose maps mean something else.
fn check_layout(control: &Control, pin_dir: &Path) -> anyhow::Result<()> {
    let layout = control.layout.load();
    ensure!(
        layout == 0 || layout == LAYOUT_VERSION,
        "the maps under {} have layout {layout}, and this version of Steadfast reads layout {LAYOUT_VERSION}: use the \
         version that runs; a newer daemon carries older maps over when it starts",
        pin_dir.display()
    );
    Ok(())
}

fn open_pin(path: &Path, access: Access) -> anyhow::Result<OwnedFd> {
    let open_for = match access {
        Access::ReadOnly => OpenFor::Reading,
        Access::ReadWrite => OpenFor::Everything,
    };
    bpf::open(path, open_for).map_err(|error| {
        let advice = match error.kind() {
            ErrorKind::NotFound => {
                ": the load balancer is not running here (steadfastd starts it), or its pins are elsewhere (--pin-dir)"
            }
            ErrorKind::PermissionDenied => ": it takes root",
            _ => "",
        };
        anyhow::Error::new(error).context(format!("cannot open {}{advice}", path.display()))
    })
}

/// `BPF_F_RDONLY_PROG`, which the kernel itself gives a device map.
const FLAGS_OF_THE_KERNEL: u32 = 1 << 7;

/// Opens a pinned map, if it is what `spec` says but for its size.
pub(super) fn open_map(pins: &Pins, spec: &MapSpec, access: Access) -> anyhow::Result<MapData> {
    let path = pins.map(spec.name);
    let fd = open_pin(&path, access)?;
    let map = MapData::from_fd(fd).with_context(|| format!("{} is not a map", path.display()))?;
    let info = map.info().with_context(|| format!("cannot ask about {}", path.display()))?;
    let kind = info.map_type().map(|kind| kind as u32).unwrap_or(0);
    let found = [kind, info.key_size(), info.value_size(), info.map_flags() & !FLAGS_OF_THE_KERNEL];
    let wanted = [spec.kind as u32, key_size(spec.kind), spec.value_size, spec.flags];
    ensure!(
        found == wanted,
        "{} is a map of another version of Steadfast (kind, key, value and flags are {found:?}, not {wanted:?}): \
         use that version, or give the sessions up with `steadfastd detach` and start anew",
        path.display()
    );
    Ok(map)
}

/// Bytes of a key.
const fn key_size(kind: MapKind) -> u32 {
    match kind {
        MapKind::Array | MapKind::PerCpuArray | MapKind::ArrayOfMaps | MapKind::DevMap => 4,
        MapKind::RingBuf => 0,
    }
}

pub(super) fn region<T: Plain>(pins: &Pins, spec: &MapSpec, access: Access) -> anyhow::Result<Region<T>> {
    // The kernel maps a map into memory only for who may write it; the mapping itself is read-only if so wanted.
    let map = open_map(pins, spec, Access::ReadWrite)?;
    let rows = spec.rows as usize;
    ensure!(
        size_of::<T>() * rows == spec.value_size as usize,
        "the table of maps is wrong about {}",
        spec.name
    );
    let entries = map.info()?.max_entries() as usize;
    Region::map(map.fd().as_fd(), entries * rows, access == Access::ReadWrite)
        .with_context(|| format!("cannot map {} into memory", spec.name))
}

/// Bytes of a value of a scheduler table.
const VALUE_BYTES: u32 = u64::BITS / 8;
/// Words of [`Traffic`]; aya's arrays take words.
const TRAFFIC_WORDS: usize = size_of::<Traffic>() / 8;
type TrafficWords = [u64; TRAFFIC_WORDS];

const fn traffic(words: TrafficWords) -> Traffic {
    let [packets_in, bytes_in, packets_out, bytes_out, flows, resets] = words;
    Traffic { packets_in, bytes_in, packets_out, bytes_out, flows, resets }
}

/// The maps and programs that take system calls.
pub struct PinnedKernel {
    clock: OwnedFd,
    schedule: Mutex<ArrayOfMaps<MapData, MapData>>,
    schedule_map: OwnedFd,
    arms: Mutex<DevMap<MapData>>,
    reasons: PerCpuArray<MapData, u64>,
    services: Mutex<PerCpuArray<MapData, TrafficWords>>,
    servers: Mutex<PerCpuArray<MapData, TrafficWords>>,
}

impl PinnedKernel {
    pub(super) fn open(pins: &Pins, access: Access) -> anyhow::Result<Self> {
        let map = |spec| -> anyhow::Result<_> { Ok(Map::from_map_data(open_map(pins, spec, access)?)?) };
        let schedule = open_map(pins, &maps::SCHEDULE, access)?;
        let schedule_map = schedule.fd().as_fd().try_clone_to_owned()?;
        Ok(Self {
            clock: open_pin(&pins.program(CLOCK_PROGRAM), Access::ReadWrite)?,
            schedule: Mutex::new(Map::from_map_data(schedule)?.try_into()?),
            schedule_map,
            arms: Mutex::new(map(&maps::ARMS)?.try_into()?),
            reasons: map(&maps::REASON_COUNTERS)?.try_into()?,
            services: Mutex::new(map(&maps::SERVICE_COUNTERS)?.try_into()?),
            servers: Mutex::new(map(&maps::SERVER_COUNTERS)?.try_into()?),
        })
    }

    fn inner(&self, service: u16) -> anyhow::Result<Option<MapData>> {
        let outer = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
        match outer.get(&u32::from(service), 0) {
            Ok(map) => Ok(Some(map)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read the scheduler table of service {service}"))
            }
        }
    }
}

impl Kernel for PinnedKernel {
    fn jiffies(&self) -> anyhow::Result<u64> {
        /// `XDP_PASS`.
        const PASS: u32 = 2;
        let (result, packet) = bpf::test_run(&self.clock).context("cannot run the clock program")?;
        let (jiffies, _) = packet.split_first_chunk().context("a packet has more than 8 bytes")?;
        ensure!(
            result == PASS,
            "the clock program ended with {result}: it is not what was built with this version"
        );
        Ok(u64::from_ne_bytes(*jiffies))
    }

    fn set_arm(&self, arm: u8, interface: u32) -> anyhow::Result<()> {
        let mut arms = self.arms.lock().unwrap_or_else(PoisonError::into_inner);
        arms.set(u32::from(arm), interface, None, 0)
            .with_context(|| format!("packets cannot be sent out by interface number {interface}"))
    }

    fn set_schedule(&self, service: u16, values: &[u64]) -> anyhow::Result<()> {
        let index = u32::from(service);
        if values.is_empty() {
            return match bpf::delete(&self.schedule_map, index) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
                    .with_context(|| format!("cannot remove the scheduler table of service {service}")),
                _ => Ok(()),
            };
        }
        let map = schedule_of(service, values)?;
        bpf::insert_maps(&self.schedule_map, &[(index, map.as_fd())])
            .with_context(|| format!("cannot replace the scheduler table of service {service}"))
    }

    fn set_schedules(&self, tables: &[(u16, &[u64])]) -> anyhow::Result<()> {
        let (empty, full): (Vec<_>, Vec<_>) = tables.iter().partition(|(_, values)| values.is_empty());
        for (service, values) in empty {
            self.set_schedule(service, values)?;
        }
        for tables in full.chunks(SCHEDULES_AT_ONCE) {
            let maps: Vec<OwnedFd> = tables
                .iter()
                .map(|(service, values)| schedule_of(*service, values))
                .collect::<anyhow::Result<_>>()?;
            let entries: Vec<(u32, BorrowedFd<'_>)> = tables
                .iter()
                .zip(&maps)
                .map(|((service, _), map)| (u32::from(*service), map.as_fd()))
                .collect();
            bpf::insert_maps(&self.schedule_map, &entries).context("cannot replace scheduler tables")?;
        }
        Ok(())
    }

    fn schedule(&self, service: u16) -> anyhow::Result<Option<Vec<u64>>> {
        let Some(map) = self.inner(service)? else {
            return Ok(None);
        };
        let size = map.info()?.max_entries();
        let values = bpf::read_all(map.fd().as_fd(), size)
            .with_context(|| format!("cannot read the scheduler table of service {service}"))?;
        Ok(Some(values))
    }

    fn reasons(&self) -> anyhow::Result<Vec<u64>> {
        (0..)
            .take(REASONS)
            .map(|reason| Ok(self.reasons.get(&reason, 0)?.iter().sum()))
            .collect::<Result<_, MapError>>()
            .context("cannot read the counters of reasons")
    }

    fn service_traffic(&self, service: u16) -> anyhow::Result<Traffic> {
        sum(&self.services, service).with_context(|| format!("cannot read the counters of service {service}"))
    }

    fn server_traffic(&self, server: u16) -> anyhow::Result<Traffic> {
        sum(&self.servers, server).with_context(|| format!("cannot read the counters of server {server}"))
    }

    fn clear_traffic(&self, of: CountersOf) -> anyhow::Result<()> {
        let (counters, id) = match of {
            CountersOf::Service(id) => (&self.services, id),
            CountersOf::Server(id) => (&self.servers, id),
        };
        let zeros = vec![[0; TRAFFIC_WORDS]; aya::util::nr_cpus().map_err(|(_, error)| error)?];
        let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters
            .set(u32::from(id), PerCpuValues::try_from(zeros)?, 0)
            .with_context(|| format!("cannot clear the counters of {of:?}"))
    }
}

/// Inner maps that are made before they are put in force together: each is an open file meanwhile.
const SCHEDULES_AT_ONCE: usize = 256;

/// An inner map with these values.
fn schedule_of(service: u16, values: &[u64]) -> anyhow::Result<OwnedFd> {
    let size = u32::try_from(values.len()).context("a scheduler table has fewer than 2^32 values")?;
    let context = || format!("cannot make a scheduler table of {size} values for service {service}");
    let map = bpf::create_array("SCHEDULE.inner", VALUE_BYTES, size, INNER_MAP).with_context(context)?;
    bpf::write_all(&map, values).with_context(context)?;
    Ok(map)
}

fn sum(counters: &Mutex<PerCpuArray<MapData, TrafficWords>>, id: u16) -> anyhow::Result<Traffic> {
    let counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
    let mut sums = [0; TRAFFIC_WORDS];
    for words in counters.get(&u32::from(id), 0)?.iter() {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = u64::wrapping_add(*sum, *word);
        }
    }
    Ok(traffic(sums))
}

/// Makes and pins an array that the loader of the program does not make, unless it is there.
pub(super) fn create(pins: &Pins, spec: &MapSpec, entries: u32) -> anyhow::Result<()> {
    if pins.map(spec.name).exists() {
        return Ok(());
    }
    let map = bpf::create_array(spec.name, spec.value_size, entries, spec.flags)
        .with_context(|| format!("cannot create the map {}", spec.name))?;
    bpf::pin(&map, &pins.map(spec.name)).with_context(|| format!("cannot pin the map {}", spec.name))
}
