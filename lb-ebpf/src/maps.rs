//! The program's maps, under the names and sizes of `lb_common::maps`.

use aya_ebpf::{
    bindings::xdp_action::XDP_DROP,
    btf_maps::{Array, ArrayOfMaps, DevMap, PerCpuArray},
    macros::btf_map,
};
use lb_common::{
    cache::Entry,
    control::{Control, LAYOUT_VERSION},
    flow::FLOW_WORDS,
    maps::{self, INNER_MAP, MMAPABLE, Traffic},
    mss::MssClamp,
    picks,
    ports::Cells,
    schedule::LoadSlot,
    server::{ServerSlot, Servers},
    service::{Index, IndexSlot, Service, ServiceSlot},
    sticky::STICKY_WORDS,
    table::{Bucket, Slots},
    word::Word,
};

const MMAP: usize = MMAPABLE as usize;

#[btf_map(name = "SERVICE_INDEX")]
static SERVICE_INDEX: Array<IndexSlot, { maps::SERVICE_INDEX.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "SERVICES")]
static SERVICES: Array<ServiceSlot, { maps::SERVICES.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "SERVERS")]
static SERVERS: Array<ServerSlot, { maps::SERVERS.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "FLOWS")]
static FLOWS: Array<Bucket<FLOW_WORDS>, { maps::FLOWS.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "HALF_OPEN")]
static HALF_OPEN: Array<Bucket<FLOW_WORDS>, { maps::HALF_OPEN.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "FLOW_TAGS")]
static FLOW_TAGS: Array<Word, { maps::FLOW_TAGS.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "HALF_OPEN_TAGS")]
static HALF_OPEN_TAGS: Array<Word, { maps::HALF_OPEN_TAGS.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "STICKY")]
static STICKY: Array<Bucket<STICKY_WORDS>, { maps::STICKY.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "PORT_CELLS")]
static PORT_CELLS: Array<Word, { maps::PORT_CELLS.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "PORT_CURSORS")]
static PORT_CURSORS: Array<Word, { maps::PORT_CURSORS.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "SCHEDULE")]
static SCHEDULE: ArrayOfMaps<Array<u64, 2, { INNER_MAP as usize }>, { maps::SCHEDULE.max_entries as usize }> =
    ArrayOfMaps::new();
#[btf_map(name = "SERVER_LOADS")]
static SERVER_LOADS: Array<LoadSlot, { maps::SERVER_LOADS.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "TURNS")]
static TURNS: Array<Word, { maps::TURNS.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "PICKS")]
static RECENT_PICKS: Array<Word, { maps::RECENT_PICKS.max_entries as usize }, MMAP> = Array::new();
#[btf_map(name = "ARMS")]
static ARMS: DevMap<{ maps::ARMS.max_entries as usize }> = DevMap::new();
#[btf_map(name = "REASONS")]
static REASON_COUNTERS: PerCpuArray<u64, { maps::REASON_COUNTERS.max_entries as usize }> = PerCpuArray::new();
#[btf_map(name = "SERVICE_COUNTERS")]
static SERVICE_COUNTERS: PerCpuArray<Traffic, { maps::SERVICE_COUNTERS.max_entries as usize }> =
    PerCpuArray::new();
#[btf_map(name = "SERVER_COUNTERS")]
static SERVER_COUNTERS: PerCpuArray<Traffic, { maps::SERVER_COUNTERS.max_entries as usize }> =
    PerCpuArray::new();

#[btf_map(name = "CACHE")]
static CACHE: PerCpuArray<Entry, { maps::CACHE.max_entries as usize }> = PerCpuArray::new();

/// A section of its own, and the loader puts the map of that name in its place: its address is a constant of the program, where a
/// look-up would take 17 instructions.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.CONTROL")]
// SAFETY: integers, zero until the daemon has written them.
static CONTROL: Control = unsafe { core::mem::zeroed() };

/// Buckets of each table, less one; set when the program is loaded, with the sizes of the maps.
#[unsafe(no_mangle)]
static FLOW_BUCKET_MASK: u32 = maps::FLOWS.max_entries - 1;
#[unsafe(no_mangle)]
static HALF_OPEN_BUCKET_MASK: u32 = maps::HALF_OPEN.max_entries - 1;
#[unsafe(no_mangle)]
static STICKY_BUCKET_MASK: u32 = maps::STICKY.max_entries - 1;

#[inline(always)]
fn constant(value: &'static u32) -> u32 {
    // SAFETY: a static is valid and aligned; volatile, because the loader replaces the value.
    unsafe { core::ptr::read_volatile(value) }
}

/// The settings.
#[inline(always)]
pub(crate) fn control() -> &'static Control {
    &CONTROL
}

/// Whether the daemon has made the settings.
#[inline(always)]
pub(crate) fn is_configured() -> bool {
    CONTROL.layout.load() == LAYOUT_VERSION
}

/// The service with this id, if the id is in use.
#[inline(always)]
pub(crate) fn service(id: u16) -> Option<Service> {
    Service::load(SERVICES.get(u32::from(id))?)
}

