//! `cnse bench storage`: how fast models are hashed, stored, fetched and checked.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use super::runner;
use super::scratch::{self, Scratch};
use crate::bench::experiment::order;
use crate::bench::record::{Record, Run};
use crate::bench::storage::bed::{self, Bed, COLD_SHARE_MAX, Fault, Stores, WARM_SHARE_MIN};
use crate::bench::storage::figures::{self, Figure};
use crate::bench::storage::plan::{Operation, PageCache, Place, Plan, Setting};
use crate::bench::storage::resident;
use crate::cli::flags::{self, Flag, Parsed};
use crate::cli::{Error, FEATURES};
use crate::limits::{CACHE_FREE_BYTES, PART_BYTES, PART_BYTES_LEAST, PART_BYTES_MOST};
use crate::machine::environment::{Environment, NoiseWatch};
use crate::machine::processes;
use crate::store::files::{Disk, Files};
use crate::store::remote::Remote;
use crate::store::remote::directory::Directory;
use crate::store::remote::filer::{self, Filer};

pub const HELP: &str = "\
usage: cnse bench storage [FLAGS]

How fast models are hashed, put, got and verified: in a folder, or on a SeaweedFS filer; with the
file in the kernel's memory (warm) and not (cold); on several threads, part by part. Each is run
--iters times, interleaved and in random order. Medians are told with their intervals, and as a
share of what binds them, measured in the same run: SHA-256 of bytes in memory on one core, reading
the file, copying it.

Files of random bytes are made, or --file is used, which is only read. All else that it makes (store
and cache too) is in folders of its own under --dir and --store, or on the filer, and goes when it
ends; models and caches of yours are not touched. A file is made cold by posix_fadvise and asked
about by mincore; what is not cold then (a tmpfs never is) is left out, and said.

examples:
  cnse bench storage
  cnse bench storage --size 64MiB,1GiB --threads 1,2,4 --dir /var/tmp --output disk.json
  cnse bench storage --file gemma-2-2b-it-Q4_K_M.gguf --filer http://localhost:8888 --iters 10

environment:
  CNSE_FILER_TOKEN, CNSE_FILER_KEY, CNSE_FILER_READ_KEY, CNSE_FILER_CA and CNSE_FILER_UPLOAD
                    what the filer asks for, and how to send to it, as for cnse put
";

pub const FLAGS: &[Flag] = &[
    Flag::new("file", "FILE", "what is measured (files of random bytes are made)"),
    Flag::new("size", "LIST", "lengths of files that are made: 64MiB,1GiB (256MiB)"),
    Flag::new("op", "LIST", "what is done: hash,put,get,verify (all)"),
    Flag::new("filer", "URL", "blobs on a SeaweedFS filer: http://host:8888, or with a folder"),
    Flag::new("place", "LIST", "directory,filer (filer where --filer is given, else directory)"),
    Flag::new("store", "DIR", "a directory's blobs are in a folder under it (--dir)"),
    Flag::new("dir", "DIR", "files and cache are in a folder under it (the system's for such)"),
    Flag::new("page-cache", "LIST", "the file before each run: warm,cold (both)"),
    Flag::new("threads", "LIST", "parts at once: 1,2,4 (1 and as many as there are cores)"),
    Flag::new("part-size", "BYTES", "of blobs: 64KiB to 1GiB (64MiB)"),
    Flag::new("iters", "N", "runs of each; it takes 6 for an interval (7)"),
    Flag::new("output", "FILE", "the result with all runs, for report, compare and rerun"),
    Flag::new("seed", "N", "of the order, and of what is in the files (1)"),
    Flag::switch("json", "the result as one JSON object on stdout"),
    Flag::switch("quiet", "no progress on stderr"),
];

/// The files of this machine.
static DISK: Disk = Disk;

