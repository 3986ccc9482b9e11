//! The tables against models of them, one operation after the other. Threads: `table_thread_tests`; every
//! interleaving of a few: `table_loom`.

use super::*;
use crate::address::Address;
use crate::flow::{FLOW_WORDS, FlowKey, Flows};
use crate::hash::{HashKey, hash3};
use crate::sticky::{self, STICKY_WORDS, Stickies, StickyKey, StickyServer};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::vec::Vec;

pub(super) const KEY: HashKey =
    HashKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 0x0f1e_2d3c_4b5a_6978, 0x8796_a5b4_c3d2_e1f0]);
const SERVICE: u16 = 7;

/// A table in vectors: the slots, and the buckets' tags.
pub(super) struct Memory<const N: usize>(Vec<Slot<N>>, Vec<Word>);

impl<const N: usize> Memory<N> {
    pub(super) fn new(buckets: u32) -> Self {
        assert!(buckets.is_power_of_two());
        let slot = |_| Slot { life: Word::new(0), words: core::array::from_fn(|_| Word::new(0)) };
        Self((0..buckets * BUCKET).map(slot).collect(), (0..buckets).map(|_| Word::new(0)).collect())
    }

    /// Every live slot's index, life and words.
    pub(super) fn live(&self) -> Vec<(u32, Life, [u64; N])> {
        (0u32..)
            .zip(&self.0)
            .map(|(index, slot)| (index, slot.life(), slot.read()))
            .filter(|(_, life, _)| life.state() == SlotState::Live)
            .collect()
    }

    fn at(&self, index: u32) -> &Slot<N> {
        self.slot(index).unwrap()
    }

    fn states(&self) -> Vec<SlotState> {
        self.0.iter().map(|slot| slot.life().state()).collect()
    }
}

impl<const N: usize> Slots<N> for Memory<N> {
    fn bucket(&self, number: u32) -> Option<&Bucket<N>> {
        self.0.get((number * BUCKET) as usize..)?.first_chunk()
    }
    fn bucket_mask(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap() / BUCKET - 1
    }
    fn tags(&self, number: u32) -> Option<&Word> {
        self.1.get(number as usize)
    }
}

pub(super) fn client(number: u32) -> Address {
    Address::from_v4_word(u32::from_be_bytes([10, 0, 0, 0]).to_be() | (number << 16))
}

pub(super) fn sticky_key(number: u32) -> StickyKey {
    StickyKey { client: client(number), service: SERVICE, port: 0 }
}

pub(super) fn sticky_words(number: u32, server: u16) -> [u64; STICKY_WORDS] {
    let to = StickyServer { service: SERVICE, port: 0, server, made_at: Ticks(64), verified: true };
    let address = client(number).0;
    [address[0], address[1], to.word()]
}

pub(super) fn hash_of(number: u32) -> u64 {
    hash3(&KEY, sticky_key(number).words())
}

/// The slots a key may lie in, worked out here from the module's description: the bucket of either half of the hash,
/// and the neighbour if both are one.
fn ways(hash: u64, buckets: u32) -> BTreeSet<u32> {
    let first = u32::try_from(hash & 0xffff_ffff).unwrap() % buckets;
    let mut second = u32::try_from(hash >> 32).unwrap() % buckets;
    if second == first && buckets > 1 {
        second = if first.is_multiple_of(2) { first + 1 } else { first - 1 };
    }
    [first, second].into_iter().flat_map(|bucket| bucket * 4..bucket * 4 + 4).collect()
}

#[test]
fn the_candidates_of_a_key_are_two_buckets() {
    for buckets in [1, 2, 4, 8, 1024] {
        for number in 0..1000 {
            let hash = hash_of(number);
            let found: BTreeSet<u32> = (0..WAYS).map(|way| candidate(hash, buckets - 1, way)).collect();
            assert_eq!(found, ways(hash, buckets));
            assert_eq!(found.len(), if buckets == 1 { 4 } else { 8 });
        }
    }
}

/// What can happen to the sticky table. Moments and spans in ticks.
#[derive(Clone, Debug)]
enum Step {
    Insert { client: u32, flows: u32, span: u32 },
    Find { client: u32 },
    Hold { client: u32, span: u32 },
    LetGo { which: usize, span: u32 },
    Forget { client: u32 },
    Pass { ticks: u32 },
}

