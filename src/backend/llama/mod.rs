//! llama.cpp's llama-server: `/completion`, `/v1/*`, and everything else it has, passed through.
//!
//! What generates text is always asked for as a stream, also for a client that wants a plain
//! answer: llama-server does not notice that a plain request was abandoned while it works. The
//! plain answer is then put together here (`collect`). Tokens are counted by what the server says
//! (`tokens_predicted`, `timings.predicted_n`), never by events: an event can carry several, or a
//! part of one.

mod collect;

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use self::collect::Collector;
use super::answer::{self, Intake, Part, finish_reason};
use super::{Exchange, Failure, Finished, Output, Tell, TokenSource};
use crate::wire::frame::{ErrorCode, FinishReason};
use crate::wire::http1::ResponseHead;
use crate::wire::message::{Infer, Input};
use crate::wire::openai::{RequestPeek, Timings, Usage};
use crate::wire::sse::SseEvent;

/// Which of its two forms an answer that generates text has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `/completion`: `content`, `tokens_predicted`, `stop`.
    Native,
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// What to send for `infer`.
pub fn encode(infer: &Infer<'_>) -> Result<Exchange, Failure> {
    if let Input::Api { method, path, body } = infer.input {
        return api(method, path, body);
    }
    if infer.seed.is_some_and(|seed| seed > u64::from(u32::MAX)) {
        let message = "seed is over 2^32 - 1, the most that llama-server takes";
        return Err(Failure::request(ErrorCode::BadRequest, message));
    }
    let mut json = answer::options(infer, "repeat_penalty")?;
    let (target, form, messages) = match infer.input {
        Input::Prompt(prompt) => {
            json.insert("prompt".to_owned(), prompt.into());
            ("/completion", Form::Native, None)
        }
        Input::Messages(text) => {
            json.insert("timings_per_token".to_owned(), true.into());
            json.insert("stream_options".to_owned(), json!({ "include_usage": true }));
            ("/v1/chat/completions", Form::Chat, Some(answer::messages(text)?))
        }
        Input::Api { .. } => unreachable!("it was answered above"),
    };
    if let Some(max_tokens) = infer.max_tokens {
        let name = if form == Form::Native { "n_predict" } else { "max_tokens" };
        json.entry(name).or_insert(max_tokens.into());
    }
    let reader = Reader::new(Shape::Text, Some(form));
    Ok(exchange("POST", target, answer::body(json, messages), reader, 1, true))
}

fn api(method: &str, target: &str, body: &[u8]) -> Result<Exchange, Failure> {
    let path = target.split('?').next().unwrap_or(target);
    let form = match path {
        "/completion" | "/completions" | "/infill" => Form::Native,
        "/v1/chat/completions" | "/chat/completions" => Form::Chat,
        "/v1/completions" => Form::Completions,
        _ => {
            // These run the model, and so take a slot; the rest of the API answers from memory.
            let takes_slot = method == "POST"
                && ["embedding", "rerank", "/v1/messages", "/v1/responses"]
                    .iter()
                    .any(|name| path.contains(name));
            let reader = Reader::new(Shape::Api, None);
            let weight = u32::from(takes_slot);
            return Ok(exchange(method, target, body.to_vec(), reader, weight, false));
        }
    };
    if method != "POST" {
        let reader = Reader::new(Shape::Api, None);
        return Ok(exchange(method, target, body.to_vec(), reader, 0, false));
    }
    // llama-server answers a body that is no JSON with 500, as if the fault were its own.
    let bad = |error: serde_json::Error| {
        Failure::request(ErrorCode::BadRequest, format!("the body is not a JSON request: {error}"))
    };
    let peek: RequestPeek<'_> = serde_json::from_slice(body).map_err(bad)?;
    let weight = peek.weight();
    if peek.stream == Some(true) {
        let reader = Reader::new(Shape::Api, Some(form));
        return Ok(exchange(method, target, body.to_vec(), reader, weight, true));
    }
    let mut json: Value = serde_json::from_slice(body).map_err(bad)?;
    let collector = Collector::new(form, &json, weight);
    json["stream"] = true.into();
    if form != Form::Native {
        json["stream_options"] = json!({ "include_usage": true });
    }
    let reader = Reader::new(Shape::Collect(Box::new(collector)), Some(form));
    Ok(exchange(method, target, json.to_string().into_bytes(), reader, weight, false))
}

