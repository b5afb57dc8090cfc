//! A line for each answer of the built-in backend, with the times at which it was really told: what
//! a load generator's figures are held against (`--sim-log`).
//!
//! ```text
//! {"id":"cnse-17","received_us":5012345,"first_us":20031,"total_us":95012,"told_us":[20031,25034]}
//! ```
//!
//! `id` is the client's `X-Request-Id`, empty over the binary protocol, whose DONE tells the times to
//! the client itself. `received_us` counts from the server's start, the others from the receipt.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::request::Request;
use crate::clock::Instant;

/// A core's end of the log.
#[derive(Debug)]
pub struct RequestLog {
    file: File,
    /// Lines that are not written yet: whole ones only, so that cores can share the file.
    lines: Vec<u8>,
}

/// Written at once.
const BLOCK_BYTES: usize = 64 << 10;

impl RequestLog {
    /// Opens the file to append to it.
    ///
    /// # Errors
    /// It cannot be opened or made.
    pub fn open(path: &Path) -> io::Result<RequestLog> {
        let file = File::options().create(true).append(true).open(path);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{path:?}: {error}"));
        Ok(RequestLog { file: file.map_err(named)?, lines: Vec::new() })
    }

    /// Notes a request that has ended well.
    pub fn line(&mut self, now: Instant, request: &Request, id: &str) {
        let since = |at: Instant| at.micros_since(request.received);
        // What made no tokens, such as a look at /props, is no answer.
        let Some(told) = request.told.as_deref().filter(|told| !told.is_empty()) else { return };
        let told: Vec<u64> = told.iter().map(|at| since(*at)).collect();
        let json = serde_json::json!({
            "id": id, "received_us": request.received.0 / 1_000,
            "first_us": request.first.map(since), "total_us": since(now), "told_us": told,
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
