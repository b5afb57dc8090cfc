//! The client's end of a binary connection. It frames and unframes; which requests are open is its
//! caller's to know.

use std::borrow::Cow;

use super::Step;
use super::binary_server::ProtocolError;
use super::output::OutBuffer;
use crate::limits::CLIENT_PAYLOAD_BYTES_MAX;
use crate::wire::frame::{
    Done, ErrorCode, FinishReason, Frame, FrameType, decode_frame, encode_frame,
};
use crate::wire::message::{Hello, Infer};

/// What a server said.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent<'i> {
    /// Who it is and what it takes.
    Hello(Hello<'i>),
    /// Text of a request.
    Chunk {
        /// Which.
        id: u64,
        /// Tokens that end in it.
        tokens: u32,
        /// UTF-8, but for a path call's body.
        text: &'i [u8],
    },
    /// A request's good end.
    Done {
        /// Which.
        id: u64,
        /// Why its text ended.
        reason: FinishReason,
        /// Its counts and times.
        done: Done,
    },
    /// A request's bad end; of request 0: the connection's.
    Error {
        /// Which.
        id: u64,
        /// The number of an `ErrorCode`, or of one that this client does not know.
        code: u32,
        /// For a person.
        message: Cow<'i, str>,
    },
    /// How a request stands.
    Status {
        /// Which.
        id: u64,
        /// It was sent to the backend; else it waits.
        running: bool,
        /// Its place in the queue; 0: not known.
        position: u32,
        /// How long it will wait, in milliseconds; 0: not known.
        eta_ms: u32,
    },
    /// The server takes no new requests.
    Goaway {
        /// For a person.
        message: Cow<'i, str>,
    },
    /// Answers `ping`.
    Pong {
        /// The PING's.
        aux: u32,
        /// The PING's.
        payload: &'i [u8],
    },
}

/// The client's machine.
#[derive(Debug, Default)]
pub struct BinaryClient {
    out: OutBuffer,
    payload: Vec<u8>,
}

impl BinaryClient {
    /// A connection on which nothing was said.
    pub fn new() -> BinaryClient {
        BinaryClient::default()
    }

    /// Says who this client is; must come first if a token is needed.
    pub fn hello(&mut self, hello: &Hello<'_>) {
        self.payload.clear();
        hello.encode(&mut self.payload);
        encode_frame(self.out.tail(), FrameType::Hello, 0, 0, &self.payload, true);
    }

    /// Opens request `id` (not 0, not open) with `credit` bytes.
    pub fn infer(&mut self, id: u64, infer: &Infer<'_>, credit: u32) {
        self.payload.clear();
        infer.encode(&mut self.payload);
        encode_frame(self.out.tail(), FrameType::Infer, id, credit, &self.payload, false);
    }

    /// Lets the server send `bytes` more of a request's text.
    pub fn credit(&mut self, id: u64, bytes: u32) {
        encode_frame(self.out.tail(), FrameType::Credit, id, bytes, &[], false);
    }

    /// Wants no more of a request; its ERROR still comes, or a DONE that was faster.
    pub fn cancel(&mut self, id: u64) {
        encode_frame(self.out.tail(), FrameType::Cancel, id, 0, &[], false);
    }

    /// Asks for a PONG; `payload` is 64 bytes at most.
    pub fn ping(&mut self, aux: u32, payload: &[u8]) {
        encode_frame(self.out.tail(), FrameType::Ping, 0, aux, payload, false);
    }

    /// What the socket should write.
    pub fn pending(&self) -> &[u8] {
        self.out.pending()
    }

    /// Notes what the socket has taken.
    pub fn sent(&mut self, count: usize) {
        self.out.advance(count);
    }

    /// Takes a step at the start of `input`; answers PINGs itself.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub fn receive<'i>(&mut self, input: &'i [u8]) -> Result<Step<ClientEvent<'i>>, ProtocolError> {
        match decode_frame(input, CLIENT_PAYLOAD_BYTES_MAX) {
            Ok(None) => Ok(Step::NONE),
            Ok(Some((frame, consumed))) => {
                let event = self.frame(&frame)?;
                Ok(Step { consumed, event })
            }
            Err(error) => Err(ProtocolError { code: error.code(), message: error.to_string() }),
        }
    }

    fn frame<'i>(&mut self, frame: &Frame<'i>) -> Result<Option<ClientEvent<'i>>, ProtocolError> {
        let Frame { id, aux, payload, crc, .. } = *frame;
        let bad = |message: &str| {
            Err(ProtocolError { code: ErrorCode::BadFrame, message: message.to_owned() })
        };
        let event = match frame.kind {
            Some(FrameType::Chunk) => ClientEvent::Chunk { id, tokens: aux, text: payload },
            Some(FrameType::Done) => {
                let Some(done) = Done::decode(payload) else {
                    return bad("a DONE of another length than 32 bytes");
                };
                ClientEvent::Done { id, reason: FinishReason::from_u32(aux), done }
            }
            Some(FrameType::Error) => {
                ClientEvent::Error { id, code: aux, message: String::from_utf8_lossy(payload) }
            }
            Some(FrameType::Status) => {
                let Some((position, eta)) = payload.split_first_chunk::<4>() else {
                    return bad("a STATUS of under 8 bytes");
                };
                let Some((eta, _)) = eta.split_first_chunk::<4>() else {
                    return bad("a STATUS of under 8 bytes");
                };
                let position = u32::from_le_bytes(*position);
                let eta_ms = u32::from_le_bytes(*eta);
                ClientEvent::Status { id, running: aux == 2, position, eta_ms }
            }
            Some(FrameType::Hello) => match Hello::decode(payload) {
                Ok(hello) => ClientEvent::Hello(hello),
                Err(error) => return bad(&format!("HELLO: {error}")),
            },
            Some(FrameType::Goaway) => {
                ClientEvent::Goaway { message: String::from_utf8_lossy(payload) }
            }
            Some(FrameType::Pong) => ClientEvent::Pong { aux, payload },
            Some(FrameType::Ping) => {
                encode_frame(self.out.tail(), FrameType::Pong, id, aux, payload, crc);
                return Ok(None);
            }
            None => return Ok(None),
            Some(kind) => return bad(&format!("a server does not send {kind:?}")),
        };
        Ok(Some(event))
    }
}
