//! Frames of the binary protocol: a header of 32 bytes and a payload (`protocol.md` beside this
//! file).
//!
//! ```text
//! 0      4   5    6     8            16            20    24            28             32
//! | CNSE | v | ty | fl  | request_id | payload_len | aux | payload_crc | header_crc   | payload …
//! ```

use std::fmt;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 32;
/// The first bytes of every frame, and so of every binary connection.
pub const MAGIC: [u8; 4] = *b"CNSE";
/// The protocol's version.
pub const VERSION: u8 = 1;
/// Flag: the payload's checksum is set.
const FLAG_CRC: u16 = 1;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// First from both ends: who they are and what they take.
    Hello = 1,
    /// Opens a request; aux is its first credit in bytes.
    Infer,
    /// Text; aux is the number of tokens that end in it.
    Chunk,
    /// A request's good end; aux is the finish reason.
    Done,
    /// A request's bad end; aux is the error code.
    Error,
    /// Further credit; aux is its bytes.
    Credit,
    /// The client wants no more of a request.
    Cancel,
    /// Asks for a PONG.
    Ping,
    /// Answers a PING with its aux and payload.
    Pong,
    /// The server takes no new requests.
    Goaway,
    /// How a request stands; aux is 1 (queued) or 2 (running).
    Status,
}

impl FrameType {
    fn from_u8(value: u8) -> Option<FrameType> {
        Some(match value {
            1 => FrameType::Hello,
            2 => FrameType::Infer,
            3 => FrameType::Chunk,
            4 => FrameType::Done,
            5 => FrameType::Error,
            6 => FrameType::Credit,
            7 => FrameType::Cancel,
            8 => FrameType::Ping,
            9 => FrameType::Pong,
            10 => FrameType::Goaway,
            11 => FrameType::Status,
            _ => return None,
        })
    }
}

/// A frame in somebody's buffer, checksums verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its type; None for one of a later version, to be skipped.
    pub kind: Option<FrameType>,
    /// Whether its payload carried a checksum: the reply then does too.
    pub crc: bool,
    /// The request it speaks of; 0: the connection.
    pub id: u64,
    /// A number whose meaning depends on the type.
    pub aux: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The first four bytes are not `CNSE`.
    Magic,
    /// A version that is not spoken here.
    Version(u8),
    /// The header's checksum is wrong.
    HeaderChecksum,
    /// The payload is longer than the receiver takes.
    TooLarge {
        /// Its length.
        bytes: u32,
        /// The limit.
        max: u32,
    },
    /// The payload's checksum is wrong.
    PayloadChecksum,
}

impl FrameError {
    /// What the peer is told.
    pub fn code(self) -> ErrorCode {
        match self {
            FrameError::TooLarge { .. } => ErrorCode::TooLarge,
            _ => ErrorCode::BadFrame,
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::Magic => f.write_str("a frame does not begin with CNSE"),
            FrameError::Version(v) => write!(f, "a frame of version {v}; this side speaks 1"),
            FrameError::HeaderChecksum => f.write_str("a frame's header checksum is wrong"),
            FrameError::TooLarge { bytes, max } => {
                write!(f, "a payload of {bytes} bytes; this side takes {max}")
            }
            FrameError::PayloadChecksum => f.write_str("a frame's payload checksum is wrong"),
        }
    }
}

/// Reads one frame from the start of `input`: it and its length, or None if more bytes are needed.
/// Each check is made as soon as its bytes are there, in the protocol's order, so that a length
/// over the limit is refused before its payload comes.
///
/// # Errors
/// The first check that fails.
pub fn decode_frame(
    input: &[u8],
    payload_max: u32,
) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let magic_len = input.len().min(MAGIC.len());
    if input[..magic_len] != MAGIC[..magic_len] {
        return Err(FrameError::Magic);
    }
    if let Some(&version) = input.get(4)
        && version != VERSION
    {
        return Err(FrameError::Version(version));
    }
    let Some((header, rest)) = input.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    if crc32c::crc32c(&header[..28]) != u32_at(header, 28) {
        return Err(FrameError::HeaderChecksum);
    }
    let bytes = u32_at(header, 16);
    if bytes > payload_max {
        return Err(FrameError::TooLarge { bytes, max: payload_max });
    }
    let Some(payload) = rest.get(..bytes as usize) else { return Ok(None) };
    let crc = u16::from_le_bytes([header[6], header[7]]) & FLAG_CRC != 0;
    if crc && crc32c::crc32c(payload) != u32_at(header, 24) {
        return Err(FrameError::PayloadChecksum);
    }
    let (low, high) = (u32_at(header, 8), u32_at(header, 12));
    let id = u64::from(high) << 32 | u64::from(low);
    let kind = FrameType::from_u8(header[5]);
    let frame = Frame { kind, crc, id, aux: u32_at(header, 20), payload };
    Ok(Some((frame, HEADER_BYTES + payload.len())))
}

