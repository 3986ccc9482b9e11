use std::collections::BTreeMap;

use jiff::Timestamp;
use lb_common::choose::{Choice, choose};
use lb_common::clock::Ticks;
use lb_common::maglev::Table;
use lb_common::tcp::TcpState;
use proptest::prelude::*;

use super::desired::ServerHealth;
use super::name::{AdminState, ServerName};
use super::plan::{Before, Plan, pick, plan};
use super::rows::live_stickies;
use super::testing::{Case, client, config, flow, stick};
use crate::dataplane::Maps;
use crate::health::state::Verdict;

const NOW: Ticks = Ticks(100);
const CLIENTS: u32 = 60;

fn three() -> Case {
    let case = Case::new(config(&[("V", 150, &[("a", 1), ("b", 2), ("c", 3)])]));
    case.apply().unwrap();
    case
}

fn planned(case: &Case) -> Plan {
    let before = Before::whole(&case.maps).unwrap();
    plan(&case.maps, &before, &case.desired(), NOW, Timestamp::UNIX_EPOCH)
}

/// Where each recorded client would go, asked of the maps as the program asks.
fn destinations(maps: &Maps) -> BTreeMap<std::net::IpAddr, Option<u16>> {
    let table = Table::from_values(&maps.kernel.schedule(0).unwrap().unwrap()).unwrap();
    let seed = maps.control().maglev_seed.load();
    live_stickies(maps, NOW)
        .map(|(_, _, row)| {
            let pick = |attempt| pick(&table, seed, row.client, attempt);
            let to = match choose(&maps.servers, row.to.service, Some(row.to.server), pick) {
                Choice::Sticky(id, _) | Choice::Scheduled(id, _) => Some(id),
                Choice::Nobody => None,
            };
            (row.client.into(), to)
        })
        .collect()
}

