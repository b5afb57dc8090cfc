//! Load generators and their reports. They measure from outside, as a client does.

mod binary;
pub mod chart;
pub mod load;
pub mod plan;
pub mod report;
