//! A service-level objective, and the goodput under it: the requests that meet all of it.

use std::fmt;

use crate::bench::sample::{Ended, Recording, Sample};

/// Bounds in milliseconds; a request must meet all that are set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slo {
    bounds: Vec<(Figure, f64)>,
}

/// What can be bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Ttft,
    Itl,
    Tpot,
    E2e,
}

const FIGURES: [(&str, Figure); 4] =
    [("ttft", Figure::Ttft), ("itl", Figure::Itl), ("tpot", Figure::Tpot), ("e2e", Figure::E2e)];

impl Slo {
    /// `ttft=500ms,itl=50ms`; `duration` reads a time with its unit.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(
        text: &str,
        duration: impl Fn(&str) -> Result<std::time::Duration, &'static str>,
    ) -> Result<Slo, String> {
        let mut slo = Slo::default();
        for part in text.split(',') {
            let (name, bound) = part
                .split_once('=')
                .ok_or_else(|| format!("{part:?} is no bound, as ttft=500ms"))?;
            let figure = FIGURES.iter().find(|(known, _)| *known == name.trim());
            let (_, figure) =
                figure.ok_or_else(|| format!("{name:?} is none of ttft, itl, tpot, e2e"))?;
            if slo.bounds.iter().any(|(known, _)| known == figure) {
                return Err(format!("{name} stands twice"));
            }
            let bound = duration(bound.trim()).map_err(|error| format!("{part:?}: {error}"))?;
            slo.bounds.push((*figure, bound.as_secs_f64() * 1e3));
        }
        Ok(slo)
    }

    /// How many of the requests that count meet it. A failed one does not; of gaps, 99 in 100 must.
    pub fn goodput(&self, recording: &Recording) -> u64 {
        let counted = recording.samples.iter().filter(|s| !s.warmup && s.ended == Ended::Ok);
        counted.filter(|sample| self.is_met(recording, sample)).count() as u64
    }

    fn is_met(&self, recording: &Recording, sample: &Sample) -> bool {
        self.bounds.iter().all(|(figure, bound)| match figure {
            Figure::Ttft => sample.ttft_ms().is_none_or(|ms| ms <= *bound),
            Figure::Tpot => sample.tpot_ms().is_none_or(|ms| ms <= *bound),
            Figure::E2e => sample.e2e_ms() <= *bound,
            Figure::Itl => {
                let gaps = recording.gaps_of(sample);
                let over = gaps.iter().filter(|gap| f64::from(**gap) > *bound).count();
                over * 100 <= gaps.len()
            }
        })
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (figure, bound)) in self.bounds.iter().enumerate() {
            let name =
                FIGURES.iter().find(|(_, known)| known == figure).map_or("", |(name, _)| name);
            write!(f, "{}{name} <= {bound} ms", if index > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::sample::tests::recording;

    fn ms(text: &str) -> Result<Duration, &'static str> {
        let number = text.strip_suffix("ms").and_then(|n| n.parse().ok()).ok_or("no time")?;
        Ok(Duration::from_millis(number))
    }

    #[test]
    fn all_bounds_must_be_met() {
        // TTFT 10, gaps of 5 and 5; TTFT 30, gaps of 5 and 20.
        let recording = recording(&[(10, &[5, 5]), (30, &[5, 20])]);
        for (text, met) in [
            ("ttft=30ms", 2),
            ("ttft=29ms", 1),
            ("itl=19ms", 1),
            ("tpot=12ms", 1),
            ("tpot=13ms", 2),
            ("e2e=20ms", 1),
            ("ttft=30ms,itl=5ms", 1),
            ("ttft=9ms,itl=50ms", 0),
        ] {
            assert_eq!(Slo::parse(text, ms).unwrap().goodput(&recording), met, "{text}");
        }
        assert_eq!(
            Slo::parse("ttft=500ms,itl=50ms", ms).unwrap().to_string(),
            "ttft <= 500 ms, itl <= 50 ms"
        );
    }

    #[test]
    fn faults_are_sentences() {
        for (text, message) in [
            ("ttft", "\"ttft\" is no bound, as ttft=500ms"),
            ("foo=1ms", "\"foo\" is none of ttft, itl, tpot, e2e"),
            ("ttft=1ms,ttft=2ms", "ttft stands twice"),
            ("ttft=5", "\"ttft=5\": no time"),
        ] {
            assert_eq!(Slo::parse(text, ms).unwrap_err(), message);
        }
    }
}
