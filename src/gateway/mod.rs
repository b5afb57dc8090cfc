//! The gateway: one worker a core, each with its own epoll and its own listener on the shared port.
//!
//! A connection lives on one core, and so does everything about its requests: the engine's
//! connection to the backend, or the built-in backend's job. Cores meet at one point: the pool of
//! backends with its queue belongs to core 0 (`admission`), so that the order is one order and the
//! slots are counted once. Names are resolved and health is asked for on a thread of their own
//! (`backend::prober`), signals are awaited on the main thread.

mod admission;
mod connection;
mod front;
mod intake;
mod measure;
mod request;
mod request_log;
mod server;
mod transform;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::backend::Dialect;
use crate::backend::builtin::BuiltinConfig;
use crate::backend::engine::{Target, Timeouts};
use crate::backend::pool::PoolConfig;
use crate::cuda::Device;
use crate::post::plan::Plan;

pub use server::{Error, run};

/// Everything that `cnse serve` can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How many workers.
    pub threads: usize,
    /// Pin each worker to a core.
    pub pin: bool,
    /// Who answers.
    pub backend: BackendConfig,
    /// How long a backend may take.
    pub timeouts: Timeouts,
    /// The queue.
    pub pool: PoolConfig,
    /// How long a reader may stall its own text.
    pub stall_timeout: Duration,
    /// How long a request may take in all, if it does not say itself.
    pub deadline: Option<Duration>,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// After so long a silence, a streamed answer gets a comment.
    pub sse_keepalive: Option<Duration>,
    /// Where the built-in backend's true times are written, if they are.
    pub request_log: Option<PathBuf>,
    /// What clients must know.
    pub api_key: Option<String>,
    /// How long tokens that come fast are gathered; zero: not at all.
    pub coalesce: Duration,
    /// What is done with embeddings on their way out.
    pub post: Option<Plan>,
    /// The card for that, and for the language model's tokens.
    pub device: Device,
    /// Client connections, over all cores.
    pub connections_max: usize,
}

/// Who answers.
#[derive(Clone, Debug)]
pub enum BackendConfig {
    /// The built-in backend, on every core.
    Builtin(BuiltinConfig),
    /// Servers that are reached over HTTP.
    Remote {
        /// What they speak.
        dialect: Dialect,
        /// Where they are.
        targets: Vec<Target>,
        /// Sequences at once for each; None: as many as it has slots.
        inflight: Option<u32>,
    },
}