const CLIENTS: u32 = 40;

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    prop_oneof![
        6 => (client.clone(), 0..3u32, 0..20u32)
            .prop_map(|(client, flows, span)| Step::Insert { client, flows, span }),
        2 => client.clone().prop_map(|client| Step::Find { client }),
        3 => (client.clone(), 0..20u32).prop_map(|(client, span)| Step::Hold { client, span }),
        3 => (any::<usize>(), 0..20u32).prop_map(|(which, span)| Step::LetGo { which, span }),
        1 => client.prop_map(|client| Step::Forget { client }),
        2 => (0..12u32).prop_map(|ticks| Step::Pass { ticks }),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    client: u32,
    words: [u64; STICKY_WORDS],
    flows: u32,
    deadline: u64,
    /// Tells this life of the slot from those before it.
    life: u64,
}

/// Time is 64 bits wide here, so that the table's own 32 bits are seen to wrap.
struct Model {
    now: u64,
    rows: Vec<Option<Row>>,
    open: Vec<(crate::flow::StickyRef, u32, u64)>,
    lives: u64,
}

fn ticks(moment: u64) -> Ticks {
    Ticks(u32::try_from(moment & 0xffff_ffff).unwrap())
}

impl Model {
    fn expired(&self, row: &Row) -> bool {
        row.flows == 0 && row.deadline < self.now
    }

    fn of(&self, client: u32) -> Option<u32> {
        (0u32..)
            .zip(&self.rows)
            .find(|(_, row)| row.as_ref().is_some_and(|row| row.client == client))
            .map(|(index, _)| index)
    }

    fn unexpired(&self, client: u32) -> Option<u32> {
        self.of(client).filter(|index| !self.expired(self.row(*index).unwrap()))
    }

    fn row(&self, index: u32) -> Option<&Row> {
        self.rows[index as usize].as_ref()
    }

    fn row_mut(&mut self, index: u32) -> &mut Row {
        self.rows[index as usize].as_mut().unwrap()
    }

    fn set(&mut self, index: u32, row: Option<Row>) {
        self.rows[index as usize] = row;
    }

    fn buckets(&self) -> u32 {
        u32::try_from(self.rows.len()).unwrap() / 4
    }
}

fn insert(model: &mut Model, table: &Memory<STICKY_WORDS>, client: u32, flows: u32, span: u32) {
    let server = u16::try_from(model.lives & 0xffff).unwrap();
    let words = sticky_words(client, server);
    let deadline = model.now + u64::from(span);
    let mut evicted = Vec::new();
    let outcome = insert_if_absent::<STICKY_WORDS, Stickies, _>(
        table,
        hash_of(client),
        &words,
        flows,
        ticks(deadline),
        ticks(model.now),
        |index, words, life| evicted.push((index, *words, life.note(), life.deadline())),
    );
    let ways = ways(hash_of(client), model.buckets());
    let takeable = |index: &u32| match model.row(*index) {
        None => true,
        Some(row) => model.expired(row),
    };
    if let Some(index) = model.unexpired(client) {
        assert_eq!(outcome, Insert::Present(index));
        assert_eq!(evicted, []);
        return;
    }
    let Insert::Inserted(index) = outcome else {
        assert_eq!(outcome, Insert::Full);
        assert_eq!(evicted, []);
        assert!(!ways.iter().any(takeable), "full, but not all ways hold unexpired others");
        return;
    };
    assert!(ways.contains(&index));
    assert!(takeable(&index), "an unexpired record was evicted");
    if let Some(own) = model.of(client) {
        assert_eq!(index, own, "the key's own expired row is the one to take");
    }
    let expected: Vec<_> =
        model.row(index).map(|row| (index, row.words, row.flows, ticks(row.deadline))).into_iter().collect();
    assert_eq!(evicted, expected);
    model.lives += 1;
    let life = model.lives;
    let reference = sticky::reference(index, table.at(index).life());
    for _ in 0..flows {
        model.open.push((reference, client, life));
    }
    let row = Row { client, words, flows, deadline, life };
    model.set(index, Some(row));
}

