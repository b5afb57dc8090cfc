//! What a run brought, in the one shape that every command with numbers prints.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::machine::environment::Environment;
use crate::metrics::durations::{Durations, HEADING};

/// A run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The command line.
    pub command: Vec<String>,
    /// When it began (RFC 3339).
    pub started_at: String,
    /// From the first request to the last answer, in seconds; warm-up excluded.
    pub wall_s: f64,
    /// Requests that ended well.
    pub ok: u64,
    /// Requests that the run itself cancelled, as it was told to.
    pub cancelled: u64,
    /// Requests that failed, by what they said.
    pub errors: BTreeMap<String, u64>,
    /// Requests that were sent later than intended by more than a millisecond (open loop).
    pub late: u64,
    /// Tokens of answers.
    pub tokens: u64,
    /// Bytes of text.
    pub text_bytes: u64,
    /// Who counted the tokens.
    pub tokens_source: &'static str,
    /// Receipt to dispatch, as the server says.
    pub queue: Durations,
    /// Intended start to first text.
    pub ttft: Durations,
    /// Between two arrivals of text of one request.
    pub itl: Durations,
    /// Intended start to end.
    pub e2e: Durations,
    /// Write to end: the same without the wait for a free connection (open loop).
    pub service: Durations,
    /// Where it was done.
    pub environment: Environment,
}

impl Report {
    /// Requests that failed.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Adds what another core of the generator counted.
    pub fn merge(&mut self, other: &Report) {
        self.ok += other.ok;
        self.cancelled += other.cancelled;
        self.late += other.late;
        self.tokens += other.tokens;
        self.text_bytes += other.text_bytes;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        for (mine, theirs) in [
            (&mut self.queue, &other.queue),
            (&mut self.ttft, &other.ttft),
            (&mut self.itl, &other.itl),
            (&mut self.e2e, &other.e2e),
            (&mut self.service, &other.service),
        ] {
            mine.merge(theirs);
        }
    }

    fn per_second(&self, count: u64) -> f64 {
        if self.wall_s > 0.0 { count as f64 / self.wall_s } else { 0.0 }
    }

    /// The result object.
    pub fn to_json(&self) -> Value {
        json!({
            "cnse": env!("CARGO_PKG_VERSION"),
            "command": self.command,
            "started_at": self.started_at,
            "wall_s": self.wall_s,
            "ok": self.ok,
            "errors": self.error_count(),
            "errors_by_kind": self.errors,
            "cancelled": self.cancelled,
            "late": self.late,
            "requests_per_s": self.per_second(self.ok),
            "tokens_per_s": self.per_second(self.tokens),
            "tokens": self.tokens,
            "tokens_source": self.tokens_source,
            "text_bytes": self.text_bytes,
            "queue_ms": self.queue.to_json(),
            "ttft_ms": self.ttft.to_json(),
            "itl_ms": self.itl.to_json(),
            "e2e_ms": self.e2e.to_json(),
            "service_ms": self.service.to_json(),
            "environment": self.environment,
        })
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{} ok, {} failed, {} cancelled in {:.2} s: {:.1} requests/s, {:.1} tokens/s\n",
            self.ok,
            self.error_count(),
            self.cancelled,
            self.wall_s,
            self.per_second(self.ok),
            self.per_second(self.tokens),
        );
        for (kind, count) in &self.errors {
            text += &format!("  {count} x {kind}\n");
        }
        if self.late > 0 {
            text += &format!(
                "  {} requests were sent over 1 ms late: this client or the server's limit was \
                 the bound\n",
                self.late
            );
        }
        text += HEADING;
        for (name, durations) in [
            ("queue", &self.queue),
            ("TTFT", &self.ttft),
            ("inter-token", &self.itl),
            ("total", &self.e2e),
        ] {
            if durations.count() > 0 {
                text += &durations.row(name);
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_samples_carry_few_percentiles() {
        let mut report = Report::default();
        (1..=100).for_each(|ms| report.ttft.record(ms * 1000));
        let ttft = report.to_json()["ttft_ms"].clone();
        assert_eq!((&ttft["n"], &ttft["p999"]), (&json!(100), &Value::Null));
        assert!((ttft["p99"].as_f64().unwrap() - 99.0).abs() < 0.2, "{ttft}");
        assert!(report.to_json()["e2e_ms"]["p50"].is_null());
        assert!(report.to_text().lines().any(|line| line.starts_with("TTFT")));
    }
}
