//! What a packet of a flood costs in the program: as `packet` measures it, with every table full of live rows.

use std::path::Path;

use anyhow::Result;
use lb_common::reason::Reason;

use super::{Flood, Options};
use crate::bench::{
    figures::Rounds,
    frames::{Flags, From, patched, script},
    packet::{Bench, SNAT, STRANGERS, USUAL, fill, in_turn},
    script::Script,
};

/// Where IPv4's flags and offset, and the length of TCP's header, stand in an untagged frame.
const FRAGMENT: u32 = 20;
const DATA_OFFSET: u32 = 46;

/// Nanoseconds beyond those of an empty program, by what was sent.
#[derive(Debug, Default)]
pub(super) struct Costs(pub(super) Vec<(String, Rounds)>);

pub(super) fn measure(pins: &Path, options: Options) -> Result<Costs> {
    let mut bench = Bench::up(pins, USUAL, 1)?;
    let mut first = fill(&mut bench)?;
    let mut costs = Costs(Flood::ALL.map(|flood| (flood.name().to_owned(), Rounds::default())).to_vec());
    for round in 0..=options.rounds {
        for (flood, (_, rounds)) in Flood::ALL.into_iter().zip(&mut costs.0) {
            let (script, reason) = packets(flood)?;
            let script = in_turn(script, first, STRANGERS);
            first = first.wrapping_add(options.repeat);
            // Where many connections have their ports in a row, a few strangers find none.
            let least = u64::from(options.repeat) * 99 / 100;
            let cost = bench.mostly(&script, options.repeat, reason, least)?;
            // The first round is to warm up.
            if round > 0 {
                rounds.0.push(cost);
            }
        }
    }
    Ok(costs)
}

/// A flood's packets, each of another stranger, and what becomes of them.
fn packets(flood: Flood) -> Result<(Script, Reason)> {
    let from_client = |flags, port| script(SNAT, From::Client, flags, port);
    let ack = from_client(Flags::Ack, 1)?;
    Ok(match flood {
        Flood::Syns => (from_client(Flags::Syn, 1)?, Reason::NewByScheduler),
        // The answer is shorter.
        Flood::Acks => (ack, Reason::ResetNoFlow),
        Flood::Fragments => (patched(ack, FRAGMENT, &[0x20, 0])?, Reason::Fragment),
        Flood::Malformed => (patched(ack, DATA_OFFSET, &[0x40])?, Reason::BadHeader),
    })
}
