//! Bytes that a machine has made and its socket has not yet taken.

/// A queue of bytes: pushed at the end, sent from the front.
#[derive(Debug, Default)]
pub(super) struct OutBuffer {
    bytes: Vec<u8>,
    /// So many of them are sent. `sent <= bytes.len()`, and both are 0 when all is sent.
    sent: usize,
}

/// A buffer that is empty keeps this much memory for the next answer, and gives back more.
const KEPT_BYTES: usize = 1024;

impl OutBuffer {
    /// What is to be sent.
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Where to push.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Notes that the socket has taken `count` bytes.
    pub fn advance(&mut self, count: usize) {
        self.sent += count;
        assert!(self.sent <= self.bytes.len(), "more was sent than there was");
        if self.sent == self.bytes.len() {
            self.sent = 0;
            self.bytes.clear();
            if self.bytes.capacity() > KEPT_BYTES {
                self.bytes = Vec::new();
            }
        } else if self.sent >= 64 << 10 && self.sent * 2 > self.bytes.len() {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// How many bytes are pending.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }
}
