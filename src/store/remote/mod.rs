//! Where models are kept for several machines: what a remote has to do, and nothing of how.
//!
//! Every call blocks, and may come from several threads at once. An implementation retries what is
//! worth a retry by itself; an error that comes out of it ends the command, and its
//! `is_retryable` tells whether the same command may go through later. Errors name the remote (as
//! `describe` does) and the thing.
//!
//! A remote does not check digests of what it is given: the store hashes what it sends from the
//! same buffer, and everything that it reads. So it never needs to trust a remote.

pub mod directory;
pub mod filer;

use std::path::PathBuf;
use std::time::Duration;

use super::digest::Digest;
use super::error::Error;
use super::files::File;
use super::name::Tag;
use super::record::{Layout, Record};

/// A place for blobs, manifests and tags; paths in `layout.rs`.
pub trait Remote: Send + Sync {
    /// For messages: `/srv/models`, `http://filer:8888/cnse`. No credentials.
    fn describe(&self) -> String;

    /// Looks for a blob. None: there is none, or it was never completed.
    ///
    /// # Errors
    /// The remote does not answer; the record is refused (`Error::Refused`).
    fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, Error>;

    /// Reads `len` bytes of a blob from `offset` on, and gives them to `take` in order, in pieces
    /// that fit into a core's second cache (`PIECE_BYTES` at most). `stat` came from `self.stat`.
    /// The range lies within the blob and need not fit its parts.
    ///
    /// # Errors
    /// The remote does not answer, the blob has gone (`Error::NotFound`) or has another size; what
    /// `take` returned, after which nothing more is read.
    fn read(
        &self,
        digest: &Digest,
        stat: &BlobStat,
        offset: u64,
        len: u64,
        take: &mut Take<'_>,
    ) -> Result<(), Error>;

    /// Starts an upload, or goes on with one of the same key that was left behind, by this machine
    /// or another one. Nothing of it is visible before `complete`. An upload of this key that is
    /// still under way in another process is left alone: this one then begins anew.
    ///
    /// # Errors
    /// The remote does not answer, refuses, or is full.
    fn begin<'a>(&'a self, upload: &Upload) -> Result<Box<dyn PartSink + 'a>, Error>;

    /// Writes one part of a blob that is there anew; the bytes are right. Readers see the old bytes
    /// or the new.
    ///
    /// # Errors
    /// `Error::Unsupported`: the blob has to be removed and stored again.
    fn mend(&self, digest: &Digest, stat: &BlobStat, index: u32, bytes: &[u8])
    -> Result<(), Error>;

    /// Makes a blob as young as if it were stored now, so that `gc` spares it for its grace.
    ///
    /// # Errors
    /// The remote does not answer; the blob has gone (`Error::NotFound`).
    fn refresh(&self, digest: &Digest) -> Result<(), Error>;

    /// A manifest's bytes, unchecked, at most `STORE_JSON_BYTES_MAX`. None: there is none.
    ///
    /// # Errors
    /// The remote does not answer; it is larger (`Error::Refused`).
    fn manifest(&self, id: &Digest) -> Result<Option<Vec<u8>>, Error>;

    /// Stores a manifest durably under the SHA-256 of its bytes. That it is there already is fine;
    /// it becomes young.
    ///
    /// # Errors
    /// The remote does not answer, refuses, or is full.
    fn put_manifest(&self, id: &Digest, bytes: &[u8]) -> Result<(), Error>;

    /// The manifest that a tag names. None: there is no such tag.
    ///
    /// # Errors
    /// The remote does not answer; the tag's file is no tag (`Error::Refused`).
    fn tag(&self, tag: &Tag) -> Result<Option<Digest>, Error>;

    /// Lets a tag name a manifest, whatever it named before: the last step of a `put`. Readers see
    /// the old or the new, and once it returns the new is durable.
    ///
    /// # Errors
    /// The remote does not answer, refuses, or is full.
    fn put_tag(&self, tag: &Tag, id: &Digest) -> Result<(), Error>;

    /// All tags, sorted. What does not look like a tag is left out.
    ///
    /// # Errors
    /// The remote does not answer, or does not list.
    fn tags(&self) -> Result<Vec<(Tag, Digest)>, Error>;

    /// All manifests, in no order.
    ///
    /// # Errors
    /// The remote does not answer, or does not list.
    fn manifests(&self) -> Result<Vec<Entry>, Error>;

    /// All blobs, in no order: those that are complete, and what `gc` has to know of others (a file
    /// or part objects without a record).
    ///
    /// # Errors
    /// The remote does not answer, or does not list (`Error::Unsupported`).
    fn blobs(&self) -> Result<Vec<Entry>, Error>;

    /// Uploads that nobody works on any more, as far as can be known.
    ///
    /// # Errors
    /// The remote does not answer, or does not list.
    fn leftovers(&self) -> Result<Vec<Leftover>, Error>;

    /// Removes a tag. False: there was none.
    ///
    /// # Errors
    /// The remote does not answer, or refuses.
    fn remove_tag(&self, tag: &Tag) -> Result<bool, Error>;

    /// Removes a manifest; that it has gone already is fine.
    ///
    /// # Errors
    /// The remote does not answer, or refuses.
    fn remove_manifest(&self, id: &Digest) -> Result<(), Error>;

    /// Removes a blob with all that belongs to it, its record first. Readers of it may fail.
    ///
    /// # Errors
    /// The remote does not answer, or refuses.
    fn remove_blob(&self, digest: &Digest) -> Result<(), Error>;

    /// Removes what an upload left behind.
    ///
    /// # Errors
    /// The remote does not answer, or refuses.
    fn remove_leftover(&self, leftover: &Leftover) -> Result<(), Error>;

    /// The file of a blob with `Layout::File`, if programs of this machine can open it.
    fn local_file(&self, _digest: &Digest) -> Option<PathBuf> {
        None
    }
}

