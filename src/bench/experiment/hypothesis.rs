//! `throughput_tok_s: inflight=16 > inflight=8 by 10%`: what is expected, and whether the runs
//! support or refute it.
//!
//! The claim is about the true effect, which noise hides: *supported* says that it is over the
//! threshold, *refuted* that it is not, and the chance that either is said wrongly is at most
//! alpha, also when the truth is exactly at the threshold. *Undecided* says neither.
//!
//! An experiment that is undecided may go on, and whoever looks again and again finds something at
//! last. So each look has its own share of alpha: the first 80 %, each later one a fifth of the one
//! before; their sum is alpha, however often one looks (Bonferroni's inequality).

use serde_json::{Value, json};

use super::space::{self, Settings};
use crate::bench::record::Run;
use crate::bench::statistics::effect::{self, Effect};
use crate::bench::statistics::probability::{normal_quantile, student_quantile};

/// The part of what is left of alpha that a look takes.
const LOOK_SHARE: f64 = 0.8;
/// The chance to be decided that `runs_needed` aims at.
const POWER: f64 = 0.8;
/// More repeats than this are not worth telling: the effect is at the threshold.
const REPEATS_MAX: f64 = 10_000.0;

/// What sums and logarithms of doubles may be off by, as a share.
const ROUNDING: f64 = 1e-9;

/// What is expected.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// As it was typed.
    pub text: String,
    /// The figure, by its name in the JSON or the CSV.
    pub figure: String,
    /// The settings whose figure stands left.
    left: Settings,
    /// What it is held against.
    right: Right,
    /// Whether the left is to be more.
    more: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Right {
    /// Other settings, and by how much of theirs the left is to differ: 0.1 is 10 %.
    Ratio(Settings, f64),
    /// Other settings, and by how much in the figure's unit.
    Difference(Settings, f64),
    /// A number.
    Bound(f64),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is so.
    Supported,
    /// It is not so.
    Refuted,
    /// The runs do not tell.
    Undecided,
}

/// A verdict and what it stands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// What came of it.
    pub verdict: Verdict,
    /// The effect: of a ratio 0.12 for 12 % more; else in the figure's unit. None: too few blocks.
    pub effect: Option<Effect>,
    /// What the effect was held against.
    pub threshold: f64,
    /// Whether both are shares of the right side's figure.
    pub is_ratio: bool,
    /// The chance of a wrong verdict at this look.
    pub alpha: f64,
    /// Repeats that it takes still, about, to decide with a chance of 80 %; None: the effect is so
    /// near the threshold that no sensible number would, or nothing can be told yet.
    pub repeats_needed: Option<u32>,
}

impl Verdict {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Supported => "supported",
            Verdict::Refuted => "refuted",
            Verdict::Undecided => "undecided",
        }
    }
}

/// The share of `alpha` that the `look`-th look has, from 0.
pub fn alpha_of_look(alpha: f64, look: u32) -> f64 {
    alpha * LOOK_SHARE * (1.0 - LOOK_SHARE).powi(look.min(1_000) as i32)
}

