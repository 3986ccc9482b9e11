//! The sticky table under threads: what the models can't show, as often as a test can afford.

use super::tests::{Memory, hash_of, sticky_key, sticky_words};
use super::*;
use crate::sticky::{self, STICKY_WORDS, Stickies, StickyServer};
use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use std::vec::Vec;

type Table = Memory<STICKY_WORDS>;

/// How long a thread waits for the others before it takes them for dead.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets threads go on together, as close to each other as can be.
struct Pace {
    threads: usize,
    arrived: AtomicUsize,
}

impl Pace {
    const fn new(threads: usize) -> Self {
        Self { threads, arrived: AtomicUsize::new(0) }
    }

    fn together(&self) {
        let turn = self.arrived.fetch_add(1, Ordering::SeqCst) / self.threads + 1;
        let since = Instant::now();
        let mut looked = 0u32;
        while self.arrived.load(Ordering::SeqCst) < turn * self.threads {
            looked += 1;
            if looked.is_multiple_of(200) || cfg!(miri) {
                std::thread::yield_now();
                assert!(since.elapsed() < PATIENCE, "another thread has failed");
            }
            core::hint::spin_loop();
        }
    }
}

/// Runs `run` on so many threads and collects what they return.
fn on_threads<T: Send>(threads: u16, run: impl Fn(u16) -> T + Sync) -> Vec<T> {
    let run = &run;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn insert(table: &Table, number: u32, server: u16, deadline: Ticks, now: Ticks) -> Insert {
    insert_if_absent::<STICKY_WORDS, Stickies, _>(
        table,
        hash_of(number),
        &sticky_words(number, server),
        0,
        deadline,
        now,
        |_, _, _| {},
    )
}

fn look<'a>(table: &'a Table, number: u32, now: Ticks) -> Option<Found<'a, STICKY_WORDS>> {
    find::<STICKY_WORDS, Stickies, _>(table, hash_of(number), sticky_key(number).words(), now)
}

fn free(table: &Table, index: u32) {
    let slot = table.slot(index).unwrap();
    let life = slot.life();
    assert!(slot.exchange(life, life.with_state(SlotState::Free)));
}

fn live_of(table: &Table, number: u32) -> Vec<u32> {
    let key = sticky_key(number).words();
    table.live().into_iter().filter(|(_, _, words)| words[1] == key[1]).map(|(index, _, _)| index).collect()
}

const fn rounds(many: u32) -> u32 {
    if cfg!(miri) { 5 } else { many }
}

/// All threads insert one key at once, each with a server of its own; then the slot is freed for the next round.
fn one_is_inserted_and_the_others_see_it(threads: u16, filled: u32, rounds: u32) {
    let table = Table::new(4);
    for number in 0..filled {
        insert(&table, 1_000_000 + number, 9, Ticks(u32::MAX >> 2), Ticks(1));
    }
    let pace = Pace::new(usize::from(threads));
    let contended: u32 = on_threads(threads, |thread| {
        let mut contended = 0;
        for number in 0..rounds {
            pace.together();
            let outcome = insert(&table, number, thread, Ticks(50), Ticks(1));
            pace.together();
            let there = live_of(&table, number);
            assert_eq!(there.len(), 1, "round {number}: live {} times", there.len());
            let server = StickyServer::from_word(table.slot(there[0]).unwrap().read()[2]).server;
            match outcome {
                Insert::Inserted(index) => {
                    assert_eq!((index, server), (there[0], thread));
                }
                Insert::Present(index) => {
                    assert_eq!(index, there[0]);
                    assert_ne!(server, thread, "the winner was told that it lost");
                }
                Insert::Contended => {
                    assert_ne!(server, thread);
                    contended += 1;
                }
                Insert::Full => panic!("there is room"),
            }
            pace.together();
            if thread == 0 {
                free(&table, there[0]);
            }
        }
        contended
    })
    .into_iter()
    .sum();
    // A thread that lost the processor between pending and live makes the others give up.
    assert!(contended <= rounds / 20 + 5, "{contended} of {rounds} rounds were contended");
}

