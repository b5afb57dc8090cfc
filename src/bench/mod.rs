//! Load generators, experiments and their reports. They measure from outside, as a client does.

mod binary;
pub mod environment;
#[cfg(feature = "cuda")]
pub mod gpu;
#[cfg(feature = "cuda")]
pub mod gpu_sampling;
pub mod load;
pub mod plan;
pub mod processes;
pub mod record;
pub mod report;
pub mod statistics;