fn exchange(
    method: &str,
    target: &str,
    body: Vec<u8>,
    reader: Reader,
    weight: u32,
    streamed: bool,
) -> Exchange {
    Exchange {
        // After a stream llama-server closes the connection, though its head said that it would be
        // kept.
        reusable: reader.form.is_none(),
        method: method.to_owned(),
        target: target.to_owned(),
        content_type: (!body.is_empty()).then(|| "application/json".to_owned()),
        body,
        reader: super::Reader::Llama(Box::new(reader)),
        weight,
        streamed,
    }
}

/// Reads an answer.
#[derive(Clone, Debug)]
pub struct Reader {
    shape: Shape,
    form: Option<Form>,
    state: Intake,
    counts: Counts,
    events: u64,
}

/// What is made of an answer.
#[derive(Clone, Debug)]
enum Shape {
    /// Text and tokens.
    Text,
    /// The bytes as they come.
    Api,
    /// One plain answer.
    Collect(Box<Collector>),
}

/// What the events have said so far.
#[derive(Clone, Debug, Default)]
struct Counts {
    prompt: u32,
    /// Tokens of all sequences.
    completion: u32,
    /// Tokens of each sequence, by what its own events say.
    each: Vec<u32>,
    /// And by its usage, which stands in an event of its own at the end of each sequence.
    by_usage: u32,
    ended: bool,
    reason: Option<FinishReason>,
    /// The last that were given, and how many prompt tokens usage says were cached.
    timings: Option<Timings>,
    cached: Option<u32>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(default)]
    index: usize,
    #[serde(default, borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(default)]
    stop: bool,
    #[serde(default, borrow)]
    stop_type: Option<&'a str>,
    tokens_predicted: Option<u32>,
    tokens_evaluated: Option<u32>,
    #[serde(default, borrow)]
    choices: Vec<Choice<'a>>,
    usage: Option<Usage>,
    timings: Option<Timings>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: usize,
    #[serde(default, borrow)]
    delta: Option<Delta<'a>>,
    #[serde(default, borrow)]
    finish_reason: Option<&'a str>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(default, borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    reasoning_content: Option<Cow<'a, str>>,
}

impl Reader {
    fn new(shape: Shape, form: Option<Form>) -> Reader {
        Reader { shape, form, state: Intake::Head, counts: Counts::default(), events: 0 }
    }

    pub(super) fn head(&mut self, head: &ResponseHead<'_>, tell: &mut Tell<'_>) {
        self.state = Intake::begin(head);
        if matches!(self.shape, Shape::Api) && !matches!(self.state, Intake::Error { .. }) {
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
                if matches!(self.shape, Shape::Api) {
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
        if !event.data.starts_with(b"{") {
            self.counts.ended |= event.data == b"[DONE]";
            if matches!(self.shape, Shape::Api) {
                tell(Output::Body { bytes: event.raw, tokens: 0 });
            }
            return Ok(());
        }
        let parsed: Event<'_> = serde_json::from_slice(event.data).map_err(|error| {
            let message = format!("llama-server sent an event that is not understood: {error}");
            Failure::backend(ErrorCode::Backend, message)
        })?;
        if let Some(error) = parsed.error {
            let error: Value = serde_json::from_str(error.get()).unwrap_or_default();
            let code = error["code"].as_u64().and_then(|code| u16::try_from(code).ok());
            return Err(answer::failure(code.unwrap_or(500), event.data));
        }
        let tokens = self.count(&parsed);
        match &mut self.shape {
            Shape::Api => tell(Output::Body { bytes: event.raw, tokens }),
            Shape::Collect(collector) => {
                collector.event(event.data)?;
                // Also of an event whose tokens are counted at the end only: text has come.
                tell(Output::Progress { tokens });
            }
            Shape::Text => {
                let delta = parsed.choices.first().and_then(|choice| choice.delta.as_ref());
                let thought = delta.and_then(|delta| delta.reasoning_content.as_deref());
                if thought.is_some_and(|thought| !thought.is_empty()) {
                    tell(Output::Progress { tokens: 0 });
                }
                let text = parsed.content.or(delta.and_then(|delta| delta.content.clone()));
                let text = text.as_deref().unwrap_or_default();
                if !text.is_empty() || tokens > 0 {
                    tell(Output::Text { text, tokens });
                }
            }
        }
        Ok(())
    }

