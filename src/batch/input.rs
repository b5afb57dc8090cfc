//! Rows as the scheduler's tasks: of a file, or the same prompt many times.
//!
//! A span of bytes holds the rows that *begin* in it. Cut anywhere, the parts hold each row once:
//!
//! ```text
//!   file    aaaaaa\nbbbbbbbbbbbbbbbb\ncccc\n
//!   spans   |  1      |  2   |  3          |      1: a, b   2: none   3: c
//! ```
//!
//! So the masses of all tasks and of all that was passed over add up to the file's length.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Error;
use super::lines::Lines;
use super::row::{self, Key, RowOptions};
use crate::limits::HTTP_BODY_BYTES_MAX;
use crate::sched::cost::Model;
use crate::sched::tasks::{Size, Source, Span, Task};

/// Rows that need not be asked, by the first 8 bytes of their keys.
#[derive(Clone, Debug, Default)]
pub struct DoneSet {
    prefixes: Vec<u64>,
}

impl DoneSet {
    /// Of prefixes in any order.
    pub fn new(mut prefixes: Vec<u64>) -> DoneSet {
        prefixes.sort_unstable();
        prefixes.dedup();
        DoneSet { prefixes }
    }

    /// Whether a row is in it. Among a million rows one in ten million sets errs once; the merge
    /// notices.
    pub fn contains(&self, key: Key) -> bool {
        self.prefixes.binary_search(&key.prefix()).is_ok()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }
}

/// The rows of a file.
pub struct FileSource {
    path: PathBuf,
    lines: Lines<File>,
    options: Arc<RowOptions>,
    done: Arc<DoneSet>,
    skipped_rows: u64,
    mean: MeanCost,
    /// Where a row is known to begin, if the reader stands there.
    begin: Option<u64>,
}

/// Rows and bytes that one call passes at most, so that messages are answered in between.
const READ_ROWS_MAX: u64 = 1024;
const READ_BYTES_MAX: u64 = 1 << 20;

impl FileSource {
    /// Opens the file; rows in `done` are passed over.
    ///
    /// # Errors
    /// It cannot be opened, or is no file.
    pub fn open(
        path: &Path,
        options: Arc<RowOptions>,
        done: Arc<DoneSet>,
    ) -> Result<FileSource, Error> {
        let read = |error| Error::read(path, error);
        let file = File::open(path).map_err(read)?;
        if !file.metadata().map_err(read)?.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let (path, lines) = (path.to_owned(), Lines::rows(file));
        let (mean, begin) = (MeanCost::default(), None);
        Ok(FileSource { path, lines, options, done, skipped_rows: 0, mean, begin })
    }

    /// The file's bytes, as many as it has now.
    ///
    /// # Errors
    /// The file system does not tell.
    pub fn mass(&mut self) -> Result<u64, Error> {
        let metadata = self.lines.bytes().metadata();
        metadata.map(|metadata| metadata.len()).map_err(|error| Error::read(&self.path, error))
    }

    /// More is done than was known.
    pub fn set_done(&mut self, done: Arc<DoneSet>) {
        self.done = done;
    }

    fn read_rows(
        &mut self,
        span: &mut Span,
        max: usize,
        into: &mut Vec<Task>,
    ) -> Result<u64, Error> {
        let failed = |error| Error::read(&self.path, error);
        let (mut skipped, mut passed, most) = (0, 0, into.len() + max);
        if self.begin.take() != Some(span.start) {
            self.lines.seek_line(span.start, span.end).map_err(failed)?;
        }
        let first = self.lines.position();
        let end = span.end.min(first.saturating_add(READ_BYTES_MAX));
        while self.lines.position() < end && into.len() < most && passed < READ_ROWS_MAX {
            let Some(line) = self.lines.next().map_err(failed)? else {
                return Err(Error::Shrunk { path: self.path.clone(), at: self.lines.position() });
            };
            passed += 1;
            self.begin = line.ended.then_some(line.at + line.mass);
            let Some(row) = line.row() else {
                skipped += line.mass;
                continue;
            };
            if !self.done.is_empty() && self.done.contains(self.options.key(&row)) {
                self.skipped_rows += 1;
                skipped += line.mass;
                continue;
            }
            let size = row::estimate(&row, &self.options);
            let mass = u32::try_from(line.mass).unwrap_or(u32::MAX);
            skipped += line.mass - u64::from(mass);
            let cost_us = self.mean.add(size);
            into.push(Task { at: line.at, mass, cost_us, size, body: None });
        }
        self.mean.passed(self.lines.position().saturating_sub(first));
        // The last row may end beyond the span, where another one goes on.
        span.start = self.lines.position().min(span.end);
        Ok(skipped)
    }

    fn read_body(&mut self, task: &Task) -> Result<Vec<u8>, Error> {
        let whole = task.mass as usize;
        let is_overlong = whole > HTTP_BODY_BYTES_MAX;
        let mut body = vec![0; if is_overlong { row::HEAD_BYTES } else { whole }];
        match self.lines.bytes().read_exact_at(&mut body, task.at) {
            Ok(()) if is_overlong => Ok(row::overlong(&body, u64::from(task.mass))),
            Ok(()) => Ok(body),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(Error::Shrunk { path: self.path.clone(), at: task.at })
            }
            Err(error) => Err(Error::read(&self.path, error)),
        }
    }
}

