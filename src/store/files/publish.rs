//! How something becomes visible: whole, durable, and at once.

use std::io;
use std::path::Path;

use super::Files;
use crate::store::error::Error;

/// The folder that a path lies in.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a folder and those above it, durably.
///
/// # Errors
/// One of them cannot be made.
pub fn create_dirs(files: &dyn Files, path: &Path) -> Result<(), Error> {
    match files.create_dir(path) {
        // Another process may have made it a moment ago and not have come to this.
        Ok(()) => sync_parent(files, path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match files.stat(path) {
            Ok(meta) if meta.is_dir => Ok(()),
            Ok(_) => Err(Error::io("make the folder", path, error)),
            Err(error) => Err(Error::io("look at", path, error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_dirs(files, parent(path))?;
            match files.create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    Err(Error::io("make the folder", path, error))
                }
                _ => sync_parent(files, path),
            }
        }
        Err(error) => Err(Error::io("make the folder", path, error)),
    }
}

fn sync_parent(files: &dyn Files, path: &Path) -> Result<(), Error> {
    let folder = parent(path);
    files.sync_dir(folder).map_err(|error| Error::io("make durable", folder, error))
}

/// Writes a small file durably, in place of what may be there: into `tmp` on the same disk, which
/// is made if need be, synced, renamed, and the folder synced.
///
/// # Errors
/// Some of it failed; the old file is still there.
pub fn write_whole(files: &dyn Files, tmp: &Path, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    create_dirs(files, tmp)?;
    let draft = tmp.join(format!("draft.{}", files.owner()));
    let written = files.create(&draft).and_then(|file| {
        file.write_at(bytes, 0)?;
        file.sync()
    });
    let written = match written {
        Ok(()) => create_dirs(files, parent(path)).and_then(|()| {
            files.rename(&draft, path).map_err(|error| Error::io("write", path, error))
        }),
        Err(error) => Err(Error::io("write", &draft, error)),
    };
    if written.is_err() {
        // Best effort: it is found by its age later.
        let _ = files.remove(&draft);
    }
    written?;
    sync_parent(files, path)
}
