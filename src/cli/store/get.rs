//! `cnse get`: fetches a model.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use serde_json::json;

use super::{Started, common, environment, failed, find, progress, size};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::limits::STORE_JSON_BYTES_MAX;
use crate::store::Digest;
use crate::store::cache::Cache;
use crate::store::fetch::Fetched;
use crate::store::files::{create_dirs, read_whole};
use crate::store::hash::Counters;
use crate::store::manifest::Manifest;
use crate::store::model::{Resolved, get_model};
use crate::store::output::{Delivery, deliver};

pub const HELP: &str = concat!(
    "\
usage: cnse get [FLAGS] REF

Fetches a model into this machine's cache, once, with every byte checked, and gives it a name
outside: a file of its own (which shares the blocks where the file system can), or with --link a
second name of the same one. With --path nothing is copied: it tells where the cached file is. REF
is NAME:TAG, a SHA-256 of a blob or a manifest, or its first 6 digits and more. Killed, it goes on
where it was when the same command runs again.

examples:
  cnse get gemma-2-2b-it:Q4_K_M --output model.gguf
  cnse get --hash a1b2c3d4 --output downloaded_model.gguf
  llama-server -m \"$(cnse get gemma-2-2b-it:Q4_K_M --path)\"
  cnse get --manifest gemma-2-2b.json --output model.gguf
",
    environment!()
);

pub const FLAGS: &[Flag] = &[
    Flag::operands("ref", "REF", "the model or blob"),
    Flag::new("hash", "REF", "the same as REF"),
    Flag::new("manifest", "FILE", "the model that this manifest describes, instead of REF"),
    common!(store),
    common!(filer),
    Flag::new("output", "PATH", "a file, or a folder: of several files a folder is made"),
    Flag::switch("link", "the output is a hard link to the cached file: read-only"),
    Flag::switch("path", "tell the path of the cached file alone; of several files, the first's"),
    Flag::switch("pin", "keep it in the cache until it is unpinned"),
    Flag::switch("offline", "take what the cache has, and ask nobody"),
    common!(cache_size),
    common!(threads),
    common!(limit_rate),
    common!(quiet),
    common!(json),
    common!(log),
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let started = Started::now();
    crate::cli::log_level(parsed)?;
    if parsed.has("link") && !parsed.has("output") {
        return Err(Error::Usage("--link is for --output PATH".to_owned()));
    }
    let pace = super::pace(parsed)?;
    let (remote, cache) = (super::paced_remote(parsed, pace.as_ref())?, super::cache(parsed)?);
    let is_offline = parsed.has("offline");
    let (resolved, name) = match parsed.text("manifest") {
        Some(path) => from_file(path)?,
        None => {
            let text = super::one_reference(parsed, &["hash", "ref"])?;
            (find(&*remote, &cache, is_offline, text)?, text.to_owned())
        }
    };
    let counters = Counters { pace, ..Counters::default() };
    let is_quiet = ["quiet", "json"].iter().any(|flag| parsed.has(flag));
    let threads = super::threads(parsed)?;
    let source = (!is_offline).then_some(&*remote);
    let fetched = progress::show(&counters, is_quiet, || {
        get_model(&cache, source, &resolved, &name, threads, &counters)
    });
    let fetched = fetched.map_err(failed("fetching"))?;
    if parsed.has("pin") {
        for digest in digests(&resolved) {
            cache.pin(&digest).map_err(failed("pinning"))?;
        }
    }
    let outputs = outputs(parsed, &resolved)?;
    let delivery = if parsed.has("link") { Delivery::Link } else { Delivery::Copy };
    for (cached, output) in fetched.iter().zip(&outputs) {
        deliver(&super::DISK, &cached.path, output, delivery).map_err(failed("the output"))?;
    }
    let path = first_path(&cache, &resolved, &fetched)?;
    let got = Got { resolved, fetched, outputs, path };
    crate::cli::print(&got.report(parsed, &started, &counters))
}

