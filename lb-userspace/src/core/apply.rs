//! Bringing the maps to what they should hold: only the differences, in an order in which every packet finds
//! either the old or the new, and after which a failed attempt is made good by the next.
//!
//! ```text
//! 1. services that change their address leave the index; their flows cannot go on and are freed
//! 2. server entries: identity (address, port, endpoint) while nothing is sent there, then MAC and state
//! 3. services' times, and the deadlines of sticky records with them
//! 4. scheduler tables
//! 5. the index: into the idle generation, then the flip
//! 6. what is not wanted any more: rows, services, servers
//! 7. everything is read again and compared
//! ```
//!
//! Between two steps of which a packet must not see both, `grace` waits until no packet is being handled that began
//! before: see [`wait_for_packets`].

use std::collections::{BTreeSet, HashSet};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use lb_common::address::Address;
use lb_common::clock::Ticks;
use lb_common::maps::{LABEL_BYTES, ServerInfo, ServiceInfo};
use lb_common::schedule::Load;
use lb_common::server::{STATE_WORD, Server, ServerState, Servers as _};
use lb_common::service::{
    EntryKind, INDEX_CAPACITY, INDEX_WORDS, InForce, IndexEntry, MAX_SERVERS, MAX_SERVICES, Service, Spread,
    base, layout,
};
use lb_common::word::Word;

use super::desired::Desired;
use super::rekey;
use super::rows::{free_flows, free_stickies, live_stickies};
use super::text::unpadded;
use crate::dataplane::loads::set_weight;
use crate::dataplane::{CountersOf, Maps};

/// What an application did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Service entries and infos written or cleared.
    pub services: u64,
    /// Server entries and infos written or cleared.
    pub servers: u64,
    /// Scheduler tables replaced.
    pub schedules: u64,
    /// Whether the index was replaced.
    pub index: bool,
    /// Flows freed with their service.
    pub flows_freed: u64,
    /// Sticky records freed with their service.
    pub clients_freed: u64,
    /// Sticky records whose deadline followed their service's timeout.
    pub deadlines: u64,
    /// Sticky records made under the names that their service gives them from now on.
    pub renamed: u64,
    /// Servers whose open flows are reset from now on, and were not before.
    pub resetting: Vec<u16>,
}

impl Applied {
    /// Whether anything was written.
    #[must_use]
    pub fn changed(&self) -> bool {
        *self != Self::default()
    }
}

/// Waits until no packet is being handled that began before this call.
///
/// Replacing a scheduler table does it: after an update of a map of maps the kernel waits for all running programs
/// (`maybe_wait_bpf_programs`, `synchronize_rcu`), so a table is replaced by itself. Where there is no table yet, a
/// pause a thousand times a packet's time has to do.
///
/// # Errors
/// The kernel's, reading or writing the table.
pub fn wait_for_packets(maps: &Maps) -> anyhow::Result<()> {
    for (id, slot) in (0u16..).zip(maps.services.iter()) {
        if Service::load(slot).is_some()
            && let Some(values) = maps.kernel.schedule(id)?
        {
            return maps.kernel.set_schedule(id, &values);
        }
    }
    sleep(Duration::from_millis(20));
    Ok(())
}

/// Brings the maps to `desired`. `now` is the data path's time, `grace` waits as [`wait_for_packets`] does.
///
/// # Errors
/// What the kernel refused. The maps are then somewhere between; applying again goes on from there.
pub fn apply(
    maps: &Maps,
    desired: &Desired,
    now: Ticks,
    grace: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Applied> {
    let mut work = Work { maps, desired, now, grace, done: Applied::default() };
    work.readdressed()?;
    work.identities()?;
    work.states()?;
    work.services()?;
    work.schedules()?;
    work.index()?;
    work.removals()?;
    let left = differences(maps, desired)?;
    if !left.is_empty() {
        bail!(
            "the maps do not hold what was written: {} (does another program write them?)",
            left.join("; ")
        );
    }
    Ok(work.done)
}

/// Writes what says of servers whom they take, and nothing else, where only that and weights differ: the first thing that new
/// clients must see. [`apply`] does the rest.
///
/// # Errors
/// The kernel's.
pub fn apply_states(maps: &Maps, desired: &Desired, now: Ticks) -> anyhow::Result<()> {
    Work { maps, desired, now, grace: &mut || Ok(()), done: Applied::default() }.states()
}

struct Work<'a> {
    maps: &'a Maps,
    desired: &'a Desired,
    now: Ticks,
    grace: &'a mut dyn FnMut() -> anyhow::Result<()>,
    done: Applied,
}

