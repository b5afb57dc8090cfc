//! Sets the gateway up, waits for signals, and takes it down.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::admission::Message;
use super::measure::Measures;
use super::worker::Worker;
use super::{BackendConfig, Config};
use crate::backend::engine::Target;
use crate::backend::prober::Prober;
use crate::clock::MonotonicClock;
use crate::net::{Port, mesh, socket};

/// Why the gateway could not run.
#[derive(Debug)]
pub enum Error {
    /// It cannot listen.
    Listen(SocketAddr, io::Error),
    /// A thread, a descriptor or a signal could not be had.
    Setup(&'static str, io::Error),
    /// A worker's poller failed.
    Worker(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Listen(address, error) if error.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "listening on {address}: the port is in use; stop what holds it, or take another \
                 with --port (0: any)"
            ),
            Error::Listen(address, error) => write!(f, "listening on {address}: {error}"),
            Error::Setup(what, error) => write!(f, "{what}: {error}"),
            Error::Worker(error) => write!(f, "a worker failed: {error}"),
        }
    }
}

impl std::error::Error for Error {}

/// Runs the gateway until SIGTERM or SIGINT has drained it. `ready` is told the address once it is
/// listening.
///
/// # Errors
/// It could not be set up.
pub fn run(config: Config, ready: impl FnOnce(SocketAddr)) -> Result<(), Error> {
    // Blocked before any thread starts, so that all inherit it and only the signalfd tells.
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block().map_err(|e| Error::Setup("blocking signals", e.into()))?;
    let is_model =
        matches!(&config.backend, BackendConfig::Builtin(builtin) if builtin.language.is_some());
    if is_model || config.post.is_some() {
        // Until it is open the CPU does its work.
        config.device.start();
    }
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)
        .map_err(|e| Error::Setup("opening a signalfd", e.into()))?;

    let listeners = socket::listen_shared(config.listen, config.threads)
        .map_err(|error| Error::Listen(config.listen, error))?;
    let address = listeners[0].local_addr().map_err(|e| Error::Listen(config.listen, e))?;
    let setup = |what| move |error| Error::Setup(what, error);
    // The last two ports are for the threads that only send.
    let mut ports =
        mesh::<Message>(config.threads + 2).map_err(setup("opening an eventfd for each core"))?;
    let signals_port = ports.remove(config.threads + 1);
    let prober_port = ports.remove(config.threads);

    let measures: Arc<Vec<Measures>> =
        Arc::new((0..config.threads).map(|_| Measures::default()).collect());
    let clock = MonotonicClock::new();
    let cores = if config.pin { core_affinity::get_core_ids() } else { None };
    let mut workers = Vec::new();
    for (port, listener) in ports.into_iter().zip(listeners) {
        let (config, measures) = (config.clone(), measures.clone());
        let index = port.index();
        let core = cores.as_ref().map(|cores| cores[index % cores.len()]);
        let worker = thread::Builder::new()
            .name(format!("cnse-{index}"))
            .spawn(move || {
                if let Some(core) = core
                    && !core_affinity::set_for_current(core)
                {
                    log::warn!("core {} cannot be pinned to; --no-pin says so", core.id);
                }
                Worker::open(config, listener, port, clock, measures)?.run()
            })
            .map_err(setup("starting a worker"))?;
        workers.push(worker);
    }
    start_prober(&config, prober_port).map_err(setup("starting the prober"))?;
    start_signals(&config, signals_port, signals).map_err(setup("waiting for signals"))?;
    ready(address);
    let mut result = Ok(());
    for worker in workers {
        match worker.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => result = Err(Error::Worker(error)),
            Err(_) => result = Err(Error::Worker(io::Error::other("it panicked"))),
        }
    }
    result
}

/// Starts the thread that looks at the backends, for as long as the process lives.
fn start_prober(config: &Config, mut port: Port<Message>) -> io::Result<()> {
    let BackendConfig::Remote { dialect, targets, inflight } = &config.backend else {
        return Ok(());
    };
    let prober = |target: &Target| Prober::new(*dialect, target.clone(), *inflight);
    let mut probers: Vec<(Prober, Instant)> =
        targets.iter().map(|target| (prober(target), Instant::now())).collect();
    let threads = config.threads;
    let body = move || loop {
        for (backend, (prober, next)) in probers.iter_mut().enumerate() {
            if Instant::now() < *next {
                continue;
            }
            let look = prober.look();
            *next = Instant::now() + look.again;
            // What has not changed is told too: a core may have found a backend unreachable that is
            // up.
            for core in 0..threads {
                let (health, address) = (look.health.clone(), look.address);
                port.send(core, Message::Health { backend, health, address });
            }
        }
        port.flush();
        let next = probers.iter().map(|(_, next)| *next).min().unwrap_or_else(Instant::now);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    };
    thread::Builder::new().name("cnse-prober".to_owned()).spawn(body).map(drop)
}

/// Starts the thread that waits for SIGTERM and SIGINT. The first drains; the second, or the end of
/// the drain's time, ends the process with whatever is under way.
fn start_signals(config: &Config, mut port: Port<Message>, signals: SignalFd) -> io::Result<()> {
    let (threads, limit) = (config.threads, config.drain_timeout);
    let body = move || {
        if !matches!(signals.read_signal(), Ok(Some(_))) {
            return;
        }
        log::info!("draining: finishing what was accepted, taking nothing new");
        (0..threads).for_each(|core| port.send(core, Message::Drain));
        port.flush();
        let timer = thread::Builder::new().name("cnse-drain".to_owned()).spawn(move || {
            thread::sleep(limit);
            log::error!(
                "requests were still under way {} s after the signal and are cut off \
                 (--drain-timeout)",
                limit.as_secs_f64()
            );
            std::process::exit(1);
        });
        if matches!(signals.read_signal(), Ok(Some(_))) || timer.is_err() {
            log::warn!("a second signal: stopping at once");
            std::process::exit(1);
        }
    };
    thread::Builder::new().name("cnse-signals".to_owned()).spawn(body).map(drop)
}
