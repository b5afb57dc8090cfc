//! `bench scaling`: speed-up and efficiency by ranks, with the ideal.
//!
//! Each run is held against the run of the fewest ranks in the same block, so that what drifts
//! drops out.

use serde_json::Value;

use super::document::Document;
use super::experiment::{Cell, word};
use crate::bench::chart::shapes::{self, Scaling};
use crate::bench::record::Run;
use crate::bench::statistics::{CONFIDENCE, effect, mean};

const STRONG: &str = "The same work on more ranks. At 100 % twice the ranks take half the time; \
    what is missing is what sharing the work costs, or what was not there to share. Bars are 95 % \
    confidence intervals.";
const WEAK: &str = "As much more work as there are ranks. At 100 % it takes no longer than one \
    rank's share does alone. Bars are 95 % confidence intervals.";

/// Charts of all lines: strong and weak, with stealing and without.
pub fn write(document: &mut Document, cells: &[Cell<'_>]) {
    for (mode, title, how) in [
        ("strong", "Efficiency, strong scaling", STRONG),
        ("weak", "Efficiency, weak scaling", WEAK),
    ] {
        let of_mode: Vec<&Cell<'_>> =
            cells.iter().filter(|cell| setting(cell, "mode").is_none_or(|m| m == mode)).collect();
        let is_weak = mode == "weak";
        let is_named = cells.iter().any(|cell| setting(cell, "mode").is_some());
        // A file of one mode only names it in the settings that do not vary.
        let first = of_mode.first().and_then(|cell| cell.runs.first());
        let own = first.and_then(|run| run.settings.get("mode")).map(word);
        if of_mode.is_empty() || !is_named && own.is_some_and(|own| own != mode) {
            continue;
        }
        if !is_weak {
            let lines = lines(&of_mode, |ratio, _| ratio);
            let chart = shapes::speedup("Speed-up, strong scaling", &lines);
            document.chart("speed-up", &chart.title, chart.to_svg());
        }
        let share = |ratio: f64, more: f64| 100.0 * if is_weak { ratio } else { ratio / more };
        let lines = lines(&of_mode, share);
        let chart = shapes::efficiency(title, how, &lines);
        document.chart(title, &chart.title, chart.to_svg());
    }
}

fn setting(cell: &Cell<'_>, name: &str) -> Option<String> {
    cell.settings.iter().find(|(known, _)| known == name).map(|(_, value)| word(value))
}

/// A line for each way of sharing; `of` makes a value of the ratio of times and that of ranks.
fn lines(cells: &[&Cell<'_>], of: impl Fn(f64, f64) -> f64) -> Vec<Scaling> {
    let mut names: Vec<String> = Vec::new();
    for cell in cells {
        let name = name(cell);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let line = |name: &String| {
        let mut of_line: Vec<&&Cell<'_>> =
            cells.iter().filter(|c| self::name(c) == *name).collect();
        of_line.sort_by_key(|cell| ranks(cell));
        let Some(base) = of_line.first() else { return Scaling::default() };
        let mut line = Scaling { name: name.clone(), ..Scaling::default() };
        for cell in &of_line {
            let more = ranks(cell) as f64 / ranks(base).max(1) as f64;
            let pairs = pairs(base, cell);
            if pairs.is_empty() {
                continue;
            }
            let ratios: Vec<f64> = pairs.iter().map(|(a, b)| a / b).collect();
            let at = ranks(cell) as f64;
            match effect::paired_ratio(&pairs, 1.0 - CONFIDENCE) {
                Some(found) => {
                    let [low, value, high] = [found.interval.low, found.value, found.interval.high]
                        .map(|share| of(1.0 + share, more));
                    line.points.push((at, value));
                    line.band.push((at, low, high));
                }
                None => line.points.push((at, of(mean(&ratios), more))),
            }
        }
        line
    };
    names.iter().map(line).collect()
}

fn name(cell: &Cell<'_>) -> String {
    match setting(cell, "stealing").as_deref() {
        Some("off") => "no stealing".to_owned(),
        Some(_) => "stealing".to_owned(),
        None => "measured".to_owned(),
    }
}

fn ranks(cell: &Cell<'_>) -> u64 {
    let found = cell.settings.iter().find(|(name, _)| name == "ranks");
    found.and_then(|(_, value)| Value::as_u64(value)).unwrap_or(0)
}

/// Times of the base and of a setting in the same blocks.
fn pairs(base: &Cell<'_>, cell: &Cell<'_>) -> Vec<(f64, f64)> {
    let time = |run: &Run| Some(run.record.wall_s).filter(|wall| *wall > 0.0);
    let of = |run: &&Run| {
        let base = base.runs.iter().find(|base| base.repeat == run.repeat)?;
        Some((time(base)?, time(run)?))
    };
    cell.runs.iter().filter_map(of).collect()
}
