//! The port cells against a model, in turn and from several threads.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use std::vec::Vec;

struct Memory {
    cells: Vec<Word>,
    cursors: Vec<Word>,
}

impl Memory {
    fn new(pairs: u32, count: u32) -> Self {
        let words = |count: u32| (0..count).map(|_| Word::new(0)).collect();
        Self { cells: words(pairs * count), cursors: words(pairs) }
    }

    fn at(&self, range: PortRange, offset: u32) -> &Word {
        self.cell(range.index(offset)).unwrap()
    }

    fn owner(&self, range: PortRange, offset: u32) -> Owner {
        PortCell::from_word(self.at(range, offset).load()).owner
    }
}

impl Cells for Memory {
    fn cell(&self, index: u32) -> Option<&Word> {
        self.cells.get(index as usize)
    }
    fn cursor(&self, pair: u32) -> Option<&Word> {
        self.cursors.get(pair as usize)
    }
}

const QUARANTINE: Ticks = Ticks(30);
const ONE: PortRange = PortRange { pair: 0, count: 100 };

fn ticks(moment: u64) -> Ticks {
    Ticks(u32::try_from(moment & 0xffff_ffff).unwrap())
}

#[derive(Clone, Debug)]
enum Step {
    Claim {
        pair: u32,
    },
    Promote {
        which: usize,
    },
    GiveBack {
        which: usize,
    },
    /// Someone who is not the owner tries both.
    Meddle {
        which: usize,
    },
    Pass {
        ticks: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3u32).prop_map(|pair| Step::Claim { pair }),
        4 => any::<usize>().prop_map(|which| Step::Promote { which }),
        3 => any::<usize>().prop_map(|which| Step::GiveBack { which }),
        1 => any::<usize>().prop_map(|which| Step::Meddle { which }),
        2 => (0..25u32).prop_map(|ticks| Step::Pass { ticks }),
    ]
}

/// What the model knows of a port. A port that is not in the map was never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Rests { since: u64 },
    HalfOpen(u32),
    Flow(u32),
}

struct Model {
    now: u64,
    count: u32,
    uses: BTreeMap<(u32, u32), Use>,
    cursors: [u64; 3],
    owners: u32,
}

impl Model {
    fn may_be_handed_out(&self, port: (u32, u32)) -> bool {
        match self.uses.get(&port) {
            None => true,
            Some(Use::Rests { since }) => self.now.saturating_sub(*since) >= u64::from(QUARANTINE.0),
            Some(_) => false,
        }
    }

    /// The ports that the next claim looks at, in order: each at most once, sixteen at most.
    fn window(&self, pair: u32) -> Vec<(u32, u32)> {
        (0..u64::from(self.count.min(16)))
            .map(|probe| (self.cursors[pair as usize] + probe) % u64::from(self.count))
            .map(|offset| (pair, u32::try_from(offset).unwrap()))
            .collect()
    }
}

fn claim_one(model: &mut Model, cells: &Memory, pair: u32) {
    model.owners += 1;
    let owner = model.owners;
    let range = PortRange { pair, count: model.count };
    let window = model.window(pair);
    let rested = window.iter().position(|port| model.may_be_handed_out(*port));
    let half_open = window.iter().position(|port| matches!(model.uses.get(port), Some(Use::HalfOpen(_))));
    let expected = rested.or(half_open);
    let given = claim(cells, range, owner, ticks(model.now), QUARANTINE);
    assert_eq!(given, expected.map(|place| window[place].1));
    model.cursors[pair as usize] += 1 + expected.unwrap_or(0) as u64;
    if let Some(offset) = given {
        assert!(offset < model.count, "a port outside the range belongs to someone else");
        model.uses.insert((pair, offset), Use::HalfOpen(owner));
    }
}

