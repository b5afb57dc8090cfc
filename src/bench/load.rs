//! The load generator: so many requests, so many at once or so many a second, over either protocol.
//!
//! Closed loop: the next request starts when one ends. Open loop (`rate`): the moments at which
//! requests should start are fixed beforehand, and times count from them, also when the request had
//! to wait for a free connection; so a server that stalls cannot hide it by slowing the generator
//! (coordinated omission).

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::binary::{BinaryConnection, Flight};
use super::plan::{Plan, Watcher, Wire};
use super::report::Report;
use crate::backend::engine::{self, Call, Engine, Timeouts};
use crate::backend::{Output, encode};
use crate::clock::{Instant, MonotonicClock};
use crate::limits::OPEN_REQUESTS_MAX;
use crate::net::socket::Incoming;
use crate::net::{Reactor, Slab, Token, socket};
use crate::prng::Prng;
use crate::proto::binary_client::ClientEvent;
use crate::wire::frame::{Done, ErrorCode};

const CONNECTION: u8 = 1;
const UPSTREAM: u8 = 2;
const FLIGHT: u8 = 3;
const TICK: Token = Token::single(4);
const TICK_EVERY: Duration = Duration::from_millis(100);
/// Connections opened in one turn, so that the server's backlog does not overflow.
const OPENS_PER_TURN: usize = 128;

struct Load<'r, 'p> {
    plan: &'r Plan<'p>,
    reactor: Reactor,
    recorder: Recorder<'r>,
    connections: Slab<BinaryConnection>,
    /// A connection for each free place on it.
    places: Vec<Token>,
    engine: Option<Engine>,
    calls: Vec<Rc<Call>>,
    http: Slab<HttpFlight>,
    opened: usize,
    under_way: usize,
    started: u64,
    next_intended: Instant,
    began: Instant,
    prng: Prng,
    cancels: VecDeque<(Instant, Token, u64)>,
    timeouts: VecDeque<(Instant, Token, u64)>,
    fatal: Option<String>,
}

/// A request under way over HTTP.
struct HttpFlight {
    flight: Flight,
    upstream: Token,
    /// How it ended.
    ended: Option<Result<Done, String>>,
}

/// What is kept of what happens.
struct Recorder<'r> {
    watcher: &'r mut dyn Watcher,
    warmup: u64,
    report: Report,
    since: Option<Instant>,
    latest_end: Instant,
}

impl Recorder<'_> {
    fn text(&mut self, flight: &mut Flight, now: Instant, text: &[u8], tokens: u64) {
        flight.tokens += tokens;
        flight.bytes += text.len() as u64;
        if text.is_empty() {
            return;
        }
        self.watcher.text(text);
        if flight.number >= self.warmup {
            match flight.last_text {
                None => self.report.ttft.record(now.micros_since(flight.intended)),
                Some(last) => self.report.itl.record(now.micros_since(last)),
            }
        }
        flight.last_text = Some(now);
    }

    fn end(&mut self, flight: &Flight, now: Instant, result: Result<Done, String>) {
        if flight.number < self.warmup {
            return;
        }
        self.since = Some(self.since.unwrap_or(flight.intended).min(flight.intended));
        self.latest_end = now;
        if flight.sent.since(flight.intended) > Duration::from_millis(1) {
            self.report.late += 1;
        }
        self.report.tokens += flight.tokens;
        self.report.text_bytes += flight.bytes;
        match result {
            Ok(done) => {
                self.report.ok += 1;
                self.report.e2e.record(now.micros_since(flight.intended));
                self.report.service.record(now.micros_since(flight.sent));
                if done.total_us > 0 {
                    self.report.queue.record(done.queue_us);
                }
            }
            Err(_) if flight.cancelled => self.report.cancelled += 1,
            Err(error) => *self.report.errors.entry(error).or_default() += 1,
        }
    }
}

