//! Embeddings: what makes vectors of tokens into rows that can be searched.
//!
//! Rows stand one behind the other, `[rows, dims]` of f32. The arithmetic is fixed, so that any
//! other machine, a GPU too, can give the same bits; sums of products are those of `sums`:
//!
//! | operation | value j of a row |
//! |---|---|
//! | mean pool | `S[j] / n`: token t goes to partial sum `t mod 8`, from +0; then 4, 2, 1 |
//! | normalise | `v[j] / sqrt(dot(v, v))`; a row whose squares sum to 0 stays as it is |
//! | truncate | `v[j]`, for j below the new width |
//! | int8 | `nearest_even(v[j] * (127 / max abs(v)))`; 0 where that factor is infinite |
//! | binary | bit `v[j] > 0`, the first in the highest bit of the first byte, as numpy's packbits |
//!
//! The scale of an int8 row is not kept: a cosine does not depend on it. Divisions and roots are
//! rounded correctly; no value may be NaN or infinite (`check_finite`, by row and column).

use std::fmt;

use super::simd::{Kernel, widest};
use super::sums::dot;
use super::threads::{pieces, worth};

pub mod search;

/// Dimensions of a row: 65,536 squares of 127 sum to half of what an i32 holds.
pub const DIMS_MAX: usize = 65_536;

const _: () = assert!(DIMS_MAX * 127 * 127 < i32::MAX as usize);

/// What is wrong with rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Error {
    /// A value is NaN or infinite.
    NotFinite {
        /// Its row, from 0.
        row: usize,
        /// Its column, from 0.
        column: usize,
        /// It.
        value: f32,
    },
    /// The sum of a row's squares is beyond f32.
    TooLong {
        /// The row, from 0.
        row: usize,
    },
    /// Rows are narrower than what is to be left of them.
    TooNarrow {
        /// Their width.
        dims: usize,
        /// What is to be left.
        wanted: usize,
    },
    /// Binary rows need whole bytes.
    Bits {
        /// Their width.
        dims: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotFinite { row, column, value } => {
                write!(f, "value {column} of embedding {row} is {value}, which has no direction")
            }
            Error::TooLong { row } => write!(
                f,
                "embedding {row} is too long: the sum of its squares is beyond 32-bit floats; \
                 scale the vectors down"
            ),
            Error::TooNarrow { dims, wanted } => write!(
                f,
                "embeddings of {dims} dimensions cannot be truncated to {wanted}: ask for {dims} \
                 at most"
            ),
            Error::Bits { dims } => write!(
                f,
                "binary embeddings need a multiple of 8 dimensions, and these have {dims}: \
                 truncate to {}",
                dims / 8 * 8
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Refuses NaN and infinity.
///
/// # Errors
/// Where the first one stands.
pub fn check_finite(rows: &[f32], dims: usize) -> Result<(), Error> {
    struct Any<'a>(&'a [f32]);
    impl Kernel for Any<'_> {
        type Output = bool;
        #[inline(always)]
        fn run(self) -> bool {
            // An exponent of ones; `any` would stop at the first, and not be vectorised.
            self.0.iter().fold(0, |worst, value| (value.to_bits() & 0x7fff_ffff).max(worst))
                >= 0x7f80_0000
        }
    }
    if !widest(Any(rows)) {
        return Ok(());
    }
    match rows.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(Error::NotFinite { row: at / dims, column: at % dims, value: rows[at] }),
        None => Ok(()),
    }
}

/// Partial sums of a mean: they bound how long one sequence of tokens keeps its thread waiting.
const POOL_LANES: usize = 8;
/// Columns at once: their partial sums take half of the nearest cache.
const POOL_COLUMNS: usize = 512;

/// The mean of each sequence's token vectors: `tokens` is `[sum of lengths, dims]`, `out`
/// `[sequences, dims]`. The mean of no tokens is 0.
///
/// # Panics
/// The shapes do not fit.
pub fn mean_pool(tokens: &[f32], lengths: &[u32], dims: usize, out: &mut [f32], threads: usize) {
    let count: usize = lengths.iter().map(|&length| length as usize).sum();
    assert_eq!(tokens.len(), count * dims, "tokens are [sum of lengths, dims]");
    assert_eq!(out.len(), lengths.len() * dims, "out is [sequences, dims]");
    let mut starts = Vec::with_capacity(lengths.len());
    let mut at = 0;
    for &length in lengths {
        starts.push(at);
        at += length as usize * dims;
    }
    let threads = worth(threads, size_of_val(tokens));
    pieces(out, dims, threads, |range, out| {
        for (row, out) in range.zip(out.chunks_exact_mut(dims)) {
            let tokens = &tokens[starts[row]..][..lengths[row] as usize * dims];
            widest(Pool { tokens, dims, out });
        }
    });
}

struct Pool<'a> {
    tokens: &'a [f32],
    dims: usize,
    out: &'a mut [f32],
}

