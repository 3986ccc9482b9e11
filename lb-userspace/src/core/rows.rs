//! The tables' rows, from user space: counting them, freeing them, and moving a client.
//!
//! The program changes the same rows at the same time, so each change is one exchange of the word that decides.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::address::Address;
use lb_common::clock::Ticks;
use lb_common::control::Snat;
use lb_common::flow::{
    FLOW_WORDS, Flow, FlowKey, FlowServer, FlowSlot, FlowSticky, Flows, SERVER_WORD, STICKY_WORD,
};
use lb_common::hash::hash3;
use lb_common::life::{Life, SlotState};
use lb_common::picks;
use lb_common::ports::{Cells as _, Owner, PortCell, give_back};
use lb_common::service::Service;
use lb_common::sticky::{STICKY_WORDS, Stickies, Sticky, StickyServer, StickySlot, let_go};
use lb_common::table::{Insert, Kind as _, Slot, find, insert_if_absent, release};
use lb_common::tcp::TcpState;

use super::ids::InUse;
use crate::dataplane::{Maps, PortMaps, Region, loads};

/// How often an exchange that lost against the program is tried again.
const ATTEMPTS: u32 = 16;

/// What the tables hold of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerRows {
    /// Open established flows.
    pub flows: u64,
    /// Sticky records.
    pub clients: u64,
}

/// What the tables hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By server id.
    pub servers: BTreeMap<u16, ServerRows>,
    /// The numbers that any row says.
    pub in_use: InUse,
}

impl Usage {
    /// Counts the live rows of all three tables.
    #[must_use]
    pub fn of(maps: &Maps, now: Ticks) -> Self {
        let mut usage = Self::default();
        for (_, _, flow) in live_flows(&maps.flows, now) {
            usage.name(&flow);
            if !flow.state.is_closed() {
                usage.servers.entry(flow.to.server).or_default().flows += 1;
            }
        }
        for (_, _, flow) in live_flows(&maps.half_open, now) {
            usage.name(&flow);
            // A flow that found no room in the flow table lives on among the half-open ones.
            if flow.state == TcpState::Established {
                usage.servers.entry(flow.to.server).or_default().flows += 1;
            }
        }
        for (_, _, row) in live_stickies(maps, now) {
            usage.in_use.services.insert(row.to.service);
            usage.in_use.servers.insert(row.to.server);
            usage.servers.entry(row.to.server).or_default().clients += 1;
        }
        usage
    }

    fn name(&mut self, flow: &Flow) {
        self.in_use.services.insert(flow.key.service);
        self.in_use.servers.insert(flow.to.server);
        self.in_use.endpoints.insert(flow.to.endpoint);
    }

    /// A server's rows.
    #[must_use]
    pub fn server(&self, id: u16) -> ServerRows {
        self.servers.get(&id).copied().unwrap_or_default()
    }
}

fn live<const N: usize>(slot: &Slot<N>, expired: impl Fn(Life) -> bool) -> Option<(Life, [u64; N])> {
    let life = slot.life();
    if life.state() != SlotState::Live || expired(life) {
        return None;
    }
    let words = slot.read();
    slot.life().same_life(life).then_some((life, words))
}

/// The live rows of a flow table: slot, life, content.
pub fn live_flows(table: &Region<FlowSlot>, now: Ticks) -> impl Iterator<Item = (u32, Life, Flow)> {
    (0u32..).zip(table.iter()).filter_map(move |(index, slot)| {
        let (life, words) =
            live(slot, |life| <Flows as lb_common::table::Kind<FLOW_WORDS>>::expired(life, now))?;
        Some((index, life, Flow::unpack(&words, life)))
    })
}

/// The live sticky records: slot, life, content.
pub fn live_stickies(maps: &Maps, now: Ticks) -> impl Iterator<Item = (u32, Life, Sticky)> {
    (0u32..).zip(maps.sticky.iter()).filter_map(move |(index, slot)| {
        let (life, words) = live(slot, |life| Stickies::expired(life, now))?;
        Some((index, life, Sticky::unpack(&words, life)))
    })
}

/// How many rows were freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Flows, half-open ones among them.
    pub flows: u64,
    /// Sticky records.
    pub clients: u64,
}

