//! Connection machines without I/O, for both ends of both protocols: bytes and moments in, events
//! and bytes out.
//!
//! Every machine is fed in steps: `receive` looks at the start of the input and says how much of it
//! is used up and what that was. Its caller calls again with the rest until nothing is consumed and
//! nothing happened; what is left then is presented again with more behind it. Events borrow from
//! the input, so text is not copied on its way.

pub mod binary_client;
pub mod binary_server;
pub mod detect;
pub mod http_client;
pub mod http_server;
mod open_stream;
mod output;

pub use open_stream::{Finish, Flow};

use crate::limits::HTTP_HEAD_BYTES_MAX;
use crate::wire::http1::HttpError;

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<E> {
    /// Bytes of the input that are used up.
    pub consumed: usize,
    /// What they were, if they completed something.
    pub event: Option<E>,
}

impl<E> Step<E> {
    const NONE: Step<E> = Step { consumed: 0, event: None };

    fn event(consumed: usize, event: E) -> Step<E> {
        Step { consumed, event: Some(event) }
    }

    /// Whether more input is needed.
    pub fn is_stuck(&self) -> bool {
        self.consumed == 0 && self.event.is_none()
    }
}

/// The length of the head at the start of `input`, its blank line included. `scanned` says how much
/// was looked at before, so that a head that comes in single bytes costs no more than one that
/// comes whole.
fn head_end(input: &[u8], scanned: &mut usize) -> Result<Option<usize>, HttpError> {
    let from = scanned.saturating_sub(3);
    let window = &input[..input.len().min(HTTP_HEAD_BYTES_MAX)];
    let blank = window.get(from..).and_then(|tail| tail.windows(4).position(|w| w == b"\r\n\r\n"));
    match blank {
        Some(at) => {
            *scanned = 0;
            Ok(Some(from + at + 4))
        }
        None if window.len() == HTTP_HEAD_BYTES_MAX => Err(HttpError::HeadTooLarge),
        None => {
            *scanned = window.len();
            Ok(None)
        }
    }
}
