//! When requests are meant to start: fixed before the run, by the seed alone, so that neither a
//! slow server nor a slow generator can shift it.

use std::time::Duration;

use serde::Deserialize;

use crate::prng::Prng;

/// How starts are spread over time.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Closed loop: the next request starts when one ends.
    Closed,
    /// Open loop with equal intervals.
    Fixed {
        /// Requests a second.
        rate: f64,
    },
    /// Open loop with intervals of a gamma distribution: 1 is a Poisson process (many independent
    /// users), less comes in bursts, more is more regular.
    Gamma {
        /// Requests a second, on average.
        rate: f64,
        /// The distribution's shape; the squared coefficient of variation of intervals is its
        /// inverse.
        shape: f64,
    },
    /// Open loop as it was recorded.
    Trace(Vec<Arrival>),
}

/// A line of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Since the run's start.
    pub at: Duration,
    /// Tokens of the prompt, if the trace says so.
    pub input: Option<u32>,
    /// Tokens of the answer at most, if the trace says so.
    pub output: Option<u32>,
}

impl Arrivals {
    /// Whether starts do not depend on ends.
    pub fn is_open(&self) -> bool {
        *self != Arrivals::Closed
    }

    /// Requests a second that are meant; None: that is not fixed beforehand.
    pub fn rate(&self) -> Option<f64> {
        match self {
            Arrivals::Closed => None,
            Arrivals::Fixed { rate } | Arrivals::Gamma { rate, .. } => Some(*rate),
            Arrivals::Trace(lines) => {
                let span = lines.last().map_or(0.0, |last| last.at.as_secs_f64());
                (span > 0.0).then(|| (lines.len() - 1) as f64 / span)
            }
        }
    }
}

/// The starts of one run, in order; ends where a trace ends.
#[derive(Debug)]
pub struct Schedule<'a> {
    arrivals: &'a Arrivals,
    prng: Prng,
    count: usize,
    at_s: f64,
}

impl<'a> Schedule<'a> {
    /// The starts that `seed` gives.
    pub fn new(arrivals: &'a Arrivals, seed: u64) -> Schedule<'a> {
        Schedule { arrivals, prng: Prng::new(seed), count: 0, at_s: 0.0 }
    }
}

impl Iterator for Schedule<'_> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let index = self.count;
        self.count += 1;
        let at = match self.arrivals {
            Arrivals::Closed => 0.0,
            // From the index, so that rounding does not add up.
            Arrivals::Fixed { rate } => index as f64 / rate,
            Arrivals::Gamma { rate, shape } => {
                self.at_s += gamma(&mut self.prng, *shape) / (shape * rate);
                self.at_s
            }
            Arrivals::Trace(lines) => return lines.get(index).map(|line| line.at),
        };
        Some(Duration::from_secs_f64(at.clamp(0.0, 1e9)))
    }
}

