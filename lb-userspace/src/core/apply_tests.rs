use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::clock::Ticks;
use lb_common::maglev::Table;
use lb_common::server::{ServerState, Servers as _};
use lb_common::service::{EntryKind, find_entry};
use lb_common::tcp::TcpState;
use lb_common::word::Word;
use proptest::prelude::*;

use super::apply::{apply, differences};
use super::desired::{Desired, ServerHealth, leaving};
use super::ids::Ids;
use super::name::{AdminState, ServerName};
use super::plan::{Before, plan};
use super::rows::{Usage, live_flows, live_stickies};
use super::testing::{Case, client, config, flow, stick};
use crate::config::{self, Config};
use crate::dataplane::fake::FakeKernel;
use crate::dataplane::{IndexMap, Maps};
use crate::health::state::Verdict;

const NOW: Ticks = Ticks(100_000);

/// Every service, address and endpoint is found by the program's own look-up, and nothing else is.
fn lookups_find(maps: &Maps, desired: &Desired) {
    let in_force = maps.control().index();
    let find =
        |address, port| find_entry(&IndexMap(&maps.service_index), in_force, &maps.key(), address, port, 6);
    for entry in &desired.index {
        let hit = find(entry.address, entry.port).unwrap();
        assert!(hit.is(entry.kind) && hit.id == entry.id, "{entry:?}");
    }
    assert!(find(client(77), 443u16.to_be()).is_none());
}

#[derive(Clone, Debug)]
struct World {
    services: BTreeMap<u8, (u8, BTreeMap<u8, u8>, u64)>,
    admin: Vec<u8>,
    health: Vec<u8>,
    weights: Vec<u16>,
}

fn world() -> impl Strategy<Value = World> {
    let servers = prop::collection::btree_map(0u8..5, 1u8..9, 0..4);
    let services = prop::collection::btree_map(0u8..4, (0u8..4, servers, 1u64..4), 0..4);
    (
        services,
        prop::collection::vec(0u8..3, 20),
        prop::collection::vec(0u8..3, 20),
        prop::collection::vec(0u16..4, 20),
    )
        .prop_map(|(services, admin, health, weights)| World { services, admin, health, weights })
}

impl World {
    /// As a configuration; `None` if it breaks the rules.
    fn config(&self) -> Option<Config> {
        use std::fmt::Write as _;
        let mut yaml =
            "version: 1\nnode: { interfaces: [eth0], tables: { endpoints: 16 } }\nvirtual_services:\n"
                .to_owned();
        if self.services.is_empty() {
            yaml = yaml.replace("services:\n", "services: []\n");
        }
        for (label, (host, servers, minutes)) in &self.services {
            let host = 150 + host;
            write!(
                yaml,
                "  - {{ label: V{label}, address: 192.0.2.{host}, ports: [443], persistence: {{ timeout: {minutes}m }}, real_servers: ["
            )
            .unwrap();
            for (server, host) in servers {
                let weight = self.weights[usize::from(label * 5 + server) % 20];
                write!(yaml, "{{ label: s{server}, address: 192.0.2.{host}, weight: {weight} }},").unwrap();
            }
            yaml.push_str("] }\n");
        }
        config::parse("test", &yaml).ok()
    }

    /// Puts it into a case, with the rows' numbers held.
    fn enter(&self, case: &mut Case) -> bool {
        let Some(config) = self.config() else { return false };
        let in_use = Usage::of(&case.maps, NOW).in_use;
        case.configure_with(config, &in_use);
        case.overlay.states.clear();
        case.health.clear();
        for (number, name) in names(&case.config).into_iter().enumerate() {
            let id = case.id(&name.service, &name.server);
            let state = [AdminState::Online, AdminState::Drain, AdminState::Halt]
                [usize::from(self.admin[number % 20])];
            case.overlay.set_state(name, state);
            let verdict =
                [None, Some(Verdict::Up), Some(Verdict::Down)][usize::from(self.health[number % 20])];
            case.health.insert(id, ServerHealth { verdict, ..ServerHealth::default() });
        }
        let usage = Usage::of(&case.maps, NOW);
        case.leaving =
            leaving(&case.maps, &case.config, &case.ids, |id| usage.server(id).flows > 0, |_| false);
        true
    }
}

fn names(config: &Config) -> Vec<ServerName> {
    let of = |service: &config::Service| {
        let service_label = service.label.clone();
        service
            .real_servers
            .iter()
            .map(move |server| ServerName::new(service_label.as_str(), server.label.as_str()))
            .collect::<Vec<_>>()
    };
    config.services.iter().flat_map(of).collect()
}

