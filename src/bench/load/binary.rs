//! Requests over the binary protocol, up to 64 on each connection.

use std::time::Duration;

use super::connection::BinaryConnection;
use super::core::{CONNECTION, Core};
use super::flight::Flight;
use crate::bench::plan::Wire;
use crate::clock::Instant;
use crate::limits::OPEN_REQUESTS_MAX;
use crate::net::socket::{self, Incoming};
use crate::net::{Slab, Token};
use crate::proto::binary_client::ClientEvent;
use crate::wire::frame::{Done, ErrorCode};

/// Connections opened in one turn, so that the server's backlog does not overflow.
const OPENS_PER_TURN: usize = 128;

/// What a core needs to speak the binary protocol.
pub(super) struct Binary {
    connections: Slab<BinaryConnection>,
    /// A connection for each free place on it.
    places: Vec<Token>,
    /// Connections with something to write.
    touched: Vec<Token>,
    opened: usize,
    wanted: usize,
    /// Places on each.
    each: usize,
    /// More are opened when all places are taken.
    grows: bool,
}

impl Binary {
    /// `wanted` connections that share `places`; without a number of places they have 64 each, and
    /// more are opened as they are needed.
    pub fn new(wanted: usize, places: Option<usize>) -> Binary {
        let most = OPEN_REQUESTS_MAX as usize;
        let each = places.map_or(most, |places| places.div_ceil(wanted.max(1)).clamp(1, most));
        Binary {
            connections: Slab::new(CONNECTION),
            places: Vec::new(),
            touched: Vec::new(),
            opened: 0,
            wanted,
            each,
            grows: places.is_none(),
        }
    }

    pub fn is_opening(&self) -> bool {
        self.opened < self.wanted
    }

    pub fn is_under_way(&mut self, token: Token, id: u64) -> bool {
        self.connections.get_mut(token).is_some_and(|c| c.flight(id).is_some())
    }
}

