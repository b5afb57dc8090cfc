//! Each kernel's time, and its bytes a second as a share of a copy's.

use std::sync::Arc;
use std::time::Instant;

use super::check::{blocks, format_of};
use super::figures::Figure;
use super::measure::{SAMPLES, Times, graph};
use crate::cuda::kernels::dequant::Weights;
use crate::cuda::kernels::embedding::{Embeddings, Fault, Shaped};
use crate::cuda::kernels::search::{Feeder, Search};
use crate::cuda::{DeviceVec, Error, Gpu, Lane, LaneBounds, Plain};
use crate::post::embedding::search::Kind;
use crate::post::quant::Format;
use crate::prng::Prng;

/// Bytes of one input: past the cache of any card, and far beyond what a launch costs.
const INPUT_BYTES: usize = 256 << 20;
/// Inputs that are used in turn; each is written anew nowhere, and together they fill no cache.
const INPUTS: usize = 2;
const TOKENS: u32 = 512;
const DIMS: usize = 1024;
const SEARCH_DIMS: usize = 768;
const K: u32 = 10;
/// Columns of a matrix of weights, as of a model of some 8 billion.
const COLUMNS: usize = 8192;

struct Bench<'a> {
    lane: &'a Lane,
    prng: Prng,
    bytes: usize,
    figures: Vec<Figure>,
}

/// Measures all of them. On a card with little memory the inputs are smaller.
///
/// # Errors
/// `OutOfMemory`, or what the driver says.
pub fn run(gpu: &Arc<Gpu>, seed: u64) -> Result<Vec<Figure>, Error> {
    let bytes = INPUT_BYTES.min(gpu.budget() / 8) >> 20 << 20;
    let bounds = LaneBounds { device_slab_bytes: 64 << 20, ..LaneBounds::default() };
    let lane = Lane::open(gpu, &bounds)?;
    let mut bench = Bench { lane: &lane, prng: Prng::new(seed), bytes, figures: Vec::new() };
    bench.copy()?;
    let embeddings = Embeddings::load(gpu)?;
    bench.pool(&embeddings)?;
    bench.shapes(&embeddings)?;
    let weights = Weights::load(gpu)?;
    for format in [Format::Q8_0, Format::Q4K] {
        bench.weights(&weights, format)?;
    }
    for (kind, queries) in [
        (Kind::F32, 1),
        (Kind::F32, 8),
        (Kind::F32, 64),
        (Kind::Int8, 1),
        (Kind::Int8, 16),
        (Kind::Binary, 1),
    ] {
        bench.search(kind, queries)?;
    }
    bench.search_host()?;
    Ok(bench.figures)
}

/// The copy alone, of which all shares are.
///
/// # Errors
/// As `run`.
pub fn copy(gpu: &Arc<Gpu>, seed: u64) -> Result<Vec<Figure>, Error> {
    let bytes = INPUT_BYTES.min(gpu.budget() / 8) >> 20 << 20;
    let lane = Lane::open(gpu, &LaneBounds::default())?;
    let mut bench = Bench { lane: &lane, prng: Prng::new(seed), bytes, figures: Vec::new() };
    bench.copy()?;
    Ok(bench.figures)
}