/// Frees the flows that `which` says, their SNAT ports and their hold on sticky records with them.
pub fn free_flows(maps: &Maps, now: Ticks, which: impl Fn(&Flow) -> bool) -> u64 {
    let tables = [(&maps.flows, false), (&maps.half_open, true)];
    let mut freed = 0;
    for (table, is_half_open) in tables {
        for (index, life, flow) in live_flows(table, now) {
            if which(&flow)
                && let Some(slot) = table.get(index as usize)
            {
                freed += u64::from(free_flow(maps, slot, index, life, is_half_open, now));
            }
        }
    }
    freed
}

fn free_flow(maps: &Maps, slot: &FlowSlot, index: u32, seen: Life, is_half_open: bool, now: Ticks) -> bool {
    let mut life = seen;
    for _ in 0..ATTEMPTS {
        if !life.same_life(seen) {
            return false;
        }
        let claimed = life.claimed();
        if slot.exchange(life, claimed) {
            let words = slot.read();
            if !TcpState::from_note(life.note()).is_closed() {
                let_go_of_record(maps, &words, now);
                if !is_half_open {
                    loads::ended(maps, FlowServer::from_word(words[SERVER_WORD]).server);
                }
            }
            give_port_back(maps, &FlowServer::from_word(words[SERVER_WORD]), index, is_half_open, now);
            release(slot, claimed);
            return true;
        }
        life = slot.life();
    }
    false
}

/// Starts the timeout of the sticky record that a flow held.
fn let_go_of_record(maps: &Maps, words: &[u64; FLOW_WORDS], now: Ticks) {
    if let Some(record) = FlowSticky::from_word(words[STICKY_WORD]).record {
        let FlowKey { client, service, service_port, .. } = FlowKey::from_words(words);
        let persistence = persistence(maps, service).unwrap_or(Ticks(1));
        let key = maps.sticky_key(client, service, service_port);
        let_go(&maps.sticky, record, key, now.plus(persistence));
    }
}

fn give_port_back(maps: &Maps, to: &FlowServer, index: u32, is_half_open: bool, now: Ticks) {
    let snat = Snat::from_word(maps.control().snat.load());
    let offset = u32::from(u16::from_be(to.snat_port)).wrapping_sub(u32::from(snat.first_port));
    if offset >= snat.ports {
        return;
    }
    let cells = PortMaps(maps);
    let Some(cell) = cells.cell(snat.range(to.endpoint, to.source).index(offset)) else {
        return;
    };
    let seen = cell.load();
    if !is_half_open {
        give_back(cell, index, now);
    } else if PortCell::from_word(seen).owner == Owner::HalfOpen(index) {
        let stamp = Ticks(now.0.max(1));
        let free = PortCell { owner: Owner::Free, stamp };
        let _taken_by_another = cell.compare_exchange(seen, free.word());
    }
}

/// Frees the sticky records that `which` says.
pub fn free_stickies(maps: &Maps, now: Ticks, which: impl Fn(&Sticky) -> bool) -> u64 {
    live_stickies(maps, now)
        .filter(|(_, _, row)| which(row))
        .filter(|(index, life, _)| {
            maps.sticky.get(*index as usize).is_some_and(|slot| free_sticky(slot, *life))
        })
        .count() as u64
}

/// Frees a record, however often its flows are counted meanwhile.
fn free_sticky(slot: &StickySlot, seen: Life) -> bool {
    let mut life = seen;
    for _ in 0..ATTEMPTS {
        if !life.same_life(seen) {
            return false;
        }
        if slot.exchange(life, life.with_state(SlotState::Free).with_note(0)) {
            return true;
        }
        life = slot.life();
    }
    false
}

/// The ports of a service (as on the wire) that a client has records for; zero: one record is for all of them, or was
/// when it was made.
#[must_use]
pub fn ports_of(maps: &Maps, service: u16, client: Address, now: Ticks) -> Vec<u16> {
    let entry = maps.services.get(usize::from(service)).and_then(Service::load);
    let Some(entry) = entry.filter(|entry| entry.by_port) else { return vec![0] };
    let client = entry.client(client);
    let mut ports: Vec<u16> = live_stickies(maps, now)
        .filter(|(_, _, row)| row.client == client && row.to.service == service)
        .map(|(_, _, row)| row.to.port)
        .collect();
    ports.sort_unstable_by_key(|port| u16::from_be(*port));
    ports
}

