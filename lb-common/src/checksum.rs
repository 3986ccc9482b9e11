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

    /// The checksum after the change, where `checksum` is the field before it.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(self.0 + (!checksum) as u64)
    }
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
}
