//! What a load generator is told to do.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::arrival::Arrivals;
use super::workload::Workload;
use crate::backend::Dialect;
use crate::backend::engine::Target;

/// How the server is spoken to.
#[derive(Clone, Debug)]
pub enum Wire {
    /// The binary protocol, over so many connections; more are opened where an open loop needs
    /// them.
    Binary {
        /// Connections.
        connections: usize,
        /// The API key.
        token: Option<String>,
    },
    /// HTTP, a connection for each request under way.
    Http {
        /// What the server speaks.
        dialect: Dialect,
        /// Where it is, with the key.
        target: Target,
    },
}

/// A run to be done.
#[derive(Clone, Debug)]
pub struct Plan<'p> {
    /// How the server is spoken to.
    pub wire: Wire,
    /// Where it is.
    pub address: SocketAddr,
    /// What is asked.
    pub workload: Workload<'p>,
    /// When.
    pub arrivals: Arrivals,
    /// What the arrivals depend on.
    pub seed: u64,
    /// How many are asked and recorded; None: as many as fit in `duration`.
    pub iters: Option<u64>,
    /// How many are asked before that and not recorded.
    pub warmup: u64,
    /// What is found to be a start-up is not counted either.
    pub settle: bool,
    /// No request starts later than this.
    pub duration: Option<Duration>,
    /// Requests at once; None (in an open loop): as many as it takes.
    pub concurrency: Option<usize>,
    /// Threads that generate the load, each with its share of it.
    pub cores: usize,
    /// In a session: from an answer's end to the next question.
    pub think: Duration,
    /// The first credit of a request, topped up as its text is read.
    pub credit: u32,
    /// Bytes a second that each request's reader takes.
    pub slow: Option<u32>,
    /// Each request is cancelled after so long.
    pub cancel_after: Option<Duration>,
    /// Each request has failed after so long.
    pub timeout: Duration,
    /// Local addresses to connect from, in turn.
    pub sources: Vec<IpAddr>,
    /// The run ends early once this share of its requests has failed.
    pub errors_max: Option<f64>,
    /// Every request is kept, and not only counted.
    pub keep: bool,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Requests that ended well.
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that the run itself cancelled.
    pub cancelled: u64,
    /// Tokens of answers.
    pub tokens: u64,
}

impl Progress {
    /// Requests that have ended.
    pub fn ended(&self) -> u64 {
        self.ok + self.failed + self.cancelled
    }
}

/// What a run tells while it goes on.
pub trait Watcher {
    /// Text of the answer, of a run on one core.
    fn text(&mut self, text: &[u8]);
    /// How far it is, every now and then.
    fn progress(&mut self, progress: Progress);
    /// Asked as often: whether the run is to end, with what is under way.
    fn interrupts(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

impl Watcher for Unwatched {
    fn text(&mut self, _: &[u8]) {}
    fn progress(&mut self, _: Progress) {}
}
