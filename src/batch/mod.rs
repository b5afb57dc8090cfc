//! A batch: rows of a file in, result lines out.
//!
//! `row` and `result` are the two formats (OpenAI's Batch API,
//! platform.openai.com/docs/guides/batch), `input` the rows' side of the scheduler's `Source`,
//! `spool` the file that rows from a pipe become, `journal` where results go as they come,
//! `recorded` what earlier runs left there, `merge` what makes one output of the journal's parts,
//! `validate` a look at the whole input beforehand, and `executor` what sends rows to servers.
//!
//! ```text
//!   input --Source--> executor --> journal: <output>.parts/part-*.jsonl --merge--> output, errors
//!      ^                                        |
//!      '------ done: rows not asked again ------'  recorded, at the start of the next run
//! ```

pub mod attempt;
mod binary;
pub mod error;
pub mod executor;
pub mod factory;
pub mod input;
pub mod journal;
mod ledger;
mod lines;
pub mod matrix;
pub mod merge;
pub mod recorded;
pub mod result;
pub mod retry;
pub mod row;
pub mod servers;
pub mod setup;
pub mod ship;
pub mod spool;
pub mod validate;
pub mod watch;

pub use error::Error;

#[cfg(test)]
use tests::test_folder;

#[cfg(test)]
mod tests;
