//! Blobs of this machine, each once: fetched, checked, and removed again when others need the room.
//!
//! ```text
//!   <root>/blobs/<64 digits>              whole, checked, read-only
//!          records/<64 digits>.json       its parts' digests
//!          index/<64 digits>              last use: the time of its change; what it was called
//!          pins/<64 digits>               never to be removed
//!          partial/<64 digits>.<owner>    being fetched (`claim.rs`); its length is reserved
//!          views/<64 digits>/<name>       links by which a model's files have their names
//!          manifests/<64 digits>.json     manifests that tags have named, for --offline
//!          tags/<remote>/<name>/<tag>     what they named; <remote> is a digest of its address
//!          tmp/                           drafts
//! ```
//!
//! What is in `blobs` is the truth; `index` is a memory that may be lost: a blob without an entry
//! counts as used when it was made. Nothing here needs a lock: names are made and removed whole,
//! and the worst that two processes can do to each other is to fetch or to evict once too often.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::claim;
use super::digest::Digest;
use super::error::Error;
use super::files::{self, Files, Meta, create_dirs, write_whole};
use super::layout;
use super::manifest::Manifest;
use super::name::Tag;
use super::record::Record;
use crate::limits::{CACHE_FREE_BYTES, CACHE_GRACE, STORE_JSON_BYTES_MAX};

/// Blobs of this machine.
pub struct Cache<'f> {
    pub(super) files: &'f dyn Files,
    root: PathBuf,
    budget: Option<u64>,
}

/// A cached blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Its name.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Bytes of the disk that its removal would free; 0 while the file has other names.
    pub freeable: u64,
    /// When it was last asked for.
    pub used: SystemTime,
    /// What it was asked for as; may be empty.
    pub name: String,
    /// Whether it is pinned.
    pub is_pinned: bool,
}

const BLOBS: &str = "blobs";
const RECORDS: &str = "records";
const INDEX: &str = "index";
const PINS: &str = "pins";
const PARTIAL: &str = "partial";
const VIEWS: &str = "views";
const TMP: &str = "tmp";
/// A name in the index.
const INDEX_BYTES_MAX: usize = 1024;

impl<'f> Cache<'f> {
    /// A folder that need not be there yet, and the bytes that it may hold.
    pub fn new(files: &'f dyn Files, root: &Path, budget: Option<u64>) -> Cache<'f> {
        Cache { files, root: root.to_owned(), budget }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a blob is, or would be.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.in_folder(BLOBS, digest)
    }

    pub(super) fn partial(&self) -> PathBuf {
        self.root.join(PARTIAL)
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.root.join(TMP)
    }

    fn in_folder(&self, folder: &str, digest: &Digest) -> PathBuf {
        self.root.join(folder).join(digest.to_string())
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(RECORDS).join(format!("{digest}.json"))
    }

    /// The record of a blob, if it is known and in order.
    pub fn record(&self, digest: &Digest) -> Option<Record> {
        let path = self.record_path(digest);
        let bytes = files::read_whole(self.files, &path, STORE_JSON_BYTES_MAX).ok()?;
        Record::parse(&bytes).ok()
    }

    /// Looks for a blob, and takes note that it is used; `name` is what it is called. A file that
    /// has not the length of its record is damaged, and none.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn find(&self, digest: &Digest, name: &str) -> Result<Option<PathBuf>, Error> {
        let path = self.blob_path(digest);
        let Some(meta) = self.meta(&path)? else { return Ok(None) };
        let record = self.record(digest);
        if !meta.is_file || record.is_some_and(|record| record.size != meta.size) {
            return Ok(None);
        }
        self.note_use(digest, name);
        Ok(Some(path))
    }

    /// Takes note of a use. A cache that cannot be written is still good to be read.
    pub(super) fn note_use(&self, digest: &Digest, name: &str) {
        let path = self.in_folder(INDEX, digest);
        if self.files.touch(&path).is_ok() && name.is_empty() {
            return;
        }
        let known = files::read_whole(self.files, &path, INDEX_BYTES_MAX).unwrap_or_default();
        if !name.is_empty() && known == name.as_bytes() {
            return;
        }
        let written = self.write_index(&path, name);
        if let Err(error) = written {
            log::debug!("the last use of {digest} is not recorded: {error}");
        }
    }

