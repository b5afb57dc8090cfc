//! The shapes in which the built-in backend answers: text for the binary protocol, and
//! llama-server's JSON, whole or as events.

use serde_json::{Value, json};

use super::sampler::{Probabilities, Probability};
use super::sequence::{End, Sequence};
use crate::backend::{Output, Tell};
use crate::clock::Instant;
use crate::wire::openai::DONE_EVENT;

/// What an answer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Text and tokens.
    Text,
    /// A body that is there already, of `/tokenize` and the like.
    Whole,
    /// `/completion`.
    Native,
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// An answer in the making.
#[derive(Debug)]
pub struct Answer {
    shape: Shape,
    stream: bool,
    include_usage: bool,
    /// `/completion` was asked for several prompts.
    list: bool,
    id: u64,
    created: u64,
    model: String,
    /// The whole body, or the text of each sequence for a plain answer.
    body: Vec<u8>,
    texts: Vec<String>,
    /// Of each sequence, for a plain answer; empty where they were not asked for.
    probabilities: Vec<Vec<Value>>,
    ends: Vec<(Option<End>, Value)>,
    began: Instant,
    /// When the last token came.
    latest: Instant,
    first: Instant,
}

impl Answer {
    /// Text for the binary protocol.
    pub fn text() -> Answer {
        Answer::new(Shape::Text, false, false, 0)
    }

    /// A body that is there already.
    pub fn whole(body: &Value) -> Answer {
        let mut answer = Answer::new(Shape::Whole, false, false, 0);
        answer.body = body.to_string().into_bytes();
        answer
    }

    /// Generated text over the API.
    pub fn new(shape: Shape, stream: bool, include_usage: bool, id: u64) -> Answer {
        let is_dated = matches!(shape, Shape::Chat | Shape::Completions);
        let created = if is_dated { unix_seconds() } else { 0 };
        Answer {
            shape,
            stream,
            include_usage,
            list: false,
            id,
            created,
            model: String::new(),
            body: Vec::new(),
            texts: Vec::new(),
            probabilities: Vec::new(),
            ends: Vec::new(),
            began: Instant::default(),
            latest: Instant::default(),
            first: Instant::default(),
        }
    }

