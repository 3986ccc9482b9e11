use proptest::prelude::*;

use lb_common::table::claim_any;

use super::*;
use crate::dataplane::traffic::{self, Connection, HANDSHAKE, IDLE, PERSISTENCE, ports_in_use, taken};

const NOW: Ticks = Ticks(10_000);

fn connection(client: u8, port: u16) -> Connection {
    Connection { client, port, service: 1, server: 2 }
}

fn established(maps: &Maps, connection: Connection, now: Ticks) -> u32 {
    let half_open = connection.open(maps, now).unwrap();
    connection.establish(maps, half_open, now).unwrap()
}

#[test]
fn a_silent_flow_frees_its_port_and_starts_its_records_timeout() {
    let maps = traffic::maps();
    let one = connection(7, 40_000);
    established(&maps, one, NOW);
    assert_eq!(ports_in_use(&maps), 1);
    assert_eq!(sweep(&maps, NOW.plus(IDLE)), Swept::default());

    let late = NOW.plus(Ticks(IDLE.0 + 1));
    assert_eq!(sweep(&maps, late), Swept { flows: 1, ..Swept::default() });
    assert_eq!(ports_in_use(&maps), 0);
    let record = one.record(&maps, late).unwrap();
    assert_eq!((record.note(), record.deadline()), (0, late.plus(PERSISTENCE)));

    let later = late.plus(Ticks(PERSISTENCE.0 + 1));
    assert_eq!(sweep(&maps, later), Swept { sticky: 1, ..Swept::default() });
    assert_eq!(taken(&maps.sticky), 0);
}

#[test]
fn a_freed_port_has_rested_since_its_flow_expired() {
    let maps = traffic::maps();
    let flow = established(&maps, connection(1, 1), NOW);
    let words = maps.flows[flow as usize].read();
    sweep(&maps, NOW.plus(Ticks(IDLE.0 + 9)));
    let cell = PortCell::from_word(cell_of(&maps, &words).unwrap().load());
    assert_eq!(cell, PortCell { owner: Owner::Free, stamp: NOW.plus(IDLE) });
}

#[test]
fn a_closed_flow_lets_its_record_go_once() {
    let maps = traffic::maps();
    let (one, two) = (connection(7, 40_000), connection(7, 40_001));
    let first = established(&maps, one, NOW);
    established(&maps, two, NOW);
    one.close(&maps, first, NOW);
    assert_eq!(one.record(&maps, NOW).unwrap().note(), 1);

    let late = NOW.plus(Ticks(HANDSHAKE.0 + 1));
    assert_eq!(sweep(&maps, late).flows, 1);
    assert_eq!(one.record(&maps, late).unwrap().note(), 1, "the other flow holds it still");
}

#[test]
fn a_handshake_that_came_to_nothing_gives_its_port_back_at_once() {
    let maps = traffic::maps();
    connection(1, 1).open(&maps, NOW).unwrap();
    assert_eq!(ports_in_use(&maps), 1);
    let late = NOW.plus(Ticks(HANDSHAKE.0 + 1));
    assert_eq!(sweep(&maps, late).half_open, 1);
    assert_eq!((ports_in_use(&maps), taken(&maps.half_open)), (0, 0));
    assert!(maps.port_cells.iter().all(|cell| cell.load() == 0));
}

#[test]
fn a_port_that_another_has_by_now_is_not_given_back() {
    let maps = traffic::maps();
    let index = connection(1, 1).open(&maps, NOW).unwrap();
    let words = maps.half_open[index as usize].read();
    let cell = cell_of(&maps, &words).unwrap();
    let taken = PortCell { owner: Owner::HalfOpen(index + 1), stamp: NOW };
    cell.store(taken.word());
    assert_eq!(sweep(&maps, NOW.plus(Ticks(HANDSHAKE.0 + 1))).half_open, 1);
    assert_eq!(PortCell::from_word(cell.load()), taken);
}

#[test]
fn a_record_with_open_flows_is_never_swept() {
    let maps = traffic::maps();
    let one = connection(7, 40_000);
    let flow = established(&maps, one, NOW);
    let mut now = NOW;
    for _ in 0..100 {
        now = now.plus(Ticks(IDLE.0 - 1));
        let slot = &maps.flows[flow as usize];
        let life = slot.life();
        assert!(slot.exchange(life, life.with_deadline(now.plus(IDLE))));
        assert_eq!(sweep(&maps, now), Swept::default());
    }
    assert!(now.since(NOW).0 > 2 * PERSISTENCE.0 && one.record(&maps, now).is_some());
}

#[test]
fn a_forgotten_flow_leaves_nothing_behind() {
    let maps = traffic::maps();
    let one = connection(7, 40_000);
    let flow = established(&maps, one, NOW);
    let life = maps.flows[flow as usize].life();
    assert!(!forget_flow(&maps, flow, life.with_deadline(Ticks(1)), NOW), "it changed since");
    assert!(forget_flow(&maps, flow, life, NOW));
    assert!(!forget_flow(&maps, flow, life, NOW));
    assert_eq!((taken(&maps.flows), ports_in_use(&maps)), (0, 0));
    assert_eq!(one.record(&maps, NOW).unwrap().note(), 0);
}

