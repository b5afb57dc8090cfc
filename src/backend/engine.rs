//! The upstream engine of one core: it sends an exchange to a backend, reads the answer, and closes
//! the socket at once when told to.
//!
//! One connection carries one exchange at a time. A connection whose answer ended cleanly is kept
//! for the next, for less long than llama-server keeps it. An exchange on a kept connection that
//! turns out to be dead before any byte of the answer came is sent once more on a fresh one; every
//! other failure is reported, and whoever submitted it decides whether to try elsewhere.
//!
//! ```text
//! submit -> Connecting -> Waiting (head, first token) -> Streaming -> Idle -> (next submit)
//!              |             |                             |          `-> closed: too old
//!              `-------------+-----------------------------+-> Fail: refused, timeout, broke off
//! ```

use std::cell::Cell;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use super::{Exchange, Failure, Output, Reader};
use crate::clock::Instant;
use crate::limits::UPSTREAM_IDLE_MAX;
use crate::net::socket::{self, Incoming};
use crate::net::{Reactor, Readiness, Slab, Token};
use crate::proto::http_client::{HttpClient, ResponseEvent};
use crate::wire::frame::ErrorCode;
use crate::wire::http1::RequestLine;

/// Where a backend is and how it is spoken to.
#[derive(Clone, Debug)]
pub struct Target {
    /// For people: the URL as it was given.
    pub name: String,
    /// The `Host` field.
    pub authority: String,
    /// What stands ahead of every path; empty or `/…`.
    pub prefix: String,
    /// `Authorization` for the backend, `Bearer …`.
    pub authorization: Option<String>,
    /// Its address, once the name is resolved.
    pub address: Option<SocketAddr>,
}

/// How long each stage may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To connect.
    pub connect: Duration,
    /// From sending the request to the first token, or to the answer that is no stream.
    pub first_token: Duration,
    /// Between two tokens.
    pub token: Duration,
}

/// An exchange with what its head carries besides; kept until the answer starts, in case it must be
/// sent again.
#[derive(Debug)]
pub struct Call {
    /// What to send and how to read the answer.
    pub exchange: Exchange,
    /// `X-Request-Id`.
    pub request_id: String,
    /// `traceparent` (W3C trace context).
    pub traceparent: Option<String>,
}

/// What the owner of a call wants after an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// More.
    Continue,
    /// No more until `resume`.
    Pause,
}

/// The engine's connections.
#[derive(Debug)]
pub struct Engine {
    kind: u8,
    targets: Vec<Target>,
    timeouts: Timeouts,
    upstreams: Slab<Upstream>,
    /// Per target, connections that can be used again; the latest is taken first.
    idle: Vec<Vec<Token>>,
    /// When what is being told came, by the kernel's stamps, for whoever asked for them.
    arrival: Option<Rc<Cell<Instant>>>,
}

#[derive(Debug)]
struct Upstream {
    stream: TcpStream,
    target: usize,
    http: HttpClient,
    /// Input that the machine could not use yet: a part of a head or of a chunk's size.
    held: Vec<u8>,
    call: Option<Active>,
    connected: bool,
    readable: bool,
    /// The poller said that the peer sends no more: behind what is read there is an end, and no
    /// further event for it.
    hangup: bool,
    paused: bool,
    /// It has served a call before this one.
    reused: bool,
    /// It may serve a call after this one.
    reusable: bool,
    /// What its timeout counts from.
    since: Instant,
    /// The nearest entry of it among the timers.
    timer_at: Instant,
}

#[derive(Debug)]
struct Active {
    tag: u64,
    call: Rc<Call>,
    reader: Reader,
    /// A token, or a part of the body, has come.
    started: bool,
}

/// What is left of an upstream after its input was used.
enum After {
    Keep,
    Close,
}

/// Receives outputs: the call's tag, and what came.
pub type Sink<'s> = dyn FnMut(u64, Output<'_>) -> Flow + 's;

