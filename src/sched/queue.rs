//! A rank's own work: tasks that were read, in the order in which they will run, and spans that
//! were not.
//!
//! Where tasks differ, those that take longest stand first, among as many as the window holds:
//! starting a long one late costs more than any stealing wins back (Graham, 1969). Where nothing is
//! known of them, the order of the input is kept, also through every split.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::ledger::Ledger;
use super::tasks::{Source, Span, Task};

/// Tasks read in one go, so that messages are answered in between.
const READ_TASKS: usize = 512;
/// Tasks in one gift: 128 KiB on the wire without bodies.
pub const GIFT_TASKS_MAX: usize = 4096;
/// Bytes of bodies in one gift.
const GIFT_BYTES_MAX: usize = 1 << 20;

/// Few rows of a batch have fewer bytes.
const ROW_BYTES: u64 = 256;
/// Fewer bytes of a span are not worth a gift.
const FRONT_BYTES_MIN: u64 = 16 << 10;

/// What one rank gives to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gift {
    /// Tasks, in order.
    pub tasks: Vec<Task>,
    /// Spans.
    pub spans: Vec<Span>,
}

impl Gift {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.spans.is_empty()
    }
}

/// The work that waits on a rank.
#[derive(Debug)]
pub struct Queue {
    ready: VecDeque<Task>,
    /// Estimated microseconds of what is ready.
    ready_us: u64,
    spans: Vec<Span>,
    window: usize,
    longest_first: bool,
}

impl Queue {
    /// Empty; some `window` tasks are read ahead where they are put in order, and always as many as
    /// are wanted at once.
    pub fn new(window: usize, longest_first: bool) -> Queue {
        let (ready, spans) = (VecDeque::new(), Vec::new());
        Queue { ready, ready_us: 0, spans, window: window.max(1), longest_first }
    }

    /// Adds work.
    pub fn add(&mut self, gift: Gift) {
        self.spans.extend(gift.spans.into_iter().filter(|span| !span.is_empty()));
        if !gift.tasks.is_empty() {
            self.ready.extend(gift.tasks);
            self.sort();
        }
    }

    /// Puts tasks back that were taken and not begun: they stand first again.
    pub fn put_back(&mut self, tasks: Vec<Task>) {
        for task in tasks.into_iter().rev() {
            self.ready_us += u64::from(task.cost_us);
            self.ready.push_front(task);
        }
    }

    /// The next task.
    pub fn take(&mut self) -> Option<Task> {
        let task = self.ready.pop_front()?;
        self.ready_us -= u64::from(task.cost_us);
        Some(task)
    }

