//! `cnse put`: stores a model.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use serde_json::json;

use super::{Started, common, environment, failed, progress, size};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::limits::{PART_BYTES, PART_BYTES_LEAST, PART_BYTES_MOST};
use crate::store::files::{Disk, Files, create_dirs, write_whole};
use crate::store::hash::Counters;
use crate::store::manifest::tag_of_file;
use crate::store::model::{Input, StoredModel, Storing, put_model};
use crate::store::name::{self, Tag};
use crate::store::record::Layout;

pub const HELP: &str = concat!(
    "\
usage: cnse put [FLAGS] [FILE]…

Stores files as a model: each as a blob that is named by its SHA-256, then a manifest, then a tag.
What is sent is what was hashed. Killed, it goes on where it was when the same command runs again. A
model that was stored before is not sent again. To a filer it takes memory for one part more than it
has threads: 192 MiB with two.

examples:
  cnse put --file gemma-2-2b-it-Q4_K_M.gguf
  cnse put --file gemma-2-2b-it-Q4_K_M.gguf --manifest gemma-2-2b.json
  cnse put --name big --tag q4 big-00001-of-00002.gguf big-00002-of-00002.gguf mmproj.gguf
  curl -L https://example.org/model.gguf | cnse put --file - --name model --tag q8
  hash=$(cnse put --file model.gguf --quiet)
",
    environment!()
);

pub const FLAGS: &[Flag] = &[
    Flag::operands("files", "FILE", "the same as --file FILE"),
    Flag::list("file", "FILE", "a file of the model, - for a pipe; the first is the one to open"),
    common!(store),
    common!(filer),
    Flag::new("name", "NAME", "the model's name (from the file's)"),
    Flag::new("tag", "TAG", "its tag, also as NAME:TAG (its quantization)"),
    Flag::new("licence", "TEXT", "its licence (what the header says)"),
    Flag::new("license", "TEXT", "the same as --licence TEXT"),
    Flag::new("manifest", "FILE", "write the manifest there too"),
    Flag::new("part-size", "BYTES", "checked and sent again as a whole: 64KiB to 1GiB (64MiB)"),
    Flag::switch("raw", "take a file that begins as a GGUF and is none"),
    common!(threads),
    common!(limit_rate),
    common!(quiet),
    common!(json),
    common!(log),
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let started = Started::now();
    crate::cli::log_level(parsed)?;
    let mut paths = parsed.texts("file");
    paths.extend(parsed.texts("files"));
    if paths.is_empty() {
        return Err(Error::Usage("--file FILE is needed".to_owned()));
    }
    let tag = tag(parsed, &paths)?;
    let part_size = parsed.bytes("part-size", PART_BYTES_MOST).map_err(Error::Usage)?;
    let part_size = part_size.unwrap_or(PART_BYTES);
    if part_size < PART_BYTES_LEAST {
        return Err(Error::Usage(format!("--part-size {part_size}: under {PART_BYTES_LEAST}")));
    }
    let pace = super::pace(parsed)?;
    let remote = super::paced_remote(parsed, pace.as_ref())?;
    let cache = super::cache(parsed)?;
    let storing = Storing {
        tag: tag.clone(),
        licence: parsed.text("licence").or(parsed.text("license")).map(str::to_owned),
        part_size,
        threads: super::threads(parsed)?,
        is_raw: parsed.has("raw"),
        at: started.utc.clone(),
    };
    let spool = if paths.contains(&"-") { Some(Spool::read(cache.root(), &tag)?) } else { None };
    let mut inputs = Vec::new();
    for path in paths {
        inputs.push(match &spool {
            Some(spool) if path == "-" => {
                Input { path: spool.path.clone(), name: spool.name.clone() }
            }
            _ => input(path)?,
        });
    }
    let counters = Counters { pace, ..Counters::default() };
    let is_quiet = parsed.has("quiet") || parsed.has("json");
    let stored = progress::show(&counters, is_quiet, || {
        put_model(&super::DISK, &*remote, &inputs, &storing, &counters)
    });
    let stored = stored.map_err(failed("storing"))?;
    cache.remember(&remote.describe(), &stored.tag, &stored.id, &stored.manifest.to_json().1);
    if let Some(path) = parsed.text("manifest") {
        let path = std::path::absolute(path)
            .map_err(|error| Error::Failed(format!("--manifest {path}: {error}")))?;
        let folder = crate::store::files::parent(&path);
        let written = write_whole(&super::DISK, folder, &path, &stored.manifest.to_json().1);
        written.map_err(failed("writing the manifest"))?;
    }
    crate::cli::print(&report(parsed, &started, &stored, &counters))
}

