//! Where results go as they come: parts of their own for each rank and run, in the job's folder.
//!
//! ```text
//!   <output>.parts/lock                                      held by rank 0 of the job that runs
//!                  part-20261123T180000.123Z-4711-r0.jsonl   result lines; never appended to again
//!                  input.jsonl                               rows that came from a pipe
//! ```
//!
//! A thread writes what it is given in groups, and has the disk take it at most every 200 ms; who
//! gives it lines never waits. After a failure nothing more is written: what was recorded stands,
//! and the last line may be torn, which the next run tolerates.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime};

use super::error::Error;
use super::recorded::{PART_PREFIX, PART_SUFFIX};
use crate::limits::{JOURNAL_GROUP_BYTES, JOURNAL_SYNC_INTERVAL};
use crate::log::utc;

pub use super::recorded::{Loaded, load};

/// The part that one rank writes.
pub struct Journal {
    path: PathBuf,
    shared: Arc<Shared>,
    sender: Sender<Order>,
    thread: Option<JoinHandle<u64>>,
    _lock: Option<Lock>,
}

#[derive(Default)]
struct Shared {
    waiting: AtomicU64,
    failure: OnceLock<Error>,
}

impl Shared {
    fn waiting_bytes(&self) -> u64 {
        // What waits when the journal fails is not recorded; nobody shall wait for it.
        if self.failure.get().is_some() { 0 } else { self.waiting.load(Ordering::Relaxed) }
    }
}

impl Journal {
    /// Opens a fresh part; rank 0 locks the job. `on_failure` is called once, on the thread that
    /// writes, when nothing can be recorded any more. The lock is held until the journal is
    /// dropped, beyond `close`.
    ///
    /// # Errors
    /// Another job writes the same output; the folder or the part cannot be made.
    pub fn create(
        folder: &Path,
        rank: u32,
        on_failure: impl Fn() + Send + 'static,
    ) -> Result<Journal, Error> {
        let lock = if rank == 0 { Lock::take(folder)? } else { None };
        let (path, file) = create_part(folder, rank)?;
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = mpsc::channel();
        let writer = Writer { file, receiver, shared, lines: 0 };
        Journal::spawn(path, writer, sender, lock, on_failure)
    }

    fn spawn(
        path: PathBuf,
        writer: Writer<File>,
        sender: Sender<Order>,
        lock: Option<Lock>,
        on_failure: impl Fn() + Send + 'static,
    ) -> Result<Journal, Error> {
        let (shared, part) = (Arc::clone(&writer.shared), path.clone());
        let spawned = thread::Builder::new().name("journal".to_owned()).spawn(move || {
            let shared = Arc::clone(&writer.shared);
            let (lines, written) = writer.run();
            if let Err(error) = written {
                let _ = shared.failure.set(journal_error(&part, error));
                on_failure();
            }
            lines
        });
        let thread = spawned.map_err(|error| journal_error(&path, error))?;
        Ok(Journal { path, shared, sender, thread: Some(thread), _lock: lock })
    }

    /// For whoever has results; any number of them.
    pub fn appender(&self) -> Appender {
        Appender { sender: self.sender.clone(), shared: Arc::clone(&self.shared) }
    }

    /// The part.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that were appended and not yet written.
    pub fn waiting_bytes(&self) -> u64 {
        self.shared.waiting_bytes()
    }

    /// Why nothing is recorded any more.
    pub fn failure(&self) -> Option<Error> {
        self.shared.failure.get().cloned()
    }

    /// Waits until all that was appended is on the disk, and tells how many lines that were. What
    /// is appended later is not recorded, and missed at the merge. A part without lines is removed.
    ///
    /// # Errors
    /// Something could not be recorded.
    pub fn close(&mut self) -> Result<u64, Error> {
        let Some(thread) = self.thread.take() else { return Ok(0) };
        // If nobody takes it, the thread has ended with a failure.
        let _ = self.sender.send(Order::Close);
        let lines = thread.join().expect("the journal's thread does not panic");
        if let Some(error) = self.failure() {
            return Err(error);
        }
        if lines == 0 {
            fs::remove_file(&self.path).map_err(|error| Error::write(&self.path, error))?;
        }
        Ok(lines)
    }
}

fn journal_error(path: &Path, error: io::Error) -> Error {
    Error::Journal { path: path.to_owned(), error: Arc::new(error) }
}

/// Gives lines to a journal.
#[derive(Clone)]
pub struct Appender {
    sender: Sender<Order>,
    shared: Arc<Shared>,
}

enum Order {
    /// Whole lines.
    Append(Vec<u8>),
    Close,
}