/// A gamma variate of scale 1 (Marsaglia and Tsang, A Simple Method for Generating Gamma Variables,
/// 2000; a shape below 1 by their boost).
fn gamma(prng: &mut Prng, shape: f64) -> f64 {
    if shape == 1.0 {
        return -(1.0 - prng.unit()).ln();
    }
    if shape < 1.0 {
        let boost = (1.0 - prng.unit()).powf(1.0 / shape);
        return gamma(prng, shape + 1.0) * boost;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = prng.normal();
        let v = (1.0 + c * x).powi(3);
        let u = 1.0 - prng.unit();
        if v > 0.0 && u.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

/// A trace: a line for each request, either the seconds since the start as a number, or a JSON
/// object `{"timestamp": milliseconds, "input_length": tokens, "output_length": tokens}` (the form
/// in which the traces of Mooncake, arXiv:2407.00079, are published). Empty lines are skipped; the
/// first start is moved to 0.
///
/// # Errors
/// A sentence that names the line.
pub fn trace(text: &str) -> Result<Vec<Arrival>, String> {
    #[derive(Deserialize)]
    struct Line {
        timestamp: f64,
        input_length: Option<u32>,
        output_length: Option<u32>,
    }
    let mut lines: Vec<Arrival> = Vec::new();
    let mut origin = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let bad = |what: &str| format!("line {}: {what}", number + 1);
        let (at_s, input, output) = if line.starts_with('{') {
            let parsed: Line =
                serde_json::from_str(line).map_err(|error| bad(&error.to_string()))?;
            (parsed.timestamp / 1e3, parsed.input_length, parsed.output_length)
        } else {
            let number = line.parse::<f64>();
            (number.map_err(|_| bad(&format!("{line:?} is not a number of seconds")))?, None, None)
        };
        let offset = at_s - *origin.get_or_insert(at_s);
        let at = Duration::try_from_secs_f64(offset)
            .map_err(|_| bad("it starts before the one ahead of it, or is no time at all"))?;
        if lines.last().is_some_and(|last| last.at > at) {
            return Err(bad("it starts before the one ahead of it"));
        }
        lines.push(Arrival { at, input, output });
    }
    if lines.is_empty() { Err("it holds no start".to_owned()) } else { Ok(lines) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(arrivals: &Arrivals, count: usize) -> Vec<f64> {
        Schedule::new(arrivals, 7).take(count).map(|at| at.as_secs_f64()).collect()
    }

    #[test]
    fn fixed_does_not_drift() {
        let at = offsets(&Arrivals::Fixed { rate: 3.0 }, 3_000_001);
        assert_eq!((at[0], at[3], at[3_000_000]), (0.0, 1.0, 1_000_000.0));
    }

    #[test]
    fn intervals_have_their_mean_and_spread() {
        for shape in [0.25, 1.0, 4.0] {
            let at = offsets(&Arrivals::Gamma { rate: 50.0, shape }, 40_000);
            let gaps: Vec<f64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>();
            let cv2 = variance / gaps.len() as f64 / (mean * mean);
            assert!((mean * 50.0 - 1.0).abs() < 0.03, "shape {shape}: mean {mean}");
            assert!((cv2 * shape - 1.0).abs() < 0.1, "shape {shape}: cv2 {cv2}");
            assert!(gaps.iter().all(|gap| *gap >= 0.0));
        }
    }

    #[test]
    fn a_seed_repeats_its_schedule() {
        let arrivals = Arrivals::Gamma { rate: 10.0, shape: 0.5 };
        assert_eq!(offsets(&arrivals, 100), offsets(&arrivals, 100));
        assert_ne!(
            Schedule::new(&arrivals, 8).nth(9),
            Schedule::new(&arrivals, 7).nth(9),
            "another seed, another schedule"
        );
    }

    #[test]
    fn traces_of_both_forms() {
        let lines = trace("10\n10.5\n\n12\n").unwrap();
        let at: Vec<u128> = lines.iter().map(|line| line.at.as_millis()).collect();
        assert_eq!(at, [0, 500, 2000]);
        let lines =
            trace("{\"timestamp\": 27482, \"input_length\": 6955, \"output_length\": 52, \"hash_ids\": [1]}\n\
                   {\"timestamp\": 30535}")
            .unwrap();
        assert_eq!(lines[0], Arrival { at: Duration::ZERO, input: Some(6955), output: Some(52) });
        assert_eq!(lines[1].at, Duration::from_millis(3053));
        assert_eq!(Arrivals::Trace(lines).rate().map(|rate| (rate * 1e3) as u32), Some(327));
        for (text, message) in [
            ("", "it holds no start"),
            ("x", "line 1: \"x\" is not a number of seconds"),
            ("1\n0.5", "line 2: it starts before the one ahead of it, or is no time at all"),
            ("1\n3\n2", "line 3: it starts before the one ahead of it"),
        ] {
            assert_eq!(trace(text).unwrap_err(), message);
        }
        assert!(trace("{\"timestamp\": \"a\"}").unwrap_err().starts_with("line 1: invalid type"));
    }
}
