//! The filer as a `Remote`.

use std::collections::BTreeMap;

use super::Filer;
use super::read::Read;
use super::tree::{BLOB_TYPE, Bytes};
use super::upload::{Sink, attempts, discard};
use crate::limits::STORE_JSON_BYTES_MAX;
use crate::store::digest::Digest;
use crate::store::error::Error;
use crate::store::layout;
use crate::store::name::Tag;
use crate::store::record::{Layout, part_range};
use crate::store::remote::{BlobStat, Entry, Leftover, PartSink, Remote, Take, Upload};

/// A tag's file: 64 digits, a line feed, and what an editor may have added.
const TAG_BYTES_MAX: usize = 256;

impl Remote for Filer<'_> {
    fn describe(&self) -> String {
        let address = self.http.address();
        format!("{}{}", address.origin(), address.root)
    }

    fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, Error> {
        self.find(digest)
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
        let record = match (stat.layout, &stat.record) {
            (Layout::Parts, Some(record)) => record,
            (_, record) => {
                let path = self.path(&layout::blob(digest));
                let direct = match (self.volumes(), self.places(digest, &path, stat.size)) {
                    (Some(volumes), Some(places)) => {
                        volumes.read(&self.http, &places, offset, len, take)?
                    }
                    _ => 0,
                };
                let (offset, len) = (offset + direct, len - direct);
                let read = self.http.read_range(&path, offset, len, stat.size, take)?;
                let part = |at| record.as_ref().map(|record| (at / record.part_size) as u32);
                return self.judge(digest, read, part);
            }
        };
        let (mut offset, end) = (offset, offset + len);
        while offset < end {
            let index = (offset / record.part_size) as u32;
            let (start, len) = part_range(record.size, record.part_size, index);
            let (within, len) = (offset - start, len as u64);
            let count = (end - offset).min(len - within);
            let path = self.path(&layout::part(digest, index));
            let read = self.http.read_range(&path, within, count, len, take)?;
            self.judge(digest, read, |_| Some(index))?;
            offset += count;
        }
        Ok(())
    }

    fn begin<'a>(&'a self, upload: &Upload) -> Result<Box<dyn PartSink + 'a>, Error> {
        Ok(Box::new(Sink::begin(self, upload)?))
    }

    fn mend(
        &self,
        digest: &Digest,
        stat: &BlobStat,
        index: u32,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let record = stat.record.as_ref().ok_or_else(|| self.gone(digest))?;
        let (start, len) = part_range(record.size, record.part_size, index);
        assert_eq!(bytes.len(), len, "a whole part");
        if stat.layout == Layout::Parts {
            let path = self.path(&layout::part(digest, index));
            return self.http.write(&path, "fsync=true&maxMB=32", BLOB_TYPE, bytes);
        }
        let path = self.path(&layout::blob(digest));
        let is_mended = self.mend_chunks(&path, record.size, start, bytes)?;
        self.forget_places();
        if is_mended {
            return Ok(());
        }
        // The filer lays new chunks over the old ones; but an offset of 0 means a new file to it.
        if start == 0 {
            let what = "mend the first part without gRPC: remove the blob and store it again";
            return Err(Error::Unsupported { at: self.describe(), what: what.to_owned() });
        }
        let query = format!("offset={start}&fsync=true&maxMB=32");
        self.http.overlay(&path, &query, BLOB_TYPE, bytes)?;
        match self.http.size_of(&path)? {
            Some(size) if size == record.size => Ok(()),
            _ => Err(self.gone(digest)),
        }
    }

    fn refresh(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.path(&layout::record(digest));
        let bytes = self.http.read_small(&path, STORE_JSON_BYTES_MAX)?;
        let bytes = bytes.ok_or_else(|| self.gone(digest))?;
        self.http.write_synced(&path, "application/json", &bytes)
    }

    fn manifest(&self, id: &Digest) -> Result<Option<Vec<u8>>, Error> {
        self.http.read_small(&self.path(&layout::manifest(id)), STORE_JSON_BYTES_MAX)
    }

    fn put_manifest(&self, id: &Digest, bytes: &[u8]) -> Result<(), Error> {
        self.http.write_synced(&self.path(&layout::manifest(id)), "application/json", bytes)
    }

    fn tag(&self, tag: &Tag) -> Result<Option<Digest>, Error> {
        let text = self.http.read_small(&self.path(&layout::tag(tag)), TAG_BYTES_MAX)?;
        let Some(text) = text else { return Ok(None) };
        let why = || "it is not a digest and a line feed".to_owned();
        let refused =
            || Error::Refused { what: format!("tag {tag}"), at: self.describe(), why: why() };
        layout::tag_target(&text).map(Some).ok_or_else(refused)
    }

    fn put_tag(&self, tag: &Tag, id: &Digest) -> Result<(), Error> {
        let text = layout::tag_text(id);
        self.http.write_synced(&self.path(&layout::tag(tag)), "text/plain", text.as_bytes())?;
        // A tag that is not listed would not keep its model from `gc`.
        self.http.ensure_folder(&self.path(layout::TAGS))?;
        self.http.ensure_folder(&self.path(&format!("{}/{}", layout::TAGS, tag.name())))
    }

    fn tags(&self) -> Result<Vec<(Tag, Digest)>, Error> {
        let mut tags = Vec::new();
        for name in self.http.list(&self.path(layout::TAGS))? {
            for tag in self.http.list(&self.path(&format!("{}/{}", layout::TAGS, name.name)))? {
                let Ok(tag) = Tag::new(&name.name, &tag.name) else { continue };
                // Removed by another process meanwhile, or not ours.
                match self.tag(&tag) {
                    Ok(Some(id)) => tags.push((tag, id)),
                    Ok(None) | Err(Error::Refused { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        tags.sort();
        Ok(tags)
    }

    fn manifests(&self) -> Result<Vec<Entry>, Error> {
        let entries = self.http.list(&self.path(layout::MANIFESTS))?;
        let manifest = |entry: &super::tree::Entry| {
            let digest = entry.name.strip_suffix(layout::JSON)?.parse().ok()?;
            let age = self.age(entry.modified);
            Some(Entry { digest, size: entry.size, age, is_complete: true })
        };
        Ok(entries.iter().filter_map(manifest).collect())
    }

    fn blobs(&self) -> Result<Vec<Entry>, Error> {
        let root = self.path(layout::BLOBS);
        let mut found: BTreeMap<Digest, (Entry, bool, bool)> = BTreeMap::new();
        for folder in self.http.list(&root)? {
            let folder = format!("{root}/{}", folder.name);
            for entry in self.http.list(&folder)? {
                let hex = entry.name.split('.').next().unwrap_or_default();
                let Ok(digest) = hex.parse() else { continue };
                let rest = &entry.name[hex.len()..];
                let is_record = rest == layout::JSON;
                if !is_record && !rest.is_empty() && rest != layout::PARTS {
                    continue;
                }
                let (mut size, mut age) = (entry.size, self.age(entry.modified));
                if rest == layout::PARTS {
                    for part in self.http.list(&format!("{folder}/{}", entry.name))? {
                        size += part.size;
                        age = age.min(self.age(part.modified));
                    }
                }
                let fresh = Entry { digest, size: 0, age, is_complete: false };
                let (blob, has_record, has_data) =
                    found.entry(digest).or_insert((fresh, false, false));
                blob.age = blob.age.min(age);
                blob.size += if is_record { 0 } else { size };
                *has_record |= is_record;
                *has_data |= !is_record;
                blob.is_complete = *has_record && *has_data;
            }
        }
        Ok(found.into_values().map(|(entry, _, _)| entry).collect())
    }

    fn leftovers(&self) -> Result<Vec<Leftover>, Error> {
        let mut leftovers = Vec::new();
        for attempt in attempts(self, None)? {
            if attempt.is_alive {
                continue;
            }
            let folder = self.path(&attempt.folder);
            let mut files = self.http.list(&format!("{folder}/parts"))?;
            files.extend(self.http.list(&folder)?);
            let size = files.iter().map(|file| file.size).sum();
            let last = files.iter().map(|file| file.modified).max().unwrap_or_default();
            leftovers.push(Leftover { path: attempt.folder, size, age: self.age(last) });
        }
        Ok(leftovers)
    }

    fn remove_tag(&self, tag: &Tag) -> Result<bool, Error> {
        let path = self.path(&layout::tag(tag));
        let was_there = self.http.size_of(&path)?.is_some();
        if was_there {
            self.http.remove(&path, Bytes::Free)?;
        }
        Ok(was_there)
    }

    fn remove_manifest(&self, id: &Digest) -> Result<(), Error> {
        self.http.remove(&self.path(&layout::manifest(id)), Bytes::Free)
    }

    fn remove_blob(&self, digest: &Digest) -> Result<(), Error> {
        let blob = self.path(&layout::blob(digest));
        self.http.remove(&self.path(&layout::record(digest)), Bytes::Free)?;
        self.http.remove(&blob, Bytes::Free)?;
        self.http.remove(&format!("{blob}{}", layout::PARTS), Bytes::Free)
    }

    fn remove_leftover(&self, leftover: &Leftover) -> Result<(), Error> {
        discard(self, &leftover.path)
    }
}

impl Filer<'_> {
    fn judge(
        &self,
        digest: &Digest,
        read: Read,
        part: impl Fn(u64) -> Option<u32>,
    ) -> Result<(), Error> {
        match read {
            Read::Whole => Ok(()),
            Read::Missing => Err(self.gone(digest)),
            Read::Unreadable(at) => {
                Err(Error::Damaged { digest: *digest, part: part(at), at: self.describe() })
            }
        }
    }

    /// Replaces the chunks of a part by new ones. False: the filer's gRPC does not answer, or the
    /// file's chunks do not end where its parts do.
    fn mend_chunks(&self, path: &str, size: u64, start: u64, bytes: &[u8]) -> Result<bool, Error> {
        let Some(volumes) = self.volumes() else { return Ok(false) };
        let chunks = self.http.entry(path)?.and_then(|entry| entry.chunks);
        let end = start + bytes.len() as u64;
        let is_inside =
            |chunk: &super::proto::Chunk| chunk.offset < end && chunk.offset + chunk.size > start;
        let Some(mut chunks) = chunks else { return Ok(false) };
        let is_split = |chunk: &super::proto::Chunk| {
            is_inside(chunk) && (chunk.offset < start || chunk.offset + chunk.size > end)
        };
        if chunks.iter().any(is_split) {
            return Ok(false);
        }
        let Some(new) = volumes.put(&self.http, path, start, bytes)? else { return Ok(false) };
        chunks.retain(|chunk| !is_inside(chunk));
        chunks.extend(new);
        chunks.sort_by_key(|chunk| chunk.offset);
        volumes.create(&self.http, path, size, &chunks)?;
        Ok(true)
    }
}