/// Whether a service wants to have the announced segments of SYNs lowered: asked before `clamp_mss` is called, which is seldom.
#[inline(always)]
pub(crate) fn clamps_mss(id: u16) -> bool {
    service(id).is_some_and(|service| !matches!(service.mss_clamp, MssClamp::None))
}

/// The value at `index` of a service's scheduler table.
#[inline(always)]
pub(crate) fn schedule(service: u16, index: u32) -> Option<u64> {
    SCHEDULE.get_value(u32::from(service), &index).copied()
}

/// What is counted of a server.
#[inline(always)]
pub(crate) fn load(server: u16) -> Option<&'static LoadSlot> {
    SERVER_LOADS.get(u32::from(server))
}

/// How many turns a service's `round-robin` had.
#[inline(always)]
pub(crate) fn turns(service: u16) -> Option<&'static Word> {
    TURNS.get(u32::from(service))
}

/// The cell of the latest pick for a client's hash.
#[inline(always)]
pub(crate) fn latest_pick(hash: u64) -> Option<&'static Word> {
    RECENT_PICKS.get(picks::place(hash))
}

/// Sends the packet out by another interface: the action for it.
#[inline(always)]
pub(crate) fn redirect(arm: u8) -> u32 {
    match ARMS.redirect(u32::from(arm), u64::from(XDP_DROP)) {
        Ok(action) | Err(action) => action,
    }
}

/// This CPU's counter of a reason.
#[inline(always)]
pub(crate) fn reason_counter(reason: u32) -> Option<*mut u64> {
    REASON_COUNTERS.get_ptr_mut(reason)
}

/// This CPU's counters of a service.
#[inline(always)]
pub(crate) fn service_traffic(id: u16) -> Option<*mut Traffic> {
    SERVICE_COUNTERS.get_ptr_mut(u32::from(id))
}

/// This CPU's counters of a server.
#[inline(always)]
pub(crate) fn server_traffic(id: u16) -> Option<*mut Traffic> {
    SERVER_COUNTERS.get_ptr_mut(u32::from(id))
}

/// This CPU's entry of the exact-match cache.
#[inline(always)]
pub(crate) fn cached(place: u32) -> Option<*mut Entry> {
    CACHE.get_ptr_mut(place)
}

/// A bucket that is there. The verifier follows no arithmetic on a pointer that may be null, and without this the compiler moves
/// that of a slot's place in front of the check.
#[inline(always)]
fn found<T>(bucket: &T) -> &T {
    let mut at: *const T = bucket;
    // SAFETY: nothing is done.
    unsafe { core::arch::asm!("{at} = {at}", at = inout(reg) at, options(nomem, nostack)) };
    // SAFETY: it is the same, and no null.
    unsafe {
        core::hint::assert_unchecked(!at.is_null());
        &*at
    }
}

/// The established flows.
pub(crate) struct Flows;

impl Slots<FLOW_WORDS> for Flows {
    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&Bucket<FLOW_WORDS>> {
        Some(found(FLOWS.get(number)?))
    }
    #[inline(always)]
    fn bucket_mask(&self) -> u32 {
        constant(&FLOW_BUCKET_MASK)
    }
    #[inline(always)]
    fn tags(&self, number: u32) -> Option<&Word> {
        FLOW_TAGS.get(number)
    }
}

/// The half-open flows.
pub(crate) struct HalfOpen;

impl Slots<FLOW_WORDS> for HalfOpen {
    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&Bucket<FLOW_WORDS>> {
        Some(found(HALF_OPEN.get(number)?))
    }
    #[inline(always)]
    fn bucket_mask(&self) -> u32 {
        constant(&HALF_OPEN_BUCKET_MASK)
    }
    #[inline(always)]
    fn tags(&self, number: u32) -> Option<&Word> {
        HALF_OPEN_TAGS.get(number)
    }
}

/// The sticky records.
pub(crate) struct StickyTable;

impl Slots<STICKY_WORDS> for StickyTable {
    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&Bucket<STICKY_WORDS>> {
        Some(found(STICKY.get(number)?))
    }
    #[inline(always)]
    fn bucket_mask(&self) -> u32 {
        constant(&STICKY_BUCKET_MASK)
    }
}

/// The SNAT ports.
pub(crate) struct Ports;

impl Cells for Ports {
    #[inline(always)]
    fn cell(&self, index: u32) -> Option<&Word> {
        PORT_CELLS.get(index)
    }
    #[inline(always)]
    fn cursor(&self, pair: u32) -> Option<&Word> {
        PORT_CURSORS.get(pair)
    }
}

/// The real servers.
pub(crate) struct ServerTable;

impl Servers for ServerTable {
    #[inline(always)]
    fn server(&self, id: u16) -> Option<&ServerSlot> {
        SERVERS.get(u32::from(id))
    }
}

/// The services and endpoints by address and port.
pub(crate) struct ServiceIndex;

impl Index for ServiceIndex {
    #[inline(always)]
    fn entry(&self, index: u32) -> Option<&IndexSlot> {
        SERVICE_INDEX.get(index)
    }
}
