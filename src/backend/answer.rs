//! What the codecs of real backends share: options as JSON, and the failures that answers tell.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use super::{Account, Answer, Failure, FailureKind, TokenSource};
use crate::wire::frame::{ErrorCode, FinishReason};
use crate::wire::http1::ResponseHead;
use crate::wire::message::Infer;
use crate::wire::openai::{Timings, Usage, error_json};
use crate::wire::sse::{SseEvent, SseSplitter};

/// An error body is read up to here; the rest says no more.
const ERROR_BODY_BYTES_MAX: usize = 64 << 10;

/// How far an answer was read, and what of it is kept.
#[derive(Clone, Debug)]
pub enum Intake {
    /// Nothing has come.
    Head,
    /// A body that is no stream; its end is kept, where usage may stand.
    Plain(Vec<u8>),
    /// Server-sent events.
    Events(SseSplitter),
    /// The body of an answer with a status other than 2xx.
    Error {
        /// Its status.
        status: u16,
        /// Its `Retry-After`, if that is a number of seconds.
        retry_after_s: Option<u32>,
        /// What has come of its body.
        body: Vec<u8>,
    },
    /// The last output was told.
    Over,
}

/// A part of a good answer.
pub enum Part<'a> {
    /// Bytes of a body that is no stream.
    Plain(&'a [u8]),
    /// A whole event.
    Event(SseEvent<'a>),
}

/// As much of a plain answer is kept as may hold its usage, which stands at its end or, in short
/// ones, anywhere.
pub const TAIL_BYTES_MAX: usize = 16 << 10;

impl Intake {
    /// For an answer with this head.
    pub fn begin(head: &ResponseHead<'_>) -> Intake {
        if !(200..300).contains(&head.status) {
            let retry_after_s = head.retry_after.and_then(|value| value.trim().parse().ok());
            Intake::Error { status: head.status, retry_after_s, body: Vec::new() }
        } else if content_type(head).starts_with("text/event-stream") {
            Intake::Events(SseSplitter::new())
        } else {
            Intake::Plain(Vec::new())
        }
    }

    /// Takes a part of the body.
    ///
    /// # Errors
    /// What `each` says, or an event without end.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Part<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match self {
            Intake::Error { body, .. } => {
                let room = ERROR_BODY_BYTES_MAX - body.len();
                body.extend_from_slice(&bytes[..bytes.len().min(room)]);
                Ok(())
            }
            Intake::Plain(tail) => {
                tail.extend_from_slice(bytes);
                let excess = tail.len().saturating_sub(TAIL_BYTES_MAX);
                tail.drain(..excess);
                each(Part::Plain(bytes))
            }
            Intake::Events(splitter) => {
                let mut result = Ok(());
                let fed = splitter.feed(bytes, |event| {
                    if result.is_ok() {
                        result = each(Part::Event(event));
                    }
                });
                let endless = |_| {
                    let message = "the backend sent an event without end";
                    Failure::backend(ErrorCode::Backend, message)
                };
                result.and(fed.map_err(endless))
            }
            Intake::Head | Intake::Over => Ok(()),
        }
    }
}

/// The content type of an answer.
pub fn content_type<'a>(head: &ResponseHead<'a>) -> &'a str {
    head.content_type.unwrap_or("application/octet-stream")
}

/// The token counts of a plain answer, of which `tail` is the end.
pub fn usage_in(tail: &[u8]) -> Option<Usage> {
    #[derive(Deserialize)]
    struct Answer {
        usage: Option<Usage>,
    }
    if tail.len() < TAIL_BYTES_MAX
        && let Ok(answer) = serde_json::from_slice::<Answer>(tail)
    {
        return answer.usage;
    }
    // The beginning is missing, so what stands there is looked for by name.
    let name = b"\"usage\":";
    let at = (0..tail.len().saturating_sub(name.len())).rfind(|&i| tail[i..].starts_with(name))?;
    let mut values = serde_json::Deserializer::from_slice(&tail[at + name.len()..]).into_iter();
    values.next()?.ok()
}

/// What an answer cost.
pub fn account(
    source: Option<TokenSource>,
    cached_tokens: Option<u32>,
    timings: Option<Timings>,
) -> Account {
    let us = |ms: Option<f64>| ms.map(|ms| (ms.max(0.0) * 1e3) as u64);
    let timings = timings.unwrap_or_default();
    Account {
        source,
        cached_tokens: cached_tokens.or(timings.cache_n),
        prompt_us: us(timings.prompt_ms),
        predicted_us: us(timings.predicted_ms),
    }
}

/// The finish reason of a name in OpenAI's API.
pub fn finish_reason(name: &str) -> FinishReason {
    match name {
        "stop" => FinishReason::Stop,
        "length" => FinishReason::Length,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        _ => FinishReason::Other,
    }
}

