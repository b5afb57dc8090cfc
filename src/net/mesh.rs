//! How cores talk: a bounded ring for each ordered pair, and a waker for each core. No locks.
//!
//! A full ring holds nobody up: what does not fit waits in the sender's own overflow, in order, and
//! goes out when the sender next flushes. So the bound is on what is shared; what overflows is
//! bounded by what the cores may have open, since every message speaks of a request.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::waker::Waker;

/// Messages in one ring.
const RING_LEN: usize = 1024;

/// One core's end of the mesh.
#[derive(Debug)]
pub struct Port<M> {
    index: usize,
    waker: Waker,
    inbound: Vec<Arc<ArrayQueue<M>>>,
    outbound: Vec<Outbound<M>>,
    /// Where `receive` looks next, so that no sender is starved.
    turn: usize,
}

#[derive(Debug)]
struct Outbound<M> {
    ring: Arc<ArrayQueue<M>>,
    waker: Waker,
    overflow: VecDeque<M>,
    wake: bool,
}

/// The ports of `cores` cores.
///
/// # Errors
/// The process has no descriptor left.
pub fn mesh<M>(cores: usize) -> io::Result<Vec<Port<M>>> {
    let wakers = (0..cores).map(|_| Waker::open()).collect::<io::Result<Vec<_>>>()?;
    let rings: Vec<Vec<Arc<ArrayQueue<M>>>> = (0..cores)
        .map(|_| (0..cores).map(|_| Arc::new(ArrayQueue::new(RING_LEN))).collect())
        .collect();
    let port = |index: usize| Port {
        index,
        waker: wakers[index].clone(),
        inbound: rings.iter().map(|from| from[index].clone()).collect(),
        outbound: (0..cores)
            .map(|to| Outbound {
                ring: rings[index][to].clone(),
                waker: wakers[to].clone(),
                overflow: VecDeque::new(),
                wake: false,
            })
            .collect(),
        turn: 0,
    };
    Ok((0..cores).map(port).collect())
}

impl<M> Port<M> {
    /// Which core this is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// What wakes this core.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Sends `message` to core `to` (also to itself); it is woken at the next `flush`.
    pub fn send(&mut self, to: usize, message: M) {
        let outbound = &mut self.outbound[to];
        outbound.wake = true;
        if !outbound.overflow.is_empty() {
            outbound.overflow.push_back(message);
        } else if let Err(message) = outbound.ring.push(message) {
            outbound.overflow.push_back(message);
        }
    }

    /// Moves on what had overflowed and wakes whom something was sent. False: some is left, flush
    /// again soon.
    pub fn flush(&mut self) -> bool {
        let mut done = true;
        for outbound in &mut self.outbound {
            while let Some(message) = outbound.overflow.pop_front() {
                if let Err(message) = outbound.ring.push(message) {
                    outbound.overflow.push_front(message);
                    break;
                }
            }
            if outbound.wake {
                outbound.waker.wake();
            }
            outbound.wake = !outbound.overflow.is_empty();
            done &= outbound.overflow.is_empty();
        }
        done
    }

    /// The next message, from each sender in turn and in its order.
    pub fn receive(&mut self) -> Option<M> {
        for _ in 0..self.inbound.len() {
            let message = self.inbound[self.turn].pop();
            self.turn = (self.turn + 1) % self.inbound.len();
            if message.is_some() {
                return message;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_holds_past_a_full_ring() {
        let mut ports = mesh::<usize>(2).unwrap();
        let mut to = ports.pop().unwrap();
        let mut from = ports.pop().unwrap();
        let count = 3 * RING_LEN;
        (0..count).for_each(|i| from.send(1, i));
        let mut next = 0;
        loop {
            let done = from.flush();
            while let Some(i) = to.receive() {
                assert_eq!(i, next);
                next += 1;
            }
            if done {
                break;
            }
        }
        assert_eq!(next, count);
    }

    #[test]
    fn threads_meet() {
        let mut ports = mesh::<u64>(2).unwrap();
        let mut to = ports.pop().unwrap();
        let mut from = ports.pop().unwrap();
        let sender = std::thread::spawn(move || {
            (0..100_000).for_each(|i| from.send(1, i));
            while !from.flush() {
                std::thread::yield_now();
            }
        });
        let mut next = 0;
        while next < 100_000 {
            match to.receive() {
                Some(i) => {
                    assert_eq!(i, next);
                    next += 1;
                }
                None => std::thread::yield_now(),
            }
        }
        sender.join().unwrap();
    }
}