fn apply(model: &mut Model, table: &Memory<STICKY_WORDS>, step: &Step) {
    let now = ticks(model.now);
    match *step {
        Step::Insert { client, flows, span } => insert(model, table, client, flows, span),
        Step::Find { client } => {
            let found =
                find::<STICKY_WORDS, Stickies, _>(table, hash_of(client), sticky_key(client).words(), now);
            assert_eq!(found.map(|found| found.index), model.unexpired(client));
        }
        Step::Hold { client, span } => {
            let found =
                find::<STICKY_WORDS, Stickies, _>(table, hash_of(client), sticky_key(client).words(), now);
            if let Some(found) = found {
                let deadline = model.now + u64::from(span);
                assert!(sticky::hold(&found, ticks(deadline)));
                let reference = sticky::reference(found.index, found.life);
                let row = model.row_mut(found.index);
                row.flows += 1;
                row.deadline = deadline;
                let life = row.life;
                model.open.push((reference, client, life));
            }
        }
        Step::LetGo { which, span } => {
            if model.open.is_empty() {
                return;
            }
            let (reference, client, life) = model.open.swap_remove(which % model.open.len());
            let deadline = model.now + u64::from(span);
            sticky::let_go(table, reference, sticky_key(client), ticks(deadline));
            if model.row(reference.slot).is_some_and(|row| row.life == life) {
                let row = model.row_mut(reference.slot);
                row.flows -= 1;
                row.deadline = deadline;
            }
        }
        Step::Forget { client } => {
            if let Some(index) = model.of(client) {
                let slot = table.at(index);
                let life = slot.life();
                assert!(slot.exchange(life, life.with_state(SlotState::Free)));
                model.set(index, None);
            }
        }
        Step::Pass { ticks } => model.now += u64::from(ticks),
    }
}

/// The whole table is the model's: nothing more, nothing less, nothing twice.
fn agree(model: &Model, table: &Memory<STICKY_WORDS>) {
    let expected: Vec<_> = (0u32..)
        .zip(&model.rows)
        .filter_map(|(index, row)| row.as_ref().map(|row| (index, row)))
        .map(|(index, row)| (index, row.words, row.flows, ticks(row.deadline)))
        .collect();
    let there: Vec<_> = table
        .live()
        .into_iter()
        .map(|(index, life, words)| (index, words, life.note(), life.deadline()))
        .collect();
    assert_eq!(there, expected);
    let clients: BTreeSet<u32> = model.rows.iter().flatten().map(|row| row.client).collect();
    assert_eq!(clients.len(), expected.len(), "a key is live twice");
    assert!(table.states().iter().all(|state| matches!(state, SlotState::Free | SlotState::Live)));
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 2 } else { cases },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Moments to start from: anywhere, and shortly before the 32 bits wrap.
fn start() -> impl Strategy<Value = u64> {
    prop_oneof![0..1u64 << 32, (1u64 << 32) - 60..1 << 32]
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn the_sticky_table_does_what_its_model_does(
        log in 0u32..4, now in start(), steps in proptest::collection::vec(step(), 1..160),
    ) {
        let table = Memory::new(1 << log);
        let mut model = Model { now, rows: std::vec![None; 4 << log], open: Vec::new(), lives: 0 };
        for step in &steps {
            apply(&mut model, &table, step);
            agree(&model, &table);
        }
    }
}

/// What can happen to the half-open table.
#[derive(Clone, Debug)]
enum Take {
    Claim {
        number: u32,
    },
    /// Live; a flow that is being established (state `Promoting`) is pinned.
    Publish {
        which: usize,
        span: u32,
        pinned: bool,
    },
    Unpin {
        which: usize,
    },
    Release {
        which: usize,
    },
    Pass {
        ticks: u32,
    },
}

fn take() -> impl Strategy<Value = Take> {
    prop_oneof![
        5 => (0..60u32).prop_map(|number| Take::Claim { number }),
        5 => (any::<usize>(), 0..40u32, proptest::bool::weighted(0.3))
            .prop_map(|(which, span, pinned)| Take::Publish { which, span, pinned }),
        2 => any::<usize>().prop_map(|which| Take::Unpin { which }),
        1 => any::<usize>().prop_map(|which| Take::Release { which }),
        1 => (0..30u32).prop_map(|ticks| Take::Pass { ticks }),
    ]
}

fn flow_words(number: u32) -> [u64; FLOW_WORDS] {
    let key = FlowKey { client: client(number), client_port: 1, service_port: 2, service: 3 }.words();
    [key[0], key[1], key[2], 30, 40, 50, u64::from(number)]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    Taken,
    Live(u64),
    Pinned(u64),
}

