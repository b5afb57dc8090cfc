//! A rank's main thread: it alone speaks to the fabric, and moves tasks between its `Core` and the
//! workers.
//!
//! ```text
//! Running --all done, or halted--> Draining --nothing in hand--> Closing --all have told--> over
//!                                     `--halted at once---------^
//! ```
//!
//! The root (the lowest rank that lives) collects what all ranks did. Where the fabric has no waker
//! (MPI) it is polled. If all other ranks ring (those of the same machine do), that is after a ring
//! and now and then; else often after something came, ever more rarely then. In between the main
//! thread sleeps, so that an idle rank costs next to nothing.

mod telling;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::executor::{End, ExecutorFactory};
use super::fabric::{Arrival, Fabric, Full};
use super::message::Message;
use super::progress::RankStatus;
use super::rank::{Core, Over, RankConfig};
use super::report::RankReport;
use super::tally::Tally;
use super::tasks::{Rank, Source, Span};
use super::worker::{self, Order, Shared};
use crate::clock::{Clock, Instant, MonotonicClock};
use crate::net::{Poller, Token, Waker};

/// How a job's own parts take part in a rank's life; all on its main thread.
pub trait Hooks<S> {
    /// Results wait to be written, so many that no more are wanted.
    fn is_behind(&self) -> bool {
        false
    }

    /// What the rank is to know: more input, an interruption, a fault.
    fn notice(&mut self) -> Option<Notice> {
        None
    }

    /// Ranks died, and these are left; what the dead recorded is not to be done again.
    fn died(&mut self, _source: &mut S, _alive: &[Rank]) {}

    /// At the root, about every second: where each rank stands, and what was counted since.
    fn watch(&mut self, _now: Instant, _ranks: &[RankStatus], _since: &Tally) {}

    /// The rank does no more: results are to be made safe.
    ///
    /// # Errors
    /// What is not safe, for a person.
    fn close(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// What hooks tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// More input, and once its end is known the mass of it all.
    Input(Vec<Span>, Option<u64>),
    /// The job is to end: at once, or when what runs has ended.
    Halt {
        /// At once.
        now: bool,
        /// Why.
        reason: String,
    },
}

/// What a driver is told.
#[derive(Debug)]
pub struct DriverConfig {
    /// How the rank goes about it.
    pub rank: RankConfig,
    /// What the rank begins with.
    pub spans: Vec<Span>,
    /// Threads that run tasks.
    pub workers: usize,
    /// Wakes the main thread; hooks have it too.
    pub waker: Waker,
    /// The machine's name, for the report.
    pub node: String,
}

/// What came of a rank.
#[derive(Debug)]
pub struct Ended {
    /// Why it is over.
    pub over: Over,
    /// At the root: what each living rank did.
    pub reports: Vec<RankReport>,
    /// What went wrong, by rank; the own too.
    pub failures: Vec<(Rank, String)>,
    /// Ranks that died.
    pub dead: Vec<Rank>,
    /// At the root: what was counted since the last `watch`.
    pub rest: Tally,
    /// Whether this is the root.
    pub root: bool,
}

const MAIN: Token = Token::single(1);
const FABRIC: Token = Token::single(2);
const BELL: Token = Token::single(3);
/// Ranks tell where they stand so often.
const TICK: Duration = Duration::from_secs(1);
/// A fabric without a waker is polled after this long at first; it doubles from there.
const POLL_MIN: Duration = Duration::from_micros(20);
/// And up to this while tasks run.
const POLL_BUSY_MAX: Duration = Duration::from_millis(3);
/// And up to this while none does: work that appears elsewhere begins within 5 ms.
const POLL_IDLE_MAX: Duration = Duration::from_millis(4);
/// And this often where whatever comes rings.
const POLL_RUNG: Duration = Duration::from_millis(20);
/// When a message could not be sent, the next try.
const FULL_WAIT: Duration = Duration::from_micros(100);
/// Tasks that end in one turn, so that messages are answered in between.
const COMPLETIONS_PER_TURN: usize = 4096;

/// Runs a rank to its end.
///
/// # Errors
/// The process has no descriptor left, a thread could not be made, the input cannot be read, or the
/// fabric broke.
pub fn run<F, S, X>(
    fabric: &mut F,
    source: S,
    factory: &X,
    hooks: &mut dyn Hooks<S>,
    config: DriverConfig,
) -> Result<Ended, String>
where
    F: Fabric,
    S: Source,
    X: ExecutorFactory,
{
    let clock = MonotonicClock::new();
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let (shared, deques) = Shared::open(config.workers, config.waker.clone())
        .map_err(failed("making a rank's workers"))?;
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (index, deque) in deques.into_iter().enumerate() {
            let (shared, name) = (shared.clone(), format!("worker-{index}"));
            let body = move || worker::run(&shared, factory, index, &deque, clock);
            let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, body);
            threads.push(thread.map_err(failed("starting a worker"))?);
        }
        let result = Driver::open(fabric, source, hooks, config, shared.clone(), clock)
            .and_then(|driver| driver.run(|| threads.iter().any(|thread| thread.is_finished())));
        shared.order(Order::Quit);
        for thread in threads {
            match thread.join() {
                Ok(result) => result.map_err(failed("a worker"))?,
                Err(_) => return Err("a worker panicked".to_owned()),
            }
        }
        result
    })
}