/// Does a run.
///
/// # Errors
/// It could not be done at all: no connection, or no descriptor. Requests that fail are in the
/// report.
pub fn run(plan: &Plan<'_>, watcher: &mut dyn Watcher) -> Result<Report, String> {
    let reactor = Reactor::open(MonotonicClock::new()).map_err(|error| error.to_string())?;
    let now = reactor.now;
    let report = Report { tokens_source: "server", ..Report::default() };
    let recorder = Recorder { watcher, warmup: plan.warmup, report, since: None, latest_end: now };
    let mut load = Load {
        plan,
        reactor,
        recorder,
        connections: Slab::new(CONNECTION),
        places: Vec::new(),
        engine: None,
        calls: Vec::new(),
        http: Slab::new(FLIGHT),
        opened: 0,
        under_way: 0,
        started: 0,
        next_intended: now,
        began: now,
        prng: Prng::new(1),
        cancels: VecDeque::new(),
        timeouts: VecDeque::new(),
        fatal: None,
    };
    load.prepare_http()?;
    load.reactor.timers.set(now, TICK);
    while load.fatal.is_none() && !load.is_over() {
        load.turn()?;
    }
    if let Some(error) = load.fatal {
        return Err(error);
    }
    let Recorder { mut report, since, latest_end, .. } = load.recorder;
    report.wall_s = latest_end.since(since.unwrap_or(latest_end)).as_secs_f64();
    Ok(report)
}

impl Load<'_, '_> {
    fn prepare_http(&mut self) -> Result<(), String> {
        let Wire::Http { dialect, target } = &self.plan.wire else { return Ok(()) };
        for infer in &self.plan.requests {
            let exchange = encode(*dialect, infer).map_err(|failure| failure.message)?;
            let call = Call { exchange, request_id: "cnse".to_owned(), traceparent: None };
            self.calls.push(Rc::new(call));
        }
        let limit = self.plan.timeout;
        let timeouts = Timeouts { connect: limit, first_token: limit, token: limit };
        let mut engine = Engine::new(UPSTREAM, vec![target.clone()], timeouts);
        engine.set_address(0, Some(self.plan.address));
        self.engine = Some(engine);
        Ok(())
    }

    fn total(&self) -> u64 {
        self.plan.iters.map_or(u64::MAX, |iters| iters.saturating_add(self.plan.warmup))
    }

    fn next_start(&self) -> Instant {
        if self.plan.rate.is_some() { self.next_intended } else { self.reactor.now }
    }

    fn starts_more(&self) -> bool {
        let in_time = self.plan.duration.is_none_or(|d| self.next_start() < self.began + d);
        self.started < self.total() && in_time
    }

    fn is_over(&self) -> bool {
        self.under_way == 0 && !self.starts_more()
    }

    fn turn(&mut self) -> Result<(), String> {
        self.open_connections();
        self.start_requests();
        if self.fatal.is_some() || self.is_over() {
            return Ok(());
        }
        let opening = self.opened < self.connections_wanted();
        self.reactor.wait(opening).map_err(|error| error.to_string())?;
        for index in 0..self.reactor.poller.event_count() {
            let Some((token, readiness)) = self.reactor.poller.event(index) else { continue };
            if token.kind() == CONNECTION {
                self.binary_event(token);
                continue;
            }
            let Load { engine: Some(engine), reactor, http, recorder, .. } = self else { continue };
            let now = reactor.now;
            let mut sink = |tag, output: Output<'_>| told(http, recorder, now, tag, output);
            let mut more = engine.event(reactor, token, readiness, &mut sink);
            while more {
                more = engine.read(reactor, token, &mut sink);
            }
        }
        while let Some((at, token)) = self.reactor.timers.fire(self.reactor.now) {
            if token == TICK {
                self.tick();
            } else if let Load { engine: Some(engine), reactor, http, recorder, .. } = self {
                let now = reactor.now;
                let mut sink = |tag, output: Output<'_>| told(http, recorder, now, tag, output);
                engine.timer(reactor, at, token, &mut sink);
            }
        }
        self.settle_http();
        self.expire();
        Ok(())
    }

