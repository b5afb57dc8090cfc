//! A row of the input: `{"custom_id", "method", "url", "body"}`, a line each.
//!
//! A row is looked at once, without a copy of its body (`peek`); `parse` adds the body to that. So
//! an estimate and the request that is sent later never disagree.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::limits::HTTP_BODY_BYTES_MAX;
use crate::prng;
use crate::sched::tasks::Size;

/// Of a row over the limit so many bytes are kept, to tell which it is.
pub const HEAD_BYTES: usize = 4 << 10;

/// Names a row by all that its answer depends on: its line, the model and the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 16]);

impl Key {
    /// Its first 8 bytes: what is kept of it where there are millions.
    pub fn prefix(&self) -> u64 {
        u64::from_be_bytes(*self.0.first_chunk().expect("16 bytes have a first 8"))
    }
}

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
    /// The key of the row in `line`; the line's end is no part of it.
    pub fn key(&self, line: &[u8]) -> Key {
        let mut hash = Sha256::new();
        if !self.defaults.is_empty() {
            hash.update(serde_json::to_vec(&self.defaults).unwrap_or_default());
        }
        hash.update([0]);
        hash.update(trim(line));
        let digest: [u8; 32] = hash.finalize().into();
        Key(*digest.first_chunk().expect("32 bytes have a first 16"))
    }
}

/// The key of request `number` of `--prompt`.
pub fn prompt_key(options: &RowOptions, prompt: &str, number: u64) -> Key {
    options.key(format!("{prompt}\0{number}").as_bytes())
}

/// What request `number` of `--prompt` is called.
pub fn prompt_custom_id(number: u64) -> String {
    format!("request-{number}")
}

/// Request `number` of `--prompt` as a row.
pub fn prompt_line(prompt: &str, number: u64) -> Vec<u8> {
    let (custom_id, prompt) = (prompt_custom_id(number), Value::from(prompt));
    format!(
        "{{\"custom_id\":\"{custom_id}\",\"method\":\"POST\",\"url\":\"/v1/completions\",\
         \"body\":{{\"prompt\":{prompt}}}}}"
    )
    .into_bytes()
}

/// A line without its end, and without the mark that some editors put before the first.
pub fn trim(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
}

/// What stands for a row of `mass` bytes, of which `bytes` are the first: too long to be asked, it
/// still has a key and a fault that names it. No row looks like this, since no JSON has a NUL.
pub fn overlong(bytes: &[u8], mass: u64) -> Vec<u8> {
    let mut row = bytes[..bytes.len().min(HEAD_BYTES)].to_vec();
    // As far as a task's mass can tell.
    row.extend_from_slice(format!("\0{}", mass.min(u64::from(u32::MAX))).as_bytes());
    row
}

fn overlong_mass(row: &[u8]) -> Option<u64> {
    let tail = row.len().saturating_sub(11);
    let nul = tail + row[tail..].iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&row[nul + 1..]).ok()?.parse().ok()
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

/// Reads a row.
///
/// # Errors
/// What is wrong with it.
pub fn parse(line: &[u8], options: &RowOptions) -> Result<Row, BadRow> {
    let peek = peek(line, options)?;
    Ok(Row {
        custom_id: peek.custom_id.into_owned(),
        url: peek.url.to_owned(),
        body: with_defaults(peek.body, &peek.missing, options),
        size: peek.size,
    })
}

/// What a row's cost is estimated from; a bad one costs next to nothing.
pub fn estimate(line: &[u8], options: &RowOptions) -> Size {
    let bad = Size { prompt: 0, tokens: 1, class: 0 };
    peek(line, options).map_or(bad, |row| row.size)
}

/// A good row, as it stands in its line.
#[derive(Clone, Debug)]
pub struct Peek<'a> {
    /// The user's name of it.
    pub custom_id: Cow<'a, str>,
    /// The path that is called.
    pub url: &'static str,
    /// The model that is asked for, defaults included.
    pub model: Option<Cow<'a, str>>,
    /// The body, without defaults.
    pub body: &'a RawValue,
    /// What its cost is estimated from.
    pub size: Size,
    /// Which of the defaults it does not set itself.
    missing: Vec<usize>,
}

