//! Starts the ranks of a job: threads of this process, or, under a launcher, this process as one.

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
#[cfg(feature = "mpi")]
use std::time::Duration;
use std::time::{Instant as Moment, SystemTime};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Common;
use super::watch::{Outputs, Watch};
use crate::cli::Error;
use crate::clock::Instant;
use crate::machine::environment::{Environment, NoiseWatch};
use crate::machine::processes::local_ports;
use crate::net::{Waker, socket};
use crate::sched::collect::{Fault, Staged};
use crate::sched::driver::{self, DriverConfig, Ended, Hooks, Notice};
use crate::sched::executor::ExecutorFactory;
use crate::sched::fabric::{Fabric, Topology};
use crate::sched::launcher::Launched;
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
pub struct Start<S, X, H> {
    /// Where its tasks come from.
    pub source: S,
    /// What runs them.
    pub factory: X,
    /// What it holds until its end.
    pub held: H,
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
    /// What a rank holds until its end.
    type Held;

    /// What all jobs are told.
    fn common(&self) -> &Common;

    /// What a rank begins with; all ranks call it at once. `waker` wakes its main thread.
    ///
    /// # Errors
    /// It cannot take part.
    fn start<F: Fabric>(
        &self,
        fabric: &mut Staged<'_, F>,
        waker: &Waker,
    ) -> Result<Start<Self::Source, Self::Factory, Self::Held>, Fault>;

    /// Results wait to be written, so many that no more are wanted.
    fn is_behind(&self, _held: &Self::Held) -> bool {
        false
    }

    /// What makes it pointless to go on.
    fn failure(&self, _held: &Self::Held) -> Option<String> {
        None
    }

    /// Input that came since the last call, and once its end is known the mass of it all.
    fn more_input(&self, _held: &mut Self::Held) -> Option<(Vec<Span>, Option<u64>)> {
        None
    }

    /// Ranks died, and these are left: what the dead recorded is not to be done again, and their
    /// places are free.
    fn died(
        &self,
        _source: &mut Self::Source,
        _factory: &Self::Factory,
        _held: &Self::Held,
        _alive: &[Rank],
    ) {
    }

    /// Makes the results safe.
    ///
    /// # Errors
    /// What is not safe.
    fn close(&self, _held: &mut Self::Held) -> Result<(), String> {
        Ok(())
    }

    /// Brings together what was written in different places; all ranks call it at once.
    ///
    /// # Errors
    /// Something stays where it was.
    fn gather_parts<F: Fabric>(
        &self,
        _fabric: &mut Staged<'_, F>,
        _held: &Self::Held,
    ) -> Result<(), String> {
        Ok(())
    }

    /// At the root, when all is done: makes one result of it. Whether all rows ended well.
    fn merge(&self) -> Result<bool, String> {
        Ok(true)
    }

    /// How to go on after an early end, for a person.
    fn advice(&self) -> &'static str {
        ""
    }
}

/// Runs a job on all its ranks; at the root the report is printed.
pub fn run<J: Job>(job: &J, outputs: &Outputs) -> Result<(), Error> {
    socket::raise_descriptor_limit();
    let signals = block_signals().map_err(Error::Failed)?;
    match Launched::from_environment().map_err(Error::Failed)? {
        None => threads(job, outputs, signals),
        Some(_) if job.common().ranks.is_some() => {
            let message = "--ranks is for one process; mpirun's -np says how many ranks there are";
            Err(Error::Usage(message.to_owned()))
        }
        Some(launched) => processes(job, outputs, signals, &launched),
    }
}

