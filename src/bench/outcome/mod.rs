//! What a run says: its figures in the one shape, and a table for people.
//!
//! Response times (`ttft_ms`, `e2e_ms`, `queue_ms`) count from the intended start, which is what
//! users feel; service times (`ttft_service_ms`, `service_ms`) from the write. Failed, cancelled
//! and warm-up requests are in none of them. `itl_ms` is every gap between two arrivals of text,
//! `tpot_ms` each request's mean time a token: a stall shows in the first and drowns in the second.

pub mod series;
mod settle;
pub mod slo;
pub mod verdict;

use serde_json::{Value, json};

use self::slo::Slo;
use self::verdict::Verdict;
use super::plan::Plan;
use super::record::{Distribution, Record};
use super::sample::{Recording, Sample, ms};
use super::statistics::dependence::{mean_interval, quantile_inflation};
use super::statistics::{CONFIDENCE, Interval, mean};
use crate::bench::arrival::Arrivals;
use crate::bench::workload::Source;
use crate::clock::Instant;
use crate::metrics::durations::Durations;

/// A share of cached prompt tokens past which prompts that were meant to be new were not.
const CACHED_SHARE_MAX: f64 = 0.01;
/// Answers that are this much shorter than asked for are told.
const SHORT_SHARE: f64 = 0.9;
/// Slices of a run whose token counts show how the rate varies.
const SLICES: usize = 200;

/// A run's figures, and what a reader must be told ahead of them.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// All of it.
    pub record: Record,
    /// Whether the generator kept up.
    pub verdict: Verdict,
    /// What was left out as a start-up, and why.
    pub dropped: Option<String>,
    /// What makes figures mean something else than they seem to.
    pub warnings: Vec<String>,
}

/// The times of those requests that count, kind by kind, in the order of intended starts.
fn kinds(recording: &Recording) -> Vec<(&'static str, Vec<f64>)> {
    let counted: Vec<&Sample> = recording.samples.iter().filter(|s| s.counts()).collect();
    let of = |time: &dyn Fn(&Sample) -> Option<f64>| -> Vec<f64> {
        counted.iter().filter_map(|sample| time(sample)).collect()
    };
    let us = |us: Option<u64>| us.map(|us| us as f64 / 1e3);
    let gaps = counted.iter().flat_map(|sample| recording.gaps_of(sample));
    let mut kinds = vec![
        ("queue_ms", of(&|s| Some(s.queue_ms()))),
        ("ttft_ms", of(&Sample::ttft_ms)),
        ("itl_ms", gaps.map(|gap| f64::from(*gap)).collect()),
        ("tpot_ms", of(&Sample::tpot_ms)),
        ("e2e_ms", of(&|s| Some(s.e2e_ms()))),
        ("ttft_service_ms", of(&Sample::ttft_service_ms)),
        ("service_ms", of(&|s| Some(s.service_ms()))),
    ];
    let server = [
        ("server_queue_ms", of(&|s| us(s.server_queue_us))),
        ("server_ttft_ms", of(&|s| us(s.server_first_us))),
        ("server_prompt_ms", of(&|s| us(s.account.prompt_us))),
        (
            "server_tpot_ms",
            of(&|s| {
                us(s.account.predicted_us.filter(|_| s.tokens > 1))
                    .map(|ms| ms / f64::from(s.tokens - 1))
            }),
        ),
    ];
    kinds.extend(server.into_iter().filter(|(_, values)| !values.is_empty()));
    kinds
}

/// With intervals that allow for samples that depend on each other.
pub fn distribution(series: &[f64]) -> Distribution {
    let mut durations = Durations::default();
    series.iter().for_each(|ms| durations.record((ms * 1e3).round() as u64));
    // The same few quantiles are asked for again and again, and each look costs a pass.
    let known = std::cell::RefCell::new(Vec::<(f64, f64)>::new());
    Distribution::new(&durations, |q| {
        let found = known.borrow().iter().find(|(of, _)| *of == q).map(|(_, value)| *value);
        found.unwrap_or_else(|| {
            let value = quantile_inflation(series, q);
            known.borrow_mut().push((q, value));
            value
        })
    })
}

