//! An experiment: what each setting brought, and how settings act.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::document::{Block, Document, Table};
use super::terms;
use crate::bench::chart::heat::{self, Heat};
use crate::bench::chart::shapes::{self, Point, Scaling};
use crate::bench::chart::text::capital;
use crate::bench::record::{Record, Run};
use crate::bench::statistics::{CONFIDENCE, effect, mean};

/// Figures of a setting that are looked for, in the order of a table.
const FIGURES: [&str; 16] = [
    "requests_per_s",
    "tokens_per_s",
    "goodput_requests_per_s",
    "mb_per_s",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "itl_ms_p50",
    "itl_ms_p99",
    "tpot_ms_p50",
    "e2e_ms_p50",
    "e2e_ms_p99",
    "gateway_ms_p50",
    "gateway_ms_p99",
    "efficiency",
    "balance",
    "wall_s",
];
/// Settings of one table.
const ROWS_MAX: usize = 200;

/// A setting and its runs that brought figures.
pub struct Cell<'r> {
    /// What was set, of what varies.
    pub settings: Vec<(String, Value)>,
    /// By repeat.
    pub runs: Vec<&'r Run>,
}

/// A mean over repeats with its interval, if there are enough of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Where it lies.
    pub interval: Option<(f64, f64)>,
}

/// What the settings brought.
pub fn write(document: &mut Document, record: &Record) {
    let cells = cells(&record.runs);
    if cells.is_empty() {
        return;
    }
    let names: Vec<String> = cells[0].settings.iter().map(|(name, _)| name.clone()).collect();
    let repeats = cells.iter().map(|cell| cell.runs.len()).max().unwrap_or(0);
    let under = match repeats {
        1 => {
            "One run for each setting: intervals are those within the run, and say nothing of how \
              runs vary among themselves."
                .to_owned()
        }
        _ => format!(
            "{repeats} runs for each setting, interleaved, so that what drifts on the machine \
             meets all alike. Figures are means over the runs, with their 95 % confidence \
             intervals where there are three runs or more."
        ),
    };
    document.blocks.push(Block::Heading("Settings".to_owned(), under));
    let is_scaling = names.iter().any(|name| name == "ranks")
        && record.command.get(1).is_some_and(|what| what == "scaling");
    if is_scaling {
        super::scaling::write(document, record, &cells);
        return;
    }
    charts(document, &cells, &names);
    table(document, &cells, &names);
}

fn charts(document: &mut Document, cells: &[Cell<'_>], names: &[String]) {
    let throughput = ["tokens_per_s", "requests_per_s", "mb_per_s"];
    let latency = ["e2e_ms_p99", "ttft_ms_p99", "e2e_ms_p50", "ttft_ms_p50"];
    let found = |of: &[&'static str]| {
        of.iter().copied().find(|name| cells.iter().any(|cell| estimate(cell, name).is_some()))
    };
    let (throughput, latency) = (found(&throughput), found(&latency));
    for name in [throughput, latency].into_iter().flatten() {
        by_factor(document, cells, names, name);
    }
    if let (Some(more), Some(less), true) = (throughput, latency, cells.len() > 1) {
        let point = |cell: &Cell<'_>| {
            let (more, less) = (estimate(cell, more)?, estimate(cell, less)?);
            Some(Point {
                name: values(&cell.settings),
                throughput: more.value,
                latency: less.value,
                latency_interval: less.interval,
            })
        };
        let points: Vec<Point> = cells.iter().filter_map(point).collect();
        let heading = format!("{} against {}", terms::title(less), terms::label(more));
        let (x, y) = (terms::label(more), terms::label(less));
        let what = names.join(", ");
        let chart = shapes::tradeoff(&heading, &x, &y, &what, &points, None);
        document.chart("throughput against latency", &chart.title, chart.to_svg());
    }
}

