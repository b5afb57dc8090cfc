//! Several results side by side.

use super::document::{Block, Document, Table};
use super::{Source, curves, notices, percentile_table, plain, terms};
use crate::bench::chart::forest::{Effect, Forest};
use crate::bench::chart::shapes::{self, Latencies};
use crate::bench::chart::text::change;
use crate::bench::record::{Distribution, steps_ms};
use crate::bench::statistics::effect::quantile_ratio;
use crate::prng::Prng;

/// Lines of one chart; more cannot be told apart.
const LINES_MAX: usize = 7;
/// Of the bootstrap: the same report of the same files.
const SEED: u64 = 1;
/// What the intervals of effects miss.
const ALPHA: f64 = 0.05;

/// Writes what they say, the first as the one that the others are held against.
pub fn write(document: &mut Document, sources: &[Source]) {
    document.words(format!(
        "{} results side by side; the first, {}, is what the others are held against.",
        sources.len(),
        sources[0].name
    ));
    notices::write(document, sources);
    differences(document, sources);
    figures(document, sources);
    effects(document, sources);
    let mut names: Vec<String> = Vec::new();
    for source in sources {
        for (name, _) in curves::distributions(&source.record) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let under = "One line for each result.";
    if !names.is_empty() {
        document.blocks.push(Block::Heading("Latency".to_owned(), under.to_owned()));
    }
    for name in names {
        let found =
            |source: &Source| Some((source.name.clone(), source.record.distribution(&name)?));
        let rows: Vec<(String, Distribution)> = sources.iter().filter_map(found).collect();
        let label = terms::label(&name);
        let label = label.trim_end_matches(", ms");
        let title = terms::title(&name);
        document.blocks.push(Block::Part(title.clone()));
        document.blocks.push(Block::Table(percentile_table(&rows)));
        let lines: Vec<Latencies> =
            rows.iter().take(LINES_MAX).map(|(name, d)| curves::latencies(name, d)).collect();
        let chart = shapes::percentiles(&format!("{title} by percentile"), label, &lines);
        document.chart(&format!("{name} by percentile"), &chart.title, chart.to_svg());
        let chart = shapes::cdf(&format!("{title}: cumulative share"), label, &lines);
        document.chart(&format!("{name} share"), &chart.title, chart.to_svg());
    }
}

/// What differs of the machines, since then figures differ too.
fn differences(document: &mut Document, sources: &[Source]) {
    let Some(first) = sources[0].record.environment.as_ref() else { return };
    for source in &sources[1..] {
        let Some(other) = source.record.environment.as_ref() else { continue };
        let found = first.differences(other);
        if !found.is_empty() {
            document.words(format!(
                "Different between {} and {}: {}.",
                sources[0].name,
                source.name,
                found.join("; ")
            ));
        }
    }
}

fn figures(document: &mut Document, sources: &[Source]) {
    let names = [
        "ok",
        "errors",
        "wall_s",
        "requests_per_s",
        "tokens_per_s",
        "goodput_requests_per_s",
        "efficiency",
        "mb_per_s",
    ];
    let shown = names
        .iter()
        .filter(|name| sources.iter().any(|source| source.record.number(name).is_some()));
    let row = |name: &&str| {
        let label = match *name {
            "ok" => "ended well".to_owned(),
            "errors" => "failed".to_owned(),
            other => terms::label(other),
        };
        let cells = sources.iter().map(|source| plain(source.record.number(name)));
        [label].into_iter().chain(cells).collect()
    };
    let heads = sources.iter().map(|source| source.name.clone());
    document.blocks.push(Block::Heading("Figures".to_owned(), String::new()));
    document.blocks.push(Block::Table(Table {
        columns: [String::new()].into_iter().chain(heads).collect(),
        rows: shown.map(row).collect(),
        ..Table::default()
    }));
}

/// How far the percentiles of each are from the first's, with intervals from both histograms.
fn effects(document: &mut Document, sources: &[Source]) {
    let mut rows = Vec::new();
    for source in &sources[1..] {
        let compared = curves::distributions(&sources[0].record).into_iter();
        // What a server says of itself and what the generator waited are no figures to judge by.
        let compared =
            compared.filter(|(name, _)| !name.starts_with("server_") && !name.starts_with("queue"));
        for (name, first) in compared {
            let Some(other) = source.record.distribution(&name) else { continue };
            let histograms = (first.durations(), other.durations());
            let (Some(first_all), Some(other_all)) = histograms else { continue };
            let inflations = [&first, &other].map(|of| of.inflation.unwrap_or(1.0));
            let [a, b] =
                [(&steps_ms(&other_all), inflations[1]), (&steps_ms(&first_all), inflations[0])];
            for (tail, q) in [("p50", 0.5), ("p99", 0.99)] {
                // Of a percentile that a result cannot carry nothing can be said.
                let known = |of: &Distribution| of.ci.contains_key(tail);
                if !known(&first) || !known(&other) {
                    continue;
                }
                let effect = quantile_ratio(a, b, q, ALPHA, &mut Prng::new(SEED));
                let Some((value, interval)) = effect else { continue };
                let [value, low, high] = [value, interval.low, interval.high].map(|x| 100.0 * x);
                let label = terms::label(&format!("{name}_{tail}")).replace(", ms", "");
                let name = match sources.len() {
                    2 => label,
                    _ => format!("{}: {label}", source.name),
                };
                rows.push(Effect {
                    name,
                    effect: Some(value),
                    interval: Some((low, high)),
                    words: format!("{} % ({} to {})", change(value), change(low), change(high)),
                    stands_out: low > 0.0 || high < 0.0,
                });
            }
        }
    }
    if rows.is_empty() {
        return;
    }
    let forest = Forest {
        title: format!("Change of latency against {}", sources[0].name),
        subtitle: "Points left of the line are quicker, right of it slower; the bar is the 95 % \
                   confidence interval. Bold and filled: the bar does not reach the line, so the \
                   two differ. One run each tells nothing of how runs vary among themselves: for \
                   that, repeat them interleaved with cnse bench sweep."
            .to_owned(),
        label: "change, %".to_owned(),
        none_at: 0.0,
        rows,
    };
    document.chart("change of latency", &forest.title, forest.to_svg());
}
