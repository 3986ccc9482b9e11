//! The data path's time in terms of the wall clock.
//!
//! The tables count in ticks of 64 jiffies ([`Ticks`]); how many jiffies make a second is a choice of who built the
//! kernel (`CONFIG_HZ`), so it is measured.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use jiff::{SignedDuration, Timestamp};
use lb_common::clock::{JIFFIES_SHIFT, Ticks};

use super::{Kernel, Maps};

/// The values that `CONFIG_HZ` can have (kernel/Kconfig.hz).
pub const POSSIBLE_HZ: [u64; 4] = [100, 250, 300, 1000];
/// How long the jiffies are counted.
const SPAN: Duration = Duration::from_millis(50);
const ATTEMPTS: u32 = 12;

/// One moment on both clocks, and the speed of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Jiffies in a second.
    pub hz: u64,
    /// The kernel's `jiffies_64` at that moment.
    pub jiffies: u64,
    /// That moment on the wall clock.
    pub at: Timestamp,
}

impl Clock {
    /// Reads both clocks; the speed is what the daemon wrote into the control map, or measured.
    ///
    /// # Errors
    /// The clock program could not be run, or the measurements made no sense.
    pub fn read(maps: &Maps) -> anyhow::Result<Self> {
        let written = maps.control().hz.load();
        let hz = if POSSIBLE_HZ.contains(&written) { written } else { measure_hz(&*maps.kernel)? };
        Ok(Self { hz, jiffies: maps.kernel.jiffies()?, at: Timestamp::now() })
    }

    /// The tick of the moment of reading.
    #[must_use]
    pub const fn now(&self) -> Ticks {
        Ticks::from_jiffies(self.jiffies)
    }

    /// When a tick began, by the wall clock: past or to come within 2^31 ticks.
    #[must_use]
    pub fn instant_of(&self, ticks: Ticks) -> Timestamp {
        let ahead = i64::from(ticks.0.wrapping_sub(self.now().0).cast_signed());
        let into_tick = i64::try_from(self.jiffies & ((1 << JIFFIES_SHIFT) - 1)).unwrap_or(0);
        let jiffies = (ahead << JIFFIES_SHIFT) - into_tick;
        let hz = i64::try_from(self.hz).unwrap_or(i64::MAX).max(1);
        // Below 2^38 jiffies: no overflow in microseconds.
        let span = SignedDuration::from_micros(jiffies * 1_000_000 / hz);
        self.at.saturating_add(span).unwrap_or(self.at)
    }

    /// A span of ticks.
    #[must_use]
    pub const fn duration_of(&self, span: Ticks) -> Duration {
        let hz = if self.hz == 0 { 1 } else { self.hz };
        Duration::from_millis(span.as_millis(hz))
    }

    /// The fewest ticks that last this long.
    #[must_use]
    pub fn ticks_of(&self, span: Duration) -> Ticks {
        let milliseconds = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        // More than fits a span of ticks, and small enough to be multiplied by HZ.
        Ticks::span_of_millis(milliseconds.min(1 << 48), self.hz)
    }

    /// How long after `earlier` the moment of reading is; zero if it is not after.
    #[must_use]
    pub const fn since(&self, earlier: Ticks) -> Duration {
        self.duration_of(self.now().since(earlier))
    }

    /// How long it is until `later`; zero if that is past.
    #[must_use]
    pub const fn until(&self, later: Ticks) -> Duration {
        self.duration_of(later.since(self.now()))
    }
}

/// Counts the kernel's jiffies against the monotonic clock.
///
/// # Errors
/// The clock program could not be run, or no count came near a value that `CONFIG_HZ` can have.
pub fn measure_hz(kernel: &dyn Kernel) -> anyhow::Result<u64> {
    let mut rates = Vec::new();
    for attempt in 1..=ATTEMPTS {
        let rate = rate(kernel, SPAN * attempt).context("cannot read the kernel's jiffies")?;
        if let Some(hz) = nearest(rate) {
            return Ok(hz);
        }
        rates.push(rate);
    }
    let counted: Vec<String> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
    bail!(
        "the kernel's clock ticks {} times a second by {ATTEMPTS} counts, and no kernel is built so: \
         the machine is too busy to count, try again",
        counted.join(", ")
    )
}

/// The value of `CONFIG_HZ` that a count means, if it is within 4 % of one.
fn nearest(rate: f64) -> Option<u64> {
    POSSIBLE_HZ.into_iter().find(|hz| {
        let hz = u32::try_from(*hz).map_or(f64::NAN, f64::from);
        (rate / hz - 1.0).abs() < 0.04
    })
}

/// Jiffies in a second, counted from one change of theirs to another.
fn rate(kernel: &dyn Kernel, span: Duration) -> anyhow::Result<f64> {
    let (first, began) = edge(kernel)?;
    sleep(span);
    let (last, ended) = edge(kernel)?;
    let counted = u32::try_from(last.saturating_sub(first)).map_or(f64::NAN, f64::from);
    Ok(counted / ended.duration_since(began).as_secs_f64())
}

