//! Time as the rest of the program sees it: nanoseconds since an arbitrary start, handed in from
//! outside.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment: nanoseconds since some start that only its clock knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// Later than every moment that a clock will ever tell.
    pub const FAR: Instant = Instant(u64::MAX);

    /// Time since `earlier`; zero if that is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whole microseconds since `earlier`; zero if that is later.
    pub fn micros_since(self, earlier: Instant) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// Where moments come from: the machine, or a test.
pub trait Clock {
    /// The present moment.
    fn now(&self) -> Instant;
}

/// The machine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    start: std::time::Instant,
}

impl MonotonicClock {
    /// A clock whose moments compare with those of every copy of it.
    pub fn new() -> MonotonicClock {
        MonotonicClock { start: std::time::Instant::now() }
    }
}

impl Default for MonotonicClock {
    fn default() -> MonotonicClock {
        MonotonicClock::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Instant {
        // One is added so that no moment equals `Instant::default()`, which states use for "never
        // yet".
        Instant(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX - 2) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Instant(5).since(Instant(7)), Duration::ZERO);
        assert_eq!(Instant(7_000).micros_since(Instant(5_000)), 2);
        assert_eq!(Instant(1) + Duration::MAX, Instant::FAR);
    }

    #[test]
    fn monotonic() {
        let clock = MonotonicClock::new();
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(first > Instant::default());
    }
}
