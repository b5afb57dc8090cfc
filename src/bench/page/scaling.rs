//! `bench scaling`: speed-up and efficiency by ranks, with the ideal.

use serde_json::Value;

use super::document::{Block, Document, Table};
use super::experiment::{Cell, estimate};
use super::{plain_with, terms};
use crate::bench::chart::shapes::{self, Scaling};
use crate::bench::chart::text::measured;
use crate::bench::record::Record;
use crate::bench::scaling::{Mode, Step, steps};
use crate::bench::statistics::Interval;

const STRONG: &str = "The same work on more ranks. At 100 % twice the ranks take half the time; \
    what is missing is what sharing the work costs, or what was not there to share. Bars are 95 % \
    confidence intervals.";
const WEAK: &str = "As much more work as there are ranks. At 100 % it takes no longer than one \
    rank's share does alone. Bars are 95 % confidence intervals.";

/// Charts of all lines (strong and weak, with stealing and without), and the table of their points.
pub fn write(document: &mut Document, record: &Record, cells: &[Cell<'_>]) {
    let steps = steps(&record.runs);
    if record.command.iter().any(|word| word == "--server" || word.starts_with("--server=")) {
        document.words(
            "All ranks ask the same servers. Where those are busy, more ranks make nothing faster: \
             what is missing then is the servers', and not the scheduler's.",
        );
    }
    for (mode, title, how) in [
        (Mode::Strong, "Efficiency, strong scaling", STRONG),
        (Mode::Weak, "Efficiency, weak scaling", WEAK),
    ] {
        let of_mode: Vec<&Step> = steps.iter().filter(|step| step.mode == mode).collect();
        if of_mode.is_empty() {
            continue;
        }
        if mode == Mode::Strong {
            let lines = lines(&of_mode, |step| (step.speedup, step.speedup_ci));
            let chart = shapes::speedup("Speed-up, strong scaling", &lines);
            document.chart("speed-up", &chart.title, chart.to_svg());
        }
        let percent = |step: &Step| {
            let interval = step.efficiency_ci().map(|ci| ci.map(|share| 100.0 * share));
            (100.0 * step.efficiency(), interval)
        };
        let chart = shapes::efficiency(title, how, &lines(&of_mode, percent));
        document.chart(title, &chart.title, chart.to_svg());
    }
    table(document, &steps, cells);
}

/// A row a point, with what the runs of its setting say.
fn table(document: &mut Document, steps: &[Step], cells: &[Cell<'_>]) {
    const FIGURES: [&str; 4] = ["requests_per_s", "tokens_per_s", "e2e_ms_p50", "e2e_ms_p99"];
    let of_step = |step: &Step| {
        cells.iter().find(|cell| {
            let is = |name: &str, value: Value| {
                cell.runs.first().is_some_and(|run| run.settings.get(name) == Some(&value))
            };
            let stealing = if step.steals { "on" } else { "off" };
            is("mode", step.mode.name().into())
                && is("ranks", step.ranks.into())
                && is("stealing", stealing.into())
        })
    };
    let known = |name: &&&str| {
        let of_cell = |cell: &Cell<'_>| estimate(cell, name).is_some_and(|of| of.value != 0.0);
        cells.iter().any(of_cell)
    };
    let shown: Vec<&&str> = FIGURES.iter().filter(known).collect();
    let row = |step: &Step| {
        let ends =
            |ci: Option<Interval>, factor: f64| ci.map(|ci| (factor * ci.low, factor * ci.high));
        let mut cells = vec![
            format!("{}, {}", step.mode.name(), way(step.steals)),
            step.ranks.to_string(),
            step.runs.to_string(),
            measured(step.wall_s),
            plain_with(Some(step.speedup), ends(step.speedup_ci, 1.0)),
            plain_with(Some(100.0 * step.efficiency()), ends(step.efficiency_ci(), 100.0)),
        ];
        cells.extend(shown.iter().map(|name| {
            let found = of_step(step).and_then(|cell| estimate(cell, name));
            plain_with(found.map(|of| of.value), found.and_then(|of| of.interval))
        }));
        cells
    };
    let heads = ["", "ranks", "runs", "time, s", "speed-up", "efficiency, %"].map(str::to_owned);
    document.blocks.push(Block::Table(Table {
        columns: heads.into_iter().chain(shown.iter().map(|name| terms::label(name))).collect(),
        rows: steps.iter().map(row).collect(),
        note: "Under each figure its 95 % confidence interval. One rank has nobody to take from: \
               both lines begin with the mean of all its runs. Efficiency is the speed-up over the \
               ideal one; of weak scaling the speed-up counts the work that was done."
            .to_owned(),
        is_text: false,
    }));
}

fn way(steals: bool) -> &'static str {
    if steals { "stealing" } else { "no stealing" }
}

/// A line for each way of sharing.
fn lines(steps: &[&Step], of: impl Fn(&Step) -> (f64, Option<Interval>)) -> Vec<Scaling> {
    let line = |steals: bool| {
        let mut line = Scaling { name: way(steals).to_owned(), ..Scaling::default() };
        for step in steps.iter().filter(|step| step.steals == steals) {
            let (value, interval) = of(step);
            let at = step.ranks as f64;
            line.points.push((at, value));
            line.band.extend(interval.map(|interval| (at, interval.low, interval.high)));
        }
        line
    };
    let lines = [true, false].map(line);
    lines.into_iter().filter(|line| !line.points.is_empty()).collect()
}
