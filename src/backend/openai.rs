//! Any server with OpenAI's API: vLLM, TensorRT-LLM, MLX, Ollama, LM Studio and others.
//!
//! A path call goes out and comes back unchanged; its events are looked at only where they may hold
//! an error or the token counts. A prompt or messages are asked for as a stream with usage. Such
//! servers say how many tokens there were at the end only, so that is when tokens are told: chunks
//! are no tokens, and nothing is guessed.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::answer::{self, Intake, Part, finish_reason};
use super::{Exchange, Failure, Finished, Output, Tell, TokenSource};
use crate::wire::frame::{ErrorCode, FinishReason};
use crate::wire::http1::ResponseHead;
use crate::wire::message::{Infer, Input};
use crate::wire::openai::{RequestPeek, Timings, Usage};
use crate::wire::sse::SseEvent;

/// What to send for `infer`.
pub fn encode(infer: &Infer<'_>) -> Result<Exchange, Failure> {
    if let Input::Api { method, path, body } = infer.input {
        return Ok(api(method, path, body));
    }
    let mut json = answer::options(infer, "repetition_penalty")?;
    let (target, messages) = match infer.input {
        Input::Messages(text) => ("/v1/chat/completions", Some(answer::messages(text)?)),
        Input::Prompt(prompt) => {
            json.insert("prompt".to_owned(), prompt.into());
            ("/v1/completions", None)
        }
        Input::Api { .. } => unreachable!("it was answered above"),
    };
    if let Some(max_tokens) = infer.max_tokens {
        json.entry("max_tokens").or_insert(max_tokens.into());
    }
    json.insert("stream_options".to_owned(), serde_json::json!({ "include_usage": true }));
    Ok(Exchange {
        method: "POST".to_owned(),
        target: target.to_owned(),
        content_type: Some("application/json".to_owned()),
        body: answer::body(json, messages),
        reader: super::Reader::OpenAi(Box::new(Reader::new(true))),
        weight: 1,
        streamed: true,
        reusable: true,
    })
}

fn api(method: &str, path: &str, body: &[u8]) -> Exchange {
    // A body that is no JSON is the server's to refuse: what it takes is not known here.
    let peek: RequestPeek<'_> = serde_json::from_slice(body).unwrap_or_default();
    Exchange {
        method: method.to_owned(),
        target: path.to_owned(),
        content_type: (!body.is_empty()).then(|| "application/json".to_owned()),
        weight: if method == "POST" { peek.weight() } else { 0 },
        streamed: peek.stream == Some(true),
        reusable: true,
        body: body.to_vec(),
        reader: super::Reader::OpenAi(Box::new(Reader::new(false))),
    }
}

/// Reads an answer.
#[derive(Clone, Debug)]
pub struct Reader {
    as_text: bool,
    state: Intake,
    usage: Usage,
    timings: Option<Timings>,
    reason: Option<FinishReason>,
    events: u64,
    frame: Frame,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(default, borrow)]
    choices: Vec<Choice<'a>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    timings: Option<Timings>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default, borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    delta: Option<Delta<'a>>,
    #[serde(default, borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(default, borrow)]
    content: Option<Cow<'a, str>>,
    /// What a reasoning model thinks, by llama-server's and most others' name, and by OpenRouter's.
    #[serde(default, borrow, alias = "reasoning")]
    reasoning_content: Option<Cow<'a, str>>,
}

impl Reader {
    fn new(as_text: bool) -> Reader {
        Reader {
            as_text,
            state: Intake::Head,
            usage: Usage::default(),
            timings: None,
            reason: None,
            events: 0,
            frame: Frame::default(),
        }
    }

    pub(super) fn head(&mut self, head: &ResponseHead<'_>, tell: &mut Tell<'_>) {
        self.state = Intake::begin(head);
        if !self.as_text && !matches!(self.state, Intake::Error { .. }) {
            let stream = matches!(self.state, Intake::Events(_));
            let content_type = answer::content_type(head);
            tell(Output::Head { status: head.status, content_type, stream });
        }
    }

    pub(super) fn body(&mut self, bytes: &[u8], tell: &mut Tell<'_>) {
        let mut state = std::mem::replace(&mut self.state, Intake::Over);
        let fed = state.feed(bytes, |part| match part {
            Part::Event(event) => self.event(&event, tell),
            Part::Plain(bytes) => {
                if !self.as_text {
                    tell(Output::Body { bytes, tokens: 0 });
                }
                Ok(())
            }
        });
        match fed {
            Ok(()) => self.state = state,
            Err(failure) => tell(Output::Fail(failure)),
        }
    }

