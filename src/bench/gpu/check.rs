//! Each kernel against its twin, bit by bit, over random shapes.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use super::check_sampling::sample;
use crate::cuda::kernels::dequant::{self, Weights};
use crate::cuda::kernels::embedding::{Embeddings, Fault, Shaped};
use crate::cuda::kernels::search;
use crate::cuda::sampling::{Sampler, Type};
use crate::cuda::{Error, Gpu, Lane, LaneBounds, Usage};
use crate::post::embedding::search::{Kind, Rows, Search};
use crate::post::embedding::{mean_pool, normalize, quantize_binary, quantize_int8, truncate};
use crate::post::quant::{Format, dequantize, matvec};
use crate::post::sums::dot;
use crate::post::threads::cores;
use crate::prng::Prng;

/// What became of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Which.
    pub name: &'static str,
    /// Shapes that were tried.
    pub cases: u32,
    /// The first difference.
    pub fault: Option<String>,
}

/// What a run of all found, and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Of each kernel.
    pub checks: Vec<Check>,
    /// Pinned memory of the host.
    pub pinned: Usage,
    /// How long it all took, most of it the twins.
    pub wall_ms: f64,
}

/// A case: `Err` says what differs.
type Case = fn(&Bench, &mut Prng) -> Result<Result<(), String>, Error>;

/// What the cases work on.
pub(super) struct Bench {
    pub(super) lane: Lane,
    pub(super) sampler: Sampler,
    weights: Weights,
    embeddings: Embeddings,
    feeder: RefCell<search::Feeder>,
}

const CASES: [(&str, Case); 15] = [
    ("memory", memory),
    ("mean_pool", pool),
    ("shape to f32", |bench, prng| shape(bench, prng, Kind::F32)),
    ("shape to int8", |bench, prng| shape(bench, prng, Kind::Int8)),
    ("shape to binary", |bench, prng| shape(bench, prng, Kind::Binary)),
    ("search f32", |bench, prng| nearest(bench, prng, Kind::F32)),
    ("search int8", |bench, prng| nearest(bench, prng, Kind::Int8)),
    ("search binary", |bench, prng| nearest(bench, prng, Kind::Binary)),
    ("dequantize Q8_0", |bench, prng| floats(bench, prng, Format::Q8_0)),
    ("dequantize Q4_K", |bench, prng| floats(bench, prng, Format::Q4K)),
    ("matrix-vector Q8_0", |bench, prng| product(bench, prng, Format::Q8_0)),
    ("matrix-vector Q4_K", |bench, prng| product(bench, prng, Format::Q4K)),
    ("sampling f32", |bench, prng| sample(bench, prng, Type::F32)),
    ("sampling f16", |bench, prng| sample(bench, prng, Type::F16)),
    ("sampling bf16", |bench, prng| sample(bench, prng, Type::Bf16)),
];

/// Tries `cases` shapes with each kernel.
///
/// # Errors
/// What the driver says.
pub fn run(gpu: &Arc<Gpu>, cases: u32, seed: u64) -> Result<Report, Error> {
    let begun = Instant::now();
    let bench = Bench {
        lane: Lane::open(gpu, &LaneBounds::default())?,
        sampler: Sampler::open(gpu)?,
        weights: Weights::load(gpu)?,
        embeddings: Embeddings::load(gpu)?,
        feeder: RefCell::new(search::Feeder::open(gpu)?),
    };
    bench.lane.stream().meter().start();
    let mut checks = Vec::new();
    for (index, (name, case)) in CASES.into_iter().enumerate() {
        let mut check = Check { name, cases: 0, fault: None };
        while check.cases < cases && check.fault.is_none() {
            let of_case = seed ^ (index as u64) << 40 ^ u64::from(check.cases);
            let outcome = case(&bench, &mut Prng::new(of_case))?;
            check.fault = outcome.err().map(|what| format!("seed {of_case}: {what}"));
            check.cases += 1;
        }
        checks.push(check);
    }
    Ok(Report {
        checks,
        pinned: bench.lane.pinned_usage(),
        wall_ms: begun.elapsed().as_secs_f64() * 1e3,
    })
}

