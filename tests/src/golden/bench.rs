//! The bench: the built program, loaded and not attached, with small tables mapped into the test.

mod daemon;

use std::{env, fs, net::IpAddr, os::fd::AsFd as _, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, ArrayOfMaps, DevMap, Map, MapData, PerCpuArray},
    programs::{Program, TestRun as _, TestRunOptions, Xdp},
};
use lb_common::{
    TCP,
    address::Address,
    clock::Ticks,
    control::{Control, LAYOUT_VERSION, Snat},
    flow::mac_word,
    forwarding::Forwarding,
    hash::HashKey,
    maglev::Table,
    maps::{self, INNER_MAP, MapSpec, Traffic},
    mss::MssClamp,
    reason::{REASONS, Reason},
    schedule::Scheduler,
    server::{self, ServerSlot, ServerState},
    service::{self, EntryKind, IndexEntry, IndexSlot, Service as ServiceEntry, ServiceSlot, Spread},
    table::BUCKET,
    word::Word,
};
use lb_userspace::dataplane::{FlowTable, Region, program, region::Plain};

use super::{
    hospital::{
        self, BALANCER, FIRST_PORT, HYPERSPACE, LOCAL_SERVICE, OTHER_PORT, PORTS, SCHEDULES, SEED, SERVERS,
        SERVICES, SOURCES, SRV_1, Service, address, span,
    },
    rows::{CELLS, PAIRS, Tables},
};
use crate::lab::bpf_object;

/// The index of the interface that a test run comes by.
pub(super) const LOOPBACK: u64 = 1;
pub(super) const HALF_OPEN: u32 = 64;
pub(super) const FLOWS: u32 = 1024;
const KEY: HashKey =
    HashKey([0x1111_2222_3333_4444, 0x5555_6666_7777_8888, 0x9999_aaaa_bbbb_cccc, 0xd1b5_4a32_d192_ed03]);

/// Every bit of a usable server.
pub(crate) const USABLE: u16 =
    ServerState::PRESENT | ServerState::REACHABLE | ServerState::TAKES_NEW | ServerState::TAKES_KNOWN;

/// What the program did with a frame.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// `XDP_*`.
    pub(crate) action: u32,
    /// The frame afterwards.
    pub(crate) frame: Vec<u8>,
}

/// Slots of the tables; powers of two.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) flows: u32,
    pub(crate) half_open: u32,
    pub(crate) sticky: u32,
}

/// Six counters, as they lie in the map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Counters(Traffic);
// SAFETY: integers without padding.
unsafe impl Pod for Counters {}

/// The program and its maps.
pub(crate) struct Bench {
    ebpf: Ebpf,
    control: Region<Control>,
    index: Region<IndexSlot>,
    services: Region<ServiceSlot>,
    servers: Region<ServerSlot>,
    pub(crate) tables: Tables,
    schedules_changed: bool,
}

impl Bench {
    /// Loads the built object, with tables in which a case finds room.
    ///
    /// # Errors
    /// It is not built, or the kernel refuses it.
    pub(super) fn load() -> Result<Self> {
        Self::load_sized(Sizes { flows: FLOWS, half_open: HALF_OPEN, sticky: 64 })
    }