    fn event(&mut self, event: &SseEvent<'_>, tell: &mut Tell<'_>) -> Result<(), Failure> {
        self.events += 1;
        if self.as_text
            && let Some(text) = self.frame.text(event.data)
        {
            if !text.is_empty() {
                tell(Output::Text { text, tokens: 0 });
            }
            return Ok(());
        }
        if self.as_text || may_hold_more(event.data) {
            if !event.data.starts_with(b"{") {
                return self.pass(event, tell);
            }
            let parsed: Event<'_> = serde_json::from_slice(event.data).map_err(|error| {
                let message = format!("the backend sent an event that is not understood: {error}");
                Failure::backend(ErrorCode::Backend, message)
            })?;
            if let Some(error) = parsed.error.filter(|error| error.get() != "null") {
                let code = serde_json::from_str::<Value>(error.get()).ok();
                let code = code.and_then(|error| error["code"].as_u64()).unwrap_or(500);
                return Err(answer::failure(u16::try_from(code).unwrap_or(500), event.data));
            }
            if let Some(usage) = parsed.usage {
                self.usage = usage;
            }
            self.timings = parsed.timings.or(self.timings);
            for choice in &parsed.choices {
                self.reason = choice.finish_reason.as_deref().map(finish_reason).or(self.reason);
                let delta = choice.delta.as_ref();
                let thought = delta.and_then(|delta| delta.reasoning_content.as_deref());
                if self.as_text && thought.is_some_and(|thought| !thought.is_empty()) {
                    tell(Output::Progress { tokens: 0 });
                }
                let content = delta.and_then(|delta| delta.content.as_deref());
                if let Some(text) = content.or(choice.text.as_deref())
                    && self.as_text
                    && !text.is_empty()
                {
                    tell(Output::Text { text, tokens: 0 });
                }
            }
        }
        self.pass(event, tell)
    }

    fn pass(&self, event: &SseEvent<'_>, tell: &mut Tell<'_>) -> Result<(), Failure> {
        if !self.as_text {
            tell(Output::Body { bytes: event.raw, tokens: 0 });
        }
        Ok(())
    }

    pub(super) fn end(&mut self, complete: bool, tell: &mut Tell<'_>) {
        match std::mem::replace(&mut self.state, Intake::Over) {
            Intake::Over => {}
            Intake::Error { status, retry_after_s, body } => {
                tell(Output::Fail(answer::refusal(status, retry_after_s, &body)));
            }
            Intake::Events(splitter) if complete && splitter.is_between_events() => {
                self.done(tell);
            }
            Intake::Plain(tail) if complete => {
                self.usage = answer::usage_in(&tail).unwrap_or_default();
                if self.as_text {
                    let message = "the backend did not answer with a stream";
                    tell(Output::Fail(Failure::backend(ErrorCode::Backend, message)));
                } else {
                    self.done(tell);
                }
            }
            _ => {
                let message = format!("the backend broke off after {} events", self.events);
                tell(Output::Fail(Failure::backend(ErrorCode::Backend, message)));
            }
        }
    }

    fn done(&mut self, tell: &mut Tell<'_>) {
        let Usage { prompt_tokens, completion_tokens, prompt_tokens_details } = self.usage;
        if self.as_text && completion_tokens > 0 {
            tell(Output::Text { text: "", tokens: completion_tokens });
        }
        let reason = self.reason.unwrap_or(FinishReason::Other);
        let reason = if self.as_text { reason } else { FinishReason::Other };
        let cached_tokens = prompt_tokens_details.and_then(|details| details.cached_tokens);
        let source = (completion_tokens > 0).then_some(TokenSource::Usage);
        tell(Output::Account(answer::account(source, cached_tokens, self.timings)));
        tell(Output::Done(Finished { reason, prompt_tokens, completion_tokens }));
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, Intake::Over)
    }
}

/// What stood around the text of the last event that held nothing else. The events of an answer
/// are mostly alike but for their texts, so the next is compared with it instead of being looked
/// through.
#[derive(Clone, Debug, Default)]
struct Frame {
    /// What came ahead of the text, then what came behind it.
    bytes: Vec<u8>,
    ahead: usize,
}

