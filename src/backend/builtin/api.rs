//! The paths of the built-in backend: those of a llama-server that clients use.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, Shape};
use super::options::Fields;
use super::sequence::Sequence;
use super::{Builtin, Job, text};
use crate::backend::Failure;
use crate::prng;
use crate::wire::frame::ErrorCode;
use crate::wire::openai::StreamOptions;

/// Dimensions of an embedding whose request says nothing.
const DIMENSIONS_DEFAULT: usize = 64;
/// The most that a request may ask for.
const DIMENSIONS_MAX: usize = 4096;
/// Sequences of one request.
const SEQUENCES_MAX: usize = 256;

#[derive(Deserialize)]
struct Request {
    prompt: Option<Value>,
    messages: Option<Value>,
    input: Option<Value>,
    content: Option<Value>,
    tokens: Option<Vec<u32>>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    n_predict: Option<i64>,
    n: Option<usize>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    stop: Option<OneOrMany>,
    seed: Option<i64>,
    temperature: Option<f64>,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
    with_pieces: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// The job that answers a path call.
pub fn start(builtin: &Builtin, method: &str, path: &str, body: &[u8]) -> Result<Job, Failure> {
    let path = path.split('?').next().unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let config = &builtin.config;
    let get = match path {
        "/props" => json!({
            "default_generation_settings": { "n_ctx": 4096 },
            "total_slots": if config.slots == 0 { 64 } else { config.slots },
            "model_alias": config.model, "model_path": "built-in",
            "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            "build_info": concat!("cnse-", env!("CARGO_PKG_VERSION")),
            "gpu": config.language.as_ref().and_then(|l| l.device.usage()).map(|c| c.json()),
        }),
        "/v1/models" | "/models" => {
            let size = match &config.language {
                Some(language) => language.model.vocabulary().size(),
                None => text::VOCABULARY as usize,
            };
            let meta = json!({ "n_vocab": size, "n_ctx": 4096, "n_ctx_train": 4096 });
            let model = json!({
                "id": config.model, "object": "model", "created": 0, "owned_by": "cnse",
                "meta": meta,
            });
            json!({ "object": "list", "data": [model] })
        }
        "/slots" => {
            let slot = |id: u32| json!({ "id": id, "n_ctx": 4096, "is_processing": false });
            (0..config.slots).map(slot).collect()
        }
        _ => Value::Null,
    };
    match (get.is_null(), method) {
        (false, "GET" | "HEAD") => Ok(whole(builtin, &get)),
        (true, "POST") => post(builtin, path, body),
        _ => Err(not_found(method, path)),
    }
}

fn post(builtin: &Builtin, path: &str, body: &[u8]) -> Result<Job, Failure> {
    let shape = match path {
        "/completion" | "/completions" => Shape::Native,
        "/v1/chat/completions" | "/chat/completions" => Shape::Chat,
        "/v1/completions" => Shape::Completions,
        "/tokenize" | "/detokenize" | "/apply-template" | "/v1/embeddings" | "/embeddings"
        | "/embedding" => Shape::Whole,
        _ => return Err(not_found("POST", path)),
    };
    let request: Request = serde_json::from_slice(body)
        .map_err(|error| bad(format!("the body is not a JSON request: {error}")))?;
    if shape != Shape::Whole {
        let fields = match builtin.sampler {
            Some(_) => Fields::of(body)?,
            None => Fields::default(),
        };
        return generate(builtin, shape, request, &fields);
    }
    let answer = match path {
        "/tokenize" => tokenize(builtin, &request)?,
        "/detokenize" => {
            let mut bytes = Vec::new();
            for &token in request.tokens.iter().flatten() {
                if !detokenize(builtin, token, &mut bytes) {
                    return Err(bad(format!("token {token} is not in the vocabulary")));
                }
            }
            json!({ "content": String::from_utf8_lossy(&bytes) })
        }
        "/apply-template" => {
            let messages = request.messages.unwrap_or_default();
            json!({ "prompt": render(messages.to_string().as_bytes())? })
        }
        _ => embed(builtin, &request, path != "/embedding")?,
    };
    Ok(whole(builtin, &answer))
}

fn generate(
    builtin: &Builtin,
    shape: Shape,
    request: Request,
    fields: &Fields,
) -> Result<Job, Failure> {
    let prompts = match shape {
        Shape::Chat => {
            let messages = request.messages.ok_or_else(|| bad("messages is missing"))?;
            vec![render(messages.to_string().as_bytes())?]
        }
        _ => texts(builtin, &request.prompt.ok_or_else(|| bad("prompt is missing"))?, "prompt")?,
    };
    let choices = request.n.unwrap_or(1);
    let count = prompts.len().saturating_mul(choices);
    if count == 0 || count > SEQUENCES_MAX {
        return Err(bad(format!("{count} sequences; 1 to {SEQUENCES_MAX} can be asked for")));
    }
    let asked = request.max_completion_tokens.or(request.max_tokens).or(request.n_predict);
    let asked = match asked {
        Some(count) if count >= 0 => u32::try_from(count).ok(),
        // -1 is llama-server's "until the end", and this text has none.
        Some(_) => Some(4096),
        None => None,
    };
    let max_tokens = builtin.max_tokens(asked);
    let stop: Vec<String> = match request.stop {
        Some(OneOrMany::One(word)) => vec![word],
        Some(OneOrMany::Many(words)) => words,
        None => Vec::new(),
    };
    if stop.iter().any(String::is_empty) {
        return Err(bad("stop holds an empty text"));
    }
    // The text does not depend on it, but a client that sends nonsense should learn of it here too.
    if request.temperature.is_some_and(|temperature| temperature < 0.0) {
        return Err(bad("temperature is below 0"));
    }
    let seed = request.seed.map_or(builtin.config.seed, |seed| seed as u64);
    let mut sequences = Vec::with_capacity(count);
    for prompt in &prompts {
        for choice in 0..choices as u64 {
            let source = builtin.source(prompt, seed, choice, fields)?;
            sequences.push(Sequence::new(source, max_tokens, stop.clone()));
        }
    }
    let prompt_tokens = prompts.iter().map(|prompt| builtin.count_tokens(prompt)).sum();
    let include_usage = request.stream_options.and_then(|options| options.include_usage);
    let id = prng::hash(builtin.jobs, &seed.to_le_bytes());
    let stream = request.stream.unwrap_or(false);
    let mut answer = Answer::new(shape, stream, include_usage.unwrap_or(false), id);
    answer.set_list(count > 1);
    Ok(builtin.job(sequences, answer, prompt_tokens, seed))
}

/// A chat as the prompt that the template makes of it.
pub fn render(messages: &[u8]) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Message {
        role: String,
        content: Option<Value>,
    }
    let messages: Vec<Message> = serde_json::from_slice(messages)
        .map_err(|error| bad(format!("messages is not a list of messages: {error}")))?;
    if messages.is_empty() {
        return Err(bad("messages is empty"));
    }
    let mut prompt = String::new();
    for Message { role, content } in messages {
        prompt.push_str(&role);
        prompt.push_str(": ");
        match content {
            Some(Value::String(text)) => prompt.push_str(&text),
            Some(Value::Array(parts)) => {
                parts
                    .iter()
                    .filter_map(|part| part["text"].as_str())
                    .for_each(|t| prompt.push_str(t));
            }
            _ => {}
        }
        prompt.push('\n');
    }
    Ok(prompt)
}

