//! In which order the settings of a block are run.

use crate::prng::{Prng, splitmix64};

/// The order of a block's settings: random, and in every second block the mirror of the block
/// before it. The seed alone determines it, so that an experiment that goes on keeps its plan.
pub fn of_block(settings: usize, block: u32, seed: u64) -> Vec<usize> {
    let mut of_pair = seed ^ (u64::from(block / 2)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut prng = Prng::new(splitmix64(&mut of_pair));
    let mut order: Vec<usize> = (0..settings).collect();
    // Fisher and Yates.
    for last in (1..settings).rev() {
        order.swap(last, prng.below(last as u64 + 1) as usize);
    }
    if block % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_random_and_mirrored() {
        for settings in [0, 1, 2, 7] {
            for block in (0..20).step_by(2) {
                let order = of_block(settings, block, 5);
                let mut mirror = of_block(settings, block + 1, 5);
                mirror.reverse();
                assert_eq!(order, mirror);
                mirror.sort_unstable();
                assert_eq!(mirror, (0..settings).collect::<Vec<_>>());
            }
        }
        let first = (0..200).filter(|pair| of_block(2, 2 * pair, 9)[0] == 0).count();
        assert!((70..=130).contains(&first), "{first}");
        assert_ne!(of_block(9, 0, 1), of_block(9, 2, 1));
    }
}
