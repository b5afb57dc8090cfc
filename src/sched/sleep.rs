//! An executor whose tasks are sleeps, for scaling studies without a backend.
//!
//! A wake-up comes late, by 50 to 100 us on a virtual machine, which would be charged to the
//! scheduler. So timers are set earlier by as much as they lately were late, and what is left of a
//! sleep then is spent looking at the clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::executor::{Completion, End, Executor, ExecutorFactory};
use super::tally::{Sample, Tally};
use super::tasks::Task;
use super::workload::Workload;
use crate::clock::Instant;
use crate::net::{Reactor, Readiness, Token};

const TIMER: Token = Token::single(1);
/// A wake-up is not taken to be later than this.
const LATE_MAX: Duration = Duration::from_micros(100);
/// A longer sleep ends when its timer does: by then the lateness is less than the half of a per
/// cent, and the waking early would cost more.
const EXACT_US: f64 = 20_000.0;
/// The rest of a sleep that is spent awake.
const SPIN_MAX: Duration = Duration::from_micros(30);

/// Sleeps as long as a workload says.
#[derive(Debug)]
pub struct SleepFactory {
    /// How long.
    pub workload: Arc<Workload>,
    /// Sleeps at once of the whole rank.
    pub slots: usize,
}

impl ExecutorFactory for SleepFactory {
    type Executor = SleepExecutor;

    fn open(&self, _: &mut Reactor, worker: usize, workers: usize) -> io::Result<SleepExecutor> {
        Ok(SleepExecutor {
            workload: self.workload.clone(),
            slots: self.slots / workers + usize::from(worker < self.slots % workers),
            sleeping: BinaryHeap::new(),
            tasks: Vec::new(),
            ended: VecDeque::new(),
            tally: Tally::default(),
            late: Duration::ZERO,
        })
    }
}

/// The sleeps of one worker.
#[derive(Debug)]
pub struct SleepExecutor {
    workload: Arc<Workload>,
    slots: usize,
    /// When each ends, and where its task is.
    sleeping: BinaryHeap<Reverse<(Instant, usize)>>,
    tasks: Vec<(Instant, Option<Task>)>,
    ended: VecDeque<Task>,
    tally: Tally,
    /// How late wake-ups lately were.
    late: Duration,
}

impl SleepExecutor {
    /// Sets the timer for a sleep that ends at `end`.
    fn arm(&self, reactor: &mut Reactor, end: Instant) {
        let early = Instant(end.0.saturating_sub(self.late.as_nanos() as u64));
        reactor.timers.set(early.max(reactor.now), TIMER);
    }

    fn end(&mut self, now: Instant, since: Instant, task: Task) {
        // Its work is what it was to sleep; that it woke late is the scheduler's loss, and must not
        // count as work done.
        let busy_us = self.workload.duration_us(task.at) as u64;
        let latency_us = now.micros_since(since);
        let sample = Sample { ok: true, latency_us, busy_us, ..Sample::default() };
        self.tally.record(&sample);
        self.ended.push_back(task);
    }
}

impl Executor for SleepExecutor {
    fn room(&self) -> usize {
        self.slots - self.sleeping.len()
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn start(&mut self, reactor: &mut Reactor, task: Task) {
        let us = self.workload.duration_us(task.at);
        let now = reactor.now;
        if us <= 0.0 {
            return self.end(now, now, task);
        }
        let at = now + Duration::from_nanos((us * 1e3) as u64);
        let index = match self.tasks.iter().position(|(_, task)| task.is_none()) {
            Some(index) => index,
            None => {
                self.tasks.push((now, None));
                self.tasks.len() - 1
            }
        };
        self.tasks[index] = (now, Some(task));
        self.sleeping.push(Reverse((at, index)));
        if us < EXACT_US {
            self.arm(reactor, at);
        } else {
            reactor.timers.set(at, TIMER);
        }
    }

    fn event(&mut self, _: &mut Reactor, _: Token, _: Readiness) {}

    fn timer(&mut self, reactor: &mut Reactor, at: Instant, _: Token) {
        let late = reactor.now.since(at).min(LATE_MAX);
        self.late = (self.late * 7 + late) / 8;
        while let Some(&Reverse((end, index))) = self.sleeping.peek() {
            if end > reactor.now && end.since(reactor.now) > SPIN_MAX {
                return self.arm(reactor, end);
            }
            while reactor.now < end {
                std::hint::spin_loop();
                reactor.tick();
            }
            self.sleeping.pop();
            if let (since, Some(task)) = (self.tasks[index].0, self.tasks[index].1.take()) {
                self.end(reactor.now, since, task);
            }
        }
    }

    fn turn(&mut self, _: &mut Reactor) -> bool {
        false
    }

    fn next_completion(&mut self) -> Option<Completion> {
        let task = self.ended.pop_front()?;
        let busy_us = self.workload.duration_us(task.at) as u64;
        Some(Completion { task, end: End::Done { ok: true, busy_us, tokens: 0 } })
    }

    fn take_tally(&mut self) -> Tally {
        self.tally.take()
    }

    fn drain(&mut self) {}
}
