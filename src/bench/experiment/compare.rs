//! Two results held against each other: what changed, how surely, and whether that is too much.
//!
//! How sure it is depends on what there is, the best first: runs of one interleaved experiment, in
//! pairs (Student's t on their logarithms, from twenty on a bootstrap); several runs of each, not
//! interleaved (Welch's t); one run of each with histograms (a bootstrap of the quantiles: it tells
//! how much chance there is within a run, and nothing of how runs differ from each other); two
//! numbers.

use serde_json::{Value, json};

use super::space::{Settings, describe};
use crate::bench::record::{Record, Run, steps_ms};
use crate::bench::statistics::effect::{self, Effect};
use crate::bench::statistics::probability::student_quantile;
use crate::bench::statistics::{Interval, mean, variance};
use crate::metrics::durations::PERCENTILES;
use crate::prng::Prng;

/// What is compared unless other figures are named.
pub const FIGURES: [&str; 17] = [
    "tokens_per_s",
    "requests_per_s",
    "mb_per_s",
    "queue_ms_p50",
    "queue_ms_p99",
    "ttft_ms_p50",
    "ttft_ms_p95",
    "ttft_ms_p99",
    "itl_ms_p50",
    "itl_ms_p99",
    "tpot_ms_p50",
    "e2e_ms_p50",
    "e2e_ms_p95",
    "e2e_ms_p99",
    "makespan_s",
    "efficiency",
    "errors",
];

/// What an interval stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// So many pairs of one interleaved experiment.
    Pairs(usize),
    /// So many runs of each.
    Runs(usize, usize),
    /// The samples within one run of each.
    Samples,
    /// Two numbers.
    Nothing,
}

/// How a figure changed from the first to the second.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its name.
    pub figure: String,
    /// Which settings; empty: the results have one each.
    pub settings: Settings,
    /// The first's: of several runs the mean.
    pub a: f64,
    /// The second's.
    pub b: f64,
    /// The change, as a share of the first: 0.05 is 5 % more. None: the first is 0.
    pub change: Option<f64>,
    /// Where the true change is.
    pub interval: Option<Interval>,
    /// What the interval stands on.
    pub ground: Ground,
}

/// A limit: `ttft_ms_p99 > +5%`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// As it was typed.
    pub text: String,
    /// The figure.
    pub figure: String,
    over: bool,
    share: f64,
}

/// Whether a limit was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Surely, or by two bare numbers.
    Yes,
    /// Surely not.
    No,
    /// The interval holds the limit.
    Unsure,
}

impl Limit {
    /// From `FIGURE > +5%` or `FIGURE < -5%`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Limit, String> {
        let wrong = || format!("--fail-if {text:?}: not FIGURE > +5% or FIGURE < -5%");
        let at = text.find(['<', '>']).ok_or_else(wrong)?;
        let (figure, limit) = (text[..at].trim(), text[at + 1..].trim());
        let percent = limit.strip_suffix('%').and_then(|limit| limit.trim().parse::<f64>().ok());
        let percent = percent.filter(|percent| percent.is_finite()).ok_or_else(wrong)?;
        if figure.is_empty() {
            return Err(wrong());
        }
        let over = &text[at..=at] == ">";
        Ok(Limit { text: text.to_owned(), figure: figure.to_owned(), over, share: percent / 100.0 })
    }

    /// Whether a change passes it.
    pub fn passed(&self, change: &Change) -> Passed {
        let is_over = |value: f64| if self.over { value > self.share } else { value < self.share };
        match (&change.interval, change.change) {
            (Some(interval), _) => match (is_over(interval.low), is_over(interval.high)) {
                (true, true) => Passed::Yes,
                (false, false) => Passed::No,
                _ => Passed::Unsure,
            },
            (None, Some(value)) if is_over(value) => Passed::Yes,
            (None, Some(_)) => Passed::No,
            // From 0 to 0 nothing changed; from 0 to anything is over every share.
            (None, None) if (change.b > change.a) == self.over && change.b != change.a => {
                Passed::Yes
            }
            (None, None) => Passed::No,
        }
    }
}

