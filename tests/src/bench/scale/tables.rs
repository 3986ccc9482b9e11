//! Flows and sticky records, from one to ten million: sparse, in the largest tables there can be, and full, in tables of
//! their size.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result};
use lb_common::{flow::FlowSlot, reason::Reason, sticky::StickySlot, table::BUCKET, word::Word};
use lb_userspace::config::Tables as Limits;

use super::memory;
use crate::bench::{
    figures::Rounds,
    frames::{CLIENT_PORT, DESTINATION_PORT, Flags, From, SOURCE, SOURCE_LOW, script},
    packet::{Bench, NAT, SNAT, shuffled},
    rows::{Place, establish_at, remember_each},
    script::{Field, Script},
    world::{FIRST_PORT, INTERFACE, SNAT_PORTS, World, alone},
};

/// Rows, and the slots of tables that are full with them: six of ten slots, but for the smallest.
const SIZES: [(u32, u32); 5] =
    [(1, 1 << 10), (614, 1 << 10), (39_321, 1 << 16), (629_145, 1 << 20), (10_000_000, LARGEST)];
const LARGEST: u32 = Limits::MAX_FLOWS;
/// Servers: so many that ten million flows have a SNAT port each.
const SERVERS: u16 = 512;
/// Clients of sticky records are at 48.0.0.0 and up.
const CLIENTS: u32 = 0x3000_0000;
/// Bytes that the largest tables take, with their SNAT ports and what else there is.
const NEEDED: u64 = 3 << 30;
const HALF_OPEN: u32 = 65_536;
/// Hundredths of the rows that must have found a slot.
const WITH_ROOM: u64 = 95;
/// SYNs of known clients in a round at least.
const FEWEST: u32 = 16_384;
/// Ports that the known clients use in turn.
const PORTS: u16 = 20_000;

/// All points of the curves.
#[derive(Debug, Default)]
pub(super) struct Tables {
    flows: Vec<Point>,
    sticky: Vec<Point>,
}

/// So many rows in a table of a size.
#[derive(Debug)]
pub(super) struct Point {
    pub(super) file: &'static str,
    /// The curve.
    pub(super) series: String,
    pub(super) rows: u32,
    pub(super) slots: u32,
    /// How many of the rows found no slot.
    pub(super) without: u32,
    /// MiB of the table.
    pub(super) mebibytes: f64,
    /// Nanoseconds a packet.
    pub(super) rounds: Rounds,
}

impl Point {
    pub(super) fn name(&self) -> String {
        let Self { file, series, rows, slots, .. } = self;
        format!("{file}: {series}, {rows} rows in {slots} slots")
    }
}

/// What a row takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    /// The part of the slots that is taken.
    pub(super) load: f64,
    /// Of a flow, with its port's cell.
    pub(super) flow: f64,
    pub(super) sticky: f64,
    pub(super) sticky_slot: f64,
}

impl Tables {
    pub(super) fn points(&self) -> impl Iterator<Item = &Point> {
        self.flows.iter().chain(&self.sticky)
    }

    /// At the load of ten million rows in the largest table.
    pub(super) fn bytes(&self) -> Bytes {
        let load = 1e7 / f64::from(LARGEST);
        let slot = |size: usize| size as f64;
        let tags = slot(size_of::<Word>()) / f64::from(BUCKET);
        Bytes {
            load,
            flow: slot(size_of::<FlowSlot>()) / load + tags / load + slot(size_of::<Word>()),
            sticky: slot(size_of::<StickySlot>()) / load,
            sticky_slot: slot(size_of::<StickySlot>()),
        }
    }
}

pub(super) fn measure(rounds: usize, repeat: u32) -> Result<Tables> {
    let mut tables = Tables::default();
    let mut add = |measured: (Vec<Point>, Vec<Point>)| {
        tables.flows.extend(measured.0);
        tables.sticky.extend(measured.1);
    };
    for (rows, slots) in SIZES.into_iter().filter(|(_, slots)| *slots < LARGEST) {
        add(alone(move |pins| Bed::up(pins, slots)?.measure(&[rows], rounds, repeat, "full"))?);
    }
    let available = memory::available()?;
    if available < NEEDED {
        eprintln!(
            "bench: the largest tables are left out: {} MiB of memory are available, and they take {} MiB",
            available >> 20,
            NEEDED >> 20
        );
        return Ok(tables);
    }
    add(alone(move |pins| {
        Bed::up(pins, LARGEST)?.measure(
            &SIZES.map(|(rows, _)| rows),
            rounds,
            repeat,
            "sparse, in the largest table",
        )
    })?);
    let last = |points: &[Point]| {
        points.last().map(|point| Point { series: "full".to_owned(), rounds: point.rounds.clone(), ..*point })
    };
    let both = [last(&tables.flows), last(&tables.sticky)];
    let [flows, sticky] = both;
    tables.flows.extend(flows);
    tables.sticky.extend(sticky);
    Ok(tables)
}

/// Tables of a size, and what runs in them.
struct Bed {
    bench: Bench,
    slots: u32,
    /// Of the last batch of SYNs, beyond the first port of the clients.
    port: u16,
}

impl Bed {
    fn up(pins: &std::path::Path, slots: u32) -> Result<Self> {
        let world = World::with(&pins.join("steadfast"), &yaml(slots))?;
        Ok(Self { bench: Bench::of(world, 1)?, slots, port: 0 })
    }

