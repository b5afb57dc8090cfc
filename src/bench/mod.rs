//! Load generators and their reports. They measure from outside, as a client does.

mod binary;
pub mod load;
pub mod plan;
pub mod report;
