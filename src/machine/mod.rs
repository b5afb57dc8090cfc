//! This machine: what it is, what else runs on it, and how much that takes.

pub mod environment;
pub mod processes;
