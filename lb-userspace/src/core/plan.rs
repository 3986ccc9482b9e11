//! What a change would do to clients, before it is made: asked of the live maps with the same functions that the
//! program uses, so the answer is what will happen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::thread;

use jiff::Timestamp;
use lb_common::address::Address;
use lb_common::choose::{Choice, choose};
use lb_common::clock::Ticks;
use lb_common::maglev::{NOBODY, Table, place};
use lb_common::maps::LABEL_BYTES;
use lb_common::schedule::{self, Asked, Load, LoadSlot, Scheduler};
use lb_common::server::{ServerSlot, ServerState, Servers};
use lb_common::service::{EntryKind, Service};
use lb_common::sticky::Sticky;
use lb_common::word::Word;
use serde::{Deserialize, Serialize};

use super::desired::Desired;
use super::rekey;
use super::rows::{live_flows, live_stickies};
use super::text::unpadded;
use crate::dataplane::{Maps, Region};

/// How many clients are listed by address; [`Plan::clients_moved`] counts them all.
pub const LISTED: usize = 100;

/// What a change does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Services that refuse clients afterwards, a sentence each: what matters most.
    #[serde(default)]
    pub refused: Vec<String>,
    /// What changes in the configuration, a line each.
    pub changes: Vec<String>,
    /// Clients with a sticky record that move, all of them.
    pub clients_moved: u64,
    /// The first clients that move, by address.
    pub moved: Vec<Moved>,
    /// How many clients move, by from and to.
    pub moves: Vec<Moves>,
    /// Connections that are reset or end.
    pub resets: Vec<Resets>,
    /// How the scheduler's picks for clients without a record change.
    pub unknown_changed: Vec<UnknownChanged>,
    /// Servers that only finish what they have.
    pub draining: Vec<Draining>,
    /// What should be known before.
    pub warnings: Vec<String>,
}

/// A client with a sticky record whose next connection goes elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moved {
    /// The virtual service's label.
    pub service: String,
    /// The client.
    pub client: IpAddr,
    /// The server that its next connection would go to now; nothing: it would be refused.
    pub from: Option<String>,
    /// The server that it goes to after the change; nothing: it is refused.
    pub to: Option<String>,
}

/// How many clients move from one server to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moves {
    /// The virtual service's label.
    pub service: String,
    /// From.
    pub from: Option<String>,
    /// To.
    pub to: Option<String>,
    /// Clients with a sticky record.
    pub clients: u64,
}

/// Connections that are reset or end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resets {
    /// The virtual service's label.
    pub service: String,
    /// The real server's label.
    pub server: String,
    /// Open connections.
    pub connections: u64,
    /// Why.
    pub reason: String,
}

/// How the scheduler's picks of a service change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnknownChanged {
    /// The virtual service's label.
    pub service: String,
    /// The share of clients without a record that are sent elsewhere, in percent.
    pub percent: f64,
    /// Percent by from and to.
    pub shares: Vec<Share>,
}

/// A part of the picks that change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// From.
    pub from: Option<String>,
    /// To.
    pub to: Option<String>,
    /// Of all clients without a record.
    pub percent: f64,
}

/// A server that only finishes what it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// The virtual service's label.
    pub service: String,
    /// The real server's label.
    pub server: String,
    /// Its open connections.
    pub connections: u64,
    /// Clients with a sticky record of it.
    pub clients: u64,
    /// When the last record ends if nobody connects again (RFC 3339); nothing: connections are open, and the time
    /// counts from when the last of them closes.
    pub empty_at: Option<String>,
}

/// The maps as they would be.
struct Future<'a> {
    desired: &'a Desired,
    servers: Region<ServerSlot>,
    tables: BTreeMap<u16, Table>,
}

impl Servers for Future<'_> {
    fn server(&self, id: u16) -> Option<&ServerSlot> {
        self.servers.server(id)
    }
}

