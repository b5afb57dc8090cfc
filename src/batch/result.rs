//! A result line: `{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}`.
//!
//! The id is made of the row's key, so that a line tells by itself which row it answers. A line of
//! the error file is the row once more, `{"custom_id", "method", "url", "body"}`, and in `"error"`
//! what came of it: `{"code", "message", "status", "line", "id"}`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::row::{Key, Members};

/// How a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// A server answered, with this status; the body is JSON, or else is kept as a text.
    Response {
        /// Its HTTP status; 2xx is well.
        status: u16,
        /// Which request it was, for the server's log.
        request_id: &'a str,
        /// Its body.
        body: &'a [u8],
    },
    /// No server answered, or the row is bad.
    Error {
        /// A word for programs.
        code: &'a str,
        /// For a person.
        message: &'a str,
    },
}

/// Appends a result line with its end.
pub fn encode(out: &mut Vec<u8>, key: Key, custom_id: &str, outcome: &Outcome<'_>) {
    let mut push = |bytes: &[u8]| out.extend_from_slice(bytes);
    push(format!("{{\"id\":\"{ID}{key}\",\"custom_id\":").as_bytes());
    push(json!(custom_id).to_string().as_bytes());
    match *outcome {
        Outcome::Response { status, request_id, body } => {
            push(format!(",\"response\":{{\"status_code\":{status},\"request_id\":").as_bytes());
            push(json!(request_id).to_string().as_bytes());
            push(b",\"body\":");
            match serde_json::from_slice::<&RawValue>(body) {
                Ok(raw) => push(&one_line(raw.get())),
                Err(_) => push(json!(String::from_utf8_lossy(body)).to_string().as_bytes()),
            }
            push(b"},\"error\":null}\n");
        }
        Outcome::Error { code, message } => {
            let error = json!({ "code": code, "message": message });
            push(format!(",\"response\":null,\"error\":{error}}}\n").as_bytes());
        }
    }
}

const ID: &str = "batch_req_";

/// The code of a row whose custom_id an earlier row has.
pub const DUPLICATE: &str = "duplicate_custom_id";

/// JSON has line ends only between its words, where a space does as well.
fn one_line(json: &str) -> Cow<'_, [u8]> {
    let ends = |byte: &u8| matches!(byte, b'\n' | b'\r');
    if !json.as_bytes().iter().any(ends) {
        return Cow::Borrowed(json.as_bytes());
    }
    json.bytes().map(|byte| if ends(&byte) { b' ' } else { byte }).collect()
}

/// The key in a result line's id.
pub fn key(id: &str) -> Option<Key> {
    let hex = id.strip_prefix(ID)?.as_bytes();
    if hex.len() != 32 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut key = [0; 16];
    for (byte, pair) in key.iter_mut().zip(hex.chunks(2)) {
        *byte = u8::try_from(16 * digit(pair[0])? + digit(pair[1])?).ok()?;
    }
    Some(Key(key))
}

/// What a recorded line says, its body aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Which row it answers; a line of the error file may stand for no request at all.
    pub key: Option<Key>,
    /// Whether well.
    pub ok: bool,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    id: Option<&'a str>,
    response: Option<Head>,
    #[serde(borrow)]
    error: Option<ErrorHead<'a>>,
}

#[derive(Deserialize)]
struct Head {
    status_code: u16,
}

#[derive(Deserialize)]
struct ErrorHead<'a> {
    #[serde(borrow)]
    id: Option<&'a str>,
    /// Of any kind in an answer of a server.
    #[serde(borrow)]
    code: Option<&'a RawValue>,
}

/// Reads a line of a part, of an output or of an error file, unless it is none, or torn.
pub fn recorded(line: &[u8]) -> Option<Recorded> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    match (line.id, line.response, line.error) {
        (Some(id), response, error) => {
            let status = response.map(|response| response.status_code);
            let ok = error.is_none() && status.is_some_and(|status| status / 100 == 2);
            Some(Recorded { key: Some(key(id)?), ok })
        }
        (None, _, Some(ErrorHead { id: Some(id), .. })) => {
            Some(Recorded { key: Some(key(id)?), ok: false })
        }
        (None, _, Some(ErrorHead { id: None, code })) => {
            let is_duplicate = code?.get().trim_matches('"') == DUPLICATE;
            is_duplicate.then_some(Recorded { key: None, ok: false })
        }
        (None, _, None) => None,
    }
}

