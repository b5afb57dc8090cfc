//! The few system calls that are unsafe to make: memory maps of files that may shrink, file leases,
//! clones and early writeback.
//!
//! # Maps and SIGBUS
//!
//! Who touches a page of a map that lies behind the file's end, because somebody cut the file, gets
//! SIGBUS and dies; so it is when the disk or the network cannot read the page. A `Map` therefore
//! registers its range, and a signal handler looks the faulting address up: if it lies in a map, a
//! page of zeros is put there and the map is marked torn; else the signal is as deadly as it was.
//! Who reads a map has to ask `is_torn` after the last byte, and what was read is void if so.
//!
//! The bytes of a map may change at any time, as those of a file can. So a map is only read where a
//! change does no more than give another digest: nothing is stored, sent or copied out of one.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::libc;

/// A file's bytes, mapped to be read.
pub struct Map {
    start: usize,
    len: usize,
    slot: usize,
}

/// Ranges that are mapped now. A fixed table, since a signal handler can neither lock nor allocate;
/// a map for which there is no slot is not made.
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    torn: AtomicBool,
}

/// Maps at once: two a hashing thread, on machines with many cores.
const SLOTS: usize = 256;
static TABLE: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        torn: AtomicBool::new(false),
    }
}; SLOTS];
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);

impl Map {
    /// Maps a file as long as it is now.
    ///
    /// # Errors
    /// As mmap(2); an empty file has no map.
    pub fn of(file: &File) -> io::Result<Map> {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        let size = usize::try_from(file.metadata()?.len()).ok().and_then(NonZeroUsize::new);
        let len = size.ok_or(io::ErrorKind::InvalidInput)?.get();
        let slot = TABLE.iter().position(|slot| !slot.taken.swap(true, Ordering::AcqRel));
        let slot = slot.ok_or(io::ErrorKind::ResourceBusy)?;
        let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a fresh mapping of our own choice of address, length not 0; nothing refers to it
        // yet.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            TABLE[slot].taken.store(false, Ordering::Release);
            return Err(error);
        }
        let entry = &TABLE[slot];
        entry.torn.store(false, Ordering::Relaxed);
        entry.end.store(start as usize + len, Ordering::Release);
        entry.start.store(start as usize, Ordering::Release);
        // SAFETY: the range is the mapping just made; advice has no precondition beyond that. It
        // may fail, and nothing depends on it.
        unsafe { libc::madvise(start, len, libc::MADV_SEQUENTIAL) };
        Ok(Map { start: start as usize, len, slot })
    }

    /// Its bytes. They are what the file holds when they are touched, or zeros once `is_torn`.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range is mapped for reading until `self` is dropped, and stays so when the
        // file shrinks: the signal handler puts zeros there. That another process may change the
        // bytes is the same as for any memory of the kernel: they are only ever fed to a hash,
        // byte by byte, and no decision is taken on them.
        unsafe { std::slice::from_raw_parts(self.start as *const u8, self.len) }
    }

    /// Whether bytes that were read were not the file's: it has shrunk, or could not be read.
    pub fn is_torn(&self) -> bool {
        TABLE[self.slot].torn.load(Ordering::Acquire)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        let entry = &TABLE[self.slot];
        entry.start.store(0, Ordering::Release);
        entry.end.store(0, Ordering::Release);
        // SAFETY: the range was mapped by `of`, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.start as *mut c_void, self.len) };
        entry.taken.store(false, Ordering::Release);
    }
}

fn install() {
    // SAFETY: sysconf(3) has no precondition; sigaction(2) is given a handler that only makes calls
    // that are safe in one (atomics, mmap, sigaction), on whichever stack the signal finds: the
    // standard library gives each thread an alternate one.
    unsafe {
        let page = libc::sysconf(libc::_SC_PAGESIZE);
        if page > 0 {
            PAGE_BYTES.store(page as usize, Ordering::Relaxed);
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel hands a valid siginfo, whose address is set for SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &TABLE {
        let (start, end) = (slot.start.load(Ordering::Acquire), slot.end.load(Ordering::Acquire));
        if start != 0 && (start..end).contains(&address) {
            let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
            let page = address & !(page_bytes - 1);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            // SAFETY: the page lies in a mapping of ours that is being read right now by this very
            // thread, so it is not unmapped meanwhile; it stays readable.
            let put = unsafe {
                libc::mmap(page as *mut c_void, page_bytes, libc::PROT_READ, flags, -1, 0)
            };
            if put != libc::MAP_FAILED {
                slot.torn.store(true, Ordering::Release);
                return;
            }
        }
    }
    // None of ours: the instruction faults again, and this time it is deadly, as it was before.
    // SAFETY: sigaction(2) is safe in a handler.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

/// Whether anybody but this descriptor has the file open; none if the system does not tell.
pub(super) fn set_lease(fd: RawFd) -> Option<bool> {
    // SAFETY: fcntl(2) on an open descriptor, with integers.
    let taken = unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) };
    if taken == 0 {
        // SAFETY: as above.
        unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
        return Some(false);
    }
    let error = io::Error::last_os_error().raw_os_error();
    (error == Some(libc::EAGAIN)).then_some(true)
}

/// Has a file share the bytes of another one, where the file system can.
pub(super) fn clone_file(to: RawFd, from: RawFd) -> bool {
    // SAFETY: ioctl_ficlone(2) on two open descriptors.
    unsafe { libc::ioctl(to, libc::FICLONE, from) == 0 }
}

/// Has the disk begin to write; a hint, so that the sync at the end has less to wait for.
pub(super) fn start_writeback(fd: RawFd, offset: u64, bytes: u64) {
    let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) else { return };
    // SAFETY: sync_file_range(2) on an open descriptor; it changes nothing but when bytes go.
    unsafe { libc::sync_file_range(fd, offset, bytes, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::test_folder;

    #[test]
    fn a_file_that_shrinks_is_torn_and_nobody_dies() {
        let folder = test_folder("map");
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let map = Map::of(&file).unwrap();
        let sum = |map: &Map| map.bytes().iter().map(|&byte| u64::from(byte)).sum::<u64>();
        assert_eq!((sum(&map), map.is_torn()), (1 << 20, false));
        file.set_len(100_000).unwrap();
        assert!(sum(&map) <= 100_000 && map.is_torn());
        let again = std::thread::scope(|scope| scope.spawn(|| sum(&map)).join().unwrap());
        assert!(again <= 100_000);
        drop(map);
        let fresh = Map::of(&file).unwrap();
        assert_eq!((sum(&fresh), fresh.is_torn()), (100_000, false));
    }

    #[test]
    fn an_empty_file_has_no_map_and_slots_come_back() {
        let folder = test_folder("maps");
        let path = folder.path().join("file");
        std::fs::write(&path, b"").unwrap();
        assert!(Map::of(&File::open(&path).unwrap()).is_err());
        std::fs::write(&path, b"x").unwrap();
        let file = File::open(&path).unwrap();
        for _ in 0..2 * SLOTS {
            assert_eq!(Map::of(&file).unwrap().bytes(), b"x");
        }
    }
}
