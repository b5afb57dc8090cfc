//! Ranks in virtual time: a fabric that does what MPI may do, and a world that runs real ranks on
//! it.
//!
//! Between a pair messages arrive in order; between pairs they take any time. A window fills up, a
//! rank is slow, stalls, or has no slots for a while, and a rank dies: then what was under way is
//! lost, and all survivors are told. Everything follows from the seed.
//!
//! A world is judged at every end of a task and at its own: each task ran once, no rank takes the
//! job for done before it is, every living rank knows that it is, and the masses add up.

mod input;
mod wire;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::executor::{Completion, End};
use super::fabric::{Arrival, Fabric, Full, Topology};
use super::message::Message;
use super::queue::Gift;
use super::rank::{Core, Moves, Over, RankConfig};
use super::tasks::{Rank, Span, Task};
use super::workload::Workload;
use crate::clock::Instant;
use crate::prng::Prng;
use input::SimSource;
pub use input::{Input, Rows};
pub use wire::{Latency, SimFabric, fabrics};
use wire::{Wire, micros};

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Who dies when.
    pub deaths: Vec<(Instant, Rank)>,
    /// Who does nothing from when to when.
    pub stalls: Vec<(Rank, Instant, Instant)>,
    /// Who takes how many times as long for each task.
    pub slow: Vec<(Rank, f64)>,
    /// Whose slots are closed from when to when.
    pub closed: Vec<(Rank, Instant, Instant)>,
    /// Messages under way from one to another at most.
    pub window: Option<usize>,
    /// A rank that is broken, which the world must notice.
    pub broken: Option<(Rank, Breakage)>,
}

/// How a rank is broken, to see that nobody else is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakage {
    /// It drops the work that it is given.
    DropsGifts,
    /// It takes the job for done when it first has nothing to do.
    StopsEarly,
    /// It counts a task twice.
    CountsTwice,
    /// It does again what it has done.
    RunsTwice,
}

/// A world to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Ranks.
    pub ranks: u32,
    /// Of them on a node.
    pub ranks_per_node: u32,
    /// Tasks at once on each.
    pub slots: usize,
    /// Tasks in all.
    pub tasks: u64,
    /// What they are read from.
    pub input: Input,
    /// How long they take.
    pub workload: Arc<Workload>,
    /// Everything starts on rank 0; else each begins with its share.
    pub all_on_one: bool,
    /// Tasks that a rank reads ahead.
    pub window: usize,
    /// Work moves.
    pub steals: bool,
    /// How long the rest takes.
    pub latency: Latency,
    /// What goes wrong.
    pub faults: Faults,
    /// Of all that is random.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// From the start to the end of the last task, in microseconds.
    pub makespan_us: f64,
    /// The least that it could be, in microseconds.
    pub ideal_us: f64,
    /// What moved, all ranks together.
    pub moves: Moves,
    /// Messages sent.
    pub messages: u64,
    /// The most work of a rank over the mean.
    pub balance: f64,
}

impl Outcome {
    /// Ideal over real makespan.
    pub fn efficiency(&self) -> f64 {
        self.ideal_us / self.makespan_us.max(1e-9)
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Turn(Rank),
    /// On a rank, and which of those that run there.
    End(Rank, u32),
    Death(Rank),
    Told,
    Slots(Rank),
}

/// A task that runs, without its row.
#[derive(Clone, Copy, Debug)]
struct Begun {
    at: u64,
    mass: u32,
    number: u64,
}

struct SimRank {
    core: Core<SimSource>,
    fabric: SimFabric,
    turn_at: Instant,
    /// What runs, where none is vacant.
    running: Vec<Begun>,
    vacant: Vec<u32>,
    done: Vec<u64>,
    work_us: f64,
    stalled: Option<(Instant, Instant)>,
    closed: Option<(Instant, Instant)>,
    slow: f64,
    broken: Option<Breakage>,
    alive: bool,
}

struct World<'p> {
    plan: &'p Plan,
    wire: Rc<RefCell<Wire>>,
    ranks: Vec<SimRank>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    number: u64,
    now: Instant,
    last_end: Instant,
    executed: Vec<u8>,
    /// Tasks that did not run yet.
    left: u64,
    recorded: Rc<RefCell<Vec<bool>>>,
    prng: Prng,
}

/// From a death until all survivors know of it, at most (seen with Open MPI 5: 20 to 80 ms).
const DETECTION: Duration = Duration::from_millis(80);
/// Events for each task and rank, past which a world does not end.
const EVENTS_EACH_MAX: u64 = 400;
/// And for each rank in a second, which it may have to wait for a task that is long.
const EVENTS_PER_S_MAX: f64 = 200.0;

