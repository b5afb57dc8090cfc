use super::*;
use crate::prng::{Prng, hash, splitmix64};

/// Blocks of random bytes, with factors that are finite.
fn blocks(format: Format, count: usize, seed: u64) -> Vec<u8> {
    let mut x = seed;
    let mut bytes: Vec<u8> =
        (0..count * format.block_bytes()).map(|_| (splitmix64(&mut x) >> 56) as u8).collect();
    for block in bytes.chunks_mut(format.block_bytes()) {
        let factors: &[usize] = if format == Format::Q4K { &[1, 3] } else { &[1] };
        // The top bit of the exponent off: below 2, and subnormals among them.
        factors.iter().for_each(|&high| block[high] &= 0xbf);
    }
    bytes
}

fn digest(values: &[f32]) -> u64 {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    hash(0, &bytes)
}

#[test]
fn floats_are_those_of_ggml() {
    // What dequantize_row_q8_0 and dequantize_row_q4_K of llama.cpp (commit 0c1e570) give for these
    // blocks; gcc 12 with -O0, and with -O3 -mfma -ffp-contract=fast, the same.
    for (format, seed, wanted) in
        [(Format::Q8_0, 1, 0x86cd_68bd_af7d_249c), (Format::Q4K, 2, 0xda7a_7294_6719_efe2)]
    {
        let blocks = blocks(format, 1000, seed);
        for threads in [1, 2] {
            let mut out = vec![0.0; 1000 * format.block_values()];
            dequantize(format, &blocks, &mut out, threads);
            assert_eq!(digest(&out), wanted, "{format:?}");
        }
    }
}

#[test]
fn a_product_is_that_of_the_floats() {
    let mut prng = Prng::new(3);
    for format in [Format::Q8_0, Format::Q4K] {
        let values = format.block_values();
        for (rows, per_row) in [(0, 1), (1, 1), (3, 3), (2, 4), (5, 9), (2, 33)] {
            let columns = per_row * values;
            let matrix = blocks(format, rows * per_row, rows as u64);
            let x: Vec<f32> = (0..columns).map(|_| prng.normal() as f32).collect();
            let mut floats = vec![0.0; rows * columns];
            dequantize(format, &matrix, &mut floats, 1);
            let mut out = vec![f32::NAN; rows];
            matvec(format, &matrix, &x, &mut out, 2);
            for (row, out) in floats.chunks(columns).zip(&out) {
                let mut p = [0f32; 128];
                for (i, (w, x)) in row.iter().zip(&x).enumerate() {
                    p[i % 32 + 32 * (i / values % 4)] += w * x;
                }
                for half in [64, 32, 16, 8, 4, 2, 1] {
                    (0..half).for_each(|j| p[j] += p[j + half]);
                }
                assert_eq!(out.to_bits(), p[0].to_bits(), "{format:?} {rows} {per_row}");
            }
        }
    }
}

#[test]
fn halves_of_all_bits() {
    // Every one of them against its meaning.
    for bits in 0..=u16::MAX {
        let [low, high] = bits.to_le_bytes();
        let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3ff));
        let magnitude = match exponent {
            0 => fraction / 1024.0 * 2f64.powi(-14),
            31 if fraction == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
        };
        let wanted = if bits & 0x8000 == 0 { magnitude } else { -magnitude };
        let got = f16(low, high);
        assert!(f64::from(got) == wanted || got.is_nan() && wanted.is_nan(), "{bits:#x}");
        assert!(wanted.is_nan() || got.is_sign_negative() == wanted.is_sign_negative());
    }
}
