//! The server's end of a binary connection: who may ask, what is open, and how much text may go
//! out.
//!
//! Each open request holds its credit and the text that waits for it. Text goes straight into the
//! output when nothing waits and credit is there; otherwise it waits in its request's own buffer,
//! so that a slow reader of one request holds back nothing else.
//!
//! ```text
//! request:  (INFER) -> open --finish--> ending --credit--> DONE
//!                       |  `--fail, CANCEL--------------> ERROR, text that waits is dropped
//! connection: HELLO? INFER* (CREDIT | CANCEL | PING | INFER)* -> closed by an error or by GOAWAY
//! ```

use std::fmt;
use std::rc::Rc;

use super::Step;
use super::open_stream::{Finish, Flow, OpenStream, Room};
use super::output::OutBuffer;
use crate::clock::Instant;
use crate::limits::{
    CLIENT_PAYLOAD_BYTES_MAX, CREDIT_MAX, OPEN_REQUESTS_MAX, PING_BYTES_MAX, PONGS_UNSENT_MAX,
    SERVER_PAYLOAD_BYTES_MAX, SOCKET_BUFFER_BYTES_HIGH,
};
use crate::wire::frame::{ErrorCode, Frame, FrameType, decode_frame, encode_frame};
use crate::wire::message::{Hello, Infer, Input};

/// What all connections of a server have in common.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The API key that clients must send; None: anybody may ask.
    pub token: Option<String>,
    /// Who this server is, for people.
    pub agent: String,
}

/// An open request of a connection; the number is used again after it ended.
pub type Stream = u16;

/// What a peer's bytes, or the room in the socket, brought about.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerEvent<'i> {
    /// A request was opened. It is answered through `set_tag` and later `finish`, or at once
    /// through `fail`.
    Infer {
        /// Its place here.
        stream: Stream,
        /// What is asked.
        infer: Infer<'i>,
    },
    /// The client wants no more of it; its ERROR is queued, and the request is over.
    Cancelled {
        /// Its place, free again.
        stream: Stream,
        /// What `set_tag` said.
        tag: u64,
    },
    /// After `Flow::Full` there is room for its text again.
    Resumed {
        /// Its place.
        stream: Stream,
        /// What `set_tag` said.
        tag: u64,
    },
    /// Its DONE, which waited for credit, is queued, and the request is over.
    Finished {
        /// Its place, free again.
        stream: Stream,
        /// What `set_tag` said.
        tag: u64,
    },
}

/// Why a connection must close; the peer is told in an ERROR for request 0, which is queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolError {
    /// What the peer is told.
    pub code: ErrorCode,
    /// For a person.
    pub message: String,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

/// The server's machine.
#[derive(Debug)]
pub struct BinaryServer {
    config: Rc<ServerConfig>,
    out: OutBuffer,
    streams: Vec<Option<OpenStream>>,
    open: u32,
    /// The largest payload that the client takes.
    payload_max: u32,
    /// PONGs in `out`.
    pongs: u32,
    hello_seen: bool,
    infer_seen: bool,
    authenticated: bool,
    draining: bool,
    closed: bool,
    choked: bool,
    /// A request's text waits for room in `out`.
    congested: bool,
}

impl BinaryServer {
    /// A connection whose HELLO is ready to be sent.
    pub fn new(config: Rc<ServerConfig>) -> BinaryServer {
        let mut out = OutBuffer::default();
        let mut payload = Vec::with_capacity(64);
        let hello = Hello {
            agent: Some(&config.agent),
            token: None,
            max_payload: Some(SERVER_PAYLOAD_BYTES_MAX),
            max_requests: Some(OPEN_REQUESTS_MAX),
        };
        hello.encode(&mut payload);
        encode_frame(out.tail(), FrameType::Hello, 0, 0, &payload, true);
        BinaryServer {
            authenticated: config.token.is_none(),
            config,
            out,
            streams: Vec::new(),
            open: 0,
            payload_max: CLIENT_PAYLOAD_BYTES_MAX,
            pongs: 0,
            hello_seen: false,
            infer_seen: false,
            draining: false,
            closed: false,
            choked: false,
            congested: false,
        }
    }

