//! Sampling against its twin: batches of any shape, with any parameters that can be.

use super::check::{Bench, size};
use crate::cuda::Error;
use crate::cuda::sampling::{SampleError, Type};
use crate::post::sampling::{self, Batch, Edit, Logits, Params, VOCAB_MAX};
use crate::post::threads::cores;
use crate::prng::Prng;

/// Logits of a batch at most, so that the twin takes some tenths of a second.
const LOGITS_MAX: usize = 4 << 20;
const ROWS_MAX: usize = 256;

/// One batch on both, result for result.
pub(super) fn sample(
    bench: &Bench,
    prng: &mut Prng,
    kind: Type,
) -> Result<Result<(), String>, Error> {
    let log_uniform =
        |prng: &mut Prng, most: usize| ((most as f64).powf(prng.unit()) as usize).clamp(1, most);
    let vocab = log_uniform(prng, VOCAB_MAX);
    let rows = log_uniform(prng, ROWS_MAX.min(LOGITS_MAX / vocab));
    let floats = logits(prng, rows * vocab);
    let halves = halves(kind, &floats);
    let params: Vec<Params> = (0..rows).map(|_| self::params(prng, vocab)).collect();
    let edits: Vec<Vec<Edit>> = match prng.below(2) {
        0 => Vec::new(),
        _ => (0..rows).map(|_| self::edits(prng, vocab)).collect(),
    };
    let batch = Batch {
        logits: match kind {
            Type::F32 => Logits::F32(&floats),
            Type::F16 => Logits::F16(&halves),
            Type::Bf16 => Logits::Bf16(&halves),
        },
        vocab,
        params: &params,
        edits: &edits,
        top_n: prng.below(3) as usize * prng.below(17) as usize,
        entropy: prng.below(2) == 0,
    };
    let refused = |error: &dyn std::fmt::Display| Error::Input(error.to_string());
    let wanted = sampling::sample(&batch, cores()).map_err(|error| refused(&error))?;
    let got = match bench.sampler.sample(&bench.lane, &batch) {
        Ok(got) => got,
        Err(SampleError::Card(error)) => return Err(error),
        Err(SampleError::Batch(error)) => return Err(refused(&error)),
    };
    let differs = wanted.iter().zip(&got).position(|(wanted, got)| wanted != got);
    Ok(differs.map_or(Ok(()), |row| {
        let (got, wanted) = (&got[row], &wanted[row]);
        Err(format!("[{rows}, {vocab}], row {row}, {:?}: {got:?}, not {wanted:?}", params[row]))
    }))
}

/// Peaked, flat, coarse (so with ties), all alike, or masked; now and then one that is refused.
fn logits(prng: &mut Prng, count: usize) -> Vec<f32> {
    let scale = [0.0, 0.3, 1.0, 3.0, 12.0][prng.below(5) as usize];
    let grain = [0.0, 0.0, 0.25, 1.0][prng.below(4) as usize];
    let (offset, is_masked) = (prng.normal() * 20.0, prng.below(4) == 0);
    let mut logits: Vec<f32> = (0..count)
        .map(|_| {
            let x = prng.normal() * scale;
            let x = if grain > 0.0 { (x / grain).round() * grain } else { x } + offset;
            if is_masked && prng.below(2) == 0 { f32::NEG_INFINITY } else { x as f32 }
        })
        .collect();
    if prng.below(4) == 0 {
        let at = prng.below(count as u64) as usize;
        logits[at] = [f32::NAN, f32::INFINITY, -3e38, 1e7, -0.0][prng.below(5) as usize];
    }
    logits
}

/// The bits of logits in 16 bits each, rounded towards zero; nothing where they stay in 32.
pub fn halves(kind: Type, floats: &[f32]) -> Vec<u16> {
    match kind {
        Type::F32 => Vec::new(),
        Type::F16 => floats.iter().map(|&x| to_f16(x)).collect(),
        Type::Bf16 => floats.iter().map(|&x| (x.to_bits() >> 16) as u16).collect(),
    }
}

/// Towards zero; what is too small becomes 0, too large infinite.
fn to_f16(x: f32) -> u16 {
    let (sign, bits) = ((x.to_bits() >> 16 & 0x8000) as u16, x.to_bits() & 0x7fff_ffff);
    let half = match bits {
        0x7f80_0001.. => 0x7e00,
        0x4780_0000.. => 0x7c00,
        ..0x3880_0000 => 0,
        _ => (bits - (112 << 23)) >> 13,
    };
    sign | half as u16
}

fn params(prng: &mut Prng, vocab: usize) -> Params {
    let choose = |prng: &mut Prng, from: &[f32]| from[prng.below(from.len() as u64) as usize];
    let any = prng.below(vocab as u64 + 1) as u32;
    Params {
        temperature: choose(prng, &[0.0, 1.0, 1.0, 0.7, 0.01, 2.5, 100.0]),
        top_k: [0, 0, 1, 2, 20, 50, any, vocab as u32][prng.below(8) as usize],
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

fn edits(prng: &mut Prng, vocab: usize) -> Vec<Edit> {
    let token = |prng: &mut Prng| prng.below(vocab as u64) as u32;
    let seen: Vec<u32> = (0..size(prng, 0, 500)).map(|_| token(prng)).collect();
    let mut bias = Vec::new();
    for _ in 0..prng.below(20) {
        let by = [1.0, -3.0, 40.0, f32::NEG_INFINITY][prng.below(4) as usize];
        bias.push((token(prng), by));
    }
    bias.sort_by_key(|(token, _)| *token);
    bias.dedup_by_key(|(token, _)| *token);
    Edit::list(&seen, &bias)
}
