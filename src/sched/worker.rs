//! A rank's workers: threads with an epoll, an executor and a deque each.
//!
//! The main thread hands tasks out through an injector; a worker fills its own deque from there, in
//! batches, and takes from its peers' when that is empty. What was handed out and not begun can be
//! taken back, so that it can still go to another rank.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crossbeam::deque::{Injector, Steal, Stealer, Worker as Deque};
use crossbeam::queue::SegQueue;
use nix::sys::resource::{UsageWho, getrusage};

use super::executor::{Completion, Executor, ExecutorFactory, WORKER_KIND};
use super::tally::Tally;
use super::tasks::Task;
use crate::clock::MonotonicClock;
use crate::net::{Reactor, Token, Waker};

/// A worker has not told yet how many tasks it can run.
const UNKNOWN: usize = usize::MAX;
const WAKER: Token = Token::single(WORKER_KIND);

/// What workers are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Run tasks.
    Run,
    /// Begin nothing more; let end what runs.
    Drain,
    /// Stop at once.
    Quit,
}

/// What the main thread and its workers share.
#[derive(Debug)]
pub struct Shared {
    injector: Injector<Task>,
    stealers: Vec<Stealer<Task>>,
    /// Tasks handed out and not begun.
    unbegun: AtomicUsize,
    completions: SegQueue<Completion>,
    tallies: SegQueue<Tally>,
    posts: Vec<Post>,
    order: AtomicU8,
    running: AtomicUsize,
    /// Wakes the main thread.
    main: Waker,
}

/// What is known of one worker.
#[derive(Debug)]
struct Post {
    waker: Waker,
    /// It waits, and has room.
    hungry: AtomicBool,
    slots: AtomicUsize,
    wants_tally: AtomicBool,
    cpu_us: AtomicU64,
}

impl Shared {
    /// For so many workers; their deques come with it.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn open(workers: usize, main: Waker) -> io::Result<(Arc<Shared>, Vec<Deque<Task>>)> {
        let deques: Vec<Deque<Task>> = (0..workers).map(|_| Deque::new_fifo()).collect();
        let post = || -> io::Result<Post> {
            Ok(Post {
                waker: Waker::open()?,
                hungry: AtomicBool::new(false),
                slots: AtomicUsize::new(UNKNOWN),
                wants_tally: AtomicBool::new(false),
                cpu_us: AtomicU64::new(0),
            })
        };
        let shared = Shared {
            injector: Injector::new(),
            stealers: deques.iter().map(Deque::stealer).collect(),
            unbegun: AtomicUsize::new(0),
            completions: SegQueue::new(),
            tallies: SegQueue::new(),
            posts: (0..workers).map(|_| post()).collect::<io::Result<_>>()?,
            order: AtomicU8::new(Order::Run as u8),
            running: AtomicUsize::new(workers),
            main,
        };
        Ok((Arc::new(shared), deques))
    }

    /// Hands a task out; `wake` makes it known.
    pub fn hand(&self, task: Task) {
        self.unbegun.fetch_add(1, Ordering::SeqCst);
        self.injector.push(task);
    }

    /// Wakes workers that wait and have room.
    pub fn wake(&self) {
        for post in &self.posts {
            if post.hungry.swap(false, Ordering::SeqCst) {
                post.waker.wake();
            }
        }
    }

    /// Takes back what was handed out and not begun, in order.
    pub fn take_back(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for stealer in &self.stealers {
            tasks.extend(std::iter::from_fn(|| settle(|| stealer.steal())));
        }
        tasks.extend(std::iter::from_fn(|| settle(|| self.injector.steal())));
        self.unbegun.fetch_sub(tasks.len(), Ordering::SeqCst);
        tasks
    }

    /// Tasks handed out and not begun.
    pub fn unbegun(&self) -> usize {
        self.unbegun.load(Ordering::SeqCst)
    }

    /// The next task that ended.
    pub fn completion(&self) -> Option<Completion> {
        self.completions.pop()
    }

    /// Tasks that all workers can run at once; None until all have told.
    pub fn slots(&self) -> Option<usize> {
        let told = self.posts.iter().map(|post| post.slots.load(Ordering::Relaxed));
        told.map(|slots| Some(slots).filter(|&slots| slots != UNKNOWN)).sum()
    }

    /// Tells all workers what to do.
    pub fn order(&self, order: Order) {
        self.order.store(order as u8, Ordering::SeqCst);
        self.posts.iter().for_each(|post| post.waker.wake());
    }

    /// Asks all workers for what they have counted.
    pub fn ask_tallies(&self) {
        for post in &self.posts {
            post.wants_tally.store(true, Ordering::SeqCst);
            post.waker.wake();
        }
    }

    /// What a worker has counted.
    pub fn tally(&self) -> Option<Tally> {
        self.tallies.pop()
    }

    /// Whether a worker has yet to hand in its last tally.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst) > 0
    }

    /// Processor time of all workers, as of their last tallies.
    pub fn cpu_us(&self) -> u64 {
        self.posts.iter().map(|post| post.cpu_us.load(Ordering::Relaxed)).sum()
    }

    fn ordered(&self) -> Order {
        match self.order.load(Ordering::SeqCst) {
            0 => Order::Run,
            1 => Order::Drain,
            _ => Order::Quit,
        }
    }
}

