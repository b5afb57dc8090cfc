//! A rank's main thread: it alone speaks to the fabric, and moves tasks between its `Core` and the
//! workers.
//!
//! ```text
//! Running --all done, or halted--> Draining --nothing in hand--> Closing --all have told--> over
//!                                     `--halted at once---------^
//! ```
//!
//! The root (the lowest rank that lives) collects what all ranks did. Where the fabric has no waker
//! (MPI) it is polled: often after something came, ever more rarely then, and the main thread
//! sleeps in between, so that an idle rank costs next to nothing.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::executor::{End, ExecutorFactory};
use super::fabric::{Arrival, Fabric, Full};
use super::message::{Message, Reader};
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
/// Ranks tell where they stand so often.
const TICK: Duration = Duration::from_secs(1);
/// A fabric without a waker is polled after this long at first; it doubles from there.
const POLL_MIN: Duration = Duration::from_micros(20);
/// And up to this while tasks run.
const POLL_BUSY_MAX: Duration = Duration::from_millis(3);
/// And up to this while none does: work that appears elsewhere begins within 5 ms.
const POLL_IDLE_MAX: Duration = Duration::from_millis(4);
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

/// A rank stands so and so, and has counted this since it last told.
const TELLS_STATUS: u8 = 1;
/// A rank is done: what went wrong with it, and its report.
const TELLS_END: u8 = 2;

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
        while self.core.over().is_none() {
            if is_broken() {
                return Err("a worker ended early".to_owned());
            }
            let busy = self.turn()?;
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
        self.core.set_slots(self.shared.slots());
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
            self.poll = POLL_MIN;
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
        let slots = self.shared.slots();
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
            let look = if polled { self.now + self.poll } else { Instant::FAR };
            let wait = self.poller.wait(self.now, Some(until.min(look)));
            wait.map_err(|error| format!("a rank's poller: {error}"))?;
            // All are looked at: the poller's own timer is among them.
            let events = 0..self.poller.event_count();
            let woken = events.filter(|&event| self.poller.event(event).is_some()).count() > 0;
            self.now = self.clock.now();
            if !polled || woken || self.now >= until {
                return Ok(());
            }
            self.poll = (self.poll * 2).min(most);
            self.early = self.fabric.poll();
            if self.early.is_some() {
                return Ok(());
            }
        }
    }

    /// About every second: collects what the workers counted, and tells the root.
    fn tick(&mut self) {
        self.tick_at = self.now + TICK;
        self.collect();
        self.shared.ask_tallies();
        self.tell_status();
        if self.core.alive()[0] == self.core.config().rank {
            let ranks: Vec<RankStatus> = self.gathered.statuses.values().copied().collect();
            let since = self.gathered.since.take();
            self.hooks.watch(self.now, &ranks, &since);
        }
    }

    fn tell_status(&mut self) {
        let (status, since) = (self.status(), self.since_told.take());
        let root = self.core.alive()[0];
        if root == self.core.config().rank {
            self.gathered.statuses.insert(root, status);
            self.gathered.since.merge(&since);
        } else {
            let mut bytes = vec![TELLS_STATUS];
            status.encode(&mut bytes);
            since.encode(&mut bytes);
            self.core.send_job(root, bytes);
        }
    }

    fn collect(&mut self) {
        while let Some(tally) = self.shared.tally() {
            self.tally.merge(&tally);
            self.since_told.merge(&tally);
        }
    }

    fn status(&self) -> RankStatus {
        let (done, failed, tokens) = self.ended;
        // What has ended a moment ago may still be in hand.
        let running = self.core.in_hand().saturating_sub(self.shared.unbegun());
        let running = running.min(self.shared.slots());
        RankStatus {
            done,
            failed,
            tokens,
            running: u32::try_from(running).unwrap_or(u32::MAX),
            slots: u32::try_from(self.shared.slots()).unwrap_or(u32::MAX),
            queued: self.core.waiting(),
            mass_done: self.core.own_mass_done(),
        }
    }

    /// At the root: what a rank tells.
    fn told(&mut self, from: Rank, bytes: &[u8]) {
        let Some((kind, bytes)) = bytes.split_first() else { return };
        match *kind {
            TELLS_STATUS => {
                let Some((status, tally)) = bytes.split_at_checked(RankStatus::BYTES) else {
                    return;
                };
                if let (Some(status), Some(tally)) =
                    (RankStatus::decode(status), Tally::decode(tally))
                {
                    self.gathered.statuses.insert(from, status);
                    self.gathered.since.merge(&tally);
                }
            }
            TELLS_END => {
                let mut reader = Reader(bytes);
                let text = reader.u32().and_then(|len| reader.take(len as usize));
                let text = text.map(String::from_utf8_lossy).unwrap_or_default();
                if !text.is_empty() {
                    self.failures.push((from, text.into_owned()));
                }
                match RankReport::decode(reader.rest()) {
                    Some(report) => {
                        self.gathered.reports.insert(from, report);
                    }
                    None => {
                        self.failures.push((from, "its report is not understood".to_owned()));
                        self.gathered.reports.insert(from, RankReport::default());
                    }
                }
            }
            _ => {}
        }
    }

    /// Lets end what runs, unless the job is to end at once.
    fn drain(&mut self, is_broken: &impl Fn() -> bool) -> Result<(), String> {
        self.shared.order(Order::Drain);
        loop {
            self.look();
            self.arrivals()?;
            let busy = self.completions();
            self.notices();
            self.take_back();
            self.send();
            let at_once = matches!(self.core.over(), Some(Over::Halted { now: true, .. }));
            if (self.core.in_hand() == 0 && !busy) || at_once || is_broken() {
                return Ok(());
            }
            if self.now >= self.tick_at {
                self.tick();
            }
            self.wait(busy)?;
        }
    }

    /// Makes the results safe, and tells the root, or hears of all.
    fn close(&mut self) -> Result<(), String> {
        let me = self.core.config().rank;
        self.shared.order(Order::Quit);
        let report = self.report();
        self.tell_status();
        let failure = self.hooks.close().err().unwrap_or_default();
        let mut bytes = vec![TELLS_END];
        bytes.extend(u32::try_from(failure.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(failure.as_bytes());
        report.encode(&mut bytes);
        let mut told_to = None;
        loop {
            self.look();
            self.arrivals()?;
            let root = self.core.alive()[0];
            // After a death the root may be another, which must be told anew.
            let death = self.dead.len();
            if told_to != Some((root, death)) {
                told_to = Some((root, death));
                if root == me {
                    self.told(me, &bytes);
                } else {
                    self.core.send_job(root, bytes.clone());
                }
            }
            self.send();
            let all = self.core.alive().iter().all(|r| self.gathered.reports.contains_key(r));
            if !self.core.has_outgoing() && (root != me || all) {
                return Ok(());
            }
            self.wait(false)?;
        }
    }

    fn report(&mut self) -> RankReport {
        // Workers hand in their last tallies when they quit.
        let end = self.clock.now();
        let deadline = end + Duration::from_secs(5);
        while self.shared.is_running() && self.clock.now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.collect();
        let moves = self.core.moves();
        let slots = self.shared.slots();
        let wall_us = end.micros_since(self.began);
        let busy_us = self.tally.busy_us;
        RankReport {
            rank: self.core.config().rank.0,
            node: self.node.clone(),
            slots: u32::try_from(slots).unwrap_or(u32::MAX),
            wall_us,
            first_us: self.first.map_or(0, |first| first.micros_since(self.began)),
            last_us: self.last.micros_since(self.began),
            tally: self.tally.clone(),
            steals_tried: moves.steals_tried,
            steals_won: moves.steals_won,
            steals_near: moves.steals_near,
            tasks_in: moves.tasks_in,
            tasks_out: moves.tasks_out,
            idle_us: (wall_us * slots as u64).saturating_sub(busy_us),
            cpu_us: worker::thread_cpu_us() - self.cpu_before_us + self.shared.cpu_us(),
            rss_max_kib: worker::rss_max_kib(),
            skipped_rows: self.core.source().skipped_rows(),
        }
    }
}
