//! The first word of every table slot: who may touch it, and until when.

use crate::clock::Ticks;

/// What a slot is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotState {
    /// Nobody's.
    Free = 0,
    /// Being filled by one writer; its words mean nothing.
    Claimed = 1,
    /// Filled, and its writer is making sure that the key is in no other slot.
    Pending = 2,
    /// In force.
    Live = 3,
}

/// A slot's life word: `state:3 | version:9 | note:20 | deadline:32`, most significant first.
///
/// The deadline and what decides it are in the word that is compared and exchanged, so a slot that is
/// refreshed can't be taken in the same moment by one who saw it expired. The version changes with
/// every claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life(u64);

const DEADLINE_BITS: u32 = 32;
const NOTE_BITS: u32 = 20;
const VERSION_BITS: u32 = 9;
const VERSION_SHIFT: u32 = DEADLINE_BITS + NOTE_BITS;
const STATE_SHIFT: u32 = VERSION_SHIFT + VERSION_BITS;
const NOTE_MASK: u64 = (1 << NOTE_BITS) - 1;
const VERSION_MASK: u64 = (1 << VERSION_BITS) - 1;

impl Life {
    /// The most that fits the note.
    #[expect(clippy::cast_possible_truncation, reason = "20 bits")]
    pub const MAX_NOTE: u32 = NOTE_MASK as u32;

    /// The word as it is stored.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The word to store.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// What the slot is used for. Words that no writer of ours makes read as claimed: nobody takes them.
    #[inline(always)]
    #[must_use]
    pub const fn state(self) -> SlotState {
        match self.0 >> STATE_SHIFT {
            0 => SlotState::Free,
            2 => SlotState::Pending,
            3 => SlotState::Live,
            _ => SlotState::Claimed,
        }
    }

    /// Until when the slot is kept.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are the deadline")]
    pub const fn deadline(self) -> Ticks {
        Ticks(self.0 as u32)
    }

    /// The table's own 20 bits: open flows of a sticky record, TCP state of a flow.
    #[inline(always)]
    #[must_use]
    pub const fn note(self) -> u32 {
        ((self.0 >> DEADLINE_BITS) & NOTE_MASK) as u32
    }

    /// How often the slot was claimed, modulo 512.
    #[inline(always)]
    #[must_use]
    pub const fn version(self) -> u16 {
        ((self.0 >> VERSION_SHIFT) & VERSION_MASK) as u16
    }

    /// The same in another state.
    #[inline(always)]
    #[must_use]
    pub const fn with_state(self, state: SlotState) -> Self {
        Self((self.0 & ((1 << STATE_SHIFT) - 1)) | ((state as u64) << STATE_SHIFT))
    }

    /// The same with another deadline.
    #[inline(always)]
    #[must_use]
    pub const fn with_deadline(self, deadline: Ticks) -> Self {
        Self((self.0 >> DEADLINE_BITS) << DEADLINE_BITS | deadline.0 as u64)
    }

    /// The same with another note (its low 20 bits).
    #[inline(always)]
    #[must_use]
    pub const fn with_note(self, note: u32) -> Self {
        Self((self.0 & !(NOTE_MASK << DEADLINE_BITS)) | ((note as u64 & NOTE_MASK) << DEADLINE_BITS))
    }

    /// The same, claimed anew: state [`SlotState::Claimed`] and the next version.
    #[inline(always)]
    #[must_use]
    pub const fn claimed(self) -> Self {
        let version = (self.version() as u64 + 1) & VERSION_MASK;
        Self(
            (self.0 & !(VERSION_MASK << VERSION_SHIFT) & ((1 << STATE_SHIFT) - 1))
                | (version << VERSION_SHIFT)
                | ((SlotState::Claimed as u64) << STATE_SHIFT),
        )
    }

    /// Whether nobody has claimed the slot in between, so that its key is the same.
    #[inline(always)]
    #[must_use]
    pub const fn same_version(self, other: Self) -> bool {
        ((self.0 ^ other.0) >> VERSION_SHIFT) & VERSION_MASK == 0
    }

    /// Whether both are the same life of the slot: nobody has claimed or freed it in between.
    #[inline(always)]
    #[must_use]
    pub const fn same_life(self, other: Self) -> bool {
        (self.0 ^ other.0) >> VERSION_SHIFT == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_do_not_touch_each_other(word in any::<u64>(), deadline in any::<u32>(), note in 0..=Life::MAX_NOTE) {
            let life = Life::from_word(word & !(7 << STATE_SHIFT));
            let live = life.with_state(SlotState::Live).with_note(note).with_deadline(Ticks(deadline));
            prop_assert_eq!(live.state(), SlotState::Live);
            prop_assert_eq!(live.note(), note);
            prop_assert_eq!(live.deadline(), Ticks(deadline));
            prop_assert_eq!(live.version(), life.version());
            let claimed = live.claimed();
            prop_assert_eq!(claimed.state(), SlotState::Claimed);
            prop_assert_eq!(claimed.version(), (life.version() + 1) % 512);
            prop_assert_eq!((claimed.note(), claimed.deadline()), (note, Ticks(deadline)));
            prop_assert!(!claimed.same_life(live) && !claimed.same_version(live));
            prop_assert!(live.same_version(live.with_state(SlotState::Pending).with_note(1).with_deadline(Ticks(0))));
            prop_assert!(live.same_life(live.with_note(0).with_deadline(Ticks(0))));
        }
    }
}
