//! Starts the ranks of a job: threads of this process, or, under a launcher, this process as one.

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant as Moment, SystemTime};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Common;
use super::watch::{Outputs, Watch};
use crate::cli::Error;
use crate::clock::Instant;
use crate::net::{Waker, socket};
use crate::sched::driver::{self, DriverConfig, Ended, Hooks, Notice};
use crate::sched::executor::ExecutorFactory;
use crate::sched::fabric::{Fabric, Topology};
use crate::sched::local::local;
use crate::sched::progress::{RankStatus, Whole};
use crate::sched::rank::{Over, RankConfig};
use crate::sched::report::JobReport;
use crate::sched::tally::Tally;
use crate::sched::tasks::{Rank, Source, Span};

/// The exit code of a job that was stopped early and goes on when it is run again (EX_TEMPFAIL of
/// sysexits.h).
pub const STOPPED: u8 = 75;

/// What a rank begins with.
pub struct Start<S, X> {
    /// Where its tasks come from.
    pub source: S,
    /// What runs them.
    pub factory: X,
    /// Its first work.
    pub spans: Vec<Span>,
    /// The mass of the whole job, if it is known.
    pub whole: Option<u64>,
    /// Mass is bytes; else numbers.
    pub bytes: bool,
    /// This rank can read the input.
    pub reads: bool,
}

/// A kind of job.
pub trait Job: Sync {
    /// Where its tasks come from.
    type Source: Source;
    /// What runs them.
    type Factory: ExecutorFactory;

    /// What all jobs are told.
    fn common(&self) -> &Common;

    /// What rank `rank` of `size` begins with.
    ///
    /// # Errors
    /// It cannot take part.
    fn start(&self, rank: Rank, size: u32) -> Result<Start<Self::Source, Self::Factory>, String>;
}

/// Runs a job on all its ranks; at the root the report is printed.
pub fn run<J: Job>(job: &J, outputs: &Outputs) -> Result<(), Error> {
    socket::raise_descriptor_limit();
    let signals = block_signals().map_err(Error::Failed)?;
    let size = job.common().ranks;
    let host = nix::unistd::gethostname().unwrap_or_else(|_| "localhost".into());
    let node = host.to_string_lossy().into_owned();
    let fabrics = local(Topology::new(&vec![0; size as usize]));
    let mut fabrics =
        fabrics.map_err(|error| Error::Failed(format!("making {size} ranks: {error}")))?;
    let others = fabrics.split_off(1);
    let began = (Moment::now(), SystemTime::now());
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (rank, mut fabric) in (1..).zip(others) {
            let node = node.clone();
            let body = move || one(job, &mut fabric, node, None, outputs).map(drop);
            let thread = std::thread::Builder::new().name(format!("rank-{rank}"));
            threads.push(thread.spawn_scoped(scope, body).map_err(|error| {
                Error::Failed(format!("starting rank {rank} of {size}: {error}"))
            })?);
        }
        let result = one(job, &mut fabrics[0], node, Some(signals), outputs);
        let mut failures = Vec::new();
        for (rank, thread) in (1..).zip(threads) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failures.push((Rank(rank), error)),
                Err(_) => failures.push((Rank(rank), "it panicked".to_owned())),
            }
        }
        let (mut ended, watch) = result.map_err(Error::Failed)?;
        ended.failures.extend(failures);
        finish(ended, watch, outputs, began)
    })
}

