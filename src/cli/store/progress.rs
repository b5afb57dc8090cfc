//! Shows how far a transfer is, on a terminal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::size;
use crate::store::hash::Counters;

/// Between two lines; the first comes after it, so that what is quick shows nothing.
const INTERVAL: Duration = Duration::from_millis(250);

/// Does something, and shows meanwhile how far it is, if stderr is a terminal and nobody wants
/// quiet.
pub fn show<T>(counters: &Counters, is_quiet: bool, work: impl FnOnce() -> T) -> T {
    if is_quiet || !std::io::stderr().is_terminal() {
        return work();
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let shown = scope.spawn(|| {
            let started = Instant::now();
            let mut has_shown = false;
            while !is_over.load(Ordering::Acquire) {
                thread::park_timeout(INTERVAL);
                if !is_over.load(Ordering::Acquire) && started.elapsed() >= INTERVAL {
                    eprint!("\r{}\x1b[K", line(counters, started.elapsed()));
                    has_shown = true;
                }
            }
            if has_shown {
                eprint!("\r\x1b[K");
            }
        });
        let result = work();
        is_over.store(true, Ordering::Release);
        shown.thread().unpark();
        result
    })
}

/// `45 %, 1.2 GiB of 2.6 GiB (512 MiB were there), 410 MiB/s, 4 s left`.
fn line(counters: &Counters, elapsed: Duration) -> String {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (total, reused) = (load(&counters.total), load(&counters.reused));
    // What is hashed ahead counts until it turns out that there is more to do.
    let done = load(&counters.done).min(total);
    let rate = done.saturating_sub(reused) as f64 / elapsed.as_secs_f64().max(1e-3);
    let percent =
        if total == 0 { 100 } else { (u128::from(done) * 100 / u128::from(total)) as u64 };
    let was_there =
        if reused > 0 { format!(" ({} were there)", size(reused)) } else { String::new() };
    let left = match rate {
        rate if rate >= 1.0 => format!(", {} left", duration((total - done) as f64 / rate)),
        _ => String::new(),
    };
    format!(
        "{percent} %, {} of {}{was_there}, {}/s{left}",
        size(done),
        size(total),
        size(rate as u64)
    )
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6000 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_bytes_rate_and_time() {
        let counters = Counters::default();
        counters.total.store(4 << 30, Ordering::Relaxed);
        counters.done.store(2 << 30, Ordering::Relaxed);
        counters.reused.store(1 << 30, Ordering::Relaxed);
        let line = line(&counters, Duration::from_secs(2));
        assert_eq!(line, "50 %, 2.0 GiB of 4.0 GiB (1.0 GiB were there), 512 MiB/s, 4 s left");
        let empty = super::line(&Counters::default(), Duration::ZERO);
        assert_eq!(empty, "100 %, 0 B of 0 B, 0 B/s");
        assert_eq!((duration(150.0), duration(7260.0)), ("3 min".into(), "2 h 1 min".into()));
    }
}
