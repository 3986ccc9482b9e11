//! Every forwarding mode, family, number of VLAN tags and number of interfaces, through the built program.
//!
//! A `World` has one service and one server; `Story` plays the same packets in each of them, with what must come out
//! written down once (`modes/expected.rs`).

mod again;
mod expected;
mod packet;
mod story;
mod udp;
mod world;

use std::{collections::BTreeSet, fmt::Write as _};

use lb_common::{flow::FlowKey, forwarding::Forwarding, life::SlotState, reason::Reason, table::Slot};

use self::{story::Story, world::World};
use super::bench::{Bench, Sizes};

/// In a sticky table that has one client's slots only: how many records there are after forged connections from many
/// addresses, in a mode whose answers are not seen; and after as many verified clients as there are slots.
///
/// # Errors
/// Somebody was not served as must be.
pub fn unverified_records_give_way() -> Result<[usize; 2], String> {
    let sizes = Sizes { flows: 1024, half_open: 64, sticky: 8 };
    unverified_give_way(sizes, |bench| live(&bench.tables.sticky), |_| ())
}

/// The same of flows, in a flow table that has one flow's slots only.
///
/// # Errors
/// Somebody was not served as must be.
pub fn unverified_flows_give_way() -> Result<[usize; 2], String> {
    let sizes = Sizes { flows: 8, half_open: 64, sticky: 1024 };
    let between = |bench: &Bench| {
        // The verified clients are another service's.
        let unseen = World { forwarding: Forwarding::Dr, ..World::all()[0] };
        bench.put_service(OTHER_SERVICE, &unseen.service_entry());
        for slot in bench.tables.flows.iter() {
            let key = FlowKey { service: OTHER_SERVICE, ..FlowKey::from_words(&slot.read()) };
            slot.words[2].store(key.words()[2]);
        }
    };
    unverified_give_way(sizes, |bench| live(&bench.tables.flows), between)
}

const OTHER_SERVICE: u16 = 6;

fn live<const N: usize>(table: &[Slot<N>]) -> usize {
    table.iter().filter(|slot| slot.life().state() == SlotState::Live).count()
}

fn unverified_give_way(
    sizes: Sizes,
    live: impl Fn(&Bench) -> usize,
    between: impl Fn(&Bench),
) -> Result<[usize; 2], String> {
    let told = |error: anyhow::Error| format!("{error:#}");
    let mut bench = Bench::load_sized(sizes).map_err(told)?;
    bench.schedule_the_server().map_err(told)?;
    bench.reset().map_err(told)?;
    let mut counts = [0; 2];
    let crowds = [(Forwarding::Dr, 100..130), (Forwarding::Snat, 200..208)];
    for (count, (forwarding, clients)) in counts.iter_mut().zip(crowds) {
        let world = World { forwarding, ..World::all()[0] };
        bench.settle(&world).map_err(told)?;
        bench.put_server_of(&world);
        for (number, client) in (0..).zip(clients) {
            let world = World { client, ..world };
            Story::new(&bench, &world).connect(40_000, number, Reason::NewByScheduler)?;
        }
        *count = live(&bench);
        between(&bench);
    }
    Ok(counts)
}

/// Plays all stories.
///
/// # Errors
/// What was not as it must be, world by world.
pub fn run() -> Result<BTreeSet<Reason>, String> {
    let sizes = Sizes { flows: 1024, half_open: 64, sticky: 64 };
    let mut bench = Bench::load_sized(sizes).map_err(|error| format!("{error:#}"))?;
    bench.schedule_the_server().map_err(|error| format!("{error:#}"))?;
    let (mut report, mut seen) = (String::new(), BTreeSet::new());
    let stories = |world: &World| if world.is_udp { [udp::ALL, &[]] } else { [story::ALL, again::ALL] };
    for world in World::all() {
        bench.install(&world).map_err(|error| format!("{error:#}"))?;
        for (name, play) in stories(&world).into_iter().flatten() {
            bench.begin(&world);
            let mut story = Story::new(&bench, &world);
            match play(&mut story) {
                Ok(()) => seen.extend(story.seen),
                Err(problem) => {
                    let _ = writeln!(report, "\n{world}: {name}\n  - {problem}");
                }
            }
        }
    }
    if report.is_empty() { Ok(seen) } else { Err(report) }
}
