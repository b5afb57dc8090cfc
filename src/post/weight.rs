//! What a logit weighs, in integers: arithmetic that gives the same bits on every machine.
//!
//! A logit `x` at temperature `T` weighs `exp(x / T)`. With `scale = 8 log2(e) / T` and
//! `y = x * scale`, that is `2^(y / 8)`, and it is kept in three parts:
//!
//! ```text
//! bin   n = y rounded to the nearest integer         an eighth of an octave
//! mass  M = 2^((y - n) / 8), in units of 2^-17       17 bits and a little more: 125,515 to 136,875
//! bin's factor 2^(n / 8)                             the same for all of a bin, applied to its sum
//! ```
//!
//! `y` does not decrease when `x` grows, so a bin is an interval of logits. Each step is one
//! IEEE 754 operation, rounded to nearest, and none is contracted, so `n` and `M` are the same bits
//! wherever they are computed. `y` is as exact as if the logit had been off by half a unit in its
//! last place; `M` is within 4.3e-6 of the true value.
//!
//! Sums of masses are integers: exact, whatever their order.

/// Bins of a row that count: the top one is the last of the octave that holds the largest logit,
/// so this is 31 octaves and more. What lies below weighs nothing: under 2^-30.9 of the largest.
pub const BINS: usize = 255;
/// Stands for "below all bins".
pub const BELOW: u8 = 255;
/// A mass of 1.
pub const MASS_ONE: u32 = 1 << 17;
/// `y` of a row's largest logit may be this far from 0; past it bins are no longer integers that
/// f32 can tell apart.
pub const SCALED_MAX: f32 = 4_000_000.0;

/// 1.5 * 2^23: a float plus this is rounded to an integer, which its low bits then hold.
const ROUND: f32 = 12_582_912.0;
/// Lowest `y` that may be rounded so.
const SCALED_MIN: f32 = -4_194_303.0;
/// ln(2) / 8, and its powers over the factorials: the series of 2^(f / 8).
const A: f32 = 0.086_643_4;
const B: f32 = 0.003_753_539_2;
const C: f32 = 0.000_108_406_464;
/// 2^(j / 8) in units of 2^-26.
const FACTOR: [u64; 8] = [
    67_108_864,
    73_182_735,
    79_806_339,
    87_029_429,
    94_906_266,
    103_496_017,
    112_863_206,
    123_078_199,
];
/// Zeroes behind the point of a weighed sum at the top octave's foot: 17 of the mass, 26 of the
/// factor.
const WEIGHT_BITS: f64 = 43.0;

/// The bin of `y`.
#[inline(always)]
pub fn bin(y: f32) -> i32 {
    ((if y > SCALED_MIN { y } else { SCALED_MIN }) + ROUND).to_bits() as i32
        - ROUND.to_bits() as i32
}

/// The mass of `y`, in its bin.
#[inline(always)]
pub fn mass(y: f32) -> u32 {
    fixed(power(y).0)
}

/// The mass times the place in the bin, from 0 to 1, in units of 2^-17.
#[inline(always)]
pub fn moment(y: f32) -> u32 {
    let (power, f) = power(y);
    fixed(64.0 + (power - 64.0) * (f + 0.5))
}

/// 64 and 2^(f / 8), of which 17 bits behind the point are left; and `f`, the distance of `y` from
/// its bin's middle.
#[inline(always)]
fn power(y: f32) -> (f32, f32) {
    let y = if y > SCALED_MIN { y } else { SCALED_MIN };
    let f = y - ((y + ROUND) - ROUND);
    (f * (f * (f * C + B) + A) + 65.0, f)
}

#[inline(always)]
fn fixed(above_64: f32) -> u32 {
    above_64.to_bits().wrapping_sub(64f32.to_bits())
}

/// What a sum of masses weighs in the bin that is `t` below the top one.
#[inline]
pub fn weigh(t: usize, sum: u64) -> u64 {
    (sum * FACTOR[7 - (t & 7)]) >> (t >> 3)
}

/// The least sum of masses that weighs `weight` or more in the bin that is `t` below the top one.
/// `weight` is not above what the whole bin weighs.
#[inline]
pub fn unweigh(t: usize, weight: u64) -> u64 {
    (weight << (t >> 3)).div_ceil(FACTOR[7 - (t & 7)])
}

/// Logits in order: a greater logit has a greater key.
#[inline(always)]
pub fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000)
}

/// Natural logarithm of a weighed sum, 0 at the top octave's foot.
pub fn ln_weight(sum: u64) -> f64 {
    ln(sum as f64) - WEIGHT_BITS * std::f64::consts::LN_2
}

/// Natural logarithm of the weight of `y` itself, where `octave` is the top one.
pub fn ln_scaled(y: f32, octave: i32) -> f64 {
    (f64::from(y) * 0.125 - f64::from(octave)) * std::f64::consts::LN_2
}

