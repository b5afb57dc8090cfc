//! A SeaweedFS filer as a remote, over its HTTP interface.
//!
//! Blobs, records, manifests and tags are where `layout.rs` says, under the folder of the `--filer`
//! URL, so that `curl http://filer:8888/cnse/blobs/sha256/ab/<digest>` fetches a blob. An upload
//! goes one of three ways, the best that the filer offers (`Way`); all of them end with one rename
//! and the record. A download reads chunks from volume servers where it can (`places.rs`). What is
//! read is asked for by range, never whole, and its size is compared every time. An ETag means
//! nothing: the filer has three kinds, one of them the same for all files.
//!
//! What a live filer does (SeaweedFS 4.53, found out with raw requests):
//!
//! - A PUT whose client is killed leaves nothing behind: 404, and the chunks are freed.
//! - A TUS part that breaks at byte k reports k, to the byte, as soon as the filer has stored what
//!   had arrived (a HEAD a moment after the break said 0, one 0.3 s later k); the rest is sent from
//!   there and the joined file is equal. A repeated join says 404, since the first one took the
//!   parts.
//! - The file that TUS makes has no ETag, and chunks of 4 MiB that start anew with each part.
//! - `maxMB=2048`, which used to store an empty file, stores all of it.
//! - A chunk of zeros is gzipped with `application/octet-stream` and left alone with
//!   `application/x-gguf`. By TUS it may be gzipped with no word of it in the listing; the bytes
//!   that are read, whole or by range, are right.
//! - A connection is closed after 10 s without a request, and a body that pauses is refused after
//!   20 s (status 500).
//! - `Range: bytes=<size>-` is 416, with `Content-Range: bytes */<size>`.
//! - `mv.from` moves folders too; repeated, it is 400 `no entry is found`, which the lost answer of
//!   a rename that was done looks like.
//! - DELETE is 204 for what is not there, and 500 for a folder that is not empty.
//! - With the filer's signing key set, a large PUT with `Expect: 100-continue` is refused (401)
//!   before its body is sent. gRPC asks for no key.
//! - What was answered with 201 is there after kill -9 of the whole server and a restart.
//! - A flipped bit is found by the volume server's checksum (CRC-32C of each chunk): an answer ends
//!   there, or the connection does; one that would begin there is 404. So a chunk that cannot be
//!   read looks like a server that is going down, but for HEAD, which is still 200.
//! - After kill -9 a rename can be 400 for some seconds, with the entry still in its place, and a
//!   new folder's listing can be 404 or empty for some more, while HEAD knows each file in it. A
//!   listing that fails in the middle is 404 as well.
//! - A PUT is hashed with MD5 three times (the whole, each chunk, each chunk again by the volume
//!   server), TUS twice; 1.5 GiB take 16.6 and 15.2 s of CPU, straight to a volume server 4 to 7.
//! - A file of more than 10,000 chunks, about 40 GB, the filer folds into lists of them by itself;
//!   who reads does not notice (tried with 10,240). A full one says that there are no writable
//!   volumes; what it has can be read.
//! - A file's entry is made before its folder's. Killed in between and asked again, the filer only
//!   updates the file: it can be read, and is in no listing (read in its source).
//! - A volume server answers a range of a chunk with 206, as the filer does of a file: read there,
//!   1.5 GiB cost its process 1.6 s of CPU instead of 2.6.
//! - With https it asks for a client's certificate, unless it is told not to.
//! - A first write after the start may be 500 or 503 for some seconds, until volumes have been
//!   made.

mod address;
mod auth;
mod blobs;
mod clock;
mod grpc;
mod hpack;
mod http;
mod places;
mod proto;
mod read;
mod tls;
mod tree;
mod tus;
mod upload;
mod volume;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use self::address::Address;
use self::auth::Auth;
use self::http::Http;
use self::places::Places;
use self::volume::Volumes;
use super::{BlobStat, Remote};
use crate::limits::STORE_JSON_BYTES_MAX;
use crate::store::digest::Digest;
use crate::store::error::Error;
use crate::store::files::Files;
use crate::store::layout;
use crate::store::pace::Pace;
use crate::store::record::{Layout, Record};