/// Runs a world to its end.
///
/// # Errors
/// What must not be: a task that ran twice or never, an end that is none, a world without end.
pub fn run(plan: &Plan) -> Result<Outcome, String> {
    let mut world = World::new(plan);
    // The longest that it can take: all tasks one after the other on the slowest rank.
    let slow = plan.faults.slow.iter().map(|slow| slow.1).fold(1.0, f64::max);
    let serial_s = plan.workload.ideal_us(plan.tasks, plan.slots) * slow / 1e6;
    let waiting = f64::from(plan.ranks) * serial_s * EVENTS_PER_S_MAX;
    let bound = EVENTS_EACH_MAX * (plan.tasks + u64::from(plan.ranks) + 100) + waiting as u64;
    let mut events = 0u64;
    while let Some(Reverse((at, _, event))) = world.events.pop() {
        events += 1;
        if events > bound {
            return Err(format!("seed={}: no end after {events} events", plan.seed));
        }
        world.now = at;
        world.wire.borrow_mut().now = at;
        world.event(event).map_err(|error| format!("seed={}: {error}", plan.seed))?;
    }
    world.outcome().map_err(|error| format!("seed={}: {error}", plan.seed))
}

impl<'p> World<'p> {
    fn new(plan: &'p Plan) -> World<'p> {
        let nodes: Vec<u32> =
            (0..plan.ranks).map(|rank| rank / plan.ranks_per_node.max(1)).collect();
        let topology = Arc::new(Topology::new(&nodes));
        let window = plan.faults.window.unwrap_or(usize::MAX);
        let wire = Wire::shared(plan.ranks, plan.latency, window, plan.seed);
        let recorded = Rc::new(RefCell::new(vec![false; plan.tasks as usize]));
        let ranks = (0..plan.ranks).map(Rank).map(|rank| {
            let (workload, input) = (plan.workload.clone(), plan.input.clone());
            let source = SimSource::new(workload, input, recorded.clone());
            let config = RankConfig {
                rank,
                topology: topology.clone(),
                window: plan.window,
                longest_first: plan.workload.has_estimates(),
                steals: plan.steals,
                reads: reads(rank, plan),
                survives: !plan.faults.deaths.is_empty(),
                whole: Some(whole(plan)),
                bytes: matches!(plan.input, Input::Rows { .. }),
                seed: plan.seed,
            };
            let mut core = Core::new(config, source);
            core.set_slots(plan.slots);
            if let Some(span) = first_span(rank, plan) {
                core.add(vec![span]);
            }
            SimRank {
                core,
                fabric: SimFabric::new(rank, topology.clone(), wire.clone()),
                turn_at: Instant::FAR,
                running: Vec::new(),
                vacant: Vec::new(),
                done: Vec::new(),
                work_us: 0.0,
                stalled: plan.faults.stalls.iter().find(|s| s.0 == rank).map(|s| (s.1, s.2)),
                closed: plan.faults.closed.iter().find(|s| s.0 == rank).map(|s| (s.1, s.2)),
                slow: plan.faults.slow.iter().find(|s| s.0 == rank).map_or(1.0, |s| s.1),
                broken: plan.faults.broken.filter(|b| b.0 == rank).map(|b| b.1),
                alive: true,
            }
        });
        let mut world = World {
            plan,
            ranks: ranks.collect(),
            wire,
            events: BinaryHeap::new(),
            number: 0,
            now: Instant::default(),
            last_end: Instant::default(),
            executed: vec![0; plan.tasks as usize],
            left: plan.tasks,
            recorded,
            prng: Prng::new(plan.seed ^ 0x5151),
        };
        (0..plan.ranks).for_each(|rank| world.turn_at(Rank(rank), Instant::default()));
        for &(at, rank) in &plan.faults.deaths {
            world.push(at, Event::Death(rank));
        }
        for &(rank, from, to) in &plan.faults.closed {
            world.push(from, Event::Slots(rank));
            world.push(to, Event::Slots(rank));
        }
        world
    }

    fn push(&mut self, at: Instant, event: Event) {
        self.number += 1;
        self.events.push(Reverse((at, self.number, event)));
    }

    fn turn_at(&mut self, rank: Rank, at: Instant) {
        let sim = &mut self.ranks[rank.0 as usize];
        if sim.alive && at < sim.turn_at {
            sim.turn_at = at;
            self.push(at, Event::Turn(rank));
        }
    }

    fn event(&mut self, event: Event) -> Result<(), String> {
        match event {
            // One that was overtaken by an earlier one is stale.
            Event::Turn(rank) if self.ranks[rank.0 as usize].turn_at != self.now => Ok(()),
            Event::Turn(rank) => self.turn(rank),
            Event::End(rank, which) => self.end(rank, which),
            Event::Slots(rank) => self.turn(rank),
            Event::Death(rank) => {
                let sim = &mut self.ranks[rank.0 as usize];
                sim.alive = false;
                for &number in &sim.done {
                    self.recorded.borrow_mut()[number as usize] = true;
                }
                let wait = DETECTION.mul_f64(0.25 + 0.75 * self.prng.unit());
                self.push(self.now + wait, Event::Told);
                Ok(())
            }
            Event::Told => {
                let alive = (0..).zip(&self.ranks).filter(|(_, sim)| sim.alive);
                let alive: Vec<Rank> = alive.map(|(rank, _)| Rank(rank)).collect();
                self.wire.borrow_mut().tell_survivors(&alive);
                self.flush_due();
                Ok(())
            }
        }
    }

    /// Until when a stalled rank does nothing.
    fn stalled(&self, rank: Rank) -> Option<Instant> {
        let (from, to) = self.ranks[rank.0 as usize].stalled?;
        (self.now >= from && self.now < to).then_some(to)
    }

    fn end(&mut self, rank: Rank, which: u32) -> Result<(), String> {
        if !self.ranks[rank.0 as usize].alive {
            return Ok(());
        }
        if let Some(until) = self.stalled(rank) {
            self.push(until, Event::End(rank, which));
            return Ok(());
        }
        let sim = &mut self.ranks[rank.0 as usize];
        let Begun { at, mut mass, number } = sim.running[which as usize];
        sim.vacant.push(which);
        let us = self.plan.workload.duration_us(number);
        let count = &mut self.executed[number as usize];
        *count += if sim.broken == Some(Breakage::RunsTwice) { 2 } else { 1 };
        if *count > 1 {
            return Err(format!("task {number} ran {count} times"));
        }
        self.left -= 1;
        sim.done.push(number);
        sim.work_us += us;
        self.last_end = self.now;
        if sim.broken == Some(Breakage::CountsTwice) {
            (mass, sim.broken) = (2 * mass, None);
        }
        let task = Task { at, mass, ..Task::default() };
        let end = End::Done { ok: true, busy_us: us as u64, tokens: 0 };
        sim.core.completed(Completion { task, end });
        self.turn(rank)
    }

    fn turn(&mut self, rank: Rank) -> Result<(), String> {
        if let Some(until) = self.stalled(rank) {
            self.ranks[rank.0 as usize].turn_at = Instant::FAR;
            self.turn_at(rank, until);
            return Ok(());
        }
        let sim = &mut self.ranks[rank.0 as usize];
        if !sim.alive {
            return Ok(());
        }
        sim.turn_at = Instant::FAR;
        sim.arrivals()?;
        let closed = sim.closed.is_some_and(|(from, to)| self.now >= from && self.now < to);
        sim.core.set_slots(if closed { 0 } else { self.plan.slots });
        let busy = sim.core.turn(self.now)?;
        let begun = sim.begin(self.plan, closed)?;
        if sim.broken == Some(Breakage::StopsEarly) && sim.core.in_hand() == 0 {
            let me = sim.fabric.rank();
            sim.core.message(me, Message::Stop)?;
        }
        while let Some((to, message)) = sim.core.outgoing() {
            if let Err(Full(message)) = sim.fabric.send(to, message) {
                sim.core.unsent(to, message);
                break;
            }
        }
        if self.left > 0 && sim.core.over() == Some(&Over::Done) {
            return Err(format!("{rank} takes it for done, and {} tasks are not", self.left));
        }
        self.wire.borrow_mut().idle[rank.0 as usize] = sim.core.in_hand() == 0;
        let wake_at = sim.core.wake_at();
        let slow = sim.slow;
        for task in begun {
            let us = self.plan.workload.duration_us(task.number) * slow;
            let which = self.ranks[rank.0 as usize].run(task);
            self.push(self.now + micros(us + self.plan.latency.start_us), Event::End(rank, which));
        }
        if wake_at < Instant::FAR {
            self.turn_at(rank, wake_at.max(self.now + Duration::from_nanos(1)));
        }
        if busy {
            self.turn_at(rank, self.now + Duration::from_micros(20));
        }
        let look = self.wire.borrow().next_look(rank);
        if let Some(look) = look {
            self.turn_at(rank, look.max(self.now));
        }
        self.flush_due();
        Ok(())
    }

    fn flush_due(&mut self) {
        let due = std::mem::take(&mut self.wire.borrow_mut().due);
        due.into_iter().for_each(|(at, rank)| self.turn_at(rank, at));
    }

    fn outcome(self) -> Result<Outcome, String> {
        for (rank, sim) in self.ranks.iter().enumerate().filter(|(_, sim)| sim.alive) {
            if sim.core.over() != Some(&Over::Done) {
                return Err(format!("rank {rank} waits for ever: {:?}", sim.core.over()));
            }
        }
        if let Some(number) = self.executed.iter().position(|&count| count != 1) {
            return Err(format!("task {number} ran {} times", self.executed[number]));
        }
        let masses = self.ranks.iter().filter(|sim| sim.alive).map(|sim| sim.core.own_mass_done());
        let (mass, whole) = (masses.sum::<u64>(), whole(self.plan));
        // What the dead did counts once a survivor has passed over it, which it may not have to.
        if mass != whole && (self.plan.faults.deaths.is_empty() || mass > whole) {
            return Err(format!("a mass of {mass} is done, of {whole}"));
        }
        let mut moves = Moves::default();
        for sim in &self.ranks {
            let of = sim.core.moves();
            moves.steals_tried += of.steals_tried;
            moves.steals_won += of.steals_won;
            moves.steals_near += of.steals_near;
            moves.tasks_in += of.tasks_in;
            moves.tasks_out += of.tasks_out;
        }
        let work = self.ranks.iter().map(|sim| sim.work_us);
        let mean = work.clone().sum::<f64>() / self.ranks.len() as f64;
        let slots = self.plan.slots * self.plan.ranks as usize;
        let messages = self.wire.borrow().sent;
        Ok(Outcome {
            makespan_us: self.last_end.0 as f64 / 1e3,
            ideal_us: self.plan.workload.ideal_us(self.plan.tasks, slots),
            moves,
            messages,
            balance: work.fold(0.0, f64::max) / mean.max(1e-9),
        })
    }
}

impl SimRank {
    fn arrivals(&mut self) -> Result<(), String> {
        while let Some(arrival) = self.fabric.poll() {
            match arrival {
                Arrival::Message(from, mut message) => {
                    if let Message::Give { gift, .. } = &mut message {
                        if !self.core.config().reads && !gift.spans.is_empty() {
                            return Err(format!("{} got spans", self.fabric.rank()));
                        }
                        if self.broken == Some(Breakage::DropsGifts) {
                            *gift = Gift::default();
                        }
                    }
                    self.core.message(from, message)?;
                }
                Arrival::Survivors(alive) => self.core.survivors(alive),
                Arrival::Broken(reason) => return Err(reason),
            }
        }
        Ok(())
    }

