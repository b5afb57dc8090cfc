//! Kernels against their CPU twins, on a card. Where there is none, it says so and passes: build it
//! here, carry the binary to a host with a card, and run it there.
//!
//! ```text
//! cuda                       every comparison, some 30 s
//!     --cases N              random batches (400)
//!     --largest V            vocabularies of up to V in the edge cases (262144)
//!     --draws N              thousands of draws for each distribution (200)
//! cuda offload               rows and tokens: a card that is well, full, and lost (some 30 s)
//! cuda wide ROWS VOCAB       wide nuclei only, of one shape
//! cuda bench                 what sampling costs, as a table
//! cuda bench ROWS VOCAB      of one shape
//! ```

#[path = "cuda/offload.rs"]
mod offload;

use std::env::Args;
use std::iter::Skip;
use std::sync::Arc;
use std::time::Instant;

use cnse::bench::gpu::check_sampling::halves;
use cnse::bench::gpu::measure_sampling::{Setting, Spread, copy_bytes_per_s, measure};
use cnse::cuda::sampling::{Sampler, Shape, Type};
use cnse::cuda::{Gpu, Lane, LaneBounds};
use cnse::post::sampling::{self, Batch, Edit, Logits, Params, VOCAB_MAX};
use cnse::prng::Prng;

/// Logits of one random batch at most, so that the twin takes some tenths of a second.
const LOGITS_MAX: usize = 12 << 20;
const ROWS_MAX: u64 = 256;
/// Rows that a card has room for at once, and a length at which blocks help each other.
const WIDE: (usize, usize) = (96, 128_256);

fn main() {
    let (mut cases, mut draws, mut largest) = (400, 200, VOCAB_MAX);
    let (mut wide, mut bench, mut only_offload) = (None, None, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let number =
            |args: &mut Skip<Args>| args.next().and_then(|n| n.parse().ok()).expect("a number");
        match arg.as_str() {
            "--cases" => cases = number(&mut args),
            "--draws" => draws = number(&mut args),
            "--largest" => largest = number(&mut args),
            "wide" => wide = Some((number(&mut args), number(&mut args))),
            "bench" => {
                bench = Some(args.by_ref().map_while(|n| n.parse().ok()).collect::<Vec<_>>())
            }
            "offload" => only_offload = true,
            // What cargo hands to every test.
            _ => {}
        }
    }
    let gpu = match Gpu::open(0, cnse::cuda::FAMILIES) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let facts = gpu.facts();
    println!("{}: opened in {:?}, kernels loaded in {:?}", facts.name, facts.opened, facts.loaded);
    if only_offload {
        offload::run();
        return println!("passed");
    }
    let mut stand = Stand::open(&gpu);
    if let Some(only) = bench {
        return stand.bench(&only);
    }
    if let Some((rows, vocab)) = wide {
        return stand.wide(rows, vocab);
    }
    stand.edges(largest);
    if largest >= WIDE.1 {
        stand.wide(WIDE.0, WIDE.1);
    }
    stand.random(cases);
    stand.frequencies(draws);
    println!("passed");
}

/// A card, and who works on it.
struct Stand {
    lane: Lane,
    sampler: Sampler,
    threads: usize,
}

/// A batch that owns what it says.
struct Case {
    logits: Vec<f32>,
    halves: Vec<u16>,
    kind: Type,
    vocab: usize,
    params: Vec<Params>,
    edits: Vec<Vec<Edit>>,
    top_n: usize,
    entropy: bool,
}

impl Case {
    fn new(vocab: usize, logits: Vec<f32>, params: Params) -> Case {
        let rows = logits.len() / vocab;
        Case {
            logits,
            halves: Vec::new(),
            kind: Type::F32,
            vocab,
            params: (0..rows).map(|row| Params { stream: row as u64, ..params }).collect(),
            edits: Vec::new(),
            top_n: 3,
            entropy: true,
        }
    }

