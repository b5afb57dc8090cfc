//! An upload, from its first part to the blob that it becomes.
//!
//! ```text
//!   tmp/<key>.<owner>/owner                  the owner: whoever may not write learns it at once
//!   tmp/<key>.<owner>/parts/00042.<digest>   a part; by TUS, a note of where it is
//!   tmp/<key>.<owner>/index                  all parts' digests and the blob's: all were sent
//!   tmp/<key>.<owner>/whole                  the blob, as one file
//! ```
//!
//! A part's name holds its digest and appears once all its bytes are stored, so the listing of the
//! folder is the journal. At the end the index is written, the parts become `whole` (or move to
//! where part objects are), the names of the parts go, `whole` gets its final name, and the record
//! says that the blob is there. Whatever step was the last, the next process finds out by looking,
//! and goes on behind it. While `whole` and the parts share their chunks both are in one folder, so
//! nobody can free them for one and leave the other.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::tree::{BLOB_TYPE, Bytes, Entry};
use super::{Filer, Way};
use crate::limits::STORE_JSON_BYTES_MAX;
use crate::store::claim::FOREIGN_PATIENCE;
use crate::store::digest::Digest;
use crate::store::error::Error;
use crate::store::layout;
use crate::store::record::{Layout, Record, part_count, part_range};
use crate::store::remote::{PartSink, Upload};

/// What stands before an owner's name once it has stepped back, as in `claim.rs`.
const LEFT: &str = "left-";
/// How a note of where a part is ends.
const NOTE: &str = ".tus";
const NOTE_BYTES_MAX: usize = 256;

/// An upload into a filer.
pub struct Sink<'a> {
    filer: &'a Filer<'a>,
    upload: Upload,
    way: Way,
    /// `tmp/<key>.<owner>`, from the store's root on.
    folder: String,
    /// Parts of an earlier process.
    held: HashMap<u32, Digest>,
    /// The end of an earlier process, which it did not reach.
    index: Option<Index>,
    /// Parts put by this one.
    put: Mutex<HashMap<u32, Digest>>,
    is_ended: AtomicBool,
}

/// The end of an upload, once all its parts are there.
#[derive(Serialize, Deserialize)]
struct Index {
    blob: Digest,
    parts: Vec<Digest>,
}

/// A folder of an upload, and whether somebody works in it.
pub struct Attempt {
    /// From the store's root on.
    pub folder: String,
    /// False, as far as can be known.
    pub is_alive: bool,
}

