//! Puts the plain answer of llama-server together from its stream.
//!
//! The last event of each sequence has what its plain answer has, but for the text; the events
//! before it have the text in parts. `choices` of the OpenAI form are put together by their index.

use serde_json::{Map, Value};

use super::Form;
use crate::backend::Failure;
use crate::limits::COLLECTED_BYTES_MAX;
use crate::wire::frame::ErrorCode;

/// Sequences of one request: many more than llama-server has slots. A larger index is a fault of
/// its own.
pub const SEQUENCES_MAX: usize = 4096;

/// A plain answer in the making.
#[derive(Clone, Debug)]
pub struct Collector {
    form: Form,
    /// Of the native form: the answer is a list, one for each prompt.
    list: bool,
    return_tokens: bool,
    parts: Vec<Part>,
    /// Choices for each prompt, which share its tokens.
    choices: u64,
    /// Tokens of the prompts, as often as there are choices, and of the answers. llama-server's own
    /// plain answer counts one sequence only.
    usage: (u64, u64),
    /// The envelope of the OpenAI form.
    envelope: Map<String, Value>,
    bytes: usize,
}

/// One sequence's answer: a choice, or an answer to one prompt of several.
#[derive(Clone, Debug, Default)]
struct Part {
    text: String,
    tokens: Vec<Value>,
    probabilities: Vec<Value>,
    /// Of a chat's message: everything but the text, merged.
    message: Map<String, Value>,
    /// Everything else that its events said, the later over the earlier.
    rest: Map<String, Value>,
}

impl Collector {
    /// For the answer to `request`, which runs `weight` sequences.
    pub fn new(form: Form, request: &Value, weight: u32) -> Collector {
        Collector {
            form,
            list: form == Form::Native && weight > 1,
            return_tokens: request["return_tokens"] == true,
            parts: Vec::new(),
            choices: request["n"].as_u64().unwrap_or(1).max(1),
            usage: (0, 0),
            envelope: Map::new(),
            bytes: 0,
        }
    }

    /// Adds an event.
    ///
    /// # Errors
    /// It is no JSON object, or the answer grows over its bound.
    pub fn event(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.bytes += data.len();
        if self.bytes > COLLECTED_BYTES_MAX {
            let mib = COLLECTED_BYTES_MAX >> 20;
            let message = format!("the answer's events are over {mib} MiB: ask for a stream");
            return Err(Failure::request(ErrorCode::TooLarge, message));
        }
        let Ok(Value::Object(mut event)) = serde_json::from_slice(data) else {
            let message = "llama-server sent an event that is no JSON object";
            return Err(Failure::backend(ErrorCode::Backend, message));
        };
        if self.form == Form::Native {
            self.native(event);
            return Ok(());
        }
        if let Some(Value::Array(choices)) = event.shift_remove("choices") {
            for choice in choices {
                if let Value::Object(choice) = choice {
                    self.choice(choice);
                }
            }
        }
        if let Some(usage) = event.get("usage") {
            self.usage.0 += usage["prompt_tokens"].as_u64().unwrap_or(0);
            self.usage.1 += usage["completion_tokens"].as_u64().unwrap_or(0);
        }
        self.envelope.extend(event);
        Ok(())
    }

    fn native(&mut self, mut event: Map<String, Value>) {
        let part = self.part(event.get("index"));
        if let Some(Value::String(text)) = event.get("content") {
            part.text.push_str(text);
        }
        let predicted = event.get("tokens_predicted").and_then(Value::as_u64);
        if let Some(Value::Array(tokens)) = event.shift_remove("tokens")
            && predicted != Some(0)
        {
            part.tokens.extend(tokens);
        }
        if let Some(Value::Array(probabilities)) = event.shift_remove("completion_probabilities") {
            part.probabilities.extend(probabilities);
        }
        if event.get("stop") == Some(&Value::Bool(true)) {
            part.rest = event;
        }
    }

    fn choice(&mut self, mut choice: Map<String, Value>) {
        let part = self.part(choice.get("index"));
        if let Some(Value::String(text)) = choice.shift_remove("text") {
            part.text.push_str(&text);
        }
        if let Some(Value::Object(mut delta)) = choice.shift_remove("delta") {
            match delta.shift_remove("content") {
                Some(Value::String(text)) => part.text.push_str(&text),
                Some(other) => {
                    part.message.entry("content").or_insert(other);
                }
                None => {}
            }
            merge(&mut part.message, delta);
        }
        if let Some(Value::Object(logprobs)) = choice.shift_remove("logprobs") {
            for (name, value) in logprobs {
                if let Value::Array(items) = value {
                    part.probabilities.extend(items);
                    part.rest.insert("logprobs".to_owned(), name.into());
                }
            }
        }
        part.rest.extend(choice);
    }

    fn part(&mut self, index: Option<&Value>) -> &mut Part {
        let index = index.and_then(Value::as_u64).unwrap_or(0);
        let index = usize::try_from(index).unwrap_or(0).min(SEQUENCES_MAX - 1);
        if self.parts.len() <= index {
            self.parts.resize_with(index + 1, Part::default);
        }
        &mut self.parts[index]
    }

