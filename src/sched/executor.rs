//! What runs tasks. The scheduler knows nothing of them but their size.
//!
//! An executor lives on a worker's thread and epoll. It begins what it is given, tells what has
//! ended, and never blocks.

use std::io;

use super::tally::Tally;
use super::tasks::Task;
use crate::clock::Instant;
use crate::net::{Reactor, Readiness, Token};

/// The kind of tokens that the worker keeps for itself; an executor's are below it.
pub const WORKER_KIND: u8 = 15;

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is done, for good or ill: its result is with the journal.
    Done {
        /// Whether well.
        ok: bool,
        /// How long it held a slot, in microseconds, all its tries together; what estimates are
        /// corrected by. 0 where it held none.
        busy_us: u64,
        /// Tokens of its answer.
        tokens: u32,
    },
    /// It was not begun, and goes back to the rank's queue: no server is up.
    Returned,
}

/// A task that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which.
    pub task: Task,
    /// How.
    pub end: End,
}

/// Runs tasks on one worker's thread.
pub trait Executor {
    /// Tasks that it would begin now.
    fn room(&self) -> usize;

    /// Tasks that it can run at once as things stand; 0: no server is up.
    fn slots(&self) -> usize;

    /// Takes a task, of which `body` stands if it has one. One for which there is no room waits
    /// inside.
    fn start(&mut self, reactor: &mut Reactor, task: Task);

    /// An event of one of its descriptors.
    fn event(&mut self, reactor: &mut Reactor, token: Token, readiness: Readiness);

    /// A timer that it set fired.
    fn timer(&mut self, reactor: &mut Reactor, at: Instant, token: Token);

    /// The end of a turn of the worker's loop. True: it has more to do at once.
    fn turn(&mut self, reactor: &mut Reactor) -> bool;

    /// The next task that ended.
    fn next_completion(&mut self) -> Option<Completion>;

    /// What was counted since the last call.
    fn take_tally(&mut self) -> Tally;

    /// No retry is begun any more; what runs may end. Tasks that wait are returned.
    fn drain(&mut self);
}

/// Makes the executor of each worker, on the worker's own thread.
pub trait ExecutorFactory: Send + Sync {
    /// What it makes.
    type Executor: Executor;

    /// The executor of worker `worker` of `workers` of a rank.
    ///
    /// # Errors
    /// The process has no descriptor left.
    fn open(
        &self,
        reactor: &mut Reactor,
        worker: usize,
        workers: usize,
    ) -> io::Result<Self::Executor>;
}
