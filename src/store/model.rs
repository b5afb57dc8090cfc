//! Models as a whole: several blobs, their manifest, and the tag that makes them visible.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::cache::Cache;
use super::digest::Digest;
use super::error::Error;
use super::fetch::{Fetched, Wanted, fetch};
use super::files::{self, File, Files};
use super::gguf;
use super::hash::Counters;
use super::manifest::{Manifest, ModelFile, tag_of_file};
use super::name::{self, Reference, Tag};
use super::put::{Sending, Source, Stored, put_blob};
use super::remote::Remote;

/// A file that belongs to a model.
pub struct Input {
    /// Where it is.
    pub path: PathBuf,
    /// What it is called in the model.
    pub name: String,
}

/// How a model is stored.
pub struct Storing {
    /// None: by the first file's name and quantization.
    pub tag: Option<Tag>,
    /// None: by the header.
    pub licence: Option<String>,
    /// Bytes of a part.
    pub part_size: u64,
    /// Threads that read, hash and send.
    pub threads: usize,
    /// Takes files that begin as a GGUF and are none.
    pub is_raw: bool,
    /// The time, RFC 3339.
    pub at: String,
}

/// A model that is stored.
pub struct StoredModel {
    /// What was stored.
    pub manifest: Manifest,
    /// The manifest's name.
    pub id: Digest,
    /// Its name.
    pub tag: Tag,
    /// Each of its files' blobs.
    pub blobs: Vec<Stored>,
}

/// Stores files as a model: blobs, then the manifest, then the tag. It returns once all is durable.
///
/// # Errors
/// A file is no GGUF though it begins as one, or changed; the remote failed. The tag is then what
/// it was.
pub fn put_model(
    files: &dyn Files,
    remote: &dyn Remote,
    inputs: &[Input],
    storing: &Storing,
    counters: &Counters,
) -> Result<StoredModel, Error> {
    let mut sources = Vec::new();
    for input in inputs {
        name::check(&input.name)?;
        let source = Source::open(files, &input.path)?;
        counters.total.fetch_add(source.size(), Ordering::Relaxed);
        // All headers first: what is refused is refused before anything was sent.
        let header = header(&source, storing.is_raw)?;
        sources.push((source, header, &input.name));
    }
    let sizes = match remote.blobs() {
        Ok(blobs) => Some(blobs.into_iter().map(|blob| blob.size).collect::<Vec<u64>>()),
        // A remote that does not list may have anything.
        Err(Error::Unsupported { .. }) => None,
        Err(error) => return Err(error),
    };
    let (part_size, threads) = (storing.part_size, storing.threads);
    let mut blobs = Vec::new();
    for (source, ..) in &sources {
        let may_be_there = sizes.as_ref().is_none_or(|sizes| sizes.contains(&source.size()));
        let sending = Sending { part_size, threads, may_be_there };
        blobs.push(put_blob(remote, source, sending, counters)?);
    }
    let with_blobs = sources.iter().zip(&blobs);
    let model_files = with_blobs.map(|((source, header, name), stored)| ModelFile {
        name: (*name).clone(),
        size: source.size(),
        sha256: stored.digest,
        part_size: stored.record.part_size,
        parts: stored.record.parts.clone(),
        gguf: header.clone(),
    });
    let model_files: Vec<ModelFile> = model_files.collect();
    let label = sources[0].1.as_ref().and_then(|gguf| gguf.quantization.label.clone());
    let by_file = || tag_of_file(sources[0].2, label.as_deref());
    let tag = storing.tag.clone().unwrap_or_else(by_file);
    let manifest = Manifest::new(&tag, model_files, storing.licence.clone(), storing.at.clone());
    let (id, bytes) = manifest.to_json();
    remote.put_manifest(&id, &bytes)?;
    // From here on `gc` knows what the manifest names. What it removed just before is sent again.
    for ((source, ..), stored) in sources.iter().zip(&blobs) {
        if stored.was_there && remote.stat(&stored.digest)?.is_none() {
            let sending = Sending { part_size, threads, may_be_there: false };
            put_blob(remote, source, sending, counters)?;
        }
    }
    remote.put_tag(&tag, &id)?;
    Ok(StoredModel { manifest, id, tag, blobs })
}

/// The header of a file that begins as a GGUF.
fn header(source: &Source, is_raw: bool) -> Result<Option<gguf::Gguf>, Error> {
    let mut start = [0; 4];
    let read = files::read_full(source.file(), &mut start, 0);
    let count = read.map_err(|error| Error::io("read", source.path(), error))?;
    if !gguf::is_gguf(&start[..count]) {
        return Ok(None);
    }
    let input = io::BufReader::with_capacity(READ_BYTES, At { file: source.file(), at: 0 });
    match gguf::parse(input, source.size()) {
        Ok(header) => Ok(Some(header)),
        Err(_) if is_raw => Ok(None),
        Err(why) => Err(Error::Gguf { path: source.path().to_owned(), why }),
    }
}

/// Read at once of a header.
const READ_BYTES: usize = 256 << 10;

/// A file as a stream.
struct At<'a> {
    file: &'a dyn File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(into, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// What a reference means.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolved {
    /// A model.
    Model {
        /// Its manifest's name.
        id: Digest,
        /// Its manifest.
        manifest: Box<Manifest>,
    },
    /// A blob that no manifest was asked about.
    Blob(Digest),
}

