//! What is scheduled: tasks, spans of tasks not yet read, and where both come from.

use std::fmt;

/// A rank, from 0; it keeps its number for the whole job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(pub u32);

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Task {
    /// The byte at which its row begins, or its number: it names the task.
    pub at: u64,
    /// What it counts for: the bytes of its row with the line's end, or 1.
    pub mass: u32,
    /// How long it will take, in microseconds of one slot; an estimate.
    pub cost_us: u32,
    /// What the estimate is made of.
    pub size: Size,
    /// The row itself, where the rank that runs it cannot read it.
    pub body: Option<Box<[u8]>>,
}

/// What is known of a task's size before it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes of the prompt.
    pub prompt: u32,
    /// Tokens of the answer at most.
    pub tokens: u32,
    /// Which model and kind of call it is, as the job numbers them.
    pub class: u16,
}

/// Tasks that nobody has read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first byte or number.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
    /// Every so many numbers is one of it; 0: the span is of bytes, and holds the rows that begin
    /// in it.
    pub stride: u32,
}

/// A span of bytes below this is read, not split: it holds a handful of rows.
const SPLIT_BYTES_MIN: u64 = 16 << 10;

impl Span {
    /// The rows that begin in these bytes.
    pub fn bytes(start: u64, end: u64) -> Span {
        Span { start, end, stride: 0 }
    }

    /// These numbers.
    pub fn numbers(start: u64, end: u64) -> Span {
        Span { start, end, stride: 1 }
    }

    /// Bytes or numbers in it.
    pub fn mass(&self) -> u64 {
        let length = self.end.saturating_sub(self.start);
        if self.stride == 0 { length } else { length.div_ceil(u64::from(self.stride)) }
    }

    /// Whether nothing is left in it.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Takes half of it out: of numbers every second one, so that both halves go on at the same
    /// place of the input; of bytes the later half, since whoever reads wants to read on.
    pub fn split(&mut self) -> Option<Span> {
        if self.stride == 0 {
            if self.mass() < 2 * SPLIT_BYTES_MIN {
                return None;
            }
            let middle = self.start + self.mass() / 2;
            let given = Span::bytes(middle, self.end);
            self.end = middle;
            return Some(given);
        }
        if self.mass() < 2 {
            return None;
        }
        let stride = u64::from(self.stride);
        let Some(double) = self.stride.checked_mul(2) else {
            let middle = self.start + self.mass() / 2 * stride;
            let given = Span { start: middle, ..*self };
            self.end = middle;
            return Some(given);
        };
        self.stride = double;
        Some(Span { start: self.start + stride, end: self.end, stride: double })
    }
}

/// Where a rank's tasks come from.
pub trait Source {
    /// Reads up to `max` tasks off the front of `span`, which shrinks. What comes back is the mass
    /// that was passed over: blank lines, and rows that were done in an earlier run.
    ///
    /// # Errors
    /// The input cannot be read; the job cannot go on.
    fn read(&mut self, span: &mut Span, max: usize, into: &mut Vec<Task>) -> Result<u64, String>;

    /// All tasks are alike, so that none need be read ahead to be put in order.
    fn is_uniform(&self) -> bool;

    /// Estimates a task anew, from what was measured since it was read.
    fn cost_us(&self, task: &Task) -> u32;

    /// Microseconds that a unit of unread mass will take; an estimate.
    fn cost_us_per_mass(&self) -> f64;

    /// Puts the row into the task, for whoever runs it, or for a rank that cannot read it. A task
    /// that is only a number has none.
    ///
    /// # Errors
    /// The input cannot be read.
    fn embed(&mut self, task: &mut Task) -> Result<(), String>;

    /// Takes note of how long a task held its slot.
    fn measured(&mut self, size: Size, busy_us: u64);

    /// Tasks that were passed over, since an earlier run had done them.
    fn skipped_rows(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_numbers_interleave() {
        let mut mine = Span::numbers(0, 9);
        let given = mine.split().unwrap();
        let list = |span: Span| (span.start..span.end).step_by(span.stride as usize);
        assert_eq!(list(mine).collect::<Vec<_>>(), [0, 2, 4, 6, 8]);
        assert_eq!(list(given).collect::<Vec<_>>(), [1, 3, 5, 7]);
        assert_eq!((mine.mass(), given.mass()), (5, 4));
        let mut one = Span::numbers(3, 4);
        assert_eq!(one.split(), None);
    }

    #[test]
    fn every_split_keeps_the_mass() {
        for mut span in [Span::numbers(5, 1_000), Span::bytes(7, 1 << 22)] {
            let whole = span.mass();
            let mut parts = Vec::new();
            while let Some(given) = span.split() {
                parts.push(given);
            }
            assert_eq!(span.mass() + parts.iter().map(Span::mass).sum::<u64>(), whole);
        }
    }
}
