//! The real binary, run as its users run it, each test in a folder and on a port of its own.

mod batch_executor;
mod cli;
mod common;
mod gpu;
mod hostile;
mod llama;
mod mpirun;
mod post;
mod schedule;
mod serve;