/// Finds out what a reference means: by the remote, or, offline, by what the cache remembers of it.
///
/// # Errors
/// There is nothing of this name, or several things; the remote does not answer.
pub fn resolve(
    remote: &dyn Remote,
    cache: &Cache<'_>,
    is_offline: bool,
    reference: &Reference,
) -> Result<Resolved, Error> {
    match reference {
        Reference::Tag(tag) if is_offline => {
            let (tag, id) = recalled(cache, &remote.describe(), tag)?;
            let offline = || Error::Offline { what: tag.to_string() };
            let bytes = cache.recall_manifest(&id).ok_or_else(offline)?;
            model(&id, &bytes, &cache.root().display().to_string())
        }
        Reference::Tag(tag) => {
            let at = remote.describe();
            let (tag, id) = named(remote, tag)?;
            let what = || format!("the manifest {id} of {tag}");
            let gone = || Error::NotFound { what: what(), at: at.clone() };
            let bytes = remote.manifest(&id)?.ok_or_else(gone)?;
            let resolved = model(&id, &bytes, &at)?;
            cache.remember(&at, &tag, &id, &bytes);
            Ok(resolved)
        }
        Reference::Digest(digest) => {
            let bytes = if is_offline { None } else { remote.manifest(digest)? };
            match bytes {
                Some(bytes) => model(digest, &bytes, &remote.describe()),
                None => Ok(Resolved::Blob(*digest)),
            }
        }
        Reference::Prefix(prefix) => {
            let mut matches = if is_offline {
                cache.entries()?.into_iter().map(|entry| entry.digest).collect()
            } else {
                let found = remote.blobs()?.into_iter().chain(remote.manifests()?);
                found.filter(|entry| entry.is_complete).map(|entry| entry.digest).collect()
            };
            let matches: &mut Vec<Digest> = &mut matches;
            matches.retain(|digest| digest.to_string().starts_with(prefix));
            matches.sort_unstable();
            matches.dedup();
            match matches[..] {
                [digest] => resolve(remote, cache, is_offline, &Reference::Digest(digest)),
                // A name may look like digits.
                [] => resolve(remote, cache, is_offline, &Reference::Tag(prefix.parse()?)),
                _ => {
                    matches.truncate(MATCHES_MAX);
                    Err(Error::Ambiguous { prefix: prefix.clone(), matches: matches.clone() })
                }
            }
        }
    }
}

/// What a tag names. A name without a tag is also good for the only tag that there is.
fn named(remote: &dyn Remote, tag: &Tag) -> Result<(Tag, Digest), Error> {
    if let Some(id) = remote.tag(tag)? {
        return Ok((tag.clone(), id));
    }
    let of_name = || -> Result<Vec<(Tag, Digest)>, Error> {
        let all = remote.tags()?.into_iter();
        Ok(all.filter(|(other, _)| other.name() == tag.name()).collect())
    };
    let others = if tag.tag() == name::TAG_DEFAULT { of_name()? } else { Vec::new() };
    only(tag, others).map_err(|what| Error::NotFound { what, at: remote.describe() })
}

/// The same, of what the cache remembers.
fn recalled(cache: &Cache<'_>, at: &str, tag: &Tag) -> Result<(Tag, Digest), Error> {
    if let Some(id) = cache.recall_tag(at, tag) {
        return Ok((tag.clone(), id));
    }
    let is_bare = tag.tag() == name::TAG_DEFAULT;
    let others = if is_bare { cache.recall_tags(at, tag.name()) } else { Vec::new() };
    only(tag, others).map_err(|what| Error::Offline { what })
}

/// The only tag of a name; else what was looked for, and what there is.
fn only(tag: &Tag, others: Vec<(Tag, Digest)>) -> Result<(Tag, Digest), String> {
    match &others[..] {
        [only] => Ok(only.clone()),
        [] => Err(tag.to_string()),
        several => {
            let names: Vec<String> = several.iter().map(|(tag, _)| tag.to_string()).collect();
            Err(format!("{tag} (but {})", names.join(", ")))
        }
    }
}

/// Told of those that a prefix may mean.
const MATCHES_MAX: usize = 8;

/// Reads a manifest that is to have this name.
///
/// # Errors
/// It has another one, or is refused.
pub fn read_manifest(id: &Digest, bytes: &[u8], at: &str) -> Result<Manifest, Error> {
    let what = format!("the manifest {id}");
    if Digest::of(bytes) != *id {
        let why = "its bytes have another SHA-256".to_owned();
        return Err(Error::Refused { what, at: at.to_owned(), why });
    }
    Manifest::parse(bytes, &what, at)
}

fn model(id: &Digest, bytes: &[u8], at: &str) -> Result<Resolved, Error> {
    let manifest = Box::new(read_manifest(id, bytes, at)?);
    Ok(Resolved::Model { id: *id, manifest })
}

/// Gets all files of a model, or a blob, into the cache; in the model's order.
///
/// # Errors
/// As `fetch`.
pub fn get_model(
    cache: &Cache<'_>,
    remote: Option<&dyn Remote>,
    resolved: &Resolved,
    name: &str,
    threads: usize,
    counters: &Counters,
) -> Result<Vec<Fetched>, Error> {
    let wanted: Vec<Wanted<'_>> = match resolved {
        Resolved::Blob(digest) => vec![Wanted { digest: *digest, name, record: None, threads }],
        Resolved::Model { manifest, .. } => {
            let each = |file: &ModelFile| {
                counters.total.fetch_add(file.size, Ordering::Relaxed);
                Wanted { digest: file.sha256, name, record: Some(file.record()), threads }
            };
            manifest.files.iter().map(each).collect()
        }
    };
    let mut fetched = Vec::new();
    for wanted in &wanted {
        let one = fetch(cache, remote, wanted, counters)?;
        if one.was_cached {
            counters.add(wanted.record.as_ref().map_or(0, |record| record.size));
        }
        fetched.push(one);
    }
    Ok(fetched)
}
