//! One output of all parts.
//!
//! ```text
//!   input  --each row-->  key --index--> the line that counts --+--> <output>.merging  -> output
//!                                                               '--> <errors>.merging  -> errors
//! ```
//!
//! The old output and the old error file are parts too: after an earlier merge their lines are the
//! only copies. Nothing is removed before what replaces it is on the disk under its name, so the
//! merge can stop anywhere, and be done again.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Error;
use super::journal::{LOCK, parent, sync_folder};
use super::lines::Lines;
use super::recorded::{parts, sources};
use super::result::{DUPLICATE, FailedRow, Failure};
use super::row::{self, Key, Members, RowOptions};
use super::spool;
use crate::prng;

mod index;
use index::{Found, Index};

/// What a merge is made of.
#[derive(Clone, Debug)]
pub struct MergePlan {
    /// Which rows are wanted.
    pub input: Rows,
    /// What the command line added to them.
    pub options: Arc<RowOptions>,
    /// The job's folder.
    pub folder: PathBuf,
    /// Where answers go.
    pub output: PathBuf,
    /// Where failures go.
    pub errors: PathBuf,
    /// In the order of the input; else in that of completion.
    pub ordered: bool,
}

/// Which rows are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Those of a file.
    File(PathBuf),
    /// A prompt, so many times.
    Prompt {
        /// It.
        prompt: String,
        /// How many times.
        count: u64,
    },
    /// Whatever was recorded.
    Recorded,
}

/// What a merge found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Rows with an answer; they are in the output.
    pub ok: u64,
    /// Good rows without one; they, and the next two, are in the error file.
    pub failed: u64,
    /// Rows that could not be asked.
    pub bad: u64,
    /// Rows with the custom_id of an earlier one.
    pub duplicates: u64,
    /// Rows that nothing was recorded of: the job is not complete, and its parts were kept.
    pub missing: u64,
    /// Recorded lines that are in neither file any more: a better one is, or the row is gone.
    pub superseded: u64,
    /// Rows with a result that the input does not have any more: their lines are dropped.
    pub dropped: u64,
    /// Lines that were not written to their end.
    pub torn: u64,
}

/// Makes output and error file of all that was recorded. If no row is missing, the job's folder is
/// removed.
///
/// # Errors
/// A file cannot be read or written; nothing is lost.
pub fn merge(plan: &MergePlan) -> Result<Merged, Error> {
    let merged = Merge::run(plan, &mut |_| Ok(()));
    if merged.is_err() {
        // The room may be needed; what was in them is made again.
        for path in [&plan.output, &plan.errors] {
            let _ = fs::remove_file(temporary(&resolved(path)));
        }
    }
    merged
}

/// Asked before each change to the disk, of the file that changes: a test stops here.
type Step<'a> = &'a mut dyn FnMut(&Path) -> io::Result<()>;

fn step(step: &mut Step<'_>, path: &Path) -> Result<(), Error> {
    step(path).map_err(|error| Error::write(path, error))
}

struct Merge<'a> {
    plan: &'a MergePlan,
    steps: Step<'a>,
    index: Index,
    output: Sink,
    errors: Sink,
    merged: Merged,
}

impl<'a> Merge<'a> {
    fn run(plan: &'a MergePlan, mut steps: Step<'a>) -> Result<Merged, Error> {
        let (output, errors) = (resolved(&plan.output), resolved(&plan.errors));
        let mut duplicates = match &plan.input {
            Rows::File(path) => Some(Duplicates::suspected(path, &plan.options)?),
            Rows::Prompt { .. } | Rows::Recorded => None,
        };
        let index = Index::of(sources(&plan.folder, &output, &errors)?)?;
        let output = Sink::create(output, &mut steps)?;
        let errors = Sink::create(errors, &mut steps)?;
        let merged = Merged { torn: index.torn, ..Merged::default() };
        let mut merge = Merge { plan, steps, index, output, errors, merged };
        match &plan.input {
            Rows::File(path) => {
                each_row(path, |line, at, row| merge.add_row(line, at, row, duplicates.as_mut()))?
            }
            Rows::Prompt { prompt, count } => {
                for number in 0..*count {
                    let key = row::prompt_key(&plan.options, prompt, number);
                    merge.add(key, number + 1, &row::prompt_line(prompt, number))?;
                }
            }
            Rows::Recorded => merge.add_recorded()?,
        }
        merge.finish()
    }

