//! A bound for how fast bytes go to or come from a remote, shared by all threads of a command.
//!
//! Whoever has moved bytes waits until the bound would have let them through: a token bucket that
//! is run into debt, so that no thread has to wait before it knows how much it has. What is not
//! read meanwhile fills the socket, and TCP slows the sender down.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::hash::PIECE_BYTES;

/// A bound, in bytes a second.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: u64,
    /// When all that was moved so far has been paid for.
    paid: Mutex<Instant>,
}

/// What was not used in so long is made up for, and no more: a pause is followed by no flood.
const BURST: Duration = Duration::from_millis(100);

impl Pace {
    /// So many bytes a second, at least one.
    pub fn new(bytes_per_s: u64) -> Pace {
        Pace { bytes_per_s: bytes_per_s.max(1), paid: Mutex::new(Instant::now()) }
    }

    /// Moved at once, so that the bytes go evenly: a sixteenth of a second's.
    pub fn piece_bytes(&self) -> usize {
        usize::try_from(self.bytes_per_s / 16).unwrap_or(usize::MAX).clamp(1 << 10, PIECE_BYTES)
    }

    /// Waits as long as bytes that were moved just now ask for.
    pub fn moved(&self, bytes: u64) {
        let mut paid = self.paid.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        *paid = charge(*paid, now, bytes, self.bytes_per_s);
        let wait = paid.saturating_duration_since(now);
        drop(paid);
        std::thread::sleep(wait);
    }
}

fn charge(paid: Instant, now: Instant, bytes: u64, bytes_per_s: u64) -> Instant {
    let from = now.checked_sub(BURST).map_or(paid, |least| paid.max(least));
    from + Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_the_time_that_the_bound_gives_them() {
        let start = Instant::now() + Duration::from_secs(10);
        let ms = |ms: u64| start + Duration::from_millis(ms);
        // 1 kB/s: two threads with 500 bytes each, one after the other, wait 0.5 and 1 s.
        let first = charge(start, start, 500, 1000);
        assert_eq!(first, ms(500));
        assert_eq!(charge(first, ms(0), 500, 1000), ms(1000));
        // Who was slower than the bound does not wait; a long pause gives 0.1 s ahead.
        assert_eq!(charge(ms(0), ms(60), 50, 1000), ms(50));
        assert_eq!(charge(ms(0), ms(5000), 500, 1000), ms(5400));
    }
}
