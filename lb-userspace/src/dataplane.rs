//! The shared maps, from user space.
//!
//! Whatever is mapped memory is a [`Region`], in the kernel's maps or on the heap alike, and works through the traits
//! and algorithms of `lb_common`, the same that the program uses. What needs a system call is behind [`Kernel`], with a
//! real body (`pinned.rs`), a fake one ([`fake`]) and a faulty one.

use lb_common::{
    address::Address,
    clock::Ticks,
    control::Control,
    hash::HashKey,
    maps::{ServerInfo, ServiceInfo, Traffic},
    ports::Cells,
    schedule::LoadSlot,
    server::{ServerSlot, Servers},
    service::{Index, IndexSlot, Service, ServiceSlot},
    sticky::{STICKY_WORDS, StickyKey, StickySlot},
    table::{BUCKET, Bucket, Slot, Slots},
    word::Word,
};

pub mod arms;
mod attach;
mod bpf;
pub mod census;
pub mod clock;
pub mod confirm;
pub mod fake;
pub mod flow_table;
pub mod geometry;
mod held;
mod host;
pub mod load;
pub mod loads;
mod lock;
pub mod migrate;
pub mod pinned;
pub mod program;
pub mod region;
pub mod repair;
pub mod return_hops;
pub mod sweep;
#[cfg(test)]
mod traffic;
mod watch;

pub use clock::Clock;
pub use flow_table::FlowTable;
pub use geometry::Geometry;
pub use load::DataPath;
pub use region::Region;

/// What of the maps needs a system call.
pub trait Kernel: Send + Sync {
    /// The kernel's `jiffies_64` now.
    ///
    /// # Errors
    /// The clock program could not be run.
    fn jiffies(&self) -> anyhow::Result<u64>;

    /// Replaces a service's scheduler table whole; no packet sees half of it.
    ///
    /// # Errors
    /// The kernel refused the new inner map.
    fn set_schedule(&self, service: u16, values: &[u64]) -> anyhow::Result<()>;

    /// Replaces many services' scheduler tables, each whole. After a replacement the kernel waits for all packets under way, some
    /// milliseconds; it may do so once for many.
    ///
    /// # Errors
    /// The kernel refused one of the inner maps; those before it are replaced.
    fn set_schedules(&self, tables: &[(u16, &[u64])]) -> anyhow::Result<()> {
        tables.iter().try_for_each(|(service, values)| self.set_schedule(*service, values))
    }

    /// Has packets that leave by an arm sent to the interface of this index.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refused.
    fn set_arm(&self, arm: u8, interface: u32) -> anyhow::Result<()>;

    /// A service's scheduler table, if it has one.
    ///
    /// # Errors
    /// The map could not be read.
    fn schedule(&self, service: u16) -> anyhow::Result<Option<Vec<u64>>>;

    /// Packets by reason, summed over CPUs, in the order of `Reason::ALL`.
    ///
    /// # Errors
    /// The map could not be read.
    fn reasons(&self) -> anyhow::Result<Vec<u64>>;

    /// A service's traffic, summed over CPUs.
    ///
    /// # Errors
    /// The map could not be read.
    fn service_traffic(&self, service: u16) -> anyhow::Result<Traffic>;

    /// A server's traffic, summed over CPUs.
    ///
    /// # Errors
    /// The map could not be read.
    fn server_traffic(&self, server: u16) -> anyhow::Result<Traffic>;

    /// Sets a service's or server's counters to zero, when its id is given to another.
    ///
    /// # Errors
    /// The map could not be written.
    fn clear_traffic(&self, of: CountersOf) -> anyhow::Result<()>;
}

/// Whose counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountersOf {
    /// The service with this id.
    Service(u16),
    /// The server with this id.
    Server(u16),
}

/// All maps.
pub struct Maps {
    /// Settings.
    pub control: Region<Control>,
    /// Services and endpoints by address and port, two generations.
    pub service_index: Region<IndexSlot>,
    /// Services by id.
    pub services: Region<ServiceSlot>,
    /// Servers by id.
    pub servers: Region<ServerSlot>,
    /// Established flows.
    pub flows: FlowTable,
    /// Half-open flows.
    pub half_open: FlowTable,
    /// Sticky records.
    pub sticky: Region<StickySlot>,
    /// SNAT ports.
    pub port_cells: Region<Word>,
    /// The next SNAT port.
    pub port_cursors: Region<Word>,
    /// Open flows and weights of servers.
    pub server_loads: Region<LoadSlot>,
    /// Turns of `round-robin` by service.
    pub turns: Region<Word>,
    /// What was picked lately, by client.
    pub picks: Region<Word>,
    /// Labels and settings of services.
    pub service_info: Region<ServiceInfo>,
    /// Labels and states of servers.
    pub server_info: Region<ServerInfo>,
    /// The rest.
    pub kernel: Box<dyn Kernel>,
}

impl Maps {
    /// The settings.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control[0]
    }

    /// The secret of the tables.
    #[must_use]
    pub fn key(&self) -> HashKey {
        self.control().key()
    }

    /// What a client's record with a service is found by when it connects to this port of it (as on the wire).
    #[must_use]
    pub fn sticky_key(&self, client: Address, service: u16, port: u16) -> StickyKey {
        let entry = self.services.get(usize::from(service)).and_then(Service::load);
        entry.map_or(StickyKey { client, service, port: 0 }, |entry| entry.sticky_key(service, client, port))
    }

    /// The data path's time now.
    ///
    /// # Errors
    /// The clock program could not be run.
    pub fn now(&self) -> anyhow::Result<Ticks> {
        Ok(Ticks::from_jiffies(self.kernel.jiffies()?))
    }
}

impl Slots<STICKY_WORDS> for Region<StickySlot> {
    fn bucket(&self, number: u32) -> Option<&Bucket<STICKY_WORDS>> {
        bucket_of(self, number)
    }

    fn slot(&self, index: u32) -> Option<&StickySlot> {
        self.get(index as usize)
    }

    fn bucket_mask(&self) -> u32 {
        bucket_mask_of(self)
    }
}

fn bucket_of<const N: usize>(slots: &[Slot<N>], number: u32) -> Option<&Bucket<N>> {
    slots.get(number as usize * BUCKET as usize..)?.first_chunk()
}

#[expect(clippy::cast_possible_truncation, reason = "tables have fewer than 2^32 slots")]
const fn bucket_mask_of<const N: usize>(slots: &[Slot<N>]) -> u32 {
    (slots.len() as u32 / BUCKET).wrapping_sub(1)
}

/// The SNAT ports of [`Maps`].
pub struct PortMaps<'a>(pub &'a Maps);

impl Cells for PortMaps<'_> {
    fn cell(&self, index: u32) -> Option<&Word> {
        self.0.port_cells.get(index as usize)
    }

    fn cursor(&self, pair: u32) -> Option<&Word> {
        self.0.port_cursors.get(pair as usize)
    }
}

impl Servers for Region<ServerSlot> {
    fn server(&self, id: u16) -> Option<&ServerSlot> {
        self.get(usize::from(id))
    }
}

/// The service index of [`Maps`].
pub struct IndexMap<'a>(pub &'a Region<IndexSlot>);

impl Index for IndexMap<'_> {
    fn entry(&self, index: u32) -> Option<&IndexSlot> {
        self.0.get(index as usize)
    }
}
