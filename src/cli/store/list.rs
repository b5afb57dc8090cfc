//! `cnse ls`: the models that are stored.

use serde_json::{Value, json};

use super::{Started, common, environment, failed, parameters, short, size, table};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::store::manifest::Manifest;
use crate::store::model::read_manifest;
use crate::store::name::Tag;
use crate::store::{Digest, Error as StoreError};

pub const HELP: &str = concat!(
    "\
usage: cnse ls [FLAGS] [NAME]…

Lists the models that are stored; with names, those alone.

examples:
  cnse ls
  cnse ls gemma-2-2b-it --json
",
    environment!()
);

pub const FLAGS: &[Flag] = &[
    Flag::operands("names", "NAME", "models of this name, or NAME:TAG"),
    common!(store),
    common!(filer),
    Flag::switch("quiet", "the names alone"),
    common!(json),
    common!(log),
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let started = Started::now();
    crate::cli::log_level(parsed)?;
    let remote = super::remote(parsed)?;
    let wanted = parsed.texts("names");
    let is_wanted = |tag: &Tag| {
        wanted.is_empty()
            || wanted.iter().any(|text| *text == tag.name() || *text == tag.to_string())
    };
    let mut models = Vec::new();
    for (tag, id) in remote.tags().map_err(failed("listing"))? {
        if is_wanted(&tag) {
            let manifest = match remote.manifest(&id) {
                Ok(Some(bytes)) => read_manifest(&id, &bytes, &remote.describe()),
                Ok(None) => Err(StoreError::NotFound {
                    what: format!("the manifest of {tag}"),
                    at: remote.describe(),
                }),
                Err(error) => Err(error),
            };
            models.push((tag, id, manifest));
        }
    }
    let errors = models.iter().filter(|(.., manifest)| manifest.is_err()).count() as u64;
    if parsed.has("json") {
        let models: Vec<Value> = models.iter().map(|(tag, id, of)| entry(tag, id, of)).collect();
        let body = json!({ "store": remote.describe(), "models": models });
        crate::cli::print(&started.report(errors, body))?;
    } else if parsed.has("quiet") {
        let names: String = models.iter().map(|(tag, ..)| format!("{tag}\n")).collect();
        crate::cli::print(&names)?;
    } else {
        let head = ["NAME", "SHA-256", "SIZE", "QUANT", "ARCH", "PARAMS", "CONTEXT", "STORED"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(models.iter().map(|(tag, id, manifest)| row(tag, id, manifest)));
        crate::cli::print(&table(&rows))?;
    }
    if errors > 0 { Err(Error::Reported) } else { Ok(()) }
}

fn entry(tag: &Tag, id: &Digest, manifest: &Result<Manifest, StoreError>) -> Value {
    match manifest {
        Ok(manifest) => json!({ "tag": tag.to_string(), "manifest": id, "size": manifest.size,
            "quantization": manifest.quantization, "architecture": manifest.architecture,
            "parameters": manifest.parameters, "context_length": manifest.context_length,
            "licence": manifest.licence, "uploaded_at": manifest.uploaded_at,
            "files": manifest.files.iter().map(|file| json!({ "name": file.name,
                "size": file.size, "sha256": file.sha256 })).collect::<Vec<_>>() }),
        Err(error) => {
            json!({ "tag": tag.to_string(), "manifest": id, "error": error.to_string() })
        }
    }
}

fn row(tag: &Tag, id: &Digest, manifest: &Result<Manifest, StoreError>) -> Vec<String> {
    let Ok(of) = manifest else {
        let why = manifest.as_ref().err().map(ToString::to_string).unwrap_or_default();
        return vec![tag.to_string(), short(id), why];
    };
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    // What `get --hash` and `sha256sum` agree about, where there is one file.
    let hash = if let [file] = &of.files[..] { file.sha256 } else { *id };
    vec![
        tag.to_string(),
        short(&hash),
        size(of.size),
        dash(of.quantization.clone()),
        dash(of.architecture.clone()),
        dash(of.parameters.map(parameters)),
        dash(of.context_length.map(|tokens| tokens.to_string())),
        of.uploaded_at.chars().take(16).collect(),
    ]
}
