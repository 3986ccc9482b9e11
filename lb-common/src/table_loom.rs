//! Every interleaving, with every value that the memory order lets a load see, of a few operations on the tables and
//! on the SNAT ports: `RUSTFLAGS="--cfg loom" cargo test -p lb-common --release --lib loom`.
//!
//! Loom tries them exhaustively but for the number of times that a thread is interrupted while it could go on, which
//! each model bounds. Slots that a model does not need are claimed from the start, so that nobody takes or compares
//! them.

use super::*;
use crate::ports::{self, Cells, Owner, PortCell, PortRange};
use crate::sticky::{self, STICKY_WORDS, Stickies};
use loom::sync::Arc;
use loom::thread;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::vec::Vec;

/// Explores the interleavings with so many interruptions at most.
fn explore(interruptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let mut builder = loom::model::Builder::new();
    // LOOM_MAX_PREEMPTIONS, if it is set, is what the builder has.
    builder.preemption_bound = builder.preemption_bound.or(Some(interruptions));
    builder.max_branches = 20_000;
    let counter = std::sync::Arc::clone(&executions);
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let executions = executions.load(Ordering::Relaxed);
    std::println!("{executions} executions");
    assert!(executions > 5, "{executions} executions: nothing was explored");
}

/// Two buckets; the hash 1 << 32 has its first four ways in bucket 0 and the others in bucket 1.
const HASH: u64 = 1 << 32;
const NOW: Ticks = Ticks(10);
const SOON: Ticks = Ticks(50);
const LATER: Ticks = Ticks(90);

struct Table(Vec<Slot<STICKY_WORDS>>);

impl Table {
    /// A table of which only these slots are free.
    fn with_free(free: &[u32]) -> Self {
        let slot = |index| {
            let state = if free.contains(&index) { SlotState::Free } else { SlotState::Claimed };
            Slot {
                life: Word::new(Life::from_word(0).with_state(state).word()),
                words: core::array::from_fn(|_| Word::new(0)),
            }
        };
        Self((0..8).map(slot).collect())
    }

    fn at(&self, index: u32) -> &Slot<STICKY_WORDS> {
        &self.0[index as usize]
    }

    /// Puts a row in force, before the threads start.
    fn put(&self, index: u32, words: [u64; STICKY_WORDS], deadline: Ticks) {
        publish(self.at(index), Life::from_word(0), &words, 0, deadline);
    }

    fn insert(&self, words: [u64; STICKY_WORDS], now: Ticks) -> Insert {
        insert_if_absent::<STICKY_WORDS, Stickies, _>(self, HASH, &words, 0, LATER, now, |_, _, _| {})
    }

    fn attempt(&self, words: [u64; STICKY_WORDS], impatient: bool) -> Insert {
        let fill = |slot: &Slot<STICKY_WORDS>| slot.write(&words);
        try_insert::<STICKY_WORDS, Stickies, _>(
            self,
            HASH,
            words,
            fill,
            0,
            LATER,
            NOW,
            |_, _, _| {},
            impatient,
        )
    }

    fn find(&self, key: [u64; 3]) -> Option<Found<'_, STICKY_WORDS>> {
        find::<STICKY_WORDS, Stickies, _>(self, HASH, key, NOW)
    }

    fn free(&self, index: u32) {
        let slot = self.at(index);
        let life = slot.life();
        assert!(slot.exchange(life, life.with_state(SlotState::Free)));
    }

    /// The slots that hold `key` live, once the threads are done.
    fn live(&self, key: [u64; 3]) -> Vec<u32> {
        (0..8)
            .filter(|index| {
                let slot = self.at(*index);
                slot.life().state() == SlotState::Live && matches_key::<STICKY_WORDS, Stickies>(slot, key)
            })
            .collect()
    }
}

impl Slots<STICKY_WORDS> for Table {
    fn bucket(&self, number: u32) -> Option<&Bucket<STICKY_WORDS>> {
        self.0.get((number * BUCKET) as usize..)?.first_chunk()
    }
    fn bucket_mask(&self) -> u32 {
        1
    }
}

/// A row of client `client`, of service 1 and this server.
fn row(client: u64, server: u16) -> [u64; STICKY_WORDS] {
    let to = sticky::StickyServer { service: 1, port: 0, server, made_at: Ticks(0), verified: true };
    [0, client, to.word()]
}

