//! Random sequences through the built program and the model (`model.rs`), compared after each packet: verdict, reason, bytes,
//! and every row of every table.
//!
//! A sequence begins with services (mode, protocol, families, ports), settings and tables at random (`fuzz/setup.rs`) and goes on with what may happen: packets of the
//! connections that are remembered (`fuzz/onward.rs`) and of others, good, spoilt and at the edges of what is accepted,
//! servers that change their state, half-open slots that others write, time that goes by (`fuzz/generate.rs`). It is the same
//! for the same seed. Sequences that are worth keeping (`fuzz/collect.rs`) are in `tests/corpus`.
//!
//! # What is not covered
//! Two packets at a time (`table_loom.rs` in `lb-common` explores that, `tests/tests/race.rs` tries it), several interfaces, schedulers that
//! count, a change of index or settings in a sequence, rows that are carried over, slots of the other tables that a killed process left, and the choice of a
//! port beyond what is forbidden. The kernel runs a frame of 14 bytes at least, so shorter ones are not seen.

mod collect;
mod day;
mod generate;
mod machine;
mod mistake;
mod onward;
mod packet;
mod setup;
mod shrink;
mod step;

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lb_common::{
    hash::mix,
    reason::{REASONS, Reason},
};

pub use self::{
    collect::collect,
    day::{Day, day},
    mistake::Mistake,
};
use self::{
    collect::{Kind, kind},
    machine::{Ended, Machine},
    step::{Sequence, Step, hex},
};
use crate::{golden::random::Random, model::Model};

/// Steps in a sequence.
const STEPS: usize = 200;
/// How often a sequence is begun again because a tick went by.
const ATTEMPTS: usize = 50;

/// How long to go on, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The first sequence's number.
    pub seed: u64,
    /// Until so much time has gone by,
    pub time: Duration,
    /// or so many sequences were played.
    pub sequences: u64,
    /// What the model gets wrong on purpose.
    pub mistake: Option<Mistake>,
    /// Whether the shortest sequence is looked for that shows the difference.
    pub shrink: bool,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Report {
    /// Sequences that were played to their end, or to a difference.
    pub sequences: u64,
    /// Packets in them.
    pub packets: u64,
    /// Packets by reason.
    pub reasons: [u64; REASONS],
    /// The first difference, told at length.
    pub difference: Option<String>,
}

impl Default for Report {
    fn default() -> Self {
        Self { sequences: 0, packets: 0, reasons: [0; REASONS], difference: None }
    }
}

/// A difference and the step that showed it.
struct Difference {
    step: usize,
    what: String,
}

/// A sequence that was played.
struct Played {
    sequence: Sequence,
    reasons: [u64; REASONS],
    /// What became of its packets, with their steps.
    kinds: Vec<(usize, Kind)>,
    different: Option<Difference>,
}

/// The program, who feeds it, and what the model gets wrong on purpose.
struct Player(Machine, Option<Mistake>);

/// Plays sequences until time or number is over, or a difference is found.
///
/// # Errors
/// The program is not built, or the kernel refuses it.
pub fn fuzz(options: &Options) -> Result<Report> {
    let mut player = Player(Machine::load()?, options.mistake);
    player.0.keeps_epoch = options.mistake == Some(Mistake::Epoch);
    let mut report = Report::default();
    let end = Instant::now() + options.time;
    for number in 0..options.sequences {
        if Instant::now() >= end || report.difference.is_some() {
            break;
        }
        let seed = options.seed.wrapping_add(number);
        let played = player.play(setup_of(seed), mix(seed))?;
        report.add(&played);
        let Some(difference) = &played.different else { continue };
        let shown = |played: &Played| played.different.as_ref().map(|difference| difference.step);
        let shortest = match options.shrink {
            true => shrink::shrink(&mut player, &played.sequence, shown)?,
            false => played.sequence.clone(),
        };
        report.difference = Some(player.tell(seed, &played.sequence, difference, &shortest)?);
    }
    Ok(report)
}

