//! How large the tables are.

use std::fmt;

use anyhow::{bail, ensure};
use lb_common::{
    control::{MAX_SOURCES, Snat},
    maps::{self, MapSpec},
    table::BUCKET,
};

/// The sizes that the maps are created with; they stay as long as the maps live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Slots of the flow table: a power of two.
    pub flows: u32,
    /// Slots of the half-open table: a power of two.
    pub half_open: u32,
    /// Slots of the sticky table: a power of two, at most 2^24.
    pub sticky: u32,
    /// Endpoints (address and port of real servers) at most.
    pub endpoints: u32,
    /// IPv4 source addresses towards the servers.
    pub sources: u8,
    /// IPv6 source addresses towards the servers.
    pub sources_v6: u8,
    /// The first SNAT port.
    pub first_port: u16,
    /// SNAT ports of each source address towards each endpoint.
    pub ports: u32,
}

impl Geometry {
    /// Of tables that are only to be there: they take no memory worth speaking of, and nothing in the program depends on it.
    pub const SMALL: Self = Self {
        flows: 1 << 12,
        half_open: 1 << 11,
        sticky: 1 << 12,
        endpoints: 4,
        sources: 1,
        sources_v6: 0,
        first_port: 1024,
        ports: 4096,
    };

    /// The entries of a map, if this decides them.
    pub(super) fn entries(&self, map: &MapSpec) -> u32 {
        let pairs = self.endpoints * self.rows();
        match map.name {
            name if name == maps::FLOWS.name || name == maps::FLOW_TAGS.name => self.flows / BUCKET,
            name if name == maps::HALF_OPEN.name || name == maps::HALF_OPEN_TAGS.name => {
                self.half_open / BUCKET
            }
            name if name == maps::STICKY.name => self.sticky / BUCKET,
            name if name == maps::PORT_CELLS.name => pairs * self.ports,
            name if name == maps::PORT_CURSORS.name => pairs,
            _ => map.max_entries,
        }
    }

    /// Rows of port cells that an endpoint has.
    const fn rows(&self) -> u32 {
        match self.snat().rows() {
            // No service needs a source address; there is no table without entries.
            0 => 1,
            rows => rows as u32,
        }
    }

    /// With the source addresses of a running data path: those of a family that nobody needs any more keep their rows.
    #[must_use]
    pub const fn beside(self, running: Snat) -> Self {
        match running.adopt(self.snat()) {
            Some(Snat { sources, sources_v6, .. }) => Self { sources, sources_v6, ..self },
            None => self,
        }
    }

    /// The SNAT ports and sources.
    #[must_use]
    pub const fn snat(&self) -> Snat {
        Snat {
            first_port: self.first_port,
            ports: self.ports,
            sources: self.sources,
            sources_v6: self.sources_v6,
        }
    }

    /// Says what can't be.
    ///
    /// # Errors
    /// A size that the tables' algorithms, or the words that refer to them, do not take.
    pub fn check(&self) -> anyhow::Result<()> {
        let tables = [
            ("flow table", self.flows, 1 << 29),
            ("half-open table", self.half_open, 1 << 29),
            ("sticky table", self.sticky, 1 << 24),
        ];
        for (name, slots, most) in tables {
            ensure!(
                slots.is_power_of_two() && (2 * BUCKET..=most).contains(&slots),
                "the {name} can't have {slots} slots: take a power of two from {} to {most}",
                2 * BUCKET
            );
        }
        ensure!(
            usize::from(self.snat().rows()) <= MAX_SOURCES,
            "{} source addresses of a family can't be: take up to {MAX_SOURCES}",
            self.snat().rows()
        );
        let last = u64::from(self.first_port) + u64::from(self.ports);
        ensure!(
            self.first_port > 0 && self.ports > 0 && last <= 1 << 16,
            "{} SNAT ports from {} on can't be: they must lie between 1 and 65535",
            self.ports,
            self.first_port
        );
        let cells = u64::from(self.endpoints) * u64::from(self.rows()) * u64::from(self.ports);
        if self.endpoints == 0 || cells > 1 << 31 {
            bail!(
                "{} endpoints x {} source addresses x {} ports can't be: at least one endpoint, and at most 2^31 \
                 ports in all",
                self.endpoints,
                self.rows(),
                self.ports
            );
        }
        Ok(())
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} flows, {} half-open flows, {} sticky records, {} endpoints, {} source addresses with {} ports from {}",
            self.flows,
            self.half_open,
            self.sticky,
            self.endpoints,
            u32::from(self.sources) + u32::from(self.sources_v6),
            self.ports,
            self.first_port
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry {
            flows: 1 << 12,
            half_open: 1 << 10,
            sticky: 1 << 11,
            endpoints: 8,
            sources: 2,
            sources_v6: 0,
            first_port: 1024,
            ports: 31_744,
        }
    }

    #[test]
    fn the_tables_have_the_sizes_that_were_asked_for() {
        let geometry = geometry();
        geometry.check().unwrap();
        assert_eq!(geometry.entries(&maps::FLOWS) * maps::FLOWS.rows, 1 << 12);
        assert_eq!(geometry.entries(&maps::PORT_CELLS), 8 * 2 * 31_744);
        assert_eq!(geometry.entries(&maps::PORT_CURSORS), 16);
        assert_eq!(geometry.entries(&maps::SERVERS), maps::SERVERS.max_entries);
    }

    #[test]
    fn impossible_sizes_are_refused_by_name() {
        let refused = |change: fn(&mut Geometry)| {
            let mut geometry = geometry();
            change(&mut geometry);
            geometry.check().unwrap_err().to_string()
        };
        assert!(refused(|g| g.flows = 1000).contains("flow table can't have 1000 slots"));
        assert!(refused(|g| g.half_open = 4).contains("half-open table"));
        assert!(refused(|g| g.sticky = 1 << 25).contains("sticky table"));
        assert!(refused(|g| g.sources = 9).contains("9 source addresses"));
        assert!(refused(|g| g.ports = 65_000).contains("SNAT ports"));
        assert!(refused(|g| g.endpoints = 0).contains("endpoint"));
        assert!(refused(|g| g.endpoints = 1 << 20).contains("2^31"));
    }
}
