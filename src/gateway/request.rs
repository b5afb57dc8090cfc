//! The life of one request: who asked, what serves it, its steps and its deadlines.

use std::rc::Rc;
use std::time::Duration;

use super::front::Command;
use super::worker::{Source, Worker};
use crate::backend::Failure;
use crate::backend::builtin::{Job, Next};
use crate::backend::engine::Call;
use crate::backend::pool::{Grant, Outcome};
use crate::clock::Instant;
use crate::net::Token;
use crate::proto::binary_server::Stream;
use crate::wire::frame::ErrorCode;

/// Who asked.
#[derive(Clone, Copy, Debug)]
pub enum Client {
    /// A stream of a binary connection.
    Binary {
        /// The connection.
        connection: Token,
        /// Its stream.
        stream: Stream,
        /// A path call: its chunks carry a body and no tokens.
        raw: bool,
    },
    /// The present request of an HTTP connection.
    Http {
        /// The connection.
        connection: Token,
    },
}

impl Client {
    /// The connection.
    pub fn connection(self) -> Token {
        match self {
            Client::Binary { connection, .. } | Client::Http { connection } => connection,
        }
    }
}

/// What is to be done for a request, encoded at its receipt, so that a malformed one never waits.
#[derive(Debug)]
pub enum Work {
    /// The built-in backend's; taken out while it is stepped.
    Job(Option<Box<Job>>),
    /// A backend's.
    Call(Rc<Call>),
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for a place.
    Queued,
    /// It is being served: by this connection to a backend, or by a job.
    Running(Option<Token>),
    /// All of its answer is there, and waits for the client's credit.
    Unread,
}

/// A request.
#[derive(Debug)]
pub struct Request {
    /// Who asked.
    pub client: Client,
    /// What is to be done.
    pub work: Work,
    /// How far it is.
    pub stage: Stage,
    /// Its place at a backend.
    pub grant: Option<Grant>,
    /// Sequences at once.
    pub weight: u32,
    /// 0 goes first.
    pub priority: u8,
    /// The hash of its session.
    pub session: Option<u64>,
    /// When it came.
    pub received: Instant,
    /// When it was sent to a backend, the last time.
    pub dispatched: Instant,
    /// When the first text came.
    pub first: Option<Instant>,
    /// When it must have ended.
    pub deadline: Instant,
    /// When its job is to be stepped.
    pub step_at: Instant,
    /// When its client last heard anything.
    pub heard: Instant,
    /// The nearest entry of it among the timers.
    pub timer_at: Instant,
    /// Backends that were tried.
    pub tries: u32,
    /// Its backend is not read, for want of credit.
    pub paused: bool,
    /// It was told its place in the queue.
    pub told_position: u32,
    /// Over HTTP: the client asked for server-sent events.
    pub streamed: bool,
    /// Over HTTP: the answer's head, until the body begins.
    pub head: Option<Box<(u16, String, bool)>>,
    /// Over HTTP, and of embeddings: the body of an answer that goes out whole.
    pub body: Vec<u8>,
    /// Its answer is collected, for its vectors are to be others.
    pub embeds: bool,
}

impl Request {
    /// The moment at which something is due, besides what its backend does.
    pub fn next_timer(
        &self,
        stall: Option<(Instant, Duration)>,
        keepalive: Option<Duration>,
    ) -> Instant {
        let mut next = self.deadline;
        if matches!(self.stage, Stage::Running(None)) && !self.paused {
            next = next.min(self.step_at);
        }
        if let Some((since, timeout)) = stall {
            next = next.min(since + timeout);
        }
        if let Some(interval) = keepalive
            && self.streamed
            && self.stage != Stage::Unread
        {
            next = next.min(self.heard + interval);
        }
        next
    }
}

impl Worker {
    /// Lets a request's backend go on, after its reader has caught up.
    pub(super) fn resume(&mut self, token: Token) {
        let Some(request) = self.front.requests.get_mut(token) else { return };
        if let (Stage::Running(Some(upstream)), Source::Remote(_, engine)) =
            (request.stage, &mut self.source)
        {
            if engine.resume(upstream) {
                self.ready.push(upstream);
            }
        } else if request.stage == Stage::Running(None) {
            request.step_at = self.reactor.now;
            self.arm(token);
        }
    }

