//! Where a block lies in memory that was taken at the start: size classes over slabs. Pure: it
//! hands out places, and knows no address.
//!
//! ```text
//! slab 0  | block | free | block |  never used yet ->        |
//! slab 1  | block                |  never used yet ->        |
//! classes   2^k * {1, 1.25, 1.5, 1.75}, from 256 bytes: at most a fifth of a block is unused
//! ```
//!
//! A block that comes back waits in its class's list, so what a loop needs in its second turn it
//! gets in tens of nanoseconds and without the driver. When nothing fits, slabs without a block in
//! use are forgotten first (`reclaim`).
//!
//! Invariant: blocks of a slab never overlap, and each lies inside it.

/// Smallest block, and what each begins at a multiple of: what the driver aligns to, too.
pub const BLOCK_BYTES_MIN: usize = 256;
const CLASSES: usize = 4 * 40;

/// A place in a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The slab.
    pub slab: u32,
    class: u32,
    /// Where it begins, in bytes.
    pub offset: usize,
}

impl Block {
    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        class_bytes(self.class as usize)
    }
}

#[derive(Clone, Debug)]
struct Slab {
    bytes: usize,
    /// Bytes from the start that blocks were cut from.
    used: usize,
    /// Blocks in use.
    live: usize,
}

/// The slabs of one pool.
#[derive(Clone, Debug)]
pub struct Slabs {
    slabs: Vec<Option<Slab>>,
    free: Vec<Vec<Block>>,
    in_use: usize,
    high_water: usize,
}

impl Default for Slabs {
    fn default() -> Slabs {
        Slabs { slabs: Vec::new(), free: vec![Vec::new(); CLASSES], in_use: 0, high_water: 0 }
    }
}

impl Slabs {
    /// A place for so many bytes; `None`: a slab must be added first.
    pub fn take(&mut self, bytes: usize) -> Option<Block> {
        let class = class(bytes)?;
        let block = self.free[class].pop().or_else(|| self.cut(class))?;
        self.slabs[block.slab as usize].as_mut().expect("a block's slab is there").live += 1;
        self.in_use += block.bytes();
        self.high_water = self.high_water.max(self.in_use);
        Some(block)
    }

    fn cut(&mut self, class: usize) -> Option<Block> {
        let bytes = class_bytes(class);
        for (index, slab) in self.slabs.iter_mut().enumerate() {
            let Some(slab) = slab else { continue };
            if slab.bytes - slab.used >= bytes {
                let offset = slab.used;
                slab.used += bytes;
                return Some(Block { slab: index as u32, class: class as u32, offset });
            }
        }
        None
    }

    /// Takes a block back.
    pub fn give(&mut self, block: Block) {
        let slab = self.slabs[block.slab as usize].as_mut().expect("a block's slab is there");
        assert!(slab.live > 0, "a block comes back once");
        slab.live -= 1;
        self.in_use -= block.bytes();
        self.free[block.class as usize].push(block);
    }

    /// Adds a slab, and returns its number.
    pub fn add(&mut self, bytes: usize) -> u32 {
        let slab = Some(Slab { bytes, used: 0, live: 0 });
        let index = self.slabs.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slabs.push(None);
            self.slabs.len() - 1
        });
        self.slabs[index] = slab;
        u32::try_from(index).expect("slabs are few")
    }

    /// What a slab must have at least to hold so many bytes; `None`: no slab is that large.
    pub fn needed(bytes: usize) -> Option<usize> {
        class(bytes).map(class_bytes)
    }

    /// Makes one of the free blocks of each slab that has none in use.
    pub fn reclaim(&mut self) -> bool {
        let mut found = false;
        for index in 0..self.slabs.len() {
            if self.slabs[index].as_ref().is_some_and(|slab| slab.live == 0 && slab.used > 0) {
                self.forget_blocks(index);
                found = true;
            }
        }
        found
    }

    /// Removes the slabs that have no block in use, and returns their numbers.
    pub fn remove_idle(&mut self) -> Vec<u32> {
        let mut removed = Vec::new();
        for index in 0..self.slabs.len() {
            if self.slabs[index].as_ref().is_some_and(|slab| slab.live == 0) {
                self.forget_blocks(index);
                self.slabs[index] = None;
                removed.push(index as u32);
            }
        }
        removed
    }

    fn forget_blocks(&mut self, index: usize) {
        for list in &mut self.free {
            list.retain(|block| block.slab as usize != index);
        }
        if let Some(slab) = &mut self.slabs[index] {
            slab.used = 0;
        }
    }

    /// Bytes of blocks in use.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// The most that `in_use` ever was.
    pub fn high_water(&self) -> usize {
        self.high_water
    }
}