impl<'a> Future<'a> {
    fn new(desired: &'a Desired, room: usize) -> Self {
        let servers: Region<ServerSlot> = Region::heap(room);
        for (id, (server, _)) in &desired.servers {
            if let Some(slot) = servers.get(usize::from(*id)) {
                for (word, value) in slot.iter().zip(server.words()) {
                    word.store(value);
                }
            }
        }
        let tables = desired
            .schedules
            .iter()
            .filter_map(|(id, values)| Some((*id, Table::from_values(values)?)))
            .collect();
        Self { desired, servers, tables }
    }

    /// Whether a service still listens on a port (as on the wire).
    fn listens(&self, service: u16, address: Address, port: u16) -> bool {
        self.desired.index.iter().any(|entry| {
            entry.kind == EntryKind::Service
                && entry.id == service
                && entry.address == address
                && entry.port == port
        })
    }
}

/// The pick of `source-hash`, as the program makes it.
#[must_use]
pub fn pick(table: &Table, seed: u64, client: Address, attempt: u32) -> Option<u16> {
    let place = place(seed, client, table.size(), attempt);
    let id = *table.places().get(place as usize)?;
    (id != NOBODY).then_some(id)
}

/// What decides where packets go, as it is before a change.
pub struct Before {
    services: BTreeMap<u16, Service>,
    servers: Region<ServerSlot>,
    loads: Region<LoadSlot>,
    tables: BTreeMap<u16, Table>,
}

impl Before {
    /// As it is now, but for the schedulers' tables: see [`Before::read_tables`].
    #[must_use]
    pub fn of(maps: &Maps) -> Self {
        let services = (0u16..).zip(maps.services.iter());
        Self {
            services: services.filter_map(|(id, slot)| Some((id, Service::load(slot)?))).collect(),
            servers: maps.servers.copied(),
            loads: maps.server_loads.copied(),
            tables: BTreeMap::new(),
        }
    }

    /// As it is now, with the schedulers' tables.
    ///
    /// # Errors
    /// The kernel's, reading these.
    pub fn whole(maps: &Maps) -> anyhow::Result<Self> {
        let mut before = Self::of(maps);
        before.read_tables(maps)?;
        Ok(before)
    }

    /// Reads the schedulers' tables, too.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read_tables(&mut self, maps: &Maps) -> anyhow::Result<()> {
        for id in self.services.keys() {
            if let Some(values) = maps.kernel.schedule(*id)?
                && let Some(table) = Table::from_values(&values)
            {
                self.tables.insert(*id, table);
            }
        }
        Ok(())
    }

    /// Where a client's next connection to a service goes, as things are: `recorded` is the server of its sticky record.
    /// None: it is refused.
    #[must_use]
    pub fn next(&self, maps: &Maps, id: u16, client: Address, recorded: Option<u16>) -> Option<u16> {
        let service = *self.services.get(&id)?;
        let chooser = Chooser { maps, loads: &self.loads, seed: maps.control().maglev_seed.load() };
        chooser.next(&self.servers, self.tables.get(&id), (id, service), client, recorded)
    }

    /// Whether a server's open flows are reset.
    #[must_use]
    pub fn resets(&self, id: u16) -> bool {
        self.servers.present(id).is_some_and(|server| server.state.has(ServerState::RESETS))
    }
}

/// What chooses a client's server: the program's own functions, over what it reads.
struct Chooser<'a> {
    maps: &'a Maps,
    loads: &'a Region<LoadSlot>,
    seed: u64,
}

