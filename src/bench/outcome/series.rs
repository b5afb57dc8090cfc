//! A run over time: what happened in each interval, and the requests that stand out.

use std::collections::BTreeMap;

use crate::bench::record::{Outlier, Series};
use crate::bench::sample::{Ended, Recording, Sample};
use crate::clock::Instant;

/// Intervals that a plot can show side by side.
const INTERVALS_MAX: f64 = 120.0;
/// Lengths that people read easily, in seconds.
const LENGTHS_S: [f64; 13] =
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Requests that are told one by one.
const OUTLIERS_MAX: usize = 50;

/// Of a whole run, the warm-up included; None: nothing was asked.
pub fn of(recording: &Recording) -> Option<Series> {
    let last = recording.samples.iter().map(|sample| sample.end).max()?;
    let span = last.since(recording.began).as_secs_f64();
    let enough = |length: &&f64| span / **length <= INTERVALS_MAX;
    let interval_s = *LENGTHS_S.iter().find(enough).unwrap_or(&3600.0);
    let count = (span / interval_s).floor() as usize + 1;
    let place = |at: Instant| {
        let index = (at.since(recording.began).as_secs_f64() / interval_s) as usize;
        index.min(count - 1)
    };
    let mut cells: Vec<Vec<&Sample>> = vec![Vec::new(); count];
    let mut flights = vec![0_i64; count + 1];
    for sample in &recording.samples {
        cells[place(sample.end)].push(sample);
        flights[place(sample.sent)] += 1;
        flights[place(sample.end) + 1] -= 1;
    }
    let mut columns = BTreeMap::new();
    let mut column = |name: &str, of: &dyn Fn(&[&Sample]) -> Option<f64>| {
        columns.insert(name.to_owned(), cells.iter().map(|cell| of(cell)).collect());
    };
    let count_of = |cell: &[&Sample], ended: Ended| {
        Some(cell.iter().filter(|sample| sample.ended == ended).count() as f64)
    };
    column("ok", &|cell| count_of(cell, Ended::Ok));
    column("errors", &|cell| count_of(cell, Ended::Failed));
    column("tokens", &|cell| Some(cell.iter().map(|sample| f64::from(sample.tokens)).sum()));
    let times: [(&str, fn(&Sample) -> Option<f64>); 3] = [
        ("ttft_ms", Sample::ttft_ms),
        ("e2e_ms", |s| Some(s.e2e_ms())),
        ("service_ms", |s| Some(s.service_ms())),
    ];
    for (name, time) in times {
        for (tail, share) in [("p50", 0.5), ("max", 1.0)] {
            column(&format!("{name}_{tail}"), &|cell| {
                let fine = cell.iter().filter(|sample| sample.ended == Ended::Ok);
                let mut values: Vec<f64> = fine.filter_map(|sample| time(sample)).collect();
                values.sort_by(f64::total_cmp);
                let rank = (share * values.len() as f64).ceil() as usize;
                values.get(rank.saturating_sub(1)).copied()
            });
        }
    }
    let mut open = 0;
    let in_flight = flights[..count].iter().map(|change| {
        open += change;
        Some(open as f64)
    });
    columns.insert("in_flight".to_owned(), in_flight.collect());
    Some(Series { start_s: 0.0, interval_s, columns, outliers: outliers(recording) })
}

/// The slowest of those that count and take over four times the median.
fn outliers(recording: &Recording) -> Vec<Outlier> {
    let mut counted: Vec<&Sample> = recording.samples.iter().filter(|s| s.counts()).collect();
    counted.sort_by(|a, b| b.e2e_ms().total_cmp(&a.e2e_ms()));
    let Some(median) = counted.get(counted.len() / 2).map(|sample| sample.e2e_ms()) else {
        return Vec::new();
    };
    let slow = counted.iter().take_while(|sample| sample.e2e_ms() > 4.0 * median);
    let outlier = |sample: &&Sample| Outlier {
        t_s: sample.end.since(recording.began).as_secs_f64(),
        figure: "e2e_ms".to_owned(),
        value: sample.e2e_ms(),
    };
    slow.take(OUTLIERS_MAX).map(outlier).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample::tests::recording;

    #[test]
    fn every_request_is_in_one_interval() {
        let requests: Vec<(u64, &[u64])> = (0..300).map(|_| (10, &[5, 5][..])).collect();
        let series = of(&recording(&requests)).unwrap();
        let sum = |name: &str| series.columns[name].iter().flatten().sum::<f64>();
        assert_eq!((sum("ok"), sum("errors"), sum("tokens")), (300.0, 0.0, 900.0));
        assert!(series.columns["e2e_ms_max"].iter().flatten().all(|ms| *ms == 20.0));
        assert!(series.columns["in_flight"].iter().flatten().all(|n| *n >= 0.0));
        assert!(series.outliers.is_empty());
    }
}
