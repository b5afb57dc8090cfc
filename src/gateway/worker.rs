//! One core's loop: events, timers, messages of other cores, and what they make of requests.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::admission::{Message, OWNER, failure};
use super::connection::{Connection, Protocol};
use super::front::{CONNECTION, Command, Front, REQUEST};
use super::measure::Measures;
use super::request_log::RequestLog;
use super::{BackendConfig, Config};
use crate::backend::Dialect;
use crate::backend::builtin::Builtin;
use crate::backend::engine::Engine;
use crate::backend::pool::{Health, Pool, Ticket};
use crate::clock::{Instant, MonotonicClock};
use crate::cuda::Offload;
use crate::limits::{HEAD_TIMEOUT, LINGER_TIMEOUT};
use crate::net::{Port, Reactor, Readiness, Slab, Token, heap, socket};
use crate::prng::Prng;
use crate::proto::binary_server::ServerConfig;
use crate::wire::frame::ErrorCode;

const UPSTREAM: u8 = 3;
const LISTENER: Token = Token::single(4);
const WAKER: Token = Token::single(5);
pub(super) const TICKER: Token = Token::single(6);
/// Connections accepted in one turn, so that a flood of them does not hold up those that are there.
const ACCEPTS_PER_TURN: usize = 64;
/// Fewer connections than this are not worth giving memory back for.
const TRIM_PEAK: usize = 512;
/// With fewer connections to backends there is little to gather, and a wait would be felt.
const GATHER_STREAMS_MIN: usize = 32;
/// When there was no descriptor for a connection, the next try.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A core.
pub struct Worker {
    pub(super) front: Front,
    pub(super) reactor: Reactor,
    pub(super) source: Source,
    pub(super) draining: bool,
    pub(super) prng: Prng,
    pub(super) binary_config: Rc<ServerConfig>,
    listener: Option<TcpListener>,
    pub(super) port: Port<Message>,
    /// On core 0: the pool, if there is one.
    pub(super) pool: Option<Pool>,
    /// Whether requests must ask the pool at all.
    pub(super) has_pool: bool,
    /// Which backends are up, as the prober says.
    pub(super) up: Vec<bool>,
    /// Tokens of connections, and of connections to backends, that have more to read.
    pub(super) ready: Vec<Token>,
    /// On core 0: cores that still run.
    others: usize,
    pub(super) ticking: bool,
    /// The most connections since memory was last given back.
    connections_peak: usize,
    /// All events of the last turn were of connections to backends.
    only_tokens: bool,
    /// When the last turn began.
    gathered: Instant,
}

/// What serves requests on this core.
pub(super) enum Source {
    Builtin(Builtin),
    Remote(Dialect, Engine),
}

