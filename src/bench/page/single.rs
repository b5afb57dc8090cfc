//! One result: its figures, its curves, and how it went over time.

use serde_json::Value;

use super::document::{Block, Document, Fact, Table};
use super::{
    Source, curves, experiment, gateway, judged, notices, percentile_table, storage, terms,
};
use crate::bench::chart::shapes::{self, Latencies};
use crate::bench::chart::text::{figure, grouped, measured};
use crate::bench::record::{Distribution, Record, Series};

/// Which distributions are drawn together: what one reader compares at a glance.
const TOGETHER: [(&str, &str, &[(&str, &str)]); 3] = [
    (
        "Time to first token",
        "time to first token",
        &[
            ("ttft_ms", "response time"),
            ("ttft_service_ms", "service time"),
            ("server_ttft_ms", "as the server says"),
            ("server_prompt_ms", "the server's prompt time"),
        ],
    ),
    (
        "End to end",
        "time to the end of the answer",
        &[("e2e_ms", "response time"), ("service_ms", "service time")],
    ),
    (
        "From token to token",
        "time",
        &[
            ("itl_ms", "every gap"),
            ("tpot_ms", "mean of a request"),
            ("server_tpot_ms", "mean, says the server"),
        ],
    ),
];

/// Percentiles of a result that has names for them and no histogram: too few for a distribution.
const NAMED: usize = 7;
/// Below it no user feels anything, and no chart is needed.
const WORTH_DRAWING_MS: f64 = 5.0;

/// Writes all that a result says.
pub fn write(document: &mut Document, source: &Source) {
    let record = &source.record;
    document.words(what_was_done(record));
    notices::write(document, std::slice::from_ref(source));
    judged::answers(document, record);
    let facts = facts(record);
    if !facts.is_empty() {
        document.blocks.push(Block::Facts(facts));
    }
    judged::write(document, record);
    if gateway::has_costs(record) {
        gateway::write(document, record);
    } else if storage::is_one(record) {
        storage::write(document, record);
    } else if !record.runs.is_empty() {
        experiment::write(document, record);
    }
    latencies(document, record);
    if let Some(series) = &record.series {
        over_time(document, series);
    }
    ranks(document, record);
}

fn what_was_done(record: &Record) -> String {
    let mut words = match record.command.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bench", "latency", ..] => {
            "How long a server takes to answer, as its users would feel it.".to_owned()
        }
        ["bench", "throughput", ..] => {
            "How much a server does under different loads, and how long each answer then takes."
                .to_owned()
        }
        ["bench", "scaling", ..] => {
            "How much faster the same work is done by more ranks of the scheduler.".to_owned()
        }
        ["bench", "storage", ..] => {
            "How fast models are hashed, stored, fetched and checked.".to_owned()
        }
        ["bench", "gateway", ..] if !gateway::has_costs(record) => {
            "How many requests the binary protocol carries, at different depths.".to_owned()
        }
        ["bench", "gateway", ..] => {
            "What the gateway itself costs: the same requests with it and without it.".to_owned()
        }
        ["bench", "sweep", ..] => {
            "An experiment: settings tried against one another, in random order and repeatedly."
                .to_owned()
        }
        ["bench", "compare", ..] => "Two results held against one another.".to_owned(),
        ["client", ..] => "Requests to a server, timed as its users would feel them.".to_owned(),
        ["schedule", ..] => "A batch of tasks, spread over ranks.".to_owned(),
        _ => "A saved result.".to_owned(),
    };
    if record.ok + record.errors > 0 && record.runs.is_empty() {
        words += &format!(
            " {} ended well and {} failed in {} s.",
            grouped(record.ok as f64, 0),
            grouped(record.errors as f64, 0),
            figure(record.wall_s)
        );
    }
    words
}