/// The start of a request's body: model, sampling, stop words and what `extra` adds. It is always a
/// stream.
///
/// # Errors
/// `extra` is no JSON object, or sets what the gateway must set.
pub fn options(infer: &Infer<'_>, repeat_penalty: &str) -> Result<Map<String, Value>, Failure> {
    let mut body = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    set("model", infer.model.map(Value::from));
    set("temperature", infer.temperature.map(float));
    set("top_k", infer.top_k.map(Value::from));
    set("top_p", infer.top_p.map(float));
    set("min_p", infer.min_p.map(float));
    set(repeat_penalty, infer.repeat_penalty.map(float));
    set("seed", infer.seed.map(Value::from));
    set("stop", (!infer.stop.is_empty()).then(|| infer.stop.clone().into()));
    if let Some(extra) = infer.extra {
        let bad = |what: &str| Failure::request(ErrorCode::BadRequest, format!("extra {what}"));
        let Ok(Value::Object(extra)) = serde_json::from_str(extra) else {
            return Err(bad("is not a JSON object"));
        };
        if let Some(name) = ["stream", "stream_options"].iter().find(|n| extra.contains_key(**n)) {
            return Err(bad(&format!("may not set {name}: the gateway does")));
        }
        // Several answers would be mixed into one text; a path call can carry them.
        if let Some(name) = ["n", "n_cmpl"].iter().find(|n| extra.get(**n).is_some_and(|v| *v != 1))
        {
            return Err(bad(&format!("may not set {name}: a request has one answer")));
        }
        body.extend(extra);
    }
    body.insert("stream".to_owned(), true.into());
    Ok(body)
}

/// The messages of a chat, which must be a JSON array. What is in it is the server's to judge, so
/// that it goes out as it came.
///
/// # Errors
/// They are not.
pub fn messages(text: &str) -> Result<&RawValue, Failure> {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(messages) if messages.get().starts_with('[') => Ok(messages),
        Ok(_) => Err(Failure::request(ErrorCode::BadRequest, "messages is not a JSON array")),
        Err(error) => {
            Err(Failure::request(ErrorCode::BadRequest, format!("messages is not JSON: {error}")))
        }
    }
}

/// A request's body: an object of these members, the messages last where there are any.
pub fn body(mut members: Map<String, Value>, messages: Option<&RawValue>) -> Vec<u8> {
    if messages.is_some() {
        members.remove("messages");
    }
    let mut body = serde_json::to_vec(&members).expect("texts and numbers are JSON");
    if let Some(messages) = messages {
        body.pop();
        if !members.is_empty() {
            body.push(b',');
        }
        body.extend_from_slice(b"\"messages\":");
        body.extend_from_slice(messages.get().as_bytes());
        body.push(b'}');
    }
    body
}

/// The shortest decimal that gives the same f32 again: 0.7, and not 0.699999988079071.
fn float(value: f32) -> Value {
    let decimal = value.to_string().parse().ok().and_then(Number::from_f64);
    decimal.map_or(Value::Null, Value::Number)
}

/// The members of an error that say something.
#[derive(Default, Deserialize)]
struct ErrorMembers {
    #[serde(default)]
    message: String,
    #[serde(default, rename = "type")]
    kind: String,
    n_prompt_tokens: Option<Value>,
    n_ctx: Option<Value>,
}

/// The failure that an answer with a status other than 2xx tells, or an error event (then `status`
/// is its code).
pub fn failure(status: u16, body: &[u8]) -> Failure {
    let answer = Some(Box::new(Answer { status, body: body.to_vec() }));
    Failure { answer, ..judge(status, body) }
}

/// The failure of a whole answer with such a status.
pub fn refusal(status: u16, retry_after_s: Option<u32>, body: &[u8]) -> Failure {
    Failure { retry_after_s, ..failure(status, body) }
}

fn judge(status: u16, body: &[u8]) -> Failure {
    let (error, is_openai) = members(body);
    let message = if error.message.is_empty() {
        format!("the backend answered {status}")
    } else {
        error.message.clone()
    };
    let exceeds_context = error.kind == "exceed_context_size_error";
    // llama-server's answer to an input over its batch is a 500, but no other backend would take it
    // either.
    let too_large = status == 500 && message.contains("too large to process");
    let loading =
        status == 503 && (error.kind == "unavailable_error" || message.contains("oading"));
    match status {
        401 | 403 => Failure::backend(
            ErrorCode::Backend,
            format!("the backend refuses the gateway ({status}): set CNSE_UPSTREAM_API_KEY"),
        ),
        404 => Failure { status, ..Failure::request(ErrorCode::NotFound, message) },
        429 => Failure { status, ..Failure::request(ErrorCode::Overloaded, message) },
        _ if exceeds_context || too_large || (400..500).contains(&status) => {
            let mut failure = Failure::request(ErrorCode::BadRequest, message);
            failure.status = if too_large { 400 } else { status };
            let mut more = Map::new();
            more.extend(error.n_prompt_tokens.map(|n| ("n_prompt_tokens".to_owned(), n)));
            more.extend(error.n_ctx.map(|n| ("n_ctx".to_owned(), n)));
            let code = if exceeds_context { "context_length_exceeded" } else { "invalid_request" };
            // Another server's own body has the form already, and says more than would be made of
            // it here.
            failure.body = if is_openai && !exceeds_context && error.kind != "server_error" {
                Some(body.to_vec())
            } else {
                Some(error_json("invalid_request_error", code, &failure.message, &more))
            };
            failure
        }
        _ if loading => Failure::new(FailureKind::Loading, ErrorCode::Backend, message),
        _ => Failure::backend(ErrorCode::Backend, message),
    }
}

