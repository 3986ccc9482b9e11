//! `explain` against the rules written out a second time, and against cases that people meet.

use lb_common::{
    address::Address,
    choose::{Choice, choose},
    clock::Ticks,
    life::SlotState,
    maglev::{Table, place},
    server::{ServerState, Servers as _},
    sticky::StickyServer,
};
use proptest::prelude::*;

use super::{
    explain::{Explanation, Verdict, explain, text},
    testing::{Builder, DOWN, DRAINING, HOUR, NOW, UP, address},
};

fn hyperspace(builder: &Builder, client: &str) -> Explanation {
    let mut explanations = explain(&builder.snapshot(), address(client), Some(0)).unwrap();
    assert_eq!(explanations.len(), 1);
    explanations.remove(0)
}

const CLIENT: &str = "10.1.2.3";

/// Where the scheduler of the example sends the client.
fn scheduled(builder: &Builder) -> u16 {
    let table = Table::from_values(&builder.maps.kernel.schedule(0).unwrap().unwrap()).unwrap();
    table.pick(55, address(CLIENT)).unwrap()
}

#[test]
fn a_client_with_a_record_goes_to_its_server_and_learns_where_it_would_go_without() {
    let builder = Builder::example();
    let natural = scheduled(&builder);
    let other = if natural == 1 { 2 } else { 1 };
    builder.sticky(0, address(CLIENT), other, 2, 10);
    let found = hyperspace(&builder, CLIENT);
    assert_eq!(found.verdict, Verdict::Sticky);
    assert_eq!(found.server.as_deref(), Some(&*format!("Hyperspace_Srv_{other}")));
    assert_eq!(found.without_record.verdict, Verdict::Scheduled);
    assert_eq!(found.without_record.server, Some(format!("Hyperspace_Srv_{natural}")));
    assert_eq!(found.why, format!("its sticky record names Hyperspace_Srv_{other}, which is online and up"));
    assert!(found.reachable);
}

#[test]
fn a_client_is_explained_to_the_services_of_its_family() {
    let builder = Builder::example();
    let snapshot = builder.snapshot();
    let error = explain(&snapshot, address("2001:db8::7"), None).unwrap_err().to_string();
    assert!(error.contains("2001:db8::7") && error.contains("MyChart is at 192.168.85.151"), "{error}");
    assert!(explain(&snapshot, address("2001:db8::7"), Some(0)).is_err());

    builder.service(2, "MyChart", "2001:db8::151", HOUR);
    let of = |client: &str| -> Vec<String> {
        let found = explain(&builder.snapshot(), address(client), None).unwrap();
        found.into_iter().map(|explanation| explanation.service).collect()
    };
    assert_eq!(of("2001:db8::7"), ["MyChart"]);
    assert_eq!(of(CLIENT), ["Hyperspace"]);
}

#[test]
fn a_draining_server_keeps_its_client() {
    let builder = Builder::example();
    builder.sticky(0, address(CLIENT), 3, 0, 10);
    builder.change(3, DRAINING, |info| info.state = 2);
    let found = hyperspace(&builder, CLIENT);
    assert_eq!((found.verdict, found.server.as_deref()), (Verdict::Sticky, Some("Hyperspace_Srv_3")));
    assert!(found.why.contains("draining"), "{}", found.why);
}

#[test]
fn a_client_of_a_server_that_is_down_is_told_why_and_where_it_goes_instead() {
    let builder = Builder::example();
    builder.sticky(0, address(CLIENT), 3, 0, 10);
    builder.change(3, DOWN, |info| {
        info.health = 2;
        info.health_reason[..18].copy_from_slice(b"connection refused");
    });
    builder.schedule(0, &[1, 2]);
    let found = hyperspace(&builder, CLIENT);
    assert_eq!(found.verdict, Verdict::Scheduled);
    assert_eq!(found.server, Some(format!("Hyperspace_Srv_{}", scheduled(&builder))));
    assert!(
        found.why.starts_with(
            "its sticky record names Hyperspace_Srv_3, which is online and down (connection refused), which takes no \
             connections (the record follows once it is connected); the scheduler gives it Hyperspace_Srv_"
        ),
        "{}",
        found.why
    );
}