impl<'a> Sink<'a> {
    /// Starts, or goes on.
    pub fn begin(filer: &'a Filer<'a>, upload: &Upload) -> Result<Sink<'a>, Error> {
        let owner = filer.files.owner();
        let (key, mine) = (upload.key.to_string(), format!("{}.{owner}", upload.key));
        let attempts = attempts(filer, Some(&key))?;
        let mut folder = format!("{}/{mine}", layout::TMP);
        let mut is_resumed = false;
        if attempts.iter().any(|attempt| attempt.is_alive) {
            folder = format!("{}/private.{owner}", layout::TMP);
        } else if let Some(dead) = attempts.first() {
            // Of several who try this one succeeds; the others begin anew.
            let (from, to) = (filer.path(&dead.folder), filer.path(&folder));
            is_resumed = filer.http.rename_folder(&from, &to)?;
        }
        let part_count = part_count(upload.size, upload.part_size);
        let mut sink = Sink {
            filer,
            upload: upload.clone(),
            way: filer.way(upload.size, part_count)?,
            folder,
            held: HashMap::new(),
            index: None,
            put: Mutex::new(HashMap::new()),
            is_ended: AtomicBool::new(false),
        };
        filer.http.write(&sink.at("owner"), "", "text/plain", owner.as_bytes())?;
        if is_resumed {
            sink.index = sink.read_index()?;
            sink.held = sink.find_held()?;
        }
        Ok(sink)
    }

    fn at(&self, inside: &str) -> String {
        self.filer.path(&format!("{}/{inside}", self.folder))
    }

    fn part_path(&self, index: u32, digest: &Digest) -> String {
        let note = if self.way == Way::Tus { NOTE } else { "" };
        self.at(&format!("parts/{index:05}.{digest}{note}"))
    }

    fn len(&self, index: u32) -> u64 {
        part_range(self.upload.size, self.upload.part_size, index).1 as u64
    }

    fn read_index(&self) -> Result<Option<Index>, Error> {
        let bytes = self.filer.http.read_small(&self.at("index"), STORE_JSON_BYTES_MAX)?;
        let index: Option<Index> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let count = part_count(self.upload.size, self.upload.part_size);
        Ok(index.filter(|index| index.parts.len() as u64 == count))
    }

    fn find_held(&self) -> Result<HashMap<u32, Digest>, Error> {
        let mut held = HashMap::new();
        for entry in self.filer.http.list(&self.at("parts"))? {
            let Some((index, digest, is_note)) = parse_part(&entry.name) else { continue };
            let fits = u64::from(index) < part_count(self.upload.size, self.upload.part_size)
                && is_note == (self.way == Way::Tus);
            if !fits {
                continue;
            }
            let is_whole = match is_note {
                true => {
                    let place = self.note(&entry.name)?;
                    self.filer.http.tus_is_whole(&place, self.len(index))?
                }
                false => entry.size == self.len(index),
            };
            if is_whole {
                held.insert(index, digest);
            }
        }
        let Some(index) = &self.index else { return Ok(held) };
        let all = index.parts.iter().enumerate().map(|(number, digest)| (number as u32, *digest));
        let size = Some(self.upload.size);
        let blob = self.filer.path(&layout::blob(&index.blob));
        let http = &self.filer.http;
        if http.size_of(&self.at("whole"))? == size || http.size_of(&blob)? == size {
            return Ok(all.collect());
        }
        // Some may have moved to where they stay.
        let moved = self.filer.part_objects(&index.blob)?;
        held.extend(all.filter(|(number, _)| moved.get(number) == Some(&self.len(*number))));
        Ok(held)
    }

    fn note(&self, name: &str) -> Result<String, Error> {
        let text =
            self.filer.http.read_small(&self.at(&format!("parts/{name}")), NOTE_BYTES_MAX)?;
        Ok(String::from_utf8(text.unwrap_or_default()).unwrap_or_default())
    }

    /// All parts in order, as they were put or held.
    fn parts(&self) -> Result<Vec<Digest>, Error> {
        let put = self.put.lock().expect("no thread panics with it");
        let count = part_count(self.upload.size, self.upload.part_size) as u32;
        let one = |index| put.get(&index).or_else(|| self.held.get(&index)).copied();
        let parts: Option<Vec<Digest>> = (0..count).map(one).collect();
        parts.ok_or_else(|| self.lost("a part was never sent"))
    }

    /// The same command, run again, finds out what is there.
    fn lost(&self, why: &str) -> Error {
        Error::Remote {
            at: self.filer.http.address().origin(),
            action: format!("completing {}", self.folder),
            reason: why.to_owned(),
            retryable: true,
        }
    }

    /// The entries of all parts, in order.
    fn entries(&self, parts: &[Digest]) -> Result<Vec<Entry>, Error> {
        let entries = self.filer.http.settle(|| self.listed(parts))?;
        entries.ok_or_else(|| self.lost("a part has gone"))
    }

    /// As the filer lists them now. None: not all of them.
    fn listed(&self, parts: &[Digest]) -> Result<Option<Vec<Entry>>, Error> {
        let entries = self.filer.http.list(&self.at("parts"))?;
        let mut by_name: HashMap<(u32, Digest), Entry> = entries
            .into_iter()
            .filter_map(|entry| {
                let (index, digest, is_note) = parse_part(&entry.name)?;
                (is_note == (self.way == Way::Tus)).then_some(((index, digest), entry))
            })
            .collect();
        let in_order = parts.iter().enumerate();
        let in_order = in_order.map(|(index, digest)| by_name.remove(&(index as u32, *digest)));
        Ok(in_order.collect())
    }

    /// Makes `whole` of the parts, and takes their names away.
    fn join(&self, parts: &[Digest]) -> Result<(), Error> {
        let (http, whole) = (&self.filer.http, self.at("whole"));
        let size = self.upload.size;
        match (&self.filer.volumes(), self.way) {
            _ if http.size_of(&whole)? == Some(size) => {}
            (_, Way::Tus) => {
                let entries = self.entries(parts)?;
                let places = entries.iter().map(|entry| self.note(&entry.name));
                http.tus_join(&whole, &places.collect::<Result<Vec<_>, _>>()?, size)?;
            }
            (Some(volumes), _) => {
                let (mut chunks, mut start) = (Vec::new(), 0);
                for entry in self.entries(parts)? {
                    let of_part = entry.chunks.unwrap_or_default();
                    chunks.extend(of_part.into_iter().map(|mut chunk| {
                        chunk.offset += start;
                        chunk
                    }));
                    start += entry.size;
                }
                volumes.create(http, &whole, size, &chunks)?;
                if http.size_of(&whole)? != Some(size) {
                    return Err(self.lost("the filer has another size for the file"));
                }
            }
            (None, _) => return Err(self.lost("the filer's gRPC does not answer any more")),
        }
        http.remove(&self.at("parts"), Bytes::Keep)
    }

    /// Whether the parts can become one file: their chunks are known. An upload that began when the
    /// filer's gRPC answered may end when it does not.
    fn can_join(&self, parts: &[Digest]) -> Result<bool, Error> {
        if self.way == Way::Tus || self.filer.http.size_of(&self.at("whole"))?.is_some() {
            return Ok(true);
        }
        if self.way != Way::Chunks || self.filer.volumes().is_none() {
            return Ok(false);
        }
        Ok(self.entries(parts)?.iter().all(|entry| entry.chunks.is_some()))
    }

    /// Moves each part to where part objects stay.
    fn move_parts(&self, digest: &Digest, parts: &[Digest]) -> Result<(), Error> {
        let folder = self.filer.path(&format!("{}{}", layout::blob(digest), layout::PARTS));
        let moved = self.filer.part_objects(digest)?;
        for (index, part) in parts.iter().enumerate() {
            let (index, to) = (index as u32, self.filer.path(&layout::part(digest, index as u32)));
            let is_moved =
                self.filer.http.rename(&self.part_path(index, part), &to, self.len(index))?;
            if !is_moved && moved.get(&index) != Some(&self.len(index)) {
                return Err(self.lost("a part has gone"));
            }
        }
        // All has to fit the record, also if another upload moved other parts there.
        let fits = |there: &HashMap<u32, u64>| {
            (0..parts.len() as u32).all(|index| there.get(&index) == Some(&self.len(index)))
        };
        let there = self.filer.http.settle(|| {
            let there = self.filer.part_objects(digest)?;
            Ok(Some(there).filter(fits))
        })?;
        let Some(there) = there else {
            return Err(self.lost("another upload of the same blob was faster; its parts differ"));
        };
        for extra in there.keys().filter(|index| **index as usize >= parts.len()) {
            self.filer.http.remove(&format!("{folder}/{extra:05}"), Bytes::Free)?;
        }
        Ok(())
    }

    fn publish(&self, digest: &Digest, record: Record) -> Result<(), Error> {
        let (http, size) = (&self.filer.http, self.upload.size);
        let parts = self.parts()?;
        if self.index.as_ref().is_some_and(|index| index.blob != *digest || index.parts != parts) {
            discard(self.filer, &self.folder)?;
            return Err(self.lost("the file is another one than when it was sent in part"));
        }
        let index = Index { blob: *digest, parts: parts.clone() };
        let index = serde_json::to_vec(&index).expect("an index has no keys but strings");
        http.write_synced(&self.at("index"), "application/json", &index)?;

        let blob = self.filer.path(&layout::blob(digest));
        let layout = if size == 0 {
            http.write_synced(&blob, BLOB_TYPE, &[])?;
            Layout::File
        } else if self.was_moved(&blob)? {
            Layout::File
        } else if self.can_join(&parts)? {
            self.join(&parts)?;
            if !http.rename(&self.at("whole"), &blob, size)? {
                return Err(self.lost("the file has gone"));
            }
            Layout::File
        } else {
            self.move_parts(digest, &parts)?;
            Layout::Parts
        };
        let record = Record { layout, ..record };
        http.write_synced(
            &self.filer.path(&layout::record(digest)),
            "application/json",
            &record.to_json(),
        )
    }

    /// Whether an earlier process came as far as giving the file its final name.
    fn was_moved(&self, blob: &str) -> Result<bool, Error> {
        let http = &self.filer.http;
        let none_put = self.put.lock().expect("no thread panics with it").is_empty();
        Ok(none_put
            && http.size_of(&self.at("whole"))?.is_none()
            && http.list(&self.at("parts"))?.is_empty()
            && http.size_of(blob)? == Some(self.upload.size))
    }
}

