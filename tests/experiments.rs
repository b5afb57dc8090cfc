//! What experiments promise, held against experiments whose truth is known.
//!
//! `CNSE_EXPERIMENTS` is how many are simulated for each effect and threshold (200), and a
//! twentieth of it how many runs for the intervals of percentiles; `CNSE_TUNE_SEEDS` how many
//! searches (4).

use std::fmt;

use cnse::bench::experiment::hypothesis::{Hypothesis, Verdict};
use cnse::bench::experiment::order;
use cnse::bench::experiment::space::{self, Settings, Space};
use cnse::bench::experiment::tune::{self, Goal};
use cnse::bench::record::{Record, Run};
use cnse::bench::statistics::dependence::quantile_inflation;
use cnse::bench::statistics::probability::{beta_cdf, normal_cdf, student_quantile};
use cnse::bench::statistics::{Interval, median, quantile};
use cnse::prng::{Prng, hash};

const ALPHA: f64 = 0.05;

fn from_environment(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// A machine on which runs are made: noise that multiplies, a level that wanders from run to run,
/// and a trend (it grows hotter) over the whole experiment.
struct Machine {
    prng: Prng,
    noise: f64,
    wander: f64,
    trend: f64,
    level: f64,
}

impl Machine {
    fn run(&mut self, truth: f64) -> f64 {
        self.level += self.wander * self.prng.normal() - self.trend;
        truth * (self.level + self.noise * self.prng.normal()).exp()
    }
}

/// An experiment of two settings in blocks, in the order in which `sweep` makes them.
fn experiment(effect: f64, blocks: u32, seed: u64) -> Vec<Run> {
    let mut prng = Prng::new(seed);
    // From a quiet machine to a busy one.
    let noise = 0.01 + 0.05 * prng.unit();
    let (wander, trend) = (0.5 * noise * prng.unit(), 0.01 * prng.unit());
    let mut machine = Machine { prng, noise, wander, trend, level: 0.0 };
    let settings = [space::settings("x=8").unwrap(), space::settings("x=16").unwrap()];
    let mut runs = Vec::new();
    for block in 0..blocks {
        for which in order::of_block(2, block, seed) {
            let truth = if which == 1 { 100.0 * (1.0 + effect) } else { 100.0 };
            let mut record = Record::default();
            record.set("tokens_per_s", machine.run(truth));
            let settings = settings[which].clone();
            runs.push(Run { settings, repeat: block, record, ..Run::default() });
        }
    }
    runs
}

/// Whether a verdict on "over the threshold by so much" is false of a true effect.
fn is_false(verdict: Verdict, effect: f64, threshold: f64) -> bool {
    match verdict {
        Verdict::Undecided => false,
        // At the threshold neither can be told, so both are false.
        _ if (effect - threshold).abs() < 1e-12 => true,
        Verdict::Supported => effect < threshold,
        Verdict::Refuted => effect > threshold,
    }
}

/// The rate of which `of` in `n` were seen, with its 95 % interval (C. J. Clopper and E. S.
/// Pearson, 1934).
struct Rate {
    seen: f64,
    low: f64,
    high: f64,
}

impl Rate {
    fn new(of: u64, n: u64) -> Rate {
        let (of, n) = (of as f64, n as f64);
        let quantile = |p: f64, a: f64, b: f64| {
            let (mut low, mut high) = (0.0, 1.0);
            for _ in 0..60 {
                let middle = (low + high) / 2.0;
                if beta_cdf(middle, a, b) < p { low = middle } else { high = middle }
            }
            low
        };
        Rate {
            seen: of / n,
            low: if of == 0.0 { 0.0 } else { quantile(0.025, of, n - of + 1.0) },
            high: if of == n { 1.0 } else { quantile(0.975, of + 1.0, n - of) },
        }
    }

    /// Of many experiments the whole interval is under the stated rate; few can only tell that it
    /// is not surely over.
    fn check(&self, count: u64, what: &str) {
        let end = if count >= 5_000 { self.high } else { self.low };
        assert!(end <= ALPHA, "{what}: {self} of {count}");
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [seen, low, high] = [self.seen, self.low, self.high].map(|rate| 100.0 * rate);
        write!(f, "{seen:.2} % [{low:.2}, {high:.2}]")
    }
}

#[test]
fn false_verdicts_keep_to_the_stated_rate() {
    let count = from_environment("CNSE_EXPERIMENTS", 200);
    let steps = [0.0, 0.05, 0.1, 0.2];
    println!(
        "effect threshold  supported refuted undecided    false   (of {count}, alpha {ALPHA})"
    );
    for effect in steps {
        for threshold in steps {
            let text = format!("tokens_per_s: x=16 > x=8 by {}%", threshold * 100.0);
            let hypothesis = Hypothesis::parse(&text).unwrap();
            let (mut told, mut wrong) = ([0_u64; 3], 0);
            for number in 0..count {
                let seed = hash(number, text.as_bytes()) ^ (effect * 1e6) as u64;
                let blocks = 3 + (number % 10) as u32;
                let found = hypothesis.judge(&experiment(effect, blocks, seed), ALPHA, 0);
                told[found.verdict as usize] += 1;
                wrong += u64::from(is_false(found.verdict, effect, threshold));
            }
            let rate = Rate::new(wrong, count);
            let [supported, refuted, undecided] = told;
            let (e, t) = (effect * 100.0, threshold * 100.0);
            println!("{e:>5.0} % {t:>7.0} % {supported:>10} {refuted:>7} {undecided:>9}   {rate}");
            rate.check(count, &format!("{e} % against {t} %"));
            // A test that never decides keeps every rate.
            if (effect - threshold).abs() >= 0.1 {
                assert!(told[2] < count / 4, "{effect} {threshold}: {told:?}");
            }
        }
    }
}

#[test]
fn looking_again_does_not_raise_the_rate() {
    // Whoever goes on until it is decided, at the threshold itself, where each verdict is false.
    let count = from_environment("CNSE_EXPERIMENTS", 200);
    let hypothesis = Hypothesis::parse("tokens_per_s: x=16 > x=8 by 10%").unwrap();
    let mut wrong = 0;
    for seed in 0..count {
        let runs = experiment(0.1, 20, hash(seed, b"looks"));
        let mut looks = (3..=20).enumerate().map(|(look, blocks)| {
            let seen: Vec<Run> = runs.iter().filter(|run| run.repeat < blocks).cloned().collect();
            hypothesis.judge(&seen, ALPHA, look as u32).verdict
        });
        wrong += u64::from(looks.any(|verdict| verdict != Verdict::Undecided));
    }
    let rate = Rate::new(wrong, count);
    println!("18 looks until it is decided, each verdict false: {rate} of {count}");
    rate.check(count, "looking again");
}

/// Tokens a second of a made-up server: rises with what is in flight and falls past 24, likes a
/// batch of 512, and one of its three modes.
fn surface(settings: &Settings) -> (f64, f64) {
    let number = |name: &str| settings[name].as_f64().unwrap();
    let (inflight, batch) = (number("inflight"), number("batch"));
    let mode = match settings["mode"].as_str().unwrap() {
        "fast" => 1.0,
        "plain" => 0.85,
        _ => 0.7,
    };
    let of_inflight = (-(inflight / 24.0).ln().powi(2) / 2.0).exp();
    let of_batch = (-(batch / 512.0).ln().powi(2) / 4.0).exp();
    (1_000.0 * mode * of_inflight * of_batch, 20.0 * inflight)
}

/// Runs until one was made of a setting whose true figure is within 2 % of the best that keeps the
/// bound; the budget if none was.
fn runs_to_reach(space: &Space, goal: &Goal, seed: u64, guided: bool) -> f64 {
    const BUDGET: usize = 120;
    let allowed = |settings: &Settings| surface(settings).1 < goal.bounds[0].limit;
    let points = space.grid().unwrap();
    let best = points.iter().filter(|point| allowed(point)).map(|point| surface(point).0);
    let best = best.fold(0.0, f64::max);
    let mut prng = Prng::new(seed);
    let mut runs: Vec<Run> = Vec::new();
    while runs.len() < BUDGET {
        let settings = if guided {
            tune::next(goal, space, &runs, seed)
        } else {
            // Without repetition, which is more than fair to chance.
            let tried = |point: &Settings| runs.iter().any(|run| run.settings == *point);
            std::iter::repeat_with(|| space.point(&mut prng)).find(|point| !tried(point)).unwrap()
        };
        let (truth, latency) = surface(&settings);
        let mut record = Record::default();
        record.set("tokens_per_s", truth * (0.03 * prng.normal()).exp());
        record.set("latency", latency * (0.03 * prng.normal()).exp());
        runs.push(Run { settings: settings.clone(), record, ..Run::default() });
        if allowed(&settings) && truth >= 0.98 * best {
            return runs.len() as f64;
        }
    }
    BUDGET as f64
}

#[test]
fn tuning_needs_fewer_runs_than_chance() {
    let seeds = from_environment("CNSE_TUNE_SEEDS", 4);
    let space = Space::parse(&[
        "inflight=1,2,4,6,8,12,16,24,32,64",
        "batch=64,128,256,512,1024,2048",
        "mode=slow,plain,fast",
    ])
    .unwrap();
    let goal = Goal::parse("max tokens_per_s", &["latency < 400"]).unwrap();
    let of = |guided| {
        let runs: Vec<f64> =
            (0..seeds).map(|seed| runs_to_reach(&space, &goal, seed, guided)).collect();
        (median(&runs).unwrap(), runs.iter().copied().fold(0.0, f64::max))
    };
    let ((guided, guided_most), (random, random_most)) = (of(true), of(false));
    println!(
        "runs to the best of 180 settings, median of {seeds} seeds (and most): tuned {guided} ({guided_most}), random {random} ({random_most})"
    );
    assert!(guided * 2.0 <= random, "{guided} and {random}");
}

/// Latencies of a run whose true percentiles are known.
#[derive(Clone, Copy, Debug)]
enum Process {
    /// Each by itself.
    Independent,
    /// x' = 0.7 x + noise.
    Autoregressive,
    /// Response times of a single server that is busy 80 % of the time (M/M/1).
    Queue,
    /// One request in 200 meets a stall of ten times the mean, and with it the seven after it.
    Stalls,
}

impl Process {
    fn run(self, n: usize, prng: &mut Prng) -> Vec<f64> {
        let exponential = |prng: &mut Prng| -(1.0 - prng.unit()).ln();
        match self {
            Process::Independent => (0..n).map(|_| exponential(prng)).collect(),
            Process::Autoregressive => {
                let mut x = prng.normal() / 0.51_f64.sqrt();
                let next = || {
                    x = 0.7 * x + prng.normal();
                    x
                };
                std::iter::repeat_with(next).take(n).collect()
            }
            Process::Queue => {
                // The wait of the first is drawn from what waits are in the long run.
                let mut wait = if prng.unit() < 0.8 { exponential(prng) / 0.2 } else { 0.0 };
                let next = || {
                    let response = wait + exponential(prng);
                    wait = (response - exponential(prng) / 0.8).max(0.0);
                    response
                };
                std::iter::repeat_with(next).take(n).collect()
            }
            Process::Stalls => {
                // As if it had run for seven requests before.
                let mut left = 0;
                let next = || {
                    left = if prng.unit() < 1.0 / 200.0 { 8 } else { i32::max(left - 1, 0) };
                    exponential(prng) + if left > 0 { 10.0 } else { 0.0 }
                };
                std::iter::repeat_with(next).skip(7).take(n).collect()
            }
        }
    }

    fn truth(self, q: f64) -> f64 {
        let stalled = 1.0 - (1.0_f64 - 1.0 / 200.0).powi(8);
        let exponential = |x: f64| if x > 0.0 { 1.0 - (-x).exp() } else { 0.0 };
        let (mut low, mut high) = (-20.0, 200.0);
        for _ in 0..100 {
            let x: f64 = (low + high) / 2.0;
            let under = match self {
                Process::Independent => exponential(x),
                Process::Autoregressive => normal_cdf(x * 0.51_f64.sqrt()),
                Process::Queue => exponential(0.2 * x),
                Process::Stalls => {
                    (1.0 - stalled) * exponential(x) + stalled * exponential(x - 10.0)
                }
            };
            if under < q { low = x } else { high = x }
        }
        low
    }
}

/// The block bootstrap of a percentile: 20 blocks drawn with replacement, the percentile interval
/// with its tails made as much wider as so few blocks need (T. C. Hesterberg, "What teachers should
/// know about the bootstrap", 2015, section 4.2).
fn block_bootstrap(series: &[f64], sorted: &[f64], q: f64, prng: &mut Prng) -> Interval {
    const BLOCKS: usize = 20;
    const RESAMPLES: usize = 400;
    const PLACES: usize = 128;
    let n = series.len() as f64;
    let reach = 10.0 * (n * q * (1.0 - q)).sqrt();
    let places: Vec<f64> = (0..PLACES)
        .map(|place| {
            let rank = n * q - reach + 2.0 * reach * place as f64 / (PLACES - 1) as f64;
            sorted[(rank.round().max(1.0) as usize).min(sorted.len()) - 1]
        })
        .collect();
    let blocks: Vec<Vec<u32>> = series
        .chunks_exact(series.len() / BLOCKS)
        .map(|block| {
            let under = |place: &f64| block.iter().filter(|value| *value <= place).count() as u32;
            places.iter().map(under).collect()
        })
        .collect();
    let needed = (n * q).ceil() as u32;
    let mut found: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn: Vec<usize> =
                (0..BLOCKS).map(|_| prng.below(BLOCKS as u64) as usize).collect();
            let under = |place: usize| drawn.iter().map(|b| blocks[*b][place]).sum::<u32>();
            let (mut low, mut high) = (0, PLACES - 1);
            while low < high {
                let middle = (low + high) / 2;
                if under(middle) >= needed { high = middle } else { low = middle + 1 }
            }
            places[low]
        })
        .collect();
    found.sort_by(f64::total_cmp);
    let blocks = BLOCKS as f64;
    let t = student_quantile(0.975, blocks - 1.0);
    let tail = normal_cdf(-(blocks / (blocks - 1.0)).sqrt() * t);
    let at = |p: f64| found[((RESAMPLES - 1) as f64 * p).round() as usize];
    Interval::new(at(tail), at(1.0 - tail))
}