impl Hypothesis {
    /// From `FIGURE: SETTINGS > SETTINGS [by X%|by X]` or `FIGURE: SETTINGS < NUMBER`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Hypothesis, String> {
        const FORM: &str = "not FIGURE: NAME=VALUE > NAME=VALUE by 10%, nor FIGURE: NAME=VALUE < 5";
        let wrong = |what: &str| format!("--expect {text:?}: {what}");
        let (figure, claim) = text.split_once(':').ok_or_else(|| wrong(FORM))?;
        let at = claim.find(['<', '>']).ok_or_else(|| wrong(FORM))?;
        let (left, more) = (&claim[..at], &claim[at..=at] == ">");
        let right = claim[at + 1..].trim();
        let left = space::settings(left.trim()).map_err(|error| wrong(&error))?;
        let right = if let Ok(bound) = right.parse::<f64>() {
            Right::Bound(bound)
        } else {
            let (settings, by) = match right.split_once(" by ") {
                Some((settings, by)) => (settings, by.trim()),
                None => (right, "0%"),
            };
            let settings = space::settings(settings.trim()).map_err(|error| wrong(&error))?;
            let number = |by: &str| match by.trim().parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(number),
                _ => Err(wrong("what stands behind by is no number")),
            };
            match by.strip_suffix('%') {
                Some(percent) => Right::Ratio(settings, number(percent)? / 100.0),
                None => Right::Difference(settings, number(by)?),
            }
        };
        if let Right::Ratio(_, by) = right
            && (by < 0.0 || !more && by >= 1.0)
        {
            return Err(wrong("by is from 0%, and of < under 100%"));
        }
        let figure = figure.trim().to_owned();
        if figure.is_empty() {
            return Err(wrong(FORM));
        }
        Ok(Hypothesis { text: text.to_owned(), figure, left, right, more })
    }

    /// Names that it speaks of.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        let right = match &self.right {
            Right::Ratio(right, _) | Right::Difference(right, _) => Some(right),
            Right::Bound(_) => None,
        };
        self.left.keys().chain(right.into_iter().flat_map(Settings::keys))
    }

    /// What the runs say of it, at the `look`-th look from 0.
    pub fn judge(&self, runs: &[Run], alpha: f64, look: u32) -> Judgement {
        let now = alpha_of_look(alpha, look);
        let blocks = self.blocks(runs);
        let (effect, threshold, is_ratio) = match &self.right {
            Right::Ratio(_, by) => {
                let threshold = if self.more { *by } else { -by };
                (effect::paired_ratio(&blocks, now), threshold, true)
            }
            Right::Difference(_, by) => {
                let threshold = if self.more { *by } else { -by };
                (effect::paired(&blocks, now), threshold, false)
            }
            Right::Bound(bound) => (effect::paired(&blocks, now), *bound, false),
        };
        // Figures without noise, such as counts, can be at the threshold but for rounding.
        let rounding = ROUNDING * (1.0 + threshold.abs());
        let verdict = match &effect {
            Some(effect) if effect.interval.low > threshold + rounding => self.said(true),
            Some(effect) if effect.interval.high < threshold - rounding => self.said(false),
            _ => Verdict::Undecided,
        };
        let next = alpha_of_look(alpha, look + 1);
        let needed = effect.as_ref().filter(|_| verdict == Verdict::Undecided).and_then(|effect| {
            let distance = if is_ratio {
                effect.value.ln_1p() - threshold.ln_1p()
            } else {
                effect.value - threshold
            };
            repeats(effect.deviation, distance, next)
        });
        let done = blocks.len() as u32;
        let repeats_needed = needed.map(|needed| needed.saturating_sub(done).max(1));
        Judgement { verdict, effect, threshold, is_ratio, alpha: now, repeats_needed }
    }

    fn said(&self, over: bool) -> Verdict {
        if over == self.more { Verdict::Supported } else { Verdict::Refuted }
    }

    /// A pair of figures for each block in which all that are compared have one. Where other names
    /// vary too, those alike in them are held against each other, and the block has their mean.
    fn blocks(&self, runs: &[Run]) -> Vec<(f64, f64)> {
        let last = runs.iter().map(|run| run.repeat).max().unwrap_or(0);
        (0..=last).filter_map(|block| self.block(runs, block)).collect()
    }

    fn block(&self, runs: &[Run], block: u32) -> Option<(f64, f64)> {
        let of_block = || runs.iter().filter(|run| run.repeat == block);
        let figure = |run: &Run| {
            run.record
                .number(&self.figure)
                .filter(|value| value.is_finite() && run.failure.is_none())
        };
        let lefts: Vec<&Run> = of_block().filter(|run| has(run, &self.left)).collect();
        let mut pairs = Vec::with_capacity(lefts.len());
        for left in lefts {
            let right = match &self.right {
                Right::Bound(_) => 0.0,
                Right::Ratio(right, _) | Right::Difference(right, _) => {
                    let mut wanted = left.settings.clone();
                    wanted.extend(right.clone());
                    let of = of_block().find(|run| run.settings == wanted && has(run, right))?;
                    figure(of)?
                }
            };
            pairs.push((figure(left)?, right));
        }
        if pairs.is_empty() {
            return None;
        }
        let n = pairs.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64, how: fn(f64) -> f64, back: fn(f64) -> f64| {
            back(pairs.iter().map(|pair| how(of(pair))).sum::<f64>() / n)
        };
        Some(if matches!(self.right, Right::Ratio(..)) {
            // Means of logarithms, so that the ratio is the mean ratio; what is not over 0 becomes
            // NaN or 0 and is refused by `paired_ratio`.
            (mean(|pair| pair.0, f64::ln, f64::exp), mean(|pair| pair.1, f64::ln, f64::exp))
        } else {
            (mean(|pair| pair.0, |x| x, |x| x), mean(|pair| pair.1, |x| x, |x| x))
        })
    }
}

