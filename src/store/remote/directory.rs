//! A folder as a remote: the default, and what an NFS mount is.
//!
//! Blobs are single files, so that other programs can open them. An upload is one file in `tmp`
//! under a claim (`claim.rs`); what it holds after a crash is known by reading it, not by a
//! journal, which could be ahead of the data.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{BlobStat, Entry, Leftover, PartSink, Remote, Take, Upload};
use crate::limits::STORE_JSON_BYTES_MAX;
use crate::store::claim::{self, Claim};
use crate::store::digest::Digest;
use crate::store::error::Error;
use crate::store::files::{self, File, Files, Meta, create_dirs, parent, write_whole};
use crate::store::hash::PIECE_BYTES;
use crate::store::layout;
use crate::store::name::Tag;
use crate::store::record::{Layout, Record, part_range};
use crate::store::sha::Hasher;

/// A folder as a remote.
pub struct Directory<'f> {
    files: &'f dyn Files,
    root: PathBuf,
}

impl<'f> Directory<'f> {
    /// A folder that need not be there yet: the first write makes it.
    pub fn new(files: &'f dyn Files, root: &Path) -> Directory<'f> {
        Directory { files, root: root.to_owned() }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    fn tmp(&self) -> PathBuf {
        self.path(layout::TMP)
    }

    fn meta(&self, path: &Path) -> Result<Option<Meta>, Error> {
        found(self.files.stat(path)).map_err(|error| Error::io("look at", path, error))
    }

    /// The names in a folder; none if there is no folder.
    fn list(&self, path: &Path) -> Result<Vec<String>, Error> {
        let names = found(self.files.list(path));
        Ok(names.map_err(|error| Error::io("list", path, error))?.unwrap_or_default())
    }

    fn small_file(&self, path: &Path, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        let read = found(files::read_whole(self.files, path, limit));
        read.map_err(|error| Error::io("read", path, error))
    }

    fn write_small(&self, relative: &str, bytes: &[u8]) -> Result<(), Error> {
        write_whole(self.files, &self.tmp(), &self.path(relative), bytes)
    }

    fn age(&self, meta: &Meta) -> Duration {
        self.files.now().duration_since(meta.modified).unwrap_or_default()
    }

    /// Removes a file. False: there was none.
    fn remove(&self, path: &Path) -> Result<bool, Error> {
        let removed = found(self.files.remove(path));
        Ok(removed.map_err(|error| Error::io("remove", path, error))?.is_some())
    }

    fn sync(&self, folder: &Path) -> Result<(), Error> {
        self.files.sync_dir(folder).map_err(|error| Error::io("make durable", folder, error))
    }

    fn gone(&self, digest: &Digest) -> Error {
        Error::NotFound { what: digest.to_string(), at: self.describe() }
    }

    /// Publishes a complete and synced file as a blob. The record comes first: what a crash
    /// in between leaves is an upload that only has to be renamed.
    fn publish(&self, claim: Claim<'_>, digest: &Digest, record: &Record) -> Result<(), Error> {
        let path = self.path(&layout::blob(digest));
        create_dirs(self.files, parent(&path))?;
        // A record that is refused is one to be replaced.
        let there = self.stat(digest).ok().flatten();
        if there.as_ref().is_some_and(|stat| stat.record.is_some()) {
            return claim.remove();
        }
        if there.is_some() {
            log::warn!("{path:?} was no blob of this store; it is replaced");
            self.remove(&path)?;
        }
        self.write_small(&layout::record(digest), &record.to_json())?;
        claim.rename(&path)?;
        self.sync(parent(&path))
    }
}

/// None for what is not there.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Remote for Directory<'_> {
    fn describe(&self) -> String {
        self.root.display().to_string()
    }

    fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, Error> {
        let Some(meta) = self.meta(&self.path(&layout::blob(digest)))? else { return Ok(None) };
        if !meta.is_file {
            return Ok(None);
        }
        let record = self.small_file(&self.path(&layout::record(digest)), STORE_JSON_BYTES_MAX)?;
        let record = record.map(|bytes| Record::parse_of(digest, &bytes, &self.describe()));
        let record = record.transpose()?.filter(|record| record.size == meta.size);
        Ok(Some(BlobStat { size: meta.size, layout: Layout::File, record }))
    }

    fn read(
        &self,
        digest: &Digest,
        stat: &BlobStat,
        offset: u64,
        len: u64,
        take: &mut Take<'_>,
    ) -> Result<(), Error> {
        assert!(offset + len <= stat.size, "a range within the blob");
        let path = self.path(&layout::blob(digest));
        let file =
            found(self.files.open(&path)).map_err(|error| Error::io("read", &path, error))?;
        let file = file.ok_or_else(|| self.gone(digest))?;
        let (mut buffer, mut at, end) = (vec![0; PIECE_BYTES], offset, offset + len);
        while at < end {
            let piece = &mut buffer[..PIECE_BYTES.min((end - at) as usize)];
            let count = files::read_full(&*file, piece, at);
            if count.map_err(|error| Error::io("read", &path, error))? < piece.len() {
                return Err(Error::Damaged { digest: *digest, part: None, at: self.describe() });
            }
            take(piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn begin<'a>(&'a self, upload: &Upload) -> Result<Box<dyn PartSink + 'a>, Error> {
        let tmp = self.tmp();
        create_dirs(self.files, &tmp)?;
        let claimed = claim::claim(self.files, &tmp, &upload.key.to_string())?;
        let claim = match claimed {
            Some(claim) => claim,
            None => claim::private(self.files, &tmp)?,
        };
        let sized = claim.file().set_len(upload.size);
        sized.map_err(|error| Error::io("write", claim.path(), error))?;
        Ok(Box::new(Sink { directory: self, claim, upload: upload.clone() }))
    }

    fn mend(
        &self,
        digest: &Digest,
        stat: &BlobStat,
        index: u32,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let path = self.path(&layout::blob(digest));
        let record = stat.record.as_ref().ok_or_else(|| self.gone(digest))?;
        let (offset, len) = part_range(record.size, record.part_size, index);
        assert_eq!(bytes.len(), len, "a whole part");
        create_dirs(self.files, &self.tmp())?;
        // Beside the old one: its readers go on with what they have.
        let copy = self.tmp().join(format!("mend.{}", self.files.owner()));
        let mended = self.files.copy(&path, &copy).and_then(|()| {
            let file = self.files.open_write(&copy)?;
            file.write_at(bytes, offset)?;
            file.sync()?;
            file.seal()?;
            self.files.rename(&copy, &path)
        });
        if let Err(error) = mended {
            let _ = self.files.remove(&copy);
            return Err(Error::io("mend", &path, error));
        }
        self.sync(parent(&path))
    }

    fn refresh(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.path(&layout::record(digest));
        let touched = found(self.files.touch(&path));
        let touched = touched.map_err(|error| Error::io("touch", &path, error))?;
        touched.ok_or_else(|| self.gone(digest))
    }

    fn manifest(&self, id: &Digest) -> Result<Option<Vec<u8>>, Error> {
        self.small_file(&self.path(&layout::manifest(id)), STORE_JSON_BYTES_MAX)
    }

    fn put_manifest(&self, id: &Digest, bytes: &[u8]) -> Result<(), Error> {
        self.write_small(&layout::manifest(id), bytes)
    }

    fn tag(&self, tag: &Tag) -> Result<Option<Digest>, Error> {
        let text = self.small_file(&self.path(&layout::tag(tag)), TAG_BYTES_MAX)?;
        let Some(text) = text else { return Ok(None) };
        let why = || "it is not a digest and a line feed".to_owned();
        let refused =
            || Error::Refused { what: format!("tag {tag}"), at: self.describe(), why: why() };
        layout::tag_target(&text).map(Some).ok_or_else(refused)
    }

    fn put_tag(&self, tag: &Tag, id: &Digest) -> Result<(), Error> {
        self.write_small(&layout::tag(tag), layout::tag_text(id).as_bytes())
    }

    fn tags(&self) -> Result<Vec<(Tag, Digest)>, Error> {
        let mut tags = Vec::new();
        for name in self.list(&self.path(layout::TAGS))? {
            for tag in self.list(&self.path(layout::TAGS).join(&name))? {
                let Ok(tag) = Tag::new(&name, &tag) else { continue };
                // Removed by another process meanwhile, or not ours.
                if let Ok(Some(id)) = self.tag(&tag) {
                    tags.push((tag, id));
                }
            }
        }
        tags.sort();
        Ok(tags)
    }

    fn manifests(&self) -> Result<Vec<Entry>, Error> {
        let folder = self.path(layout::MANIFESTS);
        let mut entries = Vec::new();
        for name in self.list(&folder)? {
            let digest = name.strip_suffix(layout::JSON).and_then(|hex| hex.parse().ok());
            let (Some(digest), Some(meta)) = (digest, self.meta(&folder.join(&name))?) else {
                continue;
            };
            entries.push(Entry {
                digest,
                size: meta.size,
                age: self.age(&meta),
                is_complete: true,
            });
        }
        Ok(entries)
    }

    fn blobs(&self) -> Result<Vec<Entry>, Error> {
        let root = self.path(layout::BLOBS);
        let mut found: BTreeMap<Digest, (Entry, u32)> = BTreeMap::new();
        for folder in self.list(&root)? {
            for name in self.list(&root.join(&folder))? {
                let (hex, is_record) = match name.strip_suffix(layout::JSON) {
                    Some(hex) => (hex, true),
                    None => (name.as_str(), false),
                };
                let path = root.join(&folder).join(&name);
                let (Ok(digest), Some(meta)) = (hex.parse(), self.meta(&path)?) else { continue };
                let age = self.age(&meta);
                let fresh = Entry { digest, size: 0, age, is_complete: false };
                let (entry, halves) = found.entry(digest).or_insert((fresh, 0));
                entry.age = entry.age.min(age);
                entry.size += if is_record { 0 } else { meta.size };
                *halves += 1;
                entry.is_complete = *halves == 2;
            }
        }
        Ok(found.into_values().map(|(entry, _)| entry).collect())
    }

    fn leftovers(&self) -> Result<Vec<Leftover>, Error> {
        let tmp = self.tmp();
        let mut leftovers = Vec::new();
        for name in self.list(&tmp)? {
            let path = tmp.join(&name);
            let Some(meta) = self.meta(&path)? else { continue };
            if !claim::is_worked_on(self.files, &path, &name) {
                let path = format!("{}/{name}", layout::TMP);
                leftovers.push(Leftover { path, size: meta.disk_bytes, age: self.age(&meta) });
            }
        }
        Ok(leftovers)
    }

    fn remove_tag(&self, tag: &Tag) -> Result<bool, Error> {
        let path = self.path(&layout::tag(tag));
        let was_there = self.remove(&path)?;
        if was_there {
            self.sync(parent(&path))?;
            // Only if it was the last one of its name.
            let _ = self.files.remove_dir(parent(&path));
        }
        Ok(was_there)
    }

    fn remove_manifest(&self, id: &Digest) -> Result<(), Error> {
        self.remove(&self.path(&layout::manifest(id))).map(drop)
    }

    fn remove_blob(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.path(&layout::blob(digest));
        if self.remove(&self.path(&layout::record(digest)))? {
            // Else a crash could bring the record back, and the file not.
            self.sync(parent(&path))?;
        }
        self.remove(&path)?;
        let _ = self.files.remove_dir(parent(&path));
        Ok(())
    }

    fn remove_leftover(&self, leftover: &Leftover) -> Result<(), Error> {
        self.remove(&self.path(&leftover.path)).map(drop)
    }

    fn local_file(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.path(&layout::blob(digest)))
    }
}

/// A tag's file: 64 digits, a line feed, and what an editor may have added.
const TAG_BYTES_MAX: usize = 256;

/// An upload into a folder.
struct Sink<'a> {
    directory: &'a Directory<'a>,
    claim: Claim<'a>,
    upload: Upload,
}

