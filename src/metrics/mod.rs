//! What is counted: per core and unshared, read by whoever scrapes.

pub mod counter;
pub mod durations;
pub mod interval_log;
pub mod prometheus;

pub use counter::{Counter, Gauge, LatencyHistogram};
pub use durations::Durations;
