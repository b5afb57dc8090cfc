//! Where a batch's tasks come from: a file, a prompt, or other ranks alone.

use std::sync::Arc;

use crate::batch::input::{DoneSet, FileSource, RepeatSource};
use crate::sched::cost::Model;
use crate::sched::tasks::{Size, Source, Span, Task};

/// The tasks of a batch.
pub enum BatchSource {
    /// Rows of a file.
    File(FileSource),
    /// A prompt, many times.
    Repeat(RepeatSource),
    /// Rows that come with their text from ranks that read them.
    Given(Model),
}

impl BatchSource {
    /// For a rank that reads nothing itself.
    pub fn given() -> BatchSource {
        BatchSource::Given(Model::new())
    }

    /// What is done has grown.
    pub fn set_done(&mut self, done: Arc<DoneSet>) {
        match self {
            BatchSource::File(source) => source.set_done(done),
            BatchSource::Repeat(source) => source.set_done(done),
            BatchSource::Given(_) => {}
        }
    }
}

impl Source for BatchSource {
    fn read(&mut self, span: &mut Span, max: usize, into: &mut Vec<Task>) -> Result<u64, String> {
        match self {
            BatchSource::File(source) => source.read(span, max, into),
            BatchSource::Repeat(source) => source.read(span, max, into),
            BatchSource::Given(_) => Err("a rank that cannot read the input was to read".into()),
        }
    }

    fn is_uniform(&self) -> bool {
        matches!(self, BatchSource::Repeat(_))
    }

    fn cost_us(&self, task: &Task) -> u32 {
        match self {
            BatchSource::File(source) => source.cost_us(task),
            BatchSource::Repeat(source) => source.cost_us(task),
            BatchSource::Given(model) => model.estimate(&task.size),
        }
    }

    fn cost_us_per_mass(&self) -> f64 {
        match self {
            BatchSource::File(source) => source.cost_us_per_mass(),
            BatchSource::Repeat(source) => source.cost_us_per_mass(),
            BatchSource::Given(_) => 0.0,
        }
    }

    fn embed(&mut self, task: &mut Task) -> Result<(), String> {
        match self {
            BatchSource::File(source) => source.embed(task),
            BatchSource::Repeat(source) => source.embed(task),
            BatchSource::Given(_) => Err("a row came without its text".to_owned()),
        }
    }

    fn measured(&mut self, size: Size, busy_us: u64) {
        match self {
            BatchSource::File(source) => source.measured(size, busy_us),
            BatchSource::Repeat(source) => source.measured(size, busy_us),
            BatchSource::Given(model) => model.measured(&size, busy_us),
        }
    }

    fn skipped_rows(&self) -> u64 {
        match self {
            BatchSource::File(source) => source.skipped_rows(),
            BatchSource::Repeat(source) => source.skipped_rows(),
            BatchSource::Given(_) => 0,
        }
    }
}
