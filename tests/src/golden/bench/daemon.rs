//! The bench's maps as the daemon has them.

use anyhow::Result;
use lb_common::maps;
use lb_userspace::dataplane::{Maps, Region, fake::FakeKernel};

use super::{
    super::rows::{CELLS, PAIRS},
    Bench, flow_table, region,
};

impl Bench {
    /// The same memory, mapped once more. What would need a system call stands still.
    ///
    /// # Errors
    /// It could not be mapped.
    pub(crate) fn maps(&self) -> Result<Maps> {
        let slots = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let (ebpf, tables) = (&self.ebpf, &self.tables);
        Ok(Maps {
            control: region(ebpf, maps::CONTROL, 1)?,
            service_index: region(ebpf, maps::SERVICE_INDEX, maps::SERVICE_INDEX.max_entries)?,
            services: region(ebpf, maps::SERVICES, maps::SERVICES.max_entries)?,
            servers: region(ebpf, maps::SERVERS, maps::SERVERS.max_entries)?,
            flows: flow_table(ebpf, maps::FLOWS, maps::FLOW_TAGS, slots(tables.flows.len()))?,
            half_open: flow_table(
                ebpf,
                maps::HALF_OPEN,
                maps::HALF_OPEN_TAGS,
                slots(tables.half_open.len()),
            )?,
            sticky: region(ebpf, maps::STICKY, slots(tables.sticky.len()))?,
            port_cells: region(ebpf, maps::PORT_CELLS, CELLS)?,
            port_cursors: region(ebpf, maps::PORT_CURSORS, PAIRS)?,
            server_loads: region(ebpf, maps::SERVER_LOADS, maps::SERVER_LOADS.max_entries)?,
            turns: region(ebpf, maps::TURNS, maps::TURNS.max_entries)?,
            picks: region(ebpf, maps::RECENT_PICKS, maps::RECENT_PICKS.max_entries)?,
            service_info: Region::heap(maps::SERVICE_INFO.max_entries as usize),
            server_info: Region::heap(maps::SERVER_INFO.max_entries as usize),
            kernel: Box::new(FakeKernel::default()),
        })
    }
}