    fn run(&mut self, task: Begun) -> u32 {
        if let Some(which) = self.vacant.pop() {
            self.running[which as usize] = task;
            return which;
        }
        self.running.push(task);
        u32::try_from(self.running.len() - 1).expect("slots are counted in 32 bits")
    }

    /// Begins what its slots can run.
    fn begin(&mut self, plan: &Plan, closed: bool) -> Result<Vec<Begun>, String> {
        let mut begun = Vec::new();
        while !closed
            && self.core.in_hand() < plan.slots
            && let Some(task) = self.core.hand()?
        {
            let Task { at, mass, body, .. } = task;
            let number = match &plan.input {
                Input::Numbers => at,
                Input::Rows { rows, .. } => {
                    let number = rows.number(at).ok_or(format!("no row begins at {at}"))?;
                    if body != Some(SimSource::body(number, mass)) {
                        return Err(format!("row {number} came with another's text"));
                    }
                    number
                }
            };
            begun.push(Begun { at, mass, number });
        }
        Ok(begun)
    }
}

/// The mass of the job.
fn whole(plan: &Plan) -> u64 {
    match &plan.input {
        Input::Numbers => plan.tasks,
        Input::Rows { rows, .. } => rows.length(),
    }
}

fn reads(rank: Rank, plan: &Plan) -> bool {
    match &plan.input {
        Input::Numbers => true,
        Input::Rows { readers, .. } => rank.0 < *readers,
    }
}

/// What a rank begins with.
fn first_span(rank: Rank, plan: &Plan) -> Option<Span> {
    let (index, whole) = (u64::from(rank.0), whole(plan));
    match &plan.input {
        Input::Numbers if !plan.all_on_one => {
            Some(Span { start: index, end: whole, stride: plan.ranks })
        }
        Input::Numbers => (index == 0).then_some(Span::numbers(0, whole)),
        Input::Rows { readers, .. } => {
            let parts = if plan.all_on_one { 1 } else { u64::from(plan.ranks.min(*readers)) };
            let cut = |part: u64| whole / parts * part + (whole % parts).min(part);
            (index < parts).then(|| Span::bytes(cut(index), cut(index + 1)))
        }
    }
}
