//! One request to the filer or a volume server, and what is done if it fails.
//!
//! The filer closes a connection that was idle for 10 s, so pooled ones are given up before that.
//! Redirects are not followed: the filer sends them for paths that are never asked for. A transfer
//! ends by stalling, not by taking long: there are bounds for each read and write, none for all.

use std::io::{self, Read as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use ureq::Agent;
use ureq::http;

use super::Settings;
use super::address::{Address, encode};
use super::auth::Auth;
use super::{clock, tls};
use crate::limits::{
    FILER_CONNECTIONS_MAX, FILER_FIRST_PATIENCE, FILER_PATIENCE, FILER_SETTLE, FILER_STALL_MAX,
};
use crate::prng::{self, Prng};
use crate::store::error::Error;
use crate::store::hash::PIECE_BYTES;
use crate::store::pace::Pace;
use crate::store::remote::Take;

/// Talks to one filer, from any number of threads.
pub struct Http {
    agent: Agent,
    address: Address,
    auth: Auth,
    /// When the filer last said what time it is, and what it said: since 1970.
    server_time: Mutex<Option<(Instant, Duration)>>,
    has_answered: AtomicBool,
    draws: AtomicU64,
    /// How fast bodies may be sent; what comes is paced by who takes it.
    pace: Option<Arc<Pace>>,
    /// How long a filer that answered before is asked again.
    pub(super) patience: Duration,
}

/// A body that is sent as fast as it may be.
struct Paced<'a> {
    rest: &'a [u8],
    pace: &'a Pace,
}

impl io::Read for Paced<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = into.len().min(self.rest.len()).min(self.pace.piece_bytes());
        let (now, rest) = self.rest.split_at(count);
        into[..count].copy_from_slice(now);
        self.rest = rest;
        self.pace.moved(count as u64);
        Ok(count)
    }
}

/// Why one attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// For people.
    pub reason: String,
    /// Whether another attempt may do better.
    pub is_retryable: bool,
    /// The status of the answer; 0: there was none.
    pub status: u16,
}

/// Why the bytes of an answer were not all taken.
#[derive(Debug)]
pub enum Cut {
    /// They did not come.
    Fault(Fault),
    /// Whoever takes them does not want more.
    Taker(Error),
}

/// A request, as it is sent.
pub struct Request<'a> {
    method: &'static str,
    url: String,
    headers: Vec<(&'static str, String)>,
    body: Option<&'a [u8]>,
    is_write: bool,
}

/// The answer, of which the body has yet to be read.
pub struct Answer {
    /// Its status.
    pub status: u16,
    headers: http::HeaderMap,
    body: ureq::Body,
}

/// An answer that is only read for what went wrong.
const REASON_BYTES_MAX: u64 = 2 << 10;
/// From here on a body is announced, so that it is not sent to somebody who refuses it.
const EXPECT_BYTES_MIN: usize = 1 << 20;
/// First and longest wait between attempts; see `Retry`.
const WAITS: (Duration, Duration) =
    (Duration::from_millis(if cfg!(test) { 1 } else { 100 }), Duration::from_secs(5));

impl Fault {
    /// That ends the matter.
    pub fn last(reason: impl Into<String>) -> Fault {
        Fault { reason: reason.into(), is_retryable: false, status: 0 }
    }

    /// That may pass.
    pub fn passing(reason: impl Into<String>) -> Fault {
        Fault { reason: reason.into(), is_retryable: true, status: 0 }
    }
}

impl<'a> Request<'a> {
    /// Without a body. GET, HEAD and OPTIONS read; all others write.
    pub fn new(method: &'static str, url: String) -> Request<'a> {
        let is_write = !matches!(method, "GET" | "HEAD" | "OPTIONS");
        Request { method, url, headers: Vec::new(), body: None, is_write }
    }

    /// With one more header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Request<'a> {
        self.headers.push((name, value.into()));
        self
    }

    /// With a body.
    pub fn body(mut self, body: &'a [u8]) -> Request<'a> {
        self.body = Some(body);
        self
    }
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header's value that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim().parse().ok()
    }

    /// Whether it did what was asked.
    pub fn is_fine(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The whole body, at most `limit` bytes of it.
    ///
    /// # Errors
    /// It is longer or ends early.
    pub fn bytes(&mut self, limit: usize) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        let mut reader = self.body.as_reader().take(limit as u64 + 1);
        reader.read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() > limit {
            return Err(Fault::last(format!("the answer has more than {limit} bytes")));
        }
        Ok(bytes)
    }

    /// Gives `len` bytes of the body to `take`, in pieces of `PIECE_BYTES` at most. Returns how
    /// many it took, and why not all of them.
    pub fn stream(&mut self, len: u64, take: &mut Take<'_>) -> (u64, Result<(), Cut>) {
        let mut reader = self.body.as_reader();
        let mut buffer = vec![0; PIECE_BYTES.min(len as usize)];
        let mut taken = 0;
        while taken < len {
            let piece = &mut buffer[..PIECE_BYTES.min((len - taken) as usize)];
            let (count, ended) = fill(&mut reader, piece);
            let piece = &piece[..count];
            if let Err(error) = if count > 0 { take(piece) } else { Ok(()) } {
                return (taken, Err(Cut::Taker(error)));
            }
            taken += count as u64;
            match ended {
                Ok(()) => {}
                Err(Some(error)) => return (taken, Err(Cut::Fault(broken(error)))),
                Err(None) => {
                    let short = format!("the answer ended after {taken} of {len} bytes");
                    return (taken, Err(Cut::Fault(Fault::passing(short))));
                }
            }
        }
        (taken, Ok(()))
    }