fn change(case: &mut Case, admin: &[u8], health: &[u8], weights: &[u16]) {
    for (number, server) in ["a", "b", "c"].into_iter().enumerate() {
        let id = case.id("V", server);
        let state = [AdminState::Online, AdminState::Drain, AdminState::Halt][usize::from(admin[number])];
        case.overlay.set_state(ServerName::new("V", server), state);
        let verdict = [None, Some(Verdict::Up), Some(Verdict::Down)][usize::from(health[number])];
        case.health.insert(id, ServerHealth { verdict, ..ServerHealth::default() });
        case.config.services[0].real_servers[number].weight = weights[number];
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn exactly_the_clients_that_the_plan_names_move(
        before in (prop::array::uniform3(0u8..3), prop::array::uniform3(0u8..3), prop::array::uniform3(0u16..3)),
        after in (prop::array::uniform3(0u8..3), prop::array::uniform3(0u8..3), prop::array::uniform3(0u16..3)),
    ) {
        let mut case = three();
        for number in 0..CLIENTS {
            let server = u16::try_from(number % 3).unwrap();
            stick(&case.maps, 0, client(number), server, NOW);
        }
        change(&mut case, &before.0, &before.1, &before.2);
        case.apply().unwrap();
        let from = destinations(&case.maps);
        change(&mut case, &after.0, &after.1, &after.2);
        let plan = planned(&case);
        case.apply().unwrap();
        let to = destinations(&case.maps);
        let label = |id: Option<u16>| id.map(|id| ["a", "b", "c"][usize::from(id)].to_owned());
        let moved: Vec<_> = from
            .iter()
            .filter(|(client, server)| to[*client] != **server)
            .map(|(client, server)| (*client, label(*server), label(to[client])))
            .collect();
        let named: Vec<_> = plan.moved.iter().map(|m| (m.client, m.from.clone(), m.to.clone())).collect();
        prop_assert_eq!(&named, &moved);
        prop_assert_eq!(plan.clients_moved, moved.len() as u64);
        // And after the change, the same plan has nothing left to do.
        let again = planned(&case);
        prop_assert!(again.moves.is_empty() && again.resets.is_empty() && again.unknown_changed.is_empty());
    }
}

#[test]
fn only_a_hundred_clients_are_listed_and_all_are_counted() {
    let mut case = three();
    for number in 0..250 {
        stick(&case.maps, 0, client(number), 0, NOW);
    }
    case.overlay.set_state(ServerName::new("V", "a"), AdminState::Halt);
    let plan = planned(&case);
    assert_eq!((plan.moved.len(), plan.clients_moved), (100, 250));
    assert!(plan.moved.is_sorted_by_key(|moved| moved.client));
    assert!(plan.moves.iter().all(|moves| moves.from.as_deref() == Some("a")));
}

#[test]
fn draining_moves_nobody_and_says_when_it_is_empty() {
    let mut case = three();
    stick(&case.maps, 0, client(1), 0, NOW);
    case.overlay.set_state(ServerName::new("V", "a"), AdminState::Drain);
    let plan = planned(&case);
    assert!(plan.moves.is_empty() && plan.resets.is_empty());
    let draining = &plan.draining[0];
    assert_eq!((draining.server.as_str(), draining.clients, draining.connections), ("a", 1, 0));
    assert_eq!(draining.empty_at.as_deref(), Some("1970-01-01T01:00:00Z"));
    assert!((20.0..50.0).contains(&plan.unknown_changed[0].percent));
    flow(&case.maps, 0, client(1), 5000, 0, 443, TcpState::Established, NOW);
    let plan = planned(&case);
    assert_eq!((plan.draining[0].connections, &plan.draining[0].empty_at), (1, &None));
}

#[test]
fn halting_resets_open_connections_and_a_last_server_leaves_nobody() {
    let mut case = three();
    stick(&case.maps, 0, client(1), 0, NOW);
    flow(&case.maps, 0, client(1), 5000, 0, 443, TcpState::Established, NOW);
    flow(&case.maps, 0, client(2), 5000, 0, 443, TcpState::TimeWait, NOW);
    for server in ["a", "b", "c"] {
        case.overlay.set_state(ServerName::new("V", server), AdminState::Halt);
    }
    let plan = planned(&case);
    assert_eq!(plan.connections_reset(), 1);
    assert_eq!(plan.moved[0].to, None);
    assert!(plan.refused.iter().any(|warning| warning.contains("no usable real server")));
    let text = plan.to_string();
    assert!(text.contains("V: 1 client moves from a to nobody (refused)."), "{text}");
    assert!(text.contains("V/a: 1 open connection ends, because"), "{text}");
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
}

#[test]
fn removing_a_service_ends_its_connections() {
    let mut case = three();
    stick(&case.maps, 0, client(1), 0, NOW);
    flow(&case.maps, 0, client(1), 5000, 0, 443, TcpState::Established, NOW);
    case.configure(config(&[]));
    let plan = planned(&case);
    assert_eq!(plan.connections_reset(), 1);
    assert!(plan.resets[0].reason.contains("virtual service is removed"));
    assert_eq!((plan.moved[0].service.as_str(), &plan.moved[0].to), ("V", &None));
}

#[test]
fn adding_a_server_moves_no_client_that_has_a_record() {
    let mut case = three();
    for number in 0..CLIENTS {
        stick(&case.maps, 0, client(number), u16::try_from(number % 3).unwrap(), NOW);
    }
    case.configure(config(&[("V", 150, &[("a", 1), ("b", 2), ("c", 3), ("d", 4)])]));
    let plan = planned(&case);
    assert!(plan.moves.is_empty());
    assert!((10.0..40.0).contains(&plan.unknown_changed[0].percent), "{plan:?}");
}

#[test]
fn a_plan_counts_no_picks_of_a_scheduler_that_goes_in_turn() {
    let mut case = three();
    case.config.services[0].real_servers[0].weight = 7;
    assert_eq!(planned(&case).unknown_changed.len(), 1);
    case.config.services[0].scheduler = crate::config::Scheduler::RoundRobin;
    assert!(planned(&case).unknown_changed.is_empty());
}

#[test]
fn a_client_whose_server_goes_is_said_to_move_to_the_one_with_fewer_flows() {
    let mut case = three();
    case.config.services[0].scheduler = crate::config::Scheduler::LeastConn;
    case.apply().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|server| case.id("V", server));
    for (server, open) in [(b, 50), (c, 3)] {
        case.maps.server_loads[usize::from(server)][lb_common::schedule::OPEN_WORD].store(open);
    }
    stick(&case.maps, 0, client(1), a, NOW);
    case.overlay.set_state(ServerName::new("V", "a"), AdminState::Halt);
    let moved = planned(&case).moved;
    assert_eq!(moved.len(), 1);
    assert_eq!((moved[0].from.as_deref(), moved[0].to.as_deref()), (Some("a"), Some("c")));
}
