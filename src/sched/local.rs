//! Threads of one process as ranks: a bounded ring for each ordered pair, and a waker each.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;

use super::fabric::{Arrival, Fabric, Full, Topology};
use super::message::Message;
use super::tasks::Rank;
use crate::net::Waker;

/// Messages under way from one rank to another.
const RING_LEN: usize = 64;

/// One thread's end.
#[derive(Debug)]
pub struct LocalFabric {
    rank: Rank,
    shared: Arc<Shared>,
    /// Which sender is looked at next, so that none is starved.
    turn: usize,
}

#[derive(Debug)]
struct Shared {
    topology: Arc<Topology>,
    /// By sender, then by receiver; made when first used, since most pairs never speak.
    rings: Vec<Vec<OnceLock<ArrayQueue<Message>>>>,
    wakers: Vec<Waker>,
}

/// The ends of all ranks.
///
/// # Errors
/// The process has no descriptor left.
pub fn local(topology: Topology) -> io::Result<Vec<LocalFabric>> {
    let size = topology.size();
    let rings = (0..size).map(|_| (0..size).map(|_| OnceLock::new()).collect()).collect();
    let wakers = (0..size).map(|_| Waker::open()).collect::<io::Result<Vec<_>>>()?;
    let shared = Arc::new(Shared { topology: Arc::new(topology), rings, wakers });
    let end = |rank| LocalFabric { rank: Rank(rank), shared: shared.clone(), turn: 0 };
    Ok((0..size).map(end).collect())
}

impl Fabric for LocalFabric {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn topology(&self) -> &Arc<Topology> {
        &self.shared.topology
    }

    fn send(&mut self, to: Rank, message: Message) -> Result<(), Full> {
        let ring = &self.shared.rings[self.rank.0 as usize][to.0 as usize];
        ring.get_or_init(|| ArrayQueue::new(RING_LEN)).push(message).map_err(Full)?;
        self.shared.wakers[to.0 as usize].wake();
        Ok(())
    }

    fn poll(&mut self) -> Option<Arrival> {
        let size = self.shared.rings.len();
        for _ in 0..size {
            let from = self.turn;
            self.turn = (self.turn + 1) % size;
            let ring = self.shared.rings[from][self.rank.0 as usize].get();
            if let Some(message) = ring.and_then(ArrayQueue::pop) {
                return Some(Arrival::Message(Rank(from as u32), message));
            }
        }
        None
    }

    fn waker(&self) -> Option<&Waker> {
        Some(&self.shared.wakers[self.rank.0 as usize])
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn hear(&mut self) {}

    fn is_rung(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::fabric::conforms;
    use super::*;

    #[test]
    fn it_conforms() {
        let topology = Topology::new(&[0, 0, 1, 1]);
        conforms(&mut local(topology).unwrap(), || {});
    }

    #[test]
    fn threads_meet() {
        let mut ends = local(Topology::new(&[0, 0])).unwrap();
        let (mut to, mut from) = (ends.pop().unwrap(), ends.pop().unwrap());
        let sender = std::thread::spawn(move || {
            for number in 0..100_000u32 {
                let mut message = Message::Job(number.to_le_bytes().to_vec());
                while let Err(Full(back)) = from.send(Rank(1), message) {
                    message = back;
                    std::thread::yield_now();
                }
            }
        });
        for number in 0..100_000u32 {
            let message = loop {
                match to.poll() {
                    Some(Arrival::Message(Rank(0), message)) => break message,
                    Some(other) => panic!("{other:?}"),
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(message, Message::Job(number.to_le_bytes().to_vec()));
        }
        sender.join().unwrap();
    }
}
