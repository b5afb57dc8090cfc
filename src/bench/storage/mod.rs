//! `bench storage`: how fast the store hashes, puts, gets and verifies, as a share of what the
//! machine can do at all.
//!
//! ```text
//! flags --plan--> settings --order--> runs by the bed (files, store, cache; page cache cold, warm)
//!                                       └--figures--> medians, intervals, shares of limits
//! ```
//!
//! `plan` and `figures` are pure. `bed` owns the files and does the runs, by the store's own calls;
//! `resident` asks the kernel what of a file is in memory.

pub mod bed;
pub mod figures;
pub mod plan;
pub mod resident;
