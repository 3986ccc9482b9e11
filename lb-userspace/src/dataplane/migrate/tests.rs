use std::collections::BTreeMap;

use lb_common::{
    control::Snat,
    flow::{FlowServer, FlowSlot, SERVER_WORD},
    ports::PortCell,
    service::Service,
    sticky::{STICKY_WORDS, StickyServer, StickySlot},
    table::{BUCKET, Slot},
    word::Word,
};
use proptest::prelude::*;

use super::{
    old::{Converted, without_port},
    *,
};
use crate::dataplane::{
    FlowTable,
    fake::{FakeKernel, maps as fake_maps},
    region::{self, Plain},
    repair::suspects,
    sweep::{cell_of, forget_flow},
    traffic::{self, Connection, WITHOUT_PORTS, ports_in_use, taken},
};

const NOW: Ticks = Ticks(10_000);

/// Memory that is mapped twice, as pinned maps are.
fn twice<T: Plain>(length: usize) -> (Region<T>, Region<T>) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(u64::try_from(length * size_of::<T>()).unwrap()).unwrap();
    (region::of_file(&file, length).unwrap(), region::of_file(&file, length).unwrap())
}

/// The same of a table of flows, whose tags nobody else sees.
fn flows_twice(length: usize) -> (FlowTable, Region<FlowSlot>) {
    let (rows, others) = twice::<FlowSlot>(length);
    (FlowTable::new(rows, Region::heap(length / BUCKET as usize)), others)
}

/// Tables in use, as the program sees them, and as the migration does.
fn in_use() -> (Maps, Old) {
    let mut maps = traffic::maps();
    let (flows, half_open, sticky, cells, cursors);
    (maps.flows, flows) = flows_twice(4096);
    (maps.half_open, half_open) = flows_twice(4096);
    (maps.sticky, sticky) = twice::<StickySlot>(4096);
    (maps.port_cells, cells) = twice::<Word>(16 * 1024);
    (maps.port_cursors, cursors) = twice::<Word>(16);
    let old = Old {
        layout: 1,
        control: Region::heap(1),
        snat: Snat::from_word(maps.control().snat.load()),
        flows: Box::new(Converted { slots: flows, today: |words| *words }),
        half_open: Box::new(Converted { slots: half_open, today: |words| *words }),
        sticky: Box::new(Converted { slots: sticky, today: |words| *words }),
        cells,
        cursors,
    };
    (maps, old)
}

/// Empty tables of other sizes and ports, with the same services and secrets.
fn wanted(from: &Maps, flows: usize, sticky: usize) -> Maps {
    let mut maps = fake_maps(FakeKernel::default());
    for (to, word) in maps.control().hash_key.iter().zip(from.control().key().0) {
        to.store(word);
    }
    for (to, from) in maps.services.iter().zip(from.services.iter()) {
        for (to, word) in to.iter().zip(from) {
            to.store(word.load());
        }
    }
    maps.control().snat.store(Snat { first_port: 1000, ports: 1100, sources: 1, sources_v6: 0 }.word());
    maps.flows = FlowTable::heap(flows);
    maps.half_open = FlowTable::heap(2048);
    maps.sticky = Region::heap(sticky);
    maps.port_cells = Region::heap(24 * 1100);
    maps.port_cursors = Region::heap(24);
    maps
}

type Flows = BTreeMap<[u64; 3], (u32, Ticks, FlowServer)>;

fn flows(table: &[FlowSlot]) -> Flows {
    let live = table.iter().filter(|slot| slot.life().state() == lb_common::life::SlotState::Live);
    live.map(|slot| {
        let (life, words) = (slot.life(), slot.read());
        let to = FlowServer::from_word(words[SERVER_WORD]);
        ([words[0], words[1], words[2]], (life.note(), life.deadline(), to))
    })
    .collect()
}