    /// Loads the built object with tables of these sizes.
    ///
    /// # Errors
    /// It is not built, or the kernel refuses it.
    pub(crate) fn load_sized(sizes: Sizes) -> Result<Self> {
        let path = object()?;
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let masks = [sizes.flows, sizes.half_open, sizes.sticky].map(|slots| slots / BUCKET - 1);
        let ebpf = EbpfLoader::new()
            .map_max_entries(maps::FLOWS.name, sizes.flows / BUCKET)
            .map_max_entries(maps::HALF_OPEN.name, sizes.half_open / BUCKET)
            .map_max_entries(maps::FLOW_TAGS.name, sizes.flows / BUCKET)
            .map_max_entries(maps::HALF_OPEN_TAGS.name, sizes.half_open / BUCKET)
            .map_max_entries(maps::STICKY.name, sizes.sticky / BUCKET)
            .map_max_entries(maps::PORT_CELLS.name, CELLS)
            .map_max_entries(maps::PORT_CURSORS.name, PAIRS)
            .override_global("FLOW_BUCKET_MASK", &masks[0], true)
            .override_global("HALF_OPEN_BUCKET_MASK", &masks[1], true)
            .override_global("STICKY_BUCKET_MASK", &masks[2], true)
            .load(&bytes)
            .with_context(|| format!("cannot create the maps of {}", path.display()))?;
        let settings = program::control().context("cannot create a map for settings")?;
        program::put_control(&ebpf, settings.as_fd())?;
        let mut bench = Self {
            control: region(&ebpf, maps::CONTROL, 1)?,
            index: region(&ebpf, maps::SERVICE_INDEX, maps::SERVICE_INDEX.max_entries)?,
            services: region(&ebpf, maps::SERVICES, maps::SERVICES.max_entries)?,
            servers: region(&ebpf, maps::SERVERS, maps::SERVERS.max_entries)?,
            tables: Tables {
                flows: flow_table(&ebpf, maps::FLOWS, maps::FLOW_TAGS, sizes.flows)?,
                half_open: flow_table(&ebpf, maps::HALF_OPEN, maps::HALF_OPEN_TAGS, sizes.half_open)?,
                sticky: region(&ebpf, maps::STICKY, sizes.sticky)?,
                cells: region(&ebpf, maps::PORT_CELLS, CELLS)?,
                cursors: region(&ebpf, maps::PORT_CURSORS, PAIRS)?,
                sources: 1,
            },
            ebpf,
            schedules_changed: true,
        };
        for name in ["steadfast", "steadfast_clock"] {
            let program = bench.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
            let program: &mut Xdp = program.try_into()?;
            program.load().with_context(|| format!("the kernel refuses {name}"))?;
        }
        bench.write_index()?;
        bench.reset()?;
        Ok(bench)
    }

    fn write_index(&self) -> Result<()> {
        let entry = |at, port: u16, kind, id| IndexEntry {
            address: address(at),
            port: port.to_be(),
            protocol: TCP,
            kind,
            id,
            service_port: 0,
        };
        let mut entries = vec![entry(HYPERSPACE.address, 80, EntryKind::Local, LOCAL_SERVICE)];
        for service in SERVICES {
            entries.push(entry(service.address, 443, EntryKind::Service, service.id));
            entries.push(entry(service.address, 0, EntryKind::Address, service.id));
        }
        for server in &SERVERS {
            entries.push(entry(server.address, 443, EntryKind::Endpoint, server.endpoint));
        }
        // As of a server that other services reach at more ports.
        entries.push(entry(SRV_1.address, OTHER_PORT, EntryKind::Endpoint, SRV_1.endpoint));
        self.fill_index(&entries)
    }

    /// Puts an index in force.
    ///
    /// # Errors
    /// It does not fit.
    pub(crate) fn fill_index(&self, entries: &[IndexEntry]) -> Result<()> {
        let Ok(layout) = service::layout(Spread::Multiplied, &KEY, entries) else {
            bail!("the index does not fit")
        };
        for (slot, words) in self.index.iter().zip(layout) {
            for (cell, word) in slot.iter().zip(words) {
                cell.store(word);
            }
        }
        self.control().changed();
        Ok(())
    }

