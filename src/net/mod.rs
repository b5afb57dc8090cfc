//! The only place with file descriptors: an epoll poller, non-blocking TCP, timers, slabs and the
//! mesh between cores. It knows no protocol.
//!
//! A loop's turn is: wait, read (with a budget for each connection), step the machines, flush, fire
//! timers.

pub mod diag;
pub mod heap;
pub mod mesh;
pub mod poller;
pub mod reactor;
pub mod slab;
pub mod socket;
pub mod timer;
pub mod waker;

pub use mesh::{Port, mesh};
pub use poller::{Poller, Readiness};
pub use reactor::Reactor;
pub use slab::{Slab, Token};
pub use timer::Timers;
pub use waker::Waker;