    /// Tasks that were read.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Spans that were not.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The tasks that were read.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.ready.iter()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.spans.is_empty()
    }

    /// Whether as much was read as the window asks for, or all.
    pub fn is_filled(&self, source: &impl Source, near: usize) -> bool {
        self.spans.is_empty() || self.ready.len() >= self.low(source, near)
    }

    /// Reads on if the window has room; `near` tasks are wanted at once. The mass that was passed
    /// over comes back, and where it was is noted in the ledger.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn fill(
        &mut self,
        source: &mut impl Source,
        near: usize,
        ledger: Option<&mut Ledger>,
    ) -> Result<u64, String> {
        // The input's order, as far as it is known.
        let first = (0..self.spans.len()).min_by_key(|&i| self.spans[i].start);
        let Some(index) = first.filter(|_| !self.is_filled(source, near)) else { return Ok(0) };
        let mut tasks = Vec::new();
        let before = self.spans[index];
        let span = &mut self.spans[index];
        let skipped = source.read(span, READ_TASKS.min(self.window), &mut tasks)?;
        if let Some(ledger) = ledger {
            note_skipped(ledger, before, span.start.min(before.end), &tasks);
        }
        if span.is_empty() {
            self.spans.swap_remove(index);
        }
        if !tasks.is_empty() {
            self.ready.extend(tasks);
            self.sort();
        }
        Ok(skipped)
    }

    /// Estimates all tasks anew and puts them in order.
    pub fn estimate_anew(&mut self, source: &impl Source) {
        for task in &mut self.ready {
            task.cost_us = source.cost_us(task);
        }
        self.sort();
    }

    /// Estimated microseconds of it all.
    pub fn cost_us(&self, source: &impl Source) -> u64 {
        let unread: u64 = self.spans.iter().map(Span::mass).sum();
        self.ready_us + (unread as f64 * source.cost_us_per_mass()) as u64
    }

    /// A rough number of tasks in it: enough to tell few from many.
    pub fn count(&self) -> u64 {
        let unread = self.spans.iter().map(|span| match span.stride {
            0 => span.mass().div_ceil(ROW_BYTES),
            _ => span.mass(),
        });
        self.ready.len() as u64 + unread.sum::<u64>()
    }

    /// Splits off a gift for each of `caps`, of equal estimated work and as much as is left for
    /// itself, but no more than the cap; the first `keep` tasks stay. The longest task that does
    /// not stay goes out first. With `bodies` the tasks go with their rows, and no spans go.
    pub fn share(&mut self, caps: &[u64], keep: usize, bodies: bool) -> Vec<Gift> {
        let parts = caps.len();
        let mut gifts = vec![Gift::default(); parts];
        // Half of what was not read yet is more than a rank wants that has some already.
        if !bodies && caps.iter().all(|&cap| cap == u64::MAX) {
            self.share_spans(&mut gifts);
        }
        let keep = keep.min(self.ready.len());
        let rest: Vec<Task> = self.ready.drain(keep..).collect();
        // Each goes to whoever has the least yet: of equal tasks every second, in order. The gifts
        // come ahead of what is kept, since whoever asked can begin at once.
        let least = (0..=parts).map(|part| Reverse((0, 0, part)));
        let mut least: BinaryHeap<Reverse<(u64, usize, usize)>> = least.collect();
        let mut sizes = vec![0usize; parts];
        for task in rest {
            let Some(Reverse((load, count, part))) = least.pop() else { break };
            let load = load + u64::from(task.cost_us);
            if part == parts {
                self.ready.push_back(task);
            } else {
                sizes[part] += if bodies { task.mass as usize } else { 0 };
                gifts[part].tasks.push(task);
                let full =
                    gifts[part].tasks.len() >= GIFT_TASKS_MAX || sizes[part] >= GIFT_BYTES_MAX;
                if full || load >= caps[part] {
                    continue;
                }
            }
            least.push(Reverse((load, count + 1, part)));
        }
        let given = gifts.iter().flat_map(|gift| &gift.tasks);
        self.ready_us -= given.map(|task| u64::from(task.cost_us)).sum::<u64>();
        gifts
    }

    /// Splits off a gift of about so many tasks, the next in order after the first `keep`;
    /// otherwise as `share`.
    pub fn front(&mut self, tasks: u64, keep: usize, bodies: bool) -> Gift {
        let mut gift = Gift::default();
        let most = usize::try_from(tasks).unwrap_or(usize::MAX).min(GIFT_TASKS_MAX);
        let (keep, mut bytes) = (keep.min(self.ready.len()), 0);
        let fits = |task: &&Task| {
            bytes += if bodies { task.mass as usize } else { 0 };
            bytes <= GIFT_BYTES_MAX.max(task.mass as usize)
        };
        let count = self.ready.range(keep..).take(most).take_while(fits).count();
        gift.tasks = self.ready.drain(keep..keep + count).collect();
        self.ready_us -= gift.tasks.iter().map(|task| u64::from(task.cost_us)).sum::<u64>();
        let wanted = tasks - count as u64;
        if !bodies
            && wanted > 0
            && let Some(index) = (0..self.spans.len()).min_by_key(|&i| self.spans[i].start)
        {
            let span = &mut self.spans[index];
            let given = front_of(span, wanted);
            gift.spans.extend(Some(given).filter(|given| !given.is_empty()));
            if span.is_empty() {
                self.spans.swap_remove(index);
            }
        }
        gift
    }

    fn share_spans(&mut self, gifts: &mut [Gift]) {
        let count = gifts.len();
        for index in 0..self.spans.len() {
            // Halving the largest part again and again gives parts of at most twice the least.
            let mut parts = vec![self.spans[index]];
            while parts.len() <= count {
                let widest = (0..parts.len()).max_by_key(|&i| (parts[i].mass(), usize::MAX - i));
                let widest = widest.expect("there is one at least");
                let Some(half) = parts[widest].split() else { break };
                parts.push(half);
            }
            self.spans[index] = parts[0];
            // Whoever is first in one span is last in the next.
            let given = parts.drain(1..).zip((index..).map(|i| i % count.max(1)));
            given.for_each(|(span, to)| gifts[to].spans.push(span));
        }
    }

    /// Gives all of it away, up to the size of a gift: this rank can run nothing.
    pub fn give_all(&mut self, bodies: bool) -> Gift {
        let mut gift = Gift::default();
        if !bodies {
            gift.spans = std::mem::take(&mut self.spans);
        }
        let mut bytes = 0;
        while gift.tasks.len() < GIFT_TASKS_MAX
            && bytes < GIFT_BYTES_MAX
            && let Some(task) = self.take()
        {
            bytes += if bodies { task.mass as usize } else { 0 };
            gift.tasks.push(task);
        }
        gift
    }

    /// Below how many tasks it reads on.
    fn low(&self, source: &impl Source, near: usize) -> usize {
        if source.is_uniform() || !self.longest_first { near } else { near.max(self.window / 2) }
    }

    fn sort(&mut self) {
        self.ready_us = self.ready.iter().map(|task| u64::from(task.cost_us)).sum();
        let ready = self.ready.make_contiguous();
        if self.longest_first {
            ready.sort_by_key(|task| (Reverse(task.cost_us), task.at));
        } else {
            ready.sort_by_key(|task| task.at);
        }
    }
}

