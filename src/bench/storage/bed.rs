//! Does the runs: the files, the stores and the cache that are measured, and the clock.
//!
//! All it makes is under one folder, and in stores that were made for it; before the clock starts
//! it brings about what a run needs (a blob that is not there yet, an empty cache, pages in memory
//! or not), and after it has stopped it takes away what the run made.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};

use super::plan::{Operation, PageCache, Place, Setting};
use super::resident;
use crate::bench::record::Record as Outcome;
use crate::prng::Prng;
use crate::store::cache::Cache;
use crate::store::fetch::{Wanted, fetch};
use crate::store::files::Files;
use crate::store::hash::{Counters, PIECE_BYTES, hash_file};
use crate::store::put::{Sending, Source, put_blob};
use crate::store::record::Record;
use crate::store::remote::{BlobStat, Remote};
use crate::store::verify::{Check, Depth, verify_remote};
use crate::store::{Digest, Error, Hasher};

/// More of a file than that in memory, and it is not cold; a page or two may be read by others.
pub const COLD_SHARE_MAX: f64 = 0.01;
/// Less of it, and it is not warm.
pub const WARM_SHARE_MIN: f64 = 0.99;
/// Bytes that are hashed in memory, again and again: more than a processor's caches hold.
const MEMORY_BYTES: usize = 64 << 20;
/// Hashed in memory in one run at most: half a second of it says what a core does.
const MEMORY_HASHED_MAX: u64 = 1 << 30;
/// Written at once when a file is made.
const WRITE_BYTES: usize = 1 << 20;

/// Why a run brought nothing.
#[derive(Debug)]
pub enum Fault {
    /// The kernel's memory did not hold what it should, or held what it should not.
    Unready(String),
    /// The store failed.
    Store(Error),
    /// A file could not be worked with: what was done to it, which one, and why not.
    File(&'static str, PathBuf, io::Error),
    /// The store did, and what it did is wrong.
    Wrong(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Unready(why) | Fault::Wrong(why) => f.write_str(why),
            Fault::Store(error) => error.fmt(f),
            Fault::File(doing, path, error) => write!(f, "{doing} {path:?}: {error}"),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Store(error)
    }
}

/// Where blobs are put: one store that keeps what is got and verified, and one for each put, which
/// is empty before.
pub struct Stores<'s> {
    /// Where that is.
    pub place: Place,
    /// Keeps the blobs.
    pub kept: &'s dyn Remote,
    /// Has none.
    pub fresh: &'s dyn Remote,
}

/// A file that is measured, and its blob.
struct Subject {
    path: PathBuf,
    bytes: u64,
    digest: Digest,
    record: Option<Record>,
}

/// What a run took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Bytes that were worked through.
    pub bytes: u64,
    /// By the clock.
    pub wall_s: f64,
    /// Of processors, by all threads of this process.
    pub cpu_s: f64,
    /// The share of the file that was in memory when it began.
    pub resident_share: Option<f64>,
    /// Of a get: the blob's file got a second name, and nothing was copied.
    pub is_linked: Option<bool>,
}

impl Measured {
    /// As a run's result. A megabyte is 10^6 bytes.
    pub fn to_record(&self) -> Outcome {
        let mut record = Outcome { wall_s: self.wall_s, ok: 1, ..Outcome::default() };
        record.set("mb_per_s", self.bytes as f64 / 1e6 / self.wall_s.max(1e-9));
        record.set("cpu_s", self.cpu_s);
        if let Some(share) = self.resident_share {
            record.set("resident_share", share);
        }
        if let Some(is_linked) = self.is_linked {
            record.set("linked", is_linked);
        }
        record
    }
}

/// Writes a file of random bytes that the seed determines, and makes it durable.
///
/// # Errors
/// As open(2) and write(2); there is a file of that name.
pub fn make(path: &Path, bytes: u64, seed: u64) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    let mut prng = Prng::new(seed);
    let (mut left, mut block) = (bytes, vec![0; WRITE_BYTES]);
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            word.copy_from_slice(&prng.next_u64().to_le_bytes());
        }
        let count = left.min(WRITE_BYTES as u64) as usize;
        file.write_all(&block[..count])?;
        left -= count as u64;
    }
    file.sync_all()
}

/// Files, stores, and a folder for what comes and goes.
pub struct Bed<'b> {
    files: &'b dyn Files,
    folder: &'b Path,
    stores: Vec<Stores<'b>>,
    part_size: u64,
    threads: u32,
    subjects: Vec<Subject>,
    memory: Vec<u8>,
}

