//! Gets a blob into the cache: parts in any order from several threads, each checked before it
//! counts, and the whole hashed behind them.
//!
//! What a killed download left is known by reading it: a part whose digest fits is there. So
//! nothing has to be recorded while it runs, and nothing that was recorded can be wrong.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::cache::Cache;
use super::claim::{self, Claim};
use super::digest::Digest;
use super::error::Error;
use super::files::create_dirs;
use super::hash::{Bytes, Counters, hash_file, lock};
use super::record::{Layout, Record, part_count, part_range};
use super::remote::{BlobStat, Remote};
use super::sha::{self, Hasher};
use crate::limits::PART_BYTES;

/// What is wanted, and how.
pub struct Wanted<'a> {
    /// The blob.
    pub digest: Digest,
    /// What the user calls it.
    pub name: &'a str,
    /// Its record by a manifest, which is believed before the remote's.
    pub record: Option<Record>,
    /// Threads that fetch and check.
    pub threads: usize,
}

/// A blob that is in the cache now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its file.
    pub path: PathBuf,
    /// It was there already.
    pub was_cached: bool,
}

/// Gets a blob into the cache, if it is not there. While another process fetches it, waits for
/// that.
///
/// # Errors
/// There is no such blob, no room for it, the remote fails, or what it gives is damaged. What was
/// fetched stays for the next try.
pub fn fetch(
    cache: &Cache<'_>,
    remote: Option<&dyn Remote>,
    wanted: &Wanted<'_>,
    counters: &Counters,
) -> Result<Fetched, Error> {
    let mut has_waited = false;
    loop {
        if let Some(path) = cache.find(&wanted.digest, wanted.name)? {
            return Ok(Fetched { path, was_cached: true });
        }
        let remote = remote.ok_or_else(|| Error::Offline { what: wanted.digest.to_string() })?;
        create_dirs(cache.files, &cache.partial())?;
        let claim = claim::claim(cache.files, &cache.partial(), &wanted.digest.to_string())?;
        if let Some(claim) = claim {
            // It may have come just before the claim.
            if let Some(path) = cache.find(&wanted.digest, wanted.name)? {
                claim.remove()?;
                return Ok(Fetched { path, was_cached: true });
            }
            let path = download(cache, remote, claim, wanted, counters)?;
            cache.note_use(&wanted.digest, wanted.name);
            return Ok(Fetched { path, was_cached: false });
        }
        if !has_waited {
            log::info!("another process fetches {}; waiting for it", wanted.digest.short());
            has_waited = true;
        }
        std::thread::sleep(WAIT);
    }
}

/// Between two looks at a download of another process.
const WAIT: Duration = Duration::from_millis(50);
/// The disk begins to write after so many bytes: the sync at the end waits for the last of them.
const SYNC_BYTES: u64 = 8 << 20;
/// Times that a part is fetched before it counts as damaged at the remote.
const PART_TRIES: u32 = 3;

fn download(
    cache: &Cache<'_>,
    remote: &dyn Remote,
    claim: Claim<'_>,
    wanted: &Wanted<'_>,
    counters: &Counters,
) -> Result<PathBuf, Error> {
    let digest = &wanted.digest;
    let stat = match remote.stat(digest) {
        Ok(Some(stat)) => stat,
        Ok(None) => {
            claim.remove()?;
            return Err(Error::NotFound { what: digest.to_string(), at: remote.describe() });
        }
        Err(error) => return Err(discard_if_empty(claim, error)),
    };
    let known = wanted.record.clone().or_else(|| stat.record.clone());
    if known.as_ref().is_some_and(|record| record.size != stat.size) {
        let error = Error::Damaged { digest: *digest, part: None, at: remote.describe() };
        return Err(discard_if_empty(claim, error));
    }
    let claim = match link(cache, remote, claim, wanted, known.as_ref(), counters)? {
        Linked::Done(path) => return Ok(path),
        Linked::No(claim) => claim,
    };
    if let Err(error) = cache.reserve(&claim, stat.size) {
        return Err(discard_if_empty(claim, error));
    }
    let part_size = known.as_ref().map_or(PART_BYTES, |record| record.part_size);
    let count = part_count(stat.size, part_size) as u32;
    let is_known = known.is_some();
    let job = Job {
        remote,
        claim: &claim,
        digest,
        stat: &stat,
        part_size,
        known: known.as_ref(),
        counters,
        is_pair_free: sha::is_pair_free(),
        state: Mutex::new(State {
            parts: vec![Part::Came(0); count as usize],
            next: 0,
            error: None,
        }),
        changed: Condvar::new(),
        failed: AtomicBool::new(false),
    };
    let (whole, parts) = job.run(wanted.threads)?;
    if whole != *digest {
        let at = remote.describe();
        // All parts are what the record says: the record is not this blob's. Or there was none.
        claim.remove()?;
        return Err(if is_known {
            let why = "the parts that it names do not make this blob".to_owned();
            Error::Refused { what: format!("the record of {digest}"), at, why }
        } else {
            Error::Damaged { digest: *digest, part: None, at }
        });
    }
    if let Err(error) = claim.file().sync() {
        // What the disk could not take has gone from memory too.
        let error = Error::io("write", claim.path(), error);
        claim.remove()?;
        return Err(error);
    }
    let record = known.unwrap_or_else(|| Record::new(stat.size, part_size, Layout::File, parts));
    cache.publish(digest, &record, |path| claim.rename(path))
}

