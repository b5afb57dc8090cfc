//! A file system in memory that fails or stops at a chosen call, and tells what a crash leaves.
//!
//! It keeps two states: what programs see, and what a loss of power leaves. `File::sync` carries
//! bytes from the one to the other, `Files::sync_dir` names; a rename is one step, as journals make
//! it, whichever of its folders is synced first.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use nix::libc;

use super::{File, Files, Meta, parent};
use crate::store::map::Map;

/// What happens at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Fault {
    /// It fails with this error, and whatever comes next works.
    Fail(i32),
    /// The process ends in it: a write is half done, nothing comes next.
    Stop,
}

/// What is left after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum After {
    /// The process was killed: the system has all that it did.
    Kill,
    /// Power was lost: what was not synced is not there.
    PowerLoss,
    /// Power was lost, and names were quicker than bytes: those that were not synced are zeros.
    NamesFirst,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Dir,
    File(u64),
    Link(PathBuf),
}

#[derive(Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    is_sealed: bool,
    modified: u64,
    changed: u64,
}

#[derive(Clone, Default)]
struct State {
    names: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    renames: Vec<(PathBuf, PathBuf)>,
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    /// Time, in calls and what a test adds.
    clock: u64,
    epoch: u64,
    calls: u64,
    fault: Option<(u64, Fault)>,
    is_stopped: bool,
    has_links: bool,
    capacity: u64,
    in_use: Vec<PathBuf>,
}

/// A file system in memory.
#[derive(Clone)]
pub(in crate::store) struct Memory(Arc<Mutex<State>>);

struct MemoryFile {
    memory: Memory,
    inode: u64,
}

fn error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Memory {
    pub fn new() -> Memory {
        let mut state = State { has_links: true, capacity: 1 << 40, next: 1, ..State::default() };
        for folder in ["/", "/store", "/cache", "/home"] {
            state.names.insert(folder.into(), Node::Dir);
        }
        state.durable = state.names.clone();
        Memory(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Another one of equal state, in which a call from here on has a fault.
    pub fn with_fault(&self, call: u64, fault: Fault) -> Memory {
        let mut state = self.lock().clone();
        state.calls = 0;
        state.fault = Some((call, fault));
        Memory(Arc::new(Mutex::new(state)))
    }

    /// Whether the chosen call came.
    pub fn has_met_fault(&self) -> bool {
        let state = self.lock();
        state.fault.is_none_or(|(call, _)| state.calls > call)
    }

    /// What a new process finds.
    pub fn after(&self, after: After) -> Memory {
        let mut state = self.lock().clone();
        state.fault = None;
        state.is_stopped = false;
        state.epoch += 1;
        match after {
            After::Kill => {}
            After::PowerLoss => {
                state.names = state.durable.clone();
                for inode in state.inodes.values_mut() {
                    inode.bytes = inode.durable.clone();
                }
            }
            After::NamesFirst => {
                for inode in state.inodes.values_mut() {
                    let len = inode.bytes.len();
                    inode.bytes = inode.durable.clone();
                    inode.bytes.resize(len, 0);
                }
            }
        }
        state.renames.clear();
        // What is there after a start is on the disk.
        state.durable = state.names.clone();
        for inode in state.inodes.values_mut() {
            inode.durable = inode.bytes.clone();
        }
        Memory(Arc::new(Mutex::new(state)))
    }

    pub fn without_links(self) -> Memory {
        self.lock().has_links = false;
        self
    }

    pub fn pass(&self, time: Duration) {
        self.lock().clock += time.as_millis() as u64;
    }

    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    pub fn use_file(&self, path: &Path) {
        self.lock().in_use.push(path.to_owned());
    }

    pub fn put(&self, path: &str, bytes: &[u8]) {
        let file = self.create(Path::new(path)).unwrap();
        file.write_at(bytes, 0).unwrap();
        file.sync().unwrap();
        self.sync_dir(parent(Path::new(path))).unwrap();
    }

    /// Flips a bit of a file, as a bad disk does: no time changes.
    pub fn flip(&self, path: &Path, at: usize) {
        let mut state = self.lock();
        let Some(Node::File(inode)) = state.names.get(path).cloned() else { panic!("{path:?}") };
        let inode = state.inodes.get_mut(&inode).unwrap();
        inode.bytes[at] ^= 1;
        inode.durable = inode.bytes.clone();
    }

    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.lock();
        let inode = state.resolve(path).ok()?;
        Some(state.inodes[&inode].bytes.clone())
    }

    /// Counts a call, and lets it have its fault. True: it is the one that the process ends in.
    fn call(&self) -> io::Result<(MutexGuard<'_, State>, bool)> {
        let mut state = self.lock();
        if state.is_stopped {
            return Err(error(libc::EIO));
        }
        let call = state.calls;
        state.calls += 1;
        state.clock += 1;
        match state.fault {
            Some((at, Fault::Fail(code))) if at == call => Err(error(code)),
            Some((at, Fault::Stop)) if at == call => {
                state.is_stopped = true;
                Ok((state, true))
            }
            _ => Ok((state, false)),
        }
    }

    /// The same, for calls that are done wholly or not at all.
    fn whole(&self) -> io::Result<MutexGuard<'_, State>> {
        match self.call()? {
            (_, true) => Err(error(libc::EIO)),
            (state, false) => Ok(state),
        }
    }
}

