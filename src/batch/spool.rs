//! Rows from a pipe: a thread copies them into a file, from which they are read like any others.
//!
//! What is published is the length up to the last whole line, so that no reader ever sees half a
//! row; at the end a missing line end is added. The pipe may be slow or silent: nobody waits for it
//! but the thread.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use super::error::Error;
use super::journal::create_folder;
use crate::limits::BATCH_BLOCK_BYTES;

/// The spool's name in the job's folder.
pub const FILE: &str = "input.jsonl";

/// A pipe that is being copied into a file.
pub struct Spool {
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    length: AtomicU64,
    ended: AtomicBool,
    failure: OnceLock<Error>,
}

impl Spool {
    /// Begins to copy `pipe` into a file in `folder`; `on_progress` is called when `progress` has
    /// changed, on the thread that copies.
    ///
    /// # Errors
    /// The file cannot be made, or the thread not be started.
    pub fn start(
        folder: &Path,
        pipe: impl Read + Send + 'static,
        on_progress: impl Fn() + Send + 'static,
    ) -> Result<Spool, Error> {
        create_folder(folder)?;
        let path = folder.join(FILE);
        let file = File::create(&path).map_err(|error| Error::write(&path, error))?;
        let shared = Arc::new(Shared::default());
        let copier = Copier { file, path: path.clone(), shared: Arc::clone(&shared) };
        let spawned = thread::Builder::new().name("spool".to_owned()).spawn(move || {
            let shared = Arc::clone(&copier.shared);
            if let Err(error) = copier.run(pipe, &on_progress) {
                let _ = shared.failure.set(error);
            }
            shared.ended.store(true, Ordering::Release);
            on_progress();
        });
        // The thread ends with the pipe, or with the process if the pipe never ends.
        spawned.map_err(|error| Error::write(&path, error))?;
        Ok(Spool { path, shared })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of whole lines so far, and whether that is all.
    pub fn progress(&self) -> (u64, bool) {
        // In this order: a length read after the end is the last one.
        let ended = self.shared.ended.load(Ordering::Acquire);
        (self.shared.length.load(Ordering::Acquire), ended)
    }

    /// What went wrong; the rows published before stand.
    pub fn failure(&self) -> Option<Error> {
        self.shared.failure.get().cloned()
    }
}

struct Copier {
    file: File,
    path: PathBuf,
    shared: Arc<Shared>,
}

impl Copier {
    fn run(mut self, mut pipe: impl Read, on_progress: &impl Fn()) -> Result<(), Error> {
        let mut buffer = vec![0; BATCH_BLOCK_BYTES];
        let (mut length, mut whole) = (0, 0);
        loop {
            let count = match pipe.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Pipe { error: Arc::new(error) }),
                Ok(count) => count,
            };
            let mut block = &buffer[..count];
            if count == 0 {
                if whole == length {
                    return Ok(());
                }
                block = b"\n";
            }
            self.file.write_all(block).map_err(|error| Error::write(&self.path, error))?;
            if let Some(last) = block.iter().rposition(|&byte| byte == b'\n') {
                whole = length + last as u64 + 1;
                self.shared.length.store(whole, Ordering::Release);
                on_progress();
            }
            length += block.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// A pipe that gives what is sent to it, one piece a read.
    struct Pieces(mpsc::Receiver<io::Result<&'static [u8]>>);

    impl Read for Pieces {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let piece = self.0.recv().unwrap_or(Ok(b""))?;
            into[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn whole_lines_are_published_and_the_last_one_is_ended() {
        let folder = super::super::test_folder("spool");
        let (send, pieces) = mpsc::channel();
        let (wake, woken) = mpsc::channel();
        let spool = Spool::start(&folder, Pieces(pieces), move || wake.send(()).unwrap()).unwrap();
        let wait = || woken.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(spool.progress(), (0, false));
        for (piece, length) in [("{}\n{\"a\"", 3), (":1}\n\n", 12), ("{}", 12)] {
            send.send(Ok(piece.as_bytes())).unwrap();
            while spool.progress().0 < length {
                wait();
            }
            assert_eq!(spool.progress(), (length, false), "{piece}");
        }
        drop(send);
        while !spool.progress().1 {
            wait();
        }
        assert_eq!(spool.progress(), (15, true));
        assert!(spool.failure().is_none());
        assert_eq!(std::fs::read(spool.path()).unwrap(), b"{}\n{\"a\":1}\n\n{}\n");
    }

    #[test]
    fn a_pipe_that_breaks_is_told_and_what_came_stands() {
        let folder = super::super::test_folder("spool-broken");
        let (send, pieces) = mpsc::channel();
        let (wake, woken) = mpsc::channel();
        send.send(Ok(&b"{}\n{"[..])).unwrap();
        send.send(Err(io::Error::from(io::ErrorKind::Interrupted))).unwrap();
        send.send(Err(io::Error::other("gone"))).unwrap();
        let spool = Spool::start(&folder, Pieces(pieces), move || wake.send(()).unwrap()).unwrap();
        while !spool.progress().1 {
            woken.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        assert_eq!(spool.progress(), (3, true));
        assert!(matches!(spool.failure(), Some(Error::Pipe { .. })));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told() {
        let spool = Spool::start(Path::new("/dev/null/x"), io::empty(), || ());
        assert!(matches!(spool, Err(Error::Write { .. })));
    }
}
