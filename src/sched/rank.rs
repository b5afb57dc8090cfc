//! A rank: what it does with work, messages, moments and deaths. Pure.
//!
//! ```text
//!            message(..)   completed(..)   survivors(..)   grow(..)
//!                  \            |               |           /
//!   turn(now):   read on -> feed whoever left word -> steal -> report -> (over?)
//!                  /            |
//!        hand() -> Task    outgoing() -> (Rank, Message)
//! ```
//!
//! Invariants: a task is in one queue, in one gift under way, or in one pair of hands; the masses
//! of what is done, waiting, in hand and under way add up to what was put in, until somebody dies.

mod recovery;
mod sharing;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::executor::{Completion, End};
use super::fabric::Topology;
use super::ledger::Ledger;
use super::message::Message;
use super::queue::{Gift, Queue};
use super::quiesce::Quiesce;
use super::steal::{Need, Step, Thief};
use super::tasks::{Rank, Source, Span, Task};
use crate::clock::Instant;
use recovery::Recovery;
use sharing::{Hungry, hint};

/// How a rank goes about it.
#[derive(Clone, Debug)]
pub struct RankConfig {
    /// Which.
    pub rank: Rank,
    /// All ranks.
    pub topology: Arc<Topology>,
    /// Tasks that are read ahead, and put in order, at most.
    pub window: usize,
    /// Start what takes longest first; else in the input's order.
    pub longest_first: bool,
    /// Work moves between ranks; false only to measure what that is worth.
    pub steals: bool,
    /// It can read the input; else it is given rows with their text.
    pub reads: bool,
    /// The fabric goes on after a death.
    pub survives: bool,
    /// The mass of the whole job, where it is known at the start.
    pub whole: Option<u64>,
    /// The input is of bytes; else of numbers.
    pub bytes: bool,
    /// Of its choices.
    pub seed: u64,
}

/// What moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Ranks that were asked.
    pub steals_tried: u64,
    /// Answers with work in them, and work that came because word was left.
    pub steals_won: u64,
    /// Those of them that came from the own node.
    pub steals_near: u64,
    /// Tasks that came, as far as they had been read.
    pub tasks_in: u64,
    /// Tasks that went, likewise.
    pub tasks_out: u64,
}

/// Why a rank does no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// All is done, everywhere.
    Done,
    /// The job ends early: nothing new is begun.
    Halted {
        /// At once.
        now: bool,
        /// Why.
        reason: String,
    },
}

/// Work is asked for when what waits will be used up within this time.
const LEAD: Duration = Duration::from_millis(4);
/// A rank asks so often while what it has lasts.
const LEVELS: u64 = 4;
/// But no more often than this.
const LEVEL_PERIOD_MIN: Duration = Duration::from_millis(10);
/// Estimates are made anew at most so often.
const ESTIMATE_PERIOD: Duration = Duration::from_millis(500);

/// One rank.
#[derive(Debug)]
pub struct Core<S> {
    config: RankConfig,
    source: S,
    alive: Vec<Rank>,
    queue: Queue,
    /// 0 until it is known.
    slots: usize,
    /// It is: who can run nothing gives all away.
    knows_slots: bool,
    in_hand: usize,
    /// By where they begin; only where somebody may ask for them.
    hands: BTreeMap<u64, u32>,
    ledger: Ledger,
    outbox: VecDeque<(Rank, Message)>,
    /// The fabric refused one, and they wait.
    refused: bool,
    /// When it asks although it has enough.
    level_at: Instant,
    thief: Thief,
    /// Who left word.
    hungry: VecDeque<Hungry>,
    quiesce: Quiesce,
    /// At the root: what the job has, once known.
    whole: Option<u64>,
    /// Behind the last that was put in here.
    granted: u64,
    /// At the root, after a death, until all survivors have told.
    recovery: Option<Recovery>,
    moves: Moves,
    over: Option<Over>,
    /// Mean microseconds of a task here.
    mean_us: f64,
    learnt: u64,
    estimated: (Instant, u64),
    inbox: VecDeque<(Rank, Vec<u8>)>,
}

