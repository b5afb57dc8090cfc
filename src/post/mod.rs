//! What is done with a model's numbers once they are there: a token is drawn from logits.
//!
//! Everything here is the definition and runs on the CPU. `cuda` has a kernel beside each
//! operation, which gives the same bits; which of the two did the work cannot be told from the
//! result.

pub mod philox;
pub mod sampling;
pub mod weight;
