//! What simulated ranks read: numbers, or rows of a text that is not there but for its lines' ends.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::super::tasks::{Size, Source, Span, Task};
use super::super::workload::{Workload, WorkloadSource};
use crate::prng::Prng;

/// The form of the input.
#[derive(Clone, Debug, Default)]
pub enum Input {
    /// Tasks are numbers, and every rank knows them.
    #[default]
    Numbers,
    /// Tasks are rows.
    Rows {
        /// Where they are.
        rows: Arc<Rows>,
        /// So many ranks, from 0, can read them.
        readers: u32,
    },
}

/// Where the rows of a text begin, and how long they are. What lies between them is blank.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    rows: Vec<(u64, u32)>,
    length: u64,
}

impl Rows {
    /// So many of up to `bytes_max` bytes, with blank lines here and there.
    pub fn drawn(count: u64, bytes_max: u32, seed: u64) -> Rows {
        let mut prng = Prng::new(seed ^ 0x0520_0520);
        let mut blank = move || if prng.below(4) == 0 { prng.below(5) } else { 0 };
        let mut sizes = Prng::new(seed);
        let (mut rows, mut at) = (Vec::new(), blank());
        for _ in 0..count {
            let mass = 1 + sizes.below(u64::from(bytes_max.max(1)));
            rows.push((at, u32::try_from(mass).expect("it is below bytes_max")));
            at += mass + blank();
        }
        Rows { rows, length: at }
    }

    /// The bytes of it all.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Which row begins at this byte.
    pub fn number(&self, at: u64) -> Option<u64> {
        self.rows.binary_search_by_key(&at, |row| row.0).ok().map(|index| index as u64)
    }

    /// As `Source::read`, the row's number with each.
    fn read(&self, span: &mut Span, max: usize, mut row: impl FnMut(u64, u64, u32)) -> u64 {
        let (mut skipped, mut at) = (0, span.start);
        let first = self.rows.partition_point(|row| row.0 < at);
        if let Some(before) = first.checked_sub(1).map(|index| self.rows[index]) {
            // A row that began ahead of the span is not of it.
            at = at.max(before.0 + u64::from(before.1));
        }
        for index in (first..).take(max) {
            let Some(&(start, mass)) = self.rows.get(index).filter(|row| row.0 < span.end) else {
                skipped += span.end.saturating_sub(at);
                at = at.max(span.end);
                break;
            };
            skipped += start - at;
            row(index as u64, start, mass);
            at = start + u64::from(mass);
        }
        span.start = at;
        skipped
    }
}

/// A workload's tasks, less those that the dead had recorded.
pub struct SimSource {
    workload: Arc<Workload>,
    tasks: WorkloadSource,
    input: Input,
    /// By number.
    recorded: Rc<RefCell<Vec<bool>>>,
}

impl SimSource {
    pub(super) fn new(
        workload: Arc<Workload>,
        input: Input,
        recorded: Rc<RefCell<Vec<bool>>>,
    ) -> SimSource {
        SimSource { tasks: WorkloadSource::new(workload.clone()), workload, input, recorded }
    }

    /// What a row is sent as.
    pub(super) fn body(number: u64, mass: u32) -> Box<[u8]> {
        let text = number.to_le_bytes();
        (0..mass as usize).map(|i| text[i % text.len()]).collect()
    }
}

impl Source for SimSource {
    fn read(&mut self, span: &mut Span, max: usize, into: &mut Vec<Task>) -> Result<u64, String> {
        let recorded = self.recorded.borrow();
        let Input::Rows { rows, .. } = &self.input else {
            let first = into.len();
            self.tasks.read(span, max, into)?;
            let read = into.len() - first;
            into.retain(|task| !recorded[task.at as usize]);
            return Ok((first + read - into.len()) as u64);
        };
        let mut passed = 0;
        let skipped = rows.read(span, max, |number, at, mass| {
            if recorded[number as usize] {
                passed += u64::from(mass);
                return;
            }
            let cost_us = self.workload.estimate_us(number).min(f64::from(u32::MAX)) as u32;
            into.push(Task { at, mass, cost_us, size: Size::default(), body: None });
        });
        Ok(skipped + passed)
    }

    fn is_uniform(&self) -> bool {
        self.tasks.is_uniform()
    }

    fn cost_us(&self, task: &Task) -> u32 {
        self.tasks.cost_us(task)
    }

    fn cost_us_per_mass(&self) -> f64 {
        let each = match &self.input {
            Input::Numbers => 1.0,
            Input::Rows { rows, .. } => rows.rows.len() as f64 / rows.length.max(1) as f64,
        };
        self.tasks.cost_us_per_mass() * each
    }

    fn embed(&mut self, task: &mut Task) -> Result<(), String> {
        if let Input::Rows { rows, .. } = &self.input {
            let number = rows.number(task.at).ok_or("no row begins there")?;
            task.body = Some(SimSource::body(number, task.mass));
        }
        Ok(())
    }

    fn measured(&mut self, size: Size, busy_us: u64) {
        self.tasks.measured(size, busy_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_split_gives_each_row_once_and_all_of_the_mass() {
        let rows = Rows::drawn(200, 300, 5);
        let mut prng = Prng::new(8);
        for _ in 0..200 {
            let mut cuts: Vec<u64> = (0..20).map(|_| prng.below(rows.length + 1)).collect();
            cuts.extend([0, rows.length]);
            cuts.sort_unstable();
            let (mut seen, mut mass) = (Vec::new(), 0);
            for pair in cuts.windows(2) {
                let mut span = Span::bytes(pair[0], pair[1]);
                while !span.is_empty() {
                    let max = 1 + prng.below(4) as usize;
                    let mut own = 0;
                    mass += rows.read(&mut span, max, |number, _, bytes| {
                        seen.push(number);
                        own += u64::from(bytes);
                    });
                    mass += own;
                }
            }
            assert_eq!((seen, mass), ((0..200).collect(), rows.length));
        }
    }
}
