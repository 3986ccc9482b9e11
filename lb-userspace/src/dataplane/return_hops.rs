//! Where flows' answers go, as their rows say it: counting them by MAC address, and turning them elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::clock::Ticks;
use lb_common::flow::{
    FLOW_WORDS, FlowKey, FlowSlot, Flows, HOP_WORD, SEQUENCE_WORD, Sequences, arm_of, hop_word, mac_bytes,
};
use lb_common::life::{Life, SlotState};
use lb_common::service::Service;
use lb_common::table::Kind;
use lb_common::tcp::TcpState;

use super::Maps;
use crate::net::return_hops::ReturnHop;

/// The rows of both tables whose connections are not over.
fn rows(maps: &Maps, now: Ticks) -> impl Iterator<Item = (&FlowSlot, Life)> {
    maps.flows.iter().chain(maps.half_open.iter()).filter_map(move |slot| {
        let life = slot.life();
        let over =
            TcpState::from_note(life.note()).is_closed() || <Flows as Kind<FLOW_WORDS>>::expired(life, now);
        (life.state() == SlotState::Live && !over).then_some((slot, life))
    })
}

fn hop_of(word: u64) -> ReturnHop {
    ReturnHop { arm: arm_of(word), mac: mac_bytes(word) }
}

/// The MAC addresses that answers go to.
#[must_use]
pub fn used(maps: &Maps, now: Ticks) -> BTreeSet<ReturnHop> {
    rows(maps, now).map(|(slot, _)| hop_of(slot.words[HOP_WORD].load())).collect()
}

/// The clients whose answers go to one of these, `limit` at most of each.
#[must_use]
pub fn clients(
    maps: &Maps,
    now: Ticks,
    hops: &BTreeSet<ReturnHop>,
    limit: usize,
) -> BTreeMap<ReturnHop, BTreeSet<IpAddr>> {
    let mut clients: BTreeMap<ReturnHop, BTreeSet<IpAddr>> = BTreeMap::new();
    for (slot, _) in rows(maps, now) {
        let hop = hop_of(slot.words[HOP_WORD].load());
        if hops.contains(&hop) {
            let of_hop = clients.entry(hop).or_default();
            if of_hop.len() < limit {
                of_hop.insert(FlowKey::from_words(&slot.read()).client.into());
            }
        }
    }
    clients
}

/// Turns the answers to these clients from one MAC address to another. Gives how many flows that were.
///
/// The program stores another MAC address at the same time where a client's packet comes from one: that is newer than what is
/// known here, and stays.
pub fn turn(maps: &Maps, now: Ticks, turns: &BTreeMap<(ReturnHop, IpAddr), ReturnHop>) -> usize {
    let turned = |slot: &FlowSlot, life: Life| {
        let word = slot.words[HOP_WORD].load();
        let client = FlowKey::from_words(&slot.read()).client.into();
        let Some(to) = turns.get(&(hop_of(word), client)) else { return false };
        let new = hop_word(to.mac, to.arm);
        let exchanged = slot.words[HOP_WORD].compare_exchange(word, new).is_ok();
        if exchanged && !slot.life().same_version(life) {
            // Another's row by now.
            let _has_come_over_another_hop = slot.words[HOP_WORD].compare_exchange(new, word);
            return false;
        }
        exchanged
    };
    rows(maps, now).filter(|(slot, life)| turned(slot, *life)).count()
}

/// An open connection whose client may be asked where its packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Our end.
    pub service: SocketAddr,
    /// The client's.
    pub client: SocketAddr,
    /// The numbers last recorded.
    pub sequences: Sequences,
}

/// Connections in use whose clients' answers go to one of these, `limit` at most from a place in the flow table on; and the place
/// to go on at.
#[must_use]
pub fn connections(
    maps: &Maps,
    now: Ticks,
    asked: &BTreeSet<(ReturnHop, IpAddr)>,
    from: usize,
    limit: usize,
) -> (Vec<(ReturnHop, Connection)>, usize) {
    let mut found = Vec::new();
    let slots = maps.flows.len();
    for step in 0..slots {
        let place = (from + step) % slots;
        if found.len() == limit {
            return (found, place);
        }
        found.extend(maps.flows.get(place).and_then(|slot| connection(maps, now, asked, slot)));
    }
    (found, from)
}

fn connection(
    maps: &Maps,
    now: Ticks,
    asked: &BTreeSet<(ReturnHop, IpAddr)>,
    slot: &FlowSlot,
) -> Option<(ReturnHop, Connection)> {
    let life = slot.life();
    let words = slot.read();
    let hop = hop_of(words[HOP_WORD]);
    let key = FlowKey::from_words(&words);
    let open = life.state() == SlotState::Live
        && !life.deadline().is_past(now)
        && TcpState::from_note(life.note()) == TcpState::Established;
    if !open || !asked.contains(&(hop, key.client.into())) {
        return None;
    }
    let service = Service::load(maps.services.get(usize::from(key.service))?)?;
    // Somebody sends on it: the deadline was moved not long ago.
    let in_use = life.deadline().0.wrapping_sub(now.0).wrapping_add(IN_USE) >= service.idle.0;
    if !in_use || service.is_udp || !service.forwarding.sees_answers() {
        return None;
    }
    let connection = Connection {
        service: SocketAddr::new(service.address.into(), u16::from_be(key.service_port)),
        client: SocketAddr::new(key.client.into(), u16::from_be(key.client_port)),
        sequences: Sequences::from_word(words[SEQUENCE_WORD]),
    };
    Some((hop, connection))
}

/// How long ago the last packet of a connection in use may be, in ticks: 16 s or more.
const IN_USE: u32 = 256;

#[cfg(test)]
mod tests;