/// Appends a frame to `out`; `crc` adds the payload's checksum.
pub fn encode_frame(
    out: &mut Vec<u8>,
    kind: FrameType,
    id: u64,
    aux: u32,
    payload: &[u8],
    crc: bool,
) {
    let len = u32::try_from(payload.len()).expect("payloads are bounded far below 4 GiB");
    let mut header = [0u8; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = VERSION;
    header[5] = kind as u8;
    header[6..8].copy_from_slice(&u16::from(crc).to_le_bytes());
    header[8..16].copy_from_slice(&id.to_le_bytes());
    header[16..20].copy_from_slice(&len.to_le_bytes());
    header[20..24].copy_from_slice(&aux.to_le_bytes());
    if crc {
        header[24..28].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    }
    let checksum = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// What went wrong, as peers are told: ERROR's aux, and a status over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ErrorCode {
    /// The bytes are no frame, or break the order of frames.
    BadFrame = 1,
    /// A field is missing or out of range, or the backend said 400.
    BadRequest,
    /// A token is needed, or is wrong.
    Unauthenticated,
    /// No such model or path.
    NotFound,
    /// The queue, or the connection's limit, is full.
    Overloaded,
    /// A deadline or a timeout passed.
    Deadline,
    /// The client cancelled.
    Cancelled,
    /// The backend failed, broke off, or refused the gateway.
    Backend,
    /// A fault of the server.
    Internal,
    /// A payload over the receiver's limit.
    TooLarge,
    /// The server drains.
    ShuttingDown,
    /// A critical field that this server does not know.
    Unsupported,
}

impl ErrorCode {
    /// All of them, in the order of their numbers.
    pub const ALL: [ErrorCode; 12] = [
        ErrorCode::BadFrame,
        ErrorCode::BadRequest,
        ErrorCode::Unauthenticated,
        ErrorCode::NotFound,
        ErrorCode::Overloaded,
        ErrorCode::Deadline,
        ErrorCode::Cancelled,
        ErrorCode::Backend,
        ErrorCode::Internal,
        ErrorCode::TooLarge,
        ErrorCode::ShuttingDown,
        ErrorCode::Unsupported,
    ];

    /// The code of an ERROR's aux, if it is known.
    pub fn from_u32(value: u32) -> Option<ErrorCode> {
        ErrorCode::ALL.get(value.checked_sub(1)? as usize).copied()
    }

    /// Its name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::BadFrame => "BAD_FRAME",
            ErrorCode::BadRequest => "BAD_REQUEST",
            ErrorCode::Unauthenticated => "UNAUTHENTICATED",
            ErrorCode::NotFound => "NOT_FOUND",
            ErrorCode::Overloaded => "OVERLOADED",
            ErrorCode::Deadline => "DEADLINE",
            ErrorCode::Cancelled => "CANCELLED",
            ErrorCode::Backend => "BACKEND",
            ErrorCode::Internal => "INTERNAL",
            ErrorCode::TooLarge => "TOO_LARGE",
            ErrorCode::ShuttingDown => "SHUTTING_DOWN",
            ErrorCode::Unsupported => "UNSUPPORTED",
        }
    }

    /// Its status over HTTP. Nobody is there to read that of a cancelled request; logs use nginx's
    /// 499.
    pub fn http_status(self) -> u16 {
        match self {
            ErrorCode::BadFrame | ErrorCode::BadRequest | ErrorCode::Unsupported => 400,
            ErrorCode::Unauthenticated => 401,
            ErrorCode::NotFound => 404,
            ErrorCode::TooLarge => 413,
            ErrorCode::Overloaded => 429,
            ErrorCode::Cancelled => 499,
            ErrorCode::Internal => 500,
            ErrorCode::Backend => 502,
            ErrorCode::ShuttingDown => 503,
            ErrorCode::Deadline => 504,
        }
    }
}

/// Why a text ended: DONE's aux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FinishReason {
    /// The model ended it, or a stop word did.
    Stop = 1,
    /// max_tokens, or the context, was reached.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// Something else, or not a text.
    Other,
}