impl Outcome {
    /// Of a run that was done as planned. What is found to be its start-up becomes a part of its
    /// warm-up, if the plan has it so.
    pub fn new(recording: &mut Recording, plan: &Plan<'_>, slo: Option<&Slo>) -> Outcome {
        let settled = settle::settle(recording, plan.settle);
        let recording = &*recording;
        let mut record = Record::new(Vec::new(), String::new());
        let report = &recording.report;
        (record.wall_s, record.ok, record.errors) =
            (report.wall_s, report.ok, report.error_count());
        record.errors_by_kind.clone_from(&report.errors);
        let mut warnings = Vec::new();
        rates(recording, plan, &mut record);
        for (name, series) in kinds(recording) {
            record.set_distribution(name, &distribution(&series));
        }
        tokens(recording, plan, &mut record, &mut warnings);
        settled.tell(plan.warmup, &mut record, &mut warnings);
        if let Some(slo) = slo {
            let met = slo.goodput(recording);
            let rate = if report.wall_s > 0.0 { met as f64 / report.wall_s } else { 0.0 };
            let all = report.ok + report.error_count();
            record.set("slo", slo.to_string());
            record.set("goodput_requests_per_s", rate);
            record.set("goodput_share", met as f64 / all.max(1) as f64);
        }
        let verdict = Verdict::of(recording, plan, &record);
        record.set("generator", verdict.to_json());
        record.set("resent", recording.resent);
        if recording.gave_up {
            warnings.push("the run ended early: too many requests failed".to_owned());
        }
        if recording.interrupted {
            record.set("interrupted", true);
            warnings.push(cut_short(recording, plan));
        }
        record.series = series::of(recording);
        record.set("warnings", warnings.clone());
        Outcome { record, verdict, dropped: settled.why(), warnings }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let record = &self.record;
        let number = |name: &str| record.number(name).unwrap_or(0.0);
        let mut text = String::new();
        for reason in &self.verdict.reasons {
            text += &format!("GENERATOR-LIMITED: {reason}\n");
        }
        text += match self.verdict.touches() {
            None => "",
            Some("itl_ms") => {
                "  the times between texts are the generator's as much as the server's; requests \
                 went out in time, and the others count from the kernel's stamps\n"
            }
            Some(_) => "  these figures are the generator's as much as the server's\n",
        };
        text += &format!(
            "{} ok, {} failed in {:.2} s: {:.1} requests/s, {:.1} tokens/s (counted by {})\n",
            record.ok,
            record.errors,
            record.wall_s,
            number("requests_per_s"),
            number("tokens_per_s"),
            record.figures.get("tokens_source").and_then(Value::as_str).unwrap_or("nobody"),
        );
        for (kind, count) in &record.errors_by_kind {
            text += &format!("  {count} x {kind}\n");
        }
        if let Some(Value::String(slo)) = record.figures.get("slo") {
            text += &format!(
                "  goodput under {slo}: {:.1} requests/s, {:.1} % of all\n",
                number("goodput_requests_per_s"),
                100.0 * number("goodput_share"),
            );
        }
        let resent = number("resent");
        if resent > 0.0 {
            text += &format!("  {resent} sent again: the server had closed their connection\n");
        }
        if let Some(dropped) = &self.dropped {
            text += &format!("  {dropped}\n");
        }
        for warning in &self.warnings {
            text += &format!("  warning: {warning}\n");
        }
        text += "ms                     n       p50       p95       p99     p99.9       max\
                 \x20  95 % of p50 and of p99\n";
        for (name, heading) in ROWS {
            if let Some(distribution) = record.distribution(name) {
                text += &row(heading, &distribution);
            }
        }
        text
    }
}

/// What an interruption left of a run.
fn cut_short(recording: &Recording, plan: &Plan<'_>) -> String {
    let of = plan.iters.map_or(String::new(), |iters| format!(" of {iters}"));
    let unsent = match recording.unsent {
        0 => String::new(),
        count => {
            format!("; {count} were due and had not been sent, which would have waited the longest")
        }
    };
    format!("the run was interrupted after {}{of} requests{unsent}", recording.report.ok)
}