impl Engine {
    /// An engine whose connections have tokens of `kind`.
    pub fn new(kind: u8, targets: Vec<Target>, timeouts: Timeouts) -> Engine {
        let idle = targets.iter().map(|_| Vec::new()).collect();
        Engine { kind, targets, timeouts, upstreams: Slab::new(kind), idle, arrival: None }
    }

    /// The kind of its tokens.
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// The backends.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Has the kernel stamp what comes. While a sink is told something, the cell has the moment at
    /// which that came, which is earlier than the one at which it was read. `submit` leaves in it
    /// the moment at which it began to write, if the call went out on a kept connection.
    pub fn stamp_arrivals(&mut self) -> Rc<Cell<Instant>> {
        self.arrival.get_or_insert_default().clone()
    }

    /// Notes where a backend is now.
    pub fn set_address(&mut self, target: usize, address: Option<SocketAddr>) {
        self.targets[target].address = address;
    }

    /// Connections that are open, idle ones included.
    pub fn connections(&self) -> usize {
        self.upstreams.len()
    }

    /// Sends `call` to a backend. Outputs come under `tag`; the token is for `cancel` and `resume`.
    ///
    /// # Errors
    /// It cannot be sent: no address yet, or no descriptor left.
    pub fn submit(
        &mut self,
        reactor: &mut Reactor,
        target: usize,
        tag: u64,
        call: Rc<Call>,
    ) -> Result<Token, Failure> {
        let token = match self.idle[target].pop() {
            Some(token) => token,
            None => self.connect(reactor, target)?,
        };
        self.start(reactor, token, tag, call);
        Ok(token)
    }

    /// Ends a call: the backend sees its connection close now.
    pub fn cancel(&mut self, token: Token) {
        self.upstreams.remove(token);
    }

    /// Reads a paused call again. Its outputs come from the next `turn`, so that this can be called
    /// from anywhere.
    #[must_use]
    pub fn resume(&mut self, token: Token) -> bool {
        let Some(upstream) = self.upstreams.get_mut(token) else { return false };
        upstream.paused = false;
        upstream.readable
    }

    /// Handles an event of one of its connections. True: it has more to read, call `read` again
    /// soon.
    pub fn event(
        &mut self,
        reactor: &mut Reactor,
        token: Token,
        readiness: Readiness,
        sink: &mut Sink<'_>,
    ) -> bool {
        let Some(upstream) = self.upstreams.get_mut(token) else { return false };
        upstream.readable |= readiness.readable;
        upstream.hangup |= readiness.closed;
        if readiness.writable && !upstream.http.pending().is_empty() {
            self.flush(reactor, token, sink);
        }
        self.read(reactor, token, sink)
    }

    /// Reads what there is, once. True: there may be more.
    pub fn read(&mut self, reactor: &mut Reactor, token: Token, sink: &mut Sink<'_>) -> bool {
        let Some(upstream) = self.upstreams.get_mut(token) else { return false };
        if !upstream.readable || upstream.paused {
            return false;
        }
        let mut scratch = std::mem::take(&mut reactor.scratch);
        let incoming = match &self.arrival {
            None => socket::read(&upstream.stream, &mut scratch),
            Some(arrival) => {
                let (incoming, ago) = socket::read_stamped(&upstream.stream, &mut scratch);
                let now = reactor.tick();
                let ago = ago.unwrap_or_default().as_nanos() as u64;
                arrival.set(Instant(now.0.saturating_sub(ago)));
                incoming
            }
        };
        let more = match incoming {
            Incoming::WouldBlock => {
                upstream.readable = false;
                false
            }
            Incoming::Bytes(count) => {
                upstream.readable = count == scratch.len() || upstream.hangup;
                let more = upstream.readable;
                self.received(reactor, token, &scratch[..count], sink);
                more
            }
            Incoming::Closed => {
                self.closed(reactor, token, None, sink);
                false
            }
            Incoming::Broken(code) => {
                let error = std::io::Error::from_raw_os_error(code);
                self.closed(reactor, token, Some(error), sink);
                false
            }
        };
        reactor.scratch = scratch;
        more
    }