impl Chooser<'_> {
    /// The pick of a service's scheduler, as the program would make it if the client connected now.
    fn picked(
        &self,
        table: &Table,
        (id, service): (u16, Service),
        client: Address,
        attempt: u32,
    ) -> Option<u16> {
        let asked =
            Asked { seed: self.seed, client: service.client(client), salt: 0, size: table.size(), attempt };
        let turn = self.maps.turns.get(usize::from(id)).map_or(0, Word::load);
        let load = |server: u16| self.loads.get(usize::from(server)).map_or_else(Load::default, Load::read);
        let at = |place: u32| table.places().get(place as usize).copied().filter(|id| *id != NOBODY);
        schedule::pick(service.scheduler, asked, turn, load, at)
    }

    /// Where a client's next connection goes, with the table and the entry of its service.
    fn next(
        &self,
        servers: &(impl Servers + ?Sized),
        table: Option<&Table>,
        (id, service): (u16, Service),
        client: Address,
        recorded: Option<u16>,
    ) -> Option<u16> {
        let pick = |attempt| table.and_then(|table| self.picked(table, (id, service), client, attempt));
        let record = recorded.filter(|_| service.persistence.0 != 0);
        match choose(servers, id, record, pick) {
            Choice::Sticky(id, _) | Choice::Scheduled(id, _) => Some(id),
            Choice::Nobody => None,
        }
    }
}

/// What it does to bring the maps from `before` to `desired`: asked before, or right after where nothing is reset by it, because
/// then the rows of clients and their connections are the same. `now` is the data path's time, `clock` the time of day.
#[must_use]
pub fn plan(maps: &Maps, before: &Before, desired: &Desired, now: Ticks, clock: Timestamp) -> Plan {
    let planner = Planner {
        maps,
        before,
        future: Future::new(desired, maps.servers.len()),
        seed: maps.control().maglev_seed.load(),
        now,
    };
    let mut plan = Plan::default();
    // Each reads megabytes, and whoever changes something waits for it.
    let (clients, connections) = thread::scope(|scope| {
        let clients = scope.spawn(|| planner.clients());
        let connections = planner.connections();
        (clients.join().unwrap_or_else(|panic| resume_unwind(panic)), connections)
    });
    planner.draining(&mut plan, clock, &clients, &connections);
    planner.movers(&mut plan, clients);
    planner.resets(&mut plan, connections);
    planner.unknown(&mut plan);
    planner.warnings(&mut plan);
    planner.forgotten_networks(&mut plan);
    plan
}

struct Planner<'a> {
    maps: &'a Maps,
    before: &'a Before,
    future: Future<'a>,
    seed: u64,
    now: Ticks,
}

/// What the sticky records say.
#[derive(Default)]
struct Clients {
    /// How many move, by service, server before and after.
    moves: BTreeMap<(u16, Option<u16>, Option<u16>), u64>,
    /// The first of them.
    first: BTreeSet<(IpAddr, u16, Option<u16>, Option<u16>)>,
    /// How many there are by server, and how long the last of them is kept.
    held: BTreeMap<u16, (u64, Ticks)>,
}

/// What the established flows say.
#[derive(Default)]
struct Connections {
    /// How many are reset, by service, server and reason.
    resets: BTreeMap<(u16, u16, &'static str), u64>,
    /// How many are open, by server.
    open: BTreeMap<u16, u64>,
}

impl Planner<'_> {
    fn service_now(&self, id: u16) -> Option<Service> {
        self.before.services.get(&id).copied()
    }

    /// A service's label: as it is, or as it will be.
    fn service_label(&self, id: u16) -> String {
        let live = self.maps.service_info.read(usize::from(id)).map(|info| info.label);
        let wanted = self.future.desired.services.get(&id).map(|(_, info)| info.label);
        label(live, wanted, id)
    }

    fn server_label(&self, id: u16) -> String {
        let live = self.maps.server_info.read(usize::from(id)).map(|info| info.label);
        let wanted = self.future.desired.servers.get(&id).map(|(_, info)| info.label);
        label(live, wanted, id)
    }