/// Plays sequences that were kept, and reports on each.
///
/// # Errors
/// One can't be read, the program is not built, or the kernel refuses it.
pub fn replay(texts: &[&str]) -> Result<Vec<Report>> {
    let mut player = Player(Machine::load()?, None);
    let report = |text: &&str| {
        let sequence = Sequence::parse(text).map_err(anyhow::Error::msg)?;
        let played = player.replay(&sequence)?;
        let mut report = Report::default();
        report.add(&played);
        report.difference =
            played.different.map(|difference| format!("step {}: {}", difference.step, difference.what));
        Ok(report)
    };
    texts.iter().map(report).collect()
}

/// The state that the sequence of a seed begins with: one of those that are known, or any.
fn setup_of(seed: u64) -> u64 {
    let known = usize::try_from(seed % 24).unwrap_or_default();
    setup::KNOWN.get(known).copied().unwrap_or_else(|| mix(seed))
}

impl Report {
    fn add(&mut self, played: &Played) {
        self.sequences += 1;
        for (sum, count) in self.reasons.iter_mut().zip(played.reasons) {
            *sum += count;
            self.packets += count;
        }
    }

    /// The reasons that no packet had.
    pub fn missing(&self) -> impl Iterator<Item = Reason> {
        Reason::ALL.iter().copied().filter(|reason| self.reasons[*reason as usize] == 0)
    }
}

impl Player {
    /// Plays a sequence that makes itself up as it goes, from this state on and by this number.
    fn play(&mut self, setup: u64, number: u64) -> Result<Played> {
        self.in_time(setup, |model, steps| {
            let random = &mut Random(mix(number ^ steps.len() as u64));
            (steps.len() < STEPS).then(|| generate::next(random, model, steps))
        })
    }

    /// Plays a sequence that is known.
    fn replay(&mut self, sequence: &Sequence) -> Result<Played> {
        self.in_time(sequence.setup, |_, steps| sequence.steps.get(steps.len()).cloned())
    }

    /// Plays, and plays again if a tick went by.
    fn in_time(&mut self, setup: u64, next: impl Fn(&Model, &[Step]) -> Option<Step>) -> Result<Played> {
        for _ in 0..ATTEMPTS {
            let played = self.attempt(setup, &next)?;
            if !self.0.is_late()? {
                return Ok(played);
            }
        }
        bail!("{ATTEMPTS} times a tick went by within a sequence: this machine is too slow or too busy")
    }

    fn attempt(&mut self, setup: u64, next: impl Fn(&Model, &[Step]) -> Option<Step>) -> Result<Played> {
        let (mut model, schedule) = setup::state(setup);
        self.0.begin(&model, schedule)?;
        if let Some(mistake) = self.1 {
            mistake.make(&mut model);
        }
        let sequence = Sequence { setup, steps: Vec::new() };
        let mut played = Played { sequence, reasons: [0; REASONS], kinds: Vec::new(), different: None };
        while let Some(step) = next(&model, &played.sequence.steps) {
            let at = played.sequence.steps.len();
            let ended = self.0.step(&mut model, &step).with_context(|| format!("step {at}: {step}"))?;
            played.sequence.steps.push(step);
            match ended {
                Ended::Same(None) => {}
                Ended::Same(Some(reason)) => {
                    played.reasons[reason as usize] += 1;
                    played.kinds.push((at, kind(reason, &model)));
                }
                Ended::Different(what) => {
                    played.different = Some(Difference { step: at, what });
                    return Ok(played);
                }
            }
        }
        let last = played.sequence.steps.len().saturating_sub(1);
        played.different = self.0.finish(&model)?.map(|what| Difference { step: last, what });
        Ok(played)
    }

    /// A difference at length: seed, step, frame, both outcomes, and the shortest sequence that shows one.
    fn tell(
        &mut self,
        seed: u64,
        sequence: &Sequence,
        difference: &Difference,
        shortest: &Sequence,
    ) -> Result<String> {
        let mut text = format!("seed {seed}, step {} of {STEPS}: {}\n", difference.step, difference.what);
        if let Some(Step::Frame(frame)) = sequence.steps.get(difference.step) {
            let _ = writeln!(text, "the frame in was\n    {}", hex(frame));
        }
        let again = self.replay(shortest)?.different.map_or_else(String::new, |difference| difference.what);
        let _ = write!(text, "\n# The shortest sequence ({} steps) ends with: ", shortest.steps.len());
        let _ = write!(text, "{}\n{shortest}", again.replace('\n', "\n# "));
        Ok(text)
    }
}
