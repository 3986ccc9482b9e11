//! The data path's ticks as times of day and seconds.

use std::fmt;

use jiff::Timestamp;
use lb_common::clock::Ticks;
use serde::{Serialize, Serializer};

/// A moment, to the second. Serialises and displays as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(Timestamp);

impl Time {
    /// The whole second that holds this moment.
    #[must_use]
    pub fn new(moment: Timestamp) -> Self {
        Self(Timestamp::from_second(moment.as_second()).unwrap_or(moment))
    }

    /// Seconds since 1970, as the maps keep them; zero means never.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Option<Self> {
        if seconds == 0 {
            return None;
        }
        Timestamp::from_second(i64::try_from(seconds).ok()?).ok().map(Self)
    }

    /// Seconds from this moment to a later one; zero if it is not later.
    #[must_use]
    pub fn seconds_until(self, later: Self) -> u64 {
        u64::try_from(later.0.as_second().saturating_sub(self.0.as_second())).unwrap_or(0)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The data path's time and the wall's, read at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The data path's time.
    pub now: Ticks,
    /// The wall's.
    pub wall: Timestamp,
    hz: u64,
}

impl Clock {
    /// `jiffies` of the kernel at `wall`, at `hz` (not zero) jiffies a second.
    #[must_use]
    pub const fn new(jiffies: u64, hz: u64, wall: Timestamp) -> Self {
        Self { now: Ticks::from_jiffies(jiffies), wall, hz }
    }

    /// The wall's time, to the second.
    #[must_use]
    pub fn time(&self) -> Time {
        Time::new(self.wall)
    }

    /// The time of day at a tick, before or after now.
    #[must_use]
    pub fn at(&self, tick: Ticks) -> Time {
        let millis = |span: Ticks| i64::try_from(span.as_millis(self.hz)).unwrap_or(i64::MAX);
        let offset = millis(tick.since(self.now)).saturating_sub(millis(self.now.since(tick)));
        let moment = self.wall.as_millisecond().saturating_add(offset);
        Time::new(Timestamp::from_millisecond(moment).unwrap_or(self.wall))
    }

    /// Whole seconds since a tick; zero if it is ahead.
    #[must_use]
    pub const fn seconds_since(&self, tick: Ticks) -> u64 {
        self.now.since(tick).as_millis(self.hz) / 1000
    }

    /// Seconds until a tick, rounded up; zero if it is past.
    #[must_use]
    pub const fn seconds_until(&self, tick: Ticks) -> u64 {
        tick.since(self.now).as_millis(self.hz).div_ceil(1000)
    }

    /// A span in seconds, rounded to the nearest.
    #[must_use]
    pub const fn seconds(&self, span: Ticks) -> u64 {
        (span.as_millis(self.hz) + 500) / 1000
    }

    /// A span in seconds, rounded up.
    #[must_use]
    pub const fn seconds_at_most(&self, span: Ticks) -> u64 {
        span.as_millis(self.hz).div_ceil(1000)
    }

    /// A number of jiffies in whole seconds.
    #[must_use]
    pub const fn seconds_of_jiffies(&self, jiffies: u64) -> u64 {
        jiffies / self.hz
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_has_a_time_of_day_before_and_after_now() {
        let clock = Clock::new(64_000_000, 1000, "2026-03-01T03:00:00.9Z".parse().unwrap());
        assert_eq!(clock.at(clock.now).to_string(), "2026-03-01T03:00:00Z");
        // 1,000 ticks of 64 ms are 64 s.
        assert_eq!(clock.at(Ticks(clock.now.0 + 1000)).to_string(), "2026-03-01T03:01:04Z");
        assert_eq!(clock.at(Ticks(clock.now.0 - 1000)).to_string(), "2026-03-01T02:58:56Z");
        assert_eq!(clock.seconds_since(Ticks(clock.now.0 - 1000)), 64);
        assert_eq!(clock.seconds_since(Ticks(clock.now.0 + 1000)), 0);
        assert_eq!(clock.seconds_until(Ticks(clock.now.0 + 1)), 1);
        assert_eq!(clock.seconds_until(Ticks(clock.now.0 - 1)), 0);
    }

    #[test]
    fn zero_seconds_since_1970_is_never() {
        assert_eq!(Time::from_unix(0), None);
        assert_eq!(Time::from_unix(1).map(|time| time.to_string()).as_deref(), Some("1970-01-01T00:00:01Z"));
        assert_eq!(Time::from_unix(u64::MAX), None);
    }
}