    /// Why it is no success; the rest of the body is thrown away.
    pub fn fault(mut self) -> Fault {
        let mut text = Vec::new();
        let _ = self.body.as_reader().take(REASON_BYTES_MAX).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        // Most errors are `{"error":"…"}`, some are plain text, some are empty.
        let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        let said = json.as_ref().and_then(|json| json["error"].as_str()).unwrap_or(text.trim());
        let said: String = said.chars().filter(|c| !c.is_control()).take(300).collect();
        let what = match self.status {
            401 | 403 => " (CNSE_FILER_TOKEN or CNSE_FILER_KEY has what it asks for)",
            413 => " (too large for it)",
            507 => " (full, over its quota, or read-only)",
            _ => "",
        };
        let colon = if said.is_empty() { "" } else { ": " };
        Fault {
            reason: format!("status {}{what}{colon}{said}", self.status),
            is_retryable: is_passing(self.status),
            status: self.status,
        }
    }
}

/// Statuses after which the same request may go through. 423: an earlier request of the same upload
/// is still being stored. 499: the filer believes that we have gone.
fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 423 | 425 | 429 | 499 | 500 | 502 | 503 | 504)
}

/// Fills `into`; how many bytes came, and why not all of them did. None: that was all.
fn fill(reader: &mut impl io::Read, into: &mut [u8]) -> (usize, Result<(), Option<io::Error>>) {
    let mut filled = 0;
    while filled < into.len() {
        match reader.read(&mut into[filled..]) {
            Ok(0) => return (filled, Err(None)),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Err(Some(error))),
        }
    }
    (filled, Ok(()))
}

fn broken(error: io::Error) -> Fault {
    Fault::passing(format!("the connection broke: {error}"))
}

impl Http {
    /// # Errors
    /// https, and this build has no TLS; a CA's file that is none.
    pub fn new(address: Address, settings: Settings) -> Result<Http, String> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // A filer is near; what the environment says of proxies is meant for the world.
            .proxy(None)
            .user_agent(concat!("cnse/", env!("CARGO_PKG_VERSION")))
            .accept("*/*")
            .max_idle_age(Duration::from_secs(4))
            .max_idle_connections(2 * FILER_CONNECTIONS_MAX)
            .max_idle_connections_per_host(FILER_CONNECTIONS_MAX)
            // Read at once from a socket.
            .input_buffer_size(PIECE_BYTES)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_recv_response(Some(2 * FILER_STALL_MAX))
            .timeout_per_read(Some(FILER_STALL_MAX))
            .timeout_per_write(Some(FILER_STALL_MAX));
        let config = tls::configure(config, &address, &settings)?;
        Ok(Http {
            agent: config.build().new_agent(),
            address,
            auth: settings.auth,
            server_time: Mutex::new(None),
            has_answered: AtomicBool::new(false),
            draws: AtomicU64::new(u64::from(std::process::id())),
            pace: settings.pace,
            patience: FILER_PATIENCE,
        })
    }

    /// Where the filer is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The URL of a path from the filer's root on. `query` is ready.
    pub fn url(&self, path: &str, query: &str) -> String {
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}{}{mark}{query}", self.address.origin(), encode(path))
    }

    /// What the filer's clock says, since 1970; ours, if it has not said so.
    pub fn now(&self) -> Duration {
        let said = *self.server_time.lock().expect("no thread panics with it");
        let ours = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        said.map_or_else(ours, |(when, time)| time + when.elapsed())
    }

    /// One attempt.
    ///
    /// # Errors
    /// No answer, or one whose status may pass. Any other answer is the caller's to judge.
    pub fn send(&self, request: &Request<'_>) -> Result<Answer, Fault> {
        let token = self.auth.header(request.is_write, self.now());
        let answer = self.send_as(request, token)?;
        if let Some(date) = answer.header("date").and_then(clock::http_date) {
            let said = (Instant::now(), Duration::from_secs(date));
            *self.server_time.lock().expect("no thread panics with it") = Some(said);
        }
        Ok(answer)
    }

    /// The same, with another token than the filer's: volume servers have their own.
    pub fn send_as(&self, request: &Request<'_>, token: Option<String>) -> Result<Answer, Fault> {
        let mut builder = http::Request::builder().method(request.method).uri(&request.url);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if let Some(token) = token {
            builder = builder.header("Authorization", token);
        }
        if request.body.is_some_and(|body| body.len() >= EXPECT_BYTES_MIN) {
            builder = builder.header("Expect", "100-continue");
        }
        let ready = |error: http::Error| Fault::last(error.to_string());
        // A write without a body says so; the filer refuses it otherwise.
        let body = request.body.or(request.is_write.then_some(&[]));
        let sent = match (body, &self.pace) {
            (Some(body), Some(pace)) if !body.is_empty() => {
                let mut paced = Paced { rest: body, pace };
                let builder = builder.header("Content-Length", body.len());
                let body = ureq::SendBody::from_reader(&mut paced);
                self.agent.run(builder.body(body).map_err(ready)?)
            }
            (Some(body), _) => self.agent.run(builder.body(body).map_err(ready)?),
            (None, _) => self.agent.run(builder.body(()).map_err(ready)?),
        };
        let (head, body) = sent.map_err(unanswered)?.into_parts();
        self.has_answered.store(true, Ordering::Relaxed);
        let answer = Answer { status: head.status.as_u16(), headers: head.headers, body };
        if is_passing(answer.status) { Err(answer.fault()) } else { Ok(answer) }
    }

    fn first_try(&self, action: &str) -> Retry {
        let seed = self.draws.fetch_add(1, Ordering::Relaxed);
        let prng = Prng::new(prng::hash(seed, action.as_bytes()));
        Retry { since: Instant::now(), tries: 0, prng }
    }

    /// Looks until it finds what has to be there. None: it does not show for too long.
    ///
    /// # Errors
    /// Those of `look`.
    pub fn settle<T>(
        &self,
        mut look: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        let mut retry = self.first_try("settle");
        loop {
            let found = look()?;
            if found.is_some() || retry.since.elapsed() >= FILER_SETTLE.min(self.patience) {
                return Ok(found);
            }
            std::thread::sleep(retry.wait());
        }
    }

    /// Tries until it goes through, the fault is no passing one, or there was no progress for too
    /// long. `attempt` says how far it got by `Retry::progress`.
    ///
    /// # Errors
    /// The last fault.
    pub fn retry<T>(
        &self,
        action: &str,
        mut attempt: impl FnMut(&mut Retry) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        let mut retry = self.first_try(action);
        loop {
            let fault = match attempt(&mut retry) {
                Ok(done) => return Ok(done),
                Err(fault) => fault,
            };
            // Whoever has never answered is more likely a wrong address than a server that
            // restarts.
            let has_answered = self.has_answered.load(Ordering::Relaxed);
            let patience = if has_answered { self.patience } else { FILER_FIRST_PATIENCE };
            if !fault.is_retryable || retry.since.elapsed() >= patience {
                return Err(Error::Remote {
                    at: self.address.origin(),
                    action: action.to_owned(),
                    reason: fault.reason,
                    retryable: fault.is_retryable,
                });
            }
            log::debug!("{}: {action}: {}; trying again", self.address.origin(), fault.reason);
            std::thread::sleep(retry.wait());
        }
    }
}

