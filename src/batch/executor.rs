//! Sends a worker's tasks to servers: places, tries, deadlines.
//!
//! Each worker has its share of the rank's places at each server, in a pool of its own; a task goes
//! to the least loaded server that is up. One that failed for a passing reason waits, without a
//! place, and goes to another server if there is one. While no server is up, tasks that were not
//! sent, or would be sent again, are given back, so that another rank can take them.
//!
//! Invariants: a task that was started ends once, with one result line, or is returned; never more
//! of them are at a server than it has places.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::attempt::{Attempt, Stage};
use super::binary::{Links, Told};
use super::factory::{Shared, share};
use super::ledger::Ledger;
use super::retry::{Verdict, judge};
use super::servers::{Endpoint, Server};
use super::watch::{News, Subscription};
use crate::backend::engine::{Engine, Flow, Timeouts};
use crate::backend::pool::{self, Ask, Grant, Health, Pool, PoolConfig, Ticket};
use crate::backend::{Failure, Finished, Output};
use crate::clock::Instant;
use crate::net::{Reactor, Readiness, Slab, Token};
use crate::prng::Prng;
use crate::sched::executor::{Completion, Executor};
use crate::sched::tally::Tally;
use crate::sched::tasks::Task;
use crate::wire::frame::ErrorCode;

const ATTEMPT: u8 = 1;
const UPSTREAM: u8 = 2;
const LINK: u8 = 3;
const WAKER: Token = Token::single(4);
/// Looks for what became possible: a server's hold or its breaker ended.
const TICKER: Token = Token::single(5);
/// Looks for requests that took too long.
const SWEEPER: Token = Token::single(6);
const TICK: Duration = Duration::from_millis(250);
/// A server that takes longer to be connected to is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two tokens: twice what the gateway allows, since nobody watches.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(120);
/// A server whose health check finds nobody for so long is gone, and so is what it was doing: a
/// host that lost its power closes no connection.
const GONE_AFTER: Duration = Duration::from_secs(30);
/// Requests that are tried again go ahead of those that were never sent.
const PRIORITIES: (u8, u8) = (0, 1);
/// Behind people who ask the same gateway, who have 128.
const GATEWAY_PRIORITY: u8 = 192;
/// Tasks inside, those that wait for their next try included, for each that can run.
const INSIDE_FACTOR: usize = 2;

/// Runs tasks on one worker's thread.
#[derive(Debug)]
pub struct BatchExecutor {
    shared: Arc<Shared>,
    subscription: Subscription,
    seats: Vec<Seat>,
    pool: Pool,
    engine: Engine,
    links: Links,
    attempts: Slab<Attempt>,
    /// Attempts whose try has ended, to be dealt with.
    over: Vec<Token>,
    /// Connections that have more to read.
    ready: Vec<Token>,
    /// Which of the rank's workers this is, and how many there are.
    worker: (usize, usize),
    ledger: Ledger,
    prng: Prng,
    draining: bool,
    /// When the last turn began.
    last_turn: Instant,
    /// When the ticker fires, and when the sweeper does; `FAR`: they are not set.
    tick_at: Instant,
    sweep_at: Instant,
}

/// What this worker knows of a server, and has of it.
#[derive(Debug)]
struct Seat {
    /// Its places for this worker.
    places: u32,
    /// Whether it is up; None: nobody has looked yet.
    is_up: Option<bool>,
    /// It asked to be left alone until then.
    held_until: Instant,
    /// Since when its health check has found nobody.
    down_since: Option<Instant>,
}

/// The queue is bounded by what the worker starts, and waits as long as it takes.
const NO_QUEUE_BOUND: PoolConfig = PoolConfig {
    queue_max: usize::MAX,
    queue_timeout: Duration::MAX,
    unavailable_timeout: Duration::MAX,
};

impl Executor for BatchExecutor {
    fn room(&self) -> usize {
        if self.draining {
            return 0;
        }
        // While a breaker is open its server gets one request at most, as a probe.
        let free = |(_, slots, used, is_open): (&str, u32, u32, bool)| {
            if is_open { 0 } else { slots.saturating_sub(used) as usize }
        };
        let free: usize = self.pool.members(self.last_turn).map(free).sum();
        let inside = INSIDE_FACTOR.saturating_mul(self.slots()).saturating_sub(self.attempts.len());
        free.saturating_sub(self.pool.waiting()).min(inside)
    }

