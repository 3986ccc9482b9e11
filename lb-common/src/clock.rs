//! Coarse time, as the data path sees it.

/// A moment, or a span, in units of 64 kernel jiffies (64 ms at `CONFIG_HZ` 1000, 256 ms at 250,
/// 640 ms at 100), counted from boot. `bpf_jiffies64` is inlined by the verifier, where
/// `bpf_ktime_get_ns` is a call.
///
/// 32 bits hold 8.7 years of uptime at HZ 1000, the shortest case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Ticks(pub u32);

/// log2 of the jiffies in a tick.
pub const JIFFIES_SHIFT: u32 = 6;

impl Ticks {
    /// The tick that holds the given value of the kernel's `jiffies_64`.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "32 bits of ticks outlast any uptime")]
    pub const fn from_jiffies(jiffies: u64) -> Self {
        Self((jiffies >> JIFFIES_SHIFT) as u32)
    }

    /// A span of at least `milliseconds`, at `hz` jiffies a second, and never less than one tick.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "saturated before the cast")]
    pub const fn span_of_millis(milliseconds: u64, hz: u64) -> Self {
        let ticks = (milliseconds * hz).div_ceil(1000 << JIFFIES_SHIFT);
        Self(if ticks == 0 {
            1
        } else if ticks > 0x7fff_ffff {
            0x7fff_ffff
        } else {
            ticks as u32
        })
    }

    /// This span in milliseconds, at `hz` jiffies a second.
    #[must_use]
    pub const fn as_millis(self, hz: u64) -> u64 {
        (self.0 as u64) * (1000 << JIFFIES_SHIFT) / hz
    }

    /// The moment `span` after this one.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, span: Self) -> Self {
        Self(self.0.wrapping_add(span.0))
    }

    /// How long after `earlier` this moment is; zero if it is not after.
    #[inline(always)]
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        let span = self.0.wrapping_sub(earlier.0);
        Self(if span > u32::MAX / 2 { 0 } else { span })
    }

    /// Whether this deadline lies before `now`.
    #[inline(always)]
    #[must_use]
    pub const fn is_past(self, now: Self) -> bool {
        let ahead = self.0.wrapping_sub(now.0);
        ahead > u32::MAX / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_never_shorter_than_asked() {
        for hz in [100, 250, 300, 1000] {
            for milliseconds in [0, 1, 63, 64, 65, 999, 1000, 3_600_000] {
                assert!(Ticks::span_of_millis(milliseconds, hz).as_millis(hz) >= milliseconds);
            }
        }
    }

    #[test]
    fn a_deadline_is_past_only_after_its_tick() {
        let deadline = Ticks(10);
        assert!(!deadline.is_past(Ticks(9)));
        assert!(!deadline.is_past(Ticks(10)));
        assert!(deadline.is_past(Ticks(11)));
        assert_eq!(Ticks(9).since(Ticks(10)), Ticks(0));
        assert_eq!(Ticks(12).since(Ticks(10)), Ticks(2));
    }
}