impl<S: Source> Core<S> {
    /// A rank without work.
    pub fn new(config: RankConfig, source: S) -> Core<S> {
        let alive: Vec<Rank> = (0..config.topology.size()).map(Rank).collect();
        Core {
            queue: Queue::new(config.window, config.longest_first),
            thief: Thief::new(config.rank, config.seed, hint(&config, &alive)),
            quiesce: Quiesce::new(config.rank, &alive),
            whole: config.whole,
            config,
            source,
            alive,
            slots: 0,
            knows_slots: false,
            in_hand: 0,
            hands: BTreeMap::new(),
            ledger: Ledger::default(),
            outbox: VecDeque::new(),
            refused: false,
            level_at: Instant::FAR,
            hungry: VecDeque::new(),
            granted: 0,
            recovery: None,
            moves: Moves::default(),
            over: None,
            mean_us: 0.0,
            learnt: 0,
            estimated: (Instant::default(), 0),
            inbox: VecDeque::new(),
        }
    }

    /// Puts work in.
    pub fn add(&mut self, spans: Vec<Span>) {
        let end = spans.iter().map(|span| span.end).max();
        self.granted = self.granted.max(end.unwrap_or_default());
        self.queue.add(Gift { tasks: Vec::new(), spans });
    }

    /// At the root: the mass of the whole job is known now.
    pub fn set_whole(&mut self, mass: u64) {
        self.whole = Some(mass);
    }

    /// How many tasks can run here at once.
    pub fn set_slots(&mut self, slots: usize) {
        (self.slots, self.knows_slots) = (slots, true);
    }

