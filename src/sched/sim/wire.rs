//! The simulated fabric: what is under way between ranks, in virtual time.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::fabric::{Arrival, Fabric, Full, Topology};
use super::super::message::Message;
use super::super::tasks::Rank;
use crate::clock::Instant;
use crate::prng::{self, Prng};

/// How long things take; microseconds. The defaults were measured with Open MPI 4.1 on two cores.
///
/// Where all ranks are on one node a message wakes its receiver. Elsewhere a rank looks for
/// messages the more rarely the longer nothing came: the wait until it looks is as long as it has
/// been quiet, at most. Whenever a task ends it looks anyway.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// A message to a rank of the same node, until it could be seen: half to one and a half of it.
    pub near_us: f64,
    /// And to one of another node.
    pub far_us: f64,
    /// From there until the receiver is awake, where all ranks are on one node: half to one and a
    /// half of it; 0: nothing wakes it.
    pub ring_us: f64,
    /// A busy rank looks for messages at least so often; 0: something wakes it at once.
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
            ring_us: 100.0,
            look_us: 3_000.0,
            idle_look_us: 4_000.0,
            start_us: 30.0,
        }
    }
}

/// A rank looks again at first after so long.
const LOOK_MIN_US: f64 = 20.0;

/// Messages under way.
#[derive(Debug)]
pub struct Wire {
    pub now: Instant,
    prng: Prng,
    latency: Latency,
    window: usize,
    inboxes: Vec<BinaryHeap<Reverse<Parcel>>>,
    /// Per pair: when the latest arrives, and how many are under way.
    pairs: HashMap<u64, (Instant, usize), BuildHasherDefault<PairHasher>>,
    /// Of each rank: whether nothing runs on it, and when it last sent or received.
    pub idle: Vec<bool>,
    active: Vec<Instant>,
    told: Vec<VecDeque<Vec<Rank>>>,
    pub sent: u64,
    /// Who will look at something, and when.
    pub due: Vec<(Instant, Rank)>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Parcel {
    at: Instant,
    number: u64,
    from: Rank,
    /// When its receiver looks, if nothing else makes it look earlier.
    look: Instant,
    message: Bytes,
}

/// A message as bytes, so that the coding is exercised too; ordered by nothing that matters.
type Bytes = Vec<u8>;

/// Pairs are looked up for every message; nobody chooses them to collide.
#[derive(Debug, Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = prng::hash(self.0, bytes);
    }

    fn write_u64(&mut self, pair: u64) {
        let mut pair = pair;
        self.0 = prng::splitmix64(&mut pair);
    }
}

fn pair(from: Rank, to: Rank) -> u64 {
    u64::from(from.0) << 32 | u64::from(to.0)
}

/// One rank's end of the simulated fabric.
#[derive(Debug)]
pub struct SimFabric {
    rank: Rank,
    topology: Arc<Topology>,
    wire: Rc<RefCell<Wire>>,
}

