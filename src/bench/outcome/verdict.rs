//! Whether the generator kept up: if it did not, a run's figures are its own as much as the
//! server's, and no reader should have to find that out.

use serde_json::{Value, json};

use crate::bench::plan::Plan;
use crate::bench::record::Record;
use crate::bench::sample::Recording;
use crate::metrics::durations::Durations;

/// One in a hundred requests may go out this late, in milliseconds: twice the error that is
/// promised of a percentile, at rates where nothing is short. How long arrivals wait to be read is
/// told and not judged by itself: the kernel stamps them when they come, and in a closed loop the
/// next request is late by as much, and is judged.
pub const LAG_MAX_MS: f64 = 1.0;
/// The share of gaps between texts that may be lost since the texts were read late, and together:
/// past it the 99th percentile is not what it says.
pub const BLURRED_SHARE_MAX: f64 = 0.01;
/// The share of its core that a generator may use: past it, queueing theory says, arrivals wait ten
/// times as long as they take.
pub const CPU_SHARE_MAX: f64 = 0.9;
/// The share of the rate asked for that must have been sent.
pub const RATE_SHARE_MIN: f64 = 0.98;

/// How the generator did.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Why the generator was the bound; empty: it was not.
    pub reasons: Vec<String>,
    /// Of these, reasons that make it the bound of the times between texts alone.
    gaps_only: usize,
    cores: usize,
    cpu_s: f64,
    cpu_share: f64,
    send_lag: Durations,
    read_lag: Durations,
    sent_share: Option<f64>,
    blurred_share: f64,
    /// Requests whose first text was read late, and with another.
    first_blurred_share: f64,
}

impl Verdict {
    /// Of a run.
    pub fn of(recording: &Recording, plan: &Plan<'_>, record: &Record) -> Verdict {
        let mut verdict = Verdict { cores: recording.cores.len(), ..Verdict::default() };
        for core in &recording.cores {
            verdict.cpu_s += core.cpu_s;
            let share = if core.wall_s > 0.0 { core.cpu_s / core.wall_s } else { 0.0 };
            verdict.cpu_share = verdict.cpu_share.max(share);
            verdict.read_lag.merge(&core.read_lag);
        }
        let (mut gaps, mut blurred) = (0, 0);
        let (mut firsts, mut firsts_blurred) = (0, 0);
        for sample in recording.samples.iter().filter(|sample| !sample.warmup) {
            verdict.send_lag.record(sample.sent.micros_since(sample.startable));
            gaps += u64::from(sample.events.saturating_sub(1));
            blurred += u64::from(sample.blurred);
            firsts += u64::from(sample.first.is_some());
            firsts_blurred += u64::from(sample.first_blurred);
        }
        verdict.first_blurred_share = firsts_blurred as f64 / firsts.max(1) as f64;
        verdict.blurred_share = blurred as f64 / gaps.max(1) as f64;
        let sends: Vec<u64> = recording.samples.iter().map(|sample| sample.sent.0).collect();
        let starts: Vec<u64> = recording.samples.iter().map(|sample| sample.intended.0).collect();
        let span = |times: &[u64]| match (times.iter().min(), times.iter().max()) {
            (Some(min), Some(max)) => (max - min) as f64,
            _ => 0.0,
        };
        if plan.arrivals.is_open() && plan.concurrency.is_none() && span(&sends) > 0.0 {
            verdict.sent_share = Some(span(&starts) / span(&sends));
        }
        verdict.judge(record.wall_s);
        verdict
    }

