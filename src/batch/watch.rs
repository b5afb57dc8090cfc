//! Looks after the health of a rank's servers, on a thread of its own, and tells the workers.
//!
//! Each worker has a ring that only the watch fills and a waker that it registers with its poller.
//! A full ring loses news, not for long: everything is told again with every look.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam::queue::ArrayQueue;

use super::servers::{Endpoint, Server};
use crate::backend::Dialect;
use crate::backend::pool::Health;
use crate::backend::prober::Prober;
use crate::net::Waker;

/// How a server is.
#[derive(Clone, Debug)]
pub struct News {
    /// Which.
    pub server: usize,
    /// Its health.
    pub health: Health,
    /// Where it is, if its name has an address.
    pub address: Option<SocketAddr>,
}

/// A worker's end.
#[derive(Clone, Debug)]
pub struct Subscription {
    ring: Arc<ArrayQueue<News>>,
    waker: Waker,
}

/// The health thread's handle; the thread ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Mutex<Shared>>,
    /// Nothing is ever sent: that it is gone is what ends the thread.
    _alive: mpsc::Sender<()>,
}

#[derive(Debug)]
struct Shared {
    latest: Vec<Option<News>>,
    subscriptions: Vec<Subscription>,
}

/// Room for so many looks at each server.
const LOOKS: usize = 16;

impl Watch {
    /// Starts to look after `servers`, of which this rank has so many `permits` each. With `quiet`
    /// another rank of this machine logs how they are.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(servers: &[Server], permits: &[u32], quiet: bool) -> io::Result<Watch> {
        let mut probers: Vec<(Prober, Instant)> = servers
            .iter()
            .zip(permits)
            .map(|(server, &permits)| (prober(server, permits).quiet(quiet), Instant::now()))
            .collect();
        let latest = vec![None; servers.len()];
        let shared = Arc::new(Mutex::new(Shared { latest, subscriptions: Vec::new() }));
        let (alive, ended) = mpsc::channel();
        let of_thread = shared.clone();
        let body = move || loop {
            for (server, (prober, next)) in probers.iter_mut().enumerate() {
                if Instant::now() >= *next {
                    let look = prober.look();
                    *next = Instant::now() + look.again;
                    let news = News { server, health: look.health, address: look.address };
                    lock(&of_thread).tell(news);
                }
            }
            let next = probers.iter().map(|(_, next)| *next).min();
            let next = next.unwrap_or_else(|| Instant::now() + std::time::Duration::from_secs(60));
            let wait = next.saturating_duration_since(Instant::now());
            if ended.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        };
        thread::Builder::new().name("cnse-health".to_owned()).spawn(body)?;
        Ok(Watch { shared, _alive: alive })
    }

    /// What a worker hears from now on; first what is known already.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn subscribe(&self) -> io::Result<Subscription> {
        let mut shared = lock(&self.shared);
        let ring = Arc::new(ArrayQueue::new(LOOKS * shared.latest.len().max(1)));
        let subscription = Subscription { ring, waker: Waker::open()? };
        for news in shared.latest.iter().flatten() {
            subscription.tell(news.clone());
        }
        shared.subscriptions.push(subscription.clone());
        Ok(subscription)
    }
}

impl Shared {
    fn tell(&mut self, news: News) {
        // A worker that is gone leaves its ring to this side alone.
        self.subscriptions.retain(|subscription| Arc::strong_count(&subscription.ring) > 1);
        for subscription in &self.subscriptions {
            subscription.tell(news.clone());
        }
        let server = news.server;
        self.latest[server] = Some(news);
    }
}

impl Subscription {
    /// What wakes the worker.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// The next news.
    pub fn next(&self) -> Option<News> {
        self.ring.pop()
    }

    fn tell(&self, news: News) {
        // Full: it is told again soon.
        let _ = self.ring.push(news);
        self.waker.wake();
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A gateway says under `/health`, as llama-server does, whether it can serve.
fn prober(server: &Server, permits: u32) -> Prober {
    let dialect = match server.endpoint {
        Endpoint::Binary { .. } => Dialect::Llama,
        Endpoint::Http { dialect, .. } => dialect,
    };
    Prober::new(dialect, server.http(), Some(permits))
}
