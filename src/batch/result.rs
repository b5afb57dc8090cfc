//! A result line: `{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}`.
//!
//! The id is made of the row's key, so that a line tells by itself which row it answers.

use serde_json::json;
use serde_json::value::RawValue;

use super::row::Key;

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
    push(format!("{{\"id\":\"batch_req_{key}\",\"custom_id\":").as_bytes());
    push(json!(custom_id).to_string().as_bytes());
    match *outcome {
        Outcome::Response { status, request_id, body } => {
            push(format!(",\"response\":{{\"status_code\":{status},\"request_id\":").as_bytes());
            push(json!(request_id).to_string().as_bytes());
            push(b",\"body\":");
            match serde_json::from_slice::<&RawValue>(body) {
                // A line is one line.
                Ok(raw) if !raw.get().contains('\n') => push(raw.get().as_bytes()),
                Ok(raw) => {
                    let value: serde_json::Value =
                        serde_json::from_str(raw.get()).unwrap_or_default();
                    push(value.to_string().as_bytes());
                }
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

/// The key in a result line's id.
pub fn key(id: &str) -> Option<Key> {
    let hex = id.strip_prefix("batch_req_")?;
    if hex.len() != 32 || !hex.is_ascii() {
        return None;
    }
    let mut key = [0; 16];
    for (byte, digits) in key.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(Key(key))
}