/// The key of a line that `recorded` has read before.
pub fn recorded_key(line: &[u8]) -> Option<Key> {
    const START: &[u8] = b"{\"id\":\"";
    const LENGTH: usize = ID.len() + 32;
    // As `encode` writes it, the id can be had without the rest.
    let fast = line.strip_prefix(START).and_then(|rest| rest.get(..LENGTH));
    let fast = fast.and_then(|id| key(std::str::from_utf8(id).ok()?));
    fast.or_else(|| recorded(line)?.key)
}

/// Why a row has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A word for programs.
    pub code: String,
    /// For a person.
    pub message: String,
    /// The HTTP status, where a server answered.
    pub status: Option<u16>,
}

/// A message is kept up to here: servers send whole pages.
pub const MESSAGE_BYTES_MAX: usize = 4 << 10;

#[derive(Deserialize)]
struct FailedLine<'a> {
    #[serde(borrow)]
    response: Option<FailedResponse<'a>>,
    error: Option<FailedError>,
}

#[derive(Deserialize)]
struct FailedResponse<'a> {
    status_code: u16,
    #[serde(borrow)]
    body: &'a RawValue,
}

#[derive(Deserialize)]
struct FailedError {
    #[serde(default)]
    code: Value,
    #[serde(default)]
    message: Value,
    status: Option<u16>,
}

impl Failure {
    /// The failure in a line that `recorded` says is none of success.
    pub fn of(line: &[u8]) -> Failure {
        match serde_json::from_slice(line) {
            Ok(FailedLine { error: Some(error), .. }) => Failure {
                code: plain(&error.code),
                message: head(&plain(&error.message)).to_owned(),
                status: error.status,
            },
            Ok(FailedLine { response: Some(response), error: None }) => Failure {
                code: format!("http_{}", response.status_code),
                message: head(&said(response.body)).to_owned(),
                status: Some(response.status_code),
            },
            _ => Failure {
                code: "unreadable".to_owned(),
                message: "the recorded failure cannot be read any more".to_owned(),
                status: None,
            },
        }
    }

    /// Appends the error file's line of a row that failed, with its end.
    pub fn encode(&self, out: &mut Vec<u8>, row: &FailedRow<'_>) {
        let error = json!({
            "code": self.code,
            "message": self.message,
            "status": self.status,
            "line": row.line,
            "id": row.key.map(|key| format!("{ID}{key}")),
        });
        let named = row.members.filter(|members| {
            members.custom_id.is_some_and(|id| id.get().starts_with('"') && id.get() != "\"\"")
        });
        let mut line = match named.map(|members| serde_json::to_vec(&members)) {
            Some(Ok(line)) => line,
            _ => {
                let text = String::from_utf8_lossy(row.text);
                let custom_id = format!("line-{}", row.line);
                json!({ "custom_id": custom_id, "line": head(&text) }).to_string().into_bytes()
            }
        };
        line.pop();
        out.extend_from_slice(&one_line_bytes(line));
        out.extend_from_slice(format!(",\"error\":{error}}}\n").as_bytes());
    }
}

fn one_line_bytes(mut line: Vec<u8>) -> Vec<u8> {
    line.iter_mut().filter(|byte| **byte == b'\r').for_each(|byte| *byte = b' ');
    line
}

/// A row as the error file tells it.
#[derive(Clone, Copy, Debug)]
pub struct FailedRow<'a> {
    /// Its line in the input, from 1.
    pub line: u64,
    /// Its key, if the line is to stand for its result.
    pub key: Option<Key>,
    /// Its members, if it is JSON.
    pub members: Option<Members<'a>>,
    /// All of it.
    pub text: &'a [u8],
}

/// What an error's body says: the message in it if it has one as OpenAI's do.
fn said(body: &RawValue) -> String {
    let value: Value = serde_json::from_str(body.get()).unwrap_or_default();
    let message = [&value["error"]["message"], &value["error"], &value["message"], &value];
    message.iter().find_map(|value| value.as_str()).unwrap_or(body.get()).to_owned()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn head(text: &str) -> &str {
    &text[..text.floor_char_boundary(MESSAGE_BYTES_MAX)]
}

#[cfg(test)]
mod tests;
