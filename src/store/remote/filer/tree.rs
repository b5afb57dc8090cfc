//! Files and folders of a filer, one operation at a time, each tried until it goes through. Paths
//! begin at the filer's root.

use std::time::Duration;

use serde::Deserialize;

use super::address::encode;
use super::clock;
use super::http::{Answer, Fault, Http, Request, Retry};
use super::proto::Chunk;
use crate::limits::{FILER_LISTING_BYTES_MAX, FILER_PAGE_ENTRIES};
use crate::store::error::Error;

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the folder.
    pub name: String,
    /// Whether it is a folder itself.
    pub is_folder: bool,
    /// Bytes of a file.
    pub size: u64,
    /// When it was last written, since 1970.
    pub modified: Duration,
    /// Where its bytes are. None: in a way that only the filer understands (folded into lists of
    /// chunks, encrypted, compressed, or kept beside the name).
    pub chunks: Option<Vec<Chunk>>,
}

/// What to do with a file's bytes as its name goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// They are another file's by now.
    Keep,
    /// They go as well.
    Free,
}

/// The media type of what has none: with `application/octet-stream` the filer would try to compress
/// each chunk, by its first 128 bytes.
pub const BLOB_TYPE: &str = "application/x-gguf";
const ACTION_NAMES_MAX: usize = 120;

#[derive(Deserialize)]
struct Page {
    #[serde(rename = "Entries")]
    entries: Option<Vec<Row>>,
    #[serde(rename = "LastFileName", default)]
    last: String,
    #[serde(rename = "ShouldDisplayLoadMore", default)]
    has_more: bool,
}

#[derive(Deserialize)]
struct Row {
    #[serde(rename = "FullPath")]
    path: String,
    #[serde(rename = "Mtime", default)]
    modified: String,
    #[serde(rename = "Mode", default)]
    mode: u32,
    #[serde(rename = "FileSize", default)]
    size: u64,
    #[serde(default)]
    chunks: Option<Vec<RowChunk>>,
}

#[derive(Deserialize)]
struct RowChunk {
    #[serde(default)]
    file_id: String,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    modified_ts_ns: u64,
    #[serde(default)]
    is_compressed: bool,
    #[serde(default)]
    is_chunk_manifest: bool,
    #[serde(default)]
    cipher_key: Option<String>,
}

/// How Go marks a folder in a file's mode.
const MODE_FOLDER: u32 = 1 << 31;

impl Row {
    fn entry(self) -> Entry {
        let name = self.path.rsplit('/').next().unwrap_or_default().to_owned();
        let chunks = self.chunks.unwrap_or_default();
        let sum: u64 = chunks.iter().map(|chunk| chunk.size).sum();
        let is_plain = |chunk: &RowChunk| {
            !chunk.is_compressed
                && !chunk.is_chunk_manifest
                && chunk.cipher_key.as_deref().unwrap_or_default().is_empty()
                && !chunk.file_id.is_empty()
        };
        let is_known = chunks.iter().all(is_plain) && sum == self.size;
        let chunks = chunks.into_iter().map(|chunk| Chunk {
            file_id: chunk.file_id,
            offset: chunk.offset,
            size: chunk.size,
            modified_ns: chunk.modified_ts_ns,
        });
        Entry {
            name,
            is_folder: self.mode & MODE_FOLDER != 0,
            size: self.size,
            modified: clock::rfc3339(&self.modified).unwrap_or_default(),
            chunks: is_known.then(|| chunks.collect()),
        }
    }
}