/// How one or two factors act on a figure.
fn by_factor(document: &mut Document, cells: &[Cell<'_>], names: &[String], of: &str) {
    let numbers = |at: usize| cells.iter().all(|cell| cell.settings[at].1.as_f64().is_some());
    let levels = |at: usize| {
        let mut levels: Vec<Value> = Vec::new();
        for cell in cells {
            if !levels.contains(&cell.settings[at].1) {
                levels.push(cell.settings[at].1.clone());
            }
        }
        levels
    };
    let label = terms::label(of);
    match names {
        [x] if numbers(0) && cells.len() > 1 => {
            let line = line("", cells.iter(), 0, of);
            let chart = by_setting(&label, x, &[line]);
            document.chart(&format!("{of} by {x}"), &chart.title, chart.to_svg());
        }
        [first, second] => {
            let (rows, columns) = (levels(0), levels(1));
            let cell = |row: &Value, column: &Value| {
                let found = cells
                    .iter()
                    .find(|cell| cell.settings[0].1 == *row && cell.settings[1].1 == *column)?;
                Some(estimate(found, of)?.value)
            };
            if rows.len() > 1
                && columns.len() > 1
                && rows.len().max(columns.len()) <= heat::SIDE_MAX
            {
                let heat = Heat {
                    title: format!("{}, by {first} and {second}", terms::title(of)),
                    subtitle: format!(
                        "{label}: darker is more, and the best is framed. – : no figure."
                    ),
                    row_label: first.clone(),
                    column_label: second.clone(),
                    rows: rows.iter().map(word).collect(),
                    columns: columns.iter().map(word).collect(),
                    cells: rows
                        .iter()
                        .map(|row| columns.iter().map(|column| cell(row, column)).collect())
                        .collect(),
                    less_is_better: terms::less_is_better(of).unwrap_or(false),
                };
                document.chart(&format!("{of} heat"), &heat.title, heat.to_svg());
            }
            let x = if numbers(1) && columns.len() >= rows.len() || !numbers(0) { 1 } else { 0 };
            let lines = levels(1 - x);
            if numbers(x) && lines.len() <= 7 && levels(x).len() > 1 {
                let of_level = |level: &Value| {
                    let of_level = cells.iter().filter(|cell| cell.settings[1 - x].1 == *level);
                    line(&format!("{} {}", names[1 - x], word(level)), of_level, x, of)
                };
                let lines: Vec<Scaling> = lines.iter().map(of_level).collect();
                let chart = by_setting(&label, &names[x], &lines);
                document.chart(&format!("{of} by {}", names[x]), &chart.title, chart.to_svg());
            }
        }
        _ => {}
    }
}

fn by_setting(label: &str, x: &str, lines: &[Scaling]) -> crate::bench::chart::plot::Plot {
    let how = "The mean of all runs of a setting; bars are 95 % confidence intervals. Where bars \
               overlap widely the settings may well be the same.";
    let title = format!("{} by {x}", capital(label.trim_end_matches(", ms")));
    shapes::by_setting(&title, how, x, label, lines)
}

/// A figure along one factor.
pub fn line<'c, 'r: 'c>(
    name: &str,
    cells: impl Iterator<Item = &'c Cell<'r>>,
    x: usize,
    of: &str,
) -> Scaling {
    let mut line = Scaling { name: name.to_owned(), ..Scaling::default() };
    for cell in cells {
        let (Some(at), Some(found)) = (cell.settings[x].1.as_f64(), estimate(cell, of)) else {
            continue;
        };
        line.points.push((at, found.value));
        line.band.extend(found.interval.map(|(low, high)| (at, low, high)));
    }
    line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    line.band.sort_by(|a, b| a.0.total_cmp(&b.0));
    line
}