impl Work<'_> {
    /// A service's flows carry its address and port in every packet, and go on as its mode and protocol say: they end where
    /// those do.
    fn readdressed(&mut self) -> anyhow::Result<()> {
        let listens = |entry: &IndexEntry| matches!(entry.kind, EntryKind::Service | EntryKind::Local);
        let named = |entry: &IndexEntry| {
            (entry.id, entry.address, entry.port, entry.protocol, entry.kind == EntryKind::Local)
        };
        let goes_otherwise = |id: &u16| {
            let live = self.maps.services.get(usize::from(*id)).and_then(Service::load);
            let wanted = self.desired.services.get(id).map(|(service, _)| service.forwarding);
            live.is_some_and(|live| wanted.is_some_and(|wanted| wanted != live.forwarding))
        };
        let wanted: HashSet<_> =
            self.desired.index.iter().filter(|entry| listens(entry)).map(named).collect();
        let (stay, gone): (Vec<IndexEntry>, Vec<IndexEntry>) =
            live_index(self.maps).into_iter().partition(|entry| {
                !listens(entry)
                    || !self.desired.services.contains_key(&entry.id)
                    || wanted.contains(&named(entry)) && !goes_otherwise(&entry.id)
            });
        if gone.is_empty() {
            return Ok(());
        }
        self.flip(&stay)?;
        (self.grace)()?;
        let gone: BTreeSet<(u16, u16)> = gone.iter().map(|entry| (entry.id, entry.port)).collect();
        self.done.flows_freed +=
            free_flows(self.maps, self.now, |flow| gone.contains(&(flow.key.service, flow.key.service_port)));
        Ok(())
    }

    /// Address, port, endpoint and service of an entry are three words, read one after the other: they change only
    /// while no packet can be sent by them.
    fn identities(&mut self) -> anyhow::Result<()> {
        let changed: Vec<(u16, Server)> =
            self.desired
                .servers
                .iter()
                .filter(|(id, (server, _))| {
                    self.maps.servers.get(usize::from(**id)).is_some_and(|slot| {
                        (0..STATE_WORD).any(|word| slot[word].load() != server.words()[word])
                    })
                })
                .map(|(id, (server, _))| (*id, *server))
                .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let mut paused = false;
        for (id, _) in &changed {
            if let Some(live) = self.maps.servers.present(*id) {
                let state = ServerState(live.state.0 & !ServerState::REACHABLE);
                paused |= put(
                    &self.maps.servers[usize::from(*id)][STATE_WORD],
                    Server { state, ..live }.words()[STATE_WORD],
                );
            }
        }
        self.maps.control().changed();
        if paused {
            (self.grace)()?;
        }
        for (id, server) in &changed {
            for word in 0..STATE_WORD {
                put(&self.maps.servers[usize::from(*id)][word], server.words()[word]);
            }
        }
        self.maps.control().changed();
        (self.grace)()
    }

    /// As the function of this name, of what packets of open flows depend on.
    fn put(&self, word: &Word, value: u64) -> bool {
        let written = put(word, value);
        if written {
            self.maps.control().changed();
        }
        written
    }

    fn states(&mut self) -> anyhow::Result<()> {
        for (id, (server, info)) in &self.desired.servers {
            let before = self.maps.servers.present(*id);
            let slot = self.maps.servers.get(usize::from(*id)).context("a server id beyond the map")?;
            let mut written = self.put(&slot[STATE_WORD], server.words()[STATE_WORD]);
            let old = self.maps.server_info.read(usize::from(*id));
            if old != Some(*info) {
                if old.is_none_or(|old| (old.label, old.service) != (info.label, info.service)) {
                    self.maps.kernel.clear_traffic(CountersOf::Server(*id))?;
                }
                written |= self.maps.server_info.write(usize::from(*id), *info);
            }
            written |= set_weight(self.maps, *id, weight_of(self.desired, *id));
            self.done.servers += u64::from(written);
            let reset_before = before.is_some_and(|before| before.state.has(ServerState::RESETS));
            if server.state.has(ServerState::RESETS) && !reset_before {
                self.done.resetting.push(*id);
            }
        }
        Ok(())
    }

    fn services(&mut self) -> anyhow::Result<()> {
        for (id, (service, info)) in &self.desired.services {
            let slot = self.maps.services.get(usize::from(*id)).context("a service id beyond the map")?;
            let before = Service::load(slot);
            let old = self.maps.service_info.read(usize::from(*id));
            if old.is_none_or(|old| old.label != info.label) {
                self.maps.kernel.clear_traffic(CountersOf::Service(*id))?;
            }
            let change = before.map(|before| before.persistence).filter(|old| *old != service.persistence);
            let words = service.words();
            if let Some(before) = before.filter(|before| rekey::differs(before, service)) {
                // Only the names change here; all else below.
                let named = Service { by_prefix: service.by_prefix, by_port: service.by_port, ..before };
                let grace = &mut self.grace;
                self.done.renamed += rekey::rekey(self.maps, *id, &named, self.now, || {
                    put(&slot[3], named.words()[3]);
                    grace()
                })?;
            }
            // The address last: it is what says that the entry is there.
            let mut written = false;
            match change {
                Some(old) => {
                    self.done.deadlines += retime(self.maps, *id, old, service.persistence, self.now, || {
                        put(&slot[2], words[2]);
                    });
                    written = true;
                }
                None => written |= put(&slot[2], words[2]),
            }
            for word in [3, 0, 1] {
                written |= put(&slot[word], words[word]);
            }
            if written {
                self.maps.control().changed();
            }
            if old != Some(*info) {
                written |= self.maps.service_info.write(usize::from(*id), *info);
            }
            self.done.services += u64::from(written);
        }
        Ok(())
    }

    fn schedules(&mut self) -> anyhow::Result<()> {
        let mut changed: Vec<(u16, &[u64])> = Vec::new();
        for (id, values) in &self.desired.schedules {
            if self.maps.kernel.schedule(*id)?.as_ref() != Some(values) {
                changed.push((*id, values));
            }
        }
        self.maps.kernel.set_schedules(&changed)?;
        self.done.schedules += changed.len() as u64;
        Ok(())
    }

    fn index(&mut self) -> anyhow::Result<()> {
        self.flip(&self.desired.index)
    }

    /// Puts an index in force.
    fn flip(&mut self, entries: &[IndexEntry]) -> anyhow::Result<()> {
        let (spread, wanted) = lay_out(self.maps, entries)?;
        let control = self.maps.control();
        let InForce { generation: current, spread: live } = control.index();
        if live == spread && read_index(self.maps, current) == wanted {
            return Ok(());
        }
        // A packet that read the generation before the last flip may still be walking the one that is idle now.
        (self.grace)()?;
        let idle = current.wrapping_add(1);
        for (place, words) in wanted.iter().enumerate() {
            for (word, value) in words.iter().enumerate() {
                put(&self.maps.service_index[base(idle) as usize + place][word], *value);
            }
        }
        if read_index(self.maps, idle) != wanted {
            bail!("the index does not hold what was written: does another program write it?");
        }
        let bit = 1 << (idle & 1);
        let others = control.multiplied.load() & !bit;
        control.multiplied.store(if spread == Spread::Multiplied { others | bit } else { others });
        control.generation.store(idle);
        self.done.index = true;
        Ok(())
    }

    fn removals(&mut self) -> anyhow::Result<()> {
        let services = removed_services(self.maps, self.desired);
        let servers = removed_servers(self.maps, self.desired);
        if services.is_empty() && servers.is_empty() {
            return Ok(());
        }
        // A handshake that completes in this moment still makes rows.
        (self.grace)()?;
        let gone: BTreeSet<u16> = services.iter().copied().collect();
        if !gone.is_empty() {
            self.done.flows_freed += free_flows(self.maps, self.now, |flow| gone.contains(&flow.key.service));
            self.done.clients_freed +=
                free_stickies(self.maps, self.now, |row| gone.contains(&row.to.service));
        }
        for id in servers {
            self.put(&self.maps.servers[usize::from(id)][STATE_WORD], 0);
            set_weight(self.maps, id, 0);
            ensure!(self.maps.server_info.write(usize::from(id), NO_SERVER), "a server id beyond the map");
            self.done.servers += 1;
        }
        for id in services {
            for word in [1, 0, 2, 3] {
                self.put(&self.maps.services[usize::from(id)][word], 0);
            }
            ensure!(self.maps.service_info.write(usize::from(id), NO_SERVICE), "a service id beyond the map");
            self.done.services += 1;
        }
        Ok(())
    }
}

