//! A batch: rows of a file in, result lines out.
//!
//! `row` and `result` are the two formats (OpenAI's Batch API,
//! platform.openai.com/docs/guides/batch), `input` the rows' side of the scheduler's `Source`,
//! `journal` where results go as they come, `merge` what makes one output of the journal's parts,
//! and `executor` what sends rows to servers.

pub mod attempt;
mod binary;
pub mod executor;
pub mod factory;
mod ledger;
pub mod result;
pub mod retry;
pub mod row;
pub mod servers;
pub mod watch;
