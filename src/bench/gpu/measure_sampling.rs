//! What sampling costs on a card: graph replays over rotated inputs, beside a copy on the card.

use crate::cuda::sampling::{SampleError, Sampler, Shape, Type};
use crate::cuda::{DeviceVec, Error, Lane};
use crate::post::sampling::{Batch, Logits, Params};
use crate::prng::Prng;

/// Inputs of a measurement are so many that they are past any second-level cache, up to a bound:
/// each is a pair of nodes of the graph.
pub(super) const INPUT_BYTES_MIN: usize = 256 << 20;
const INPUTS_MAX: usize = 256;
/// Replays whose median is the result, after some that warm up.
const REPLAYS: usize = 15;
const WARM_UP: usize = 3;
/// Steps of generation that are measured, a third of those replays each: how long a draw takes
/// depends on where it lands, which is the same for every input of one step.
const STEPS: u32 = 16;
/// Copied to find the card's bandwidth.
const COPY_BYTES: usize = 1 << 30;

/// How logits are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Zipf: probability ~ rank^-1.6.
    Peaked,
    /// Standard normal.
    Flat,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Rows.
    pub rows: usize,
    /// Logits of a row, of f32.
    pub vocab: usize,
    /// How they are spread.
    pub spread: Spread,
    /// Of every row; rows have streams of their own.
    pub params: Params,
    /// Whether the entropy is wanted.
    pub entropy: bool,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Time of a batch, in microseconds: the mean of the steps' medians.
    pub batch_us: f64,
    /// Each step's, the shortest first.
    pub samples_us: Vec<f64>,
    /// Bytes of a batch's logits.
    pub logits_bytes: usize,
    /// Inputs that were rotated.
    pub inputs: usize,
}

impl Measured {
    /// Logits, read once, over the time, in bytes a second.
    pub fn bytes_per_s(&self) -> f64 {
        self.logits_bytes as f64 / self.batch_us * 1e6
    }
}

/// Bytes a second, read and written, of a copy on the card.
///
/// # Errors
/// What the driver says.
pub fn copy_bytes_per_s(lane: &Lane) -> Result<f64, Error> {
    let from: DeviceVec<u8> = lane.device(COPY_BYTES)?;
    let mut to: DeviceVec<u8> = lane.device(COPY_BYTES)?;
    let milliseconds = times_ms(lane, REPLAYS, || lane.copy(&from, &mut to))?[REPLAYS / 2];
    Ok(2.0 * COPY_BYTES as f64 / milliseconds * 1e3)
}

/// Measures one setting.
///
/// # Errors
/// What the card says.
pub fn measure(lane: &Lane, sampler: &Sampler, of: &Setting) -> Result<Measured, SampleError> {
    let (rows, vocab) = (of.rows, of.vocab);
    let logits_bytes = rows * vocab * 4;
    let inputs = INPUT_BYTES_MIN.div_ceil(logits_bytes).clamp(2, INPUTS_MAX);
    let mut prng = Prng::new(1);
    let base = row(vocab, of.spread, &mut prng);
    let mut logits = vec![0f32; rows * vocab];
    let mut uploaded = Vec::new();
    for _ in 0..inputs {
        // Rows are one row, turned: each has its likely tokens elsewhere.
        for row in logits.chunks_mut(vocab) {
            let turn = prng.below(vocab as u64) as usize;
            let (start, rest) = row.split_at_mut(vocab - turn);
            start.copy_from_slice(&base[turn..]);
            rest.copy_from_slice(&base[..turn]);
        }
        uploaded.push(lane.upload(&logits)?);
        lane.synchronize()?;
    }
    let of_step = |step: u32| -> Vec<Params> {
        (0..rows).map(|row| Params { stream: row as u64, step, ..of.params }).collect()
    };
    let entropy = of.entropy;
    let shape = Shape { logits: Type::F32, rows, vocab, top_n: 0, entropy };
    let mut work = sampler.work(lane, shape)?;
    work.set(lane, &batch(&logits, vocab, &of_step(0), entropy))?;
    let mut recording = work.record(lane, &uploaded)?;
    let mut samples_us = Vec::new();
    for step in 0..STEPS {
        recording.set(lane, &batch(&logits, vocab, &of_step(step), entropy))?;
        let times = times_ms(lane, REPLAYS / 3, || recording.replay(lane))?;
        samples_us.push(times[times.len() / 2] * 1e3 / inputs as f64);
    }
    drop(recording);
    assert!(work.read().iter().all(Result::is_ok), "a row was not sampled");
    samples_us.sort_by(f64::total_cmp);
    let batch_us = samples_us.iter().sum::<f64>() / samples_us.len() as f64;
    Ok(Measured { batch_us, samples_us, logits_bytes, inputs })
}

fn batch<'a>(logits: &'a [f32], vocab: usize, params: &'a [Params], entropy: bool) -> Batch<'a> {
    Batch { logits: Logits::F32(logits), vocab, params, edits: &[], top_n: 0, entropy }
}

/// One row of logits.
fn row(vocab: usize, spread: Spread, prng: &mut Prng) -> Vec<f32> {
    if spread == Spread::Flat {
        return (0..vocab).map(|_| prng.normal() as f32).collect();
    }
    let mut logits: Vec<f32> = (1..=vocab).map(|rank| -1.6 * (rank as f32).ln()).collect();
    for i in (1..vocab).rev() {
        logits.swap(i, prng.below(i as u64 + 1) as usize);
    }
    logits
}

/// Times of what `add` adds to the lane's stream, the shortest first.
fn times_ms(
    lane: &Lane,
    replays: usize,
    mut add: impl FnMut() -> Result<(), Error>,
) -> Result<Vec<f64>, Error> {
    let mut times = Vec::new();
    for replay in 0..WARM_UP + replays {
        let milliseconds = lane.time(&mut add)?;
        if replay >= WARM_UP {
            times.push(milliseconds);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
