//! The clients' side of a core: its connections and requests, and what an output of a backend means
//! for them.
//!
//! Nothing here touches a backend or the pool: what is to be done there is left as a `Command`,
//! which the worker carries out once the engine or the job that is talking has finished talking.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::connection::{Connection, Http, Protocol};
use super::measure::Measures;
use super::request::{Client, Request, Stage};
use super::request_log::RequestLog;
use super::{BackendConfig, Config};
use crate::backend::engine::Flow;
use crate::backend::pool::{Grant, Outcome};
use crate::backend::{Failure, FailureKind, Finished, Output};
use crate::clock::Instant;
use crate::cuda::Offload;
use crate::limits::{STREAM_BUFFER_BYTES_LOW, STREAM_BUFFER_BYTES_MAX};
use crate::net::{Slab, Token};
use crate::proto::{self, Finish};
use crate::wire::frame::ErrorCode;
use crate::wire::openai::error_event;

/// Kinds of tokens.
pub const CONNECTION: u8 = 1;
/// See `CONNECTION`.
pub const REQUEST: u8 = 2;

/// What the worker must do for the front.
#[derive(Debug)]
pub enum Command {
    /// Give a place back.
    Release(Grant, Outcome),
    /// Take a request out of the queue.
    Withdraw(Token),
    /// Ask for a place again, if possible not at this backend.
    Retry(Token, Option<usize>),
    /// Close a connection to a backend.
    Cancel(Token),
    /// Let a request's backend or job go on.
    Resume(Token),
    /// Go on with what a connection has sent.
    Revisit(Token),
}

/// Connections and requests of a core.
#[derive(Debug)]
pub struct Front {
    /// What the gateway was told.
    pub config: Rc<Config>,
    /// Client connections.
    pub connections: Slab<Connection>,
    /// Their requests.
    pub requests: Slab<Request>,
    /// Connections with something to write.
    pub dirty: Vec<Token>,
    /// For the worker.
    pub commands: VecDeque<Command>,
    /// All cores' counters.
    pub measures: Arc<Vec<Measures>>,
    /// Which core this is.
    pub core: usize,
    /// A request has ended in this turn.
    pub has_ended: bool,
    /// How many backends there are to try.
    pub backends: u32,
    /// Where true times are written, if they are.
    pub log: Option<RequestLog>,
    /// What does `--post`.
    pub offload: Offload,
}

/// An answer that is not streamed is held back up to here, so that a backend's failure can still be
/// told by a status.
const WHOLE_BODY_BYTES_MAX: usize = 1 << 20;
/// Tries of one request.
const TRIES_MAX: u32 = 3;

impl Front {
    /// This core's counters.
    pub fn measure(&self) -> &Measures {
        &self.measures[self.core]
    }

    /// Lets a connection be written at the end of the turn.
    pub fn touch(&mut self, token: Token) {
        if let Some(connection) = self.connections.get_mut(token)
            && !std::mem::replace(&mut connection.is_dirty, true)
        {
            self.dirty.push(token);
        }
    }

    /// Gives back what the queues between turns grew to.
    pub fn shrink(&mut self) {
        self.dirty.shrink_to(64);
        self.commands.shrink_to(64);
    }

    /// The HTTP half of a connection.
    pub fn http(&mut self, token: Token) -> Option<&mut Http> {
        match &mut self.connections.get_mut(token)?.protocol {
            Protocol::Http(http) => Some(http),
            _ => None,
        }
    }

    /// Takes an output of the backend that serves the request `tag`.
    pub fn output(&mut self, now: Instant, tag: u64, output: Output<'_>) -> Flow {
        let token = Token(tag);
        let Some(request) = self.requests.get_mut(token) else { return Flow::Continue };
        match output {
            Output::Moved { call } => {
                request.stage = Stage::Running(Some(Token(call)));
                Flow::Continue
            }
            // Its client got nothing yet, so that it can be tried elsewhere.
            Output::Progress { .. } | Output::Account(_) => Flow::Continue,
            Output::Head { status, content_type, stream } => {
                request.head = Some(Box::new((status, content_type.to_owned(), stream)));
                Flow::Continue
            }
            Output::Text { text, tokens } => {
                self.count(now, token, tokens);
                self.body(now, token, text.as_bytes(), tokens)
            }
            Output::Body { bytes, tokens } => {
                self.count(now, token, tokens);
                self.body(now, token, bytes, 0)
            }
            Output::Done(finished) => {
                self.finish(now, token, finished);
                Flow::Continue
            }
            Output::Fail(failure) => {
                self.backend_failed(now, token, failure);
                Flow::Continue
            }
        }
    }

