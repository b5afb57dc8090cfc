//! `cnse gc`: removes what no name leads to.

use std::time::Duration;

use serde_json::json;

use super::{Started, common, environment, failed, size};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::store::gc::collect;

pub const HELP: &str = concat!(
    "\
usage: cnse gc [FLAGS]

Removes manifests that no tag names, blobs that no manifest names, and uploads that were given up,
once they are older than the grace. The grace has to be longer than the longest put that may run
meanwhile.

examples:
  cnse gc --dry-run
  cnse gc --grace 72h
",
    environment!()
);

pub const FLAGS: &[Flag] = &[
    common!(store),
    common!(filer),
    Flag::switch("dry-run", "tell what would be removed, and remove nothing"),
    Flag::new("grace", "TIME", "what is younger stays (24h)"),
    common!(json),
    common!(log),
];

const GRACE: Duration = Duration::from_secs(24 * 3600);

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let started = Started::now();
    crate::cli::log_level(parsed)?;
    let grace = parsed.duration("grace").map_err(Error::Usage)?.unwrap_or(GRACE);
    let is_dry = parsed.has("dry-run");
    let remote = super::remote(parsed)?;
    let swept = collect(&*remote, grace, is_dry).map_err(failed("collecting"))?;
    if parsed.has("json") {
        let entries = |of: &[crate::store::remote::Entry]| -> Vec<_> {
            let each = of.iter();
            each.map(|entry| json!({ "sha256": entry.digest, "size": entry.size })).collect()
        };
        let uploads: Vec<_> = swept.leftovers.iter().map(|leftover| &leftover.path).collect();
        let body = json!({ "dry_run": is_dry, "bytes": swept.bytes, "kept_blobs": swept.kept,
            "blobs": entries(&swept.blobs), "manifests": entries(&swept.manifests),
            "uploads": uploads });
        return crate::cli::print(&started.report(0, body));
    }
    let verb = if is_dry { "would go" } else { "removed" };
    let mut text = String::new();
    for entry in &swept.manifests {
        text.push_str(&format!("manifest {} {verb}\n", entry.digest));
    }
    for entry in &swept.blobs {
        text.push_str(&format!("blob {} {verb} ({})\n", entry.digest, size(entry.size)));
    }
    for leftover in &swept.leftovers {
        text.push_str(&format!("upload {} {verb} ({})\n", leftover.path, size(leftover.size)));
    }
    text.push_str(&format!("{} {verb}, {} blobs stay\n", size(swept.bytes), swept.kept));
    crate::cli::print(&text)
}
