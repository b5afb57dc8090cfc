//! Lines of a file, read in big blocks; a block is read once as long as the reader goes forward.
//!
//! ```text
//!   file    ......|read, passed|read, not passed|not read......
//!   buffer        [0 .. begin) [begin .. end)   .. spare
//!                 ^ at
//! ```
//!
//! A line longer than the limit is not held whole: its head stands for it.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;

use super::row;
use crate::limits::{BATCH_BLOCK_BYTES, HTTP_BODY_BYTES_MAX};

/// Bytes that can be read from a place on.
pub(super) trait Bytes {
    /// Reads some bytes at `at`; 0: there are none there.
    fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<usize>;
}

impl Bytes for File {
    fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, into, at)
    }
}

/// A pipe: to be read from its start to its end.
pub(super) struct Pipe<R>(pub R);

impl<R: Read> Bytes for Pipe<R> {
    fn read_at(&mut self, _: u64, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// The byte at which it begins.
    pub at: u64,
    /// Its bytes in the file, the line's end included.
    pub mass: u64,
    /// The line with its end; of one over the limit the head.
    pub bytes: &'a [u8],
    /// Whether a line's end stands behind it.
    pub ended: bool,
}

impl<'a> Line<'a> {
    /// The row in it: none in a blank line, and of an overlong row what stands for it.
    pub fn row(&self) -> Option<Cow<'a, [u8]>> {
        if self.mass > HTTP_BODY_BYTES_MAX as u64 {
            return Some(Cow::Owned(row::overlong(self.bytes, self.mass)));
        }
        let row = row::trim(self.bytes);
        (!row.trim_ascii().is_empty()).then_some(Cow::Borrowed(row))
    }
}

/// The lines of something, from any place on.
pub(super) struct Lines<B> {
    bytes: B,
    buffer: Vec<u8>,
    head: Vec<u8>,
    at: u64,
    begin: usize,
    end: usize,
    block: usize,
    limit: usize,
}

impl<B: Bytes> Lines<B> {
    /// Of rows.
    pub fn rows(bytes: B) -> Lines<B> {
        Lines::new(bytes, BATCH_BLOCK_BYTES, HTTP_BODY_BYTES_MAX)
    }

    /// In blocks of `block` bytes; a line has at most `limit`.
    pub fn new(bytes: B, block: usize, limit: usize) -> Lines<B> {
        Lines { bytes, buffer: Vec::new(), head: Vec::new(), at: 0, begin: 0, end: 0, block, limit }
    }

    /// The byte at which the next line begins.
    pub fn position(&self) -> u64 {
        self.at + self.begin as u64
    }

    /// What is read, for other uses of it.
    pub fn bytes(&mut self) -> &mut B {
        &mut self.bytes
    }

    /// Goes to a place; blocks are kept if it lies in what was read.
    pub fn seek(&mut self, to: u64) {
        match to.checked_sub(self.at) {
            Some(inside) if inside <= self.end as u64 => self.begin = inside as usize,
            _ => (self.at, self.begin, self.end) = (to, 0, 0),
        }
    }

    /// Goes on to the start of the next line that begins at `from` or later, unless that is at
    /// `until` or later; where `from` is itself a line's start is known from the byte before it.
    pub fn seek_line(&mut self, from: u64, until: u64) -> io::Result<()> {
        let Some(before) = from.checked_sub(1) else {
            self.seek(0);
            return Ok(());
        };
        self.seek(before);
        while self.position() < until {
            if let Some(length) = line_length(&self.buffer[self.begin..self.end]) {
                self.begin += length;
                break;
            }
            self.begin = self.end;
            if self.fill()? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The next line, or none at the end.
    pub fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        let mut searched = 0;
        loop {
            if let Some(length) = line_length(&self.buffer[self.begin + searched..self.end]) {
                return Ok(Some(self.pass(searched + length, true)));
            }
            searched = self.end - self.begin;
            if searched > self.limit {
                return self.pass_overlong().map(Some);
            }
            if self.fill()? == 0 {
                return Ok((searched > 0).then(|| self.pass(searched, false)));
            }
        }
    }

    /// How many lines follow. They are passed.
    pub fn count(&mut self) -> io::Result<usize> {
        let mut count = 0;
        while self.next()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    fn pass(&mut self, length: usize, ended: bool) -> Line<'_> {
        let at = self.position();
        let bytes = &self.buffer[self.begin..self.begin + length];
        self.begin += length;
        Line { at, mass: length as u64, bytes, ended }
    }

    fn pass_overlong(&mut self) -> io::Result<Line<'_>> {
        let at = self.position();
        let head = row::HEAD_BYTES.min(self.limit);
        self.head = self.buffer[self.begin..self.begin + head].to_vec();
        let mut ended = false;
        while !ended {
            let length = line_length(&self.buffer[self.begin..self.end]);
            self.begin = length.map_or(self.end, |length| self.begin + length);
            ended = length.is_some();
            if !ended && self.fill()? == 0 {
                break;
            }
        }
        Ok(Line { at, mass: self.position() - at, bytes: &self.head, ended })
    }

