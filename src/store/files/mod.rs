//! Files as the store uses them: few calls, each of which a test can let fail, or the last one
//! ever.
//!
//! What makes something durable is spelled out: `File::sync` for bytes, `Files::sync_dir` for
//! names. Nothing else survives a loss of power.

mod disk;
#[cfg(test)]
pub(in crate::store) mod memory;
mod publish;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::SystemTime;

pub use disk::Disk;
pub use publish::{create_dirs, parent, write_whole};

use super::map::Map;

/// A file system.
pub trait Files: Send + Sync {
    /// Opens a file to read it.
    ///
    /// # Errors
    /// As open(2).
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>>;

    /// Opens a file to read and write it.
    ///
    /// # Errors
    /// As open(2).
    fn open_write(&self, path: &Path) -> io::Result<Box<dyn File>>;

    /// Makes an empty file, to read and write it.
    ///
    /// # Errors
    /// `AlreadyExists`, and as open(2).
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;

    /// Makes a new file that has the bytes of another one: shares them where the file system can,
    /// else copies.
    ///
    /// # Errors
    /// `AlreadyExists`, and as open(2) and write(2); what was copied so far is removed.
    fn copy(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name.
    ///
    /// # Errors
    /// `AlreadyExists`, and as link(2).
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// `AlreadyExists`, and as symlink(2).
    fn symlink(&self, target: &Path, path: &Path) -> io::Result<()>;

    /// Renames, in place of what may be there.
    ///
    /// # Errors
    /// As rename(2).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As unlink(2).
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a folder.
    ///
    /// # Errors
    /// `AlreadyExists`, and as mkdir(2).
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    ///
    /// # Errors
    /// As rmdir(2).
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// As fsync(2).
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a folder, sorted; those that are not UTF-8 are none of ours.
    ///
    /// # Errors
    /// As opendir(3).
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// What is known of a file or folder; symbolic links are followed.
    ///
    /// # Errors
    /// As stat(2).
    fn stat(&self, path: &Path) -> io::Result<Meta>;

    /// Sets the time of the last change to now.
    ///
    /// # Errors
    /// As utimensat(2).
    fn touch(&self, path: &Path) -> io::Result<()>;

    /// Bytes that this user may still write to the disk of a folder.
    ///
    /// # Errors
    /// As statvfs(3).
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;

    /// Whether any process has a file open or mapped. None: cannot be known here.
    fn is_in_use(&self, path: &Path) -> Option<bool>;

    /// The present time, by the clock that stamps files.
    fn now(&self) -> SystemTime;

    /// A name for what this process is doing, which nobody else has or had: letters, digits and
    /// `-`.
    fn owner(&self) -> String;

    /// Whether the process that had this name from `owner` still runs. None: it is on another
    /// machine, or in another container.
    fn is_alive(&self, owner: &str) -> Option<bool>;
}

/// An open file.
pub trait File: Send + Sync {
    /// Reads at most `into.len()` bytes; 0 at the end.
    ///
    /// # Errors
    /// As pread(2).
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of it.
    ///
    /// # Errors
    /// As pwrite(2).
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Copies bytes from the same place of another file, by the system alone where it can; how many
    /// there were.
    ///
    /// # Errors
    /// As copy_file_range(2), pread(2) and pwrite(2).
    fn copy_range(&self, from: &dyn File, offset: u64, bytes: u64) -> io::Result<u64>;

    /// Its descriptor, where it has one.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Cuts or extends it, with zeros.
    ///
    /// # Errors
    /// As ftruncate(2).
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Has the disk set aside room for so many bytes from the start, where the file system can.
    ///
    /// # Errors
    /// As fallocate(2), most of all ENOSPC.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Makes its bytes durable. If that fails they are lost: a second try would hide it.
    ///
    /// # Errors
    /// As fsync(2).
    fn sync(&self) -> io::Result<()>;

    /// Has the disk begin with bytes that `sync` will wait for.
    fn start_sync(&self, offset: u64, bytes: u64);

    /// Takes away everybody's permission to write.
    ///
    /// # Errors
    /// As fchmod(2).
    fn seal(&self) -> io::Result<()>;

    /// What is known of it.
    ///
    /// # Errors
    /// As fstat(2).
    fn meta(&self) -> io::Result<Meta>;

    /// Whether something was ever written from `offset` on, within so many bytes. True if unknown.
    fn has_data(&self, offset: u64, bytes: u64) -> bool;

    /// Its bytes in memory, from the start; they are read when they are touched. None: they cannot
    /// be mapped.
    fn map(&self) -> Option<Map>;
}

/// Read and written at once where the system cannot copy by itself.
const COPY_BYTES: usize = 256 << 10;

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// A regular file, not a folder or anything else.
    pub is_file: bool,
    /// A folder.
    pub is_dir: bool,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes of the disk that it takes.
    pub disk_bytes: u64,
    /// Names that it has.
    pub links: u64,
    /// Disk and number there: two files with the same are one.
    pub id: (u64, u64),
    /// Last change of its bytes, as far as its owner admits it.
    pub modified: SystemTime,
    /// Last change of anything, in ns of a clock; nobody can set it.
    pub changed_ns: i128,
}

/// Copies bytes from the same place of another file, through a buffer; how many there were.
///
/// # Errors
/// As pread(2) and pwrite(2).
fn copy_by_reading(to: &dyn File, from: &dyn File, offset: u64, bytes: u64) -> io::Result<u64> {
    let mut buffer = vec![0; (COPY_BYTES as u64).min(bytes) as usize];
    let mut done = 0;
    while done < bytes {
        let piece = &mut buffer[..(COPY_BYTES as u64).min(bytes - done) as usize];
        let count = read_full(from, piece, offset + done)?;
        to.write_at(&piece[..count], offset + done)?;
        done += count as u64;
        if count < piece.len() {
            break;
        }
    }
    Ok(done)
}

/// Reads until `into` is full or the file ends; how many bytes came.
///
/// # Errors
/// As pread(2).
pub fn read_full(file: &dyn File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads a whole small file; one of more than `limit` bytes is an error.
///
/// # Errors
/// As open(2) and pread(2); `InvalidData` if it is larger.
pub fn read_whole(files: &dyn Files, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let file = files.open(path)?;
    let size = file.meta()?.size;
    if size > limit as u64 {
        let message = format!("it has {size} bytes, more than {limit}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut bytes = vec![0; size as usize];
    let count = read_full(&*file, &mut bytes, 0)?;
    bytes.truncate(count);
    Ok(bytes)
}