/// Forgets a client's record with this port of a service. Its open flows stay where they are.
pub fn forget(maps: &Maps, service: u16, client: Address, port: u16, now: Ticks) -> bool {
    let key = maps.sticky_key(client, service, port).words();
    let hash = hash3(&maps.key(), key);
    picks::forget(&maps.picks[picks::place(hash) as usize], hash);
    find::<STICKY_WORDS, Stickies, _>(&maps.sticky, hash, key, now)
        .is_some_and(|found| free_sticky(found.slot, found.life))
}

/// The server of a client's record with this port of a service.
#[must_use]
pub fn recorded(maps: &Maps, service: u16, client: Address, port: u16, now: Ticks) -> Option<u16> {
    let key = maps.sticky_key(client, service, port).words();
    let found = find::<STICKY_WORDS, Stickies, _>(&maps.sticky, hash3(&maps.key(), key), key, now)?;
    let to = StickyServer::from_word(found.slot.words[2].load());
    found.still().then_some(to.server)
}

/// How moving a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assigned {
    /// Its record names the server now; it named another one.
    Moved {
        /// The server before.
        from: u16,
    },
    /// Its record named the server before.
    Already,
    /// It had no record; it has one now.
    Created,
    /// It has no record, and the table has no room for one.
    Full,
    /// Others changed the record at every attempt.
    Contended,
}

/// Makes a client's record with this port of a service name `server`, for its next connection.
pub fn assign(maps: &Maps, service: u16, client: Address, port: u16, server: u16, now: Ticks) -> Assigned {
    let names = maps.sticky_key(client, service, port);
    let key = names.words();
    let hash = hash3(&maps.key(), key);
    for _ in 0..ATTEMPTS {
        if let Some(found) = find::<STICKY_WORDS, Stickies, _>(&maps.sticky, hash, key, now) {
            let word = found.slot.words[2].load();
            let before = StickyServer::from_word(word);
            if !found.still() {
                continue;
            }
            if before.server == server {
                return Assigned::Already;
            }
            let after = StickyServer { server, ..before };
            if found.slot.words[2].compare_exchange(word, after.word()).is_ok() && found.still() {
                return Assigned::Moved { from: before.server };
            }
            continue;
        }
        let to = StickyServer { service, port: names.port, server, made_at: now, verified: false };
        let words = [key[0], key[1], to.word()];
        let deadline = now.plus(persistence(maps, service).unwrap_or(Ticks(1)));
        match insert_if_absent::<STICKY_WORDS, Stickies, _>(
            &maps.sticky,
            hash,
            &words,
            0,
            deadline,
            now,
            |_, _, _| {},
        ) {
            Insert::Inserted(_) => return Assigned::Created,
            Insert::Full => return Assigned::Full,
            Insert::Present(_) | Insert::Contended => {}
        }
    }
    Assigned::Contended
}

fn persistence(maps: &Maps, service: u16) -> Option<Ticks> {
    let slot = maps.services.get(usize::from(service))?;
    Some(Service::load(slot)?.persistence)
}

/// An open flow of a server: what a segment to its client needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlow {
    /// Its slot in the flow table.
    pub index: u32,
    /// Its life there.
    pub life: Life,
    /// The client's end.
    pub client: SocketAddr,
    /// Our end.
    pub service: SocketAddr,
    /// Where frames to the client go.
    pub return_hop: [u8; 6],
}

