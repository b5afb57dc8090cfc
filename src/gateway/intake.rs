//! From a client's bytes to a request: detection of the protocol, authentication, routing of paths.

use std::rc::Rc;
use std::time::Duration;

use super::connection::{Asked, Http, Protocol};
use super::front::{Command, stream_message};
use super::measure;
use super::request::{Client, Request, Stage, Work};
use super::worker::{Source, Worker};
use crate::backend::engine::Call;
use crate::backend::{self, Failure, embeddings};
use crate::clock::Instant;
use crate::net::Token;
use crate::net::socket::{self, Incoming};
use crate::prng::{self, Prng};
use crate::proto::binary_server::{BinaryServer, ServerEvent, Stream, equal_in_constant_time};
use crate::proto::detect::{Detected, detect};
use crate::proto::http_server::HttpEvent;
use crate::wire::frame::ErrorCode;
use crate::wire::http1::RequestHead;
use crate::wire::message::{Infer, Input, PRIORITY_DEFAULT};
use crate::wire::openai::error_body;

/// A request's id that a client chose is taken up to this length.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What became of input.
enum Stepped {
    /// So much of it was used; the rest needs more behind it, or waits.
    Used(usize),
    /// The connection is gone.
    Gone,
}

impl Worker {
    /// Reads what a connection has ready, once. True: there may be more.
    pub(super) fn read_connection(&mut self, token: Token) -> bool {
        let Some(connection) = self.front.connections.get_mut(token) else { return false };
        // While an answer is under way, what a client sends ahead is left in the socket; that it
        // closed is told by the poller all the same.
        let answering =
            matches!(&connection.protocol, Protocol::Http(http) if http.server.is_answering());
        let may_read = connection.lingering.is_some() || !answering || connection.held.is_empty();
        if !may_read && connection.hangup {
            self.peer_closed(token);
            return false;
        }
        if !connection.readable || !may_read {
            return false;
        }
        let mut scratch = std::mem::take(&mut self.reactor.scratch);
        let incoming = if self.front.log.is_some() {
            let (incoming, ago) = socket::read_stamped(&connection.stream, &mut scratch);
            if let Incoming::Bytes(_) = incoming {
                let ago = ago.unwrap_or_default().as_nanos() as u64;
                connection.arrived = Some(Instant(self.reactor.tick().0.saturating_sub(ago)));
            }
            incoming
        } else {
            socket::read(&connection.stream, &mut scratch)
        };
        let more = match incoming {
            Incoming::WouldBlock => {
                connection.readable = false;
                false
            }
            Incoming::Bytes(count) => {
                // Behind a hang-up there is the end at least, and no further event for it.
                connection.readable = count == scratch.len() || connection.hangup;
                let more = connection.readable;
                if connection.lingering.is_none() {
                    self.received(token, &scratch[..count]);
                }
                more
            }
            Incoming::Closed | Incoming::Broken(_) => {
                connection.readable = false;
                connection.ended = true;
                self.peer_closed(token);
                false
            }
        };
        self.reactor.scratch = scratch;
        more
    }

    /// The client has gone, wholly or for its half: nobody waits for what is under way.
    fn peer_closed(&mut self, token: Token) {
        let Some(connection) = self.front.connections.get_mut(token) else { return };
        // What was ready when it closed is still written: it may have closed its half only.
        connection.write();
        self.front.close(token);
    }

    fn received(&mut self, token: Token, input: &[u8]) {
        let Some(connection) = self.front.connections.get_mut(token) else { return };
        let mut held = std::mem::take(&mut connection.held);
        let whole = if held.is_empty() {
            input
        } else {
            held.extend_from_slice(input);
            &held
        };
        match self.step(token, whole) {
            Stepped::Gone => {}
            Stepped::Used(used) => {
                let Some(connection) = self.front.connections.get_mut(token) else { return };
                let left = &whole[used..];
                if !left.is_empty() {
                    connection.held = left.to_vec();
                }
                self.watch_head(token, used > 0);
            }
        }
    }

    /// Goes on with input that waited. True: call again.
    pub(super) fn step_connection(&mut self, token: Token) -> bool {
        let Some(connection) = self.front.connections.get_mut(token) else { return false };
        if connection.held.is_empty() || connection.lingering.is_some() {
            return false;
        }
        let held = std::mem::take(&mut connection.held);
        if let Stepped::Used(used) = self.step(token, &held)
            && let Some(connection) = self.front.connections.get_mut(token)
            && used < held.len()
        {
            connection.held = held[used..].to_vec();
        }
        false
    }

