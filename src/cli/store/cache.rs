//! `cnse cache`: what this machine has fetched.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::{Started, common, environment, failed, find, short, size, table};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::store::Digest;
use crate::store::cache::{Cache, Cached};
use crate::store::model::Resolved;
use crate::store::name::Reference;

pub const HELP: &str = concat!(
    "\
usage: cnse cache [FLAGS] ls|prune
       cnse cache [FLAGS] pin|unpin REF…

What this machine has fetched. When a download needs room, what was not used for longest goes
first: never what is pinned, open in any process, or was asked for within the last minute. prune
removes all that may go, or with --cache-size as much as it takes.

examples:
  cnse cache ls
  cnse cache pin gemma-2-2b-it:Q4_K_M
  cnse cache prune --cache-size 40GiB
",
    environment!()
);

pub const FLAGS: &[Flag] = &[
    Flag::operands("args", "ls|prune|pin|unpin REF…", "what to do, and with which"),
    common!(store),
    common!(filer),
    Flag::switch("dry-run", "prune: tell what would be removed, and remove nothing"),
    common!(cache_size),
    common!(json),
    common!(log),
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let started = Started::now();
    crate::cli::log_level(parsed)?;
    let cache = super::cache(parsed)?;
    let args = parsed.texts("args");
    match args.split_first() {
        Some((&"ls", [])) => list(parsed, &started, &cache),
        Some((&"prune", [])) => prune(parsed, &started, &cache),
        Some((&"pin", rest)) if !rest.is_empty() => pin(parsed, &started, &cache, rest, true),
        Some((&"unpin", rest)) if !rest.is_empty() => pin(parsed, &started, &cache, rest, false),
        _ => {
            let message = "ls, prune, pin REF or unpin REF is needed";
            Err(Error::Usage(message.to_owned()))
        }
    }
}

fn entry(cached: &Cached) -> Value {
    json!({ "sha256": cached.digest, "name": cached.name, "size": cached.size,
        "freeable_bytes": cached.freeable, "used_at": crate::log::utc(cached.used),
        "pinned": cached.is_pinned })
}

fn list(parsed: &Parsed, started: &Started, cache: &Cache<'_>) -> Result<(), Error> {
    let mut entries = cache.entries().map_err(failed("listing"))?;
    entries.reverse();
    let total: u64 = entries.iter().map(|entry| entry.freeable).sum();
    if parsed.has("json") {
        let blobs: Vec<Value> = entries.iter().map(entry).collect();
        let body = json!({ "cache": cache.root(), "freeable_bytes": total, "blobs": blobs });
        return crate::cli::print(&started.report(0, body));
    }
    let mut rows = vec![["SHA-256", "NAME", "SIZE", "USED", ""].map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        let used = crate::log::utc(entry.used.max(SystemTime::UNIX_EPOCH));
        let pinned = if entry.is_pinned { "pinned" } else { "" };
        let name = if entry.name.is_empty() { "-" } else { &entry.name };
        let used = used.chars().take(16).collect();
        vec![short(&entry.digest), name.to_owned(), size(entry.size), used, pinned.to_owned()]
    }));
    let text = table(&rows);
    crate::cli::print(&format!("{text}{} in {}\n", size(total), cache.root().display()))
}

fn prune(parsed: &Parsed, started: &Started, cache: &Cache<'_>) -> Result<(), Error> {
    let budget = super::budget(parsed)?;
    let is_dry = parsed.has("dry-run");
    let removed = cache.prune(budget, is_dry).map_err(failed("pruning"))?;
    let bytes: u64 = removed.iter().map(|entry| entry.freeable).sum();
    if parsed.has("json") {
        let blobs: Vec<Value> = removed.iter().map(entry).collect();
        let body = json!({ "dry_run": is_dry, "bytes": bytes, "removed": blobs });
        return crate::cli::print(&started.report(0, body));
    }
    let verb = if is_dry { "would go" } else { "removed" };
    let line = |entry: &Cached| format!("{} {} {verb}\n", entry.digest, entry.name);
    let lines: String = removed.iter().map(line).collect();
    crate::cli::print(&format!("{lines}{} {verb}\n", size(bytes)))
}

fn pin(
    parsed: &Parsed,
    started: &Started,
    cache: &Cache<'_>,
    names: &[&str],
    pins: bool,
) -> Result<(), Error> {
    let mut digests: Vec<Digest> = Vec::new();
    for text in names {
        digests.extend(blobs(parsed, cache, text)?);
    }
    for digest in &digests {
        let done = if pins { cache.pin(digest) } else { cache.unpin(digest).map(drop) };
        done.map_err(failed("pinning"))?;
    }
    if parsed.has("json") {
        let body = json!({ "blobs": digests, "pinned": pins });
        return crate::cli::print(&started.report(0, body));
    }
    let verb = if pins { "pinned" } else { "unpinned" };
    crate::cli::print(&digests.iter().map(|d| format!("{d} {verb}\n")).collect::<String>())
}

/// The blobs of a model: by what the cache remembers, else by asking.
fn blobs(parsed: &Parsed, cache: &Cache<'_>, text: &str) -> Result<Vec<Digest>, Error> {
    if let Reference::Digest(digest) = super::reference(text)? {
        return Ok(vec![digest]);
    }
    let remote = super::remote(parsed)?;
    let found = match find(&*remote, cache, true, text) {
        Err(_) => find(&*remote, cache, false, text)?,
        Ok(found) => found,
    };
    Ok(match found {
        Resolved::Blob(digest) => vec![digest],
        Resolved::Model { manifest, .. } => manifest.files.iter().map(|file| file.sha256).collect(),
    })
}
