//! Counter-based randomness: any draw of any stream, with no state to carry or to share.

/// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
/// SC 2011): four random words that `counter` and `key` determine wholly.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(0x9e37_79b9), k[1].wrapping_add(0xbb67_ae85)];
        }
        let a = u64::from(c[0]) * 0xd251_1f53;
        let b = u64::from(c[2]) * 0xcd9e_8d57;
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
    }
    c
}

/// Two random numbers of 64 bits for one draw: `seed` is the key; `stream` tells sequences apart,
/// `step` the tokens of one, `attempt` the draws for one token.
pub fn draw(seed: u64, stream: u64, step: u32, attempt: u32) -> (u64, u64) {
    let counter = [attempt, step, stream as u32, (stream >> 32) as u32];
    let words = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    (join(words[0], words[1]), join(words[2], words[3]))
}

/// A number below `bound`, which is not 0, from 64 random bits; the bias is below `bound` / 2^64.
pub fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_vectors() {
        // The authors' own table (Random123, kat_vectors).
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn every_part_of_the_name_counts() {
        let first = draw(1, 2, 3, 0);
        for other in [draw(2, 2, 3, 0), draw(1, 3, 3, 0), draw(1, 2, 4, 0), draw(1, 2, 3, 1)] {
            assert_ne!(first, other);
        }
        assert_eq!(first, draw(1, 2, 3, 0));
        assert!(
            below(u64::MAX, 7) == 6 && below(0, 7) == 0 && below(u64::MAX, u64::MAX) < u64::MAX
        );
    }
}