/// What differs between the maps and `desired`, in words; nothing after an application.
///
/// # Errors
/// The kernel's, reading scheduler tables.
pub fn differences(maps: &Maps, desired: &Desired) -> anyhow::Result<Vec<String>> {
    let mut out = Vec::new();
    for (id, (service, info)) in &desired.services {
        let live =
            maps.services.get(usize::from(*id)).map(|slot| [0, 1, 2, 3].map(|word: usize| slot[word].load()));
        if live != Some(service.words()) || maps.service_info.read(usize::from(*id)) != Some(*info) {
            out.push(format!("virtual service {}", unpadded(&info.label)));
        }
    }
    for (id, (server, info)) in &desired.servers {
        if maps.servers.present(*id) != Some(*server)
            || maps.server_info.read(usize::from(*id)) != Some(*info)
            || Load::read(&maps.server_loads[usize::from(*id)]).weight != weight_of(desired, *id)
        {
            out.push(format!("real server {}", unpadded(&info.label)));
        }
    }
    for (id, values) in &desired.schedules {
        if maps.kernel.schedule(*id)?.as_ref() != Some(values) {
            out.push(format!("the scheduler's table of service {id}"));
        }
    }
    let InForce { generation, spread } = maps.control().index();
    if (spread, read_index(maps, generation)) != lay_out(maps, &desired.index)? {
        out.push("the index".to_owned());
    }
    out.extend(
        removed_services(maps, desired).iter().map(|id| format!("service {id}, which is not configured")),
    );
    out.extend(
        removed_servers(maps, desired).iter().map(|id| format!("server {id}, which is not configured")),
    );
    Ok(out)
}

