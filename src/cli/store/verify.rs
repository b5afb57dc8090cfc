//! `cnse verify`: checks what is stored.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Started, common, environment, failed, find, progress, size};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::store::cache::Cache;
use crate::store::fetch::{Wanted, fetch};
use crate::store::hash::Counters;
use crate::store::model::Resolved;
use crate::store::record::Record;
use crate::store::remote::Remote;
use crate::store::verify::{Check, Depth, Findings, mend, verify_file, verify_remote};
use crate::store::{Digest, Error as StoreError};

pub const HELP: &str = concat!(
    "\
usage: cnse verify [FLAGS] [REF]…

Checks models, all that are stored unless some are named: that their blobs are there and as long as
they should be, and of each the first part, the last, and one that changes from time to time. With
--full every part, on all cores. With --heal what is damaged is mended part by part: in the store
from this machine's cache or from --file, in the cache (--cache) from the store. The exit code is 0
if all is well in the end.

examples:
  cnse verify
  cnse verify gemma-2-2b-it:Q4_K_M --full
  cnse verify gemma-2-2b-it:Q4_K_M --full --heal --file gemma-2-2b-it-Q4_K_M.gguf
  cnse verify --cache --full --heal
",
    environment!()
);

pub const FLAGS: &[Flag] = &[
    Flag::operands("ref", "REF", "a model or blob"),
    Flag::new("hash", "REF", "the same as REF"),
    common!(store),
    common!(filer),
    Flag::switch("full", "every part"),
    Flag::switch("whole", "every part, and then the blob's own SHA-256, on one core"),
    Flag::switch("cache", "what this machine has cached, instead of what is stored"),
    Flag::switch("heal", "mend what is damaged"),
    Flag::list("file", "FILE", "with --heal: a file that has the right bytes"),
    common!(cache_size),
    common!(threads),
    common!(limit_rate),
    common!(quiet),
    common!(json),
    common!(log),
];

/// What is checked: a blob, what it is part of, and what its parts should be.
struct Target {
    digest: Digest,
    name: String,
    record: Option<Record>,
}

struct Run<'a> {
    remote: &'a dyn Remote,
    cache: &'a Cache<'a>,
    files: Vec<PathBuf>,
    is_cache: bool,
    heals: bool,
    depth: Depth,
    threads: usize,
    counters: &'a Counters,
}

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let started = Started::now();
    crate::cli::log_level(parsed)?;
    if parsed.has("file") && !parsed.has("heal") {
        return Err(Error::Usage("--file is for --heal".to_owned()));
    }
    let pace = super::pace(parsed)?;
    let (remote, cache) = (super::paced_remote(parsed, pace.as_ref())?, super::cache(parsed)?);
    let counters = Counters { pace, ..Counters::default() };
    // One that changes: all parts get their turn.
    let chosen = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let depth = match (parsed.has("whole"), parsed.has("full")) {
        (true, _) => Depth::Whole,
        (false, true) => Depth::Parts,
        (false, false) => Depth::Sample(chosen),
    };
    let run = Run {
        remote: &*remote,
        cache: &cache,
        files: parsed.texts("file").into_iter().map(PathBuf::from).collect(),
        is_cache: parsed.has("cache"),
        heals: parsed.has("heal"),
        depth,
        threads: super::threads(parsed)?,
        counters: &counters,
    };
    let targets = run.targets(parsed)?;
    let is_quiet = parsed.has("quiet") || parsed.has("json");
    let mut results = Vec::new();
    progress::show(&counters, is_quiet, || {
        for target in targets {
            let found = run.one(&target);
            results.push((target, found));
        }
    });
    let is_sound =
        |found: &Result<Findings, StoreError>| found.as_ref().is_ok_and(Findings::is_sound);
    let errors = results.iter().filter(|(_, found)| !is_sound(found)).count();
    if parsed.has("json") {
        let blobs: Vec<Value> =
            results.iter().map(|(target, found)| entry(target, found)).collect();
        let checked: u64 =
            results.iter().filter_map(|(_, found)| Some(found.as_ref().ok()?.checked)).sum();
        let body = json!({ "checked_bytes": checked, "blobs": blobs,
            "bytes_per_s": checked as f64 / started.at.elapsed().as_secs_f64() });
        crate::cli::print(&started.report(errors as u64, body))?;
    } else {
        let lines = results.iter().filter(|(_, found)| !parsed.has("quiet") || !is_sound(found));
        crate::cli::print(&lines.map(|(target, found)| line(target, found)).collect::<String>())?;
    }
    if errors > 0 { Err(Error::Reported) } else { Ok(()) }
}

