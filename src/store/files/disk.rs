//! The machine's own files.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{self, FallocateFlags, copy_file_range};
use nix::libc;

use super::{File, Files, Meta};
use crate::prng;
use crate::store::map::Map;

/// The machine's own files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

struct DiskFile(fs::File);

/// Copied in one call: a signal is seen in between.
const COPY_BYTES: usize = 64 << 20;

impl Files for Disk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(DiskFile(fs::File::open(path)?)))
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(DiskFile(fs::File::options().read(true).write(true).open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = fs::File::options().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(DiskFile(file)))
    }

    fn copy(&self, from: &Path, to: &Path) -> io::Result<()> {
        let source = fs::File::open(from)?;
        let target = fs::File::options().read(true).write(true).create_new(true).open(to)?;
        let copied = copy(source, target);
        if copied.is_err() {
            let _ = fs::remove_file(to);
        }
        copied
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        symlink(target, path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match fs::File::open(path)?.sync_all() {
            // Some network file systems have no such call; their names are durable at once.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            synced => synced,
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn stat(&self, path: &Path) -> io::Result<Meta> {
        Ok(meta(&fs::metadata(path)?))
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        let now = nix::sys::time::TimeSpec::UTIME_NOW;
        let flag = nix::sys::stat::UtimensatFlags::FollowSymlink;
        Ok(nix::sys::stat::utimensat(fcntl::AT_FDCWD, path, &now, &now, flag)?)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let of_disk = nix::sys::statvfs::statvfs(path)?;
        Ok(of_disk.blocks_available() * of_disk.fragment_size())
    }

    fn is_in_use(&self, path: &Path) -> Option<bool> {
        // A write lease is given only if nobody else has the file open or mapped (fcntl(2)); not by
        // network file systems, and only to the file's owner.
        let file = fs::File::open(path).ok()?;
        super::super::map::set_lease(file.as_raw_fd())
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn owner(&self) -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        // A process without a start time is in a system without /proc: no other one is known to
        // run.
        let start = process(pid).map_or(0, |(_, start)| start);
        format!("{:016x}-{pid}-{start}-{count}", place())
    }

    fn is_alive(&self, owner: &str) -> Option<bool> {
        let mut fields = owner.split('-');
        let of_place = u64::from_str_radix(fields.next()?, 16).ok()?;
        let (pid, start) = (fields.next()?.parse().ok()?, fields.next()?.parse::<u64>().ok()?);
        if of_place != place() {
            return None;
        }
        // A zombie does nothing any more.
        let there = process(pid);
        Some(there.is_some_and(|(state, since)| since == start && !matches!(state, 'Z' | 'X')))
    }
}

/// State and start time of a process (proc(5): fields 3 and 22 of its stat).
fn process(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Where process numbers mean the same: this boot of this machine, and this container.
fn place() -> u64 {
    static PLACE: OnceLock<u64> = OnceLock::new();
    *PLACE.get_or_init(|| {
        let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let names = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let host = nix::unistd::gethostname().unwrap_or_default();
        let host = prng::hash(0, host.as_encoded_bytes());
        prng::hash(prng::hash(host, names.as_os_str().as_encoded_bytes()), &boot)
    })
}

fn meta(found: &fs::Metadata) -> Meta {
    Meta {
        is_file: found.is_file(),
        is_dir: found.is_dir(),
        size: found.len(),
        disk_bytes: found.blocks() * 512,
        links: found.nlink(),
        id: (found.dev(), found.ino()),
        modified: found.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        changed_ns: i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec()),
    }
}

fn copy(source: fs::File, target: fs::File) -> io::Result<()> {
    if super::super::map::clone_file(target.as_raw_fd(), source.as_raw_fd()) {
        return Ok(());
    }
    let size = source.metadata()?.len();
    let copied = DiskFile(target).copy_range(&DiskFile(source), 0, size)?;
    if copied == size { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

impl File for DiskFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, into, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn copy_range(&self, from: &dyn File, offset: u64, bytes: u64) -> io::Result<u64> {
        let mut done = 0;
        while let Some(source) = from.descriptor().filter(|_| done < bytes) {
            let (mut of_source, mut of_target) = ((offset + done) as i64, (offset + done) as i64);
            let count = COPY_BYTES.min((bytes - done) as usize);
            let (source_at, target_at) = (Some(&mut of_source), Some(&mut of_target));
            match copy_file_range(source, source_at, &self.0, target_at, count) {
                // What the system cannot copy by itself (another disk, an odd one) is read.
                Ok(0) | Err(Errno::EXDEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                    break;
                }
                Ok(count) => done += count as u64,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let rest = super::copy_by_reading(self, from, offset + done, bytes - done)?;
        Ok(done + rest)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let Ok(bytes) = i64::try_from(bytes) else { return Err(Errno::EFBIG.into()) };
        if bytes == 0 {
            return Ok(());
        }
        match fcntl::fallocate(&self.0, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes) {
            // There is no such call here: the file grows as it is written.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(()),
            allocated => Ok(allocated?),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn start_sync(&self, offset: u64, bytes: u64) {
        super::super::map::start_writeback(self.0.as_raw_fd(), offset, bytes);
    }

    fn seal(&self) -> io::Result<()> {
        self.0.set_permissions(fs::Permissions::from_mode(0o444))
    }

    fn meta(&self) -> io::Result<Meta> {
        Ok(meta(&self.0.metadata()?))
    }

    fn has_data(&self, offset: u64, bytes: u64) -> bool {
        let Ok(from) = i64::try_from(offset) else { return true };
        match nix::unistd::lseek(&self.0, from, nix::unistd::Whence::SeekData) {
            Ok(next) => (next as u64) < offset + bytes,
            // ENXIO: nothing but a hole up to the end.
            Err(error) => error != Errno::ENXIO,
        }
    }

    fn map(&self) -> Option<Map> {
        Map::of(&self.0).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::test_folder;

    #[test]
    fn a_copy_is_equal_and_never_replaces() {
        let folder = test_folder("copy");
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&a, vec![7; 1_000_000]).unwrap();
        Disk.copy(&a, &b).unwrap();
        assert_eq!(fs::read(&b).unwrap(), vec![7; 1_000_000]);
        assert_eq!(Disk.copy(&a, &b).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn who_runs_is_known() {
        let (a, b) = (Disk.owner(), Disk.owner());
        assert!(a != b && Disk.is_alive(&a) == Some(true) && Disk.is_alive(&b) == Some(true));
        let fields: Vec<&str> = a.split('-').collect();
        let later = format!("{}-{}-{}-0", fields[0], fields[1], u64::MAX);
        assert_eq!(Disk.is_alive(&later), Some(false));
        assert_eq!(Disk.is_alive("0123456789abcdef-1-1-0"), None);
        assert_eq!(Disk.is_alive("left-behind"), None);
    }

    #[test]
    fn holes_and_use_are_seen() {
        let folder = test_folder("holes");
        let path = folder.path().join("file");
        let file = Disk.create(&path).unwrap();
        file.allocate(4 << 20).unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_at(&[1; 4096], 2 << 20).unwrap();
        assert!(file.has_data(2 << 20, 4096) && file.has_data(0, 4 << 20));
        // A file system may be coarser than it could be, but says so here at the end.
        assert!(!file.has_data(3 << 20, 1 << 20) || file.has_data(0, 4096));
        assert_ne!(Disk.is_in_use(&path), Some(false));
        drop(file);
        assert_ne!(Disk.is_in_use(&path), Some(true));
    }
}