    /// Not synced: it may be lost.
    fn write_index(&self, path: &Path, name: &str) -> io::Result<()> {
        for folder in [self.tmp(), self.root.join(INDEX)] {
            create_dirs(self.files, &folder).map_err(io::Error::other)?;
        }
        let draft = self.tmp().join(format!("index.{}", self.files.owner()));
        let file = self.files.create(&draft)?;
        file.write_at(name.as_bytes(), 0)?;
        self.files.rename(&draft, path)
    }

    fn meta(&self, path: &Path) -> Result<Option<Meta>, Error> {
        match self.files.stat(path) {
            Ok(meta) => Ok(Some(meta)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("look at", path, error)),
        }
    }

    fn list(&self, path: &Path) -> Result<Vec<String>, Error> {
        match self.files.list(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names.map_err(|error| Error::io("list", path, error)),
        }
    }

    /// All cached blobs, the least recently used first.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn entries(&self) -> Result<Vec<Cached>, Error> {
        let mut entries = Vec::new();
        for name in self.list(&self.root.join(BLOBS))? {
            let Ok(digest) = name.parse::<Digest>() else { continue };
            let Some(meta) = self.meta(&self.blob_path(&digest))? else { continue };
            let index = self.in_folder(INDEX, &digest);
            let name = files::read_whole(self.files, &index, INDEX_BYTES_MAX).unwrap_or_default();
            let used = self.meta(&index)?.map_or(meta.modified, |index| index.modified);
            entries.push(Cached {
                digest,
                size: meta.size,
                freeable: if meta.links > 1 { 0 } else { meta.disk_bytes },
                used,
                name: String::from_utf8_lossy(&name).into_owned(),
                is_pinned: self.is_pinned(&digest)?,
            });
        }
        entries.sort_by_key(|entry| (entry.used, entry.digest));
        Ok(entries)
    }

    fn is_pinned(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.meta(&self.in_folder(PINS, digest))?.is_some())
    }

    /// Keeps a blob from being removed, whether it is cached or not.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn pin(&self, digest: &Digest) -> Result<(), Error> {
        write_whole(self.files, &self.tmp(), &self.in_folder(PINS, digest), b"")
    }

    /// Lets it be removed again. False: it was not pinned.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn unpin(&self, digest: &Digest) -> Result<bool, Error> {
        let path = self.in_folder(PINS, digest);
        match self.files.remove(&path) {
            Ok(()) => {
                let folder = files::parent(&path);
                let synced = self.files.sync_dir(folder);
                synced.map_err(|error| Error::io("make durable", folder, error)).map(|()| true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("remove", &path, error)),
        }
    }

    /// Whether a blob may go: not pinned, not used a moment ago (`--path` may just have told its
    /// name to somebody who is about to open it), and no process has it open or mapped. Where that
    /// cannot be known it stays for an hour.
    fn may_go(&self, entry: &Cached) -> bool {
        let age = self.files.now().duration_since(entry.used).unwrap_or_default();
        if entry.is_pinned || age < CACHE_GRACE {
            return false;
        }
        let in_use = self.files.is_in_use(&self.blob_path(&entry.digest));
        !in_use.unwrap_or(age < UNKNOWN_USE_GRACE)
    }

    /// Removes a blob. Who has it open goes on reading it.
    pub(super) fn evict(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.blob_path(digest);
        match self.files.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, error));
            }
            _ => {}
        }
        // Best effort: what is left is looked over by `prune`.
        let _ = self.files.remove(&self.record_path(digest));
        let _ = self.files.remove(&self.in_folder(INDEX, digest));
        Ok(())
    }

    /// Makes the cache fit into a budget, the least recently used first; what was removed comes
    /// back. With `None` everything goes that may.
    ///
    /// # Errors
    /// The cache cannot be read or written.
    pub fn prune(&self, budget: Option<u64>, is_dry: bool) -> Result<Vec<Cached>, Error> {
        let entries = self.entries()?;
        let mut total: u64 = entries.iter().map(|entry| entry.freeable).sum();
        let mut removed = Vec::new();
        for entry in entries {
            if budget.is_some_and(|budget| total <= budget) {
                break;
            }
            if !self.may_go(&entry) {
                continue;
            }
            if !is_dry {
                self.evict(&entry.digest)?;
            }
            total -= entry.freeable;
            removed.push(entry);
        }
        if !is_dry {
            self.sweep()?;
        }
        Ok(removed)
    }

    /// Removes what nobody will ask for: entries, records and views of blobs that have gone,
    /// downloads and drafts that were given up long ago.
    fn sweep(&self) -> Result<(), Error> {
        for folder in [RECORDS, INDEX] {
            let folder = self.root.join(folder);
            for name in self.list(&folder)? {
                let digest = name.strip_suffix(".json").unwrap_or(&name).parse::<Digest>();
                let Ok(digest) = digest else { continue };
                if self.meta(&self.blob_path(&digest))?.is_none() {
                    let _ = self.files.remove(&folder.join(name));
                }
            }
        }
        for folder in [self.partial(), self.tmp()] {
            for name in self.list(&folder)? {
                let path = folder.join(&name);
                let Some(meta) = self.meta(&path)? else { continue };
                let age = self.files.now().duration_since(meta.modified).unwrap_or_default();
                if age > LEFTOVER_AGE && !claim::is_worked_on(self.files, &path, &name) {
                    let _ = self.files.remove(&path);
                }
            }
        }
        let views = self.root.join(VIEWS);
        for view in self.list(&views)? {
            let view = views.join(view);
            let names = self.list(&view)?;
            // Links are followed: one that leads nowhere has no meta.
            let is_whole = names.iter().all(|name| self.files.stat(&view.join(name)).is_ok());
            if !is_whole {
                for name in names {
                    let _ = self.files.remove(&view.join(name));
                }
                let _ = self.files.remove_dir(&view);
            }
        }
        Ok(())
    }

    /// Makes room for a download whose file is `partial`, and reserves it by that file's length:
    /// others count it from then on, and the disk sets it aside where it can.
    ///
    /// # Errors
    /// There is not enough room, whatever is removed; nothing was then.
    pub(super) fn reserve(&self, partial: &claim::Claim<'_>, size: u64) -> Result<(), Error> {
        self.make_room(partial.path(), size)?;
        let failed = |error| Error::io("write", partial.path(), error);
        partial.file().set_len(size).map_err(failed)?;
        // Two may have looked before either of them reserved: the one whose name sorts first stays.
        if let Err(error) = self.make_room(partial.path(), size) {
            let others = self.reservations(partial.path())?;
            if others.iter().any(|(path, _)| path.as_path() < partial.path()) {
                partial.file().set_len(0).map_err(failed)?;
                return Err(error);
            }
        }
        partial.file().allocate(size).map_err(failed)
    }

    /// Other downloads that are under way, and their files.
    fn reservations(&self, mine: &Path) -> Result<Vec<(PathBuf, Meta)>, Error> {
        let folder = self.partial();
        let mut others = Vec::new();
        for name in self.list(&folder)? {
            let path = folder.join(&name);
            if path != mine
                && let Some(meta) = self.meta(&path)?
            {
                others.push((path, meta));
            }
        }
        Ok(others)
    }

    fn make_room(&self, mine: &Path, size: u64) -> Result<(), Error> {
        let others = self.reservations(mine)?;
        let own = self.meta(mine)?.map_or(0, |meta| meta.disk_bytes);
        let to_write = size.saturating_sub(own);
        let unwritten =
            others.iter().map(|(_, meta)| meta.size.saturating_sub(meta.disk_bytes)).sum::<u64>();
        let reserved = others.iter().map(|(_, meta)| meta.size.max(meta.disk_bytes)).sum::<u64>();
        let entries = self.entries()?;
        let cached: u64 = entries.iter().map(|entry| entry.freeable).sum();
        let free = self.files.free_bytes(&self.root);
        let free = free.map_err(|error| Error::io("look at", &self.root, error))?;
        let free = free.saturating_sub(unwritten);
        let short_on_disk = (to_write + CACHE_FREE_BYTES.min(size)).saturating_sub(free);
        let over_budget =
            self.budget.map_or(0, |budget| (cached + reserved + size).saturating_sub(budget));
        let needed = short_on_disk.max(over_budget);
        let (mut freed, mut going) = (0, Vec::new());
        for entry in entries.iter().filter(|entry| entry.freeable > 0) {
            if freed >= needed {
                break;
            }
            if self.may_go(entry) {
                freed += entry.freeable;
                going.push(entry.digest);
            }
        }
        // Nothing is removed in vain.
        if freed < short_on_disk {
            return Err(Error::NoSpace { path: self.root.clone(), needed: to_write, free });
        }
        if freed < over_budget {
            let (budget, held) = (self.budget.unwrap_or(0), cached + reserved - freed);
            return Err(Error::Budget { needed: size, budget, held });
        }
        going.iter().try_for_each(|digest| self.evict(digest))
    }

    /// Makes a complete and checked file the blob of this name, by `rename`. The record comes
    /// first: a blob is never without.
    pub(super) fn publish(
        &self,
        digest: &Digest,
        record: &Record,
        rename: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let path = self.blob_path(digest);
        write_whole(self.files, &self.tmp(), &self.record_path(digest), &record.to_json())?;
        create_dirs(self.files, files::parent(&path))?;
        rename(&path)?;
        let folder = files::parent(&path);
        let synced = self.files.sync_dir(folder);
        synced.map_err(|error| Error::io("make durable", folder, error))?;
        Ok(path)
    }

    /// Takes a damaged blob out: it becomes a download that was given up, and the next `fetch` uses
    /// what is good of it. Copied, since its file may have other names.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn quarantine(&self, digest: &Digest) -> Result<(), Error> {
        create_dirs(self.files, &self.partial())?;
        let path = self.blob_path(digest);
        let copy = self.partial().join(format!("{digest}.left-{}", self.files.owner()));
        match self.files.copy(&path, &copy) {
            Ok(()) => {}
            Err(error) => log::warn!("nothing of {path:?} is kept: {error}"),
        }
        self.evict(digest)
    }

    /// Remembers what a tag named, for a time without the remote. It may be lost.
    pub fn remember(&self, at: &str, tag: &Tag, id: &Digest, bytes: &[u8]) {
        if self.recall_tag(at, tag) == Some(*id) && self.recall_manifest(id).is_some() {
            return;
        }
        let manifest = self.root.join(layout::manifest(id));
        let target = layout::tag_text(id);
        let written = write_whole(self.files, &self.tmp(), &manifest, bytes).and_then(|()| {
            let tag = self.tag_path(at, tag);
            write_whole(self.files, &self.tmp(), &tag, target.as_bytes())
        });
        if let Err(error) = written {
            log::debug!("{tag} is not remembered: {error}");
        }
    }

    fn tag_path(&self, at: &str, tag: &Tag) -> PathBuf {
        let remote = Digest::of(at.as_bytes()).short();
        self.root.join(layout::TAGS).join(remote).join(tag.name()).join(tag.tag())
    }

    /// What a remote's tag named, when it was last asked.
    pub fn recall_tag(&self, at: &str, tag: &Tag) -> Option<Digest> {
        let path = self.tag_path(at, tag);
        layout::tag_target(&files::read_whole(self.files, &path, INDEX_BYTES_MAX).ok()?)
    }

    /// All that is remembered of a remote's tags of one name.
    pub fn recall_tags(&self, at: &str, name: &str) -> Vec<(Tag, Digest)> {
        let folder = self.root.join(layout::TAGS).join(Digest::of(at.as_bytes()).short());
        let tags = self.files.list(&folder.join(name)).unwrap_or_default().into_iter();
        let known = |tag: String| {
            let tag = Tag::new(name, &tag).ok()?;
            let id = self.recall_tag(at, &tag)?;
            Some((tag, id))
        };
        tags.filter_map(known).collect()
    }

    /// A manifest that was asked for once.
    pub fn recall_manifest(&self, id: &Digest) -> Option<Vec<u8>> {
        let path = self.root.join(layout::manifest(id));
        files::read_whole(self.files, &path, STORE_JSON_BYTES_MAX).ok()
    }

    /// A folder in which a model's files have their names: what opens the first shard of a model
    /// looks for the others beside it. All of them are cached.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn view(&self, id: &Digest, manifest: &Manifest) -> Result<PathBuf, Error> {
        let folder = self.in_folder(VIEWS, id);
        create_dirs(self.files, &folder)?;
        for file in &manifest.files {
            let link = folder.join(&file.name);
            let target = Path::new("../..").join(BLOBS).join(file.sha256.to_string());
            match self.files.symlink(&target, &link) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::io("link", &link, error));
                }
                _ => {}
            }
        }
        Ok(folder)
    }
}

/// Where open files cannot be seen, a blob counts as in use for so long after it was asked for.
const UNKNOWN_USE_GRACE: Duration = Duration::from_secs(3600);
/// A download that nobody went on with for so long is given up.
const LEFTOVER_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
