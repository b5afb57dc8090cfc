//! How a job does with more ranks: speed-up and efficiency, of runs of an experiment whose settings
//! are `mode` (strong, weak), `stealing` (on, off) and `ranks`. Pure.
//!
//! Each run is held against the run of the fewest ranks of its line in the same block, so that what
//! drifts on the machine drops out. With n times the ranks, strong scaling (the same work; G. M.
//! Amdahl, 1967) is ideal if it takes 1/n of the time, weak scaling (n times the work; J. L.
//! Gustafson, 1988) if it takes the same time.

use serde_json::{Value, json};

use super::record::Run;
use super::statistics::{CONFIDENCE, Interval, effect, mean};

/// What is varied of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The same work on more ranks.
    Strong,
    /// More work on more ranks.
    Weak,
}

/// One point of a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Which kind of scaling.
    pub mode: Mode,
    /// Whether work moved between ranks.
    pub steals: bool,
    /// Ranks.
    pub ranks: u64,
    /// Blocks in which both this and the base brought a time.
    pub runs: usize,
    /// The mean time, in seconds.
    pub wall_s: f64,
    /// How many times as much was done in a second as by the fewest ranks, times those: of one
    /// rank it is 1, and ideally the number of ranks.
    pub speedup: f64,
    /// Where that lies; None: under three blocks.
    pub speedup_ci: Option<Interval>,
}

impl Step {
    /// The speed-up over the ideal one.
    pub fn efficiency(&self) -> f64 {
        self.speedup / self.ranks as f64
    }

    /// Where that lies.
    pub fn efficiency_ci(&self) -> Option<Interval> {
        self.speedup_ci.map(|interval| interval.map(|speedup| speedup / self.ranks as f64))
    }

    /// For the result.
    pub fn to_json(&self) -> Value {
        json!({
            "mode": self.mode.name(),
            "stealing": self.steals,
            "ranks": self.ranks,
            "runs": self.runs,
            "wall_s": self.wall_s,
            "speedup": self.speedup,
            "speedup_ci": self.speedup_ci,
            "efficiency": self.efficiency(),
            "efficiency_ci": self.efficiency_ci(),
        })
    }
}

impl Mode {
    /// By its name.
    pub fn find(name: &str) -> Option<Mode> {
        [Mode::Strong, Mode::Weak].into_iter().find(|mode| mode.name() == name)
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Strong => "strong",
            Mode::Weak => "weak",
        }
    }
}

/// All points, line by line, ranks ascending.
pub fn steps(runs: &[Run]) -> Vec<Step> {
    let mut steps = Vec::new();
    for mode in [Mode::Strong, Mode::Weak] {
        for steals in [true, false] {
            let of_line = |run: &&Run| {
                let is_mode = run.settings.get("mode").and_then(Value::as_str) == Some(mode.name());
                let stealing = run.settings.get("stealing").and_then(Value::as_str);
                is_mode && (stealing != Some("off")) == steals && time(run).is_some()
            };
            let line: Vec<&Run> = runs.iter().filter(of_line).collect();
            let mut counts: Vec<u64> = line.iter().filter_map(|run| ranks(run)).collect();
            counts.sort_unstable();
            counts.dedup();
            let Some(&base) = counts.first() else { continue };
            // Alone there is nobody to take from: both lines begin with the same runs.
            let alone = runs.iter().filter(|run| {
                let is_mode = run.settings.get("mode").and_then(Value::as_str) == Some(mode.name());
                is_mode && ranks(run) == Some(1) && time(run).is_some()
            });
            let alone: Vec<&Run> = alone.collect();
            let found =
                counts.iter().map(|&count| step((&line, &alone), mode, steals, base, count));
            steps.extend(found.flatten());
        }
    }
    steps
}

fn step(
    (line, alone): (&[&Run], &[&Run]),
    mode: Mode,
    steals: bool,
    base: u64,
    count: u64,
) -> Option<Step> {
    let of = |ranks_of: u64, repeat: u32| {
        let runs = if ranks_of == 1 { alone } else { line };
        let of_block = runs.iter().filter(|run| ranks(run) == Some(ranks_of));
        let times: Vec<f64> =
            of_block.filter(|run| run.repeat == repeat).filter_map(|run| time(run)).collect();
        (!times.is_empty()).then(|| mean(&times))
    };
    let blocks = line.iter().filter(|run| ranks(run) == Some(count)).map(|run| run.repeat);
    let pairs: Vec<(f64, f64)> =
        blocks.filter_map(|repeat| Some((of(base, repeat)?, of(count, repeat)?))).collect();
    if pairs.is_empty() {
        return None;
    }
    // Weak: as many times the work as there are times the ranks.
    let work = match mode {
        Mode::Strong => base as f64,
        Mode::Weak => count as f64,
    };
    let found = effect::paired_ratio(&pairs, 1.0 - CONFIDENCE);
    let ratios: Vec<f64> = pairs.iter().map(|(base, own)| base / own).collect();
    Some(Step {
        mode,
        steals,
        ranks: count,
        runs: pairs.len(),
        wall_s: mean(&pairs.iter().map(|(_, own)| *own).collect::<Vec<_>>()),
        speedup: work * found.map_or(mean(&ratios), |found| 1.0 + found.value),
        speedup_ci: found.map(|found| found.interval.map(|share| work * (1.0 + share))),
    })
}

