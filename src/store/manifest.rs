//! What a model is made of: a versioned JSON document, named by the SHA-256 of its bytes.
//!
//! Fields stand in a fixed order, so that the same model always has the same bytes but for the time
//! of its upload. A reader refuses a `schema` that it does not know, and passes over fields that it
//! does not know.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::Error;
use super::gguf::Gguf;
use super::name::{self, Tag};
use super::record::{Layout, Record, check_parts};
use crate::limits::{MODEL_FILES_MAX, STORE_JSON_BYTES_MAX};

/// A model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub schema: u32,
    /// The model's name.
    pub name: String,
    /// The tag that it was stored under.
    pub tag: String,
    /// Bytes of all files.
    pub size: u64,
    /// From the GGUF that has it: llama, gemma2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Elements of all tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// In tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
    /// Q4_K_M; of a file that tells none, what its name says, in brackets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// From the header, or as whoever stored it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// UTC, RFC 3339.
    pub uploaded_at: String,
    /// Who wrote this: `cnse 0.1.0`.
    pub uploader: String,
    /// Its files; the first is the one to be opened.
    pub files: Vec<ModelFile>,
}

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFile {
    /// What it is called, without folders.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Its SHA-256, by which the blob is named.
    pub sha256: Digest,
    /// Bytes of each part but the last.
    pub part_size: u64,
    /// SHA-256 of each part.
    pub parts: Vec<Digest>,
    /// Its header, if it is a GGUF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gguf: Option<Gguf>,
}

/// Version of the format.
pub const SCHEMA: u32 = 1;

impl Manifest {
    /// Of files that are stored; what the model is comes from their headers.
    pub fn new(tag: &Tag, files: Vec<ModelFile>, licence: Option<String>, at: String) -> Manifest {
        let headers = || files.iter().filter_map(|file| file.gguf.as_ref());
        // Shards but the first tell little, and a projector is not the model.
        let main = headers().next();
        let shards = headers().filter(|gguf| gguf.split.is_some()).map(|gguf| gguf.parameters);
        let parameters = match main {
            Some(main) if main.split.is_some() => Some(shards.fold(0, u64::saturating_add)),
            main => main.map(|main| main.parameters),
        };
        let by_name = || label_of_name(&files.first()?.name).map(|label| format!("({label})"));
        Manifest {
            schema: SCHEMA,
            name: tag.name().to_owned(),
            tag: tag.tag().to_owned(),
            size: files.iter().map(|file| file.size).fold(0, u64::saturating_add),
            architecture: main.and_then(|main| main.architecture.clone()),
            parameters,
            context_length: main.and_then(|main| main.context_length),
            quantization: main.and_then(|main| main.quantization.label.clone()).or_else(by_name),
            licence: licence.or_else(|| main.and_then(|main| main.licence.clone())),
            uploaded_at: at,
            uploader: concat!("cnse ", env!("CARGO_PKG_VERSION")).to_owned(),
            files,
        }
    }

    /// Reads one, and checks it; `what` and `at` are for messages.
    ///
    /// # Errors
    /// Which rule it does not keep.
    pub fn parse(bytes: &[u8], what: &str, at: &str) -> Result<Manifest, Error> {
        let read = || {
            if bytes.len() > STORE_JSON_BYTES_MAX {
                return Err(format!("it has more than {STORE_JSON_BYTES_MAX} bytes"));
            }
            let manifest: Manifest =
                serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            manifest.check()?;
            Ok(manifest)
        };
        let refused = |why| Error::Refused { what: what.to_owned(), at: at.to_owned(), why };
        read().map_err(refused)
    }

    fn check(&self) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("its schema is {}, and {SCHEMA} is known", self.schema));
        }
        Tag::new(&self.name, &self.tag).map_err(|error| error.to_string())?;
        if self.files.is_empty() || self.files.len() > MODEL_FILES_MAX {
            return Err(format!("{} files, and not 1 to {MODEL_FILES_MAX}", self.files.len()));
        }
        let mut names = HashSet::new();
        let mut size = 0_u64;
        for file in &self.files {
            name::check(&file.name).map_err(|error| error.to_string())?;
            if !names.insert(&file.name) {
                return Err(format!("the file {:?} stands twice", file.name));
            }
            check_parts(file.size, file.part_size, file.parts.len())?;
            size = size.checked_add(file.size).ok_or("its files have more bytes than there are")?;
        }
        if size != self.size {
            return Err(format!("its files have {size} bytes, and it says {}", self.size));
        }
        Ok(())
    }

    /// Its bytes, and the name that they give it.
    pub fn to_json(&self) -> (Digest, Vec<u8>) {
        let mut bytes = serde_json::to_vec_pretty(self).expect("its keys are strings");
        bytes.push(b'\n');
        (Digest::of(&bytes), bytes)
    }
}

impl ModelFile {
    /// What a remote would say of its blob.
    pub fn record(&self) -> Record {
        Record::new(self.size, self.part_size, Layout::File, self.parts.clone())
    }
}

