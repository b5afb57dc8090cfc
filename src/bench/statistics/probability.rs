//! The few distributions that intervals are made of.

/// Φ: the chance that a standard normal is at most `x`, to 1e-7 (from the Chebyshev fit of the
/// complementary error function in Press et al., "Numerical Recipes", 2007, section 6.2.2).
pub fn normal_cdf(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    const TERMS: [f64; 9] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_87,
        -1.135_203_98,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_68,
    ];
    let polynomial = TERMS.iter().fold(0.0, |sum, term| sum * t + term);
    let tail = t * (-z * z - 1.265_512_23 + t * polynomial).exp() / 2.0;
    if x > 0.0 { 1.0 - tail } else { tail }
}

/// The standard normal's density.
pub fn normal_density(x: f64) -> f64 {
    (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// The value that a standard normal is under with chance `p`; infinite at 0 and 1.
pub fn normal_quantile(p: f64) -> f64 {
    solve(p, normal_cdf)
}

/// The chance that Student's t of `freedom` degrees is at most `t`.
pub fn student_cdf(t: f64, freedom: f64) -> f64 {
    let tail = beta_cdf(freedom / (freedom + t * t), freedom / 2.0, 0.5) / 2.0;
    if t > 0.0 { 1.0 - tail } else { tail }
}

/// The value that Student's t of `freedom` degrees is under with chance `p`.
pub fn student_quantile(p: f64, freedom: f64) -> f64 {
    solve(p, |t| student_cdf(t, freedom))
}

/// The chance of at most `k` successes in `n` trials of chance `p` each; `n` may be a fraction, as
/// the effective number of dependent trials is.
pub fn binomial_cdf(k: f64, n: f64, p: f64) -> f64 {
    if k < 0.0 {
        return 0.0;
    }
    if k >= n {
        return 1.0;
    }
    beta_cdf(1.0 - p, n - k, k + 1.0)
}

/// The regularised incomplete beta function I_x(a, b), which is the beta distribution's cumulative
/// one: its continued fraction (DLMF 8.17.22) by Lentz's method.
pub fn beta_cdf(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges fast on this side of the mean only.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta_cdf(1.0 - x, b, a);
    }
    let scale = a * x.ln() + b * (-x).ln_1p() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b);
    const TINY: f64 = 1e-300;
    const STEPS_MAX: u32 = 10_000; // about the root of the larger of a and b are needed
    let away = |value: f64| if value.abs() < TINY { TINY } else { value };
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for step in 1..=STEPS_MAX {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            change = c * d;
            fraction *= change;
        }
        if (change - 1.0).abs() < 1e-13 {
            break;
        }
    }
    (scale.exp() * fraction / a).clamp(0.0, 1.0)
}

/// The logarithm of the gamma function for `x` over 0 (C. Lanczos, 1964, with the coefficients for
/// g = 5 and six terms).
fn ln_gamma(x: f64) -> f64 {
    const TERMS: [f64; 6] = [
        76.180_091_729_471_46,
        -86.505_320_329_416_77,
        24.014_098_240_830_91,
        -1.231_739_572_450_155,
        0.001_208_650_973_866_179,
        -0.000_005_395_239_384_953,
    ];
    let base = x + 5.5;
    let mut at = x;
    let sum = TERMS.iter().fold(1.000_000_000_190_015, |sum, term| {
        at += 1.0;
        sum + term / at
    });
    (x + 0.5) * base.ln() - base + (2.506_628_274_631_000_5 * sum / x).ln()
}

/// Where a rising function from the whole line to 0..1 has the value `p`.
fn solve(p: f64, cdf: impl Fn(f64) -> f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return if p <= 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    let (mut low, mut high) = (-1.0, 1.0);
    while cdf(low) > p && low > -1e9 {
        low *= 2.0;
    }
    while cdf(high) < p && high < 1e9 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if high - low <= 1e-12 * middle.abs().max(1.0) {
            break;
        }
        if cdf(middle) < p { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // Tables of the normal, of Student's t (df, p, t) and of the binomial.
        for (p, x) in [(0.5, 0.0), (0.975, 1.959_964), (0.8, 0.841_621), (0.001, -3.090_232)] {
            assert!((normal_quantile(p) - x).abs() < 2e-5, "{p}");
        }
        for (freedom, p, t) in
            [(1.0, 0.975, 12.706_2), (4.0, 0.975, 2.776_445), (30.0, 0.995, 2.749_996)]
        {
            assert!((student_quantile(p, freedom) / t - 1.0).abs() < 1e-5, "{freedom}");
            assert!((student_quantile(1.0 - p, freedom) / -t - 1.0).abs() < 1e-5, "{freedom}");
        }
        for (k, n, p, chance) in [
            (2.0, 10.0, 0.5, 0.054_687_5),
            (0.0, 10.0, 0.1, 0.348_678_44),
            (990.0, 1_000.0, 0.99, 0.542_699_41),
            (10.0, 10.0, 0.3, 1.0),
            (-1.0, 10.0, 0.3, 0.0),
        ] {
            assert!((binomial_cdf(k, n, p) - chance).abs() < 1e-6, "{k} of {n}");
        }
    }

    #[test]
    fn large_counts_come_near_the_normal() {
        let n = 1e7;
        let k = n * 0.99 + 1.96 * (n * 0.99 * 0.01_f64).sqrt();
        assert!((binomial_cdf(k, n, 0.99) - 0.975).abs() < 1e-3);
        assert!((student_quantile(0.975, 1e6) - 1.96).abs() < 1e-3);
    }
}