fn from_file(path: &str) -> Result<(Resolved, String), Error> {
    let read = read_whole(&super::DISK, Path::new(path), STORE_JSON_BYTES_MAX);
    let bytes = read.map_err(|error| Error::Failed(format!("reading {path:?}: {error}")))?;
    let manifest = Manifest::parse(&bytes, "the manifest", path).map_err(failed("reading it"))?;
    let name = format!("{}:{}", manifest.name, manifest.tag);
    Ok((Resolved::Model { id: Digest::of(&bytes), manifest: Box::new(manifest) }, name))
}

fn digests(resolved: &Resolved) -> Vec<Digest> {
    match resolved {
        Resolved::Blob(digest) => vec![*digest],
        Resolved::Model { manifest, .. } => manifest.files.iter().map(|file| file.sha256).collect(),
    }
}

/// Where each file goes; none without `--output`.
fn outputs(parsed: &Parsed, resolved: &Resolved) -> Result<Vec<PathBuf>, Error> {
    let Some(output) = parsed.text("output").map(PathBuf::from) else { return Ok(Vec::new()) };
    let names: Vec<String> = match resolved {
        Resolved::Blob(digest) => vec![digest.to_string()],
        Resolved::Model { manifest, .. } => {
            manifest.files.iter().map(|file| file.name.clone()).collect()
        }
    };
    if names.len() > 1 {
        create_dirs(&super::DISK, &output).map_err(failed("the output"))?;
    }
    if names.len() > 1 || output.is_dir() {
        return Ok(names.iter().map(|name| output.join(name)).collect());
    }
    Ok(vec![output])
}

/// What is to be opened: of several files the first, in a folder where all have their names.
fn first_path(
    cache: &Cache<'_>,
    resolved: &Resolved,
    fetched: &[Fetched],
) -> Result<PathBuf, Error> {
    match resolved {
        Resolved::Model { id, manifest } if manifest.files.len() > 1 => {
            let view = cache.view(id, manifest).map_err(failed("naming the files"))?;
            Ok(view.join(&manifest.files[0].name))
        }
        _ => Ok(fetched[0].path.clone()),
    }
}

struct Got {
    resolved: Resolved,
    fetched: Vec<Fetched>,
    outputs: Vec<PathBuf>,
    path: PathBuf,
}

impl Got {
    fn report(&self, parsed: &Parsed, started: &Started, counters: &Counters) -> String {
        let digests = digests(&self.resolved);
        let hash = match &self.resolved {
            Resolved::Model { id, .. } if digests.len() > 1 => *id,
            _ => digests[0],
        };
        if parsed.has("path") && !parsed.has("json") {
            return format!("{}\n", self.path.display());
        }
        if parsed.has("quiet") && !parsed.has("json") {
            return format!("{hash}\n");
        }
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (fetched, reused) = (load(&counters.transferred), load(&counters.reused));
        let wall_s = started.at.elapsed().as_secs_f64();
        if parsed.has("json") {
            let files = digests.iter().zip(&self.fetched).enumerate().map(|(i, (digest, file))| {
                json!({ "sha256": digest, "path": file.path, "was_cached": file.was_cached,
                    "output": self.outputs.get(i) })
            });
            return started.report(
                0,
                json!({ "hash": hash, "path": self.path, "fetched_bytes": fetched,
                    "reused_bytes": reused, "files": files.collect::<Vec<_>>() }),
            );
        }
        let mut text = String::new();
        for (i, (digest, file)) in digests.iter().zip(&self.fetched).enumerate() {
            let path = self.outputs.get(i).unwrap_or(&file.path);
            let how = if file.was_cached { " (was cached)" } else { "" };
            text.push_str(&format!("{digest}  {}{how}\n", path.display()));
        }
        let again = if reused > 0 {
            format!(", {} of an earlier try", size(reused))
        } else {
            String::new()
        };
        text.push_str(&format!("{} fetched{again} in {wall_s:.1} s\n", size(fetched)));
        text
    }
}