/// What two writers of one key were told must be true of what is there in the end.
fn one_of_two_is_in(table: &Table, outcomes: [Insert; 2]) {
    let there = table.live(row(7, 0));
    assert_eq!(there.len(), 1, "{outcomes:?}");
    let server = sticky::StickyServer::from_word(table.at(there[0]).words[2].load()).server;
    for (own, outcome) in (1..).zip(outcomes) {
        match outcome {
            Insert::Inserted(index) => assert_eq!((index, server), (there[0], own), "{outcomes:?}"),
            Insert::Present(index) => assert!(index == there[0] && server != own, "{outcomes:?}"),
            Insert::Contended => assert_ne!(server, own, "{outcomes:?}"),
            Insert::Full => panic!("there was room: {outcomes:?}"),
        }
    }
}

#[test]
fn two_writers_of_one_key_put_it_in_once() {
    explore(3, || {
        let table = Arc::new(Table::with_free(&[0, 1, 4]));
        let others = Arc::clone(&table);
        let other = thread::spawn(move || others.insert(row(7, 1), NOW));
        let own = table.insert(row(7, 2), NOW);
        one_of_two_is_in(&table, [other.join().unwrap(), own]);
    });
}

#[test]
fn writers_that_do_not_wait_for_each_other_put_a_key_in_at_most_once() {
    for patient in [false, true] {
        explore(3, move || {
            let table = Arc::new(Table::with_free(&[0, 1, 4]));
            let others = Arc::clone(&table);
            let other = thread::spawn(move || others.attempt(row(7, 1), true));
            let own = table.attempt(row(7, 2), !patient);
            let outcomes = [other.join().unwrap(), own];
            let inserted = outcomes.iter().filter_map(|outcome| match outcome {
                Insert::Inserted(index) => Some(*index),
                _ => None,
            });
            assert_eq!(table.live(row(7, 0)), inserted.collect::<Vec<_>>(), "{outcomes:?}");
        });
    }
}

#[test]
fn two_writers_of_one_key_put_it_in_once_while_an_earlier_slot_is_freed() {
    explore(2, || {
        let table = Arc::new(Table::with_free(&[1]));
        table.put(0, row(8, 9), LATER);
        let (others, third) = (Arc::clone(&table), Arc::clone(&table));
        let other = thread::spawn(move || others.insert(row(7, 1), NOW));
        let third = thread::spawn(move || third.free(0));
        let own = table.insert(row(7, 2), NOW);
        third.join().unwrap();
        one_of_two_is_in(&table, [other.join().unwrap(), own]);
    });
}

#[test]
fn two_writers_and_an_expired_row_of_their_key_leave_it_live_once() {
    explore(2, || {
        let table = Arc::new(Table::with_free(&[0, 4]));
        table.put(1, row(7, 9), Ticks(3));
        let others = Arc::clone(&table);
        let other = thread::spawn(move || others.insert(row(7, 1), NOW));
        let own = table.insert(row(7, 2), NOW);
        one_of_two_is_in(&table, [other.join().unwrap(), own]);
    });
}

#[test]
fn a_reader_sees_a_row_whole_or_not_at_all() {
    explore(3, || {
        let table = Arc::new(Table::with_free(&[]));
        table.put(0, row(7, 9), NOW);
        let others = Arc::clone(&table);
        let writer = thread::spawn(move || {
            // On this core's clock the row has expired: it goes, and comes again with another server.
            others.insert(row(7, 1), NOW.plus(Ticks(1)))
        });
        if let Some(found) = table.find(row(7, 0)) {
            let words = found.slot.read();
            if found.still() {
                let server = if found.life.deadline() == LATER { 1 } else { 9 };
                assert_eq!(words, row(7, server));
            }
        }
        assert_eq!(writer.join().unwrap(), Insert::Inserted(0));
    });
}

#[test]
fn a_reader_of_another_key_does_not_take_the_new_row_for_the_old_one() {
    explore(3, || {
        let table = Arc::new(Table::with_free(&[]));
        table.put(0, row(7, 9), NOW);
        let others = Arc::clone(&table);
        let writer = thread::spawn(move || others.insert(row(8, 1), NOW.plus(Ticks(1))));
        for key in [7, 8] {
            if let Some(found) = table.find(row(key, 0)) {
                let words = found.slot.read();
                if found.still() {
                    assert_eq!(words, row(key, if key == 7 { 9 } else { 1 }));
                }
            }
        }
        assert_eq!(writer.join().unwrap(), Insert::Inserted(0));
    });
}

#[test]
fn a_reader_beside_two_writers_sees_the_winners_row() {
    explore(2, || {
        let table = Arc::new(Table::with_free(&[0, 1]));
        let (one, two) = (Arc::clone(&table), Arc::clone(&table));
        let one = thread::spawn(move || one.insert(row(7, 1), NOW));
        let two = thread::spawn(move || two.insert(row(7, 2), NOW));
        let seen = table.find(row(7, 0)).and_then(|found| {
            let words = found.slot.read();
            found.still().then_some((found.index, words))
        });
        one_of_two_is_in(&table, [one.join().unwrap(), two.join().unwrap()]);
        // Once live, a row stays: what was seen is what there is in the end.
        if let Some((index, words)) = seen {
            assert_eq!(table.live(row(7, 0)), [index]);
            assert_eq!(table.at(index).read(), words);
        }
    });
}