impl Kernel for Pool<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let count = self.tokens.len() / self.dims;
        if count == 0 {
            self.out.fill(0.0);
            return;
        }
        for (index, out) in self.out.chunks_mut(POOL_COLUMNS).enumerate() {
            let mut sums = [[0f32; POOL_COLUMNS]; POOL_LANES];
            for (t, token) in self.tokens.chunks_exact(self.dims).enumerate() {
                let token = &token[index * POOL_COLUMNS..][..out.len()];
                for (sum, value) in sums[t % POOL_LANES].iter_mut().zip(token) {
                    *sum += value;
                }
            }
            for half in [4, 2, 1] {
                let (low, high) = sums.split_at_mut(half);
                for (low, high) in low.iter_mut().zip(&*high) {
                    low.iter_mut().zip(high).for_each(|(low, high)| *low += high);
                }
            }
            let count = count as f32;
            out.iter_mut().zip(&sums[0]).for_each(|(out, sum)| *out = sum / count);
        }
    }
}

/// Makes each row as long as 1.
///
/// # Errors
/// A row's squares sum to more than f32 holds; rows before it are done.
pub fn normalize(rows: &mut [f32], dims: usize, threads: usize) -> Result<(), Error> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let too_long = AtomicUsize::new(usize::MAX);
    let threads = worth(threads, size_of_val(rows));
    pieces(rows, dims, threads, |range, rows| {
        for (row, values) in range.zip(rows.chunks_exact_mut(dims)) {
            if !widest(Normalize(values)) {
                too_long.fetch_min(row, Ordering::Relaxed);
            }
        }
    });
    match too_long.into_inner() {
        usize::MAX => Ok(()),
        row => Err(Error::TooLong { row }),
    }
}

struct Normalize<'a>(&'a mut [f32]);

impl Kernel for Normalize<'_> {
    /// Its length is a number.
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let squares = dot(self.0, self.0);
        if !squares.is_finite() {
            return false;
        }
        if squares > 0.0 {
            let length = squares.sqrt();
            self.0.iter_mut().for_each(|value| *value /= length);
        }
        true
    }
}

/// Leaves the first `to` values of each row, and returns how many rows there are. Models trained
/// for it (Matryoshka, arxiv.org/abs/2205.13147) have what matters most in front.
///
/// # Errors
/// Rows are narrower than that.
pub fn truncate(rows: &mut Vec<f32>, dims: usize, to: usize) -> Result<(), Error> {
    if to > dims {
        return Err(Error::TooNarrow { dims, wanted: to });
    }
    let count = rows.len().checked_div(dims).unwrap_or(0);
    for row in 1..count {
        rows.copy_within(row * dims..row * dims + to, row * to);
    }
    rows.truncate(count * to);
    Ok(())
}

/// Each row as integers from -127 to 127; `out` has as many as `rows`.
///
/// # Panics
/// The shapes do not fit.
pub fn quantize_int8(rows: &[f32], dims: usize, out: &mut [i8], threads: usize) {
    assert_eq!(out.len(), rows.len(), "out is as large as rows");
    pieces(out, dims, worth(threads, size_of_val(rows)), |range, out| {
        let rows = &rows[range.start * dims..range.end * dims];
        for (row, out) in rows.chunks_exact(dims).zip(out.chunks_exact_mut(dims)) {
            widest(Int8 { row, out });
        }
    });
}

struct Int8<'a> {
    row: &'a [f32],
    out: &'a mut [i8],
}

/// Added to a float below 2^22 it leaves the nearest integer in the low bits, even where two are
/// near: the addition itself rounds so.
const TO_INTEGER: f32 = 12_582_912.0;

impl Kernel for Int8<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // Of floats without a sign the bits have the same order.
        let largest = self.row.iter().fold(0, |max, v| (v.to_bits() & 0x7fff_ffff).max(max));
        let scale = 127.0 / f32::from_bits(largest);
        if largest == 0 || !scale.is_finite() {
            self.out.fill(0);
            return;
        }
        for (out, value) in self.out.iter_mut().zip(self.row) {
            let bits = (value * scale + TO_INTEGER).to_bits();
            *out = bits.wrapping_sub(TO_INTEGER.to_bits()) as i8;
        }
    }
}

/// A bit for each value; `out` has an eighth of the bytes of `rows`.
///
/// # Errors
/// Rows that have no whole bytes.
///
/// # Panics
/// The shapes do not fit.
pub fn quantize_binary(
    rows: &[f32],
    dims: usize,
    out: &mut [u8],
    threads: usize,
) -> Result<(), Error> {
    if !dims.is_multiple_of(8) {
        return Err(Error::Bits { dims });
    }
    assert_eq!(out.len(), rows.len() / 8, "out has a bit for each value");
    pieces(out, dims / 8, worth(threads, size_of_val(rows)), |range, out| {
        widest(Binary { rows: &rows[range.start * dims..range.end * dims], out });
    });
    Ok(())
}

struct Binary<'a> {
    rows: &'a [f32],
    out: &'a mut [u8],
}

impl Kernel for Binary<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, values) in self.out.iter_mut().zip(self.rows.as_chunks::<8>().0) {
            let bits =
                values.iter().fold(0, |bits: u32, &value| bits << 1 | u32::from(value > 0.0));
            *out = bits as u8;
        }
    }
}

#[cfg(test)]
mod tests;