impl FinishReason {
    /// The reason of a DONE's aux; what is not known is `Other`.
    pub fn from_u32(value: u32) -> FinishReason {
        match value {
            1 => FinishReason::Stop,
            2 => FinishReason::Length,
            3 => FinishReason::ToolCalls,
            _ => FinishReason::Other,
        }
    }

    /// Its name in OpenAI's API, as far as that has one.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::ToolCalls => "tool_calls",
            FinishReason::Other => "other",
        }
    }
}

/// DONE's payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Receipt to sent to the backend, in microseconds.
    pub queue_us: u64,
    /// Receipt to first text ready, in microseconds.
    pub first_us: u64,
    /// Receipt to this frame, in microseconds.
    pub total_us: u64,
}

impl Done {
    /// Bytes of the payload.
    pub const BYTES: usize = 32;

    /// As a payload.
    pub fn encode(&self) -> [u8; Done::BYTES] {
        let mut bytes = [0; Done::BYTES];
        bytes[..4].copy_from_slice(&self.prompt_tokens.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.completion_tokens.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.queue_us.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_us.to_le_bytes());
        bytes[24..].copy_from_slice(&self.total_us.to_le_bytes());
        bytes
    }

    /// From a payload; None unless it has 32 bytes.
    pub fn decode(payload: &[u8]) -> Option<Done> {
        let bytes: &[u8; HEADER_BYTES] = payload.try_into().ok()?;
        let u64_at = |at| u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at));
        Some(Done {
            prompt_tokens: u32_at(bytes, 0),
            completion_tokens: u32_at(bytes, 4),
            queue_us: u64_at(8),
            first_us: u64_at(16),
            total_us: u64_at(24),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8], crc: bool) -> Vec<u8> {
        let mut out = Vec::new();
        encode_frame(&mut out, FrameType::Chunk, 0x0102_0304_0506_0708, 9, payload, crc);
        out
    }

    #[test]
    fn known_bytes() {
        // The check value of CRC-32C (Castagnoli).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let bytes = frame(b"123456789", true);
        assert_eq!(bytes[..8], *b"CNSE\x01\x03\x01\x00");
        assert_eq!(bytes[8..24], [8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(bytes[24..28], 0xe306_9283u32.to_le_bytes());
    }

    #[test]
    fn more_is_asked_for_until_a_frame_is_whole() {
        let bytes = frame(b"text", true);
        for len in 0..bytes.len() {
            assert_eq!(decode_frame(&bytes[..len], 64), Ok(None), "{len} bytes");
        }
        let (read, len) = decode_frame(&bytes, 64).unwrap().unwrap();
        assert_eq!((len, read.payload, read.crc), (bytes.len(), &b"text"[..], true));
        assert_eq!((read.id, read.aux), (0x0102_0304_0506_0708, 9));
        assert_eq!(read.kind, Some(FrameType::Chunk));
    }

    #[test]
    fn each_fault_in_the_order_of_the_checks() {
        let good = frame(b"text", true);
        let flip = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        assert_eq!(decode_frame(&flip(1)[..2], 64), Err(FrameError::Magic));
        assert_eq!(decode_frame(&flip(4)[..5], 64), Err(FrameError::Version(0)));
        for at in 5..32 {
            assert_eq!(decode_frame(&flip(at), 64), Err(FrameError::HeaderChecksum), "byte {at}");
        }
        assert_eq!(decode_frame(&flip(33), 64), Err(FrameError::PayloadChecksum));
        let over = FrameError::TooLarge { bytes: 4, max: 3 };
        assert_eq!(decode_frame(&good[..32], 3), Err(over));
        assert_eq!(
            (over.code(), FrameError::Magic.code()),
            (ErrorCode::TooLarge, ErrorCode::BadFrame)
        );
        let mut unchecked = frame(b"text", false);
        unchecked[33] ^= 1;
        assert!(decode_frame(&unchecked, 64).unwrap().is_some());
    }

    #[test]
    fn numbers_and_names() {
        for (i, code) in ErrorCode::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, i + 1);
            assert_eq!(ErrorCode::from_u32(code as u32), Some(code));
        }
        assert_eq!((ErrorCode::from_u32(0), ErrorCode::from_u32(13)), (None, None));
        for value in 1..=4 {
            assert_eq!(FinishReason::from_u32(value) as u32, value);
        }
        let done = Done {
            prompt_tokens: 1,
            completion_tokens: 2,
            queue_us: u64::MAX,
            first_us: 4,
            total_us: 1 << 40,
        };
        assert_eq!(Done::decode(&done.encode()), Some(done));
        assert_eq!(Done::decode(&[0; 31]), None);
    }
}
