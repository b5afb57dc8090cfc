//! A look at the whole input before the job: what is wrong in it, and how much work it is.
//!
//! It reads the input once, so it can read a pipe; of each row it keeps a hash of the custom_id and
//! the line, at most 24 bytes in all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::Error;
use super::lines::{Bytes, Lines, Pipe};
use super::row::{self, RowOptions};
use crate::prng;
use crate::sched::cost::Model;

/// Something wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its line, from 1.
    pub line: u64,
    /// The user's name of it, where it has one.
    pub custom_id: Option<String>,
    /// What.
    pub message: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validation {
    /// Rows, good and bad; blank lines are none.
    pub rows: u64,
    /// Rows that cannot be asked.
    pub bad: u64,
    /// Rows with the custom_id of an earlier one.
    pub duplicates: u64,
    /// Bytes of the input.
    pub bytes: u64,
    /// Good rows by the path that they call.
    pub urls: BTreeMap<String, u64>,
    /// Good rows by their model; those that name none under "".
    pub models: BTreeMap<String, u64>,
    /// Bytes of all prompts.
    pub prompt_bytes: u64,
    /// Tokens of all answers at most, of rows that set a bound.
    pub tokens_max: u64,
    /// Good rows that set none.
    pub unbounded: u64,
    /// Estimated microseconds of one slot, all rows one after another. Nothing is measured yet: it
    /// is the order of magnitude of a small machine.
    pub work_us: u64,
    /// Of the longest row.
    pub longest_us: u64,
}

/// Models that are told apart; more count as one.
const MODELS_MAX: usize = 1000;
const OTHER_MODELS: &str = "(others)";

/// Looks at a file, and tells what is wrong in the order of the lines.
///
/// # Errors
/// It cannot be read.
pub fn validate(
    path: &Path,
    options: &RowOptions,
    on_fault: impl FnMut(Fault),
) -> Result<Validation, Error> {
    let file = File::open(path).map_err(|error| Error::read(path, error))?;
    let is_file = file.metadata().map_err(|error| Error::read(path, error))?.is_file();
    if !is_file {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    run(Lines::rows(file), options, on_fault).map_err(|error| Error::read(path, error))
}

/// Looks at rows that come from a pipe.
///
/// # Errors
/// The pipe failed.
pub fn validate_pipe(
    pipe: impl Read,
    options: &RowOptions,
    on_fault: impl FnMut(Fault),
) -> Result<Validation, Error> {
    let checked = run(Lines::rows(Pipe(pipe)), options, on_fault);
    checked.map_err(|error| Error::Pipe { error: std::sync::Arc::new(error) })
}

fn run<B: Bytes>(
    mut lines: Lines<B>,
    options: &RowOptions,
    mut on_fault: impl FnMut(Fault),
) -> std::io::Result<Validation> {
    let (mut found, mut seen, model) = (Validation::default(), Seen::new(), Model::new());
    let mut number = 0;
    while let Some(line) = lines.next()? {
        number += 1;
        found.bytes += line.mass;
        let Some(row) = line.row() else { continue };
        found.rows += 1;
        let peek = match row::peek(&row, options) {
            Ok(peek) => peek,
            Err(bad) => {
                found.bad += 1;
                on_fault(Fault { line: number, custom_id: bad.custom_id, message: bad.message });
                continue;
            }
        };
        if let Some(first) = seen.first(&peek.custom_id, number) {
            found.duplicates += 1;
            let custom_id = Some(peek.custom_id.clone().into_owned());
            let message = format!("the custom_id is that of line {first}");
            on_fault(Fault { line: number, custom_id, message });
        }
        count(&mut found.urls, peek.url);
        count(&mut found.models, peek.model.as_deref().unwrap_or_default());
        found.prompt_bytes += u64::from(peek.size.prompt);
        found.tokens_max += u64::from(peek.size.tokens);
        found.unbounded += u64::from(peek.size.tokens == 0);
        let cost_us = u64::from(model.estimate(&peek.size));
        found.work_us += cost_us;
        found.longest_us = found.longest_us.max(cost_us);
    }
    Ok(found)
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    if let Some(count) = counts.get_mut(name) {
        *count += 1;
        return;
    }
    let name = if counts.len() < MODELS_MAX { name } else { OTHER_MODELS };
    *counts.entry(name.to_owned()).or_default() += 1;
}

/// The custom_ids seen so far, as 64 bits each: among a million rows one file in ten million has
/// two that are taken for the same.
///
/// Tables with open addressing, one for each value of a hash's first bits, so that only a small
/// part of all is ever copied to grow. 12 bytes an entry, filled to between 57 and 85 %.
struct Seen {
    shards: Vec<Shard>,
}

#[derive(Default)]
struct Shard {
    /// 0: none.
    hashes: Vec<u64>,
    lines: Vec<u32>,
    count: usize,
}

const SHARD_BITS: u32 = 8;

impl Seen {
    fn new() -> Seen {
        Seen { shards: (0..1 << SHARD_BITS).map(|_| Shard::default()).collect() }
    }

    /// The line that had this custom_id first; else it is remembered.
    fn first(&mut self, custom_id: &str, line: u64) -> Option<u64> {
        let hash = prng::hash(0, custom_id.as_bytes()).max(1);
        let shard = &mut self.shards[(hash >> (64 - SHARD_BITS)) as usize];
        if (shard.count + 1) * 20 > shard.hashes.len() * 17 {
            shard.grow();
        }
        let place = shard.place(hash);
        if shard.hashes[place] == hash {
            return Some(u64::from(shard.lines[place]));
        }
        shard.hashes[place] = hash;
        // Four thousand million lines: beyond, the last of them is named.
        shard.lines[place] = u32::try_from(line).unwrap_or(u32::MAX);
        shard.count += 1;
        None
    }
}

impl Shard {
    /// Where a hash is, or would be.
    fn place(&self, hash: u64) -> usize {
        let mut place = (hash % self.hashes.len() as u64) as usize;
        while self.hashes[place] != 0 && self.hashes[place] != hash {
            place = if place + 1 == self.hashes.len() { 0 } else { place + 1 };
        }
        place
    }

    fn grow(&mut self) {
        let room = (self.hashes.len() * 3 / 2).max(16);
        let mut grown = Shard { hashes: vec![0; room], lines: vec![0; room], count: self.count };
        for (&hash, &line) in self.hashes.iter().zip(&self.lines).filter(|(hash, _)| **hash != 0) {
            let place = grown.place(hash);
            (grown.hashes[place], grown.lines[place]) = (hash, line);
        }
        *self = grown;
    }
}

#[cfg(test)]
mod tests;