/// All changes from one result to another, of the figures that both have.
pub fn records(a: &Record, b: &Record, figures: &[&str], alpha: f64, seed: u64) -> Vec<Change> {
    let mut prng = Prng::new(seed);
    let mut changes = Vec::new();
    if a.runs.is_empty() && b.runs.is_empty() {
        for figure in figures {
            changes.extend(one(a, b, figure, alpha, &mut prng));
        }
        return changes;
    }
    let mut points: Vec<&Settings> = Vec::new();
    for run in &a.runs {
        if !points.contains(&&run.settings) && b.runs.iter().any(|b| b.settings == run.settings) {
            points.push(&run.settings);
        }
    }
    for point in points {
        for figure in figures {
            let found = several(&of(&a.runs, point), &of(&b.runs, point), figure, alpha);
            changes.extend(found.map(|change| Change { settings: point.clone(), ..change }));
        }
    }
    changes
}

/// All changes from some results to others of the same kind.
pub fn results(
    a: &[&Record],
    b: &[&Record],
    figures: &[&str],
    alpha: f64,
    seed: u64,
) -> Vec<Change> {
    match (a, b) {
        ([a], [b]) => records(a, b, figures, alpha, seed),
        _ => records(&pooled(a), &pooled(b), figures, alpha, seed),
    }
}

/// Several results as one: those that are one run each are its runs, of experiments all runs are.
fn pooled(records: &[&Record]) -> Record {
    let mut whole = Record::default();
    for (number, record) in (0..).zip(records) {
        let own = Run { repeat: number, record: (*record).clone(), ..Run::default() };
        let runs = if record.runs.is_empty() { vec![own] } else { record.runs.clone() };
        whole.runs.extend(runs);
    }
    whole
}

/// Says so if all results of one side were made before all of the other: what drifted meanwhile
/// then looks like an effect. Of single ones that is so always, and goes without saying.
pub fn not_in_turn(a: &[&Record], b: &[&Record]) -> Option<String> {
    let ends = |records: &[&Record]| -> Option<(String, String)> {
        let times = records.iter().map(|record| record.started_at.clone());
        let times: Vec<String> = times.filter(|time| !time.is_empty()).collect();
        Some((times.iter().min()?.clone(), times.iter().max()?.clone()))
    };
    // RFC 3339 in UTC: later is larger.
    let ((a_first, a_last), (b_first, b_last)) = (ends(a)?, ends(b)?);
    let is_apart = a_last < b_first || b_last < a_first;
    (a.len().max(b.len()) > 1 && is_apart).then(|| {
        "A and B were not measured in turn: what changed on the machine between them is in the \
         change too; make them alternately, or use bench compare URL URL"
            .to_owned()
    })
}

/// All changes between the runs of two settings of one interleaved experiment.
pub fn paired(
    runs: &[Run],
    a: &Settings,
    b: &Settings,
    figures: &[&str],
    alpha: f64,
) -> Vec<Change> {
    let (a, b) = (of(runs, a), of(runs, b));
    let change = |figure: &&str| {
        let pair = |a: &&Run| {
            let b = b.iter().find(|b| b.repeat == a.repeat)?;
            Some((b.record.number(figure)?, a.record.number(figure)?))
        };
        let pairs: Vec<(f64, f64)> = a.iter().filter_map(pair).collect();
        let firsts: Vec<f64> = pairs.iter().map(|(_, a)| *a).collect();
        let seconds: Vec<f64> = pairs.iter().map(|(b, _)| *b).collect();
        if pairs.is_empty() {
            return None;
        }
        let (a, b) = (mean(&firsts), mean(&seconds));
        let found = paired_change(&pairs, alpha);
        Some(Change {
            figure: (*figure).to_owned(),
            settings: Settings::new(),
            a,
            b,
            change: found.map(|found| found.value).or_else(|| share(a, b)),
            interval: found.map(|found| found.interval),
            ground: found.map_or(Ground::Nothing, |found| Ground::Pairs(found.pairs)),
        })
    };
    figures.iter().filter_map(change).collect()
}