/// A filer as a remote.
pub struct Filer<'f> {
    files: &'f dyn Files,
    http: Http,
    wanted: Option<Way>,
    volumes: OnceLock<Option<Volumes>>,
    /// Where the bytes of the blob are that was read last; None: only the filer knows.
    places: Mutex<Option<(Digest, Option<Arc<Places>>)>>,
    tus: OnceLock<Option<tus::Offer>>,
}

/// How parts get into a filer, and what they become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Straight to volume servers where those can be reached, else through the filer; joined by the
    /// filer's gRPC into one file. The fastest: nothing is hashed on the way.
    Chunks,
    /// TUS with concatenation: one file, and nothing but HTTP.
    Tus,
    /// An object for each part. Every filer can do that.
    Parts,
}

/// What the environment says about filers.
#[derive(Clone, Default)]
pub struct Settings {
    auth: Auth,
    ca: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    way: Option<Way>,
    pace: Option<Arc<Pace>>,
}

impl Settings {
    /// From variables: `CNSE_FILER_TOKEN`, a ready token; `CNSE_FILER_KEY` and
    /// `CNSE_FILER_READ_KEY`, the filer's signing keys, to make tokens from; `CNSE_FILER_CA`, a PEM
    /// file with the authorities of an https filer; `CNSE_FILER_CERT`, one with the certificate and
    /// the key that it asks for; `CNSE_FILER_UPLOAD`, the one way to send.
    ///
    /// # Errors
    /// A variable's value, and what is wrong with it.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Settings, String> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let way = match set("CNSE_FILER_UPLOAD").as_deref() {
            None | Some("auto") => None,
            Some("chunks") => Some(Way::Chunks),
            Some("tus") => Some(Way::Tus),
            Some("parts") => Some(Way::Parts),
            Some(other) => {
                return Err(format!(
                    "CNSE_FILER_UPLOAD is {other:?}, and auto, chunks, tus and parts are known"
                ));
            }
        };
        let pem = |name: &str| {
            let read = set(name).map(|path| {
                std::fs::read(&path).map_err(|error| format!("{name}: {path:?}: {error}"))
            });
            read.transpose()
        };
        let (ca, certificate) = (pem("CNSE_FILER_CA")?, pem("CNSE_FILER_CERT")?);
        let auth = Auth {
            token: set("CNSE_FILER_TOKEN"),
            key: set("CNSE_FILER_KEY"),
            read_key: set("CNSE_FILER_READ_KEY"),
        };
        Ok(Settings { auth, ca, certificate, way, pace: None })
    }

    /// With a bound for what is sent.
    pub fn paced(self, pace: Option<Arc<Pace>>) -> Settings {
        Settings { pace, ..self }
    }
}

