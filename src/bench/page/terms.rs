//! What the names of figures mean, for a reader who has never seen them.

/// A figure: its name in the record, what it is called, its unit and what it means.
pub struct Figure {
    /// In the record.
    pub name: &'static str,
    /// In a report.
    pub label: &'static str,
    /// Of it; empty: it has none.
    pub unit: &'static str,
    /// In a sentence.
    pub meaning: &'static str,
    /// Less of it is better.
    pub less_is_better: bool,
}

const fn figure(
    name: &'static str,
    label: &'static str,
    unit: &'static str,
    meaning: &'static str,
) -> Figure {
    Figure { name, label, unit, meaning, less_is_better: true }
}

const fn more(
    name: &'static str,
    label: &'static str,
    unit: &'static str,
    meaning: &'static str,
) -> Figure {
    Figure { less_is_better: false, ..figure(name, label, unit, meaning) }
}

/// All that have a name of their own, in the order of a report.
pub const FIGURES: &[Figure] = &[
    more("requests_per_s", "requests/s", "1/s", "Requests that ended well, for each second."),
    more(
        "tokens_per_s",
        "output tokens/s",
        "1/s",
        "Tokens of answers for each second. A token is a piece of a word, about four letters of \
         English. The report says who counted them: the server's own count is the truth, pieces \
         of text that arrived may be several tokens each.",
    ),
    more(
        "goodput_per_s",
        "goodput",
        "1/s",
        "Requests a second that met all limits of the service level objective.",
    ),
    figure(
        "ttft_ms",
        "time to first token (TTFT)",
        "ms",
        "From the moment at which a request was meant to start until the first text of its answer: \
         how long a user looks at an empty screen. It is counted from the intended start, so the \
         time that a request had to wait before it could be sent is in it.",
    ),
    figure(
        "ttft_service_ms",
        "TTFT, service time",
        "ms",
        "Time to first token counted from the write of the request: what the server alone took.",
    ),
    figure(
        "itl_ms",
        "gap between tokens (ITL)",
        "ms",
        "Time between two arrivals of text of one answer, every gap counted: its tail shows \
         stalls in the middle of an answer. Where one arrival carries several tokens it is the gap \
         between arrivals.",
    ),
    figure(
        "tpot_ms",
        "time per output token (TPOT)",
        "ms",
        "Of each request the mean time for a token after the first. A single stall is averaged \
         away in it; the gaps show it.",
    ),
    figure(
        "e2e_ms",
        "response time, end to end",
        "ms",
        "From the moment at which a request was meant to start until the end of its answer: what \
         a user waits.",
    ),
    figure(
        "service_ms",
        "service time, end to end",
        "ms",
        "From the write of a request to the end of its answer. Where it is far below the response \
         time, requests waited before they were sent.",
    ),
    figure("queue_ms", "queue", "ms", "Time that a request waited before it was worked on."),
    figure(
        "server_ttft_ms",
        "TTFT, as the server says",
        "ms",
        "The server's own figure for the same requests, to hold against the client's.",
    ),
    figure(
        "server_queue_ms",
        "queue, as the server says",
        "ms",
        "How long the server says that requests waited there.",
    ),
    figure(
        "server_prompt_ms",
        "prompt time, as the server says",
        "ms",
        "What the server says that it took to read the prompts. The rest of the time to first \
         token is waiting and the way.",
    ),
    figure(
        "server_tpot_ms",
        "time per token, as the server says",
        "ms",
        "The server's own mean time for a token, to hold against the client's.",
    ),
    figure("wall_s", "duration", "s", "From the first start to the last end."),
    more(
        "speedup",
        "speed-up",
        "times",
        "How many times as fast as one rank the same work was done.",
    ),
    more(
        "efficiency",
        "efficiency",
        "",
        "The shortest time in which the work could have been done over the time that it took; 1 is \
         the best.",
    ),
    more("mb_per_s", "throughput", "MB/s", "Bytes that were worked through for each second."),
];

/// By its name.
pub fn find(name: &str) -> Option<&'static Figure> {
    FIGURES.iter().find(|figure| figure.name == name)
}

/// What it is called, with its unit; its own name if it has no other.
pub fn label(name: &str) -> String {
    if let Some(figure) = find(name) {
        let unit = figure.unit;
        return match unit {
            "" | "1/s" | "times" => figure.label.to_owned(),
            _ => format!("{}, {unit}", figure.label),
        };
    }
    let tails = [("_p50", "median"), ("_p90", "p90"), ("_p95", "p95"), ("_p99", "p99")];
    let more = [("_p999", "p99.9"), ("_mean", "mean"), ("_max", "highest"), ("_min", "lowest")];
    for (tail, word) in tails.into_iter().chain(more) {
        if let Some(figure) = name.strip_suffix(tail).and_then(find) {
            return format!("{}, {word}, {}", figure.label, figure.unit);
        }
    }
    name.to_owned()
}

/// What it is called in a title: without its unit.
pub fn title(name: &str) -> String {
    let label = label(name);
    let plain = label.trim_end_matches(", ms").trim_end_matches(", s");
    crate::bench::chart::text::capital(plain)
}

/// Whether less of it is better; None: that is not known.
pub fn less_is_better(name: &str) -> Option<bool> {
    if let Some(figure) = find(name) {
        return Some(figure.less_is_better);
    }
    if name.ends_with("_per_s") || name.ends_with("_tok_s") {
        return Some(false);
    }
    let is_time = ["_ms", "_ms_p50", "_ms_p90", "_ms_p95", "_ms_p99", "_ms_p999", "_ms_mean"];
    is_time.iter().any(|tail| name.ends_with(tail)).then_some(true)
}

/// What a reader needs whatever is shown.
pub const COMMON: [(&str, &str); 3] = [
    (
        "percentile (p50, p99, …)",
        "p99 = 20 ms: 99 of 100 took 20 ms or less, and one took longer. p50 is the median, the \
         middle one. A mean hides what the slowest take; percentiles show it. A percentile that \
         the samples cannot carry is left out (–) rather than guessed.",
    ),
    (
        "95 % confidence interval",
        "The range in brackets or the shaded band. If the measurement were made again and again, \
         the true value would lie in 95 of 100 such ranges. Two values whose ranges overlap widely \
         may well be the same.",
    ),
    (
        "open and closed loop",
        "Closed: a new request starts when another has ended (--concurrency), so a slow server is \
         asked less. Open: requests start at moments that were fixed before (--rate), as users \
         arrive, whether or not others have ended.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_words_and_units() {
        assert_eq!(label("ttft_ms"), "time to first token (TTFT), ms");
        assert_eq!(label("e2e_ms_p99"), "response time, end to end, p99, ms");
        assert_eq!(label("tokens_per_s"), "output tokens/s");
        assert_eq!(title("e2e_ms_p99"), "Response time, end to end, p99");
        assert_eq!(label("what_else"), "what_else");
        assert_eq!(less_is_better("ttft_ms_p999"), Some(true));
        assert_eq!(less_is_better("tokens_per_s"), Some(false));
        assert_eq!(less_is_better("inflight"), None);
        for (at, figure) in FIGURES.iter().enumerate() {
            assert!(figure.meaning.ends_with('.'), "{}", figure.name);
            assert!(FIGURES[..at].iter().all(|other| other.name != figure.name));
        }
    }
}
