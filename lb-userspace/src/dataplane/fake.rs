//! Maps on the heap, for tests of everything above them; and a kernel that fails.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::bail;
use lb_common::{
    control::{Control, LAYOUT_VERSION, Snat},
    maps::{self, Traffic},
    reason::REASONS,
    word::Word,
};

use super::{CountersOf, FlowTable, Kernel, Maps, Region};

/// A kernel whose clock is set by hand and whose counters stay at zero.
#[derive(Debug, Default)]
pub struct FakeKernel {
    /// The clock.
    pub jiffies: AtomicU64,
    /// When not zero: how many calls succeed before every further one fails.
    pub fail_after: AtomicU64,
    calls: AtomicU64,
    schedules: Mutex<BTreeMap<u16, Vec<u64>>>,
}

impl FakeKernel {
    fn call(&self) -> anyhow::Result<()> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let limit = self.fail_after.load(Ordering::Relaxed);
        if limit != 0 && calls > limit {
            bail!("the fake kernel fails, as it was told to");
        }
        Ok(())
    }
}

impl Kernel for FakeKernel {
    fn jiffies(&self) -> anyhow::Result<u64> {
        self.call()?;
        Ok(self.jiffies.load(Ordering::Relaxed))
    }

    fn set_schedule(&self, service: u16, values: &[u64]) -> anyhow::Result<()> {
        self.call()?;
        let mut schedules = self.schedules.lock().unwrap_or_else(PoisonError::into_inner);
        schedules.insert(service, values.to_vec());
        Ok(())
    }

    fn set_arm(&self, _: u8, _: u32) -> anyhow::Result<()> {
        self.call()
    }

    fn schedule(&self, service: u16) -> anyhow::Result<Option<Vec<u64>>> {
        self.call()?;
        let schedules = self.schedules.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(schedules.get(&service).cloned())
    }

    fn reasons(&self) -> anyhow::Result<Vec<u64>> {
        self.call()?;
        Ok(vec![0; REASONS])
    }

    fn service_traffic(&self, _: u16) -> anyhow::Result<Traffic> {
        self.call()?;
        Ok(Traffic::default())
    }

    fn server_traffic(&self, _: u16) -> anyhow::Result<Traffic> {
        self.call()?;
        Ok(Traffic::default())
    }

    fn clear_traffic(&self, _: CountersOf) -> anyhow::Result<()> {
        self.call()
    }
}

/// Maps on the heap, set up as the daemon leaves them: one source address's worth of ports 1024 to 2047 for 16
/// endpoints, tables of 4,096 slots, HZ 1000.
#[must_use]
pub fn maps(kernel: FakeKernel) -> Maps {
    let snat = Snat { first_port: 1024, ports: 1024, sources: 1, sources_v6: 0 };
    let maps = Maps {
        control: Region::<Control>::heap(1),
        service_index: Region::heap(maps::SERVICE_INDEX.max_entries as usize),
        services: Region::heap(maps::SERVICES.max_entries as usize),
        servers: Region::heap(maps::SERVERS.max_entries as usize),
        flows: FlowTable::heap(4096),
        half_open: FlowTable::heap(4096),
        sticky: Region::heap(4096),
        port_cells: Region::<Word>::heap(16 * 1024),
        port_cursors: Region::<Word>::heap(16),
        server_loads: Region::heap(maps::SERVER_LOADS.max_entries as usize),
        turns: Region::heap(maps::TURNS.max_entries as usize),
        picks: Region::heap(maps::RECENT_PICKS.max_entries as usize),
        service_info: Region::heap(maps::SERVICE_INFO.max_entries as usize),
        server_info: Region::heap(maps::SERVER_INFO.max_entries as usize),
        kernel: Box::new(kernel),
    };
    let control = maps.control();
    control.hz.store(1000);
    control.snat.store(snat.word());
    for (word, value) in control.hash_key.iter().zip([11, 22, 33, 44]) {
        word.store(value);
    }
    control.maglev_seed.store(55);
    control.layout.store(LAYOUT_VERSION);
    maps
}