/// From `least` to `most`, small ones often.
pub(super) fn size(prng: &mut Prng, least: u64, most: u64) -> usize {
    let width = (most - least) as f64;
    (least + (width * prng.unit().powi(3)).round() as u64) as usize
}

/// A width: any, or one that rows are aligned with.
fn width(prng: &mut Prng) -> usize {
    let dims = size(prng, 1, 2100);
    let step = [1, 4, 16, 32, 128][prng.below(5) as usize];
    dims.next_multiple_of(step)
}

/// Numbers of either sign whose magnitudes differ widely.
fn draw(prng: &mut Prng, count: usize) -> Vec<f32> {
    let scale = 10f64.powi(prng.below(7) as i32 - 3);
    (0..count)
        .map(|_| if prng.below(50) == 0 { 0.0 } else { (prng.normal() * scale) as f32 })
        .collect()
}

fn same(what: &str, got: &[f32], wanted: &[f32]) -> Result<(), String> {
    let differs = |(got, wanted): (&f32, &f32)| got.to_bits() != wanted.to_bits();
    match got.iter().zip(wanted).position(differs) {
        Some(at) => Err(format!("{what}: value {at} is {:e}, not {:e}", got[at], wanted[at])),
        None => Ok(()),
    }
}

/// Past the budget there is a named error and nothing else: what was there goes on.
fn memory(bench: &Bench, prng: &mut Prng) -> Result<Result<(), String>, Error> {
    let (lane, gpu) = (&bench.lane, bench.lane.gpu());
    let kept = lane.upload(&draw(prng, 1000))?;
    let before = lane.download(&kept)?.to_vec();
    let budget = gpu.budget();
    let asked = 1 << 30;
    gpu.set_budget(gpu.held() + size(prng, 0, asked as u64 / 2));
    let refused = lane.device::<u8>(asked).map(drop);
    gpu.set_budget(budget);
    if !matches!(refused, Err(Error::OutOfMemory { .. })) {
        return Ok(Err(format!("{asked} bytes past the budget: {refused:?}")));
    }
    Ok(same("what was there before", &lane.download(&kept)?, &before))
}

fn pool(bench: &Bench, prng: &mut Prng) -> Result<Result<(), String>, Error> {
    let dims = width(prng);
    let lengths: Vec<u32> = (0..size(prng, 1, 12)).map(|_| size(prng, 0, 300) as u32).collect();
    let count: u32 = lengths.iter().sum();
    let tokens = draw(prng, count as usize * dims);
    let mut wanted = vec![0.0; lengths.len() * dims];
    mean_pool(&tokens, &lengths, dims, &mut wanted, cores());
    let lane = &bench.lane;
    let on_card = lane.upload(&tokens)?;
    let mut out = lane.device::<f32>(wanted.len())?;
    lane.fill(&mut out, 0xff)?;
    bench.embeddings.mean_pool(lane, &on_card, &lengths, dims, &mut out)?;
    let out = lane.download(&out)?;
    Ok(same(&format!("{} sequences of {dims}", lengths.len()), &out, &wanted))
}

fn shape(bench: &Bench, prng: &mut Prng, kind: Kind) -> Result<Result<(), String>, Error> {
    let dims = width(prng).max(8);
    let to = (1 + prng.below(dims as u64) as usize).next_multiple_of(8).min(dims / 8 * 8);
    let (count, is_normal) = (size(prng, 1, 400), prng.below(2) == 0);
    let rows = draw(prng, count * dims);
    let lane = &bench.lane;
    let on_card = lane.upload(&rows)?;
    let mut twin = rows;
    truncate(&mut twin, dims, to).map_err(|error| Error::Input(error.to_string()))?;
    if is_normal {
        normalize(&mut twin, to, cores()).map_err(|error| Error::Input(error.to_string()))?;
    }
    let what = format!("{count} rows of {dims} to {to}, normalised: {is_normal}");
    let mut fault = Fault::open(lane)?;
    let embeddings = &bench.embeddings;
    match kind {
        Kind::F32 => {
            let mut out = lane.device::<f32>(count * to)?;
            lane.fill(&mut out, 0xff)?;
            let shaped = Shaped::F32(&mut out);
            embeddings.shape(lane, &on_card, dims, to, is_normal, shaped, &mut fault)?;
            Ok(same(&what, &lane.download(&out)?, &twin))
        }
        Kind::Int8 => {
            let mut wanted = vec![0; count * to];
            quantize_int8(&twin, to, &mut wanted, cores());
            let mut out = lane.device::<i8>(count * to)?;
            lane.fill(&mut out, 0x80)?;
            let shaped = Shaped::Int8(&mut out);
            embeddings.shape(lane, &on_card, dims, to, is_normal, shaped, &mut fault)?;
            let is_same = *lane.download(&out)? == *wanted;
            Ok(if is_same { Ok(()) } else { Err(what) })
        }
        Kind::Binary => {
            let mut wanted = vec![0; count * to / 8];
            quantize_binary(&twin, to, &mut wanted, cores())
                .map_err(|error| Error::Input(error.to_string()))?;
            let mut out = lane.device::<u8>(wanted.len())?;
            lane.fill(&mut out, 0x5a)?;
            let shaped = Shaped::Binary(&mut out);
            embeddings.shape(lane, &on_card, dims, to, is_normal, shaped, &mut fault)?;
            let is_same = *lane.download(&out)? == *wanted;
            Ok(if is_same { Ok(()) } else { Err(what) })
        }
    }
}

