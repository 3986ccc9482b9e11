//! The shortest sequence that still shows something.

use anyhow::Result;

use super::{Played, Player, step::Sequence};

/// Leaves out steps, by halves, quarters and so on down to single ones, as long as `shows` says at which step it is shown.
pub(super) fn shrink(
    player: &mut Player,
    sequence: &Sequence,
    shows: impl Fn(&Played) -> Option<usize>,
) -> Result<Sequence> {
    let mut best = sequence.clone();
    let mut size = best.steps.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < best.steps.len() {
            let to = (from + size).min(best.steps.len());
            let mut shorter = best.clone();
            shorter.steps.drain(from..to);
            match shows(&player.replay(&shorter)?) {
                Some(step) => {
                    shorter.steps.truncate(step + 1);
                    best = shorter;
                }
                None => from = to,
            }
        }
        size /= 2;
    }
    Ok(best)
}