/// A quantization that a file's name ends with: `…-Q4_K_M.gguf`, `…-f16.gguf`.
pub fn label_of_name(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".gguf").unwrap_or(name).to_ascii_uppercase();
    let last = stem.rsplit(['-', '.']).next()?;
    let after = last.strip_prefix("IQ").or(last.strip_prefix("TQ")).or(last.strip_prefix('Q'));
    let is_quant = after.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    (is_quant || ["F32", "F16", "BF16"].contains(&last)).then(|| last.to_owned())
}

/// Name and tag for a file: its name, and its quantization as the tag.
pub fn tag_of_file(file_name: &str, quantization: Option<&str>) -> Tag {
    let stem = file_name.strip_suffix(".gguf").unwrap_or(file_name);
    // The first of several files: `name-00001-of-00003`.
    let shard = stem.len().checked_sub(SHARD.len()).filter(|&at| {
        stem.is_char_boundary(at)
            && stem[at..].bytes().zip(SHARD.bytes()).all(|(c, form)| match form {
                b'0' => c.is_ascii_digit(),
                form => c == form,
            })
    });
    let stem = &stem[..shard.unwrap_or(stem.len())];
    let label = label_of_name(stem);
    let name = match &label {
        Some(label) => stem[..stem.len() - label.len()].trim_end_matches(['-', '.', '_']),
        None => stem,
    };
    let tag = label.as_deref().or(quantization).unwrap_or(name::TAG_DEFAULT);
    Tag::new(&name::clean(name), &name::clean(tag)).expect("cleaned names are names")
}

const SHARD: &str = "-00000-of-00000";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PART_BYTES_LEAST;

    pub(super) fn manifest() -> Manifest {
        let tag = "gemma:q4".parse().unwrap();
        let parts = vec![Digest::of(b"a"), Digest::of(b"b")];
        let file = |name: &str| ModelFile {
            name: name.to_owned(),
            size: PART_BYTES_LEAST + 1,
            sha256: Digest::of(b"ab"),
            part_size: PART_BYTES_LEAST,
            parts: parts.clone(),
            gguf: None,
        };
        let at = "2026-11-24T00:00:00.000Z".to_owned();
        Manifest::new(&tag, vec![file("m-Q4_K_M.gguf"), file("b")], Some("MIT".to_owned()), at)
    }

    #[test]
    fn round_trip_and_what_is_passed_over() {
        let manifest = manifest();
        let (id, bytes) = manifest.to_json();
        assert_eq!((id, manifest.to_json().1), (Digest::of(&bytes), bytes.clone()));
        assert_eq!(Manifest::parse(&bytes, "m", "here").unwrap(), manifest);
        assert_eq!(manifest.quantization.as_deref(), Some("(Q4_K_M)"));
        let text = String::from_utf8(bytes).unwrap().replacen('{', "{\"later\": [1],", 1);
        assert_eq!(Manifest::parse(text.as_bytes(), "m", "here").unwrap(), manifest);
    }

    #[test]
    fn hostile_manifests_are_refused() {
        let good = manifest();
        let with = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = good.clone();
            change(&mut manifest);
            manifest
        };
        let bad = [
            with(&|m| m.schema = 2),
            with(&|m| m.size = 7),
            with(&|m| m.name = "../x".to_owned()),
            with(&|m| m.tag = String::new()),
            with(&|m| m.files.clear()),
            with(&|m| m.files[0].name = "../../etc/passwd".to_owned()),
            with(&|m| m.files[0].name = m.files[1].name.clone()),
            with(&|m| m.files[0].part_size = 1),
            with(&|m| m.files[0].size = u64::MAX),
            with(&|m| m.files[0].parts.clear()),
        ];
        for manifest in bad {
            let refused = Manifest::parse(&manifest.to_json().1, "m", "here");
            assert!(matches!(refused, Err(Error::Refused { .. })), "{manifest:?}");
        }
        assert!(Manifest::parse(b"", "m", "here").is_err());
        assert!(Manifest::parse(&vec![b'['; 1 << 20], "m", "here").is_err());
    }

    #[test]
    fn names_of_files() {
        let table = [
            ("gemma-2-2b-it-Q4_K_M.gguf", None, "gemma-2-2b-it:Q4_K_M"),
            ("tiny.gguf", Some("F16"), "tiny:F16"),
            ("tiny.f16.gguf", None, "tiny:F16"),
            ("big-IQ2_XXS-00001-of-00003.gguf", None, "big:IQ2_XXS"),
            ("notes.txt", None, "notes.txt:latest"),
            ("Qwen2.5.gguf", None, "Qwen2.5:latest"),
            (".gguf", None, "model:latest"),
            ("größe.gguf", Some("Q8_0"), "gr--e:Q8_0"),
        ];
        for (file, quantization, tag) in table {
            assert_eq!(tag_of_file(file, quantization).to_string(), tag, "{file}");
        }
    }
}