/// Class of a size: two bits below the leading one, rounded up.
fn class(bytes: usize) -> Option<usize> {
    let units = bytes.div_ceil(BLOCK_BYTES_MIN).max(1);
    let class = if units <= 4 {
        // 1, 2, 3, 4 units: 256, 512, 768, 1024 bytes.
        [0, 4, 6, 8][units - 1]
    } else {
        let power = (units - 1).ilog2() as usize;
        let quarter = 1usize << (power - 2);
        let steps = (units - (1usize << power)).div_ceil(quarter);
        4 * power + steps
    };
    (class < CLASSES).then_some(class)
}

fn class_bytes(class: usize) -> usize {
    let (power, steps) = (class / 4, class % 4);
    let bytes = BLOCK_BYTES_MIN << power;
    bytes + steps * (bytes / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn classes_hold_what_they_are_asked_for() {
        for bytes in (0..100_000).chain([1 << 30, (1 << 30) + 1, (5 << 30) + 7]) {
            let size = class_bytes(class(bytes).unwrap());
            assert!(size >= bytes && size.is_multiple_of(256), "{bytes}: {size}");
            assert!(size <= bytes.max(205) + bytes / 4 + 255, "{bytes}: {size}");
        }
        assert_eq!(class(usize::MAX), None);
        assert_eq!(Slabs::needed(257), Some(512));
    }

    #[test]
    fn what_came_back_serves_again() {
        let mut slabs = Slabs::default();
        assert_eq!(slabs.take(1), None);
        slabs.add(1024);
        let blocks: Vec<Block> = (0..4).map(|_| slabs.take(256).unwrap()).collect();
        assert_eq!((slabs.take(1), slabs.in_use()), (None, 1024));
        slabs.give(blocks[2]);
        assert_eq!(slabs.take(100), Some(blocks[2]));
        blocks.iter().for_each(|block| slabs.give(*block));
        assert_eq!((slabs.take(1024), slabs.reclaim()), (None, true));
        let whole = slabs.take(1024).unwrap();
        assert_eq!((whole.offset, slabs.high_water()), (0, 1024));
        assert!(slabs.remove_idle().is_empty());
        slabs.give(whole);
        assert_eq!((slabs.remove_idle(), slabs.take(1)), (vec![0], None));
        assert_eq!(slabs.add(512), 0);
    }

    proptest! {
        #[test]
        fn blocks_in_use_never_overlap(
            steps in prop::collection::vec((0usize..6000, any::<bool>()), 1..200)
        ) {
            let mut slabs = Slabs::default();
            let mut live: Vec<Block> = Vec::new();
            for (bytes, is_take) in steps {
                if is_take || live.is_empty() {
                    let block = match slabs.take(bytes) {
                        Some(block) => block,
                        None => {
                            slabs.reclaim();
                            slabs.add(Slabs::needed(bytes).unwrap().max(8192));
                            slabs.take(bytes).unwrap()
                        }
                    };
                    prop_assert!(block.bytes() >= bytes);
                    for other in &live {
                        let apart = block.offset + block.bytes() <= other.offset
                            || other.offset + other.bytes() <= block.offset;
                        prop_assert!(apart || block.slab != other.slab);
                    }
                    live.push(block);
                } else {
                    slabs.give(live.swap_remove(bytes % live.len()));
                }
                let sum: usize = live.iter().map(Block::bytes).sum();
                prop_assert_eq!(slabs.in_use(), sum);
            }
        }
    }
}