/// How willingly a slot is taken: free, then expired, then by deadline.
fn rank(place: Place, now: u64) -> Option<u64> {
    match place {
        Place::Free => Some(0),
        Place::Taken | Place::Pinned(_) => None,
        Place::Live(deadline) if deadline < now => Some(1),
        Place::Live(deadline) => Some(2 + deadline - now),
    }
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn a_half_open_flow_takes_a_free_slot_then_an_expired_one_then_the_earliest_deadline(
        log in 0u32..4, start in start(), steps in proptest::collection::vec(take(), 1..160),
    ) {
        let buckets = 1 << log;
        let table = Memory::<FLOW_WORDS>::new(buckets);
        let mut now = start;
        let mut places = std::vec![Place::Free; 4 << log];
        let mut claims: Vec<(u32, Life, u32)> = Vec::new();
        for step in steps {
            match step {
                Take::Claim { number } => {
                    let hash = hash3(&KEY, [1, 2, u64::from(number)]);
                    let best = ways(hash, buckets).iter().filter_map(|way| rank(places[*way as usize], now)).min();
                    let taken = claim_any::<FLOW_WORDS, Flows, _>(&table, hash, ticks(now));
                    let Some((index, claimed)) = taken else {
                        prop_assert_eq!(best, None);
                        continue;
                    };
                    prop_assert!(ways(hash, buckets).contains(&index));
                    prop_assert_eq!(rank(places[index as usize], now), best);
                    prop_assert_eq!(table.at(index).life(), claimed);
                    prop_assert_eq!(claimed.state(), SlotState::Claimed);
                    places[index as usize] = Place::Taken;
                    claims.push((index, claimed, number));
                }
                Take::Publish { which, span, pinned } if !claims.is_empty() => {
                    let (index, claimed, number) = claims.swap_remove(which % claims.len());
                    let deadline = now + u64::from(span);
                    let note = if pinned { 3 } else { 1 };
                    publish(table.at(index), claimed, &flow_words(number), note, ticks(deadline));
                    places[index as usize] = if pinned { Place::Pinned(deadline) } else { Place::Live(deadline) };
                    let life = table.at(index).life();
                    prop_assert_eq!((life.state(), life.note()), (SlotState::Live, note));
                    prop_assert_eq!((life.deadline(), life.version()), (ticks(deadline), claimed.version()));
                    prop_assert_eq!(table.at(index).read(), flow_words(number));
                }
                Take::Release { which } if !claims.is_empty() => {
                    let (index, claimed, _) = claims.swap_remove(which % claims.len());
                    release(table.at(index), claimed);
                    places[index as usize] = Place::Free;
                }
                Take::Unpin { which } => {
                    let index = which % places.len();
                    if let Place::Pinned(deadline) = places[index] {
                        let slot = table.at(u32::try_from(index).unwrap());
                        prop_assert!(slot.exchange(slot.life(), slot.life().with_note(2)));
                        places[index] = Place::Live(deadline);
                    }
                }
                Take::Pass { ticks } => now += u64::from(ticks),
                Take::Publish { .. } | Take::Release { .. } => {}
            }
            for (place, state) in places.iter().zip(table.states()) {
                let expected = match place {
                    Place::Free => SlotState::Free,
                    Place::Taken => SlotState::Claimed,
                    Place::Live(_) | Place::Pinned(_) => SlotState::Live,
                };
                prop_assert_eq!(state, expected);
            }
        }
    }
}

fn insert_sticky(table: &Memory<STICKY_WORDS>, number: u32, flows: u32, deadline: u32, now: u32) -> Insert {
    insert_if_absent::<STICKY_WORDS, Stickies, _>(
        table,
        hash_of(number),
        &sticky_words(number, 1),
        flows,
        Ticks(deadline),
        Ticks(now),
        |_, _, _| {},
    )
}

fn is_there(table: &Memory<STICKY_WORDS>, number: u32, now: u32) -> bool {
    find::<STICKY_WORDS, Stickies, _>(table, hash_of(number), sticky_key(number).words(), Ticks(now))
        .is_some()
}

#[test]
fn a_slot_serves_on_after_its_version_has_wrapped() {
    let table = Memory::new(2);
    let mut versions = BTreeSet::new();
    for round in 0..1200 {
        let now = round * 10;
        let Insert::Inserted(index) = insert_sticky(&table, 5, 0, now + 5, now) else {
            panic!("round {round}");
        };
        assert!(is_there(&table, 5, now + 5));
        assert!(!is_there(&table, 5, now + 6));
        versions.insert(table.at(index).life().version());
    }
    assert_eq!(versions.len(), 512);
    assert_eq!(table.live().len(), 1);
}