const ROWS: [(&str, &str); 11] = [
    ("queue_ms", "queue"),
    ("ttft_ms", "TTFT"),
    ("itl_ms", "between texts"),
    ("tpot_ms", "a token"),
    ("e2e_ms", "end to end"),
    ("ttft_service_ms", "  TTFT, sent"),
    ("service_ms", "  e2e, sent"),
    ("server_queue_ms", "  its own queue"),
    ("server_ttft_ms", "  its own TTFT"),
    ("server_prompt_ms", "  its own prompt"),
    ("server_tpot_ms", "  its own token"),
];

fn row(name: &str, distribution: &Distribution) -> String {
    let Distribution { n, p50, p95, p99, p999, max, ci, .. } = distribution;
    let cell = |value: &Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.2}"));
    let mut row = format!("{name:<16}{n:>8}");
    for value in [p50, p95, p99, p999, max] {
        row += &format!("{:>10}", cell(value));
    }
    for name in ["p50", "p99"] {
        if let Some(Interval { low, high }) = ci.get(name) {
            row += &format!("  {low:.2} to {high:.2}");
        }
    }
    row + "\n"
}

fn rates(recording: &Recording, plan: &Plan<'_>, record: &mut Record) {
    let report = &recording.report;
    let per_s = |count: u64| if report.wall_s > 0.0 { count as f64 / report.wall_s } else { 0.0 };
    record.set("requests_per_s", per_s(report.ok));
    record.set("tokens_per_s", per_s(report.tokens));
    record.set("tokens", report.tokens);
    record.set("cancelled", report.cancelled);
    record.set("late", report.late);
    record.set("offered_requests_per_s", json!(plan.arrivals.rate()));
    let Some((start, end)) = full_window(recording, plan) else { return };
    let slices = token_slices(recording, start, end);
    let seconds = end.since(start).as_secs_f64();
    let slice_s = seconds / slices.len() as f64;
    let rates: Vec<f64> = slices.iter().map(|tokens| tokens / slice_s).collect();
    let ended = |s: &&Sample| s.counts() && s.end > start && s.end <= end;
    let requests = recording.samples.iter().filter(ended).count() as f64 / seconds;
    let interval = mean_interval(&rates, CONFIDENCE);
    record.set(
        "steady",
        json!({
            "from_s": start.since(recording.began).as_secs_f64(), "for_s": seconds,
            "requests_per_s": requests, "tokens_per_s": mean(&rates),
            "tokens_per_s_ci": interval.map(|i| [i.low, i.high]),
        }),
    );
}

/// The part of a run in which it was under its full load: from the first request that counts to the
/// start of the last. After that a closed loop runs dry.
fn full_window(recording: &Recording, plan: &Plan<'_>) -> Option<(Instant, Instant)> {
    let counted = || recording.samples.iter().filter(|sample| !sample.warmup);
    let start = counted().map(|sample| sample.sent).min()?;
    let last = counted().map(|sample| sample.sent).max()?;
    let full = plan.arrivals.is_open() || counted().count() > 2 * plan.concurrency.unwrap_or(1);
    (full && last > start).then_some((start, last))
}

/// Tokens in equal slices of a window; those of a request are spread from its first text to its
/// last.
fn token_slices(recording: &Recording, start: Instant, end: Instant) -> Vec<f64> {
    let mut slices = vec![0.0; SLICES];
    let width = (end.0 - start.0) as f64 / SLICES as f64;
    let mut add = |from: Instant, to: Instant, tokens: f64| {
        let place = |at: Instant| (at.0 as f64 - start.0 as f64) / width;
        let (from, to) = (place(from), place(to).max(place(from) + 1e-9));
        let first = from.floor().max(0.0) as usize;
        let last = (to.floor().max(0.0) as usize).min(SLICES - 1);
        for (index, slice) in slices.iter_mut().enumerate().take(last + 1).skip(first) {
            let overlap = to.min(index as f64 + 1.0) - from.max(index as f64);
            *slice += tokens * (overlap / (to - from)).clamp(0.0, 1.0);
        }
    };
    for sample in recording.samples.iter().filter(|sample| sample.tokens > 0) {
        let (Some(first), Some(last)) = (sample.first, sample.last) else { continue };
        if first < end && last >= start {
            add(first, last, f64::from(sample.tokens));
        }
    }
    slices
}

