//! The shortest sequence that still shows a difference.

use anyhow::Result;

use super::{Played, Player, step::Sequence};

/// Leaves out steps, by halves, quarters and so on down to single ones, as long as there is a difference.
pub(super) fn shrink(player: &mut Player, sequence: &Sequence) -> Result<Sequence> {
    let mut best = sequence.clone();
    let mut size = best.steps.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < best.steps.len() {
            let to = (from + size).min(best.steps.len());
            let mut shorter = best.clone();
            shorter.steps.drain(from..to);
            match player.replay(&shorter)? {
                Played { different: Some(found), .. } => {
                    shorter.steps.truncate(found.step + 1);
                    best = shorter;
                }
                _ => from = to,
            }
        }
        size /= 2;
    }
    Ok(best)
}
