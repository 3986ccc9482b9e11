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
        let ticks = milliseconds.saturating_mul(hz).div_ceil(1000 << JIFFIES_SHIFT);
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
    use proptest::prelude::*;

    #[test]
    fn a_span_is_never_shorter_than_asked() {
        for hz in [100, 250, 300, 1000] {
            for milliseconds in [0, 1, 63, 64, 65, 999, 1000, 3_600_000] {
                assert!(Ticks::span_of_millis(milliseconds, hz).as_millis(hz) >= milliseconds);
            }
        }
    }

    #[test]
    fn a_span_too_long_for_the_clock_is_the_longest_there_is() {
        for milliseconds in [1 << 44, 1 << 60, u64::MAX] {
            for hz in [100, 250, 1000] {
                assert_eq!(Ticks::span_of_millis(milliseconds, hz), Ticks(0x7fff_ffff));
            }
        }
        let now = Ticks(u32::MAX - 5);
        assert!(!now.plus(Ticks(0x7fff_ffff)).is_past(now));
    }

    #[test]
    fn a_tick_is_sixty_four_jiffies() {
        assert_eq!(Ticks::from_jiffies(0), Ticks(0));
        assert_eq!(Ticks::from_jiffies(63), Ticks(0));
        assert_eq!(Ticks::from_jiffies(64), Ticks(1));
        // The kernel starts jiffies five minutes before the wrap of 32 bits (INITIAL_JIFFIES).
        assert_eq!(Ticks::from_jiffies((1 << 32) - 300_000), Ticks(67_104_176));
        assert_eq!(Ticks::from_jiffies(1 << 38), Ticks(0));
    }

    proptest! {
        #[test]
        fn spans_are_exact_to_one_tick(milliseconds in 0u64..1 << 36, hz in prop_oneof![Just(100u64), Just(250), Just(300), Just(1000)]) {
            let span = Ticks::span_of_millis(milliseconds, hz);
            prop_assert!(span.0 >= 1);
            prop_assert!(span.as_millis(hz) >= milliseconds || span.0 == 0x7fff_ffff);
            let tick = 64_000u64.div_ceil(hz);
            prop_assert!(span.as_millis(hz) <= milliseconds + tick);
        }

        #[test]
        fn time_runs_on_over_the_wrap(start in any::<u32>(), ahead in 0u32..0x8000_0000) {
            let (earlier, later) = (Ticks(start), Ticks(start).plus(Ticks(ahead)));
            prop_assert_eq!(later.since(earlier), Ticks(ahead));
            prop_assert_eq!(earlier.is_past(later), ahead > 0);
            prop_assert!(!later.is_past(earlier));
            if ahead > 0 {
                prop_assert_eq!(earlier.since(later), Ticks(0));
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