fn detokenize(builtin: &Builtin, token: u32, out: &mut Vec<u8>) -> bool {
    let Some(language) = &builtin.config.language else { return text::detokenize(token, out) };
    let piece = language.model.vocabulary().piece(token);
    out.extend_from_slice(piece.unwrap_or_default());
    piece.is_some()
}

fn tokenize(builtin: &Builtin, request: &Request) -> Result<Value, Failure> {
    let content = request.content.as_ref().and_then(Value::as_str);
    let content = content.ok_or_else(|| bad("content is missing"))?.as_bytes();
    let tokens = match &builtin.config.language {
        Some(language) => language.model.vocabulary().tokenize(content),
        None => text::tokenize(content),
    };
    let piece = |&token: &u32| {
        let mut bytes = Vec::new();
        detokenize(builtin, token, &mut bytes);
        let piece = match String::from_utf8(bytes) {
            Ok(text) => Value::String(text),
            Err(error) => error.into_bytes().into(),
        };
        json!({ "id": token, "piece": piece })
    };
    Ok(if request.with_pieces == Some(true) {
        json!({ "tokens": tokens.iter().map(piece).collect::<Vec<_>>() })
    } else {
        json!({ "tokens": tokens })
    })
}

fn embed(builtin: &Builtin, request: &Request, openai: bool) -> Result<Value, Failure> {
    let input = request.input.as_ref().or(request.content.as_ref());
    let inputs = texts(builtin, input.ok_or_else(|| bad("input is missing"))?, "input")?;
    let dimensions = request.dimensions.unwrap_or(DIMENSIONS_DEFAULT);
    if dimensions == 0 || dimensions > DIMENSIONS_MAX {
        return Err(bad(format!(
            "dimensions is {dimensions}; 1 to {DIMENSIONS_MAX} can be asked for"
        )));
    }
    let base64 = request.encoding_format.as_deref() == Some("base64");
    let mut tokens = 0;
    let mut data = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.iter().enumerate() {
        tokens += builtin.count_tokens(input);
        let vector = text::embed(input.as_bytes(), dimensions);
        let embedding = if !openai {
            json!([vector])
        } else if base64 {
            use base64::Engine as _;
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            base64::engine::general_purpose::STANDARD.encode(bytes).into()
        } else {
            json!(vector)
        };
        data.push(json!({ "index": index, "embedding": embedding, "object": "embedding" }));
    }
    if !openai {
        return Ok(Value::Array(data));
    }
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Ok(json!({ "object": "list", "data": data, "usage": usage }))
}

/// One text or several; lists of tokens are texts too.
fn texts(builtin: &Builtin, value: &Value, name: &str) -> Result<Vec<String>, Failure> {
    let of_tokens = |tokens: &[Value]| {
        let mut bytes = Vec::new();
        let known = tokens.iter().all(|token| {
            let token = token.as_u64().and_then(|token| u32::try_from(token).ok());
            token.is_some_and(|token| detokenize(builtin, token, &mut bytes))
        });
        known.then(|| String::from_utf8_lossy(&bytes).into_owned())
    };
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(tokens) => of_tokens(tokens),
        _ => None,
    };
    let texts = match value {
        Value::Array(items) if items.iter().any(|item| !item.is_number()) => {
            items.iter().map(one).collect::<Option<Vec<_>>>()
        }
        other => one(other).map(|text| vec![text]),
    };
    texts.ok_or_else(|| bad(format!("{name} is no text, no list of tokens, and no list of these")))
}

fn whole(builtin: &Builtin, body: &Value) -> Job {
    builtin.job(Vec::new(), Answer::whole(body), 0, 0)
}

fn bad(message: impl Into<String>) -> Failure {
    Failure::request(ErrorCode::BadRequest, message)
}

fn not_found(method: &str, path: &str) -> Failure {
    Failure::request(ErrorCode::NotFound, format!("the built-in backend has no {method} {path}"))
}
