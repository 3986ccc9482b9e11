//! When probes are sent: spread out, so that a hundred servers are not probed in the same instant.

use std::time::Duration;

/// One target's own source of irregularity, the same for the same seed (SplitMix64).
#[derive(Debug, Clone)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new(seed: u64, target_id: u32) -> Self {
        let mut mixed = Self(seed ^ (u64::from(target_id) << 32));
        Self(mixed.next())
    }

    /// When to send the first probe: anywhere within the first interval.
    pub(super) fn spread(&mut self, interval: Duration) -> Duration {
        interval.mul_f64(self.fraction())
    }

    /// From one probe's start to the next: 90 to 99 % of the interval.
    ///
    /// Never more than the interval, for `fall x interval + timeout` is a promise; the last
    /// hundredth is kept for timers that fire late.
    pub(super) fn shorten(&mut self, interval: Duration) -> Duration {
        interval.mul_f64(0.90 + 0.09 * self.fraction())
    }

    /// Uniform in [0, 1), with the 53 bits that fit.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    #[test]
    fn first_probes_fill_the_interval_evenly() {
        let mut tenths = [0u32; 10];
        for id in 0..10_000 {
            let first = Jitter::new(7, id).spread(INTERVAL);
            assert!(first < INTERVAL);
            tenths[usize::try_from(first.as_millis() / 200).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|count| (800..1200).contains(count)), "{tenths:?}");
    }

    #[test]
    fn rounds_are_shortened_by_at_most_a_tenth_and_never_lengthened() {
        let mut jitter = Jitter::new(1, 2);
        let rounds: Vec<_> = (0..10_000).map(|_| jitter.shorten(INTERVAL)).collect();
        assert!(rounds.iter().all(|round| (Duration::from_millis(1800)..INTERVAL).contains(round)));
        let (min, max) = (rounds.iter().min().unwrap(), rounds.iter().max().unwrap());
        assert!(*max - *min > Duration::from_millis(170), "{min:?} {max:?}");
    }

    #[test]
    fn seeds_and_targets_differ_and_repeat() {
        let first = |seed, id| Jitter::new(seed, id).spread(INTERVAL);
        assert_eq!(first(1, 1), first(1, 1));
        assert_ne!(first(1, 1), first(1, 2));
        assert_ne!(first(1, 1), first(2, 1));
    }
}