#[test]
fn what_a_scheduler_that_counts_would_do_now_is_said_and_changes_nothing() {
    use lb_common::{
        picks,
        schedule::{OPEN_WORD, Scheduler},
    };
    let builder = Builder::example();
    let service = |scheduler| {
        let words = lb_common::service::Service {
            scheduler,
            ..lb_common::service::Service::load(&builder.maps.services[0]).unwrap()
        }
        .words();
        builder.maps.services[0][3].store(words[3]);
    };
    service(Scheduler::LeastConn);
    builder.schedule(0, &[1, 2, 3]);
    (1..=3).for_each(|id| builder.change(id, UP, |info| info.health = 1));
    for (id, open) in [(1, 30), (2, 20), (3, 10)] {
        builder.maps.server_loads[id][OPEN_WORD].store(open);
    }
    let fewest = hyperspace(&builder, CLIENT);
    assert_ne!(fewest.server.as_deref(), Some("Hyperspace_Srv_1"), "{}", fewest.why);
    assert!(fewest.why.contains("least-conn gives it Hyperspace_Srv_"), "{}", fewest.why);
    assert!(fewest.why.contains("0 open connections now"), "{}", fewest.why);

    service(Scheduler::RoundRobin);
    builder.maps.turns[0].store(7);
    let turn = hyperspace(&builder, CLIENT);
    assert_eq!(turn, hyperspace(&builder, CLIENT));
    assert_eq!(builder.maps.turns[0].load(), 7);
    assert!(turn.why.contains("it is the turn of Hyperspace_Srv_"), "{}", turn.why);

    let other = if turn.server.as_deref() == Some("Hyperspace_Srv_2") { 3 } else { 2 };
    let key = builder.maps.sticky_key(address(CLIENT), 0, 0).words();
    let hash = lb_common::hash::hash3(&builder.maps.key(), key);
    let cell = &builder.maps.picks[picks::place(hash) as usize];
    let now = builder.maps.now().unwrap();
    builder.maps.control().idle_syn.store(60);
    assert_eq!(picks::note(cell, 0, hash, other, now, Ticks(60)), other);
    let noted = hyperspace(&builder, CLIENT);
    assert_eq!(noted.server, Some(format!("Hyperspace_Srv_{other}")));
    assert!(
        noted.why.ends_with(&format!("Hyperspace_Srv_{other} was picked for it a moment ago")),
        "{}",
        noted.why
    );
}

#[test]
fn nobody_is_an_answer_with_a_reason() {
    let builder = Builder::example();
    for id in [1, 2, 3] {
        builder.change(id, DOWN, |info| info.health = 2);
    }
    let stale = hyperspace(&builder, CLIENT);
    assert_eq!((stale.verdict, stale.server), (Verdict::Nobody, None));
    assert!(stale.why.contains("32 places gave no server"), "{}", stale.why);
    builder.maps.kernel.set_schedule(0, &[0]).unwrap();
    let empty = hyperspace(&builder, CLIENT);
    assert_eq!(
        empty.why,
        "it has no sticky record; the scheduler has no server to give to unknown clients; the connection is answered \
         with RST"
    );
}

#[test]
fn a_server_without_a_known_next_hop_is_named_as_such() {
    let builder = Builder::example();
    builder.sticky(0, address(CLIENT), 1, 0, 10);
    builder.change(1, UP & !ServerState::REACHABLE, |_| {});
    let found = hyperspace(&builder, CLIENT);
    assert!(!found.reachable && found.why.ends_with("the SYN is dropped (no-neighbour)"), "{}", found.why);
}

#[test]
fn an_expired_record_is_no_record_and_a_service_without_persistence_uses_none() {
    let builder = Builder::example();
    builder.sticky(0, address(CLIENT), 1, 0, -1);
    assert_eq!(hyperspace(&builder, CLIENT).record, None);
    builder.sticky(0, address("10.1.2.4"), 1, 0, 10);
    builder.service(0, "Hyperspace", "192.168.85.150", Ticks(0));
    let found = hyperspace(&builder, "10.1.2.4");
    assert_eq!(found.record, None);
    assert!(found.why.starts_with("the service keeps no sticky records"), "{}", found.why);
}