    /// A head that has begun must be whole in time.
    fn watch_head(&mut self, token: Token, progress: bool) {
        let now = self.reactor.now;
        let Some(connection) = self.front.connections.get_mut(token) else { return };
        if progress {
            connection.head_since = now;
        }
        let due = now + crate::limits::HEAD_TIMEOUT;
        if connection.owes_head() && due < connection.timer_at {
            connection.timer_at = due;
            self.reactor.timers.set(due, token);
        }
    }

    fn step(&mut self, token: Token, input: &[u8]) -> Stepped {
        let Some(connection) = self.front.connections.get_mut(token) else { return Stepped::Gone };
        if matches!(connection.protocol, Protocol::Undetected) {
            match detect(input) {
                None => return Stepped::Used(0),
                Some(Detected::Binary) => {
                    let mut server = BinaryServer::new(self.binary_config.clone());
                    if self.draining {
                        server.goaway("the server is shutting down");
                    }
                    connection.protocol = Protocol::Binary(Box::new(server));
                    self.front.touch(token);
                }
                Some(Detected::Http) => {
                    let mut http = Http::default();
                    if self.draining {
                        http.server.close_after();
                    }
                    connection.protocol = Protocol::Http(Box::new(http));
                }
                Some(Detected::Tls) => {
                    log::debug!("a client began a TLS handshake; this port speaks plain text");
                    self.front.close(token);
                    return Stepped::Gone;
                }
            }
        }
        match self.front.connections.get(token).map(|connection| &connection.protocol) {
            Some(Protocol::Binary(_)) => self.step_binary(token, input),
            Some(Protocol::Http(_)) => self.step_http(token, input),
            _ => Stepped::Gone,
        }
    }

    fn step_binary(&mut self, token: Token, input: &[u8]) -> Stepped {
        let now = self.reactor.now;
        let mut used = 0;
        loop {
            let Some(connection) = self.front.connections.get_mut(token) else {
                return Stepped::Gone;
            };
            let Protocol::Binary(server) = &mut connection.protocol else { return Stepped::Gone };
            let step = match server.receive(now, &input[used..]) {
                Ok(step) => step,
                Err(error) => {
                    log::debug!("a binary client broke the protocol: {error}");
                    let tags: Vec<u64> = server.tags().collect();
                    tags.into_iter().for_each(|tag| self.front.cancel(Token(tag)));
                    self.front.touch(token);
                    return Stepped::Used(input.len());
                }
            };
            used += step.consumed;
            let stuck = step.is_stuck();
            match step.event {
                Some(ServerEvent::Infer { stream, infer }) => self.infer(token, stream, &infer),
                Some(event) => self.front.binary_event(now, event),
                None if !stuck => {}
                None => {
                    if !server.is_choked() {
                        break;
                    }
                    // A peer that sends PINGs and reads no PONGs.
                    if !connection.write() || !connection.pending().is_empty() {
                        self.front.close(token);
                        return Stepped::Gone;
                    }
                }
            }
        }
        self.front.touch(token);
        Stepped::Used(used)
    }

    fn infer(&mut self, connection: Token, stream: Stream, infer: &Infer<'_>) {
        self.front.measure().binary_requests.add(1);
        let raw = matches!(infer.input, Input::Api { .. });
        let client = Client::Binary { connection, stream, raw };
        if let Input::Api { path: "/health" | "/v1/health" | "/metrics", .. } = infer.input {
            return self.local_over_binary(connection, stream, infer);
        }
        match self.work(infer, None) {
            Ok((work, weight, _)) => self.begin(client, work, weight, infer, false),
            Err(failure) => self.refuse_stream(connection, stream, &failure, raw),
        }
    }

    fn refuse_stream(&mut self, connection: Token, stream: Stream, failure: &Failure, raw: bool) {
        self.front.measure().failed[failure.code as usize - 1].add(1);
        let Some(connection) = self.front.connections.get_mut(connection) else { return };
        if let Protocol::Binary(server) = &mut connection.protocol {
            server.fail(stream, failure.code, &stream_message(failure, raw));
        }
    }

    fn local_over_binary(&mut self, connection: Token, stream: Stream, infer: &Infer<'_>) {
        let Input::Api { path, .. } = infer.input else { return };
        let (status, _, body) = self.local(path);
        let now = self.reactor.now;
        let Some(connection) = self.front.connections.get_mut(connection) else { return };
        if let Protocol::Binary(server) = &mut connection.protocol {
            if status == 200 {
                server.text(stream, now, &body, 0);
                let reason = crate::wire::frame::FinishReason::Other;
                let finish = crate::proto::Finish {
                    reason,
                    prompt_tokens: 0,
                    completion_tokens: 0,
                    queue_us: 0,
                };
                server.finish(stream, now, finish);
            } else {
                let code = ErrorCode::Backend;
                server.fail(stream, code, &String::from_utf8_lossy(&body));
            }
        }
    }