/// Records by key: where they lead, their open flows, and their deadline if they have none.
fn records(maps: &Maps) -> BTreeMap<[u64; 3], (u32, Option<Ticks>)> {
    let live = maps.sticky.iter().filter(|slot| slot.life().state() == lb_common::life::SlotState::Live);
    live.map(|slot| {
        let (life, words) = (slot.life(), slot.read());
        (words, (life.note(), (life.note() == 0).then_some(life.deadline())))
    })
    .collect()
}

/// Whether both hold the same, and each row has its port and counts in its record.
fn assert_same(old: &Maps, new: &Maps) {
    assert_eq!(flows(&old.flows), flows(&new.flows));
    assert_eq!(flows(&old.half_open), flows(&new.half_open));
    assert_eq!(records(old), records(new));
    assert_eq!(ports_in_use(old), ports_in_use(new));
    assert_eq!(taken(&new.flows), flows(&new.flows).len());
    for table in [&new.flows, &new.half_open] {
        assert_eq!(table.untagged(&new.key()).next(), None);
    }
    assert!(suspects(new).is_empty(), "{:?}", suspects(new));
}

/// What the program did.
#[derive(Clone, Copy, Debug)]
enum Did {
    Opened,
    Established,
    Closed,
    Forgot,
}

/// Lets the program do something with one of a few connections. What does not fit their state is left out.
fn act(maps: &Maps, connection: Connection, did: Did) {
    let find = |table: &[FlowSlot]| -> Option<u32> {
        let at = table.iter().position(|slot| {
            let words = slot.read();
            slot.life().state() == lb_common::life::SlotState::Live
                && words[1] == u64::from(connection.client) + 1
                && words[2] & 0xffff == u64::from(connection.port.to_be())
        });
        at.map(|at| u32::try_from(at).unwrap())
    };
    let (half_open, flow) = (find(&maps.half_open), find(&maps.flows));
    match (did, half_open, flow) {
        (Did::Opened, None, None) => drop(connection.open(maps, NOW).unwrap()),
        (Did::Established, Some(half_open), None) => {
            connection.establish(maps, half_open, NOW).unwrap();
        }
        (Did::Closed, _, Some(flow)) if maps.flows[flow as usize].life().note() == 3 => {
            connection.close(maps, flow, NOW);
        }
        (Did::Forgot, _, Some(flow)) => {
            assert!(forget_flow(maps, flow, maps.flows[flow as usize].life(), NOW));
        }
        _ => {}
    }
}

fn some_connection() -> impl Strategy<Value = Connection> {
    (0u8..12, 40_000u16..40_004, 0u16..3).prop_map(|(client, port, server)| Connection {
        client,
        port,
        service: if port == 40_003 { WITHOUT_PORTS } else { 1 },
        server,
    })
}

