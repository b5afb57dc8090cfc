//! What is measured: which operation on how many bytes, where, on how many threads, and whether the
//! file was in memory before.

use std::fmt;

use serde_json::{Map, Value, json};

/// What is done. The first three are limits that the others are held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// SHA-256 of bytes that are in memory, on one core: no file can be hashed faster on it.
    Sha256,
    /// The file is read from start to end, and nothing done with it.
    Read,
    /// The file is copied as `cp` copies it, and the copy made durable.
    Copy,
    /// The file's digest, on one core.
    Hash,
    /// It is stored as a blob: hashed whole and in parts, sent, durable.
    Put,
    /// The blob is fetched into an empty cache: checked in parts and whole, durable.
    Get,
    /// Every part of the blob is held against its digest.
    Verify,
}

impl Operation {
    /// All, limits first.
    pub const ALL: [Operation; 7] = [
        Operation::Sha256,
        Operation::Read,
        Operation::Copy,
        Operation::Hash,
        Operation::Put,
        Operation::Get,
        Operation::Verify,
    ];

    /// As it is typed, and in results.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Sha256 => "sha256",
            Operation::Read => "read",
            Operation::Copy => "copy",
            Operation::Hash => "hash",
            Operation::Put => "put",
            Operation::Get => "get",
            Operation::Verify => "verify",
        }
    }

    /// By its name.
    pub fn find(name: &str) -> Option<Operation> {
        Operation::ALL.into_iter().find(|operation| operation.name() == name)
    }

    /// Whether it is there for the others to be held against.
    pub fn is_limit(self) -> bool {
        self < Operation::Hash
    }

    /// Whether it is about a blob that is stored, not about the file.
    pub fn needs_blob(self) -> bool {
        matches!(self, Operation::Get | Operation::Verify)
    }
}

/// Where blobs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a folder.
    Directory,
    /// On a SeaweedFS filer.
    Filer,
}

impl Place {
    /// As it is typed, and in results.
    pub fn name(self) -> &'static str {
        match self {
            Place::Directory => "directory",
            Place::Filer => "filer",
        }
    }

    /// By its name.
    pub fn find(name: &str) -> Option<Place> {
        [Place::Directory, Place::Filer].into_iter().find(|place| place.name() == name)
    }
}

/// Whether what is read is in the kernel's memory when a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageCache {
    /// All of it.
    Warm,
    /// Nothing of it.
    Cold,
}

impl PageCache {
    /// As it is typed, and in results.
    pub fn name(self) -> &'static str {
        match self {
            PageCache::Warm => "warm",
            PageCache::Cold => "cold",
        }
    }

    /// By its name.
    pub fn find(name: &str) -> Option<PageCache> {
        [PageCache::Warm, PageCache::Cold].into_iter().find(|state| state.name() == name)
    }
}

/// A thing to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// Of the file.
    pub bytes: u64,
    /// What is done.
    pub operation: Operation,
    /// None: it is not about a store.
    pub place: Option<Place>,
    /// None: there is no file of this machine to be read.
    pub page_cache: Option<PageCache>,
    /// That work at the same time on parts.
    pub threads: u32,
}

impl Setting {
    /// As a run's settings.
    pub fn to_json(&self) -> Map<String, Value> {
        let pairs = json!({
            "operation": self.operation.name(),
            "place": self.place.map(Place::name),
            "page_cache": self.page_cache.map(PageCache::name),
            "threads": self.threads,
            "bytes": self.bytes,
        });
        pairs.as_object().cloned().unwrap_or_default()
    }

    /// From a run's settings; None: they are another command's, or a later version's.
    pub fn from_json(settings: &Map<String, Value>) -> Option<Setting> {
        let text = |name: &str| settings.get(name).and_then(Value::as_str);
        let number = |name: &str| settings.get(name).and_then(Value::as_u64);
        let known = |name: &str| settings.get(name).is_some_and(|value| !value.is_null());
        let place = text("place").and_then(Place::find);
        let page_cache = text("page_cache").and_then(PageCache::find);
        if known("place") != place.is_some() || known("page_cache") != page_cache.is_some() {
            return None;
        }
        Some(Setting {
            bytes: number("bytes")?,
            operation: Operation::find(text("operation")?)?,
            place,
            page_cache,
            threads: u32::try_from(number("threads")?).ok()?,
        })
    }
}

