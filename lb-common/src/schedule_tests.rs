//! How even the picks are, and whom they favour.

use super::*;
use crate::maglev::{Candidate, NOBODY, Table};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

fn candidates(weights: &[u32]) -> Vec<Candidate> {
    (0..).zip(weights).map(|(id, weight)| candidate(id, *weight)).collect()
}

fn candidate(id: u16, weight: u32) -> Candidate {
    Candidate {
        id,
        address: Address::from_v4_word((0xc0a8_55c8 + u32::from(id)).to_be()),
        port: 443u16.to_be(),
        weight,
    }
}

fn client(number: u32) -> Address {
    Address::from_v4_word((0x0a00_0000 + number).to_be())
}

/// A service as the program has it.
struct Bench {
    scheduler: Scheduler,
    table: Table,
    loads: Vec<Load>,
    turn: u64,
}

impl Bench {
    fn new(scheduler: Scheduler, weights: &[u32]) -> Self {
        let loads = weights.iter().map(|weight| Load { open: 0, weight: *weight }).collect();
        Self { scheduler, table: build(scheduler, 55, &candidates(weights), weights.len()), loads, turn: 0 }
    }

    fn at(&self, client: Address, salt: u64, attempt: u32) -> Option<u16> {
        let asked = Asked { seed: 55, client, salt, size: self.table.size(), attempt };
        pick(
            self.scheduler,
            asked,
            self.turn,
            |id| self.loads[usize::from(id)],
            |place| Some(self.table.places()[place as usize]).filter(|id| *id != NOBODY),
        )
    }

    /// A new client connects once and stays.
    fn connect(&mut self, number: u32) -> u16 {
        let id = self.at(client(number), 0, 0).unwrap();
        self.turn += 1;
        self.loads[usize::from(id)].open += 1;
        id
    }

    fn open(&self) -> Vec<u32> {
        self.loads.iter().map(|load| load.open).collect()
    }
}

#[test]
fn numbers_and_kinds_are_the_same() {
    for kind in Scheduler::ALL {
        assert_eq!(Scheduler::from_number(kind as u8), kind);
    }
    assert_eq!(Scheduler::from_number(77), Scheduler::SourceHash);
}

#[test]
fn a_count_below_zero_is_none() {
    let slot: LoadSlot = [Word::new(0u64.wrapping_sub(2)), Word::new(100)];
    assert_eq!(Load::read(&slot), Load { open: 0, weight: 100 });
    slot[OPEN_WORD].fetch_add(5);
    assert_eq!(Load::read(&slot), Load { open: 3, weight: 100 });
}

#[test]
fn source_hash_is_the_tables_own_pick() {
    let bench = Bench::new(Scheduler::SourceHash, &[100, 100, 50]);
    for number in 0..500 {
        assert_eq!(bench.at(client(number), 0, 0), bench.table.pick(55, client(number)));
    }
}

#[test]
fn least_conn_leaves_the_most_loaded_server_alone() {
    let mut bench = Bench::new(Scheduler::LeastConn, &[100, 100, 100]);
    bench.loads[1].open = 1000;
    for number in 0..300 {
        bench.connect(number);
    }
    let open = bench.open();
    assert!(open[1] < 1000 + 3, "{open:?}");
    assert!(open[0].abs_diff(open[2]) < 30, "{open:?}");
}

#[test]
fn least_conn_asks_the_hash_when_its_pick_was_of_no_use() {
    let mut bench = Bench::new(Scheduler::LeastConn, &[100, 100]);
    bench.loads[0].open = 1000;
    let all_on_the_dead = (0..1000).filter(|number| {
        // Server 1 has just gone: it has the fewest flows.
        (0..8).all(|attempt| bench.at(client(*number), 0, attempt) == Some(1))
    });
    // One in 128 of those whose first pick it is.
    assert!(all_on_the_dead.count() < 30);
}

