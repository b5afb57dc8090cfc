//! What is counted: per core and unshared, read by whoever scrapes.

pub mod counter;
pub mod prometheus;

pub use counter::{Counter, Gauge, LatencyHistogram};