fn apply(model: &mut Model, cells: &Memory, step: &Step) {
    let now = ticks(model.now);
    let nth = |which: usize, wanted: fn(&Use) -> bool| {
        let ports: Vec<_> = model.uses.iter().filter(|(_, used)| wanted(used)).collect();
        ports.get(which.checked_rem(ports.len()).unwrap_or(0)).map(|(port, used)| (**port, **used))
    };
    let cell = |port: (u32, u32)| {
        let range = PortRange { pair: port.0, count: model.count };
        cells.at(range, port.1)
    };
    match *step {
        Step::Claim { pair } => claim_one(model, cells, pair),
        Step::Promote { which } => {
            if let Some((port, Use::HalfOpen(owner))) = nth(which, |used| matches!(used, Use::HalfOpen(_))) {
                assert!(promote(cell(port), owner, owner + 1000, now));
                model.uses.insert(port, Use::Flow(owner + 1000));
            }
        }
        Step::GiveBack { which } => {
            if let Some((port, Use::Flow(owner))) = nth(which, |used| matches!(used, Use::Flow(_))) {
                give_back(cell(port), owner, now);
                // The cell knows a moment zero as the one after it.
                let since = if now.0 == 0 { model.now + 1 } else { model.now };
                model.uses.insert(port, Use::Rests { since });
            }
        }
        Step::Meddle { which } => {
            if let Some((port, used)) = nth(which, |_| true) {
                let before = cell(port).load();
                let owner = match used {
                    Use::Rests { .. } => 0,
                    Use::HalfOpen(owner) | Use::Flow(owner) => owner,
                };
                assert!(!promote(cell(port), owner + 1, 9, now));
                give_back(cell(port), owner + 1, now);
                if matches!(used, Use::HalfOpen(_)) {
                    give_back(cell(port), owner, now);
                } else {
                    assert!(!promote(cell(port), owner, 9, now));
                }
                assert_eq!(cell(port).load(), before);
            }
        }
        Step::Pass { ticks } => model.now += u64::from(ticks),
    }
}

