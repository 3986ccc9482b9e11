//! A scheduler's table for 1,000 servers: how long it takes to compute, and to put in the place of the one before.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Instant,
};

use anyhow::Result;
use lb_common::{
    address::Address,
    maglev::{Candidate, build, size_for},
};

use crate::bench::{
    figures::Rounds,
    packet::{SNAT, USUAL},
    world::World,
};

const SERVERS: u16 = 1000;

/// Milliseconds.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    pub(super) built: Rounds,
    pub(super) swapped: Rounds,
}

/// Measures it on a data path of its own.
///
/// # Errors
/// The kernel refused something.
pub(super) fn measure(pins: &Path, rounds: usize) -> Result<Schedule> {
    let world = World::up(&pins.join("steadfast"), USUAL)?;
    let service = world.service_id(SNAT)?;
    let seed = world.maps.control().maglev_seed.load();
    let mut schedule = Schedule::default();
    for round in 0..=rounds {
        let heavier = u16::try_from(round % usize::from(SERVERS))?;
        let candidate = |id: u16| Candidate {
            id,
            address: Address::from(IpAddr::V4(Ipv4Addr::from(0x0a00_0001 + u32::from(id)))),
            port: 443_u16.to_be(),
            weight: if id == heavier { 200 } else { 100 },
        };
        let candidates: Vec<Candidate> = (0..SERVERS).map(candidate).collect();
        let start = Instant::now();
        let values = build(seed, &candidates, size_for(candidates.len())).to_values();
        let built = start.elapsed();
        let start = Instant::now();
        world.maps.kernel.set_schedule(service, &values)?;
        let swapped = start.elapsed();
        // The first is to warm up.
        if round > 0 {
            schedule.built.0.push(built.as_secs_f64() * 1e3);
            schedule.swapped.0.push(swapped.as_secs_f64() * 1e3);
        }
    }
    Ok(schedule)
}