/// Natural logarithm of a positive, normal number, to 1e-15 of it, from the four operations alone:
/// ln(m 2^e) = e ln 2 + 2 artanh((m - 1) / (m + 1)).
pub fn ln(x: f64) -> f64 {
    // So that m is between sqrt(1/2) and sqrt(2).
    let bits = x.to_bits().wrapping_sub(0x3fe6_a09e_667f_3bcd);
    let e = f64::from((bits as i64 >> 52) as i32);
    let m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff).wrapping_add(0x3fe6_a09e_667f_3bcd));
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut sum = 1.0 / 21.0;
    for odd in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        sum = sum * z + 1.0 / odd;
    }
    e * std::f64::consts::LN_2 + (s + s) * (sum * z + 1.0)
}

/// A number of 16 bits, IEEE 754 binary16.
#[inline(always)]
pub fn from_f16(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let rest = u32::from(half & 0x7fff);
    let wide = match rest >> 10 {
        // Subnormal: an integer times 2^-24, exact in f32.
        0 => (rest as f32 * (1.0 / 16_777_216.0)).to_bits(),
        31 => 0x7f80_0000 | (rest << 13),
        _ => (rest << 13) + (112 << 23),
    };
    f32::from_bits(sign | wide)
}

/// A number of 16 bits, the upper half of an f32.
#[inline(always)]
pub fn from_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every f32 from -9 to 9 in steps of a few thousand units in the last place, and the edges.
    fn places() -> impl Iterator<Item = f32> {
        let edges = [0.0, -0.0, 0.5, -0.5, 1.5, 4_000_000.0, -4_000_000.0, 1e-40, 7.499_999_5];
        (0..2 * 4_000u32).map(|i| (i as f32 - 4_000.0) * 0.002_25).chain(edges)
    }

    #[test]
    fn bin_and_mass_are_the_power() {
        for y in places() {
            let (n, m) = (bin(y), mass(y));
            assert!((f64::from(y) - f64::from(n)).abs() <= 0.5, "{y}: bin {n}");
            let exact = ((f64::from(y) - f64::from(n)) / 8.0).exp2();
            let error = f64::from(m) / f64::from(MASS_ONE) / exact - 1.0;
            assert!(error.abs() < 4.3e-6, "{y}: mass {m} is {error:e} off");
            assert!((125_515..=136_875).contains(&m), "{y}: {m}");
            let place = f64::from(y) - f64::from(n) + 0.5;
            let moment = f64::from(moment(y)) / f64::from(MASS_ONE);
            assert!((moment - place * exact).abs() < 8.2e-6, "{y}: moment {moment}");
        }
    }

    #[test]
    fn what_has_no_weight_is_far_below() {
        for y in [f32::NEG_INFINITY, f32::MIN, -1e10, -4_194_304.0] {
            assert!(bin(y) < bin(-SCALED_MAX) - BINS as i32);
        }
        // The sums behind the bounds of `weigh`: a vocabulary of the greatest masses fits.
        let all = (1u64 << 18) * 136_875;
        assert!(all.checked_mul(FACTOR[7]).is_some_and(|product| product < 1 << 62));
    }

    #[test]
    fn unweigh_is_the_inverse_of_weigh() {
        for t in [0, 1, 7, 8, 100, 247, 254] {
            for sum in [1u64, 125_515, 999_999_937, (1 << 18) * 136_875] {
                let weight = weigh(t, sum);
                let least = unweigh(t, weight);
                assert!(least <= sum && weigh(t, least) >= weight);
                assert!(least == 0 || weigh(t, least - 1) < weight);
            }
        }
    }

    #[test]
    fn keys_are_in_the_order_of_logits() {
        let ordered = [f32::NEG_INFINITY, -1e30, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1e30];
        assert!(ordered.windows(2).all(|pair| key(pair[0]) < key(pair[1])));
    }

    #[test]
    fn ln_is_the_logarithm() {
        for i in 1..2_000u64 {
            for x in [i as f64, i as f64 * 1e-3, i as f64 * 3.7e15, 1.0 + i as f64 * 1e-9] {
                assert!(
                    (ln(x) - x.ln()).abs() <= 1e-15 * (1.0 + x.ln().abs()),
                    "ln {x}: {}",
                    ln(x)
                );
            }
        }
    }

    #[test]
    fn halves_are_exact() {
        let table = [
            (0x0000, 0.0),
            (0x8000, -0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x0400, 6.103_515_6e-5),
            (0x83ff, -6.097_555e-5),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (half, wide) in table {
            assert_eq!(from_f16(half).to_bits(), f32::to_bits(wide), "{half:#x}");
        }
        assert!(from_f16(0x7e00).is_nan() && from_f16(0xfc01).is_nan());
        assert_eq!(from_bf16(0xc0a0), -5.0);
        assert!(from_bf16(0x7fc0).is_nan());
    }
}
