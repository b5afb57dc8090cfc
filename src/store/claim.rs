//! Who works on a transfer: one process at a time, and the next one once it has died. No locks,
//! since some network file systems only pretend to have them.
//!
//! A transfer is a file `<key>.<owner>` in a folder; the owner's name tells its process. To claim a
//! key, a process makes such a file under its own name, or renames that of a dead owner to it (of
//! several who try one succeeds), and then lists the folder: if there is another living owner, it
//! steps back. Of two who both go on, the one who listed last would have seen the other: so at most
//! one goes on. Where a listing is stale, as over NFS, two may; each has a file of its own then,
//! and the worst is work done twice.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Error;
use super::files::{File, Files};
use crate::prng;

/// A transfer that this process works on. Dropped, it is left to the next one.
pub struct Claim<'a> {
    files: &'a dyn Files,
    path: PathBuf,
    file: Box<dyn File>,
    is_resumed: bool,
    is_ended: bool,
}

/// An owner on another machine that has not written for so long is taken for dead: a download that
/// stalls gives up sooner.
pub const FOREIGN_PATIENCE: Duration = Duration::from_secs(600);
/// What an owner's name becomes if it steps back from what holds bytes.
const LEFT: &str = "left-";

/// Claims a key. None: a living process works on it.
///
/// # Errors
/// The folder cannot be read or written.
pub fn claim<'a>(
    files: &'a dyn Files,
    folder: &Path,
    key: &str,
) -> Result<Option<Claim<'a>>, Error> {
    // Seeded by what nobody else has: who met once does not meet for ever.
    let mut pause = prng::hash(0, files.owner().as_bytes());
    let mine = folder.join(format!("{key}.{}", files.owner()));
    loop {
        let others = owners(files, folder, key)?;
        if others.iter().any(|other| other.is_alive) {
            return Ok(None);
        }
        let dead = others.first();
        let taken = match dead {
            Some(dead) => files.rename(&dead.path, &mine).and_then(|()| files.open_write(&mine)),
            None => files.create(&mine),
        };
        let file = match taken {
            Ok(file) => file,
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound && dead.is_some() => continue,
            Err(error) => return Err(Error::io("write", &mine, error)),
        };
        let is_resumed = dead.is_some();
        let claim = Claim { files, path: mine.clone(), file, is_resumed, is_ended: false };
        // By its name nobody takes a file for another's that is being made right now.
        let _ = files.touch(&mine);
        let others = owners(files, folder, key)?;
        if !others.iter().any(|other| other.is_alive && other.path != mine) {
            return Ok(Some(claim));
        }
        if is_resumed {
            drop(claim);
        } else {
            claim.remove()?;
        }
        let micros = prng::splitmix64(&mut pause) % 20_000;
        std::thread::sleep(Duration::from_micros(micros));
    }
}

/// Claims a key that nobody else knows.
///
/// # Errors
/// The file cannot be made.
pub fn private<'a>(files: &'a dyn Files, folder: &Path) -> Result<Claim<'a>, Error> {
    let path = folder.join(format!("private.{}", files.owner()));
    let file = files.create(&path).map_err(|error| Error::io("write", &path, error))?;
    Ok(Claim { files, path, file, is_resumed: false, is_ended: false })
}

/// A file that a process works on, or did.
struct Owner {
    path: PathBuf,
    is_alive: bool,
}

fn owners(files: &dyn Files, folder: &Path, key: &str) -> Result<Vec<Owner>, Error> {
    let names = files.list(folder).map_err(|error| Error::io("list", folder, error))?;
    let of_key = names.iter().filter_map(|name| Some((name, name.split_once('.')?)));
    let of_key = of_key.filter(|(_, (of, _))| *of == key);
    Ok(of_key.map(|(name, _)| owner(files, folder, name)).collect())
}

fn owner(files: &dyn Files, folder: &Path, name: &str) -> Owner {
    let path = folder.join(name);
    let is_alive = is_worked_on(files, &path, name);
    Owner { path, is_alive }
}

/// Whether a living process works on a file of this name, as far as can be known.
pub fn is_worked_on(files: &dyn Files, path: &Path, name: &str) -> bool {
    let Some((_, owner)) = name.split_once('.') else { return false };
    if owner.starts_with(LEFT) {
        return false;
    }
    files.is_alive(owner).unwrap_or_else(|| {
        let modified = files.stat(path).map(|meta| meta.modified);
        let age = modified.ok().and_then(|modified| files.now().duration_since(modified).ok());
        age.is_some_and(|age| age < FOREIGN_PATIENCE)
    })
}

impl Claim<'_> {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, to be read and written.
    pub fn file(&self) -> &dyn File {
        &*self.file
    }

    /// Whether a process that has died may have written to it.
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Gives the file its final name, in place of what is there, and then takes away the permission
    /// to write: not before, or what a crash leaves in between could not be gone on with. Bytes and
    /// folder are the caller's to sync.
    ///
    /// # Errors
    /// As rename(2); another process has taken over.
    pub fn rename(mut self, to: &Path) -> Result<(), Error> {
        match self.files.rename(&self.path, to) {
            Ok(()) => {
                self.is_ended = true;
                let sealed = self.file.seal();
                sealed.map_err(|error| Error::io("make read-only", to, error))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.is_ended = true;
                Err(Error::TakenOver { path: self.path.clone() })
            }
            Err(error) => Err(Error::io("rename", &self.path, error)),
        }
    }

    /// Removes it.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn remove(mut self) -> Result<(), Error> {
        self.is_ended = true;
        match self.files.remove(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.path, error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((key, owner)) = name.split_once('.') else { return };
        // If this does not work, the end of the process says the same.
        let _ = self
            .files
            .rename(&self.path, &self.path.with_file_name(format!("{key}.{LEFT}{owner}")));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::store::files::Disk;
    use crate::store::test_folder;

    #[test]
    fn what_is_left_goes_to_one_of_many() {
        let folder = test_folder("claim");
        let path = folder.path();
        let first = claim(&Disk, path, "k").unwrap().unwrap();
        assert!(!first.is_resumed() && claim(&Disk, path, "k").unwrap().is_none());
        assert!(claim(&Disk, path, "other").unwrap().is_some());
        first.file().write_at(b"half", 0).unwrap();
        drop(first);
        // A dead process of this machine.
        let place = Disk.owner().split('-').next().unwrap().to_owned();
        std::fs::write(path.join(format!("k.{place}-1-0-0")), b"half").unwrap();
        let count = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    if let Some(claim) = claim(&Disk, path, "k").unwrap() {
                        assert_eq!(count.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                        std::thread::sleep(Duration::from_millis(1));
                        count.fetch_sub(1, Ordering::SeqCst);
                        claim.remove().unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn who_lost_it_learns_so() {
        let folder = test_folder("lost");
        let first = claim(&Disk, folder.path(), "k").unwrap().unwrap();
        std::fs::rename(first.path(), folder.path().join("k.mine")).unwrap();
        let lost = first.rename(&folder.path().join("final")).unwrap_err();
        assert!(matches!(lost, Error::TakenOver { .. }));
    }

    #[test]
    fn a_foreign_owner_is_dead_once_it_is_silent() {
        let folder = test_folder("foreign");
        let path = folder.path().join("k.0123456789abcdef-1-1-0");
        std::fs::write(&path, b"half").unwrap();
        assert!(claim(&Disk, folder.path(), "k").unwrap().is_none());
        let old = std::time::SystemTime::now() - 2 * FOREIGN_PATIENCE;
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(claim(&Disk, folder.path(), "k").unwrap().unwrap().is_resumed());
    }
}