#[test]
fn of_two_threads_that_insert_one_key_one_does() {
    one_is_inserted_and_the_others_see_it(2, 0, rounds(30_000));
}

#[test]
fn of_four_threads_that_insert_one_key_one_does() {
    one_is_inserted_and_the_others_see_it(4, 0, rounds(3_000));
}

#[test]
fn of_two_threads_that_insert_one_key_into_a_crowded_table_one_does() {
    one_is_inserted_and_the_others_see_it(2, 7, rounds(30_000));
}

/// The case that the order of slots is for: while two insert a key, one of its earlier slots becomes free.
#[test]
fn a_slot_freed_in_between_does_not_let_a_key_in_twice() {
    let table = Table::new(2);
    let pace = Pace::new(3);
    let rounds = rounds(10_000);
    on_threads(3, |thread| {
        for number in 0..rounds {
            if thread == 2 {
                for filler in 0..7 {
                    insert(&table, 2_000_000 + filler, 9, Ticks(50), Ticks(1));
                }
            }
            pace.together();
            if thread == 2 {
                for (index, _, words) in table.live() {
                    if words[1] != sticky_key(number).words()[1] {
                        free(&table, index);
                    }
                }
            } else {
                let outcome = insert(&table, number, thread, Ticks(50), Ticks(1));
                assert_ne!(outcome, Insert::Full);
            }
            pace.together();
            assert_eq!(live_of(&table, number).len(), 1);
            pace.together();
            if thread == 0 {
                free(&table, live_of(&table, number)[0]);
            }
            pace.together();
        }
    });
}

/// A record expires at tick 11. One core still reads 10 on its clock and refreshes the record, another reads 11 and
/// wants the slot for someone else.
#[test]
fn either_a_refresh_or_a_reclaim_wins_and_never_both() {
    let table = Table::new(1);
    let pace = Pace::new(2);
    let rounds = rounds(20_000);
    let fillers = 3;
    for number in 0..fillers {
        insert(&table, 3_000_000 + number, 9, Ticks(1 << 29), Ticks(1));
    }
    let wins: Vec<Vec<bool>> = on_threads(2, |thread| {
        let mut wins = Vec::new();
        for number in 0..rounds {
            if thread == 0 {
                let first = insert(&table, number * 2, 1, Ticks(10), Ticks(5));
                assert!(matches!(first, Insert::Inserted(_)));
            }
            pace.together();
            let win = if thread == 0 {
                // A look-up is quicker than an insertion: wait, now less, now more.
                for _ in 0..number % 60 {
                    core::hint::spin_loop();
                }
                look(&table, number * 2, Ticks(10)).is_some_and(|found| sticky::hold(&found, Ticks(90)))
            } else {
                let outcome = insert(&table, number * 2 + 1, 2, Ticks(90), Ticks(11));
                assert!(matches!(outcome, Insert::Inserted(_) | Insert::Full | Insert::Contended));
                matches!(outcome, Insert::Inserted(_))
            };
            wins.push(win);
            pace.together();
            if thread == 0 {
                let there: Vec<_> = [number * 2, number * 2 + 1]
                    .into_iter()
                    .flat_map(|number| live_of(&table, number))
                    .collect();
                assert_eq!(there.len(), 1);
                let held = table.slot(there[0]).unwrap();
                assert_eq!(held.life().note(), u32::from(win));
                free(&table, there[0]);
            }
            pace.together();
        }
        wins
    });
    for (round, (refreshed, reclaimed)) in wins[0].iter().zip(&wins[1]).enumerate() {
        assert!(refreshed != reclaimed, "round {round}: both or neither");
    }
    if !cfg!(miri) {
        assert!(wins.iter().all(|wins| wins.contains(&true)), "it was no race");
    }
}

/// The server of every record is worked out from its client, so a reader can tell words of two lives.
fn server_of(number: u32) -> u16 {
    u16::try_from(crate::hash::mix(u64::from(number)) & 0xffff).unwrap()
}