/// Moves the deadlines of a service's sticky records by as much as its timeout changes; `write` puts the new timeout in
/// force. Each row's life is read before and exchanged after, so a row that the program renews meanwhile is left as
/// the program made it. Records of a service that has no persistence any more are freed.
fn retime(maps: &Maps, service: u16, old: Ticks, new: Ticks, now: Ticks, write: impl FnOnce()) -> u64 {
    let rows: Vec<_> =
        live_stickies(maps, now).filter(|(_, _, row)| row.to.service == service && row.flows == 0).collect();
    write();
    if new.0 == 0 {
        return free_stickies(maps, now, |row| row.to.service == service);
    }
    rows.into_iter()
        .filter(|(index, life, _)| {
            let age = old.0.saturating_sub(life.deadline().since(now).0);
            let left = new.0.saturating_sub(age);
            // A deadline that is past already: one tick before now.
            let deadline = if left == 0 { Ticks(now.0.wrapping_sub(1)) } else { now.plus(Ticks(left)) };
            maps.sticky
                .get(*index as usize)
                .is_some_and(|slot| slot.exchange(*life, life.with_deadline(deadline)))
        })
        .count() as u64
}

/// A server's weight among those that take new clients.
fn weight_of(desired: &Desired, id: u16) -> u32 {
    desired.weights.get(&id).copied().unwrap_or(0)
}