    fn tick(&mut self) {
        self.recorder.watcher.progress(&self.recorder.report);
        if let Some(rate) = self.plan.slow {
            let grant = (f64::from(rate) * TICK_EVERY.as_secs_f64()).max(1.0) as u32;
            for token in self.connections.tokens() {
                let Some(connection) = self.connections.get_mut(token) else { continue };
                for flight in connection.flights.iter_mut().flatten() {
                    let bytes = flight.owed_credit.min(grant);
                    if bytes > 0 {
                        flight.owed_credit -= bytes;
                        connection.client.credit(flight.id, bytes);
                    }
                }
                self.flush(token);
            }
        }
        self.reactor.timers.set(self.reactor.now + TICK_EVERY, TICK);
    }

    fn connections_wanted(&self) -> usize {
        match self.plan.wire {
            Wire::Binary { connections, .. } => connections,
            Wire::Http { .. } => 0,
        }
    }

    fn open_connections(&mut self) {
        let Wire::Binary { connections, token } = &self.plan.wire else { return };
        let each = self.plan.concurrency.div_ceil(*connections).min(OPEN_REQUESTS_MAX as usize);
        for _ in 0..OPENS_PER_TURN {
            if self.opened == *connections || self.fatal.is_some() {
                return;
            }
            let sources = &self.plan.sources;
            let source = sources.get(self.opened % sources.len().max(1)).copied();
            self.opened += 1;
            let opened = BinaryConnection::open(self.plan.address, source, token.as_deref(), each);
            let opened = opened.and_then(|connection| {
                let key = self.connections.insert(connection);
                let connection = self.connections.get(key).expect("it was put in just now");
                self.reactor.poller.register(&connection.stream, key)?;
                Ok(key)
            });
            match opened {
                Ok(key) => self.places.extend(std::iter::repeat_n(key, each)),
                Err(error) => {
                    self.fatal = Some(format!("connecting to {}: {error}", self.plan.address));
                }
            }
        }
    }

    fn start_requests(&mut self) {
        let mut touched = Vec::new();
        while self.starts_more() && self.under_way < self.plan.concurrency {
            let intended = self.next_start();
            if intended > self.reactor.now {
                self.reactor.timers.set(intended, Token::single(5));
                break;
            }
            let number = self.started;
            let flight = Flight {
                number,
                id: 0,
                intended,
                sent: self.reactor.now,
                last_text: None,
                tokens: 0,
                bytes: 0,
                owed_credit: 0,
                cancelled: false,
            };
            let begun = if self.engine.is_some() {
                self.start_http(flight)
            } else {
                self.start_binary(flight, &mut touched)
            };
            if !begun {
                break;
            }
            self.started += 1;
            if let Some(rate) = self.plan.rate {
                let interval =
                    if self.plan.poisson { -(1.0 - self.prng.unit()).ln() } else { 1.0 } / rate;
                self.next_intended = intended + Duration::from_secs_f64(interval);
            }
        }
        for token in touched {
            self.flush(token);
        }
    }

    fn start_binary(&mut self, mut flight: Flight, touched: &mut Vec<Token>) -> bool {
        let Some(token) = self.places.pop() else { return false };
        let Some(connection) = self.connections.get_mut(token) else { return true };
        let Some((place, id)) = connection.take_place() else { return true };
        flight.id = id;
        let requests = &self.plan.requests;
        let infer = &requests[(flight.number % requests.len() as u64) as usize];
        connection.client.infer(id, infer, self.plan.credit);
        connection.flights[place] = Some(flight);
        self.under_way += 1;
        if touched.last() != Some(&token) {
            touched.push(token);
        }
        self.watch(token, id);
        true
    }

    fn start_http(&mut self, flight: Flight) -> bool {
        let call = self.calls[(flight.number % self.calls.len() as u64) as usize].clone();
        let entry = HttpFlight { flight, upstream: Token(0), ended: None };
        let token = self.http.insert(entry);
        self.under_way += 1;
        let Some(engine) = &mut self.engine else { return false };
        let submitted = engine.submit(&mut self.reactor, 0, token.0, call);
        if let Some(entry) = self.http.get_mut(token) {
            match submitted {
                Ok(upstream) => entry.upstream = upstream,
                Err(failure) => entry.ended = Some(Err(failure.message)),
            }
        }
        self.watch(token, 0);
        true
    }

