//! How many SNAT ports towards a server are left.

use lb_common::{
    control::Snat,
    ports::{Owner, PortCell, PortRange},
    server::Servers as _,
};
use serde::Serialize;

use super::Snapshot;
use crate::dataplane::Maps;

/// The ports of all source addresses towards a server's address and port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SnatPorts {
    /// That there are.
    pub all: u32,
    /// Those of connections: open, half-open, or closed so short a time ago that they are still remembered.
    pub in_use: u32,
    /// Those that rest. A port is used again before its rest is over only if no other is left.
    pub resting: u32,
}

impl SnatPorts {
    /// Those towards the server with this id; none in the modes that keep the client's port.
    #[must_use]
    pub fn towards(snapshot: &Snapshot<'_>, server: u16) -> Option<Self> {
        let maps = snapshot.maps();
        let server = maps.servers.present(server).filter(|server| server.forwarding.takes_port())?;
        let snat = Snat::from_word(maps.control().snat.load());
        let quarantine = maps.control().quarantine.load();
        let mut ports = Self::default();
        for source in 0..snat.sources_like(server.address) {
            for cell in cells(maps, snat.range(server.endpoint, source)) {
                let rests =
                    cell.stamp.0 != 0 && u64::from(snapshot.clock.now.since(cell.stamp).0) < quarantine;
                ports.all += 1;
                ports.in_use += u32::from(cell.owner != Owner::Free);
                ports.resting += u32::from(cell.owner == Owner::Free && rests);
            }
        }
        Some(ports)
    }
}

fn cells(maps: &Maps, range: PortRange) -> impl Iterator<Item = PortCell> {
    let cell = move |offset| maps.port_cells.get(range.index(offset) as usize);
    (0..range.count).filter_map(cell).map(|cell| PortCell::from_word(cell.load()))
}