    /// Handles a timer that fired at `at`.
    pub fn timer(&mut self, reactor: &mut Reactor, at: Instant, token: Token, sink: &mut Sink<'_>) {
        let Some(upstream) = self.upstreams.get_mut(token) else { return };
        if upstream.timer_at != at {
            return;
        }
        upstream.timer_at = Instant::FAR;
        let Some((deadline, what)) = upstream.deadline(&self.timeouts) else { return };
        if deadline > reactor.now {
            upstream.arm(reactor, &self.timeouts, token);
            return;
        }
        let name = &self.targets[upstream.target].name;
        let limit = (deadline - upstream.since).as_secs_f64();
        let message = format!("{name}: {what} after {limit} s");
        self.end(token, Some(Failure::backend(ErrorCode::Deadline, message)), sink);
    }

    fn connect(&mut self, reactor: &mut Reactor, target: usize) -> Result<Token, Failure> {
        let Target { name, address, .. } = &self.targets[target];
        let failure = |message: String| Failure::backend(ErrorCode::Backend, message);
        let address =
            address.ok_or_else(|| failure(format!("{name}: its address is not known")))?;
        let stream = socket::connect(address, None)
            .map_err(|error| failure(format!("connecting to {name}: {error}")))?;
        if self.arrival.is_some() {
            socket::stamp_arrivals(&stream)
                .map_err(|error| failure(format!("stamping what comes from {name}: {error}")))?;
        }
        let upstream = Upstream {
            stream,
            target,
            http: HttpClient::new(),
            held: Vec::new(),
            call: None,
            connected: false,
            readable: false,
            hangup: false,
            paused: false,
            reused: false,
            reusable: true,
            since: reactor.now,
            timer_at: Instant::FAR,
        };
        let token = self.upstreams.insert(upstream);
        let stream = &self.upstreams.get(token).expect("it was put in just now").stream;
        if let Err(error) = reactor.poller.register(stream, token) {
            let message = format!("watching a connection to {name}: {error}");
            self.upstreams.remove(token);
            return Err(Failure::backend(ErrorCode::Internal, message));
        }
        Ok(token)
    }

    fn start(&mut self, reactor: &mut Reactor, token: Token, tag: u64, call: Rc<Call>) {
        let Some(upstream) = self.upstreams.get_mut(token) else { return };
        let target = &self.targets[upstream.target];
        let mut headers: Vec<(&str, &str)> = Vec::with_capacity(4);
        if let Some(content_type) = call.exchange.content_type.as_deref() {
            headers.push(("Content-Type", content_type));
        }
        headers.push(("X-Request-Id", &call.request_id));
        if let Some(authorization) = &target.authorization {
            headers.push(("Authorization", authorization));
        }
        if let Some(traceparent) = &call.traceparent {
            headers.push(("traceparent", traceparent));
        }
        let joined;
        let path = if target.prefix.is_empty() {
            &call.exchange.target
        } else {
            joined = format!("{}{}", target.prefix, call.exchange.target);
            &joined
        };
        let line = RequestLine {
            method: &call.exchange.method,
            target: path,
            host: &target.authority,
            headers: &headers,
        };
        let body = call.exchange.body.as_slice();
        let has_body = !body.is_empty() || call.exchange.method == "POST";
        upstream.http.request(&line, has_body.then_some(body));
        upstream.reusable = call.exchange.reusable;
        let reader = call.exchange.reader.clone();
        upstream.call = Some(Active { tag, call, reader, started: false });
        upstream.since = reactor.now;
        upstream.arm(reactor, &self.timeouts, token);
        // On a connection that stands this is the whole request; on one under way it does nothing,
        // or, on the loopback, it saves the wait for the event.
        if upstream.reused
            && let Some(arrival) = &self.arrival
        {
            arrival.set(reactor.tick());
        }
        upstream.write();
    }

