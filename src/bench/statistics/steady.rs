//! Where a run's warm-up ends.
//!
//! MSER-5: of means of five samples each, as many are cut off at the start as make the standard
//! error of the mean of the rest least (K. P. White, "An effective truncation heuristic for bias
//! reduction in simulation output", 1997; with batches of five: K. P. White, M. J. Cobb and S. C.
//! Spratt, "A comparison of five steady-state truncation heuristics for simulation", Winter
//! Simulation Conference 2000). It has no parameter to tune, and of a run that is steady from the
//! start it cuts little.

use super::mean;

const BATCH: usize = 5;
/// Under so many samples nothing is cut.
const SAMPLES_MIN: usize = 20 * BATCH;

/// Whether a run came to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steady {
    /// It did, from this sample on.
    From(usize),
    /// The best cut is in its second half: it never settled, or is too short to tell.
    Never,
    /// There are too few samples (under 100) to tell.
    TooFew,
}

impl Steady {
    /// Samples to leave out at the start.
    pub fn cut(self) -> usize {
        if let Steady::From(cut) = self { cut } else { 0 }
    }
}

/// Where the samples of a run, in their order, become steady.
pub fn detect(series: &[f64]) -> Steady {
    if series.len() < SAMPLES_MIN {
        return Steady::TooFew;
    }
    let batches: Vec<f64> = series.chunks_exact(BATCH).map(mean).collect();
    // From the end, with sums of what is kept; batches are taken off a common level, so that the
    // squares of large numbers do not swallow their differences.
    let level = mean(&batches);
    let (mut sum, mut squares, mut kept) = (0.0, 0.0, 0.0);
    let mut best = (f64::INFINITY, 0);
    // The last five batches vary too little by chance alone (White, 1997).
    for (cut, batch) in batches.iter().enumerate().rev() {
        let value = batch - level;
        (sum, squares, kept) = (sum + value, squares + value * value, kept + 1.0);
        let error = (squares - sum * sum / kept).max(0.0) / (kept * kept);
        if kept > 5.0 && error <= best.0 {
            best = (error, cut);
        }
    }
    let (_, cut) = best;
    if cut * 2 > batches.len() { Steady::Never } else { Steady::From(cut * BATCH) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    #[test]
    fn a_warm_up_is_cut_and_little_else() {
        let mut prng = Prng::new(11);
        for seed in 0..50 {
            let mut noise = || 10.0 + prng.normal();
            let warm: Vec<f64> = (0..1_000)
                .map(|n| noise() + if n < 150 { 8.0 * (1.0 - f64::from(n) / 150.0) } else { 0.0 })
                .collect();
            let cut = detect(&warm).cut();
            assert!((85..=300).contains(&cut), "seed {seed}: {cut}");
            let steady: Vec<f64> = (0..1_000).map(|_| noise()).collect();
            let cut = detect(&steady).cut();
            assert!(cut <= 500, "seed {seed}: {cut}");
        }
    }

    #[test]
    fn what_never_settles_is_said() {
        let rising: Vec<f64> = (0..1_000).map(f64::from).collect();
        assert_eq!(detect(&rising), Steady::Never);
        assert_eq!((detect(&[1.0; 99]), detect(&[1.0; 100])), (Steady::TooFew, Steady::From(0)));
        assert_eq!(Steady::Never.cut(), 0);
    }
}