/// Runs a worker's thread to its end.
///
/// # Errors
/// The process has no descriptor left, or the poller failed.
pub fn run<X: ExecutorFactory>(
    shared: &Shared,
    factory: &X,
    index: usize,
    deque: &Deque<Task>,
    clock: MonotonicClock,
) -> io::Result<()> {
    let mut reactor = Reactor::open(clock)?;
    let post = &shared.posts[index];
    reactor.poller.register(&post.waker, WAKER)?;
    let mut executor = factory.open(&mut reactor, index, shared.posts.len())?;
    let mut drained = false;
    loop {
        let order = shared.ordered();
        if order == Order::Quit {
            count(shared, post, &mut executor);
            shared.running.fetch_sub(1, Ordering::SeqCst);
            return Ok(());
        }
        if order == Order::Drain && !drained {
            drained = true;
            executor.drain();
        }
        let mut busy = executor.turn(&mut reactor);
        while !drained
            && executor.room() > 0
            && let Some(task) = next_task(shared, index, deque, executor.room())
        {
            shared.unbegun.fetch_sub(1, Ordering::SeqCst);
            executor.start(&mut reactor, task);
        }
        let mut news = false;
        while let Some(completion) = executor.next_completion() {
            shared.completions.push(completion);
            news = true;
        }
        let slots = executor.slots();
        news |= post.slots.swap(slots, Ordering::Relaxed) != slots;
        if post.wants_tally.swap(false, Ordering::SeqCst) {
            count(shared, post, &mut executor);
            news = true;
        }
        if news {
            shared.main.wake();
        }
        if executor.room() > 0 && !drained {
            post.hungry.store(true, Ordering::SeqCst);
            // Looked at once more, since whoever hands out looks at `hungry` afterwards.
            busy |= !shared.injector.is_empty() || !deque.is_empty();
        }
        reactor.wait(busy)?;
        for event in 0..reactor.poller.event_count() {
            match reactor.poller.event(event) {
                Some((WAKER, _)) => post.waker.looking(),
                Some((token, readiness)) => executor.event(&mut reactor, token, readiness),
                None => {}
            }
        }
        while let Some((at, token)) = reactor.timers.fire(reactor.now) {
            executor.timer(&mut reactor, at, token);
        }
    }
}

fn count<X: Executor>(shared: &Shared, post: &Post, executor: &mut X) {
    post.cpu_us.store(thread_cpu_us(), Ordering::Relaxed);
    shared.tallies.push(executor.take_tally());
}

/// Own deque, then a batch of the injector, then the peers.
fn next_task(shared: &Shared, index: usize, deque: &Deque<Task>, room: usize) -> Option<Task> {
    if let Some(task) = deque.pop() {
        return Some(task);
    }
    // No more than it has room for: what lies in a deque is hard to find for a peer with room.
    let batch = || shared.injector.steal_batch_with_limit_and_pop(deque, room);
    if let Some(task) = settle(batch) {
        return Some(task);
    }
    let peers = shared.stealers.iter().enumerate().filter(|(peer, _)| *peer != index);
    peers.map(|(_, stealer)| stealer).find_map(|stealer| settle(|| stealer.steal()))
}

/// Steals until it is clear whether there is something.
fn settle(mut steal: impl FnMut() -> Steal<Task>) -> Option<Task> {
    loop {
        match steal() {
            Steal::Success(task) => return Some(task),
            Steal::Empty => return None,
            Steal::Retry => std::hint::spin_loop(),
        }
    }
}

/// Processor time of the calling thread.
pub fn thread_cpu_us() -> u64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| {
        let (user, system) = (usage.user_time(), usage.system_time());
        let us = (user.tv_sec() + system.tv_sec()) * 1_000_000 + user.tv_usec() + system.tv_usec();
        u64::try_from(us).unwrap_or(0)
    })
}

/// Most memory that the process ever took, in KiB.
pub fn rss_max_kib() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    usage.map_or(0, |usage| u64::try_from(usage.max_rss()).unwrap_or(0))
}
