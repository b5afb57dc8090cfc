//! Where the results of all rows stand: 16 bytes for each recorded line.
//!
//! ```text
//!   prefix   first 8 bytes of the key
//!   place    | ok 1 | chosen 1 | wanted 1 | file 17 | offset 44 |
//! ```
//!
//! Of the lines of one key the one with the largest place counts: ok before failed, then a later
//! file before an earlier one, then what stands further behind. Keys that only begin alike are told
//! apart by reading the line.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fs::File;

use super::super::error::Error;
use super::super::lines::Lines;
use super::super::recorded::Recording;
use super::super::result;
use super::super::row::Key;
use crate::limits::{BATCH_BLOCK_BYTES, PART_BYTES_MAX, PARTS_MAX};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    prefix: u64,
    place: u64,
}

const OK: u64 = 1 << 63;
const CHOSEN: u64 = 1 << 62;
const WANTED: u64 = 1 << 61;
const FILE_SHIFT: u32 = 44;
const FILE_MASK: u64 = (1 << 17) - 1;
const OFFSET_MASK: u64 = (1 << FILE_SHIFT) - 1;

const _: () = assert!((PARTS_MAX as u64) < FILE_MASK);
const _: () = assert!(PART_BYTES_MAX - 1 <= OFFSET_MASK);

impl Entry {
    fn file(self) -> usize {
        (self.place >> FILE_SHIFT & FILE_MASK) as usize
    }
}

/// Files that are open at once.
const OPEN_MAX: usize = 64;
/// Read at once where lines are wanted here and there.
const BLOCK_BYTES: usize = 8 << 10;

pub(super) struct Index {
    entries: Vec<Entry>,
    sources: Vec<Recording>,
    open: HashMap<usize, Lines<File>>,
    /// Lines that could not be read.
    pub torn: u64,
}

/// The result that counts for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    entry: usize,
    pub ok: bool,
}

impl Index {
    /// Of all lines in these files, which stand from the oldest to the newest.
    pub fn of(sources: Vec<Recording>) -> Result<Index, Error> {
        // Counted first: to make room twice as large, both copies would have to be there at once.
        let mut room = 0;
        for source in &sources {
            room += source.count()?;
        }
        let (mut entries, mut torn) = (Vec::with_capacity(room), 0);
        for (file, source) in sources.iter().enumerate() {
            torn += source.scan(|offset, key, ok| {
                let ok = if ok { OK } else { 0 };
                let place = ok | (file as u64) << FILE_SHIFT | offset;
                entries.push(Entry { prefix: key.prefix(), place });
            })?;
        }
        entries.sort_unstable();
        Ok(Index { entries, sources, open: HashMap::new(), torn })
    }

    /// Recorded lines.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The result that counts for the row of this key.
    pub fn find(&mut self, key: Key) -> Result<Option<Found>, Error> {
        let prefix = key.prefix();
        let mut entry = self.entries.partition_point(|entry| entry.prefix <= prefix);
        while entry > 0 && self.entries[entry - 1].prefix == prefix {
            entry -= 1;
            let found = self.at(entry);
            if result::recorded_key(self.line(found)?) == Some(key) {
                self.entries[entry].place |= WANTED;
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The result at a number, of `len`.
    pub fn at(&self, entry: usize) -> Found {
        Found { entry, ok: self.entries[entry].place & OK != 0 }
    }

    /// The line of a result.
    pub fn line(&mut self, found: Found) -> Result<&[u8], Error> {
        let entry = self.entries[found.entry];
        let file = entry.file();
        let source = &self.sources[file];
        if self.open.len() >= OPEN_MAX && !self.open.contains_key(&file) {
            self.open.clear();
        }
        let lines = match self.open.entry(file) {
            Slot::Occupied(open) => open.into_mut(),
            Slot::Vacant(free) => free.insert(source.lines(BLOCK_BYTES)?),
        };
        lines.seek(entry.place & OFFSET_MASK);
        line(source, lines)
    }

    /// Rows that something was recorded of and that nobody has looked for.
    pub fn unwanted(&self) -> u64 {
        let keys = self.entries.chunk_by(|a, b| a.prefix == b.prefix);
        keys.filter(|lines| lines.iter().all(|line| line.place & WANTED == 0)).count() as u64
    }

    /// Takes note that a result goes into the output.
    pub fn choose(&mut self, found: Found) {
        self.entries[found.entry].place |= CHOSEN;
    }

    /// Tells all chosen lines in the order of the files. Nothing can be found afterwards.
    pub fn each_chosen(
        &mut self,
        mut each: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.open.clear();
        self.entries.retain(|entry| entry.place & CHOSEN != 0);
        self.entries.sort_unstable_by_key(|entry| entry.place);
        for of_file in self.entries.chunk_by(|a, b| a.file() == b.file()) {
            let source = &self.sources[of_file[0].file()];
            let mut lines = source.lines(BATCH_BLOCK_BYTES)?;
            for entry in of_file {
                lines.seek(entry.place & OFFSET_MASK);
                each(line(source, &mut lines)?)?;
            }
        }
        Ok(())
    }
}

fn line<'a>(source: &Recording, lines: &'a mut Lines<File>) -> Result<&'a [u8], Error> {
    let at = lines.position();
    match lines.next() {
        Ok(Some(line)) => Ok(line.bytes),
        Ok(None) => Err(Error::Shrunk { path: source.path.clone(), at }),
        Err(error) => Err(Error::read(&source.path, error)),
    }
}
