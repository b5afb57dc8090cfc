//! Stores a file as a blob: reads it once, hashes it whole and in parts, and sends the parts, all
//! from the same buffers. So what is sent is what was hashed, whatever happens to the file
//! meanwhile.
//!
//! ```text
//!   file ──read──► buffer of a part ──► digest of the part ──► remote        several threads
//!                        │
//!                        └──in order──► digest of the whole                   one thread
//! ```
//!
//! Into a file of this machine the system copies each part, and it is hashed there, from a map: the
//! file is the buffer then.
//!
//! Where the remote has a blob of the same length, the file is hashed first: most likely it is
//! there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::digest::Digest;

use super::error::Error;
use super::files::{self, File, Files, Meta};
use super::hash::{Bytes, Counters, PIECE_BYTES, hash_file, lock, meta, unchanged};
use super::record::{Layout, Record, check_parts, part_count, part_range};
use super::remote::{PartSink, Remote, Upload};
use super::sha::{self, Hasher};

/// A file that is about to be stored.
pub struct Source {
    path: PathBuf,
    file: Box<dyn File>,
    before: Meta,
}

impl Source {
    /// Opens it.
    ///
    /// # Errors
    /// It cannot be opened, or is no file.
    pub fn open(files: &dyn Files, path: &Path) -> Result<Source, Error> {
        let there = files.stat(path).map_err(|error| Error::io("read", path, error))?;
        if !there.is_file {
            // Opening a pipe would wait for its other end.
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let file = files.open(path).map_err(|error| Error::io("read", path, error))?;
        let before = meta(&*file, path)?;
        Ok(Source { path: path.to_owned(), file, before })
    }

    /// Its bytes, when it was opened.
    pub fn size(&self) -> u64 {
        self.before.size
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &dyn File {
        &*self.file
    }

    /// Names what it is now: disk, number, length and time of change.
    fn key(&self, part_size: u64) -> Digest {
        let Meta { id, size, changed_ns, .. } = self.before;
        Digest::of(format!("{}:{}:{size}:{changed_ns}:{part_size}", id.0, id.1).as_bytes())
    }
}

/// A blob that is stored now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub digest: Digest,
    /// Its record, as it was computed here or found there.
    pub record: Record,
    /// It was there already.
    pub was_there: bool,
}

/// How a blob is sent.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Bytes of each part but the last.
    pub part_size: u64,
    /// Threads that read, hash and send parts.
    pub threads: usize,
    /// The remote may have it already: look, before anything is sent.
    pub may_be_there: bool,
}

/// Stores a file as a blob. It returns once the blob is there, whole and durable.
///
/// # Errors
/// The file changed; the remote failed. Parts that were sent stay for the next try.
pub fn put_blob(
    remote: &dyn Remote,
    source: &Source,
    sending: Sending,
    counters: &Counters,
) -> Result<Stored, Error> {
    let Sending { part_size, threads, may_be_there } = sending;
    let size = source.size();
    let count = part_count(size, part_size);
    let fits = u32::try_from(count).ok().filter(|_| count <= PARTS_MAX);
    let Some(count) = fits else {
        let what = format!("take {size} bytes in parts of {part_size}: raise --part-size");
        return Err(Error::Unsupported { at: remote.describe(), what });
    };
    if may_be_there && let Some(stored) = find(remote, source, counters)? {
        return Ok(stored);
    }
    let sink = remote.begin(&Upload { key: source.key(part_size), size, part_size })?;
    let target = PathBuf::from(remote.describe());
    let pipeline = Pipeline {
        source,
        sink: &*sink,
        target: sink.file().map(|file| Bytes::of(file, &target)),
        part_size,
        count,
        counters,
        is_pair_free: sha::is_pair_free(),
        state: Mutex::new(State {
            parts: vec![None; count as usize],
            whole: Some(Hasher::new()),
            ..State::default()
        }),
        changed: Condvar::new(),
    };
    let threads = threads.clamp(1, (count as usize).max(1));
    lock(&pipeline.state).buffers_unmade = threads + 1;
    let whole = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| pipeline.send_parts());
        }
        (!pipeline.is_pair_free).then(|| pipeline.hash_whole())
    });
    let mut state = pipeline.state.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(error) = state.error {
        return Err(error);
    }
    if let Err(error) = unchanged(&source.before, source.file(), &source.path) {
        // The next try has another key: nobody would ever use what was sent.
        let _ = sink.abort();
        return Err(error);
    }
    let in_order = state.whole.take().unwrap_or_default();
    let whole = whole.unwrap_or_else(|| in_order.finish());
    let parts: Vec<Digest> = state.parts.into_iter().flatten().collect();
    let record = Record::new(size, part_size, Layout::File, parts);
    sink.complete(&whole, record.clone())?;
    Ok(Stored { digest: whole, record, was_there: false })
}

/// Parts of a blob: their record has to stay below its limit.
const PARTS_MAX: u64 = 500_000;