fn has(run: &Run, settings: &Settings) -> bool {
    settings.iter().all(|(name, value)| run.settings.get(name) == Some(value))
}

/// Pairs in all that decide an effect so far from its threshold, with noise of so much in each.
fn repeats(deviation: f64, distance: f64, alpha: f64) -> Option<u32> {
    let ratio = (deviation / distance).abs();
    if !ratio.is_finite() {
        return None;
    }
    let power = normal_quantile(POWER);
    let mut n = 3.0_f64;
    // Student's t falls as n rises, so a few rounds find where they agree.
    for _ in 0..20 {
        let t = student_quantile(1.0 - alpha / 2.0, (n - 1.0).max(2.0));
        n = ((t + power) * ratio).powi(2).max(3.0);
    }
    (n <= REPEATS_MAX).then(|| n.ceil() as u32)
}

impl Judgement {
    /// As the result has it.
    pub fn to_json(&self, of: &Hypothesis) -> Value {
        json!({
            "expect": of.text,
            "figure": of.figure,
            "verdict": self.verdict.name(),
            "effect": self.effect.map(|effect| effect.value),
            "ci": self.effect.map(|effect| effect.interval),
            "threshold": self.threshold,
            "is_ratio": self.is_ratio,
            "alpha": self.alpha,
            "pairs": self.effect.map_or(0, |effect| effect.pairs),
            "repeats_needed": self.repeats_needed,
        })
    }

