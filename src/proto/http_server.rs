//! The server's end of an HTTP/1.1 connection: requests are answered one at a time, in order; what
//! a client sends ahead waits, unread, until the answer before it is complete.
//!
//! ```text
//! Head --head--> Body | Chunked --end--> Answering --respond / end--> Head
//!   |                                       `--abort, close--> Closing
//!   `--error--> (the caller answers it) --> Closing
//! ```

use super::Step;
use super::output::OutBuffer;
use crate::limits::HTTP_BODY_BYTES_MAX;
use crate::wire::chunk::{ChunkDecoder, LAST_CHUNK, Piece, encode_chunk};
use crate::wire::http1::{
    BodyLength, HttpError, RequestHead, encode_fields, encode_length, encode_status,
    parse_request_head,
};

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpEvent<'i> {
    /// Its head.
    Request(RequestHead<'i>),
    /// A part of its body.
    Body(&'i [u8]),
    /// It is whole; nothing more is read until it is answered.
    End,
}

/// The server's machine.
#[derive(Debug)]
pub struct HttpServer {
    state: State,
    answer: Answer,
    out: OutBuffer,
    scanned: usize,
    /// The present request's: what its answer must look like.
    http10: bool,
    head_request: bool,
    keep_alive: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    Body(u64),
    Chunked(ChunkDecoder, u64),
    /// The request's end is to be told.
    End,
    Answering,
    /// Nothing is read any more; the connection closes once all is sent.
    Closing,
}

/// How the present answer's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    None,
    Chunked,
    UntilClose,
    Bodiless,
}

impl Default for HttpServer {
    fn default() -> HttpServer {
        HttpServer::new()
    }
}

impl HttpServer {
    /// A connection on which nothing has come.
    pub fn new() -> HttpServer {
        HttpServer {
            state: State::Head,
            answer: Answer::None,
            out: OutBuffer::default(),
            scanned: 0,
            http10: false,
            head_request: false,
            keep_alive: true,
        }
    }

