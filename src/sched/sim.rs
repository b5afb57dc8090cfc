//! Ranks in virtual time: a fabric that does what MPI may do, and a world that runs real ranks on
//! it.
//!
//! Between a pair messages arrive in order; between pairs they take any time. A window fills up, a
//! rank is slow or stalls, and a rank dies: then what was under way is lost, and all survivors are
//! told. Everything follows from the seed.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::executor::{Completion, End};
use super::fabric::{Arrival, Fabric, Full, Topology};
use super::message::Message;
use super::rank::{Core, Moves, Over, RankConfig};
use super::tasks::{Rank, Size, Source, Span, Task};
use super::workload::{Workload, WorkloadSource};
use crate::clock::Instant;
use crate::prng::Prng;

/// How long things take; microseconds. The defaults were measured with Open MPI 4.1 on two cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// A message to a rank of the same node, until it could be seen.
    pub near_us: f64,
    /// And to one of another node.
    pub far_us: f64,
    /// A busy rank looks for messages so often.
    pub look_us: f64,
    /// And an idle one.
    pub idle_look_us: f64,
    /// From the end of a task to the start of the next in its slot.
    pub start_us: f64,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency {
            near_us: 10.0,
            far_us: 50.0,
            look_us: 500.0,
            idle_look_us: 2_000.0,
            start_us: 60.0,
        }
    }
}

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Who dies when.
    pub deaths: Vec<(Instant, Rank)>,
    /// Who does nothing from when to when.
    pub stalls: Vec<(Rank, Instant, Instant)>,
    /// Who takes how many times as long for each task.
    pub slow: Vec<(Rank, f64)>,
    /// Messages under way from one to another at most.
    pub window: Option<usize>,
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

/// Messages under way.
#[derive(Debug)]
struct Wire {
    now: Instant,
    prng: Prng,
    latency: Latency,
    window: usize,
    inboxes: Vec<BinaryHeap<Reverse<Parcel>>>,
    /// Per pair: when the latest arrives, and how many are under way.
    pairs: HashMap<(Rank, Rank), (Instant, usize)>,
    idle: Vec<bool>,
    told: Vec<Option<Vec<Rank>>>,
    sent: u64,
    /// Who will have something to look at, and when.
    due: Vec<(Instant, Rank)>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Parcel {
    at: Instant,
    number: u64,
    from: Rank,
    message: Bytes,
}

/// A message as bytes, so that the coding is exercised too; ordered by nothing that matters.
type Bytes = Vec<u8>;

/// One rank's end of the simulated fabric.
#[derive(Debug)]
pub struct SimFabric {
    rank: Rank,
    topology: Arc<Topology>,
    wire: Rc<RefCell<Wire>>,
}

impl Fabric for SimFabric {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    fn send(&mut self, to: Rank, message: Message) -> Result<(), Full> {
        assert_ne!(to, self.rank, "a message to itself");
        let mut wire = self.wire.borrow_mut();
        let (now, window) = (wire.now, wire.window);
        let (latest, count) = wire.pairs.get(&(self.rank, to)).copied().unwrap_or_default();
        if count >= window {
            return Err(Full(message));
        }
        let Latency { near_us, far_us, look_us, idle_look_us, .. } = wire.latency;
        let near = self.topology.node(self.rank) == self.topology.node(to);
        let look = if wire.idle[to.0 as usize] { idle_look_us } else { look_us };
        let us = if near { near_us } else { far_us } + look * wire.prng.unit();
        let at = (now + micros(us)).max(latest);
        wire.pairs.insert((self.rank, to), (at, count + 1));
        wire.sent += 1;
        let (number, mut bytes) = (wire.sent, Vec::new());
        message.encode(&mut bytes);
        let parcel = Parcel { at, number, from: self.rank, message: bytes };
        wire.inboxes[to.0 as usize].push(Reverse(parcel));
        wire.due.push((at, to));
        Ok(())
    }