/// The next change of the jiffies, and when it was seen.
fn edge(kernel: &dyn Kernel) -> anyhow::Result<(u64, Instant)> {
    let began = Instant::now();
    let first = kernel.jiffies()?;
    loop {
        let now = kernel.jiffies()?;
        let seen = Instant::now();
        if now != first {
            return Ok((now, seen));
        }
        if seen.duration_since(began) > Duration::from_secs(1) {
            bail!("they stand still");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dataplane::{CountersOf, fake};
    use lb_common::maps::Traffic;

    fn clock(hz: u64, jiffies: u64) -> Clock {
        Clock { hz, jiffies, at: Timestamp::from_second(1_800_000_000).unwrap() }
    }

    #[test]
    fn a_tick_ahead_is_64_jiffies_later() {
        let clock = clock(250, 64 * 1000);
        let ahead = |span| clock.instant_of(Ticks(1000).plus(Ticks(span)));
        assert_eq!(ahead(0), clock.at);
        assert_eq!(ahead(1), clock.at + SignedDuration::from_millis(256));
        assert_eq!(clock.instant_of(Ticks(0)), clock.at - SignedDuration::from_secs(256));
    }

    #[test]
    fn the_tick_of_now_began_in_the_past() {
        let clock = clock(1000, 64 * 7 + 63);
        assert_eq!(clock.instant_of(clock.now()), clock.at - SignedDuration::from_millis(63));
    }

    #[test]
    fn spans_before_and_after_now_are_told_apart() {
        let clock = clock(1000, 64 * 100);
        assert_eq!(clock.since(Ticks(90)), Duration::from_millis(640));
        assert_eq!(clock.until(Ticks(90)), Duration::ZERO);
        assert_eq!(clock.until(Ticks(110)), Duration::from_millis(640));
    }

    proptest! {
        #[test]
        fn a_span_in_ticks_is_never_shorter_and_at_most_a_tick_longer(
            hz in prop::sample::select(POSSIBLE_HZ.to_vec()), milliseconds in 1u64..1 << 30,
        ) {
            let clock = clock(hz, 0);
            let span = Duration::from_millis(milliseconds);
            let back = clock.duration_of(clock.ticks_of(span));
            prop_assert!(back + Duration::from_millis(1) >= span && back <= span + Duration::from_millis(640));
        }

        #[test]
        fn no_tick_and_no_time_panics(hz in any::<u64>(), jiffies in any::<u64>(), ticks in any::<u32>()) {
            let clock = clock(hz, jiffies);
            let instant = clock.instant_of(Ticks(ticks));
            prop_assert!(instant >= Timestamp::MIN);
        }
    }

    #[test]
    fn counts_mean_the_value_they_are_near() {
        assert_eq!(nearest(248.0), Some(250));
        assert_eq!(nearest(303.0), Some(300));
        assert_eq!(nearest(97.0), Some(100));
        assert_eq!(nearest(1030.0), Some(1000));
        assert_eq!(nearest(275.0), None);
        assert_eq!(nearest(f64::NAN), None);
    }

    /// Jiffies at some speed, from the monotonic clock.
    struct Ticking(Instant, u128);

    impl Kernel for Ticking {
        fn jiffies(&self) -> anyhow::Result<u64> {
            Ok(u64::try_from(self.0.elapsed().as_nanos() * self.1 / 1_000_000_000)?)
        }
        fn set_arm(&self, _: u8, _: u32) -> anyhow::Result<()> {
            Ok(())
        }

        fn set_schedule(&self, _: u16, _: &[u64]) -> anyhow::Result<()> {
            bail!("none")
        }
        fn schedule(&self, _: u16) -> anyhow::Result<Option<Vec<u64>>> {
            bail!("none")
        }
        fn reasons(&self) -> anyhow::Result<Vec<u64>> {
            bail!("none")
        }
        fn service_traffic(&self, _: u16) -> anyhow::Result<Traffic> {
            bail!("none")
        }
        fn server_traffic(&self, _: u16) -> anyhow::Result<Traffic> {
            bail!("none")
        }
        fn clear_traffic(&self, _: CountersOf) -> anyhow::Result<()> {
            bail!("none")
        }
    }

    #[test]
    fn every_speed_is_measured_right() {
        for hz in POSSIBLE_HZ {
            assert_eq!(measure_hz(&Ticking(Instant::now(), hz.into())).unwrap(), hz);
        }
    }

    #[test]
    fn a_clock_that_stands_still_is_an_error() {
        let error = measure_hz(&fake::FakeKernel::default()).unwrap_err();
        assert!(format!("{error:#}").contains("they stand still"), "{error:#}");
    }

    #[test]
    fn the_speed_that_the_daemon_wrote_is_believed() {
        let maps = fake::maps(fake::FakeKernel::default());
        assert_eq!(Clock::read(&maps).unwrap().hz, 1000);
    }
}
