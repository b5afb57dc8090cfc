//! Load generators and their reports. They measure from outside, as a client does.

pub mod arrival;
pub mod dataset;
pub mod load;
pub mod plan;
pub mod report;
pub mod sample;
pub mod workload;
