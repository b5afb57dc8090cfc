//! The kernels of a card: held against their twins, and measured.
//!
//! `check` compares bits over random shapes. `measure` has the times: of events of the card around
//! graph replays over inputs that together do not fit in its cache, and of the host's clock where
//! the host's share is the question. All shares are of a copy on the card measured in the same run,
//! read and written bytes counted.

pub mod check;
pub mod check_sampling;
pub mod figures;
pub mod kernels;
pub mod measure;
pub mod measure_sampling;
pub mod sampling;
pub mod transfers;