/// As many parts are in memory, each by a thread of its own.
const THREADS_MAX: u32 = 64;
/// A file that is made: more would take hours.
const SIZE_MAX: u64 = 1 << 40;

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let asked = Asked::new(parsed)?;
    let (begun, started_at) = (Instant::now(), crate::log::utc(SystemTime::now()));
    let ports = processes::local_ports(&[asked.filer.clone().unwrap_or_default()]);
    let noise = NoiseWatch::start(&ports);
    let found = measure(&asked, parsed.has("quiet"))?;
    let mut record = Record::new(std::env::args().skip(1).collect(), started_at);
    record.wall_s = begun.elapsed().as_secs_f64();
    record.ok = found.runs.iter().filter(|run| run.failure.is_none()).count() as u64;
    record.errors = found.runs.len() as u64 - record.ok;
    let mut environment = Environment::of_this_machine(FEATURES);
    environment.noise = noise.stop();
    environment.seed = Some(asked.seed);
    environment.models.extend(found.model.clone());
    let figures = figures::figures(&found.runs, environment.cores);
    record.set("storage", figures.iter().map(Figure::to_json).collect::<Vec<Value>>());
    record.set("part_size_bytes", asked.part_size);
    record.set("page_cache", found.page_cache(&asked));
    record.set("left_out", found.left_out.clone());
    let warning = environment.noise.as_ref().and_then(|noise| noise.warning());
    record.environment = Some(environment);
    record.runs = found.runs;
    if let Some(path) = parsed.text("output") {
        runner::write(path, &record.to_json())?;
    }
    if parsed.has("json") {
        crate::cli::print(&record.to_json())?;
    } else {
        let mut text = figures::text(&figures);
        text += &format!(
            "medians of {} runs each, in random order; 1 MB is 10^6 bytes; parts of {} bytes\n",
            asked.iters, asked.part_size
        );
        found.left_out.iter().for_each(|words| text += &format!("left out: {words}\n"));
        warning.into_iter().for_each(|words| text += &format!("doubtful: {words}\n"));
        crate::cli::print(&text)?;
    }
    if record.errors > 0 { Err(Error::Reported) } else { Ok(()) }
}

/// What the flags ask for.
struct Asked {
    plan: Plan,
    file: Option<PathBuf>,
    filer: Option<String>,
    dir: PathBuf,
    store: Option<PathBuf>,
    part_size: u64,
    iters: u32,
    seed: u64,
}

impl Asked {
    fn new(parsed: &Parsed) -> Result<Asked, Error> {
        let usage = Error::Usage;
        let filer = parsed.text("filer").map(str::to_owned);
        let default = if filer.is_some() { "filer" } else { "directory" };
        let places = list(parsed, "place", default, "directory,filer", Place::find)?;
        for (flag, place) in [("filer", Place::Filer), ("store", Place::Directory)] {
            if parsed.has(flag) && !places.contains(&place) {
                let name = place.name();
                return Err(usage(format!("--{flag} is for --place {name}")));
            }
        }
        if filer.is_none() && places.contains(&Place::Filer) {
            return Err(usage("--place filer: --filer URL is needed".to_owned()));
        }
        let file = parsed.text("file").map(PathBuf::from);
        if file.is_some() && parsed.has("size") {
            return Err(usage("--size is of files that are made; --file has its own".to_owned()));
        }
        let sizes = match &file {
            Some(file) => vec![length(file)?],
            None => list(parsed, "size", "256MiB", "sizes up to 1TiB, as 64MiB,1GiB", |text| {
                flags::bytes(text).filter(|bytes| (1..=SIZE_MAX).contains(bytes))
            })?,
        };
        let known = "hash,put,get,verify";
        let not_a_limit =
            |name: &str| Operation::find(name).filter(|operation| !operation.is_limit());
        let operations = list(parsed, "op", known, known, not_a_limit)?;
        let page_caches = list(parsed, "page-cache", "warm,cold", "warm,cold", PageCache::find)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let of_cores = format!("1,{}", cores.min(THREADS_MAX as usize));
        let threads =
            list(parsed, "threads", &of_cores, "numbers from 1 to 64, as 1,2,4", |text| {
                text.parse().ok().filter(|threads| (1..=THREADS_MAX).contains(threads))
            })?;
        let part_size = parsed.bytes("part-size", PART_BYTES_MOST).map_err(usage)?;
        let part_size = part_size.unwrap_or(PART_BYTES);
        if part_size < PART_BYTES_LEAST {
            return Err(usage(format!("--part-size {part_size}: under {PART_BYTES_LEAST}")));
        }
        Ok(Asked {
            plan: Plan { sizes, operations, places, page_caches, threads, part_size },
            file,
            filer,
            dir: parsed.text("dir").map_or_else(std::env::temp_dir, PathBuf::from),
            store: parsed.text("store").map(PathBuf::from),
            part_size,
            iters: parsed.number("iters", 1, 10_000).map_err(usage)?.unwrap_or(7),
            seed: parsed.number("seed", 0, u64::MAX).map_err(usage)?.unwrap_or(1),
        })
    }