fn ranks(run: &Run) -> Option<u64> {
    run.settings.get("ranks").and_then(Value::as_u64).filter(|ranks| *ranks > 0)
}

fn time(run: &Run) -> Option<f64> {
    Some(run.record.wall_s).filter(|wall| *wall > 0.0 && run.failure.is_none())
}

/// A table for people.
pub fn text(steps: &[Step]) -> String {
    let mut text = format!(
        "{:<8}{:<10}{:>6}{:>6}{:>10}{:>10}{:>12}   95 % of the efficiency\n",
        "mode", "stealing", "ranks", "runs", "time s", "speed-up", "efficiency"
    );
    for step in steps {
        let interval = step.efficiency_ci().map_or("-".to_owned(), |interval| {
            format!("{:.1} to {:.1} %", 100.0 * interval.low, 100.0 * interval.high)
        });
        text += &format!(
            "{:<8}{:<10}{:>6}{:>6}{:>10.3}{:>10.2}{:>10.1} %   {interval}\n",
            step.mode.name(),
            if step.steals { "on" } else { "off" },
            step.ranks,
            step.runs,
            step.wall_s,
            step.speedup,
            100.0 * step.efficiency(),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::Record;

    fn run(mode: &str, stealing: &str, ranks: u64, repeat: u32, wall_s: f64) -> Run {
        let settings = json!({ "mode": mode, "stealing": stealing, "ranks": ranks });
        let settings = settings.as_object().cloned().unwrap_or_default();
        let record = Record { wall_s, ..Record::default() };
        Run { settings, repeat, record, ..Run::default() }
    }

    #[test]
    fn alone_there_is_no_stealing() {
        let mut runs = Vec::new();
        for repeat in 0..3 {
            runs.push(run("strong", "on", 1, repeat, 3.0));
            runs.push(run("strong", "off", 1, repeat, 5.0));
            runs.push(run("strong", "on", 2, repeat, 2.0));
            runs.push(run("strong", "off", 2, repeat, 4.0));
        }
        let found: Vec<(bool, u64, f64, f64)> =
            steps(&runs).iter().map(|s| (s.steals, s.ranks, s.wall_s, s.speedup)).collect();
        let expected =
            [(true, 1, 4.0, 1.0), (true, 2, 2.0, 2.0), (false, 1, 4.0, 1.0), (false, 2, 4.0, 1.0)];
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!((found.0, found.1), (expected.0, expected.1));
            assert!((found.2 - expected.2).abs() < 1e-9 && (found.3 - expected.3).abs() < 1e-9);
        }
    }

    #[test]
    fn the_ideal_is_one_and_drift_drops_out() {
        let mut runs = Vec::new();
        for (repeat, drift) in [(0, 1.0), (1, 1.5), (2, 2.0)] {
            for ranks in [1, 2, 4] {
                let n = ranks as f64;
                runs.push(run("strong", "on", ranks, repeat, drift * 8.0 / n));
                runs.push(run("strong", "off", ranks, repeat, drift * 8.0));
                runs.push(run("weak", "on", ranks, repeat, drift * 2.0 * n.sqrt()));
            }
        }
        let steps = steps(&runs);
        assert_eq!(steps.len(), 9);
        let found: Vec<(u64, f64, f64)> =
            steps.iter().map(|s| (s.ranks, s.speedup, s.efficiency())).collect();
        let expected = [
            (1, 1.0, 1.0),
            (2, 2.0, 1.0),
            (4, 4.0, 1.0),
            (1, 1.0, 1.0),
            (2, 1.0, 0.5),
            (4, 1.0, 0.25),
            (1, 1.0, 1.0),
            (2, 2f64.sqrt(), 0.5f64.sqrt()),
            (4, 2.0, 0.5),
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.0, expected.0);
            assert!((found.1 - expected.1).abs() < 1e-9 && (found.2 - expected.2).abs() < 1e-9);
        }
        let ci = steps[2].speedup_ci.unwrap();
        assert!(ci.high - ci.low < 1e-9, "the drift was the same for both: {ci:?}");
        assert_eq!(text(&steps).lines().count(), 10);
    }

    #[test]
    fn what_is_missing_is_left_out() {
        assert!(steps(&[]).is_empty());
        let mut failed = run("strong", "on", 4, 0, 1.0);
        failed.failure = Some("died".to_owned());
        let alone = run("strong", "on", 2, 1, 1.0);
        let runs = [run("strong", "on", 2, 0, 4.0), failed, alone, run("weak", "on", 0, 0, 1.0)];
        let steps = steps(&runs);
        assert_eq!(steps.len(), 1);
        // Without a run of one rank the fewest count as ideal.
        assert_eq!((steps[0].ranks, steps[0].speedup, steps[0].speedup_ci), (2, 2.0, None));
    }
}