impl Core<'_> {
    /// Whether a request that is due can be sent at once.
    pub(super) fn has_room(&mut self) -> bool {
        if self.http.is_some() || !self.binary.places.is_empty() {
            return true;
        }
        if self.binary.grows && self.binary.opened == self.binary.wanted && self.fatal.is_none() {
            self.binary.wanted += 1;
            self.open_connections();
        }
        !self.binary.places.is_empty()
    }

    pub(super) fn open_connections(&mut self) {
        let Wire::Binary { token: secret, .. } = &self.plan.wire else { return };
        for _ in 0..OPENS_PER_TURN {
            if !self.binary.is_opening() || self.fatal.is_some() {
                return;
            }
            let sources = &self.plan.sources;
            let source = sources.get(self.binary.opened % sources.len().max(1)).copied();
            self.binary.opened += 1;
            let each = self.binary.each;
            let (address, secret) = (self.plan.address, secret.as_deref());
            let opened = BinaryConnection::open(address, source, secret, each);
            let opened = opened.and_then(|connection| {
                let key = self.binary.connections.insert(connection);
                let connection = self.binary.connections.get(key).expect("it was put in just now");
                self.reactor.poller.register(&connection.stream, key)?;
                Ok(key)
            });
            match opened {
                Ok(key) => self.binary.places.extend(std::iter::repeat_n(key, each)),
                Err(error) => self.fatal = Some(format!("connecting to {address}: {error}")),
            }
        }
    }

    pub(super) fn start_binary(&mut self, mut flight: Flight) {
        let Some(token) = self.binary.places.pop() else { return };
        let said = flight.session.as_ref().map_or(&[][..], |session| &session.said);
        let ask = self.plan.workload.ask(flight.number, said);
        let infer = self.plan.workload.infer(&ask);
        self.sends(&mut flight);
        let Some(connection) = self.binary.connections.get_mut(token) else { return };
        let Some((place, id)) = connection.take_place() else { return };
        flight.id = id;
        connection.client.infer(id, &infer, self.plan.credit);
        connection.flights[place] = Some(flight);
        if self.binary.touched.last() != Some(&token) {
            self.binary.touched.push(token);
        }
        self.watch(token, id);
    }

    /// Writes what was prepared.
    pub(super) fn flush_touched(&mut self) {
        while let Some(token) = self.binary.touched.pop() {
            self.flush(token);
        }
    }

    fn flush(&mut self, token: Token) {
        if let Some(connection) = self.binary.connections.get_mut(token)
            && let Err(error) = connection.write()
        {
            self.lost(token, &error.to_string());
        }
    }

    /// Grants what slow readers have read in so long.
    pub(super) fn feed_slow_readers(&mut self, since: Duration) {
        let Some(rate) = self.plan.slow else { return };
        let grant = (f64::from(rate) * since.as_secs_f64()).max(1.0) as u32;
        for token in self.binary.connections.tokens() {
            let Some(connection) = self.binary.connections.get_mut(token) else { continue };
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

    pub(super) fn cancel_binary(&mut self, token: Token, id: u64, wanted: bool, message: String) {
        let Some(connection) = self.binary.connections.get_mut(token) else { return };
        let Some(flight) = connection.flight(id) else { return };
        flight.cancelled = wanted;
        connection.client.cancel(id);
        if !wanted && let Some(flight) = connection.take(id) {
            self.binary.places.push(token);
            self.ended(flight, self.reactor.now, Err(message));
        }
        self.flush(token);
    }

    pub(super) fn binary_event(&mut self, token: Token) {
        let mut scratch = std::mem::take(&mut self.reactor.scratch);
        while let Some(connection) = self.binary.connections.get_mut(token) {
            let (incoming, ago) = socket::read_stamped(&connection.stream, &mut scratch);
            match incoming {
                Incoming::Bytes(count) => {
                    let (now, ago) = (self.reactor.tick(), ago.unwrap_or_default());
                    let arrival = Instant(now.0.saturating_sub(ago.as_nanos() as u64));
                    self.usage.read_lag.record(now.micros_since(arrival));
                    self.binary_input(arrival, token, &scratch[..count]);
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

    fn binary_input(&mut self, now: Instant, token: Token, input: &[u8]) {
        let Some(connection) = self.binary.connections.get_mut(token) else { return };
        let mut held = std::mem::take(&mut connection.held);
        let input = if held.is_empty() {
            input
        } else {
            held.extend_from_slice(input);
            &held
        };
        let mut used = 0;
        loop {
            let Some(connection) = self.binary.connections.get_mut(token) else { return };
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
                self.client_event(now, token, event);
            }
            if stuck {
                break;
            }
        }
        if let Some(connection) = self.binary.connections.get_mut(token)
            && used < input.len()
        {
            connection.held = input[used..].to_vec();
        }
    }

    fn client_event(&mut self, now: Instant, token: Token, event: ClientEvent<'_>) {
        let Some(connection) = self.binary.connections.get_mut(token) else { return };
        let (id, result): (u64, Result<Done, String>) = match event {
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
            self.binary.places.push(token);
            self.ended(flight, now, result);
        }
    }

    /// A connection broke: its requests have failed. The run cannot go on without any, and need not
    /// where the server never said a word.
    fn lost(&mut self, token: Token, reason: &str) {
        let Some(connection) = self.binary.connections.remove(token) else { return };
        self.binary.places.retain(|place| *place != token);
        let now = self.reactor.now;
        for flight in connection.flights.into_iter().flatten() {
            self.ended(flight, now, Err(format!("CONNECTION: {reason}")));
        }
        if !connection.greeted || (self.binary.connections.is_empty() && self.wants_more()) {
            self.fatal = Some(format!("connecting to {}: {reason}", self.plan.address));
        }
    }
}

fn describe(code: u32, message: &str) -> String {
    let name = ErrorCode::from_u32(code).map_or("ERROR", ErrorCode::name);
    format!("{name}: {message}")
}
