//! What sampling costs, as a family of kernels: all that a batch takes, its logits counted once.

use std::sync::Arc;

use super::figures::Figure;
use super::measure::Times;
use super::measure_sampling::{INPUT_BYTES_MIN, Setting, Spread, measure};
use crate::cuda::sampling::{SampleError, Sampler};
use crate::cuda::{Error, Gpu, Lane, LaneBounds};
use crate::post::sampling::Params;

/// Rows and vocabularies: Llama 2's, Llama 3's, Gemma's.
const SHAPES: [(usize, usize); 8] = [
    (1, 32_000),
    (64, 32_000),
    (256, 32_000),
    (1, 128_256),
    (8, 128_256),
    (64, 128_256),
    (256, 128_256),
    (256, 256_000),
];

/// Measures each shape, peaked and flat. On a card with little memory the largest are left out.
///
/// # Errors
/// `OutOfMemory`, or what the driver says.
pub fn run(gpu: &Arc<Gpu>) -> Result<Vec<Figure>, Error> {
    let bounds = LaneBounds { pinned_slab_bytes: 64 << 20, ..LaneBounds::default() };
    let lane = Lane::open(gpu, &bounds)?;
    let sampler = Sampler::open(gpu)?;
    let plain = Params { seed: 1, ..Params::default() };
    let modes = [
        ("sampling, top-k 50", Params { top_k: 50, ..plain }),
        ("sampling, top-p 0.9", Params { top_p: 0.9, ..plain }),
        ("sampling, both", Params { top_k: 50, top_p: 0.9, ..plain }),
    ];
    let mut figures = Vec::new();
    for (rows, vocab) in SHAPES {
        // Inputs are twice past the cache, or two; what a batch works in is below one of them.
        let input = 4 * rows * vocab;
        if 4 * input.max(INPUT_BYTES_MIN) > gpu.budget() {
            continue;
        }
        for spread in [Spread::Peaked, Spread::Flat] {
            for (name, params) in modes {
                let setting = Setting { rows, vocab, spread, params, entropy: false };
                let found = measure(&lane, &sampler, &setting).map_err(|error| match error {
                    SampleError::Card(error) => error,
                    SampleError::Batch(error) => Error::Input(error.to_string()),
                })?;
                let kind = if spread == Spread::Peaked { "peaked" } else { "flat" };
                let shape = format!("[{rows}, {vocab}], {kind}");
                let times = Times::new(found.samples_us);
                figures.push(Figure::kernel(name.to_owned(), shape, found.logits_bytes, times));
            }
        }
    }
    Ok(figures)
}
