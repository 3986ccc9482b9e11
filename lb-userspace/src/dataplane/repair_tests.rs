use lb_common::{flow::Flows, table::claim_any, word::Word};

use super::*;
use crate::dataplane::{
    sweep::sweep,
    traffic::{self, Connection, IDLE, PERSISTENCE, ports_in_use, taken},
};

const NOW: Ticks = Ticks(10_000);
const ONE: Connection = Connection { client: 7, port: 40_000, service: 1, server: 2 };

fn established(maps: &Maps, connection: Connection) -> u32 {
    let half_open = connection.open(maps, NOW).unwrap();
    connection.establish(maps, half_open, NOW).unwrap()
}

/// Finds and mends until nothing is odd.
fn mend(maps: &Maps) -> Repaired {
    let mut all = Repaired::default();
    for _ in 0..5 {
        let odd = suspects(maps);
        let repaired = repair(maps, &odd, NOW);
        all.slots += repaired.slots;
        all.ports += repaired.ports;
        all.records += repaired.records;
    }
    assert!(suspects(maps).is_empty());
    all
}

#[test]
fn healthy_tables_have_no_suspects() {
    let maps = traffic::maps();
    let first = established(&maps, ONE);
    established(&maps, Connection { port: 2, ..ONE });
    Connection { port: 3, ..ONE }.open(&maps, NOW).unwrap();
    assert!(suspects(&maps).is_empty());
    ONE.close(&maps, first, NOW);
    assert!(suspects(&maps).is_empty());
    sweep(&maps, NOW.plus(Ticks(IDLE.0 + 1)));
    assert!(suspects(&maps).is_empty());
}

#[test]
fn a_sweep_killed_after_its_claim_is_finished() {
    let maps = traffic::maps();
    let flow = established(&maps, ONE);
    let slot = &maps.flows[flow as usize];
    let life = slot.life();
    assert!(slot.exchange(life, life.claimed()));
    let repaired = mend(&maps);
    assert_eq!(repaired, Repaired { slots: 1, ports: 1, records: 1 });
    assert_eq!((taken(&maps.flows), ports_in_use(&maps)), (0, 0));
    let record = ONE.record(&maps, NOW).unwrap();
    assert_eq!((record.note(), record.deadline()), (0, NOW.plus(PERSISTENCE)));
}

#[test]
fn a_writer_killed_before_it_published_loses_its_slot() {
    let maps = traffic::maps();
    claim_any::<FLOW_WORDS, Flows, _>(&maps.half_open, 1, NOW).unwrap();
    let pending = &maps.sticky[9];
    assert!(pending.exchange(pending.life(), Life::from_word(0).with_state(SlotState::Pending)));
    assert_eq!(mend(&maps).slots, 2);
    assert_eq!((taken(&maps.half_open), taken(&maps.sticky)), (0, 0));
}

#[test]
fn what_moved_on_between_the_passes_is_left_alone() {
    let maps = traffic::maps();
    let (index, claimed) = claim_any::<FLOW_WORDS, Flows, _>(&maps.flows, 1, NOW).unwrap();
    let cell: &Word = &maps.port_cells[3];
    let orphan = PortCell { owner: Owner::Flow(4), stamp: NOW };
    cell.store(orphan.word());
    let odd = suspects(&maps);
    assert!(!odd.is_empty());
    // Released and claimed by another; freed and taken by another.
    table::release(&maps.flows[index as usize], claimed);
    let life = maps.flows[index as usize].life();
    assert!(maps.flows[index as usize].exchange(life, life.claimed()));
    cell.store(PortCell { stamp: NOW.plus(Ticks(1)), ..orphan }.word());
    assert_eq!(repair(&maps, &odd, NOW), Repaired::default());
}

#[test]
fn a_port_of_an_overwritten_half_open_flow_is_free_again() {
    let maps = traffic::maps();
    let index = ONE.open(&maps, NOW).unwrap();
    let slot = &maps.half_open[index as usize];
    let life = slot.life();
    assert!(slot.exchange(life, life.with_state(SlotState::Free)));
    assert_eq!(ports_in_use(&maps), 1);
    assert_eq!(mend(&maps).ports, 1);
    assert_eq!(ports_in_use(&maps), 0);
}

#[test]
fn a_record_that_counts_too_few_flows_is_mended_too() {
    let maps = traffic::maps();
    established(&maps, ONE);
    let found = maps.sticky.iter().find(|slot| is_live(slot.life())).unwrap();
    let life = found.life();
    assert!(found.exchange(life, life.with_note(0)));
    assert_eq!(mend(&maps).records, 1);
    assert_eq!(ONE.record(&maps, NOW).unwrap().note(), 1);
}
