//! The Internet checksum (RFC 1071), updated incrementally (RFC 1624, equation 3).
//!
//! Words are taken as loaded: the one's complement sum does not depend on byte order (RFC 1071,
//! section 2 (B)) as long as all of them are loaded the same way.

/// What a set of replaced words adds to a checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// A change of nothing.
    pub const NONE: Self = Self(0);

    /// Also replaces a 32-bit word, at an even offset.
    #[inline(always)]
    #[must_use]
    pub const fn replace32(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// Also replaces a 64-bit word, at an even offset.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "cut into halves")]
    pub const fn replace64(self, old: u64, new: u64) -> Self {
        self.replace32(old as u32, new as u32).replace32((old >> 32) as u32, (new >> 32) as u32)
    }

    /// Also replaces a 16-bit word, at an even offset.
    #[inline(always)]
    #[must_use]
    pub const fn replace16(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The change in 16 bits, for [`apply_folded`].
    #[inline(always)]
    #[must_use]
    pub const fn folded(self) -> u16 {
        fold(self.0)
    }

    /// The checksum after the change, where `checksum` is the field before it.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(self.0 + (!checksum) as u64)
    }
}

/// As [`Delta::apply`], of a change that was [folded](Delta::folded); in fewer steps.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "two numbers of 16 bits, folded to 16 bits")]
pub const fn apply_folded(change: u16, checksum: u16) -> u16 {
    let sum = change as u32 + (!checksum) as u32;
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Adds the carries back until 16 bits are left.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(bytes: &[u8]) -> u16 {
        let sum: u64 = bytes.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum();
        !fold(sum)
    }

    proptest! {
        #[test]
        fn an_update_equals_recomputation(
            mut bytes in proptest::collection::vec(any::<u8>(), 20),
            word in any::<u32>(), half in any::<u16>(),
        ) {
            // A header that is all zeros has two representations of its sum (RFC 1624 section 3).
            prop_assume!(bytes[8..].iter().any(|byte| *byte != 0));
            let before = full(&bytes);
            let old32 = u32::from_ne_bytes(bytes[4..8].try_into().unwrap());
            let old16 = u16::from_ne_bytes(bytes[2..4].try_into().unwrap());
            bytes[4..8].copy_from_slice(&word.to_ne_bytes());
            bytes[2..4].copy_from_slice(&half.to_ne_bytes());
            let after = Delta::NONE.replace32(old32, word).replace16(old16, half).apply(before);
            prop_assert_eq!(after, full(&bytes));
        }
    }

    #[test]
    fn the_example_of_rfc_1624_comes_out_right() {
        // Section 4: checksum 0xDD2F, a field of 0x5555 becomes 0x3285; equation 2 would give 0xFFFF.
        assert_eq!(Delta::NONE.replace16(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn folding_ends_at_sixteen_bits_for_any_sum() {
        for (sum, folded) in [
            (0, 0),
            (0xffff, 0xffff),
            (0x1_0000, 1),
            (0x1_ffff, 1),
            (0xffff_ffff, 0xffff),
            (0x1_0000_0000, 1),
            (u64::MAX, 0xffff),
            (0xffff_ffff_0000_0001, 1),
            (0x0001_ffff_ffff_fffe, 0xffff),
        ] {
            // One's complement addition is arithmetic modulo 0xffff, where a sum that is not zero never folds to zero.
            assert_eq!(fold(sum), folded, "{sum:#x}");
            assert_eq!(u64::from(folded) % 0xffff, sum % 0xffff);
        }
    }

    #[test]
    fn replacing_a_word_by_itself_changes_nothing() {
        for checksum in [0u16, 1, 0x7fff, 0x8000, 0xfffe] {
            let delta = Delta::NONE.replace32(0xdead_beef, 0xdead_beef).replace16(7, 7);
            assert_eq!(delta.apply(checksum), checksum);
            assert_eq!(Delta::NONE.apply(checksum), checksum);
        }
    }

    proptest! {
        #[test]
        fn folding_keeps_the_sum_modulo_its_base(sum in any::<u64>()) {
            prop_assert_eq!(u64::from(fold(sum)) % 0xffff, sum % 0xffff);
            prop_assert_eq!(fold(sum) == 0, sum == 0);
        }

        /// What every forwarded packet goes through: both addresses (IPv4 or IPv6) and both ports.
        #[test]
        fn many_replacements_equal_recomputation(
            before in proptest::collection::vec(any::<u8>(), 64), after in proptest::collection::vec(any::<u8>(), 36),
        ) {
            prop_assume!(before[36..].iter().any(|byte| *byte != 0));
            let mut bytes = before.clone();
            bytes[..36].copy_from_slice(&after);
            let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            let half = |bytes: &[u8], at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap());
            let delta = (0..32).step_by(4).fold(Delta::NONE, |delta, at| delta.replace32(word(&before, at), word(&bytes, at)));
            let delta = delta.replace16(half(&before, 32), half(&bytes, 32)).replace16(half(&before, 34), half(&bytes, 34));
            prop_assert_eq!(delta.apply(full(&before)), full(&bytes));
            prop_assert_eq!(apply_folded(delta.folded(), full(&before)), full(&bytes));
            // And back again, as a return packet goes.
            let back = (0..32).step_by(4).fold(Delta::NONE, |delta, at| delta.replace32(word(&bytes, at), word(&before, at)));
            let back = back.replace16(half(&bytes, 32), half(&before, 32)).replace16(half(&bytes, 34), half(&before, 34));
            prop_assert_eq!(back.apply(full(&bytes)), full(&before));
        }
    }
}