/// A download that has not begun leaves nothing.
fn discard_if_empty(claim: Claim<'_>, error: Error) -> Error {
    let is_empty = claim.file().meta().is_ok_and(|meta| meta.disk_bytes == 0);
    if is_empty {
        // The error that is being told matters more.
        let _ = claim.remove();
    }
    error
}

enum Linked<'a> {
    Done(PathBuf),
    No(Claim<'a>),
}

/// A blob of a folder on the same disk needs no second copy: its file gets a second name, once its
/// bytes were checked.
fn link<'a>(
    cache: &Cache<'a>,
    remote: &dyn Remote,
    claim: Claim<'a>,
    wanted: &Wanted<'_>,
    known: Option<&Record>,
    counters: &Counters,
) -> Result<Linked<'a>, Error> {
    let digest = &wanted.digest;
    let (Some(source), Some(record)) = (remote.local_file(digest), known) else {
        return Ok(Linked::No(claim));
    };
    create_dirs(cache.files, &cache.tmp())?;
    let second = cache.tmp().join(format!("link.{}", cache.files.owner()));
    let linked = cache.files.link(&source, &second).and_then(|()| cache.files.open(&second));
    let Ok(file) = linked else {
        // Another disk, or a file of another user: it is copied then.
        let _ = cache.files.remove(&second);
        return Ok(Linked::No(claim));
    };
    let before = counters.done.load(Ordering::Relaxed);
    let is_good = hash_file(&*file, &second, counters).is_ok_and(|found| found == *digest);
    if !is_good {
        // By parts it will be found which of them it is.
        counters.done.store(before, Ordering::Relaxed);
        let _ = cache.files.remove(&second);
        return Ok(Linked::No(claim));
    }
    drop(file);
    // The file of the claim is not replaced by it: who went on with that would write to both.
    let path = cache.publish(digest, record, |path| {
        let renamed = cache.files.rename(&second, path);
        renamed.map_err(|error| Error::io("rename", &second, error))
    })?;
    claim.remove()?;
    Ok(Linked::Done(path))
}

struct Job<'a> {
    remote: &'a dyn Remote,
    claim: &'a Claim<'a>,
    digest: &'a Digest,
    stat: &'a BlobStat,
    part_size: u64,
    /// None: the parts' digests are not known, and only the whole is checked.
    known: Option<&'a Record>,
    counters: &'a Counters,
    /// A part's digest and the whole's are made in one pass, behind whoever fetches the parts; else
    /// each thread makes those of its parts, and another one that of the whole.
    is_pair_free: bool,
    state: Mutex<State>,
    changed: Condvar,
    failed: AtomicBool,
}

/// How far a part is.
#[derive(Clone, Copy)]
enum Part {
    /// So many of its first bytes are in the file, unchecked; whoever hashes the whole checks it.
    Came(u64),
    /// It is there, and this is its digest.
    Checked(Digest),
}

struct State {
    next: u32,
    parts: Vec<Part>,
    error: Option<Error>,
}