impl Bench<'_> {
    fn keep(&mut self, name: String, shape: String, bytes: usize, times: Times) {
        self.figures.push(Figure::kernel(name, shape, bytes, times));
    }

    /// Random floats on the card: a block of them, repeated, with its beginning moved on.
    fn floats(&mut self, count: usize) -> Result<DeviceVec<f32>, Error> {
        let block: Vec<f32> = (0..1 << 20).map(|_| self.prng.normal() as f32).collect();
        self.filled(&block, count)
    }

    fn filled<T: Plain>(&self, block: &[T], count: usize) -> Result<DeviceVec<T>, Error> {
        let all: Vec<T> = block.iter().copied().cycle().take(count).collect();
        let mut to = self.lane.device(count)?;
        self.lane.upload_and_wait(&all, &mut to)?;
        Ok(to)
    }

    fn inputs(&mut self, count: usize) -> Result<Vec<DeviceVec<f32>>, Error> {
        (0..INPUTS).map(|_| self.floats(count)).collect()
    }

    fn copy(&mut self) -> Result<(), Error> {
        let from = self.inputs(self.bytes / 4)?;
        let mut to = from
            .iter()
            .map(|from| self.lane.device::<f32>(from.len()))
            .collect::<Result<Vec<_>, Error>>()?;
        let lane = self.lane;
        let times = graph(lane, INPUTS, |i| lane.copy(&from[i], &mut to[i]))?;
        let shape = format!("{} MiB", self.bytes >> 20);
        self.keep("copy".to_owned(), shape, 2 * self.bytes, times);
        Ok(())
    }

    fn pool(&mut self, embeddings: &Embeddings) -> Result<(), Error> {
        let count = (self.bytes / 4 / DIMS / TOKENS as usize).max(1);
        let lengths = vec![TOKENS; count];
        let tokens = self.inputs(count * TOKENS as usize * DIMS)?;
        let lane = self.lane;
        let mut out = lane.device::<f32>(count * DIMS)?;
        let pool = embeddings.pooling(lane, &lengths, DIMS)?;
        let times = graph(lane, INPUTS, |i| embeddings.pool(lane, &pool, &tokens[i], &mut out))?;
        let bytes = tokens[0].bytes() + out.bytes();
        self.keep("mean_pool".to_owned(), format!("[{count} x {TOKENS}, {DIMS}]"), bytes, times);
        Ok(())
    }

    fn shapes(&mut self, embeddings: &Embeddings) -> Result<(), Error> {
        let count = self.bytes / 4 / DIMS;
        let rows = self.inputs(count * DIMS)?;
        let lane = self.lane;
        let mut fault = Fault::open(lane)?;
        let mut floats = lane.device::<f32>(count * DIMS)?;
        let times = graph(lane, INPUTS, |i| {
            let out = Shaped::F32(&mut floats);
            embeddings.shape(lane, &rows[i], DIMS, DIMS, true, out, &mut fault)
        })?;
        let shape = format!("[{count}, {DIMS}]");
        self.keep("normalize".to_owned(), shape.clone(), 2 * rows[0].bytes(), times);
        drop(floats);
        let mut bytes = lane.device::<i8>(count * DIMS)?;
        for to in [DIMS, DIMS / 4] {
            let mut out = lane.device::<i8>(count * to)?;
            let times = graph(lane, INPUTS, |i| {
                let out = Shaped::Int8(&mut out);
                embeddings.shape(lane, &rows[i], DIMS, to, true, out, &mut fault)
            })?;
            let name = format!("truncate={to}, normalize, int8");
            self.keep(name, shape.clone(), count * to * 5, times);
        }
        let times = graph(lane, INPUTS, |i| {
            let out = Shaped::Int8(&mut bytes);
            embeddings.shape(lane, &rows[i], DIMS, DIMS, false, out, &mut fault)
        })?;
        self.keep("quantize int8".to_owned(), shape.clone(), rows[0].bytes() / 4 * 5, times);
        let mut bits = lane.device::<u8>(count * DIMS / 8)?;
        let times = graph(lane, INPUTS, |i| {
            let out = Shaped::Binary(&mut bits);
            embeddings.shape(lane, &rows[i], DIMS, DIMS, false, out, &mut fault)
        })?;
        self.keep("quantize binary".to_owned(), shape, rows[0].bytes() / 32 * 33, times);
        Ok(())
    }

    fn weights(&mut self, weights: &Weights, format: Format) -> Result<(), Error> {
        let name = if format == Format::Q8_0 { "Q8_0" } else { "Q4_K" };
        let rows = (self.bytes / 4 / COLUMNS).max(1);
        let lane = self.lane;
        let block = blocks(&mut self.prng, format, 4096);
        let count = format.bytes(rows * COLUMNS);
        let matrices: Vec<DeviceVec<u8>> =
            (0..2 * INPUTS).map(|_| self.filled(&block, count)).collect::<Result<_, Error>>()?;
        let mut floats = lane.device::<f32>(rows * COLUMNS)?;
        let times = graph(lane, INPUTS, |i| {
            weights.dequantize(lane, format_of(format), &matrices[i], &mut floats)
        })?;
        let shape = format!("[{rows}, {COLUMNS}]");
        self.keep(format!("dequantize {name}"), shape, count + floats.bytes(), times);
        drop(floats);
        // Four times as many rows, so that the matrix alone fills no cache.
        let x = self.floats(COLUMNS)?;
        let mut out = lane.device::<f32>(4 * rows)?;
        let matrices: Vec<DeviceVec<u8>> =
            (0..INPUTS).map(|_| self.filled(&block, 4 * count)).collect::<Result<_, Error>>()?;
        let times = graph(lane, INPUTS, |i| {
            weights.matvec(lane, format_of(format), &matrices[i], &x, &mut out)
        })?;
        let shape = format!("[{}, {COLUMNS}]", 4 * rows);
        let bytes = 4 * count + x.bytes() + out.bytes();
        self.keep(format!("matrix-vector {name}"), shape, bytes, times);
        Ok(())
    }

    fn search(&mut self, kind: Kind, queries: usize) -> Result<(), Error> {
        let row_bytes = kind.row_bytes(SEARCH_DIMS);
        // Of a corpus that is looked at once nothing is in the cache.
        let rows = 4 * self.bytes / row_bytes;
        let lane = self.lane;
        let (corpus, of_queries, lengths) = match kind {
            Kind::F32 => {
                let block: Vec<u8> =
                    (0..1 << 20).flat_map(|_| (self.prng.normal() as f32).to_le_bytes()).collect();
                let lengths = vec![28.0; queries];
                let of_queries = block[..queries * row_bytes].to_vec();
                (self.filled(&block, rows * row_bytes)?, of_queries, Some(lengths))
            }
            Kind::Int8 | Kind::Binary => {
                let block: Vec<u8> =
                    (0..1 << 20).flat_map(|_| self.prng.next_u64().to_le_bytes()).collect();
                let lengths = (kind == Kind::Int8).then(|| vec![2000.0; queries]);
                let of_queries = block[..queries * row_bytes].to_vec();
                (self.filled(&block, rows * row_bytes)?, of_queries, lengths)
            }
        };
        let mut samples = Vec::with_capacity(SAMPLES);
        for sample in 0..SAMPLES + 2 {
            let lengths = lengths.as_deref();
            let mut search = Search::open(lane, kind, SEARCH_DIMS, &of_queries, lengths, K)?;
            lane.synchronize()?;
            let ms = lane.time(|| search.add(&corpus))?;
            // The first ones find nothing warm.
            if sample >= 2 {
                samples.push(ms * 1e3);
            }
        }
        let name = match kind {
            Kind::F32 => "search f32",
            Kind::Int8 => "search int8",
            Kind::Binary => "search binary",
        };
        let shape = format!("{queries} x [{rows}, {SEARCH_DIMS}], k = {K}");
        self.keep(name.to_owned(), shape, corpus.bytes(), Times::new(samples));
        Ok(())
    }
    /// A corpus that comes from the host, as one does that is larger than the card.
    fn search_host(&mut self) -> Result<(), Error> {
        let row_bytes = Kind::F32.row_bytes(SEARCH_DIMS);
        let rows = 4 * self.bytes / row_bytes;
        let block: Vec<u8> =
            (0..1 << 20).flat_map(|_| (self.prng.normal() as f32).to_le_bytes()).collect();
        let corpus: Vec<u8> = block.iter().copied().cycle().take(rows * row_bytes).collect();
        let mut samples = Vec::new();
        let mut feeder = Feeder::open(self.lane.gpu())?;
        for _ in 0..5 {
            let queries = &block[..row_bytes];
            let mut search =
                Search::open(self.lane, Kind::F32, SEARCH_DIMS, queries, Some(&[28.0]), K)?;
            let begun = Instant::now();
            search.add_host(&mut feeder, &corpus)?;
            samples.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        let shape = format!("1 x [{rows}, {SEARCH_DIMS}], k = {K}");
        let times = Times::new(samples);
        self.figures.push(Figure::host("search f32 from the host", &shape, corpus.len(), times));
        Ok(())
    }
}