    fn batch(&self) -> Batch<'_> {
        let logits = match self.kind {
            Type::F32 => Logits::F32(&self.logits),
            Type::F16 => Logits::F16(&self.halves),
            Type::Bf16 => Logits::Bf16(&self.halves),
        };
        let Case { vocab, ref params, ref edits, top_n, entropy, .. } = *self;
        Batch { logits, vocab, params, edits, top_n, entropy }
    }

    fn written_as(mut self, kind: Type) -> Case {
        self.halves = halves(kind, &self.logits);
        self.kind = kind;
        self
    }
}

impl Stand {
    fn open(gpu: &Arc<Gpu>) -> Stand {
        let bounds = LaneBounds { pinned_slab_bytes: 64 << 20, ..LaneBounds::default() };
        Stand {
            lane: Lane::open(gpu, &bounds).expect("a lane"),
            sampler: Sampler::open(gpu).expect("the kernels"),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Both machines, result for result.
    fn compare(&self, name: &str, case: &Case) {
        let batch = case.batch();
        let twin = sampling::sample(&batch, self.threads).expect("a batch that can be sampled");
        let card = self.sampler.sample(&self.lane, &batch).expect("a card that works");
        for (row, (twin, card)) in twin.iter().zip(&card).enumerate() {
            assert!(
                twin == card,
                "{name}, row {row} of {} x {}: {:?}\n the twin: {twin:?}\n the card: {card:?}",
                case.params.len(),
                case.vocab,
                case.params[row]
            );
        }
        assert_eq!(twin.len(), card.len(), "{name}");
    }

    /// What a random batch may miss.
    fn edges(&self, largest: usize) {
        let begun = Instant::now();
        let inf = f32::INFINITY;
        let plain = Params::default();
        let modes = [
            plain,
            Params { temperature: 0.0, ..plain },
            Params { top_k: 1, ..plain },
            Params { top_k: 50, ..plain },
            Params { top_p: 0.9, ..plain },
            Params { top_k: 5_000, top_p: 0.9, ..plain },
            Params { top_p: 0.5, min_p: 0.02, ..plain },
            Params { min_p: 0.3, temperature: 3.0, ..plain },
        ];
        let mut count = 0;
        let sizes = [1, 2, 3, 31, 32, 33, 255, 257, 2_047, 2_048, 2_049, 8_193, 50_257];
        let sizes = sizes.into_iter().chain([VOCAB_MAX - 1, VOCAB_MAX]);
        for vocab in sizes.filter(|vocab| *vocab <= largest) {
            let mut prng = Prng::new(vocab as u64);
            let gaussian: Vec<f32> = (0..2 * vocab).map(|_| prng.normal() as f32).collect();
            let coarse = gaussian.iter().map(|x| x.round()).collect();
            let mut masked = gaussian.clone();
            masked.iter_mut().step_by(3).for_each(|x| *x = -inf);
            let one = (0..2 * vocab).map(|i| if i % vocab == vocab / 2 { 1.5 } else { -inf });
            let far = gaussian.iter().map(|x| x * 40.0 - 9_000.0).collect();
            let shapes = [gaussian, coarse, masked, one.collect(), far, vec![0.25; 2 * vocab]];
            for logits in shapes {
                for mode in modes {
                    let params = Params { top_k: mode.top_k.min(vocab as u32), seed: 5, ..mode };
                    self.compare("edges", &Case::new(vocab, logits.clone(), params));
                    count += 1;
                }
            }
            for (at, bad) in [(0, f32::NAN), (vocab - 1, f32::NAN), (vocab / 2, inf), (0, 1e9)] {
                let mut logits = vec![0.5; 3 * vocab];
                logits[vocab + at] = bad;
                logits[2 * vocab..].fill(-inf);
                self.compare("refusals", &Case::new(vocab, logits, plain));
                count += 1;
            }
        }
        println!("edges: {count} batches equal their twin ({:?})", begun.elapsed());
    }

    /// Many rows whose nuclei are wide, so that blocks help each other with whole rows: with ties
    /// in the edge, signed zeroes, edits, each type.
    fn wide(&self, rows: usize, longest: usize) {
        let begun = Instant::now();
        let plain = Params { seed: 3, ..Params::default() };
        let fifth = longest as u32 / 5;
        let modes = [
            Params { top_p: 0.9, ..plain },
            Params { top_p: 0.3, ..plain },
            Params { top_k: fifth, top_p: 0.9, ..plain },
            Params { top_k: fifth, ..plain },
            Params { min_p: 0.05, ..plain },
            Params { top_p: 0.7, min_p: 0.02, ..plain },
        ];
        let mut prng = Prng::new(77);
        let mut count = 0;
        for (step, params) in modes.into_iter().enumerate() {
            let other = Type::ALL[step % 3];
            for (grain, kind) in [(0.0, Type::F32), (0.25, Type::F32), (0.02, other)] {
                // Of an even length and of odd ones: in vectors, and one by one.
                let vocab = longest.saturating_sub(step % 2 * step).max(1);
                let mut row = row_of(vocab, Spread::Flat, &mut prng);
                if grain > 0.0 {
                    row.iter_mut().for_each(|x| *x = (*x / grain).round() * grain);
                }
                let zeroes = row.iter_mut().step_by(2).filter(|x| **x == 0.0);
                zeroes.for_each(|x| *x = -0.0);
                let mut logits = Vec::with_capacity(rows * vocab);
                for _ in 0..rows {
                    let turn = prng.below(vocab as u64) as usize;
                    logits.extend_from_slice(&row[turn..]);
                    logits.extend_from_slice(&row[..turn]);
                }
                let mut case = Case::new(vocab, logits, Params { step: step as u32, ..params });
                (case.top_n, case.entropy) = (0, false);
                if grain == 0.25 {
                    case.edits = random_edits(rows, vocab, &mut prng);
                }
                self.compare(&format!("wide, grain {grain}"), &case.written_as(kind));
                count += 1;
            }
        }
        println!("wide: {count} batches equal their twin ({:?})", begun.elapsed());
    }

    fn random(&self, cases: usize) {
        let begun = Instant::now();
        let mut logits = 0;
        for seed in 0..cases as u64 {
            let case = random_case(&mut Prng::new(seed));
            logits += case.logits.len();
            self.compare(&format!("seed {seed}"), &case);
        }
        println!(
            "random: {cases} batches, {} M logits, equal their twin ({:?})",
            logits >> 20,
            begun.elapsed()
        );
    }

    /// Frequencies of independent draws against probabilities in f64.
    fn frequencies(&self, thousands: usize) {
        let plain = Params { seed: 99, ..Params::default() };
        let modes = [
            ("plain", plain),
            ("top-k 50", Params { top_k: 50, ..plain }),
            ("top-p 0.9", Params { top_p: 0.9, ..plain }),
            ("both", Params { top_k: 50, top_p: 0.9, ..plain }),
            ("min-p 0.05", Params { min_p: 0.05, ..plain }),
        ];
        let (rows, vocab) = (250, 12_000);
        for spread in [Spread::Peaked, Spread::Flat] {
            let row = row_of(vocab, spread, &mut Prng::new(3));
            let device = self.lane.upload(&row.repeat(rows)).expect("an upload");
            for (name, params) in modes {
                let expected = probabilities(&row, &params);
                let mut case = Case::new(vocab, row.repeat(rows), params);
                (case.top_n, case.entropy) = (0, false);
                let shape = Shape { logits: Type::F32, rows, vocab, top_n: 0, entropy: false };
                let mut work = self.sampler.work(&self.lane, shape).expect("memory");
                let mut counts = vec![0u32; vocab];
                let launches = thousands * 1_000 / rows;
                for step in 0..launches {
                    for params in &mut case.params {
                        params.step = step as u32;
                    }
                    work.set(&self.lane, &case.batch()).expect("parameters");
                    work.launch(&self.lane, &device).expect("a launch");
                    self.lane.synchronize().expect("a card that works");
                    for sampled in work.read() {
                        counts[sampled.expect("a token").token as usize] += 1;
                    }
                }
                let (chi, freedom) = chi_squared(&counts, &expected, (launches * rows) as f64);
                let spread_of = (2.0 * freedom).sqrt();
                println!(
                    "{name}, {spread:?}: {} draws, chi squared {chi:.0} of {freedom} degrees",
                    launches * rows
                );
                assert!(chi < freedom + 5.0 * spread_of + 8.0, "{name}, {spread:?}");
            }
        }
    }

    fn bench(&mut self, only: &[usize]) {
        let copy = copy_bytes_per_s(&self.lane).expect("a copy");
        println!("copy: {:.0} GB/s, read and written", copy / 1e9);
        println!("rows vocab spread mode inputs us share");
        let plain = Params { seed: 1, ..Params::default() };
        let modes = [
            ("top-k", Params { top_k: 50, ..plain }, false),
            ("top-p", Params { top_p: 0.9, ..plain }, false),
            ("both", Params { top_k: 50, top_p: 0.9, ..plain }, false),
            ("plain", plain, false),
            ("greedy", Params { temperature: 0.0, ..plain }, false),
            ("p+H", Params { top_p: 0.9, ..plain }, true),
        ];
        for vocab in [32_000, 128_256, 256_000] {
            for rows in [1, 8, 64, 256] {
                for spread in [Spread::Peaked, Spread::Flat] {
                    for (name, params, entropy) in modes {
                        let is_wanted = only.is_empty() || only == [rows, vocab];
                        if !is_wanted {
                            continue;
                        }
                        let setting = Setting { rows, vocab, spread, params, entropy };
                        let found = measure(&self.lane, &self.sampler, &setting);
                        let found = found.expect("a measurement");
                        println!(
                            "{rows} {vocab} {spread:?} {name} {} {:.1} {:.1}%",
                            found.inputs,
                            found.batch_us,
                            found.bytes_per_s() / copy * 100.0
                        );
                    }
                }
            }
        }
    }
}

fn row_of(vocab: usize, spread: Spread, prng: &mut Prng) -> Vec<f32> {
    let one = |rank: usize, prng: &mut Prng| match spread {
        Spread::Peaked => -1.6 * ((rank + 1) as f32).ln(),
        Spread::Flat => prng.normal() as f32,
    };
    let mut row: Vec<f32> = (0..vocab).map(|rank| one(rank, prng)).collect();
    for i in (1..vocab).rev() {
        row.swap(i, prng.below(i as u64 + 1) as usize);
    }
    row
}

/// A batch of any shape, with any parameters that can be.
fn random_case(prng: &mut Prng) -> Case {
    let log_uniform = |prng: &mut Prng, most: u64| {
        ((most as f64).powf(prng.unit()) as u64).clamp(1, most) as usize
    };
    let vocab = log_uniform(prng, VOCAB_MAX as u64);
    let rows = log_uniform(prng, ROWS_MAX.min((LOGITS_MAX / vocab) as u64));
    let scale = [0.0, 0.3, 1.0, 1.0, 3.0, 12.0][prng.below(6) as usize];
    let grain = [0.0, 0.0, 0.0, 0.25, 1.0][prng.below(5) as usize];
    let (offset, masked) = (prng.normal() * 20.0, prng.below(4) == 0);
    let peaked = prng.below(3) == 0;
    let mut logits = Vec::with_capacity(rows * vocab);
    let zipf = row_of(vocab, Spread::Peaked, prng);
    for _ in 0..rows {
        let turn = prng.below(vocab as u64) as usize;
        for i in 0..vocab {
            let x =
                if peaked { f64::from(zipf[(i + turn) % vocab]) } else { prng.normal() * scale };
            let x = if grain > 0.0 { (x / grain).round() * grain } else { x } + offset;
            let x = if masked && prng.below(2) == 0 { f64::NEG_INFINITY } else { x };
            logits.push(x as f32);
        }
    }
    for _ in 0..prng.below(3) {
        let bad = [f32::NAN, f32::INFINITY, -3e38, 1e7, -0.0][prng.below(5) as usize];
        let at = prng.below(logits.len() as u64) as usize;
        logits[at] = bad;
    }
    let kind = [Type::F32, Type::F32, Type::F16, Type::Bf16][prng.below(4) as usize];
    let params = (0..rows).map(|_| random_params(vocab, prng)).collect();
    let edits = if prng.below(2) == 0 { Vec::new() } else { random_edits(rows, vocab, prng) };
    let top_n = prng.below(3) as usize * prng.below(17) as usize;
    let entropy = prng.below(2) == 0;
    let halves = Vec::new();
    Case { logits, halves, kind, vocab, params, edits, top_n, entropy }.written_as(kind)
}

fn random_params(vocab: usize, prng: &mut Prng) -> Params {
    let choose = |prng: &mut Prng, from: &[f32]| from[prng.below(from.len() as u64) as usize];
    let k = prng.below(vocab as u64 + 1) as u32;
    Params {
        temperature: choose(prng, &[0.0, 1.0, 1.0, 0.7, 0.01, 2.5, 100.0]),
        top_k: [0, 0, 1, 2, 20, 50, k, vocab as u32][prng.below(8) as usize],
        top_p: choose(prng, &[1.0, 1.0, 0.9, 0.5, 0.1, 0.999, 1e-6]),
        min_p: choose(prng, &[0.0, 0.0, 0.0, 0.05, 0.5, 1.0]),
        repetition_penalty: choose(prng, &[1.0, 1.3, 0.8]),
        presence_penalty: choose(prng, &[0.0, 0.5, -1.0]),
        frequency_penalty: choose(prng, &[0.0, 0.1]),
        seed: prng.next_u64(),
        stream: prng.next_u64(),
        step: prng.next_u64() as u32,
    }
}

fn random_edits(rows: usize, vocab: usize, prng: &mut Prng) -> Vec<Vec<Edit>> {
    let list = |_| {
        let mut token = || prng.below(vocab as u64) as u32;
        let history: Vec<u32> = (0..token() % 300).map(|_| token()).collect();
        let bias: Vec<(u32, f32)> = [1.0, -2.5, 4.0, f32::NEG_INFINITY, 0.125]
            .into_iter()
            .map(|bias| (token(), bias))
            .collect();
        Edit::list(&history, &bias)
    };
    (0..rows).map(list).collect()
}

/// Each token's probability under top-k, then top-p, then min-p, in f64.
fn probabilities(row: &[f32], params: &Params) -> Vec<f64> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    let weigh = |token: usize| (f64::from(row[token]) - f64::from(row[order[0]])).exp();
    let mut kept: Vec<usize> = order.clone();
    kept.truncate(if params.top_k == 0 { row.len() } else { params.top_k as usize });
    let goal = f64::from(params.top_p) * kept.iter().map(|&token| weigh(token)).sum::<f64>();
    let mut sum = 0.0;
    let within = kept.iter().take_while(|&&token| {
        let before = sum;
        sum += weigh(token);
        before < goal
    });
    let within = within.count();
    kept.truncate(within);
    kept.retain(|&token| weigh(token) >= f64::from(params.min_p));
    let total: f64 = kept.iter().map(|&token| weigh(token)).sum();
    let mut all = vec![0.0; row.len()];
    kept.iter().for_each(|&token| all[token] = weigh(token) / total);
    all
}

/// Chi squared and its degrees of freedom; tokens with fewer than 8 expected count together.
fn chi_squared(counts: &[u32], expected: &[f64], draws: f64) -> (f64, f64) {
    let (mut sum, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
    for (token, (&count, &p)) in counts.iter().zip(expected).enumerate() {
        assert!(p > 0.0 || count == 0, "token {token} is not kept and was drawn {count} times");
        let (count, mean) = (f64::from(count), p * draws);
        if mean < 8.0 {
            rare = (rare.0 + count, rare.1 + mean);
        } else {
            sum += (count - mean) * (count - mean) / mean;
            cells += 1.0;
        }
    }
    if rare.1 >= 8.0 {
        sum += (rare.0 - rare.1) * (rare.0 - rare.1) / rare.1;
        cells += 1.0;
    }
    (sum, cells - 1.0)
}
