//! A row of the input: `{"custom_id", "method", "url", "body"}`, a line each.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::prng;
use crate::sched::tasks::Size;

/// Names a row by all that its answer depends on: its line, the model and the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 16]);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the command line adds to rows.
#[derive(Clone, Debug, Default)]
pub struct RowOptions {
    /// Members of the body, for rows that do not set them themselves.
    pub defaults: Map<String, Value>,
}

impl RowOptions {
    /// The key of the row in `line` (without the line's end).
    pub fn key(&self, line: &[u8]) -> Key {
        let mut hash = Sha256::new();
        if !self.defaults.is_empty() {
            hash.update(serde_json::to_vec(&self.defaults).unwrap_or_default());
        }
        hash.update([0]);
        hash.update(line);
        let digest: [u8; 32] = hash.finalize().into();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Key(key)
    }
}

/// A line without its end.
pub fn trim(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The key of request `number` of `--prompt`.
pub fn prompt_key(options: &RowOptions, prompt: &str, number: u64) -> Key {
    options.key(format!("{prompt}\0{number}").as_bytes())
}

/// What request `number` of `--prompt` is called.
pub fn prompt_custom_id(number: u64) -> String {
    format!("request-{number}")
}

/// A good row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The user's name of it.
    pub custom_id: String,
    /// The path that is called, `/v1/…`.
    pub url: String,
    /// The call's body, defaults included.
    pub body: Vec<u8>,
    /// What its cost is estimated from.
    pub size: Size,
}

/// A row that cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// The user's name of it, where it has one.
    pub custom_id: Option<String>,
    /// What is wrong.
    pub message: String,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    custom_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    url: Option<Cow<'a, str>>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// Reads a row.
///
/// # Errors
/// What is wrong with it.
pub fn parse(line: &[u8], options: &RowOptions) -> Result<Row, BadRow> {
    let bad = |custom_id: Option<&str>, message: String| BadRow {
        custom_id: custom_id.map(str::to_owned),
        message,
    };
    let parsed: Line<'_> = serde_json::from_slice(line)
        .map_err(|error| bad(None, format!("the row is not JSON: {error}")))?;
    let Some(custom_id) = parsed.custom_id.as_deref().filter(|id| !id.is_empty()) else {
        return Err(bad(None, "the row has no custom_id".to_owned()));
    };
    let bad = |message: String| bad(Some(custom_id), message);
    if parsed.method.as_deref().is_some_and(|method| method != "POST") {
        return Err(bad("the row's method is not POST".to_owned()));
    }
    let url = parsed.url.as_deref().unwrap_or_default();
    if !URLS.contains(&url) {
        return Err(bad(format!("the row's url {url:?} is none of {}", URLS.join(", "))));
    }
    let body = parsed.body.map_or("null", RawValue::get);
    let Ok(Value::Object(mut body)) = serde_json::from_str(body) else {
        return Err(bad("the row's body is not a JSON object".to_owned()));
    };
    if body.get("stream").is_some_and(|stream| *stream == true) {
        return Err(bad("the row's body asks for a stream, which a result cannot hold".to_owned()));
    }
    for (name, value) in &options.defaults {
        body.entry(name).or_insert_with(|| value.clone());
    }
    let size = size(url, &body);
    let body = Value::Object(body).to_string().into_bytes();
    Ok(Row { custom_id: custom_id.to_owned(), url: url.to_owned(), body, size })
}

/// What rows may call.
const URLS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];

fn size(url: &str, body: &Map<String, Value>) -> Size {
    let prompt = ["messages", "prompt", "input"].iter().filter_map(|name| body.get(*name));
    let prompt = prompt.map(text_bytes).sum();
    let tokens = ["max_completion_tokens", "max_tokens", "n_predict"]
        .iter()
        .find_map(|name| body.get(*name)?.as_u64())
        .and_then(|tokens| u32::try_from(tokens).ok());
    // An embedding is its prompt's cost alone.
    let tokens = if url == "/v1/embeddings" { Some(1) } else { tokens };
    Size { prompt, tokens: tokens.unwrap_or(0), class: class(url, body.get("model")) }
}

/// Which model and kind of call a row is, in 16 bits; two that share a number share their mean.
pub fn class(url: &str, model: Option<&Value>) -> u16 {
    let model = model.and_then(Value::as_str).unwrap_or_default();
    prng::hash(prng::hash(0, url.as_bytes()), model.as_bytes()) as u16
}

/// Bytes of all texts in a value; a token that stands as a number counts for 4.
fn text_bytes(value: &Value) -> u32 {
    match value {
        Value::String(text) => u32::try_from(text.len()).unwrap_or(u32::MAX),
        Value::Number(_) => 4,
        Value::Array(items) => items.iter().map(text_bytes).fold(0, u32::saturating_add),
        Value::Object(object) => object.values().map(text_bytes).fold(0, u32::saturating_add),
        _ => 0,
    }
}