impl PartSink for Sink<'_> {
    fn holds(&self, index: u32, digest: &Digest) -> Result<bool, Error> {
        let (start, len) = part_range(self.upload.size, self.upload.part_size, index);
        let file = self.claim.file();
        if !self.claim.is_resumed() || !file.has_data(start, len as u64) {
            return Ok(false);
        }
        let (mut hasher, mut buffer) = (Hasher::new(), vec![0; PIECE_BYTES.min(len)]);
        for at in (0..len).step_by(PIECE_BYTES) {
            let piece = &mut buffer[..PIECE_BYTES.min(len - at)];
            let read = files::read_full(file, piece, start + at as u64);
            let count = read.map_err(|error| Error::io("read", self.claim.path(), error))?;
            hasher.update(&piece[..count]);
        }
        Ok(hasher.finish() == *digest)
    }

    fn put(&self, index: u32, _: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let (start, len) = part_range(self.upload.size, self.upload.part_size, index);
        assert_eq!(bytes.len(), len, "a whole part");
        let file = self.claim.file();
        let written = file.write_at(bytes, start);
        written.map_err(|error| Error::io("write", self.claim.path(), error))?;
        file.start_sync(start, len as u64);
        Ok(())
    }

    fn file(&self) -> Option<&dyn File> {
        Some(self.claim.file())
    }

    fn complete(self: Box<Self>, digest: &Digest, record: Record) -> Result<(), Error> {
        let record = Record { layout: Layout::File, ..record };
        let file = self.claim.file();
        if let Err(error) = file.sync() {
            // What the disk could not take is gone from memory too: nothing of it can be trusted.
            let error = Error::io("write", self.claim.path(), error);
            let _ = self.claim.remove();
            return Err(error);
        }
        self.directory.publish(self.claim, digest, &record)
    }

    fn abort(self: Box<Self>) -> Result<(), Error> {
        self.claim.remove()
    }
}
