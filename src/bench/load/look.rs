//! What the generator's own lateness does to the times between texts.
//!
//! The kernel stamps what comes, so a late read does not move a single text. But of texts of one
//! stream that are read together only the last has a stamp: those before it are told with it, and
//! the gaps between them are lost. A server that writes several at once looks the same, so a gap
//! counts as blurred only if it may have been long: what is read has come since the generator
//! looked last, or, where it slept, no earlier than what woke it.

use std::time::Duration;

use crate::clock::Instant;

/// A gap that is lost this way counts if it may have been longer than this: what is promised of a
/// percentile of 100 ms.
pub const BLUR_MAX: Duration = Duration::from_millis(1);
/// A first text that is told with a later one's stamp counts if that may be off by more, and by
/// more than one part in so many of the time to it.
pub const BLUR_SHARE: u32 = 100;

/// A wait that takes longer than this has slept, and nothing was there when it began.
const SLEPT: Duration = Duration::from_micros(50);

/// When the generator looked for what had come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// The look before this one.
    previous: Instant,
    /// The present one.
    now: Instant,
    slept: bool,
    /// How late it woke up: the most by which what was read since had come before it.
    woke_late: Duration,
}

impl Look {
    /// A wait that began at `from` has ended.
    pub fn ended(&mut self, from: Instant, now: Instant) {
        let slept = now.since(from) > SLEPT;
        *self = Look { previous: self.now, now, slept, woke_late: Duration::ZERO };
    }

    /// How much earlier than at `arrival`, by the kernel's stamp of the last of what is read now,
    /// the first of it can have come.
    pub fn reach(&mut self, arrival: Instant) -> Duration {
        if !self.slept {
            return arrival.since(self.previous);
        }
        self.woke_late = self.woke_late.max(self.now.since(arrival));
        self.woke_late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_has_come_since_the_last_look() {
        let us = |us: u64| Instant(us * 1_000);
        let cases = [
            // The last look at 1,000 us, the wait from 1,200 to 1,210: it did not sleep.
            ("busy", 1_200, 1_210, 1_205, 205),
            ("busy, and it came during the reads", 1_200, 1_210, 1_250, 250),
            // From 1,200 to 9,000: asleep until something came.
            ("asleep, woken at once", 1_200, 9_000, 8_980, 20),
            ("asleep, woken late", 1_200, 9_000, 4_000, 5_000),
            ("asleep, and it came after", 1_200, 9_000, 9_010, 0),
        ];
        for (name, from, woke, arrival, reach) in cases {
            let mut look = Look::default();
            look.ended(us(999), us(1_000));
            look.ended(us(from), us(woke));
            assert_eq!(look.reach(us(arrival)), Duration::from_micros(reach), "{name}");
        }
        // What was read first tells how late the others may be.
        let mut look = Look::default();
        look.ended(us(0), us(9_000));
        look.reach(us(4_000));
        assert_eq!(look.reach(us(8_999)), Duration::from_micros(5_000));
        look.ended(us(9_001), us(20_000));
        assert_eq!(look.reach(us(19_999)), Duration::from_micros(1));
    }
}