    fn add_row(
        &mut self,
        line: u64,
        at: u64,
        row: &[u8],
        duplicates: Option<&mut Duplicates>,
    ) -> Result<(), Error> {
        let key = self.plan.options.key(row);
        let custom_id = match row::peek(row, &self.plan.options) {
            Ok(peek) => peek.custom_id,
            Err(bad) => {
                self.merged.bad += 1;
                return self.fail(Some(key), line, row, &failure("bad_row", bad.message));
            }
        };
        if let Some(duplicates) = duplicates
            && let Some(first) = duplicates.first(&custom_id, line, at)?
        {
            self.merged.duplicates += 1;
            let message = format!(
                "the custom_id {custom_id:?} is that of line {}: only that row counts",
                first.line
            );
            // Its line must not stand for the first row's result, nor for one that it never had.
            let is_own = first.key != key && self.index.find(key)?.is_some();
            return self.fail(is_own.then_some(key), line, row, &failure(DUPLICATE, message));
        }
        self.add(key, line, row)
    }

    /// Adds a row that may have been asked.
    fn add(&mut self, key: Key, line: u64, row: &[u8]) -> Result<(), Error> {
        match self.index.find(key)? {
            None => {
                self.merged.missing += 1;
                Ok(())
            }
            Some(found) if found.ok => self.succeed(found),
            Some(found) => {
                self.merged.failed += 1;
                let mut failure = Failure::of(self.index.line(found)?);
                if failure.code == DUPLICATE {
                    failure.message = "the row's custom_id was that of an earlier row, which is \
                                       gone: --retry-failed asks for it"
                        .to_owned();
                }
                self.fail(Some(key), line, row, &failure)
            }
        }
    }

    /// Adds all that was recorded, each key once.
    fn add_recorded(&mut self) -> Result<(), Error> {
        for number in 0..self.index.len() {
            let at = self.index.at(number);
            let Some(key) = super::result::recorded_key(self.index.line(at)?) else { continue };
            if self.index.find(key)? != Some(at) {
                continue;
            }
            if at.ok {
                self.succeed(at)?;
                continue;
            }
            let line = self.index.line(at)?.to_vec();
            self.merged.failed += 1;
            self.fail(Some(key), number as u64 + 1, &line, &Failure::of(&line))?;
        }
        Ok(())
    }

    fn succeed(&mut self, found: Found) -> Result<(), Error> {
        self.merged.ok += 1;
        if self.plan.ordered {
            return self.output.push(self.index.line(found)?, &mut self.steps);
        }
        self.index.choose(found);
        Ok(())
    }

    fn fail(
        &mut self,
        key: Option<Key>,
        line: u64,
        row: &[u8],
        failure: &Failure,
    ) -> Result<(), Error> {
        let (members, fault) = Members::of(row);
        let members = fault.is_none().then_some(members);
        let mut out = Vec::new();
        failure.encode(&mut out, &FailedRow { line, key, members, text: row });
        self.errors.push(&out, &mut self.steps)
    }

    fn finish(mut self) -> Result<Merged, Error> {
        let (lines, used) = (self.index.len() as u64, self.merged.ok + self.merged.failed);
        self.merged.superseded = lines.saturating_sub(used);
        self.merged.dropped = self.index.unwanted();
        if !self.plan.ordered {
            let (output, steps) = (&mut self.output, &mut self.steps);
            self.index.each_chosen(|line| output.push(line, steps))?;
        }
        // Its files are about to go.
        drop(self.index);
        let mut steps = self.steps;
        let folders = [parent(&self.output.path), parent(&self.errors.path)].map(Path::to_owned);
        self.output.publish(&mut steps)?;
        match self.errors.lines {
            0 => self.errors.discard(&mut steps)?,
            _ => self.errors.publish(&mut steps)?,
        }
        for folder in folders {
            sync_folder(&folder)?;
        }
        if self.merged.missing == 0 {
            clear(&self.plan.folder, &mut steps)?;
        }
        Ok(self.merged)
    }
}

fn failure(code: &str, message: String) -> Failure {
    Failure { code: code.to_owned(), message, status: None }
}

/// Removes a job's folder, the lock last: whoever finds none may begin.
fn clear(folder: &Path, steps: &mut Step<'_>) -> Result<(), Error> {
    for path in parts(folder)?.into_iter().chain([folder.join(spool::FILE), folder.join(LOCK)]) {
        step(steps, &path)?;
        remove(&path)?;
    }
    step(steps, folder)?;
    // A job that has begun just now, or a file of the user's, keeps it.
    let _ = fs::remove_dir(folder);
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::write(path, error)),
        _ => Ok(()),
    }
}

/// A link stays one: its file is replaced.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".merging");
    PathBuf::from(name)
}

/// A file that takes its name when it is whole.
struct Sink {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
    lines: u64,
}