/// A sticky record and a flow with each configured server.
fn populate(case: &Case, from: u32) {
    for (number, (id, (server, _))) in (from..).zip(case.desired().servers) {
        if case.desired().services.contains_key(&server.service) {
            stick(&case.maps, server.service, client(number), id, NOW);
            flow(&case.maps, server.service, client(number), 5000, id, 443, TcpState::Established, NOW);
        }
    }
}

/// What decides where packets of open flows go, of the ids that there are here.
fn deciding(maps: &Maps) -> Vec<u64> {
    let services = maps.services.iter().take(64).flat_map(|slot| slot.each_ref().map(Word::load));
    let servers = maps.servers.iter().take(64).flat_map(|slot| slot.each_ref().map(Word::load));
    services.chain(servers).chain([maps.control().generation.load()]).collect()
}

/// Applies, and sees that what the program's cache keeps is of another era whenever something of [`deciding`] has changed: at the
/// end, and where a packet that began before something is waited for.
fn apply_at(case: &Case) -> anyhow::Result<super::Applied> {
    let control = case.maps.control();
    let mut seen = (deciding(&case.maps), control.era());
    let mut look = || {
        let now = (deciding(&case.maps), control.era());
        assert!(now.0 == seen.0 || now.1 != seen.1, "changed within an era");
        seen = now;
        Ok(())
    };
    let applied = apply(&case.maps, &case.desired(), NOW, &mut look);
    look()?;
    applied
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn from_any_state_the_maps_come_to_hold_what_they_should(worlds in prop::collection::vec(world(), 1..4)) {
        let mut case = Case::new(config(&[]));
        for (number, world) in (0u32..).zip(worlds) {
            if !world.enter(&mut case) {
                continue;
            }
            apply_at(&case).unwrap();
            let desired = case.desired();
            prop_assert_eq!(differences(&case.maps, &desired).unwrap(), Vec::<String>::new());
            lookups_find(&case.maps, &desired);
            for (id, values) in &desired.schedules {
                let live = case.maps.kernel.schedule(*id).unwrap();
                prop_assert_eq!(live.as_ref(), Some(values));
                for server in Table::from_values(values).unwrap().places() {
                    let entry = case.maps.servers.present(*server);
                    prop_assert!(*server == u16::MAX || entry.is_some_and(|e| e.service == *id && e.state.has(ServerState::TAKES_NEW)));
                }
            }
            // Nothing to do a second time, and the ids are all in the maps.
            prop_assert!(!apply_at(&case).unwrap().changed());
            let recovered = Ids::recover(&case.maps);
            for name in names(&case.config) {
                prop_assert_eq!(recovered.server(&name), case.ids.server(&name));
            }
            // Rows only of services that are there.
            for (_, _, row) in live_flows(&case.maps.flows, NOW) {
                prop_assert!(desired.services.contains_key(&row.key.service));
            }
            populate(&case, number * 1000);
        }
    }

    #[test]
    fn an_application_that_fails_anywhere_is_made_good_by_the_next(
        first in world(), second in world(), calls in 1u64..40,
    ) {
        let left = std::sync::Arc::new(AtomicU64::new(u64::MAX));
        let mut case = Case::new(config(&[]));
        case.maps.kernel = Box::new(Shared { kernel: FakeKernel::default(), left: left.clone() });
        if first.enter(&mut case) {
            apply_at(&case).unwrap();
            populate(&case, 0);
        }
        if second.enter(&mut case) {
            left.store(calls, Ordering::Relaxed);
            let _fails_or_not = apply_at(&case);
            left.store(u64::MAX, Ordering::Relaxed);
            apply_at(&case).unwrap();
            prop_assert!(differences(&case.maps, &case.desired()).unwrap().is_empty());
            lookups_find(&case.maps, &case.desired());
        }
    }
}

/// A kernel that the test keeps a handle of, and that fails after so many more calls.
struct Shared {
    kernel: FakeKernel,
    left: std::sync::Arc<AtomicU64>,
}

impl Shared {
    fn body(&self) -> anyhow::Result<&FakeKernel> {
        let spend = |left: u64| left.checked_sub(1);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend) {
            Ok(_) => Ok(&self.kernel),
            Err(_) => anyhow::bail!("as told"),
        }
    }
}

impl crate::dataplane::Kernel for Shared {
    fn jiffies(&self) -> anyhow::Result<u64> {
        self.body()?.jiffies()
    }
    fn set_arm(&self, _: u8, _: u32) -> anyhow::Result<()> {
        Ok(())
    }