/// Looks at a row.
///
/// # Errors
/// What is wrong with it.
pub fn peek<'a>(line: &'a [u8], options: &'a RowOptions) -> Result<Peek<'a>, BadRow> {
    let line = trim(line);
    let (members, fault) = Members::of(line);
    let custom_id = members.custom_id.and_then(text).filter(|id| !id.is_empty());
    let bad = |message: String| {
        Err(BadRow { custom_id: custom_id.as_deref().map(str::to_owned), message })
    };
    if let Some(mass) = overlong_mass(line) {
        return bad(format!("the row has {mass} bytes, more than {HTTP_BODY_BYTES_MAX}"));
    }
    if let Some(fault) = fault {
        return bad(fault);
    }
    let Some(custom_id) = &custom_id else {
        return bad(match members.custom_id {
            None => "the row has no custom_id".to_owned(),
            Some(_) => "the row's custom_id is not a text, or empty".to_owned(),
        });
    };
    if members.method.is_some_and(|method| method.get() != "\"POST\"") {
        return bad("the row's method is not POST".to_owned());
    }
    let url = members.url.and_then(text).unwrap_or_default();
    let Some(url) = URLS.into_iter().find(|known| *known == url) else {
        return bad(format!("the row's url {url:?} is none of {}", URLS.join(", ")));
    };
    let Some(body) = members.body else { return bad("the row has no body".to_owned()) };
    let mut call = Call::new(options);
    if let Err(error) = serde_json::Deserializer::from_str(body.get()).deserialize_map(&mut call) {
        return bad(format!("the row's body is not a JSON object: {error}"));
    }
    let missing = call.add_defaults();
    if call.stream {
        return bad("the row's body asks for a stream, which a result cannot hold".to_owned());
    }
    let (size, model) = (call.size(url), call.model);
    Ok(Peek { custom_id: custom_id.clone(), url, model, body, size, missing })
}

/// What rows may call.
const URLS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];

/// The members of a row as they stand in its line, good or bad.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Members<'a> {
    /// The user's name of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<&'a RawValue>,
    /// POST.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'a RawValue>,
    /// The path that is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<&'a RawValue>,
    /// The call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<&'a RawValue>,
}

impl<'a> Members<'a> {
    /// Those in a line, and what keeps it from being a JSON object; what stands before the fault
    /// is there all the same.
    pub fn of(line: &'a [u8]) -> (Members<'a>, Option<String>) {
        let mut members = Members::default();
        let mut json = serde_json::Deserializer::from_slice(line);
        let read = (&mut members).deserialize(&mut json).and_then(|()| json.end());
        let fault = read.err().map(|error| match error.classify() {
            serde_json::error::Category::Data => format!("the row is no JSON object: {error}"),
            _ => format!("the row is not JSON: {error}"),
        });
        (members, fault)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Member {
    CustomId,
    Method,
    Url,
    Body,
    #[serde(other)]
    Other,
}

impl<'a> DeserializeSeed<'a> for &mut Members<'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for &mut Members<'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with custom_id, method, url and body")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(member) = map.next_key()? {
            let place = match member {
                Member::CustomId => &mut self.custom_id,
                Member::Method => &mut self.method,
                Member::Url => &mut self.url,
                Member::Body => &mut self.body,
                Member::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *place = Some(map.next_value()?);
        }
        Ok(())
    }
}

/// What a value says if it is a text.
fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inside = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    if inside.contains('\\') {
        return serde_json::from_str(raw.get()).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inside))
}

/// What counts in a body.
struct Call<'a> {
    options: &'a RowOptions,
    model: Option<Cow<'a, str>>,
    prompt: u32,
    tokens: [Option<u64>; TOKENS.len()],
    stream: bool,
    /// Which defaults are set already.
    set: Vec<bool>,
}

/// Where a body bounds its answer; the first counts.
const TOKENS: [&str; 3] = ["max_completion_tokens", "max_tokens", "n_predict"];
/// Where it has its texts.
const TEXTS: [&str; 3] = ["messages", "prompt", "input"];