#[test]
fn percentile_intervals_cover_dependent_samples() {
    const SAMPLES: usize = 5_000;
    let count = from_environment("CNSE_EXPERIMENTS", 200).div_ceil(20);
    println!("intervals that miss the truth, of {count} runs of {SAMPLES} requests each:");
    let mut sums = [0.0_f64; 2];
    for process in [Process::Independent, Process::Autoregressive, Process::Queue, Process::Stalls]
    {
        for q in [0.5, 0.9, 0.99] {
            let truth = process.truth(q);
            let (mut missed, mut told) = ([0_u64; 3], 0);
            for number in 0..count {
                let mut prng = Prng::new(hash(number, format!("{process:?} {q}").as_bytes()));
                let series = process.run(SAMPLES, &mut prng);
                let mut sorted = series.clone();
                sorted.sort_by(f64::total_cmp);
                let inflation = quantile_inflation(&series, q);
                let interval = |inflation| {
                    let found = quantile::estimate(&sorted[..], q, 1.0 - ALPHA, inflation);
                    found.map(|found| found.interval)
                };
                let Some(ours) = interval(inflation) else { continue };
                told += 1;
                let bootstrap = block_bootstrap(&series, &sorted, q, &mut prng);
                for (missed, interval) in
                    missed.iter_mut().zip([ours, bootstrap, interval(1.0).unwrap_or(ours)])
                {
                    *missed += u64::from(!interval.contains(truth));
                }
            }
            let [ours, bootstrap, independent] = missed.map(|missed| Rate::new(missed, told));
            println!(
                "{process:<14?} p{:<3} {ours}, by block bootstrap {bootstrap}, taken as independent {:.0} %, not told {}",
                100.0 * q,
                100.0 * independent.seen,
                count - told
            );
            // Where most runs cannot tell, those that can are no fair sample.
            if 2 * told > count {
                assert!(ours.low <= 0.1, "{process:?} {q}: {ours}");
                sums = [sums[0] + ours.seen, sums[1] + bootstrap.seen];
            }
        }
    }
    let [ours, bootstrap] = sums;
    println!("all together: {ours:.2} misses a run, by block bootstrap {bootstrap:.2}");
    // Of few runs it is chance.
    assert!(count < 500 || ours < bootstrap, "{sums:?}");
}
