//! The load generator: so many requests, so many at once or so many a second, over either protocol.
//!
//! Closed loop: the next request starts when one ends. Open loop: the moments at which requests
//! should start are fixed beforehand, and times count from them, also when a request had to wait
//! for a place; so a server that stalls cannot hide it by slowing the generator (coordinated
//! omission).
//!
//! Each core of the generator is a thread with its own sockets and its share of the numbers; they
//! share counters and nothing else.

mod binary;
mod connection;
mod core;
mod flight;
mod gather;
mod http;
mod look;

use std::sync::atomic::Ordering;
use std::time::Duration;

use self::core::Core;
use self::flight::Shared;
use super::plan::{Plan, Watcher};
use super::sample::{Recording, Sample};
use crate::clock::{Clock, Instant, MonotonicClock};

const WATCH_EVERY: Duration = Duration::from_millis(100);

/// Does a run.
///
/// # Errors
/// It could not be done at all: no connection, or no descriptor. Requests that fail are in the
/// recording.
pub fn run(plan: &Plan<'_>, watcher: &mut dyn Watcher) -> Result<Recording, String> {
    let clock = MonotonicClock::new();
    let shared = Shared::default();
    let began = clock.now();
    let parts = if plan.cores <= 1 {
        vec![Core::open(plan, 0, began, clock, &shared, Some(watcher))?.run()]
    } else {
        run_on_many(plan, watcher, clock, &shared)
    };
    let mut whole = Recording { began, ..Recording::default() };
    let mut span: Option<(Instant, Instant)> = None;
    for part in parts {
        let (recording, of_part) = part?;
        span = match (span, of_part) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
        whole.merge(recording);
    }
    whole.samples.sort_by_key(|sample: &Sample| (sample.intended, sample.number));
    whole.report.wall_s = span.map_or(0.0, |(since, end)| end.since(since).as_secs_f64());
    whole.report.tokens_source = if plan.keep { whole.tokens_source() } else { "server" };
    whole.interrupted = shared.interrupted().is_some();
    whole.gave_up = shared.stop.load(Ordering::Relaxed) && !whole.interrupted;
    Ok(whole)
}

type Part = Result<(Recording, Option<(Instant, Instant)>), String>;

fn run_on_many(
    plan: &Plan<'_>,
    watcher: &mut dyn Watcher,
    clock: MonotonicClock,
    shared: &Shared,
) -> Vec<Part> {
    // All begin together, once every thread is there.
    let began = clock.now() + Duration::from_millis(20);
    let cpus = core_affinity::get_core_ids().unwrap_or_default();
    std::thread::scope(|scope| {
        let start = |index: usize| {
            let cpu = cpus.get(index).copied().filter(|_| cpus.len() >= plan.cores);
            scope.spawn(move || {
                if let Some(cpu) = cpu {
                    core_affinity::set_for_current(cpu);
                }
                let part = Core::open(plan, index, began, clock, shared, None)
                    .and_then(|core: Core<'_>| core.run());
                shared.over.fetch_add(1, Ordering::Release);
                part
            })
        };
        let threads: Vec<_> = (0..plan.cores).map(start).collect();
        while shared.over.load(Ordering::Acquire) < plan.cores as u64 {
            std::thread::sleep(WATCH_EVERY);
            watcher.progress(shared.progress());
            if watcher.interrupts() {
                shared.interrupt(clock.now());
            }
        }
        let lost = |_| Err("a thread of the load generator ended early".to_owned());
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
    })
}
