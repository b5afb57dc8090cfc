//! One core of the generator: what is to start when, and the loop that starts it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::binary::Binary;
use super::flight::{Flight, Recorder, Session, Shared};
use super::gather::Gather;
use super::http::Http;
use crate::bench::arrival::Schedule;
use crate::bench::plan::{Plan, Watcher, Wire};
use crate::bench::sample::{CoreUse, Recording};
use crate::clock::{Instant, MonotonicClock};
use crate::net::{Reactor, Token};
use crate::wire::frame::Done;

pub(super) const CONNECTION: u8 = 1;
pub(super) const UPSTREAM: u8 = 2;
pub(super) const FLIGHT: u8 = 3;
const TICK: Token = Token::single(4);
const START: Token = Token::single(5);
const TICK_EVERY: Duration = Duration::from_millis(100);
/// A sleep ends some 50 us late on common machines, so the last part of a wait is spent looking at
/// the clock.
const SPIN: Duration = Duration::from_micros(60);

/// A core.
pub(super) struct Core<'r> {
    pub plan: &'r Plan<'r>,
    pub reactor: Reactor,
    pub recorder: Recorder<'r>,
    pub binary: Binary,
    pub http: Option<Http>,
    pub under_way: usize,
    pub fatal: Option<String>,
    pub cancels: VecDeque<(Instant, Token, u64)>,
    pub timeouts: VecDeque<(Instant, Token, u64)>,
    pub usage: CoreUse,
    /// Whether what comes is let gather.
    pub gather: Gather,
    spun: Duration,
    index: u64,
    began: Instant,
    schedule: Schedule<'r>,
    next_open: Option<Instant>,
    /// Sessions (of one request, mostly) that were started, and all that there are for this core.
    started: u64,
    total: u64,
    /// Since when places for requests are free; None: there is no bound.
    slots: Option<VecDeque<Instant>>,
    follow_ups: BinaryHeap<Reverse<(Instant, u64)>>,
    sessions: HashMap<u64, Box<Session>>,
}

/// A request that is due.
struct Due {
    number: u64,
    intended: Instant,
    startable: Instant,
    session: Option<Box<Session>>,
}

