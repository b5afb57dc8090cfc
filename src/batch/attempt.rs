//! One task on its way: what is asked, how far it is, and what becomes its result line. It knows no
//! socket.
//!
//! ```text
//! Queued (for a place) -> Sent -> ended: a result
//!    ^                      `---> Waiting (for its next try)
//!    `------------------------------'
//! ```

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Value, json};

use super::binary::Told;
use super::result::Outcome;
use super::row::{self, Key, Row, RowOptions};
use crate::backend::engine::Call;
use crate::backend::pool::Grant;
use crate::backend::{Dialect, Failure, Finished, Output, encode};
use crate::clock::Instant;
use crate::limits::COLLECTED_BYTES_MAX;
use crate::net::Token;
use crate::sched::tasks::Task;
use crate::wire::frame::{Done, ErrorCode, FinishReason};
use crate::wire::message::{Infer, Input};
use crate::wire::openai::{RequestPeek, Usage};

/// What a job's tasks are.
#[derive(Clone, Debug)]
pub enum Work {
    /// Rows of a file; a task's body is its line.
    Rows(Arc<RowOptions>),
    /// One prompt, asked again for each number.
    Prompt(Arc<Prompt>),
}

/// A prompt that is asked many times.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// What is asked.
    pub prompt: String,
    /// As a chat's message.
    pub is_chat: bool,
    /// How.
    pub options: PromptOptions,
    /// What goes into each request's key, besides the prompt.
    pub key: Arc<RowOptions>,
    /// Results have the answer's text.
    pub keep_text: bool,
}

/// Options of a prompt's requests; absent ones are the server's defaults.
#[derive(Clone, Debug, Default)]
pub struct PromptOptions {
    /// The model's name.
    pub model: Option<String>,
    /// Tokens of the answer at most.
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
    pub stop: Vec<String>,
    /// A JSON object that is merged into the server's request.
    pub extra: Option<String>,
}

/// A task on its way.
#[derive(Debug)]
pub struct Attempt {
    /// The task.
    pub task: Task,
    /// Names its row.
    pub key: Key,
    /// The user's name of it.
    pub custom_id: String,
    /// How far it is.
    pub stage: Stage,
    /// Its place at a server.
    pub grant: Option<Grant>,
    /// Sequences that it runs at once.
    pub weight: u32,
    /// Tries that failed and count.
    pub tries: u32,
    /// The server that failed it last.
    pub avoid: Option<usize>,
    /// When it came.
    pub started: Instant,
    /// When it was sent, the last time.
    pub dispatched: Instant,
    /// When it must have ended; known once it was sent.
    pub deadline: Instant,
    /// How long it held places, in microseconds.
    pub busy_us: u64,
    /// How long it waited inside the server that answered.
    pub server_queue_us: u64,
    /// When the first token of this try came.
    pub first: Option<Instant>,
    /// How this try ended, until that is dealt with.
    pub ended: Option<Result<Finished, Failure>>,
    asked: Asked,
    request_id: String,
    status: u16,
    body: Vec<u8>,
    /// Bytes that say when the first token came: not those of a plain answer.
    tells_tokens: bool,
}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for a place.
    Queued,
    /// It waits for its next try, until then.
    Waiting(Instant),
    /// It was sent over HTTP; the engine's token.
    Http(Token),
    /// It was sent over a binary connection, under this id.
    Binary(Token, u64),
}

#[derive(Debug)]
enum Asked {
    Row(Row),
    Prompt(Arc<Prompt>, String),
}

/// A task that cannot be asked at all.
#[derive(Debug)]
pub struct Invalid {
    /// The task.
    pub task: Task,
    /// Names its row.
    pub key: Key,
    /// The user's name of it, if it has one.
    pub custom_id: String,
    /// What is wrong.
    pub message: String,
}