/// The ratio of pairs less one: by bootstrap where there are enough of them, else Student's t.
fn paired_change(pairs: &[(f64, f64)], alpha: f64) -> Option<Effect> {
    const RESAMPLES: usize = 2_000;
    if pairs.iter().any(|(b, a)| *a <= 0.0 || *b <= 0.0) {
        return None;
    }
    let logarithms: Vec<(f64, f64)> = pairs.iter().map(|(b, a)| (b.ln(), a.ln())).collect();
    let mut prng = Prng::new(pairs.len() as u64);
    let found = effect::paired_bootstrap(&logarithms, alpha, RESAMPLES, &mut prng);
    let found = found.or_else(|| effect::paired(&logarithms, alpha))?;
    Some(Effect { value: found.value.exp_m1(), interval: found.interval.map(f64::exp_m1), ..found })
}

fn of<'r>(runs: &'r [Run], point: &Settings) -> Vec<&'r Run> {
    runs.iter().filter(|run| run.settings == *point && run.failure.is_none()).collect()
}

fn share(a: f64, b: f64) -> Option<f64> {
    (a != 0.0).then(|| b / a - 1.0)
}

/// One run of each.
fn one(a: &Record, b: &Record, figure: &str, alpha: f64, prng: &mut Prng) -> Option<Change> {
    let (of_a, of_b) = (a.number(figure)?, b.number(figure)?);
    let mut bootstrap = || {
        let (name, percentile) = figure.rsplit_once('_')?;
        let (_, percentile, _) = PERCENTILES.iter().find(|(name, ..)| *name == percentile)?;
        let (a, b) = (a.distribution(name)?, b.distribution(name)?);
        let (a_steps, b_steps) = (steps_ms(&a.durations()?), steps_ms(&b.durations()?));
        let (a_inflation, b_inflation) = (a.inflation.unwrap_or(1.0), b.inflation.unwrap_or(1.0));
        let (b, a) = ((&b_steps, b_inflation), (&a_steps, a_inflation));
        effect::quantile_ratio(b, a, percentile / 100.0, alpha, prng)
    };
    let found = bootstrap();
    Some(Change {
        figure: figure.to_owned(),
        settings: Settings::new(),
        a: of_a,
        b: of_b,
        change: share(of_a, of_b),
        interval: found.map(|(_, interval)| interval),
        ground: if found.is_some() { Ground::Samples } else { Ground::Nothing },
    })
}

/// Several runs of each, which were not made in turn.
fn several(a: &[&Run], b: &[&Run], figure: &str, alpha: f64) -> Option<Change> {
    let values = |runs: &[&Run]| -> Vec<f64> {
        runs.iter().filter_map(|run| run.record.number(figure)).collect()
    };
    let (a, b) = (values(a), values(b));
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let found = welch(&a, &b, alpha);
    let (a_mean, b_mean) = (mean(&a), mean(&b));
    Some(Change {
        figure: figure.to_owned(),
        settings: Settings::new(),
        a: a_mean,
        b: b_mean,
        change: found.map(|(value, _)| value).or_else(|| share(a_mean, b_mean)),
        interval: found.map(|(_, interval)| interval),
        ground: found.map_or(Ground::Nothing, |_| Ground::Runs(a.len(), b.len())),
    })
}

/// The ratio b over a less one, with Welch's interval of the logarithms' means (B. L. Welch, 1947);
/// None: under three of either, or one is not over 0.
fn welch(a: &[f64], b: &[f64], alpha: f64) -> Option<(f64, Interval)> {
    if a.len() < 3 || b.len() < 3 || a.iter().chain(b).any(|value| *value <= 0.0) {
        return None;
    }
    let logarithms = |values: &[f64]| values.iter().map(|value| value.ln()).collect::<Vec<_>>();
    let (a, b) = (logarithms(a), logarithms(b));
    let (a_error, b_error) = (variance(&a)? / a.len() as f64, variance(&b)? / b.len() as f64);
    let value = mean(&b) - mean(&a);
    let both = a_error + b_error;
    if both <= 0.0 {
        return Some((value.exp_m1(), Interval::new(value, value).map(f64::exp_m1)));
    }
    let freedom = both.powi(2)
        / (a_error.powi(2) / (a.len() - 1) as f64 + b_error.powi(2) / (b.len() - 1) as f64);
    let reach = student_quantile(1.0 - alpha / 2.0, freedom) * both.sqrt();
    Some((value.exp_m1(), Interval::new(value - reach, value + reach).map(f64::exp_m1)))
}