impl Frame {
    /// The text of an event that holds nothing else worth reading, which is what nearly all of a
    /// chat's events are. None: it must be parsed to tell.
    fn text<'d>(&mut self, data: &'d [u8]) -> Option<&'d str> {
        if let Some(text) = self.same(data) {
            return std::str::from_utf8(text).ok();
        }
        let text = only_text(data)?;
        self.bytes.clear();
        self.bytes.extend_from_slice(&data[..text.start]);
        self.bytes.extend_from_slice(&data[text.end..]);
        self.ahead = text.start;
        std::str::from_utf8(&data[text]).ok()
    }

    /// The text, if all around it is as it was. Without a quote or a backslash in it nothing else
    /// can be told from it, so what was found of the last event holds for this one too.
    fn same<'d>(&self, data: &'d [u8]) -> Option<&'d [u8]> {
        let (ahead, behind) = self.bytes.split_at(self.ahead);
        if behind.is_empty() {
            return None;
        }
        let text = data.strip_prefix(ahead)?.strip_suffix(behind)?;
        memchr::memchr2(b'"', b'\\', text).is_none().then_some(text)
    }
}

/// Where the text stands in an event that holds nothing else: `…"delta":{"content":"…"}…`.
///
/// Without a backslash in it, a quote ends every text, so names with their quotes stand outside of
/// texts, and a text is what stands between two quotes.
fn only_text(data: &[u8]) -> Option<Range<usize>> {
    const DELTA: &[u8] = b"\"delta\":{\"content\":\"";
    let names = &*NAMES;
    let at = names.delta_content.find(data)? + DELTA.len();
    let rest = &data[at..];
    let end = memchr::memchr(b'"', rest)?;
    let holds = |name: &Finder<'_>| name.find(data).is_some();
    let more = rest[end + 1..].first() != Some(&b'}')
        || names.delta.find(&rest[end..]).is_some()
        || memchr::memchr(b'\\', data).is_some()
        || names.more.iter().any(holds)
        || !data.ends_with(b"}")
        || memchr::memchr(b' ', data).is_some() && holds(&names.spaced);
    (!more).then_some(at..at + end)
}

/// Whether an event may hold an error or token counts. A token's event says `"usage":null` or
/// nothing of it, and is not worth a parse. Text that looks like it, quoted, costs a parse and does
/// no harm.
fn may_hold_more(data: &[u8]) -> bool {
    NAMES.counts.iter().any(|name| name.find(data).is_some())
}