/// One rank, from its start to its end.
fn one<J: Job>(
    job: &J,
    fabric: &mut impl Fabric,
    node: String,
    signals: Option<SignalFd>,
    outputs: &Outputs,
) -> Result<(Ended, Option<Watch>), String> {
    let (rank, size) = (fabric.rank(), fabric.topology().size());
    let waker = Waker::open().map_err(|error| format!("a rank's waker: {error}"))?;
    let (sender, notices) = channel();
    if let Some(signals) = signals {
        watch_signals(signals, sender.clone(), waker.clone())?;
    }
    let Start { source, factory, spans, whole, bytes, reads } = job.start(rank, size)?;
    let common = job.common();
    let watch = match (rank, whole) {
        (Rank(0), Some(mass)) => {
            let whole = if bytes { Whole::Bytes(mass) } else { Whole::Rows(mass) };
            Some(Watch::open(outputs, whole)?)
        }
        (Rank(0), None) => Some(Watch::open(outputs, Whole::Unknown)?),
        _ => None,
    };
    let mut hooks = JobHooks { notices, watch };
    let config = DriverConfig {
        rank: RankConfig {
            rank,
            topology: fabric.topology().clone(),
            window: common.window,
            longest_first: common.longest_first,
            steals: common.steals,
            reads,
            survives: fabric.survives(),
            whole,
            bytes,
            seed: common.seed,
        },
        spans,
        workers: common.workers,
        waker,
        node,
    };
    let ended = driver::run(fabric, source, &factory, &mut hooks, config)?;
    while !fabric.close() {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok((ended, hooks.watch))
}

struct JobHooks {
    notices: Receiver<Notice>,
    watch: Option<Watch>,
}

impl<S> Hooks<S> for JobHooks {
    fn notice(&mut self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }

    fn watch(&mut self, now: Instant, ranks: &[RankStatus], since: &Tally) {
        if let Some(watch) = &mut self.watch {
            watch.update(now, ranks, since);
        }
    }
}

/// At the root: what became of it all.
fn finish(
    ended: Ended,
    watch: Option<Watch>,
    outputs: &Outputs,
    began: (Moment, SystemTime),
) -> Result<(), Error> {
    let wall = began.0.elapsed();
    if let Some(mut watch) = watch {
        watch.close(&ended.rest, wall).map_err(Error::Failed)?;
    }
    if !ended.root {
        return Ok(());
    }
    let last = ended.reports.iter().map(|report| report.last_us).max().unwrap_or_default();
    let note = match &ended.over {
        Over::Done => None,
        Over::Halted { reason, .. } => Some(format!("stopped early: {reason}")),
    };
    let report = JobReport {
        command: std::env::args().skip(1).collect(),
        started_at: crate::log::utc(began.1),
        wall_s: last as f64 / 1e6,
        skipped: ended.reports.iter().map(|report| report.skipped_rows).sum(),
        ranks: ended.reports,
        note,
        tokens_source: "server",
        features: crate::FEATURES,
    };
    outputs.report(&report)?;
    for (rank, failure) in &ended.failures {
        log::error!("rank {rank}: {failure}");
    }
    if !ended.failures.is_empty() {
        return Err(Error::Reported);
    }
    match ended.over {
        Over::Done if report.total().tally.failed == 0 => Ok(()),
        Over::Done => Err(Error::Reported),
        Over::Halted { .. } => Err(Error::Exit(ExitCode::from(STOPPED))),
    }
}

/// Signals that end a job are told by a descriptor alone; to be called before any thread starts.
fn block_signals() -> Result<SignalFd, String> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1] {
        mask.add(signal);
    }
    let open = || {
        mask.thread_block()?;
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)
    };
    open().map_err(|error| format!("blocking signals: {error}"))
}

/// The first signal lets end what runs, a second one stops at once.
fn watch_signals(signals: SignalFd, sender: Sender<Notice>, waker: Waker) -> Result<(), String> {
    let body = move || {
        let mut now = false;
        while let Ok(Some(info)) = signals.read_signal() {
            let name = Signal::try_from(info.ssi_signo as i32).map_or("a signal", Signal::as_str);
            let what =
                if now { "stopping at once" } else { "what runs may end; once more stops it" };
            log::warn!("{name}: {what}");
            let reason = format!("{name} came");
            if sender.send(Notice::Halt { now, reason }).is_err() {
                return;
            }
            waker.wake();
            now = true;
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(body);
    thread.map(drop).map_err(|error| format!("waiting for signals: {error}"))
}