impl Job<'_> {
    /// Fetches all parts; the digests of the whole and of each come back.
    fn run(&self, threads: usize) -> Result<(Digest, Vec<Digest>), Error> {
        let count = lock(&self.state).parts.len();
        let whole = std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, count.max(1)) {
                scope.spawn(|| {
                    if let Err(error) = self.fetch_parts() {
                        self.fail(error);
                    }
                });
            }
            self.hash_whole(count as u32).unwrap_or_else(|error| {
                self.fail(error);
                Digest([0; 32])
            })
        });
        let mut state = lock(&self.state);
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        let checked = |part: Part| match part {
            Part::Checked(digest) => Some(digest),
            Part::Came(_) => None,
        };
        Ok((whole, state.parts.drain(..).filter_map(checked).collect()))
    }

    fn fail(&self, error: Error) {
        self.failed.store(true, Ordering::Relaxed);
        lock(&self.state).error.get_or_insert(error);
        self.changed.notify_all();
    }

    fn set(&self, index: u32, part: Part) {
        lock(&self.state).parts[index as usize] = part;
        self.changed.notify_all();
    }

    /// How far a part is, once more than `seen` bytes of it have come. None: the job has failed.
    fn wait(&self, index: u32, seen: u64) -> Option<Part> {
        let mut state = lock(&self.state);
        loop {
            if state.error.is_some() {
                return None;
            }
            match state.parts[index as usize] {
                Part::Came(bytes) if bytes <= seen => {}
                part => return Some(part),
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn range(&self, index: u32) -> (u64, u64) {
        let (start, len) = part_range(self.stat.size, self.part_size, index);
        (start, len as u64)
    }

    fn known(&self, index: u32) -> Option<Digest> {
        self.known.map(|record| record.parts[index as usize])
    }

    /// Hashes the whole, behind what is missing. After a failure it means nothing.
    fn hash_whole(&self, count: u32) -> Result<Digest, Error> {
        let mut whole = Hasher::new();
        let bytes = Bytes::of(self.claim.file(), self.claim.path());
        for index in 0..count {
            let Some(part) = self.wait(index, 0) else { break };
            match part {
                // The digest of the only part is that of the whole.
                Part::Checked(digest) if count == 1 => return Ok(digest),
                Part::Checked(_) => {
                    let (start, len) = self.range(index);
                    bytes.each(start, len, |piece| whole.update(piece))?;
                }
                Part::Came(_) => {
                    let Some(checked) = self.follow(index, &bytes, &whole)? else { break };
                    whole = checked;
                }
            }
        }
        Ok(whole.finish())
    }

    /// Hashes a part behind whoever fetches it, and with it the whole up to its end, which comes
    /// back. None: the job has failed.
    fn follow(
        &self,
        index: u32,
        bytes: &Bytes<'_>,
        before: &Hasher,
    ) -> Result<Option<Hasher>, Error> {
        let (start, len) = self.range(index);
        let (mut whole, mut part, mut done) = (before.clone(), Hasher::new(), 0);
        while done < len {
            let Some(Part::Came(came)) = self.wait(index, done) else { return Ok(None) };
            bytes.each(start + done, came - done, |piece| whole.update_both(&mut part, piece))?;
            done = came;
        }
        let found = part.finish();
        if self.known(index).is_none_or(|known| known == found) {
            self.set(index, Part::Checked(found));
            return Ok(Some(whole));
        }
        self.damaged(index, 1)?;
        self.set(index, Part::Checked(self.receive_checked(index, 2)?));
        let mut whole = before.clone();
        bytes.each(start, len, |piece| whole.update(piece))?;
        Ok(Some(whole))
    }

    fn fetch_parts(&self) -> Result<(), Error> {
        loop {
            let index = {
                let mut state = lock(&self.state);
                if state.next as usize == state.parts.len() {
                    return Ok(());
                }
                state.next += 1;
                state.next - 1
            };
            if self.failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.part(index)?;
        }
    }

    /// Gets one part, from what is there or from the remote.
    fn part(&self, index: u32) -> Result<(), Error> {
        let (start, len) = self.range(index);
        if let Some(known) = self.known(index)
            && self.claim.is_resumed()
            && self.claim.file().has_data(start, len)
        {
            let uncounted = Counters::default();
            let bytes = Bytes::of(self.claim.file(), self.claim.path());
            if bytes.digest(start, len, &uncounted).is_ok_and(|found| found == known) {
                self.counters.reused.fetch_add(len, Ordering::Relaxed);
                self.counters.add(len);
                self.set(index, Part::Checked(known));
                return Ok(());
            }
        }
        if len > 0 && self.is_pair_free {
            self.receive(index, |_, came| self.set(index, Part::Came(came)))?;
        } else {
            self.set(index, Part::Checked(self.receive_checked(index, 1)?));
        }
        Ok(())
    }

    /// Fetches a part until it is what it should be; `attempt` (from 1 on) is the first of these.
    fn receive_checked(&self, index: u32, mut attempt: u32) -> Result<Digest, Error> {
        loop {
            let mut hasher = Hasher::new();
            self.receive(index, |piece, _| hasher.update(piece))?;
            let found = hasher.finish();
            if self.known(index).is_none_or(|known| known == found) {
                return Ok(found);
            }
            self.damaged(index, attempt)?;
            attempt += 1;
        }
    }

    /// Notes that a part came damaged.
    ///
    /// # Errors
    /// It did so too often.
    fn damaged(&self, index: u32, attempt: u32) -> Result<(), Error> {
        let (digest, at) = (self.digest, self.remote.describe());
        if attempt >= PART_TRIES {
            return Err(Error::Damaged { digest: *digest, part: Some(index), at });
        }
        log::warn!("part {index} of {digest} came damaged from {at}; it is fetched again");
        self.counters.done.fetch_sub(self.range(index).1, Ordering::Relaxed);
        Ok(())
    }

    /// Writes a part while it comes, each piece while it is in the processor's cache, and then
    /// tells of it: the piece, and how many bytes have come with it. What was written counts for
    /// nothing until its digest fits: the file has no name yet, and whoever goes on with it after a
    /// crash reads it again.
    fn receive(&self, index: u32, mut came: impl FnMut(&[u8], u64)) -> Result<(), Error> {
        let ((start, len), mut done, mut synced) = (self.range(index), 0, 0);
        self.remote.read(self.digest, self.stat, start, len, &mut |piece| {
            let written = self.claim.file().write_at(piece, start + done);
            written.map_err(|error| Error::io("write", self.claim.path(), error))?;
            done += piece.len() as u64;
            if done - synced >= SYNC_BYTES || done == len {
                self.claim.file().start_sync(start + synced, done - synced);
                synced = done;
            }
            self.counters.add(piece.len() as u64);
            self.counters.moved(piece.len() as u64);
            came(piece, done);
            Ok(())
        })
    }
}