#[test]
fn a_salt_gives_one_clients_connections_other_pairs() {
    let bench = Bench::new(Scheduler::LeastConn, &[100; 8]);
    let servers: std::collections::BTreeSet<_> = (0..64).map(|salt| bench.at(client(1), salt, 0)).collect();
    assert_eq!(servers.len(), 8);
}

#[test]
fn equal_servers_take_turns_exactly_and_a_dead_one_is_passed_over() {
    let mut bench = Bench::new(Scheduler::RoundRobin, &[100, 100, 100]);
    let first: Vec<u16> = (0..6).map(|number| bench.connect(number)).collect();
    assert_eq!(first, [0, 1, 2, 0, 1, 2]);
    assert_eq!((bench.at(client(0), 0, 0), bench.at(client(0), 0, 1)), (Some(0), Some(1)));
}

#[test]
fn turns_follow_the_weights_evenly_spread() {
    let table = build(Scheduler::RoundRobin, 55, &candidates(&[300, 100, 0]), 3);
    let places = table.places();
    assert_eq!(places.len(), 4);
    assert_eq!(places.iter().filter(|id| **id == 1).count(), 1);
    let nobody = build(Scheduler::RoundRobin, 55, &candidates(&[0]), 1);
    assert_eq!(nobody.places(), [NOBODY]);
}

/// Weights as a configuration may have them, with the thousandths of a slow start.
fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec((1u32..=256, 100u32..=1000).prop_map(|(weight, share)| weight * share), 1..12)
}

proptest! {
    #[test]
    fn whatever_the_weights_round_robin_gives_each_its_share(weights in weights()) {
        let table = build(Scheduler::RoundRobin, 55, &candidates(&weights), weights.len());
        let mut counts = BTreeMap::new();
        for id in table.places() {
            *counts.entry(*id).or_insert(0u32) += 1;
        }
        let all: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        for (id, weight) in (0u16..).zip(&weights) {
            let share = f64::from(counts[&id]) / f64::from(table.size());
            let wanted = f64::from(*weight) / all;
            prop_assert!((share - wanted).abs() <= 0.004, "{id}: {share} for {wanted}");
        }
    }

    #[test]
    fn in_any_part_of_the_cycle_equal_servers_differ_by_one(servers in 1usize..20, clients in 0u32..400) {
        let mut bench = Bench::new(Scheduler::RoundRobin, &std::vec![100; servers]);
        for number in 0..clients {
            bench.connect(number);
        }
        let open = bench.open();
        prop_assert!(open.iter().max().unwrap() - open.iter().min().unwrap() <= 1, "{open:?}");
    }

    #[test]
    fn least_conn_keeps_flows_near_the_weights(weights in prop::collection::vec(50u32..=200, 2..8)) {
        let mut bench = Bench::new(Scheduler::LeastConn, &weights);
        let clients = 600;
        for number in 0..clients {
            bench.connect(number);
        }
        let all: u32 = weights.iter().sum();
        for (open, weight) in bench.open().iter().zip(&weights) {
            let wanted = f64::from(clients) * f64::from(*weight) / f64::from(all);
            prop_assert!((f64::from(*open) - wanted).abs() < 0.15 * wanted + 10.0, "{open} for {wanted}");
        }
    }

    #[test]
    fn of_two_servers_the_one_with_more_for_its_weight_is_above(
        a in (0u32..1000, 1u32..1000), b in (0u32..1000, 1u32..1000),
    ) {
        let (a, b) = (Load { open: a.0, weight: a.1 }, Load { open: b.0, weight: b.1 });
        let ratio = |load: Load| f64::from(load.open) / f64::from(load.weight);
        prop_assert!(!(a.is_above(b) && b.is_above(a)));
        if (ratio(a) - ratio(b)).abs() > 1e-9 {
            prop_assert_eq!(a.is_above(b), ratio(a) > ratio(b));
        }
    }
}