fn tokens(recording: &Recording, plan: &Plan<'_>, record: &mut Record, warnings: &mut Vec<String>) {
    let counted: Vec<&Sample> = recording.samples.iter().filter(|s| s.counts()).collect();
    let sum = |of: &dyn Fn(&Sample) -> u64| counted.iter().map(|s| of(s)).sum::<u64>();
    let (prompt, answer) = (sum(&|s| s.prompt_tokens.into()), sum(&|s| s.tokens.into()));
    let events = sum(&|s| s.events.into());
    let source = recording.tokens_source();
    record.set("tokens_source", source);
    record.set("prompt_tokens", prompt);
    record.set("text_events", events);
    let each = counted.len().max(1) as f64;
    record.set("prompt_tokens_mean", prompt as f64 / each);
    record.set("completion_tokens_mean", answer as f64 / each);
    if source == "events" {
        warnings.push(
            "the server does not say how many tokens there were: arrivals of text are counted"
                .to_owned(),
        );
    } else if (events as f64) < 0.99 * answer as f64 {
        warnings.push(format!(
            "{events} arrivals of text for {answer} tokens: times between texts are not those \
             between tokens"
        ));
    }
    if let Some(asked) = plan.workload.options.max_tokens
        && (answer as f64) < SHORT_SHARE * f64::from(asked) * each
        && !counted.is_empty()
    {
        warnings.push(format!(
            "answers have {:.1} tokens of {asked} asked for: they end by themselves (--ignore-eos)",
            answer as f64 / each
        ));
    }
    let known = counted.iter().any(|s| s.account.cached_tokens.is_some());
    if known && prompt > 0 {
        let cached = sum(&|s| s.account.cached_tokens.unwrap_or(0).into());
        let share = cached as f64 / prompt as f64;
        record.set("cached_tokens_share", share);
        let is_cold = plan.workload.turns <= 1
            && matches!(&plan.workload.source, Source::Synthetic(s) if s.shared == 0);
        if is_cold && share >= CACHED_SHARE_MAX {
            warnings.push(format!(
                "{:.1} % of the prompts' tokens came from the server's cache, though no two prompts \
                 begin alike",
                100.0 * share
            ));
        }
    }
}

/// One request as a line of JSON, for readers of raw data.
pub fn request_line(recording: &Recording, sample: &Sample) -> String {
    let at = |instant: Instant| ms(instant.since(recording.began)) / 1e3;
    json!({
        "id": format!("cnse-{}", sample.number), "warmup": sample.warmup,
        "ended": format!("{:?}", sample.ended).to_lowercase(),
        "intended_s": at(sample.intended), "queue_ms": sample.queue_ms(),
        "ttft_ms": sample.ttft_ms(), "ttft_service_ms": sample.ttft_service_ms(),
        "e2e_ms": sample.e2e_ms(), "service_ms": sample.service_ms(), "tpot_ms": sample.tpot_ms(),
        "gaps_ms": recording.gaps_of(sample), "prompt_tokens": sample.prompt_tokens,
        "tokens": sample.tokens, "cached_tokens": sample.account.cached_tokens,
        "server_prompt_us": sample.account.prompt_us,
        "server_predicted_us": sample.account.predicted_us,
        "server_first_us": sample.server_first_us,
    })
    .to_string()
}

/// What arrivals are called in a result.
pub fn arrivals_name(arrivals: &Arrivals) -> String {
    match arrivals {
        Arrivals::Closed => "closed loop".to_owned(),
        Arrivals::Fixed { rate } => format!("{rate} requests/s at equal intervals"),
        Arrivals::Gamma { rate, shape } if *shape == 1.0 => format!("{rate} requests/s, Poisson"),
        Arrivals::Gamma { rate, shape } => format!("{rate} requests/s, gamma of shape {shape}"),
        Arrivals::Trace(lines) => format!("a trace of {} requests", lines.len()),
    }
}