impl Appender {
    /// Appends whole lines, each with its end. Never waits; after a failure it does nothing.
    pub fn append(&self, lines: Vec<u8>) {
        assert!(lines.ends_with(b"\n"), "a journal takes whole lines");
        let bytes = lines.len() as u64;
        self.shared.waiting.fetch_add(bytes, Ordering::Relaxed);
        if self.sender.send(Order::Append(lines)).is_err() {
            // The journal has failed, and said so, or was closed.
            self.shared.waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes that wait to be written, of all appenders: who makes more than the disk takes should
    /// make less.
    pub fn waiting_bytes(&self) -> u64 {
        self.shared.waiting_bytes()
    }
}

/// The thread's side. Generic, so that a test can hand it a disk that fails.
struct Writer<F> {
    file: F,
    receiver: Receiver<Order>,
    shared: Arc<Shared>,
    lines: u64,
}

/// A file that can be made durable.
trait Durable: Write {
    fn sync(&mut self) -> io::Result<()>;
}

impl Durable for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl<F: Durable> Writer<F> {
    /// Writes until all appenders are gone; the lines that were written come back.
    fn run(mut self) -> (u64, io::Result<()>) {
        let written = self.write();
        (self.lines, written)
    }

    fn write(&mut self) -> io::Result<()> {
        let mut synced_at: Option<Instant> = None;
        let (mut group, mut is_open) = (Vec::new(), true);
        while is_open {
            // Nothing is unsynced here: the next line may take its time.
            let Ok(Order::Append(first)) = self.receiver.recv() else { return Ok(()) };
            is_open = self.write_group(&mut group, first)?;
            while is_open {
                let since = synced_at.map_or(JOURNAL_SYNC_INTERVAL, |at| at.elapsed());
                let left = JOURNAL_SYNC_INTERVAL.saturating_sub(since);
                if left.is_zero() {
                    break;
                }
                match self.receiver.recv_timeout(left) {
                    Ok(Order::Append(lines)) => is_open = self.write_group(&mut group, lines)?,
                    Err(RecvTimeoutError::Timeout) => break,
                    Ok(Order::Close) | Err(RecvTimeoutError::Disconnected) => is_open = false,
                }
            }
            self.file.sync()?;
            synced_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Writes `first` and what else waits, up to a group's size, in one call. False: that was all.
    fn write_group(&mut self, group: &mut Vec<u8>, first: Vec<u8>) -> io::Result<bool> {
        group.clear();
        group.extend_from_slice(&first);
        let mut is_open = true;
        while is_open && group.len() < JOURNAL_GROUP_BYTES {
            match self.receiver.try_recv() {
                Ok(Order::Append(lines)) => group.extend_from_slice(&lines),
                Ok(Order::Close) => is_open = false,
                Err(_) => break,
            }
        }
        self.file.write_all(group)?;
        self.lines += group.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.shared.waiting.fetch_sub(group.len() as u64, Ordering::Relaxed);
        Ok(is_open)
    }
}

/// Makes a job's folder, and what leads to it is made durable.
pub(super) fn create_folder(folder: &Path) -> Result<(), Error> {
    match fs::create_dir(folder) {
        Ok(()) => sync_folder(parent(folder)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(Error::write(folder, error)),
    }
}

/// The folder that a path lies in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), Error> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    match synced {
        // Some network file systems have no such call; their names are durable at once.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Ok(()),
        synced => synced.map_err(|error| Error::write(folder, error)),
    }
}

fn create_part(folder: &Path, rank: u32) -> Result<(PathBuf, File), Error> {
    let pid = std::process::id();
    loop {
        create_folder(folder)?;
        let time = utc(SystemTime::now()).replace(['-', ':'], "");
        let path = folder.join(format!("{PART_PREFIX}{time}-{pid}-r{rank}{PART_SUFFIX}"));
        match File::create_new(&path) {
            Ok(file) => {
                sync_folder(folder)?;
                return Ok((path, file));
            }
            // Ranks that are threads share a process, and two jobs of a test a millisecond; or the
            // end of another job has just removed the folder.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound
                ) =>
            {
                thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(error) => return Err(Error::write(&path, error)),
        }
    }
}

/// Keeps a second job away from the same output.
struct Lock {
    _file: File,
}

/// The lock's name in the job's folder.
pub(super) const LOCK: &str = "lock";

impl Lock {
    /// None where the file system has no locks.
    fn take(folder: &Path) -> Result<Option<Lock>, Error> {
        let path = folder.join(LOCK);
        loop {
            create_folder(folder)?;
            let opened = File::options().create(true).truncate(false).write(true).open(&path);
            let file = match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(|error| Error::write(&path, error))?,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Error::Locked { path }),
                Err(TryLockError::Error(error)) => {
                    log::warn!(
                        "the file system of {path:?} has no locks ({error}): do not run a second \
                         job on the same output"
                    );
                    return Ok(None);
                }
            }
            // The job that held it may have ended just now, and removed what this one has opened.
            let held = file.metadata().map_err(|error| Error::read(&path, error))?;
            if fs::metadata(&path).is_ok_and(|there| there.ino() == held.ino()) {
                return Ok(Some(Lock { _file: file }));
            }
        }
    }
}

#[cfg(test)]
mod tests;