    fn count(&mut self, now: Instant, token: Token, tokens: u32) {
        let measures = &self.measures[self.core];
        measures.tokens.add(u64::from(tokens));
        if let Some(request) = self.requests.get_mut(token) {
            request.heard = now;
            if let (Some(log), Client::Http { connection }) = (&mut self.log, request.client)
                && tokens > 0
                && let Some(Protocol::Http(http)) =
                    self.connections.get(connection).map(|connection| &connection.protocol)
            {
                log.token(connection, request.received, &http.asked.request_id);
            }
            if request.first.is_none() {
                request.first = Some(now);
                measures.ttft.record(now.micros_since(request.received));
            }
        }
    }

    pub(super) fn body(&mut self, now: Instant, token: Token, bytes: &[u8], tokens: u32) -> Flow {
        let Some(request) = self.requests.get_mut(token) else { return Flow::Continue };
        if request.embeds {
            self.collect(now, token, bytes);
            return Flow::Continue;
        }
        let connection_token = request.client.connection();
        let Some(connection) = self.connections.get_mut(connection_token) else {
            return Flow::Continue;
        };
        let full = match (&request.client, &mut connection.protocol) {
            (Client::Binary { stream, .. }, Protocol::Binary(server)) => {
                server.text(*stream, now, bytes, tokens) == proto::Flow::Full
            }
            (Client::Http { .. }, Protocol::Http(http)) => {
                let streams = request.head.as_ref().is_some_and(|head| head.2);
                let long = request.body.len() + bytes.len() > WHOLE_BODY_BYTES_MAX;
                if streams || long {
                    begin_stream(http, request);
                }
                if http.server.is_streaming() {
                    http.server.body(bytes);
                    http.server.pending().len() >= STREAM_BUFFER_BYTES_MAX
                } else {
                    request.body.extend_from_slice(bytes);
                    return Flow::Continue;
                }
            }
            _ => false,
        };
        if full && !std::mem::replace(&mut request.paused, true) {
            self.measures[self.core].stalls.add(1);
        }
        self.touch(connection_token);
        if full { Flow::Pause } else { Flow::Continue }
    }

    fn finish(&mut self, now: Instant, token: Token, finished: Finished) {
        self.release(token, Outcome::Served);
        if !self.transform(now, token) {
            return;
        }
        self.send_collected(now, token);
        let Some(request) = self.requests.get_mut(token) else { return };
        let connection_token = request.client.connection();
        let Some(connection) = self.connections.get_mut(connection_token) else { return };
        let over = match (&request.client, &mut connection.protocol) {
            (Client::Binary { stream, raw, .. }, Protocol::Binary(server)) => {
                let queue_us = request.dispatched.micros_since(request.received);
                let completion_tokens = if *raw { 0 } else { finished.completion_tokens };
                let finish = Finish {
                    reason: finished.reason,
                    prompt_tokens: finished.prompt_tokens,
                    completion_tokens,
                    queue_us,
                };
                server.finish(*stream, now, finish)
            }
            (Client::Http { .. }, Protocol::Http(http)) => {
                if http.server.is_streaming() {
                    http.server.end();
                } else {
                    answer_whole(http, request);
                }
                true
            }
            _ => true,
        };
        if !over {
            request.stage = Stage::Unread;
        }
        self.touch(connection_token);
        if over {
            self.complete(now, token);
        }
    }

    /// Counts a request that ended well, and forgets it.
    pub fn complete(&mut self, now: Instant, token: Token) {
        if let (Some(log), Some(request)) = (&mut self.log, self.requests.get(token)) {
            log.ended(request.client.connection(), true);
        }
        let Some(request) = self.forget(token) else { return };
        let measures = self.measure();
        measures.completed.add(1);
        measures.total.record(now.micros_since(request.received));
    }

    fn backend_failed(&mut self, now: Instant, token: Token, failure: Failure) {
        let outcome = match failure.kind {
            FailureKind::Request => Outcome::Served,
            FailureKind::Loading => Outcome::Loading,
            FailureKind::Backend => Outcome::Failed,
            FailureKind::Unreachable => Outcome::Unreachable,
        };
        let backend = self.requests.get(token).and_then(|r| r.grant).map(|grant| grant.backend);
        self.release(token, outcome);
        let Some(request) = self.requests.get_mut(token) else { return };
        request.tries += u32::from(failure.kind != FailureKind::Loading);
        let elsewhere = match failure.kind {
            FailureKind::Request => false,
            // A backend that comes back within the pool's patience costs its clients a wait and
            // nothing else.
            FailureKind::Loading | FailureKind::Unreachable => true,
            FailureKind::Backend => request.tries < self.backends,
        };
        // After a timeout there is no time left to try elsewhere.
        let in_time = failure.code != ErrorCode::Deadline;
        if request.first.is_none() && elsewhere && in_time && request.tries < TRIES_MAX {
            request.head = None;
            self.measures[self.core].retries.add(1);
            self.commands.push_back(Command::Retry(token, backend));
        } else {
            // Of a backend that is not there, the prober tells once.
            if failure.kind == FailureKind::Backend {
                log::warn!("backend {}: {}", self.backend_name(backend), failure.message);
            }
            self.fail(now, token, &failure);
        }
    }

