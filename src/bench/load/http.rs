//! Requests over HTTP, through the engine that the gateway and the scheduler use too.

use std::cell::Cell;
use std::rc::Rc;

use super::core::{Core, FLIGHT, UPSTREAM};
use super::flight::{Flight, Recorder};
use crate::backend::engine::{Call, Engine, Flow, Target, Timeouts};
use crate::backend::{Dialect, Output, encode};
use crate::bench::plan::Plan;
use crate::clock::Instant;
use crate::net::{Readiness, Slab, Token};
use crate::wire::frame::Done;

/// What a core needs to speak HTTP.
pub(super) struct Http {
    dialect: Dialect,
    engine: Engine,
    pub flights: Slab<HttpFlight>,
    /// Of a workload with few different requests: all of them, encoded once.
    listed: Vec<Rc<Call>>,
    /// Those that the engine told the end of.
    ended: Vec<Token>,
    /// When what the engine tells came.
    arrival: Rc<Cell<Instant>>,
}

/// A request under way over HTTP.
pub(super) struct HttpFlight {
    flight: Flight,
    upstream: Token,
    /// When and how it ended.
    ended: Option<(Instant, Result<Done, String>)>,
}

/// So many different requests are encoded beforehand.
const LISTED_MAX: usize = 4096;

impl Http {
    pub fn new(plan: &Plan<'_>, dialect: Dialect, target: &Target) -> Result<Http, String> {
        let limit = plan.timeout;
        let timeouts = Timeouts { connect: limit, first_token: limit, token: limit };
        let mut engine = Engine::new(UPSTREAM, vec![target.clone()], timeouts);
        engine.set_address(0, Some(plan.address));
        let arrival = engine.stamp_arrivals();
        let flights = Slab::new(FLIGHT);
        let (listed, ended) = (Vec::new(), Vec::new());
        let mut http = Http { dialect, engine, flights, listed, ended, arrival };
        // What cannot be encoded is told before anything is sent.
        let call = http.encode(plan, 0, &[])?;
        if let Some(count) = plan.workload.distinct().filter(|count| *count <= LISTED_MAX) {
            http.listed.push(Rc::new(call));
            for number in 1..count as u64 {
                let call = http.encode(plan, number, &[])?;
                http.listed.push(Rc::new(call));
            }
        }
        Ok(http)
    }

    fn encode(&self, plan: &Plan<'_>, number: u64, said: &[String]) -> Result<Call, String> {
        let ask = plan.workload.ask(number, said);
        let infer = plan.workload.infer(&ask);
        let exchange = encode(self.dialect, &infer).map_err(|failure| failure.message)?;
        Ok(Call { exchange, request_id: format!("cnse-{number}"), traceparent: None })
    }
}