impl Source for FileSource {
    fn read(&mut self, span: &mut Span, max: usize, into: &mut Vec<Task>) -> Result<u64, String> {
        assert_eq!(span.stride, 0, "rows of a file lie in bytes");
        self.read_rows(span, max, into).map_err(|error| error.to_string())
    }

    fn is_uniform(&self) -> bool {
        false
    }

    fn cost_us(&self, task: &Task) -> u32 {
        self.mean.model.estimate(&task.size)
    }

    fn cost_us_per_mass(&self) -> f64 {
        self.mean.per_byte
    }

    fn embed(&mut self, task: &mut Task) -> Result<(), String> {
        let body = self.read_body(task).map_err(|error| error.to_string())?;
        task.body = Some(body.into_boxed_slice());
        Ok(())
    }

    fn measured(&mut self, size: Size, busy_us: u64) {
        self.mean.measured(size, busy_us);
    }

    fn skipped_rows(&self) -> u64 {
        self.skipped_rows
    }
}

/// What a byte of the input costs: that of the rows read so far, priced as tasks are priced now.
struct MeanCost {
    model: Model,
    /// Rows of one class, with and without a bound on their answers: the sums of their sizes.
    kinds: BTreeMap<(u16, bool), Sum>,
    bytes: u64,
    per_byte: f64,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    rows: u64,
    prompt: u64,
    tokens: u64,
}

/// A row of some 200 bytes that asks for some 100 tokens on a small machine.
const PER_BYTE_US: f64 = 10_000.0;
/// More kinds than this count as one.
const KINDS_MAX: usize = 64;

impl Default for MeanCost {
    fn default() -> MeanCost {
        let (model, kinds) = (Model::new(), BTreeMap::new());
        MeanCost { model, kinds, bytes: 0, per_byte: PER_BYTE_US }
    }
}

impl MeanCost {
    /// Counts a row, and estimates it.
    fn add(&mut self, size: Size) -> u32 {
        let kind = (size.class, size.tokens == 0);
        let is_known = self.kinds.len() < KINDS_MAX || self.kinds.contains_key(&kind);
        let kind = if is_known { kind } else { (0, size.tokens == 0) };
        let sum = self.kinds.entry(kind).or_default();
        sum.rows += 1;
        sum.prompt += u64::from(size.prompt);
        sum.tokens += u64::from(size.tokens);
        self.model.estimate(&size)
    }

    /// Counts bytes that were read, rows that need not be asked among them.
    fn passed(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.price();
    }

    fn measured(&mut self, size: Size, busy_us: u64) {
        let before = self.model.version();
        self.model.measured(&size, busy_us);
        if self.model.version() != before {
            self.price();
        }
    }

    fn price(&mut self) {
        if self.bytes == 0 || self.kinds.is_empty() {
            return;
        }
        let mut sum_us = 0.0;
        for (&(class, _), sum) in &self.kinds {
            let mean = |total: u64| u32::try_from(total.div_ceil(sum.rows)).unwrap_or(u32::MAX);
            let size = Size { prompt: mean(sum.prompt), tokens: mean(sum.tokens), class };
            sum_us += sum.rows as f64 * f64::from(self.model.estimate(&size));
        }
        self.per_byte = sum_us / self.bytes as f64;
    }
}

/// The same prompt many times; a request is its number.
pub struct RepeatSource {
    prompt: Arc<str>,
    size: Size,
    options: Arc<RowOptions>,
    done: Arc<DoneSet>,
    skipped_rows: u64,
    model: Model,
}

impl RepeatSource {
    /// Requests of this prompt, as `row::prompt_line` has them; those in `done` are passed over.
    pub fn new(prompt: Arc<str>, options: Arc<RowOptions>, done: Arc<DoneSet>) -> RepeatSource {
        let size = row::estimate(&row::prompt_line(&prompt, 0), &options);
        RepeatSource { prompt, size, options, done, skipped_rows: 0, model: Model::new() }
    }

    /// More is done than was known.
    pub fn set_done(&mut self, done: Arc<DoneSet>) {
        self.done = done;
    }
}

impl Source for RepeatSource {
    fn read(&mut self, span: &mut Span, max: usize, into: &mut Vec<Task>) -> Result<u64, String> {
        assert_ne!(span.stride, 0, "requests have numbers");
        let (mut skipped, most) = (0, into.len() + max);
        while !span.is_empty() && into.len() < most && skipped < READ_ROWS_MAX {
            let at = span.start;
            span.start = at.saturating_add(u64::from(span.stride));
            let is_done = !self.done.is_empty()
                && self.done.contains(row::prompt_key(&self.options, &self.prompt, at));
            if is_done {
                skipped += 1;
                continue;
            }
            let cost_us = self.model.estimate(&self.size);
            into.push(Task { at, mass: 1, cost_us, size: self.size, body: None });
        }
        self.skipped_rows += skipped;
        Ok(skipped)
    }

    fn is_uniform(&self) -> bool {
        true
    }

    fn cost_us(&self, task: &Task) -> u32 {
        self.model.estimate(&task.size)
    }

    fn cost_us_per_mass(&self) -> f64 {
        f64::from(self.model.estimate(&self.size))
    }

    fn embed(&mut self, _: &mut Task) -> Result<(), String> {
        Ok(())
    }

    fn measured(&mut self, size: Size, busy_us: u64) {
        self.model.measured(&size, busy_us);
    }

    fn skipped_rows(&self) -> u64 {
        self.skipped_rows
    }
}

#[cfg(test)]
mod tests;