impl Attempt {
    /// A task that was just given.
    ///
    /// # Errors
    /// Its row is bad.
    pub fn new(work: &Work, task: Task, now: Instant) -> Result<Attempt, Box<Invalid>> {
        let (key, custom_id, asked, weight) = match work {
            Work::Rows(options) => {
                let line = row::trim(task.body.as_deref().unwrap_or_default());
                let key = options.key(line);
                match row::parse(line, options) {
                    Ok(row) => {
                        let peek: RequestPeek<'_> =
                            serde_json::from_slice(&row.body).unwrap_or_default();
                        let weight = peek.weight();
                        (key, row.custom_id.clone(), Asked::Row(row), weight)
                    }
                    Err(bad) => {
                        let custom_id = bad.custom_id.unwrap_or_default();
                        let message = bad.message;
                        return Err(Box::new(Invalid { task, key, custom_id, message }));
                    }
                }
            }
            Work::Prompt(prompt) => {
                let key = row::prompt_key(&prompt.key, &prompt.prompt, task.at);
                let message = json!([{ "role": "user", "content": prompt.prompt }]);
                let messages = if prompt.is_chat { message.to_string() } else { String::new() };
                let asked = Asked::Prompt(prompt.clone(), messages);
                (key, row::prompt_custom_id(task.at), asked, 1)
            }
        };
        Ok(Attempt {
            request_id: format!("cnse-{:.16}", key.to_string()),
            task,
            key,
            custom_id,
            stage: Stage::Queued,
            grant: None,
            weight: weight.max(1),
            tries: 0,
            avoid: None,
            started: now,
            dispatched: now,
            deadline: Instant::FAR,
            busy_us: 0,
            server_queue_us: 0,
            first: None,
            ended: None,
            asked,
            status: 200,
            body: Vec::new(),
            tells_tokens: false,
        })
    }