    /// A request has its place: it goes.
    pub(super) fn granted(&mut self, grant: Grant) {
        let now = self.reactor.now;
        let token = grant.ticket.request;
        let Some(request) = self.front.requests.get_mut(token) else {
            // It left while the grant was under way.
            self.front.commands.push_back(Command::Release(grant, Outcome::Neutral));
            return;
        };
        request.grant = Some(grant);
        request.dispatched = now;
        let (client, told) = (request.client, request.told_position);
        let (received, tries) = (request.received, request.tries);
        request.stage = Stage::Running(None);
        let call = match &request.work {
            Work::Job(_) => None,
            Work::Call(call) => Some(call.clone()),
        };
        if tries == 0 {
            self.front.measure().queue.record(now.micros_since(received));
        }
        if told > 0 {
            self.front.status(client, true, 0, 0);
        }
        match (call, &mut self.source) {
            (Some(call), Source::Remote(_, engine)) => {
                match engine.submit(&mut self.reactor, grant.backend, token.0, call) {
                    Ok(upstream) => {
                        if let Some(request) = self.front.requests.get_mut(token) {
                            request.stage = Stage::Running(Some(upstream));
                        }
                    }
                    Err(failure) => {
                        let output = crate::backend::Output::Fail(failure);
                        self.front.output(now, token.0, output);
                    }
                }
            }
            _ => self.step_job(token),
        }
    }

    /// Lets the built-in backend go on with a request.
    pub(super) fn step_job(&mut self, token: Token) {
        let now = self.reactor.now;
        let Some(request) = self.front.requests.get_mut(token) else { return };
        let Work::Job(slot) = &mut request.work else { return };
        let Some(mut job) = slot.take() else { return };
        // Delays count from when the last one was due, so that a late timer does not slow the whole
        // answer.
        let due =
            if request.step_at == Instant::FAR { request.dispatched } else { request.step_at };
        let room = self.front.room(token);
        let front = &mut self.front;
        let next = job.step(now, room, &mut |output| {
            front.output(now, token.0, output);
        });
        let Some(request) = self.front.requests.get_mut(token) else { return };
        if let Next::Wait(wait) = next {
            request.work = Work::Job(Some(job));
            let at = due + wait;
            request.step_at = if at + Duration::from_secs(1) < now { now } else { at };
        }
        self.arm(token);
    }

    /// Something of a request may be due.
    pub(super) fn request_timer(&mut self, at: Instant, token: Token) {
        let now = self.reactor.now;
        let stall_timeout = self.front.config.stall_timeout;
        let stall = self.front.stalled_since(token);
        let keepalive = self.front.config.sse_keepalive;
        let Some(request) = self.front.requests.get_mut(token) else { return };
        if request.timer_at != at {
            return;
        }
        request.timer_at = Instant::FAR;
        let late = |message: String| Failure::request(ErrorCode::Deadline, message);
        if request.deadline <= now {
            let limit = (request.deadline - request.received).as_secs_f64();
            let failure = late(format!("the request's deadline of {limit} s passed"));
            return self.front.fail(now, token, &failure);
        }
        if stall.is_some_and(|since| since + stall_timeout <= now) {
            let limit = stall_timeout.as_secs_f64();
            let message = format!("its reader took nothing for {limit} s (--stall-timeout)");
            return self.front.fail(now, token, &late(message));
        }
        if let Some(interval) = keepalive
            && request.streamed
            && request.heard + interval <= now
        {
            request.heard = now;
            self.front.keep_alive(token);
        }
        let Some(request) = self.front.requests.get_mut(token) else { return };
        if request.stage == Stage::Running(None) && !request.paused && request.step_at <= now {
            return self.step_job(token);
        }
        self.arm(token);
    }

    /// Sets the timer for whatever is due next.
    pub(super) fn arm(&mut self, token: Token) {
        let stall_timeout = self.front.config.stall_timeout;
        let keepalive = self.front.config.sse_keepalive;
        let stall = self.front.stalled_since(token).map(|since| (since, stall_timeout));
        let Some(request) = self.front.requests.get_mut(token) else { return };
        let next = request.next_timer(stall, keepalive);
        // While nothing is stalled a stall may begin at any moment, and is looked for at its
        // earliest end.
        let next = next.min(self.reactor.now + stall_timeout);
        if next < request.timer_at {
            request.timer_at = next;
            self.reactor.timers.set(next, token);
        }
    }
}