impl State {
    fn resolve(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Node::File(inode)) => Ok(*inode),
            Some(Node::Link(target)) => {
                let mut at = parent(path).to_owned();
                for part in target.components() {
                    match part {
                        std::path::Component::ParentDir => drop(at.pop()),
                        part => at.push(part),
                    }
                }
                self.resolve(&at)
            }
            Some(Node::Dir) => Err(error(libc::EISDIR)),
            None => Err(error(libc::ENOENT)),
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<()> {
        if self.names.contains_key(path) {
            return Err(error(libc::EEXIST));
        }
        if self.names.get(parent(path)) != Some(&Node::Dir) {
            return Err(error(libc::ENOENT));
        }
        self.names.insert(path.to_owned(), node);
        Ok(())
    }

    fn make(&mut self, path: &Path, bytes: Vec<u8>) -> io::Result<u64> {
        let (inode, clock) = (self.next, self.clock);
        self.add(path, Node::File(inode))?;
        self.next += 1;
        let fresh = Inode { bytes, modified: clock, changed: clock, ..Inode::default() };
        self.inodes.insert(inode, fresh);
        Ok(inode)
    }

    fn meta(&self, inode: u64) -> Meta {
        let of = &self.inodes[&inode];
        let links = self.names.values().filter(|node| **node == Node::File(inode)).count();
        // Coarse: all of it, or nothing yet.
        let has_data = of.bytes.iter().any(|&byte| byte != 0);
        Meta {
            is_file: true,
            is_dir: false,
            size: of.bytes.len() as u64,
            disk_bytes: if has_data { of.bytes.len() as u64 } else { 0 },
            links: links as u64,
            id: (1, inode),
            modified: SystemTime::UNIX_EPOCH + Duration::from_millis(of.modified),
            changed_ns: i128::from(of.changed),
        }
    }

    fn in_folder<'a>(
        names: &'a BTreeMap<PathBuf, Node>,
        folder: &'a Path,
    ) -> impl Iterator<Item = (&'a PathBuf, &'a Node)> {
        names.iter().filter(move |(path, _)| path.as_path() != folder && parent(path) == folder)
    }

    fn used(&self) -> u64 {
        self.inodes.values().map(|inode| inode.bytes.len() as u64).sum()
    }
}