    /// Fills the tables step by step, and measures at each.
    fn measure(
        mut self,
        steps: &[u32],
        rounds: usize,
        repeat: u32,
        series: &str,
    ) -> Result<(Vec<Point>, Vec<Point>)> {
        let (mut flows, mut sticky) = (Vec::new(), Vec::new());
        let mut without = (0, 0);
        let mut filled = 0;
        for rows in steps {
            without.0 += establish_at(&self.place(SNAT)?, filled..*rows)?;
            without.1 += remember_each(&self.place(NAT)?, filled..*rows, client)?;
            filled = *rows;
            let maps = &self.bench.world.maps;
            let point = |file, without, mebibytes| Point {
                file,
                series: series.to_owned(),
                rows: *rows,
                slots: self.slots,
                without,
                mebibytes,
                rounds: Rounds::default(),
            };
            let mut flow = point("flows", without.0, memory::of_slice(&maps.flows));
            let mut record = point("sticky", without.1, memory::of_slice(&maps.sticky));
            for round in 0..=rounds {
                let slots = self.slots;
                let context = || format!("{rows} rows in {slots} slots");
                let packet = self.flow(*rows, round, repeat).with_context(context)?;
                let known = (*rows > 1).then(|| self.known(*rows, round, repeat)).transpose();
                let known = known.with_context(context)?;
                // The first is to warm up.
                if round > 0 {
                    flow.rounds.0.push(packet);
                    record.rounds.0.extend(known);
                }
            }
            flows.push(flow);
            sticky.extend((*rows > 1).then_some(record));
        }
        Ok((flows, sticky))
    }

    /// Nanoseconds of a flow's packet, the dearer way.
    fn flow(&mut self, rows: u32, round: usize, repeat: u32) -> Result<f64> {
        let least = u64::from(repeat) * WITH_ROOM / 100;
        let there = in_some_order(script(SNAT, From::Client, Flags::Ack, CLIENT_PORT)?, rows, round);
        let there = self.bench.mostly(&there, repeat, Reason::Forwarded, least)?;
        let back = in_some_order(answer()?, rows, round);
        Ok(there.max(self.bench.mostly(&back, repeat, Reason::Returned, least)?))
    }

    /// Nanoseconds of a known client's SYN. None is sent again: no two of a client are from the same port.
    fn known(&mut self, rows: u32, round: usize, repeat: u32) -> Result<f64> {
        let batch = repeat.min(cycle(rows));
        let batches = FEWEST.div_ceil(batch);
        let mut sum = 0.0;
        for _ in 0..batches {
            self.port = self.port % PORTS + 1;
            let syn = script(NAT, From::Client, Flags::Syn, CLIENT_PORT + self.port)?;
            let syn = in_some_order(Script { fields: client_fields(), ..syn }, rows, round);
            let least = u64::from(batch) * WITH_ROOM / 100;
            sum += self.bench.mostly(&syn, batch, Reason::NewBySticky, least)?;
        }
        Ok(sum / f64::from(batches))
    }

    fn place(&self, service: crate::bench::world::Service) -> Result<Place<'_>> {
        let world = &self.bench.world;
        let servers = if service == SNAT { SERVERS } else { 1 };
        Place::numbered(world, service, &service.label(), servers)
    }
}

/// Conversations that come up again and again: a power of two, at most as many as there are rows.
const fn cycle(rows: u32) -> u32 {
    1 << rows.ilog2()
}

/// In no order, and in another one each round: what was there last would be in the cache.
fn in_some_order(script: Script, rows: u32, round: usize) -> Script {
    let cycle = cycle(rows);
    let cursor = (round as u64 * 1_000_003) & (u64::from(cycle) - 1);
    Script { cursor, ..shuffled(script, cycle) }
}

/// The client of the n-th sticky record.
fn client(number: u32) -> IpAddr {
    Ipv4Addr::from(CLIENTS + number).into()
}

/// Its address in a frame.
const fn client_fields() -> [Field; 2] {
    [
        Field { at: SOURCE_LOW, shift: 0, mask: 0xffff, base: 0 },
        Field { at: SOURCE, shift: 16, mask: 0xff, base: CLIENTS >> 16 },
    ]
}

/// What a server answers on the n-th flow.
fn answer() -> Result<Script> {
    let script = script(SNAT, From::Server, Flags::Ack, CLIENT_PORT)?;
    let fields = [
        Field { at: SOURCE_LOW, shift: 0, mask: u32::from(SERVERS) - 1, base: 0x0101 },
        Field {
            at: DESTINATION_PORT,
            shift: SERVERS.trailing_zeros(),
            mask: u32::from(SNAT_PORTS) - 1,
            base: u32::from(FIRST_PORT),
        },
    ];
    Ok(Script { fields, ..script })
}

fn yaml(slots: u32) -> String {
    let mut yaml = format!(
        "version: 1\nnode:\n  interfaces: [{INTERFACE}]\n  snat_ports: {FIRST_PORT}-{}\n  tables: {{ flows: {slots}, \
         half_open: {HALF_OPEN}, sticky: {slots}, endpoints: 1024 }}\nvirtual_services:\n",
        u32::from(FIRST_PORT) + u32::from(SNAT_PORTS) - 1
    );
    for (service, servers) in [(SNAT, SERVERS), (NAT, 1)] {
        yaml += &format!(
            "  - label: {}\n    address: {}\n    ports: [443]\n    forwarding: {}\n    health_check: {{ kind: none }}\n    \
             real_servers:\n",
            service.label(),
            service.address(),
            service.mode
        );
        for server in 0..servers {
            yaml += &format!("      - {{ label: s{server}, address: {} }}\n", service.server(server));
        }
    }
    yaml
}
