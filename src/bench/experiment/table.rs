//! Runs as a table: CSV for programs, columns for people.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde_json::Value;

use super::space::{Settings, show};
use crate::bench::record::Run;
use crate::bench::statistics::median;

/// What stands behind the settings in every table, by the names of the first users.
const SHORT: [&str; 4] = ["throughput_tok_s", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms"];

/// One row a run: its settings, the short names, its place, and all numbers that any run has. A
/// number that a run lacks is an empty cell.
pub fn csv(runs: &[Run]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in runs.iter().flat_map(|run| run.settings.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let numbers: Vec<Vec<(String, f64)>> = runs.iter().map(|run| run.record.numbers()).collect();
    let mut seen = BTreeSet::new();
    let columns = numbers.iter().flatten().map(|(name, _)| name);
    let columns: Vec<&String> = columns.filter(|name| seen.insert(name.as_str())).collect();
    let mut text = String::new();
    let head = names.iter().copied().chain(SHORT).chain(["repeat", "sequence", "failure"]);
    push_row(&mut text, head.chain(columns.iter().map(|name| name.as_str())).map(str::to_owned));
    for (run, numbers) in runs.iter().zip(&numbers) {
        let settings = names.iter().map(|name| run.settings.get(*name).map(show));
        let short = SHORT.iter().map(|name| run.record.number(name).map(|v| v.to_string()));
        let place =
            [Some(run.repeat.to_string()), Some(run.sequence.to_string()), run.failure.clone()];
        let cell = |column: &&String| {
            let found = numbers.iter().find(|(name, _)| name == *column);
            found.map(|(_, value)| value.to_string())
        };
        let cells = settings.chain(short).chain(place).chain(columns.iter().map(cell));
        push_row(&mut text, cells.map(Option::unwrap_or_default));
    }
    text
}

fn push_row(text: &mut String, cells: impl Iterator<Item = String>) {
    let quote = |cell: String| match cell.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell,
    };
    text.push_str(&cells.map(quote).collect::<Vec<_>>().join(","));
    text.push('\n');
}

/// A row for each setting: the medians of its runs.
pub fn text(runs: &[Run]) -> String {
    let mut points: Vec<&Settings> = Vec::new();
    for run in runs {
        if !points.contains(&&run.settings) {
            points.push(&run.settings);
        }
    }
    points.sort_by(|a, b| by_value(a, b));
    let of = |point: &Settings| {
        let of = runs.iter().filter(|run| run.settings == *point && run.failure.is_none());
        of.collect::<Vec<&Run>>()
    };
    let names: Vec<&String> =
        points.first().map(|point| point.keys().collect()).unwrap_or_default();
    let others = ["makespan_s", "efficiency", "requests_per_s"];
    let has = |name: &&str| runs.iter().any(|run| run.record.number(name).is_some());
    let figures: Vec<&str> = SHORT.into_iter().chain(others).filter(has).collect();
    let mut rows = vec![
        names.iter().map(|name| name.to_string()).chain(["runs".to_owned()]).collect::<Vec<_>>(),
    ];
    rows[0].extend(figures.iter().map(|&name| name.to_owned()));
    for point in points {
        let runs = of(point);
        let mut row: Vec<String> = names.iter().map(|name| show(&point[*name])).collect();
        row.push(runs.len().to_string());
        row.extend(figures.iter().map(|figure| {
            let values: Vec<f64> =
                runs.iter().filter_map(|run| run.record.number(figure)).collect();
            median(&values).map_or("-".to_owned(), |value| format!("{value:.2}"))
        }));
        rows.push(row);
    }
    align(&rows)
}

/// Name after name, numbers by their size.
fn by_value(a: &Settings, b: &Settings) -> Ordering {
    let pairs = a.values().zip(b.values());
    let compare = |(a, b): (&Value, &Value)| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => show(a).cmp(&show(b)),
    };
    pairs.map(compare).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn align(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..rows[0].len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::space::settings;
    use super::*;

    fn runs() -> Vec<Run> {
        let mut runs = Vec::new();
        for (sequence, (text, value)) in
            (0..).zip([("x=10,m=a", 10.0), ("x=2,m=a", 30.5), ("x=10,m=a", 20.0)])
        {
            let mut run = Run { settings: settings(text).unwrap(), sequence, ..Run::default() };
            run.record.set("tokens_per_s", value);
            runs.push(run);
        }
        runs[1].record.set("extra", 7);
        runs[2].failure = Some("it said \"no\", and ended".to_owned());
        runs
    }

    #[test]
    fn a_row_a_run() {
        let expected = "\
x,m,throughput_tok_s,latency_p50_ms,latency_p95_ms,latency_p99_ms,repeat,sequence,failure,\
wall_s,ok,errors,tokens_per_s,extra
10,a,10,,,,0,0,,0,0,0,10,
2,a,30.5,,,,0,1,,0,0,0,30.5,7
10,a,20,,,,0,2,\"it said \"\"no\"\", and ended\",0,0,0,20,
";
        assert_eq!(csv(&runs()), expected);
    }

    #[test]
    fn medians_for_people() {
        let expected = "\
\x20x  m  runs  throughput_tok_s
 2  a     1             30.50
10  a     1             10.00
";
        assert_eq!(text(&runs()), expected);
        assert_eq!(text(&[]), "runs\n");
    }
}