    fn poll(&mut self) -> Option<Arrival> {
        let mut wire = self.wire.borrow_mut();
        let me = self.rank.0 as usize;
        if let Some(alive) = wire.told[me].take() {
            return Some(Arrival::Survivors(alive));
        }
        let now = wire.now;
        let inbox = &mut wire.inboxes[me];
        if inbox.peek().is_none_or(|Reverse(parcel)| parcel.at > now) {
            return None;
        }
        let Reverse(Parcel { from, message, .. }) = inbox.pop()?;
        if let Some((_, count)) = wire.pairs.get_mut(&(from, self.rank)) {
            *count -= 1;
        }
        let message = Message::decode(&message).expect("what was encoded here is decoded here");
        Some(Arrival::Message(from, message))
    }
}

/// The ends of a simulated fabric, and a clock that moves it on by so many microseconds. For the
/// suite that all fabrics pass.
pub fn fabrics(
    topology: Arc<Topology>,
    latency: Latency,
    window: usize,
    seed: u64,
) -> (Vec<SimFabric>, impl FnMut(f64)) {
    let wire = Wire::shared(topology.size(), latency, window, seed);
    let ends = (0..topology.size()).map(|rank| SimFabric {
        rank: Rank(rank),
        topology: topology.clone(),
        wire: wire.clone(),
    });
    let ends = ends.collect();
    (ends, move |us| {
        let mut wire = wire.borrow_mut();
        wire.due.clear();
        wire.now = wire.now + micros(us);
    })
}

impl Wire {
    fn shared(size: u32, latency: Latency, window: usize, seed: u64) -> Rc<RefCell<Wire>> {
        let size = size as usize;
        Rc::new(RefCell::new(Wire {
            now: Instant::default(),
            prng: Prng::new(seed),
            latency,
            window,
            inboxes: (0..size).map(|_| BinaryHeap::new()).collect(),
            pairs: HashMap::new(),
            idle: vec![false; size],
            told: vec![None; size],
            sent: 0,
            due: Vec::new(),
        }))
    }

    /// All that is under way is lost, and the living are told who they are.
    fn tell_survivors(&mut self, alive: &[Rank]) {
        self.inboxes.iter_mut().for_each(BinaryHeap::clear);
        self.pairs.clear();
        for rank in alive {
            self.told[rank.0 as usize] = Some(alive.to_vec());
            self.due.push((self.now, *rank));
        }
    }
}

/// A workload's tasks, less those that the dead had recorded.
struct SimSource {
    tasks: WorkloadSource,
    recorded: Rc<RefCell<Vec<bool>>>,
}

impl Source for SimSource {
    fn read(&mut self, span: &mut Span, max: usize, into: &mut Vec<Task>) -> Result<u64, String> {
        let first = into.len();
        self.tasks.read(span, max, into)?;
        let read = into.len() - first;
        let recorded = self.recorded.borrow();
        into.retain(|task| !recorded[task.at as usize]);
        Ok((first + read - into.len()) as u64)
    }

    fn is_uniform(&self) -> bool {
        self.tasks.is_uniform()
    }

    fn cost_us(&self, task: &Task) -> u32 {
        self.tasks.cost_us(task)
    }

    fn cost_us_per_mass(&self) -> f64 {
        self.tasks.cost_us_per_mass()
    }

    fn embed(&mut self, task: &mut Task) -> Result<(), String> {
        self.tasks.embed(task)
    }

