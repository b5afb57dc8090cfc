//! How a request gets a place at a backend, from any core.
//!
//! Core 0 owns the pool. Its own requests ask it directly; those of other cores ask in messages,
//! and are answered in messages. A grant for a request that has meanwhile gone is given back at
//! once.

use std::net::SocketAddr;
use std::time::Duration;

use super::request::Stage;
use super::worker::{Source, TICKER, Worker};
use crate::backend::Failure;
use crate::backend::pool::{Ask, Grant, Health, Outcome, Refusal, Ticket};
use crate::net::Token;
use crate::wire::frame::ErrorCode;

/// The core that owns the pool.
pub const OWNER: usize = 0;
/// How often the owner looks for requests that have waited too long, and tells those that wait
/// where they stand.
pub const TICK: Duration = Duration::from_millis(250);

/// What cores, the prober and the main thread tell each other.
#[derive(Debug)]
pub enum Message {
    /// To the owner: a request asks for a place.
    Acquire(Ask),
    /// To the owner: it asks no longer.
    Withdraw(Ticket),
    /// To the owner: a place is given back.
    Release(Grant, Outcome),
    /// From the owner: the request may go.
    Granted(Grant),
    /// From the owner: it waits.
    Position {
        /// The request.
        request: Token,
        /// Its place, from 1.
        position: u32,
        /// How long it will wait, in milliseconds; 0: not known.
        eta_ms: u32,
    },
    /// From the owner: it may not go.
    Refused {
        /// The request.
        request: Token,
        /// Why.
        refusal: Refusal,
    },
    /// From the prober, to all.
    Health {
        /// The backend.
        backend: usize,
        /// How it is.
        health: Health,
        /// Where it is.
        address: Option<SocketAddr>,
    },
    /// From the main thread, to all: finish what was accepted, take nothing new.
    Drain,
    /// To the owner: a core has finished.
    Gone,
}

/// A refusal as the client is told it.
pub fn failure(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::QueueFull { waiting, retry_after_s } => {
            let message = format!(
                "the queue is full: {waiting} requests wait (--queue); try again in \
                 {retry_after_s} s"
            );
            let mut failure = Failure::request(ErrorCode::Overloaded, message);
            failure.retry_after_s = Some(retry_after_s);
            failure
        }
        Refusal::WaitedTooLong { waited } => {
            let message =
                format!("no slot became free within {} s (--queue-timeout)", waited.as_secs());
            Failure::request(ErrorCode::Deadline, message)
        }
        Refusal::NoneUp { reason } => {
            Failure::backend(ErrorCode::Backend, format!("no backend is up: {reason}"))
        }
    }
}

impl Worker {
    /// Lets a request ask for its place.
    pub(super) fn ask(&mut self, token: Token, avoid: Option<usize>) {
        let core = self.port.index();
        let Some(request) = self.front.requests.get_mut(token) else { return };
        request.stage = Stage::Queued;
        let ask = Ask {
            ticket: Ticket { core, request: token },
            weight: request.weight,
            priority: request.priority,
            session: request.session,
            avoid,
        };
        self.arm(token);
        if self.pool.is_some() {
            self.acquire(ask);
        } else {
            self.port.send(OWNER, Message::Acquire(ask));
        }
    }

    pub(super) fn acquire(&mut self, ask: Ask) {
        let now = self.reactor.now;
        let Some(pool) = &mut self.pool else { return };
        match pool.acquire(now, ask) {
            Ok(Some(grant)) => self.give(grant),
            Ok(None) => {
                let position = pool.waiting() as u32;
                self.front.measure().waiting.set(u64::from(position));
                self.tell_core(ask.ticket, position, 0);
                self.grants();
                self.start_ticking();
            }
            Err(refusal) => self.refuse(ask.ticket, refusal),
        }
    }

    pub(super) fn withdraw(&mut self, ticket: Ticket) {
        if let Some(pool) = &mut self.pool {
            pool.withdraw(ticket);
            self.grants();
        }
    }

    pub(super) fn release(&mut self, grant: Grant, outcome: Outcome) {
        let now = self.reactor.now;
        if let Some(pool) = &mut self.pool {
            pool.release(now, grant.backend, grant.weight, outcome);
            self.grants();
        }
    }

    fn grants(&mut self) {
        let now = self.reactor.now;
        while let Some(grant) = self.pool.as_mut().and_then(|pool| pool.next_grant(now)) {
            self.give(grant);
        }
        if let Some(pool) = &self.pool {
            self.front.measure().waiting.set(pool.waiting() as u64);
        }
    }

    fn give(&mut self, grant: Grant) {
        if grant.ticket.core == self.port.index() {
            self.granted(grant);
        } else {
            self.port.send(grant.ticket.core, Message::Granted(grant));
        }
    }

    fn refuse(&mut self, ticket: Ticket, refusal: crate::backend::pool::Refusal) {
        if ticket.core == self.port.index() {
            self.front.fail(self.reactor.now, ticket.request, &failure(refusal));
        } else {
            self.port.send(ticket.core, Message::Refused { request: ticket.request, refusal });
        }
    }

    fn tell_core(&mut self, ticket: Ticket, position: u32, eta_ms: u32) {
        if ticket.core == self.port.index() {
            self.tell_position(ticket.request, position, eta_ms);
        } else {
            let request = ticket.request;
            self.port.send(ticket.core, Message::Position { request, position, eta_ms });
        }
    }

    pub(super) fn tell_position(&mut self, token: Token, position: u32, eta_ms: u32) {
        let Some(request) = self.front.requests.get_mut(token) else { return };
        if request.stage != Stage::Queued || request.told_position == position {
            return;
        }
        request.told_position = position;
        let client = request.client;
        self.front.status(client, false, position, eta_ms);
    }

    fn start_ticking(&mut self) {
        if !std::mem::replace(&mut self.ticking, true) {
            self.reactor.timers.set(self.reactor.now + TICK, TICKER);
        }
    }

    pub(super) fn tick(&mut self) {
        let now = self.reactor.now;
        self.ticking = false;
        let Some(pool) = &mut self.pool else { return };
        let refusals: Vec<_> = std::iter::from_fn(|| pool.next_refusal(now)).collect();
        let positions: Vec<_> = pool.positions(now).collect();
        for (ticket, refusal) in refusals {
            self.refuse(ticket, refusal);
        }
        // A breaker may have closed by the clock alone.
        self.grants();
        for (ticket, position, eta) in &positions {
            let eta_ms = eta.map_or(0, |eta| u32::try_from(eta.as_millis()).unwrap_or(u32::MAX));
            self.tell_core(*ticket, *position, eta_ms);
        }
        if !positions.is_empty() {
            self.start_ticking();
        }
    }

    pub(super) fn set_health(
        &mut self,
        backend: usize,
        health: Health,
        address: Option<std::net::SocketAddr>,
    ) {
        self.up[backend] = matches!(health, Health::Up { .. });
        if let Source::Remote(_, engine) = &mut self.source {
            engine.set_address(backend, address);
        }
        if let Some(pool) = &mut self.pool {
            pool.set_health(backend, health);
            self.grants();
        }
    }
}
