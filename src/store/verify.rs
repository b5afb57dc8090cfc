//! Checks what is stored, by parts on several cores, and mends it part by part.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::digest::Digest;

use super::error::Error;
use super::files::{self, Files};
use super::hash::{Counters, damaged_parts, hash_file, lock};
use super::record::{Record, part_range};
use super::remote::{BlobStat, Remote};
use super::sha::Hasher;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The length; the first part, the last, and one in between that the number chooses.
    Sample(u64),
    /// Every part, against the digests in the record.
    Parts,
    /// Every part, and then all bytes in one go against the blob's own name.
    Whole,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Bytes that were looked at.
    pub checked: u64,
    /// Damaged parts.
    pub damaged: Vec<u32>,
    /// Of those, the ones that were mended.
    pub mended: Vec<u32>,
    /// All parts are fine, and the whole is not: it is longer, or the record is not this blob's.
    pub is_misnamed: bool,
}

impl Findings {
    /// Whether nothing is wrong any more.
    pub fn is_sound(&self) -> bool {
        !self.is_misnamed && self.damaged.len() == self.mended.len()
    }
}

/// The parts that a depth asks for.
fn wanted(record: &Record, depth: Depth) -> Vec<u32> {
    let count = record.parts.len() as u32;
    match depth {
        Depth::Sample(chosen) if count > 3 => {
            let middle = 1 + (chosen % u64::from(count - 2)) as u32;
            vec![0, middle, count - 1]
        }
        _ => (0..count).collect(),
    }
}

fn bytes_of(record: &Record, parts: &[u32]) -> u64 {
    parts.iter().map(|&part| part_range(record.size, record.part_size, part).1 as u64).sum()
}

/// What is checked, and how.
#[derive(Clone, Copy, Debug)]
pub struct Check<'a> {
    /// The blob.
    pub digest: &'a Digest,
    /// What it should be.
    pub record: &'a Record,
    /// How much of it.
    pub depth: Depth,
    /// Threads that hash.
    pub threads: usize,
}

/// Checks a file of this machine.
///
/// # Errors
/// It cannot be read.
pub fn verify_file(
    files: &dyn Files,
    path: &Path,
    check: Check<'_>,
    counters: &Counters,
) -> Result<Findings, Error> {
    let Check { digest, record, depth, threads } = check;
    let file = files.open(path).map_err(|error| Error::io("read", path, error))?;
    let wanted = wanted(record, depth);
    let checked = bytes_of(record, &wanted);
    counters.total.fetch_add(checked, Ordering::Relaxed);
    let damaged = damaged_parts(&*file, path, record, &wanted, threads, counters)?;
    let size = file.meta().map_err(|error| Error::io("look at", path, error))?.size;
    let mut is_misnamed = size > record.size;
    if depth == Depth::Whole && damaged.is_empty() && !is_misnamed {
        counters.total.fetch_add(size, Ordering::Relaxed);
        is_misnamed = hash_file(&*file, path, counters)? != *digest;
    }
    Ok(Findings { checked, damaged, mended: Vec::new(), is_misnamed })
}

/// Checks a blob of a remote; what cannot be opened as a file here is fetched.
///
/// # Errors
/// The remote does not answer.
pub fn verify_remote(
    files: &dyn Files,
    remote: &dyn Remote,
    stat: &BlobStat,
    check: Check<'_>,
    counters: &Counters,
) -> Result<Findings, Error> {
    let Check { digest, record, depth, threads } = check;
    if let Some(path) = remote.local_file(digest) {
        return verify_file(files, &path, check, counters);
    }
    if stat.size != record.size {
        let damaged = (0..record.parts.len() as u32).collect();
        return Ok(Findings { damaged, ..Findings::default() });
    }
    let wanted = wanted(record, depth);
    let checked = bytes_of(record, &wanted);
    counters.total.fetch_add(checked, Ordering::Relaxed);
    let (next, damaged) = (AtomicU32::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<(), Error> {
        while let Some(&part) = wanted.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let (start, len) = part_range(record.size, record.part_size, part);
            let (mut hasher, mut rest) = (Hasher::new(), len as u64);
            let read = remote.read(digest, stat, start, rest, &mut |piece| {
                hasher.update(piece);
                rest -= piece.len() as u64;
                counters.add(piece.len() as u64);
                counters.moved(piece.len() as u64);
                Ok(())
            });
            let is_fine = match read {
                Ok(()) => hasher.finish() == record.parts[part as usize],
                // A remote with checksums of its own does not give out what is damaged.
                Err(Error::Damaged { .. }) => false,
                Err(error) => return Err(error),
            };
            counters.add(rest);
            if !is_fine {
                lock(&damaged).push(part);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let joined = others.into_iter().map(|other| other.join().expect("it does not panic"));
        joined.fold(Ok(()), Result::and)
    })?;
    let mut damaged = damaged.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    damaged.sort_unstable();
    Ok(Findings { checked, damaged, mended: Vec::new(), is_misnamed: false })
}

/// Mends damaged parts of a remote's blob from a file that has them right.
///
/// # Errors
/// The remote refuses, or cannot mend.
pub fn mend(
    files: &dyn Files,
    remote: &dyn Remote,
    digest: &Digest,
    record: &Record,
    good: &Path,
    findings: &mut Findings,
) -> Result<(), Error> {
    let Ok(file) = files.open(good) else { return Ok(()) };
    let stat = remote.stat(digest)?;
    let gone = || Error::NotFound { what: digest.to_string(), at: remote.describe() };
    let stat = BlobStat { record: Some(record.clone()), ..stat.ok_or_else(gone)? };
    let mut buffer = Vec::new();
    for &part in &findings.damaged {
        let (start, len) = part_range(record.size, record.part_size, part);
        buffer.resize(len, 0);
        let read = files::read_full(&*file, &mut buffer, start);
        let count = read.map_err(|error| Error::io("read", good, error))?;
        if count == len && Digest::of(&buffer) == record.parts[part as usize] {
            remote.mend(digest, &stat, part, &buffer)?;
            findings.mended.push(part);
        }
    }
    Ok(())
}
