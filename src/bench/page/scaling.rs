//! `bench scaling`: speed-up and efficiency by ranks, with the ideal.

use super::document::Document;
use crate::bench::chart::shapes::{self, Scaling};
use crate::bench::record::Run;
use crate::bench::scaling::{Mode, Step, steps};
use crate::bench::statistics::Interval;

const STRONG: &str = "The same work on more ranks. At 100 % twice the ranks take half the time; \
    what is missing is what sharing the work costs, or what was not there to share. Bars are 95 % \
    confidence intervals.";
const WEAK: &str = "As much more work as there are ranks. At 100 % it takes no longer than one \
    rank's share does alone. Bars are 95 % confidence intervals.";

/// Charts of all lines: strong and weak, with stealing and without.
pub fn write(document: &mut Document, runs: &[Run]) {
    let steps = steps(runs);
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
}

/// A line for each way of sharing.
fn lines(steps: &[&Step], of: impl Fn(&Step) -> (f64, Option<Interval>)) -> Vec<Scaling> {
    let line = |(steals, name): (bool, &str)| {
        let mut line = Scaling { name: name.to_owned(), ..Scaling::default() };
        for step in steps.iter().filter(|step| step.steals == steals) {
            let (value, interval) = of(step);
            let at = step.ranks as f64;
            line.points.push((at, value));
            line.band.extend(interval.map(|interval| (at, interval.low, interval.high)));
        }
        line
    };
    let lines = [(true, "stealing"), (false, "no stealing")].map(line);
    lines.into_iter().filter(|line| !line.points.is_empty()).collect()
}