fn agree(model: &Model, cells: &Memory) {
    for pair in 0..3 {
        for offset in 0..model.count {
            let range = PortRange { pair, count: model.count };
            let expected = match model.uses.get(&(pair, offset)) {
                None | Some(Use::Rests { .. }) => Owner::Free,
                Some(Use::HalfOpen(owner)) => Owner::HalfOpen(*owner),
                Some(Use::Flow(owner)) => Owner::Flow(*owner),
            };
            assert_eq!(cells.owner(range, offset), expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 1500 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_cells_do_what_their_model_does(
        count in prop_oneof![1..6u32, 1..40u32],
        now in prop_oneof![0..1u64 << 32, (1u64 << 32) - 60..1 << 32],
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let cells = Memory::new(3, count);
        let mut model = Model { now, count, uses: BTreeMap::new(), cursors: [0; 3], owners: 0 };
        for step in &steps {
            apply(&mut model, &cells, step);
            agree(&model, &cells);
        }
    }

    #[test]
    fn packing_a_cell_loses_nothing(stamp in any::<u32>(), slot in 0u32..1 << 30, kind in 0..3) {
        let owner = match kind {
            0 => Owner::Free,
            1 => Owner::HalfOpen(slot),
            _ => Owner::Flow(slot),
        };
        let cell = PortCell { owner, stamp: Ticks(stamp) };
        prop_assert_eq!(PortCell::from_word(cell.word()), cell);
    }
}

#[test]
fn ports_go_round_so_that_each_rests_as_long_as_possible() {
    let cells = Memory::new(1, 100);
    let mut expected = (0..100).cycle();
    for round in 0..5 {
        // Flows end in an order that has nothing to do with the ports', and long enough ago.
        let now = round * 1000;
        let given: Vec<u32> =
            (0..100).map(|flow| claim(&cells, ONE, flow, Ticks(now), QUARANTINE).unwrap()).collect();
        for offset in &given {
            assert_eq!(Some(*offset), expected.next());
        }
        for offset in given.iter().rev() {
            let Owner::HalfOpen(owner) = cells.owner(ONE, *offset) else {
                panic!("claimed just now");
            };
            assert!(promote(cells.at(ONE, *offset), owner, owner, Ticks(now)));
            give_back(cells.at(ONE, *offset), owner, Ticks(now + owner));
        }
    }
}

#[test]
fn one_flow_after_the_other_takes_one_port_after_the_other() {
    let cells = Memory::new(1, 100);
    for flow in 0..250 {
        let offset = claim(&cells, ONE, flow, Ticks(flow * 1000), QUARANTINE).unwrap();
        assert_eq!(offset, flow % 100);
        assert!(promote(cells.at(ONE, offset), flow, flow, Ticks(flow * 1000)));
        give_back(cells.at(ONE, offset), flow, Ticks(flow * 1000));
    }
}

#[test]
fn an_exhausted_source_says_so_and_recovers_to_the_tick() {
    let cells = Memory::new(1, 100);
    for flow in 0..100 {
        let offset = claim(&cells, ONE, flow, Ticks(10), QUARANTINE).unwrap();
        assert!(promote(cells.at(ONE, offset), flow, flow, Ticks(10)));
    }
    for _ in 0..300 {
        assert_eq!(claim(&cells, ONE, 500, Ticks(1_000_000), QUARANTINE), None);
    }
    give_back(cells.at(ONE, 42), 42, Ticks(1_000_000));
    let found_by = |now| (0..100).find_map(|_| claim(&cells, ONE, 500, Ticks(now), QUARANTINE));
    assert_eq!(found_by(1_000_029), None);
    assert_eq!(found_by(1_000_030), Some(42));
}

#[test]
fn an_established_flows_port_is_never_stolen_and_a_half_open_ones_only_as_a_last_resort() {
    let cells = Memory::new(1, 100);
    // Every other port is established, the rest half-open.
    for flow in 0..100 {
        let offset = claim(&cells, ONE, flow, Ticks(10), QUARANTINE).unwrap();
        if offset.is_multiple_of(2) {
            assert!(promote(cells.at(ONE, offset), flow, flow, Ticks(10)));
        }
    }
    give_back(cells.at(ONE, 10), 10, Ticks(10));
    // The cursor is at 0, and the one that has rested is in sight behind five that are half-open.
    assert_eq!(claim(&cells, ONE, 200, Ticks(1000), QUARANTINE), Some(10));
    for flow in 300..500 {
        let stolen = claim(&cells, ONE, flow, Ticks(1001), QUARANTINE).unwrap();
        assert!(!stolen.is_multiple_of(2) || stolen == 10);
    }
    for offset in (0..100).step_by(2).filter(|offset| *offset != 10) {
        assert_eq!(cells.owner(ONE, offset), Owner::Flow(offset));
    }
}

#[test]
fn a_port_that_was_just_stolen_is_the_last_to_be_stolen_again() {
    let cells = Memory::new(1, 100);
    // Ten connections stay, side by side; everything else is half-open, as in a flood.
    for flow in 0..100 {
        let offset = claim(&cells, ONE, flow, Ticks(10), QUARANTINE).unwrap();
        if offset < 10 {
            assert!(promote(cells.at(ONE, offset), flow, flow, Ticks(10)));
        }
    }
    let stolen: Vec<u32> =
        (200..290).map(|flow| claim(&cells, ONE, flow, Ticks(11), QUARANTINE).unwrap()).collect();
    assert_eq!(stolen, (10..100).collect::<Vec<u32>>());
}

#[test]
fn a_half_open_flow_whose_port_was_stolen_is_not_promoted() {
    let cells = Memory::new(1, 1);
    let range = PortRange { pair: 0, count: 1 };
    assert_eq!(claim(&cells, range, 1, Ticks(5), QUARANTINE), Some(0));
    assert_eq!(claim(&cells, range, 2, Ticks(6), QUARANTINE), Some(0));
    assert!(!promote(cells.at(range, 0), 1, 11, Ticks(7)));
    assert!(promote(cells.at(range, 0), 2, 12, Ticks(7)));
    assert_eq!(claim(&cells, range, 3, Ticks(8), QUARANTINE), None);
}

#[test]
fn a_port_given_back_at_tick_zero_rests_too() {
    let cells = Memory::new(1, 1);
    let range = PortRange { pair: 0, count: 1 };
    assert_eq!(claim(&cells, range, 1, Ticks(0), QUARANTINE), Some(0));
    assert!(promote(cells.at(range, 0), 1, 1, Ticks(0)));
    give_back(cells.at(range, 0), 1, Ticks(0));
    assert_eq!(claim(&cells, range, 2, Ticks(1), QUARANTINE), None);
    assert_eq!(claim(&cells, range, 2, Ticks(31), QUARANTINE), Some(0));
}

#[test]
fn no_ports_no_cells_and_no_cursor_are_exhaustion_and_not_a_panic() {
    let cells = Memory::new(1, 4);
    let none = PortRange { pair: 0, count: 0 };
    assert_eq!(claim(&cells, none, 1, Ticks(1), QUARANTINE), None);
    let no_cells = PortRange { pair: 0, count: 50 };
    for _ in 0..4 {
        assert!(claim(&cells, no_cells, 1, Ticks(1), QUARANTINE).is_some());
    }
    assert_eq!(claim(&cells, no_cells, 1, Ticks(1), QUARANTINE), None);
    let no_cursor = PortRange { pair: 7, count: 4 };
    assert_eq!(claim(&cells, no_cursor, 1, Ticks(1), QUARANTINE), None);
}

#[test]
fn threads_that_open_and_close_flows_never_share_a_port() {
    const THREADS: u32 = 4;
    const FLOWS: u32 = if cfg!(miri) { 20 } else { 30_000 };
    // More flows at once than fit: exhaustion, theft and reuse all happen.
    let range = PortRange { pair: 0, count: 24 };
    let cells = Memory::new(1, range.count);
    // Who has the port for certain, kept beside the cells: zero, or the owner of an established flow.
    let holders: Vec<Word> = (0..range.count).map(|_| Word::new(0)).collect();
    let start = Barrier::new(THREADS as usize);
    let established: u32 = std::thread::scope(|scope| {
        let run = |thread: u32| {
            let (cells, holders, start) = (&cells, &holders, &start);
            move || {
                start.wait();
                let mut held: Vec<(u32, u32)> = Vec::new();
                let mut established = 0;
                for number in 0..FLOWS {
                    let owner = number * THREADS + thread + 1;
                    let now = Ticks(number + 1);
                    if let Some(offset) = claim(cells, range, owner, now, Ticks(0))
                        && promote(cells.at(range, offset), owner, owner, now)
                    {
                        established += 1;
                        let before = holders[offset as usize].compare_exchange(0, u64::from(owner));
                        assert_eq!(before, Ok(0), "port {offset} has two established flows");
                        held.push((offset, owner));
                    }
                    if held.len() > 7 || number + 1 == FLOWS {
                        for (offset, owner) in held.drain(..) {
                            assert_eq!(cells.owner(range, offset), Owner::Flow(owner));
                            holders[offset as usize].store(0);
                            give_back(cells.at(range, offset), owner, now);
                        }
                    }
                }
                established
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(established > THREADS * FLOWS / 4, "{established}: too few to prove anything");
    for offset in 0..range.count {
        assert!(!matches!(cells.owner(range, offset), Owner::Flow(_)));
    }
}

#[test]
fn threads_that_claim_from_an_unused_range_get_different_ports() {
    const THREADS: u32 = 3;
    for round in 0..if cfg!(miri) { 3 } else { 300 } {
        let range = PortRange { pair: 0, count: 300 };
        let cells = Memory::new(1, range.count);
        let start = Barrier::new(THREADS as usize);
        let given: Vec<u32> = std::thread::scope(|scope| {
            let run = |thread: u32| {
                let (cells, start) = (&cells, &start);
                move || {
                    start.wait();
                    let owner = round * THREADS + thread;
                    (0..60)
                        .filter_map(|_| claim(cells, range, owner, Ticks(1), QUARANTINE))
                        .collect::<Vec<_>>()
                }
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(run(thread))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(given.len(), 180);
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 180);
    }
}
