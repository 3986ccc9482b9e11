//! Counts what is in the tables, in one pass over each.

use lb_common::{
    clock::Ticks,
    flow::{FlowKey, FlowServer, Flows, SERVER_WORD},
    sticky::{Stickies, StickyServer},
    table::{Kind, Slot},
    tcp::TcpState,
};

use super::{Maps, sweep::is_live};

/// What one service or one server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Open connections: established and not closed by both ends or an RST.
    pub flows: u32,
    /// Half-open connections.
    pub half_open: u32,
    /// Sticky records that have not expired.
    pub sticky: u32,
}

/// How full a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Slots.
    pub capacity: u32,
    /// Slots in use and not expired; of the flow table this includes closed flows that are still remembered.
    pub used: u32,
}

/// What is in the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// By service id; ids above those that were seen are left out.
    services: Vec<Holdings>,
    /// By server id.
    servers: Vec<Holdings>,
    /// The flow table.
    pub flows: Usage,
    /// The half-open table.
    pub half_open: Usage,
    /// The sticky table.
    pub sticky: Usage,
}

impl Census {
    /// What the service with this id has.
    #[must_use]
    pub fn service(&self, id: u16) -> Holdings {
        self.services.get(usize::from(id)).copied().unwrap_or_default()
    }

    /// What the server with this id has.
    #[must_use]
    pub fn server(&self, id: u16) -> Holdings {
        self.servers.get(usize::from(id)).copied().unwrap_or_default()
    }

    /// Open connections in all.
    #[must_use]
    pub fn open_flows(&self) -> u32 {
        self.services.iter().map(|service| service.flows).sum()
    }

    fn count(&mut self, service: u16, server: u16, count: impl Fn(&mut Holdings)) {
        count(at(&mut self.services, service));
        count(at(&mut self.servers, server));
    }
}

fn at(list: &mut Vec<Holdings>, id: u16) -> &mut Holdings {
    let id = usize::from(id);
    if list.len() <= id {
        list.resize(id + 1, Holdings::default());
    }
    &mut list[id]
}

/// Counts what is in the tables at `now`. The program goes on meanwhile: the numbers are of almost one moment.
#[must_use]
pub fn census(maps: &Maps, now: Ticks) -> Census {
    let mut census = Census {
        flows: capacity(&maps.flows),
        half_open: capacity(&maps.half_open),
        sticky: capacity(&maps.sticky),
        ..Census::default()
    };
    for (state, service, server) in flows(&maps.flows, now) {
        census.flows.used += 1;
        if !state.is_closed() {
            census.count(service, server, |holdings| holdings.flows += 1);
        }
    }
    for (state, service, server) in flows(&maps.half_open, now) {
        census.half_open.used += 1;
        // An established flow in this table found no room in the other.
        if state == TcpState::Established {
            census.count(service, server, |holdings| holdings.flows += 1);
        } else {
            census.count(service, server, |holdings| holdings.half_open += 1);
        }
    }
    for (_, words) in rows::<_, Stickies>(&maps.sticky, now) {
        census.sticky.used += 1;
        let to = StickyServer::from_word(words[2]);
        census.count(to.service, to.server, |holdings| holdings.sticky += 1);
    }
    census
}

fn capacity<T>(slots: &[T]) -> Usage {
    Usage { capacity: u32::try_from(slots.len()).unwrap_or(u32::MAX), used: 0 }
}

fn flows(slots: &[lb_common::flow::FlowSlot], now: Ticks) -> impl Iterator<Item = (TcpState, u16, u16)> + '_ {
    rows::<_, Flows>(slots, now).map(|(life, words)| {
        let key = FlowKey::from_words(&words);
        let to = FlowServer::from_word(words[SERVER_WORD]);
        (TcpState::from_note(life.note()), key.service, to.server)
    })
}

/// The rows of a table that are in force at `now`, each as it was at one moment: life and words.
pub fn rows<const N: usize, K: Kind<N>>(
    slots: &[Slot<N>],
    now: Ticks,
) -> impl Iterator<Item = (lb_common::life::Life, [u64; N])> + '_ {
    slots.iter().filter_map(move |slot| {
        let life = slot.life();
        if !is_live(life) || K::expired(life, now) {
            return None;
        }
        let words = slot.read();
        // Given to another key in this moment: half of each was read.
        slot.life().same_life(life).then_some((life, words))
    })
}