    /// Reads on behind what was read; what was passed may go.
    fn fill(&mut self) -> io::Result<usize> {
        if self.begin == self.end {
            self.at += self.begin as u64;
            (self.begin, self.end) = (0, 0);
            if self.buffer.len() > 4 * self.block {
                self.buffer = Vec::new();
            }
        } else if self.buffer.len() - self.end < self.block && self.begin >= self.block {
            self.buffer.copy_within(self.begin..self.end, 0);
            self.at += self.begin as u64;
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        if self.buffer.len() - self.end < self.block {
            // Doubled, so that a long line is not copied once a block.
            let more = self.block.max(self.end.min(self.limit));
            self.buffer.resize(self.end + more, 0);
        }
        let to = self.at + self.end as u64;
        loop {
            match self.bytes.read_at(to, &mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
            }
        }
    }
}

/// Bytes up to the first line's end, that included. By way of `BufRead`, whose search is the C
/// library's, many bytes at a time.
pub(super) fn line_length(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    let length = rest.skip_until(b'\n').unwrap_or(0);
    bytes[..length].ends_with(b"\n").then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Bytes for &[u8] {
        fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<usize> {
            let from = self.get(at as usize..).unwrap_or_default();
            let count = from.len().min(into.len());
            into[..count].copy_from_slice(&from[..count]);
            Ok(count)
        }
    }

    proptest! {
        #[test]
        fn lines_are_those_of_split(
            text in "[ab\n]{0,200}", block in 1usize..20, limit in 1usize..30, from in 0usize..200,
        ) {
            let mut lines = Lines::new(text.as_bytes(), block, limit);
            let mut at = 0;
            for expected in text.as_bytes().split_inclusive(|&byte| byte == b'\n') {
                let line = lines.next().unwrap().unwrap();
                prop_assert_eq!((line.at, line.mass), (at, expected.len() as u64));
                prop_assert_eq!(line.ended, expected.ends_with(b"\n"));
                let overlong = line.bytes.len() < expected.len();
                prop_assert!(expected.starts_with(line.bytes));
                prop_assert!(!overlong || expected.len() > limit);
                at += expected.len() as u64;
            }
            prop_assert!(lines.next().unwrap().is_none());
            // From anywhere, also backward: the next line's start.
            let from = from.min(text.len());
            let is_start = from == 0 || text.as_bytes()[from - 1] == b'\n';
            let next = text[from..].find('\n').map_or(text.len(), |found| from + found + 1);
            lines.seek_line(from as u64, u64::MAX).unwrap();
            prop_assert_eq!(lines.position() as usize, if is_start { from } else { next });
        }
    }

    #[test]
    fn going_on_reads_nothing_twice() {
        struct Counted<'a>(&'a [u8], usize);
        impl Bytes for Counted<'_> {
            fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<usize> {
                let count = self.0.read_at(at, into)?;
                self.1 += count;
                Ok(count)
            }
        }
        let text = "0123456789\n".repeat(10_000);
        let mut lines = Lines::new(Counted(text.as_bytes(), 0), 4096, 1 << 20);
        while lines.next().unwrap().is_some() {}
        assert_eq!(lines.bytes().1, text.len());
    }

    #[test]
    fn blank_lines_are_no_rows_and_overlong_ones_are_bad_ones() {
        let line = |bytes, mass| Line { at: 0, mass, bytes, ended: true };
        assert_eq!(line(b" \t\r\n", 4).row(), None);
        assert_eq!(line(b"{}\r\n", 4).row().as_deref(), Some(&b"{}"[..]));
        let mass = HTTP_BODY_BYTES_MAX as u64 + 1;
        assert_eq!(line(b"{\"cu", mass).row().as_deref(), Some(&b"{\"cu\x0016777217"[..]));
    }
}