impl Http {
    /// All entries of a folder, by name; none: there is no folder.
    ///
    /// # Errors
    /// The filer does not answer, or does not list.
    pub fn list(&self, folder: &str) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        let mut last = String::new();
        loop {
            let from = encode(&last).replace('/', "%2F");
            let query = format!("limit={FILER_PAGE_ENTRIES}&lastFileName={from}");
            let page = self.retry(&format!("listing {}", short(folder)), |_| {
                // This very value: another one, or a list, gives a page for people.
                let request = Request::new("GET", self.url(&format!("{folder}/"), &query))
                    .header("Accept", "application/json");
                let mut answer = self.send(&request)?;
                if answer.status == 404 {
                    // Also what it says if its table fails it in the middle of the list.
                    return match self.entry_once(folder)? {
                        None => Ok(None),
                        Some(_) => Err(Fault::passing("it does not list a folder that is there")),
                    };
                }
                if !answer.is_fine() {
                    return Err(answer.fault());
                }
                let bytes = answer.bytes(FILER_LISTING_BYTES_MAX)?;
                let page: Page = serde_json::from_slice(&bytes)
                    .map_err(|error| Fault::last(format!("the listing is none: {error}")))?;
                Ok(Some(page))
            })?;
            let Some(page) = page else { return Ok(entries) };
            let before = entries.len();
            entries.extend(page.entries.unwrap_or_default().into_iter().map(Row::entry));
            if !page.has_more || page.last.is_empty() || entries.len() == before {
                return Ok(entries);
            }
            last = page.last;
        }
    }

    /// A file or folder, as it would be listed. None: there is none.
    ///
    /// # Errors
    /// The filer does not answer.
    pub fn entry(&self, path: &str) -> Result<Option<Entry>, Error> {
        self.retry(&format!("looking at {}", short(path)), |_| self.entry_once(path))
    }

    fn entry_once(&self, path: &str) -> Result<Option<Entry>, Fault> {
        let mut answer = self.send(&Request::new("GET", self.url(path, "metadata=true")))?;
        match answer.status {
            404 => Ok(None),
            200 => {
                let row: Row = serde_json::from_slice(&answer.bytes(FILER_LISTING_BYTES_MAX)?)
                    .map_err(|error| Fault::last(format!("the entry is none: {error}")))?;
                Ok(Some(row.entry()))
            }
            _ => Err(answer.fault()),
        }
    }

    /// A file's bytes. None: there is no file.
    ///
    /// # Errors
    /// The filer does not answer.
    pub fn size_of(&self, path: &str) -> Result<Option<u64>, Error> {
        self.retry(&format!("looking at {}", short(path)), |_| self.size_once(path))
    }

    pub(super) fn size_once(&self, path: &str) -> Result<Option<u64>, Fault> {
        let answer = self.send(&Request::new("HEAD", self.url(path, "")))?;
        match answer.status {
            404 => Ok(None),
            200 => answer
                .number("content-length")
                .map(Some)
                .ok_or_else(|| Fault::last("it does not say how long the file is")),
            _ => Err(answer.fault()),
        }
    }

    /// Writes a file that appears whole or not at all, in place of what is there; `query` as the
    /// filer has it.
    ///
    /// # Errors
    /// The filer does not answer, refuses, or is full.
    pub fn write(&self, path: &str, query: &str, mime: &str, bytes: &[u8]) -> Result<(), Error> {
        self.retry(&format!("writing {}", short(path)), |_| {
            let request =
                Request::new("PUT", self.url(path, query)).header("Content-Type", mime).body(bytes);
            let mut answer = self.send(&request)?;
            if !answer.is_fine() {
                return Err(answer.fault());
            }
            check_size(&mut answer, bytes.len() as u64)
        })
    }

    /// Writes over a part of a file, at the offset that `query` says. What the filer counts then is
    /// not told alike by all its versions.
    ///
    /// # Errors
    /// As `write`.
    pub fn overlay(&self, path: &str, query: &str, mime: &str, bytes: &[u8]) -> Result<(), Error> {
        self.retry(&format!("writing into {}", short(path)), |_| {
            let request =
                Request::new("PUT", self.url(path, query)).header("Content-Type", mime).body(bytes);
            let answer = self.send(&request)?;
            if answer.is_fine() { Ok(()) } else { Err(answer.fault()) }
        })
    }

    /// Writes a small file, synced on the volume server and in the filer's own table.
    ///
    /// # Errors
    /// As `write`.
    pub fn write_synced(&self, path: &str, mime: &str, bytes: &[u8]) -> Result<(), Error> {
        self.write(path, "fsync=true", mime, bytes)
    }

    /// Makes a folder if it is not there. The filer does so by itself when it makes a file, but
    /// after it: killed in between, it never does, and what lies in the folder is not listed.
    ///
    /// # Errors
    /// The filer does not answer, or refuses.
    pub fn ensure_folder(&self, folder: &str) -> Result<(), Error> {
        self.retry(&format!("making {}", short(folder)), |_| {
            if self.entry_once(folder)?.is_some() {
                return Ok(());
            }
            log::warn!("{} has lost its entry; it is made again", short(folder));
            let answer = self.send(&Request::new("POST", self.url(&format!("{folder}/"), "")))?;
            // Another process may have been faster, which it tells as a fault.
            if answer.is_fine() || self.entry_once(folder)?.is_some() {
                return Ok(());
            }
            Err(answer.fault())
        })
    }

    /// Removes a file, or a folder with all that is in it. That it is not there is fine.
    ///
    /// # Errors
    /// The filer does not answer, or refuses.
    pub fn remove(&self, path: &str, bytes: Bytes) -> Result<(), Error> {
        let query = match bytes {
            Bytes::Keep => "recursive=true&skipChunkDeletion=true",
            Bytes::Free => "recursive=true",
        };
        self.retry(&format!("removing {}", short(path)), |_| {
            let answer = self.send(&Request::new("DELETE", self.url(path, query)))?;
            let is_gone = answer.is_fine() || answer.status == 404;
            if is_gone { Ok(()) } else { Err(answer.fault()) }
        })
    }

    /// Gives a file of `size` bytes another name, in place of what has it. False: there is no such
    /// file. If the answer was lost, the new name tells whether it was done.
    ///
    /// # Errors
    /// The filer does not answer, or refuses.
    pub fn rename(&self, from: &str, to: &str, size: u64) -> Result<bool, Error> {
        self.retry(&format!("renaming {} to {}", short(from), short(to)), |_| {
            let answer = self.rename_once(from, to)?;
            match answer.status {
                // Whatever fails in the filer's table; if it is that there is no such entry, it has
                // gone by another name, or was never there.
                400 => match (self.size_once(from)?, self.size_once(to)?) {
                    (None, Some(found)) if found == size => Ok(true),
                    (None, _) => Ok(false),
                    (Some(_), _) => Err(Fault { is_retryable: true, ..answer.fault() }),
                },
                _ if answer.is_fine() => Ok(true),
                _ => Err(answer.fault()),
            }
        })
    }

    /// Gives a folder another name, that of nothing. False: it has gone by another one.
    ///
    /// # Errors
    /// The filer does not answer, or refuses.
    pub fn rename_folder(&self, from: &str, to: &str) -> Result<bool, Error> {
        self.retry(&format!("renaming {}", short(from)), |_: &mut Retry| {
            let answer = self.rename_once(from, to)?;
            match answer.status {
                400 if self.entry_once(from)?.is_some() => {
                    Err(Fault { is_retryable: true, ..answer.fault() })
                }
                400 => Ok(self.entry_once(to)?.is_some()),
                _ if answer.is_fine() => Ok(true),
                _ => Err(answer.fault()),
            }
        })
    }

    fn rename_once(&self, from: &str, to: &str) -> Result<Answer, Fault> {
        self.send(&Request::new("POST", self.url(to, &format!("mv.from={}", encode(from)))))
    }
}

