//! Timers: a heap of moments and what they are for.
//!
//! Nothing is ever taken out early. Whoever set a timer looks, when it fires, whether its moment
//! still stands; who has many deadlines that keep moving sets one timer for the nearest and sets it
//! anew when it fires. That makes a deadline that moves with every token free.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::slab::Token;
use crate::clock::Instant;

/// Pending timers, nearest first.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Token)>>,
}

impl Timers {
    /// None pending.
    pub fn new() -> Timers {
        Timers::default()
    }

    /// Lets `token` fire at `at`.
    pub fn set(&mut self, at: Instant, token: Token) {
        if at < Instant::FAR {
            self.heap.push(Reverse((at, token)));
        }
    }

    /// When the nearest fires.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out one that is due.
    pub fn fire(&mut self, now: Instant) -> Option<(Instant, Token)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        let fired = self.heap.pop().map(|Reverse(entry)| entry);
        if self.heap.capacity() > 1024 && self.heap.len() < self.heap.capacity() / 4 {
            self.heap.shrink_to(self.heap.len() * 2);
        }
        fired
    }

    /// Gives back memory that is not used.
    pub fn shrink(&mut self) {
        self.heap.shrink_to(64);
    }

    /// How many are pending, stale ones included.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none is pending.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_in_order_and_never_early() {
        let mut timers = Timers::new();
        for at in [30, 10, 20] {
            timers.set(Instant(at), Token(at));
        }
        timers.set(Instant::FAR, Token(9));
        assert_eq!((timers.len(), timers.next()), (3, Some(Instant(10))));
        assert_eq!(timers.fire(Instant(9)), None);
        assert_eq!(timers.fire(Instant(25)), Some((Instant(10), Token(10))));
        assert_eq!(timers.fire(Instant(25)), Some((Instant(20), Token(20))));
        assert_eq!(timers.fire(Instant(25)), None);
        assert!(!timers.is_empty());
    }
}