impl<'a> Call<'a> {
    fn new(options: &'a RowOptions) -> Call<'a> {
        let set = vec![false; options.defaults.len()];
        Call { options, model: None, prompt: 0, tokens: [None; 3], stream: false, set }
    }

    /// Takes what the body lacks from the defaults, and tells which those were.
    fn add_defaults(&mut self) -> Vec<usize> {
        let missing: Vec<usize> = (0..self.set.len()).filter(|&index| !self.set[index]).collect();
        let options = self.options;
        for &index in &missing {
            let Some((name, value)) = options.defaults.iter().nth(index) else { continue };
            match name.as_str() {
                "model" => self.model = value.as_str().map(Cow::Borrowed),
                "stream" => self.stream = *value == true,
                name if TEXTS.contains(&name) => self.add_text(text_bytes(value)),
                name => {
                    if let Some(place) = TOKENS.iter().position(|known| *known == name) {
                        self.tokens[place] = value.as_u64();
                    }
                }
            }
        }
        missing
    }

    fn add_text(&mut self, bytes: u32) {
        self.prompt = self.prompt.saturating_add(bytes);
    }

    fn size(&self, url: &str) -> Size {
        let bound = self.tokens.iter().flatten().next();
        let tokens = bound.and_then(|tokens| u32::try_from(*tokens).ok());
        // An embedding is its prompt's cost alone.
        let tokens = if url == "/v1/embeddings" { Some(1) } else { tokens };
        let class = class_of(url, self.model.as_deref().unwrap_or_default());
        Size { prompt: self.prompt, tokens: tokens.unwrap_or(0), class }
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Visitor<'a> for &mut Call<'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            if let Some(index) = self.options.defaults.keys().position(|key| *key == name) {
                self.set[index] = true;
            }
            if TEXTS.contains(&&*name) {
                let Texts(bytes) = map.next_value()?;
                self.add_text(bytes);
            } else if let Some(place) = TOKENS.iter().position(|known| *known == name) {
                self.tokens[place] = map.next_value::<&RawValue>()?.get().parse().ok();
            } else if name == "model" {
                self.model = text(map.next_value()?);
            } else if name == "stream" {
                self.stream = map.next_value::<&RawValue>()?.get() == "true";
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Which model and kind of call a row is, in 16 bits; two that share a number share their mean.
pub fn class(url: &str, model: Option<&Value>) -> u16 {
    class_of(url, model.and_then(Value::as_str).unwrap_or_default())
}

fn class_of(url: &str, model: &str) -> u16 {
    prng::hash(prng::hash(0, url.as_bytes()), model.as_bytes()) as u16
}

/// Bytes of all texts in a value; a token that stands as a number counts for 4.
fn text_bytes(value: &Value) -> u32 {
    Texts::deserialize(value).map_or(0, |Texts(bytes)| bytes)
}

/// Bytes of all texts in a value that is not kept.
struct Texts(u32);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Texts, D::Error> {
        json.deserialize_any(TextsVisitor).map(Texts)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u32, E> {
        Ok(u32::try_from(text.len()).unwrap_or(u32::MAX))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<u32, E> {
        Ok(4)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<u32, E> {
        Ok(4)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<u32, E> {
        Ok(4)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<u32, E> {
        Ok(0)
    }

    fn visit_unit<E: de::Error>(self) -> Result<u32, E> {
        Ok(0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<u32, A::Error> {
        let mut sum = 0u32;
        while let Some(Texts(bytes)) = items.next_element()? {
            sum = sum.saturating_add(bytes);
        }
        Ok(sum)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<u32, A::Error> {
        let mut sum = 0u32;
        while let Some((IgnoredAny, Texts(bytes))) = map.next_entry()? {
            sum = sum.saturating_add(bytes);
        }
        Ok(sum)
    }
}

/// The body as it is sent: what the user wrote, to the byte, and the defaults behind it.
fn with_defaults(body: &RawValue, missing: &[usize], options: &RowOptions) -> Vec<u8> {
    let mut body = body.get().as_bytes().to_vec();
    for &index in missing {
        let Some((name, value)) = options.defaults.iter().nth(index) else { continue };
        body.pop();
        let is_empty = body[1..].trim_ascii().is_empty();
        let comma = if is_empty { "" } else { "," };
        body.extend_from_slice(
            format!("{comma}{}:{value}}}", Value::from(name.as_str())).as_bytes(),
        );
    }
    body
}

#[cfg(test)]
mod tests;