    /// Looks at every sticky record.
    fn clients(&self) -> Clients {
        let mut clients = Clients::default();
        let mut successors = BTreeMap::new();
        let chooser = Chooser { maps: self.maps, loads: &self.before.loads, seed: self.seed };
        for (_, _, row) in live_stickies(self.maps, self.now) {
            let held = clients.held.entry(row.to.server).or_default();
            *held = (held.0 + 1, held.1.max(row.deadline.since(self.now)));
            let service = row.to.service;
            let Some(before) = self.service_now(service) else {
                continue;
            };
            let after = self.future.desired.services.get(&service).map(|(service, _)| *service);
            let next = |servers: &dyn Servers, table, entry, recorded| {
                chooser.next(servers, table, (service, entry), row.client, Some(recorded))
            };
            let from = next(&self.before.servers, self.before.tables.get(&service), before, row.to.server);
            let to = after.and_then(|after| {
                let stays = self.successor(&mut successors, before, after, &row);
                next(&self.future, self.future.tables.get(&service), after, stays)
            });
            if from == to {
                continue;
            }
            *clients.moves.entry((service, from, to)).or_default() += 1;
            clients.first.insert((IpAddr::from(row.client), service, from, to));
            if clients.first.len() > LISTED {
                clients.first.pop_last();
            }
        }
        clients
    }

    fn movers(&self, plan: &mut Plan, clients: Clients) {
        let name = |id: Option<u16>| id.map(|id| self.server_label(id));
        plan.moved = clients
            .first
            .into_iter()
            .map(|(client, service, from, to)| Moved {
                service: self.service_label(service),
                client,
                from: name(from),
                to: name(to),
            })
            .collect();
        plan.moves = clients
            .moves
            .into_iter()
            .map(|((service, from, to), clients)| Moves {
                service: self.service_label(service),
                from: name(from),
                to: name(to),
                clients,
            })
            .collect();
        plan.clients_moved = plan.moves.iter().map(|moves| moves.clients).sum();
    }

    /// The server of the record that a client has once its service's records have other names, if they get some.
    fn successor(
        &self,
        known: &mut BTreeMap<u16, rekey::Successors>,
        before: Service,
        after: Service,
        row: &Sticky,
    ) -> u16 {
        if !rekey::differs(&before, &after) {
            return row.to.server;
        }
        let service = row.to.service;
        let successors =
            known.entry(service).or_insert_with(|| rekey::successors(self.maps, service, &after, self.now));
        successors.get(&rekey::renamed(&after, row).words()).map_or(row.to.server, |row| row.to.server)
    }

    /// Clients whose records are not found any more because each stands for a whole network: those without an open flow.
    fn forgotten_networks(&self, plan: &mut Plan) {
        for (id, (after, _)) in &self.future.desired.services {
            if !self.service_now(*id).is_some_and(|before| before.by_prefix && !after.by_prefix) {
                continue;
            }
            let networks = live_stickies(self.maps, self.now)
                .filter(|(_, _, row)| row.to.service == *id && row.flows == 0 && !row.client.is_v4())
                .count();
            if networks > 0 {
                plan.warnings.push(format!(
                    "{}: {} no open connection; whoever comes back from there is an unknown client",
                    self.service_label(*id),
                    if networks == 1 {
                        "1 record of a whole IPv6 network has".to_owned()
                    } else {
                        format!("{networks} records of whole IPv6 networks have")
                    }
                ));
            }
        }
    }

    /// Looks at every established flow.
    fn connections(&self) -> Connections {
        let mut connections = Connections::default();
        for (_, _, flow) in live_flows(&self.maps.flows, self.now) {
            let (service, id) = (flow.key.service, flow.to.server);
            if flow.state.is_closed() {
                continue;
            }
            *connections.open.entry(id).or_default() += 1;
            let serves = |servers: &dyn Servers| {
                servers.server(id).is_some()
                    && servers.present(id).is_some_and(|server| {
                        server.endpoint == flow.to.endpoint && !server.state.has(ServerState::RESETS)
                    })
            };
            let Some(before) = self.service_now(service) else {
                continue;
            };
            if !serves(&self.before.servers) {
                continue;
            }
            let reason = if !self.future.listens(service, before.address, flow.key.service_port) {
                "the virtual service is removed, or has another address or port"
            } else if self.future.desired.services.get(&service).is_some_and(|(after, _)| {
                (after.forwarding, after.is_udp) != (before.forwarding, before.is_udp)
            }) {
                "the virtual service has another forwarding mode or protocol"
            } else if !self.future.desired.servers.contains_key(&id) {
                "the server is removed"
            } else if !serves(&self.future) {
                "the server is halted, down, removed at once, or has another address or port"
            } else {
                continue;
            };
            *connections.resets.entry((service, id, reason)).or_default() += 1;
        }
        connections
    }