impl PartSink for Sink<'_> {
    fn holds(&self, index: u32, digest: &Digest) -> Result<bool, Error> {
        Ok(self.held.get(&index) == Some(digest))
    }

    fn put(&self, index: u32, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        assert_eq!(bytes.len() as u64, self.len(index), "a whole part");
        let (http, path) = (&self.filer.http, self.part_path(index, digest));
        if self.way == Way::Tus {
            let place = http.tus_put(&self.at("whole"), bytes)?;
            http.write(&path, "", "text/plain", place.as_bytes())?;
        } else {
            let volumes = self.filer.volumes().filter(|_| self.way == Way::Chunks);
            let volumes = volumes.filter(|volumes| volumes.is_promising());
            let chunks = volumes.map(|volumes| volumes.put(http, &path, 0, bytes)).transpose()?;
            match (volumes, chunks.flatten()) {
                (Some(volumes), Some(chunks)) => {
                    volumes.create(http, &path, bytes.len() as u64, &chunks)?;
                }
                _ => http.write(&path, PART_QUERY, BLOB_TYPE, bytes)?,
            }
        }
        self.put.lock().expect("no thread panics with it").insert(index, *digest);
        Ok(())
    }

    fn complete(self: Box<Self>, digest: &Digest, record: Record) -> Result<(), Error> {
        // A record that is refused is one to be replaced.
        let there = self.filer.find(digest).ok().flatten();
        if there.is_none_or(|stat| stat.record.is_none()) {
            self.publish(digest, record)?;
        }
        self.abort()
    }

    fn abort(self: Box<Self>) -> Result<(), Error> {
        self.is_ended.store(true, Ordering::Relaxed);
        discard(self.filer, &self.folder)
    }
}