    /// Notes when a request is to be cancelled, and when it has failed.
    fn watch(&mut self, token: Token, id: u64) {
        let now = self.reactor.now;
        if let Some(after) = self.plan.cancel_after {
            self.cancels.push_back((now + after, token, id));
            self.reactor.timers.set(now + after, Token::single(5));
        }
        self.timeouts.push_back((now + self.plan.timeout, token, id));
    }

    /// Cancels what is to be cancelled, and gives up on what takes too long.
    fn expire(&mut self) {
        let now = self.reactor.now;
        while let Some(&(at, token, id)) = self.cancels.front()
            && at <= now
        {
            self.cancels.pop_front();
            self.cancel(token, id, true);
        }
        while let Some(&(at, token, id)) = self.timeouts.front()
            && at <= now
        {
            self.timeouts.pop_front();
            self.cancel(token, id, false);
        }
        // Ends that are long past need no memory.
        while let Some(&(_, token, id)) = self.timeouts.front()
            && !self.is_under_way(token, id)
        {
            self.timeouts.pop_front();
        }
    }

    fn is_under_way(&mut self, token: Token, id: u64) -> bool {
        match token.kind() {
            FLIGHT => self.http.get(token).is_some(),
            _ => self.connections.get_mut(token).is_some_and(|c| c.flight(id).is_some()),
        }
    }

    fn cancel(&mut self, token: Token, id: u64, wanted: bool) {
        let limit = self.plan.timeout.as_secs_f64();
        let message = format!("TIMEOUT: no end within {limit} s (--timeout)");
        if let Some(entry) = self.http.get_mut(token) {
            entry.flight.cancelled = wanted;
            entry.ended = Some(Err(message));
            let upstream = entry.upstream;
            if let Some(engine) = &mut self.engine {
                engine.cancel(upstream);
            }
            return self.settle_http();
        }
        let Some(connection) = self.connections.get_mut(token) else { return };
        let Some(flight) = connection.flight(id) else { return };
        flight.cancelled = wanted;
        connection.client.cancel(id);
        if !wanted && let Some(flight) = connection.take(id) {
            self.under_way -= 1;
            self.places.push(token);
            self.recorder.end(&flight, self.reactor.now, Err(message));
        }
        self.flush(token);
    }

    /// Notes the ends that the engine told.
    fn settle_http(&mut self) {
        if self.engine.is_none() {
            return;
        }
        for token in self.http.tokens() {
            if self.http.get(token).is_some_and(|entry| entry.ended.is_some())
                && let Some(HttpFlight { flight, ended: Some(result), .. }) =
                    self.http.remove(token)
            {
                self.under_way -= 1;
                self.recorder.end(&flight, self.reactor.now, result);
            }
        }
    }

    fn flush(&mut self, token: Token) {
        if let Some(connection) = self.connections.get_mut(token)
            && let Err(error) = connection.write()
        {
            self.lost(token, &error.to_string());
        }
    }

    fn binary_event(&mut self, token: Token) {
        let mut scratch = std::mem::take(&mut self.reactor.scratch);
        while let Some(connection) = self.connections.get_mut(token) {
            match socket::read(&connection.stream, &mut scratch) {
                Incoming::Bytes(count) => {
                    self.reactor.tick();
                    self.binary_input(token, &scratch[..count]);
                    if count < scratch.len() {
                        break;
                    }
                }
                Incoming::WouldBlock => break,
                Incoming::Closed => {
                    self.lost(token, "the server closed the connection");
                    break;
                }
                Incoming::Broken(code) => {
                    let error = std::io::Error::from_raw_os_error(code);
                    self.lost(token, &error.to_string());
                    break;
                }
            }
        }
        self.reactor.scratch = scratch;
        self.start_requests();
        self.flush(token);
    }