    pub fn set_list(&mut self, list: bool) {
        self.list = list;
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn is_streamed(&self) -> bool {
        self.stream
    }

    pub fn begin(&mut self, now: Instant, model: &str, sequences: usize, tell: &mut Tell<'_>) {
        (self.began, self.first, self.latest) = (now, now, now);
        match self.shape {
            Shape::Text => return,
            Shape::Whole => {}
            _ => {
                model.clone_into(&mut self.model);
                self.texts = vec![String::new(); sequences];
                self.probabilities = vec![Vec::new(); sequences];
                self.ends = vec![(None, Value::Null); sequences];
            }
        }
        let content_type =
            if self.stream { "text/event-stream" } else { "application/json; charset=utf-8" };
        tell(Output::Head { status: 200, content_type, stream: self.stream });
        if self.stream && self.shape == Shape::Chat {
            for index in 0..sequences {
                let delta = json!({ "role": "assistant", "content": null });
                let choice = json!({ "finish_reason": null, "index": index, "delta": delta });
                self.event(self.chunk(json!([choice])), 0, tell);
            }
        }
    }

    pub fn piece(
        &mut self,
        index: usize,
        text: &str,
        tokens: u32,
        probabilities: &[Probabilities],
        tell: &mut Tell<'_>,
    ) {
        let listed = || probabilities.iter().map(|one| listed(one, self.shape));
        match self.shape {
            Shape::Text => {
                if !text.is_empty() || tokens > 0 {
                    tell(Output::Text { text, tokens });
                }
            }
            Shape::Whole => {}
            _ if !self.stream => {
                let listed: Vec<Value> = listed().collect();
                self.texts[index].push_str(text);
                self.probabilities[index].extend(listed);
            }
            Shape::Native => {
                let mut event = json!({
                    "index": index, "content": text, "tokens": [], "stop": false,
                    "id_slot": -1, "tokens_predicted": tokens,
                });
                if !probabilities.is_empty() {
                    event["completion_probabilities"] = listed().collect();
                }
                self.event(event, tokens, tell);
            }
            Shape::Chat => {
                let mut choice =
                    json!({ "finish_reason": null, "index": index, "delta": { "content": text } });
                if !probabilities.is_empty() {
                    choice["logprobs"] = json!({ "content": listed().collect::<Value>() });
                }
                self.event(self.chunk(json!([choice])), tokens, tell);
            }
            Shape::Completions => {
                let mut choice = json!({
                    "text": text, "index": index, "logprobs": null, "finish_reason": null,
                });
                if !probabilities.is_empty() {
                    choice["logprobs"] = json!({ "content": listed().collect::<Value>() });
                }
                self.event(self.chunk(json!([choice])), tokens, tell);
            }
        }
    }

    pub fn sequence_end(
        &mut self,
        now: Instant,
        index: usize,
        sequence: &Sequence,
        end: End,
        prompt_tokens: u32,
        tell: &mut Tell<'_>,
    ) {
        self.latest = now;
        match self.shape {
            Shape::Text | Shape::Whole => {}
            Shape::Native => {
                let text = std::mem::take(&mut self.texts[index]);
                let word = if let End::Word(word) = end { sequence.stop_word(word) } else { "" };
                let mut last = json!({
                    "index": index, "content": text, "tokens": [], "id_slot": 0, "stop": true,
                    "model": self.model, "tokens_predicted": sequence.tokens(),
                    "tokens_evaluated": prompt_tokens, "truncated": false,
                    "stop_type": end.stop_type(), "stopping_word": word,
                    "timings": self.timings(prompt_tokens, sequence.tokens()),
                });
                let listed = std::mem::take(&mut self.probabilities[index]);
                if !listed.is_empty() {
                    last["completion_probabilities"] = listed.into();
                }
                if self.stream {
                    self.event(last, 0, tell);
                } else {
                    self.ends[index] = (Some(end), last);
                }
            }
            Shape::Chat | Shape::Completions if self.stream => {
                let choice = if self.shape == Shape::Chat {
                    json!({ "finish_reason": end.reason().name(), "index": index, "delta": {} })
                } else {
                    json!({
                        "text": "", "index": index, "logprobs": null,
                        "finish_reason": end.reason().name(),
                    })
                };
                self.event(self.chunk(json!([choice])), 0, tell);
            }
            Shape::Chat | Shape::Completions => self.ends[index].0 = Some(end),
        }
    }

    pub fn finish(
        &mut self,
        sequences: &[Sequence],
        prompt_tokens: u32,
        completion_tokens: u32,
        tell: &mut Tell<'_>,
    ) {
        // Text needs no JSON, and is what has to be fast.
        if self.shape == Shape::Text {
            return;
        }
        let usage = json!({
            "completion_tokens": completion_tokens, "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens.saturating_add(completion_tokens),
            "prompt_tokens_details": { "cached_tokens": 0 },
        });
        let timings = self.timings(prompt_tokens, completion_tokens);
        match (self.shape, self.stream) {
            (Shape::Text, _) | (Shape::Native, true) => {}
            (Shape::Chat | Shape::Completions, true) => {
                if self.include_usage {
                    let mut last = self.chunk(json!([]));
                    last["usage"] = usage;
                    last["timings"] = timings;
                    self.event(last, 0, tell);
                }
                tell(Output::Body { bytes: DONE_EVENT, tokens: 0 });
            }
            (Shape::Whole, _) => tell(Output::Body { bytes: &self.body, tokens: 0 }),
            (Shape::Native, false) => {
                let mut lasts: Vec<Value> = self.ends.drain(..).map(|(_, last)| last).collect();
                let body = if self.list { Value::Array(lasts) } else { lasts.swap_remove(0) };
                tell(Output::Body {
                    bytes: body.to_string().as_bytes(),
                    tokens: completion_tokens,
                });
            }
            (Shape::Chat | Shape::Completions, false) => {
                let choices = (0..sequences.len()).map(|index| self.choice(index)).collect();
                let mut body = self.chunk(Value::Array(choices));
                let chat = self.shape == Shape::Chat;
                body["object"] = if chat { "chat.completion" } else { "text_completion" }.into();
                body["usage"] = usage;
                body["timings"] = timings;
                tell(Output::Body {
                    bytes: body.to_string().as_bytes(),
                    tokens: completion_tokens,
                });
            }
        }
    }

    fn choice(&self, index: usize) -> Value {
        let reason = self.ends[index].0.map(|end| end.reason().name());
        let (text, listed) = (&self.texts[index], &self.probabilities[index]);
        let mut choice = if self.shape == Shape::Chat {
            let message = json!({ "role": "assistant", "content": text });
            json!({ "finish_reason": reason, "index": index, "message": message })
        } else {
            json!({ "text": text, "index": index, "logprobs": null, "finish_reason": reason })
        };
        if !listed.is_empty() {
            choice["logprobs"] = json!({ "content": listed });
        }
        choice
    }

    /// What every event of the OpenAI form has.
    fn chunk(&self, choices: Value) -> Value {
        let object =
            if self.shape == Shape::Chat { "chat.completion.chunk" } else { "text_completion" };
        json!({
            "choices": choices, "created": self.created, "id": format!("chatcmpl-{:016x}", self.id),
            "model": self.model, "object": object,
        })
    }

    fn timings(&self, prompt_n: u32, predicted_n: u32) -> Value {
        let ms = |from: Instant, to: Instant| to.micros_since(from) as f64 / 1e3;
        let (prompt_ms, predicted_ms) = (ms(self.began, self.first), ms(self.first, self.latest));
        let rate = |n: u32, ms: f64| if ms > 0.0 { f64::from(n) * 1e3 / ms } else { 0.0 };
        json!({
            "cache_n": 0, "prompt_n": prompt_n, "prompt_ms": prompt_ms,
            "prompt_per_second": rate(prompt_n, prompt_ms),
            "predicted_n": predicted_n, "predicted_ms": predicted_ms,
            "predicted_per_second": rate(predicted_n.saturating_sub(1), predicted_ms),
        })
    }

    fn event(&self, json: Value, tokens: u32, tell: &mut Tell<'_>) {
        let bytes = format!("data: {json}\n\n");
        tell(Output::Body { bytes: bytes.as_bytes(), tokens });
    }
}

/// A token's probabilities as llama-server tells them; its own API names the token's number too.
fn listed(probabilities: &Probabilities, shape: Shape) -> Value {
    let one = |of: &Probability| {
        let mut object = json!({
            "token": String::from_utf8_lossy(&of.bytes), "logprob": of.logarithm,
            "bytes": of.bytes,
        });
        if shape == Shape::Native {
            object["id"] = of.token.into();
        }
        object
    };
    let mut object = one(&probabilities.drawn);
    object["top_logprobs"] = probabilities.top.iter().map(one).collect();
    object
}

fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