    /// Takes a step at the start of `input`. After an error the caller answers with its status; the
    /// connection closes behind that.
    ///
    /// # Errors
    /// The request is malformed or over a limit.
    pub fn receive<'i>(&mut self, input: &'i [u8]) -> Result<Step<HttpEvent<'i>>, HttpError> {
        let result = self.step(input);
        if result.is_err() {
            self.keep_alive = false;
            self.state = State::Answering;
        }
        result
    }

    fn step<'i>(&mut self, input: &'i [u8]) -> Result<Step<HttpEvent<'i>>, HttpError> {
        match &mut self.state {
            State::Head => self.head(input),
            State::Body(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                if take == 0 {
                    return Ok(Step::NONE);
                }
                *left -= take as u64;
                if *left == 0 {
                    self.state = State::End;
                }
                Ok(Step::event(take, HttpEvent::Body(&input[..take])))
            }
            State::Chunked(decoder, total) => {
                let (consumed, piece) = decoder.decode(input)?;
                match piece {
                    Piece::Data(bytes) => {
                        *total += bytes.len() as u64;
                        if *total > HTTP_BODY_BYTES_MAX as u64 {
                            return Err(HttpError::BodyTooLarge);
                        }
                        Ok(Step::event(consumed, HttpEvent::Body(bytes)))
                    }
                    Piece::None => Ok(Step { consumed, event: None }),
                    Piece::End => {
                        self.state = State::Answering;
                        Ok(Step::event(consumed, HttpEvent::End))
                    }
                }
            }
            State::End => {
                self.state = State::Answering;
                Ok(Step::event(0, HttpEvent::End))
            }
            State::Answering | State::Closing => Ok(Step::NONE),
        }
    }

    fn head<'i>(&mut self, input: &'i [u8]) -> Result<Step<HttpEvent<'i>>, HttpError> {
        // RFC 9112, section 2.2: an empty line ahead of a request is to be ignored.
        if input.starts_with(b"\r\n") {
            self.scanned = 0;
            return Ok(Step { consumed: 2, event: None });
        }
        let Some(len) = super::head_end(input, &mut self.scanned)? else { return Ok(Step::NONE) };
        let head = parse_request_head(&input[..len])?;
        self.http10 = head.http10;
        self.head_request = head.method == "HEAD";
        self.keep_alive &= head.keep_alive;
        self.state = match head.body {
            BodyLength::Length(bytes) => State::Body(bytes),
            BodyLength::Chunked => State::Chunked(ChunkDecoder::new(), 0),
            BodyLength::None | BodyLength::UntilClose => State::End,
        };
        if head.expect_continue && input.len() == len {
            self.out.tail().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        Ok(Step::event(len, HttpEvent::Request(head)))
    }

    /// Answers with a whole body. Before the request is whole, this ends the connection as well:
    /// the rest of the request would be taken for the next.
    pub fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        self.begin(status, headers);
        let out = self.out.tail();
        if status != 204 && status != 304 {
            encode_length(out, body.len());
        }
        out.extend_from_slice(b"\r\n");
        if !self.head_request {
            out.extend_from_slice(body);
        }
        self.complete();
    }

    /// Begins an answer whose body comes in parts: in chunks, or for HTTP/1.0 until the connection
    /// closes.
    pub fn respond_stream(&mut self, status: u16, headers: &[(&str, &str)]) {
        if self.http10 {
            self.keep_alive = false;
        }
        self.begin(status, headers);
        self.answer = match (self.head_request, self.http10) {
            (true, _) => Answer::Bodiless,
            (false, true) => Answer::UntilClose,
            (false, false) => Answer::Chunked,
        };
        let framing: &[u8] = match self.answer {
            Answer::Chunked => b"Transfer-Encoding: chunked\r\n\r\n",
            _ => b"\r\n",
        };
        self.out.tail().extend_from_slice(framing);
    }

    /// Adds to the body of an answer that was begun.
    pub fn body(&mut self, bytes: &[u8]) {
        match self.answer {
            Answer::Chunked => encode_chunk(self.out.tail(), bytes),
            Answer::UntilClose => self.out.tail().extend_from_slice(bytes),
            Answer::Bodiless | Answer::None => {}
        }
    }

    /// Ends an answer that was begun.
    pub fn end(&mut self) {
        if self.answer == Answer::Chunked {
            self.out.tail().extend_from_slice(LAST_CHUNK);
        }
        self.complete();
    }

    /// Ends an answer so that its reader sees that it is not whole: without the last chunk, and the
    /// connection closes.
    pub fn abort(&mut self) {
        self.answer = Answer::None;
        self.state = State::Closing;
    }

    /// Makes the present answer, or the next, the last.
    pub fn close_after(&mut self) {
        self.keep_alive = false;
        if matches!(self.state, State::Head) && self.scanned == 0 {
            self.state = State::Closing;
        }
    }

    /// Whether the connection is to be closed once all is sent.
    pub fn wants_close(&self) -> bool {
        matches!(self.state, State::Closing)
    }

    /// Whether a request is whole and its answer is not.
    pub fn is_answering(&self) -> bool {
        matches!(self.state, State::Answering)
    }

    /// Whether an answer's head is out and its body is not complete.
    pub fn is_streaming(&self) -> bool {
        self.answer != Answer::None
    }

    /// Whether a part of a request has come, and the rest has not.
    pub fn is_reading(&self) -> bool {
        match self.state {
            State::Head => self.scanned > 0,
            State::Body(_) | State::Chunked(..) | State::End => true,
            State::Answering | State::Closing => false,
        }
    }

    /// What the socket should write.
    pub fn pending(&self) -> &[u8] {
        self.out.pending()
    }

    /// Notes what the socket has taken.
    pub fn sent(&mut self, count: usize) {
        self.out.advance(count);
    }

    fn begin(&mut self, status: u16, headers: &[(&str, &str)]) {
        debug_assert!(self.answer == Answer::None, "one answer at a time");
        if !matches!(self.state, State::Answering) {
            self.keep_alive = false;
        }
        let out = self.out.tail();
        encode_status(out, status);
        encode_fields(out, headers);
        if !self.keep_alive {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if self.http10 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
    }

    fn complete(&mut self) {
        self.answer = Answer::None;
        self.state = if self.keep_alive { State::Head } else { State::Closing };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `parts` to a server that answers each request with its own body; the requests, and all
    /// that was sent.
    fn run(parts: &[&[u8]]) -> Result<(Vec<String>, String), HttpError> {
        let (mut server, mut input, mut requests) = (HttpServer::new(), Vec::new(), Vec::new());
        let (mut target, mut body) = (String::new(), Vec::new());
        for part in parts {
            input.extend_from_slice(part);
            loop {
                let step = server.receive(&input)?;
                let (used, stuck) = (step.consumed, step.is_stuck());
                match step.event {
                    Some(HttpEvent::Request(head)) => target = head.target.to_owned(),
                    Some(HttpEvent::Body(bytes)) => body.extend_from_slice(bytes),
                    Some(HttpEvent::End) => {
                        let text = String::from_utf8(std::mem::take(&mut body)).unwrap();
                        server.respond(200, &[], text.as_bytes());
                        requests.push(format!("{target} {text}"));
                    }
                    None => {}
                }
                input.drain(..used);
                if stuck {
                    break;
                }
            }
        }
        Ok((requests, String::from_utf8(server.pending().to_vec()).unwrap()))
    }

    #[test]
    fn requests_in_a_row_in_any_split() {
        let bytes = b"\r\n\
            POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nxy\
            GET /b HTTP/1.1\r\nHost: h\r\n\r\n\
            POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n\r\n\
            GET /d HTTP/1.0\r\n\r\nGET /e HTTP/1.1\r\nHost: h\r\n\r\n";
        let whole = run(&[bytes]).unwrap();
        assert_eq!(whole.0, ["/a xy", "/b ", "/c z", "/d "], "nothing behind the one that closes");
        let answers = whole.1;
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 4);
        assert!(answers.ends_with("Connection: close\r\nContent-Length: 0\r\n\r\n"));
        for cut in 0..bytes.len() {
            assert_eq!(
                run(&[&bytes[..cut], &bytes[cut..]]).unwrap(),
                (whole.0.clone(), answers.clone())
            );
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(run(&single).unwrap().0, whole.0);
    }

    fn asked(head: &[u8]) -> HttpServer {
        let mut server = HttpServer::new();
        let mut input = head;
        while !input.is_empty() || !server.is_answering() {
            let step = server.receive(input).unwrap();
            assert!(!step.is_stuck());
            input = &input[step.consumed..];
        }
        server
    }

    #[test]
    fn streams_are_chunked_or_until_close() {
        let mut server = asked(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        server.respond_stream(200, &[("Content-Type", "text/event-stream")]);
        server.body(b"data: x\n\n");
        assert!(server.is_streaming());
        server.end();
        assert!(server.pending().ends_with(b"chunked\r\n\r\n9\r\ndata: x\n\n\r\n0\r\n\r\n"));
        assert!(!server.wants_close() && !server.is_streaming());

        let mut server = asked(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        server.respond_stream(200, &[]);
        server.body(b"x");
        server.end();
        assert_eq!(server.pending(), b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nx");
        assert!(server.wants_close());

        let mut server = asked(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        server.respond_stream(200, &[]);
        server.body(b"x");
        server.abort();
        assert!(server.pending().ends_with(b"1\r\nx\r\n") && server.wants_close());
    }

    #[test]
    fn head_has_no_body_and_expect_is_answered() {
        let mut server = asked(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n");
        server.respond(200, &[], b"xyz");
        assert_eq!(server.pending(), b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n");
        let mut server = HttpServer::new();
        let head =
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
        assert!(matches!(server.receive(head).unwrap().event, Some(HttpEvent::Request(_))));
        assert_eq!(server.pending(), b"HTTP/1.1 100 Continue\r\n\r\n");
        assert!(server.is_reading());
        server.respond(413, &[], b"");
        assert!(server.wants_close(), "the body that was announced is not read");
    }

    #[test]
    fn faults_and_draining_close() {
        let mut server = HttpServer::new();
        let error = server.receive(b"GET /\0 HTTP/1.1\r\n\r\n").unwrap_err();
        server.respond(error.status(), &[], b"no");
        assert!(server.pending().starts_with(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"));
        assert!(server.wants_close() && server.receive(b"GET").unwrap().is_stuck());
        let chunk = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
        assert_eq!(run(&[chunk]).unwrap_err(), HttpError::Chunk);

        let mut idle = HttpServer::new();
        idle.close_after();
        assert!(idle.wants_close());
        let mut busy = asked(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        busy.close_after();
        assert!(!busy.wants_close());
        busy.respond(200, &[], b"");
        assert!(busy.wants_close());
    }
}
