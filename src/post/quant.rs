//! Weights as GGUF files have them, and the floats that they stand for.
//!
//! ```text
//!   Q8_0   32 values, 34 bytes    d: f16 | q: 32 x i8                     d * q
//!   Q4_K   256 values, 144 bytes  d: f16 | m: f16 | scales: 12 | q: 128   d * s * q - m * z
//! ```
//!
//! (ggml: `dequantize_row_q8_0`, `dequantize_row_q4_K` in `ggml-quants.c`.) Of a Q4_K block each 32
//! values share a scale s and a minimum z, of 6 bits: sub-block j < 4 has the low 6 bits of
//! `scales[j]` and `scales[j + 4]`, and j >= 4 the low and the high half of `scales[j + 4]`, above
//! them the two top bits of `scales[j - 4]` and `scales[j]`. Sub-blocks 2n and 2n + 1 are the low
//! and the high halves of the bytes `q[32 n ..]`.
//!
//! The floats are ggml's to the bit: `d * s` and `m * z` (exact: 11 bits by 6), the product with q
//! (exact: 17 bits by 4), then the difference, which is rounded. Since the products are exact, a
//! fused multiply-add gives the same here, and may be used.
//!
//! A product with a vector is that of the dequantised floats, in an order of its own: term i is
//! added to partial sum `i mod 32 + 32 * (B mod 4)`, where B is `i / 32` for Q8_0 and `i / 256` for
//! Q4_K, in ascending order and from +0, each product rounded first; then `p[j] += p[j + 64]` for
//! j < 64, then 32, 16, 8, 4, 2, 1. So a warp has four blocks under way at once.

use std::array::from_fn;

use super::simd::{Kernel, widest};
use super::sums::{LANES, add, tree};
use super::threads::{pieces, worth};

/// A format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 8.5 bits a value.
    Q8_0,
    /// 4.5 bits a value.
    Q4K,
}

impl Format {
    /// Values of a block.
    pub const fn block_values(self) -> usize {
        match self {
            Format::Q8_0 => 32,
            Format::Q4K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::Q8_0 => 34,
            Format::Q4K => 144,
        }
    }

    /// Bytes of so many values, which make whole blocks.
    ///
    /// # Panics
    /// They do not.
    pub fn bytes(self, values: usize) -> usize {
        assert!(values.is_multiple_of(self.block_values()), "{values} values are no whole blocks");
        values / self.block_values() * self.block_bytes()
    }
}

/// The floats that `blocks` stand for.
///
/// # Panics
/// `out` does not have as many.
pub fn dequantize(format: Format, blocks: &[u8], out: &mut [f32], threads: usize) {
    assert_eq!(blocks.len(), format.bytes(out.len()), "out has the values of all blocks");
    let (values, bytes) = (format.block_values(), format.block_bytes());
    let threads = worth(threads, size_of_val(out));
    pieces(out, values, threads, |range, out| {
        widest(Dequantize { format, blocks: &blocks[range.start * bytes..range.end * bytes], out });
    });
}

/// The product of a matrix, `[out.len(), x.len()]` row by row in blocks, and a vector.
///
/// # Panics
/// The shapes do not fit.
pub fn matvec(format: Format, matrix: &[u8], x: &[f32], out: &mut [f32], threads: usize) {
    let row_bytes = format.bytes(x.len());
    assert_eq!(matrix.len(), row_bytes * out.len(), "the matrix is [out.len(), x.len()]");
    pieces(out, 1, worth(threads, matrix.len()), |range, out| {
        widest(MatVec { format, matrix: &matrix[range.start * row_bytes..], row_bytes, x, out });
    });
}

struct Dequantize<'a> {
    format: Format,
    blocks: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Dequantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.format {
            Format::Q8_0 => {
                let blocks = self.blocks.as_chunks::<34>().0;
                for (block, out) in blocks.iter().zip(self.out.as_chunks_mut::<32>().0) {
                    *out = q8_0(block);
                }
            }
            Format::Q4K => {
                let blocks = self.blocks.as_chunks::<144>().0;
                for (block, out) in blocks.iter().zip(self.out.as_chunks_mut::<256>().0) {
                    let scales = Scales::of(block);
                    let (halves, _) = out.as_chunks_mut::<64>();
                    for (n, out) in halves.iter_mut().enumerate() {
                        let (low, high) = q4_k(block, &scales, n);
                        out[..32].copy_from_slice(&low);
                        out[32..].copy_from_slice(&high);
                    }
                }
            }
        }
    }
}

