//! What earlier runs left: parts of the journal, the merged output and the error file.
//!
//! A part may end anywhere: its last line is torn if the machine or the process stopped in it. A
//! torn line is counted and its row is asked again; so is one that says nothing sensible.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::input::DoneSet;
use super::lines::Lines;
use super::result::{self, Recorded};
use super::row::Key;
use crate::limits::{BATCH_BLOCK_BYTES, PART_BYTES_MAX, PARTS_MAX, RESULT_LINE_BYTES_MAX};

/// What is known of earlier runs.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Rows that need not be asked.
    pub done: DoneSet,
    /// Rows with an answer.
    pub ok: u64,
    /// Rows that failed, and did not succeed later.
    pub failed: u64,
    /// Lines that were not written to their end.
    pub torn: u64,
}

/// Reads what earlier runs left. With `retry_failed`, rows that failed are not done.
///
/// # Errors
/// A file cannot be read; or output or error file hold what no job wrote, and would be lost.
pub fn load(
    folder: &Path,
    output: &Path,
    errors: &Path,
    retry_failed: bool,
) -> Result<Loaded, Error> {
    let (mut ok, mut failed, mut torn) = (Vec::new(), Vec::new(), 0);
    for source in sources(folder, output, errors)? {
        torn += source.scan(|_, key, is_ok| {
            push_tightly(if is_ok { &mut ok } else { &mut failed }, key.prefix());
        })?;
    }
    for keys in [&mut ok, &mut failed] {
        keys.sort_unstable();
        keys.dedup();
    }
    failed.retain(|key| ok.binary_search(key).is_err());
    let counts = (ok.len() as u64, failed.len() as u64);
    if !retry_failed {
        failed.drain(..).for_each(|key| push_tightly(&mut ok, key));
    }
    Ok(Loaded { done: DoneSet::new(ok), ok: counts.0, failed: counts.1, torn })
}

/// A file with recorded lines.
#[derive(Clone, Debug)]
pub(super) struct Recording {
    pub path: PathBuf,
    /// Output and error file were written whole, and are a user's: a line that cannot be read
    /// there is no accident.
    pub is_whole: bool,
}

impl Recording {
    /// Tells of each line that has a key where it begins, and whether the row went well; the
    /// number of torn lines comes back.
    pub fn scan(&self, mut each: impl FnMut(u64, Key, bool)) -> Result<u64, Error> {
        let mut lines = self.lines(BATCH_BLOCK_BYTES)?;
        let (mut torn, mut number) = (0, 0);
        while let Some(line) = lines.next().map_err(|error| Error::read(&self.path, error))? {
            number += 1;
            let is_complete = line.ended || self.is_whole;
            match result::recorded(line.bytes).filter(|_| is_complete) {
                Some(Recorded { key: Some(key), ok }) => each(line.at, key, ok),
                Some(Recorded { key: None, .. }) => {}
                None if self.is_whole && !line.bytes.trim_ascii().is_empty() => {
                    return Err(Error::Foreign { path: self.path.clone(), line: number });
                }
                None => torn += u64::from(!self.is_whole),
            }
        }
        Ok(torn)
    }

    /// How many lines it has.
    pub fn count(&self) -> Result<usize, Error> {
        let counted = self.lines(BATCH_BLOCK_BYTES)?.count();
        counted.map_err(|error| Error::read(&self.path, error))
    }

    /// Its lines, read in blocks of so many bytes.
    pub fn lines(&self, block: usize) -> Result<Lines<File>, Error> {
        let file = File::open(&self.path).map_err(|error| Error::read(&self.path, error))?;
        Ok(Lines::new(file, block, RESULT_LINE_BYTES_MAX))
    }
}

/// The files in which results may be, from the oldest to the newest.
pub(super) fn sources(
    folder: &Path,
    output: &Path,
    errors: &Path,
) -> Result<Vec<Recording>, Error> {
    if output == errors {
        return Err(Error::SamePath { path: output.to_owned() });
    }
    let mut sources = Vec::new();
    for path in [output, errors] {
        if is_file(path)? {
            sources.push(Recording { path: path.to_owned(), is_whole: true });
        }
    }
    let parts = numbered(folder, parts(folder)?, PARTS_MAX)?;
    sources.extend(parts.into_iter().map(|path| Recording { path, is_whole: false }));
    for source in &sources {
        let length = fs::metadata(&source.path).map_err(|e| Error::read(&source.path, e))?.len();
        if length >= PART_BYTES_MAX {
            let path = source.path.clone();
            return Err(Error::Length { path, bytes: length, limit: PART_BYTES_MAX });
        }
    }
    Ok(sources)
}

fn numbered(folder: &Path, parts: Vec<PathBuf>, limit: usize) -> Result<Vec<PathBuf>, Error> {
    if parts.len() > limit {
        let (folder, count) = (folder.to_owned(), parts.len());
        return Err(Error::Parts { folder, count, limit });
    }
    Ok(parts)
}

/// Whether a file is there; what is there and no file must not be replaced by one.
fn is_file(path: &Path) -> Result<bool, Error> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(true),
        Ok(_) => Err(Error::NotAFile { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::read(path, error)),
    }
}

/// The parts in a job's folder, in the order of their times; none if there is no folder.
pub(super) fn parts(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::read(folder, error)),
    };
    let mut parts = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| Error::read(folder, error))?.file_name();
        let is_part = name
            .to_str()
            .is_some_and(|name| name.starts_with(PART_PREFIX) && name.ends_with(PART_SUFFIX));
        if is_part {
            parts.push(folder.join(name));
        }
    }
    parts.sort();
    Ok(parts)
}

/// How a part's name begins.
pub(super) const PART_PREFIX: &str = "part-";
/// How it ends.
pub(super) const PART_SUFFIX: &str = ".jsonl";

/// Adds to a list that may become large: it grows by an eighth, not to the double.
pub(super) fn push_tightly<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 8 + 1024);
    }
    list.push(item);
}

#[cfg(test)]
mod tests;
