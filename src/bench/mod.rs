//! Load generators and their reports. They measure from outside, as a client does.

mod binary;
#[cfg(feature = "cuda")]
pub mod gpu_sampling;
pub mod load;
pub mod plan;
pub mod report;
