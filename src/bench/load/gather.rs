//! Whether what comes is read at once, or is let gather first.
//!
//! A read costs 10 us and more, most of it for the acknowledgement that the kernel sends in the
//! reader's time; a wake-up costs as much again. Where arrivals come faster than that, a generator
//! that reads each one by itself spends its core on nothing that a figure shows. So it sleeps for
//! a moment ahead of a look, and reads what has gathered.
//!
//! What that costs: texts of one stream that are read together are told with the stamp of the last
//! of them. A short sleep is within the error that is promised of any figure. A long one is taken
//! only where texts come in bursts, closer together than a short one resolves, so that the gaps
//! between them are told as none with either. The wait of an end to be seen, and so of the next
//! request of a closed loop, is counted as the generator's lag.

use std::time::Duration;

/// The short sleep. Its effect on a stamp is at most this long.
const SHORT: Duration = Duration::from_micros(40);
/// The long sleep: a stream of 16 texts in a burst is mostly whole then, and a tenth of the lag at
/// which a run is judged to be the generator's is used up.
const LONG: Duration = Duration::from_micros(120);
/// Arrivals are fast if a look, or a sleep, waits for the next no longer than this.
const FAST: Duration = Duration::from_micros(25);
/// So many in a row are no accident.
const FAST_TURNS_MIN: u32 = 4;
/// With fewer requests under way one reader keeps up as it is.
const FLIGHTS_MIN: usize = 32;
/// Texts come in bursts if a read brings so many of them on average, after a short sleep: they
/// are some 20 us apart then.
const BURST_ENTER: u32 = 4;
/// They still do if a read brings so many after a long one: they are under 40 us apart.
const BURST_STAY: u32 = 8;
/// Reads from which the average is taken.
const READS: u32 = 32;

/// What has been seen of arrivals.
#[derive(Debug, Default)]
pub struct Gather {
    fast_turns: u32,
    bursts: bool,
    reads: u32,
    texts: u32,
}

impl Gather {
    /// A read brought so many texts of one stream.
    pub fn read(&mut self, texts: u32) {
        if texts == 0 {
            return;
        }
        self.reads += 1;
        self.texts = self.texts.saturating_add(texts);
        if self.reads == READS {
            let least = if self.bursts { BURST_STAY } else { BURST_ENTER };
            self.bursts = self.texts >= least * READS;
            (self.reads, self.texts) = (0, 0);
        }
    }

    /// The next arrival was waited for so long, beyond any sleep.
    pub fn waited(&mut self, wait: Duration) {
        self.fast_turns = if wait < FAST { self.fast_turns.saturating_add(1) } else { 0 };
    }

    /// How long to sleep ahead of the next look; zero: not at all. Nothing is to start before
    /// `next`, counted from now, if that is known.
    pub fn sleep(&self, flights: usize, next: Option<Duration>) -> Duration {
        let free = |sleep: Duration| next.is_none_or(|next| next > 2 * sleep);
        if flights < FLIGHTS_MIN || self.fast_turns < FAST_TURNS_MIN || !free(SHORT) {
            Duration::ZERO
        } else if self.bursts && free(LONG) {
            LONG
        } else {
            SHORT
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fast() -> Gather {
        let mut gather = Gather::default();
        (0..FAST_TURNS_MIN).for_each(|_| gather.waited(Duration::ZERO));
        gather
    }

    #[test]
    fn slow_arrivals_are_read_at_once() {
        let mut gather = fast();
        assert_eq!(gather.sleep(FLIGHTS_MIN - 1, None), Duration::ZERO);
        assert_eq!(gather.sleep(FLIGHTS_MIN, None), SHORT);
        assert_eq!(gather.sleep(FLIGHTS_MIN, Some(2 * SHORT)), Duration::ZERO);
        gather.waited(FAST);
        assert_eq!(gather.sleep(FLIGHTS_MIN, None), Duration::ZERO);
    }

    #[test]
    fn only_bursts_are_let_gather_for_long() {
        let mut gather = fast();
        // A read that brings no text is none that counts.
        (0..100).for_each(|_| gather.read(0));
        (0..READS).for_each(|_| gather.read(BURST_ENTER - 1));
        assert_eq!(gather.sleep(64, None), SHORT);
        (0..READS).for_each(|_| gather.read(BURST_ENTER));
        assert_eq!(gather.sleep(64, None), LONG);
        assert_eq!(gather.sleep(64, Some(LONG)), SHORT, "a start is near");
        // After a long sleep as many texts are no burst: they are far apart.
        (0..READS).for_each(|_| gather.read(BURST_STAY));
        assert_eq!(gather.sleep(64, None), LONG);
        (0..READS).for_each(|_| gather.read(BURST_STAY - 1));
        assert_eq!(gather.sleep(64, None), SHORT);
    }
}