#[test]
fn a_found_row_knows_when_its_slot_has_another_life() {
    let table = Memory::new(2);
    insert_sticky(&table, 5, 0, 10, 0);
    let found =
        find::<STICKY_WORDS, Stickies, _>(&table, hash_of(5), sticky_key(5).words(), Ticks(3)).unwrap();
    assert!(sticky::hold(&found, Ticks(20)));
    assert!(found.still(), "a refresh is the same life");
    let life = found.slot.life();
    assert!(found.slot.exchange(life, life.with_note(0).with_state(SlotState::Free)));
    assert!(!found.still());
    assert_eq!(insert_sticky(&table, 5, 0, 30, 20), Insert::Inserted(found.index));
    assert!(!found.still());
    assert!(!sticky::hold(&found, Ticks(99)));
    assert_eq!(table.at(found.index).life().deadline(), Ticks(30));
}

#[test]
fn the_count_of_open_flows_stops_at_its_most_and_at_zero() {
    let table = Memory::new(2);
    let Insert::Inserted(index) = insert_sticky(&table, 5, Life::MAX_NOTE, 10, 0) else {
        panic!("an empty table has room");
    };
    let found =
        find::<STICKY_WORDS, Stickies, _>(&table, hash_of(5), sticky_key(5).words(), Ticks(3)).unwrap();
    assert!(sticky::hold(&found, Ticks(20)));
    assert_eq!(table.at(index).life().note(), Life::MAX_NOTE);
    assert_eq!(table.at(index).life().deadline(), Ticks(20));

    let slot = table.at(index);
    assert!(slot.exchange(slot.life(), slot.life().with_note(0)));
    let before = slot.life();
    sticky::let_go(&table, sticky::reference(index, before), sticky_key(5), Ticks(77));
    assert_eq!(slot.life(), before, "nothing was open, so nothing closes");
}

#[test]
fn letting_go_by_another_slot_version_or_key_changes_nothing() {
    let table = Memory::new(2);
    let Insert::Inserted(index) = insert_sticky(&table, 5, 2, 10, 0) else {
        panic!("an empty table has room");
    };
    let life = table.at(index).life();
    let right = sticky::reference(index, life);
    let elsewhere = crate::flow::StickyRef { slot: 1_000_000, ..right };
    let neighbour = crate::flow::StickyRef { slot: index ^ 1, ..right };
    let older = crate::flow::StickyRef { version: right.version ^ 1, ..right };
    for wrong in [elsewhere, neighbour, older] {
        sticky::let_go(&table, wrong, sticky_key(5), Ticks(99));
    }
    sticky::let_go(&table, right, sticky_key(6), Ticks(99));
    let other_service = StickyKey { service: SERVICE + 1, ..sticky_key(5) };
    sticky::let_go(&table, right, other_service, Ticks(99));
    assert_eq!(table.at(index).life(), life);
    sticky::let_go(&table, right, sticky_key(5), Ticks(99));
    assert_eq!((table.at(index).life().note(), table.at(index).life().deadline()), (1, Ticks(99)));
}

#[test]
fn repair_frees_what_a_killed_process_left_and_nothing_that_moved_on() {
    let table = Memory::<FLOW_WORDS>::new(2);
    let take = |number: u64| claim_any::<FLOW_WORDS, Flows, _>(&table, number, Ticks(1)).unwrap();
    let (left, left_life) = take(0);
    let (moved, moved_life) = take(0);
    let (published, published_life) = take(0);
    publish(table.at(moved), moved_life.claimed(), &flow_words(1), 1, Ticks(9));
    publish(table.at(published), published_life, &flow_words(2), 1, Ticks(9));
    let live = (published, table.at(published).life());
    let outside = (1_000_000, left_life);
    let freed = repair(&table, [(left, left_life), (moved, moved_life), live, outside]);
    assert_eq!(freed, 1);
    assert_eq!(table.at(left).life().state(), SlotState::Free);
    assert_eq!(table.at(moved).life().state(), SlotState::Live);
    assert_eq!(table.at(published).life().state(), SlotState::Live);
}

#[test]
fn a_table_smaller_than_its_mask_says_is_full_and_not_a_panic() {
    struct Short(Memory<STICKY_WORDS>);
    impl Slots<STICKY_WORDS> for Short {
        fn bucket(&self, number: u32) -> Option<&Bucket<STICKY_WORDS>> {
            self.0.bucket(number)
        }
        fn bucket_mask(&self) -> u32 {
            7
        }
    }
    let table = Short(Memory::new(1));
    for number in 0..50 {
        let outcome = insert_if_absent::<STICKY_WORDS, Stickies, _>(
            &table,
            hash_of(number),
            &sticky_words(number, 1),
            0,
            Ticks(9),
            Ticks(1),
            |_, _, _| {},
        );
        assert_ne!(outcome, Insert::Present(0));
    }
    assert!(claim_any::<STICKY_WORDS, Stickies, _>(&table, u64::MAX, Ticks(1)).is_none());
}

