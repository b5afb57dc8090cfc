//! How times are taken.

use std::time::Instant;

use crate::cuda::{Error, Lane};

/// Samples of each figure.
pub const SAMPLES: usize = 21;
/// A sample takes at least so long, in milliseconds: the events' clock has half a microsecond.
const SAMPLE_MS: f64 = 2.0;

/// Times of one thing, in microseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    sorted: Vec<f64>,
}

impl Times {
    /// Of samples in any order.
    pub fn new(mut samples: Vec<f64>) -> Times {
        samples.sort_by(f64::total_cmp);
        Times { sorted: samples }
    }

    /// The value below which that share of the samples lies; NaN of none.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.sorted.len().saturating_sub(1);
        let at = (share * last as f64).round() as usize;
        self.sorted.get(at).copied().unwrap_or(f64::NAN)
    }

    /// Of one of so many calls that each sample has.
    #[must_use]
    pub fn each(mut self, calls: usize) -> Times {
        self.sorted.iter_mut().for_each(|sample| *sample /= calls as f64);
        self
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// Times of what `add(i)` adds to the lane's stream, for i from 0 to `inputs`: of one call in a
/// graph of all, by the card's clock.
///
/// # Errors
/// What `add` or the driver says.
pub fn graph(
    lane: &Lane,
    inputs: usize,
    add: impl FnMut(usize) -> Result<(), Error>,
) -> Result<Times, Error> {
    let samples = lane.time_graph(inputs, SAMPLES, SAMPLE_MS, add)?;
    Ok(Times::new(samples.into_iter().map(|ms| ms * 1e3).collect()))
}

/// Times of `call` by the host's clock.
///
/// # Errors
/// What `call` says.
pub fn host(samples: usize, mut call: impl FnMut() -> Result<(), Error>) -> Result<Times, Error> {
    for _ in 0..3 {
        call()?;
    }
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples {
        let begun = Instant::now();
        call()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Times::new(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let times = Times::new(vec![3.0, 1.0, 2.0]);
        assert_eq!((times.median(), times.quantile(1.0), times.quantile(0.0)), (2.0, 3.0, 1.0));
        assert!(Times::default().median().is_nan());
    }
}