#[test]
fn the_census_counts_what_is_open_and_nothing_else() {
    let maps = traffic::maps();
    let first = established(&maps, connection(1, 1), NOW);
    established(&maps, connection(1, 2), NOW);
    established(&maps, Connection { service: 3, server: 5, ..connection(2, 1) }, NOW);
    connection(3, 1).open(&maps, NOW).unwrap();
    connection(1, 1).close(&maps, first, NOW);
    let counted = census(&maps, NOW);
    let one = Holdings { flows: 1, half_open: 1, sticky: 1 };
    assert_eq!((counted.service(1), counted.server(2)), (one, one));
    let other = Holdings { half_open: 0, ..one };
    assert_eq!((counted.service(3), counted.server(5)), (other, other));
    assert_eq!(counted.service(0), Holdings::default());
    assert_eq!(counted.server(60_000), Holdings::default());
    assert_eq!(counted.open_flows(), 2);
    assert_eq!((counted.flows.used, counted.half_open.used, counted.sticky.used), (3, 1, 2));
    assert_eq!(counted.flows.capacity, 4096);

    let much_later = NOW.plus(Ticks(IDLE.0 + 1));
    let counted = census(&maps, much_later);
    assert_eq!(counted.open_flows(), 0, "expired although nobody has swept");
}

#[test]
fn a_slot_that_is_being_filled_is_neither_swept_nor_counted() {
    let maps = traffic::maps();
    let (index, _) = claim_any::<FLOW_WORDS, Flows, _>(&maps.flows, 99, NOW).unwrap();
    assert_eq!(sweep(&maps, NOW.plus(Ticks(1_000_000))), Swept::default());
    assert_eq!(census(&maps, NOW).flows.used, 0);
    assert_eq!(maps.flows[index as usize].life().state(), SlotState::Claimed);
}

#[test]
fn four_who_sweep_at_once_free_everything_once() {
    let maps = traffic::maps();
    let mut flows = 0;
    for client in 0..200 {
        for port in 1..6 {
            flows += usize::from(
                connection(client, port)
                    .open(&maps, NOW)
                    .and_then(|half_open| connection(client, port).establish(&maps, half_open, NOW))
                    .is_some(),
            );
        }
    }
    assert!(flows > 900, "{flows}");
    let late = NOW.plus(Ticks(IDLE.0 + 1));
    let swept: usize = std::thread::scope(|scope| {
        let sweepers: Vec<_> = (0..4).map(|_| scope.spawn(|| sweep(&maps, late).flows)).collect();
        sweepers.into_iter().map(|sweeper| sweeper.join().unwrap()).sum()
    });
    assert_eq!(swept, flows);
    assert_eq!((taken(&maps.flows), ports_in_use(&maps)), (0, 0));
    assert!(maps.sticky.iter().all(|slot| slot.life().note() == 0));
    assert!(suspects(&maps).is_empty());
}

/// What a client does next.
#[derive(Clone, Debug)]
enum Step {
    Open(u8, u16, u16, u16),
    Establish(usize),
    Close(usize),
    Wait(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..20, 1u16..50, 0u16..4, 0u16..8).prop_map(|(c, p, s, r)| Step::Open(c, p, s, r)),
        4 => any::<usize>().prop_map(Step::Establish),
        2 => any::<usize>().prop_map(Step::Close),
        1 => (0..IDLE.0).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_happened_sweeping_all_of_it_leaves_nothing(steps in prop::collection::vec(step(), 1..200)) {
        let maps = traffic::maps();
        let mut now = NOW;
        let (mut half_open, mut open) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Open(client, port, service, server) => {
                    let connection = Connection { client, port, service, server };
                    half_open.extend(connection.open(&maps, now).map(|slot| (connection, slot, maps.half_open[slot as usize].life())));
                }
                Step::Establish(which) if !half_open.is_empty() => {
                    let (connection, slot, life) = half_open.swap_remove(which % half_open.len());
                    let owned = maps.half_open[slot as usize].life() == life;
                    let words = maps.half_open[slot as usize].read();
                    let has_port = cell_of(&maps, &words)
                        .is_some_and(|cell| PortCell::from_word(cell.load()).owner == Owner::HalfOpen(slot));
                    if owned && has_port {
                        let flow = connection.establish(&maps, slot, now);
                        open.extend(flow.map(|flow| (connection, flow, maps.flows[flow as usize].life())));
                    }
                }
                Step::Close(which) if !open.is_empty() => {
                    let (connection, flow, life) = open.swap_remove(which % open.len());
                    if maps.flows[flow as usize].life() == life {
                        connection.close(&maps, flow, now);
                    }
                }
                Step::Wait(ticks) => {
                    now = now.plus(Ticks(ticks));
                    sweep(&maps, now);
                }
                Step::Establish(_) | Step::Close(_) => {}
            }
            let counted = census(&maps, now);
            let held: u32 = maps.sticky.iter().filter(|slot| is_live(slot.life())).map(|slot| slot.life().note()).sum();
            prop_assert_eq!(u64::from(held), u64::from(counted.open_flows()), "every open flow holds its record once");
        }
        now = now.plus(Ticks(IDLE.0 + 1));
        sweep(&maps, now);
        prop_assert_eq!((taken(&maps.flows), taken(&maps.half_open)), (0, 0));
        prop_assert!(maps.sticky.iter().all(|slot| !is_live(slot.life()) || slot.life().note() == 0));
        // A half-open flow that another overwrote leaves its port to the repair.
        let odd = suspects(&maps);
        repair(&maps, &odd, now);
        prop_assert_eq!(ports_in_use(&maps), 0);
        now = now.plus(Ticks(PERSISTENCE.0 + 1));
        sweep(&maps, now);
        prop_assert_eq!(taken(&maps.sticky), 0);
    }
}
