//! What is done with a model's numbers: the operations, and their twins on the CPU.
//!
//! A GPU may do the same (`cuda`), and then gives the same bits: each operation here says in which
//! order it adds, and none leaves a rounding to the compiler.

pub mod embedding;
pub mod matrix;
pub mod nearest;
pub mod npy;
pub mod philox;
pub mod plan;
pub mod quant;
pub mod sampling;
pub mod simd;
pub mod sums;
pub mod threads;
pub mod weight;
