//! A service's records under other names: when IPv6 clients become one client a /64, when each port gets a record of its own,
//! and back.
//!
//! What the program looks for follows from the service's entry, which is one word. So the records under the new names are
//! there before it changes. Then the flows that are open move their hold from the old to the new ones.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use lb_common::clock::Ticks;
use lb_common::flow::{Flow, FlowSticky, STICKY_WORD, StickyRef};
use lb_common::hash::hash3;
use lb_common::service::Service;
use lb_common::sticky::{STICKY_WORDS, Stickies, Sticky, StickyKey, StickyServer, hold, let_go, reference};
use lb_common::table::{Insert, find, insert_if_absent};

use super::rows::{free_stickies, live_flows, live_stickies};
use crate::dataplane::Maps;

/// Records by the words of the names that they get.
pub type Successors = BTreeMap<[u64; STICKY_WORDS], Sticky>;

/// Whether clients' records have other names with the one entry of a service than with the other.
#[must_use]
pub const fn differs(before: &Service, after: &Service) -> bool {
    before.by_prefix != after.by_prefix || before.by_port != after.by_port
}

/// The name that a record has by a service's entry.
#[must_use]
pub const fn renamed(after: &Service, row: &Sticky) -> StickyKey {
    after.sticky_key(row.to.service, row.client, row.to.port)
}

/// Of the records that get one name, the one that stays: one with open flows before one without, and the one used last.
#[must_use]
pub fn successors(maps: &Maps, id: u16, after: &Service, now: Ticks) -> Successors {
    let rank = |row: &Sticky| (row.flows > 0, row.deadline.since(now), Reverse(row.to.server));
    let mut out = BTreeMap::new();
    for (_, _, row) in live_stickies(maps, now).filter(|(_, _, row)| row.to.service == id) {
        let best = out.entry(renamed(after, &row).words()).or_insert(row);
        if rank(&row) > rank(best) {
            *best = row;
        }
    }
    out
}

/// Gives the records of a service the names of its entry `after`; `write` puts the entry in force, and returns when no
/// packet is under way that knows the old one. Gives how many records were made.
///
/// # Errors
/// Those of `write`.
pub fn rekey(
    maps: &Maps,
    id: u16,
    after: &Service,
    now: Ticks,
    write: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let mut made = copy(maps, id, after, now);
    write()?;
    // What was made under the old names in between.
    made += copy(maps, id, after, now);
    for (index, _, flow) in live_flows(&maps.flows, now) {
        if flow.key.service == id
            && !flow.state.is_closed()
            && let Some(old) = flow.sticky.record
        {
            made += u64::from(move_hold(maps, index, &flow, old, after, now));
        }
    }
    free_stickies(maps, now, |row| row.to.service == id && renamed(after, row) != row.key());
    Ok(made)
}

fn copy(maps: &Maps, id: u16, after: &Service, now: Ticks) -> u64 {
    let mut made = 0;
    for (name, row) in successors(maps, id, after, now) {
        if name != row.key().words() {
            let deadline = if row.flows > 0 { now.plus(after.persistence) } else { row.deadline };
            let to = StickyServer { port: renamed(after, &row).port, ..row.to };
            made += u64::from(insert(maps, name, to, deadline, now));
        }
    }
    made
}

fn insert(maps: &Maps, name: [u64; STICKY_WORDS], to: StickyServer, deadline: Ticks, now: Ticks) -> bool {
    let inserted = insert_if_absent::<STICKY_WORDS, Stickies, _>(
        &maps.sticky,
        hash3(&maps.key(), name),
        &[name[0], name[1], to.word()],
        0,
        deadline,
        now,
        |_, _, _| {},
    );
    matches!(inserted, Insert::Inserted(_))
}

/// Has the flow in a slot hold the record of its client's new name, made if there is none. Says whether it was made. A flow
/// that is closed in this very moment may be counted in neither or in both; the daemon's repair counts anew.
fn move_hold(maps: &Maps, slot: u32, flow: &Flow, old: StickyRef, after: &Service, now: Ticks) -> bool {
    let wanted = after.sticky_key(flow.key.service, flow.key.client, flow.key.service_port);
    let held = maps.sticky.get(old.slot as usize).map(|slot| StickyKey::of(&slot.read()));
    if held == Some(wanted) {
        return false;
    }
    let to = StickyServer {
        service: wanted.service,
        port: wanted.port,
        server: flow.to.server,
        made_at: flow.sticky.made_at,
        verified: after.forwarding.sees_answers(),
    };
    let deadline = now.plus(after.persistence);
    let made = insert(maps, wanted.words(), to, deadline, now);
    let hash = hash3(&maps.key(), wanted.words());
    let Some(found) = find::<STICKY_WORDS, Stickies, _>(&maps.sticky, hash, wanted.words(), now) else {
        return false;
    };
    let Some(slot) = maps.flows.get(slot as usize).filter(|_| hold(&found, deadline)) else { return made };
    let record = reference(found.index, found.life);
    let holds = FlowSticky { record: Some(record), ..flow.sticky };
    if slot.words[STICKY_WORD].compare_exchange(flow.sticky.word(), holds.word()).is_err() {
        let_go(&maps.sticky, record, wanted, deadline);
    } else if let Some(held) = held {
        let_go(&maps.sticky, old, held, deadline);
    }
    made
}

