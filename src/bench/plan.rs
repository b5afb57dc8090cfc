//! What a load generator is told to do.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::report::Report;
use crate::backend::Dialect;
use crate::backend::engine::Target;
use crate::wire::message::Infer;

/// How the server is spoken to.
#[derive(Clone, Debug)]
pub enum Wire {
    /// The binary protocol, over so many connections.
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
#[derive(Debug)]
pub struct Plan<'p> {
    /// How the server is spoken to.
    pub wire: Wire,
    /// Where it is.
    pub address: SocketAddr,
    /// What is asked, in turn.
    pub requests: Vec<Infer<'p>>,
    /// How many are asked and recorded; None: as many as fit in `duration`.
    pub iters: Option<u64>,
    /// How many are asked before that and not recorded.
    pub warmup: u64,
    /// No request starts later than this.
    pub duration: Option<Duration>,
    /// Requests at once.
    pub concurrency: usize,
    /// Requests a second, whether or not others have ended.
    pub rate: Option<f64>,
    /// With `rate`: intervals are exponential instead of equal.
    pub poisson: bool,
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
}

/// What a run tells while it goes on.
pub trait Watcher {
    /// Text of the answer.
    fn text(&mut self, text: &[u8]);
    /// How far it is, every now and then.
    fn progress(&mut self, report: &Report);
}
