//! Bytes of a filer's files, by range, each read tried until it goes through.

use std::time::Instant;

use super::http::{Answer, Cut, Fault, Http, Request};
use super::tree::short;
use crate::limits::FILER_UNREADABLE;
use crate::store::error::Error;
use crate::store::remote::Take;

/// What became of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// All of it was read.
    Whole,
    /// There is no such file.
    Missing,
    /// The filer is well and knows the file, and cannot give the byte at this offset: a volume
    /// server has found by its checksum that the chunk is damaged, or has lost it.
    Unreadable(u64),
}

impl Http {
    /// A small file. None: there is none.
    ///
    /// # Errors
    /// The filer does not answer; the file has more than `limit` bytes.
    pub fn read_small(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        self.retry(&format!("reading {}", short(path)), |_| {
            // Without a range, a chunk that cannot be read becomes the text of its error.
            let request =
                Request::new("GET", self.url(path, "")).header("Range", format!("bytes=0-{limit}"));
            let mut answer = self.send(&request)?;
            match answer.status {
                404 => return Ok(None),
                // An empty file has no range at all.
                416 => return Ok(Some(Vec::new())),
                200 | 206 => {}
                _ => return Err(answer.fault()),
            }
            let whole = match answer.status {
                206 => content_range(&answer).map(|(_, _, whole)| whole),
                _ => answer.number("content-length"),
            };
            let bytes = answer.bytes(limit)?;
            if whole.is_some_and(|whole| whole != bytes.len() as u64) {
                return Err(Fault::passing(format!(
                    "the answer ended after {} bytes",
                    bytes.len()
                )));
            }
            Ok(Some(bytes))
        })
    }

    /// Gives `len` bytes of a file of `whole` bytes to `take`, from `offset` on. What has come is
    /// not asked for again.
    ///
    /// # Errors
    /// The filer does not answer, the file has another size, or `take` fails.
    pub fn read_range(
        &self,
        path: &str,
        offset: u64,
        len: u64,
        whole: u64,
        take: &mut Take<'_>,
    ) -> Result<Read, Error> {
        if len == 0 {
            return Ok(Read::Whole);
        }
        let mut taken = 0;
        // Since when it stands still, although the filer is well.
        let mut stuck: Option<Instant> = None;
        self.retry(&format!("reading {}", short(path)), |retry| {
            let (count, ended) = self.read_once(path, offset + taken, len - taken, whole, take);
            taken += count;
            if count > 0 {
                retry.progress();
                stuck = None;
            }
            let fault = match ended {
                Ok(read) => return Ok(Ok(read)),
                Err(Cut::Taker(error)) => return Ok(Err(error)),
                Err(Cut::Fault(fault)) => fault,
            };
            // A broken answer is all that the filer says of a chunk that it cannot read.
            if fault.is_retryable && fault.status == 0 {
                let is_well = matches!(self.size_once(path), Ok(Some(size)) if size == whole);
                let since = *stuck.get_or_insert_with(Instant::now);
                if !is_well {
                    stuck = None;
                } else if since.elapsed() >= FILER_UNREADABLE {
                    return Ok(Ok(Read::Unreadable(offset + taken)));
                }
            }
            Err(fault)
        })?
    }

    /// One attempt: how many bytes were taken, and how it ended.
    fn read_once(
        &self,
        path: &str,
        from: u64,
        len: u64,
        whole: u64,
        take: &mut Take<'_>,
    ) -> (u64, Result<Read, Cut>) {
        let last = from + len - 1;
        let request =
            Request::new("GET", self.url(path, "")).header("Range", format!("bytes={from}-{last}"));
        let mut answer = match self.send(&request) {
            Ok(answer) => answer,
            Err(fault) => return (0, Err(Cut::Fault(fault))),
        };
        let fault = match (answer.status, content_range(&answer)) {
            // Also what the filer says of a file whose chunk it cannot read.
            (404, _) => match self.size_once(path) {
                Ok(None) => return (0, Ok(Read::Missing)),
                Ok(Some(_)) => Fault::passing("a chunk of the file is not to be had"),
                Err(fault) => fault,
            },
            (206, Some((start, end, size))) if size == whole && (start, end) == (from, last) => {
                let (count, ended) = answer.stream(len, take);
                return (count, ended.map(|()| Read::Whole));
            }
            (206, Some((_, _, size))) if size != whole => {
                Fault::last(format!("the file has {size} bytes, not {whole}"))
            }
            (206, _) => Fault::last("it answers with another range"),
            (200, _) => Fault::last("it does not know ranges"),
            (416, _) => Fault::last(format!("the file has not {whole} bytes")),
            _ => answer.fault(),
        };
        (0, Err(Cut::Fault(fault)))
    }
}

/// First and last byte of an answer, and the bytes of the file: `bytes 0-99/1000`.
pub fn content_range(answer: &Answer) -> Option<(u64, u64, u64)> {
    parse_range(answer.header("content-range")?)
}

fn parse_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, whole.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(parse_range("bytes 0-99/1000"), Some((0, 99, 1000)));
        for bad in ["bytes */1000", "bytes 0-99/*", "0-99/1000", "bytes 0/1"] {
            assert_eq!(parse_range(bad), None, "{bad}");
        }
    }
}
