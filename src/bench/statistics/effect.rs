//! How much one setting differs from another.
//!
//! Pairs come from the same block of an interleaved experiment, so that what drifts from block to
//! block (a hotter processor, a fuller disk) drops out of their difference. Ratios are taken as
//! differences of logarithms: noise of run times is multiplicative, and its logarithm is near the
//! normal that Student's t expects.

use super::dependence::percentile_interval;
use super::probability::student_quantile;
use super::quantile::Ranked;
use super::{Interval, mean, variance};
use crate::prng::Prng;

/// A difference that was measured in pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effect {
    /// Pairs.
    pub pairs: usize,
    /// The mean difference.
    pub value: f64,
    /// The standard deviation of one pair's difference.
    pub deviation: f64,
    /// Where the true one is.
    pub interval: Interval,
}

/// The mean difference `a - b` of pairs, with Student's t; None: under three pairs, of which nobody
/// can tell how they vary. `alpha` is the chance that the interval misses the truth.
pub fn paired(pairs: &[(f64, f64)], alpha: f64) -> Option<Effect> {
    let differences: Vec<f64> = pairs.iter().map(|(a, b)| a - b).collect();
    if differences.len() < 3 {
        return None;
    }
    let n = differences.len() as f64;
    let (value, deviation) = (mean(&differences), variance(&differences)?.sqrt());
    let reach = student_quantile(1.0 - alpha / 2.0, n - 1.0) * deviation / n.sqrt();
    let interval = Interval::new(value - reach, value + reach);
    Some(Effect { pairs: differences.len(), value, deviation, interval })
}

/// The ratio a over b of pairs, less one (0.1: a is 10 % more); None: under three pairs, or one is
/// not over 0. `deviation` is that of the logarithms.
pub fn paired_ratio(pairs: &[(f64, f64)], alpha: f64) -> Option<Effect> {
    if pairs.iter().any(|(a, b)| *a <= 0.0 || *b <= 0.0) {
        return None;
    }
    let logarithms: Vec<(f64, f64)> = pairs.iter().map(|(a, b)| (a.ln(), b.ln())).collect();
    let effect = paired(&logarithms, alpha)?;
    Some(Effect {
        value: effect.value.exp_m1(),
        interval: effect.interval.map(f64::exp_m1),
        ..effect
    })
}

/// The mean difference of many pairs by bootstrap, where nothing is known of how they are
/// distributed: pairs are drawn whole. None: under 20, of which it would promise too much.
pub fn paired_bootstrap(
    pairs: &[(f64, f64)],
    alpha: f64,
    resamples: usize,
    prng: &mut Prng,
) -> Option<Effect> {
    let differences: Vec<f64> = pairs.iter().map(|(a, b)| a - b).collect();
    if differences.len() < 20 || resamples == 0 {
        return None;
    }
    let n = differences.len();
    let draw = |prng: &mut Prng| differences[prng.below(n as u64) as usize];
    let mut means: Vec<f64> =
        (0..resamples).map(|_| (0..n).map(|_| draw(prng)).sum::<f64>() / n as f64).collect();
    Some(Effect {
        pairs: n,
        value: mean(&differences),
        deviation: variance(&differences)?.sqrt(),
        interval: percentile_interval(&mut means, 1.0 - alpha),
    })
}

/// The ratio of a quantile of one sample to that of another, less one, with a bootstrap interval:
/// of two histograms that were not taken in pairs. Each stands for so many independent samples;
/// None: one is empty, or its quantile is 0.
pub fn quantile_ratio<A: Ranked + ?Sized, B: Ranked + ?Sized>(
    (a, a_inflation): (&A, f64),
    (b, b_inflation): (&B, f64),
    q: f64,
    alpha: f64,
    prng: &mut Prng,
) -> Option<(f64, Interval)> {
    const RESAMPLES: usize = 1_000;
    if a.count() == 0 || b.count() == 0 || at(b, q) <= 0.0 {
        return None;
    }
    let (a_n, b_n) = (a.count() as f64 / a_inflation, b.count() as f64 / b_inflation);
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let (a_q, b_q) = (resampled(q, a_n, prng), resampled(q, b_n, prng));
            at(a, a_q) / at(b, b_q).max(f64::MIN_POSITIVE) - 1.0
        })
        .collect();
    let value = at(a, q) / at(b, q) - 1.0;
    Some((value, percentile_interval(&mut ratios, 1.0 - alpha)))
}