impl<'b> Bed<'b> {
    /// Without files yet. `threads` are for what is prepared.
    pub fn new(
        files: &'b dyn Files,
        folder: &'b Path,
        stores: Vec<Stores<'b>>,
        part_size: u64,
        threads: u32,
    ) -> Bed<'b> {
        Bed { files, folder, stores, part_size, threads, subjects: Vec::new(), memory: Vec::new() }
    }

    /// Adds a file; `is_kept`: the stores that keep blobs get it.
    ///
    /// # Errors
    /// It cannot be read, or not stored.
    pub fn add(&mut self, path: &Path, is_kept: bool) -> Result<(), Fault> {
        let source = Source::open(self.files, path)?;
        let digest = hash_file(source.file(), path, &Counters::default())?;
        let mut record = None;
        for store in self.stores.iter().filter(|_| is_kept) {
            let stored = put_blob(store.kept, &source, self.sending(self.threads), &none())?;
            record = Some(stored.record);
        }
        let (path, bytes) = (path.to_owned(), source.size());
        self.subjects.push(Subject { path, bytes, digest, record });
        Ok(())
    }

    /// What was stored, for those who take it away again.
    pub fn digests(&self) -> Vec<Digest> {
        self.subjects.iter().map(|subject| subject.digest).collect()
    }

    fn sending(&self, threads: u32) -> Sending {
        Sending { part_size: self.part_size, threads: threads as usize, may_be_there: false }
    }

    fn subject(&self, bytes: u64) -> &Subject {
        self.subjects.iter().find(|subject| subject.bytes == bytes).expect("it was added")
    }

    fn stores(&self, place: Option<Place>) -> &Stores<'b> {
        self.stores.iter().find(|stores| Some(stores.place) == place).expect("it has this place")
    }

    /// Does one run.
    ///
    /// # Errors
    /// `Unready`: this one has to be left out. All others end the experiment.
    pub fn run(&mut self, setting: &Setting) -> Result<Measured, Fault> {
        if setting.operation == Operation::Sha256 && self.memory.is_empty() {
            let mut prng = Prng::new(0);
            self.memory =
                (0..MEMORY_BYTES / 8).flat_map(|_| prng.next_u64().to_le_bytes()).collect();
        }
        let resident_share = self.prepare(setting)?;
        let subject = self.subject(setting.bytes);
        let measured = match setting.operation {
            Operation::Sha256 => self.in_memory(setting.bytes),
            Operation::Read => read(subject)?,
            Operation::Copy => self.copy(subject)?,
            Operation::Hash => self.hash(subject)?,
            Operation::Put => self.put(subject, setting)?,
            Operation::Get => self.get(subject, setting)?,
            Operation::Verify => self.verify(subject, setting)?,
        };
        Ok(Measured { resident_share, ..measured })
    }

    /// Has the kernel hold what is read, or let go of it.
    fn prepare(&self, setting: &Setting) -> Result<Option<f64>, Fault> {
        let Some(state) = setting.page_cache else { return Ok(None) };
        let subject = self.subject(setting.bytes);
        let path = if setting.operation.needs_blob() {
            let blob = self.stores(setting.place).kept.local_file(&subject.digest);
            blob.ok_or_else(|| Fault::Wrong(format!("{setting}: its blob is no file here")))?
        } else {
            subject.path.clone()
        };
        let share = match state {
            PageCache::Cold => resident::drop_pages(&path),
            PageCache::Warm => resident::load_pages(&path),
        };
        let share = share.map_err(|error| Fault::File("reading", path.clone(), error))?;
        let percent = 100.0 * share;
        match state {
            PageCache::Cold if share > COLD_SHARE_MAX => Err(Fault::Unready(format!(
                "{percent:.0} % of {path:?} stayed in memory: it was not cold"
            ))),
            PageCache::Warm if share < WARM_SHARE_MIN => Err(Fault::Unready(format!(
                "only {percent:.0} % of {path:?} are in memory after it was read: it was not warm"
            ))),
            _ => Ok(Some(share)),
        }
    }

    fn in_memory(&self, bytes: u64) -> Measured {
        let bytes = bytes.clamp(1, MEMORY_HASHED_MAX);
        let (measured, digest) = timed(bytes, || {
            let (mut hasher, mut left) = (Hasher::new(), bytes as usize);
            while left > 0 {
                // Piece by piece, as the store hashes.
                for piece in self.memory[..left.min(MEMORY_BYTES)].chunks(PIECE_BYTES) {
                    hasher.update(piece);
                    left -= piece.len();
                }
            }
            hasher.finish()
        });
        black_box(digest);
        measured
    }

    fn copy(&self, subject: &Subject) -> Result<Measured, Fault> {
        let copy = self.folder.join("copy");
        let (measured, copied) = timed(subject.bytes, || {
            fs::copy(&subject.path, &copy).and_then(|_| File::open(&copy)?.sync_all())
        });
        let removed = copied.and_then(|()| fs::remove_file(&copy));
        removed.map_err(|error| Fault::File("copying to", copy, error))?;
        Ok(measured)
    }

    fn hash(&self, subject: &Subject) -> Result<Measured, Fault> {
        let (measured, digest) = timed(subject.bytes, || {
            let file = self.files.open(&subject.path);
            let file = file.map_err(|error| Error::io("read", &subject.path, error))?;
            hash_file(&*file, &subject.path, &none())
        });
        same(subject, digest?, "hash")?;
        Ok(measured)
    }

    fn put(&self, subject: &Subject, setting: &Setting) -> Result<Measured, Fault> {
        let store = self.stores(setting.place).fresh;
        let (measured, stored) = timed(subject.bytes, || {
            let source = Source::open(self.files, &subject.path)?;
            put_blob(store, &source, self.sending(setting.threads), &none())
        });
        same(subject, stored?.digest, "put")?;
        store.remove_blob(&subject.digest)?;
        Ok(measured)
    }

    fn get(&self, subject: &Subject, setting: &Setting) -> Result<Measured, Fault> {
        let folder = self.folder.join("cache");
        let cache = Cache::new(self.files, &folder, None);
        let wanted = Wanted {
            digest: subject.digest,
            name: "",
            record: subject.record.clone(),
            threads: setting.threads as usize,
        };
        let kept = self.stores(setting.place).kept;
        let (measured, fetched) =
            timed(subject.bytes, || fetch(&cache, Some(kept), &wanted, &none()));
        let fetched = fetched?;
        let meta =
            self.files.stat(&fetched.path).map_err(|e| Error::io("read", &fetched.path, e))?;
        if fetched.was_cached || meta.size != subject.bytes {
            return Err(Fault::Wrong(format!("get brought {} bytes", meta.size)));
        }
        fs::remove_dir_all(&folder).map_err(|error| Fault::File("removing", folder, error))?;
        Ok(Measured { is_linked: Some(meta.links > 1), ..measured })
    }

    fn verify(&self, subject: &Subject, setting: &Setting) -> Result<Measured, Fault> {
        let kept = self.stores(setting.place).kept;
        let record = subject.record.as_ref().expect("it was stored");
        let (measured, findings) = timed(subject.bytes, || {
            let stat = kept.stat(&subject.digest)?;
            let (what, at) = (subject.digest.to_string(), kept.describe());
            let stat: BlobStat = stat.ok_or(Error::NotFound { what, at })?;
            let (digest, threads) = (&subject.digest, setting.threads as usize);
            let check = Check { digest, record, depth: Depth::Parts, threads };
            verify_remote(self.files, kept, &stat, check, &none())
        });
        let findings = findings?;
        if !findings.is_sound() || findings.checked != subject.bytes {
            return Err(Fault::Wrong(format!("verify found {:?} damaged", findings.damaged)));
        }
        Ok(measured)
    }
}

