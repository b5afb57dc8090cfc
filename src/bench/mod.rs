//! Load generators, experiments and their reports. They measure from outside, as a client does.

mod binary;
pub mod chart;
pub mod environment;
pub mod experiment;
pub mod load;
pub mod page;
pub mod plan;
pub mod processes;
pub mod record;
pub mod report;
pub mod scaling;
pub mod statistics;
