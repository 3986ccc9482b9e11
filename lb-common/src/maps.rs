//! The maps: every name, kind and size, once. The program's object is compared with this table by a test.

use crate::cache;
use crate::control::{Control, MAX_ARMS};
use crate::flow::FlowSlot;
use crate::picks::PICKS;
use crate::reason::REASONS;
use crate::schedule::LoadSlot;
use crate::server::ServerSlot;
use crate::service::{INDEX_CAPACITY, IndexSlot, MAX_SERVERS, MAX_SERVICES, ServiceSlot};
use crate::sticky::StickySlot;
use crate::table::BUCKET;

/// `BPF_MAP_TYPE_*`, the ones in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_ARRAY`.
    Array = 2,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray = 6,
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
    ArrayOfMaps = 12,
    /// `BPF_MAP_TYPE_DEVMAP`.
    DevMap = 14,
    /// `BPF_MAP_TYPE_RINGBUF`: no keys, no values, `max_entries` bytes.
    RingBuf = 27,
}

/// `BPF_F_MMAPABLE`.
pub const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_INNER_MAP`: inner maps may differ in size.
pub const INNER_MAP: u32 = 1 << 12;

/// Who uses a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    /// The program and user space.
    Both,
    /// User space alone: names and states for whoever reads the maps.
    UserSpace,
    /// The program alone: what each program that is loaded makes anew, and is pinned nowhere.
    Program,
}

/// A map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Its name, in the object and where it is pinned.
    pub name: &'static str,
    /// Its kind.
    pub kind: MapKind,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries in the object; tables that the configuration sizes are created with other numbers.
    pub max_entries: u32,
    /// Rows in a value: a table's bucket is one value, so that looking a bucket up finds all of its slots.
    pub rows: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    /// Who uses it.
    pub users: Users,
    /// What it holds.
    pub description: &'static str,
}

/// Counters of a service or a server, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// Packets from clients that were sent on.
    pub packets_in: u64,
    /// Their bytes, as Ethernet frames.
    pub bytes_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Their bytes, as Ethernet frames.
    pub bytes_out: u64,
    /// Flows established.
    pub flows: u64,
    /// Connections answered with RST.
    pub resets: u64,
}

/// Bytes of a label with its terminating zeros.
pub const LABEL_BYTES: usize = 64;

/// What user space says about a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceInfo {
    /// The label, padded with zeros; all zeros: the id is not in use.
    pub label: [u8; LABEL_BYTES],
    /// The address.
    pub address: [u64; 2],
    /// Persistence timeout in milliseconds; zero: none.
    pub persistence_ms: u64,
    /// Idle timeout in milliseconds.
    pub idle_ms: u64,
    /// When the id was given to this label, seconds since 1970.
    pub since: u64,
    /// The port, host byte order.
    pub port: u16,
    /// 1: tcp, 2: http.
    pub protocol: u8,
    /// 1: snat.
    pub forwarding: u8,
    /// Whether the daemon listens, where it answers itself. Lower half: 0: unknown, 1: it does, 2: the kernel refused it, for
    /// the errno in the upper half.
    pub listening: u32,
}

/// What user space says about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ServerInfo {
    /// The label, padded with zeros; all zeros: the id is not in use.
    pub label: [u8; LABEL_BYTES],
    /// The address.
    pub address: [u64; 2],
    /// Since when the health is what it is, seconds since 1970.
    pub health_since: u64,
    /// Expiry of the certificate that a TLS check saw, seconds since 1970; zero: unknown.
    pub certificate_expires: u64,
    /// The service's id.
    pub service: u16,
    /// The port, host byte order.
    pub port: u16,
    /// Weight in force.
    pub weight: u16,
    /// 1: online, 2: drain, 3: halt.
    pub state: u8,
    /// 0: unknown, 1: up, 2: down, 3: not checked, and taken for up, 4: up, and the reason is something to know; with
    /// [`ServerInfo::NO_VERDICT`] the checks say nothing now, and the reason is why.
    pub health: u8,
    /// Why the health is what it is, padded with zeros.
    pub health_reason: [u8; 96],
}

impl ServerInfo {
    /// The bit of [`ServerInfo::health`] that says that the checks say nothing about the server now.
    pub const NO_VERDICT: u8 = 0x80;
}

const _: () = assert!(size_of::<ServiceInfo>() == 112);
const _: () = assert!(size_of::<ServerInfo>() == 64 + 16 + 8 + 8 + 8 + 96);

impl MapSpec {
    /// Whether it is pinned, and so outlives the program and the daemon.
    #[must_use]
    pub const fn is_pinned(&self) -> bool {
        !matches!(self.users, Users::Program)
    }
}

const fn array(
    name: &'static str,
    value_size: usize,
    max_entries: u32,
    description: &'static str,
) -> MapSpec {
    MapSpec {
        name,
        kind: MapKind::Array,
        value_size: bytes(value_size),
        max_entries,
        rows: 1,
        flags: MMAPABLE,
        users: Users::Both,
        description,
    }
}

/// A table of so many rows, a bucket of them a value.
const fn table(name: &'static str, row_size: usize, rows: u32, description: &'static str) -> MapSpec {
    let value_size = row_size * BUCKET as usize;
    MapSpec { rows: BUCKET, ..array(name, value_size, rows / BUCKET, description) }
}

/// The [tags](crate::tags) of a table.
const fn tags(name: &'static str, of: &MapSpec, description: &'static str) -> MapSpec {
    array(name, size_of::<u64>(), of.max_entries, description)
}

impl MapSpec {
    /// What the object calls it.
    #[must_use]
    pub fn name_in_object(&self) -> &'static str {
        if self.name == CONTROL.name { CONTROL_SECTION } else { self.name }
    }
}

const fn counters(
    name: &'static str,
    value_size: usize,
    max_entries: u32,
    description: &'static str,
) -> MapSpec {
    MapSpec {
        name,
        kind: MapKind::PerCpuArray,
        value_size: bytes(value_size),
        max_entries,
        rows: 1,
        flags: 0,
        users: Users::Both,
        description,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "sizes of values, and arms, are few")]
const fn bytes(size: usize) -> u32 {
    size as u32
}

/// The section of the object in whose place [`CONTROL`] is put when the program is loaded.
pub const CONTROL_SECTION: &str = ".data.CONTROL";
/// [`Control`]. See [`CONTROL_SECTION`].
pub const CONTROL: MapSpec = array("CONTROL", size_of::<Control>(), 1, "settings of the data path");
/// [`IndexSlot`], two generations.
pub const SERVICE_INDEX: MapSpec = array(
    "SERVICE_INDEX",
    size_of::<IndexSlot>(),
    2 * INDEX_CAPACITY,
    "address and port to service or endpoint, two generations",
);
/// [`ServiceSlot`] by service id.
pub const SERVICES: MapSpec =
    array("SERVICES", size_of::<ServiceSlot>(), MAX_SERVICES, "virtual services by id");
/// [`ServerSlot`] by server id.
pub const SERVERS: MapSpec = array("SERVERS", size_of::<ServerSlot>(), MAX_SERVERS, "real servers by id");
/// [`FlowSlot`].
pub const FLOWS: MapSpec = table("FLOWS", size_of::<FlowSlot>(), 1 << 18, "established flows");
/// [`FlowSlot`].
pub const HALF_OPEN: MapSpec = table("HALF_OPEN", size_of::<FlowSlot>(), 1 << 16, "half-open flows");
/// A bucket's [tags](crate::tags) by the number of the bucket.
pub const FLOW_TAGS: MapSpec = tags("FLOW_TAGS", &FLOWS, "tags of the established flows' keys by bucket");
/// As [`FLOW_TAGS`].
pub const HALF_OPEN_TAGS: MapSpec =
    tags("HALF_OPEN_TAGS", &HALF_OPEN, "tags of the half-open flows' keys by bucket");
/// [`StickySlot`].
pub const STICKY: MapSpec = table("STICKY", size_of::<StickySlot>(), 1 << 18, "sticky records");
/// [`PortCell`](crate::ports::PortCell).
pub const PORT_CELLS: MapSpec = array("PORT_CELLS", 8, 1 << 15, "SNAT ports by endpoint, source and port");
/// The next port to try.
pub const PORT_CURSORS: MapSpec = array("PORT_CURSORS", 8, 1 << 8, "next SNAT port by endpoint and source");
/// Inner maps of [`Table`](crate::maglev::Table) values by service id.
pub const SCHEDULE: MapSpec = MapSpec {
    name: "SCHEDULE",
    kind: MapKind::ArrayOfMaps,
    value_size: 4,
    max_entries: MAX_SERVICES,
    rows: 1,
    flags: 0,
    users: Users::Both,
    description: "scheduler table by service id",
};
/// [`LoadSlot`] by server id.
pub const SERVER_LOADS: MapSpec =
    array("SERVER_LOADS", size_of::<LoadSlot>(), MAX_SERVERS, "open flows and weight by server id");
/// How many turns of `round-robin` there were.
pub const TURNS: MapSpec = array("TURNS", 8, MAX_SERVICES, "next turn of round-robin by service id");
/// See [`picks`](crate::picks).
pub const RECENT_PICKS: MapSpec = array("PICKS", 8, PICKS, "latest picks of least-conn and round-robin");
/// The interfaces of [`Control::arms`](crate::control::Control), for packets that leave by another than they came.
pub const ARMS: MapSpec = MapSpec {
    name: "ARMS",
    kind: MapKind::DevMap,
    value_size: 8,
    max_entries: bytes(MAX_ARMS),
    rows: 1,
    flags: 0,
    users: Users::Both,
    description: "interfaces by arm",
};
/// Packets by [`Reason`](crate::reason::Reason).
pub const REASON_COUNTERS: MapSpec = counters("REASONS", 8, REASON_SLOTS, "packets by reason");
/// Counters in that map: more than there are reasons, so that a build with a reason more can adopt it.
pub const REASON_SLOTS: u32 = 64;
const _: () = assert!(REASONS <= REASON_SLOTS as usize);
/// [`Traffic`] by service id.
pub const SERVICE_COUNTERS: MapSpec =
    counters("SERVICE_COUNTERS", size_of::<Traffic>(), MAX_SERVICES, "traffic by service id");
/// [`Traffic`] by server id.
pub const SERVER_COUNTERS: MapSpec =
    counters("SERVER_COUNTERS", size_of::<Traffic>(), MAX_SERVERS, "traffic by server id");
/// [`ServiceInfo`] by service id.
pub const SERVICE_INFO: MapSpec = MapSpec {
    users: Users::UserSpace,
    ..array("SERVICE_INFO", size_of::<ServiceInfo>(), MAX_SERVICES, "labels and settings by service id")
};
/// [`ServerInfo`] by server id.
pub const SERVER_INFO: MapSpec = MapSpec {
    users: Users::UserSpace,
    ..array("SERVER_INFO", size_of::<ServerInfo>(), MAX_SERVERS, "labels and states by server id")
};

/// [`cache::Entry`].
pub const CACHE: MapSpec = MapSpec {
    users: Users::Program,
    ..counters("CACHE", size_of::<cache::Entry>(), cache::ENTRIES, "latest decisions by headers")
};

/// The program's log lines, as aya-log wants them.
pub const LOGS: MapSpec = MapSpec {
    name: "AYA_LOGS",
    kind: MapKind::RingBuf,
    value_size: 0,
    max_entries: 1 << 17,
    rows: 1,
    flags: 0,
    users: Users::Both,
    description: "log lines of the program",
};

/// Every map.
pub const ALL: [MapSpec; 23] = [
    CONTROL,
    SERVICE_INDEX,
    SERVICES,
    SERVERS,
    FLOWS,
    HALF_OPEN,
    FLOW_TAGS,
    HALF_OPEN_TAGS,
    STICKY,
    PORT_CELLS,
    PORT_CURSORS,
    SCHEDULE,
    SERVER_LOADS,
    TURNS,
    RECENT_PICKS,
    ARMS,
    REASON_COUNTERS,
    SERVICE_COUNTERS,
    SERVER_COUNTERS,
    CACHE,
    SERVICE_INFO,
    SERVER_INFO,
    LOGS,
];