fn read(subject: &Subject) -> Result<Measured, Fault> {
    let (measured, bytes) = timed(subject.bytes, || {
        File::open(&subject.path).and_then(|file| resident::read_through(&file))
    });
    let bytes = bytes.map_err(|error| Fault::File("reading", subject.path.clone(), error))?;
    Ok(Measured { bytes, ..measured })
}

/// What it did is what it should have done: a wrong answer wins no benchmark.
fn same(subject: &Subject, digest: Digest, what: &str) -> Result<(), Fault> {
    if digest == subject.digest {
        return Ok(());
    }
    let path = &subject.path;
    Err(Fault::Wrong(format!("{what} says {digest} of {path:?}, which was {}", subject.digest)))
}

/// Nobody looks at how far a run is.
fn none() -> Counters {
    Counters::default()
}

fn timed<T>(bytes: u64, work: impl FnOnce() -> T) -> (Measured, T) {
    let (cpu, begun) = (cpu_s(), Instant::now());
    let result = work();
    let wall_s = begun.elapsed().as_secs_f64();
    let measured =
        Measured { bytes, wall_s, cpu_s: (cpu_s() - cpu).max(0.0), ..Measured::default() };
    (measured, result)
}

fn cpu_s() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        let times = [usage.user_time(), usage.system_time()];
        times.iter().map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6).sum()
    })
}
