//! A run's start-up: what is dropped of it besides the warm-up that was asked for, and what is said
//! of it.
//!
//! `steady::detect` tells where the rest of a run is the calmest; that alone is no start-up. A
//! stall in the first half of a run is cut by it too, and that is what a benchmark is for. So only
//! what stands out from the very first request on is dropped, and only as long as it does, tenth
//! by tenth of what was found: a stall later on is kept, with all that came before it.

use serde_json::json;

use crate::bench::record::Record;
use crate::bench::sample::{Ended, Recording, Sample, ms};
use crate::bench::statistics::steady::{self, Steady};

/// A part stands out if one of its requests is slower than one of the rest in 70 of 100 cases (or
/// in under 30): a shift of three quarters of a standard deviation.
const STANDS_OUT: f64 = 0.2;
/// By chance alone that probability of n requests has a standard deviation of 1 / sqrt(12 n) (of
/// ranks, Mann and Whitney, 1947); three of them do not happen.
const DEVIATIONS: f64 = 3.0;
/// Parts of what was found, and their least size.
const PARTS: usize = 10;
const PART_MIN: usize = 20;
/// Found starts that are longer than this share of a run are told, if nothing was dropped.
const TELL_SHARE: usize = 10;

/// What became of a run's start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settled {
    verdict: &'static str,
    /// Where the samples become calm.
    from: Option<usize>,
    /// Of how many.
    all: usize,
    dropped: Option<Dropped>,
}

/// What was dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Dropped {
    requests: usize,
    seconds: f64,
    /// Medians of the time from the write to the end, of what was dropped and of what was kept.
    median_ms: f64,
    kept_median_ms: f64,
}

/// Looks for a start-up among the requests that count, and with `drop` makes it a part of the
/// warm-up.
pub fn settle(recording: &mut Recording, drop: bool) -> Settled {
    let counted: Vec<usize> =
        (0..recording.samples.len()).filter(|&at| recording.samples[at].counts()).collect();
    let series: Vec<f64> = counted.iter().map(|&at| recording.samples[at].service_ms()).collect();
    let (verdict, from) = match steady::detect(&series) {
        Steady::From(cut) => ("steady", Some(cut)),
        Steady::Never => ("never", None),
        Steady::TooFew => ("too few", None),
    };
    let mut settled = Settled { verdict, from, all: series.len(), dropped: None };
    let requests = start_up(&series, from.filter(|_| drop).unwrap_or(0));
    if requests > 0 {
        let (start, kept) = series.split_at(requests);
        let end = counted[requests];
        let seconds = |at: usize| recording.samples[at].intended.since(recording.began);
        settled.dropped = Some(Dropped {
            requests,
            seconds: ms(seconds(end)) / 1e3 - ms(seconds(counted[0])) / 1e3,
            median_ms: median(start),
            kept_median_ms: median(kept),
        });
        recording.samples[..end].iter_mut().for_each(|sample| sample.warmup = true);
        count_again(recording);
    }
    settled
}

/// How many of the first `cut` are a start-up.
fn start_up(series: &[f64], cut: usize) -> usize {
    let mut rest = series[cut..].to_vec();
    rest.sort_unstable_by(f64::total_cmp);
    let size = (cut / PARTS).max(PART_MIN);
    let (mut found, mut direction) = (0, 0.0);
    for part in series[..cut].chunks(size) {
        let shift = slower(part, &rest) - 0.5;
        let chance = DEVIATIONS / (12.0 * part.len() as f64).sqrt();
        if shift.abs() < STANDS_OUT.max(chance) || shift * direction < 0.0 {
            break;
        }
        direction = shift;
        found += part.len();
    }
    found
}

