//! What a core's loop stands on: its poller, its timers, its clock and one buffer that all reads
//! share.

use std::io;

use super::poller::Poller;
use super::timer::Timers;
use crate::clock::{Clock, Instant, MonotonicClock};

/// A thread's poller, timers and clock.
#[derive(Debug)]
pub struct Reactor {
    /// Where descriptors are registered.
    pub poller: Poller,
    /// What is to happen when.
    pub timers: Timers,
    /// The moment at which the present turn began: read once a turn, not once a use.
    pub now: Instant,
    /// All reads of this thread go through this buffer; it is taken out for the time of a read.
    pub scratch: Vec<u8>,
    clock: MonotonicClock,
}

/// One read takes this much at most: the most that a loopback connection has ready under load, and
/// it fits the L2.
const SCRATCH_BYTES: usize = 64 << 10;

impl Reactor {
    /// A reactor for the calling thread.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn open(clock: MonotonicClock) -> io::Result<Reactor> {
        Ok(Reactor {
            poller: Poller::open()?,
            timers: Timers::new(),
            now: clock.now(),
            scratch: vec![0; SCRATCH_BYTES],
            clock,
        })
    }

    /// Waits for events or the nearest timer; with `busy` only looks.
    ///
    /// # Errors
    /// Only a fault of the program.
    pub fn wait(&mut self, busy: bool) -> io::Result<()> {
        self.tick();
        let until = if busy { Some(self.now) } else { self.timers.next() };
        self.poller.wait(self.now, until)?;
        self.tick();
        Ok(())
    }

    /// Reads the clock.
    pub fn tick(&mut self) -> Instant {
        self.now = self.clock.now();
        self.now
    }
}
