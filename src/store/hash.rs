//! Hashing files: a whole one, or its parts on several cores.
//!
//! A map is hashed without a copy, as fast as from memory; what cannot be mapped is read. Either
//! way a file that shrinks meanwhile is an error (`map.rs`), and one that changes gives another
//! digest.

use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::digest::Digest;

use super::error::Error;
use super::files::{self, File, Meta};
use super::map::Map;
use super::pace::Pace;
use super::record::{Record, part_range};
use super::sha::Hasher;

/// How far something is; others read it while it runs.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes to be done in all.
    pub total: AtomicU64,
    /// Bytes done: hashed, sent or fetched, and checked.
    pub done: AtomicU64,
    /// Of those, bytes that went to or came from the remote.
    pub transferred: AtomicU64,
    /// Of those, bytes of an earlier try that were found good.
    pub reused: AtomicU64,
    /// How fast bytes may come from a remote.
    pub pace: Option<Arc<Pace>>,
}

impl Counters {
    /// Adds to what is done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that came from or went to a remote, and waits if that was too fast.
    pub fn moved(&self, bytes: u64) {
        self.transferred.fetch_add(bytes, Ordering::Relaxed);
        if let Some(pace) = &self.pace {
            pace.moved(bytes);
        }
    }
}

/// Hashed between two looks at how far it is, and read at once where there is no map: fits into the
/// second cache.
pub const PIECE_BYTES: usize = 256 << 10;

/// A file's bytes, wherever they come from.
pub struct Bytes<'a> {
    file: &'a dyn File,
    path: &'a Path,
    map: Option<Map>,
}

impl<'a> Bytes<'a> {
    /// Of an open file; `path` is for messages.
    pub fn of(file: &'a dyn File, path: &'a Path) -> Bytes<'a> {
        Bytes { file, path, map: file.map() }
    }

    /// Where the file is, for messages.
    pub fn path(&self) -> &Path {
        self.path
    }

    /// Gives a range to `take`, in pieces of `PIECE_BYTES` at most. What it was given is worth
    /// nothing if this returns an error.
    ///
    /// # Errors
    /// The file ends earlier, or cannot be read.
    pub fn each(&self, start: u64, len: u64, mut take: impl FnMut(&[u8])) -> Result<(), Error> {
        let mut buffer = Vec::new();
        let (mut at, end) = (start, start + len);
        while at < end {
            let count = (PIECE_BYTES as u64).min(end - at) as usize;
            match &self.map {
                Some(map) => {
                    let piece = map.bytes().get(at as usize..at as usize + count);
                    take(piece.ok_or_else(|| self.shrunk(at))?);
                    if map.is_torn() {
                        return Err(self.shrunk(at));
                    }
                }
                None => {
                    buffer.resize(count, 0);
                    let read = files::read_full(self.file, &mut buffer, at);
                    let read = read.map_err(|error| Error::io("read", self.path, error))?;
                    if read < count {
                        return Err(self.shrunk(at + read as u64));
                    }
                    take(&buffer);
                }
            }
            at += count as u64;
        }
        Ok(())
    }

    /// Feeds a range to a hash, and counts it.
    ///
    /// # Errors
    /// As `each`.
    pub fn hash(
        &self,
        start: u64,
        len: u64,
        hasher: &mut Hasher,
        counters: &Counters,
    ) -> Result<(), Error> {
        self.each(start, len, |piece| {
            hasher.update(piece);
            counters.add(piece.len() as u64);
        })
    }

    /// Of a range alone.
    ///
    /// # Errors
    /// As `hash`.
    pub fn digest(&self, start: u64, len: u64, counters: &Counters) -> Result<Digest, Error> {
        let mut hasher = Hasher::new();
        self.hash(start, len, &mut hasher, counters)?;
        Ok(hasher.finish())
    }

    fn shrunk(&self, at: u64) -> Error {
        let how = format!("it ends near byte {at}, or that byte cannot be read");
        Error::Changed { path: self.path.to_owned(), how }
    }
}

/// The digest of a whole file, on one core.
///
/// # Errors
/// It cannot be read, or changed meanwhile.
pub fn hash_file(file: &dyn File, path: &Path, counters: &Counters) -> Result<Digest, Error> {
    let before = meta(file, path)?;
    let digest = Bytes::of(file, path).digest(0, before.size, counters)?;
    unchanged(&before, file, path)?;
    Ok(digest)
}