/// The table that [`Hooked`] acts on, and what is done to it in the middle of an operation.
type Hook = std::boxed::Box<dyn FnOnce()>;

std::thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Flows, but the first time that anyone asks whether a row has expired, another core acts.
struct Hooked;

impl Kind<FLOW_WORDS> for Hooked {
    const KEY_MASK: [u64; 3] = [u64::MAX; 3];
    fn expired(life: Life, now: Ticks) -> bool {
        let hook = HOOK.with(|hook| hook.borrow_mut().take());
        if let Some(hook) = hook {
            hook();
        }
        Flows::expired(life, now)
    }
}

#[test]
fn a_row_that_is_replaced_while_it_is_compared_is_not_taken_for_the_key() {
    let ours = flow_words(9);
    let table = std::rc::Rc::new(Memory::<FLOW_WORDS>::new(2));
    let (index, claimed) = claim_any::<FLOW_WORDS, Flows, _>(&*table, 0, Ticks(1)).unwrap();
    publish(table.at(index), claimed, &flow_words(8), 1, Ticks(50));
    let other_core = std::rc::Rc::clone(&table);
    HOOK.with(|hook| {
        *hook.borrow_mut() = Some(std::boxed::Box::new(move || {
            // The row is closed, and a writer of our key is about to fill the slot: it may yet withdraw.
            let slot = other_core.at(index);
            release(slot, slot.life());
            let (again, _) = claim_any::<FLOW_WORDS, Flows, _>(&*other_core, 0, Ticks(2)).unwrap();
            assert_eq!(again, index);
            slot.write(&flow_words(9));
        }));
    });
    let outcome =
        insert_if_absent::<FLOW_WORDS, Hooked, _>(&*table, 0, &ours, 4, Ticks(60), Ticks(2), |_, _, _| {});
    let Insert::Inserted(other) = outcome else {
        panic!("{outcome:?}, but no slot holds the key live");
    };
    assert_ne!(other, index);
}

#[test]
fn slots_that_are_being_filled_are_not_called_full() {
    let table = Memory::<FLOW_WORDS>::new(2);
    for number in 0..7 {
        let outcome = insert_if_absent::<FLOW_WORDS, Flows, _>(
            &table,
            0,
            &flow_words(number),
            4,
            Ticks(60),
            Ticks(2),
            |_, _, _| {},
        );
        assert!(matches!(outcome, Insert::Inserted(_)));
    }
    let insert = || {
        insert_if_absent::<FLOW_WORDS, Flows, _>(
            &table,
            0,
            &flow_words(50),
            4,
            Ticks(60),
            Ticks(2),
            |_, _, _| {},
        )
    };
    let (index, claimed) = claim_any::<FLOW_WORDS, Flows, _>(&table, 0, Ticks(2)).unwrap();
    assert_eq!(insert(), Insert::Contended);
    publish(table.at(index), claimed, &flow_words(49), 4, Ticks(60));
    assert_eq!(insert(), Insert::Full);
}

/// How many of `keys` find no slot in an empty table of `buckets`.
fn turned_away(keys: u32, buckets: u32) -> u32 {
    let table = Memory::<STICKY_WORDS>::new(buckets);
    (0..keys)
        .map(|number| {
            let words = [0, u64::from(number), 0];
            let outcome = insert_if_absent::<STICKY_WORDS, Stickies, _>(
                &table,
                hash3(&KEY, words),
                &words,
                0,
                Ticks(9),
                Ticks(1),
                |_, _, _| {},
            );
            u32::from(outcome == Insert::Full)
        })
        .sum()
}

#[test]
#[cfg_attr(miri, ignore = "fills a large table")]
fn nearly_every_key_has_a_slot_until_the_table_is_half_full() {
    const BUCKETS: u32 = 1 << 14;
    let percent = |load: u32| turned_away(BUCKETS * BUCKET * load / 100, BUCKETS);
    // Filling one bucket before the other turned away 123 at half load, 396 at 60 %.
    assert_eq!(percent(40), 0);
    assert!(percent(50) <= 3);
    assert!(percent(60) <= 30);
}
