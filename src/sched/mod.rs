//! The scheduler: ranks that share out work by stealing, without a master.
//!
//! A job is a mass of tasks (rows of a file, or numbers) that is known or grows at rank 0 only.
//! Each rank holds some of it: spans that nobody has read yet, a window of tasks that were read and
//! stand longest first, and what its workers have in hand. A rank that runs short asks another
//! (`steal`); a rank whose asking found nothing leaves word with a few, and is given work when one
//! of them has it to spare. The job is over when the masses done, summed up a tree, are the whole
//! (`quiesce`).
//!
//! ```text
//!   Source --read--> Queue (window, spans) --take--> deques of the workers --> Executor
//!                      ^  |                                                      |
//!                Give  |  | Ask, Hunger                            Completion <--'
//!                      |  v
//!                    Fabric: local (threads) | mpi (processes) | sim (virtual time)
//! ```
//!
//! `rank::Core` is pure: it is handed moments, messages and completions. `driver` gives it threads
//! and descriptors, `sim` a virtual world; both run the same code.

pub mod collect;
pub mod cost;
pub mod driver;
pub mod executor;
pub mod fabric;
mod figures;
pub mod launcher;
mod ledger;
pub mod local;
pub mod message;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod progress;
pub mod queue;
pub mod quiesce;
pub mod rank;
pub mod report;
pub mod sim;
pub mod sleep;
pub mod steal;
mod summary;
pub mod tally;
pub mod tasks;
pub mod worker;
pub mod workload;
