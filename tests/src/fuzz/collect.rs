//! Sequences that are kept: for everything that a packet can have for outcome, the shortest that was found.
//!
//! They begin with a known state, so that they mean the same when states at random are made otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use lb_common::{hash::mix, reason::Reason};

use super::{
    Player, Report,
    machine::Machine,
    setup::{KNOWN, LAST_PLAIN},
    shrink::shrink,
    step::Sequence,
};
use crate::model::{Model, Place};

/// What became of a packet: its reason, and the states of the flows that were written, as the name of a file.
pub(super) type Kind = String;

/// The kind of a packet's outcome.
pub(super) fn kind(reason: Reason, model: &Model) -> Kind {
    let state = |place: &Place| match *place {
        Place::HalfOpen(slot) => Some(format!("half-open-{:?}", model.half_open[slot].as_ref()?.state)),
        Place::Flow(slot) => Some(format!("flow-{:?}", model.flows[slot].as_ref()?.state)),
        Place::Sticky(slot) => Some(format!("record-{}", model.sticky[slot].as_ref()?.flows.min(2))),
        Place::Port(_) => None,
    };
    let states: BTreeSet<_> = model.written.iter().filter_map(state).collect();
    let words = [reason.label().to_owned()].into_iter().chain(states);
    words.collect::<Vec<_>>().join("+").to_lowercase()
}

/// Plays so many sequences from each known state, and writes the shortest of each kind into a directory, a file each.
///
/// # Errors
/// The program is not built, the kernel refuses it, the program and the model differ, or a file can't be written.
pub fn collect(directory: &Path, sequences: u64) -> Result<Report> {
    let mut player = Player(Machine::load()?, None);
    let mut report = Report::default();
    // Other services than a hospital's first have sequences of their own.
    let services =
        |setup: u64| if setup <= LAST_PLAIN { String::new() } else { format!("+services-{setup}") };
    let mut found: BTreeMap<(Kind, String), Sequence> = BTreeMap::new();
    for number in 0..sequences {
        for setup in KNOWN {
            let played = player.play(setup, mix(number))?;
            report.add(&played);
            anyhow::ensure!(played.different.is_none(), "they differ: fuzz first");
            for (step, kind) in &played.kinds {
                let key = (kind.clone(), services(setup));
                if found.get(&key).is_none_or(|best| step + 1 < best.steps.len()) {
                    let steps = played.sequence.steps[..=*step].to_vec();
                    found.insert(key, Sequence { setup, steps });
                }
            }
        }
    }
    for ((kind, services), sequence) in &found {
        let shortest = shrink(&mut player, sequence, |played| {
            let fits = played.kinds.iter().find(|(_, of)| of == kind);
            fits.map(|(step, _)| *step)
        })?;
        let path = directory.join(format!("{kind}{services}.txt"));
        fs::write(&path, shortest.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(report)
}