impl Worker {
    /// A core that listens.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn open(
        config: Config,
        listener: TcpListener,
        port: Port<Message>,
        clock: MonotonicClock,
        measures: Arc<Vec<Measures>>,
    ) -> io::Result<Worker> {
        let reactor = Reactor::open(clock)?;
        reactor.poller.register(&listener, LISTENER)?;
        reactor.poller.register(port.waker(), WAKER)?;
        let core = port.index();
        let (source, names, slots) = match &config.backend {
            BackendConfig::Builtin(builtin) => {
                let slots = (builtin.slots > 0).then_some(builtin.slots);
                (Source::Builtin(Builtin::new(builtin.clone())), vec!["builtin".to_owned()], slots)
            }
            BackendConfig::Remote { dialect, targets, .. } => {
                let names = targets.iter().map(|target| target.name.clone()).collect();
                let engine = Engine::new(UPSTREAM, targets.clone(), config.timeouts);
                (Source::Remote(*dialect, engine), names, None)
            }
        };
        let has_pool = matches!(source, Source::Remote(..)) || slots.is_some();
        let mut pool = (core == OWNER && has_pool).then(|| Pool::new(config.pool, &names));
        if let (Some(pool), Some(slots)) = (&mut pool, slots) {
            pool.set_health(0, Health::Up { slots });
        }
        let agent = concat!("cnse/", env!("CARGO_PKG_VERSION")).to_owned();
        let binary_config = ServerConfig { token: config.api_key.clone(), agent };
        let others = config.threads - 1;
        let up = vec![matches!(source, Source::Builtin(_)); names.len()];
        let log = config.request_log.as_deref();
        let log = log.map(|path| RequestLog::open(path, clock)).transpose()?;
        let seed = std::process::id() as u64 ^ (core as u64) << 32 ^ reactor.now.0 << 8;
        Ok(Worker {
            front: Front {
                offload: Offload::new(&config.device),
                config: Rc::new(config),
                connections: Slab::new(CONNECTION),
                requests: Slab::new(REQUEST),
                dirty: Vec::new(),
                commands: std::collections::VecDeque::new(),
                measures,
                core,
                has_ended: false,
                backends: names.len() as u32,
                log,
            },
            reactor,
            source,
            draining: false,
            prng: Prng::new(seed),
            binary_config: Rc::new(binary_config),
            listener: Some(listener),
            port,
            pool,
            has_pool,
            up,
            ready: Vec::new(),
            others,
            ticking: false,
            connections_peak: 0,
            only_tokens: false,
            gathered: Instant::default(),
        })
    }

    /// Runs until a drain has ended.
    ///
    /// # Errors
    /// The poller failed: a fault of the program.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let busy = !self.ready.is_empty();
            self.gather_tokens();
            self.reactor.wait(busy)?;
            self.only_tokens = self.reactor.poller.event_count() > 0;
            for index in 0..self.reactor.poller.event_count() {
                if let Some((token, readiness)) = self.reactor.poller.event(index) {
                    self.only_tokens &= token.kind() == UPSTREAM;
                    self.event(token, readiness);
                }
            }
            for token in std::mem::take(&mut self.ready) {
                self.read_on(token);
            }
            while let Some((at, token)) = self.reactor.timers.fire(self.reactor.now) {
                self.timer(at, token);
            }
            self.settle();
            if !self.port.flush() {
                self.reactor.timers.set(self.reactor.now + Duration::from_micros(100), TICKER);
            }
            if let Source::Remote(_, engine) = &self.source {
                self.front.measure().upstreams.set(engine.connections() as u64);
            }
            self.give_memory_back();
            if self.draining && self.is_finished() {
                if self.port.index() != OWNER {
                    self.port.send(OWNER, Message::Gone);
                    self.port.flush();
                }
                return Ok(());
            }
        }
    }

    /// Lets tokens gather before they are looked at, while they come so fast that each would cost a
    /// wake-up.
    ///
    /// Waking up costs about as much as passing a token on. So with many streams, when nothing but
    /// tokens came, twice within `--coalesce`, the next look is that much later, as network cards
    /// do with their interrupts.
    fn gather_tokens(&mut self) {
        let coalesce = self.front.config.coalesce;
        let Source::Remote(_, engine) = &self.source else { return };
        let since_last = self.reactor.now.since(self.gathered);
        self.gathered = self.reactor.now;
        let many = engine.connections() >= GATHER_STREAMS_MIN;
        // Where requests end others wait to begin; a plain answer is such an end.
        let has_ended = std::mem::take(&mut self.front.has_ended);
        let only_tokens = self.only_tokens && !has_ended;
        if !many || !only_tokens || !self.ready.is_empty() || since_last > 2 * coalesce {
            return;
        }
        let timer = self.reactor.timers.next().map(|at| at.since(self.reactor.now));
        std::thread::sleep(timer.unwrap_or(coalesce).min(coalesce));
    }

    /// Once most of many connections have gone, so does their memory.
    fn give_memory_back(&mut self) {
        let count = self.front.connections.len();
        self.connections_peak = self.connections_peak.max(count);
        if self.connections_peak >= TRIM_PEAK && count < self.connections_peak / 8 {
            self.connections_peak = count;
            self.front.shrink();
            self.reactor.timers.shrink();
            heap::trim();
        }
    }

    /// Carries out commands and writes, until neither brings about more.
    fn settle(&mut self) {
        loop {
            if let Some(command) = self.front.commands.pop_front() {
                self.command(command);
            } else if let Some(token) = self.front.dirty.pop() {
                self.front.flush(self.reactor.now, token);
                self.close_if_done(token);
            } else {
                return;
            }
        }
    }

    fn event(&mut self, token: Token, readiness: Readiness) {
        match token.kind() {
            CONNECTION => {
                let Some(connection) = self.front.connections.get_mut(token) else { return };
                connection.readable |= readiness.readable;
                connection.hangup |= readiness.closed;
                if readiness.writable && !connection.pending().is_empty() {
                    self.front.touch(token);
                }
                self.read_on(token);
            }
            UPSTREAM => {
                let Source::Remote(_, engine) = &mut self.source else { return };
                let (front, reactor) = (&mut self.front, &mut self.reactor);
                let now = reactor.now;
                let mut sink =
                    |tag, output: crate::backend::Output<'_>| front.output(now, tag, output);
                if engine.event(reactor, token, readiness, &mut sink) {
                    self.ready.push(token);
                }
            }
            _ if token == LISTENER => self.accept(),
            _ if token == WAKER => self.messages(),
            _ => {}
        }
    }

    /// Reads what a connection, of either side, has ready.
    fn read_on(&mut self, token: Token) {
        let more = match (token.kind(), &mut self.source) {
            (CONNECTION, _) => self.read_connection(token),
            (UPSTREAM, Source::Remote(_, engine)) => {
                let (front, reactor) = (&mut self.front, &mut self.reactor);
                let now = reactor.now;
                let mut sink =
                    |tag, output: crate::backend::Output<'_>| front.output(now, tag, output);
                engine.read(reactor, token, &mut sink)
            }
            _ => false,
        };
        if more {
            self.ready.push(token);
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = &self.listener else { return };
            let open: u64 = self.front.measures.iter().map(|m| m.connections.read()).sum();
            let full = open >= self.front.config.connections_max as u64;
            match listener.accept() {
                Ok((stream, _)) if full => {
                    self.front.measure().refused_connections.add(1);
                    drop(stream);
                }
                Ok((stream, _)) => {
                    if socket::prepare(&stream).is_ok() {
                        self.add_connection(stream);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The peer was gone before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.front.measure().refused_connections.add(1);
                    log::warn!("accepting a connection: {error}; raise the limit with ulimit -n");
                    self.reactor.timers.set(self.reactor.now + ACCEPT_RETRY, LISTENER);
                    return;
                }
            }
        }
        // There may be more, and the listener will not say so again.
        self.reactor.timers.set(self.reactor.now, LISTENER);
    }

    fn add_connection(&mut self, stream: std::net::TcpStream) {
        let now = self.reactor.now;
        if self.front.log.is_some()
            && let Err(error) = socket::stamp_arrivals(&stream)
        {
            log::warn!("--sim-log: requests are stamped late, as they are read: {error}");
        }
        let token = self.front.connections.insert(Connection::new(stream, now));
        let Some(connection) = self.front.connections.get_mut(token) else { return };
        if let Err(error) = self.reactor.poller.register(&connection.stream, token) {
            log::warn!("watching a connection: {error}");
            self.front.connections.remove(token);
            return;
        }
        self.front.measure().connections.set(self.front.connections.len() as u64);
    }

    fn messages(&mut self) {
        self.port.waker().looking();
        while let Some(message) = self.port.receive() {
            match message {
                Message::Acquire(ask) => self.acquire(ask),
                Message::Withdraw(ticket) => self.withdraw(ticket),
                Message::Release(grant, outcome) => self.release(grant, outcome),
                Message::Granted(grant) => self.granted(grant),
                Message::Position { request, position, eta_ms } => {
                    self.tell_position(request, position, eta_ms);
                }
                Message::Refused { request, refusal } => {
                    let failure = failure(refusal);
                    self.front.fail(self.reactor.now, request, &failure);
                }
                Message::Health { backend, health, address } => {
                    self.set_health(backend, health, address);
                }
                Message::Drain => self.drain(),
                Message::Gone => self.others -= 1,
            }
        }
    }

    fn timer(&mut self, at: Instant, token: Token) {
        let now = self.reactor.now;
        match token.kind() {
            UPSTREAM => {
                let Source::Remote(_, engine) = &mut self.source else { return };
                let front = &mut self.front;
                let mut sink =
                    |tag, output: crate::backend::Output<'_>| front.output(now, tag, output);
                engine.timer(&mut self.reactor, at, token, &mut sink);
            }
            REQUEST => self.request_timer(at, token),
            CONNECTION => self.connection_timer(at, token),
            _ if token == LISTENER => self.accept(),
            _ if token == TICKER => self.tick(),
            _ => {}
        }
    }

    fn connection_timer(&mut self, at: Instant, token: Token) {
        let now = self.reactor.now;
        let Some(connection) = self.front.connections.get_mut(token) else { return };
        if connection.timer_at != at {
            return;
        }
        connection.timer_at = Instant::FAR;
        let due = match connection.lingering {
            Some(until) => until,
            None if connection.owes_head() => connection.head_since + HEAD_TIMEOUT,
            None => return,
        };
        if due > now {
            connection.timer_at = due;
            self.reactor.timers.set(due, token);
            return;
        }
        if connection.lingering.is_none()
            && let Protocol::Http(http) = &mut connection.protocol
        {
            let body = crate::wire::openai::error_body(
                ErrorCode::Deadline,
                "the request did not come whole within 30 s",
            );
            http.server.respond(408, &[("Content-Type", "application/json")], &body);
            self.front.touch(token);
            return;
        }
        self.front.close(token);
    }

    /// Closes a connection that has said all it had to say: at once if its peer is done too, else
    /// once the peer has had time to read it.
    pub(super) fn close_if_done(&mut self, token: Token) {
        let draining = self.draining;
        let Some(connection) = self.front.connections.get_mut(token) else { return };
        let drained = draining && connection.is_quiet() && connection.held.is_empty();
        if !(connection.wants_close() || drained) || !connection.pending().is_empty() {
            return;
        }
        if connection.ended {
            return self.front.close(token);
        }
        if connection.lingering.is_none() {
            let _ = connection.stream.shutdown(std::net::Shutdown::Write);
            let until = self.reactor.now + LINGER_TIMEOUT;
            connection.lingering = Some(until);
            connection.held = Vec::new();
            if until < connection.timer_at {
                connection.timer_at = until;
                self.reactor.timers.set(until, token);
            }
            // What is there already is read over; an edge for it will not come again.
            self.ready.push(token);
        }
    }

    fn drain(&mut self) {
        // Whoever is in the listener's backlog was told that the port is open.
        self.accept();
        self.listener = None;
        self.draining = true;
        for token in self.front.connections.tokens() {
            let Some(connection) = self.front.connections.get_mut(token) else { continue };
            match &mut connection.protocol {
                Protocol::Undetected => {}
                Protocol::Binary(server) => server.goaway("the server is shutting down"),
                Protocol::Http(http) => http.server.close_after(),
            }
            self.front.touch(token);
        }
    }

    fn is_finished(&self) -> bool {
        self.front.connections.is_empty()
            && self.front.requests.is_empty()
            && (self.port.index() != OWNER || self.others == 0)
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Release(grant, outcome) => {
                if self.pool.is_some() {
                    self.release(grant, outcome);
                } else {
                    self.port.send(OWNER, Message::Release(grant, outcome));
                }
            }
            Command::Withdraw(request) => {
                let ticket = Ticket { core: self.port.index(), request };
                if self.pool.is_some() {
                    self.withdraw(ticket);
                } else if self.has_pool {
                    self.port.send(OWNER, Message::Withdraw(ticket));
                }
            }
            Command::Retry(request, avoid) => self.ask(request, avoid),
            Command::Cancel(upstream) => {
                if let Source::Remote(_, engine) = &mut self.source {
                    engine.cancel(upstream);
                }
            }
            Command::Resume(request) => self.resume(request),
            Command::Revisit(connection) => {
                if self.step_connection(connection) || self.read_connection(connection) {
                    self.ready.push(connection);
                }
                self.close_if_done(connection);
            }
        }
    }

    /// Whether requests can be served.
    pub(super) fn is_up(&self) -> bool {
        !self.draining && self.up.iter().any(|&up| up)
    }
}