struct MatVec<'a> {
    format: Format,
    matrix: &'a [u8],
    row_bytes: usize,
    x: &'a [f32],
    out: &'a mut [f32],
}

/// Blocks whose sums are kept apart.
const BLOCKS: usize = 4;

impl Kernel for MatVec<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (row, out) in self.matrix.chunks_exact(self.row_bytes.max(1)).zip(self.out) {
            *out = match self.format {
                Format::Q8_0 => row_q8_0(row.as_chunks().0, self.x.as_chunks().0),
                Format::Q4K => row_q4_k(row.as_chunks().0, self.x.as_chunks().0),
            };
        }
    }
}

#[inline(always)]
fn row_q8_0(row: &[[u8; 34]], x: &[[f32; 32]]) -> f32 {
    let mut sums = [[0f32; LANES]; BLOCKS];
    for (b, (block, x)) in row.iter().zip(x).enumerate() {
        let mut p = sums[b % BLOCKS];
        add(&mut p, &q8_0(block), x);
        sums[b % BLOCKS] = p;
    }
    of_four(&sums)
}

#[inline(always)]
fn row_q4_k(row: &[[u8; 144]], x: &[[f32; 256]]) -> f32 {
    let mut sums = [[0f32; LANES]; BLOCKS];
    for (b, (block, x)) in row.iter().zip(x).enumerate() {
        let scales = Scales::of(block);
        let mut p = sums[b % BLOCKS];
        for (n, x) in x.as_chunks::<64>().0.iter().enumerate() {
            let (low, high) = q4_k(block, &scales, n);
            let (x, _) = x.as_chunks::<32>();
            add(&mut p, &low, &x[0]);
            add(&mut p, &high, &x[1]);
        }
        sums[b % BLOCKS] = p;
    }
    of_four(&sums)
}

#[inline(always)]
fn of_four(sums: &[[f32; LANES]; BLOCKS]) -> f32 {
    let [a, b, c, d] = sums;
    tree(from_fn(|j| (a[j] + c[j]) + (b[j] + d[j])))
}

#[inline(always)]
fn q8_0(block: &[u8; 34]) -> [f32; 32] {
    let (d, [q]) = (f16(block[0], block[1]), block[2..].as_chunks::<32>().0) else {
        unreachable!("34 bytes less 2")
    };
    from_fn(|i| d * f32::from(q[i] as i8))
}

/// The scale and the minimum of each sub-block, their f16 factors applied.
struct Scales {
    scale: [f32; 8],
    minimum: [f32; 8],
}

impl Scales {
    #[inline(always)]
    fn of(block: &[u8; 144]) -> Scales {
        let (d, m) = (f16(block[0], block[1]), f16(block[2], block[3]));
        let packed = &block[4..16];
        let (mut scale, mut minimum) = ([0f32; 8], [0f32; 8]);
        for j in 0..4 {
            scale[j] = d * f32::from(packed[j] & 63);
            minimum[j] = m * f32::from(packed[j + 4] & 63);
            scale[j + 4] = d * f32::from(packed[j + 8] & 15 | packed[j] >> 6 << 4);
            minimum[j + 4] = m * f32::from(packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4);
        }
        Scales { scale, minimum }
    }
}

/// Sub-blocks 2n and 2n + 1.
#[inline(always)]
fn q4_k(block: &[u8; 144], scales: &Scales, n: usize) -> ([f32; 32], [f32; 32]) {
    let q = &block[16..].as_chunks::<32>().0[n];
    let (scale, minimum) = (scales.scale[2 * n], scales.minimum[2 * n]);
    let low = from_fn(|i| scale * f32::from(q[i] & 15) - minimum);
    let (scale, minimum) = (scales.scale[2 * n + 1], scales.minimum[2 * n + 1]);
    (low, from_fn(|i| scale * f32::from(q[i] >> 4) - minimum))
}

/// An IEEE 754 binary16, low byte first.
#[inline(always)]
pub fn f16(low: u8, high: u8) -> f32 {
    let bits = u32::from(u16::from_le_bytes([low, high]));
    let (sign, rest) = ((bits & 0x8000) << 16, bits & 0x7fff);
    let magnitude = match rest >> 10 {
        // Subnormal, or 0: so many times 2^-24, which is exact.
        0 => (rest as f32 * (1.0 / 16_777_216.0)).to_bits(),
        31 => 0x7f80_0000 | (rest & 0x3ff) << 13,
        _ => (rest << 13) + ((127 - 15) << 23),
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests;
