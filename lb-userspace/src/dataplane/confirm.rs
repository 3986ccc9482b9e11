//! An attachment on trial: undone at a moment that is written in the control map, unless it is confirmed before.
//!
//! The word is with the pins, so it outlives the daemon and ends with them. Whoever confirms or undoes exchanges it, so
//! that not both can happen.

use lb_common::control::Control;

const CONFIRMED: u64 = 0;
const UNDOING: u64 = u64::MAX;

/// How a trial stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// There is none, or it was confirmed.
    Over,
    /// So many jiffies are left.
    Running(u64),
    /// The time is over, or it is being undone.
    Lost,
}

/// What confirming came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmed {
    /// It was on trial, and stays now.
    Now,
    /// There was nothing to confirm.
    Before,
    /// It is being undone.
    TooLate,
}

/// Begins a trial that ends at `jiffies`.
pub fn begin(control: &Control, jiffies: u64) {
    control.confirm_by.store(jiffies.clamp(CONFIRMED + 1, UNDOING - 1));
}

/// How the trial stands at `jiffies`.
#[must_use]
pub fn trial(control: &Control, jiffies: u64) -> Trial {
    match control.confirm_by.load() {
        CONFIRMED => Trial::Over,
        by if by == UNDOING || jiffies >= by => Trial::Lost,
        by => Trial::Running(by - jiffies),
    }
}

/// When, in jiffies, the attachment is undone, if it is on trial.
#[must_use]
pub fn undone_at(control: &Control) -> Option<u64> {
    Some(control.confirm_by.load()).filter(|by| *by != CONFIRMED)
}

/// Keeps what is on trial.
#[must_use]
pub fn confirm(control: &Control) -> Confirmed {
    let by = control.confirm_by.load();
    match by {
        CONFIRMED => Confirmed::Before,
        UNDOING => Confirmed::TooLate,
        by if control.confirm_by.compare_exchange(by, CONFIRMED).is_ok() => Confirmed::Now,
        _ => Confirmed::TooLate,
    }
}

/// Begins to undo what is on trial; false if there is nothing to undo, or somebody confirmed it in this moment.
#[must_use]
pub fn claim_undoing(control: &Control) -> bool {
    let by = control.confirm_by.load();
    by == UNDOING || (by != CONFIRMED && control.confirm_by.compare_exchange(by, UNDOING).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::fake::{FakeKernel, maps};

    #[test]
    fn a_trial_ends_by_confirming_or_by_its_time_and_never_by_both() {
        let maps = maps(FakeKernel::default());
        let control = maps.control();
        assert_eq!((trial(control, 9), confirm(control)), (Trial::Over, Confirmed::Before));
        assert!(!claim_undoing(control));
        begin(control, 1000);
        assert_eq!((trial(control, 400), undone_at(control)), (Trial::Running(600), Some(1000)));
        assert_eq!(trial(control, 1000), Trial::Lost);
        assert_eq!((confirm(control), confirm(control)), (Confirmed::Now, Confirmed::Before));
        assert_eq!((trial(control, 2000), undone_at(control)), (Trial::Over, None));
        assert!(!claim_undoing(control));
        begin(control, 1000);
        assert!(claim_undoing(control) && claim_undoing(control));
        assert_eq!((confirm(control), trial(control, 0)), (Confirmed::TooLate, Trial::Lost));
    }
}
