//! A safe function per kernel: it checks lengths and owns the launch's shape.

#[allow(unsafe_code)]
pub mod dequant;
#[allow(unsafe_code)]
pub mod embedding;
#[allow(unsafe_code)]
pub mod probe;
#[allow(unsafe_code)]
pub mod search;

/// Blocks of 256 threads that keep a card busy, where a kernel strides over the rest.
const BLOCKS_OF_MULTIPROCESSOR: u32 = 16;

/// So many blocks as the work has, and no more than that.
fn blocks(work: u64, multiprocessors: u32) -> u32 {
    let most = u64::from(multiprocessors) * u64::from(BLOCKS_OF_MULTIPROCESSOR);
    u32::try_from(work.clamp(1, most)).expect("a card has few multiprocessors")
}