impl Run<'_> {
    fn targets(&self, parsed: &Parsed) -> Result<Vec<Target>, Error> {
        let mut names: Vec<String> = parsed.texts("ref").into_iter().map(str::to_owned).collect();
        names.extend(parsed.text("hash").map(str::to_owned));
        if names.is_empty() && self.is_cache {
            let entries = self.cache.entries().map_err(failed("listing"))?;
            let target = |digest| Target { digest, name: String::new(), record: None };
            return Ok(entries.into_iter().map(|entry| target(entry.digest)).collect());
        }
        if names.is_empty() {
            let tags = self.remote.tags().map_err(failed("listing"))?;
            names = tags.into_iter().map(|(tag, _)| tag.to_string()).collect();
        }
        let mut targets: Vec<Target> = Vec::new();
        for name in names {
            match find(self.remote, self.cache, false, &name)? {
                Resolved::Blob(digest) => targets.push(Target { digest, name, record: None }),
                Resolved::Model { manifest, .. } => {
                    targets.extend(manifest.files.iter().map(|file| {
                        let name = format!("{name} {}", file.name);
                        Target { digest: file.sha256, name, record: Some(file.record()) }
                    }))
                }
            }
        }
        // Several names may lead to one blob.
        let mut seen = std::collections::HashSet::new();
        targets.retain(|target| seen.insert(target.digest));
        Ok(targets)
    }

    fn one(&self, target: &Target) -> Result<Findings, StoreError> {
        if self.is_cache { self.cached(target) } else { self.stored(target) }
    }

    fn stored(&self, target: &Target) -> Result<Findings, StoreError> {
        let (digest, at) = (&target.digest, self.remote.describe());
        let missing = || StoreError::NotFound { what: digest.to_string(), at: at.clone() };
        let stat = self.remote.stat(digest)?.ok_or_else(missing)?;
        let record = target.record.clone().or_else(|| stat.record.clone());
        let unknown = || StoreError::Refused {
            what: format!("the record of {digest}"),
            at: at.clone(),
            why: "it is missing, so the parts are not known".to_owned(),
        };
        let record = record.ok_or_else(unknown)?;
        let check = Check { digest, record: &record, depth: self.depth, threads: self.threads };
        let mut found = verify_remote(&super::DISK, self.remote, &stat, check, self.counters)?;
        if self.heals && !found.damaged.is_empty() {
            let cached = self.cache.blob_path(digest);
            for good in self.files.iter().chain([&cached]) {
                let left = found.damaged.iter().filter(|part| !found.mended.contains(part));
                let mut rest = Findings { damaged: left.copied().collect(), ..Findings::default() };
                mend(&super::DISK, self.remote, digest, &record, good, &mut rest)?;
                found.mended.extend(rest.mended);
            }
        }
        Ok(found)
    }

    fn cached(&self, target: &Target) -> Result<Findings, StoreError> {
        let digest = &target.digest;
        let path = self.cache.blob_path(digest);
        let record = target.record.clone().or_else(|| self.cache.record(digest));
        let unknown = || StoreError::Refused {
            what: format!("the record of {digest}"),
            at: self.cache.root().display().to_string(),
            why: "it is missing, so the parts are not known".to_owned(),
        };
        let record = record.ok_or_else(unknown)?;
        let check = Check { digest, record: &record, depth: self.depth, threads: self.threads };
        let mut found = verify_file(&super::DISK, &path, check, self.counters)?;
        if self.heals && !found.is_sound() {
            self.cache.quarantine(digest)?;
            let wanted = Wanted {
                digest: *digest,
                name: &target.name,
                record: Some(record),
                threads: self.threads,
            };
            fetch(self.cache, Some(self.remote), &wanted, self.counters)?;
            found.mended = found.damaged.clone();
            found.is_misnamed = false;
        }
        Ok(found)
    }
}

fn entry(target: &Target, found: &Result<Findings, StoreError>) -> Value {
    let mut entry = json!({ "sha256": target.digest, "name": target.name });
    match found {
        Ok(found) => {
            entry["checked_bytes"] = found.checked.into();
            entry["damaged_parts"] = found.damaged.clone().into();
            entry["mended_parts"] = found.mended.clone().into();
            entry["sound"] = found.is_sound().into();
        }
        Err(error) => {
            entry["error"] = error.to_string().into();
            entry["sound"] = false.into();
        }
    }
    entry
}

fn line(target: &Target, found: &Result<Findings, StoreError>) -> String {
    let Target { digest, name, .. } = target;
    let said = match found {
        Err(error) => error.to_string(),
        Ok(found) if found.is_misnamed => "DAMAGED: its bytes have another SHA-256".to_owned(),
        Ok(found) if found.damaged.is_empty() => format!("fine ({} checked)", size(found.checked)),
        Ok(found) if found.is_sound() => format!("mended: {}", parts(&found.mended)),
        Ok(found) => {
            let remedy = "; --heal mends it where the right bytes are at hand";
            format!("DAMAGED: {}{remedy}", parts(&found.damaged))
        }
    };
    let name = if name.is_empty() { String::new() } else { format!(" {name}") };
    format!("{digest}{name}: {said}\n")
}

fn parts(parts: &[u32]) -> String {
    let numbers: Vec<String> = parts.iter().take(PARTS_SHOWN).map(u32::to_string).collect();
    let more = if parts.len() > PARTS_SHOWN { " …" } else { "" };
    let word = if parts.len() == 1 { "part" } else { "parts" };
    format!("{word} {}{more}", numbers.join(" "))
}

/// Damaged parts that are told one by one.
const PARTS_SHOWN: usize = 16;
