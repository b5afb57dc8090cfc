//! The messages that are made of fields: HELLO and INFER.

use super::field::{CRITICAL, FieldError, Fields, encode_field, float, number, text};
use crate::limits::{CLIENT_PAYLOAD_BYTES_MIN, STOP_WORDS_MAX};

/// Who a peer is and what it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello<'a> {
    /// For people, such as `cnse/0.1.0`.
    pub agent: Option<&'a str>,
    /// The API key (from a client).
    pub token: Option<&'a [u8]>,
    /// The largest payload that its sender takes, in bytes.
    pub max_payload: Option<u32>,
    /// Requests that may be open at once (from a server).
    pub max_requests: Option<u32>,
}

impl<'a> Hello<'a> {
    /// From a payload.
    ///
    /// # Errors
    /// A field is malformed, stands twice, or is critical and unknown.
    pub fn decode(payload: &'a [u8]) -> Result<Hello<'a>, FieldError> {
        let mut hello = Hello::default();
        for field in Fields::new(payload) {
            let (tag, value) = field?;
            match tag {
                1 => once("agent", &mut hello.agent, text("agent", value)?)?,
                2 => once("token", &mut hello.token, value)?,
                3 => {
                    let bytes = number("max_payload", value)?;
                    if bytes < CLIENT_PAYLOAD_BYTES_MIN {
                        return Err(FieldError::Invalid("max_payload", "256 or more"));
                    }
                    once("max_payload", &mut hello.max_payload, bytes)?;
                }
                4 => {
                    let count = number("max_requests", value)?;
                    once("max_requests", &mut hello.max_requests, count)?;
                }
                tag => skip(tag)?,
            }
        }
        Ok(hello)
    }

    /// Appends its fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if let Some(agent) = self.agent {
            encode_field(out, 1, agent.as_bytes());
        }
        if let Some(token) = self.token {
            encode_field(out, 2, token);
        }
        if let Some(max_payload) = self.max_payload {
            encode_field(out, 3, &max_payload.to_le_bytes());
        }
        if let Some(max_requests) = self.max_requests {
            encode_field(out, 4, &max_requests.to_le_bytes());
        }
    }
}

/// What is asked of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// Text to be continued.
    Prompt(&'a str),
    /// A chat: a JSON array of messages.
    Messages(&'a str),
    /// A call of the HTTP API, answered with the response's body.
    Api {
        /// The HTTP method.
        method: &'a str,
        /// The path, with its query.
        path: &'a str,
        /// The request's body; empty if there is none.
        body: &'a [u8],
    },
}

/// A request, whichever protocol it came by. Absent options are the backend's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Infer<'a> {
    /// What is asked.
    pub input: Input<'a>,
    /// The model's name.
    pub model: Option<&'a str>,
    /// Tokens of the answer at most, not 0.
    pub max_tokens: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Sample from so many most likely tokens.
    pub top_k: Option<u32>,
    /// Sample from the most likely tokens that add up to this probability.
    pub top_p: Option<f32>,
    /// Sample from tokens at least this likely, relative to the most likely one.
    pub min_p: Option<f32>,
    /// Penalty of repeated tokens; 1 is none.
    pub repeat_penalty: Option<f32>,
    /// Seed of the sampling.
    pub seed: Option<u64>,
    /// Texts that end the answer.
    pub stop: Vec<&'a str>,
    /// From receipt to DONE, in milliseconds.
    pub deadline_ms: Option<u32>,
    /// Requests of one session go to one backend.
    pub session: Option<&'a [u8]>,
    /// W3C trace context.
    pub traceparent: Option<&'a str>,
    /// 0 goes first.
    pub priority: u8,
    /// A JSON object that is merged into the backend's request.
    pub extra: Option<&'a str>,
}

/// The priority of a request that names none.
pub const PRIORITY_DEFAULT: u8 = 128;