/// A corpus in which some rows are alike, so that their order is that of their numbers, and some
/// very short or long.
fn corpus(prng: &mut Prng, rows: usize, dims: usize) -> Vec<f32> {
    let some = draw(prng, rows.min(64) * dims);
    let mut all = some.clone();
    while all.len() < rows * dims {
        let row = prng.below((some.len() / dims) as u64) as usize * dims;
        if prng.below(20) == 0 {
            let scale = [0.0, 1e-30, 1e-16, 1e13][prng.below(4) as usize];
            all.extend(some[row..row + dims].iter().map(|v| v * scale));
        } else if prng.below(3) == 0 {
            all.extend_from_slice(&some[row..row + dims]);
        } else {
            let scale = prng.normal() as f32;
            all.extend(some[row..row + dims].iter().map(|v| v * scale + prng.unit() as f32));
        }
    }
    all
}

/// Rows as a search's twin and its kernel have them.
struct Corpus {
    f32: Vec<f32>,
    int8: Vec<i8>,
    binary: Vec<u8>,
}

impl Corpus {
    fn new(values: Vec<f32>, dims: usize) -> Result<Corpus, Error> {
        let mut int8 = vec![0; values.len()];
        quantize_int8(&values, dims, &mut int8, cores());
        let mut binary = vec![0; values.len() / 8];
        quantize_binary(&values, dims, &mut binary, cores())
            .map_err(|error| Error::Input(error.to_string()))?;
        Ok(Corpus { f32: values, int8, binary })
    }

    fn rows(&self, kind: Kind) -> Rows<'_> {
        match kind {
            Kind::F32 => Rows::F32(&self.f32),
            Kind::Int8 => Rows::Int8(&self.int8),
            Kind::Binary => Rows::Binary(&self.binary),
        }
    }

    fn bytes(&self, kind: Kind) -> Vec<u8> {
        match kind {
            Kind::F32 => self.f32.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Kind::Int8 => self.int8.iter().map(|v| v.cast_unsigned()).collect(),
            Kind::Binary => self.binary.clone(),
        }
    }

    /// What the kernel is told of queries.
    fn lengths(&self, kind: Kind, dims: usize) -> Option<Vec<f32>> {
        match kind {
            Kind::F32 => Some(self.f32.chunks(dims).map(|row| dot(row, row).sqrt()).collect()),
            Kind::Int8 => {
                let square = |row: &[i8]| row.iter().map(|&v| i32::from(v).pow(2)).sum::<i32>();
                Some(self.int8.chunks(dims).map(|row| (square(row) as f32).sqrt()).collect())
            }
            Kind::Binary => None,
        }
    }
}