    /// Takes a step at the start of `input`.
    ///
    /// # Errors
    /// The peer broke the protocol; the connection closes once what is pending is sent.
    pub fn receive<'i>(
        &mut self,
        now: Instant,
        input: &'i [u8],
    ) -> Result<Step<ServerEvent<'i>>, ProtocolError> {
        if self.closed {
            return Ok(Step::NONE);
        }
        let result = match decode_frame(input, SERVER_PAYLOAD_BYTES_MAX) {
            Ok(None) => return Ok(Step::NONE),
            Ok(Some((frame, consumed))) => self
                .frame(now, &frame)
                .map(|event| if self.choked { Step::NONE } else { Step { consumed, event } }),
            Err(error) => Err(ProtocolError { code: error.code(), message: error.to_string() }),
        };
        if let Err(error) = &result {
            self.error(0, false, error.code, &error.message);
            self.closed = true;
        }
        result
    }

    /// Whether the next frame waits until PONGs are sent. A peer for whom that stays so after a
    /// write is closed.
    pub fn is_choked(&self) -> bool {
        self.choked
    }

    fn frame<'i>(
        &mut self,
        now: Instant,
        frame: &Frame<'i>,
    ) -> Result<Option<ServerEvent<'i>>, ProtocolError> {
        match frame.kind {
            Some(FrameType::Infer) => self.infer(now, frame),
            Some(FrameType::Credit) => Ok(self.credit(now, frame)),
            Some(FrameType::Cancel) => Ok(self.find(frame.id).map(|stream| {
                let message = "cancelled by the client";
                let tag = self.end_early(stream, ErrorCode::Cancelled, message);
                ServerEvent::Cancelled { stream, tag }
            })),
            Some(FrameType::Hello) => self.hello(frame.payload).map(|()| None),
            Some(FrameType::Ping) => self.ping(frame).map(|()| None),
            Some(FrameType::Pong) | None => Ok(None),
            Some(kind) => Err(bad_frame(format!("a client does not send {kind:?}"))),
        }
    }

    fn hello(&mut self, payload: &[u8]) -> Result<(), ProtocolError> {
        if self.hello_seen || self.infer_seen {
            return Err(bad_frame("HELLO comes once, and first".to_owned()));
        }
        self.hello_seen = true;
        let hello = Hello::decode(payload).map_err(|error| bad_frame(format!("HELLO: {error}")))?;
        if let Some(wanted) = &self.config.token {
            let given = hello.token.ok_or_else(|| unauthenticated("a token is needed"))?;
            if !equal_in_constant_time(given, wanted.as_bytes()) {
                return Err(unauthenticated("the token is wrong"));
            }
            self.authenticated = true;
        }
        // A client that takes more than the default does not get more: larger chunks save nothing.
        let payload_max = hello.max_payload.unwrap_or(CLIENT_PAYLOAD_BYTES_MAX);
        self.payload_max = payload_max.min(CLIENT_PAYLOAD_BYTES_MAX);
        Ok(())
    }

    fn ping(&mut self, frame: &Frame<'_>) -> Result<(), ProtocolError> {
        if frame.payload.len() > PING_BYTES_MAX as usize {
            return Err(bad_frame("a PING of over 64 bytes".to_owned()));
        }
        if self.pongs == PONGS_UNSENT_MAX {
            self.choked = true;
            return Ok(());
        }
        self.pongs += 1;
        let Frame { id, aux, payload, crc, .. } = *frame;
        encode_frame(self.out.tail(), FrameType::Pong, id, aux, payload, crc);
        Ok(())
    }

    fn infer<'i>(
        &mut self,
        now: Instant,
        frame: &Frame<'i>,
    ) -> Result<Option<ServerEvent<'i>>, ProtocolError> {
        self.infer_seen = true;
        if !self.authenticated {
            return Err(unauthenticated("a token is needed: HELLO comes first"));
        }
        if frame.id == 0 {
            return Err(bad_frame("an INFER for request 0".to_owned()));
        }
        if self.find(frame.id).is_some() {
            return Err(bad_frame(format!("an INFER for request {}, which is open", frame.id)));
        }
        let refusal = if self.draining {
            Some((ErrorCode::ShuttingDown, "the server is shutting down"))
        } else if self.open == OPEN_REQUESTS_MAX {
            Some((ErrorCode::Overloaded, "64 requests are open on this connection"))
        } else if frame.aux > CREDIT_MAX {
            Some((ErrorCode::BadRequest, "credit of over 2^31 - 1"))
        } else {
            None
        };
        if let Some((code, message)) = refusal {
            self.error(frame.id, frame.crc, code, message);
            return Ok(None);
        }
        match Infer::decode(frame.payload) {
            Ok(infer) => {
                let raw = matches!(infer.input, Input::Api { .. });
                let stream = self.insert(OpenStream::new(frame, raw, now));
                Ok(Some(ServerEvent::Infer { stream, infer }))
            }
            Err(error) => {
                self.error(frame.id, frame.crc, error.code(), &error.to_string());
                Ok(None)
            }
        }
    }

    fn credit(&mut self, now: Instant, frame: &Frame<'_>) -> Option<ServerEvent<'static>> {
        let stream = self.find(frame.id)?;
        let open = self.streams[stream as usize].as_mut()?;
        if open.grant(frame.aux) {
            return self.pump(stream, now);
        }
        let message = "outstanding credit of over 2^31 - 1";
        let tag = self.end_early(stream, ErrorCode::BadRequest, message);
        Some(ServerEvent::Cancelled { stream, tag })
    }

    /// What room in the socket brought about; to be called after `sent` until None.
    pub fn poll(&mut self, now: Instant) -> Option<ServerEvent<'static>> {
        if !self.congested || self.out.len() >= SOCKET_BUFFER_BYTES_HIGH {
            return None;
        }
        self.congested = false;
        for stream in 0..self.streams.len() {
            // A request that fills the room again sets `congested`, and the next one is then left
            // for later: who comes first in the table goes first, which is fair enough for one
            // peer's own requests.
            let event = self.pump(stream as Stream, now);
            if event.is_some() {
                self.congested = true;
                return event;
            }
        }
        None
    }

    /// Names the request for the events that will speak of it.
    pub fn set_tag(&mut self, stream: Stream, tag: u64) {
        if let Some(open) = self.stream_mut(stream) {
            open.tag = tag;
        }
    }

    /// Text of a request, and the tokens that end in it. Text that is not of a path call is UTF-8,
    /// whole characters.
    pub fn text(&mut self, stream: Stream, now: Instant, bytes: &[u8], tokens: u32) -> Flow {
        let room = self.bounds();
        let Some(open) = self.streams.get_mut(stream as usize).and_then(Option::as_mut) else {
            return Flow::Sent;
        };
        let flow = open.text(now, bytes, tokens, &room, &mut self.out);
        self.congested |= self.out.len() >= SOCKET_BUFFER_BYTES_HIGH && flow != Flow::Sent;
        flow
    }

    /// The request's good end. True: its DONE is queued and it is over; false: it waits for credit,
    /// `Finished` follows.
    pub fn finish(&mut self, stream: Stream, now: Instant, finish: Finish) -> bool {
        let Some(open) = self.stream_mut(stream) else { return true };
        open.finish = Some(finish);
        self.pump(stream, now).is_some()
    }

    /// The request's bad end; text that waits is dropped.
    pub fn fail(&mut self, stream: Stream, code: ErrorCode, message: &str) {
        self.end_early(stream, code, message);
    }

    /// Tells the client how a request stands.
    pub fn status(&mut self, stream: Stream, running: bool, position: u32, eta_ms: u32) {
        let Some(open) = self.streams.get(stream as usize).and_then(Option::as_ref) else { return };
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&position.to_le_bytes());
        payload[4..].copy_from_slice(&eta_ms.to_le_bytes());
        let aux = if running { 2 } else { 1 };
        encode_frame(self.out.tail(), FrameType::Status, open.id, aux, &payload, open.crc);
    }

    /// Refuses new requests from now on, and says so.
    pub fn goaway(&mut self, message: &str) {
        if !std::mem::replace(&mut self.draining, true) {
            encode_frame(self.out.tail(), FrameType::Goaway, 0, 0, message.as_bytes(), false);
        }
    }

    /// Since when a request's text has waited without any of it going out.
    pub fn stalled_since(&self, stream: Stream) -> Option<Instant> {
        self.streams.get(stream as usize)?.as_ref()?.stalled_since()
    }

    /// How many requests are open.
    pub fn open_streams(&self) -> usize {
        self.open as usize
    }

    /// The tags of the open requests.
    pub fn tags(&self) -> impl Iterator<Item = u64> {
        self.streams.iter().flatten().map(|open| open.tag)
    }

    /// Whether no request is open and all is sent.
    pub fn is_quiet(&self) -> bool {
        self.open == 0 && self.out.len() == 0
    }

    /// Whether the peer broke the protocol: once what is pending is sent, the connection closes.
    pub fn wants_close(&self) -> bool {
        self.closed
    }

    /// What the socket should write.
    pub fn pending(&self) -> &[u8] {
        self.out.pending()
    }

    /// Notes what the socket has taken.
    pub fn sent(&mut self, count: usize) {
        self.out.advance(count);
        if self.out.len() == 0 {
            self.pongs = 0;
            self.choked = false;
        }
    }

    /// How many bytes of a request's text would go out at once, in one chunk.
    pub fn room(&self, stream: Stream) -> usize {
        let open = self.streams.get(stream as usize).and_then(Option::as_ref);
        open.map_or(0, |open| open.room(self.payload_max))
    }

    fn bounds(&self) -> Room {
        Room { payload_max: self.payload_max, high: SOCKET_BUFFER_BYTES_HIGH }
    }

    /// Moves what may go of a request's text, and its DONE behind the last of it.
    fn pump(&mut self, stream: Stream, now: Instant) -> Option<ServerEvent<'static>> {
        let room = self.bounds();
        let open = self.streams.get_mut(stream as usize)?.as_mut()?;
        let resumed = open.pump(now, &room, &mut self.out);
        let tag = open.tag;
        if open.is_waiting() {
            self.congested |= self.out.len() >= SOCKET_BUFFER_BYTES_HIGH;
        } else if open.finish.is_some() {
            open.done(now, &mut self.out);
            self.remove(stream);
            return Some(ServerEvent::Finished { stream, tag });
        }
        resumed.then_some(ServerEvent::Resumed { stream, tag })
    }

    fn stream_mut(&mut self, stream: Stream) -> Option<&mut OpenStream> {
        self.streams.get_mut(stream as usize)?.as_mut()
    }

    fn find(&self, id: u64) -> Option<Stream> {
        if self.open == 0 {
            return None;
        }
        let at = self.streams.iter().position(|s| s.as_ref().is_some_and(|open| open.id == id));
        at.map(|at| at as Stream)
    }

    fn insert(&mut self, open: OpenStream) -> Stream {
        self.open += 1;
        let vacant = self.streams.iter().position(Option::is_none);
        let at = vacant.unwrap_or(self.streams.len());
        if vacant.is_some() {
            self.streams[at] = Some(open);
        } else {
            // One more at a time while few are open: most connections carry one request.
            self.streams.reserve_exact(if at < 4 { 1 } else { at });
            self.streams.push(Some(open));
        }
        at as Stream
    }

    fn remove(&mut self, stream: Stream) {
        self.streams[stream as usize] = None;
        self.open -= 1;
    }

    fn end_early(&mut self, stream: Stream, code: ErrorCode, message: &str) -> u64 {
        let Some(open) = self.streams.get(stream as usize).and_then(Option::as_ref) else {
            return 0;
        };
        let (id, crc, tag) = (open.id, open.crc, open.tag);
        self.remove(stream);
        self.error(id, crc, code, message);
        tag
    }

    fn error(&mut self, id: u64, crc: bool, code: ErrorCode, message: &str) {
        let end = message.floor_char_boundary(self.payload_max as usize);
        let payload = &message.as_bytes()[..end];
        encode_frame(self.out.tail(), FrameType::Error, id, code as u32, payload, crc);
    }
}

fn bad_frame(message: String) -> ProtocolError {
    ProtocolError { code: ErrorCode::BadFrame, message }
}

fn unauthenticated(message: &str) -> ProtocolError {
    ProtocolError { code: ErrorCode::Unauthenticated, message: message.to_owned() }
}

/// Compares without telling, by the time it takes, how much of a guess was right.
pub fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let differ = |acc: u8, (x, y): (&u8, &u8)| acc | (x ^ y);
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, differ)) == 0
}