#[test]
fn words_of_two_rows_are_not_taken_for_a_third() {
    explore(3, || {
        let table = Arc::new(Table::with_free(&[4]));
        // Each of the two rows has one half of the key that is inserted.
        let (old, new, key) = ([5, 6, 1], [7, 8, 1], [5, 8, 1]);
        table.put(0, old, LATER);
        let others = Arc::clone(&table);
        let other = thread::spawn(move || {
            others.free(0);
            others.insert(new, NOW)
        });
        let own = table.insert(key, NOW);
        other.join().unwrap();
        assert!(matches!(own, Insert::Inserted(_) | Insert::Contended), "{own:?}");
        assert_eq!(table.live(key).len(), usize::from(matches!(own, Insert::Inserted(_))));
    });
}

#[test]
fn a_refresh_and_a_reclaim_exclude_each_other() {
    explore(3, || {
        let table = Arc::new(Table::with_free(&[]));
        table.put(0, row(7, 9), NOW);
        let others = Arc::clone(&table);
        // One tick later the row has expired.
        let reclaim = thread::spawn(move || others.insert(row(8, 1), NOW.plus(Ticks(1))));
        let refreshed = table.find(row(7, 0)).is_some_and(|found| sticky::hold(&found, LATER));
        let reclaimed = matches!(reclaim.join().unwrap(), Insert::Inserted(_));
        assert!(refreshed != reclaimed);
        let expected = if refreshed { row(7, 9) } else { row(8, 1) };
        assert_eq!(table.at(0).read(), expected);
        assert_eq!(table.at(0).life().note(), u32::from(refreshed));
    });
}

#[test]
fn holding_and_letting_go_at_once_counts_both() {
    explore(3, || {
        let table = Arc::new(Table::with_free(&[]));
        table.put(0, row(7, 9), LATER);
        let held = table.find(row(7, 0)).unwrap();
        assert!(sticky::hold(&held, LATER));
        let reference = sticky::reference(held.index, held.life);
        let others = Arc::clone(&table);
        let other = thread::spawn(move || {
            let key = sticky::StickyKey { client: crate::address::Address([0, 7]), service: 1, port: 0 };
            sticky::let_go(&*others, reference, key, LATER);
        });
        assert!(table.find(row(7, 0)).is_some_and(|found| sticky::hold(&found, LATER)));
        other.join().unwrap();
        assert_eq!(table.at(0).life().note(), 1);
    });
}

#[test]
fn two_half_open_flows_never_claim_one_slot() {
    explore(3, || {
        let table = Arc::new(Table::with_free(&[0]));
        table.put(4, row(7, 9), LATER);
        let others = Arc::clone(&table);
        let claim =
            |table: &Table| claim_any::<STICKY_WORDS, Stickies, _>(table, HASH, NOW).map(|claim| claim.0);
        let other = thread::spawn(move || claim(&others));
        let (own, other) = (claim(&table), other.join().unwrap());
        assert!(own.is_some() && other.is_some() && own != other);
    });
}

/// A table with tags.
struct Tagged(Table, [Word; 2]);

impl Tagged {
    fn with_free(free: &[u32]) -> Arc<Self> {
        Arc::new(Self(Table::with_free(free), [Word::new(0), Word::new(0)]))
    }

    /// The hash of a client: of one bucket, with a tag of its own.
    const fn hash(client: u64) -> u64 {
        HASH | client << 16
    }

    fn insert(&self, client: u64) -> Insert {
        let words = row(client, 1);
        insert_if_absent::<STICKY_WORDS, Stickies, _>(
            self,
            Self::hash(client),
            &words,
            0,
            LATER,
            NOW,
            |_, _, _| {},
        )
    }

    fn claim(&self, client: u64, deadline: Ticks) {
        let (index, claimed) =
            claim_any::<STICKY_WORDS, Stickies, _>(self, Self::hash(client), NOW).expect("there is room");
        publish(self.0.at(index), claimed, &row(client, 1), 0, deadline);
    }

    fn holds(&self, client: u64) -> bool {
        find::<STICKY_WORDS, Stickies, _>(self, Self::hash(client), row(client, 0), NOW).is_some()
    }
}