    fn measured(&mut self, size: Size, busy_us: u64) {
        self.tasks.measured(size, busy_us);
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Turn(Rank),
    End(Rank, u64),
    Death(Rank),
    Told,
}

struct SimRank {
    core: Core<SimSource>,
    fabric: SimFabric,
    turn_at: Instant,
    done: Vec<u64>,
    work_us: f64,
    stalled: Option<(Instant, Instant)>,
    slow: f64,
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
    recorded: Rc<RefCell<Vec<bool>>>,
    prng: Prng,
}

/// From a death until all survivors know of it, at most (seen with Open MPI 5: 20 to 80 ms).
const DETECTION: Duration = Duration::from_millis(80);
/// Events for each task and rank, past which a world does not end.
const EVENTS_EACH_MAX: u64 = 200;

/// Runs a world to its end.
///
/// # Errors
/// What must not be: a task that ran twice or never, an end that is none, a world without end.
pub fn run(plan: &Plan) -> Result<Outcome, String> {
    let mut world = World::new(plan);
    let bound = EVENTS_EACH_MAX * (plan.tasks + u64::from(plan.ranks) + 100);
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
            let source = SimSource {
                tasks: WorkloadSource::new(plan.workload.clone()),
                recorded: recorded.clone(),
            };
            let config = RankConfig {
                rank,
                topology: topology.clone(),
                window: plan.window,
                longest_first: plan.workload.has_estimates(),
                steals: plan.steals,
                reads: true,
                survives: !plan.faults.deaths.is_empty(),
                whole: Some(plan.tasks),
                bytes: false,
                seed: plan.seed,
            };
            let mut core = Core::new(config, source);
            core.set_slots(plan.slots);
            if let Some(span) = first_span(rank, plan) {
                core.add(vec![span]);
            }
            SimRank {
                core,
                fabric: SimFabric { rank, topology: topology.clone(), wire: wire.clone() },
                turn_at: Instant::FAR,
                done: Vec::new(),
                work_us: 0.0,
                stalled: plan.faults.stalls.iter().find(|s| s.0 == rank).map(|s| (s.1, s.2)),
                slow: plan.faults.slow.iter().find(|s| s.0 == rank).map_or(1.0, |s| s.1),
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
            recorded,
            prng: Prng::new(plan.seed ^ 0x5151),
        };
        (0..plan.ranks).for_each(|rank| world.turn_at(Rank(rank), Instant::default()));
        for &(at, rank) in &plan.faults.deaths {
            world.push(at, Event::Death(rank));
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
            Event::End(rank, number) => self.end(rank, number),
            Event::Death(rank) => {
                let sim = &mut self.ranks[rank.0 as usize];
                if sim.core.over().is_some() {
                    return Ok(());
                }
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

    fn end(&mut self, rank: Rank, number: u64) -> Result<(), String> {
        if !self.ranks[rank.0 as usize].alive {
            return Ok(());
        }
        if let Some(until) = self.stalled(rank) {
            self.push(until, Event::End(rank, number));
            return Ok(());
        }
        let us = self.plan.workload.duration_us(number);
        let sim = &mut self.ranks[rank.0 as usize];
        self.executed[number as usize] += 1;
        sim.done.push(number);
        sim.work_us += us;
        self.last_end = self.now;
        let task = Task { at: number, mass: 1, ..Task::default() };
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
        while let Some(arrival) = sim.fabric.poll() {
            match arrival {
                Arrival::Message(from, message) => sim.core.message(from, message)?,
                Arrival::Survivors(alive) => sim.core.survivors(alive),
                Arrival::Broken(reason) => return Err(reason),
            }
        }
        let busy = sim.core.turn(self.now)?;
        let mut begun = Vec::new();
        while sim.core.in_hand() < self.plan.slots
            && let Some(task) = sim.core.hand()?
        {
            begun.push(task.at);
        }
        let mut full = false;
        while let Some((to, message)) = sim.core.outgoing() {
            if let Err(Full(message)) = sim.fabric.send(to, message) {
                sim.core.unsent(to, message);
                full = true;
                break;
            }
        }
        self.wire.borrow_mut().idle[rank.0 as usize] = sim.core.in_hand() == 0;
        let wake_at = sim.core.wake_at();
        let slow = sim.slow;
        for number in begun {
            let us = self.plan.workload.duration_us(number) * slow + self.plan.latency.start_us;
            self.push(self.now + micros(us), Event::End(rank, number));
        }
        if wake_at < Instant::FAR {
            self.turn_at(rank, wake_at.max(self.now + Duration::from_nanos(1)));
        }
        if busy || full {
            self.turn_at(rank, self.now + Duration::from_micros(20));
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

/// What a rank begins with.
fn first_span(rank: Rank, plan: &Plan) -> Option<Span> {
    match (plan.all_on_one, rank) {
        (true, Rank(0)) => Some(Span::numbers(0, plan.tasks)),
        (true, _) => None,
        (false, Rank(rank)) => {
            Some(Span { start: u64::from(rank), end: plan.tasks, stride: plan.ranks })
        }
    }
}

fn micros(us: f64) -> Duration {
    Duration::from_nanos((us * 1e3) as u64)
}