/// This process as one of the ranks that a launcher started.
#[cfg(feature = "mpi")]
fn processes<J: Job>(
    job: &J,
    outputs: &Outputs,
    signals: SignalFd,
    launched: &Launched,
) -> Result<(), Error> {
    use crate::sched::mpi::{MpiFabric, abort};
    let mut fabric = MpiFabric::open(launched).map_err(Error::Failed)?;
    let began = (Moment::now(), SystemTime::now());
    let rank = fabric.rank();
    // The other ranks of this node came of the same launcher.
    let of_launcher = nix::unistd::getppid().as_raw().unsigned_abs();
    let noise = (rank == Rank(0)).then(|| watch_noise(vec![of_launcher])).flatten();
    match one(job, &mut fabric, host(), Some(signals), outputs) {
        Ok(rest) => {
            let result = finish(job, rest, outputs, (began, noise));
            while !fabric.close() {
                std::thread::sleep(Duration::from_millis(1));
            }
            result
        }
        Err(Fault::Everywhere(error)) => {
            while !fabric.close() {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(if rank == Rank(0) { Error::Failed(error) } else { Error::Reported })
        }
        Err(Fault::Here(error)) => {
            // The others would wait for this one for ever.
            log::error!("rank {rank}: {error}");
            abort(1)
        }
    }
}

/// Without MPI only a single rank can be what a launcher starts.
#[cfg(not(feature = "mpi"))]
fn processes<J: Job>(
    job: &J,
    outputs: &Outputs,
    signals: SignalFd,
    launched: &Launched,
) -> Result<(), Error> {
    if let Err(message) = launched.refuse() {
        // Said once, not by each.
        return Err(if launched.rank == 0 { Error::Failed(message) } else { Error::Reported });
    }
    threads(job, outputs, signals)
}

/// Threads of this process as ranks.
fn threads<J: Job>(job: &J, outputs: &Outputs, signals: SignalFd) -> Result<(), Error> {
    let size = job.common().ranks.unwrap_or(1);
    let fabrics = local(Topology::new(&vec![0; size as usize]));
    let mut fabrics =
        fabrics.map_err(|error| Error::Failed(format!("making {size} ranks: {error}")))?;
    let others = fabrics.split_off(1);
    let began = (Moment::now(), SystemTime::now());
    let noise = watch_noise(Vec::new());
    std::thread::scope(|scope| {
        for (rank, mut fabric) in (1..).zip(others) {
            let body = move || match one(job, &mut fabric, host(), None, outputs) {
                Ok(rest) => drop(rest),
                Err(Fault::Everywhere(_)) => {}
                Err(Fault::Here(error)) => give_up(Rank(rank), &error),
            };
            let thread = std::thread::Builder::new().name(format!("rank-{rank}"));
            thread.spawn_scoped(scope, body).map_err(|error| {
                Error::Failed(format!("starting rank {rank} of {size}: {error}"))
            })?;
        }
        match one(job, &mut fabrics[0], host(), Some(signals), outputs) {
            Ok(rest) => finish(job, rest, outputs, (began, noise)),
            Err(Fault::Everywhere(error)) => Err(Error::Failed(error)),
            Err(Fault::Here(error)) => give_up(Rank(0), &error),
        }
    })
}

/// A rank cannot go on, and the others would wait for it for ever.
fn give_up(rank: Rank, error: &str) -> ! {
    match rank {
        Rank(0) => eprintln!("cnse: error: {error}"),
        rank => eprintln!("cnse: error: rank {rank}: {error}"),
    }
    std::process::exit(1)
}

/// Looks at the machine's load from now on, from a thread of its own: the first look reads of every
/// process, which takes milliseconds, and the job need not wait for it. None: there is no thread
/// for it, and the report says nothing of the load.
fn watch_noise(roots: Vec<u32>) -> Option<JoinHandle<NoiseWatch>> {
    let watch = move || {
        let words: Vec<String> = std::env::args().collect();
        NoiseWatch::among(&local_ports(&words), &roots)
    };
    std::thread::Builder::new().name("noise".to_owned()).spawn(watch).ok()
}

fn host() -> String {
    let host = nix::unistd::gethostname().unwrap_or_else(|_| "localhost".into());
    host.to_string_lossy().into_owned()
}

/// What a rank, done with its work, still has to say.
struct Rest<H> {
    ended: Ended,
    watch: Option<Watch>,
    /// Kept until the results are one: it holds the job's lock.
    held: H,
}

/// One rank, from its start to its end.
fn one<J: Job, F: Fabric>(
    job: &J,
    fabric: &mut F,
    node: String,
    signals: Option<SignalFd>,
    outputs: &Outputs,
) -> Result<Rest<J::Held>, Fault> {
    let mut staged = Staged::new(fabric);
    let rank = staged.rank();
    let waker = Waker::open().map_err(|error| format!("a rank's waker: {error}"))?;
    let (sender, notices) = channel();
    if let Some(signals) = signals {
        watch_signals(signals, sender.clone(), waker.clone(), job.advice())?;
    }
    let Start { source, factory, held, spans, whole, bytes, reads } =
        job.start(&mut staged, &waker)?;
    let common = job.common();
    let watch = match rank {
        Rank(0) => {
            let whole = match whole {
                None => Whole::Unknown,
                Some(mass) if bytes => Whole::Bytes(mass),
                Some(mass) => Whole::Rows(mass),
            };
            Some(Watch::open(outputs, whole)?)
        }
        _ => None,
    };
    let mut hooks = JobHooks { job, factory: &factory, held, notices, watch, failed: false };
    let config = DriverConfig {
        rank: RankConfig {
            rank,
            topology: staged.topology().clone(),
            window: common.window,
            longest_first: common.longest_first,
            steals: common.steals,
            reads,
            survives: staged.survives(),
            whole,
            bytes,
            seed: common.seed,
        },
        spans,
        workers: common.workers,
        waker,
        node,
    };
    let mut ended = driver::run(&mut staged, source, &factory, &mut hooks, config)?;
    let JobHooks { held, watch, .. } = hooks;
    if ended.dead.is_empty()
        && let Err(error) = job.gather_parts(&mut staged, &held)
    {
        ended.failures.push((rank, error));
    }
    Ok(Rest { ended, watch, held })
}

struct JobHooks<'j, J: Job> {
    job: &'j J,
    factory: &'j J::Factory,
    held: J::Held,
    notices: Receiver<Notice>,
    watch: Option<Watch>,
    failed: bool,
}

