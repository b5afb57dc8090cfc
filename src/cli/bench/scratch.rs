//! Room for what a measurement makes, which goes when it ends: at its end, after an error, by
//! SIGINT, SIGTERM or SIGHUP. What a killed one left is removed by the next.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, Signal, raise};

use super::runner::GO_ON;
use crate::cli::Error;
use crate::store::files::{Disk, Files};
use crate::store::remote::filer::Filer;

/// What names of ours begin with; then comes `Files::owner`, which tells whose.
const HEAD: &str = "cnse-bench-";
/// Times that a folder is removed whose files are being made while it goes.
const TRIES: u32 = 100;

/// Everything that was made. Dropped, it is removed.
pub struct Scratch {
    rooms: Arc<Rooms>,
}

/// Where that is.
struct Rooms {
    folders: Vec<PathBuf>,
    filer: Option<Filer<'static>>,
    /// A signal ends the process as soon as all is removed.
    is_ending: AtomicBool,
}

/// A name that nobody else has.
pub fn name() -> String {
    format!("{HEAD}{}", Disk.owner())
}

impl Scratch {
    /// Makes a folder of this name in each of these, and has them removed, and the filer's folder
    /// with them. To be called before there are other threads: signals are for one of its own.
    pub fn make(
        name: &str,
        parents: &[&Path],
        filer: Option<Filer<'static>>,
    ) -> Result<Scratch, Error> {
        parents.iter().for_each(|parent| sweep(parent));
        let folders: Vec<PathBuf> = parents.iter().map(|parent| parent.join(name)).collect();
        let failed = |path: &Path, error: std::io::Error| {
            Error::Failed(format!("making the folder {path:?}: {error}"))
        };
        let scratch = Scratch {
            rooms: Arc::new(Rooms { folders, filer, is_ending: AtomicBool::new(false) }),
        };
        let signals: SigSet =
            [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        signals
            .thread_block()
            .map_err(|error| Error::Failed(format!("holding signals back: {error}")))?;
        let rooms = Arc::clone(&scratch.rooms);
        std::thread::spawn(move || {
            let Ok(signal) = signals.wait() else { return };
            rooms.is_ending.store(true, Ordering::SeqCst);
            eprintln!("cnse: interrupted; removing what was made");
            rooms.remove();
            // As if it had not been held back: it ends this process.
            let _ = signals.thread_unblock();
            let _ = raise(signal);
            std::process::exit(GO_ON.into());
        });
        for folder in &scratch.rooms.folders {
            fs::create_dir(folder).map_err(|error| failed(folder, error))?;
        }
        Ok(scratch)
    }

    /// The folder in the parent of this number.
    pub fn folder(&self, index: usize) -> &Path {
        &self.rooms.folders[index]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What fails since its files have gone is no error to be told.
        while self.rooms.is_ending.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.rooms.remove();
    }
}

impl Rooms {
    fn remove(&self) {
        for folder in &self.folders {
            // Another thread may be making files in it.
            let mut tries = (0..TRIES).map(|_| fs::remove_dir_all(folder));
            tries.find(|_| !folder.exists());
            if folder.exists() {
                eprintln!("cnse: warning: {folder:?} could not be removed; nothing needs it");
            }
        }
        if let Some(Err(error)) = self.filer.as_ref().map(Filer::remove_folder) {
            eprintln!("cnse: warning: what was made on the filer could not be removed: {error}");
        }
    }
}

/// Removes what those left in a folder who were killed.
fn sweep(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(HEAD));
        if owner.is_some_and(|owner| Disk.is_alive(owner) == Some(false)) {
            eprintln!("removing what a killed one left: {:?}", entry.path());
            // Somebody else's to remove, if it cannot be.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