    /// What the gateway answers itself: status, content type, body.
    fn local(&self, path: &str) -> (u16, &'static str, Vec<u8>) {
        if path.starts_with("/metrics") {
            let card = self.front.config.device.usage();
            let page = measure::page(&self.front.measures, card.as_ref());
            return (200, "text/plain; version=0.0.4", page.into_bytes());
        }
        if self.is_up() {
            return (200, "application/json", br#"{"status":"ok"}"#.to_vec());
        }
        let (code, message) = if self.draining {
            (ErrorCode::ShuttingDown, "the server is shutting down")
        } else {
            (ErrorCode::Backend, "no backend is up")
        };
        (503, "application/json", error_body(code, message))
    }

    /// Encodes a request: what is to be done, what it weighs, and whether it is streamed.
    fn work(
        &mut self,
        infer: &Infer<'_>,
        request_id: Option<&str>,
    ) -> Result<(Work, u32, bool), Failure> {
        match &mut self.source {
            Source::Builtin(builtin) => {
                let job = builtin.start(infer)?;
                let (weight, streamed) = (job.weight(), job.is_streamed());
                Ok((Work::Job(Some(Box::new(job))), weight, streamed))
            }
            Source::Remote(dialect, _) => {
                let exchange = backend::encode(*dialect, infer)?;
                let (weight, streamed) = (exchange.weight, exchange.streamed);
                let request_id = request_id.map(str::to_owned);
                let request_id = request_id.unwrap_or_else(|| new_request_id(&mut self.prng));
                let traceparent = infer.traceparent.filter(|value| is_visible(value));
                let traceparent = traceparent.map(str::to_owned);
                let call = Call { exchange, request_id, traceparent };
                Ok((Work::Call(Rc::new(call)), weight, streamed))
            }
        }
    }

    /// Takes a request up.
    fn begin(
        &mut self,
        client: Client,
        work: Work,
        weight: u32,
        infer: &Infer<'_>,
        streamed: bool,
    ) {
        let now = self.reactor.now;
        let received = match client {
            Client::Http { connection } => self.front.connections.get_mut(connection),
            Client::Binary { .. } => None,
        };
        let received = received.and_then(|connection| connection.arrived.take()).unwrap_or(now);
        let limit = match infer.deadline_ms {
            Some(ms) => Some(Duration::from_millis(u64::from(ms))),
            None => self.front.config.deadline,
        };
        let request = Request {
            client,
            work,
            stage: Stage::Running(None),
            grant: None,
            weight,
            priority: infer.priority,
            session: infer.session.map(|session| prng::hash(0, session)),
            received,
            dispatched: received,
            first: None,
            deadline: limit.map_or(Instant::FAR, |limit| now + limit),
            step_at: Instant::FAR,
            heard: now,
            timer_at: Instant::FAR,
            tries: 0,
            paused: false,
            told_position: 0,
            streamed,
            head: None,
            body: Vec::new(),
            embeds: self.front.config.post.is_some() && is_embeddings(infer),
        };
        let token = self.front.requests.insert(request);
        match client {
            Client::Binary { connection, stream, .. } => {
                if let Some(connection) = self.front.connections.get_mut(connection)
                    && let Protocol::Binary(server) = &mut connection.protocol
                {
                    server.set_tag(stream, token.0);
                }
            }
            Client::Http { connection } => {
                if let Some(http) = self.front.http(connection) {
                    http.request = Some(token);
                }
            }
        }
        self.front.measure().requests.set(self.front.requests.len() as u64);
        if self.has_pool {
            self.ask(token, None);
        } else {
            self.step_job(token);
        }
    }

    fn step_http(&mut self, token: Token, input: &[u8]) -> Stepped {
        let mut used = 0;
        loop {
            let Some(http) = self.front.http(token) else { return Stepped::Gone };
            let step = match http.server.receive(&input[used..]) {
                Ok(step) => step,
                Err(error) => {
                    let code = match error.status() {
                        413 => ErrorCode::TooLarge,
                        _ => ErrorCode::BadFrame,
                    };
                    let body = error_body(code, &error.to_string());
                    let headers = [("Content-Type", "application/json")];
                    http.server.respond(error.status(), &headers, &body);
                    self.front.measure().failed[code as usize - 1].add(1);
                    self.front.touch(token);
                    return Stepped::Used(input.len());
                }
            };
            used += step.consumed;
            let stuck = step.is_stuck();
            match step.event {
                Some(HttpEvent::Request(head)) => {
                    if let Some(refusal) = self.authenticate(&head) {
                        let Some(http) = self.front.http(token) else { return Stepped::Gone };
                        http.server.close_after();
                        let headers =
                            [("Content-Type", "application/json"), ("WWW-Authenticate", "Bearer")];
                        http.server.respond(401, &headers, &refusal);
                        self.front.measure().failed[ErrorCode::Unauthenticated as usize - 1].add(1);
                        self.front.touch(token);
                        return Stepped::Used(input.len());
                    }
                    let request_id = match head.request_id {
                        Some(id) if id.len() <= REQUEST_ID_BYTES_MAX && is_visible(id) => {
                            id.to_owned()
                        }
                        _ => new_request_id(&mut self.prng),
                    };
                    if let Some(http) = self.front.http(token) {
                        http.asked = asked(&head, request_id);
                    }
                    self.front.touch(token);
                }
                Some(HttpEvent::Body(bytes)) => http.asked.body.extend_from_slice(bytes),
                Some(HttpEvent::End) => {
                    let asked = std::mem::take(&mut http.asked);
                    http.asked.request_id.clone_from(&asked.request_id);
                    self.http_request(token, &asked);
                }
                None if stuck => return Stepped::Used(used),
                None => {}
            }
        }
    }

    fn authenticate(&self, head: &RequestHead<'_>) -> Option<Vec<u8>> {
        let key = self.front.config.api_key.as_deref()?;
        if head.target == "/health" || head.target == "/v1/health" {
            return None;
        }
        let bearer = head.authorization.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        let given = bearer.or(head.api_key);
        let message = match given {
            Some(given) if equal_in_constant_time(given.as_bytes(), key.as_bytes()) => return None,
            Some(_) => "the API key is wrong",
            None => "an API key is needed: Authorization: Bearer …",
        };
        Some(error_body(ErrorCode::Unauthenticated, message))
    }

    fn http_request(&mut self, connection: Token, asked: &Asked) {
        self.front.measure().http_requests.add(1);
        let path = asked.target.split('?').next().unwrap_or_default();
        if matches!(path, "/health" | "/v1/health" | "/metrics") {
            let (status, content_type, body) = self.local(path);
            let headers =
                [("Content-Type", content_type), ("X-Request-Id", asked.request_id.as_str())];
            if let Some(http) = self.front.http(connection) {
                http.server.respond(status, &headers, &body);
            }
            self.front.commands.push_back(Command::Revisit(connection));
            return self.front.touch(connection);
        }
        let input = Input::Api { method: &asked.method, path: &asked.target, body: &asked.body };
        let mut infer = Infer::new(input);
        infer.session = asked.session.as_deref().map(str::as_bytes);
        infer.traceparent = asked.traceparent.as_deref();
        let outcome =
            read_number(&asked.priority, "X-Priority", u32::from(u8::MAX)).and_then(|priority| {
                infer.priority = priority.map_or(PRIORITY_DEFAULT, |p| p as u8);
                infer.deadline_ms = read_number(&asked.deadline_ms, "X-Deadline-Ms", u32::MAX)?;
                if self.draining {
                    let message = "the server is shutting down";
                    let mut failure = Failure::request(ErrorCode::ShuttingDown, message);
                    failure.retry_after_s = Some(1);
                    return Err(failure);
                }
                self.work(&infer, Some(&asked.request_id))
            });
        match outcome {
            Ok((work, weight, streamed)) => {
                let client = Client::Http { connection };
                self.begin(client, work, weight, &infer, streamed);
            }
            Err(failure) => {
                self.front.measure().failed[failure.code as usize - 1].add(1);
                self.front.answer_failure(connection, &failure);
                self.front.commands.push_back(Command::Revisit(connection));
            }
        }
        self.front.touch(connection);
    }
}

fn is_embeddings(infer: &Infer<'_>) -> bool {
    matches!(infer.input, Input::Api { method, path, .. } if embeddings::is_call(method, path))
}

fn new_request_id(prng: &mut Prng) -> String {
    format!("{:016x}", prng.next_u64())
}

fn asked(head: &RequestHead<'_>, request_id: String) -> Asked {
    Asked {
        method: head.method.to_owned(),
        target: head.target.to_owned(),
        request_id,
        traceparent: head.traceparent.map(str::to_owned),
        session: head.session.map(str::to_owned),
        priority: head.priority.map(str::to_owned),
        deadline_ms: head.deadline_ms.map(str::to_owned),
        body: Vec::new(),
    }
}

fn read_number(value: &Option<String>, name: &str, max: u32) -> Result<Option<u32>, Failure> {
    let Some(text) = value else { return Ok(None) };
    match text.trim().parse::<u32>() {
        Ok(number) if number <= max => Ok(Some(number)),
        _ => {
            let message = format!("{name} is {text:?}, not a number from 0 to {max}");
            Err(Failure::request(ErrorCode::BadRequest, message))
        }
    }
}

fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}