impl<'a> Infer<'a> {
    /// A request with every option absent.
    pub fn new(input: Input<'a>) -> Infer<'a> {
        Infer {
            input,
            model: None,
            max_tokens: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repeat_penalty: None,
            seed: None,
            stop: Vec::new(),
            deadline_ms: None,
            session: None,
            traceparent: None,
            priority: PRIORITY_DEFAULT,
            extra: None,
        }
    }

    /// From a payload. A path call without a body is a GET.
    ///
    /// # Errors
    /// A field is malformed, stands twice, is critical and unknown, or there is not exactly one
    /// input.
    pub fn decode(payload: &'a [u8]) -> Result<Infer<'a>, FieldError> {
        let mut infer = Infer::new(Input::Prompt(""));
        let (mut prompt, mut messages, mut path, mut body) = (None, None, None, None);
        let mut priority = None;
        for field in Fields::new(payload) {
            let (tag, value) = field?;
            match tag {
                1 => once("prompt", &mut prompt, text("prompt", value)?)?,
                2 => once("messages", &mut messages, text("messages", value)?)?,
                17 => once("path", &mut path, text("path", value)?)?,
                18 => once("body", &mut body, value)?,
                15 => match value {
                    [value] => once("priority", &mut priority, *value)?,
                    _ => return Err(FieldError::Invalid("priority", "1 byte")),
                },
                _ => infer.option(tag, value)?,
            }
        }
        infer.priority = priority.unwrap_or(PRIORITY_DEFAULT);
        infer.input = match (prompt, messages, path, body) {
            (Some(prompt), None, None, None) => Input::Prompt(prompt),
            (None, Some(messages), None, None) => Input::Messages(messages),
            (None, None, Some(path), body) => {
                if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b == 0x7f) {
                    return Err(FieldError::Invalid("path", "an HTTP path"));
                }
                let method = if body.is_some() { "POST" } else { "GET" };
                Input::Api { method, path, body: body.unwrap_or_default() }
            }
            (None, None, None, Some(_)) => {
                return Err(FieldError::Shape("body stands without path"));
            }
            _ => {
                return Err(FieldError::Shape(
                    "exactly one of prompt, messages and path must stand",
                ));
            }
        };
        Ok(infer)
    }

    fn option(&mut self, tag: u16, value: &'a [u8]) -> Result<(), FieldError> {
        match tag {
            3 => once("model", &mut self.model, text("model", value)?),
            4 => match number("max_tokens", value)? {
                0 => Err(FieldError::Invalid("max_tokens", "1 or more")),
                count => once("max_tokens", &mut self.max_tokens, count),
            },
            5 => once("temperature", &mut self.temperature, float("temperature", value)?),
            6 => once("top_k", &mut self.top_k, number("top_k", value)?),
            7 => once("top_p", &mut self.top_p, float("top_p", value)?),
            8 => once("min_p", &mut self.min_p, float("min_p", value)?),
            9 => {
                let penalty = float("repeat_penalty", value)?;
                once("repeat_penalty", &mut self.repeat_penalty, penalty)
            }
            10 => {
                let bytes = value.try_into().map_err(|_| FieldError::Invalid("seed", "8 bytes"))?;
                once("seed", &mut self.seed, u64::from_le_bytes(bytes))
            }
            11 if self.stop.len() == STOP_WORDS_MAX => {
                Err(FieldError::Invalid("stop", "given 64 times at most"))
            }
            11 if value.is_empty() => Err(FieldError::Invalid("stop", "a text")),
            11 => {
                self.stop.push(text("stop", value)?);
                Ok(())
            }
            12 => once("deadline_ms", &mut self.deadline_ms, number("deadline_ms", value)?),
            13 => once("session", &mut self.session, value),
            14 => once("traceparent", &mut self.traceparent, text("traceparent", value)?),
            16 => once("extra", &mut self.extra, text("extra", value)?),
            tag => skip(tag),
        }
    }

    /// Appends its fields. The method of a path call is not sent: one with a body is a POST.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self.input {
            Input::Prompt(prompt) => encode_field(out, 1, prompt.as_bytes()),
            Input::Messages(messages) => encode_field(out, 2, messages.as_bytes()),
            Input::Api { method, path, body } => {
                encode_field(out, 17, path.as_bytes());
                if method == "POST" {
                    encode_field(out, 18, body);
                }
            }
        }
        let mut number = |tag, value: Option<u32>| {
            if let Some(value) = value {
                encode_field(out, tag, &value.to_le_bytes());
            }
        };
        number(4, self.max_tokens);
        number(5, self.temperature.map(f32::to_bits));
        number(6, self.top_k);
        number(7, self.top_p.map(f32::to_bits));
        number(8, self.min_p.map(f32::to_bits));
        number(9, self.repeat_penalty.map(f32::to_bits));
        number(12, self.deadline_ms);
        let mut bytes = |tag, value: Option<&[u8]>| {
            if let Some(value) = value {
                encode_field(out, tag, value);
            }
        };
        bytes(3, self.model.map(str::as_bytes));
        bytes(10, self.seed.map(u64::to_le_bytes).as_ref().map(|b| &b[..]));
        bytes(13, self.session);
        bytes(14, self.traceparent.map(str::as_bytes));
        bytes(15, (self.priority != PRIORITY_DEFAULT).then_some(&[self.priority][..]));
        bytes(16, self.extra.map(str::as_bytes));
        for stop in &self.stop {
            encode_field(out, 11, stop.as_bytes());
        }
    }
}