    /// As it was after loading, but for counters.
    ///
    /// # Errors
    /// A scheduler's table could not be replaced.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.tables.clear();
        self.write_control();
        self.set_sources(1);
        for service in SERVICES {
            self.set_service(service, span::PERSISTENCE, span::IDLE);
        }
        for server in &SERVERS {
            let entry = server::Server {
                address: address(server.address),
                port: 443_u16.to_be(),
                endpoint: server.endpoint,
                service: server.service,
                forwarding: Forwarding::Snat,
                arm: 0,
                mac: server.mac,
                state: ServerState(USABLE),
            };
            self.put_server(server.id, &entry);
        }
        if std::mem::take(&mut self.schedules_changed) {
            for (service, table) in SERVICES.iter().zip(SCHEDULES.iter()) {
                self.replace_schedule(service.id, table)?;
            }
        }
        Ok(())
    }

    fn write_control(&self) {
        let control = &self.control[0];
        let set = |word: &Word, value: i64| word.store(value.cast_unsigned());
        control.generation.store(0);
        control.multiplied.store(1);
        for (word, value) in control.hash_key.iter().zip(KEY.0) {
            word.store(value);
        }
        control.maglev_seed.store(SEED);
        control.arms[0].mac.store(mac_word(BALANCER));
        control.arms[0].interface.store(LOOPBACK | 1500 << 32);
        set(&control.quarantine, span::QUARANTINE);
        set(&control.idle_syn, span::SYN);
        set(&control.idle_handshake, span::HANDSHAKE);
        set(&control.idle_half_closed, span::HALF_CLOSED);
        set(&control.idle_closed, span::CLOSED);
        set(&control.spared, span::SPARED);
        for (words, source) in control.sources.iter().zip(SOURCES) {
            for (word, value) in words.iter().zip(address(source).0) {
                word.store(value);
            }
        }
        control.carrying.store(0);
        control.layout.store(LAYOUT_VERSION);
        control.changed();
    }

    /// Rows may still come over from older tables, until then.
    pub(super) fn carry_until(&self, until: Ticks) {
        self.control[0].carrying.store(1 << 32 | u64::from(until.0));
    }

    /// Sets how many source addresses are in use; the tables must be empty.
    pub(super) fn set_sources(&mut self, sources: u16) {
        self.set_snat(sources, PORTS);
    }

    /// Sets how many source addresses and ports of each are in use; the tables must be empty.
    pub(crate) fn set_snat(&mut self, sources: u16, ports: u16) {
        let count = u8::try_from(sources).unwrap_or(u8::MAX);
        let snat = Snat { first_port: FIRST_PORT, ports: u32::from(ports), sources: count, sources_v6: 0 };
        self.control[0].snat.store(snat.word());
        self.control().changed();
        self.tables.sources = sources;
    }

    /// As [`Bench::set_snat`], with as many source addresses of either family: those of IPv4, then those of IPv6.
    pub(crate) fn set_snat_of_both(&mut self, sources: u16, ports: u16, addresses: &[[IpAddr; 2]; 2]) {
        self.set_snat(sources, ports);
        let control = &self.control[0];
        let families = [&control.sources, &control.sources_v6];
        for (family, addresses) in families.into_iter().zip(addresses) {
            for (words, address) in family.iter().zip(addresses) {
                for (word, value) in words.iter().zip(Address::from(*address).0) {
                    word.store(value);
                }
            }
        }
        let snat = Snat::from_word(control.snat.load());
        control.snat.store(Snat { sources_v6: snat.sources, ..snat }.word());
        control.changed();
    }

    /// Sets how large a packet the interface takes.
    pub(crate) fn set_mtu(&self, mtu: u16) {
        self.control[0].arms[0].interface.store(LOOPBACK | u64::from(mtu) << 32);
        self.control().changed();
    }

    /// As the maps are after [`Bench::unconfigure`] was undone.
    pub(crate) fn configure(&self) {
        self.control[0].layout.store(LAYOUT_VERSION);
    }

    /// As the maps are before the daemon has set them up.
    pub(crate) fn unconfigure(&self) {
        self.control[0].layout.store(0);
    }

    /// Sets a service's time limits, in ticks.
    pub(crate) fn set_service(&self, service: &Service, persistence: i64, idle: i64) {
        let ticks = |span: i64| Ticks(u32::try_from(span).unwrap_or(u32::MAX));
        let entry = ServiceEntry {
            address: address(service.address),
            persistence: ticks(persistence),
            idle: ticks(idle),
            forwarding: Forwarding::Snat,
            by_prefix: false,
            by_port: false,
            is_udp: false,
            scheduler: Scheduler::SourceHash,
            mss_clamp: MssClamp::None,
        };
        self.put_service(service.id, &entry);
    }

    /// Has a service pick by another scheduler, from the table that it has, until the next reset.
    pub(super) fn set_scheduler(&self, service: &Service, scheduler: Scheduler) {
        let slot = &self.services[usize::from(service.id)];
        if let Some(entry) = ServiceEntry::load(slot) {
            self.put_service(service.id, &ServiceEntry { scheduler, ..entry });
        }
    }

    /// Sets the state of a server.
    pub(crate) fn set_server(&self, server: &hospital::Host, state: u16) {
        self.write_state(server, state);
        self.control().changed();
    }

    /// As [`Bench::set_server`], within the epoch.
    pub(crate) fn write_state(&self, server: &hospital::Host, state: u16) {
        let word = server::state_word(server.mac, ServerState(state));
        self.servers[usize::from(server.id)][server::STATE_WORD].store(word);
    }

    /// Replaces a service's scheduler table, until the next reset.
    ///
    /// # Errors
    /// The kernel refused it.
    pub(crate) fn set_schedule(&mut self, service: &Service, table: &Table) -> Result<()> {
        self.schedules_changed = true;
        self.replace_schedule(service.id, table)
    }

    /// The settings.
    pub(crate) fn control(&self) -> &Control {
        &self.control[0]
    }

    /// Makes the id a service's.
    pub(crate) fn put_service(&self, id: u16, entry: &ServiceEntry) {
        for (cell, word) in self.services[usize::from(id)].iter().zip(entry.words()) {
            cell.store(word);
        }
        self.control().changed();
    }

    /// Makes the id a server's.
    pub(crate) fn put_server(&self, id: u16, entry: &server::Server) {
        for (cell, word) in self.servers[usize::from(id)].iter().zip(entry.words()) {
            cell.store(word);
        }
        self.control().changed();
    }

    /// Makes every arm the interface that test runs come by: whether a packet leaves by another is known before that.
    ///
    /// # Errors
    /// The kernel refused it.
    pub(super) fn connect_arms(&mut self) -> Result<()> {
        let mut arms: DevMap<&mut MapData> =
            self.ebpf.map_mut(maps::ARMS.name).context("no map ARMS")?.try_into()?;
        for arm in 0..maps::ARMS.max_entries {
            arms.set(arm, u32::try_from(LOOPBACK)?, None, 0)?;
        }
        Ok(())
    }

    pub(super) fn replace_schedule(&mut self, service: u16, table: &Table) -> Result<()> {
        let values = table.to_values();
        let mut inner: Array<MapData, u64> = Array::create(u32::try_from(values.len())?, INNER_MAP)?;
        for (index, value) in (0..).zip(values) {
            inner.set(index, value, 0)?;
        }
        let outer = self.ebpf.map_mut(maps::SCHEDULE.name).context("no map SCHEDULE")?;
        let mut outer: ArrayOfMaps<&mut MapData, Array<MapData, u64>> = outer.try_into()?;
        outer.set(u32::from(service), &inner, 0).context("cannot replace a scheduler's table")
    }

    /// The secret of the tables.
    pub(crate) const fn key() -> HashKey {
        KEY
    }

    /// The data path's time.
    ///
    /// # Errors
    /// The clock program did not run.
    pub(crate) fn now(&self) -> Result<Ticks> {
        let verdict = self.run_program("steadfast_clock", &[0; 64])?;
        let jiffies = verdict.frame.first_chunk().context("the clock program left no frame")?;
        Ok(Ticks::from_jiffies(u64::from_ne_bytes(*jiffies)))
    }

    /// Runs a frame through the program.
    ///
    /// # Errors
    /// The kernel refused to.
    pub(crate) fn run(&self, frame: &[u8]) -> Result<Verdict> {
        self.run_program("steadfast", frame)
    }

    fn run_program(&self, name: &str, frame: &[u8]) -> Result<Verdict> {
        let Some(Program::Xdp(program)) = self.ebpf.program(name) else { bail!("no XDP program {name}") };
        let mut out = vec![0; frame.len() + 64];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = program.test_run(options).with_context(|| format!("a run of {} bytes", frame.len()))?;
        out.truncate(usize::try_from(result.data_size_out)?);
        Ok(Verdict { action: result.return_value, frame: out })
    }

    /// Packets by reason, over all CPUs.
    ///
    /// # Errors
    /// The map could not be read.
    pub(crate) fn reasons(&self) -> Result<[u64; REASONS]> {
        let map = self.ebpf.map(maps::REASON_COUNTERS.name).context("no map REASONS")?;
        let map: PerCpuArray<&MapData, u64> = map.try_into()?;
        let mut counts = [0; REASONS];
        for reason in Reason::ALL {
            counts[*reason as usize] = map.get(&(*reason as u32), 0)?.iter().sum();
        }
        Ok(counts)
    }

    /// Packets of one reason, over all CPUs.
    ///
    /// # Errors
    /// The map could not be read.
    pub(crate) fn count_of(&self, reason: Reason) -> Result<u64> {
        let map = self.ebpf.map(maps::REASON_COUNTERS.name).context("no map REASONS")?;
        let map: PerCpuArray<&MapData, u64> = map.try_into()?;
        Ok(map.get(&(reason as u32), 0)?.iter().sum())
    }

    /// A service's traffic, over all CPUs.
    ///
    /// # Errors
    /// The map could not be read.
    pub(crate) fn service_traffic(&self, id: u16) -> Result<Traffic> {
        self.traffic(maps::SERVICE_COUNTERS, id)
    }

    /// A server's traffic, over all CPUs.
    ///
    /// # Errors
    /// The map could not be read.
    pub(crate) fn server_traffic(&self, id: u16) -> Result<Traffic> {
        self.traffic(maps::SERVER_COUNTERS, id)
    }

    fn traffic(&self, spec: MapSpec, id: u16) -> Result<Traffic> {
        let map = self.ebpf.map(spec.name).with_context(|| format!("no map {}", spec.name))?;
        let map: PerCpuArray<&MapData, Counters> = map.try_into()?;
        let values = map.get(&u32::from(id), 0)?;
        Ok(values.iter().fold(Traffic::default(), |sum, Counters(one)| Traffic {
            packets_in: sum.packets_in + one.packets_in,
            bytes_in: sum.bytes_in + one.bytes_in,
            packets_out: sum.packets_out + one.packets_out,
            bytes_out: sum.bytes_out + one.bytes_out,
            flows: sum.flows + one.flows,
            resets: sum.resets + one.resets,
        }))
    }
}

