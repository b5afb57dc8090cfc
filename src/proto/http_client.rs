//! The client's end of an HTTP/1.1 connection: one request, its response, then the next.
//!
//! ```text
//! Idle --request--> Head --head--> Body | Chunked | UntilClose --end--> Idle
//!                    ^ 1xx |
//! ```

use super::Step;
use super::output::OutBuffer;
use crate::limits::HTTP_HEAD_BYTES_MAX;
use crate::wire::chunk::{ChunkDecoder, Piece};
use crate::wire::http1::{
    BodyLength, HttpError, RequestLine, ResponseHead, encode_request, parse_response_head,
};

/// What came of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseEvent<'i> {
    /// Its head; a 1xx is read over.
    Head(ResponseHead<'i>),
    /// A part of its body.
    Body(&'i [u8]),
    /// Its end.
    End {
        /// Whether the connection takes another request.
        reusable: bool,
    },
}

/// The client's machine.
#[derive(Debug)]
pub struct HttpClient {
    state: State,
    out: OutBuffer,
    keep_alive: bool,
    head_request: bool,
    received_any: bool,
    /// How much of the present head was looked through for its end.
    scanned: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Idle,
    Head,
    Body(u64),
    Chunked(ChunkDecoder),
    UntilClose,
    /// The end is to be told.
    End,
}

impl Default for HttpClient {
    fn default() -> HttpClient {
        HttpClient::new()
    }
}

impl HttpClient {
    /// A connection on which nothing was asked yet.
    pub fn new() -> HttpClient {
        HttpClient {
            state: State::Idle,
            out: OutBuffer::default(),
            keep_alive: true,
            head_request: false,
            received_any: false,
            scanned: 0,
        }
    }

    /// Asks. The response before must have ended.
    pub fn request(&mut self, line: &RequestLine<'_>, body: Option<&[u8]>) {
        debug_assert!(self.is_idle(), "one request at a time");
        encode_request(self.out.tail(), line, body);
        self.head_request = line.method == "HEAD";
        self.state = State::Head;
        self.received_any = false;
        self.scanned = 0;
    }

    /// Whether nothing is asked.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Whether any byte of the present response has come.
    pub fn received_any(&self) -> bool {
        self.received_any
    }

    /// What the socket should write.
    pub fn pending(&self) -> &[u8] {
        self.out.pending()
    }

    /// Notes what the socket has taken.
    pub fn sent(&mut self, count: usize) {
        self.out.advance(count);
    }

    /// Takes a step at the start of `input`. Bytes that come while nothing is asked are an error:
    /// they would be taken for the next response.
    ///
    /// # Errors
    /// The response is malformed or over a limit.
    pub fn receive<'i>(&mut self, input: &'i [u8]) -> Result<Step<ResponseEvent<'i>>, HttpError> {
        self.received_any |= !input.is_empty();
        match &mut self.state {
            State::Idle if input.is_empty() => Ok(Step::NONE),
            State::Idle => Err(HttpError::Syntax("bytes that nobody asked for")),
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
                Ok(Step::event(take, ResponseEvent::Body(&input[..take])))
            }
            State::Chunked(decoder) => {
                let (consumed, piece) = decoder.decode(input)?;
                match piece {
                    Piece::Data(bytes) => Ok(Step::event(consumed, ResponseEvent::Body(bytes))),
                    Piece::None => Ok(Step { consumed, event: None }),
                    Piece::End => Ok(self.end(consumed)),
                }
            }
            State::UntilClose if input.is_empty() => Ok(Step::NONE),
            State::UntilClose => Ok(Step::event(input.len(), ResponseEvent::Body(input))),
            State::End => Ok(self.end(0)),
        }
    }

    /// The peer has closed. The end of a response that ends with the connection; None if nothing
    /// was asked.
    ///
    /// # Errors
    /// A response was under way.
    pub fn eof(&mut self) -> Result<Option<ResponseEvent<'static>>, HttpError> {
        match self.state {
            State::Idle => Ok(None),
            State::UntilClose | State::End => {
                self.state = State::Idle;
                Ok(Some(ResponseEvent::End { reusable: false }))
            }
            State::Head if !self.received_any => Ok(None),
            State::Head | State::Body(_) | State::Chunked(_) => Err(HttpError::Truncated),
        }
    }

    fn head<'i>(&mut self, input: &'i [u8]) -> Result<Step<ResponseEvent<'i>>, HttpError> {
        let Some(len) = super::head_end(input, &mut self.scanned)? else { return Ok(Step::NONE) };
        debug_assert!(len <= HTTP_HEAD_BYTES_MAX);
        let head = parse_response_head(&input[..len], self.head_request)?;
        if head.status < 200 {
            if head.status == 101 {
                return Err(HttpError::Syntax("a change of protocol that nobody asked for"));
            }
            return Ok(Step { consumed: len, event: None });
        }
        self.keep_alive = head.keep_alive;
        self.state = match head.body {
            BodyLength::None => State::End,
            BodyLength::Length(bytes) => State::Body(bytes),
            BodyLength::Chunked => State::Chunked(ChunkDecoder::new()),
            BodyLength::UntilClose => State::UntilClose,
        };
        Ok(Step::event(len, ResponseEvent::Head(head)))
    }

    fn end(&mut self, consumed: usize) -> Step<ResponseEvent<'static>> {
        self.state = State::Idle;
        // An answer that came before all of the request was sent leaves the rest of it in the way.
        let reusable = self.keep_alive && self.out.len() == 0;
        Step::event(consumed, ResponseEvent::End { reusable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: RequestLine<'_> =
        RequestLine { method: "GET", target: "/x", host: "h", headers: &[("A", "b")] };

    /// Status, body, and whether the connection is reusable; None if the response has not ended.
    fn run(parts: &[&[u8]], eof: bool) -> Result<Option<(u16, Vec<u8>, bool)>, HttpError> {
        let mut client = HttpClient::new();
        client.request(&LINE, None);
        assert_eq!(client.pending(), b"GET /x HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n");
        client.sent(client.pending().len());
        let (mut input, mut status, mut body) = (Vec::new(), 0, Vec::new());
        for part in parts {
            input.extend_from_slice(part);
            loop {
                let step = client.receive(&input)?;
                let used = step.consumed;
                match step.event {
                    Some(ResponseEvent::Head(head)) => status = head.status,
                    Some(ResponseEvent::Body(bytes)) => body.extend_from_slice(bytes),
                    Some(ResponseEvent::End { reusable }) => {
                        return Ok(Some((status, body, reusable)));
                    }
                    None if used == 0 => break,
                    None => {}
                }
                input.drain(..used);
            }
        }
        let end = if eof { client.eof()? } else { None };
        Ok(end.map(|_| (status, body, false)))
    }

    #[test]
    fn every_framing_in_any_split() {
        let cases: [(&[u8], bool, u16, &[u8], bool); 5] = [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", false, 200, b"abc", true),
            (b"HTTP/1.1 204 No Content\r\n\r\n", false, 204, b"", true),
            (
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                  2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
                false,
                200,
                b"abc",
                true,
            ),
            (b"HTTP/1.1 500 X\r\n\r\noops", true, 500, b"oops", false),
            (
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
                false,
                200,
                b"x",
                false,
            ),
        ];
        for (bytes, eof, status, body, reusable) in cases {
            let wanted = Ok(Some((status, body.to_vec(), reusable)));
            for cut in 0..bytes.len() {
                assert_eq!(run(&[&bytes[..cut], &bytes[cut..]], eof), wanted);
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(run(&single, eof), wanted);
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_told() {
        let cut = run(&[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"], true);
        assert_eq!(cut, Err(HttpError::Truncated));
        assert_eq!(run(&[b"HTTP/1.1 2"], true), Err(HttpError::Truncated));
        assert_eq!(run(&[], true), Ok(None));
        let endless = vec![b'a'; HTTP_HEAD_BYTES_MAX + 1];
        assert_eq!(run(&[&endless], false), Err(HttpError::HeadTooLarge));
    }
}