    /// Writes what is left to write; a failure is told once the socket is read.
    fn flush(&mut self, reactor: &mut Reactor, token: Token, sink: &mut Sink<'_>) {
        let Some(upstream) = self.upstreams.get_mut(token) else { return };
        if let Ok(Some(error)) = upstream.stream.take_error() {
            let name = &self.targets[upstream.target].name;
            let message = if upstream.connected {
                format!("{name}: {error}")
            } else {
                format!("connecting to {name}: {error}")
            };
            self.fail(reactor, token, message, sink);
            return;
        }
        upstream.write();
    }

    fn received(&mut self, reactor: &mut Reactor, token: Token, input: &[u8], sink: &mut Sink<'_>) {
        let Some(upstream) = self.upstreams.get_mut(token) else { return };
        let name = &self.targets[upstream.target].name;
        let result = if upstream.held.is_empty() {
            upstream.step(reactor.now, input, name, sink)
        } else {
            let mut held = std::mem::take(&mut upstream.held);
            held.extend_from_slice(input);
            upstream.step(reactor.now, &held, name, sink)
        };
        match result {
            Ok(After::Keep) => {
                let idle = upstream.call.is_none() && upstream.http.is_idle();
                if idle && upstream.hangup {
                    self.upstreams.remove(token);
                    return;
                }
                if idle {
                    upstream.reused = true;
                    upstream.since = reactor.now;
                    self.idle[upstream.target].push(token);
                }
                upstream.arm(reactor, &self.timeouts, token);
            }
            Ok(After::Close) => {
                self.upstreams.remove(token);
            }
            Err(failure) => self.end(token, failure, sink),
        }
    }

    /// The peer has closed, or broken, the connection.
    fn closed(
        &mut self,
        reactor: &mut Reactor,
        token: Token,
        broken: Option<std::io::Error>,
        sink: &mut Sink<'_>,
    ) {
        let Some(upstream) = self.upstreams.get_mut(token) else { return };
        if upstream.call.is_none() {
            let idle = &mut self.idle[upstream.target];
            idle.retain(|&other| other != token);
            self.upstreams.remove(token);
            return;
        }
        let name = &self.targets[upstream.target].name;
        let message = match (upstream.http.eof(), broken) {
            (Ok(Some(_)), _) => {
                if let Some(active) = &mut upstream.call {
                    let tag = active.tag;
                    active.reader.end(true, &mut |output| {
                        sink(tag, output);
                    });
                }
                self.upstreams.remove(token);
                return;
            }
            (_, Some(error)) if !upstream.connected => format!("connecting to {name}: {error}"),
            (_, Some(error)) => format!("{name} broke the connection: {error}"),
            (Ok(None), None) => format!("{name} closed the connection without an answer"),
            (Err(error), None) => format!("{name}: {error}"),
        };
        self.fail(reactor, token, message, sink);
    }

    /// Ends a call whose connection broke; one that was stale from the start is sent once more.
    fn fail(&mut self, reactor: &mut Reactor, token: Token, message: String, sink: &mut Sink<'_>) {
        let Some(upstream) = self.upstreams.get_mut(token) else { return };
        let stale = upstream.reused && !upstream.http.received_any();
        if !stale {
            if let Some(active) = &mut upstream.call
                && active.started
            {
                // The reader knows how far it was, and says so.
                let tag = active.tag;
                active.reader.end(false, &mut |output| {
                    sink(tag, output);
                });
                self.upstreams.remove(token);
                return;
            }
            let failure = if upstream.connected {
                Failure::backend(ErrorCode::Backend, message)
            } else {
                Failure::unreachable(message)
            };
            self.end(token, Some(failure), sink);
            return;
        }
        let target = upstream.target;
        let Some(Upstream { call: Some(active), .. }) = self.upstreams.remove(token) else {
            return;
        };
        // Where one kept connection was closed, the others will be too.
        for other in std::mem::take(&mut self.idle[target]) {
            self.upstreams.remove(other);
        }
        match self.connect(reactor, target) {
            Ok(fresh) => {
                self.start(reactor, fresh, active.tag, active.call);
                sink(active.tag, Output::Moved { call: fresh.0 });
            }
            Err(failure) => {
                sink(active.tag, Output::Fail(failure));
            }
        }
    }