    /// Whether there is room for what the run makes.
    fn check_room(&self) -> Result<(), Error> {
        let margin = self.plan.sizes.iter().copied().max().unwrap_or(0).min(CACHE_FREE_BYTES);
        let (work, blobs) = self.plan.space(self.file.is_none());
        let needs = match &self.store {
            Some(store) if device(store)? != device(&self.dir)? => {
                vec![("dir", &self.dir, work), ("store", store, blobs)]
            }
            _ => vec![("dir", &self.dir, work + blobs)],
        };
        for (flag, path, needed) in needs {
            let free = DISK.free_bytes(path).map_err(|error| {
                Error::Failed(format!("asking how much of {path:?} is free: {error}"))
            })?;
            if needed > 0 && needed + margin > free {
                return Err(Error::Failed(format!(
                    "{needed} bytes are needed in {path:?}, and {margin} that stay free; {free} \
                     are free: choose a smaller --size, or --{flag} on another disk"
                )));
            }
        }
        Ok(())
    }
}

/// The values of a list, each once.
fn list<T: PartialEq>(
    parsed: &Parsed,
    name: &str,
    default: &str,
    known: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let text = parsed.text(name).unwrap_or(default);
    let mut found = Vec::new();
    for word in text.split(',').map(str::trim) {
        let value = read(word)
            .ok_or_else(|| Error::Usage(format!("--{name} {text}: {word:?} is not of {known}")))?;
        if !found.contains(&value) {
            found.push(value);
        }
    }
    Ok(found)
}

fn length(file: &Path) -> Result<u64, Error> {
    let failed = |why: String| Error::Failed(format!("--file {file:?}: {why}"));
    let meta = fs::metadata(file).map_err(|error| failed(error.to_string()))?;
    match meta.len() {
        _ if !meta.is_file() => Err(failed("it is no file".to_owned())),
        0 => Err(failed("it is empty, and there is nothing to time".to_owned())),
        bytes => Ok(bytes),
    }
}

fn device(path: &Path) -> Result<u64, Error> {
    let meta = fs::metadata(path);
    let meta = meta.map_err(|error| Error::Failed(format!("the folder {path:?}: {error}")))?;
    if !meta.is_dir() {
        return Err(Error::Failed(format!("{path:?} is no folder")));
    }
    Ok(meta.dev())
}

/// What was measured.
struct Found {
    runs: Vec<Run>,
    /// What was asked for and cannot be measured here, in sentences.
    left_out: Vec<String>,
    /// The file's name and SHA-256, if it was given.
    model: Option<(String, String)>,
    /// Which of them could be brought about.
    page_caches: Vec<PageCache>,
}

impl Found {
    /// How it was brought about, and what of it was.
    fn page_cache(&self, asked: &Asked) -> Value {
        let is_possible = |state| {
            let was_asked = asked.plan.page_caches.contains(&state);
            was_asked.then(|| self.page_caches.contains(&state))
        };
        json!({
            "dropped_by": "posix_fadvise", "checked_by": "mincore",
            "cold": is_possible(PageCache::Cold), "warm": is_possible(PageCache::Warm),
            "cold_share_max": COLD_SHARE_MAX, "warm_share_min": WARM_SHARE_MIN,
        })
    }
}

