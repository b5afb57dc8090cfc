//! Gives a cached blob a name outside the cache.

use std::path::{Path, PathBuf};

use super::error::Error;
use super::files::{Files, parent};

/// How the output relates to the cached file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A file of its own; on file systems that can, it shares the blocks until one is changed.
    Copy,
    /// The same file under a second name: no room, no time, and read-only.
    Link,
}

/// Puts a cached blob at `output`, in place of what may be there, at once and durably.
///
/// # Errors
/// It cannot be written there, or not be linked to.
pub fn deliver(
    files: &dyn Files,
    cached: &Path,
    output: &Path,
    delivery: Delivery,
) -> Result<(), Error> {
    let draft = draft(files, output);
    let action = match delivery {
        Delivery::Copy => "write",
        Delivery::Link => "link (across disks it does not work: leave --link out)",
    };
    let made = match delivery {
        Delivery::Link => files.link(cached, &draft),
        Delivery::Copy => {
            files.copy(cached, &draft).and_then(|()| files.open_write(&draft)?.sync())
        }
    };
    if let Err(error) = made.and_then(|()| files.rename(&draft, output)) {
        let _ = files.remove(&draft);
        return Err(Error::io(action, output, error));
    }
    // A second name of the same file is renamed to nothing: rename(2) leaves both.
    let _ = files.remove(&draft);
    let folder = parent(output);
    files.sync_dir(folder).map_err(|error| Error::io("make durable", folder, error))
}

fn draft(files: &dyn Files, output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    parent(output).join(format!(".{name}.{}", files.owner()))
}