/// What is known of an open file.
///
/// # Errors
/// As fstat(2).
pub fn meta(file: &dyn File, path: &Path) -> Result<Meta, Error> {
    file.meta().map_err(|error| Error::io("look at", path, error))
}

/// Whether a file is still the one it was.
///
/// # Errors
/// How it is not.
pub fn unchanged(before: &Meta, file: &dyn File, path: &Path) -> Result<(), Error> {
    let now = meta(file, path)?;
    let how = if now.size != before.size {
        format!("it had {} bytes and has {}", before.size, now.size)
    } else if now.modified != before.modified || now.changed_ns != before.changed_ns {
        // A new name or fewer of them changes this too; the bytes were then the same.
        if now.modified == before.modified && now.links != before.links {
            return Ok(());
        }
        "its time of change is another".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::Changed { path: path.to_owned(), how })
}

/// Checks parts of a file against its record on several cores; those that are damaged come back,
/// sorted. A file of another length than the record's is damaged from where it differs on.
///
/// # Errors
/// It cannot be read.
pub fn damaged_parts(
    file: &dyn File,
    path: &Path,
    record: &Record,
    wanted: &[u32],
    threads: usize,
    counters: &Counters,
) -> Result<Vec<u32>, Error> {
    let size = meta(file, path)?.size;
    let bytes = Bytes::of(file, path);
    let (next, damaged) = (AtomicU32::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<(), Error> {
        while let Some(&index) = wanted.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let (start, len) = part_range(record.size, record.part_size, index);
            let is_there = start + len as u64 <= size;
            let is_fine = is_there
                && bytes.digest(start, len as u64, counters)? == record.parts[index as usize];
            if !is_fine {
                lock(&damaged).push(index);
            }
        }
        Ok(())
    };
    let results = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.min(wanted.len())).map(|_| scope.spawn(work)).collect();
        let first = work();
        let joined = helpers.into_iter().map(|helper| helper.join().expect("it does not panic"));
        joined.fold(first, Result::and)
    });
    results?;
    let mut damaged = damaged.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    damaged.sort_unstable();
    Ok(damaged)
}

/// Locks; a thread that panicked ends the process, so nothing half-done is ever seen.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PART_BYTES_LEAST;
    use crate::store::files::{Disk, Files};
    use crate::store::record::Layout;
    use crate::store::test_folder;

    #[test]
    fn whole_and_parts_and_what_is_damaged() {
        let folder = test_folder("hash");
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = Disk.open(&path).unwrap();
        let counters = Counters::default();
        assert_eq!(hash_file(&*file, &path, &counters).unwrap(), Digest::of(&bytes));
        assert_eq!(counters.done.load(Ordering::Relaxed), 300_000);
        let part = PART_BYTES_LEAST as usize;
        let parts: Vec<Digest> = bytes.chunks(part).map(Digest::of).collect();
        let record = Record::new(300_000, PART_BYTES_LEAST, Layout::File, parts);
        let all: Vec<u32> = (0..5).collect();
        let check = |threads| {
            let file = Disk.open(&path).unwrap();
            damaged_parts(&*file, &path, &record, &all, threads, &counters).unwrap()
        };
        assert_eq!((check(1), check(3)), (vec![], vec![]));
        let mut torn = bytes.clone();
        torn[2 * part] ^= 1;
        std::fs::write(&path, &torn).unwrap();
        assert_eq!((check(1), check(9)), (vec![2], vec![2]));
        std::fs::write(&path, &torn[..3 * part]).unwrap();
        assert_eq!(check(2), vec![2, 3, 4]);
    }

    #[test]
    fn a_file_that_changes_is_an_error() {
        let folder = test_folder("changes");
        let path = folder.path().join("file");
        std::fs::write(&path, vec![0; 2 << 20]).unwrap();
        let file = Disk.open_write(&path).unwrap();
        let before = meta(&*file, &path).unwrap();
        let bytes = Bytes::of(&*file, &path);
        file.set_len(1 << 20).unwrap();
        let counters = Counters::default();
        let torn = bytes.digest(0, 2 << 20, &counters).unwrap_err().to_string();
        assert!(torn.contains("changed while it was read"), "{torn}");
        let shrunk = unchanged(&before, &*file, &path).unwrap_err().to_string();
        assert!(shrunk.contains("had 2097152 bytes and has 1048576"), "{shrunk}");
        file.set_len(2 << 20).unwrap();
        assert!(unchanged(&before, &*file, &path).is_err(), "it was touched meanwhile");
    }
}