/// What is looked for in every event. To prepare a search costs five times what it takes to look
/// through an event, so they are prepared once.
struct Names {
    delta_content: Finder<'static>,
    delta: Finder<'static>,
    /// Where one stands there is more than text.
    more: [Finder<'static>; 4],
    /// Where one stands there may be an error or token counts.
    counts: [Finder<'static>; 3],
    /// A space behind a name: the names above are then written otherwise.
    spaced: Finder<'static>,
}

static NAMES: LazyLock<Names> = LazyLock::new(|| Names {
    delta_content: Finder::new("\"delta\":{\"content\":\""),
    delta: Finder::new("\"delta\""),
    more: ["\"finish_reason\":\"", "\"usage\":{", "\"timings\":{", "\"error\""].map(Finder::new),
    counts: ["\"usage\":{", "\"usage\": {", "\"error\""].map(Finder::new),
    spaced: Finder::new("\": "),
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::http1::BodyLength;

    fn head(status: u16, content_type: &'static str) -> ResponseHead<'static> {
        let content_type = Some(content_type);
        ResponseHead {
            status,
            keep_alive: true,
            body: BodyLength::Chunked,
            content_type,
            retry_after: None,
        }
    }

    fn read(infer: &Infer<'_>, head: &ResponseHead<'_>, body: &[u8], split: usize) -> String {
        let mut told = String::new();
        let mut tell = |output: Output<'_>| match output {
            Output::Text { text, tokens } => told += &format!("{text}/{tokens} "),
            Output::Body { bytes, .. } => told += std::str::from_utf8(bytes).unwrap(),
            Output::Head { status, stream, .. } => told += &format!("[{status} {stream}]"),
            Output::Done(done) => told += &format!("{done:?}"),
            Output::Fail(f) => told += &format!("{:?} {}: {}", f.kind, f.code.name(), f.message),
            Output::Moved { .. } | Output::Progress { .. } | Output::Account(_) => {}
        };
        let mut reader = encode(infer).unwrap().reader;
        reader.head(head, &mut tell);
        body.chunks(split).for_each(|part| reader.body(part, &mut tell));
        reader.end(true, &mut tell);
        assert!(reader.is_over());
        told
    }

    const EVENTS: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"a\\n\"},\"finish_reason\":null}],\"usage\":null}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":\"length\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";

    #[test]
    fn a_stream_as_text_and_as_it_is() {
        let text = Infer::new(Input::Messages("[]"));
        let api = Infer::new(Input::Api {
            method: "POST",
            path: "/v1/chat/completions",
            body: b"{\"stream\":true}",
        });
        let head = head(200, "text/event-stream; charset=utf-8");
        for split in [1, 7, 10_000] {
            let told = read(&text, &head, EVENTS.as_bytes(), split);
            assert_eq!(
                told,
                "a\n/0 b/0 /2 Finished { reason: Length, prompt_tokens: 5, completion_tokens: 2 }"
            );
            let told = read(&api, &head, EVENTS.as_bytes(), split);
            let done = "Finished { reason: Other, prompt_tokens: 5, completion_tokens: 2 }";
            assert_eq!(told, format!("[200 true]{EVENTS}{done}"));
        }
        assert!(encode(&api).unwrap().streamed);
        assert_eq!(encode(&api).unwrap().body, b"{\"stream\":true}");
    }

    #[test]
    fn what_is_only_text_is_told_from_what_is_more() {
        let event = |tail: &str| format!("{{\"id\":\"c\",\"choices\":[{{\"index\":0,{tail}");
        let delta = "\"delta\":{\"content\":\" übel\"}";
        for tail in [
            format!("{delta},\"finish_reason\":null}}]}}"),
            format!("{delta}}}],\"usage\":null}}"),
            "\"delta\":{\"content\":\" übel\"},\"logprobs\":null}]}".to_owned(),
        ] {
            let event = event(&tail);
            let text = only_text(event.as_bytes()).map(|text| &event[text]);
            assert_eq!(text, Some(" übel"), "{tail}");
        }
        for tail in [
            "\"delta\":{\"content\":\"a\\n\"}}]}".to_owned(),
            "\"delta\":{\"content\":\"a\",\"reasoning_content\":\"b\"}}]}".to_owned(),
            "\"delta\":{\"role\":\"assistant\",\"content\":\"a\"}}]}".to_owned(),
            format!("{delta},\"finish_reason\":\"stop\"}}]}}"),
            format!("{delta}}}],\"usage\":{{\"prompt_tokens\":1}}}}"),
            format!("{delta}}}],\"timings\":{{\"cache_n\":1}}}}"),
            format!("{delta}}}],\"error\":{{}}}}"),
            format!("{delta}}},{{{delta}}}]}}"),
            format!("{delta}}}], \"usage\": {{\"prompt_tokens\": 1}}}}"),
            delta.to_owned(),
        ] {
            let event = event(&tail);
            let event = event.strip_suffix("\"}").filter(|_| tail == delta).unwrap_or(&event);
            assert_eq!(only_text(event.as_bytes()), None, "{tail}");
        }
    }

    proptest! {
        /// What is compared with the last event is told as if it had been looked through.
        #[test]
        fn a_frame_changes_nothing(
            texts in prop::collection::vec(("[ a-z\"\\\\ü{}]{0,6}", 0..4_usize), 1..20),
        ) {
            let tails = ["", ",\"usage\":null", ",\"error\":{}", ",\"usage\":{\"a\":1}"];
            let mut frame = Frame::default();
            for (text, tail) in texts {
                let tail = tails[tail];
                let event =
                    format!("{{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]{tail}}}");
                let alone = only_text(event.as_bytes()).map(|text| &event[text]);
                prop_assert_eq!(frame.text(event.as_bytes()), alone, "{}", event);
            }
        }
    }

    #[test]
    fn plain_answers_and_failures() {
        let body = b"{\"stream\" : false}";
        let api = Infer::new(Input::Api { method: "POST", path: "/v1/completions", body });
        let answer = b"{\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}";
        let told = read(&api, &head(200, "application/json"), answer, 5);
        assert!(told.ends_with("prompt_tokens: 3, completion_tokens: 4 }"), "{told}");
        let long = [b"{\"x\":\"", "y".repeat(20_000).as_bytes(), b"\",", &answer[1..]].concat();
        let told = read(&api, &head(200, "application/json"), &long, 999);
        assert!(told.ends_with("prompt_tokens: 3, completion_tokens: 4 }"));
        let error = b"{\"error\":{\"message\":\"no\",\"type\":\"x\",\"code\":\"y\"}}";
        assert_eq!(read(&api, &head(400, "application/json"), error, 3), "Request BAD_REQUEST: no");
        let event = b"data: {\"error\":{\"message\":\"oom\",\"code\":500}}\n\ndata: x\n\n";
        let told = read(&api, &head(200, "text/event-stream"), event, 1000);
        assert_eq!(told, "[200 true]Backend BACKEND: oom");
        let cut = read(&api, &head(200, "text/event-stream"), b"data: x\n\ndata: y", 4);
        assert!(cut.ends_with("Backend BACKEND: the backend broke off after 1 events"), "{cut}");
    }
}