fn facts(record: &Record) -> Vec<Fact> {
    let mut facts = Vec::new();
    let text = |name: &str| record.figures.get(name).and_then(Value::as_str);
    let mut put = |name: &str, value: Option<String>, note: String| {
        if let Some(value) = value {
            facts.push(Fact { name: name.to_owned(), value, note });
        }
    };
    let number = |name: &str| record.number(name).filter(|value| *value > 0.0).map(measured);
    let source = text("tokens_source").filter(|source| !source.is_empty());
    let counted = source.map_or(String::new(), |source| match source {
        "events" => "arrivals of text, not tokens, were counted".to_owned(),
        source => format!("as the server counts ({source})"),
    });
    put("output tokens/s", number("tokens_per_s"), counted);
    put("requests/s", number("requests_per_s"), String::new());
    let slo = text("slo").map_or(String::new(), |slo| format!("under {slo}"));
    put("goodput, requests/s", number("goodput_requests_per_s"), slo);
    for (figure_name, name) in [
        ("ttft_ms", "time to first token"),
        ("itl_ms", "gap between tokens"),
        ("e2e_ms", "response time"),
    ] {
        let Some(found) = record.distribution(figure_name) else { continue };
        for (tail, value) in [("p50", found.p50), ("p99", found.p99)] {
            let note = found.ci.get(tail).map_or(String::new(), |ci| {
                format!("95 %: {} to {} ms", measured(ci.low), measured(ci.high))
            });
            let value = value.map(|ms| format!("{} ms", measured(ms)));
            put(&format!("{name}, {tail}"), value, note);
        }
    }
    if let Some(knee) = record.number("knee_at_once") {
        let rate = record.number("knee_tokens_per_s");
        let note = rate.map_or(String::new(), |rate| format!("{} tokens/s", measured(rate)));
        put("knee", Some(format!("{} at once", figure(knee))), note);
    }
    let percent =
        |name: &str| record.number(name).map(|share| format!("{} %", figure(100.0 * share)));
    if record.figures.contains_key("ranks") {
        let ideal =
            record.number("ideal_s").map(|ideal| format!("{} s are the least", figure(ideal)));
        put("efficiency", percent("efficiency"), ideal.unwrap_or_default());
        put("balance", number("balance"), "1 is even".to_owned());
    }
    facts
}

fn latencies(document: &mut Document, record: &Record) {
    let all = curves::distributions(record);
    if all.is_empty() {
        return;
    }
    let under = "Response time counts from the moment at which a request was meant to start, \
                 service time from the moment at which it was sent. If the first is the longer, \
                 requests waited before they were sent, as users would.";
    document.blocks.push(Block::Heading("Latency".to_owned(), under.to_owned()));
    let rows: Vec<(String, Distribution)> = all
        .iter()
        .map(|(name, found)| (terms::label(name).replace(", ms", ""), found.clone()))
        .collect();
    document.blocks.push(Block::Table(percentile_table(&rows)));
    let mut drawn: Vec<&str> = Vec::new();
    for (title, quantity, members) in TOGETHER {
        let of = |name: &str| all.iter().find(|(known, _)| known == name).map(|(_, d)| d);
        let found: Vec<Latencies> = members
            .iter()
            .filter_map(|(name, label)| Some(curves::latencies(label, of(name)?)))
            .collect();
        drawn.extend(members.iter().map(|(name, _)| *name));
        let found = comparable(found);
        draw(document, title, quantity, &without_twins(found));
    }
    for (name, found) in all.iter().filter(|(name, _)| !drawn.contains(&name.as_str())) {
        // What has no whole distribution, or is next to nothing, is in the table, and enough.
        if found.histogram.is_some() && found.max.is_some_and(|max| max >= WORTH_DRAWING_MS) {
            let label = terms::label(name);
            let quantity = label.trim_end_matches(", ms");
            draw(document, quantity, quantity, &[curves::latencies("", found)]);
        }
    }
}

/// Without those that are next to nothing beside the first: they would press it flat.
fn comparable(mut all: Vec<Latencies>) -> Vec<Latencies> {
    let highest = |of: &Latencies| of.percentiles.last().map_or(0.0, |(_, ms)| *ms);
    let least = all.first().map_or(0.0, highest) / 100.0;
    all.retain(|one| highest(one) >= least);
    all
}

/// Without those that say the same as one before: in a closed loop response and service time are
/// the same, and two lines on top of each other would be a riddle.
fn without_twins(all: Vec<Latencies>) -> Vec<Latencies> {
    let mut kept: Vec<Latencies> = Vec::new();
    for one in all {
        let near = |other: &&mut Latencies| {
            let at = |of: &Latencies, percent: f64| {
                of.percentiles.iter().find(|(p, _)| *p >= percent).map_or(0.0, |(_, ms)| *ms)
            };
            let close = |percent| {
                let (a, b) = (at(&one, percent), at(other, percent));
                (a - b).abs() <= 0.005 * a.max(b)
            };
            other.count == one.count && [1.0, 50.0, 90.0, 99.0, 100.0].into_iter().all(close)
        };
        match kept.iter_mut().find(near) {
            Some(other) => other.name = format!("{} = {}", other.name, one.name),
            None => kept.push(one),
        }
    }
    kept
}

