//! JSON bodies of the OpenAI-style API that more than one backend needs.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::frame::ErrorCode;

/// An error's body (platform.openai.com/docs/guides/error-codes): `{"error": {message, type, param,
/// code}}`.
pub fn error_body(code: ErrorCode, message: &str) -> Vec<u8> {
    error_json(error_type(code), error_code(code), message, &Map::new())
}

/// An error's body with given names and further members.
pub fn error_json(kind: &str, code: &str, message: &str, more: &Map<String, Value>) -> Vec<u8> {
    let mut error = Map::new();
    error.insert("message".to_owned(), message.into());
    error.insert("type".to_owned(), kind.into());
    error.insert("param".to_owned(), Value::Null);
    error.insert("code".to_owned(), code.into());
    for (name, value) in more {
        error.insert(name.clone(), value.clone());
    }
    json!({ "error": error }).to_string().into_bytes()
}

fn error_type(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::BadFrame
        | ErrorCode::BadRequest
        | ErrorCode::NotFound
        | ErrorCode::TooLarge
        | ErrorCode::Unsupported => "invalid_request_error",
        ErrorCode::Unauthenticated => "authentication_error",
        ErrorCode::Overloaded => "rate_limit_error",
        ErrorCode::Deadline => "timeout_error",
        ErrorCode::Cancelled
        | ErrorCode::Backend
        | ErrorCode::Internal
        | ErrorCode::ShuttingDown => "server_error",
    }
}

fn error_code(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::BadFrame | ErrorCode::BadRequest | ErrorCode::Unsupported => "invalid_request",
        ErrorCode::NotFound => "not_found",
        ErrorCode::TooLarge => "request_too_large",
        ErrorCode::Unauthenticated => "invalid_api_key",
        ErrorCode::Overloaded => "overloaded",
        ErrorCode::Deadline => "timeout",
        ErrorCode::Cancelled => "cancelled",
        ErrorCode::Backend => "backend_error",
        ErrorCode::Internal => "internal_error",
        ErrorCode::ShuttingDown => "shutting_down",
    }
}

/// An error that ends a stream which was begun.
pub fn error_event(body: &[u8]) -> Vec<u8> {
    [b"data: ", body, b"\n\n"].concat()
}

/// The event that ends a good stream of `/v1`.
pub const DONE_EVENT: &[u8] = b"data: [DONE]\n\n";

/// What a request's body says of how it is to be answered; everything else is the backend's to
/// read.
#[derive(Debug, Default, Deserialize)]
pub struct RequestPeek<'a> {
    /// Asks for server-sent events.
    #[serde(default)]
    pub stream: Option<bool>,
    /// Choices for each prompt.
    #[serde(default)]
    pub n: Option<u32>,
    /// llama-server's other name of `n`.
    #[serde(default)]
    pub n_cmpl: Option<u32>,
    /// A text, tokens, or a list of prompts.
    #[serde(default, borrow)]
    pub prompt: Option<&'a serde_json::value::RawValue>,
    /// `include_usage` is in here.
    #[serde(default)]
    pub stream_options: Option<StreamOptions>,
}

/// Options of a stream.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct StreamOptions {
    /// Asks for a last event with the token counts.
    #[serde(default)]
    pub include_usage: Option<bool>,
}

impl RequestPeek<'_> {
    /// Sequences that the request runs at once: choices times prompts.
    pub fn weight(&self) -> u32 {
        let choices = self.n.or(self.n_cmpl).unwrap_or(1).max(1);
        choices.saturating_mul(self.prompts())
    }

    /// How many prompts there are: a list of texts or of token lists is several, a list of tokens
    /// is one.
    fn prompts(&self) -> u32 {
        let Some(raw) = self.prompt else { return 1 };
        let Ok(Value::Array(items)) = serde_json::from_str(raw.get()) else { return 1 };
        let is_token = |item: &Value| item.is_number();
        if items.iter().any(is_token) { 1 } else { u32::try_from(items.len()).unwrap_or(1).max(1) }
    }
}

/// Token counts of an answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    #[serde(default)]
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    #[serde(default)]
    pub completion_tokens: u32,
    /// More of the prompt's.
    #[serde(default)]
    pub prompt_tokens_details: Option<PromptTokens>,
}

/// `usage.prompt_tokens_details`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct PromptTokens {
    /// Those that were in the server's cache.
    #[serde(default)]
    pub cached_tokens: Option<u32>,
}

/// llama-server's `timings`: milliseconds, and tokens.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Timings {
    /// Tokens of the prompt that were in its cache.
    #[serde(default)]
    pub cache_n: Option<u32>,
    /// What the prompt took, the first token included.
    #[serde(default)]
    pub prompt_ms: Option<f64>,
    /// Tokens of the answer.
    #[serde(default)]
    pub predicted_n: Option<u32>,
    /// What those after the first took.
    #[serde(default)]
    pub predicted_ms: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_body() {
        for code in ErrorCode::ALL {
            let body: Value = serde_json::from_slice(&error_body(code, "why \"so\"")).unwrap();
            assert_eq!(body["error"]["message"], "why \"so\"");
            assert!(body["error"]["type"].is_string() && body["error"]["code"].is_string());
            assert!(body["error"].as_object().unwrap().contains_key("param"));
        }
    }

    #[test]
    fn a_request_weighs_its_sequences() {
        let weight = |body: &str| serde_json::from_str::<RequestPeek<'_>>(body).unwrap().weight();
        assert_eq!(weight(r#"{"prompt":"a"}"#), 1);
        assert_eq!(weight(r#"{"prompt":["a","b"],"n":2}"#), 4);
        assert_eq!(weight(r#"{"prompt":[1,2,3]}"#), 1);
        assert_eq!(weight(r#"{"prompt":[1,"a"]}"#), 1);
        assert_eq!(weight(r#"{"prompt":[[1],[2]],"stream":true}"#), 2);
        assert_eq!(weight(r#"{"messages":[],"n":3}"#), 3);
        assert_eq!(weight(r#"{"prompt":[],"n":0}"#), 1);
    }
}