    /// A line for people.
    pub fn to_text(&self, of: &Hypothesis) -> String {
        let unit = |value: f64| match self.is_ratio {
            true => format!("{:+.1} %", value * 100.0),
            false => format!("{value:.4}"),
        };
        let word = self.verdict.name();
        let Some(effect) = &self.effect else {
            return format!(
                "{word}: {}: three blocks with figures over 0 are needed at least\n",
                of.text
            );
        };
        let mut text = format!(
            "{word}: {}: {} [{}, {}] at {:.1} % confidence, {} pairs",
            of.text,
            unit(effect.value),
            unit(effect.interval.low),
            unit(effect.interval.high),
            (1.0 - self.alpha) * 100.0,
            effect.pairs,
        );
        if self.verdict == Verdict::Undecided {
            text += &match self.repeats_needed {
                Some(needed) => format!("; about {needed} more repeats would tell"),
                None => "; too near the threshold for any number of repeats".to_owned(),
            };
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::Record;

    fn run(settings: &str, repeat: u32, value: f64) -> Run {
        let mut record = Record::default();
        record.set("tokens_per_s", value);
        Run { settings: space::settings(settings).unwrap(), repeat, record, ..Run::default() }
    }

    fn runs(left: &[f64], right: &[f64]) -> Vec<Run> {
        let blocks = (0..).zip(left.iter().zip(right));
        blocks.flat_map(|(n, (a, b))| [run("x=16", n, *a), run("x=8", n, *b)]).collect()
    }

    fn judge(text: &str, runs: &[Run]) -> Judgement {
        Hypothesis::parse(text).unwrap().judge(runs, 0.05, 0)
    }

    #[test]
    fn verdicts() {
        let clear = runs(&[120.0, 122.0, 119.0, 121.0], &[100.0, 101.0, 100.0, 99.0]);
        for (text, verdict) in [
            ("throughput_tok_s: x=16 > x=8", Verdict::Supported),
            ("throughput_tok_s: x=16 > x=8 by 10%", Verdict::Supported),
            ("tokens_per_s: x=16 > x=8 by 40%", Verdict::Refuted),
            ("tokens_per_s: x=16 > x=8 by 20%", Verdict::Undecided),
            ("tokens_per_s: x=16 < x=8", Verdict::Refuted),
            ("tokens_per_s: x=8 < x=16 by 10%", Verdict::Supported),
            ("tokens_per_s: x=16 > x=8 by 10", Verdict::Supported),
            ("tokens_per_s: x=16 < 150", Verdict::Supported),
            ("tokens_per_s: x=16 > 150", Verdict::Refuted),
            ("nothing: x=16 > x=8", Verdict::Undecided),
        ] {
            let found = judge(text, &clear);
            assert_eq!(found.verdict, verdict, "{text}: {found:?}");
        }
        let effect = judge("tokens_per_s: x=16 > x=8", &clear).effect.unwrap();
        assert!((effect.value - 0.205).abs() < 0.005, "{effect:?}");
    }

    #[test]
    fn what_is_missing_decides_nothing() {
        let two = runs(&[200.0, 200.0], &[100.0, 100.0]);
        let found = judge("tokens_per_s: x=16 > x=8", &two);
        assert_eq!((found.verdict, found.effect), (Verdict::Undecided, None));
        let mut failed = runs(&[120.0, 122.0, 119.0], &[100.0, 101.0, 100.0]);
        failed[0].failure = Some("it broke".to_owned());
        assert_eq!(judge("tokens_per_s: x=16 > x=8", &failed).effect, None);
    }

    #[test]
    fn other_names_are_held_alike() {
        let mut all = Vec::new();
        for repeat in 0..3 {
            let wobble = f64::from(repeat);
            all.push(run("x=16,b=1", repeat, 120.0 + wobble));
            all.push(run("x=8,b=1", repeat, 100.0));
            all.push(run("x=16,b=2", repeat, 1_200.0 - wobble));
            all.push(run("x=8,b=2", repeat, 1_000.0));
        }
        let found = judge("tokens_per_s: x=16 > x=8 by 10%", &all);
        assert_eq!(found.verdict, Verdict::Supported);
        assert_eq!(found.effect.unwrap().pairs, 3);
    }

    #[test]
    fn repeats_that_are_needed() {
        let noisy = runs(&[115.0, 130.0, 105.0, 118.0], &[100.0, 101.0, 103.0, 99.0]);
        let found = judge("tokens_per_s: x=16 > x=8 by 10%", &noisy);
        assert_eq!(found.verdict, Verdict::Undecided);
        let needed = found.repeats_needed.unwrap();
        assert!((3..100).contains(&needed), "{needed}");
        assert_eq!(repeats(0.1, 0.0, 0.05), None);
        assert_eq!(repeats(0.1, 1e-6, 0.05), None);
        // (1.96 + 0.84)^2 = 7.85 for a distance of one deviation; a little more with Student's t.
        assert!((8..=11).contains(&repeats(1.0, 1.0, 0.05).unwrap()));
    }

    #[test]
    fn looks_share_alpha() {
        let sum: f64 = (0..50).map(|look| alpha_of_look(0.05, look)).sum();
        assert!(sum <= 0.05 + 1e-12 && sum > 0.0499);
    }

    #[test]
    fn faults_are_sentences() {
        for text in ["x", "f: x=1", "f: x > y", "f: x=1 > x=2 by y%", ": x=1 > 2"] {
            let error = Hypothesis::parse(text).unwrap_err();
            assert!(error.starts_with(&format!("--expect {text:?}: ")), "{error}");
        }
        assert!(Hypothesis::parse("f: x=1 < x=2 by 100%").is_err());
        let names = Hypothesis::parse("f: x=1,y=2 > x=2").unwrap();
        assert_eq!(names.names().collect::<Vec<_>>(), ["x", "y", "x"]);
    }
}