    /// What is asked.
    pub fn infer(&self) -> Infer<'_> {
        match &self.asked {
            Asked::Row(Row { url, body, .. }) => {
                Infer::new(Input::Api { method: "POST", path: url, body })
            }
            Asked::Prompt(prompt, messages) => {
                let (input, o) = (Input::Prompt(&prompt.prompt), &prompt.options);
                Infer {
                    model: o.model.as_deref(),
                    max_tokens: o.max_tokens,
                    temperature: o.temperature,
                    top_k: o.top_k,
                    top_p: o.top_p,
                    min_p: o.min_p,
                    repeat_penalty: o.repeat_penalty,
                    seed: o.seed,
                    stop: o.stop.iter().map(String::as_str).collect(),
                    extra: o.extra.as_deref(),
                    ..Infer::new(if prompt.is_chat { Input::Messages(messages) } else { input })
                }
            }
        }
    }

    /// Bytes of what is asked; a little more with its names.
    pub fn bytes(&self) -> usize {
        match &self.asked {
            Asked::Row(row) => row.url.len() + row.body.len(),
            Asked::Prompt(prompt, messages) => {
                messages.len()
                    + prompt.prompt.len()
                    + prompt.options.extra.as_ref().map_or(0, String::len)
            }
        }
    }

    /// What the engine sends.
    ///
    /// # Errors
    /// The request is one that the server could not take.
    pub fn call(&self, dialect: Dialect) -> Result<Rc<Call>, Failure> {
        let exchange = encode(dialect, &self.infer())?;
        let request_id = self.request_id.clone();
        Ok(Rc::new(Call { exchange, request_id, traceparent: None }))
    }

    /// It is sent now; whatever an earlier try brought is dropped.
    pub fn dispatch(&mut self, now: Instant, grant: Grant) {
        self.grant = Some(grant);
        self.dispatched = now;
        self.server_queue_us = 0;
        (self.first, self.ended, self.status) = (None, None, 200);
        self.body.clear();
        self.tells_tokens = matches!(self.asked, Asked::Prompt(..));
    }

    /// Its try has ended: gives its place back, and counts the time that it held it.
    pub fn end_try(&mut self, now: Instant) -> Option<Grant> {
        let grant = self.grant.take()?;
        let held = now.micros_since(self.dispatched);
        self.busy_us += held.saturating_sub(self.server_queue_us);
        Some(grant)
    }

    /// Takes what a server tells. True: its try has ended.
    pub fn told(&mut self, now: Instant, output: Output<'_>) -> bool {
        match output {
            Output::Progress { .. } => {
                self.first.get_or_insert(now);
            }
            Output::Text { text, tokens } => self.text(now, text.as_bytes(), tokens),
            Output::Head { status, .. } => self.status = status,
            Output::Body { bytes, tokens } => self.text(now, bytes, tokens),
            Output::Moved { call } => self.stage = Stage::Http(Token(call)),
            Output::Account(_) => {}
            Output::Done(finished) => self.end(Ok(finished)),
            Output::Fail(failure) => self.end(Err(failure)),
        }
        self.ended.is_some()
    }

    /// Takes what a gateway tells. True: its try has ended.
    pub(super) fn told_by_gateway(&mut self, now: Instant, told: Told<'_>) -> bool {
        match told {
            Told::Bytes { bytes, tokens } => self.text(now, bytes, tokens),
            Told::Fail(failure) => self.end(Err(failure)),
            Told::Done(reason, done) => {
                self.server_queue_us = done.queue_us;
                let Done { mut prompt_tokens, mut completion_tokens, .. } = done;
                // Of a path call the gateway counts none.
                if completion_tokens == 0 {
                    let usage = self.usage();
                    prompt_tokens = prompt_tokens.max(usage.prompt_tokens);
                    completion_tokens = usage.completion_tokens;
                }
                self.end(Ok(Finished { reason, prompt_tokens, completion_tokens }));
            }
        }
        self.ended.is_some()
    }

    /// Takes text, or a part of an answer's body.
    fn text(&mut self, now: Instant, bytes: &[u8], tokens: u32) {
        if self.tells_tokens && (!bytes.is_empty() || tokens > 0) {
            self.first.get_or_insert(now);
        }
        if self.body.len() + bytes.len() > COLLECTED_BYTES_MAX {
            let message = format!("the answer is longer than {COLLECTED_BYTES_MAX} bytes");
            return self.end(Err(Failure::request(ErrorCode::TooLarge, message)));
        }
        let keeps = match &self.asked {
            Asked::Row(_) => true,
            Asked::Prompt(prompt, _) => prompt.keep_text,
        };
        if keeps {
            self.body.extend_from_slice(bytes);
        }
    }

    /// The first end of a try is its end.
    pub fn end(&mut self, result: Result<Finished, Failure>) {
        self.ended.get_or_insert(result);
    }

    /// Token counts that stand in a plain answer, for whoever was told none.
    fn usage(&self) -> Usage {
        #[derive(Deserialize)]
        struct Answer {
            usage: Option<Usage>,
        }
        let answer = serde_json::from_slice::<Answer>(&self.body).ok();
        answer.and_then(|answer| answer.usage).unwrap_or_default()
    }

    /// Appends the result line of a good end.
    pub fn encode_result(&mut self, out: &mut Vec<u8>, finished: &Finished) {
        let made;
        let body = match &self.asked {
            Asked::Row(_) => self.body.as_slice(),
            Asked::Prompt(prompt, _) => {
                made = self.answer(prompt, finished).to_string();
                made.as_bytes()
            }
        };
        let outcome = Outcome::Response { status: self.status, request_id: &self.request_id, body };
        super::result::encode(out, self.key, &self.custom_id, &outcome);
    }

    /// Appends the result line of a failure: what the server said, if it said anything.
    pub fn encode_failure(&self, out: &mut Vec<u8>, code: &str, failure: &Failure) {
        let made;
        let outcome = match &failure.answer {
            Some(answer) => {
                let body = if answer.body.is_empty() {
                    made = failure.http_body();
                    &made
                } else {
                    &answer.body
                };
                let status = answer.status;
                Outcome::Response { status, request_id: &self.request_id, body }
            }
            None => Outcome::Error { code, message: &failure.message },
        };
        super::result::encode(out, self.key, &self.custom_id, &outcome);
    }

    /// A prompt's answer in the form of OpenAI's API.
    fn answer(&self, prompt: &Prompt, finished: &Finished) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        let reason = match finished.reason {
            FinishReason::Other => Value::Null,
            reason => reason.name().into(),
        };
        let (object, prefix, choice) = if prompt.is_chat {
            let message = json!({ "role": "assistant", "content": text });
            let choice = json!({ "index": 0, "message": message, "finish_reason": reason });
            ("chat.completion", "chatcmpl", choice)
        } else {
            let choice = json!({
                "index": 0, "text": text, "logprobs": null, "finish_reason": reason,
            });
            ("text_completion", "cmpl", choice)
        };
        let Finished { prompt_tokens, completion_tokens, .. } = *finished;
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        json!({
            "id": format!("{prefix}-{}", self.key),
            "object": object,
            "created": created.map_or(0, |since| since.as_secs()),
            "model": prompt.options.model.as_deref().unwrap_or_default(),
            "choices": [choice],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens.saturating_add(completion_tokens),
            },
        })
    }
}

