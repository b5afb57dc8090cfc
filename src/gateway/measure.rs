//! What the gateway counts, and its page for Prometheus.

use crate::cuda::CardUse;
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

/// All cores' counters as a page, with what the card is and did, if there is one.
pub fn page(cores: &[Measures], card: Option<&CardUse>) -> String {
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
    if let Some(card) = card {
        of_card(&mut page, card);
    }
    page.finish()
}

fn of_card(page: &mut Page, card: &CardUse) {
    let device = label("device", &format!("cuda:{}", card.ordinal));
    let named = format!("{device},{}", label("name", &card.name));
    page.metric("cnse_gpu_info", "gauge", "The card that is used.", &[(named, 1)]);
    let mut whole = |name: &str, kind: &str, help: &str, value: u64| {
        page.metric(name, kind, help, &[(device.clone(), value)]);
    };
    whole("cnse_gpu_memory_bytes", "gauge", "Memory of the card.", card.memory_bytes as u64);
    whole("cnse_gpu_held_bytes", "gauge", "Taken of it.", card.held_bytes as u64);
    let most = card.high_water_bytes as u64;
    whole("cnse_gpu_pool_high_water_bytes", "gauge", "The most in use at once.", most);
    let asked = "Times that the driver was asked for memory.";
    whole("cnse_gpu_allocations_total", "counter", asked, card.allocations);
    let mut decimal = |name: &str, kind: &str, help: &str, value: f64| {
        page.decimal(name, kind, help, &[(device.clone(), value)]);
    };
    let (kernel, transfer) = (card.kernel_ms / 1e3, card.transfer_ms / 1e3);
    decimal("cnse_gpu_kernel_seconds_total", "counter", "In kernels.", kernel);
    decimal("cnse_gpu_transfer_seconds_total", "counter", "In copies.", transfer);
    let share = "Share of the time since it was opened in which it did either.";
    decimal("cnse_gpu_utilisation_ratio", "gauge", share, card.utilisation());
}

type Read = fn(&Measures) -> &Counter;

const COUNTERS: [(&str, &str, Read); 4] = [
    ("cnse_tokens_total", "Tokens, as backends tell them.", |m| &m.tokens),
    ("cnse_retries_total", "Tries at another backend.", |m| &m.retries),
    ("cnse_stalls_total", "Times that a slow reader had its backend paused.", |m| &m.stalls),
    ("cnse_connections_refused_total", "Connections over the limit.", |m| &m.refused_connections),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_on_the_page_where_there_is_one() {
        let cores = [Measures::default()];
        assert!(!page(&cores, None).contains("cnse_gpu"));
        let name = "NVIDIA H100".to_owned();
        let card = CardUse { name, memory_bytes: 80, kernel_ms: 250.0, ..CardUse::default() };
        let card = CardUse { transfer_ms: 750.0, open_ms: 4000.0, ..card };
        let page = page(&cores, Some(&card));
        for line in [
            "cnse_gpu_info{device=\"cuda:0\",name=\"NVIDIA H100\"} 1\n",
            "cnse_gpu_memory_bytes{device=\"cuda:0\"} 80\n",
            "cnse_gpu_kernel_seconds_total{device=\"cuda:0\"} 0.25\n",
            "cnse_gpu_utilisation_ratio{device=\"cuda:0\"} 0.25\n",
        ] {
            assert!(page.contains(line), "{page}");
        }
    }
}
