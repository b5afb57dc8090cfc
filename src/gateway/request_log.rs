//! A line for each answer of the built-in backend over HTTP, with the times at which its tokens
//! were really written: what a load generator's figures are held against (`--sim-log`).
//!
//! ```text
//! {"id":"cnse-17","received_us":5012345,"first_us":20031,"total_us":95012,"told_us":[20031,25034]}
//! ```
//!
//! `id` is the client's `X-Request-Id`. `received_us` counts from the server's start, the others
//! from the receipt. A request is received when the kernel has the last of it, and a token is told
//! when the write of it has returned: so the time in which this process sleeps, or reads others,
//! is its own delay, as it is for whoever waits. Over the binary protocol DONE tells the times to
//! the client itself.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::clock::{Clock, Instant, MonotonicClock};
use crate::net::Token;

/// A core's end of the log.
#[derive(Debug)]
pub struct RequestLog {
    file: File,
    clock: MonotonicClock,
    /// By connection, which has one request at a time.
    answers: HashMap<Token, Answer>,
    /// Lines that are not in the file yet: whole ones only, so that cores can share it.
    lines: Vec<u8>,
}

/// An answer under way.
#[derive(Debug)]
struct Answer {
    id: String,
    received: Instant,
    /// When each token was written.
    told: Vec<Instant>,
    /// Tokens that were told and not yet written.
    unwritten: usize,
    ended: bool,
}

/// Written at once.
const BLOCK_BYTES: usize = 64 << 10;

impl RequestLog {
    /// Opens the file to append to it; `clock` is that of the requests' moments.
    ///
    /// # Errors
    /// It cannot be opened or made.
    pub fn open(path: &Path, clock: MonotonicClock) -> io::Result<RequestLog> {
        let file = File::options().create(true).append(true).open(path);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{path:?}: {error}"));
        let (answers, lines) = (HashMap::new(), Vec::new());
        Ok(RequestLog { file: file.map_err(named)?, clock, answers, lines })
    }

    /// A token of the answer on a connection was told.
    pub fn token(&mut self, connection: Token, received: Instant, id: &str) {
        let answer = self.answers.entry(connection).or_insert_with(|| {
            let (id, told) = (id.to_owned(), Vec::new());
            Answer { id, received, told, unwritten: 0, ended: false }
        });
        answer.unwritten += 1;
    }

    /// The answer on a connection has ended: well, or not, and then it is forgotten.
    pub fn ended(&mut self, connection: Token, well: bool) {
        match self.answers.get_mut(&connection) {
            Some(answer) if well => answer.ended = true,
            // It is written once its last bytes are.
            Some(answer) if answer.ended => {}
            _ => drop(self.answers.remove(&connection)),
        }
    }

    /// What was told on a connection has been written.
    pub fn written(&mut self, connection: Token) {
        let Some(answer) = self.answers.get_mut(&connection) else { return };
        let now = self.clock.now();
        answer.told.extend(std::iter::repeat_n(now, std::mem::take(&mut answer.unwritten)));
        if answer.ended
            && let Some(answer) = self.answers.remove(&connection)
        {
            self.line(now, &answer);
        }
    }

    fn line(&mut self, now: Instant, answer: &Answer) {
        let since = |at: Instant| at.micros_since(answer.received);
        let told: Vec<u64> = answer.told.iter().map(|at| since(*at)).collect();
        let json = serde_json::json!({
            "id": answer.id, "received_us": answer.received.0 / 1_000,
            "first_us": told.first(), "total_us": since(now), "told_us": told,
        });
        self.lines.extend_from_slice(json.to_string().as_bytes());
        self.lines.push(b'\n');
        if self.lines.len() >= BLOCK_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if let Err(error) = self.file.write_all(&self.lines) {
            log::error!("writing the file of --sim-log: {error}; its lines are lost");
        }
        self.lines.clear();
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        self.flush();
    }
}