/// Whether the filer has stored as many bytes as it was sent. It leaves the number out for 0.
fn check_size(answer: &mut Answer, sent: u64) -> Result<(), Fault> {
    #[derive(Deserialize)]
    struct Stored {
        #[serde(default)]
        size: u64,
        #[serde(default)]
        error: String,
    }
    let bytes = answer.bytes(64 << 10)?;
    let stored: Stored = serde_json::from_slice(&bytes)
        .map_err(|error| Fault::passing(format!("the answer is none: {error}")))?;
    if !stored.error.is_empty() {
        return Err(Fault::passing(stored.error));
    }
    if stored.size != sent {
        // Seen after trouble with a volume server (seaweedfs/seaweedfs#4408).
        return Err(Fault::passing(format!("it stored {} of {sent} bytes", stored.size)));
    }
    Ok(())
}

/// A path for a message.
pub(super) fn short(path: &str) -> &str {
    let from = path.len().saturating_sub(ACTION_NAMES_MAX);
    let from = (from..=path.len()).find(|at| path.is_char_boundary(*at)).unwrap_or(0);
    &path[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let row = |text: &str| serde_json::from_str::<Row>(text).unwrap().entry();
        let file =
            row(r#"{"FullPath":"/a/b c","Mtime":"1970-01-01T00:00:09Z","Mode":432,"FileSize":7,
                "chunks":[{"file_id":"3,01","size":4,"modified_ts_ns":5},
                          {"file_id":"3,02","offset":4,"size":3}]}"#);
        assert_eq!((file.name.as_str(), file.is_folder, file.size), ("b c", false, 7));
        assert_eq!(file.modified, Duration::from_secs(9));
        let chunks = file.chunks.unwrap();
        assert_eq!((chunks[1].offset, chunks[0].modified_ns), (4, 5));
        let folder = row(r#"{"FullPath":"/a/d","Mode":2147484141,"chunks":null}"#);
        assert!(folder.is_folder && folder.modified.is_zero());
        for (member, what) in [
            (r#""is_compressed":true"#, "compressed"),
            (r#""is_chunk_manifest":true"#, "a list of chunks"),
            (r#""cipher_key":"a2V5""#, "encrypted"),
            (r#""offset":1"#, "shorter than the file"),
        ] {
            let size = if member.contains("offset") { 5 } else { 4 };
            let text = format!(
                r#"{{"FullPath":"/f","FileSize":{size},"chunks":[{{"file_id":"1,1","size":4,{member}}}]}}"#
            );
            assert_eq!(row(&text).chunks, None, "{what}");
        }
    }

    #[test]
    fn messages_have_the_end_of_a_path() {
        let long = format!("/{}é/end", "x".repeat(115));
        assert!(short(&long).ends_with("/end") && short("/a") == "/a");
        assert!(short(&"é".repeat(200)).len() <= ACTION_NAMES_MAX);
    }
}
