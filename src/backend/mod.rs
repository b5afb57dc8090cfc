//! What to say to a backend, and how to read its answer.
//!
//! `encode` turns a request into an `Exchange`: what is sent, and the `Reader` of what comes back.
//! A reader is fed the answer's head, body and end, in any pieces, and tells `Output`s; exactly one
//! of them is the last, `Done` or `Fail`. What it tells has one of two shapes: `Text` for a prompt
//! or messages, the answer's own body for a path call. The engine moves the bytes; the built-in
//! backend has no bytes to move and tells the same outputs.

mod answer;
pub mod builtin;
pub mod discover;
pub mod embeddings;
pub mod engine;
mod llama;
mod openai;
pub mod pool;
pub mod prober;

use crate::wire::frame::{ErrorCode, FinishReason};
use crate::wire::http1::ResponseHead;
use crate::wire::message::Infer;
use crate::wire::openai::error_body;

/// What became known of an answer.
#[derive(Debug)]
pub enum Output<'a> {
    /// Text, and the tokens that end in it (for a prompt or messages).
    Text {
        /// Whole characters.
        text: &'a str,
        /// How many tokens end in it, as the backend says.
        tokens: u32,
    },
    /// The answer begins (for a path call); before any `Body`.
    Head {
        /// Its status, 2xx.
        status: u16,
        /// Its content type.
        content_type: &'a str,
        /// It is to be passed on as it comes, and not collected.
        stream: bool,
    },
    /// So many more tokens of an answer that is collected (for a path call): it has begun, though
    /// there is nothing to pass on yet.
    Progress {
        /// How many.
        tokens: u32,
    },
    /// A part of the answer's body (for a path call).
    Body {
        /// Any bytes; of a stream, whole events.
        bytes: &'a [u8],
        /// How many tokens end in it.
        tokens: u32,
    },
    /// The call goes on over another connection, which has this token.
    Moved {
        /// The engine's new token for it.
        call: u64,
    },
    /// What the answer cost, as far as the backend says; at most once, ahead of `Done`.
    Account(Account),
    /// The good end.
    Done(Finished),
    /// The bad end.
    Fail(Failure),
}

/// Who counted the tokens of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// `usage` of OpenAI's API.
    Usage,
    /// llama-server's `timings`, or its `tokens_predicted`.
    Timings,
}

/// A backend's own figures of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Who counted its tokens; None: nobody.
    pub source: Option<TokenSource>,
    /// Tokens of the prompt that were in the backend's cache.
    pub cached_tokens: Option<u32>,
    /// How long it worked on the prompt; the first token is in it.
    pub prompt_us: Option<u64>,
    /// How long it worked on the tokens after the first.
    pub predicted_us: Option<u64>,
}

/// How an answer ended well. Counts are the backend's, 0 where it gives none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Why the text ended; `Other` for what is no text.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
}

/// Whose fault a failure is, and so what may be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The request's: it would fail anywhere.
    Request,
    /// Nobody's: the backend loads its model; ask again later.
    Loading,
    /// The backend's: another may do better.
    Backend,
    /// There is no connection to the backend: it is taken for down until it answers the health
    /// check.
    Unreachable,
}

/// How an answer ended badly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whose fault it is.
    pub kind: FailureKind,
    /// What a peer is told.
    pub code: ErrorCode,
    /// The status of the answer to an HTTP client.
    pub status: u16,
    /// For a person.
    pub message: String,
    /// The backend's own error body, where that says more; else one is made of code and message.
    pub body: Option<Vec<u8>>,
    /// When to try again.
    pub retry_after_s: Option<u32>,
    /// What the backend itself answered, if it did.
    pub answer: Option<Box<Answer>>,
}

/// A backend's bad answer, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body, the beginning of one that is long.
    pub body: Vec<u8>,
}

impl Failure {
    /// The request's fault.
    pub fn request(code: ErrorCode, message: impl Into<String>) -> Failure {
        Failure::new(FailureKind::Request, code, message.into())
    }

    /// The backend's fault.
    pub fn backend(code: ErrorCode, message: impl Into<String>) -> Failure {
        Failure::new(FailureKind::Backend, code, message.into())
    }

    /// No connection to the backend.
    pub fn unreachable(message: impl Into<String>) -> Failure {
        Failure::new(FailureKind::Unreachable, ErrorCode::Backend, message.into())
    }

    fn new(kind: FailureKind, code: ErrorCode, message: String) -> Failure {
        Failure {
            kind,
            code,
            status: code.http_status(),
            message,
            body: None,
            retry_after_s: None,
            answer: None,
        }
    }

    /// The body for an HTTP client.
    pub fn http_body(&self) -> Vec<u8> {
        self.body.clone().unwrap_or_else(|| error_body(self.code, &self.message))
    }
}

/// Receives outputs.
pub type Tell<'t> = dyn FnMut(Output<'_>) + 't;

/// Which server a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// llama.cpp's llama-server.
    Llama,
    /// Any server with OpenAI's API.
    OpenAi,
}

/// What is sent to a backend, and how its answer is read.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The HTTP method.
    pub method: String,
    /// The path with its query.
    pub target: String,
    /// `Content-Type` of the body.
    pub content_type: Option<String>,
    /// The body.
    pub body: Vec<u8>,
    /// Fresh, to be cloned for each try.
    pub reader: Reader,
    /// Sequences that it runs at once; 0: it takes no slot.
    pub weight: u32,
    /// The client asked for server-sent events.
    pub streamed: bool,
    /// The connection can serve another exchange afterwards.
    pub reusable: bool,
}

/// Reads an answer.
#[derive(Clone, Debug)]
pub enum Reader {
    /// llama-server's, always a stream where text is generated.
    Llama(Box<llama::Reader>),
    /// Another server's.
    OpenAi(Box<openai::Reader>),
}

/// What to send for `infer`.
///
/// # Errors
/// The request is one that the backend could not take.
pub fn encode(dialect: Dialect, infer: &Infer<'_>) -> Result<Exchange, Failure> {
    match dialect {
        Dialect::Llama => llama::encode(infer),
        Dialect::OpenAi => openai::encode(infer),
    }
}

impl Reader {
    /// The answer's head has come.
    pub fn head(&mut self, head: &ResponseHead<'_>, tell: &mut Tell<'_>) {
        match self {
            Reader::Llama(reader) => reader.head(head, tell),
            Reader::OpenAi(reader) => reader.head(head, tell),
        }
    }

    /// A part of its body has come.
    pub fn body(&mut self, bytes: &[u8], tell: &mut Tell<'_>) {
        match self {
            Reader::Llama(reader) => reader.body(bytes, tell),
            Reader::OpenAi(reader) => reader.body(bytes, tell),
        }
    }

    /// It has ended: as it should, or because the connection broke.
    pub fn end(&mut self, complete: bool, tell: &mut Tell<'_>) {
        match self {
            Reader::Llama(reader) => reader.end(complete, tell),
            Reader::OpenAi(reader) => reader.end(complete, tell),
        }
    }

    /// Whether the last output was told.
    pub fn is_over(&self) -> bool {
        match self {
            Reader::Llama(reader) => reader.is_over(),
            Reader::OpenAi(reader) => reader.is_over(),
        }
    }
}
