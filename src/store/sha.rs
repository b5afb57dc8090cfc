//! SHA-256 (FIPS 180-4) of bytes that come in pieces, and of the same bytes into two digests at
//! once: a part's, and that of the whole file up to there.
//!
//! A processor's SHA instructions wait for each other: each round needs the one before, and takes
//! twice as long as the processor needs to start the next. So a second digest fits into the gaps of
//! the first, and the message schedule, which depends on the bytes alone, is made once for both:
//! two digests cost what one does. Where there are no such instructions (or others than x86's)
//! nothing is gained, and `is_pair_free` says so. A single digest is the library's.
//!
//! Instructions: Intel, "Intel SHA Extensions", 2013; AMD64 Architecture Programmer's Manual 4.
#![allow(unsafe_code)]

use sha2::digest::consts::U64;
use sha2::digest::generic_array::GenericArray;

use super::digest::Digest;

/// Hashes bytes that come in pieces.
#[derive(Clone, Debug)]
pub struct Hasher {
    state: [u32; 8],
    /// Bytes that came, those in `held` too.
    bytes: u64,
    /// The beginning of a block that is not whole yet.
    held: [u8; BLOCK_BYTES],
}

const BLOCK_BYTES: usize = 64;

/// The first bits behind the point of the square roots of the first 8 primes (5.3.3).
#[rustfmt::skip]
const START: [u32; 8] = [
    0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a,
    0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19,
];

impl Default for Hasher {
    fn default() -> Hasher {
        Hasher { state: START, bytes: 0, held: [0; BLOCK_BYTES] }
    }
}

impl Hasher {
    /// Of no bytes yet.
    pub fn new() -> Hasher {
        Hasher::default()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let (blocks, rest) = self.fill(bytes).as_chunks();
        self.compress(blocks);
        self.hold(rest);
    }

    /// Takes the next bytes into two digests.
    pub fn update_both(&mut self, other: &mut Hasher, bytes: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        if self.held_bytes() == 0 && other.held_bytes() == 0 && is_pair_free() {
            let (blocks, rest) = bytes.as_chunks();
            // SAFETY: the processor has the instructions.
            unsafe { x86::compress_both(&mut self.state, &mut other.state, blocks) };
            for hasher in [self, other] {
                hasher.bytes += (blocks.len() * BLOCK_BYTES) as u64;
                hasher.hold(rest);
            }
            return;
        }
        self.update(bytes);
        other.update(bytes);
    }

    /// The digest of all that came: behind the bytes go a one, zeros, and the length in bits as the
    /// last 8 bytes of a block (5.1.1).
    pub fn finish(mut self) -> Digest {
        let bits = self.bytes * 8;
        let zeros = (BLOCK_BYTES + 55 - self.held_bytes()) % BLOCK_BYTES;
        let mut padding = [0; 2 * BLOCK_BYTES];
        padding[0] = 0x80;
        padding[1 + zeros..][..8].copy_from_slice(&bits.to_be_bytes());
        self.update(&padding[..1 + zeros + 8]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        Digest(digest)
    }

    fn held_bytes(&self) -> usize {
        (self.bytes % BLOCK_BYTES as u64) as usize
    }

    /// Completes the block that is held, if there is one; what is left of the bytes comes back.
    fn fill<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let held = self.held_bytes();
        if held == 0 {
            return bytes;
        }
        let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - held));
        self.held[held..][..now.len()].copy_from_slice(now);
        if held + now.len() < BLOCK_BYTES {
            self.bytes += now.len() as u64;
            return rest;
        }
        // What was held is counted again with its block.
        self.bytes -= held as u64;
        let block = self.held;
        self.compress(&[block]);
        rest
    }

    /// Keeps less than a block.
    fn hold(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            return;
        }
        self.held[..rest.len()].copy_from_slice(rest);
        self.bytes += rest.len() as u64;
    }

    fn compress(&mut self, blocks: &[[u8; BLOCK_BYTES]]) {
        // SAFETY: a `GenericArray` of 64 bytes is those 64 bytes: it is `repr(transparent)`.
        let of_library: &[GenericArray<u8, U64>] =
            unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len()) };
        sha2::compress256(&mut self.state, of_library);
        self.bytes += (blocks.len() * BLOCK_BYTES) as u64;
    }
}

