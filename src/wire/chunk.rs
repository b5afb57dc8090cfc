//! Chunked bodies of HTTP/1.1 (RFC 9112, section 7.1), both ways.

use super::http1::HttpError;
use crate::limits::HTTP_CHUNK_LINE_BYTES_MAX;

/// What ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Appends one chunk; nothing for no bytes, since an empty chunk would be the last.
pub fn encode_chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    let mut rest = bytes.len();
    while rest > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Takes a chunked body apart (RFC 9112, section 7.1). Extensions and trailers are read over,
/// bounded.
#[derive(Clone, Copy, Debug)]
pub struct ChunkDecoder {
    state: ChunkState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    /// At a size line.
    Size,
    /// Inside data, so many bytes left.
    Data(u64),
    /// At the CRLF behind data.
    DataEnd,
    /// At a line of the trailer section, which has taken so many bytes.
    Trailer(usize),
    /// Behind the end.
    Done,
}

/// What a decoder found at the start of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A part of the body.
    Data(&'a [u8]),
    /// Framing, or nothing: more input is needed if nothing was consumed.
    None,
    /// The body's end.
    End,
}

impl Default for ChunkDecoder {
    fn default() -> ChunkDecoder {
        ChunkDecoder::new()
    }
}

impl ChunkDecoder {
    /// At the start of a body.
    pub fn new() -> ChunkDecoder {
        ChunkDecoder { state: ChunkState::Size }
    }

    /// Takes a step: how much of `input` it used, and what that was.
    ///
    /// # Errors
    /// The body is malformed.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Piece<'a>), HttpError> {
        match self.state {
            ChunkState::Size => {
                let Some((line, used)) = chunk_line(input)? else { return Ok((0, Piece::None)) };
                self.state = match chunk_size(line)? {
                    0 => ChunkState::Trailer(0),
                    bytes => ChunkState::Data(bytes),
                };
                let (more, piece) = self.decode(&input[used..])?;
                Ok((used + more, piece))
            }
            ChunkState::Data(left) => {
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                if take == 0 {
                    return Ok((0, Piece::None));
                }
                let left = left - take as u64;
                if left > 0 {
                    self.state = ChunkState::Data(left);
                    return Ok((take, Piece::Data(&input[..take])));
                }
                self.state = ChunkState::DataEnd;
                // The CRLF behind the data is taken along when it is there: a step less for each
                // chunk.
                let mut used = take;
                if input[take..].starts_with(b"\r\n") {
                    self.state = ChunkState::Size;
                    used += 2;
                }
                Ok((used, Piece::Data(&input[..take])))
            }
            ChunkState::DataEnd => match input {
                [b'\r', b'\n', ..] => {
                    self.state = ChunkState::Size;
                    Ok((2, Piece::None))
                }
                [] | [b'\r'] => Ok((0, Piece::None)),
                _ => Err(HttpError::Chunk),
            },
            ChunkState::Trailer(taken) => {
                let Some((line, used)) = chunk_line(input)? else { return Ok((0, Piece::None)) };
                if line.is_empty() {
                    self.state = ChunkState::Done;
                    return Ok((used, Piece::End));
                }
                if taken + used > HTTP_CHUNK_LINE_BYTES_MAX {
                    return Err(HttpError::HeadTooLarge);
                }
                self.state = ChunkState::Trailer(taken + used);
                Ok((used, Piece::None))
            }
            ChunkState::Done => Ok((0, Piece::End)),
        }
    }
}

/// A line without its CRLF, and its length with it; None if it is not whole.
fn chunk_line(input: &[u8]) -> Result<Option<(&[u8], usize)>, HttpError> {
    let window = &input[..input.len().min(HTTP_CHUNK_LINE_BYTES_MAX)];
    match memchr::memchr(b'\n', window) {
        Some(at) if at > 0 && window[at - 1] == b'\r' => Ok(Some((&window[..at - 1], at + 1))),
        Some(_) => Err(HttpError::Chunk),
        None if window.len() == HTTP_CHUNK_LINE_BYTES_MAX => Err(HttpError::Chunk),
        None => Ok(None),
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, HttpError> {
    let end = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    let extension = line[end..].trim_ascii_start();
    if end == 0 || end > 15 || !(extension.is_empty() || extension[0] == b';') {
        return Err(HttpError::Chunk);
    }
    let digit = |b: u8| (b as char).to_digit(16).map_or(0, u64::from);
    Ok(line[..end].iter().fold(0, |size, &b| size << 4 | digit(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(mut input: &[u8]) -> Result<(Vec<u8>, bool), HttpError> {
        let (mut decoder, mut body) = (ChunkDecoder::new(), Vec::new());
        loop {
            let (used, piece) = decoder.decode(input)?;
            input = &input[used..];
            match piece {
                Piece::Data(bytes) => body.extend_from_slice(bytes),
                Piece::End => return Ok((body, true)),
                Piece::None if used == 0 => return Ok((body, false)),
                Piece::None => {}
            }
        }
    }

    #[test]
    fn chunks_there_and_back() {
        let mut bytes = Vec::new();
        encode_chunk(&mut bytes, b"");
        encode_chunk(&mut bytes, b"hello");
        encode_chunk(&mut bytes, &[b'x'; 300]);
        assert!(bytes.starts_with(b"5\r\nhello\r\n12c\r\n"));
        bytes.extend_from_slice(LAST_CHUNK);
        let (body, ended) = decode_all(&bytes).unwrap();
        assert!(ended && body.len() == 305);
        for cut in 0..bytes.len() {
            assert_eq!(decode_all(&bytes[..cut]).map(|(_, ended)| ended), Ok(false));
        }
        assert_eq!(decode_all(b"2 ;x=y\r\nab\r\n0\r\nA: b\r\n\r\n"), Ok((b"ab".to_vec(), true)));
        for bad in ["g\r\n", "\r\n", "2\nab", "1\r\nab\r\n", "ffffffffffffffff\r\n", "2 x\r\n"] {
            assert_eq!(decode_all(bad.as_bytes()), Err(HttpError::Chunk), "{bad:?}");
        }
        let long = format!("0\r\n{}", "A: b\r\n".repeat(1000));
        assert_eq!(decode_all(long.as_bytes()), Err(HttpError::HeadTooLarge));
    }
}