/// How an action that is tried several times stands.
pub struct Retry {
    since: Instant,
    tries: u32,
    prng: Prng,
}

impl Retry {
    /// Something was achieved: patience begins anew.
    pub fn progress(&mut self) {
        self.since = Instant::now();
        self.tries = 0;
    }

    /// Exponential, with full jitter (Brooker, "Exponential backoff and jitter", 2015): the workers
    /// that failed together do not come back together.
    fn wait(&mut self) -> Duration {
        let most = WAITS.0.saturating_mul(1 << self.tries.min(10)).min(WAITS.1);
        self.tries += 1;
        most.mul_f64(self.prng.unit())
    }
}

const TLS_REMEDY: &str = " (CNSE_FILER_CA names the PEM file of the authority to believe, \
    CNSE_FILER_CERT that of our own certificate and key)";

/// What kept an answer from coming.
fn unanswered(error: ureq::Error) -> Fault {
    let reason = match &error {
        ureq::Error::HostNotFound => "no such host".to_owned(),
        ureq::Error::ConnectionFailed => "no connection".to_owned(),
        ureq::Error::Timeout(what) => format!("no answer in time ({what})"),
        // What TLS does not like, now and later.
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Fault::last(format!("no answer: {error}{TLS_REMEDY}"));
        }
        ureq::Error::Io(error) => format!("no answer: {error}"),
        other => other.to_string(),
    };
    let is_retryable = matches!(
        error,
        ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::Timeout(_)
            | ureq::Error::Io(_)
            | ureq::Error::Protocol(_)
    );
    Fault { reason, is_retryable, status: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass() {
        for status in [408, 423, 429, 500, 502, 503, 504] {
            assert!(is_passing(status), "{status}");
        }
        for status in [200, 206, 301, 400, 401, 403, 404, 409, 412, 413, 414, 416, 507] {
            assert!(!is_passing(status), "{status}");
        }
    }

    #[test]
    fn waits_grow_and_have_a_bound() {
        let mut retry = Retry { since: Instant::now(), tries: 0, prng: Prng::new(1) };
        for round in 0..40 {
            let most = WAITS.0.saturating_mul(1 << round.min(10)).min(WAITS.1);
            assert!(retry.wait() <= most, "{round}");
        }
        retry.progress();
        assert!(retry.wait() <= WAITS.0);
    }
}