impl Core<'_> {
    pub(super) fn start_http(&mut self, mut flight: Flight) {
        let Some(http) = &mut self.http else { return };
        let call = if http.listed.is_empty() {
            let said = flight.session.as_ref().map_or(&[][..], |session| &session.said);
            http.encode(self.plan, flight.number, said).map(Rc::new)
        } else {
            Ok(http.listed[(flight.number % http.listed.len() as u64) as usize].clone())
        };
        self.sends(&mut flight);
        let Some(http) = &mut self.http else { return };
        http.arrival.set(flight.sent);
        let entry = HttpFlight { flight, upstream: Token(0), ended: None };
        let token = http.flights.insert(entry);
        let submitted = call.and_then(|call| {
            let submitted = http.engine.submit(&mut self.reactor, 0, token.0, call);
            submitted.map_err(|failure| failure.message)
        });
        if let Some(entry) = http.flights.get_mut(token) {
            // To connect is a part of what the request takes; to get ready for the write is not.
            entry.flight.sent = http.arrival.get();
            match submitted {
                Ok(upstream) => entry.upstream = upstream,
                Err(message) => {
                    entry.ended = Some((self.reactor.now, Err(message)));
                    http.ended.push(token);
                }
            }
        }
        self.watch(token, 0);
    }

    pub(super) fn http_event(&mut self, token: Token, readiness: Readiness) {
        let Core { http: Some(http), reactor, recorder, usage, gather, .. } = self else { return };
        let Http { engine, flights, ended, arrival, .. } = http;
        arrival.set(reactor.now);
        let texts = recorder.arrivals;
        let mut sink =
            |tag, output: Output<'_>| told(flights, ended, recorder, arrival.get(), tag, output);
        let mut more = engine.event(reactor, token, readiness, &mut sink);
        while more {
            more = engine.read(reactor, token, &mut sink);
        }
        if readiness.readable {
            usage.read_lag.record(reactor.now.micros_since(arrival.get()));
            gather.read((recorder.arrivals - texts) as u32);
        }
        self.settle_http();
    }

    pub(super) fn http_timer(&mut self, at: Instant, token: Token) {
        let Core { http: Some(http), reactor, recorder, .. } = self else { return };
        let Http { engine, flights, ended, .. } = http;
        let now = reactor.now;
        let mut sink = |tag, output: Output<'_>| told(flights, ended, recorder, now, tag, output);
        engine.timer(reactor, at, token, &mut sink);
        self.settle_http();
    }

    pub(super) fn cancel_http(&mut self, token: Token, wanted: bool, message: String) {
        let Some(http) = &mut self.http else { return };
        let Some(entry) = http.flights.get_mut(token) else { return };
        if entry.ended.is_some() {
            return;
        }
        entry.flight.cancelled = wanted;
        entry.ended = Some((self.reactor.now, Err(message)));
        http.engine.cancel(entry.upstream);
        http.ended.push(token);
        self.settle_http();
    }

    /// Notes the ends that the engine told, and starts what they make room for.
    fn settle_http(&mut self) {
        let mut any = false;
        while let Some(http) = &mut self.http
            && let Some(token) = http.ended.pop()
        {
            if let Some(HttpFlight { flight, ended: Some((at, result)), .. }) =
                http.flights.remove(token)
            {
                self.ended(flight, at, result);
                any = true;
            }
        }
        if any {
            self.start_requests();
        }
    }
}

/// Takes what the engine tells of a request.
fn told(
    flights: &mut Slab<HttpFlight>,
    ended: &mut Vec<Token>,
    recorder: &mut Recorder<'_>,
    now: Instant,
    tag: u64,
    output: Output<'_>,
) -> Flow {
    let Some(entry) = flights.get_mut(Token(tag)) else { return Flow::Continue };
    match output {
        Output::Text { text, tokens } => {
            recorder.text(&mut entry.flight, now, text.as_bytes(), u64::from(tokens));
        }
        // Of a list of prompts; its other events end one of them, and are no text.
        Output::Body { tokens: 0, .. } => {}
        Output::Body { bytes, tokens } => {
            recorder.text(&mut entry.flight, now, bytes, u64::from(tokens));
        }
        Output::Progress { tokens } => {
            entry.flight.tokens += u64::from(tokens);
            recorder.arrived(&mut entry.flight, now);
        }
        Output::Head { .. } => {}
        Output::Moved { call } => {
            entry.upstream = Token(call);
            recorder.recording.resent += 1;
        }
        Output::Account(account) => entry.flight.account = account,
        Output::Done(finished) => {
            let (prompt_tokens, completion_tokens) =
                (finished.prompt_tokens, finished.completion_tokens);
            let done = Done { prompt_tokens, completion_tokens, ..Done::default() };
            entry.ended = Some((now, Ok(done)));
            ended.push(Token(tag));
        }
        Output::Fail(failure) => {
            let message = format!("{}: {}", failure.code.name(), failure.message);
            entry.ended = Some((now, Err(message)));
            ended.push(Token(tag));
        }
    }
    Flow::Continue
}
