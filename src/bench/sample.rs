//! What is kept of a run: each request's times, and the generator's own.

use super::report::Report;
use crate::backend::{Account, TokenSource};
use crate::clock::Instant;
use crate::metrics::durations::Durations;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Well.
    Ok,
    /// Cancelled by the run, as it was told to.
    Cancelled,
    /// Badly.
    Failed,
}

/// A request's times.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Its number in the run.
    pub number: u64,
    /// It was ahead of those that count.
    pub warmup: bool,
    /// How it ended.
    pub ended: Ended,
    /// When it should have started: by the schedule, or when a place for it became free.
    pub intended: Instant,
    /// When it could have: it also had a place then (with a bound on requests at once).
    pub startable: Instant,
    /// When it was written.
    pub sent: Instant,
    /// When the first text came.
    pub first: Option<Instant>,
    /// When the last text came.
    pub last: Option<Instant>,
    /// When it had ended.
    pub end: Instant,
    /// Tokens of the prompt, as the server says.
    pub prompt_tokens: u32,
    /// Tokens of the answer, as the server says; if it does not, arrivals of text.
    pub tokens: u32,
    /// Arrivals of text.
    pub events: u32,
    /// Gaps that are told as none, and may have been longer than `load::look::BLUR_MAX`: the texts
    /// were read late, and together.
    pub blurred: u32,
    /// The first text has the stamp of a later one, which may be off by more than a hundredth of
    /// the time to it.
    pub first_blurred: bool,
    /// Where its gaps begin in `Recording::gaps_ms`; there are `events - 1`.
    pub gaps_at: usize,
    /// The server's own figures.
    pub account: Account,
    /// How long the server says that it waited there (binary protocol).
    pub server_queue_us: Option<u64>,
    /// How long the server says that its first text took from receipt (binary protocol).
    pub server_first_us: Option<u64>,
}

impl Sample {
    /// Whether it counts: ended well, and not in the warm-up.
    pub fn counts(&self) -> bool {
        self.ended == Ended::Ok && !self.warmup
    }

    /// From the intended start to the first text, in milliseconds: what a user feels.
    pub fn ttft_ms(&self) -> Option<f64> {
        self.first.map(|first| ms(first.since(self.intended)))
    }

    /// From the write to the first text: the same without the wait for the generator or a place.
    pub fn ttft_service_ms(&self) -> Option<f64> {
        self.first.map(|first| ms(first.since(self.sent)))
    }

    /// From the intended start to the end.
    pub fn e2e_ms(&self) -> f64 {
        ms(self.end.since(self.intended))
    }

    /// From the write to the end.
    pub fn service_ms(&self) -> f64 {
        ms(self.end.since(self.sent))
    }

    /// From the intended start to the write.
    pub fn queue_ms(&self) -> f64 {
        ms(self.sent.since(self.intended))
    }

    /// Time for each token after the first: (last - first) / (tokens - 1), with the server's count.
    pub fn tpot_ms(&self) -> Option<f64> {
        let span = ms(self.last?.since(self.first?));
        (self.tokens > 1).then(|| span / f64::from(self.tokens - 1))
    }
}

/// Milliseconds.
pub fn ms(duration: std::time::Duration) -> f64 {
    duration.as_nanos() as f64 / 1e6
}

/// What one core of the generator used and how late it was.
#[derive(Clone, Debug, Default)]
pub struct CoreUse {
    /// Processor time of its thread, in seconds; waiting for a moment by looking at the clock is
    /// not counted.
    pub cpu_s: f64,
    /// From its first start to its last end, in seconds.
    pub wall_s: f64,
    /// From the kernel's stamp of what came to its being read.
    pub read_lag: Durations,
}

/// A run.
#[derive(Debug, Default)]
pub struct Recording {
    /// Every request in the order of intended starts, if they were kept.
    pub samples: Vec<Sample>,
    /// Times between two arrivals of text, request by request.
    pub gaps_ms: Vec<f32>,
    /// Counts and histograms.
    pub report: Report,
    /// When the run began.
    pub began: Instant,
    /// The generator's cores.
    pub cores: Vec<CoreUse>,
    /// Requests that were sent once more, since their connection turned out to be closed.
    pub resent: u64,
    /// The run ended early, since too many requests failed.
    pub gave_up: bool,
    /// The run ended early, since it was interrupted.
    pub interrupted: bool,
    /// Requests that were due by then, and had not been sent for want of a place.
    pub unsent: u64,
}

impl Recording {
    /// The gaps of a request.
    pub fn gaps_of(&self, sample: &Sample) -> &[f32] {
        let count = sample.events.saturating_sub(1) as usize;
        self.gaps_ms.get(sample.gaps_at..sample.gaps_at + count).unwrap_or_default()
    }

    /// Who counted the tokens: the weakest of what the requests say.
    pub fn tokens_source(&self) -> &'static str {
        let mut source = "none";
        for sample in self.samples.iter().filter(|sample| sample.counts()) {
            match sample.account.source {
                Some(TokenSource::Timings) => source = "timings",
                Some(TokenSource::Usage) => source = "usage",
                None if sample.tokens > 0 => return "events",
                None => {}
            }
        }
        source
    }

    pub(super) fn merge(&mut self, other: Recording) {
        let shift = self.gaps_ms.len();
        self.gaps_ms.extend(other.gaps_ms);
        self.samples.extend(other.samples.into_iter().map(|mut sample| {
            sample.gaps_at += shift;
            sample
        }));
        self.report.merge(&other.report);
        self.cores.extend(other.cores);
        self.resent += other.resent;
        self.gave_up |= other.gave_up;
        self.interrupted |= other.interrupted;
        self.unsent += other.unsent;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    /// A run whose requests start one after the other, each with its TTFT and gaps in ms.
    pub fn recording(requests: &[(u64, &[u64])]) -> Recording {
        let mut recording = Recording { began: Instant(1), ..Recording::default() };
        let mut at = Instant(1);
        for (number, (ttft, gaps)) in requests.iter().enumerate() {
            let first = at + Duration::from_millis(*ttft);
            let last = first + Duration::from_millis(gaps.iter().sum());
            recording.samples.push(Sample {
                number: number as u64,
                warmup: false,
                ended: Ended::Ok,
                intended: at,
                startable: at,
                sent: at,
                first: Some(first),
                last: Some(last),
                end: last,
                prompt_tokens: 1,
                tokens: gaps.len() as u32 + 1,
                events: gaps.len() as u32 + 1,
                blurred: 0,
                first_blurred: false,
                gaps_at: recording.gaps_ms.len(),
                account: Account::default(),
                server_queue_us: None,
                server_first_us: None,
            });
            recording.gaps_ms.extend(gaps.iter().map(|gap| *gap as f32));
            at = last;
        }
        recording
    }

    #[test]
    fn a_token_takes_what_lies_between_the_first_and_the_last() {
        let recording = recording(&[(10, &[5, 20, 5]), (7, &[])]);
        let [long, short] = &recording.samples[..] else { panic!() };
        assert_eq!((long.ttft_ms(), long.tpot_ms(), long.e2e_ms()), (Some(10.0), Some(10.0), 40.0));
        assert_eq!((short.tpot_ms(), short.e2e_ms()), (None, 7.0));
        assert_eq!(recording.gaps_of(long), [5.0, 20.0, 5.0]);
        assert!(recording.gaps_of(short).is_empty());
        assert_eq!(recording.tokens_source(), "events");
    }
}