impl<'f> Filer<'f> {
    /// A filer at `http://host:8888` or, for another folder than `/cnse`,
    /// `http://host:8888/folder`. Connects with the first request.
    ///
    /// # Errors
    /// The URL is none; https, and this build has no TLS.
    pub fn new(files: &'f dyn Files, url: &str, settings: Settings) -> Result<Filer<'f>, String> {
        let address = Address::parse(url).map_err(|why| format!("{url:?} is no filer: {why}"))?;
        let (wanted, http) = (settings.way, Http::new(address, settings)?);
        let (volumes, tus) = (OnceLock::new(), OnceLock::new());
        Ok(Filer { files, http, wanted, volumes, places: Mutex::default(), tus })
    }

    /// Removes the whole folder of its URL: for one that was made to be thrown away. That it is not
    /// there is fine.
    ///
    /// # Errors
    /// The filer does not answer, or refuses.
    pub fn remove_folder(&self) -> Result<(), Error> {
        self.http.remove(&self.http.address().root, tree::Bytes::Free)
    }

    /// From the filer's root on.
    fn path(&self, relative: &str) -> String {
        format!("{}/{relative}", self.http.address().root)
    }

    /// Straight to volume servers, if that is possible here. Not beside https: bytes that are to be
    /// kept secret on the way would not be.
    fn volumes(&self) -> Option<&Volumes> {
        let find = || {
            let address = self.http.address();
            let is_plain = !address.is_https;
            is_plain.then(|| address.grpc()).flatten().and_then(Volumes::find)
        };
        self.volumes.get_or_init(find).as_ref()
    }

    /// Where the volume servers have the bytes of a blob, if they can be read there.
    fn places(&self, digest: &Digest, path: &str, size: u64) -> Option<Arc<Places>> {
        let mut known = self.places.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, places)) = known.as_ref().filter(|(of, _)| of == digest) {
            return places.clone();
        }
        let find = || {
            let volumes = self.volumes()?;
            let entry = self.http.entry(path).ok()??;
            volumes.places(entry.chunks?, size)
        };
        let places = find().map(Arc::new);
        *known = Some((*digest, places.clone()));
        places
    }

    /// A blob's bytes are elsewhere now.
    fn forget_places(&self) {
        *self.places.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    }

    /// The way for a blob of this size.
    fn way(&self, size: u64, parts: u64) -> Result<Way, Error> {
        let cannot =
            |what: &str| Err(Error::Unsupported { at: self.describe(), what: what.to_owned() });
        let wants = |way| self.wanted.is_none_or(|wanted| wanted == way);
        if wants(Way::Chunks) && self.volumes().is_some() {
            return Ok(Way::Chunks);
        }
        if wants(Way::Tus) {
            let offer = match self.tus.get() {
                Some(offer) => *offer,
                None => {
                    let offer = self.http.tus_offer()?;
                    *self.tus.get_or_init(|| offer)
                }
            };
            if offer.is_some_and(|offer| offer.takes(size, parts)) {
                return Ok(Way::Tus);
            }
        }
        match self.wanted {
            None | Some(Way::Parts) => Ok(Way::Parts),
            Some(Way::Tus) if size == 0 => Ok(Way::Parts),
            Some(Way::Tus) => {
                cannot("take this file by TUS (CNSE_FILER_UPLOAD=auto lets it choose)")
            }
            Some(Way::Chunks) => {
                cannot("be reached by gRPC (CNSE_FILER_UPLOAD=auto lets it choose)")
            }
        }
    }

    /// The part objects of a blob, with their sizes.
    fn part_objects(&self, digest: &Digest) -> Result<HashMap<u32, u64>, Error> {
        let folder = self.path(&format!("{}{}", layout::blob(digest), layout::PARTS));
        let entries = self.http.list(&folder)?;
        let parsed = entries.iter().filter(|entry| !entry.is_folder);
        Ok(parsed.filter_map(|entry| Some((entry.name.parse().ok()?, entry.size))).collect())
    }

    fn find(&self, digest: &Digest) -> Result<Option<BlobStat>, Error> {
        let bytes =
            self.http.read_small(&self.path(&layout::record(digest)), STORE_JSON_BYTES_MAX)?;
        let record = bytes.map(|bytes| Record::parse_of(digest, &bytes, &self.describe()));
        let record = record.transpose()?;
        if let Some(record) = record.as_ref().filter(|record| record.layout == Layout::Parts) {
            let (size, layout) = (record.size, record.layout);
            return Ok(Some(BlobStat { size, layout, record: Some(record.clone()) }));
        }
        let Some(size) = self.http.size_of(&self.path(&layout::blob(digest)))? else {
            return Ok(None);
        };
        let record = record.filter(|record| record.size == size);
        Ok(Some(BlobStat { size, layout: Layout::File, record }))
    }

    fn gone(&self, digest: &Digest) -> Error {
        Error::NotFound { what: digest.to_string(), at: self.describe() }
    }

    fn age(&self, modified: Duration) -> Duration {
        self.http.now().saturating_sub(modified)
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