impl SimFabric {
    pub(super) fn new(rank: Rank, topology: Arc<Topology>, wire: Rc<RefCell<Wire>>) -> SimFabric {
        SimFabric { rank, topology, wire }
    }
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
        let wire = &mut *self.wire.borrow_mut();
        let pair = wire.pairs.entry(pair(self.rank, to)).or_default();
        if pair.1 >= wire.window {
            return Err(Full(message));
        }
        let near = self.topology.node(self.rank) == self.topology.node(to);
        let transit = if near { wire.latency.near_us } else { wire.latency.far_us };
        let at = (wire.now + micros(transit * (0.5 + wire.prng.unit()))).max(pair.0);
        *pair = (at, pair.1 + 1);
        wire.sent += 1;
        wire.active[self.rank.0 as usize] = wire.now;
        let (number, mut bytes) = (wire.sent, Vec::new());
        message.encode(&mut bytes);
        let rings = self.topology.nodes() == 1 && wire.latency.ring_us > 0.0;
        let look = if rings { wire.rung(at) } else { wire.look(to, at) };
        let parcel = Parcel { at, number, from: self.rank, look, message: bytes };
        wire.inboxes[to.0 as usize].push(Reverse(parcel));
        wire.due.push((look, to));
        Ok(())
    }

    fn poll(&mut self) -> Option<Arrival> {
        let wire = &mut *self.wire.borrow_mut();
        let me = self.rank.0 as usize;
        if let Some(alive) = wire.told[me].pop_front() {
            wire.active[me] = wire.now;
            return Some(Arrival::Survivors(alive));
        }
        let inbox = &mut wire.inboxes[me];
        if inbox.peek().is_none_or(|Reverse(parcel)| parcel.at > wire.now) {
            return None;
        }
        let Reverse(Parcel { from, message, .. }) = inbox.pop()?;
        wire.active[me] = wire.now;
        let pair = pair(from, self.rank);
        if let Some((_, count)) = wire.pairs.get_mut(&pair) {
            if *count == wire.window {
                // Its sender may have been refused, and tries again.
                wire.due.push((wire.now + FULL_WAIT, from));
            }
            *count -= 1;
            if *count == 0 {
                wire.pairs.remove(&pair);
            }
        }
        let message = Message::decode(&message).expect("what was encoded here is decoded here");
        Some(Arrival::Message(from, message))
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn hear(&mut self) {}

    fn is_rung(&self) -> bool {
        false
    }
}

/// After so long a rank tries again to send what was refused.
const FULL_WAIT: Duration = Duration::from_micros(100);

/// The ends of a simulated fabric, and a clock that moves it on by so many microseconds. For the
/// suite that all fabrics pass.
pub fn fabrics(
    topology: Arc<Topology>,
    latency: Latency,
    window: usize,
    seed: u64,
) -> (Vec<SimFabric>, impl FnMut(f64)) {
    let wire = Wire::shared(topology.size(), latency, window, seed);
    let ends = (0..topology.size()).map(Rank);
    let ends = ends.map(|rank| SimFabric::new(rank, topology.clone(), wire.clone())).collect();
    (ends, move |us| {
        let mut wire = wire.borrow_mut();
        wire.due.clear();
        wire.now = wire.now + micros(us);
    })
}

impl Wire {
    pub(super) fn shared(
        size: u32,
        latency: Latency,
        window: usize,
        seed: u64,
    ) -> Rc<RefCell<Wire>> {
        let size = size as usize;
        Rc::new(RefCell::new(Wire {
            now: Instant::default(),
            prng: Prng::new(seed),
            latency,
            window,
            inboxes: (0..size).map(|_| BinaryHeap::new()).collect(),
            pairs: HashMap::default(),
            idle: vec![false; size],
            active: vec![Instant::default(); size],
            told: vec![VecDeque::new(); size],
            sent: 0,
            due: Vec::new(),
        }))
    }

    /// When a rank looks at what is there from `at` on, and rings.
    fn rung(&mut self, at: Instant) -> Instant {
        at + micros(self.latency.ring_us * (0.5 + self.prng.unit()))
    }

    /// When a rank looks at what is there from `at` on, if nothing else makes it look earlier.
    fn look(&mut self, rank: Rank, at: Instant) -> Instant {
        let index = rank.0 as usize;
        let most = if self.idle[index] { self.latency.idle_look_us } else { self.latency.look_us };
        let quiet_us = at.micros_since(self.active[index]) as f64;
        at + micros(most.min(quiet_us + LOOK_MIN_US) * self.prng.unit())
    }

    /// When a rank looks at the first that it has not.
    pub(super) fn next_look(&self, rank: Rank) -> Option<Instant> {
        let inbox = &self.inboxes[rank.0 as usize];
        inbox.peek().map(|Reverse(parcel)| parcel.look)
    }

    /// All that is under way is lost, and the living are told who they are.
    pub(super) fn tell_survivors(&mut self, alive: &[Rank]) {
        self.inboxes.iter_mut().for_each(BinaryHeap::clear);
        self.pairs.clear();
        for rank in alive {
            self.told[rank.0 as usize].push_back(alive.to_vec());
            self.due.push((self.now, *rank));
        }
    }
}

pub fn micros(us: f64) -> Duration {
    Duration::from_nanos((us * 1e3) as u64)
}
