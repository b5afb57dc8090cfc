//! HTTP/1.1 messages: heads (split by httparse, judged here after RFC 9112).
//!
//! What another proxy might read differently is refused, so that nothing can be smuggled past one
//! of the two (RFC 9112, sections 2.2, 5.1, 6.1 and 6.3).

use std::fmt;
use std::io::Write;

use crate::limits::{HTTP_BODY_BYTES_MAX, HTTP_HEADERS_MAX};

/// Why bytes are not taken as HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpError {
    /// A head breaks the grammar.
    Syntax(&'static str),
    /// A head is longer than the limit, or has too many fields.
    HeadTooLarge,
    /// A body is longer than the limit.
    BodyTooLarge,
    /// A framing that is not done here.
    TransferEncoding,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// A chunk is malformed.
    Chunk,
    /// The peer closed inside a message.
    Truncated,
}

impl HttpError {
    /// The status with which a server answers it.
    pub fn status(self) -> u16 {
        match self {
            HttpError::BodyTooLarge => 413,
            HttpError::HeadTooLarge => 431,
            HttpError::TransferEncoding => 501,
            HttpError::Version => 505,
            HttpError::Syntax(_) | HttpError::Chunk | HttpError::Truncated => 400,
        }
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HttpError::Syntax(what) => write!(f, "malformed HTTP: {what}"),
            HttpError::HeadTooLarge => f.write_str("the head is over 32 KiB or 64 fields"),
            HttpError::BodyTooLarge => {
                write!(f, "the body is over {} MiB", HTTP_BODY_BYTES_MAX >> 20)
            }
            HttpError::TransferEncoding => f.write_str("a transfer coding other than chunked"),
            HttpError::Version => f.write_str("neither HTTP/1.0 nor HTTP/1.1"),
            HttpError::Chunk => f.write_str("malformed chunk"),
            HttpError::Truncated => f.write_str("the connection closed inside a message"),
        }
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection (responses only).
    UntilClose,
}

/// A request's head: what the gateway looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a str,
    /// The path with its query (origin form), or `*`.
    pub target: &'a str,
    /// HTTP/1.0: no chunks in the answer.
    pub http10: bool,
    /// Whether the connection is to be used again.
    pub keep_alive: bool,
    /// How the body ends.
    pub body: BodyLength,
    /// The client waits for `100 Continue` ahead of its body.
    pub expect_continue: bool,
    /// `Authorization`.
    pub authorization: Option<&'a str>,
    /// `X-Api-Key`.
    pub api_key: Option<&'a str>,
    /// `Content-Type`.
    pub content_type: Option<&'a str>,
    /// `X-Request-Id`.
    pub request_id: Option<&'a str>,
    /// `traceparent`.
    pub traceparent: Option<&'a str>,
    /// `X-Session-Id`.
    pub session: Option<&'a str>,
    /// `X-Priority`.
    pub priority: Option<&'a str>,
    /// `X-Deadline-Ms`.
    pub deadline_ms: Option<&'a str>,
}

/// A response's head: what a client looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead<'a> {
    /// The status.
    pub status: u16,
    /// Whether the connection can be used again.
    pub keep_alive: bool,
    /// How the body ends.
    pub body: BodyLength,
    /// `Content-Type`.
    pub content_type: Option<&'a str>,
    /// `Retry-After`.
    pub retry_after: Option<&'a str>,
}

