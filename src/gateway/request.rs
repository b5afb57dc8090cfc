//! One request: who asked, what serves it, and its deadlines.

use std::rc::Rc;
use std::time::Duration;

use crate::backend::builtin::Job;
use crate::backend::engine::Call;
use crate::backend::pool::Grant;
use crate::clock::Instant;
use crate::net::Token;
use crate::proto::binary_server::Stream;

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
    /// Over HTTP: the body of an answer that goes out whole.
    pub body: Vec<u8>,
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