/// A word for what failed, for programs and for the count of errors.
pub fn error_word(failure: &Failure) -> String {
    if let Some(answer) = &failure.answer {
        return format!("http_{}", answer.status);
    }
    match failure.code {
        ErrorCode::Deadline => "timeout",
        ErrorCode::TooLarge => "too_large",
        ErrorCode::BadRequest | ErrorCode::Unsupported => "invalid_request",
        ErrorCode::Unauthenticated => "unauthenticated",
        ErrorCode::Backend => "connection",
        _ => "server_error",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::pool::Ticket;

    fn attempt(url: &str) -> Attempt {
        let row = format!(r#"{{"custom_id":"a","url":"{url}","body":{{"n":2}}}}"#);
        let body = Some(row.into_bytes().into_boxed_slice());
        let work = Work::Rows(Arc::default());
        Attempt::new(&work, Task { body, ..Task::default() }, Instant(1)).unwrap()
    }

    fn grant(server: usize) -> Grant {
        let ticket = Ticket { core: 0, request: Token(1) };
        Grant { ticket, backend: server, weight: 2 }
    }

    #[test]
    fn a_try_leaves_nothing_to_the_next_but_its_time() {
        let mut attempt = attempt("/v1/completions");
        assert_eq!(attempt.weight, 2);
        attempt.dispatch(Instant(1_000_000), grant(0));
        assert!(!attempt.told(Instant(2_000_000), Output::Progress { tokens: 1 }));
        assert_eq!(attempt.first, Some(Instant(2_000_000)));
        let head = Output::Head { status: 201, content_type: "x", stream: false };
        assert!(!attempt.told(Instant(2_000_000), head));
        assert!(!attempt.told(Instant(2_000_000), Output::Body { bytes: b"{\"a\"", tokens: 0 }));
        assert!(attempt.told(Instant(3_000_000), Output::Fail(Failure::unreachable("x"))));
        assert_eq!(attempt.end_try(Instant(3_000_000)).map(|grant| grant.backend), Some(0));
        assert_eq!(attempt.end_try(Instant(9_000_000)), None);

        attempt.dispatch(Instant(5_000_000), grant(1));
        assert_eq!((attempt.first, &attempt.ended), (None, &None));
        attempt.told(Instant(6_000_000), Output::Body { bytes: b"{\"b\":1}", tokens: 3 });
        // When the first token came cannot be told from a plain answer.
        assert_eq!(attempt.first, None);
        let finished =
            Finished { reason: FinishReason::Other, prompt_tokens: 1, completion_tokens: 3 };
        assert!(attempt.told(Instant(7_000_000), Output::Done(finished)));
        attempt.end_try(Instant(7_000_000));
        assert_eq!(attempt.busy_us, 4_000);
        let mut line = Vec::new();
        attempt.encode_result(&mut line, &finished);
        let line: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(line["response"]["status_code"], 200);
        assert_eq!(line["response"]["body"], json!({ "b": 1 }));
    }

    #[test]
    fn what_a_gateway_tells() {
        let mut attempt = attempt("/v1/embeddings");
        attempt.dispatch(Instant(0), grant(0));
        let body = br#"{"usage":{"prompt_tokens":7,"completion_tokens":2}}"#;
        let text = Told::Bytes { bytes: body, tokens: 0 };
        assert!(!attempt.told_by_gateway(Instant(5_000_000), text));
        let done = Done { queue_us: 3_000, ..Done::default() };
        let told = Told::Done(FinishReason::Other, done);
        assert!(attempt.told_by_gateway(Instant(9_000_000), told));
        let finished = attempt.ended.clone().unwrap().unwrap();
        assert_eq!((finished.prompt_tokens, finished.completion_tokens), (7, 2));
        attempt.end_try(Instant(9_000_000));
        // What it waited there it held no slot.
        assert_eq!((attempt.busy_us, attempt.server_queue_us), (6_000, 3_000));
    }

    #[test]
    fn an_answer_without_end_ends() {
        let mut attempt = attempt("/v1/completions");
        attempt.dispatch(Instant(0), grant(0));
        let part = vec![b' '; COLLECTED_BYTES_MAX / 2 + 1];
        assert!(!attempt.told(Instant(1), Output::Body { bytes: &part, tokens: 0 }));
        assert!(attempt.told(Instant(1), Output::Body { bytes: &part, tokens: 0 }));
        let failure = attempt.ended.take().unwrap().unwrap_err();
        assert_eq!(error_word(&failure), "too_large");
    }
}