/// What framing and persistence a head's fields ask for.
#[derive(Default)]
struct Framing {
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

/// Reads a request's head, its blank line included.
///
/// # Errors
/// It breaks the grammar or a limit, or its framing is ambiguous.
pub fn parse_request_head(head: &[u8]) -> Result<RequestHead<'_>, HttpError> {
    let mut fields = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    complete(request.parse(head))?;
    refuse_bare_line_ends(head)?;
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(HttpError::Syntax("no request line"));
    };
    let http10 = version == 0;
    let target = origin_form(method, target)?;
    let mut framing = Framing::default();
    let mut hosts = 0;
    let mut parsed = RequestHead {
        method,
        target,
        http10,
        keep_alive: false,
        body: BodyLength::None,
        expect_continue: false,
        authorization: None,
        api_key: None,
        content_type: None,
        request_id: None,
        traceparent: None,
        session: None,
        priority: None,
        deadline_ms: None,
    };
    for field in request.headers.iter() {
        if framing.read(field)? {
            continue;
        }
        let name = field.name;
        let slot = if name.eq_ignore_ascii_case("authorization") {
            &mut parsed.authorization
        } else if name.eq_ignore_ascii_case("content-type") {
            &mut parsed.content_type
        } else if name.eq_ignore_ascii_case("x-request-id") {
            &mut parsed.request_id
        } else if name.eq_ignore_ascii_case("x-api-key") {
            &mut parsed.api_key
        } else if name.eq_ignore_ascii_case("traceparent") {
            &mut parsed.traceparent
        } else if name.eq_ignore_ascii_case("x-session-id") {
            &mut parsed.session
        } else if name.eq_ignore_ascii_case("x-priority") {
            &mut parsed.priority
        } else if name.eq_ignore_ascii_case("x-deadline-ms") {
            &mut parsed.deadline_ms
        } else {
            if name.eq_ignore_ascii_case("host") {
                hosts += 1;
            } else if name.eq_ignore_ascii_case("expect") {
                parsed.expect_continue = field.value.eq_ignore_ascii_case(b"100-continue");
            }
            continue;
        };
        *slot = Some(value(field)?);
    }
    if hosts > 1 || (hosts == 0 && !http10) {
        return Err(HttpError::Syntax("not exactly one Host field"));
    }
    if framing.chunked && http10 {
        return Err(HttpError::Syntax("chunks in HTTP/1.0"));
    }
    parsed.keep_alive = !framing.close && (!http10 || framing.keep_alive);
    parsed.body = match (framing.chunked, framing.content_length) {
        (true, _) => BodyLength::Chunked,
        (false, None | Some(0)) => BodyLength::None,
        (false, Some(bytes)) if bytes > HTTP_BODY_BYTES_MAX as u64 => {
            return Err(HttpError::BodyTooLarge);
        }
        (false, Some(bytes)) => BodyLength::Length(bytes),
    };
    parsed.expect_continue &= !http10 && parsed.body != BodyLength::None;
    Ok(parsed)
}

/// Reads a response's head, its blank line included. The answer to a HEAD request has no body,
/// whatever it says.
///
/// # Errors
/// It breaks the grammar or a limit, or its framing is ambiguous.
pub fn parse_response_head(
    head: &[u8],
    to_head_request: bool,
) -> Result<ResponseHead<'_>, HttpError> {
    let mut fields = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    complete(response.parse(head))?;
    let (Some(status), Some(version)) = (response.code, response.version) else {
        return Err(HttpError::Syntax("no status line"));
    };
    let mut framing = Framing::default();
    let (mut content_type, mut retry_after) = (None, None);
    for field in response.headers.iter() {
        if framing.read(field)? {
            continue;
        }
        if field.name.eq_ignore_ascii_case("content-type") {
            content_type = Some(value(field)?);
        } else if field.name.eq_ignore_ascii_case("retry-after") {
            retry_after = Some(value(field)?);
        }
    }
    let bodiless = to_head_request || status < 200 || status == 204 || status == 304;
    let body = match (framing.chunked, framing.content_length) {
        _ if bodiless => BodyLength::None,
        (true, _) => BodyLength::Chunked,
        (false, Some(0)) => BodyLength::None,
        (false, Some(bytes)) => BodyLength::Length(bytes),
        (false, None) => BodyLength::UntilClose,
    };
    let keep_alive =
        !framing.close && (version == 1 || framing.keep_alive) && body != BodyLength::UntilClose;
    Ok(ResponseHead { status, keep_alive, body, content_type, retry_after })
}