    /// The next task to run; its row is in it, if it has one.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn hand(&mut self) -> Result<Option<Task>, String> {
        if self.over.is_some() {
            return Ok(None);
        }
        let Some(mut task) = self.queue.take() else { return Ok(None) };
        if task.body.is_none() {
            self.source.embed(&mut task)?;
        }
        self.in_hand += 1;
        if self.config.survives {
            self.hands.insert(task.at, task.mass);
        }
        Ok(Some(task))
    }

    /// Takes back what was handed out last and not begun.
    pub fn put_back(&mut self, mut tasks: Vec<Task>) {
        self.in_hand -= tasks.len();
        for task in &mut tasks {
            self.hands.remove(&task.at);
            if self.config.reads {
                task.body = None;
            }
        }
        self.queue.put_back(tasks);
    }

    /// A task has ended.
    pub fn completed(&mut self, completion: Completion) {
        let Completion { task, end } = completion;
        match end {
            End::Returned => self.put_back(vec![task]),
            End::Done { busy_us, .. } => {
                self.in_hand -= 1;
                self.hands.remove(&task.at);
                if busy_us > 0 {
                    self.source.measured(task.size, busy_us);
                    let weight = if self.learnt == 0 { 1.0 } else { 0.1 };
                    self.mean_us += weight * (busy_us as f64 - self.mean_us);
                    self.learnt += 1;
                }
                self.done(task.at, u64::from(task.mass));
            }
        }
    }

    fn done(&mut self, at: u64, mass: u64) {
        self.quiesce.add(mass);
        if self.config.survives {
            self.ledger.add(at, at + mass);
        }
    }

    /// A message has come.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn message(&mut self, from: Rank, message: Message) -> Result<(), String> {
        match message {
            Message::Ask { free, queued_us, bodies } => {
                let gift = self.gift(free, queued_us, bodies)?;
                let more = self.more();
                self.outbox.push_back((from, Message::Give { answer: true, gift, more }));
            }
            Message::Hunger { free: 0, .. } => self.hungry.retain(|hungry| hungry.rank != from),
            Message::Hunger { free, bodies } => {
                if self.hungry.iter().all(|hungry| hungry.rank != from) {
                    self.hungry.push_back(Hungry { rank: from, free, bodies });
                }
            }
            Message::Give { answer, gift, more } => {
                if answer {
                    self.thief.answered(from);
                }
                if self.is_led() {
                    self.thief.heard(from, more);
                }
                self.take_in(from, answer, gift);
            }
            Message::Done { epoch, mass } => self.quiesce.child(from, epoch, mass),
            Message::Stop => self.stop(),
            Message::Halt { now, reason } => self.halt(now, reason),
            Message::Held { epoch, last, done, held } if epoch == self.quiesce.epoch() => {
                self.heard_of(from, last, [done, held].concat());
            }
            Message::Held { .. } => {}
            Message::Job(bytes) => self.inbox.push_back((from, bytes)),
        }
        Ok(())
    }

    /// Lets time pass. True: it has more to read, and is to be called again soon.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn turn(&mut self, now: Instant) -> Result<bool, String> {
        if self.over.is_some() {
            return Ok(false);
        }
        self.read_on()?;
        self.estimate(now);
        self.feed()?;
        self.seek(now);
        let idle = self.queue.is_empty() && self.in_hand == 0;
        if let Some((parent, mass)) = self.quiesce.report(now, idle) {
            let epoch = self.quiesce.epoch();
            self.outbox.push_back((parent, Message::Done { epoch, mass }));
        }
        let complete = self.whole.is_some_and(|whole| self.quiesce.sum() >= whole);
        if self.quiesce.is_root() && complete && idle && self.recovery.is_none() {
            self.stop();
        }
        Ok(!self.queue.is_filled(&self.source, self.near()))
    }

    /// Reads until the workers have enough for now, and a bit of the window more.
    fn read_on(&mut self) -> Result<(), String> {
        let near = self.near();
        loop {
            if self.queue.is_filled(&self.source, near) {
                return Ok(());
            }
            let ledger = self.config.survives.then_some(&mut self.ledger);
            let skipped = self.queue.fill(&mut self.source, near, ledger)?;
            self.quiesce.add(skipped);
            if self.queue.ready() >= near {
                return Ok(());
            }
        }
    }

    /// Tasks that are wanted ready at once: two rounds of all slots, and more where they are short.
    fn near(&self) -> usize {
        (2 * self.slots).max(1) + self.lead()
    }

    /// Tasks that are used up within the lead time.
    pub fn lead(&self) -> usize {
        if self.learnt == 0 {
            return self.slots;
        }
        let each = self.mean_us.max(1.0);
        (self.slots as f64 * LEAD.as_micros() as f64 / each).ceil().min(2048.0) as usize
    }

    fn free(&self) -> usize {
        self.slots.saturating_sub(self.in_hand)
    }

    /// While messages pile up no more is asked for: answers would stand behind questions.
    fn can_ask(&self) -> bool {
        self.slots > 0 && self.config.steals && self.alive.len() > 1 && !self.refused
    }

    fn need(&self) -> Need {
        if !self.can_ask() {
            Need::None
        } else if self.queue.is_empty() && self.free() > 0 {
            Need::Now
        } else if self.lasts() < LEAD {
            Need::Soon
        } else {
            Need::None
        }
    }

    /// Whether it asks others also while it has enough.
    fn levels(&self) -> bool {
        self.can_ask() && self.is_ordered() && !self.queue.is_empty()
    }

    /// How long what waits will last, with all slots at work.
    fn lasts(&self) -> Duration {
        if self.queue.count() > self.near() as u64 {
            return Duration::MAX;
        }
        let each = if self.learnt == 0 { 0.0 } else { self.mean_us };
        let waiting = if self.is_ordered() {
            self.queue.cost_us(&self.source) as f64
        } else {
            self.queue.count() as f64 * each
        };
        Duration::from_micros(((waiting + each) / self.slots.max(1) as f64) as u64)
    }

    fn seek(&mut self, now: Instant) {
        let mut need = self.need();
        if need != Need::None || !self.levels() {
            self.level_at = Instant::FAR;
        } else if now >= self.level_at || self.level_at == Instant::FAR {
            need = if now >= self.level_at { Need::Level } else { Need::None };
            let lasts_us = self.queue.cost_us(&self.source) / self.slots as u64;
            self.level_at = now + Duration::from_micros(lasts_us / LEVELS).max(LEVEL_PERIOD_MIN);
        }
        let free = u32::try_from(self.free()).unwrap_or(u32::MAX);
        let bodies = !self.config.reads;
        match self.thief.step(now, need, &self.config.topology, &self.alive) {
            Step::Rest => {}
            Step::Ask(victim) => {
                self.moves.steals_tried += 1;
                let queued_us = self.queue.cost_us(&self.source);
                self.outbox.push_back((victim, Message::Ask { free, queued_us, bodies }));
            }
            Step::LeaveWord(ranks) => {
                let word = ranks.into_iter().map(|rank| (rank, Message::Hunger { free, bodies }));
                self.outbox.extend(word);
            }
        }
    }

    /// Begins to order the window anew, if much was learnt since it last was.
    fn estimate(&mut self, now: Instant) {
        let (at, learnt) = self.estimated;
        if now >= at + ESTIMATE_PERIOD && self.learnt >= learnt + (learnt / 8).max(8) {
            self.queue.estimate_anew(&self.source);
            self.estimated = (now, self.learnt);
        }
    }

    /// Ends the job early, everywhere.
    pub fn request_halt(&mut self, now: bool, reason: &str) {
        let others = self.alive.iter().filter(|&&rank| rank != self.config.rank);
        for &rank in others {
            self.outbox.push_back((rank, Message::Halt { now, reason: reason.to_owned() }));
        }
        self.halt(now, reason.to_owned());
    }

    fn halt(&mut self, now: bool, reason: String) {
        match &mut self.over {
            None => self.over = Some(Over::Halted { now, reason }),
            Some(Over::Halted { now: before, .. }) => *before |= now,
            Some(Over::Done) => {}
        }
    }

    fn stop(&mut self) {
        let children = self.quiesce.children().map(|child| (child, Message::Stop));
        self.outbox.extend(children);
        self.over = self.over.take().or(Some(Over::Done));
    }

    /// The next message to be sent.
    pub fn outgoing(&mut self) -> Option<(Rank, Message)> {
        self.refused &= !self.outbox.is_empty();
        self.outbox.pop_front()
    }

    /// The fabric would not take it yet.
    pub fn unsent(&mut self, to: Rank, message: Message) {
        self.refused = true;
        self.outbox.push_front((to, message));
    }

    /// Whether messages wait to be sent.
    pub fn has_outgoing(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends a message of the job's own parts.
    pub fn send_job(&mut self, to: Rank, bytes: Vec<u8>) {
        self.outbox.push_back((to, Message::Job(bytes)));
    }

    /// A message of the job's own parts that has come.
    pub fn next_job(&mut self) -> Option<(Rank, Vec<u8>)> {
        self.inbox.pop_front()
    }

    /// When it wants a turn, if nothing else happens.
    pub fn wake_at(&self) -> Instant {
        if self.over.is_some() {
            return Instant::FAR;
        }
        let seek = match self.need() {
            Need::None if self.levels() => self.level_at,
            Need::None => Instant::FAR,
            _ => self.thief.wake_at(),
        };
        seek.min(self.quiesce.wake_at())
    }

    /// Whether it does no more, and why.
    pub fn over(&self) -> Option<&Over> {
        self.over.as_ref()
    }

    /// Whether somebody waits for work of it.
    pub fn is_wanted(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// Tasks that were handed out and have not ended.
    pub fn in_hand(&self) -> usize {
        self.in_hand
    }

    /// What waits, roughly, in tasks.
    pub fn waiting(&self) -> u64 {
        self.queue.count()
    }

    /// The mass that is done here and, as far as is known, below.
    pub fn mass_done(&self) -> u64 {
        self.quiesce.sum()
    }

    /// The mass that is done here.
    pub fn own_mass_done(&self) -> u64 {
        self.quiesce.own()
    }

    /// The ranks that live, in ascending order; the first is the root.
    pub fn alive(&self) -> &[Rank] {
        &self.alive
    }

    /// What moved.
    pub fn moves(&self) -> Moves {
        self.moves
    }

    /// Where its tasks come from.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }

    /// What it was told.
    pub fn config(&self) -> &RankConfig {
        &self.config
    }
}
