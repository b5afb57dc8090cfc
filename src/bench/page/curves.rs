//! From records to the curves of charts.

use crate::bench::chart::shapes::{Interval, Latencies};
use crate::bench::record::{Distribution, Record, Series, steps_ms};
use crate::bench::statistics::{CONFIDENCE, quantile};

/// Places of a band for each nine of the percentile scale.
const BAND_STEPS: f64 = 8.0;
/// Nines that a band is looked for in.
const NINES_MAX: f64 = 9.0;

/// A distribution as a curve, with the band of its intervals: from the histogram if the record has
/// one, else from the few percentiles that it names.
pub fn latencies(name: &str, distribution: &Distribution) -> Latencies {
    let mut found =
        Latencies { name: name.to_owned(), count: distribution.n, ..Latencies::default() };
    if let Some(min) = distribution.min {
        found.percentiles.push((0.0, min));
    }
    let Some(durations) = distribution.durations() else {
        let Distribution { p50, p90, p95, p99, p999, max, .. } = *distribution;
        let named = [(50.0, p50), (90.0, p90), (95.0, p95), (99.0, p99), (99.9, p999)];
        let named = named.into_iter().chain([(100.0, max)]);
        found.percentiles.extend(named.filter_map(|(percent, ms)| Some((percent, ms?))));
        return found;
    };
    let mut below = 0;
    for (us, count) in durations.recorded_us() {
        below += count;
        found.percentiles.push((100.0 * below as f64 / distribution.n as f64, us as f64 / 1e3));
    }
    let steps = steps_ms(&durations);
    let inflation = distribution.inflation.unwrap_or(1.0);
    let mut nines = 0.0;
    while nines <= NINES_MAX {
        let q = 1.0 - 10f64.powf(-nines);
        if let Some(estimate) = quantile::estimate(&steps, q, CONFIDENCE, inflation) {
            found.band.push((100.0 * q, estimate.interval.low, estimate.interval.high));
        } else if nines >= 1.0 {
            break;
        }
        nines += 1.0 / BAND_STEPS;
    }
    found
}

/// A figure over time: the medians, and the highest that the series has.
pub fn intervals(series: &Series, figure: &str) -> Vec<Interval> {
    let column = |tail: &str| series.columns.get(&format!("{figure}{tail}"));
    let Some(medians) = column("_p50") else { return Vec::new() };
    let highest = column("_max");
    let point = |(index, p50): (usize, &Option<f64>)| {
        let p50 = (*p50)?;
        let high = highest.and_then(|column| column.get(index).copied().flatten()).unwrap_or(p50);
        let at_s = series.start_s + (index as f64 + 0.5) * series.interval_s;
        Some(Interval { at_s, p50, high })
    };
    medians.iter().enumerate().filter_map(point).collect()
}

/// A column of counts over time, for each second.
pub fn rate(series: &Series, column: &str) -> Vec<(f64, f64)> {
    let Some(values) = series.columns.get(column).filter(|_| series.interval_s > 0.0) else {
        return Vec::new();
    };
    let at = |index: usize| series.start_s + (index as f64 + 0.5) * series.interval_s;
    // What did not happen in an interval did not happen: that is zero, and no gap.
    let point = |(index, count): (usize, &Option<f64>)| {
        (at(index), count.unwrap_or(0.0) / series.interval_s)
    };
    values.iter().enumerate().map(point).collect()
}

/// Single events of a figure, as time and value.
pub fn outliers(series: &Series, figure: &str) -> Vec<(f64, f64)> {
    let of_figure = series.outliers.iter().filter(|outlier| outlier.figure == figure);
    of_figure.map(|outlier| (outlier.t_s, outlier.value)).collect()
}

/// The distributions of a record that have samples, in the order of `terms`, then as they stand.
pub fn distributions(record: &Record) -> Vec<(String, Distribution)> {
    let mut names: Vec<&str> = record.distributions().collect();
    let place = |name: &str| {
        super::terms::FIGURES.iter().position(|figure| figure.name == name).unwrap_or(usize::MAX)
    };
    names.sort_by_key(|name| place(name));
    let found = names.into_iter().map(|name| Some((name.to_owned(), record.distribution(name)?)));
    found.flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::record::Outlier;
    use crate::metrics::durations::Durations;

    #[test]
    fn a_curve_rises_and_its_band_holds_it() {
        let mut durations = Durations::default();
        (1..=5_000).for_each(|n| durations.record(n * 100));
        let curve = latencies("e2e", &Distribution::independent(&durations));
        assert_eq!(curve.count, 5_000);
        assert!(curve.percentiles.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1));
        assert_eq!(curve.percentiles.last().unwrap().0, 100.0);
        assert!(curve.band.len() > 20);
        for (percent, low, high) in &curve.band {
            let truth = 5.0 * percent;
            assert!(low * 0.99 <= truth + 1.0 && truth <= high * 1.01, "{percent} {low} {high}");
        }
    }

    #[test]
    fn without_a_histogram_the_named_percentiles_are_the_curve() {
        let few = Distribution {
            n: 50,
            min: Some(1.0),
            p50: Some(2.0),
            p90: Some(3.0),
            max: Some(9.0),
            ..Distribution::default()
        };
        let curve = latencies("x", &few);
        assert_eq!(curve.percentiles, [(0.0, 1.0), (50.0, 2.0), (90.0, 3.0), (100.0, 9.0)]);
        assert!(curve.band.is_empty());
    }

    #[test]
    fn series_have_gaps_where_nothing_was_measured_and_zeros_where_nothing_was_counted() {
        let columns = BTreeMap::from([
            ("e2e_ms_p50".to_owned(), vec![Some(1.0), None, Some(3.0)]),
            ("e2e_ms_max".to_owned(), vec![Some(5.0), None, None]),
            ("ok".to_owned(), vec![Some(10.0), None, Some(20.0)]),
        ]);
        let outliers = vec![Outlier { t_s: 1.0, figure: "e2e_ms".to_owned(), value: 9.0 }];
        let series = Series { start_s: 0.0, interval_s: 2.0, columns, outliers };
        let found = intervals(&series, "e2e_ms");
        assert_eq!(
            found,
            [
                Interval { at_s: 1.0, p50: 1.0, high: 5.0 },
                Interval { at_s: 5.0, p50: 3.0, high: 3.0 }
            ]
        );
        assert_eq!(rate(&series, "ok"), [(1.0, 5.0), (3.0, 0.0), (5.0, 10.0)]);
        assert_eq!(super::outliers(&series, "e2e_ms"), [(1.0, 9.0)]);
        assert!(rate(&series, "none").is_empty() && intervals(&series, "ttft_ms").is_empty());
    }
}