    fn backend_name(&self, backend: Option<usize>) -> &str {
        match (&self.config.backend, backend) {
            (BackendConfig::Remote { targets, .. }, Some(backend)) => &targets[backend].name,
            _ => "builtin",
        }
    }

    /// Tells the client that its request has failed, and forgets it.
    pub fn fail(&mut self, now: Instant, token: Token, failure: &Failure) {
        let Some(request) = self.requests.get_mut(token) else { return };
        let connection_token = request.client.connection();
        if let Some(connection) = self.connections.get_mut(connection_token) {
            match (&request.client, &mut connection.protocol) {
                (Client::Binary { stream, raw, .. }, Protocol::Binary(server)) => {
                    server.fail(*stream, failure.code, &stream_message(failure, *raw));
                }
                (Client::Http { .. }, Protocol::Http(http)) => {
                    if http.server.is_streaming() {
                        if request.streamed {
                            http.server.body(&error_event(&failure.http_body()));
                        }
                        http.server.abort();
                    } else {
                        respond_failure(http, failure);
                    }
                }
                _ => {}
            }
        }
        self.touch(connection_token);
        self.stop_work(token);
        let measures = self.measure();
        measures.failed[failure.code as usize - 1].add(1);
        if let Some(request) = self.forget(token) {
            self.measure().total.record(now.micros_since(request.received));
        }
    }

    /// Ends a request whose client wants no more of it, or is gone.
    pub fn cancel(&mut self, token: Token) {
        let Some(request) = self.requests.get(token) else { return };
        let stage = match (request.stage, request.first) {
            (Stage::Queued, _) => 0,
            (_, None) => 1,
            (_, Some(_)) => 2,
        };
        self.measure().cancelled[stage].add(1);
        self.measure().failed[ErrorCode::Cancelled as usize - 1].add(1);
        self.stop_work(token);
        self.forget(token);
    }

    /// Takes the request away from whoever serves it or has it wait.
    fn stop_work(&mut self, token: Token) {
        let Some(request) = self.requests.get(token) else { return };
        match request.stage {
            Stage::Queued => self.commands.push_back(Command::Withdraw(token)),
            // The connection closes before the place is given to another.
            Stage::Running(Some(upstream)) => self.commands.push_back(Command::Cancel(upstream)),
            Stage::Running(None) | Stage::Unread => {}
        }
        self.release(token, Outcome::Neutral);
    }

    fn release(&mut self, token: Token, outcome: Outcome) {
        if let Some(grant) = self.requests.get_mut(token).and_then(|r| r.grant.take()) {
            self.commands.push_back(Command::Release(grant, outcome));
        }
    }

    fn forget(&mut self, token: Token) -> Option<Request> {
        let request = self.requests.remove(token)?;
        self.has_ended = true;
        let connection = request.client.connection();
        if let Some(log) = &mut self.log {
            log.ended(connection, false);
        }
        if let Some(http) = self.http(connection) {
            http.request = None;
            http.asked = super::connection::Asked::default();
            self.commands.push_back(Command::Revisit(connection));
        }
        self.measure().requests.set(self.requests.len() as u64);
        Some(request)
    }

    /// Closes a connection; its requests are cancelled.
    pub fn close(&mut self, token: Token) {
        let Some(connection) = self.connections.remove(token) else { return };
        match connection.protocol {
            Protocol::Undetected => {}
            Protocol::Binary(server) => server.tags().for_each(|tag| self.cancel(Token(tag))),
            Protocol::Http(http) => {
                if let Some(request) = http.request {
                    self.cancel(request);
                }
            }
        }
        self.measure().connections.set(self.connections.len() as u64);
    }

    /// Writes what is pending, and sees what the room that makes is good for.
    pub fn flush(&mut self, now: Instant, token: Token) {
        loop {
            let Some(connection) = self.connections.get_mut(token) else { return };
            connection.is_dirty = false;
            if !connection.write() {
                return self.close(token);
            }
            if let Some(log) = &mut self.log {
                log.written(token);
            }
            let event = match &mut connection.protocol {
                Protocol::Undetected => None,
                Protocol::Binary(server) => server.poll(now),
                Protocol::Http(http) => {
                    if http.server.pending().len() <= STREAM_BUFFER_BYTES_LOW
                        && let Some(request) = http.request
                    {
                        self.resume(request);
                    }
                    return;
                }
            };
            match event {
                Some(event) => self.binary_event(now, event),
                None => return,
            }
        }
    }

