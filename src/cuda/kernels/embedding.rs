//! Embeddings on the card: `cuda/embedding.cu`. The arithmetic is said in `post::embedding`, whose
//! bits these give.

use std::sync::Arc;

use super::blocks;
use crate::cuda::{Arguments, DeviceVec, Error, Family, Function, Gpu, Grid, Landing, Lane};

/// The kernels of `cuda/embedding.cu`.
pub static EMBEDDING: Family = family!("embedding");

const THREADS: u32 = 256;
/// Rows that blocks of `shape_*` have at once.
const ROWS_OF_BLOCK: u64 = 8;
/// Values of a row that `shape_*_8`, `_16` and `_32` keep in registers; `_long` is for longer ones.
const IN_REGISTERS: [usize; 3] = [8 * 32, 16 * 32, 32 * 32];
/// Blocks of a multiprocessor where rows are read twice: those under way then fit in the cache.
const BLOCKS_OF_LONG: u32 = 2;

/// What rows become.
#[derive(Debug)]
pub enum Shaped<'a> {
    /// Floats, `[rows, to]`.
    F32(&'a mut DeviceVec<f32>),
    /// Integers from -127 to 127, `[rows, to]`.
    Int8(&'a mut DeviceVec<i8>),
    /// Bits, `[rows, to / 8]`.
    Binary(&'a mut DeviceVec<u8>),
}

/// Mean pool; and truncation, normalisation and quantisation in one pass.
#[derive(Clone, Debug)]
pub struct Embeddings {
    pool: [Function; 2],
    shape: [[Function; 4]; 3],
    multiprocessors: u32,
}

/// Sequences of tokens, as `pool` takes them.
#[derive(Debug)]
pub struct Pooling {
    starts: DeviceVec<u32>,
    tokens: usize,
    sequences: usize,
    dims: usize,
}

/// Where normalisation reports a row whose squares sum to no number: the first, else `u32::MAX`.
#[derive(Debug)]
pub struct Fault(DeviceVec<u32>);

impl Fault {
    /// None yet.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn open(lane: &Lane) -> Result<Fault, Error> {
        let mut fault = Fault(lane.device(1)?);
        fault.clear(lane)?;
        Ok(fault)
    }

    /// Forgets what was reported.
    ///
    /// # Errors
    /// What the driver says.
    pub fn clear(&mut self, lane: &Lane) -> Result<(), Error> {
        lane.fill(&mut self.0, 0xff)
    }

    /// Waits for the lane, and tells the first such row.
    ///
    /// # Errors
    /// What the driver says.
    pub fn read(&self, lane: &Lane) -> Result<Option<u32>, Error> {
        Ok(Fault::of(&self.begin_read(lane)?.wait()?))
    }

    /// Begins to read it, in the stream's order.
    ///
    /// # Errors
    /// What the driver says.
    pub fn begin_read<'a>(&self, lane: &'a Lane) -> Result<Landing<'a, u32>, Error> {
        lane.begin_download(&self.0)
    }

    /// The row that was read; None: there is none.
    pub fn of(read: &[u32]) -> Option<u32> {
        read.first().copied().filter(|row| *row != u32::MAX)
    }

    pub(super) fn at_mut(&mut self) -> u64 {
        self.0.at_mut()
    }
}

impl Embeddings {
    /// Takes the kernels from a card.
    ///
    /// # Errors
    /// What the driver says.
    pub fn load(gpu: &Arc<Gpu>) -> Result<Embeddings, Error> {
        let of = |name: &str| gpu.function(&EMBEDDING, name);
        let shape = |kind: &str| {
            let of_length = |length: &str| of(&format!("shape_{kind}_{length}"));
            Ok::<_, Error>([
                of_length("8")?,
                of_length("16")?,
                of_length("32")?,
                of_length("long")?,
            ])
        };
        Ok(Embeddings {
            pool: [of("mean_pool1")?, of("mean_pool4")?],
            shape: [shape("f32")?, shape("int8")?, shape("binary")?],
            multiprocessors: gpu.facts().multiprocessors,
        })
    }

    /// The mean of each sequence's token vectors: `tokens` is `[sum of lengths, dims]`, `out`
    /// `[sequences, dims]`. The mean of no tokens is 0. Does not wait.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    ///
    /// # Panics
    /// The shapes do not fit.
    pub fn mean_pool(
        &self,
        lane: &Lane,
        tokens: &DeviceVec<f32>,
        lengths: &[u32],
        dims: usize,
        out: &mut DeviceVec<f32>,
    ) -> Result<(), Error> {
        let pooling = self.pooling(lane, lengths, dims)?;
        self.pool(lane, &pooling, tokens, out)
    }

