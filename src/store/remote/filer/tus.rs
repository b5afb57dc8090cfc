//! TUS (tus.io, protocol 1.0.0) with its extension `concatenation`: an upload that goes on at the
//! byte where it broke, in several parts at once, and becomes one file.

use super::http::{Answer, Fault, Http, Request};
use crate::store::error::Error;

/// The first version in which a partial upload that broke keeps its bytes: before, they were freed
/// and still reported.
const VERSION_LEAST: (u32, u32) = (4, 44);
/// Parts of one file: each takes 60 bytes of a header line, and Go's limit for all is 1 MiB.
const PARTS_MAX: u64 = 12_000;

/// What a filer offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Bytes of a file.
    size_max: u64,
}

impl Offer {
    /// Whether a file of this kind can be sent so.
    pub fn takes(&self, size: u64, parts: u64) -> bool {
        // An upload of no bytes has no parts to concatenate.
        (1..=self.size_max).contains(&size) && parts <= PARTS_MAX
    }
}

impl Http {
    /// Whether the filer offers it, and is new enough.
    ///
    /// # Errors
    /// The filer does not answer.
    pub fn tus_offer(&self) -> Result<Option<Offer>, Error> {
        self.retry("asking what it offers", |_| {
            let options = self.send(&Request::new("OPTIONS", self.url("/.tus/", "")))?;
            let has = |name| {
                options
                    .header("tus-extension")
                    .is_some_and(|all: &str| all.split(',').any(|one| one.trim() == name))
            };
            let size_max = options.number("tus-max-size");
            let (Some(size_max), true) = (size_max, options.is_fine() && has("concatenation"))
            else {
                return Ok(None);
            };
            // Only answers about files carry the version; the health check is open to all.
            let health = self.send(&Request::new("GET", self.url("/healthz", "")))?;
            let is_new =
                health.header("server").and_then(version).is_some_and(|v| v >= VERSION_LEAST);
            Ok(is_new.then_some(Offer { size_max }))
        })
    }

    /// Sends a part, in as many attempts as it takes. Returns where it is.
    ///
    /// # Errors
    /// The filer does not answer or refuses.
    pub fn tus_put(&self, target: &str, bytes: &[u8]) -> Result<String, Error> {
        let mut place = None;
        let size = bytes.len() as u64;
        self.retry(&format!("sending a part of {target}"), |retry| {
            let location = match place.take() {
                Some(location) => location,
                None => self.tus_create(target, size)?,
            };
            // What the server says it has; after a break it may still be storing for a while, and
            // then refuses what comes next.
            let Some(offset) = self.tus_offset(&location)? else {
                return Err(Fault::passing("the upload has gone"));
            };
            let sent = self.tus_patch(&location, offset, &bytes[offset.min(size) as usize..]);
            let now = match sent {
                Ok(now) => now,
                Err(fault) => {
                    place = Some(location);
                    return Err(fault);
                }
            };
            if now == size {
                return Ok(location);
            }
            if now > offset {
                retry.progress();
            }
            place = Some(location);
            Err(Fault::passing(format!("it stored {now} of {size} bytes")))
        })
    }

    fn tus_create(&self, target: &str, size: u64) -> Result<String, Fault> {
        let request = Request::new("POST", self.url(&format!("/.tus{target}"), ""))
            .header("Tus-Resumable", "1.0.0")
            .header("Upload-Concat", "partial")
            .header("Upload-Length", size.to_string());
        let answer = self.send(&request)?;
        if answer.status != 201 {
            return Err(answer.fault());
        }
        let location = answer.header("location").filter(|place| is_location(place));
        location
            .map(str::to_owned)
            .ok_or_else(|| Fault::last("it does not say where the upload is"))
    }

    /// How many bytes of an upload are there. None: there is no such upload.
    fn tus_offset(&self, location: &str) -> Result<Option<u64>, Fault> {
        let request = Request::new("HEAD", self.url(location, "")).header("Tus-Resumable", "1.0.0");
        let answer = self.send(&request)?;
        match answer.status {
            404 | 410 => Ok(None),
            200 | 204 => offset_of(&answer).map(Some),
            _ => Err(answer.fault()),
        }
    }