/// What takes the bytes of a blob as they come.
pub type Take<'a> = dyn FnMut(&[u8]) -> Result<(), Error> + 'a;

/// A blob that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobStat {
    /// Its bytes.
    pub size: u64,
    /// How it is kept.
    pub layout: Layout,
    /// Its record. None: another program has put the file there; its parts are not known, and `put`
    /// stores it anew.
    pub record: Option<Record>,
}

/// What is about to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Names the source and all that makes its parts what they are: a digest of the file's
    /// identity, size, times and the part size. The blob's own name is not known yet: it is sent
    /// while it is hashed.
    pub key: Digest,
    /// Bytes in all.
    pub size: u64,
    /// Bytes of each part but the last.
    pub part_size: u64,
}

/// Takes the parts of one upload. `holds` and `put` may come from several threads at once, for
/// different parts and in any order.
///
/// Dropped without `complete` or `abort`, it leaves what it was given for the next `begin` of the
/// same key, as a killed process does.
pub trait PartSink: Send + Sync {
    /// Whether part `index` is there already, from an earlier process, with these very bytes:
    /// `digest` is their SHA-256. An implementation that cannot tell from what it stored beside the
    /// part has to read it again. Always false for an upload that began anew.
    ///
    /// # Errors
    /// The remote does not answer.
    fn holds(&self, index: u32, digest: &Digest) -> Result<bool, Error>;

    /// Stores part `index`, all its bytes (`part_range`), whose SHA-256 is `digest`. A second call
    /// for the same part replaces the first.
    ///
    /// # Errors
    /// The remote does not answer, refuses, or is full.
    fn put(&self, index: u32, digest: &Digest, bytes: &[u8]) -> Result<(), Error>;

    /// The file in which the parts lie one after the other, if there is one that this process can
    /// write. What has one is not given parts by `put`: the system copies them into it, and they
    /// are hashed there. So what is stored is what was hashed, and nothing passes through a buffer.
    fn file(&self) -> Option<&dyn File> {
        None
    }

    /// Makes the blob visible under `digest`, durably, with its record (which says how this remote
    /// keeps it: `record.layout` is set here). All parts were put or held. A blob of this name that
    /// is there already, whole, stays, and what was sent is removed.
    ///
    /// # Errors
    /// The remote does not answer or refuses; what was sent stays for the next try.
    fn complete(self: Box<Self>, digest: &Digest, record: Record) -> Result<(), Error>;

    /// Removes what was sent.
    ///
    /// # Errors
    /// The remote does not answer.
    fn abort(self: Box<Self>) -> Result<(), Error>;
}

/// A blob or a manifest in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub digest: Digest,
    /// Its bytes, as far as they are there.
    pub size: u64,
    /// Since it was stored or refreshed.
    pub age: Duration,
    /// False: not visible, as after a crash.
    pub is_complete: bool,
}

/// What an upload left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// What the remote calls it: a path in it.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// Since it was last written to.
    pub age: Duration,
}