    /// Closes a connection and tells its call why; None: it was told already.
    fn end(&mut self, token: Token, failure: Option<Failure>, sink: &mut Sink<'_>) {
        let Some(upstream) = self.upstreams.remove(token) else { return };
        match (upstream.call, failure) {
            (Some(active), Some(failure)) => {
                sink(active.tag, Output::Fail(failure));
            }
            (Some(_), None) => {}
            (None, _) => self.idle[upstream.target].retain(|&other| other != token),
        }
    }
}

impl Upstream {
    /// Feeds the machine and the reader. `Err(None)`: the reader has told the failure itself.
    fn step(
        &mut self,
        now: Instant,
        mut input: &[u8],
        name: &str,
        sink: &mut Sink<'_>,
    ) -> Result<After, Option<Failure>> {
        loop {
            let step = self.http.receive(input).map_err(|error| {
                self.call.as_ref().map(|_| {
                    let message = format!("{name} sent an answer that is not HTTP: {error}");
                    Failure::backend(ErrorCode::Backend, message)
                })
            })?;
            input = &input[step.consumed..];
            let Some(event) = step.event else {
                if step.consumed == 0 {
                    break;
                }
                continue;
            };
            let ended = matches!(event, ResponseEvent::End { .. });
            let reusable = matches!(event, ResponseEvent::End { reusable: true }) && self.reusable;
            if let Some(active) = &mut self.call {
                let (tag, mut paused) = (active.tag, self.paused);
                let started = &mut active.started;
                let mut tell = |output: Output<'_>| {
                    *started |= matches!(
                        output,
                        Output::Text { .. } | Output::Body { .. } | Output::Progress { .. }
                    );
                    paused |= sink(tag, output) == Flow::Pause;
                };
                match event {
                    ResponseEvent::Head(head) => active.reader.head(&head, &mut tell),
                    ResponseEvent::Body(bytes) => active.reader.body(bytes, &mut tell),
                    ResponseEvent::End { .. } => active.reader.end(true, &mut tell),
                }
                self.paused = paused;
                if active.started {
                    self.since = now;
                }
                if active.reader.is_over() {
                    self.call = None;
                    self.paused = false;
                }
            }
            if ended {
                // Bytes behind an answer are nobody's: such a connection is not used again.
                return Ok(if reusable && input.is_empty() { After::Keep } else { After::Close });
            }
        }
        self.held.clear();
        self.held.extend_from_slice(input);
        if self.held.is_empty() && self.held.capacity() > 4096 {
            self.held = Vec::new();
        }
        Ok(After::Keep)
    }

    fn write(&mut self) {
        while !self.http.pending().is_empty() {
            match socket::write(&self.stream, self.http.pending()) {
                Ok(0) => return,
                Ok(count) => {
                    self.connected = true;
                    self.http.sent(count);
                }
                // The read that follows the event tells what happened.
                Err(_) => {
                    self.readable = true;
                    return;
                }
            }
        }
    }

    /// When its present stage has taken too long, and what to say then.
    fn deadline(&self, timeouts: &Timeouts) -> Option<(Instant, &'static str)> {
        match &self.call {
            None => Some((self.since + UPSTREAM_IDLE_MAX, "idle")),
            Some(_) if self.paused => None,
            Some(_) if !self.connected => Some((self.since + timeouts.connect, "no connection")),
            Some(active) if !active.started => {
                Some((self.since + timeouts.first_token, "no first token (--first-token-timeout)"))
            }
            Some(_) => Some((self.since + timeouts.token, "no further token (--token-timeout)")),
        }
    }

    fn arm(&mut self, reactor: &mut Reactor, timeouts: &Timeouts, token: Token) {
        if let Some((at, _)) = self.deadline(timeouts)
            && at < self.timer_at
        {
            self.timer_at = at;
            reactor.timers.set(at, token);
        }
    }
}