fn complete(status: httparse::Result<usize>) -> Result<(), HttpError> {
    match status {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        Ok(httparse::Status::Partial) => Err(HttpError::Syntax("the head has no end")),
        Err(httparse::Error::TooManyHeaders) => Err(HttpError::HeadTooLarge),
        Err(httparse::Error::Version) => Err(HttpError::Version),
        Err(httparse::Error::HeaderName) => Err(HttpError::Syntax("a field's name")),
        Err(httparse::Error::HeaderValue) => Err(HttpError::Syntax("a field's value")),
        Err(httparse::Error::NewLine) => Err(HttpError::Syntax("a line's end")),
        Err(_) => Err(HttpError::Syntax("the first line")),
    }
}

/// RFC 9112, section 2.2: a recipient may take a lone LF as a line's end. One that does not would
/// see other lines.
fn refuse_bare_line_ends(head: &[u8]) -> Result<(), HttpError> {
    let bare = |(i, _): &(usize, &u8)| *i == 0 || head[i - 1] != b'\r';
    let found = head.iter().enumerate().filter(|(_, b)| **b == b'\n').find(bare);
    if found.is_some() { Err(HttpError::Syntax("a line ends without CR")) } else { Ok(()) }
}

/// RFC 9112, section 3.2: a server takes the absolute form too.
fn origin_form<'a>(method: &str, target: &'a str) -> Result<&'a str, HttpError> {
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(target);
    }
    let rest = target.strip_prefix("http://").ok_or(HttpError::Syntax("the request's target"))?;
    Ok(rest.find('/').map_or("/", |at| &rest[at..]))
}

fn value<'a>(field: &httparse::Header<'a>) -> Result<&'a str, HttpError> {
    std::str::from_utf8(field.value).map_err(|_| HttpError::Syntax("a field's value is not UTF-8"))
}

