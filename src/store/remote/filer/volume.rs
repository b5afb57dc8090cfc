//! Chunks straight to volume servers, as SeaweedFS's own `weed filer.copy` and `weed mount` write
//! them: the filer assigns a place to each, the volume server stores it, and the filer is told
//! which chunks make up a file.
//!
//! What goes through the filer's HTTP it hashes with MD5, twice over for an upload by TUS and three
//! times for a PUT, one of them over the whole file on one core; that bounds both, and the store
//! needs none of it, since it has SHA-256 of every part.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use serde::Deserialize;

use super::grpc::Channel;
use super::http::{Answer, Fault, Http, Request};
use super::proto::{self, Chunk, File};
use super::tree::BLOB_TYPE;
use crate::limits::FILER_CHUNK_BYTES;
use crate::store::error::Error;

/// The way to volume servers.
pub struct Volumes {
    pub(super) channel: Channel,
    /// Volume servers that could not be reached, in a row: with too many it is given up.
    misses: AtomicU32,
    /// Chunks that could not be read, in a row: likewise. A server that asks for a token to read,
    /// which only the filer can make, is one that cannot be reached.
    pub(super) read_misses: AtomicU32,
}

/// Chunks that may fail in a row before all go through the filer: the volume servers of a filer in
/// a container, say, may have addresses that mean nothing here.
pub(super) const MISSES_MAX: u32 = 3;

impl Volumes {
    /// The way, if there is one: the filer's gRPC answers, without TLS, and does not ask for bytes
    /// that were encrypted before.
    pub fn find(address: String) -> Option<Volumes> {
        let channel = Channel::new(address);
        let configuration = channel.call("/filer_pb.SeaweedFiler/GetFilerConfiguration", &[]);
        let is_open = configuration.is_ok_and(|bytes| proto::is_encrypted(&bytes) == Ok(false));
        let (misses, read_misses) = (AtomicU32::new(0), AtomicU32::new(0));
        is_open.then_some(Volumes { channel, misses, read_misses })
    }

    /// Whether a part should be tried this way.
    pub fn is_promising(&self) -> bool {
        self.misses.load(Ordering::Relaxed) < MISSES_MAX
    }

    /// Stores bytes, two chunks at a time (while a volume server writes one it can take the next),
    /// as chunks of the file at `path`, to which they do not belong yet; their offsets begin at
    /// `start`. None: the volume servers are out of reach.
    ///
    /// # Errors
    /// The filer does not answer or refuses.
    pub fn put(
        &self,
        http: &Http,
        path: &str,
        start: u64,
        bytes: &[u8],
    ) -> Result<Option<Vec<Chunk>>, Error> {
        let pieces: Vec<&[u8]> = bytes.chunks(FILER_CHUNK_BYTES).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut chunks = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(piece) = pieces.get(index) else { return Ok(Some(chunks)) };
                let stored = self.put_piece(http, path, piece);
                let Some(file_id) = stored.inspect_err(|_| {
                    // What the others would still send is of no use.
                    next.store(pieces.len(), Ordering::Relaxed);
                })?
                else {
                    return Ok(None);
                };
                let modified_ns = http.now().as_nanos() as u64;
                let offset = start + (index * FILER_CHUNK_BYTES) as u64;
                chunks.push(Chunk { file_id, offset, size: piece.len() as u64, modified_ns });
            }
        };
        let sent: Vec<Result<Option<Vec<Chunk>>, Error>> = std::thread::scope(|scope| {
            let helper = (pieces.len() > 1).then(|| scope.spawn(work));
            let own = work();
            let others = helper.map(|helper| helper.join().expect("it does not panic"));
            others.into_iter().chain([own]).collect()
        });
        let sent: Option<Vec<Vec<Chunk>>> = sent.into_iter().collect::<Result<_, Error>>()?;
        Ok(sent.map(|chunks| {
            let mut chunks = chunks.concat();
            chunks.sort_by_key(|chunk| chunk.offset);
            chunks
        }))
    }

    /// A chunk in as many tries as it takes; its name. None: the volume servers are out of reach.
    fn put_piece(&self, http: &Http, path: &str, piece: &[u8]) -> Result<Option<String>, Error> {
        http.retry(&format!("writing {path}"), |_| match self.put_chunk(http, path, piece) {
            // The caller has another way; waiting here would only delay it.
            Err(fault) if fault.is_retryable && !self.is_promising() => Ok(None),
            stored => stored.map(Some),
        })
    }

    fn put_chunk(&self, http: &Http, path: &str, piece: &[u8]) -> Result<String, Fault> {
        let request = proto::assign_request(path, piece.len() as u64);
        let answer = self.channel.call("/filer_pb.SeaweedFiler/AssignVolume", &request)?;
        // No room yet is what it says while new volumes are being made.
        let place = proto::assignment(&answer).map_err(Fault::passing)?;
        let stored = self.send_chunk(http, &place, piece);
        match &stored {
            Ok(()) => self.misses.store(0, Ordering::Relaxed),
            Err(fault) if fault.status == 0 => {
                self.misses.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {}
        }
        stored.map(|()| place.file_id)
    }

    fn send_chunk(
        &self,
        http: &Http,
        place: &proto::Assignment,
        piece: &[u8],
    ) -> Result<(), Fault> {
        let query = if place.is_synced { "?fsync=true" } else { "" };
        let url = format!("http://{}/{}{query}", place.server, place.file_id);
        let token = (!place.token.is_empty()).then(|| format!("Bearer {}", place.token));
        let request =
            Request::new("PUT", url.clone()).header("Content-Type", BLOB_TYPE).body(piece);
        let answer = http.send_as(&request, token.clone());
        let stored = answer.and_then(|answer| check_stored(answer, piece.len() as u64));
        if stored.as_ref().is_err_and(|fault| fault.status == 0) {
            // It may be there all the same, and nobody will ever know of it.
            let _ = http.send_as(&Request::new("DELETE", url), token);
        }
        stored
    }

    /// Makes a file of chunks, in place of what is there: of its chunks those are freed that the
    /// new file has not. To do it twice is to do it once.
    ///
    /// # Errors
    /// The filer does not answer or refuses; it says that the file has another size.
    pub fn create(
        &self,
        http: &Http,
        path: &str,
        size: u64,
        chunks: &[Chunk],
    ) -> Result<(), Error> {
        let (directory, name) = path.rsplit_once('/').expect("a path from the root on");
        http.retry(&format!("making {path}"), |_| {
            let modified = http.now().as_secs();
            let file = File { directory, name, size, modified, mime: BLOB_TYPE, chunks };
            let request = proto::create_request(&file);
            let answer = self.channel.call("/filer_pb.SeaweedFiler/CreateEntry", &request)?;
            proto::created(&answer).map_err(Fault::last)
        })
    }
}

fn check_stored(mut answer: Answer, sent: u64) -> Result<(), Fault> {
    #[derive(Deserialize)]
    struct Stored {
        #[serde(default)]
        size: u64,
    }
    if !answer.is_fine() {
        // A volume that has become full or read-only since: the next place is another one.
        return Err(Fault { is_retryable: true, ..answer.fault() });
    }
    let stored: Stored = serde_json::from_slice(&answer.bytes(64 << 10)?)
        .map_err(|error| Fault::passing(format!("the volume server's answer: {error}")))?;
    if stored.size != sent {
        let reason = format!("a volume server stored {} of {sent} bytes", stored.size);
        return Err(Fault::passing(reason));
    }
    Ok(())
}
