//! Sums in one order everywhere.
//!
//! A sum of n floats, or of n products, is made of 32 partial sums: term i is added to partial sum
//! `i mod 32`, in ascending order, each beginning with +0; then the upper half is added to the
//! lower one, five times: `p[j] += p[j + 16]` for j < 16, then 8, 4, 2, 1, and `p[0]` is the sum.
//! Products are rounded before they are added (no fused multiply-add). All of it is IEEE 754
//! binary32, rounded to nearest even, subnormals kept.
//!
//! That is an order that suits both: 32 partial sums are 8 SSE or 4 AVX registers, and a warp's 32
//! lanes, or 8 lanes with a `float4` each; the tree is what shuffles do.

use std::array::from_fn;

/// How many partial sums there are.
pub const LANES: usize = 32;

/// The sum of 32 partial sums.
#[inline(always)]
pub fn tree(p: [f32; LANES]) -> f32 {
    let p: [f32; 16] = from_fn(|j| p[j] + p[j + 16]);
    let p: [f32; 8] = from_fn(|j| p[j] + p[j + 8]);
    let p: [f32; 4] = from_fn(|j| p[j] + p[j + 4]);
    (p[0] + p[2]) + (p[1] + p[3])
}

/// Partial sums, and the product that each takes. No partial sum is picked out by a number that is
/// not known beforehand: it would have to leave its register.
#[inline(always)]
pub fn add(p: &mut [f32; LANES], a: &[f32; LANES], b: &[f32; LANES]) {
    for j in 0..LANES {
        p[j] += a[j] * b[j];
    }
}

/// The last terms, and zeros behind them: a partial sum is never -0, so +0 changes nothing.
#[inline(always)]
fn padded<T: Copy + Default>(rest: &[T]) -> [T; LANES] {
    let mut all = [T::default(); LANES];
    all[..rest.len()].copy_from_slice(rest);
    all
}

#[inline(always)]
fn floats(bytes: &[i8; LANES]) -> [f32; LANES] {
    from_fn(|j| f32::from(bytes[j]))
}

/// The dot product of two vectors.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut p = [0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    a.iter().zip(b).for_each(|(a, b)| add(&mut p, a, b));
    if !a_rest.is_empty() {
        add(&mut p, &padded(a_rest), &padded(b_rest));
    }
    tree(p)
}

/// A quarter of the partial sums: one AVX register.
const PART: usize = LANES / 4;

/// `dot` of each of R vectors with each of Q others, all of one length: `[R][Q]`. What one dot
/// product has for itself are its additions; what it loads is loaded once for all. A quarter of the
/// partial sums is made at a time, so that those of all pairs stay in registers, and the vectors in
/// the nearest cache.
#[inline(always)]
pub fn dot_tile<const R: usize, const Q: usize>(a: [&[f32]; R], b: [&[f32]; Q]) -> [[f32; Q]; R] {
    let (whole_a, whole_b) = (a.map(|v| v.as_chunks::<LANES>().0), b.map(|v| v.as_chunks().0));
    let mut p = [[[0f32; LANES]; Q]; R];
    quarter::<R, Q, 0>(&whole_a, &whole_b, &mut p);
    quarter::<R, Q, 1>(&whole_a, &whole_b, &mut p);
    quarter::<R, Q, 2>(&whole_a, &whole_b, &mut p);
    quarter::<R, Q, 3>(&whole_a, &whole_b, &mut p);
    from_fn(|r| {
        from_fn(|q| {
            let (a, b) = (a[r].as_chunks::<LANES>().1, b[q].as_chunks::<LANES>().1);
            if !a.is_empty() {
                add(&mut p[r][q], &padded(a), &padded(b));
            }
            tree(p[r][q])
        })
    })
}

#[inline(always)]
fn quarter<const R: usize, const Q: usize, const PLACE: usize>(
    a: &[&[[f32; LANES]]; R],
    b: &[&[[f32; LANES]]; Q],
    p: &mut [[[f32; LANES]; Q]; R],
) {
    // Cut to one length here, so that no load below is checked.
    let count = a[0].len();
    let (a, b) = (a.map(|v| &v[..count]), b.map(|v| &v[..count]));
    let mut sums = [[[0f32; PART]; Q]; R];
    for i in 0..count {
        let of_a: [[f32; PART]; R] = from_fn(|r| from_fn(|j| a[r][i][PART * PLACE + j]));
        for q in 0..Q {
            let of_b: [f32; PART] = from_fn(|j| b[q][i][PART * PLACE + j]);
            for r in 0..R {
                for j in 0..PART {
                    sums[r][q][j] += of_a[r][j] * of_b[j];
                }
            }
        }
    }
    for r in 0..R {
        for q in 0..Q {
            p[r][q][PART * PLACE..][..PART].copy_from_slice(&sums[r][q]);
        }
    }
}

/// The dot product of a vector with one of small integers, each of which a float holds exactly.
#[inline(always)]
pub fn dot_int8(a: &[f32], b: &[i8]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut p = [0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    a.iter().zip(b).for_each(|(a, b)| add(&mut p, a, &floats(b)));
    if !a_rest.is_empty() {
        add(&mut p, &padded(a_rest), &floats(&padded(b_rest)));
    }
    tree(p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    /// The definition, word by word.
    fn plainly(terms: impl Iterator<Item = f32>) -> f32 {
        let mut p = [0f32; LANES];
        terms.enumerate().for_each(|(i, term)| p[i % LANES] += term);
        for half in [16, 8, 4, 2, 1] {
            (0..half).for_each(|j| p[j] += p[j + half]);
        }
        p[0]
    }

    #[test]
    fn every_length_has_the_order_that_is_defined() {
        let mut prng = Prng::new(1);
        for n in (0..70).chain([127, 128, 129, 768, 4096]) {
            let mut draw = || -> Vec<f32> { (0..n).map(|_| prng.normal() as f32).collect() };
            let (a, b, c) = (draw(), draw(), draw());
            let wanted = |a: &[f32], b: &[f32]| plainly(a.iter().zip(b).map(|(a, b)| a * b));
            assert_eq!(dot(&a, &b).to_bits(), wanted(&a, &b).to_bits(), "{n}");
            let first = &a;
            let tile = dot_tile([&a, &c], [&b, &a, &c]);
            for (sums, a) in tile.iter().zip([&a, &c]) {
                assert_eq!(*sums, [wanted(a, &b), wanted(a, first), wanted(a, &c)], "{n}");
            }
            let bytes: Vec<i8> = b.iter().map(|b| (b * 40.0) as i8).collect();
            let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b)).collect();
            assert_eq!(dot_int8(&a, &bytes).to_bits(), dot(&a, &floats).to_bits(), "{n}");
        }
    }
}
