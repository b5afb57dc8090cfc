//! Experiments: what is varied, in which order runs are made, what may be concluded from them.
//!
//! The core is pure (`space`, `order`, `hypothesis`, `gaussian`, `tune`, `compare`): numbers in,
//! numbers out, randomness from a seed. `child` starts and ends processes, `journal` keeps what has
//! been measured.
//!
//! Runs are made in blocks, each setting once in each, in random order; every second block is the
//! mirror of the one before it. What drifts slowly drops out of differences within a block, and
//! what drifts along a block drops out of a block and its mirror.

pub mod child;
pub mod compare;
pub mod gaussian;
pub mod guard;
pub mod hypothesis;
pub mod journal;
pub mod order;
pub mod space;
pub mod table;
pub mod template;
pub mod tune;