fn table(document: &mut Document, cells: &[Cell<'_>], names: &[String]) {
    let shown = FIGURES.iter().filter(|name| {
        let known = |cell: &Cell<'_>| estimate(cell, name).is_some_and(|found| found.value != 0.0);
        cells.iter().any(known)
    });
    let shown: Vec<&&str> = shown.collect();
    let heads = shown.iter().map(|name| terms::label(name));
    let row = |cell: &Cell<'_>| {
        let figures = shown.iter().map(|name| match estimate(cell, name) {
            Some(found) => super::plain_with(Some(found.value), found.interval),
            None => "–".to_owned(),
        });
        [title(&cell.settings), cell.runs.len().to_string()].into_iter().chain(figures).collect()
    };
    let hidden = cells.len().saturating_sub(ROWS_MAX);
    document.blocks.push(Block::Table(Table {
        columns: [names.join(", "), "runs".to_owned()].into_iter().chain(heads).collect(),
        rows: cells.iter().take(ROWS_MAX).map(row).collect(),
        note: if hidden > 0 {
            format!("{hidden} more settings are in the file.")
        } else {
            String::new()
        },
        is_text: false,
    }));
}

/// The mean over the runs of a setting.
pub fn estimate(cell: &Cell<'_>, name: &str) -> Option<Estimate> {
    let values: Vec<f64> = cell.runs.iter().filter_map(|run| run.record.number(name)).collect();
    if values.is_empty() {
        return None;
    }
    let pairs: Vec<(f64, f64)> = values.iter().map(|value| (*value, 0.0)).collect();
    let over_runs = effect::paired(&pairs, 1.0 - CONFIDENCE);
    // None of these figures can be under 0, whatever Student's t makes of three runs.
    let least = if values.iter().all(|value| *value >= 0.0) { 0.0 } else { f64::NEG_INFINITY };
    let interval = over_runs.map(|effect| (effect.interval.low.max(least), effect.interval.high));
    let within = || {
        let [run] = cell.runs[..] else { return None };
        let (figure, tail) = name.rsplit_once('_')?;
        let ci = run.record.distribution(figure)?.ci.get(tail).copied()?;
        Some((ci.low, ci.high))
    };
    Some(Estimate { value: mean(&values), interval: interval.or_else(within) })
}

/// The runs by setting, numbers ascending; of the settings only what varies is kept, if anything
/// does.
pub fn cells(runs: &[Run]) -> Vec<Cell<'_>> {
    let fine: Vec<&Run> = runs.iter().filter(|run| run.failure.is_none()).collect();
    let mut values: BTreeMap<&String, Vec<&Value>> = BTreeMap::new();
    let mut names: Vec<&String> = Vec::new();
    for run in &fine {
        for (name, value) in &run.settings {
            if !names.contains(&name) {
                names.push(name);
            }
            let known = values.entry(name).or_default();
            if !known.contains(&value) {
                known.push(value);
            }
        }
    }
    let varies = |name: &&&String| values.get(**name).is_some_and(|known| known.len() > 1);
    let varying: Vec<&String> = names.iter().filter(varies).copied().collect();
    let names = if varying.is_empty() { names } else { varying };
    let mut cells: Vec<Cell<'_>> = Vec::new();
    for run in fine {
        let settings = of(&run.settings, &names);
        match cells.iter_mut().find(|cell| cell.settings == settings) {
            Some(cell) => cell.runs.push(run),
            None => cells.push(Cell { settings, runs: vec![run] }),
        }
    }
    cells.sort_by(|a, b| {
        let pairs = a.settings.iter().zip(&b.settings);
        let orders = pairs.map(|((_, a), (_, b))| match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            _ => word(a).cmp(&word(b)),
        });
        orders.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    });
    cells
}

fn of(settings: &Map<String, Value>, names: &[&String]) -> Vec<(String, Value)> {
    let value = |name: &&&String| settings.get(**name).cloned().unwrap_or(Value::Null);
    names.iter().map(|name| ((*name).clone(), value(&name))).collect()
}

/// `8, 256`.
fn values(settings: &[(String, Value)]) -> String {
    settings.iter().map(|(_, value)| word(value)).collect::<Vec<_>>().join(", ")
}

/// `inflight 8, batch 256`.
fn title(settings: &[(String, Value)]) -> String {
    let parts = settings.iter().map(|(name, value)| format!("{name} {}", word(value)));
    parts.collect::<Vec<_>>().join(", ")
}

/// A setting's value.
pub fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "–".to_owned(),
        other => other.to_string(),
    }
}
