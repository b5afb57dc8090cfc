//! Percentiles with intervals, from raw samples and from histograms.
//!
//! Of n independent samples, the number at or under the true quantile q is binomial(n, q), whatever
//! the distribution; so the true quantile lies between the l-th and the u-th smallest sample with a
//! chance that n, q, l and u alone determine (H. A. David and H. N. Nagaraja, "Order Statistics",
//! 2003, section 7.1). A percentile that has no such pair of samples is not told: the sample cannot
//! carry it.

use super::Interval;
use super::dependence::widening;
use super::probability::binomial_cdf;

/// Sorted numbers of which the k-th smallest can be told.
pub trait Ranked {
    /// How many there are.
    fn count(&self) -> u64;
    /// The `rank`-th smallest, from 1 to `count`.
    fn at(&self, rank: u64) -> f64;
}

/// Raw samples, sorted upwards.
impl Ranked for [f64] {
    fn count(&self) -> u64 {
        self.len() as u64
    }

    fn at(&self, rank: u64) -> f64 {
        self[rank as usize - 1]
    }
}

/// A histogram: values and how often each was seen, values upwards.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    /// Values, each with the number of samples up to and with it.
    steps: Vec<(f64, u64)>,
}

impl FromIterator<(f64, u64)> for Steps {
    fn from_iter<I: IntoIterator<Item = (f64, u64)>>(steps: I) -> Steps {
        let mut total = 0;
        let add = |(value, count): (f64, u64)| {
            total += count;
            (value, total)
        };
        Steps { steps: steps.into_iter().map(add).collect() }
    }
}

impl Ranked for Steps {
    fn count(&self) -> u64 {
        self.steps.last().map_or(0, |(_, total)| *total)
    }

    fn at(&self, rank: u64) -> f64 {
        let index = self.steps.partition_point(|(_, total)| *total < rank);
        self.steps[index.min(self.steps.len() - 1)].0
    }
}

/// A percentile and the interval of its true value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// What was measured.
    pub value: f64,
    /// Where the true one is, with the confidence that was asked for.
    pub interval: Interval,
}

/// The quantile `q` (0.99 is the 99th percentile) with its interval; None: the samples cannot carry
/// it. At 95 % the median takes 6 independent ones, p95 72, p99 368 and p99.9 3,688. `inflation`
/// is 1 for those, and larger for samples that depend on each other
/// (`dependence::quantile_inflation`): n of them count as n over it, and as some fewer since it is
/// an estimate itself.
pub fn estimate<R: Ranked + ?Sized>(
    samples: &R,
    q: f64,
    confidence: f64,
    inflation: f64,
) -> Option<Estimate> {
    let n = samples.count();
    let (low, high) = ranks(n, q, confidence, inflation)?;
    let interval = Interval::new(samples.at(low), samples.at(high));
    Some(Estimate { value: samples.at(rank_of(n, q)), interval })
}

/// The rank of the sample quantile: the smallest with at least q of all at or under it.
fn rank_of(n: u64, q: f64) -> u64 {
    ((n as f64 * q - 1e-9).ceil() as u64).clamp(1, n)
}

/// Ranks of the two samples between which the true quantile lies; None: there is no such pair.
pub fn ranks(n: u64, q: f64, confidence: f64, inflation: f64) -> Option<(u64, u64)> {
    let tail = (1.0 - confidence) / 2.0;
    let inflation = if inflation > 1.0 { inflation * widening(confidence) } else { 1.0 };
    let effective = n as f64 / inflation;
    // The true quantile is under the u-th smallest unless u or more samples are under it.
    if effective < 1.0 || q.powf(effective) > tail || (1.0 - q).powf(effective) > tail {
        return None;
    }
    let low = search(effective, |k| binomial_cdf(k - 1.0, effective, q) <= tail)?;
    let under = search(effective, |k| binomial_cdf(k, effective, q) < 1.0 - tail);
    let high = under.map_or(1.0, |k| k + 2.0);
    // Back from effective samples to real ones, away from the middle.
    let scale = n as f64 / effective;
    let low = ((low * scale).floor() as u64).clamp(1, n);
    let high = ((high * scale).ceil() as u64).clamp(1, n);
    Some((low.min(rank_of(n, q)), high.max(rank_of(n, q))))
}

