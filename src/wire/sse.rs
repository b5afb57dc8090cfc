//! Server-sent events (the HTML standard, section 9.2): a stream is split at its blank lines.

use crate::limits::SSE_EVENT_BYTES_MAX;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// All its bytes, the blank line included.
    pub raw: &'a [u8],
    /// The value of its first `data` line; empty if it has none (a comment, a ping). No backend
    /// sends JSON on several lines.
    pub data: &'a [u8],
}

/// An event is longer than `SSE_EVENT_BYTES_MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Splits a stream into events; one that is whole in the input is not copied.
#[derive(Clone, Debug, Default)]
pub struct SseSplitter {
    /// The start of an event whose end has not come.
    held: Vec<u8>,
}

impl SseSplitter {
    /// At the start of a stream.
    pub fn new() -> SseSplitter {
        SseSplitter::default()
    }

    /// Hands each event that ends in `input` to `each`.
    ///
    /// # Errors
    /// An event is too long.
    pub fn feed(
        &mut self,
        mut input: &[u8],
        mut each: impl FnMut(SseEvent<'_>),
    ) -> Result<(), TooLong> {
        if !self.held.is_empty() {
            // The blank line may have begun in what is held: at most three bytes of it.
            let from = self.held.len().saturating_sub(3);
            let before = self.held.len();
            let tail = input.len().min(3);
            self.held.extend_from_slice(&input[..tail]);
            let end = match event_end(&self.held, from) {
                Some(end) => Some(end),
                None => {
                    self.held.extend_from_slice(&input[tail..]);
                    event_end(&self.held, from)
                }
            };
            let Some(end) = end else { return self.bounded() };
            each(event(&self.held[..end]));
            input = &input[end - before..];
            self.held.clear();
            if self.held.capacity() > 4096 {
                self.held = Vec::new();
            }
        }
        while let Some(end) = event_end(input, 0) {
            each(event(&input[..end]));
            input = &input[end..];
        }
        self.held.extend_from_slice(input);
        self.bounded()
    }

    /// Whether no event has been begun and not ended.
    pub fn is_between_events(&self) -> bool {
        self.held.is_empty()
    }

    fn bounded(&self) -> Result<(), TooLong> {
        if self.held.len() > SSE_EVENT_BYTES_MAX { Err(TooLong) } else { Ok(()) }
    }
}

/// Where the first event ends, looking for its blank line from `from` on.
fn event_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(found) = memchr::memchr(b'\n', bytes.get(at..)?) {
        let line_end = at + found + 1;
        match bytes.get(line_end..) {
            Some([b'\n', ..]) => return Some(line_end + 1),
            Some([b'\r', b'\n', ..]) => return Some(line_end + 2),
            _ => at = line_end,
        }
    }
    None
}

fn event(raw: &[u8]) -> SseEvent<'_> {
    // Nearly always it is the first line, and its end is the event's.
    let data = match raw.strip_prefix(b"data:").and_then(|data| data.strip_suffix(b"\n\n")) {
        Some(data) if memchr::memchr(b'\n', data).is_none() => Some(data),
        _ => raw.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"data:")),
    };
    let data = data.map_or(&b""[..], |data| {
        let data = data.strip_prefix(b" ").unwrap_or(data);
        data.strip_suffix(b"\r").unwrap_or(data)
    });
    SseEvent { raw, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(parts: &[&[u8]]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (mut splitter, mut events) = (SseSplitter::new(), Vec::new());
        for part in parts {
            splitter.feed(part, |e| events.push((e.raw.to_vec(), e.data.to_vec()))).unwrap();
        }
        events
    }

    #[test]
    fn events_comments_and_line_ends() {
        let stream = b"data: {\"a\":1}\n\n:\n\ndata:x\r\n\r\nevent: e\ndata: y\n\ndata: cut";
        let events = split(&[stream]);
        let data: Vec<_> = events.iter().map(|(_, data)| data.as_slice()).collect();
        assert_eq!(data, [&b"{\"a\":1}"[..], b"", b"x", b"y"]);
        assert_eq!(events[1].0, b":\n\n");
        for cut in 0..=stream.len() {
            assert_eq!(split(&[&stream[..cut], &stream[cut..]]), events, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(split(&bytes), events);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut splitter = SseSplitter::new();
        let part = vec![b'x'; 1 << 20];
        let refused = (0..64).find_map(|_| splitter.feed(&part, |_| {}).err());
        assert_eq!(refused, Some(TooLong));
    }
}