#[test]
fn all_balanced_services_are_explained_and_a_redirect_is_refused() {
    let builder = Builder::example();
    builder.sticky(2, address(CLIENT), 5, 1, 10);
    let all = explain(&builder.snapshot(), address(CLIENT), None).unwrap();
    let services: Vec<&str> = all.iter().map(|one| one.service.as_str()).collect();
    assert_eq!(services, ["Hyperspace", "MyChart"]);
    assert_eq!(all[1].server.as_deref(), Some("MyChart_Srv_2"));
    assert!(text(&all).contains("does not expire while a connection is open"));
    let error = explain(&builder.snapshot(), address(CLIENT), Some(1)).unwrap_err();
    assert!(error.to_string().contains("redirect to https"), "{error}");
}

/// The record that is in force, by reading every slot.
fn brute_force_record(builder: &Builder, client: Address) -> Option<u16> {
    let now = Ticks::from_jiffies(NOW);
    let mut records = builder.maps.sticky.iter().filter_map(|slot| {
        let (life, words) = (slot.life(), slot.read());
        let in_force = life.state() == SlotState::Live && (life.note() > 0 || life.deadline().0 >= now.0);
        let to = StickyServer::from_word(words[2]);
        (in_force && words[..2] == client.0 && to.service == 0).then_some(to.server)
    });
    let first = records.next();
    assert_eq!(records.next(), None, "a client has one record");
    first
}

/// The choice, from the whole table read back by the table's own reader.
fn independent(builder: &Builder, client: Address) -> Choice {
    let persistent = builder.maps.services[0][2].load() & 0xffff_ffff != 0;
    let record = brute_force_record(builder, client).filter(|_| persistent);
    let table = builder.maps.kernel.schedule(0).unwrap().and_then(|values| Table::from_values(&values));
    choose(&builder.maps.servers, 0, record, |attempt| {
        let table = table.as_ref()?;
        let id = table.places()[place(55, client, table.size(), attempt) as usize];
        (id != u16::MAX).then_some(id)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_verdict_is_what_the_data_path_would_choose(
        bits in prop::array::uniform3(0u16..32),
        in_table in prop::collection::vec(1u16..=3, 0..4),
        records in prop::collection::vec((0u8..16, 0u16..6, 0u32..2, -5i32..5), 0..12),
        persistent in any::<bool>(),
    ) {
        let builder = Builder::example();
        if !persistent {
            builder.service(0, "Hyperspace", "192.168.85.150", Ticks(0));
        }
        let client = |n: u8| address(&format!("10.0.0.{n}"));
        for (index, (n, server, flows, left)) in records.iter().enumerate() {
            if records[..index].iter().all(|(other, ..)| other != n) {
                builder.sticky(0, client(*n), *server, *flows, *left);
            }
        }
        let mut in_table = in_table;
        in_table.sort_unstable();
        in_table.dedup();
        builder.schedule(0, &in_table);
        for (id, bits) in (1u16..).zip(bits) {
            builder.change(id, bits, |_| {});
        }
        for n in 0..16 {
            let snapshot = builder.snapshot();
            let explained = explain(&snapshot, client(n), Some(0)).unwrap().remove(0);
            let expected = match independent(&builder, client(n)) {
                Choice::Sticky(id, server) => (Verdict::Sticky, Some(id), server.state.has(ServerState::REACHABLE)),
                Choice::Scheduled(id, server) => {
                    (Verdict::Scheduled, Some(id), server.state.has(ServerState::REACHABLE))
                }
                Choice::Nobody => (Verdict::Nobody, None, false),
            };
            prop_assert_eq!(explained.verdict, expected.0);
            prop_assert_eq!(&explained.server, &expected.1.map(|id| snapshot.names.server_label(id)));
            prop_assert_eq!(explained.reachable, expected.2);
            prop_assert!(!explained.why.is_empty());
            if let Some(id) = expected.1 {
                prop_assert!(builder.maps.servers.present(id).is_some());
            }
        }
    }
}

#[test]
fn the_tests_hour_is_an_hour() {
    assert_eq!(HOUR.as_millis(1000) / 1000, 3600);
}
