//! What the maps say, as records: for a person as tables, for a program as JSON.
//!
//! Everything here reads the maps and nothing else, so it works with the daemon dead. What the data path would do
//! ([`explain`]) is asked of the data path's own functions in `lb_common`, so the answer can't drift from the truth.
//!
//! ```text
//! Maps -> Snapshot (names, clock, daemon) -> records (serde, the fields of the contract) -> table | JSON
//! ```

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use lb_common::{control::LAYOUT_VERSION, hash::HashKey, service::EntryKind};

use crate::{core::apply::live_index, dataplane::Maps};

pub mod census;
pub mod daemon;
pub mod explain;
pub mod flow;
pub mod format;
pub mod map;
mod map_decode;
pub mod names;
pub mod plan;
pub mod ports;
pub mod program;
pub mod rates;
mod scheduler;
pub mod server;
pub mod service;
pub mod stats;
pub mod sticky;
pub mod table;
pub mod time;

#[cfg(test)]
mod explain_tests;
#[cfg(test)]
mod record_tests;
#[cfg(test)]
pub(crate) mod testing;

pub use census::Census;
pub use daemon::Daemon;
pub use names::{Names, ServerName};
pub use time::{Clock, Time};

/// One look at the maps: who is who, what time it is, and whether the daemon lives.
pub struct Snapshot<'m> {
    maps: &'m Maps,
    /// Services and servers by id.
    pub names: Names,
    /// The data path's time and the wall's.
    pub clock: Clock,
    /// The daemon's last sign of life.
    pub daemon: Daemon,
    key: HashKey,
    /// The ports of each service in the index.
    ports: BTreeMap<u16, BTreeSet<u16>>,
}

impl<'m> Snapshot<'m> {
    /// Reads the names and the clock; `wall` is the time now.
    ///
    /// # Errors
    /// The maps are not set up, are of another layout than this program reads, or the kernel refused.
    pub fn read(maps: &'m Maps, wall: Timestamp) -> anyhow::Result<Self> {
        let control = maps.control();
        let layout = control.layout.load();
        ensure!(
            layout != 0,
            "the maps are not set up yet; the daemon does that when it starts (steadfastd run)"
        );
        ensure!(
            layout == LAYOUT_VERSION,
            "the maps have layout version {layout}, this program reads version {LAYOUT_VERSION}; \
             use the steadfast of the release that is running"
        );
        let hz = control.hz.load();
        ensure!(hz != 0, "the maps do not say how long a kernel tick is (hz is 0)");
        let jiffies = maps.kernel.jiffies().context("reading the kernel's clock")?;
        let clock = Clock::new(jiffies, hz, wall);
        Ok(Self {
            maps,
            names: Names::read(maps),
            daemon: Daemon::read(control, jiffies, &clock),
            clock,
            key: maps.key(),
            ports: ports(maps),
        })
    }

    /// A service's ports, `first` before the others.
    #[must_use]
    pub fn ports_of(&self, service: u16, first: u16) -> Vec<u16> {
        let others = self.ports.get(&service).into_iter().flatten().copied();
        std::iter::once(first).chain(others.filter(|port| *port != first)).collect()
    }

    /// The maps that this was read from.
    #[must_use]
    pub const fn maps(&self) -> &'m Maps {
        self.maps
    }

    /// The secret of the tables.
    #[must_use]
    pub const fn key(&self) -> HashKey {
        self.key
    }

    /// Counts flows and sticky records by service and server: one pass over each table.
    #[must_use]
    pub fn census(&self) -> Census {
        Census::take(self.maps, self.clock.now)
    }
}

fn ports(maps: &Maps) -> BTreeMap<u16, BTreeSet<u16>> {
    let mut ports: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
    for entry in live_index(maps) {
        if matches!(entry.kind, EntryKind::Service | EntryKind::Local) {
            ports.entry(entry.id).or_default().insert(u16::from_be(entry.port));
        }
    }
    ports
}