    fn set_schedule(&self, service: u16, values: &[u64]) -> anyhow::Result<()> {
        self.body()?.set_schedule(service, values)
    }
    fn schedule(&self, service: u16) -> anyhow::Result<Option<Vec<u64>>> {
        self.body()?.schedule(service)
    }
    fn reasons(&self) -> anyhow::Result<Vec<u64>> {
        self.body()?.reasons()
    }
    fn service_traffic(&self, service: u16) -> anyhow::Result<lb_common::maps::Traffic> {
        self.body()?.service_traffic(service)
    }
    fn server_traffic(&self, server: u16) -> anyhow::Result<lb_common::maps::Traffic> {
        self.body()?.server_traffic(server)
    }
    fn clear_traffic(&self, of: crate::dataplane::CountersOf) -> anyhow::Result<()> {
        self.body()?.clear_traffic(of)
    }
}

fn two_servers() -> Case {
    let case = Case::new(config(&[("V", 150, &[("a", 1), ("b", 2)])]));
    apply_at(&case).unwrap();
    case
}

#[test]
fn a_removed_service_takes_its_rows_with_it_and_leaves_the_others_alone() {
    let mut case = Case::new(config(&[("V", 150, &[("a", 1)]), ("W", 151, &[("a", 2)])]));
    apply_at(&case).unwrap();
    populate(&case, 0);
    let w = case.ids.service("W").unwrap().id;
    case.configure(config(&[("W", 151, &[("a", 2)])]));
    let done = apply_at(&case).unwrap();
    assert_eq!((done.flows_freed, done.clients_freed), (1, 1));
    assert!(live_stickies(&case.maps, NOW).all(|(_, _, row)| row.to.service == w && row.flows == 1));
    assert_eq!(live_flows(&case.maps.flows, NOW).count(), 1);
}

#[test]
fn a_service_at_another_address_ends_its_flows_and_keeps_its_clients() {
    let mut case = two_servers();
    populate(&case, 0);
    case.configure(config(&[("V", 160, &[("a", 1), ("b", 2)])]));
    let done = apply_at(&case).unwrap();
    assert_eq!((done.flows_freed, done.clients_freed), (2, 0));
    assert_eq!(live_stickies(&case.maps, NOW).count(), 2);
    lookups_find(&case.maps, &case.desired());
}