/// `put to a directory, 2 threads, cold`.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what())?;
        if self.threads > 1 {
            write!(f, ", {} threads", self.threads)?;
        }
        self.page_cache.map_or(Ok(()), |state| write!(f, ", {}", state.name()))
    }
}

impl Setting {
    /// `put to a directory`.
    pub fn what(&self) -> String {
        match (self.operation, self.place) {
            (Operation::Sha256, _) => "SHA-256 in memory".to_owned(),
            (operation, None) => operation.name().to_owned(),
            (operation, Some(place)) => {
                let way = match operation {
                    Operation::Put => "to",
                    Operation::Get => "from",
                    _ => "on",
                };
                format!("{} {way} a {}", operation.name(), place.name())
            }
        }
    }
}

/// What the flags ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Lengths of files.
    pub sizes: Vec<u64>,
    /// What is done, beside the limits.
    pub operations: Vec<Operation>,
    /// Where.
    pub places: Vec<Place>,
    /// What the kernel's memory holds before.
    pub page_caches: Vec<PageCache>,
    /// At the same time.
    pub threads: Vec<u32>,
    /// Bytes of a blob's part.
    pub part_size: u64,
}

impl Plan {
    /// Numbers of threads that all have something to do on a file of this length: each works on a
    /// part, so more than there are parts are as many as those.
    fn threads_of(&self, bytes: u64) -> Vec<u32> {
        let parts = u32::try_from(bytes.div_ceil(self.part_size)).unwrap_or(u32::MAX).max(1);
        let mut found: Vec<u32> = self.threads.iter().map(|threads| *threads.min(&parts)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Lengths of which a file has fewer parts than threads are asked for, with its parts.
    pub fn short_of_parts(&self) -> Vec<(u64, u64)> {
        let most = u64::from(self.threads.iter().copied().max().unwrap_or(1));
        let parts = self.sizes.iter().map(|bytes| (*bytes, bytes.div_ceil(self.part_size)));
        parts.filter(|(_, parts)| *parts < most).collect()
    }

    /// All settings, sorted: limits first. `is_linked`: the directory's blobs need no copy to be in
    /// the cache, so that it takes no more than one thread.
    pub fn settings(&self, is_linked: bool) -> Vec<Setting> {
        let mut found = Vec::new();
        for &bytes in &self.sizes {
            let of_parts = self.threads_of(bytes);
            let one =
                |operation| Setting { bytes, operation, place: None, page_cache: None, threads: 1 };
            found.push(one(Operation::Sha256));
            for &state in &self.page_caches {
                let with = |operation| Setting { page_cache: Some(state), ..one(operation) };
                found.extend([Operation::Read, Operation::Copy].map(with));
                if self.operations.contains(&Operation::Hash) {
                    found.push(with(Operation::Hash));
                }
            }
            for &operation in self.operations.iter().filter(|of| **of != Operation::Hash) {
                for &place in &self.places {
                    let alone =
                        is_linked && (operation, place) == (Operation::Get, Place::Directory);
                    let threads = if alone { &[1][..] } else { &of_parts };
                    for &threads in threads {
                        let of = Setting { place: Some(place), threads, ..one(operation) };
                        // What a filer has in memory is not this machine's to say.
                        let states: Vec<Option<PageCache>> =
                            if place == Place::Filer && operation.needs_blob() {
                                vec![None]
                            } else {
                                self.page_caches.iter().copied().map(Some).collect()
                            };
                        found.extend(
                            states.into_iter().map(|page_cache| Setting { page_cache, ..of }),
                        );
                    }
                }
            }
        }
        found.sort_unstable();
        found
    }

    /// Bytes that must be free for the file, and one more that comes and goes (a copy, what a get
    /// fetches), where they are, and for a directory's blobs, where those are. `is_made`: the files
    /// are made by the run and not given.
    pub fn space(&self, is_made: bool) -> (u64, u64) {
        let all: u64 = self.sizes.iter().sum();
        let largest = self.sizes.iter().copied().max().unwrap_or(0);
        let work = if is_made { all } else { 0 } + largest;
        let in_directory = self.places.contains(&Place::Directory);
        let kept = self.operations.iter().any(|operation| operation.needs_blob());
        let put = self.operations.contains(&Operation::Put);
        let blobs = if kept { all } else { 0 } + if put { largest } else { 0 };
        (work, if in_directory { blobs } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            sizes: vec![1000, 10],
            operations: vec![Operation::Hash, Operation::Put, Operation::Get, Operation::Verify],
            places: vec![Place::Directory, Place::Filer],
            page_caches: vec![PageCache::Warm, PageCache::Cold],
            threads: vec![1, 2],
            part_size: 5,
        }
    }

    #[test]
    fn settings_are_what_makes_sense() {
        let all = plan().settings(true);
        let of_one = all.iter().filter(|setting| setting.bytes == 10).collect::<Vec<_>>();
        assert_eq!(all.len(), 2 * of_one.len());
        let count = |operation, place| {
            of_one.iter().filter(|s| (s.operation, s.place) == (operation, place)).count()
        };
        assert_eq!(count(Operation::Sha256, None), 1);
        assert_eq!((count(Operation::Read, None), count(Operation::Hash, None)), (2, 2));
        assert_eq!(count(Operation::Put, Some(Place::Directory)), 4);
        assert_eq!(count(Operation::Get, Some(Place::Directory)), 2);
        assert_eq!(count(Operation::Get, Some(Place::Filer)), 2);
        assert_eq!(count(Operation::Verify, Some(Place::Filer)), 2);
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "sorted, and each once");
        assert_eq!(plan().settings(false).len(), all.len() + 4);
        // A thread more than there are parts has nothing to do.
        let whole = Plan { part_size: 10, ..plan() };
        let threads = |bytes: u64| {
            let all = whole.settings(false).into_iter().filter(move |of| of.bytes == bytes);
            all.map(|setting| setting.threads).max()
        };
        assert_eq!((threads(10), threads(1000)), (Some(1), Some(2)));
        assert_eq!(whole.short_of_parts(), [(10, 1)]);
    }

    #[test]
    fn settings_are_read_as_they_were_written() {
        for setting in plan().settings(false) {
            assert_eq!(Setting::from_json(&setting.to_json()), Some(setting));
        }
        let mut odd = plan().settings(true)[9].to_json();
        odd["page_cache"] = "tepid".into();
        assert_eq!(Setting::from_json(&odd), None);
        assert_eq!(Setting::from_json(&Map::new()), None);
    }

    #[test]
    fn settings_are_called_what_they_are() {
        let of = |operation, place, page_cache, threads| {
            Setting { bytes: 1, operation, place, page_cache, threads }.to_string()
        };
        let (warm, cold) = (Some(PageCache::Warm), Some(PageCache::Cold));
        assert_eq!(of(Operation::Sha256, None, None, 1), "SHA-256 in memory");
        assert_eq!(of(Operation::Hash, None, warm, 1), "hash, warm");
        let put = of(Operation::Put, Some(Place::Directory), cold, 2);
        assert_eq!(put, "put to a directory, 2 threads, cold");
        assert_eq!(of(Operation::Get, Some(Place::Filer), None, 1), "get from a filer");
    }

    #[test]
    fn room_is_for_all_that_is_there_at_once() {
        assert_eq!(plan().space(true), (2010, 2010));
        assert_eq!(plan().space(false), (1000, 2010));
        let filer = Plan { places: vec![Place::Filer], ..plan() };
        assert_eq!(filer.space(true), (2010, 0));
        let hash = Plan { operations: vec![Operation::Hash], ..plan() };
        assert_eq!(hash.space(true), (2010, 0));
    }
}