impl<'r> Core<'r> {
    pub fn open(
        plan: &'r Plan<'r>,
        index: usize,
        began: Instant,
        clock: MonotonicClock,
        shared: &'r Shared,
        watcher: Option<&'r mut dyn Watcher>,
    ) -> Result<Core<'r>, String> {
        let reactor = Reactor::open(clock).map_err(|error| error.to_string())?;
        let share = |all: u64| {
            let (cores, index) = (plan.cores.max(1) as u64, index as u64);
            all / cores + u64::from(index < all % cores)
        };
        let turns = u64::from(plan.workload.turns.max(1));
        let total = plan
            .iters
            .map_or(u64::MAX, |iters| share(iters.saturating_add(plan.warmup).div_ceil(turns)));
        let places = plan.concurrency.map(|all| share(all as u64) as usize);
        let mut schedule = Schedule::new(&plan.arrivals, plan.seed);
        let next_open = schedule.nth(index).map(|at| began + at);
        let http = match &plan.wire {
            Wire::Http { dialect, target } => Some(Http::new(plan, *dialect, target)?),
            Wire::Binary { .. } => None,
        };
        let connections = match &plan.wire {
            Wire::Binary { connections, .. } => share(*connections as u64).max(1) as usize,
            Wire::Http { .. } => 0,
        };
        Ok(Core {
            plan,
            recorder: Recorder::new(plan, shared, watcher),
            binary: Binary::new(connections, places),
            http,
            under_way: 0,
            fatal: None,
            cancels: VecDeque::new(),
            timeouts: VecDeque::new(),
            usage: CoreUse::default(),
            gather: Gather::default(),
            reactor,
            spun: Duration::ZERO,
            index: index as u64,
            began,
            schedule,
            next_open,
            started: 0,
            total,
            slots: places.map(|places| std::iter::repeat_n(began, places).collect()),
            follow_ups: BinaryHeap::new(),
            sessions: HashMap::new(),
        })
    }

    pub fn run(mut self) -> Result<(Recording, Option<(Instant, Instant)>), String> {
        let cpu = thread_cpu();
        self.reactor.timers.set(self.began, TICK);
        loop {
            self.open_connections();
            self.start_requests();
            if self.fatal.is_some() || self.is_over() {
                break;
            }
            self.turn()?;
        }
        if let Some(error) = self.fatal {
            return Err(error);
        }
        let cpu = thread_cpu().saturating_sub(cpu).saturating_sub(self.spun);
        self.usage.cpu_s = cpu.as_secs_f64();
        self.usage.wall_s = self.reactor.now.since(self.began).as_secs_f64();
        let unsent = self.unsent();
        let (mut recording, span) = self.recorder.finish();
        recording.unsent = unsent;
        recording.cores.push(self.usage);
        Ok((recording, span))
    }

    /// Of an interrupted open loop, requests that were due and had no place: they would have been
    /// among those that waited the longest.
    fn unsent(&mut self) -> u64 {
        let Some(at) = self.recorder.shared.interrupted() else { return 0 };
        let mut unsent = 0;
        while self.plan.arrivals.is_open()
            && self.started + unsent < self.total
            && self.next_open.is_some_and(|due| due <= at && self.in_time(due))
        {
            unsent += 1;
            let skip = self.plan.cores.max(1) - 1;
            self.next_open = self.schedule.nth(skip).map(|at| self.began + at);
        }
        unsent
    }

    fn turn(&mut self) -> Result<(), String> {
        let now = self.reactor.now;
        let next = self.next_start();
        let near = next.is_some_and(|at| at <= now + SPIN);
        if let Some(at) = next.filter(|_| !near) {
            self.reactor.timers.set(Instant((at.0).saturating_sub(SPIN.as_nanos() as u64)), START);
        }
        let busy = near || self.binary.is_opening();
        // The binary protocol gathers by itself: many requests share a connection.
        let sleep = match self.http {
            Some(_) => self.gather.sleep(self.under_way, next.map(|at| at.since(now))),
            None => Duration::ZERO,
        };
        if !sleep.is_zero() {
            std::thread::sleep(sleep);
        }
        let waits_from = self.reactor.tick();
        self.reactor.wait(busy).map_err(|error| error.to_string())?;
        self.recorder.look.ended(waits_from, self.reactor.now);
        self.gather.waited(self.reactor.now.since(waits_from));
        let is_open = self.plan.arrivals.is_open();
        let count = self.reactor.poller.event_count();
        if near && count == 0 {
            self.spun += self.reactor.now.since(now);
        }
        for index in 0..count {
            let Some((token, readiness)) = self.reactor.poller.event(index) else { continue };
            if token.kind() == CONNECTION {
                self.binary_event(token);
            } else {
                self.http_event(token, readiness);
            }
            // Many may have come at once, as after a stall, and starts do not wait for them.
            if is_open && self.next_start().is_some_and(|at| at <= self.reactor.now) {
                self.start_requests();
            }
        }
        while let Some((at, token)) = self.reactor.timers.fire(self.reactor.now) {
            match token {
                TICK => self.tick(),
                START => {}
                token => self.http_timer(at, token),
            }
        }
        self.expire();
        Ok(())
    }

    fn tick(&mut self) {
        self.recorder.tick(self.reactor.now);
        self.feed_slow_readers(TICK_EVERY);
        self.reactor.timers.set(self.reactor.now + TICK_EVERY, TICK);
    }

    fn stopped(&self) -> bool {
        self.recorder.shared.stop.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn in_time(&self, at: Instant) -> bool {
        self.plan.duration.is_none_or(|duration| at < self.began + duration)
    }

    /// Whether another session will start.
    fn starts_more(&self) -> bool {
        let at = if self.plan.arrivals.is_open() {
            let Some(at) = self.next_open else { return false };
            at
        } else {
            self.reactor.now
        };
        self.started < self.total && self.in_time(at) && !self.stopped()
    }

    /// Whether there is anything left to start.
    pub fn wants_more(&self) -> bool {
        self.starts_more() || !self.follow_ups.is_empty()
    }

    fn is_over(&self) -> bool {
        self.under_way == 0 && (self.follow_ups.is_empty() || self.stopped()) && !self.starts_more()
    }

    /// When the next request should start; None: when something ends, or never.
    fn next_start(&self) -> Option<Instant> {
        let follow_up = self.follow_ups.peek().map(|Reverse((at, _))| *at);
        let fresh = self.fresh_start().filter(|_| self.starts_more());
        [follow_up, fresh].into_iter().flatten().min()
    }

    fn fresh_start(&self) -> Option<Instant> {
        let free = match &self.slots {
            Some(slots) => Some(*slots.front()?),
            None => None,
        };
        if self.plan.arrivals.is_open() { self.next_open } else { free }
    }

    fn next_due(&mut self) -> Option<Due> {
        let now = self.reactor.now;
        if self.next_start()? > now {
            return None;
        }
        if let Some(&Reverse((at, number))) = self.follow_ups.peek()
            && at <= now
        {
            self.follow_ups.pop();
            let session = self.sessions.remove(&number);
            return Some(Due { number, intended: at, startable: at, session });
        }
        let free = self.slots.as_mut().and_then(VecDeque::pop_front);
        let intended = if self.plan.arrivals.is_open() { self.next_open? } else { free? };
        if self.plan.arrivals.is_open() {
            let skip = self.plan.cores.max(1) - 1;
            self.next_open = self.schedule.nth(skip).map(|at| self.began + at);
        }
        let turns = u64::from(self.plan.workload.turns.max(1));
        let session_number = self.started * self.plan.cores.max(1) as u64 + self.index;
        self.started += 1;
        let startable = free.map_or(intended, |free| free.max(intended));
        let session = (turns > 1).then(Box::<Session>::default);
        Some(Due { number: session_number * turns, intended, startable, session })
    }

    /// Starts what is due.
    pub fn start_requests(&mut self) {
        while self.has_room()
            && let Some(due) = self.next_due()
        {
            let mut flight = self.recorder.flight(due.number, due.intended, due.startable);
            flight.session = due.session;
            self.under_way += 1;
            if self.http.is_some() {
                self.start_http(flight);
            } else {
                self.start_binary(flight);
            }
        }
        self.flush_touched();
    }

    /// Notes that a request goes out now.
    pub fn sends(&mut self, flight: &mut Flight) {
        flight.sent = self.reactor.tick();
    }

    /// Notes when a request is to be cancelled, and when it has failed.
    pub fn watch(&mut self, token: Token, id: u64) {
        let now = self.reactor.now;
        if let Some(after) = self.plan.cancel_after {
            self.cancels.push_back((now + after, token, id));
            self.reactor.timers.set(now + after, START);
        }
        self.timeouts.push_back((now + self.plan.timeout, token, id));
    }

    /// Cancels what is to be cancelled, and gives up on what takes too long.
    fn expire(&mut self) {
        let now = self.reactor.now;
        while let Some(&(at, token, id)) = self.cancels.front()
            && at <= now
        {
            self.cancels.pop_front();
            self.cancel(token, id, true);
        }
        while let Some(&(at, token, id)) = self.timeouts.front()
            && at <= now
        {
            self.timeouts.pop_front();
            self.cancel(token, id, false);
        }
        // Ends that are long past need no memory.
        while let Some(&(_, token, id)) = self.timeouts.front()
            && !self.is_under_way(token, id)
        {
            self.timeouts.pop_front();
        }
    }

    fn is_under_way(&mut self, token: Token, id: u64) -> bool {
        match &self.http {
            Some(http) => http.flights.get(token).is_some(),
            None => self.binary.is_under_way(token, id),
        }
    }

    fn cancel(&mut self, token: Token, id: u64, wanted: bool) {
        let limit = self.plan.timeout.as_secs_f64();
        let message = format!("TIMEOUT: no end within {limit} s (--timeout)");
        if self.http.is_some() {
            self.cancel_http(token, wanted, message);
        } else {
            self.cancel_binary(token, id, wanted, message);
        }
    }

    /// A request has ended: its place is free, or its session goes on.
    pub fn ended(&mut self, mut flight: Flight, now: Instant, result: Result<Done, String>) {
        self.under_way -= 1;
        let went_well = result.is_ok();
        self.recorder.end(&mut flight, now, result);
        let turns = u64::from(self.plan.workload.turns.max(1));
        let is_last = (flight.number + 1).is_multiple_of(turns);
        if let Some(mut session) = flight.session.take().filter(|_| went_well && !is_last) {
            session.said.push(self.plan.workload.turn(flight.number).0);
            session.said.push(std::mem::take(&mut flight.answer));
            let number = flight.number + 1;
            self.sessions.insert(number, session);
            self.follow_ups.push(Reverse((now + self.plan.think, number)));
        } else if let Some(slots) = &mut self.slots {
            slots.push_back(now);
        }
    }
}

/// Processor time of this thread.
fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