/// Looks whether the file is there already.
fn find(
    remote: &dyn Remote,
    source: &Source,
    counters: &Counters,
) -> Result<Option<Stored>, Error> {
    let digest = hash_file(source.file(), &source.path, counters)?;
    unchanged(&source.before, source.file(), &source.path)?;
    // What was done counts once, and there is more to do.
    let start_again = || counters.done.fetch_sub(source.size(), Ordering::Relaxed);
    let Some(stat) = remote.stat(&digest)? else {
        start_again();
        return Ok(None);
    };
    let record = stat.record.filter(|record| record.size == source.size());
    let record = record.filter(|of| check_parts(of.size, of.part_size, of.parts.len()).is_ok());
    let Some(record) = record else {
        start_again();
        return Ok(None);
    };
    // From now on `gc` leaves it alone until a manifest names it.
    match remote.refresh(&digest) {
        Ok(()) => Ok(Some(Stored { digest, record, was_there: true })),
        Err(Error::NotFound { .. }) => {
            start_again();
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

struct Pipeline<'a> {
    source: &'a Source,
    sink: &'a dyn PartSink,
    /// Where parts are hashed, if they are copied into a file.
    target: Option<Bytes<'a>>,
    part_size: u64,
    count: u32,
    counters: &'a Counters,
    /// A part's digest and the whole's are made in one pass, part after part, by whichever thread
    /// has the next one; else each thread makes those of its parts, and one more that of the whole.
    is_pair_free: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The next part to be read.
    next: u32,
    /// Of all parts before `hashed`; None: a thread has it. Only where pairs are free.
    whole: Option<Hasher>,
    /// The next part that goes into `whole`.
    hashed: u32,
    /// Digests of parts that were read.
    parts: Vec<Option<Digest>>,
    /// Parts that were read, for who hashes the whole.
    read: BTreeMap<u32, Arc<Vec<u8>>>,
    /// Buffers that nobody uses.
    free: Vec<Vec<u8>>,
    /// Buffers that may yet be made. There is one more than threads, so that whoever hashes the
    /// whole does not hold up a sender; parts are read in order, so the oldest always has one.
    buffers_unmade: usize,
    /// What ended it.
    error: Option<Error>,
}

impl Pipeline<'_> {
    fn fail(&self, error: Error) {
        lock(&self.state).error.get_or_insert(error);
        self.changed.notify_all();
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The thread that hashes the whole, in order.
    fn hash_whole(&self) -> Digest {
        let mut hasher = Hasher::new();
        for index in 0..self.count {
            let mut state = lock(&self.state);
            let bytes = loop {
                if state.error.is_some() {
                    return Digest([0; 32]);
                }
                if let Some(bytes) = state.read.remove(&index) {
                    break bytes;
                }
                state = self.wait(state);
            };
            // The digest of the only part is that of the whole.
            let only = state.parts[0].filter(|_| self.count == 1);
            drop(state);
            if let Some(digest) = only {
                return digest;
            }
            match self.hash_part(index, &bytes, &mut hasher) {
                Ok(()) => self.release(bytes),
                Err(error) => {
                    self.fail(error);
                    return Digest([0; 32]);
                }
            }
        }
        hasher.finish()
    }

    fn hash_part(&self, index: u32, bytes: &[u8], hasher: &mut Hasher) -> Result<(), Error> {
        let Some(target) = &self.target else {
            hasher.update(bytes);
            return Ok(());
        };
        let (start, len) = part_range(self.source.size(), self.part_size, index);
        // It was counted when it was copied.
        target.hash(start, len as u64, hasher, &Counters::default())
    }

    /// Lends the digest of all parts before one to whoever has that one, when it is its turn; parts
    /// are claimed in order, so it comes. None: something else has failed.
    fn in_turn<T>(
        &self,
        index: u32,
        hash: impl FnOnce(&mut Hasher) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let mut state = lock(&self.state);
        let mut whole = loop {
            if state.error.is_some() {
                return Ok(None);
            }
            if state.hashed == index
                && let Some(whole) = state.whole.take()
            {
                break whole;
            }
            state = self.wait(state);
        };
        drop(state);
        let hashed = hash(&mut whole)?;
        let mut state = lock(&self.state);
        (state.whole, state.hashed) = (Some(whole), index + 1);
        drop(state);
        self.changed.notify_all();
        Ok(Some(hashed))
    }

    /// A thread that reads, hashes and sends parts.
    fn send_parts(&self) {
        while let Some((index, buffer)) = self.claim() {
            if let Err(error) = self.send_part(index, buffer) {
                return self.fail(error);
            }
        }
    }

    /// The next part and room for it.
    fn claim(&self) -> Option<(u32, Vec<u8>)> {
        let mut state = lock(&self.state);
        loop {
            if state.error.is_some() || state.next == self.count {
                return None;
            }
            let buffer = state.free.pop();
            let buffer = buffer.or_else(|| {
                state.buffers_unmade = state.buffers_unmade.checked_sub(1)?;
                Some(Vec::new())
            });
            if let Some(buffer) = buffer {
                state.next += 1;
                return Some((state.next - 1, buffer));
            }
            state = self.wait(state);
        }
    }

    /// Copies a part into the target, and hashes it there.
    fn copy_part(&self, index: u32, target: &Bytes<'_>, file: &dyn File) -> Result<(), Error> {
        let (start, len) = part_range(self.source.size(), self.part_size, index);
        let (bytes, uncounted) = (len as u64, Counters::default());
        // What a killed process left is good if it is what the source has.
        let held = if file.has_data(start, bytes) {
            let of_source = Bytes::of(self.source.file(), &self.source.path);
            Some(of_source.digest(start, bytes, &uncounted)?)
        } else {
            None
        };
        let held = match held {
            Some(digest) if self.sink.holds(index, &digest)? => Some(digest),
            _ => None,
        };
        match held {
            Some(_) => {
                self.counters.reused.fetch_add(bytes, Ordering::Relaxed);
            }
            None => {
                self.copy_range(file, target.path(), start, bytes)?;
                file.start_sync(start, bytes);
            }
        }
        self.counters.add(bytes);
        if self.is_pair_free {
            let mut part = Hasher::new();
            let hashed = self.in_turn(index, |whole| {
                target.each(start, bytes, |piece| whole.update_both(&mut part, piece))
            })?;
            if hashed.is_some() {
                lock(&self.state).parts[index as usize] = Some(part.finish());
            }
            return Ok(());
        }
        let digest = match held {
            Some(digest) => digest,
            None => target.digest(start, bytes, &uncounted)?,
        };
        let mut state = lock(&self.state);
        state.parts[index as usize] = Some(digest);
        state.read.insert(index, Arc::default());
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn copy_range(
        &self,
        file: &dyn File,
        path: &Path,
        start: u64,
        bytes: u64,
    ) -> Result<(), Error> {
        let at_once = self.counters.pace.as_ref().map_or(bytes, |pace| pace.piece_bytes() as u64);
        let mut done = 0;
        while done < bytes {
            let (at, wanted) = (start + done, at_once.min(bytes - done));
            let copied = file.copy_range(self.source.file(), at, wanted);
            let copied = copied.map_err(|error| Error::io("write", path, error))?;
            if copied < wanted {
                let how = format!("it ends at byte {}", at + copied);
                return Err(Error::Changed { path: self.source.path.clone(), how });
            }
            self.counters.moved(copied);
            done += copied;
        }
        Ok(())
    }

    fn send_part(&self, index: u32, mut buffer: Vec<u8>) -> Result<(), Error> {
        if let (Some(target), Some(file)) = (&self.target, self.sink.file()) {
            self.copy_part(index, target, file)?;
            self.release(Arc::new(buffer));
            return Ok(());
        }
        let mut part = Hasher::new();
        if self.is_pair_free {
            let read = self.in_turn(index, |whole| {
                self.read_part(index, &mut buffer, |piece| whole.update_both(&mut part, piece))
            })?;
            if read.is_none() {
                return Ok(());
            }
        } else {
            self.read_part(index, &mut buffer, |piece| part.update(piece))?;
        }
        let (digest, bytes) = (part.finish(), Arc::new(buffer));
        let mut state = lock(&self.state);
        state.parts[index as usize] = Some(digest);
        if !self.is_pair_free {
            state.read.insert(index, Arc::clone(&bytes));
        }
        drop(state);
        self.changed.notify_all();
        let count = bytes.len() as u64;
        if self.sink.holds(index, &digest)? {
            self.counters.reused.fetch_add(count, Ordering::Relaxed);
        } else {
            self.sink.put(index, &digest, &bytes)?;
            self.counters.transferred.fetch_add(count, Ordering::Relaxed);
        }
        self.counters.add(count);
        self.release(bytes);
        Ok(())
    }

    /// Reads a part piece by piece, and has each hashed while it is in the cache.
    fn read_part(
        &self,
        index: u32,
        buffer: &mut Vec<u8>,
        mut hash: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        let (start, len) = part_range(self.source.size(), self.part_size, index);
        buffer.resize(len, 0);
        for (piece, at) in buffer.chunks_mut(PIECE_BYTES).zip((0..).step_by(PIECE_BYTES)) {
            let at = start + at as u64;
            let read = files::read_full(self.source.file(), piece, at);
            let count = read.map_err(|error| Error::io("read", &self.source.path, error))?;
            if count < piece.len() {
                let how = format!("it ends at byte {}", at + count as u64);
                return Err(Error::Changed { path: self.source.path.clone(), how });
            }
            hash(piece);
        }
        Ok(())
    }

    /// Whoever is the last to use a buffer gives it back.
    fn release(&self, bytes: Arc<Vec<u8>>) {
        let mut state = lock(&self.state);
        if let Ok(buffer) = Arc::try_unwrap(bytes) {
            state.free.push(buffer);
            drop(state);
            self.changed.notify_all();
        }
    }
}