/// A part through the filer: one chunk for all of it, as far as that goes.
const PART_QUERY: &str = "maxMB=32";

impl Drop for Sink<'_> {
    fn drop(&mut self) {
        if self.is_ended.load(Ordering::Relaxed) {
            return;
        }
        // If this does not work, the end of the process says the same.
        if let Some((key, owner)) = self.folder.rsplit_once('.') {
            let to = self.filer.path(&format!("{key}.{LEFT}{owner}"));
            let _ = self.filer.http.rename_folder(&self.filer.path(&self.folder), &to);
        }
    }
}

/// The uploads under way and left behind, of one key or of all.
pub fn attempts(filer: &Filer<'_>, key: Option<&str>) -> Result<Vec<Attempt>, Error> {
    let mut attempts = Vec::new();
    for entry in filer.http.list(&filer.path(layout::TMP))? {
        let Some((of, owner)) = entry.name.split_once('.') else { continue };
        if key.is_some_and(|key| key != of) {
            continue;
        }
        let folder = format!("{}/{}", layout::TMP, entry.name);
        let is_alive = match owner.starts_with(LEFT) {
            true => Some(false),
            false => filer.files.is_alive(owner),
        };
        // Of another machine: whoever works writes a part now and then.
        let is_alive = match is_alive {
            Some(is_alive) => is_alive,
            None => {
                let parts = filer.http.list(&filer.path(&format!("{folder}/parts")))?;
                let last = parts.iter().map(|part| part.modified).chain([entry.modified]).max();
                let silent = filer.http.now().saturating_sub(last.unwrap_or_default());
                silent < FOREIGN_PATIENCE
            }
        };
        attempts.push(Attempt { folder, is_alive });
    }
    Ok(attempts)
}

/// Removes an upload with all that it stored.
pub fn discard(filer: &Filer<'_>, folder: &str) -> Result<(), Error> {
    let parts = filer.path(&format!("{folder}/parts"));
    for entry in filer.http.list(&parts)? {
        if entry.name.ends_with(NOTE) {
            let note = filer.http.read_small(&format!("{parts}/{}", entry.name), NOTE_BYTES_MAX)?;
            let place = String::from_utf8(note.unwrap_or_default()).unwrap_or_default();
            filer.http.tus_remove(&place)?;
        }
    }
    filer.http.remove(&filer.path(folder), Bytes::Free)
}

/// Number, digest, and whether it is a note: of `00042.<64 digits>` and `00042.<64 digits>.tus`.
fn parse_part(name: &str) -> Option<(u32, Digest, bool)> {
    let (index, rest) = name.split_once('.')?;
    let (digest, is_note) = match rest.strip_suffix(NOTE) {
        Some(digest) => (digest, true),
        None => (rest, false),
    };
    Some((index.parse().ok()?, digest.parse().ok()?, is_note))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let digest = Digest::of(b"");
        assert_eq!(parse_part(&format!("00042.{digest}")), Some((42, digest, false)));
        assert_eq!(parse_part(&format!("123456.{digest}.tus")), Some((123_456, digest, true)));
        for bad in ["index", "00042", "x.y", "00042.e3b0"] {
            assert_eq!(parse_part(bad), None);
        }
    }
}