/// What was counted between two readings.
pub(crate) const fn since(before: &Traffic, after: &Traffic) -> Traffic {
    Traffic {
        packets_in: after.packets_in - before.packets_in,
        bytes_in: after.bytes_in - before.bytes_in,
        packets_out: after.packets_out - before.packets_out,
        bytes_out: after.bytes_out - before.bytes_out,
        flows: after.flows - before.flows,
        resets: after.resets - before.resets,
    }
}

fn flow_table(ebpf: &Ebpf, rows: MapSpec, tags: MapSpec, slots: u32) -> Result<FlowTable> {
    Ok(FlowTable::new(region(ebpf, rows, slots)?, region(ebpf, tags, slots / BUCKET)?))
}

fn region<T: Plain>(ebpf: &Ebpf, spec: MapSpec, length: u32) -> Result<Region<T>> {
    let name = spec.name_in_object();
    let Some(Map::Array(data)) = ebpf.map(name) else { bail!("{name} is no array") };
    Region::map(data.fd().as_fd(), usize::try_from(length)?, true)
        .with_context(|| format!("cannot map {} into memory", spec.name))
}

/// The object that the environment names, else that of the build.
fn object() -> Result<PathBuf> {
    match env::var_os("STEADFAST_BPF_OBJECT") {
        Some(named) => Ok(PathBuf::from(named)),
        None => bpf_object("steadfast.o"),
    }
}
