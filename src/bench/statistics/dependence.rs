//! Samples of one run in the order in which they were taken: how much they depend on each other,
//! and intervals that allow for it.
//!
//! A queue remembers: a slow request makes the next one slow. Intervals that take such samples for
//! independent are too narrow, by a factor of three and more at high load. So means of batches long
//! enough to forget are compared with what independence would give (method of batch means: A. M.
//! Law, "Simulation Modeling and Analysis", 2015, section 9.5.3).

use super::probability::{normal_quantile, student_quantile};
use super::{Interval, mean, variance};

/// Batches into which a run is cut: between 10 and 30 is what Schmeiser advises ("Batch size
/// effects in the analysis of simulation output", 1982); more would be shorter than their memory.
const BATCHES: usize = 20;
/// Under so many samples a batch is too short to tell anything.
const SAMPLES_MIN: usize = 5 * BATCHES;

/// How many dependent samples stand for one independent one: the variance of the mean over what it
/// would be if they were independent. At least 1, which is also said of fewer than 100 samples.
pub fn inflation(series: &[f64]) -> f64 {
    if series.len() < SAMPLES_MIN {
        return 1.0;
    }
    let Some(variance_of_one) = variance(series).filter(|variance| *variance > 0.0) else {
        return 1.0;
    };
    let (means, size) = batch_means(series);
    let variance_of_mean = variance(&means).unwrap_or(0.0);
    (variance_of_mean * size as f64 / variance_of_one).max(1.0)
}

/// The same for the quantile `q`: of whether each sample is over it. The run's own order counts, so
/// `series` is not sorted.
pub fn quantile_inflation(series: &[f64], q: f64) -> f64 {
    if series.len() < SAMPLES_MIN {
        return 1.0;
    }
    let mut sorted = series.to_vec();
    let at = ((series.len() as f64 * q).ceil() as usize).clamp(1, series.len()) - 1;
    let (_, cut, _) = sorted.select_nth_unstable_by(at, f64::total_cmp);
    let cut = *cut;
    let over: Vec<f64> = series.iter().map(|value| f64::from(u8::from(*value > cut))).collect();
    inflation(&over)
}

/// By how much more an inflation counts since twenty batches only estimate it: an interval's reach
/// grows as Student's t over the normal's, and an effective number of samples falls as its square.
pub fn widening(confidence: f64) -> f64 {
    let p = (1.0 + confidence) / 2.0;
    (student_quantile(p, BATCHES as f64 - 1.0) / normal_quantile(p)).powi(2)
}

/// The mean with an interval that allows for dependence; None: under 100 samples.
pub fn mean_interval(series: &[f64], confidence: f64) -> Option<Interval> {
    if series.len() < SAMPLES_MIN {
        return None;
    }
    let (means, _) = batch_means(series);
    let error = (variance(&means)? / BATCHES as f64).sqrt();
    let reach = error * student_quantile((1.0 + confidence) / 2.0, BATCHES as f64 - 1.0);
    let middle = mean(series);
    Some(Interval::new(middle - reach, middle + reach))
}

/// Means of equal parts, and their length; what is over at the end is left out.
fn batch_means(series: &[f64]) -> (Vec<f64>, usize) {
    let size = series.len() / BATCHES;
    (series.chunks_exact(size).take(BATCHES).map(mean).collect(), size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    /// x' = r x + noise: neighbours correlate by r, and the mean's variance is (1+r)/(1-r) times
    /// that of independent samples.
    fn autoregressive(n: usize, r: f64, prng: &mut Prng) -> Vec<f64> {
        let mut x = prng.normal() / (1.0 - r * r).sqrt();
        let next = || {
            x = r * x + prng.normal();
            x
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    #[test]
    fn inflation_of_known_series() {
        let mut prng = Prng::new(3);
        for (r, truth) in [(0.0, 1.0), (0.5, 3.0), (0.8, 9.0)] {
            let seen: Vec<f64> =
                (0..50).map(|_| inflation(&autoregressive(2_000, r, &mut prng))).collect();
            let seen = mean(&seen);
            assert!((seen / truth - 1.0).abs() < 0.25, "{r}: {seen} for {truth}");
        }
        assert_eq!((inflation(&[1.0; 500]), inflation(&[1.0, 9.0])), (1.0, 1.0));
    }

    #[test]
    fn intervals_of_dependent_samples_cover() {
        let mut prng = Prng::new(5);
        let (mut mean_missed, mut median_missed) = (0, 0);
        for _ in 0..200 {
            let series = autoregressive(600, 0.7, &mut prng);
            mean_missed += u32::from(!mean_interval(&series, 0.95).unwrap().contains(0.0));
            let inflation = quantile_inflation(&series, 0.5);
            let mut sorted = series;
            sorted.sort_by(f64::total_cmp);
            let median = super::super::quantile::estimate(&sorted[..], 0.5, 0.95, inflation);
            median_missed += u32::from(!median.unwrap().interval.contains(0.0));
        }
        // 5 % of 200 is 10; intervals of estimated variance miss a little more often. Taken as
        // independent, 42 % would miss.
        assert!(mean_missed < 22, "{mean_missed}");
        assert!(median_missed < 24, "{median_missed}");
    }

    #[test]
    fn too_few_samples_have_no_interval() {
        assert_eq!(mean_interval(&[1.0; 99], 0.95), None);
    }
}
