//! The real binary, run as its users run it, each test in a folder and on a port of its own.

mod batch_executor;
mod bench_experiments;
mod bench_load;
mod bench_report;
mod bench_storage;
mod cli;
mod common;
mod gpu;
mod gpu_faults;
mod hostile;
#[cfg(feature = "tls")]
mod https;
mod llama;
mod mpirun;
mod post;
mod schedule;
mod serve;
mod store;
mod store_filer;
mod store_on_filer;
mod weed;
