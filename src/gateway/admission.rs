//! How a request gets a place at a backend, from any core.
//!
//! Core 0 owns the pool. Its own requests ask it directly; those of other cores ask in messages, and are answered in
//! messages. A grant for a request that has meanwhile gone is given back at once.

use std::net::SocketAddr;
use std::time::Duration;

use crate::backend::Failure;
use crate::backend::pool::{Ask, Grant, Health, Outcome, Refusal, Ticket};
use crate::net::Token;
use crate::wire::frame::ErrorCode;

/// The core that owns the pool.
pub const OWNER: usize = 0;
/// How often the owner looks for requests that have waited too long, and tells those that wait where they stand.
pub const TICK: Duration = Duration::from_millis(250);

/// What cores, the prober and the main thread tell each other.
#[derive(Debug)]
pub enum Message {
    /// To the owner: a request asks for a place.
    Acquire(Ask),
    /// To the owner: it asks no longer.
    Withdraw(Ticket),
    /// To the owner: a place is given back.
    Release(Grant, Outcome),
    /// From the owner: the request may go.
    Granted(Grant),
    /// From the owner: it waits.
    Position {
        /// The request.
        request: Token,
        /// Its place, from 1.
        position: u32,
        /// How long it will wait, in milliseconds; 0: not known.
        eta_ms: u32,
    },
    /// From the owner: it may not go.
    Refused {
        /// The request.
        request: Token,
        /// Why.
        refusal: Refusal,
    },
    /// From the prober, to all.
    Health {
        /// The backend.
        backend: usize,
        /// How it is.
        health: Health,
        /// Where it is.
        address: Option<SocketAddr>,
    },
    /// From the main thread, to all: finish what was accepted, take nothing new.
    Drain,
    /// To the owner: a core has finished.
    Gone,
}

/// A refusal as the client is told it.
pub fn failure(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::QueueFull { waiting, retry_after_s } => {
            let message = format!(
                "the queue is full: {waiting} requests wait (--queue); try again in \
                 {retry_after_s} s"
            );
            let mut failure = Failure::request(ErrorCode::Overloaded, message);
            failure.retry_after_s = Some(retry_after_s);
            failure
        }
        Refusal::WaitedTooLong { waited } => {
            let message =
                format!("no slot became free within {} s (--queue-timeout)", waited.as_secs());
            Failure::request(ErrorCode::Deadline, message)
        }
        Refusal::NoneUp { reason } => {
            Failure::backend(ErrorCode::Backend, format!("no backend is up: {reason}"))
        }
    }
}
