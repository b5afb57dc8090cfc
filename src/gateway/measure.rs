//! What the gateway counts, and its page for Prometheus.

use crate::metrics::prometheus::{Page, label};
use crate::metrics::{Counter, Gauge, LatencyHistogram};
use crate::wire::frame::ErrorCode;

/// One core's counters.
#[derive(Debug, Default)]
pub struct Measures {
    /// Open client connections.
    pub connections: Gauge,
    /// Requests that have not ended.
    pub requests: Gauge,
    /// Open connections to backends.
    pub upstreams: Gauge,
    /// Requests that came, by protocol.
    pub binary_requests: Counter,
    /// Requests that came over HTTP.
    pub http_requests: Counter,
    /// Requests that ended well.
    pub completed: Counter,
    /// Requests that ended badly, by code - 1.
    pub failed: [Counter; ErrorCode::ALL.len()],
    /// Requests whose client left: while queued, before the first token, after it.
    pub cancelled: [Counter; 3],
    /// Tokens, as backends tell them.
    pub tokens: Counter,
    /// Tries at another backend.
    pub retries: Counter,
    /// Times that a slow reader had its backend paused.
    pub stalls: Counter,
    /// Connections refused because of `--max-connections` or for want of descriptors.
    pub refused_connections: Counter,
    /// Receipt to dispatch.
    pub queue: LatencyHistogram,
    /// Receipt to first text.
    pub ttft: LatencyHistogram,
    /// Receipt to end.
    pub total: LatencyHistogram,
    /// Of the pool (core 0): waiting requests.
    pub waiting: Gauge,
}

/// The names of `Measures::cancelled`.
const STAGES: [&str; 3] = ["queued", "prefill", "decode"];

/// All cores' counters as a page.
pub fn page(cores: &[Measures]) -> String {
    let sum = |read: &dyn Fn(&Measures) -> u64| cores.iter().map(read).sum::<u64>();
    let plain = |value: u64| vec![(String::new(), value)];
    let mut page = Page::new();
    page.metric(
        "cnse_connections",
        "gauge",
        "Open client connections.",
        &plain(sum(&|m| m.connections.read())),
    );
    page.metric(
        "cnse_requests_active",
        "gauge",
        "Requests that have not ended.",
        &plain(sum(&|m| m.requests.read())),
    );
    page.metric(
        "cnse_requests_waiting",
        "gauge",
        "Requests that wait for a slot.",
        &plain(sum(&|m| m.waiting.read())),
    );
    page.metric(
        "cnse_upstream_connections",
        "gauge",
        "Open connections to backends.",
        &plain(sum(&|m| m.upstreams.read())),
    );
    let by_protocol = [
        (label("protocol", "binary"), sum(&|m| m.binary_requests.read())),
        (label("protocol", "http"), sum(&|m| m.http_requests.read())),
    ];
    page.metric("cnse_requests_total", "counter", "Requests that came.", &by_protocol);
    page.metric(
        "cnse_requests_completed_total",
        "counter",
        "Requests that ended well.",
        &plain(sum(&|m| m.completed.read())),
    );
    let failed: Vec<_> = ErrorCode::ALL
        .iter()
        .enumerate()
        .map(|(i, code)| (label("code", code.name()), sum(&|m| m.failed[i].read())))
        .collect();
    page.metric("cnse_requests_failed_total", "counter", "Requests that ended badly.", &failed);
    let cancelled: Vec<_> = STAGES
        .iter()
        .enumerate()
        .map(|(i, stage)| (label("stage", stage), sum(&|m| m.cancelled[i].read())))
        .collect();
    page.metric("cnse_cancelled_total", "counter", "Requests whose client left.", &cancelled);
    for (name, help, read) in COUNTERS {
        page.metric(name, "counter", help, &plain(sum(&|m| read(m).read())));
    }
    let queue = cores.iter().map(|m| &m.queue);
    page.histogram("cnse_queue_seconds", "Receipt to dispatch.", queue);
    page.histogram("cnse_ttft_seconds", "Receipt to first text.", cores.iter().map(|m| &m.ttft));
    page.histogram("cnse_request_seconds", "Receipt to end.", cores.iter().map(|m| &m.total));
    page.finish()
}

type Read = fn(&Measures) -> &Counter;

const COUNTERS: [(&str, &str, Read); 4] = [
    ("cnse_tokens_total", "Tokens, as backends tell them.", |m| &m.tokens),
    ("cnse_retries_total", "Tries at another backend.", |m| &m.retries),
    ("cnse_stalls_total", "Times that a slow reader had its backend paused.", |m| &m.stalls),
    ("cnse_connections_refused_total", "Connections over the limit.", |m| &m.refused_connections),
];