#[test]
fn a_service_in_another_mode_ends_its_flows_and_keeps_its_clients_and_the_plan_says_so() {
    let mut case = two_servers();
    populate(&case, 0);
    case.config.services[0].forwarding = config::Forwarding::Dr;
    let before = Before::whole(&case.maps).unwrap();
    let plan = plan(&case.maps, &before, &case.desired(), NOW, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(plan.resets.iter().map(|resets| resets.connections).sum::<u64>(), 2);
    assert!(plan.resets[0].reason.contains("another forwarding mode"), "{}", plan.resets[0].reason);
    let done = apply_at(&case).unwrap();
    assert_eq!((done.flows_freed, done.clients_freed), (2, 0));
    assert_eq!(live_stickies(&case.maps, NOW).count(), 2);
    assert!(!apply_at(&case).unwrap().changed());
}

#[test]
fn no_packet_is_sent_by_an_entry_while_its_address_changes() {
    let mut case = two_servers();
    let a = case.id("V", "a");
    case.configure(config(&[("V", 150, &[("a", 11), ("b", 2)])]));
    let desired = case.desired();
    let mut seen = Vec::new();
    apply(&case.maps, &desired, NOW, &mut || {
        let entry = case.maps.servers.present(a).unwrap();
        seen.push((entry.state.has(ServerState::REACHABLE), entry.address));
        Ok(())
    })
    .unwrap();
    // Two waits with the entry at rest: with the old address, then with the new one.
    assert!(seen.len() >= 2 && !seen[0].0 && !seen[1].0);
    assert_ne!(seen[0].1, seen[1].1);
    assert!(case.server(a).state.has(ServerState::REACHABLE));
}

#[test]
fn the_index_is_written_where_no_packet_reads_and_only_after_a_wait() {
    let mut case = two_servers();
    let before = case.maps.control().generation.load();
    case.configure(config(&[("V", 150, &[("a", 1), ("b", 2)]), ("W", 151, &[("c", 3)])]));
    let desired = case.desired();
    let mut waited = 0;
    apply(&case.maps, &desired, NOW, &mut || {
        waited += 1;
        assert_eq!(case.maps.control().generation.load(), before);
        Ok(())
    })
    .unwrap();
    assert!(waited >= 1);
    assert_eq!(case.maps.control().generation.load(), before + 1);
    // What has not changed is not written again.
    assert!(!apply_at(&case).unwrap().changed());
    assert_eq!(case.maps.control().generation.load(), before + 1);
}

#[test]
fn a_removed_server_finishes_its_flows_and_takes_nobody() {
    let mut case = two_servers();
    let b = case.id("V", "b");
    let b_endpoint = case.server(b).endpoint;
    populate(&case, 0);
    let usage = Usage::of(&case.maps, NOW);
    case.configure_with(config(&[("V", 150, &[("a", 1)])]), &usage.in_use);
    case.leaving = leaving(&case.maps, &case.config, &case.ids, |id| usage.server(id).flows > 0, |_| false);
    assert_eq!(case.leaving.keys().collect::<Vec<_>>(), [&b]);
    apply_at(&case).unwrap();
    let entry = case.server(b);
    assert_eq!(entry.state.0, ServerState::PRESENT | ServerState::REACHABLE);
    let endpoint = |index: &Desired| {
        index.index.iter().any(|entry| entry.kind == EntryKind::Endpoint && entry.id == b_endpoint)
    };
    assert!(endpoint(&case.desired()));
    // Asked to go at once, its flows are reset.
    case.leaving = leaving(&case.maps, &case.config, &case.ids, |_| true, |_| true);
    let done = apply_at(&case).unwrap();
    assert_eq!(done.resetting, [b]);
    assert!(case.server(b).state.has(ServerState::RESETS));
    // When they are gone, so is it.
    case.leaving = leaving(&case.maps, &case.config, &case.ids, |_| false, |_| false);
    apply_at(&case).unwrap();
    assert!(case.maps.servers.present(b).is_none());
    assert!(!endpoint(&case.desired()));
}

#[test]
fn another_timeout_moves_the_deadline_of_each_record_by_as_much() {
    let mut case = two_servers();
    let later = Ticks(NOW.0 + 1000);
    stick(&case.maps, 0, client(1), 0, NOW);
    stick(&case.maps, 0, client(2), 0, later);
    let old = Ticks::span_of_millis(3_600_000, 1000);
    let deadlines = |case: &Case| {
        let mut all: Vec<u32> = live_stickies(&case.maps, later).map(|(_, _, row)| row.deadline.0).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(deadlines(&case), [NOW.0 + old.0, later.0 + old.0]);
    let with = |timeout: &str| {
        let yaml = crate::core::testing::yaml(&[("V", 150, &[("a", 1), ("b", 2)])]);
        config::parse(
            "test",
            &yaml.replace(
                "ports: [443]\n",
                &format!("ports: [443]\n    persistence: {{ timeout: {timeout} }}\n"),
            ),
        )
        .unwrap()
    };
    case.configure(with("2h"));
    let done = apply(&case.maps, &case.desired(), later, &mut || Ok(())).unwrap();
    let new = Ticks::span_of_millis(7_200_000, 1000);
    assert_eq!(done.deadlines, 2);
    assert_eq!(deadlines(&case), [NOW.0 + new.0, later.0 + new.0]);
    // 1000 ticks (64 s) after the first was last used, a minute is over for it and not for the second.
    case.configure(with("1m"));
    apply(&case.maps, &case.desired(), later, &mut || Ok(())).unwrap();
    let minute = Ticks::span_of_millis(60_000, 1000);
    assert_eq!(deadlines(&case), [later.0 + minute.0]);
}

#[test]
fn without_persistence_no_record_is_left_to_come_back_later() {
    let mut case = two_servers();
    populate(&case, 0);
    let yaml = crate::core::testing::yaml(&[("V", 150, &[("a", 1), ("b", 2)])]);
    let yaml = yaml.replace("ports: [443]\n", "ports: [443]\n    persistence: { mode: none }\n");
    case.configure(config::parse("test", &yaml).unwrap());
    apply_at(&case).unwrap();
    assert_eq!(live_stickies(&case.maps, NOW).count(), 0);
    assert_eq!(live_flows(&case.maps.flows, NOW).count(), 2);
}

#[test]
fn a_server_that_goes_down_is_told_of_once() {
    let mut case = two_servers();
    let a = case.id("V", "a");
    let down = ServerHealth {
        verdict: Some(Verdict::Down),
        reason: "connection refused".to_owned(),
        ..ServerHealth::default()
    };
    case.health.insert(a, down);
    assert_eq!(apply_at(&case).unwrap().resetting, [a]);
    assert_eq!(apply_at(&case).unwrap(), super::Applied::default());
}