impl Change {
    /// As the result has it.
    pub fn to_json(&self) -> Value {
        let ground = match self.ground {
            Ground::Pairs(n) => json!({ "pairs": n }),
            Ground::Runs(a, b) => json!({ "runs": [a, b] }),
            Ground::Samples => json!("samples of one run each"),
            Ground::Nothing => json!("two numbers"),
        };
        json!({
            "figure": self.figure, "settings": self.settings, "a": self.a, "b": self.b,
            "change": self.change, "ci": self.interval, "ground": ground,
        })
    }

    /// A line for people.
    pub fn to_text(&self) -> String {
        let percent = |share: f64| format!("{:+.1} %", share * 100.0);
        let change = self.change.map_or("-".to_owned(), percent);
        let interval = self.interval.map_or("no interval".to_owned(), |interval| {
            let clear = !interval.contains(0.0);
            let mark = if clear { "" } else { "  (may be none)" };
            format!("[{}, {}]{mark}", percent(interval.low), percent(interval.high))
        });
        let mut name = self.figure.clone();
        if !self.settings.is_empty() {
            name += &format!(" {}", describe(&self.settings));
        }
        format!("{name:<28} {:>12.3} {:>12.3} {change:>10}  {interval}\n", self.a, self.b)
    }
}

#[cfg(test)]
mod tests {
    use super::super::space::settings;
    use super::*;
    use crate::bench::record::Distribution;
    use crate::metrics::durations::Durations;

    fn single(level: f64) -> Record {
        let mut prng = Prng::new(level.to_bits());
        let mut durations = Durations::default();
        for _ in 0..2_000 {
            durations.record((level * 1_000.0 * (0.3 * prng.normal()).exp()) as u64);
        }
        let mut record = Record { ok: 2_000, ..Record::default() };
        record.set_distribution("ttft_ms", &Distribution::independent(&durations));
        record.set("tokens_per_s", 1e5 / level);
        record
    }

    fn several(level: f64, target: &str, n: u32) -> Vec<Run> {
        let mut prng = Prng::new(level.to_bits());
        let run = |repeat| {
            let mut record = Record::default();
            record.set("tokens_per_s", level * (0.02 * prng.normal()).exp());
            Run { settings: settings(target).unwrap(), repeat, record, ..Run::default() }
        };
        (0..n).map(run).collect()
    }

    #[test]
    fn single_runs_have_what_chance_there_is_within_them() {
        let changes = records(&single(50.0), &single(60.0), &FIGURES, 0.05, 1);
        let of = |name: &str| changes.iter().find(|change| change.figure == name).unwrap();
        let p50 = of("ttft_ms_p50");
        assert_eq!(p50.ground, Ground::Samples);
        assert!(p50.interval.unwrap().contains(0.2), "{p50:?}");
        assert!(p50.interval.unwrap().low > 0.1, "{p50:?}");
        assert_eq!((of("tokens_per_s").ground, of("errors").change), (Ground::Nothing, None));
        assert!(changes.iter().all(|change| change.figure != "makespan_s"));
    }

