//! What can be said of numbers that were measured, and how surely.
//!
//! Pure: numbers in, numbers out, randomness from a seed. Every estimate comes with an interval or
//! not at all. Which method is where, and why:
//!
//! - A percentile of one run (`quantile`): the interval between two order statistics. It holds for
//!   every distribution, needs no resampling, and works on a histogram as on raw samples. It is
//!   where the percentile bootstrap of a quantile ends with infinitely many resamples, since a
//!   resample's quantile is one of the samples and its chance is binomial.
//! - Samples that depend on their neighbours, as latencies under load do (`dependence`): they count
//!   as fewer, by batch means of whether each is over the percentile, and a mean has the interval
//!   of theirs. What comes of it is to the block bootstrap (H. R. Künsch, 1989) what the order
//!   statistics are to the plain one: a resample of blocks has so many samples over the percentile
//!   as its blocks have, whose spread is that of the batch means. With Student's t for the
//!   twenty batches it covers better than the bootstrap itself where few samples are over the
//!   percentile (`tests/experiments.rs` holds them against each other), and it says when there are
//!   too few, which a bootstrap does not.
//! - What to leave out at the start of a run (`steady`): MSER-5.
//! - The difference between two settings (`effect`): pairs from the same block of an interleaved
//!   experiment. With few pairs Student's t, whose error rate holds from three on, where a
//!   bootstrap of five values promises 95 % and keeps about 85; with twenty and more a bootstrap,
//!   which holds for every distribution. Between two histograms a bootstrap of both.

pub mod dependence;
pub mod effect;
pub mod probability;
pub mod quantile;
pub mod steady;

use serde::{Deserialize, Serialize};

/// What an interval covers unless it says otherwise.
pub const CONFIDENCE: f64 = 0.95;

/// An interval: `[low, high]` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f64, f64)", into = "(f64, f64)")]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end, not under the lower.
    pub high: f64,
}

impl Interval {
    /// Between two ends, in any order.
    pub fn new(a: f64, b: f64) -> Interval {
        Interval { low: a.min(b), high: a.max(b) }
    }

    /// Whether a value is within it, ends included.
    pub fn contains(&self, value: f64) -> bool {
        value >= self.low && value <= self.high
    }

    /// With each end put through a function that rises or falls throughout.
    pub fn map(self, f: impl Fn(f64) -> f64) -> Interval {
        Interval::new(f(self.low), f(self.high))
    }
}

impl From<(f64, f64)> for Interval {
    fn from((a, b): (f64, f64)) -> Interval {
        Interval::new(a, b)
    }
}

impl From<Interval> for (f64, f64) {
    fn from(interval: Interval) -> (f64, f64) {
        (interval.low, interval.high)
    }
}

/// The mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The sample variance, of n - 1 degrees of freedom; None: under two values.
pub fn variance(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let sum: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| sum / (values.len() - 1) as f64)
}

/// The middle value, or the mean of the two in the middle; None: there is none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let high = *sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { high } else { (sorted[middle - 1] + high) / 2.0 })
}