/// The name that is asked for. None: by the file.
fn tag(parsed: &Parsed, paths: &[&str]) -> Result<Option<Tag>, Error> {
    let usage = |error: crate::store::Error| Error::Usage(error.to_string());
    let (name, tag) = (parsed.text("name"), parsed.text("tag"));
    match (name, tag) {
        (None, Some(both)) if both.contains(':') => both.parse().map(Some).map_err(usage),
        (Some(both), None) if both.contains(':') => both.parse().map(Some).map_err(usage),
        (Some(name), Some(tag)) => Tag::new(name, tag).map(Some).map_err(usage),
        (None, None) if paths[0] == "-" => {
            Err(Error::Usage("a pipe has no name: --name NAME is needed".to_owned()))
        }
        (None, None) => Ok(None),
        (name, tag) => {
            let by_file = tag_of_file(&file_name(paths[0])?, None);
            let name = name.unwrap_or(by_file.name());
            Tag::new(name, tag.unwrap_or(by_file.tag())).map(Some).map_err(usage)
        }
    }
}

fn file_name(path: &str) -> Result<String, Error> {
    if path == "-" {
        return Ok("model".to_owned());
    }
    let name = Path::new(path).file_name().and_then(|name| name.to_str());
    name.map(name::clean).ok_or_else(|| Error::Usage(format!("--file {path}: it names no file")))
}

fn input(path: &str) -> Result<Input, Error> {
    Ok(Input { path: PathBuf::from(path), name: file_name(path)? })
}

/// What came through a pipe; removed at the end.
struct Spool {
    path: PathBuf,
    name: String,
}

/// Taken from a pipe at once.
const PIPE_BYTES: usize = 1 << 20;

impl Spool {
    fn read(root: &Path, tag: &Option<Tag>) -> Result<Spool, Error> {
        let folder = root.join("tmp");
        create_dirs(&super::DISK, &folder).map_err(failed("reading the pipe"))?;
        let path = folder.join(format!("pipe.{}", Disk.owner()));
        let broken = |error: std::io::Error| {
            Error::Failed(format!("keeping what the pipe gives in {path:?}: {error}"))
        };
        let file = Disk.create(&path).map_err(broken)?;
        let name = tag.as_ref().map_or("model", Tag::name).to_owned();
        let spool = Spool { path: path.clone(), name };
        let (mut input, mut buffer, mut at) = (std::io::stdin().lock(), vec![0; PIPE_BYTES], 0);
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(spool),
                Ok(count) => {
                    file.write_at(&buffer[..count], at).map_err(broken)?;
                    at += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // What stays is found by its age.
        let _ = Disk.remove(&self.path);
    }
}

/// Text, JSON, or the hash alone: of the only file, else of the manifest. `get` takes both.
fn report(parsed: &Parsed, started: &Started, stored: &StoredModel, counters: &Counters) -> String {
    let manifest = &stored.manifest;
    let hash = if let [file] = &manifest.files[..] { file.sha256 } else { stored.id };
    if parsed.has("quiet") && !parsed.has("json") {
        return format!("{hash}\n");
    }
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (sent, reused) = (load(&counters.transferred), load(&counters.reused));
    let wall_s = started.at.elapsed().as_secs_f64();
    if parsed.has("json") {
        let files = manifest.files.iter().zip(&stored.blobs).map(|(file, blob)| {
            let is_one_file = blob.record.layout == Layout::File;
            json!({ "name": file.name, "sha256": file.sha256, "size": file.size,
                "was_there": blob.was_there, "is_one_file": is_one_file })
        });
        return started.report(
            0,
            json!({ "hash": hash, "tag": stored.tag.to_string(), "manifest": stored.id,
                "size": manifest.size, "sent_bytes": sent, "reused_bytes": reused,
                "bytes_per_s": manifest.size as f64 / wall_s,
                "quantization": manifest.quantization, "files": files.collect::<Vec<_>>() }),
        );
    }
    let mut text = String::new();
    for (file, blob) in manifest.files.iter().zip(&stored.blobs) {
        let how = if blob.was_there { ", was there" } else { "" };
        text.push_str(&format!("{}  {} ({}{how})\n", file.sha256, file.name, size(file.size)));
    }
    let again =
        if reused > 0 { format!(", {} of an earlier try", size(reused)) } else { String::new() };
    let (tag, sent) = (&stored.tag, size(sent));
    text.push_str(&format!("{tag}: {sent} sent{again} in {wall_s:.1} s\n"));
    text
}