fn at<R: Ranked + ?Sized>(samples: &R, q: f64) -> f64 {
    let n = samples.count();
    samples.at(((n as f64 * q).ceil() as u64).clamp(1, n))
}

/// Where in the sample a resample's quantile comes from: binomial, by its normal limit.
fn resampled(q: f64, n: f64, prng: &mut Prng) -> f64 {
    (q + prng.normal() * (q * (1.0 - q) / n.max(1.0)).sqrt()).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::super::quantile::Steps;
    use super::*;

    #[test]
    fn pairs_cancel_what_drifts() {
        let pairs: Vec<(f64, f64)> =
            (1..=8).map(|n| (110.0 * f64::from(n), 100.0 * f64::from(n))).collect();
        let effect = paired_ratio(&pairs, 0.05).unwrap();
        assert!((effect.value - 0.1).abs() < 1e-9 && effect.deviation < 1e-9);
        assert!(effect.interval.high - effect.interval.low < 1e-9);
        assert_eq!(paired_ratio(&pairs[..2], 0.05), None);
        assert_eq!(paired_ratio(&[(1.0, 1.0), (0.0, 1.0), (1.0, 1.0)], 0.05), None);
    }

    #[test]
    fn a_known_t_interval() {
        // Differences 1..5: mean 3, deviation sqrt(2.5), t(4) = 2.776.
        let pairs: Vec<(f64, f64)> = (1..=5).map(|n| (f64::from(n), 0.0)).collect();
        let effect = paired(&pairs, 0.05).unwrap();
        assert!((effect.interval.low - (3.0 - 2.776_445 * 0.5_f64.sqrt())).abs() < 1e-5);
        assert!((effect.interval.high - (3.0 + 2.776_445 * 0.5_f64.sqrt())).abs() < 1e-5);
    }

    #[test]
    fn bootstraps_cover() {
        let mut prng = Prng::new(9);
        let (mut means_missed, mut ratios_missed) = (0, 0);
        for _ in 0..100 {
            let mut draw = |level: f64, n: usize| -> Vec<f64> {
                (0..n).map(|_| level * (0.5 * prng.normal()).exp()).collect()
            };
            let (mut a, mut b) = (draw(1.2, 300), draw(1.0, 300));
            let pairs: Vec<(f64, f64)> = a.iter().copied().zip(b.iter().copied()).collect();
            let truth = 0.2 * (0.125_f64).exp();
            let effect = paired_bootstrap(&pairs, 0.05, 200, &mut prng).unwrap();
            means_missed += u32::from(!effect.interval.contains(truth));
            a.sort_by(f64::total_cmp);
            b.sort_by(f64::total_cmp);
            let (_, interval) =
                quantile_ratio((&a[..], 1.0), (&b[..], 1.0), 0.9, 0.05, &mut prng).unwrap();
            ratios_missed += u32::from(!interval.contains(0.2));
        }
        // 5 % of 100 is 5, and three standard errors.
        assert!(means_missed < 13 && ratios_missed < 13, "{means_missed} {ratios_missed}");
    }

    #[test]
    fn nothing_to_compare() {
        let (some, none) = (Steps::from_iter([(1.0, 5)]), Steps::default());
        let mut prng = Prng::new(1);
        assert_eq!(quantile_ratio((&some, 1.0), (&none, 1.0), 0.5, 0.05, &mut prng), None);
        assert_eq!(paired_bootstrap(&[(1.0, 1.0); 19], 0.05, 100, &mut prng), None);
    }
}
