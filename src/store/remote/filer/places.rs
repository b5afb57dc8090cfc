//! A file's bytes straight from the volume servers that have them, as SeaweedFS's own clients read:
//! through the filer each byte would pass one more server on its way.
//!
//! Whatever goes wrong here ends in a shorter read, and the rest is read through the filer, which
//! finds another replica, waits for a server that restarts, or says what is wrong. So nothing here
//! is tried twice.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::http::{Cut, Fault, Http, Request};
use super::proto::{self, Chunk};
use super::read::content_range;
use super::volume::Volumes;
use crate::store::error::Error;
use crate::store::remote::Take;

/// Where a file's bytes are.
#[derive(Debug, PartialEq, Eq)]
pub struct Places {
    /// By offset: each begins where the one before it ends.
    chunks: Vec<Chunk>,
    /// The `host:port` of each volume's servers.
    servers: HashMap<String, Vec<String>>,
}

impl Places {
    /// None: the chunks overlap or leave gaps, which the filer knows how to read.
    fn new(
        mut chunks: Vec<Chunk>,
        size: u64,
        servers: HashMap<String, Vec<String>>,
    ) -> Option<Places> {
        chunks.sort_by_key(|chunk| chunk.offset);
        let mut end = 0;
        for chunk in &chunks {
            if chunk.offset != end {
                return None;
            }
            end += chunk.size;
        }
        (end == size).then_some(Places { chunks, servers })
    }

    /// The servers of a chunk's volume, `<volume>,<key and cookie>`.
    fn servers(&self, chunk: &Chunk) -> &[String] {
        let volume = chunk.file_id.split(',').next().unwrap_or_default();
        self.servers.get(volume).map_or(&[], Vec::as_slice)
    }

    /// The chunk that has the byte at `offset`, and its place among all.
    fn at(&self, offset: u64) -> Option<(usize, &Chunk)> {
        let after = self.chunks.partition_point(|chunk| chunk.offset <= offset);
        let index = after.checked_sub(1)?;
        let chunk = &self.chunks[index];
        (offset < chunk.offset + chunk.size).then_some((index, chunk))
    }
}

impl Volumes {
    /// Where the chunks of a file of `size` bytes are. None: in a way that only the filer reads, or
    /// it does not say.
    pub fn places(&self, chunks: Vec<Chunk>, size: u64) -> Option<Places> {
        let mut volumes: Vec<&str> =
            chunks.iter().filter_map(|chunk| chunk.file_id.split(',').next()).collect();
        volumes.sort_unstable();
        volumes.dedup();
        let request = proto::lookup_request(volumes.into_iter());
        let answer = self.channel.call("/filer_pb.SeaweedFiler/LookupVolume", &request).ok()?;
        let servers = proto::locations(&answer).ok()?.into_iter().collect();
        Places::new(chunks, size, servers)
    }

    /// Gives bytes to `take`, as many as can be had this way: how many it took.
    ///
    /// # Errors
    /// What `take` returned.
    pub fn read(
        &self,
        http: &Http,
        places: &Places,
        offset: u64,
        len: u64,
        take: &mut Take<'_>,
    ) -> Result<u64, Error> {
        let mut taken = 0;
        while taken < len && self.read_misses.load(Ordering::Relaxed) < super::volume::MISSES_MAX {
            let at = offset + taken;
            let Some((index, chunk)) = places.at(at) else { break };
            let within = at - chunk.offset;
            let count = (len - taken).min(chunk.size - within);
            let servers = places.servers(chunk);
            // Replicas share the work.
            let Some(server) = servers.get(index % servers.len().max(1)) else { break };
            let url = format!("http://{server}/{}", chunk.file_id);
            let (came, ended) = read_chunk(http, url, within, count, chunk.size, take);
            taken += came;
            match ended {
                Ok(()) => self.read_misses.store(0, Ordering::Relaxed),
                Err(Cut::Taker(error)) => return Err(error),
                Err(Cut::Fault(fault)) => {
                    self.read_misses.fetch_add(1, Ordering::Relaxed);
                    log::debug!("{server}: reading a chunk: {}; the filer reads on", fault.reason);
                    break;
                }
            }
        }
        Ok(taken)
    }
}

fn read_chunk(
    http: &Http,
    url: String,
    from: u64,
    len: u64,
    whole: u64,
    take: &mut Take<'_>,
) -> (u64, Result<(), Cut>) {
    let last = from + len - 1;
    let request = Request::new("GET", url).header("Range", format!("bytes={from}-{last}"));
    let mut answer = match http.send_as(&request, None) {
        Ok(answer) => answer,
        Err(fault) => return (0, Err(Cut::Fault(fault))),
    };
    if answer.status == 206 && content_range(&answer) == Some((from, last, whole)) {
        return answer.stream(len, take);
    }
    let fault = if answer.is_fine() {
        Fault::last("it answers with another range")
    } else {
        answer.fault()
    };
    (0, Err(Cut::Fault(fault)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(file_id: &str, offset: u64, size: u64) -> Chunk {
        Chunk { file_id: file_id.to_owned(), offset, size, modified_ns: 0 }
    }

    #[test]
    fn chunks_have_to_lie_end_to_end() {
        let places = |chunks: &[Chunk], size| Places::new(chunks.to_vec(), size, HashMap::new());
        let (first, second) = (chunk("3,01", 0, 10), chunk("4,02", 10, 5));
        let found = places(&[second.clone(), first.clone()], 15).unwrap();
        assert_eq!(found.at(0), Some((0, &first)));
        assert_eq!(found.at(9), Some((0, &first)));
        assert_eq!(found.at(10), Some((1, &second)));
        assert_eq!((found.at(15), found.servers(&first).len()), (None, 0));
        assert_eq!(places(&[first.clone(), second.clone()], 16), None);
        assert_eq!(places(&[first.clone(), chunk("4,02", 9, 6)], 15), None);
        assert_eq!(places(std::slice::from_ref(&second), 5), None);
        assert!(places(&[], 0).is_some());
        let servers = HashMap::from([("3".to_owned(), vec!["a:1".to_owned()])]);
        let found = Places::new(vec![first.clone(), second.clone()], 15, servers).unwrap();
        assert_eq!(found.servers(&first), ["a:1"]);
        assert_eq!(found.servers(&second), [""; 0]);
    }
}