    /// Takes note of an event's counts: the tokens that it brings.
    fn count(&mut self, event: &Event<'_>) -> u32 {
        let counts = &mut self.counts;
        counts.prompt = event.tokens_evaluated.unwrap_or(counts.prompt);
        if let Some(usage) = event.usage {
            counts.prompt = usage.prompt_tokens;
            counts.cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
        }
        counts.timings = event.timings.or(counts.timings);
        if event.stop {
            counts.ended = self.form == Some(Form::Native) || counts.ended;
            counts.reason = event.stop_type.map(|stop_type| match stop_type {
                "eos" | "word" => FinishReason::Stop,
                "limit" => FinishReason::Length,
                _ => FinishReason::Other,
            });
        }
        for choice in &event.choices {
            counts.reason = choice.finish_reason.map(finish_reason).or(counts.reason);
        }
        let so_far = match event.usage {
            Some(usage) => {
                counts.by_usage += usage.completion_tokens;
                counts.by_usage
            }
            None => {
                let by_timings = event.timings.as_ref().and_then(|timings| timings.predicted_n);
                let Some(count) = event.tokens_predicted.or(by_timings) else { return 0 };
                let index = event.choices.first().map_or(event.index, |choice| choice.index);
                let index = index.min(collect::SEQUENCES_MAX - 1);
                if counts.each.len() <= index {
                    counts.each.resize(index + 1, 0);
                }
                counts.each[index] = counts.each[index].max(count);
                counts.each.iter().sum()
            }
        };
        let new = so_far.saturating_sub(counts.completion);
        counts.completion = counts.completion.max(so_far);
        new
    }

    pub(super) fn end(&mut self, complete: bool, tell: &mut Tell<'_>) {
        match std::mem::replace(&mut self.state, Intake::Over) {
            Intake::Over => {}
            Intake::Error { status, retry_after_s, body } => {
                tell(Output::Fail(answer::refusal(status, retry_after_s, &body)));
            }
            Intake::Events(_) if complete && self.counts.ended => self.done(tell),
            Intake::Plain(tail) if complete && matches!(self.shape, Shape::Api) => {
                self.counts.prompt = answer::usage_in(&tail).unwrap_or_default().prompt_tokens;
                self.done(tell);
            }
            Intake::Plain(_) if complete => {
                let message = "llama-server did not answer with a stream";
                tell(Output::Fail(Failure::backend(ErrorCode::Backend, message)));
            }
            _ => {
                let count = self.counts.completion;
                let message = format!("llama-server broke off after {count} tokens");
                tell(Output::Fail(Failure::backend(ErrorCode::Backend, message)));
            }
        }
    }

    fn done(&mut self, tell: &mut Tell<'_>) {
        let Counts { prompt, completion, reason, .. } = &self.counts;
        let (prompt, completion, reason) = (*prompt, *completion, *reason);
        if let Shape::Collect(collector) = &mut self.shape {
            let body = match collector.finish() {
                Ok(body) => body,
                Err(failure) => return tell(Output::Fail(failure)),
            };
            let content_type = "application/json; charset=utf-8";
            tell(Output::Head { status: 200, content_type, stream: false });
            tell(Output::Body { bytes: &body, tokens: completion });
        }
        let is_text = matches!(self.shape, Shape::Text);
        let reason = if is_text { reason } else { None }.unwrap_or(FinishReason::Other);
        let source = (completion > 0).then_some(TokenSource::Timings);
        tell(Output::Account(answer::account(source, self.counts.cached, self.counts.timings)));
        let finished = Finished { reason, prompt_tokens: prompt, completion_tokens: completion };
        tell(Output::Done(finished));
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, Intake::Over)
    }
}

#[cfg(test)]
mod tests;
