//! Quantised weights on the card: `cuda/dequant.cu`. What they stand for, and the order of sums,
//! is said in `post::quant`, whose bits these give.

use std::sync::Arc;

use super::blocks;
use crate::cuda::{Arguments, DeviceVec, Error, Family, Function, Gpu, Grid, Lane};

/// The kernels of `cuda/dequant.cu`.
pub static DEQUANT: Family = family!("dequant");

const THREADS: u32 = 256;
/// Rows that a block of `matvec_*` has: 8 warps of 4.
const ROWS_OF_BLOCK: u32 = 32;

/// A format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32 values in 34 bytes.
    Q8_0,
    /// 256 values in 144 bytes.
    Q4K,
}

impl Format {
    const fn block(self) -> (usize, usize) {
        match self {
            Format::Q8_0 => (32, 34),
            Format::Q4K => (256, 144),
        }
    }

    fn blocks(self, values: usize) -> usize {
        let (of_block, _) = self.block();
        assert!(values.is_multiple_of(of_block), "{values} values are no whole blocks");
        values / of_block
    }
}

/// Dequantisation, alone and fused with a matrix-vector product.
#[derive(Clone, Debug)]
pub struct Weights {
    dequantize: [Function; 2],
    matvec: [Function; 2],
    multiprocessors: u32,
}

impl Weights {
    /// Takes the kernels from a card.
    ///
    /// # Errors
    /// What the driver says.
    pub fn load(gpu: &Arc<Gpu>) -> Result<Weights, Error> {
        let of = |name| gpu.function(&DEQUANT, name);
        Ok(Weights {
            dequantize: [of("dequant_q8_0")?, of("dequant_q4_k")?],
            matvec: [of("matvec_q8_0")?, of("matvec_q4_k")?],
            multiprocessors: gpu.facts().multiprocessors,
        })
    }

    /// The floats that blocks stand for. Does not wait.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// `out` does not have as many.
    pub fn dequantize(
        &self,
        lane: &Lane,
        format: Format,
        from: &DeviceVec<u8>,
        out: &mut DeviceVec<f32>,
    ) -> Result<(), Error> {
        let count = format.blocks(out.len());
        assert_eq!(from.len(), count * format.block().1, "out has the values of all blocks");
        if count == 0 {
            return Ok(());
        }
        // Units of work: four floats of a thread, or a block of a warp; four at once.
        let (units, of_block) = match format {
            Format::Q8_0 => (count as u64 * 8, u64::from(THREADS) * 4),
            Format::Q4K => (count as u64, u64::from(THREADS / 32) * 4),
        };
        let grid = Grid::line(blocks(units.div_ceil(of_block), self.multiprocessors), THREADS);
        let arguments = Arguments::new().with(from.at()).with(out.at_mut()).with(units);
        // SAFETY: pointers and counts as the kernel has them; both lengths were checked, and both
        // stay in this lane's pools until the stream has come past it.
        unsafe { lane.stream().launch(&self.dequantize[format as usize], grid, &arguments) }
    }

    /// The product of a matrix `[out.len(), x.len()]`, row by row in blocks, and a vector. Does not
    /// wait.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// The shapes do not fit.
    pub fn matvec(
        &self,
        lane: &Lane,
        format: Format,
        matrix: &DeviceVec<u8>,
        x: &DeviceVec<f32>,
        out: &mut DeviceVec<f32>,
    ) -> Result<(), Error> {
        let of_row = format.blocks(x.len());
        let bytes = of_row * format.block().1 * out.len();
        assert_eq!(matrix.len(), bytes, "the matrix is [out.len(), x.len()]");
        let rows = u32::try_from(out.len()).expect("rows are counted in 32 bits");
        let of_row = u32::try_from(of_row).expect("blocks of a row are counted in 32 bits");
        if rows == 0 {
            return Ok(());
        }
        let grid = Grid::line(rows.div_ceil(ROWS_OF_BLOCK), THREADS);
        let arguments = Arguments::new().with(matrix.at()).with(x.at()).with(out.at_mut());
        let arguments = arguments.with(rows).with(of_row);
        // SAFETY: as above.
        unsafe { lane.stream().launch(&self.matvec[format as usize], grid, &arguments) }
    }
}