impl Framing {
    /// Takes note of a field; false: it is about something else.
    fn read(&mut self, field: &httparse::Header<'_>) -> Result<bool, HttpError> {
        let name = field.name;
        if name.eq_ignore_ascii_case("content-length") {
            let digits = value(field)?;
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(HttpError::Syntax("Content-Length"));
            }
            let bytes = digits.parse().map_err(|_| HttpError::BodyTooLarge)?;
            // RFC 9112, section 6.3: one that stands twice, even with one value, may be refused.
            if self.chunked || self.content_length.replace(bytes).is_some() {
                return Err(HttpError::Syntax("two framings of one body"));
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !field.value.eq_ignore_ascii_case(b"chunked") {
                return Err(HttpError::TransferEncoding);
            }
            if self.content_length.is_some() || std::mem::replace(&mut self.chunked, true) {
                return Err(HttpError::Syntax("two framings of one body"));
            }
        } else if name.eq_ignore_ascii_case("connection") {
            for option in value(field)?.split(',') {
                self.close |= option.trim().eq_ignore_ascii_case("close");
                self.keep_alive |= option.trim().eq_ignore_ascii_case("keep-alive");
            }
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

/// What `encode_request` puts into a head.
#[derive(Clone, Copy, Debug)]
pub struct RequestLine<'a> {
    /// The method.
    pub method: &'a str,
    /// The path with its query.
    pub target: &'a str,
    /// The `Host` field.
    pub host: &'a str,
    /// Further fields. They must hold no CR or LF.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Appends a request. With a body, also an empty one, there is a `Content-Length`.
pub fn encode_request(out: &mut Vec<u8>, line: &RequestLine<'_>, body: Option<&[u8]>) {
    for part in [line.method, " ", line.target, " HTTP/1.1\r\nHost: ", line.host, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    encode_fields(out, line.headers);
    if let Some(body) = body {
        encode_length(out, body.len());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.unwrap_or_default());
}

/// Appends header fields.
pub fn encode_fields(out: &mut Vec<u8>, fields: &[(&str, &str)]) {
    for (name, value) in fields {
        debug_assert!(!value.contains(['\r', '\n']));
        for part in [name, ": ", value, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

/// Appends a `Content-Length`.
pub fn encode_length(out: &mut Vec<u8>, bytes: usize) {
    let written = write!(out, "Content-Length: {bytes}\r\n");
    debug_assert!(written.is_ok(), "a Vec takes every write");
}

/// Appends a status line.
pub fn encode_status(out: &mut Vec<u8>, status: u16) {
    let written = write!(out, "HTTP/1.1 {status} {}\r\n", reason_phrase(status));
    debug_assert!(written.is_ok(), "a Vec takes every write");
}

/// The phrase that goes with a status (RFC 9110, section 15).
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<BodyLength, HttpError> {
        parse_request_head(text.as_bytes()).map(|head| head.body)
    }

    #[test]
    fn a_request_head() {
        let text = "POST http://h/v1/x?y=1 HTTP/1.1\r\nHost: h\r\ncontent-length: 5\r\n\
                    AUTHORIZATION: Bearer k\r\nX-Request-Id: r\r\nExpect: 100-Continue\r\n\r\n";
        let head = parse_request_head(text.as_bytes()).unwrap();
        assert_eq!((head.method, head.target), ("POST", "/v1/x?y=1"));
        assert_eq!((head.body, head.keep_alive), (BodyLength::Length(5), true));
        assert_eq!((head.authorization, head.request_id), (Some("Bearer k"), Some("r")));
        assert!(head.expect_continue && !head.http10);
        let old = parse_request_head(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        assert!(old.http10 && !old.keep_alive && old.body == BodyLength::None);
    }

    #[test]
    fn what_could_be_read_differently_is_refused() {
        let with = |fields: &str| request(&format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n"));
        let syntax = |result: Result<BodyLength, HttpError>| {
            assert!(matches!(result, Err(HttpError::Syntax(_))), "{result:?}");
        };
        assert_eq!(with("Transfer-Encoding: chunked\r\n"), Ok(BodyLength::Chunked));
        syntax(with("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"));
        syntax(with("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"));
        syntax(with("Content-Length: 1\r\nContent-Length: 1\r\n"));
        syntax(with("Content-Length: +1\r\n"));
        syntax(with("Content-Length: 1, 1\r\n"));
        syntax(with("Content-Length : 1\r\n"));
        syntax(with("X: a\r\n b\r\n"));
        syntax(with("X: a\nContent-Length: 1\r\n"));
        syntax(with("Host: other\r\n"));
        syntax(request("GET / HTTP/1.1\r\n\r\n"));
        syntax(request("GET x HTTP/1.1\r\nHost: h\r\n\r\n"));
        syntax(request("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"));
        assert_eq!(with("Transfer-Encoding: gzip, chunked\r\n"), Err(HttpError::TransferEncoding));
        assert_eq!(with("Content-Length: 99999999999\r\n"), Err(HttpError::BodyTooLarge));
        assert_eq!(
            with("Content-Length: 99999999999999999999999\r\n"),
            Err(HttpError::BodyTooLarge)
        );
        assert_eq!(with(&"A: b\r\n".repeat(64)), Err(HttpError::HeadTooLarge));
        assert_eq!(request("GET / HTTP/2.0\r\nHost: h\r\n\r\n"), Err(HttpError::Version));
    }

    #[test]
    fn a_response_head() {
        let head = |text: &str, head| {
            parse_response_head(text.as_bytes(), head).map(|h| (h.body, h.keep_alive))
        };
        let ok = "HTTP/1.1 200 OK\r\n";
        assert_eq!(head(&format!("{ok}\r\n"), false), Ok((BodyLength::UntilClose, false)));
        assert_eq!(
            head(&format!("{ok}Content-Length: 0\r\n\r\n"), false),
            Ok((BodyLength::None, true))
        );
        assert_eq!(
            head(&format!("{ok}Content-Length: 7\r\n\r\n"), true),
            Ok((BodyLength::None, true))
        );
        let close = format!("{ok}Transfer-Encoding: chunked\r\nConnection: x, Close\r\n\r\n");
        assert_eq!(head(&close, false), Ok((BodyLength::Chunked, false)));
        assert_eq!(head("HTTP/1.0 204 No\r\n\r\n", false), Ok((BodyLength::None, false)));
        assert!(head("HTTP/1.1 abc\r\n\r\n", false).is_err());
    }
}
