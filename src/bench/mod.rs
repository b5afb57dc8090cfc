//! Load generators, experiments and their reports. They measure from outside, as a client does.

pub mod arrival;
pub mod chart;
pub mod dataset;
pub mod experiment;
pub mod frontier;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod intervals;
pub mod load;
pub mod outcome;
pub mod page;
pub mod plan;
pub mod record;
pub mod report;
pub mod sample;
pub mod scaling;
pub mod statistics;
pub mod storage;
pub mod workload;