    /// The whole answer's body.
    ///
    /// # Errors
    /// A sequence had no last event.
    pub fn finish(&mut self) -> Result<Vec<u8>, Failure> {
        let parts = std::mem::take(&mut self.parts);
        if parts.is_empty() || parts.iter().any(|part| part.rest.is_empty()) {
            let message = "llama-server ended its stream without a last event";
            return Err(Failure::backend(ErrorCode::Backend, message));
        }
        let answer = match self.form {
            Form::Native => {
                let mut answers: Vec<Value> =
                    parts.into_iter().map(|part| part.native(self.return_tokens)).collect();
                if self.list { Value::Array(answers) } else { answers.swap_remove(0) }
            }
            Form::Chat | Form::Completions => {
                let chat = self.form == Form::Chat;
                let choices = parts.into_iter().map(|part| part.choice(chat)).collect();
                let mut answer = Map::new();
                answer.insert("choices".to_owned(), Value::Array(choices));
                answer.extend(std::mem::take(&mut self.envelope));
                let object = if chat { "chat.completion" } else { "text_completion" };
                answer.insert("object".to_owned(), object.into());
                if let Some(usage) = answer.get_mut("usage") {
                    let (prompt, completion) = (self.usage.0 / self.choices, self.usage.1);
                    usage["prompt_tokens"] = prompt.into();
                    usage["completion_tokens"] = completion.into();
                    usage["total_tokens"] = (prompt + completion).into();
                }
                Value::Object(answer)
            }
        };
        Ok(answer.to_string().into_bytes())
    }
}

impl Part {
    fn native(mut self, return_tokens: bool) -> Value {
        // With `response_fields` the last event has only what was asked for.
        if let Some(content) = self.rest.get_mut("content") {
            *content = self.text.into();
        }
        let tokens = if return_tokens { self.tokens } else { Vec::new() };
        let at = self.rest.keys().position(|name| name == "content").map_or(0, |at| at + 1);
        if self.rest.contains_key("id_slot") || return_tokens {
            self.rest.shift_insert(at, "tokens".to_owned(), Value::Array(tokens));
        }
        if !self.probabilities.is_empty() {
            let probabilities = Value::Array(self.probabilities);
            self.rest.insert("completion_probabilities".to_owned(), probabilities);
        }
        if let Some(Value::Object(settings)) = self.rest.get_mut("generation_settings") {
            settings.insert("stream".to_owned(), false.into());
        }
        Value::Object(self.rest)
    }

    fn choice(mut self, chat: bool) -> Value {
        let logprobs = match self.rest.shift_remove("logprobs") {
            Some(Value::String(name)) => {
                let mut object = Map::new();
                object.insert(name, Value::Array(self.probabilities));
                Some(Value::Object(object))
            }
            _ if chat => None,
            _ => Some(Value::Null),
        };
        let mut choice = Map::new();
        if chat {
            choice.extend(self.rest);
            let mut message = Map::new();
            message.insert("role".to_owned(), "assistant".into());
            let calls = self.message.contains_key("tool_calls");
            let content =
                if self.text.is_empty() && calls { Value::Null } else { self.text.into() };
            message.insert("content".to_owned(), content);
            self.message.shift_remove("content");
            message.extend(self.message);
            for call in
                message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten()
            {
                if let Value::Object(call) = call {
                    call.shift_remove("index");
                }
            }
            choice.insert("message".to_owned(), Value::Object(message));
        } else {
            choice.insert("text".to_owned(), self.text.into());
            choice.extend(self.rest);
        }
        if let Some(logprobs) = logprobs {
            choice.insert("logprobs".to_owned(), logprobs);
        }
        Value::Object(choice)
    }
}

/// Adds a delta to what came before: texts are continued, lists of calls are merged by their index.
fn merge(into: &mut Map<String, Value>, delta: Map<String, Value>) {
    for (name, value) in delta {
        match (into.get_mut(&name), value) {
            (Some(Value::String(text)), Value::String(more)) => {
                // An id, a type or a role is said once, or again in full.
                if *text != more || name == "arguments" || name.ends_with("content") {
                    text.push_str(&more);
                }
            }
            (Some(Value::Object(object)), Value::Object(more)) => merge(object, more),
            (Some(Value::Array(items)), Value::Array(more)) => {
                for item in more {
                    let index = item.get("index").cloned();
                    let same = items
                        .iter_mut()
                        .find(|i| index.is_some() && i.get("index") == index.as_ref());
                    match (same, item) {
                        (Some(Value::Object(object)), Value::Object(item)) => {
                            let item = item.into_iter().filter(|(name, _)| name != "index");
                            merge(object, item.collect());
                        }
                        (_, item) => items.push(item),
                    }
                }
            }
            (_, value) => {
                into.insert(name, value);
            }
        }
    }
}