#[test]
fn threads_that_insert_find_hold_and_forget_agree_with_each_other() {
    const THREADS: u16 = 3;
    const CLIENTS: u64 = 14;
    let table = Table::new(4);
    let pace = Pace::new(usize::from(THREADS));
    let (turns, steps) = (rounds(400), rounds(300));
    let done: Vec<[u32; 3]> = on_threads(THREADS, |thread| {
        let mut random = u64::from(thread) << 32;
        let mut done = [0; 3];
        for turn in 0..turns {
            let now = Ticks(turn * 10);
            let mut open = Vec::new();
            for _ in 0..steps {
                random = crate::hash::mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
                let number = u32::try_from((random >> 8) % CLIENTS).unwrap();
                match random % 8 {
                    0..4 => match insert(&table, number, server_of(number), now.plus(Ticks(6)), now) {
                        Insert::Inserted(_) => done[0] += 1,
                        Insert::Contended => done[1] += 1,
                        Insert::Full => {
                            // Fourteen clients in sixteen slots: a key's eight may really be taken.
                        }
                        Insert::Present(_) => {}
                    },
                    4 => {
                        if let Some(found) = look(&table, number, now) {
                            let life = found.life.with_note(0).with_state(SlotState::Free);
                            let _lost_to_another = found.slot.exchange(found.life, life);
                        }
                    }
                    5 => {
                        if let Some(found) = look(&table, number, now)
                            && sticky::hold(&found, now.plus(Ticks(3)))
                        {
                            open.push((sticky::reference(found.index, found.life), number));
                        }
                    }
                    6 => {
                        if let Some((reference, number)) = open.pop() {
                            sticky::let_go(&table, reference, sticky_key(number), now.plus(Ticks(3)));
                        }
                    }
                    _ => {
                        if let Some(found) = look(&table, number, now) {
                            let words = found.slot.read();
                            if found.still() {
                                assert_eq!(words, sticky_words(number, server_of(number)));
                                done[2] += 1;
                            }
                        }
                    }
                }
            }
            for (reference, number) in open {
                sticky::let_go(&table, reference, sticky_key(number), now.plus(Ticks(3)));
            }
            pace.together();
            let mut seen = BTreeMap::new();
            for (index, life, words) in table.live() {
                assert_eq!(life.note(), 0, "all that was held was let go");
                let twin = seen.insert(words[1], index);
                assert_eq!(twin, None, "one client in two live slots");
            }
            pace.together();
        }
        done
    });
    let sum = |which: usize| done.iter().map(|counts| counts[which]).sum::<u32>();
    assert!(sum(0) > 0 && sum(2) > 0);
    assert!(sum(1) * 5 <= sum(0), "{} contended, {} inserted", sum(1), sum(0));
}

#[test]
fn threads_that_claim_half_open_slots_never_get_the_same() {
    use crate::flow::{FLOW_WORDS, Flows};
    let table = Memory::<FLOW_WORDS>::new(2);
    let pace = Pace::new(2);
    let rounds = rounds(10_000);
    on_threads(2, |thread| {
        for round in 0..rounds {
            pace.together();
            let claims: Vec<_> =
                (0..4).filter_map(|_| claim_any::<FLOW_WORDS, Flows, _>(&table, 0, Ticks(round))).collect();
            let own = [u64::from(thread) + 1; FLOW_WORDS];
            for (index, claimed) in &claims {
                publish(table.slot(*index).unwrap(), *claimed, &own, 0, Ticks(round + 9));
            }
            pace.together();
            // Four each of eight free ones: nobody had to give way.
            if round % 2 == 0 {
                for (index, claimed) in &claims {
                    let slot = table.slot(*index).unwrap();
                    assert_eq!(slot.read(), own);
                    assert_eq!(slot.life().version(), claimed.version());
                    release(slot, slot.life());
                }
            } else if thread == 0 {
                for (index, _, _) in table.live() {
                    free_flow(&table, index);
                }
            }
            pace.together();
        }
    });
}

fn free_flow(table: &Memory<{ crate::flow::FLOW_WORDS }>, index: u32) {
    let slot = table.slot(index).unwrap();
    release(slot, slot.life());
}