    /// Carries out what the binary machine found, but for a new request.
    pub fn binary_event(
        &mut self,
        now: Instant,
        event: crate::proto::binary_server::ServerEvent<'_>,
    ) {
        use crate::proto::binary_server::ServerEvent;
        match event {
            ServerEvent::Infer { .. } => {}
            ServerEvent::Cancelled { tag, .. } => self.cancel(Token(tag)),
            ServerEvent::Resumed { tag, .. } => self.resume(Token(tag)),
            ServerEvent::Finished { tag, .. } => self.complete(now, Token(tag)),
        }
    }

    /// Answers a request that never was taken up.
    pub fn answer_failure(&mut self, connection: Token, failure: &Failure) {
        if let Some(http) = self.http(connection) {
            respond_failure(http, failure);
        }
    }

    /// Tells a binary client how its request stands.
    pub fn status(&mut self, client: Client, running: bool, position: u32, eta_ms: u32) {
        let Client::Binary { connection, stream, .. } = client else { return };
        if let Some(found) = self.connections.get_mut(connection)
            && let Protocol::Binary(server) = &mut found.protocol
        {
            server.status(stream, running, position, eta_ms);
            self.touch(connection);
        }
    }

    /// Says something to a client that waits for events: proxies cut silent streams.
    pub fn keep_alive(&mut self, token: Token) {
        let Some(request) = self.requests.get_mut(token) else { return };
        let connection = request.client.connection();
        let Some(found) = self.connections.get_mut(connection) else { return };
        if let Protocol::Http(http) = &mut found.protocol {
            begin_stream(http, request);
            http.server.body(b":\n\n");
            self.touch(connection);
        }
    }

    /// How many bytes of text a request can send at once.
    pub fn room(&self, token: Token) -> usize {
        let Some(request) = self.requests.get(token) else { return 0 };
        let connection = self.connections.get(request.client.connection());
        match (&request.client, connection.map(|connection| &connection.protocol)) {
            (Client::Binary { stream, .. }, Some(Protocol::Binary(server))) => server.room(*stream),
            _ => usize::MAX,
        }
    }

    /// Since when a request's text has waited for its reader.
    pub fn stalled_since(&self, token: Token) -> Option<Instant> {
        let request = self.requests.get(token)?;
        let connection = self.connections.get(request.client.connection())?;
        match (&request.client, &connection.protocol) {
            (Client::Binary { stream, .. }, Protocol::Binary(server)) => {
                server.stalled_since(*stream)
            }
            (Client::Http { .. }, _) if request.paused => Some(request.heard),
            _ => None,
        }
    }

    fn resume(&mut self, token: Token) {
        if let Some(request) = self.requests.get_mut(token)
            && std::mem::replace(&mut request.paused, false)
        {
            self.commands.push_back(Command::Resume(token));
        }
    }
}

/// What a binary client is told of a failure: of a path call the body that an HTTP client would
/// get.
pub fn stream_message(failure: &Failure, raw: bool) -> String {
    if raw && failure.kind == FailureKind::Request {
        String::from_utf8_lossy(&failure.http_body()).into_owned()
    } else {
        failure.message.clone()
    }
}

/// Sends the head of an answer that is passed on as it comes, and what was held back of it.
pub fn begin_stream(http: &mut Http, request: &mut Request) {
    if http.server.is_streaming() {
        return;
    }
    let head = request.head.take();
    let (status, content_type) = match &head {
        Some(head) => (head.0, head.1.as_str()),
        None => (200, "text/event-stream"),
    };
    let headers = [
        ("Content-Type", content_type),
        ("X-Request-Id", http.asked.request_id.as_str()),
        ("Cache-Control", "no-cache"),
        // Without it nginx would collect the events.
        ("X-Accel-Buffering", "no"),
    ];
    let events = content_type.starts_with("text/event-stream");
    let count = if events { headers.len() } else { 2 };
    http.server.respond_stream(status, &headers[..count]);
    http.server.body(&std::mem::take(&mut request.body));
}

fn answer_whole(http: &mut Http, request: &mut Request) {
    let head = request.head.take();
    let (status, content_type) = match &head {
        Some(head) => (head.0, head.1.as_str()),
        None => (200, "application/json"),
    };
    let headers =
        [("Content-Type", content_type), ("X-Request-Id", http.asked.request_id.as_str())];
    http.server.respond(status, &headers, &request.body);
}

fn respond_failure(http: &mut Http, failure: &Failure) {
    let retry_after = failure.retry_after_s.map(|seconds| seconds.to_string());
    let mut headers = vec![
        ("Content-Type", "application/json"),
        ("X-Request-Id", http.asked.request_id.as_str()),
    ];
    headers.extend(retry_after.as_deref().map(|seconds| ("Retry-After", seconds)));
    http.server.respond(failure.status, &headers, &failure.http_body());
}