impl<J: Job> Hooks<J::Source> for JobHooks<'_, J> {
    fn is_behind(&self) -> bool {
        self.job.is_behind(&self.held)
    }

    fn notice(&mut self) -> Option<Notice> {
        if !self.failed
            && let Some(reason) = self.job.failure(&self.held)
        {
            self.failed = true;
            return Some(Notice::Halt { now: false, reason });
        }
        if let Some((spans, whole)) = self.job.more_input(&mut self.held) {
            if let (Some(watch), Some(mass)) = (&mut self.watch, whole) {
                watch.set_whole(Whole::Bytes(mass));
            }
            return Some(Notice::Input(spans, whole));
        }
        self.notices.try_recv().ok()
    }

    fn died(&mut self, source: &mut J::Source, alive: &[Rank]) {
        self.job.died(source, self.factory, &self.held, alive);
    }

    fn watch(&mut self, now: Instant, ranks: &[RankStatus], since: &Tally) {
        if let Some(watch) = &mut self.watch {
            let none = ranks.iter().all(|rank| rank.slots == 0);
            watch.set_waiting(none.then_some("no server is up"));
            watch.update(now, ranks, since);
        }
    }

    fn close(&mut self) -> Result<(), String> {
        self.job.close(&mut self.held)
    }
}

/// At the root: what became of it all.
fn finish<J: Job>(
    job: &J,
    rest: Rest<J::Held>,
    outputs: &Outputs,
    (began, noise): ((Moment, SystemTime), Option<JoinHandle<NoiseWatch>>),
) -> Result<(), Error> {
    let Rest { ended, watch, held } = rest;
    let wall = began.0.elapsed();
    if let Some(mut watch) = watch {
        watch.close(&ended.rest, wall).map_err(Error::Failed)?;
    }
    if !ended.root {
        return Ok(());
    }
    for (rank, failure) in &ended.failures {
        log::error!("rank {rank}: {failure}");
    }
    let is_complete = ended.over == Over::Done && ended.failures.is_empty();
    let merged = if is_complete { job.merge() } else { Ok(false) };
    // Only now may another job have the same output.
    drop(held);
    let last = ended.reports.iter().map(|report| report.last_us).max().unwrap_or_default();
    let report = JobReport {
        command: std::env::args().skip(1).collect(),
        started_at: crate::log::utc(began.1),
        wall_s: last as f64 / 1e6,
        skipped: ended.reports.iter().map(|report| report.skipped_rows).sum(),
        note: note(&ended, job.advice()),
        ranks: ended.reports,
        tokens_source: "server",
        environment: Environment {
            seed: Some(job.common().seed),
            noise: noise.and_then(|noise| noise.join().ok()?.stop()),
            ..Environment::of_this_machine(crate::cli::FEATURES)
        },
    };
    outputs.report(&report)?;
    match (merged, ended.over) {
        (Err(error), _) => Err(Error::Failed(error)),
        (Ok(_), Over::Halted { .. }) if ended.failures.is_empty() => {
            Err(Error::Exit(ExitCode::from(STOPPED)))
        }
        (Ok(true), Over::Done) if report.total().tally.failed == 0 => Ok(()),
        (Ok(_), _) => Err(Error::Reported),
    }
}

/// What a reader of the report must know first.
fn note(ended: &Ended, advice: &str) -> Option<String> {
    let mut notes = Vec::new();
    if let Over::Halted { reason, .. } = &ended.over {
        notes.push(format!("stopped early: {reason}{advice}"));
    }
    if !ended.dead.is_empty() {
        let dead: Vec<String> = ended.dead.iter().map(Rank::to_string).collect();
        let dead = dead.join(", ");
        notes.push(format!(
            "rank {dead} died, and the others did its work; what it did is not in here"
        ));
    }
    (!notes.is_empty()).then(|| notes.join("; "))
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
fn watch_signals(
    signals: SignalFd,
    sender: Sender<Notice>,
    waker: Waker,
    advice: &'static str,
) -> Result<(), String> {
    let body = move || {
        let mut now = false;
        while let Ok(Some(info)) = signals.read_signal() {
            let name = Signal::try_from(info.ssi_signo as i32).map_or("a signal", Signal::as_str);
            let what =
                if now { "stopping at once" } else { "what runs may end; once more stops it" };
            log::warn!("{name}: {what}{advice}");
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