    fn tus_patch(&self, location: &str, offset: u64, rest: &[u8]) -> Result<u64, Fault> {
        if rest.is_empty() {
            return Ok(offset);
        }
        let request = Request::new("PATCH", self.url(location, ""))
            .header("Tus-Resumable", "1.0.0")
            .header("Content-Type", "application/offset+octet-stream")
            .header("Upload-Offset", offset.to_string())
            .body(rest);
        let answer = self.send(&request)?;
        match answer.status {
            204 | 200 => offset_of(&answer),
            // Another offset than it said: an earlier attempt is still being stored.
            409 => Err(Fault { is_retryable: true, ..answer.fault() }),
            _ => Err(answer.fault()),
        }
    }

    /// Whether a part is there with all its bytes.
    ///
    /// # Errors
    /// The filer does not answer.
    pub fn tus_is_whole(&self, location: &str, size: u64) -> Result<bool, Error> {
        if !is_location(location) {
            return Ok(false);
        }
        let found = self.retry("looking at a part", |_| self.tus_offset(location))?;
        Ok(found == Some(size))
    }

    /// Makes a file of parts, in their order. A repeat after a lost answer finds the parts gone and
    /// the file there.
    ///
    /// # Errors
    /// The filer does not answer or refuses; a part has gone (`retryable`).
    pub fn tus_join(&self, target: &str, locations: &[String], size: u64) -> Result<(), Error> {
        let refused = self.retry(&format!("joining {target}"), |_| {
            let request = Request::new("POST", self.url(&format!("/.tus{target}"), ""))
                .header("Tus-Resumable", "1.0.0")
                .header("Upload-Concat", format!("final;{}", locations.join(" ")));
            let answer = self.send(&request)?;
            match answer.status {
                201 => Ok(None),
                404 | 409 => Ok(Some(answer.fault())),
                _ => Err(answer.fault()),
            }
        })?;
        match (self.size_of(target)?, refused) {
            (Some(found), _) if found == size => Ok(()),
            (found, refused) => Err(Error::Remote {
                at: self.address().origin(),
                action: format!("joining {target}"),
                reason: refused.map_or_else(
                    || format!("the file has {found:?} of {size} bytes"),
                    |fault| fault.reason,
                ),
                retryable: true,
            }),
        }
    }

    /// Frees a part that is of no use.
    ///
    /// # Errors
    /// The filer does not answer.
    pub fn tus_remove(&self, location: &str) -> Result<(), Error> {
        if !is_location(location) {
            return Ok(());
        }
        self.retry("removing a part", |_| {
            let request =
                Request::new("DELETE", self.url(location, "")).header("Tus-Resumable", "1.0.0");
            let answer = self.send(&request)?;
            let is_gone = answer.is_fine() || answer.status == 404;
            if is_gone { Ok(()) } else { Err(answer.fault()) }
        })
    }
}

fn offset_of(answer: &Answer) -> Result<u64, Fault> {
    answer.number("upload-offset").ok_or_else(|| Fault::last("it does not say how much it has"))
}

/// Whether it is a path of an upload, and of nothing else: it was read from a file.
fn is_location(place: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-';
    place.strip_prefix("/.tus/.uploads/").is_some_and(|id| !id.is_empty() && id.chars().all(fine))
}

/// Of `SeaweedFS 30GB 4.53`.
fn version(server: &str) -> Option<(u32, u32)> {
    let (_, rest) = server.split_once("SeaweedFS ")?;
    let number = rest.split(' ').find(|word| word.contains('.'))?;
    let (major, minor) = number.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_places_and_offers() {
        assert_eq!(version("SeaweedFS 30GB 4.53"), Some((4, 53)));
        assert_eq!(version("SeaweedFS 8000GB 3.97 "), Some((3, 97)));
        assert_eq!((version("nginx/1.27"), version("SeaweedFS 30GB x.y")), (None, None));
        assert!(is_location("/.tus/.uploads/9109ef55-4b98-4d67-9907-f613e3168b9e"));
        for bad in ["", "/.tus/.uploads/", "/cnse/blobs", "/.tus/.uploads/a/../b"] {
            assert!(!is_location(bad), "{bad}");
        }
        let offer = Offer { size_max: 100 };
        assert!(offer.takes(100, 2) && !offer.takes(101, 2) && !offer.takes(0, 0));
        assert!(!offer.takes(100, PARTS_MAX + 1));
    }
}