fn some_acts() -> impl Strategy<Value = Vec<(Connection, Did)>> {
    let did = prop_oneof![
        Just(Did::Opened),
        Just(Did::Opened),
        Just(Did::Established),
        Just(Did::Established),
        Just(Did::Closed),
        Just(Did::Forgot),
    ];
    prop::collection::vec((some_connection(), did), 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn two_passes_carry_everything_whatever_happens_before_and_between(before in some_acts(), between in some_acts()) {
        let (maps, old) = in_use();
        before.iter().for_each(|(connection, did)| act(&maps, *connection, *did));
        let new = wanted(&maps, 1024, 8192);
        let mut carrier = Carrier::new(&old, &new);
        carrier.first(NOW);
        assert_same(&maps, &new);
        between.iter().for_each(|(connection, did)| act(&maps, *connection, *did));
        carrier.second(NOW);
        assert_same(&maps, &new);
        prop_assert_eq!(carrier.carried.flows, taken(&new.flows));
        prop_assert_eq!(carrier.carried.half_open, taken(&new.half_open));
        prop_assert_eq!(carrier.carried.ports, ports_in_use(&new));
        prop_assert_eq!(carrier.carried.lost, 0);
    }
}

fn connection(client: u8) -> Connection {
    Connection { client, port: 40_000, service: 1, server: u16::from(client % 3) }
}

fn establish(maps: &Maps, clients: std::ops::Range<u8>) {
    for client in clients {
        let half_open = connection(client).open(maps, NOW).unwrap();
        connection(client).establish(maps, half_open, NOW).unwrap();
    }
}

#[test]
fn a_second_pass_that_was_cut_off_is_done_again_without_its_memory() {
    let (maps, old) = in_use();
    establish(&maps, 0..100);
    let new = wanted(&maps, 1024, 1024);
    Carrier::new(&old, &new).first(NOW);
    establish(&maps, 100..150);
    // As after a death of the daemon: what the first pass did is known only by what is in the tables.
    Carrier::new(&old, &new).second(NOW);
    assert_same(&maps, &new);
    Carrier::new(&old, &new).second(NOW);
    assert_same(&maps, &new);
}

#[test]
fn what_the_new_program_has_changed_stays() {
    let (maps, old) = in_use();
    establish(&maps, 0..3);
    let new = wanted(&maps, 1024, 1024);
    let mut carrier = Carrier::new(&old, &new);
    carrier.first(NOW);
    let flow = new.flows.iter().position(|slot| slot.read()[1] == 1 && slot.life().note() != 0).unwrap();
    connection(0).close(&new, u32::try_from(flow).unwrap(), NOW);
    let closed = new.flows[flow].life();
    carrier.second(NOW);
    assert_eq!(new.flows[flow].life(), closed);
    assert_eq!(connection(0).record(&new, NOW).unwrap().note(), 0);
    assert!(suspects(&new).is_empty());
}

#[test]
fn what_has_no_room_is_counted() {
    let (maps, old) = in_use();
    establish(&maps, 0..100);
    let new = wanted(&maps, 64, 1024);
    let mut carrier = Carrier::new(&old, &new);
    carrier.first(NOW);
    assert!(carrier.carried.lost >= 36, "{}", carrier.carried);
    assert_eq!(carrier.carried.flows + carrier.carried.lost, 100);
}

#[test]
fn of_closed_flows_without_room_the_ports_rest() {
    let (maps, old) = in_use();
    establish(&maps, 0..100);
    for (index, slot) in (0..).zip(maps.flows.iter()) {
        if slot.life().state() == lb_common::life::SlotState::Live {
            let client = u8::try_from(slot.read()[1] - 1).unwrap();
            connection(client).close(&maps, index, NOW);
        }
    }
    let new = wanted(&maps, 64, 1024);
    let mut carrier = Carrier::new(&old, &new);
    carrier.first(NOW);
    assert!(carrier.carried.flows <= 64 && carrier.carried.lost == 0, "{}", carrier.carried);
    let marked = new.port_cells.iter().filter(|cell| cell.load() != 0).count();
    assert_eq!(marked, 100, "each of the ports is in use, or rests");
}

#[test]
fn a_port_outside_of_the_new_range_has_no_room() {
    let (maps, old) = in_use();
    establish(&maps, 0..3);
    let new = wanted(&maps, 1024, 1024);
    new.control().snat.store(Snat { first_port: 1025, ports: 1000, sources: 1, sources_v6: 0 }.word());
    let mut carrier = Carrier::new(&old, &new);
    carrier.first(NOW);
    // The first port of each of three servers.
    assert_eq!((carrier.carried.flows, carrier.carried.lost), (0, 3));
    assert_eq!(taken(&new.flows), 0);
}

#[test]
fn a_port_that_rests_goes_on_resting() {
    let (maps, old) = in_use();
    let rests = PortCell { owner: lb_common::ports::Owner::Free, stamp: Ticks(9_990) };
    maps.port_cells[1024 + 7].store(rests.word());
    let new = wanted(&maps, 1024, 1024);
    Carrier::new(&old, &new).first(NOW);
    // The second server's port 1031, in a range that begins at 1000.
    assert_eq!(new.port_cells[1100 + 31].load(), rests.word());
}

/// A layout that never was: records of five words with the service apart, flows with a word in front.
fn of_another_shape(maps: &Maps, old: Old) -> Old {
    let sticky: Region<Slot<5>> = Region::heap(maps.sticky.len());
    for (to, from) in sticky.iter().zip(maps.sticky.iter()) {
        let words = from.read();
        let service = u64::from(StickyServer::from_word(words[2]).service);
        let stored = [7, service, words[2] ^ service, words[1], words[0]];
        to.words.iter().zip(stored).for_each(|(word, value)| word.store(value));
        to.life.store(from.life().word());
    }
    let flows: Region<Slot<8>> = Region::heap(maps.flows.len());
    for (to, from) in flows.iter().zip(maps.flows.iter()) {
        let stored = std::iter::once(99).chain(from.read());
        to.words.iter().zip(stored).for_each(|(word, value)| word.store(value));
        to.life.store(from.life().word());
    }
    let today = |words: &[u64; 5]| -> [u64; STICKY_WORDS] { [words[4], words[3], words[1] | words[2]] };
    Old {
        sticky: Box::new(Converted { slots: sticky, today }),
        flows: Box::new(Converted { slots: flows, today: |[_, row @ ..]: &[u64; 8]| *row }),
        ..old
    }
}

#[test]
fn rows_of_another_shape_are_read_in_todays_form() {
    let (maps, old) = in_use();
    establish(&maps, 0..50);
    let old = of_another_shape(&maps, old);
    let new = wanted(&maps, 4096, 4096);
    let mut carrier = Carrier::new(&old, &new);
    carrier.first(NOW);
    carrier.second(NOW);
    assert_same(&maps, &new);
    assert_eq!((carrier.carried.flows, carrier.carried.sticky), (50, 50));
    for slot in new.flows.iter().filter(|slot| slot.life().note() != 0) {
        assert!(cell_of(&new, &slot.read()).is_some());
    }
}

#[test]
fn a_record_from_before_there_were_ports_is_for_all_of_them() {
    let words = [1, 2, 513 | 8191 << 16 | (6400 >> 4) << 32 | 1 << 60];
    let [first, second, to] = without_port(&words);
    assert_eq!([first, second], [1, 2]);
    let to = StickyServer::from_word(to);
    let expected = StickyServer { service: 513, port: 0, server: 8191, made_at: Ticks(6400), verified: true };
    assert_eq!(to, expected);
}

#[test]
fn flows_hold_the_record_of_their_clients_prefix_as_before() {
    let (maps, old) = in_use();
    let by_prefix = |maps: &Maps| {
        let slot = &maps.services[0];
        let service = Service { by_prefix: true, ..Service::load(slot).unwrap() };
        slot.iter().zip(service.words()).for_each(|(word, value)| word.store(value));
    };
    by_prefix(&maps);
    let of_prefix = Connection { client: 7, port: 5000, service: 0, server: 1 };
    let half_open = of_prefix.open(&maps, NOW).unwrap();
    of_prefix.establish(&maps, half_open, NOW).unwrap();
    let new = wanted(&maps, 1024, 1024);
    let mut carrier = Carrier::new(&old, &new);
    carrier.first(NOW);
    let held: Vec<u32> =
        new.sticky.iter().map(|slot| slot.life().note()).filter(|flows| *flows > 0).collect();
    assert_eq!(held, [1]);
}

#[test]
fn layouts_from_the_first_to_todays_are_read() {
    let readable = |layout| is_readable(layout);
    assert!((1..=LAYOUT_VERSION).all(readable));
    assert!(![0, LAYOUT_VERSION + 1, u64::MAX].into_iter().any(readable));
}
