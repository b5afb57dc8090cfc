//! A rank's own work: tasks that were read, in the order in which they will run, and spans that
//! were not.
//!
//! Where tasks differ, those that take longest stand first, among as many as the window holds:
//! starting a long one late costs more than any stealing wins back (Graham, 1969). Where nothing is
//! known of them, the order of the input is kept, also through every split.

use std::collections::VecDeque;

use super::ledger::Ledger;
use super::tasks::{Source, Span, Task};

/// Tasks read in one go, so that messages are answered in between.
const READ_TASKS: usize = 512;
/// Tasks in one gift: 128 KiB on the wire without bodies.
pub const GIFT_TASKS_MAX: usize = 4096;
/// Bytes of bodies in one gift.
const GIFT_BYTES_MAX: usize = 1 << 20;

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
    spans: Vec<Span>,
    window: usize,
    longest_first: bool,
}

impl Queue {
    /// Empty; at most `window` tasks are read ahead.
    pub fn new(window: usize, longest_first: bool) -> Queue {
        let (ready, spans) = (VecDeque::new(), Vec::new());
        Queue { ready, spans, window: window.max(1), longest_first }
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
            self.ready.push_front(task);
        }
    }

    /// The next task.
    pub fn take(&mut self) -> Option<Task> {
        self.ready.pop_front()
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
        let ready: u64 = self.ready.iter().map(|task| u64::from(task.cost_us)).sum();
        let unread: u64 = self.spans.iter().map(Span::mass).sum();
        ready + (unread as f64 * source.cost_us_per_mass()) as u64
    }

    /// A rough number of tasks in it: enough to tell few from many.
    pub fn count(&self) -> u64 {
        let unread = self.spans.iter().map(|span| match span.stride {
            // Few rows of a batch have less.
            0 => span.mass().div_ceil(256),
            _ => span.mass(),
        });
        self.ready.len() as u64 + unread.sum::<u64>()
    }

    /// Splits off `parts` gifts of equal estimated work, as much as is left for itself; the first
    /// `keep` tasks stay. The longest task that does not stay goes out first. With `bodies` the
    /// tasks go with their rows, and no spans go.
    pub fn share(&mut self, parts: usize, keep: usize, bodies: bool) -> Vec<Gift> {
        let mut gifts = vec![Gift::default(); parts];
        if !bodies {
            self.share_spans(&mut gifts);
        }
        let keep = keep.min(self.ready.len());
        let rest: Vec<Task> = self.ready.drain(keep..).collect();
        // Each goes to whoever has the least yet: of equal tasks every second, in order. The gifts
        // come ahead of what is kept, since whoever asked can begin at once.
        let mut loads = vec![(0u64, 0usize); parts + 1];
        let mut sizes = vec![0usize; parts];
        for task in rest {
            let open = |&part: &usize| {
                part == parts
                    || (gifts[part].tasks.len() < GIFT_TASKS_MAX && sizes[part] < GIFT_BYTES_MAX)
            };
            let part = (0..=parts).filter(open).min_by_key(|&part| loads[part]);
            let part = part.expect("the own part is always open");
            loads[part].0 += u64::from(task.cost_us);
            loads[part].1 += 1;
            if part == parts {
                self.ready.push_back(task);
            } else {
                sizes[part] += if bodies { task.mass as usize } else { 0 };
                gifts[part].tasks.push(task);
            }
        }
        gifts
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
            && let Some(task) = self.ready.pop_front()
        {
            bytes += if bodies { task.mass as usize } else { 0 };
            gift.tasks.push(task);
        }
        gift
    }

    /// Below how many tasks it reads on.
    fn low(&self, source: &impl Source, near: usize) -> usize {
        if source.is_uniform() || !self.longest_first {
            near.min(self.window)
        } else {
            (self.window / 2).max(near.min(self.window))
        }
    }

    fn sort(&mut self) {
        let ready = self.ready.make_contiguous();
        if self.longest_first {
            ready.sort_by_key(|task| (std::cmp::Reverse(task.cost_us), task.at));
        } else {
            ready.sort_by_key(|task| task.at);
        }
    }
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
        let gift = queue.share(1, 0, false).remove(0);
        assert_eq!(costs(&gift.tasks), [100, 1]);
        let kept: Vec<Task> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(costs(&kept), [50, 48, 1, 1]);
    }

    #[test]
    fn without_estimates_both_keep_the_order() {
        let mut queue = Queue::new(100, false);
        queue.add(Gift { tasks: (0..7).map(|at| task(at, 0)).collect(), spans: vec![] });
        let gift = queue.share(1, 1, false).remove(0);
        let ats = |tasks: &[Task]| tasks.iter().map(|task| task.at).collect::<Vec<_>>();
        assert_eq!(ats(&gift.tasks), [1, 3, 5]);
        let kept: Vec<Task> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(ats(&kept), [0, 2, 4, 6]);
    }

    #[test]
    fn spans_are_shared_evenly() {
        let mut queue = Queue::new(4, true);
        queue.add(Gift { tasks: vec![], spans: vec![Span::numbers(0, 800)] });
        let gifts = queue.share(7, 0, false);
        assert!(gifts.iter().all(|gift| gift.spans.iter().map(Span::mass).sum::<u64>() == 100));
        assert_eq!(queue.count(), 100);
    }
}