impl Files for Memory {
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let inode = self.whole()?.resolve(path)?;
        Ok(Box::new(MemoryFile { memory: self.clone(), inode }))
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let state = self.whole()?;
        let inode = state.resolve(path)?;
        if state.inodes[&inode].is_sealed {
            return Err(error(libc::EACCES));
        }
        drop(state);
        Ok(Box::new(MemoryFile { memory: self.clone(), inode }))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let inode = self.whole()?.make(path, Vec::new())?;
        Ok(Box::new(MemoryFile { memory: self.clone(), inode }))
    }

    fn copy(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut state, is_last) = self.call()?;
        let source = state.resolve(from)?;
        let mut bytes = state.inodes[&source].bytes.clone();
        if is_last {
            bytes.truncate(bytes.len() / 2);
        }
        state.make(to, bytes)?;
        if is_last { Err(error(libc::EIO)) } else { Ok(()) }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.whole()?;
        if !state.has_links {
            return Err(error(libc::EXDEV));
        }
        let inode = state.resolve(from)?;
        let clock = state.clock;
        state.inodes.get_mut(&inode).unwrap().changed = clock;
        state.add(to, Node::File(inode))
    }

    fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        self.whole()?.add(path, Node::Link(target.to_owned()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.whole()?;
        let node = state.names.get(from).cloned().ok_or(error(libc::ENOENT))?;
        if state.names.get(parent(to)) != Some(&Node::Dir) {
            return Err(error(libc::ENOENT));
        }
        if state.names.get(to) == Some(&node) {
            return Ok(());
        }
        state.names.remove(from);
        state.names.insert(to.to_owned(), node);
        state.renames.push((from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.whole()?;
        match state.names.get(path) {
            None => Err(error(libc::ENOENT)),
            Some(Node::Dir) => Err(error(libc::EISDIR)),
            Some(_) => {
                state.names.remove(path);
                Ok(())
            }
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.whole()?.add(path, Node::Dir)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.whole()?;
        if State::in_folder(&state.names, path).next().is_some() {
            return Err(error(libc::ENOTEMPTY));
        }
        state.names.remove(path).map(drop).ok_or(error(libc::ENOENT))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.whole()?;
        let of_folder =
            |(from, to): &(PathBuf, PathBuf)| parent(from) == path || parent(to) == path;
        let renames: Vec<_> =
            state.renames.iter().filter(|pair| of_folder(pair)).cloned().collect();
        state.renames.retain(|pair| !of_folder(pair));
        for (from, to) in renames {
            if !state.names.contains_key(&from) {
                state.durable.remove(&from);
            }
            if let Some(node) = state.names.get(&to).cloned() {
                state.durable.insert(to, node);
            }
        }
        let now: Vec<_> = State::in_folder(&state.names, path)
            .map(|(path, node)| (path.clone(), node.clone()))
            .collect();
        state.durable.retain(|name, _| name.as_path() == path || parent(name) != path);
        state.durable.extend(now);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.whole()?;
        if state.names.get(path) != Some(&Node::Dir) {
            return Err(error(libc::ENOENT));
        }
        let names = State::in_folder(&state.names, path).filter_map(|(path, _)| path.file_name());
        Ok(names.map(|name| name.to_str().unwrap().to_owned()).collect())
    }

    fn stat(&self, path: &Path) -> io::Result<Meta> {
        let state = self.whole()?;
        if state.names.get(path) == Some(&Node::Dir) {
            let modified = SystemTime::UNIX_EPOCH;
            let (id, changed_ns) = ((1, 0), 0);
            let (size, disk_bytes, links) = (0, 0, 1);
            let (is_file, is_dir) = (false, true);
            return Ok(Meta { is_file, is_dir, size, disk_bytes, links, id, modified, changed_ns });
        }
        let inode = state.resolve(path)?;
        Ok(state.meta(inode))
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        let mut state = self.whole()?;
        let (inode, clock) = (state.resolve(path)?, state.clock);
        let inode = state.inodes.get_mut(&inode).unwrap();
        (inode.modified, inode.changed) = (clock, clock);
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let state = self.whole()?;
        Ok(state.capacity.saturating_sub(state.used()))
    }

    fn is_in_use(&self, path: &Path) -> Option<bool> {
        Some(self.lock().in_use.iter().any(|used| used == path))
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.lock().clock)
    }

    fn owner(&self) -> String {
        let mut state = self.lock();
        state.next += 1;
        format!("{:x}-{}", state.epoch, state.next)
    }

    fn is_alive(&self, owner: &str) -> Option<bool> {
        Some(owner.split('-').next() == Some(&format!("{:x}", self.lock().epoch)))
    }
}

impl File for MemoryFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.memory.whole()?;
        let bytes = &state.inodes[&self.inode].bytes;
        let from = (offset as usize).min(bytes.len());
        let count = into.len().min(bytes.len() - from);
        into[..count].copy_from_slice(&bytes[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut state, is_last) = self.memory.call()?;
        let written = if is_last { &bytes[..bytes.len() / 2] } else { bytes };
        let end = offset as usize + written.len();
        let (clock, used, capacity) = (state.clock, state.used(), state.capacity);
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        if used + end.saturating_sub(inode.bytes.len()) as u64 > capacity {
            return Err(error(libc::ENOSPC));
        }
        if inode.bytes.len() < end {
            inode.bytes.resize(end, 0);
        }
        inode.bytes[offset as usize..end].copy_from_slice(written);
        (inode.modified, inode.changed) = (clock, clock);
        if is_last { Err(error(libc::EIO)) } else { Ok(()) }
    }

    fn copy_range(&self, from: &dyn File, offset: u64, bytes: u64) -> io::Result<u64> {
        super::copy_by_reading(self, from, offset, bytes)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.memory.whole()?;
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        inode.bytes.resize(bytes as usize, 0);
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        self.memory.whole().map(drop)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.memory.whole()?;
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        inode.durable = inode.bytes.clone();
        Ok(())
    }

    fn start_sync(&self, _: u64, _: u64) {}

    fn seal(&self) -> io::Result<()> {
        let mut state = self.memory.whole()?;
        state.inodes.get_mut(&self.inode).unwrap().is_sealed = true;
        Ok(())
    }

    fn meta(&self) -> io::Result<Meta> {
        Ok(self.memory.whole()?.meta(self.inode))
    }

    fn has_data(&self, offset: u64, bytes: u64) -> bool {
        let state = self.memory.lock();
        let all = &state.inodes[&self.inode].bytes;
        let (from, to) = (offset as usize, (offset + bytes) as usize);
        all[from.min(all.len())..to.min(all.len())].iter().any(|&byte| byte != 0)
    }

    fn map(&self) -> Option<Map> {
        None
    }
}
