//! A run's times second by second, for a log of histograms that viewers draw over time.

use std::collections::BTreeMap;
use std::time::Duration;

use super::sample::{Recording, Sample};
use crate::clock::Instant;
use crate::metrics::durations::Durations;

/// The requests that count, by interval (from 0) and kind of time. A time is in the interval in
/// which it was known: a request's at its end, its first text's and each gap's when the text came.
pub fn of(recording: &Recording, length: Duration) -> BTreeMap<(u64, &'static str), Durations> {
    let mut found: BTreeMap<(u64, &'static str), Durations> = BTreeMap::new();
    let mut put = |at: Instant, kind, ms: f64| {
        let index = at.since(recording.began).as_nanos() / length.as_nanos().max(1);
        found.entry((index as u64, kind)).or_default().record((ms * 1e3).round() as u64);
    };
    for sample in recording.samples.iter().filter(|sample| sample.counts()) {
        put(sample.end, "queue", sample.queue_ms());
        put(sample.end, "e2e", sample.e2e_ms());
        put(sample.end, "service", sample.service_ms());
        put_some(&mut put, sample.end, "tpot", sample.tpot_ms());
        let Some(first) = sample.first else { continue };
        put_some(&mut put, first, "ttft", sample.ttft_ms());
        put_some(&mut put, first, "ttft_service", sample.ttft_service_ms());
        gaps(recording, sample, first, &mut put);
    }
    found
}

fn put_some(
    put: &mut impl FnMut(Instant, &'static str, f64),
    at: Instant,
    kind: &'static str,
    ms: Option<f64>,
) {
    if let Some(ms) = ms {
        put(at, kind, ms);
    }
}

fn gaps(
    recording: &Recording,
    sample: &Sample,
    first: Instant,
    put: &mut impl FnMut(Instant, &'static str, f64),
) {
    let mut since_first_ms = 0.0;
    for gap in recording.gaps_of(sample).iter().map(|gap| f64::from(*gap)) {
        since_first_ms += gap;
        put(first + Duration::from_secs_f64(since_first_ms / 1e3), "itl", gap);
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::recording;
    use super::*;

    #[test]
    fn each_time_is_where_it_was_known() {
        // One request: first text after 600 ms, then after 300 and 400 more, so it ends at 1.3 s.
        let found = of(&recording(&[(600, &[300, 400])]), Duration::from_secs(1));
        let kinds: Vec<(u64, &str, u64)> =
            found.iter().map(|((index, kind), all)| (*index, *kind, all.count())).collect();
        let expected = [
            (0, "itl", 1),
            (0, "ttft", 1),
            (0, "ttft_service", 1),
            (1, "e2e", 1),
            (1, "itl", 1),
            (1, "queue", 1),
            (1, "service", 1),
            (1, "tpot", 1),
        ];
        assert_eq!(kinds, expected);
        let gap = found[&(1, "itl")].max_ms().unwrap();
        assert!((gap - 400.0).abs() < 1.0, "{gap}");
    }
}
