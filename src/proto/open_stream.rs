//! One open request of a binary connection: its credit, and the text that waits for it.
//!
//! Invariant: `waiting` and `pieces` describe the same bytes: the lengths of the pieces add up to
//! what waits.

use std::collections::VecDeque;

use super::output::OutBuffer;
use crate::clock::Instant;
use crate::limits::{CREDIT_MAX, STREAM_BUFFER_BYTES_LOW, STREAM_BUFFER_BYTES_MAX};
use crate::wire::frame::{Done, FinishReason, Frame, FrameType, encode_frame};

/// What became of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// All of it is in the output.
    Sent,
    /// Some of it waits, for credit or for the socket.
    Waiting,
    /// So much waits that the backend should not be read until `Resumed`.
    Full,
}

/// How a request ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why the text ended.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Receipt to sent to the backend, in microseconds.
    pub queue_us: u64,
}

/// What bounds a chunk from outside.
pub(super) struct Room {
    /// Bytes of a payload.
    pub payload_max: u32,
    /// With so much in the output, nothing is added.
    pub high: usize,
}

#[derive(Debug)]
pub(super) struct OpenStream {
    pub id: u64,
    pub crc: bool,
    pub tag: u64,
    pub finish: Option<Finish>,
    /// A path call's body may be cut anywhere, a text not inside a character.
    raw: bool,
    full: bool,
    credit: u32,
    received: Instant,
    /// When the first text was there; `Instant::default()` before.
    first: Instant,
    /// When the last of what waits went out, or began to wait.
    moved: Instant,
    waiting: VecDeque<u8>,
    /// Bytes and tokens of each text that waits.
    pieces: VecDeque<(u32, u32)>,
}

impl OpenStream {
    pub fn new(frame: &Frame<'_>, raw: bool, now: Instant) -> OpenStream {
        OpenStream {
            id: frame.id,
            crc: frame.crc,
            tag: 0,
            finish: None,
            raw,
            full: false,
            credit: frame.aux,
            received: now,
            first: Instant::default(),
            moved: now,
            waiting: VecDeque::new(),
            pieces: VecDeque::new(),
        }
    }

    /// Adds credit; false: that is more than may be outstanding.
    pub fn grant(&mut self, bytes: u32) -> bool {
        match self.credit.checked_add(bytes) {
            Some(credit) if credit <= CREDIT_MAX => {
                self.credit = credit;
                true
            }
            _ => false,
        }
    }

    pub fn room(&self, payload_max: u32) -> usize {
        if self.is_waiting() { 0 } else { self.credit.min(payload_max) as usize }
    }

    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub fn stalled_since(&self) -> Option<Instant> {
        self.is_waiting().then_some(self.moved)
    }

    pub fn text(
        &mut self,
        now: Instant,
        bytes: &[u8],
        tokens: u32,
        room: &Room,
        out: &mut OutBuffer,
    ) -> Flow {
        debug_assert!(self.finish.is_none(), "text behind the end");
        if self.first == Instant::default() {
            self.first = now;
        }
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let fits = len <= self.credit.min(room.payload_max) && out.len() < room.high;
        if self.pieces.is_empty() && fits && len > 0 {
            self.credit -= len;
            encode_frame(out.tail(), FrameType::Chunk, self.id, tokens, bytes, self.crc);
            return Flow::Sent;
        }
        if self.waiting.is_empty() {
            self.moved = now;
        }
        self.waiting.extend(bytes);
        if len > 0 || tokens > 0 {
            self.pieces.push_back((len, tokens));
        }
        self.pump(now, room, out);
        if self.waiting.is_empty() {
            Flow::Sent
        } else if self.waiting.len() >= STREAM_BUFFER_BYTES_MAX {
            self.full = true;
            Flow::Full
        } else {
            Flow::Waiting
        }
    }

    /// Moves what credit, the client's payload limit and the output allow. True: it was full and
    /// has room again.
    pub fn pump(&mut self, now: Instant, room: &Room, out: &mut OutBuffer) -> bool {
        while !self.waiting.is_empty() && out.len() < room.high {
            let allowed = self.credit.min(room.payload_max) as usize;
            let take = self.cut(allowed.min(self.waiting.len()));
            if take == 0 {
                break;
            }
            let tokens = self.take_tokens(take);
            let chunk = &self.waiting.make_contiguous()[..take];
            encode_frame(out.tail(), FrameType::Chunk, self.id, tokens, chunk, self.crc);
            self.waiting.drain(..take);
            self.credit -= take as u32;
            self.moved = now;
        }
        if self.waiting.is_empty() && self.waiting.capacity() > 1024 {
            self.waiting = VecDeque::new();
            self.pieces.shrink_to(16);
        }
        let resumed = self.full && self.waiting.len() <= STREAM_BUFFER_BYTES_LOW;
        self.full &= !resumed;
        resumed
    }

    /// DONE, and ahead of it the tokens that ended in no text.
    pub fn done(&mut self, now: Instant, out: &mut OutBuffer) {
        debug_assert!(self.waiting.is_empty());
        let Some(finish) = self.finish else { return };
        let left: u32 = self.pieces.drain(..).map(|(_, tokens)| tokens).sum();
        if left > 0 {
            encode_frame(out.tail(), FrameType::Chunk, self.id, left, &[], self.crc);
        }
        let first = if self.first == Instant::default() { now } else { self.first };
        let done = Done {
            prompt_tokens: finish.prompt_tokens,
            completion_tokens: finish.completion_tokens,
            queue_us: finish.queue_us,
            first_us: first.micros_since(self.received),
            total_us: now.micros_since(self.received),
        };
        let aux = finish.reason as u32;
        encode_frame(out.tail(), FrameType::Done, self.id, aux, &done.encode(), self.crc);
    }

    /// The longest cut of at most `len` bytes that ends no chunk inside a character.
    fn cut(&self, mut len: usize) -> usize {
        if self.raw || len == self.waiting.len() {
            return len;
        }
        let continues = |byte: u8| byte & 0xc0 == 0x80;
        while len > 0 && continues(self.waiting[len]) {
            len -= 1;
        }
        len
    }

    /// Takes `bytes` off the pieces: the tokens that end within them, those without text of their
    /// own included.
    fn take_tokens(&mut self, bytes: usize) -> u32 {
        let (mut left, mut sum) = (bytes as u64, 0u32);
        while let Some((len, tokens)) = self.pieces.front_mut() {
            if u64::from(*len) > left {
                *len -= left as u32;
                break;
            }
            left -= u64::from(*len);
            sum += *tokens;
            self.pieces.pop_front();
        }
        sum
    }
}