/// Whether two digests of the same bytes cost what one does.
pub fn is_pair_free() -> bool {
    #[cfg(test)]
    if tests::PAIR_COSTS.get() {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi64x,
        _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
        _mm_shuffle_epi32, _mm_storeu_si128,
    };

    /// The first bits behind the point of the cube roots of the first 64 primes (4.2.2).
    #[rustfmt::skip]
    const K: [u32; 64] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
        0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
        0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
        0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
        0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
        0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
        0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
        0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ];

    /// A state as the instructions want it: a, b, e, f and c, d, g, h, the first the highest.
    type Halves = (__m128i, __m128i);

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn load(state: &[u32; 8]) -> Halves {
        // SAFETY: 32 bytes are there.
        let (low, high) = unsafe {
            let at: *const __m128i = state.as_ptr().cast();
            (_mm_loadu_si128(at), _mm_loadu_si128(at.add(1)))
        };
        let cdab = _mm_shuffle_epi32::<0xb1>(low);
        let efgh = _mm_shuffle_epi32::<0x1b>(high);
        (_mm_alignr_epi8::<8>(cdab, efgh), _mm_blend_epi16::<0xf0>(efgh, cdab))
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn store(state: &mut [u32; 8], (abef, cdgh): Halves) {
        let feba = _mm_shuffle_epi32::<0x1b>(abef);
        let dchg = _mm_shuffle_epi32::<0xb1>(cdgh);
        let (low, high) = (_mm_blend_epi16::<0xf0>(feba, dchg), _mm_alignr_epi8::<8>(dchg, feba));
        // SAFETY: there is room for 32 bytes.
        unsafe {
            let at: *mut __m128i = state.as_mut_ptr().cast();
            _mm_storeu_si128(at, low);
            _mm_storeu_si128(at.add(1), high);
        }
    }

    /// Four rounds of a state, with their words and constants summed.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn rounds((abef, cdgh): Halves, words: __m128i) -> Halves {
        let next = _mm_sha256rnds2_epu32(cdgh, abef, words);
        let high = _mm_shuffle_epi32::<0x0e>(words);
        (_mm_sha256rnds2_epu32(abef, next, high), next)
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn add(a: Halves, b: Halves) -> Halves {
        (_mm_add_epi32(a.0, b.0), _mm_add_epi32(a.1, b.1))
    }

    /// The next four words of the schedule, from the sixteen before.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn schedule(w: [__m128i; 4]) -> __m128i {
        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[0], w[1]), _mm_alignr_epi8::<4>(w[3], w[2]));
        _mm_sha256msg2_epu32(sum, w[3])
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    pub fn compress_both(a: &mut [u32; 8], b: &mut [u32; 8], blocks: &[[u8; 64]]) {
        let (mut of_a, mut of_b) = (load(a), load(b));
        let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        for block in blocks {
            let (before_a, before_b) = (of_a, of_b);
            let words = |index: usize| {
                // SAFETY: four times 16 bytes are in a block.
                let bytes = unsafe { _mm_loadu_si128(block.as_ptr().cast::<__m128i>().add(index)) };
                _mm_shuffle_epi8(bytes, big_endian)
            };
            let mut w = [words(0), words(1), words(2), words(3)];
            for (group, constants) in K.as_chunks::<4>().0.iter().enumerate() {
                // SAFETY: 16 bytes are there.
                let constants = unsafe { _mm_loadu_si128(constants.as_ptr().cast()) };
                let sum = _mm_add_epi32(w[0], constants);
                (of_a, of_b) = (rounds(of_a, sum), rounds(of_b, sum));
                let next = if group < 12 { schedule(w) } else { w[0] };
                w = [w[1], w[2], w[3], next];
            }
            (of_a, of_b) = (add(of_a, before_a), add(of_b, before_b));
        }
        store(a, of_a);
        store(b, of_b);
    }
}

#[cfg(test)]
#[allow(missing_docs)]
pub mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;

    thread_local! {
        /// As on a processor without the instructions.
        pub static PAIR_COSTS: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs a test as on a processor with SHA instructions, and as on one without.
    pub fn each_way_of_hashing(test: impl Fn()) {
        for costs in [false, true] {
            PAIR_COSTS.set(costs);
            test();
        }
        PAIR_COSTS.set(false);
    }

    fn library(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    proptest! {
        /// However the bytes are cut, and whatever went into one of the two before.
        #[test]
        fn each_digest_is_the_librarys(
            before in prop::collection::vec(any::<u8>(), 0..300),
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..6),
            are_whole_blocks in any::<bool>(),
        ) {
            let whole_blocks = before.len() / BLOCK_BYTES * BLOCK_BYTES;
            let before = &before[..if are_whole_blocks { whole_blocks } else { before.len() }];
            let (mut whole, mut part, mut alone) = (Hasher::new(), Hasher::new(), Hasher::new());
            whole.update(before);
            for piece in &pieces {
                whole.update_both(&mut part, piece);
                alone.update(piece);
            }
            let bytes = pieces.concat();
            prop_assert_eq!(part.finish(), library(&bytes));
            prop_assert_eq!(alone.finish(), library(&bytes));
            prop_assert_eq!(whole.finish(), library(&[before, &bytes].concat()));
        }
    }

    #[test]
    fn every_length_around_a_block() {
        let bytes: Vec<u8> = (0..200).collect();
        for len in 0..bytes.len() {
            let mut hasher = Hasher::new();
            hasher.update(&bytes[..len]);
            assert_eq!(hasher.finish(), library(&bytes[..len]), "{len}");
        }
    }
}