    fn slots(&self) -> usize {
        self.pool.members(self.last_turn).map(|(_, slots, ..)| slots as usize).sum()
    }

    fn start(&mut self, reactor: &mut Reactor, task: Task) {
        if self.draining || self.is_none_up(reactor.now) {
            return self.ledger.give_back(task);
        }
        let shared = self.shared.clone();
        match Attempt::new(&shared.config.work, task, reactor.now) {
            Err(invalid) => self.ledger.refuse(*invalid),
            Ok(mut attempt) => {
                attempt.tries = shared.remembered(attempt.task.at);
                let token = self.attempts.insert(attempt);
                self.ask(reactor, token);
                self.settle(reactor);
            }
        }
    }

    fn event(&mut self, reactor: &mut Reactor, token: Token, readiness: Readiness) {
        let now = reactor.now;
        let BatchExecutor { engine, links, attempts, over, .. } = self;
        let more = match token.kind() {
            UPSTREAM => {
                let mut sink = |tag, output: Output<'_>| told(attempts, over, now, tag, output);
                engine.event(reactor, token, readiness, &mut sink)
            }
            LINK => {
                let mut sink = |tag, what: Told<'_>| link_told(attempts, over, now, tag, what);
                links.event(reactor, token, readiness, &mut sink)
            }
            _ if token == WAKER => return self.news(now),
            _ => false,
        };
        if more {
            self.ready.push(token);
        }
    }

    fn timer(&mut self, reactor: &mut Reactor, at: Instant, token: Token) {
        let now = reactor.now;
        let BatchExecutor { engine, links, attempts, over, .. } = self;
        match token.kind() {
            UPSTREAM => {
                let mut sink = |tag, output: Output<'_>| told(attempts, over, now, tag, output);
                engine.timer(reactor, at, token, &mut sink);
            }
            LINK => {
                let mut sink = |tag, what: Told<'_>| link_told(attempts, over, now, tag, what);
                links.timer(token, &mut sink);
            }
            // Of a wait that ended otherwise the timer is left over.
            ATTEMPT if attempts.get(token).is_some_and(|a| a.stage == Stage::Waiting(at)) => {
                self.ask(reactor, token);
            }
            _ if token == TICKER && at == self.tick_at => {
                self.tick_at = Instant::FAR;
                (0..self.seats.len()).for_each(|server| self.apply(now, server));
            }
            _ if token == SWEEPER && at == self.sweep_at => self.sweep(reactor),
            _ => {}
        }
    }

    fn turn(&mut self, reactor: &mut Reactor) -> bool {
        let now = reactor.now;
        for token in std::mem::take(&mut self.ready) {
            let BatchExecutor { engine, links, attempts, over, .. } = self;
            let more = if token.kind() == LINK {
                let mut sink = |tag, what: Told<'_>| link_told(attempts, over, now, tag, what);
                links.read(reactor, token, &mut sink)
            } else {
                let mut sink = |tag, output: Output<'_>| told(attempts, over, now, tag, output);
                engine.read(reactor, token, &mut sink)
            };
            if more {
                self.ready.push(token);
            }
        }
        self.settle(reactor);
        self.last_turn = now;
        let held = self.seats.iter().any(|seat| seat.held_until > now);
        let open = self.pool.members(now).any(|(.., is_open)| is_open);
        if held || open || self.pool.waiting() > 0 {
            self.tick_soon(reactor);
        }
        !self.ready.is_empty()
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.ledger.next_completion()
    }

    fn take_tally(&mut self) -> Tally {
        self.ledger.take_tally()
    }

    fn drain(&mut self) {
        self.draining = true;
        self.return_unsent();
    }
}