/// The open flows of a server, at most `limit`.
#[must_use]
pub fn open_flows(maps: &Maps, server: u16, now: Ticks, limit: usize) -> Vec<OpenFlow> {
    live_flows(&maps.flows, now)
        .filter(|(_, _, flow)| flow.to.server == server && !flow.state.is_closed())
        .filter_map(|(index, life, flow)| {
            let slot = maps.services.get(usize::from(flow.key.service))?;
            let service = Service::load(slot)?;
            Some(OpenFlow {
                index,
                life,
                client: SocketAddr::new(flow.key.client.into(), u16::from_be(flow.key.client_port)),
                service: SocketAddr::new(service.address.into(), u16::from_be(flow.key.service_port)),
                return_hop: flow.return_hop,
            })
        })
        .take(limit)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Case, client, config, flow, stick};

    fn case() -> Case {
        let case = Case::new(config(&[("V", 150, &[("a", 1), ("b", 2)])]));
        case.apply().unwrap();
        case
    }

    #[test]
    fn a_client_is_moved_created_or_left_and_forgotten() {
        let case = case();
        let (maps, now) = (&case.maps, Ticks(100));
        let (v, a, b) = (0, case.id("V", "a"), case.id("V", "b"));
        let who = client(1);
        assert_eq!(assign(maps, v, who, 0, a, now), Assigned::Created);
        assert_eq!(recorded(maps, v, who, 0, now), Some(a));
        assert_eq!(assign(maps, v, who, 0, a, now), Assigned::Already);
        assert_eq!(assign(maps, v, who, 0, b, now), Assigned::Moved { from: a });
        assert_eq!(recorded(maps, v, who, 0, now), Some(b));
        assert_eq!(recorded(maps, v + 1, who, 0, now), None);
        assert!(forget(maps, v, who, 0, now));
        assert!(!forget(maps, v, who, 0, now));
        assert_eq!(recorded(maps, v, who, 0, now), None);
    }

    #[test]
    fn a_record_made_by_hand_is_for_all_of_the_clients_prefix() {
        let case = case();
        let slot = &case.maps.services[0];
        let by_prefix = Service { by_prefix: true, ..Service::load(slot).unwrap() };
        slot.iter().zip(by_prefix.words()).for_each(|(word, value)| word.store(value));
        let [one, neighbour] = [1, 2].map(|host: u64| Address([0x2001_0db8_u64.to_be(), host.to_be()]));
        let (now, server) = (Ticks(100), case.id("V", "a"));
        assert_eq!(assign(&case.maps, 0, one, 0, server, now), Assigned::Created);
        assert_eq!(recorded(&case.maps, 0, neighbour, 0, now), Some(server));
        assert!(forget(&case.maps, 0, neighbour, 0, now));
        assert_eq!(recorded(&case.maps, 0, one, 0, now), None);
    }

    #[test]
    fn a_record_made_by_hand_lives_one_persistence_timeout() {
        let case = case();
        let now = Ticks(100);
        assign(&case.maps, 0, client(1), 0, 0, now);
        let timeout = persistence(&case.maps, 0).unwrap();
        assert_eq!(recorded(&case.maps, 0, client(1), 0, now.plus(timeout)), Some(0));
        assert_eq!(recorded(&case.maps, 0, client(1), 0, now.plus(Ticks(timeout.0 + 1))), None);
    }

    #[test]
    fn rows_are_counted_by_server_and_every_number_they_say_is_in_use() {
        let case = case();
        let now = Ticks(100);
        let (a, b) = (case.id("V", "a"), case.id("V", "b"));
        stick(&case.maps, 0, client(1), a, now);
        flow(&case.maps, 0, client(1), 5000, a, 443, TcpState::Established, now);
        flow(&case.maps, 0, client(1), 5001, a, 443, TcpState::TimeWait, now);
        let usage = Usage::of(&case.maps, now);
        assert_eq!(usage.server(a), ServerRows { flows: 1, clients: 1 });
        assert_eq!(usage.server(b), ServerRows::default());
        assert!(usage.in_use.servers.contains(&a) && usage.in_use.services.contains(&0));
        assert!(usage.in_use.endpoints.contains(&case.server(a).endpoint));
        assert_eq!(open_flows(&case.maps, a, now, 10).len(), 1);
        // The record lives on with its flow, also when the flow has expired and nobody has swept it away yet.
        let late = Usage::of(&case.maps, now.plus(Ticks(1 << 20)));
        assert_eq!(late.server(a), ServerRows { flows: 0, clients: 1 });
        assert!(late.in_use.endpoints.is_empty());
    }

    #[test]
    fn a_freed_flow_gives_its_port_back_and_lets_its_record_go() {
        let case = case();
        let now = Ticks(100);
        let a = case.id("V", "a");
        stick(&case.maps, 0, client(1), a, now);
        let index = flow(&case.maps, 0, client(1), 5000, a, 443, TcpState::Established, now);
        let snat = Snat::from_word(case.maps.control().snat.load());
        let pair = u32::from(case.server(a).endpoint);
        let cell = &case.maps.port_cells[(pair * snat.ports + 7) as usize];
        assert_eq!(PortCell::from_word(cell.load()).owner, Owner::Flow(index));
        let holds = || live_stickies(&case.maps, now).map(|(_, _, row)| row.flows).collect::<Vec<_>>();
        assert_eq!(holds(), [1]);
        assert_eq!(free_flows(&case.maps, now, |flow| flow.key.service == 0), 1);
        assert_eq!(PortCell::from_word(cell.load()), PortCell { owner: Owner::Free, stamp: now });
        assert_eq!(holds(), [0]);
        assert_eq!(live_flows(&case.maps.flows, now).count(), 0);
    }
}