/// What a body says of an error, and whether it has OpenAI's form with a code that is a text
/// (llama-server's is a number, which breaks clients that read it as OpenAI's).
fn members(body: &[u8]) -> (ErrorMembers, bool) {
    let plain = |message: String| (ErrorMembers { message, ..ErrorMembers::default() }, false);
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(mut object)) => match object.remove("error") {
            Some(error @ Value::Object(_)) => {
                let is_openai = !error["code"].is_number() && error["message"].is_string();
                (serde_json::from_value(error).unwrap_or_default(), is_openai)
            }
            Some(Value::String(message)) => plain(message),
            _ => match object.remove("detail").or_else(|| object.remove("message")) {
                Some(Value::String(message)) => plain(message),
                Some(other) => plain(other.to_string()),
                None => plain(String::new()),
            },
        },
        _ => plain(String::from_utf8_lossy(&body[..body.len().min(300)]).trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::Input;

    #[test]
    fn each_status_has_its_meaning() {
        let llama = |kind: &str, message: &str| {
            format!(r#"{{"error":{{"code":1,"message":"{message}","type":"{kind}"}}}}"#)
        };
        let cases = [
            (
                400,
                llama("invalid_request_error", "bad"),
                FailureKind::Request,
                ErrorCode::BadRequest,
                400,
            ),
            (
                404,
                llama("not_found_error", "File Not Found"),
                FailureKind::Request,
                ErrorCode::NotFound,
                404,
            ),
            (
                401,
                llama("authentication_error", "key"),
                FailureKind::Backend,
                ErrorCode::Backend,
                502,
            ),
            (
                501,
                llama("not_supported_error", "off"),
                FailureKind::Backend,
                ErrorCode::Backend,
                502,
            ),
            (
                503,
                llama("unavailable_error", "Loading model"),
                FailureKind::Loading,
                ErrorCode::Backend,
                502,
            ),
            (503, "busy".to_owned(), FailureKind::Backend, ErrorCode::Backend, 502),
            (
                500,
                llama("server_error", "input is too large to process"),
                FailureKind::Request,
                ErrorCode::BadRequest,
                400,
            ),
            (500, llama("server_error", "oops"), FailureKind::Backend, ErrorCode::Backend, 502),
            (422, r#"{"detail":[1]}"#.to_owned(), FailureKind::Request, ErrorCode::BadRequest, 422),
            (429, String::new(), FailureKind::Request, ErrorCode::Overloaded, 429),
        ];
        for (status, body, kind, code, told) in cases {
            let failure = failure(status, body.as_bytes());
            assert_eq!((failure.kind, failure.code, failure.status), (kind, code, told), "{body}");
            let error: Value = serde_json::from_slice(&failure.http_body()).unwrap();
            assert!(error["error"]["code"].is_string(), "{error}");
        }
        let body = br#"{"error":{"code":400,"message":"m","type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":4}}"#;
        let error: Value = serde_json::from_slice(&failure(400, body).http_body()).unwrap();
        assert_eq!(error["error"]["code"], "context_length_exceeded");
        assert_eq!(
            (&error["error"]["n_prompt_tokens"], &error["error"]["n_ctx"]),
            (&9.into(), &4.into())
        );
        let own = br#"{"error":{"message":"m","type":"x","param":"n","code":"y"}}"#;
        assert_eq!(failure(400, own).http_body(), own);
    }

    #[test]
    fn options_and_extra() {
        let mut infer = Infer::new(Input::Prompt("p"));
        infer.temperature = Some(0.7);
        infer.stop = vec!["a"];
        infer.extra = Some(r#"{"grammar":"g","temperature":0}"#);
        let body = Value::Object(options(&infer, "repeat_penalty").unwrap());
        assert_eq!(
            body.to_string(),
            r#"{"temperature":0,"stop":["a"],"grammar":"g","stream":true}"#
        );
        assert_eq!(float(0.7).to_string(), "0.7");
        for (extra, message) in [
            ("[]", "extra is not a JSON object"),
            (r#"{"stream":false}"#, "extra may not set stream: the gateway does"),
            (r#"{"n":2}"#, "extra may not set n: a request has one answer"),
        ] {
            infer.extra = Some(extra);
            assert_eq!(options(&infer, "x").unwrap_err().message, message);
        }
        assert!(messages("{}").is_err() && messages("[").is_err() && messages("[]").is_ok());
        let said = messages(" [ 1 ] ").unwrap();
        let with = |members: Value| {
            let members = members.as_object().cloned().unwrap_or_default();
            String::from_utf8(super::body(members, Some(said))).unwrap()
        };
        assert_eq!(with(serde_json::json!({})), r#"{"messages":[ 1 ]}"#);
        let members = serde_json::json!({ "messages": 0, "a": 1 });
        assert_eq!(with(members), r#"{"a":1,"messages":[ 1 ]}"#);
        assert_eq!(super::body(Map::new(), None), b"{}");
    }
}
