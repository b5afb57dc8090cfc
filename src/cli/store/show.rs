//! `cnse show`: one model's manifest.

use serde_json::{Value, json};

use super::{Started, common, environment, find, parameters, size, table};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::store::Digest;
use crate::store::gguf::Gguf;
use crate::store::manifest::Manifest;
use crate::store::model::Resolved;

pub const HELP: &str = concat!(
    "\
usage: cnse show [FLAGS] REF

Tells what a model is: its files and their SHA-256, quantization with the bytes of each tensor type,
and what the GGUF header says. REF is NAME:TAG or a manifest's SHA-256.

examples:
  cnse show gemma-2-2b-it:Q4_K_M
  cnse show gemma-2-2b-it:Q4_K_M --json
",
    environment!()
);

pub const FLAGS: &[Flag] = &[
    Flag::operands("ref", "REF", "the model"),
    Flag::new("hash", "REF", "the same as REF"),
    common!(store),
    common!(filer),
    Flag::switch("offline", "take what the cache remembers, and ask nobody"),
    Flag::switch("json", "the manifest in one JSON object on stdout"),
    common!(log),
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let started = Started::now();
    crate::cli::log_level(parsed)?;
    let (remote, cache) = (super::remote(parsed)?, super::cache(parsed)?);
    let text = super::one_reference(parsed, &["hash", "ref"])?;
    match find(&*remote, &cache, parsed.has("offline"), text)? {
        Resolved::Model { id, manifest } if parsed.has("json") => {
            crate::cli::print(&started.report(0, json!({ "id": id, "manifest": manifest })))
        }
        Resolved::Model { id, manifest } => crate::cli::print(&page(&id, &manifest)),
        Resolved::Blob(digest) => {
            let stat = remote.stat(&digest).map_err(super::failed("looking it up"))?;
            let missing =
                || format!("{digest} is not in {}; cnse ls lists what is", remote.describe());
            let stat = stat.ok_or_else(|| Error::Failed(missing()))?;
            let parts = stat.record.as_ref().map(|record| record.parts.len());
            let body = json!({ "sha256": digest, "size": stat.size, "parts": parts });
            if parsed.has("json") {
                return crate::cli::print(&started.report(0, body));
            }
            let parts = parts.map_or("unknown parts".to_owned(), |count| format!("{count} parts"));
            crate::cli::print(&format!("{digest}  a blob of {}, {parts}\n", size(stat.size)))
        }
    }
}

fn page(id: &Digest, manifest: &Manifest) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| vec![name.to_owned(), value]));
    };
    add("name", Some(format!("{}:{}", manifest.name, manifest.tag)));
    add("manifest", Some(id.to_string()));
    add("size", Some(format!("{} ({} bytes)", size(manifest.size), manifest.size)));
    add("architecture", manifest.architecture.clone());
    add("parameters", manifest.parameters.map(parameters));
    add("context", manifest.context_length.map(|tokens| format!("{tokens} tokens")));
    add("quantization", manifest.quantization.clone());
    add("licence", manifest.licence.clone());
    add("stored", Some(format!("{} by {}", manifest.uploaded_at, manifest.uploader)));
    let mut text = table(&rows);
    for file in &manifest.files {
        let parts = format!("{} parts of {}", file.parts.len(), size(file.part_size));
        text.push_str(&format!("\n{}\n  sha256  {}\n", file.name, file.sha256));
        text.push_str(&format!("  size    {} bytes, {parts}\n", file.size));
        if let Some(gguf) = &file.gguf {
            text.push_str(&header(gguf));
        }
    }
    text
}

fn header(gguf: &Gguf) -> String {
    let mut text = format!(
        "  GGUF    version {}, {} tensors, data from byte {}\n",
        gguf.version, gguf.tensor_count, gguf.data_offset
    );
    let total: u64 = gguf.quantization.bytes_per_type.values().sum();
    for (name, &bytes) in &gguf.quantization.bytes_per_type {
        let share = bytes as f64 * 100.0 / total.max(1) as f64;
        text.push_str(&format!("  {name:<7} {} ({share:.1} %)\n", size(bytes)));
    }
    let cell = |value: &Value| match value {
        // One line each, whatever a text holds.
        Value::String(text) => text.escape_debug().to_string(),
        value => value.to_string(),
    };
    let pairs: Vec<Vec<String>> = gguf
        .metadata
        .iter()
        .map(|(key, value)| vec![format!("    {}", key.escape_debug()), cell(value)])
        .collect();
    text + &table(&pairs)
}
