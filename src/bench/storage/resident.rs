//! Which share of a file the kernel has in memory, and how it is made to let go.
//!
//! A file is made cold by `posix_fadvise`, of this one file and without being root; writing to
//! `/proc/sys/vm/drop_caches` would slow everybody else on the machine. What the kernel then still
//! has is asked of it (mincore(2)), since it may keep pages all the same: on a tmpfs they are the
//! file, and what others have mapped stays. Below the page cache a disk, a hypervisor or a file
//! server may have caches of its own, which nobody can see from here.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;

/// Mapped at once to be asked about: the answer has a byte for each page.
const WINDOW_BYTES: u64 = 1 << 30;
/// Read at once.
const READ_BYTES: usize = 1 << 20;

/// The share of a file's pages that are in memory, 0 to 1; of an empty file 1. Of a file of another
/// user the kernel says that all are (mincore(2), since Linux 5.2).
///
/// # Errors
/// As fstat(2), mmap(2) and mincore(2).
pub fn share(file: &File) -> io::Result<f64> {
    let size = file.metadata()?.len();
    let (mut there, mut pages) = (0, 0);
    for start in (0..size).step_by(WINDOW_BYTES as usize) {
        let window = of_window(file, start, WINDOW_BYTES.min(size - start) as usize)?;
        there += window.iter().filter(|page| **page & 1 == 1).count();
        pages += window.len();
    }
    Ok(if pages == 0 { 1.0 } else { there as f64 / pages as f64 })
}

/// A byte for each page of a part of a file that begins on a page; bit 0: it is in memory.
fn of_window(file: &File, start: u64, len: usize) -> io::Result<Vec<u8>> {
    // SAFETY: sysconf(3) has no precondition.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let offset = libc::off_t::try_from(start).map_err(io::Error::other)?;
    let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED);
    // SAFETY: a fresh mapping at an address of the kernel's choice, of a length that is not 0; it
    // is never read, so that a file which shrinks does no harm.
    let at =
        unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, file.as_raw_fd(), offset) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut pages = vec![0_u8; len.div_ceil(page)];
    // SAFETY: the range is the mapping just made, and `pages` has a byte for each of its pages.
    let asked = unsafe { libc::mincore(at, len, pages.as_mut_ptr()) };
    let error = io::Error::last_os_error();
    // SAFETY: the range was mapped above, and nothing refers to it.
    unsafe { libc::munmap(at, len) };
    if asked == 0 { Ok(pages) } else { Err(error) }
}

/// Has the kernel let go of a file's pages; the share that stays in memory comes back. What was
/// written to it is on the disk then.
///
/// # Errors
/// As open(2), fsync(2) and posix_fadvise(2).
pub fn drop_pages(path: &Path) -> io::Result<f64> {
    let file = File::open(path)?;
    // Pages that are not yet written are kept.
    file.sync_all()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    share(&file)
}

/// Reads a file from its start to its end; the share of it that is in memory then comes back.
///
/// # Errors
/// As open(2) and read(2).
pub fn load_pages(path: &Path) -> io::Result<f64> {
    let file = File::open(path)?;
    read_through(&file)?;
    share(&file)
}

/// Reads an open file to its end, as any program would; how many bytes there were.
///
/// # Errors
/// As read(2).
pub fn read_through(mut file: &File) -> io::Result<u64> {
    let (mut buffer, mut bytes) = (vec![0; READ_BYTES], 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the folder of what was built, which is on a disk where the system's folder may not be.
    fn path(name: &str) -> std::path::PathBuf {
        let program = std::env::current_exe().unwrap();
        program.with_file_name(format!("resident-{name}-{}", std::process::id()))
    }

    #[test]
    fn what_is_read_is_in_memory_and_can_be_dropped() {
        let path = path("pages");
        std::fs::write(&path, vec![7; 3 << 20]).unwrap();
        let warm = load_pages(&path).unwrap();
        let cold = drop_pages(&path).unwrap();
        let again = load_pages(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((warm, again), (1.0, 1.0));
        // A file system that is in memory alone keeps all of it, and says so.
        assert!(cold == 0.0 || cold == 1.0, "{cold}");
    }

    #[test]
    fn an_empty_file_and_none() {
        let path = path("empty");
        std::fs::write(&path, b"").unwrap();
        let share = drop_pages(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(share.unwrap(), 1.0);
        assert_eq!(drop_pages(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