impl BatchExecutor {
    /// The executor of worker `worker` of `workers`.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(super) fn open(
        shared: &Arc<Shared>,
        subscription: Subscription,
        reactor: &mut Reactor,
        worker: usize,
        workers: usize,
    ) -> io::Result<BatchExecutor> {
        reactor.poller.register(subscription.waker(), WAKER)?;
        let config = &shared.config;
        let limit = config.timeout;
        let timeouts = Timeouts {
            connect: CONNECT_TIMEOUT.min(limit),
            // The sweeper's moment comes first, and its message says what happened.
            first_token: limit.saturating_mul(2),
            token: TOKEN_TIMEOUT.min(limit),
        };
        let peers = config.servers.iter().map(|server| {
            let token = match &server.endpoint {
                Endpoint::Binary { token, .. } => token.clone(),
                Endpoint::Http { .. } => None,
            };
            (server.name.clone(), token, server.address)
        });
        let targets = config.servers.iter().map(|server| server.http()).collect();
        let names: Vec<String> = config.servers.iter().map(|s| s.name.clone()).collect();
        let places = config.servers.iter().zip(&config.permits).enumerate();
        let seat = |(server, (of, &permits)): (usize, (&Server, &u32))| Seat {
            places: share(permits, server, worker, workers),
            is_up: of.address.map(|_| true),
            held_until: Instant::default(),
            down_since: None,
        };
        let mut executor = BatchExecutor {
            seats: places.map(seat).collect(),
            pool: Pool::new(NO_QUEUE_BOUND, &names),
            engine: Engine::new(UPSTREAM, targets, timeouts),
            links: Links::new(LINK, peers, timeouts.connect),
            attempts: Slab::new(ATTEMPT),
            over: Vec::new(),
            ready: Vec::new(),
            ledger: Ledger::new(shared.clone()),
            worker: (worker, workers),
            prng: Prng::new(config.seed ^ (worker as u64) << 32),
            draining: false,
            last_turn: reactor.now,
            tick_at: Instant::FAR,
            sweep_at: Instant::FAR,
            subscription,
            shared: shared.clone(),
        };
        (0..names.len()).for_each(|server| executor.apply(reactor.now, server));
        Ok(executor)
    }

    /// Lets an attempt have a place, or wait for one.
    fn ask(&mut self, reactor: &mut Reactor, token: Token) {
        if self.draining || self.is_none_up(reactor.now) {
            return self.give_back(token);
        }
        let Some(attempt) = self.attempts.get_mut(token) else { return };
        attempt.stage = Stage::Queued;
        let ask = Ask {
            ticket: Ticket { core: 0, request: token },
            weight: attempt.weight,
            priority: if attempt.tries > 0 { PRIORITIES.0 } else { PRIORITIES.1 },
            session: None,
            avoid: attempt.avoid,
        };
        match self.pool.acquire(reactor.now, ask) {
            Ok(Some(grant)) => self.dispatch(reactor, grant),
            Ok(None) => {}
            Err(_) => self.give_back(token),
        }
    }

    /// An attempt has its place: it goes.
    fn dispatch(&mut self, reactor: &mut Reactor, grant: Grant) {
        let (now, token, server) = (reactor.now, grant.ticket.request, grant.backend);
        let config = &self.shared.config;
        let Some(attempt) = self.attempts.get_mut(token) else {
            return self.pool.release(now, server, grant.weight, pool::Outcome::Neutral);
        };
        attempt.dispatch(now, grant);
        if attempt.deadline == Instant::FAR {
            attempt.deadline = now + config.timeout;
            if attempt.deadline < self.sweep_at {
                self.sweep_at = attempt.deadline;
                reactor.timers.set(self.sweep_at, SWEEPER);
            }
        }
        let is_gateway = matches!(config.servers[server].endpoint, Endpoint::Binary { .. });
        let sent = if is_gateway && self.links.fits(server, attempt.bytes()) {
            let mut infer = attempt.infer();
            infer.priority = GATEWAY_PRIORITY;
            let sent = self.links.send(reactor, server, token.0, &infer);
            sent.map(|(link, id)| Stage::Binary(link, id))
        } else {
            let call = attempt.call(config.servers[server].dialect());
            call.and_then(|call| self.engine.submit(reactor, server, token.0, call))
                .map(Stage::Http)
        };
        match sent {
            Ok(stage) => attempt.stage = stage,
            Err(failure) => {
                attempt.end(Err(failure));
                self.over.push(token);
            }
        }
    }

    /// Deals with tries that have ended, and gives their places to others.
    fn settle(&mut self, reactor: &mut Reactor) {
        loop {
            if let Some(token) = self.over.pop() {
                self.ended(reactor, token);
            } else if let Some(grant) = self.pool.next_grant(reactor.now) {
                self.dispatch(reactor, grant);
            } else {
                return;
            }
        }
    }

    fn ended(&mut self, reactor: &mut Reactor, token: Token) {
        let now = reactor.now;
        let Some(attempt) = self.attempts.get_mut(token) else { return };
        let Some(result) = attempt.ended.take() else { return };
        // What ended here and not at the server is still under way there.
        let stage = attempt.stage;
        let is_own =
            |failure: &Failure| failure.code == ErrorCode::TooLarge && failure.answer.is_none();
        if result.as_ref().is_err_and(is_own) {
            self.stop(stage);
        }
        let Some(attempt) = self.attempts.get_mut(token) else { return };
        let Some(grant) = attempt.end_try(now) else { return };
        match result {
            Ok(finished) => {
                self.pool.release(now, grant.backend, grant.weight, pool::Outcome::Served);
                self.finish(now, token, grant.backend, Ok(finished));
            }
            Err(failure) => self.failed(reactor, token, grant, failure),
        }
    }

    fn failed(&mut self, reactor: &mut Reactor, token: Token, grant: Grant, failure: Failure) {
        let now = reactor.now;
        let server = grant.backend;
        let verdict = judge(&failure);
        let outcome = match verdict {
            Verdict::Final => pool::Outcome::Served,
            Verdict::Busy => pool::Outcome::Neutral,
            Verdict::Retry => pool::Outcome::Failed,
            Verdict::Away => pool::Outcome::Unreachable,
        };
        self.pool.release(now, server, grant.weight, outcome);
        let Some(attempt) = self.attempts.get_mut(token) else { return };
        attempt.avoid = Some(server);
        attempt.tries += u32::from(matches!(verdict, Verdict::Retry | Verdict::Busy));
        let config = &self.shared.config;
        let wait = config.backoff.wait(attempt.tries, &mut self.prng);
        let late = now + wait >= attempt.deadline || attempt.tries > config.retries;
        let asked = failure.retry_after_s.map(|s| Duration::from_secs(s.into()));
        if verdict == Verdict::Busy || asked.is_some() {
            // Whoever else would go there would hear the same.
            self.seats[server].held_until = now + asked.unwrap_or(wait);
            self.apply(now, server);
            self.return_if_none_up(now);
        }
        if verdict == Verdict::Away {
            self.seats[server].is_up = Some(false);
            self.ask(reactor, token);
            self.return_if_none_up(now);
        } else if verdict == Verdict::Final || late {
            self.finish(now, token, server, Err(failure));
        } else if self.draining || self.is_none_up(now) {
            self.give_back(token);
        } else if let Some(attempt) = self.attempts.get_mut(token) {
            attempt.stage = Stage::Waiting(now + wait);
            reactor.timers.set(now + wait, token);
        }
    }

    /// Ends a task for good.
    fn finish(
        &mut self,
        now: Instant,
        token: Token,
        server: usize,
        result: Result<Finished, Failure>,
    ) {
        if let Some(attempt) = self.attempts.remove(token) {
            self.ledger.finish(now, attempt, server, result);
        }
    }

    /// Gives a task back that holds no place.
    fn give_back(&mut self, token: Token) {
        self.pool.withdraw(Ticket { core: 0, request: token });
        if let Some(attempt) = self.attempts.remove(token) {
            self.shared.remember(attempt.task.at, attempt.tries);
            self.ledger.give_back(attempt.task);
        }
    }

    /// Gives all tasks back that hold no place.
    fn return_unsent(&mut self) {
        for token in self.attempts.tokens() {
            if self.attempts.get(token).is_some_and(|attempt| attempt.grant.is_none()) {
                self.give_back(token);
            }
        }
    }

    fn return_if_none_up(&mut self, now: Instant) {
        if self.is_none_up(now) {
            self.return_unsent();
        }
    }

    /// Whether every server that this worker has a place at is known to be down, or wants to be
    /// left alone for longer than a request would wait by itself.
    fn is_none_up(&self, now: Instant) -> bool {
        let patience = now + self.shared.config.backoff.max;
        let is_away = |seat: &Seat| seat.is_up == Some(false) || seat.held_until > patience;
        self.seats.iter().all(|seat| seat.places == 0 || is_away(seat))
    }

    /// Takes the health thread's news.
    fn news(&mut self, now: Instant) {
        self.subscription.waker().looking();
        while let Some(news) = self.subscription.next() {
            self.hear(now, news);
        }
        self.return_if_none_up(now);
    }

    fn hear(&mut self, now: Instant, news: News) {
        let News { server, health, address } = news;
        if let Some(address) = address {
            self.engine.set_address(server, Some(address));
            self.links.set_address(server, address);
        }
        let (worker, workers) = self.worker;
        let permits = self.shared.permits[server].load(Ordering::Relaxed);
        let seat = &mut self.seats[server];
        seat.places = share(permits, server, worker, workers);
        seat.is_up = Some(matches!(health, Health::Up { .. }));
        if matches!(health, Health::Down { .. }) {
            let since = *seat.down_since.get_or_insert(now);
            if now.since(since) >= GONE_AFTER {
                self.abandon(server);
            }
        } else {
            seat.down_since = None;
        }
        self.apply(now, server);
    }

    /// Ends the tries that are under way at a server that is gone.
    fn abandon(&mut self, server: usize) {
        for token in self.attempts.tokens() {
            if let Some(attempt) = self.attempts.get_mut(token)
                && attempt.grant.is_some_and(|grant| grant.backend == server)
                && attempt.ended.is_none()
            {
                let name = &self.shared.config.servers[server].name;
                let message = format!("{name} does not answer its health check any more");
                attempt.end(Err(Failure::backend(ErrorCode::Backend, message)));
                let stage = attempt.stage;
                self.stop(stage);
                self.over.push(token);
            }
        }
    }

    /// Lets the pool know whether a server can be used.
    fn apply(&mut self, now: Instant, server: usize) {
        let seat = &self.seats[server];
        let health = match seat.is_up {
            Some(true) if seat.places > 0 && seat.held_until <= now => {
                Health::Up { slots: seat.places }
            }
            None => Health::Loading,
            _ => Health::Down { reason: String::new() },
        };
        self.pool.set_health(server, health);
    }

    fn tick_soon(&mut self, reactor: &mut Reactor) {
        if self.tick_at == Instant::FAR {
            self.tick_at = reactor.now + TICK;
            reactor.timers.set(self.tick_at, TICKER);
        }
    }

    /// Ends what took too long, at its server too.
    fn sweep(&mut self, reactor: &mut Reactor) {
        let now = reactor.now;
        self.sweep_at = Instant::FAR;
        for token in self.attempts.tokens() {
            let Some(attempt) = self.attempts.get_mut(token) else { continue };
            if attempt.ended.is_some() {
                // It is dealt with in this turn. A try after that is over at once.
                self.sweep_at = self.sweep_at.min(now + TICK);
                continue;
            }
            if attempt.deadline > now {
                self.sweep_at = self.sweep_at.min(attempt.deadline);
                continue;
            }
            let (stage, server) = (attempt.stage, attempt.avoid.unwrap_or(0));
            let grant = attempt.end_try(now);
            self.stop(stage);
            self.pool.withdraw(Ticket { core: 0, request: token });
            if let Some(grant) = &grant {
                self.pool.release(now, grant.backend, grant.weight, pool::Outcome::Neutral);
            }
            let limit = self.shared.config.timeout.as_secs_f64();
            let message = format!("no answer within {limit} s, all tries together");
            let failure = Failure::backend(ErrorCode::Deadline, message);
            let server = grant.map_or(server, |grant| grant.backend);
            self.finish(now, token, server, Err(failure));
        }
        reactor.timers.set(self.sweep_at, SWEEPER);
    }

    /// Ends what is under way at a server.
    fn stop(&mut self, stage: Stage) {
        match stage {
            Stage::Http(upstream) => self.engine.cancel(upstream),
            Stage::Binary(link, id) => self.links.cancel(link, id),
            Stage::Queued | Stage::Waiting(_) => {}
        }
    }
}

/// Takes what the engine tells of an attempt.
fn told(
    attempts: &mut Slab<Attempt>,
    over: &mut Vec<Token>,
    now: Instant,
    tag: u64,
    output: Output<'_>,
) -> Flow {
    let token = Token(tag);
    if let Some(attempt) = attempts.get_mut(token)
        && attempt.told(now, output)
    {
        over.push(token);
    }
    Flow::Continue
}

/// Takes what a gateway tells of an attempt.
fn link_told(
    attempts: &mut Slab<Attempt>,
    over: &mut Vec<Token>,
    now: Instant,
    tag: u64,
    what: Told<'_>,
) {
    let token = Token(tag);
    if let Some(attempt) = attempts.get_mut(token)
        && attempt.told_by_gateway(now, what)
    {
        over.push(token);
    }
}

#[cfg(test)]
mod tests;