    /// Where sequences of these lengths begin, for `pool`.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn pooling(&self, lane: &Lane, lengths: &[u32], dims: usize) -> Result<Pooling, Error> {
        let mut starts = vec![0u32];
        for length in lengths {
            let end = starts[starts.len() - 1].checked_add(*length);
            starts.push(end.expect("tokens are counted in 32 bits"));
        }
        let tokens = starts[starts.len() - 1] as usize;
        Ok(Pooling { starts: lane.upload(&starts)?, tokens, sequences: lengths.len(), dims })
    }

    /// `mean_pool` of sequences whose lengths are on the card already. Does not wait.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// The shapes do not fit.
    pub fn pool(
        &self,
        lane: &Lane,
        pooling: &Pooling,
        tokens: &DeviceVec<f32>,
        out: &mut DeviceVec<f32>,
    ) -> Result<(), Error> {
        let dims = pooling.dims;
        assert_eq!(tokens.len(), pooling.tokens * dims, "tokens are [sum of lengths, dims]");
        assert_eq!(out.len(), pooling.sequences * dims, "out is [sequences, dims]");
        if out.is_empty() {
            return Ok(());
        }
        let is_fours = dims.is_multiple_of(4);
        let width = u32::try_from(if is_fours { dims / 4 } else { dims }).expect("rows are short");
        let tiles = width.div_ceil(32);
        let sequences = u32::try_from(pooling.sequences).expect("sequences are few");
        let grid = Grid::line(sequences.checked_mul(tiles).expect("a grid has 31 bits"), THREADS);
        let arguments = Arguments::new().with(tokens.at()).with(pooling.starts.at());
        let arguments = arguments.with(out.at_mut()).with(width).with(tiles);
        // SAFETY: pointers and counts as the kernel has them; the shapes were checked, the
        // beginnings are the sums of the lengths, and rows of four-fold width lie at multiples of
        // 16 bytes. All is of this lane.
        unsafe { lane.stream().launch(&self.pool[usize::from(is_fours)], grid, &arguments) }
    }

    /// The first `to` values of each row of `dims`, as long as 1 if `normalize`, as `out` has them.
    /// Does not wait; `fault` tells afterwards whether a row was too long to be normalised.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// The shapes do not fit.
    #[expect(clippy::too_many_arguments, reason = "one pass does what would be four")]
    pub fn shape(
        &self,
        lane: &Lane,
        rows: &DeviceVec<f32>,
        dims: usize,
        to: usize,
        normalize: bool,
        out: Shaped<'_>,
        fault: &mut Fault,
    ) -> Result<(), Error> {
        assert!(to > 0 && to <= dims, "rows of {dims} have no {to}");
        let count = rows.len() / dims;
        assert_eq!(rows.len(), count * dims, "rows are [count, dims]");
        let (kind, at, out_row) = match out {
            Shaped::F32(out) => {
                assert_eq!(out.len(), count * to);
                (0, out.at_mut(), to)
            }
            Shaped::Int8(out) => {
                assert_eq!(out.len(), count * to);
                (1, out.at_mut(), to)
            }
            Shaped::Binary(out) => {
                assert!(to.is_multiple_of(8) && out.len() == count * (to / 8));
                (2, out.at_mut(), to / 8)
            }
        };
        if count == 0 {
            return Ok(());
        }
        let length = IN_REGISTERS.iter().filter(|most| to > **most).count();
        let number = |n: usize| u32::try_from(n).expect("rows are counted in 32 bits");
        let blocks = match length {
            3 => number(count.div_ceil(8)).min(self.multiprocessors * BLOCKS_OF_LONG),
            _ => blocks((count as u64).div_ceil(ROWS_OF_BLOCK), self.multiprocessors),
        };
        let arguments = Arguments::new().with(rows.at()).with(at);
        let arguments = arguments.with(number(count)).with(number(dims)).with(number(to));
        let arguments =
            arguments.with(number(out_row)).with(u32::from(normalize)).with(fault.at_mut());
        let function = &self.shape[kind][length];
        // SAFETY: as `pool`.
        unsafe { lane.stream().launch(function, Grid::line(blocks, THREADS), &arguments) }
    }
}