    fn judge(&mut self, wall_s: f64) {
        let p99 = self.send_lag.percentile_ms(99.0, 100).unwrap_or(0.0);
        if p99 > LAG_MAX_MS {
            self.reasons.push(format!(
                "1 in 100 requests went out over {p99:.2} ms late (limit {LAG_MAX_MS} ms)"
            ));
        }
        // Under a tenth of a second nothing is known of shares.
        if self.cpu_share > CPU_SHARE_MAX && wall_s > 0.1 {
            self.reasons.push(format!(
                "it used {:.0} % of its core (limit {:.0} %); give it more with --cores",
                100.0 * self.cpu_share,
                100.0 * CPU_SHARE_MAX
            ));
        }
        if self.first_blurred_share > BLURRED_SHARE_MAX {
            self.reasons.push(format!(
                "{:.1} % of the first texts have the time of a later one: it read them late, and \
                 together (limit {:.0} %)",
                100.0 * self.first_blurred_share,
                100.0 * BLURRED_SHARE_MAX
            ));
        }
        if let Some(share) = self.sent_share.filter(|share| *share < RATE_SHARE_MIN) {
            self.reasons.push(format!(
                "it sent {:.1} % of the rate asked for (limit {:.0} %)",
                100.0 * share,
                100.0 * RATE_SHARE_MIN
            ));
        }
        if self.blurred_share > BLURRED_SHARE_MAX {
            self.reasons.push(format!(
                "{:.1} % of the gaps between texts were lost: it read the texts late, and together \
                 (limit {:.0} %)",
                100.0 * self.blurred_share,
                100.0 * BLURRED_SHARE_MAX
            ));
            self.gaps_only = 1;
        }
    }

    /// Whether the generator was the bound.
    pub fn is_limited(&self) -> bool {
        !self.reasons.is_empty()
    }

    /// Which figures are the generator's as much as the server's; None: none. What comes bears the
    /// kernel's stamp, so that late reads harm nothing else where starts were kept.
    pub fn touches(&self) -> Option<&'static str> {
        match self.reasons.len() {
            0 => None,
            all if all == self.gaps_only => Some("itl_ms"),
            _ => Some("all"),
        }
    }

    /// For the result.
    pub fn to_json(&self) -> Value {
        json!({
            "limited": self.is_limited(), "touches": self.touches(),
            "reasons": self.reasons, "cores": self.cores,
            "cpu_s": self.cpu_s, "cpu_share": self.cpu_share, "sent_share": self.sent_share,
            "send_lag_ms": self.send_lag.to_json(), "read_lag_ms": self.read_lag.to_json(),
            "blurred_share": self.blurred_share,
            "first_blurred_share": self.first_blurred_share,
            "limits": {
                "lag_p99_ms": LAG_MAX_MS, "cpu_share": CPU_SHARE_MAX, "sent_share": RATE_SHARE_MIN,
                "blurred_share": BLURRED_SHARE_MAX,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_named() {
        let mut late = Durations::default();
        (0..1_000).for_each(|n| late.record(if n < 900 { 50 } else { 5_000 }));
        let mut verdict = Verdict {
            cpu_share: 0.97,
            send_lag: late,
            sent_share: Some(0.5),
            blurred_share: 0.02,
            first_blurred_share: 0.03,
            ..Verdict::default()
        };
        verdict.judge(1.0);
        assert_eq!(verdict.reasons.len(), 5, "{:?}", verdict.reasons);
        assert_eq!(verdict.touches(), Some("all"));
        assert!(verdict.reasons[0].contains("went out over 5.00 ms late"), "{:?}", verdict.reasons);
        assert!(verdict.reasons[2].starts_with("3.0 % of the first"), "{:?}", verdict.reasons);
        assert!(verdict.reasons[4].starts_with("2.0 % of the gaps"), "{:?}", verdict.reasons);
        let mut fine = Verdict {
            cpu_share: 0.5,
            sent_share: Some(0.999),
            blurred_share: 0.009,
            ..Verdict::default()
        };
        // However late it read: the kernel's stamps say when it came.
        (0..1_000).for_each(|_| fine.read_lag.record(9_000));
        fine.judge(1.0);
        assert!(!fine.is_limited() && fine.touches().is_none());
        // Behind a stall thousands of texts come at once: their ends are known, and starts kept.
        let mut gaps = Verdict { blurred_share: 0.16, ..fine };
        gaps.judge(1.0);
        assert!(gaps.is_limited());
        assert_eq!(gaps.touches(), Some("itl_ms"));
    }
}
