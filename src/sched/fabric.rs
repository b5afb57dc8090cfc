//! How ranks reach one another.
//!
//! Nothing blocks. Between two ranks messages arrive in the order in which they were sent; between
//! pairs there is no order. What was taken is delivered, unless a rank dies, which every survivor
//! is told with the same word and after which nothing that was sent before it arrives any more.
//! `local`, `mpi` and `sim` pass one suite of tests (`conforms`).

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::message::Message;
use super::tasks::Rank;
use crate::net::Waker;

/// The message could not be taken now; it comes back. Try again after a `poll`.
#[derive(Debug)]
pub struct Full(pub Message);

/// What a fabric brings.
#[derive(Debug)]
pub enum Arrival {
    /// A message.
    Message(Rank, Message),
    /// Ranks died. These are left, and only what they send from now on arrives.
    Survivors(Vec<Rank>),
    /// The fabric broke, and what happened.
    Broken(String),
}

/// One rank's end.
pub trait Fabric {
    /// Whose end this is.
    fn rank(&self) -> Rank;

    /// Which rank is on which node.
    fn topology(&self) -> &Arc<Topology>;

    /// Sends a message, never to itself.
    ///
    /// # Errors
    /// Too much is on its way to that rank.
    fn send(&mut self, to: Rank, message: Message) -> Result<(), Full>;

    /// What has arrived.
    fn poll(&mut self) -> Option<Arrival>;

    /// Whether it goes on after a death, with `Arrival::Survivors`.
    fn survives(&self) -> bool {
        false
    }

    /// What is written when something has arrived; None: it must be polled to know.
    fn waker(&self) -> Option<&Waker> {
        None
    }

    /// What becomes readable when something may have arrived, although it must be polled to know.
    fn bell(&self) -> Option<BorrowedFd<'_>>;

    /// The bell was heard, or is about to be looked at; whatever comes from here on rings again.
    fn hear(&mut self);

    /// Whether whatever comes next rings: every rank can, and nothing is on its way that moves only
    /// while this rank polls.
    fn is_rung(&self) -> bool;

    /// Ends it: all that was sent is delivered, or its receiver is dead. To be called by every
    /// rank, once, and polled until true.
    fn close(&mut self) -> bool {
        true
    }
}

/// Which rank is on which node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    node_of: Vec<u32>,
    members: Vec<Vec<Rank>>,
}

impl Topology {
    /// Rank `i` is on the node that is called `keys[i]`.
    pub fn new<K: PartialEq>(keys: &[K]) -> Topology {
        let mut names: Vec<&K> = Vec::new();
        let mut members: Vec<Vec<Rank>> = Vec::new();
        let mut node_of = Vec::with_capacity(keys.len());
        for (rank, key) in (0..).map(Rank).zip(keys) {
            // Ranks of a node usually stand together.
            let node = names.iter().rposition(|name| *name == key).unwrap_or_else(|| {
                names.push(key);
                members.push(Vec::new());
                names.len() - 1
            });
            members[node].push(rank);
            node_of.push(u32::try_from(node).expect("there are at most as many nodes as ranks"));
        }
        Topology { node_of, members }
    }

    /// Ranks.
    pub fn size(&self) -> u32 {
        u32::try_from(self.node_of.len()).expect("ranks are counted in 32 bits")
    }

    /// Nodes.
    pub fn nodes(&self) -> usize {
        self.members.len()
    }

    /// The node of a rank.
    pub fn node(&self, rank: Rank) -> u32 {
        self.node_of[rank.0 as usize]
    }

    /// The ranks of a node.
    pub fn members(&self, node: u32) -> &[Rank] {
        &self.members[node as usize]
    }
}

/// What every fabric must do: `step` lets time pass. For tests.
///
/// # Panics
/// It does not do it.
pub fn conforms<F: Fabric>(fabrics: &mut [F], mut step: impl FnMut()) {
    const COUNT: u32 = 3_000;
    let size = u32::try_from(fabrics.len()).expect("a few");
    let mut sent = vec![vec![0u32; fabrics.len()]; fabrics.len()];
    let mut seen = vec![vec![0u32; fabrics.len()]; fabrics.len()];
    let total = u64::from(size) * u64::from(size - 1) * u64::from(COUNT);
    let (mut arrived, mut idle) = (0u64, 0u32);
    while arrived < total {
        let before = arrived;
        for me in 0..fabrics.len() {
            assert_eq!(fabrics[me].rank().0 as usize, me);
            for to in (0..size).filter(|&to| to as usize != me) {
                let next = &mut sent[me][to as usize];
                while *next < COUNT {
                    let message = Message::Ask { free: *next, queued_us: me as u64, bodies: false };
                    match fabrics[me].send(Rank(to), message) {
                        Ok(()) => *next += 1,
                        Err(Full(_)) => break,
                    }
                }
            }
            while let Some(arrival) = fabrics[me].poll() {
                let Arrival::Message(from, Message::Ask { free, queued_us, .. }) = arrival else {
                    panic!("{arrival:?} was never sent");
                };
                assert_eq!(queued_us, u64::from(from.0));
                let expected = &mut seen[me][from.0 as usize];
                assert_eq!(free, *expected, "rank {me} from {from}: order or loss");
                *expected += 1;
                arrived += 1;
            }
        }
        step();
        idle = if arrived == before { idle + 1 } else { 0 };
        assert!(idle < 1_000_000, "{arrived} of {total} arrived, and no more come");
    }
    step();
    for fabric in fabrics {
        assert!(fabric.poll().is_none(), "one arrived twice");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_by_key() {
        let topology = Topology::new(&["a", "b", "a"]);
        assert_eq!((topology.size(), topology.nodes()), (3, 2));
        assert_eq!(topology.members(topology.node(Rank(2))), [Rank(0), Rank(2)]);
    }
}