impl Sink {
    fn create(path: PathBuf, steps: &mut Step<'_>) -> Result<Sink, Error> {
        let temporary = temporary(&path);
        step(steps, &temporary)?;
        let file = File::create(&temporary).map_err(|error| Error::write(&temporary, error))?;
        let writer = BufWriter::with_capacity(1 << 20, file);
        Ok(Sink { path, temporary, writer, lines: 0 })
    }

    fn push(&mut self, line: &[u8], steps: &mut Step<'_>) -> Result<(), Error> {
        step(steps, &self.temporary)?;
        self.lines += 1;
        let end: &[u8] = if line.ends_with(b"\n") { b"" } else { b"\n" };
        let written = self.writer.write_all(line).and_then(|()| self.writer.write_all(end));
        written.map_err(|error| Error::write(&self.temporary, error))
    }

    fn publish(mut self, steps: &mut Step<'_>) -> Result<(), Error> {
        step(steps, &self.temporary)?;
        let flushed = self.writer.flush().and_then(|()| self.writer.get_ref().sync_all());
        flushed.map_err(|error| Error::write(&self.temporary, error))?;
        step(steps, &self.path)?;
        fs::rename(&self.temporary, &self.path).map_err(|error| Error::write(&self.path, error))
    }

    /// Nothing is in it: nothing shall be there.
    fn discard(self, steps: &mut Step<'_>) -> Result<(), Error> {
        step(steps, &self.path)?;
        remove(&self.temporary)?;
        step(steps, &self.path)?;
        remove(&self.path)
    }
}

/// Tells each row of a file: its line from 1, where it begins, and what it says.
fn each_row(
    path: &Path,
    mut each: impl FnMut(u64, u64, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let read = |error| Error::read(path, error);
    let mut lines = Lines::rows(File::open(path).map_err(read)?);
    let mut number = 0;
    while let Some(line) = lines.next().map_err(read)? {
        number += 1;
        if let Some(row) = line.row() {
            each(number, line.at, &row)?;
        }
    }
    Ok(())
}

/// Finds rows with the custom_id of an earlier one, in 8 bytes a row: a first look at the input
/// tells which hashes occur twice, and only what has one of those is remembered and compared.
struct Duplicates {
    path: PathBuf,
    options: Arc<RowOptions>,
    rows: Lines<File>,
    /// Hashes that occur twice, sorted.
    suspects: Vec<u64>,
    /// Of each of them the line of its first row, 0 before that came, and where that begins.
    firsts: Vec<(u64, u64)>,
    /// Rows with the hash of a first row and another custom_id: few, if the hash is good.
    others: Vec<(u64, u64, u64)>,
}

struct First {
    line: u64,
    key: Key,
}

impl Duplicates {
    fn suspected(path: &Path, options: &Arc<RowOptions>) -> Result<Duplicates, Error> {
        let read = |error| Error::read(path, error);
        let mut rows = Lines::rows(File::open(path).map_err(read)?);
        let mut hashes = Vec::with_capacity(rows.count().map_err(read)?);
        each_row(path, |_, _, row| {
            if let Ok(peek) = row::peek(row, options) {
                hashes.push(prng::hash(0, peek.custom_id.as_bytes()));
            }
            Ok(())
        })?;
        hashes.sort_unstable();
        let twice = hashes.chunk_by(|a, b| a == b).filter(|same| same.len() > 1);
        let suspects: Vec<u64> = twice.map(|same| same[0]).collect();
        let firsts = vec![(0, 0); suspects.len()];
        let (path, options) = (path.to_owned(), Arc::clone(options));
        Ok(Duplicates { path, options, rows, suspects, firsts, others: Vec::new() })
    }

    /// The first row with this custom_id; if there is none it is the one that begins at `at`.
    fn first(&mut self, custom_id: &str, line: u64, at: u64) -> Result<Option<First>, Error> {
        let hash = prng::hash(0, custom_id.as_bytes());
        let Ok(index) = self.suspects.binary_search(&hash) else { return Ok(None) };
        if self.firsts[index].0 == 0 {
            self.firsts[index] = (line, at);
            return Ok(None);
        }
        let others = self.others.iter().filter(|other| other.0 == hash).map(|o| (o.1, o.2));
        let candidates: Vec<(u64, u64)> = [self.firsts[index]].into_iter().chain(others).collect();
        for (line, begin) in candidates {
            self.rows.seek(begin);
            let found = self.rows.next().map_err(|error| Error::read(&self.path, error))?;
            let row = found.and_then(|line| line.row()).unwrap_or_default();
            if row::peek(&row, &self.options).is_ok_and(|peek| peek.custom_id == custom_id) {
                return Ok(Some(First { line, key: self.options.key(&row) }));
            }
        }
        self.others.push((hash, line, at));
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