impl Slots<STICKY_WORDS> for Tagged {
    fn bucket(&self, number: u32) -> Option<&Bucket<STICKY_WORDS>> {
        self.0.bucket(number)
    }
    fn bucket_mask(&self) -> u32 {
        self.0.bucket_mask()
    }
    fn tags(&self, number: u32) -> Option<&Word> {
        self.1.get(number as usize)
    }
}

#[test]
fn two_writers_of_neighbours_leave_a_tag_each() {
    explore(3, || {
        let table = Tagged::with_free(&[0, 1]);
        let others = Arc::clone(&table);
        let other = thread::spawn(move || others.insert(7));
        let own = table.insert(8);
        let inserted = [other.join().unwrap(), own];
        for (client, outcome) in [7, 8].into_iter().zip(inserted) {
            // Who lost a slot to the other three times may have given up.
            assert_eq!(table.holds(client), matches!(outcome, Insert::Inserted(_)), "{inserted:?}");
        }
    });
}

#[test]
fn one_who_takes_the_place_of_another_is_found_and_the_other_is_not() {
    explore(3, || {
        let table = Tagged::with_free(&[0, 1]);
        table.claim(6, SOON);
        table.claim(7, SOON);
        let others = Arc::clone(&table);
        let other = thread::spawn(move || others.claim(8, LATER));
        table.claim(9, LATER);
        other.join().unwrap();
        assert_eq!([6, 7, 8, 9].map(|client| table.holds(client)), [false, false, true, true]);
    });
}

#[test]
fn who_knows_of_a_row_finds_it() {
    explore(4, || {
        let table = Tagged::with_free(&[0, 1]);
        let told = Arc::new(Word::new(0));
        let (others, tells) = (Arc::clone(&table), Arc::clone(&told));
        let other = thread::spawn(move || {
            others.claim(7, LATER);
            tells.store(1);
        });
        let knows = told.load() == 1;
        assert!(table.holds(7) || !knows);
        other.join().unwrap();
    });
}

struct Ports {
    cells: Vec<Word>,
    cursor: Word,
}

impl Ports {
    fn new(cells: &[PortCell]) -> Self {
        Self { cells: cells.iter().map(|cell| Word::new(cell.word())).collect(), cursor: Word::new(0) }
    }

    fn claim(&self, owner: u32) -> Option<u32> {
        let range = PortRange { pair: 0, count: u32::try_from(self.cells.len()).unwrap() };
        ports::claim(self, range, owner, NOW, Ticks(5))
    }

    fn owner(&self, offset: u32) -> Owner {
        PortCell::from_word(self.cells[offset as usize].load()).owner
    }
}

impl Cells for Ports {
    fn cell(&self, index: u32) -> Option<&Word> {
        self.cells.get(index as usize)
    }
    fn cursor(&self, _pair: u32) -> Option<&Word> {
        Some(&self.cursor)
    }
}

const fn cell(owner: Owner, stamp: u32) -> PortCell {
    PortCell { owner, stamp: Ticks(stamp) }
}

#[test]
fn two_flows_never_claim_one_port() {
    explore(3, || {
        let ports =
            Arc::new(Ports::new(&[cell(Owner::Flow(5), 1), cell(Owner::Free, 1), cell(Owner::Free, 2)]));
        let others = Arc::clone(&ports);
        let other = thread::spawn(move || others.claim(1));
        let (own, other) = (ports.claim(2), other.join().unwrap());
        assert_eq!(ports.owner(0), Owner::Flow(5));
        let (own, other) = (own.unwrap(), other.unwrap());
        assert_ne!(own, other);
        assert_eq!(ports.owner(own), Owner::HalfOpen(2));
        assert_eq!(ports.owner(other), Owner::HalfOpen(1));
    });
}

#[test]
fn a_port_is_promoted_or_stolen_and_never_both() {
    explore(3, || {
        let ports = Arc::new(Ports::new(&[cell(Owner::HalfOpen(1), 8)]));
        let others = Arc::clone(&ports);
        let thief = thread::spawn(move || others.claim(2));
        let promoted = ports::promote(&ports.cells[0], 1, 11, NOW);
        let stolen = thief.join().unwrap();
        assert!(promoted == stolen.is_none());
        let expected = if promoted { Owner::Flow(11) } else { Owner::HalfOpen(2) };
        assert_eq!(ports.owner(0), expected);
    });
}

#[test]
fn a_port_that_is_given_back_rests_before_the_next_claim_has_it() {
    explore(3, || {
        let ports = Arc::new(Ports::new(&[cell(Owner::Flow(5), 1)]));
        let others = Arc::clone(&ports);
        let other = thread::spawn(move || others.claim(2));
        ports::give_back(&ports.cells[0], 5, NOW);
        assert_eq!(other.join().unwrap(), None);
        assert_eq!(ports.owner(0), Owner::Free);
    });
}