fn nearest(bench: &Bench, prng: &mut Prng, kind: Kind) -> Result<Result<(), String>, Error> {
    let dims = width(prng).next_multiple_of(8).min(1024);
    let rows = size(prng, 1, 40_000).min((8 << 20) / dims);
    let k = size(prng, 1, 300);
    // So many that the twin takes some tenths of a second.
    let most = ((192 << 20) / (rows * dims)).clamp(20, 200) as u64;
    let queries = size(prng, 1, most);
    let queries = Corpus::new(draw(prng, queries * dims), dims)?;
    let corpus = Corpus::new(corpus(prng, rows, dims), dims)?;
    let mut twin = Search::new(&queries.f32, dims, kind, k, cores())
        .map_err(|error| Error::Input(error.to_string()))?;
    twin.add(corpus.rows(kind)).map_err(|error| Error::Input(error.to_string()))?;
    let wanted = twin.finish();
    let lane = &bench.lane;
    let lengths = queries.lengths(kind, dims);
    let (of_queries, k) = (queries.bytes(kind), k as u32);
    let all = corpus.bytes(kind);
    // Some of the rows are on the card, the rest comes from the host.
    let resident = prng.below(rows as u64 + 1) as usize * kind.row_bytes(dims);
    let mut search = search::Search::open(lane, kind, dims, &of_queries, lengths.as_deref(), k)?;
    let on_card = lane.upload(&all[..resident])?;
    search.add(&on_card)?;
    search.add_host(&mut bench.feeder.borrow_mut(), &all[resident..])?;
    let what = format!("{} queries, {rows} rows of {dims}, k = {k}", wanted.len());
    let Ok(got) = search.finish()? else { return Ok(Err(format!("{what}: a row is refused"))) };
    for (query, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        if got != wanted {
            let at = got.iter().zip(wanted).position(|(a, b)| a != b);
            let at = at.unwrap_or_else(|| got.len().min(wanted.len()));
            let (got, wanted) = (got.get(at), wanted.get(at));
            return Ok(Err(format!("{what}: query {query}, {at}: {got:?}, not {wanted:?}")));
        }
    }
    Ok(Ok(()))
}

/// Blocks of random bytes whose factors are finite, subnormal ones among them.
pub(super) fn blocks(prng: &mut Prng, format: Format, count: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::with_capacity(count * format.block_bytes() + 8);
    while bytes.len() < count * format.block_bytes() {
        bytes.extend(prng.next_u64().to_le_bytes());
    }
    bytes.truncate(count * format.block_bytes());
    let factors: &[usize] = if format == Format::Q4K { &[1, 3] } else { &[1] };
    for block in bytes.chunks_mut(format.block_bytes()) {
        factors.iter().for_each(|&high| block[high] &= 0xbf);
    }
    bytes
}

pub(super) fn format_of(format: Format) -> dequant::Format {
    match format {
        Format::Q8_0 => dequant::Format::Q8_0,
        Format::Q4K => dequant::Format::Q4K,
    }
}

fn floats(bench: &Bench, prng: &mut Prng, format: Format) -> Result<Result<(), String>, Error> {
    let count = size(prng, 1, 5_000);
    let blocks = blocks(prng, format, count);
    let mut wanted = vec![0.0; count * format.block_values()];
    dequantize(format, &blocks, &mut wanted, cores());
    let lane = &bench.lane;
    let on_card = lane.upload(&blocks)?;
    let mut out = lane.device::<f32>(wanted.len())?;
    lane.fill(&mut out, 0xff)?;
    bench.weights.dequantize(lane, format_of(format), &on_card, &mut out)?;
    Ok(same(&format!("{count} blocks"), &lane.download(&out)?, &wanted))
}

fn product(bench: &Bench, prng: &mut Prng, format: Format) -> Result<Result<(), String>, Error> {
    let (rows, of_row) = (size(prng, 1, 600), size(prng, 1, 70));
    let matrix = blocks(prng, format, rows * of_row);
    let x = draw(prng, of_row * format.block_values());
    let mut wanted = vec![0.0; rows];
    matvec(format, &matrix, &x, &mut wanted, cores());
    let lane = &bench.lane;
    let (matrix, x) = (lane.upload(&matrix)?, lane.upload(&x)?);
    let mut out = lane.device::<f32>(rows)?;
    lane.fill(&mut out, 0xff)?;
    bench.weights.matvec(lane, format_of(format), &matrix, &x, &mut out)?;
    Ok(same(&format!("[{rows}, {}]", x.len()), &lane.download(&out)?, &wanted))
}