fn once<T>(name: &'static str, slot: &mut Option<T>, value: T) -> Result<(), FieldError> {
    if slot.replace(value).is_some() { Err(FieldError::Repeated(name)) } else { Ok(()) }
}

fn skip(tag: u16) -> Result<(), FieldError> {
    if tag >= CRITICAL { Err(FieldError::Critical(tag)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(list: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        list.iter().for_each(|(tag, value)| encode_field(&mut out, *tag, value));
        out
    }

    #[test]
    fn faults_are_named() {
        let cases: [(&[(u16, &[u8])], FieldError); 12] = [
            (&[], FieldError::Shape("exactly one of prompt, messages and path must stand")),
            (
                &[(1, b"a"), (2, b"[]")],
                FieldError::Shape("exactly one of prompt, messages and path must stand"),
            ),
            (&[(18, b"{}")], FieldError::Shape("body stands without path")),
            (&[(1, b"a"), (1, b"b")], FieldError::Repeated("prompt")),
            (&[(1, b"\xff")], FieldError::Invalid("prompt", "UTF-8")),
            (&[(17, b"v1")], FieldError::Invalid("path", "an HTTP path")),
            (&[(1, b""), (4, b"\0\0\0\0")], FieldError::Invalid("max_tokens", "1 or more")),
            (&[(1, b""), (4, b"\0")], FieldError::Invalid("max_tokens", "4 bytes")),
            (&[(1, b""), (5, &[0, 0, 0xc0, 0x7f])], FieldError::Invalid("temperature", "finite")),
            (&[(1, b""), (10, b"\0\0\0\0")], FieldError::Invalid("seed", "8 bytes")),
            (&[(1, b""), (15, b"")], FieldError::Invalid("priority", "1 byte")),
            (&[(1, b""), (0x8001, b"")], FieldError::Critical(0x8001)),
        ];
        for (list, error) in cases {
            let payload = fields(list);
            assert_eq!(Infer::decode(&payload), Err(error), "{list:?}");
        }
        let mut cut = fields(&[(1, b"text")]);
        cut.pop();
        assert_eq!(Infer::decode(&cut), Err(FieldError::Truncated));
        assert_eq!(Infer::decode(&fields(&[(1, b"a"), (0x7fff, b"?")])).unwrap().priority, 128);
        let hello = fields(&[(3, &255u32.to_le_bytes())]);
        assert_eq!(Hello::decode(&hello), Err(FieldError::Invalid("max_payload", "256 or more")));
    }

    proptest! {
        #[test]
        fn infer_round_trips(
            text in ".{0,40}", kind in 0..3u8, body in proptest::collection::vec(any::<u8>(), 1..20),
            numbers in proptest::option::of((1u32.., any::<u32>(), any::<u64>(), any::<u32>())),
            floats in proptest::option::of((0f32..2., 0f32..1., 0f32..1., 0f32..3.)),
            stop in proptest::collection::vec(".{1,8}", 0..4), priority: u8,
        ) {
            let input = match kind {
                0 => Input::Prompt(&text),
                1 => Input::Messages(&text),
                _ => Input::Api { method: "POST", path: "/v1/embeddings", body: &body },
            };
            let infer = Infer {
                model: Some(&text),
                max_tokens: numbers.map(|n| n.0),
                top_k: numbers.map(|n| n.1),
                seed: numbers.map(|n| n.2),
                deadline_ms: numbers.map(|n| n.3),
                temperature: floats.map(|f| f.0),
                top_p: floats.map(|f| f.1),
                min_p: floats.map(|f| f.2),
                repeat_penalty: floats.map(|f| f.3),
                stop: stop.iter().map(String::as_str).collect(),
                session: Some(&body),
                traceparent: Some(&text),
                priority,
                extra: Some("{}"),
                ..Infer::new(input)
            };
            let mut payload = Vec::new();
            infer.encode(&mut payload);
            prop_assert_eq!(Infer::decode(&payload), Ok(infer));
        }

        #[test]
        fn anything_decodes_or_is_refused(
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = Infer::decode(&payload);
            let _ = Hello::decode(&payload);
        }
    }
}