/// The probability that one of `part` is over one of `rest`, which is sorted; equal ones count
/// half.
fn slower(part: &[f64], rest: &[f64]) -> f64 {
    let over = |value: &f64| {
        let below = rest.partition_point(|other| other < value);
        let up_to = rest.partition_point(|other| other <= value);
        (below + up_to) as f64 / 2.0 / rest.len() as f64
    };
    part.iter().map(over).sum::<f64>() / part.len() as f64
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// Counts of what is left. Failures stay, whenever they were.
fn count_again(recording: &mut Recording) {
    let left = || recording.samples.iter().filter(|sample| !sample.warmup);
    let of = |ended: Ended| left().filter(|sample| sample.ended == ended).count() as u64;
    let (ok, cancelled) = (of(Ended::Ok), of(Ended::Cancelled));
    let late = left().filter(|sample| sample.queue_ms() > 1.0).count() as u64;
    let tokens = left().map(|sample| u64::from(sample.tokens)).sum();
    let first = left().map(|sample| sample.intended).min().unwrap_or_default();
    let last = left().map(|sample: &Sample| sample.end).max().unwrap_or_default();
    let report = &mut recording.report;
    (report.ok, report.cancelled, report.late, report.tokens) = (ok, cancelled, late, tokens);
    report.wall_s = last.since(first).as_secs_f64();
}

impl Settled {
    /// Says it in the result.
    pub fn tell(&self, warmup: u64, record: &mut Record, warnings: &mut Vec<String>) {
        record.set("warmup", warmup);
        let dropped = self.dropped.map(|dropped| {
            json!({
                "requests": dropped.requests, "for_s": dropped.seconds,
                "service_ms_p50": dropped.median_ms, "kept_service_ms_p50": dropped.kept_median_ms,
                "why": self.why(),
            })
        });
        record.set(
            "settled",
            json!({ "verdict": self.verdict, "from_request": self.from, "dropped": dropped }),
        );
        match (self.verdict, self.from) {
            ("never", _) => warnings.push(
                "the run did not come to rest: its second half differs from its first; run longer"
                    .to_owned(),
            ),
            (_, Some(cut)) if cut * TELL_SHARE > self.all && self.dropped.is_none() => {
                warnings.push(format!(
                    "the first {cut} of {} requests differ from the rest, and not as a start-up \
                     does; they are kept, and --warmup N drops them",
                    self.all
                ));
            }
            _ => {}
        }
    }

    /// Why some were dropped, in a sentence; None: none were.
    pub fn why(&self) -> Option<String> {
        let Dropped { requests, seconds, median_ms, kept_median_ms } = self.dropped?;
        Some(format!(
            "the first {requests} of {} requests ({seconds:.2} s) were a start-up and are left \
             out: their median was {median_ms:.2} ms, that of the rest is {kept_median_ms:.2} ms \
             (--warmup N says how many instead)",
            self.all
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample::tests::recording;
    use crate::prng::Prng;

    /// 1,000 requests of 20 ms and a little noise, with `more` added.
    fn run(seed: u64, more: impl Fn(u64) -> u64) -> Recording {
        let mut prng = Prng::new(seed);
        let requests: Vec<(u64, &[u64])> =
            (0..1_000).map(|n| (18 + prng.below(5) + more(n), &[][..])).collect();
        recording(&requests)
    }

    #[test]
    fn a_start_up_is_dropped_and_said() {
        let mut recording = run(1, |n| if n < 150 { (150 - n) / 3 } else { 0 });
        recording.report.wall_s = 99.0;
        let settled = settle(&mut recording, true);
        let dropped = settled.dropped.unwrap();
        assert!((100..=200).contains(&dropped.requests), "{settled:?}");
        let left = recording.samples.iter().filter(|sample| sample.counts()).count();
        assert_eq!(left, 1_000 - dropped.requests);
        assert_eq!(recording.report.ok, left as u64);
        assert!(recording.report.wall_s < 20.0, "{}", recording.report.wall_s);
        let (mut record, mut warnings) = (Record::default(), Vec::new());
        settled.tell(5, &mut record, &mut warnings);
        assert_eq!(record.figures["settled"]["dropped"]["requests"], dropped.requests);
        assert!(settled.why().unwrap().contains("were a start-up"), "{:?}", settled.why());
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn what_is_asked_to_stay_stays() {
        let mut recording = run(1, |n| if n < 150 { (150 - n) / 3 } else { 0 });
        let settled = settle(&mut recording, false);
        assert_eq!((settled.dropped, settled.why()), (None, None));
        assert!(recording.samples.iter().all(Sample::counts));
        let (mut record, mut warnings) = (Record::default(), Vec::new());
        settled.tell(0, &mut record, &mut warnings);
        assert!(warnings[0].contains("--warmup N drops them"), "{warnings:?}");
    }

    #[test]
    fn a_stall_is_no_start_up() {
        for seed in 0..50 {
            // Slow from request 100 to 250, at rest before and after: all of it is kept.
            let mut stalled = run(seed, |n| if (100..250).contains(&n) { 200 } else { 0 });
            let settled = settle(&mut stalled, true);
            assert_eq!(settled.dropped, None, "seed {seed}");
            // Behind a start-up too.
            let more = |n| if n < 40 || (100..250).contains(&n) { 200 } else { 0 };
            let dropped = settle(&mut run(seed, more), true).dropped.unwrap();
            assert!((20..100).contains(&dropped.requests), "seed {seed}: {dropped:?}");
            let steady = settle(&mut run(seed, |_| 0), true);
            assert_eq!(steady.dropped, None, "seed {seed}");
        }
    }

    #[test]
    fn failures_in_a_start_up_are_not_forgotten() {
        let mut recording = run(1, |n| if n < 150 { 50 } else { 0 });
        recording.samples[3].ended = Ended::Failed;
        recording.report.errors.insert("HTTP 503".to_owned(), 1);
        assert!(settle(&mut recording, true).dropped.is_some());
        assert_eq!(recording.report.error_count(), 1);
    }
}