    fn resets(&self, plan: &mut Plan, connections: Connections) {
        plan.resets = connections
            .resets
            .into_iter()
            .map(|((service, server, reason), connections)| Resets {
                service: self.service_label(service),
                server: self.server_label(server),
                connections,
                reason: reason.to_owned(),
            })
            .collect();
    }

    fn unknown(&self, plan: &mut Plan) {
        for (id, after) in &self.future.tables {
            let Some(before) = self.before.tables.get(id) else {
                continue;
            };
            // Whom a turn falls to is not known before.
            let in_turn = |service: Service| service.scheduler == Scheduler::RoundRobin;
            let after_entry = self.future.desired.services.get(id).map(|(service, _)| *service);
            if self.service_now(*id).is_some_and(in_turn) || after_entry.is_some_and(in_turn) {
                continue;
            }
            let mut changed: BTreeMap<(u16, u16), u32> = BTreeMap::new();
            let mut all = 0u32;
            for (from, to) in pairs(before, after, self.seed) {
                all += 1;
                if from != to {
                    *changed.entry((from, to)).or_default() += 1;
                }
            }
            let percent = |places: u32| f64::from(places) * 100.0 / f64::from(all.max(1));
            let name = |id: u16| (id != NOBODY).then(|| self.server_label(id));
            let total: u32 = changed.values().sum();
            if total > 0 {
                plan.unknown_changed.push(UnknownChanged {
                    service: self.service_label(*id),
                    percent: percent(total),
                    shares: changed
                        .into_iter()
                        .map(|((from, to), places)| Share {
                            from: name(from),
                            to: name(to),
                            percent: percent(places),
                        })
                        .collect(),
                });
            }
        }
    }

    fn draining(&self, plan: &mut Plan, clock: Timestamp, clients: &Clients, connections: &Connections) {
        let desired = self.future.desired;
        let finishing: BTreeSet<u16> = desired
            .servers
            .iter()
            .filter(|(_, (_, info))| info.state == super::name::AdminState::Drain.number())
            .map(|(id, _)| *id)
            .collect();
        let hz = self.maps.control().hz.load().max(1);
        for id in finishing {
            let connections = connections.open.get(&id).copied().unwrap_or_default();
            let (clients, left) = clients.held.get(&id).copied().unwrap_or_default();
            let service = desired.servers.get(&id).map_or(0, |(server, _)| server.service);
            let left = i64::try_from(left.as_millis(hz)).unwrap_or(i64::MAX);
            let empty_at = clock
                .checked_add(jiff::SignedDuration::from_millis(left))
                .ok()
                .and_then(|at| at.round(jiff::Unit::Second).ok());
            plan.draining.push(Draining {
                service: self.service_label(service),
                server: self.server_label(id),
                connections,
                clients,
                empty_at: empty_at.filter(|_| connections == 0).map(|at| at.to_string()),
            });
        }
    }

    fn warnings(&self, plan: &mut Plan) {
        for id in self.future.desired.schedules.keys() {
            let servers = self.future.desired.servers.values().filter(|(server, _)| server.service == *id);
            let (mut new, mut known) = (0, 0);
            for (server, _) in servers {
                new += u32::from(server.state.has(ServerState::TAKES_NEW));
                known += u32::from(server.state.has(ServerState::TAKES_KNOWN));
            }
            let label = self.service_label(*id);
            if known == 0 {
                plan.refused
                    .push(format!("{label} has no usable real server: every connection to it is refused"));
            } else if new == 0 {
                plan.refused.push(format!(
                    "{label} has no real server that takes new clients: clients without a sticky record are refused"
                ));
            }
        }
    }
}

