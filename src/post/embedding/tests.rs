use super::*;
use crate::post::sums::{LANES, tree};
use crate::prng::Prng;
use proptest::prelude::*;

fn draw(prng: &mut Prng, n: usize) -> Vec<f32> {
    (0..n).map(|_| prng.normal() as f32).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #[test]
    fn pools_as_defined(lengths in prop::collection::vec(0u32..40, 0..6), dims in 1usize..150) {
        let mut prng = Prng::new(u64::from(lengths.iter().sum::<u32>()) + dims as u64);
        let count: u32 = lengths.iter().sum();
        let tokens = draw(&mut prng, count as usize * dims);
        let mut wanted = Vec::new();
        let mut at = 0;
        for &length in &lengths {
            for j in 0..dims {
                let mut p = [0f32; 8];
                for t in 0..length as usize {
                    p[t % 8] += tokens[(at + t) * dims + j];
                }
                for half in [4, 2, 1] {
                    (0..half).for_each(|i| p[i] += p[i + half]);
                }
                wanted.push(if length == 0 { 0.0 } else { p[0] / length as f32 });
            }
            at += length as usize;
        }
        for threads in [1, 3] {
            let mut out = vec![9.0; lengths.len() * dims];
            mean_pool(&tokens, &lengths, dims, &mut out, threads);
            prop_assert_eq!(bits(&out), bits(&wanted));
        }
    }

    #[test]
    fn normalises_and_quantises_as_defined(rows in 0usize..5, dims in 1usize..140, seed: u64) {
        let mut values = draw(&mut Prng::new(seed), rows * dims);
        if rows > 1 {
            values[..dims].fill(0.0);
        }
        let before = values.clone();
        normalize(&mut values, dims, 2).unwrap();
        let mut int8 = vec![1; rows * dims];
        quantize_int8(&before, dims, &mut int8, 2);
        for row in 0..rows {
            let of = row * dims..(row + 1) * dims;
            let (old, new, small) = (&before[of.clone()], &values[of.clone()], &int8[of]);
            let mut p = [0f32; LANES];
            old.iter().enumerate().for_each(|(i, v)| p[i % LANES] += v * v);
            let length = tree(p).sqrt();
            let max = old.iter().fold(0f32, |max, v| max.max(v.abs()));
            for ((old, new), small) in old.iter().zip(new).zip(small) {
                let wanted = if length == 0.0 { *old } else { old / length };
                prop_assert_eq!(new.to_bits(), wanted.to_bits());
                let wanted = if max == 0.0 { 0.0 } else { (old * (127.0 / max)).round_ties_even() };
                prop_assert_eq!(f32::from(*small), wanted);
            }
        }
    }
}

#[test]
fn bits_are_packed_as_numpy_packs_them() {
    // numpy.packbits(numpy.array([[1, -1, 0, 2, 3, -4, 5, -0.0, 1, …]]) > 0)
    let row = [1.0, -1.0, 0.0, 2.0, 3.0, -4.0, 5.0, -0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
    let mut out = [0; 2];
    quantize_binary(&row, 16, &mut out, 1).unwrap();
    assert_eq!(out, [0b1001_1010, 0b1000_0001]);
    assert_eq!(quantize_binary(&[0.0; 12], 12, &mut out, 1), Err(Error::Bits { dims: 12 }));
}

#[test]
fn truncation_leaves_the_front() {
    let mut rows: Vec<f32> = (0..12).map(|v| v as f32).collect();
    truncate(&mut rows, 4, 3).unwrap();
    assert_eq!(rows, [0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 8.0, 9.0, 10.0]);
    assert_eq!(truncate(&mut rows, 3, 4), Err(Error::TooNarrow { dims: 3, wanted: 4 }));
}

#[test]
fn what_is_no_number_is_named() {
    let mut rows = vec![1.0; 6];
    assert_eq!(check_finite(&rows, 3), Ok(()));
    rows[4] = f32::NEG_INFINITY;
    let error = check_finite(&rows, 3).unwrap_err();
    assert_eq!(error, Error::NotFinite { row: 1, column: 1, value: f32::NEG_INFINITY });
    rows[4] = f32::NAN;
    assert!(check_finite(&rows, 3).is_err());
    rows[4] = 1e30;
    assert_eq!(normalize(&mut rows, 3, 1), Err(Error::TooLong { row: 1 }));
    // Next to nothing: a scale for it would be infinite.
    let mut out = [1; 2];
    quantize_int8(&[1e-40, -1e-41], 2, &mut out, 1);
    assert_eq!(out, [0, 0]);
    for (error, says) in [
        (error, "value 1 of embedding 1 is -inf"),
        (Error::TooLong { row: 7 }, "embedding 7 is too long"),
        (Error::TooNarrow { dims: 3, wanted: 4 }, "3 dimensions cannot be truncated to 4"),
        (Error::Bits { dims: 12 }, "truncate to 8"),
    ] {
        assert!(error.to_string().contains(says), "{error}");
    }
}