fn put(word: &Word, value: u64) -> bool {
    let differs = word.load() != value;
    if differs {
        word.store(value);
    }
    differs
}

/// The index by the cheaper spread, where that has room for all.
fn lay_out(maps: &Maps, entries: &[IndexEntry]) -> anyhow::Result<(Spread, Vec<[u64; INDEX_WORDS]>)> {
    let by = |spread| layout(spread, &maps.key(), entries).map(|words| (spread, words));
    by(Spread::Multiplied).or_else(|_full| by(Spread::Hashed)).map_err(|_full| {
        anyhow::anyhow!(
            "{} addresses and ports do not fit the index with this machine's secret: a freak of chance; `steadfastd \
             detach` and a new start draw another secret",
            entries.len()
        )
    })
}

fn read_index(maps: &Maps, generation: u64) -> Vec<[u64; INDEX_WORDS]> {
    maps.service_index
        .iter()
        .skip(base(generation) as usize)
        .take(INDEX_CAPACITY as usize)
        .map(|slot| [slot[0].load(), slot[1].load(), slot[2].load(), slot[3].load()])
        .collect()
}

/// The service index in force.
#[expect(clippy::cast_possible_truncation, reason = "fields are taken out of a packed word")]
pub fn live_index(maps: &Maps) -> Vec<IndexEntry> {
    read_index(maps, maps.control().generation.load())
        .into_iter()
        .filter_map(|words| {
            let kind = match (words[2] >> 24) as u8 {
                1 => EntryKind::Service,
                2 => EntryKind::Local,
                3 => EntryKind::Endpoint,
                4 => EntryKind::Address,
                5 => EntryKind::NatEndpoint,
                _ => return None,
            };
            Some(IndexEntry {
                address: Address([words[0], words[1]]),
                port: words[2] as u16,
                protocol: (words[2] >> 16) as u8,
                kind,
                id: (words[2] >> 32) as u16,
                service_port: words[3] as u16,
            })
        })
        .collect()
}

fn removed_services(maps: &Maps, desired: &Desired) -> Vec<u16> {
    (0..MAX_SERVICES)
        .filter_map(|id| u16::try_from(id).ok())
        .filter(|id| !desired.services.contains_key(id))
        .filter(|id| {
            maps.services.get(usize::from(*id)).and_then(Service::load).is_some()
                || maps.service_info.read(usize::from(*id)).is_some_and(|info| info.label[0] != 0)
        })
        .collect()
}

fn removed_servers(maps: &Maps, desired: &Desired) -> Vec<u16> {
    (0..MAX_SERVERS)
        .filter_map(|id| u16::try_from(id).ok())
        .filter(|id| !desired.servers.contains_key(id))
        .filter(|id| {
            maps.servers.present(*id).is_some()
                || maps.server_info.read(usize::from(*id)).is_some_and(|info| info.label[0] != 0)
        })
        .collect()
}

const NO_SERVICE: ServiceInfo = ServiceInfo {
    label: [0; LABEL_BYTES],
    address: [0; 2],
    persistence_ms: 0,
    idle_ms: 0,
    since: 0,
    port: 0,
    protocol: 0,
    forwarding: 0,
    listening: 0,
};

const NO_SERVER: ServerInfo = ServerInfo {
    label: [0; LABEL_BYTES],
    address: [0; 2],
    health_since: 0,
    certificate_expires: 0,
    service: 0,
    port: 0,
    weight: 0,
    state: 0,
    health: 0,
    health_reason: [0; 96],
};