/// The largest whole number up to `n` for which a condition holds that fails from some on; None:
/// it fails for 0 already.
fn search(n: f64, holds: impl Fn(f64) -> bool) -> Option<f64> {
    let (mut good, mut bad) = (0.0, n.floor() + 1.0);
    if !holds(good) {
        return None;
    }
    while bad - good > 1.0 {
        let middle = ((good + bad) / 2.0).floor();
        if holds(middle) { good = middle } else { bad = middle }
    }
    Some(good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    #[test]
    fn what_samples_carry() {
        for (q, needed) in [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3_688)] {
            assert!(ranks(needed, q, 0.95, 1.0).is_some(), "{q}");
            assert_eq!(ranks(needed - 1, q, 0.95, 1.0), None, "{q}");
            assert_eq!(ranks(2 * needed - 2, q, 0.95, 2.0), None, "{q}");
            assert!(ranks(3 * needed, q, 0.95, 2.0).is_some(), "{q}");
        }
        assert_eq!(ranks(0, 0.5, 0.95, 1.0), None);
        // The textbook's: the median of 10 lies between the 2nd and the 9th.
        assert_eq!(ranks(10, 0.5, 0.95, 1.0), Some((2, 9)));
    }

    #[test]
    fn a_histogram_and_its_samples_say_the_same() {
        let samples: Vec<f64> = (0..1_000).map(|n| f64::from(n / 10)).collect();
        let steps: Steps = (0..100).map(|value| (f64::from(value), 10)).collect();
        for q in [0.5, 0.9, 0.99] {
            let raw = estimate(&samples[..], q, 0.95, 1.0);
            assert_eq!(estimate(&steps, q, 0.95, 1.0), raw, "{q}");
            assert!(raw.unwrap().interval.contains(raw.unwrap().value));
        }
    }

    #[test]
    fn intervals_cover_as_they_say() {
        // 1,000 experiments each: the rate of misses is binomial itself.
        let mut prng = Prng::new(1);
        for (n, q) in [(20, 0.5), (80, 0.95), (500, 0.99)] {
            let truth = -(1.0_f64 - q).ln();
            let mut missed = 0;
            for _ in 0..1_000 {
                let mut samples: Vec<f64> = (0..n).map(|_| -(1.0 - prng.unit()).ln()).collect();
                samples.sort_by(f64::total_cmp);
                let found = estimate(&samples[..], q, 0.95, 1.0).unwrap();
                missed += u32::from(!found.interval.contains(truth));
            }
            // 5 % of 1,000 and three standard errors.
            assert!(missed <= 50 + 21, "{n} samples, {q}: {missed}");
        }
    }

    #[test]
    fn a_bootstrap_ends_at_the_same_samples() {
        let mut prng = Prng::new(7);
        let (n, q) = (400, 0.9);
        let mut samples: Vec<f64> = (0..n).map(|_| prng.normal().exp()).collect();
        samples.sort_by(f64::total_cmp);
        let mut quantiles: Vec<u64> = (0..4_000)
            .map(|_| {
                let mut drawn: Vec<u64> = (0..n).map(|_| prng.below(n) + 1).collect();
                drawn.sort_unstable();
                drawn[rank_of(n, q) as usize - 1]
            })
            .collect();
        quantiles.sort_unstable();
        let (low, high) = ranks(n, q, 0.95, 1.0).unwrap();
        assert!(quantiles[100].abs_diff(low) <= 2, "{} {low}", quantiles[100]);
        assert!(quantiles[3_900].abs_diff(high) <= 2, "{} {high}", quantiles[3_900]);
    }
}