/// Takes about so many tasks off the front of a span.
fn front_of(span: &mut Span, tasks: u64) -> Span {
    let step = match span.stride {
        0 => tasks.saturating_mul(ROW_BYTES).max(FRONT_BYTES_MIN),
        stride => tasks.saturating_mul(u64::from(stride)),
    };
    let middle = span.start.saturating_add(step).min(span.end);
    let given = Span { end: middle, ..*span };
    span.start = middle;
    given
}

/// Notes what of `span`, up to `to`, was read and is no task.
fn note_skipped(ledger: &mut Ledger, span: Span, to: u64, tasks: &[Task]) {
    let mut at = span.start;
    if span.stride == 0 {
        for task in tasks {
            ledger.add(at, task.at);
            at = task.at + u64::from(task.mass);
        }
        ledger.add(at, to);
        return;
    }
    let mut tasks = tasks.iter().map(|task| task.at).peekable();
    while at < to {
        if tasks.next_if_eq(&at).is_none() {
            ledger.add(at, at + 1);
        }
        at += u64::from(span.stride);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(at: u64, cost_us: u32) -> Task {
        Task { at, mass: 1, cost_us, ..Task::default() }
    }

    fn costs(tasks: &[Task]) -> Vec<u32> {
        tasks.iter().map(|task| task.cost_us).collect()
    }

    #[test]
    fn half_is_half_of_the_work_and_the_longest_goes_first() {
        let mut queue = Queue::new(100, true);
        let tasks = [1, 100, 1, 1, 50, 48].into_iter().enumerate();
        let tasks = tasks.map(|(at, cost)| task(at as u64, cost)).collect();
        queue.add(Gift { tasks, spans: vec![] });
        let gift = queue.share(&[u64::MAX], 0, false).remove(0);
        assert_eq!(costs(&gift.tasks), [100, 1]);
        let kept: Vec<Task> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(costs(&kept), [50, 48, 1, 1]);
    }

    #[test]
    fn without_estimates_both_keep_the_order() {
        let mut queue = Queue::new(100, false);
        queue.add(Gift { tasks: (0..7).map(|at| task(at, 0)).collect(), spans: vec![] });
        let gift = queue.share(&[u64::MAX], 1, false).remove(0);
        let ats = |tasks: &[Task]| tasks.iter().map(|task| task.at).collect::<Vec<_>>();
        assert_eq!(ats(&gift.tasks), [1, 3, 5]);
        let kept: Vec<Task> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(ats(&kept), [0, 2, 4, 6]);
    }

    #[test]
    fn a_cap_bounds_what_goes_out() {
        let mut queue = Queue::new(100, true);
        queue.add(Gift { tasks: (0..10).map(|at| task(at, 10)).collect(), spans: vec![] });
        let gift = queue.share(&[25], 0, false).remove(0);
        assert_eq!((gift.tasks.len(), queue.ready(), queue.ready_us), (3, 7, 70));
    }

    #[test]
    fn the_front_is_next_in_order() {
        let mut queue = Queue::new(100, false);
        let span = Span { start: 7, end: 107, stride: 10 };
        queue.add(Gift { tasks: (0..4).map(|at| task(at, 1)).collect(), spans: vec![span] });
        let gift = queue.front(5, 2, false);
        let ats: Vec<u64> = gift.tasks.iter().map(|task| task.at).collect();
        assert_eq!((ats, gift.spans[0].mass()), (vec![2, 3], 3));
        assert_eq!((queue.ready(), queue.spans[0].start, queue.count()), (2, 37, 9));
        assert!(queue.front(5, 2, true).is_empty());
    }

    #[test]
    fn spans_are_shared_evenly() {
        let mut queue = Queue::new(4, true);
        queue.add(Gift { tasks: vec![], spans: vec![Span::numbers(0, 800)] });
        let gifts = queue.share(&[u64::MAX; 7], 0, false);
        assert!(gifts.iter().all(|gift| gift.spans.iter().map(Span::mass).sum::<u64>() == 100));
        assert_eq!(queue.count(), 100);
    }
}
