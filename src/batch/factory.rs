//! What a rank's executors are told, and how each worker gets its own.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::attempt::Work;
use super::executor::BatchExecutor;
use super::retry::Backoff;
use super::servers::Server;
use super::watch::Watch;
use crate::net::Reactor;
use crate::sched::executor::ExecutorFactory;

/// Takes result lines, each with its end. It is called on workers, and so must not block.
pub type Results = Box<dyn Fn(Vec<u8>) + Send + Sync>;

/// What a rank's executors are told.
pub struct Config {
    /// Where tasks go.
    pub servers: Vec<Server>,
    /// Places of this rank at each.
    pub permits: Vec<u32>,
    /// Tries after the first.
    pub retries: u32,
    /// The waits between them.
    pub backoff: Backoff,
    /// How long a request may take from when it is first sent, all its tries together.
    pub timeout: Duration,
    /// What tasks are.
    pub work: Work,
    /// Takes the results; None: nobody wants them.
    pub results: Option<Results>,
    /// Of the jitter.
    pub seed: u64,
    /// Another rank of this machine logs how the servers are.
    pub quiet: bool,
}

/// Tries after the first, if nothing is said.
pub const RETRIES_DEFAULT: u32 = 5;
/// What a request may take, if nothing is said.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

/// Tasks whose tries are remembered after they were returned; past it they count from nothing.
const REMEMBERED_MAX: usize = 64 << 10;
/// Makes executors.
#[derive(Debug)]
pub struct BatchFactory {
    shared: Arc<Shared>,
    watch: Watch,
}

/// What the workers of a rank share.
#[derive(Debug)]
pub(super) struct Shared {
    /// What was told.
    pub(super) config: Config,
    /// Places of this rank at each server, as things stand.
    pub(super) permits: Vec<AtomicU32>,
    /// Tries of tasks that were returned, so that a row that kills each server it meets ends too.
    tries: Mutex<HashMap<u64, u32>>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.servers.iter().map(|server| server.name.as_str()).collect();
        f.debug_struct("Config").field("servers", &names).finish_non_exhaustive()
    }
}

impl BatchFactory {
    /// Starts to look after the servers' health.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(config: Config) -> io::Result<BatchFactory> {
        assert_eq!(config.servers.len(), config.permits.len(), "each server has its permits");
        let watch = Watch::start(&config.servers, &config.permits, config.quiet)?;
        let permits = config.permits.iter().map(|&permits| AtomicU32::new(permits)).collect();
        let shared = Shared { config, permits, tries: Mutex::default() };
        Ok(BatchFactory { shared: Arc::new(shared), watch })
    }
}

impl BatchFactory {
    /// This rank has so many places from now on; executors hear of it within a second.
    pub fn set_permits(&self, permits: &[u32]) {
        for (mine, &permits) in self.shared.permits.iter().zip(permits) {
            mine.store(permits, Ordering::Relaxed);
        }
    }
}

impl ExecutorFactory for BatchFactory {
    type Executor = BatchExecutor;

    fn open(
        &self,
        reactor: &mut Reactor,
        worker: usize,
        workers: usize,
    ) -> io::Result<BatchExecutor> {
        let subscription = self.watch.subscribe()?;
        BatchExecutor::open(&self.shared, subscription, reactor, worker, workers)
    }
}

impl Shared {
    /// Notes the tries of a task that is returned.
    pub(super) fn remember(&self, at: u64, tries: u32) {
        let mut remembered = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        if tries > 0 && remembered.len() < REMEMBERED_MAX {
            remembered.insert(at, tries);
        }
    }

    /// The tries of a task that comes again.
    pub(super) fn remembered(&self, at: u64) -> u32 {
        let mut remembered = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.is_empty() { 0 } else { remembered.remove(&at).unwrap_or(0) }
    }
}

/// A worker's share of a server's places; what is left over is dealt out from another worker for
/// each server.
pub(super) fn share(permits: u32, server: usize, worker: usize, workers: usize) -> u32 {
    let workers = workers.max(1);
    let turn = (worker + server) % workers;
    let (workers, turn) = (workers as u64, turn as u64);
    let places = u64::from(permits) / workers + u64::from(turn < u64::from(permits) % workers);
    u32::try_from(places).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_leave_nobody_out() {
        for (permits, workers) in [(0, 1), (1, 3), (4, 3), (8, 2), (9, 4), (u32::MAX, 7)] {
            for server in 0..3 {
                let shares: Vec<u32> =
                    (0..workers).map(|worker| share(permits, server, worker, workers)).collect();
                let sum: u64 = shares.iter().map(|&share| u64::from(share)).sum();
                assert_eq!(sum, u64::from(permits));
                let (most, least) = (shares.iter().max().unwrap(), shares.iter().min().unwrap());
                assert!(most - least <= 1, "{shares:?}");
            }
        }
        // What is left over of several servers goes to several workers.
        let first = |worker| (0..2).map(|server| share(1, server, worker, 2)).sum::<u32>();
        assert_eq!((first(0), first(1)), (1, 1));
    }
}