/// The picks before and after: by place where the tables are of one size, else for clients drawn from the seed.
fn pairs(before: &Table, after: &Table, seed: u64) -> Vec<(u16, u16)> {
    const DRAWN: u64 = 20_000;
    if before.size() == after.size() {
        return before.places().iter().copied().zip(after.places().iter().copied()).collect();
    }
    let pick = |table: &Table, client| pick(table, seed, client, 0).unwrap_or(NOBODY);
    (0..DRAWN)
        .map(|number| Address([0, lb_common::hash::mix(seed ^ number)]))
        .map(|client| (pick(before, client), pick(after, client)))
        .collect()
}

fn label(live: Option<[u8; LABEL_BYTES]>, wanted: Option<[u8; LABEL_BYTES]>, id: u16) -> String {
    live.filter(|label| label[0] != 0).or(wanted).map_or_else(|| format!("#{id}"), |label| unpadded(&label))
}

fn to_whom(server: Option<&str>) -> String {
    server.map_or_else(|| "nobody (refused)".to_owned(), str::to_owned)
}

/// `1 client`, `2 clients`.
#[must_use]
pub fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

impl Plan {
    /// Connections that are reset or end.
    #[must_use]
    pub fn connections_reset(&self) -> u64 {
        self.resets.iter().map(|resets| resets.connections).sum()
    }

    /// Clients with a sticky record that nobody takes any more.
    #[must_use]
    pub fn clients_refused(&self) -> u64 {
        self.moves.iter().filter(|moves| moves.to.is_none()).map(|moves| moves.clients).sum()
    }

    /// The plan in half a line, for the log.
    #[must_use]
    pub fn summary(&self) -> String {
        let refused = match self.clients_refused() {
            0 => String::new(),
            clients => format!("{} refused from now on, ", count(clients, "client")),
        };
        format!(
            "{refused}{} moved, {} reset",
            count(self.clients_moved.saturating_sub(self.clients_refused()), "client"),
            count(self.connections_reset(), "connection")
        )
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for refused in &self.refused {
            writeln!(f, "{refused}.")?;
        }
        for change in &self.changes {
            writeln!(f, "{change}")?;
        }
        if self.moves.is_empty() {
            writeln!(f, "No client with a sticky record moves.")?;
        }
        for moves in &self.moves {
            writeln!(
                f,
                "{}: {} from {} to {}.",
                moves.service,
                match moves.clients {
                    1 => "1 client moves".to_owned(),
                    many => format!("{many} clients move"),
                },
                to_whom(moves.from.as_deref()),
                to_whom(moves.to.as_deref()),
            )?;
        }
        if self.resets.is_empty() {
            writeln!(f, "No open connection is reset.")?;
        }
        for resets in &self.resets {
            let verb = if resets.connections == 1 { "ends" } else { "end" };
            writeln!(
                f,
                "{}/{}: {} {verb}, because {}.",
                resets.service,
                resets.server,
                count(resets.connections, "open connection"),
                resets.reason
            )?;
        }
        for changed in &self.unknown_changed {
            writeln!(
                f,
                "{}: of the clients without a record, {:.1} % will be sent to another server than today.",
                changed.service, changed.percent
            )?;
        }
        for draining in &self.draining {
            write!(
                f,
                "{}/{} drains: {}, {} with a record; ",
                draining.service,
                draining.server,
                count(draining.connections, "open connection"),
                count(draining.clients, "client"),
            )?;
            match &draining.empty_at {
                Some(at) if draining.clients > 0 => {
                    writeln!(f, "empty at {at} if none of them connects again.")?;
                }
                Some(_) => writeln!(f, "it is empty.")?,
                None => writeln!(f, "empty one persistence timeout after the last connection closes.")?,
            }
        }
        for warning in &self.warnings {
            writeln!(f, "Note: {warning}.")?;
        }
        Ok(())
    }
}