struct Driver<'d, F, S> {
    fabric: &'d mut F,
    hooks: &'d mut dyn Hooks<S>,
    core: Core<S>,
    shared: Arc<Shared>,
    poller: Poller,
    clock: MonotonicClock,
    began: Instant,
    /// Processor time of this thread before the job began.
    cpu_before_us: u64,
    now: Instant,
    node: String,
    waker: Waker,
    tick_at: Instant,
    poll: Duration,
    /// The bell rang, and what it rang for is not here yet.
    alarmed: bool,
    /// What came while it waited.
    early: Option<Arrival>,
    tally: Tally,
    since_told: Tally,
    /// Tasks that ended well, those that failed, and tokens, for who watches: tallies come later.
    ended: (u64, u64, u64),
    first: Option<Instant>,
    last: Instant,
    dead: Vec<Rank>,
    failures: Vec<(Rank, String)>,
    gathered: Gathered,
}

/// At the root: what ranks told.
#[derive(Default)]
struct Gathered {
    statuses: BTreeMap<Rank, RankStatus>,
    since: Tally,
    reports: BTreeMap<Rank, RankReport>,
}

impl<'d, F: Fabric, S: Source> Driver<'d, F, S> {
    fn open(
        fabric: &'d mut F,
        source: S,
        hooks: &'d mut dyn Hooks<S>,
        config: DriverConfig,
        shared: Arc<Shared>,
        clock: MonotonicClock,
    ) -> Result<Driver<'d, F, S>, String> {
        let open = || -> io::Result<Poller> {
            let poller = Poller::open()?;
            poller.register(&config.waker, MAIN)?;
            if let Some(waker) = fabric.waker() {
                poller.register(waker, FABRIC)?;
            }
            if let Some(bell) = fabric.bell() {
                poller.register(bell, BELL)?;
            }
            Ok(poller)
        };
        let poller = open().map_err(|error| format!("a rank's poller: {error}"))?;
        let mut core = Core::new(config.rank, source);
        core.add(config.spans);
        let now = clock.now();
        Ok(Driver {
            fabric,
            hooks,
            core,
            shared,
            poller,
            clock,
            began: now,
            cpu_before_us: worker::thread_cpu_us(),
            now,
            node: config.node,
            waker: config.waker,
            tick_at: now + TICK,
            poll: POLL_MIN,
            alarmed: false,
            early: None,
            tally: Tally::default(),
            since_told: Tally::default(),
            ended: (0, 0, 0),
            first: None,
            last: now,
            dead: Vec::new(),
            failures: Vec::new(),
            gathered: Gathered::default(),
        })
    }

    fn run(mut self, is_broken: impl Fn() -> bool) -> Result<Ended, String> {
        loop {
            if is_broken() {
                return Err("a worker ended early".to_owned());
            }
            let busy = self.turn()?;
            // Before waiting: nothing wakes a rank whose work is over.
            if self.core.over().is_some() {
                break;
            }
            self.wait(busy)?;
        }
        self.drain(&is_broken)?;
        self.close()?;
        let me = self.core.config().rank;
        let over = self.core.over().cloned().unwrap_or(Over::Done);
        let root = self.core.alive()[0] == me;
        let reports = self.gathered.reports.into_values().collect();
        let rest = self.gathered.since;
        Ok(Ended { over, reports, failures: self.failures, dead: self.dead, rest, root })
    }

    /// True: there is more to do at once.
    fn turn(&mut self) -> Result<bool, String> {
        self.look();
        self.arrivals()?;
        let mut busy = self.completions();
        self.notices();
        if let Some(slots) = self.shared.slots() {
            self.core.set_slots(slots);
        }
        if self.core.is_wanted() {
            self.take_back();
        }
        busy |= self.core.turn(self.now)?;
        self.hand()?;
        self.send();
        if self.now >= self.tick_at {
            self.tick();
        }
        Ok(busy)
    }

    /// A new turn begins: whatever comes from here on wakes this thread again.
    fn look(&mut self) {
        self.now = self.clock.now();
        self.waker.looking();
        if let Some(waker) = self.fabric.waker() {
            waker.looking();
        }
    }

    fn arrivals(&mut self) -> Result<(), String> {
        while let Some(arrival) = self.early.take().or_else(|| self.fabric.poll()) {
            (self.poll, self.alarmed) = (POLL_MIN, false);
            match arrival {
                Arrival::Message(from, message) => {
                    if matches!(message, Message::Ask { .. }) {
                        self.take_back();
                    }
                    self.core.message(from, message)?;
                }
                Arrival::Survivors(alive) => self.survivors(alive),
                Arrival::Broken(reason) => return Err(reason),
            }
        }
        while let Some((from, bytes)) = self.core.next_job() {
            self.told(from, &bytes);
        }
        Ok(())
    }

    fn survivors(&mut self, alive: Vec<Rank>) {
        let before = self.core.alive().to_vec();
        let dead: Vec<Rank> = before.into_iter().filter(|rank| !alive.contains(rank)).collect();
        for rank in &dead {
            log::warn!("rank {rank} died; {} ranks go on with its work", alive.len());
            self.gathered.statuses.remove(rank);
            self.gathered.reports.remove(rank);
        }
        self.hooks.died(self.core.source(), &alive);
        self.dead.extend(dead);
        self.core.survivors(alive);
    }

    fn completions(&mut self) -> bool {
        for _ in 0..COMPLETIONS_PER_TURN {
            let Some(completion) = self.shared.completion() else { return false };
            if let End::Done { ok, tokens, .. } = completion.end {
                self.ended.0 += u64::from(ok);
                self.ended.1 += u64::from(!ok);
                self.ended.2 += u64::from(tokens);
            }
            self.last = self.now;
            self.core.completed(completion);
        }
        true
    }

    fn notices(&mut self) {
        while let Some(notice) = self.hooks.notice() {
            match notice {
                Notice::Input(spans, whole) => {
                    self.core.add(spans);
                    if let Some(whole) = whole {
                        self.core.set_whole(whole);
                    }
                }
                Notice::Halt { now, reason } => self.core.request_halt(now, &reason),
            }
        }
    }

    fn take_back(&mut self) {
        if self.shared.unbegun() > 0 {
            self.core.put_back(self.shared.take_back());
        }
    }

    /// Hands out as much as the workers can run, and a little ahead, unless somebody else wants it.
    fn hand(&mut self) -> Result<(), String> {
        if self.hooks.is_behind() {
            return Ok(());
        }
        let slots = self.shared.slots().unwrap_or(0);
        let ahead = if self.core.is_wanted() || slots == 0 { 0 } else { self.core.lead() };
        let mut any = false;
        while self.core.in_hand() < slots + ahead
            && let Some(task) = self.core.hand()?
        {
            self.shared.hand(task);
            any = true;
        }
        if any {
            self.first.get_or_insert(self.now);
            self.shared.wake();
        }
        Ok(())
    }

    fn send(&mut self) {
        while let Some((to, message)) = self.core.outgoing() {
            self.poll = POLL_MIN;
            if let Err(Full(message)) = self.fabric.send(to, message) {
                self.core.unsent(to, message);
                return;
            }
        }
    }

    /// Waits until something happens. Where only polling tells of messages that is done here, so
    /// that an idle rank need not take a whole turn to learn that there is nothing.
    fn wait(&mut self, busy: bool) -> Result<(), String> {
        let mut until = self.core.wake_at().min(self.tick_at);
        if self.core.has_outgoing() {
            // The fabric is full, and gets a moment to move.
            until = until.min(self.now + FULL_WAIT);
        }
        if busy {
            until = self.now;
        }
        let polled = self.fabric.waker().is_none();
        let most = if self.core.in_hand() == 0 { POLL_IDLE_MAX } else { POLL_BUSY_MAX };
        loop {
            let is_rung = self.fabric.is_rung() && !self.alarmed;
            let look = match (polled, is_rung) {
                (false, _) => Instant::FAR,
                (true, false) => self.now + self.poll,
                (true, true) => self.now + POLL_RUNG,
            };
            let wait = self.poller.wait(self.now, Some(until.min(look)));
            wait.map_err(|error| format!("a rank's poller: {error}"))?;
            // All are looked at: the poller's own timer is among them.
            let mut woken = false;
            for event in 0..self.poller.event_count() {
                let token = self.poller.event(event).map(|(token, _)| token);
                woken |= token.is_some();
                if token == Some(BELL) {
                    self.fabric.hear();
                    (self.poll, self.alarmed) = (POLL_MIN, true);
                }
            }
            self.now = self.clock.now();
            if !polled || woken || self.now >= until {
                return Ok(());
            }
            // A bell that rang for nothing is not waited for any longer.
            self.alarmed &= self.poll < most;
            self.poll = (self.poll * 2).min(most);
            self.early = self.fabric.poll();
            if self.early.is_some() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fabric::Topology;
    use super::super::local::local;
    use super::super::sleep::SleepFactory;
    use super::super::workload::{Distribution, Workload, WorkloadSource};
    use super::*;

    struct Watched(u32);

    impl<S> Hooks<S> for Watched {
        fn watch(&mut self, _: Instant, _: &[RankStatus], _: &Tally) {
            self.0 += 1;
        }
    }

    /// Seconds that a job lasted that has nothing to do.
    fn seconds() -> u32 {
        let topology = Arc::new(Topology::new(&[0]));
        let mut fabric = local(Topology::new(&[0])).unwrap().remove(0);
        let distribution = Distribution::Fixed(0.0);
        let workload = Arc::new(Workload { distribution, estimate_sigma: None, seed: 1 });
        let source = WorkloadSource::new(workload.clone());
        let factory = SleepFactory { workload, slots: 2 };
        let rank = RankConfig {
            rank: Rank(0),
            topology,
            window: 16,
            longest_first: true,
            steals: true,
            reads: true,
            survives: false,
            whole: Some(4),
            bytes: false,
            seed: 1,
        };
        let (spans, waker) = (vec![Span::numbers(0, 4)], Waker::open().unwrap());
        let config = DriverConfig { rank, spans, workers: 1, waker, node: String::new() };
        let mut hooks = Watched(0);
        let ended = run(&mut fabric, source, &factory, &mut hooks, config).unwrap();
        assert_eq!((ended.over, ended.reports[0].tally.ok), (Over::Done, 4));
        hooks.0
    }

    #[test]
    fn what_is_over_ends_at_once_and_not_with_the_next_second() {
        // A machine under load may take a second for it now and then.
        assert!((0..5).any(|_| seconds() == 0));
    }
}
