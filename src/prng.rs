//! Seeded randomness: the same seed gives the same numbers on every machine. Not for secrets.

/// xoshiro256++ by Blackman and Vigna (prng.di.unimi.it), seeded through SplitMix64 as its authors
/// advise.
#[derive(Clone, Debug)]
pub struct Prng {
    state: [u64; 4],
}

impl Prng {
    /// A generator that `seed` determines wholly.
    pub fn new(seed: u64) -> Prng {
        let mut x = seed;
        Prng { state: std::array::from_fn(|_| splitmix64(&mut x)) }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Below `bound`, which is not 0; the bias of at most bound / 2^64 does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        debug_assert!(bound > 0);
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// In `[0, 1)`, 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// One step of SplitMix64 (Steele, Lea and Flood, 2014): also a fine mixer of 64 bits.
pub fn splitmix64(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *x;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 64 bits that depend on every byte of `bytes` and on `seed` (FNV-1a, then mixed). Not for
/// adversaries.
pub fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325 ^ seed;
    for &byte in bytes {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    splitmix64(&mut h)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_vectors() {
        // SplitMix64 from seed 0: the first value of the authors' own program.
        let mut x = 0;
        assert_eq!(splitmix64(&mut x), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn ranges_hold() {
        let mut prng = Prng::new(1);
        let mut sum = 0.0;
        for _ in 0..10_000 {
            assert!(prng.below(7) < 7);
            let unit = prng.unit();
            assert!((0.0..1.0).contains(&unit));
            sum += prng.normal();
        }
        assert!(sum.abs() < 400.0, "normal is not centred: {sum}");
    }

    #[test]
    fn a_seed_repeats_itself() {
        let (mut a, mut b) = (Prng::new(42), Prng::new(42));
        assert!((0..100).all(|_| a.next_u64() == b.next_u64()));
    }
}