#[cfg(test)]
mod tests {
    use lb_common::address::Address;
    use lb_common::tcp::TcpState;

    use super::*;
    use crate::core::testing::{Case, config, flow, stick};

    const NOW: Ticks = Ticks(100);

    fn case() -> (Case, [u16; 2]) {
        let case = Case::new(config(&[("V", 150, &[("a", 10), ("b", 11)])]));
        case.apply().unwrap();
        let servers = ["a", "b"].map(|server| case.id("V", server));
        (case, servers)
    }

    /// Two clients of one /64.
    fn neighbour(host: u64) -> Address {
        Address([0x2001_0db8_0000_0001_u64.to_be(), host.to_be()])
    }

    fn entry(case: &Case) -> Service {
        Service::load(&case.maps.services[0]).unwrap()
    }

    fn put(case: &Case, after: &Service) -> anyhow::Result<()> {
        case.maps.services[0].iter().zip(after.words()).for_each(|(word, value)| word.store(value));
        Ok(())
    }

    /// Records of the service: client, port, server, flows.
    fn records(case: &Case) -> Vec<(Address, u16, u16, u32)> {
        let mut rows: Vec<_> = live_stickies(&case.maps, NOW)
            .map(|(_, _, row)| (row.client, u16::from_be(row.to.port), row.to.server, row.flows))
            .collect();
        rows.sort_by_key(|row| (row.0.0, row.1));
        rows
    }

    fn change(case: &Case, after: Service) {
        rekey(&case.maps, 0, &after, NOW, || put(case, &after)).unwrap();
    }

    #[test]
    fn neighbours_become_one_client_that_stays_where_the_one_with_open_flows_is() {
        let (case, [a, b]) = case();
        stick(&case.maps, 0, neighbour(1), a, NOW);
        stick(&case.maps, 0, neighbour(2), b, NOW);
        flow(&case.maps, 0, neighbour(2), 5000, b, 443, TcpState::Established, NOW);
        change(&case, Service { by_prefix: true, ..entry(&case) });
        assert_eq!(records(&case), [(Address([neighbour(1).0[0], 0]), 0, b, 1)]);
        let held = FlowSticky::from_word(
            case.maps.flows.iter().find(|slot| slot.life().note() != 0).unwrap().words[STICKY_WORD].load(),
        );
        let (index, life, _) = live_stickies(&case.maps, NOW).next().unwrap();
        assert_eq!(held.record, Some(reference(index, life)));
    }

    #[test]
    fn a_client_of_a_prefix_with_an_open_flow_keeps_its_server_alone() {
        let (case, [_, b]) = case();
        let one = Service { by_prefix: true, ..entry(&case) };
        put(&case, &one).unwrap();
        stick(&case.maps, 0, neighbour(2), b, NOW);
        flow(&case.maps, 0, neighbour(2), 5000, b, 443, TcpState::Established, NOW);
        change(&case, Service { by_prefix: false, ..one });
        let prefix = Address([neighbour(2).0[0], 0]);
        assert_eq!(records(&case), [(prefix, 0, b, 0), (neighbour(2), 0, b, 1)]);
    }

    #[test]
    fn each_port_with_an_open_flow_gets_a_record_and_the_one_for_all_stays_for_the_others() {
        let (case, [a, _]) = case();
        let client = neighbour(1);
        stick(&case.maps, 0, client, a, NOW);
        flow(&case.maps, 0, client, 5000, a, 443, TcpState::Established, NOW);
        change(&case, Service { by_port: true, ..entry(&case) });
        assert_eq!(records(&case), [(client, 0, a, 0), (client, 443, a, 1)]);
        change(&case, Service { by_port: false, ..entry(&case) });
        assert_eq!(records(&case), [(client, 0, a, 1)]);
    }
}