/// Makes room, does all runs, and takes away what was made.
fn measure(asked: &Asked, is_quiet: bool) -> Result<Found, Error> {
    device(&asked.dir)?;
    asked.check_room()?;
    let name = scratch::name();
    let filer = |inside: &str| {
        let url = asked.filer.as_deref().unwrap_or_default().trim_end_matches('/');
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let settings = filer::Settings::from_environment(variable).map_err(Error::Usage)?;
        Filer::new(&DISK, &format!("{url}/{name}{inside}"), settings).map_err(Error::Usage)
    };
    let has_filer = asked.plan.places.contains(&Place::Filer);
    let whole = has_filer.then(|| filer("")).transpose()?;
    let parents: Vec<&Path> =
        [Some(asked.dir.as_path()), asked.store.as_deref()].into_iter().flatten().collect();
    let scratch = Scratch::make(&name, &parents, whole)?;
    let work = scratch.folder(0);
    let blobs = scratch.folder(parents.len() - 1);
    let mut remotes: Vec<(Place, [Box<dyn Remote>; 2])> = Vec::new();
    for &place in &asked.plan.places {
        remotes.push(match place {
            Place::Directory => {
                let of = |inside| Directory::new(&DISK, &blobs.join(inside));
                (place, [Box::new(of("kept")), Box::new(of("fresh"))])
            }
            Place::Filer => (place, [Box::new(filer("/kept")?), Box::new(filer("/fresh")?)]),
        });
    }
    let stores = remotes.iter().map(|(place, [kept, fresh])| Stores {
        place: *place,
        kept: &**kept,
        fresh: &**fresh,
    });
    let threads = asked.plan.threads.iter().copied().max().unwrap_or(1);
    let mut bed = Bed::new(&DISK, work, stores.collect(), asked.part_size, threads);
    let failed = |fault: Fault| Error::Failed(format!("bench storage: {fault}"));
    let is_kept = asked.plan.operations.iter().any(|operation| operation.needs_blob());
    let mut plan = asked.plan.clone();
    let mut left_out = Vec::new();
    for &bytes in &asked.plan.sizes {
        let path = asked.file.clone().map_or_else(
            || {
                let path = work.join(format!("file-{bytes}"));
                let made = bed::make(&path, bytes, asked.seed ^ bytes);
                let made = made.map_err(|error| format!("writing {path:?}: {error}"));
                made.map(|()| path).map_err(Error::Failed)
            },
            Ok,
        )?;
        bed.add(&path, is_kept).map_err(failed)?;
        left_out.extend(cannot_be(&path, &mut plan.page_caches)?);
    }
    if plan.page_caches.is_empty() {
        return Err(Error::Failed(format!("bench storage: {}", left_out.join("; "))));
    }
    left_out.extend(asked.plan.short_of_parts().into_iter().map(|(bytes, parts)| {
        format!("more threads than {parts} on {bytes} bytes: each works on a part; see --part-size")
    }));
    if has_filer && is_kept && asked.plan.page_caches.contains(&PageCache::Cold) {
        left_out.push(
            "get and verify cold on the filer: what it has in memory cannot be dropped from here"
                .to_owned(),
        );
    }
    let model = asked.file.as_ref().and_then(|file| {
        let digest = bed.digests().first()?.to_string();
        Some((file.display().to_string(), digest))
    });
    let is_linked = device(work)? == device(blobs)?;
    let settings = plan.settings(is_linked);
    let runs = all(&mut bed, &settings, asked, is_quiet)?;
    Ok(Found { runs, left_out, model, page_caches: plan.page_caches })
}

/// Takes out what cannot be brought about with this file, and says why.
fn cannot_be(path: &Path, states: &mut Vec<PageCache>) -> Result<Vec<String>, Error> {
    let failed = |error| Error::Failed(format!("reading {path:?}: {error}"));
    let mut said = Vec::new();
    if states.contains(&PageCache::Warm) {
        let percent = 100.0 * resident::load_pages(path).map_err(failed)?;
        if percent < 100.0 * WARM_SHARE_MIN {
            states.retain(|state| *state != PageCache::Warm);
            said.push(format!(
                "warm: after {path:?} was read {percent:.0} % of it are in memory, of which there \
                 is not enough"
            ));
        }
    }
    if states.contains(&PageCache::Cold) {
        let percent = 100.0 * resident::drop_pages(path).map_err(failed)?;
        if percent > 100.0 * COLD_SHARE_MAX {
            states.retain(|state| *state != PageCache::Cold);
            said.push(format!(
                "cold: {percent:.0} % of {path:?} stay in memory, as on a tmpfs, or since others \
                 use it or own it; --dir names a folder on a disk"
            ));
        }
    }
    Ok(said)
}

/// Every setting once in each block, in random order.
fn all(
    bed: &mut Bed<'_>,
    settings: &[Setting],
    asked: &Asked,
    is_quiet: bool,
) -> Result<Vec<Run>, Error> {
    let mut runs: Vec<Run> = Vec::new();
    let of = settings.len() * asked.iters as usize;
    for block in 0..asked.iters {
        for which in order::of_block(settings.len(), block, asked.seed) {
            let setting = &settings[which];
            let sequence = runs.len() as u32;
            let settings = setting.to_json();
            let mut run = Run { settings, repeat: block, sequence, ..Run::default() };
            match bed.run(setting) {
                Ok(measured) => run.record = measured.to_record(),
                Err(Fault::Unready(why)) => {
                    eprintln!("cnse: {setting}: {why}");
                    run.failure = Some(why);
                }
                Err(fault) => {
                    return Err(Error::Failed(format!("bench storage: {setting}: {fault}")));
                }
            }
            if let (false, Some(rate)) = (is_quiet, run.record.number("mb_per_s")) {
                eprintln!("{} of {of}: {setting}: {rate:.0} MB/s", sequence + 1);
            }
            runs.push(run);
        }
    }
    Ok(runs)
}