    fn binary_input(&mut self, token: Token, input: &[u8]) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let mut held = std::mem::take(&mut connection.held);
        let input = if held.is_empty() {
            input
        } else {
            held.extend_from_slice(input);
            &held
        };
        let mut used = 0;
        loop {
            let Some(connection) = self.connections.get_mut(token) else { return };
            let step = match connection.client.receive(&input[used..]) {
                Ok(step) => step,
                Err(error) => {
                    self.fatal = Some(format!("the server broke the protocol: {error}"));
                    return;
                }
            };
            used += step.consumed;
            let stuck = step.is_stuck();
            if let Some(event) = step.event {
                self.client_event(token, event);
            }
            if stuck {
                break;
            }
        }
        if let Some(connection) = self.connections.get_mut(token) {
            connection.held = input[used..].to_vec();
        }
    }

    fn client_event(&mut self, token: Token, event: ClientEvent<'_>) {
        let now = self.reactor.now;
        let Some(connection) = self.connections.get_mut(token) else { return };
        let (id, result) = match event {
            ClientEvent::Chunk { id, tokens, text } => {
                let Some(flight) = connection.flight(id) else { return };
                self.recorder.text(flight, now, text, u64::from(tokens));
                flight.owed_credit += text.len() as u32;
                // Granted in large parts, so that a credit is not sent for each token.
                if self.plan.slow.is_none() && flight.owed_credit >= self.plan.credit / 2 {
                    let bytes = std::mem::take(&mut flight.owed_credit);
                    connection.client.credit(id, bytes);
                }
                return;
            }
            ClientEvent::Done { id, done, .. } => (id, Ok(done)),
            ClientEvent::Error { id: 0, code, message } => {
                self.fatal = Some(describe(code, &message));
                return;
            }
            ClientEvent::Error { id, code, message } => (id, Err(describe(code, &message))),
            ClientEvent::Hello(_) => {
                connection.greeted = true;
                return;
            }
            ClientEvent::Status { .. } | ClientEvent::Goaway { .. } | ClientEvent::Pong { .. } => {
                return;
            }
        };
        if let Some(flight) = connection.take(id) {
            self.under_way -= 1;
            self.places.push(token);
            self.recorder.end(&flight, now, result);
        }
    }

    /// A connection broke: its requests have failed. The run cannot go on without any, and need not
    /// where the server never said a word.
    fn lost(&mut self, token: Token, reason: &str) {
        let Some(connection) = self.connections.remove(token) else { return };
        self.places.retain(|place| *place != token);
        for flight in connection.flights.iter().flatten() {
            self.under_way -= 1;
            self.recorder.end(flight, self.reactor.now, Err(format!("CONNECTION: {reason}")));
        }
        if !connection.greeted || (self.connections.is_empty() && self.starts_more()) {
            self.fatal = Some(format!("connecting to {}: {reason}", self.plan.address));
        }
    }
}

fn describe(code: u32, message: &str) -> String {
    let name = ErrorCode::from_u32(code).map_or("ERROR", ErrorCode::name);
    format!("{name}: {message}")
}

/// Takes what the engine tells of a request.
fn told(
    http: &mut Slab<HttpFlight>,
    recorder: &mut Recorder<'_>,
    now: Instant,
    tag: u64,
    output: Output<'_>,
) -> engine::Flow {
    let Some(entry) = http.get_mut(Token(tag)) else { return engine::Flow::Continue };
    match output {
        Output::Text { text, tokens } => {
            recorder.text(&mut entry.flight, now, text.as_bytes(), u64::from(tokens));
        }
        Output::Body { bytes, tokens } => {
            recorder.text(&mut entry.flight, now, bytes, u64::from(tokens));
        }
        Output::Head { .. } | Output::Progress { .. } => {}
        Output::Moved { call } => entry.upstream = Token(call),
        Output::Done(finished) => {
            let (prompt_tokens, completion_tokens) =
                (finished.prompt_tokens, finished.completion_tokens);
            entry.ended = Some(Ok(Done { prompt_tokens, completion_tokens, ..Done::default() }));
        }
        Output::Fail(failure) => {
            entry.ended = Some(Err(format!("{}: {}", failure.code.name(), failure.message)));
        }
    }
    engine::Flow::Continue
}