/// A distribution both ways.
fn draw(document: &mut Document, title: &str, quantity: &str, runs: &[Latencies]) {
    if runs.is_empty() {
        return;
    }
    let percentiles = shapes::percentiles(&format!("{title} by percentile"), quantity, runs);
    document.chart(&percentiles.title, &percentiles.title, percentiles.to_svg());
    if runs.iter().any(|run| run.percentiles.len() <= NAMED) {
        return;
    }
    let cdf = shapes::cdf(&format!("{title}: cumulative share"), quantity, runs);
    document.chart(&cdf.title, &cdf.title, cdf.to_svg());
}

fn over_time(document: &mut Document, series: &Series) {
    let under = "A level course means that the run was steady, so that its percentiles describe \
                 it. A slope means that a queue grew or that something warmed up.";
    let mut charts = Vec::new();
    for (name, title) in
        [("ttft_ms", "Time to first token over time"), ("e2e_ms", "Response time over time")]
    {
        let intervals = curves::intervals(series, name);
        let outliers = curves::outliers(series, name);
        if !intervals.is_empty() {
            let label = terms::label(name);
            let label = label.trim_end_matches(", ms");
            charts.push(shapes::timeline(title, label, &intervals, &outliers));
        }
    }
    for (column, title, label) in [
        ("ok", "Answers over time", "requests that ended well, 1/s"),
        ("tokens", "Tokens over time", "tokens of answers that ended, 1/s"),
    ] {
        let points = curves::rate(series, column);
        if points.iter().any(|(_, rate)| *rate > 0.0) {
            charts.push(shapes::course(title, label, points));
        }
    }
    if charts.is_empty() {
        return;
    }
    document.blocks.push(Block::Heading("Over time".to_owned(), under.to_owned()));
    for chart in charts {
        document.chart(&chart.title, &chart.title, chart.to_svg());
    }
}

/// Of a scheduled job: what each rank did.
fn ranks(document: &mut Document, record: &Record) {
    const ROWS_MAX: usize = 64;
    let Some(Value::Array(ranks)) = record.figures.get("ranks") else { return };
    if ranks.is_empty() {
        return;
    }
    let under = "A rank is one worker of the scheduler: a thread, or a process under MPI. Busy is \
                 the part of its time in which its places held work; moved are tasks that it took \
                 from others and gave to others.";
    document.blocks.push(Block::Heading("Ranks".to_owned(), under.to_owned()));
    let row = |rank: &Value| {
        let number = |value: &Value| value.as_f64().map_or("–".to_owned(), figure);
        let share = |value: &Value| {
            value.as_f64().map_or("–".to_owned(), |share| grouped(100.0 * share, 1))
        };
        let steals = &rank["steals"];
        vec![
            format!("{} on {}", number(&rank["rank"]), rank["node"].as_str().unwrap_or("–")),
            number(&rank["ok"]),
            number(&rank["errors"]),
            share(&rank["busy_share"]),
            share(&rank["idle_share"]),
            format!("{} / {}", number(&steals["won"]), number(&steals["tried"])),
            format!("{} / {}", number(&steals["moved"]), number(&steals["given"])),
            number(&rank["e2e_ms"]["p50"]),
            number(&rank["e2e_ms"]["p99"]),
        ]
    };
    let heads = [
        "rank",
        "done",
        "failed",
        "busy, %",
        "idle, %",
        "steals won / tried",
        "moved in / out",
        "p50, ms",
        "p99, ms",
    ];
    let hidden = ranks.len().saturating_sub(ROWS_MAX);
    document.blocks.push(Block::Table(Table {
        columns: heads.map(str::to_owned).to_vec(),
        rows: ranks.iter().take(ROWS_MAX).map(row).collect(),
        note: if hidden > 0 { format!("{hidden} more are in the file.") } else { String::new() },
        is_text: false,
    }));
}