    #[test]
    fn runs_are_held_against_runs() {
        let (a, b) = (several(100.0, "x=1", 5), several(120.0, "x=1", 5));
        let record = |runs: Vec<Run>| Record { runs, ..Record::default() };
        let changes = records(&record(a.clone()), &record(b), &["tokens_per_s"], 0.05, 1);
        assert_eq!((changes.len(), changes[0].ground), (1, Ground::Runs(5, 5)));
        assert!(changes[0].interval.unwrap().contains(0.2), "{changes:?}");
        let mut both = a;
        both.extend(several(80.0, "x=2", 5));
        let (one, two) = (settings("x=1").unwrap(), settings("x=2").unwrap());
        let changes = paired(&both, &one, &two, &["tokens_per_s", "none"], 0.05);
        assert_eq!((changes.len(), changes[0].ground), (1, Ground::Pairs(5)));
        assert!(changes[0].interval.unwrap().contains(-0.2), "{changes:?}");
        let mut many = several(100.0, "x=1", 30);
        many.extend(several(110.0, "x=2", 30));
        let change = &paired(&many, &one, &two, &["tokens_per_s"], 0.05)[0];
        assert_eq!(change.ground, Ground::Pairs(30));
        assert!(change.interval.unwrap().contains(0.1), "{change:?}");
        assert!(changes[0].to_text().contains("-2") && changes[0].to_json()["ci"].is_array());
    }

    #[test]
    fn single_results_become_runs() {
        let record = |started_at: &str, level: f64| {
            let mut record = single(level);
            record.started_at = started_at.to_owned();
            record
        };
        let a = [("1", 50.0), ("3", 51.0), ("5", 49.0)].map(|(at, level)| record(at, level));
        let b = [("2", 60.0), ("4", 61.0), ("6", 59.0)].map(|(at, level)| record(at, level));
        let (a, b): (Vec<&Record>, Vec<&Record>) = (a.iter().collect(), b.iter().collect());
        let changes = results(&a, &b, &["ttft_ms_p50"], 0.05, 1);
        assert_eq!((changes.len(), changes[0].ground), (1, Ground::Runs(3, 3)));
        assert!(changes[0].interval.unwrap().contains(0.2), "{changes:?}");
        assert_eq!(not_in_turn(&a, &b), None);
        assert!(not_in_turn(&a[..2], &b[2..]).is_some() && not_in_turn(&a[..1], &b[..1]).is_none());
        // Of one each there is what chance there is within it; one against three is two numbers.
        let of = |a: &[&Record], b: &[&Record]| {
            results(a, b, &["ttft_ms_p50"], 0.05, 1).pop().map(|change| change.ground)
        };
        assert_eq!(of(&a[..1], &b[..1]), Some(Ground::Samples));
        assert_eq!(of(&a, &b[..1]), Some(Ground::Nothing));
        let experiment = Record { runs: several(1.0, "x=1", 2), ..Record::default() };
        assert_eq!(pooled(&[&experiment, &experiment]).runs.len(), 4);
    }

    #[test]
    fn limits() {
        let change = |interval: Option<(f64, f64)>, change: Option<f64>| Change {
            figure: "f".to_owned(),
            settings: Settings::new(),
            a: 0.0,
            b: 1.0,
            change,
            interval: interval.map(Interval::from),
            ground: Ground::Nothing,
        };
        let over = Limit::parse("f > +5%").unwrap();
        let under = Limit::parse("f<-5%").unwrap();
        for (limit, interval, value, passed) in [
            (&over, Some((0.06, 0.2)), None, Passed::Yes),
            (&over, Some((0.01, 0.2)), None, Passed::Unsure),
            (&over, Some((-0.5, 0.04)), None, Passed::No),
            (&under, Some((-0.5, -0.06)), None, Passed::Yes),
            (&under, Some((-0.5, 0.0)), None, Passed::Unsure),
            (&over, None, Some(0.06), Passed::Yes),
            (&over, None, Some(0.05), Passed::No),
            (&over, None, None, Passed::Yes),
            (&under, None, None, Passed::No),
        ] {
            assert_eq!(limit.passed(&change(interval, value)), passed, "{} {value:?}", limit.text);
        }
        for text in ["f", "f > 5", "> 5%", "f > x%"] {
            let error = Limit::parse(text).unwrap_err();
            assert!(error.starts_with("--fail-if "), "{error}");
        }
    }
}
