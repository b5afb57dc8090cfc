//! gRPC's unary calls (grpc.io, "gRPC over HTTP/2") on HTTP/2 without TLS (RFC 9113), one call at a
//! time on a connection, as far as SeaweedFS's filer needs them.
//!
//! ```text
//!   frame    length:24 type:8 flags:8 stream:32, then `length` bytes
//!   message  compressed:8 = 0  length:32, then protocol buffers; in DATA frames
//!   call     HEADERS, DATA…  ->        <-  HEADERS, DATA…, HEADERS with grpc-status
//! ```

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Mutex;

use super::hpack;
use super::http::Fault;
use crate::limits::{FILER_CONNECTIONS_MAX, FILER_STALL_MAX};

/// A server, and the connections to it that wait for the next call.
pub struct Channel {
    address: String,
    idle: Mutex<Vec<Connection<TcpStream>>>,
}

/// An answer beyond this is none of the few that are asked for.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Largest frame, until the other side says otherwise, and what this side always takes.
const FRAME_BYTES: usize = 16 << 10;
/// What may be sent before the other side makes room, until it says otherwise.
const WINDOW_BYTES: i64 = 65_535;
/// How long a connection is waited for: the filer answers HTTP already, so what does not come at
/// once does not come.
const CONNECT_MAX: std::time::Duration = std::time::Duration::from_secs(2);

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

impl Channel {
    /// Connects with the first call.
    pub fn new(address: String) -> Channel {
        Channel { address, idle: Mutex::new(Vec::new()) }
    }

    /// One call: the message that answers, or what is wrong.
    ///
    /// # Errors
    /// No connection, no gRPC, or the status with which the call ended.
    pub fn call(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let pooled = self.idle.lock().expect("no thread panics with it").pop();
        let mut connection = match pooled {
            Some(connection) => connection,
            None => self
                .connect()
                .map_err(|error| Fault::passing(format!("gRPC at {}: {error}", self.address)))?,
        };
        let answer = connection.call(&self.address, method, message);
        if connection.is_usable {
            let mut idle = self.idle.lock().expect("no thread panics with it");
            if idle.len() < FILER_CONNECTIONS_MAX {
                idle.push(connection);
            }
        }
        answer
    }

    fn connect(&self) -> io::Result<Connection<TcpStream>> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in self.address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT_MAX) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(FILER_STALL_MAX))?;
                    stream.set_write_timeout(Some(FILER_STALL_MAX))?;
                    return Connection::open(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// A connection; generic, so that tests can play the other side.
struct Connection<S> {
    stream: S,
    next_stream: u32,
    /// What may still be sent on the connection.
    window: i64,
    /// What may be sent on a new stream.
    stream_window: i64,
    frame_bytes: usize,
    is_usable: bool,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// What has come of a call.
#[derive(Default)]
struct Reply {
    data: Vec<u8>,
    block: Vec<u8>,
    status: Option<u32>,
    message: String,
    is_ended: bool,
}

impl<S: Read + Write> Connection<S> {
    fn open(mut stream: S) -> io::Result<Connection<S>> {
        // SETTINGS_HEADER_TABLE_SIZE and SETTINGS_ENABLE_PUSH, both 0.
        let settings = [0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0];
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        put_frame(&mut hello, kind::SETTINGS, 0, 0, &settings);
        stream.write_all(&hello)?;
        Ok(Connection {
            stream,
            next_stream: 1,
            window: WINDOW_BYTES,
            stream_window: WINDOW_BYTES,
            frame_bytes: FRAME_BYTES,
            is_usable: true,
        })
    }

    fn call(&mut self, authority: &str, method: &str, message: &[u8]) -> Result<Vec<u8>, Fault> {
        // Until the call has ended well, nobody knows what is left in the connection.
        self.is_usable = false;
        let mut reply = Reply::default();
        let stream = self.next_stream;
        let exchanged = self.exchange(stream, authority, method, message, &mut reply);
        exchanged.map_err(|error| Fault::passing(format!("gRPC at {authority}: {error}")))?;
        self.next_stream += 2;
        self.is_usable = self.next_stream < 1 << 30;
        reply.judge()
    }

    fn exchange(
        &mut self,
        stream: u32,
        authority: &str,
        method: &str,
        message: &[u8],
        reply: &mut Reply,
    ) -> io::Result<()> {
        let mut head = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ] {
            hpack::put(&mut head, name, value);
        }
        let mut out = Vec::new();
        put_frame(&mut out, kind::HEADERS, END_HEADERS, stream, &head);

        let length = u32::try_from(message.len()).map_err(io::Error::other)?;
        let body = [&[0][..], &length.to_be_bytes(), message].concat();
        let mut rest = body.as_slice();
        let mut window = self.stream_window;
        while !rest.is_empty() {
            let room = self.window.min(window).clamp(0, self.frame_bytes as i64) as usize;
            if room == 0 {
                self.stream.write_all(&out)?;
                out.clear();
                let before = self.stream_window;
                window += self.step(stream, reply)? + self.stream_window - before;
                if reply.is_ended {
                    return Ok(());
                }
                continue;
            }
            let (piece, left) = rest.split_at(room.min(rest.len()));
            let flags = if left.is_empty() { END_STREAM } else { 0 };
            put_frame(&mut out, kind::DATA, flags, stream, piece);
            self.window -= piece.len() as i64;
            window -= piece.len() as i64;
            rest = left;
        }
        self.stream.write_all(&out)?;
        while !reply.is_ended {
            self.step(stream, reply)?;
        }
        Ok(())
    }

    /// Takes one frame. Returns by how much the stream's window grew.
    fn step(&mut self, stream: u32, reply: &mut Reply) -> io::Result<i64> {
        let frame = self.read()?;
        let word = |at: usize| {
            let bytes = frame.payload.get(at..at + 4);
            let bytes = bytes.ok_or_else(|| bad("a frame that is too short"))?;
            Ok::<u32, io::Error>(u32::from_be_bytes(bytes.try_into().expect("four bytes")))
        };
        match frame.kind {
            kind::SETTINGS if frame.flags & ACK == 0 => {
                for setting in frame.payload.chunks_exact(6) {
                    let value = u32::from_be_bytes(setting[2..].try_into().expect("four bytes"));
                    match setting[1] {
                        4 => self.stream_window = i64::from(value),
                        5 => self.frame_bytes = (value as usize).clamp(FRAME_BYTES, 1 << 20),
                        _ => {}
                    }
                }
                self.write(kind::SETTINGS, ACK, 0, &[])?;
            }
            kind::PING if frame.flags & ACK == 0 => {
                self.write(kind::PING, ACK, 0, &frame.payload)?;
            }
            kind::WINDOW_UPDATE => {
                let more = i64::from(word(0)? & 0x7fff_ffff);
                if frame.stream == stream {
                    return Ok(more);
                }
                self.window += if frame.stream == 0 { more } else { 0 };
            }
            kind::GOAWAY => return Err(bad("the server is going away")),
            kind::RST_STREAM if frame.stream == stream => {
                return Err(bad(&format!("the call was reset (code {})", word(0)?)));
            }
            kind::DATA if frame.stream == stream => {
                let length = frame.payload.len() as u32;
                if length > 0 {
                    // All that was taken is room again, for the connection and the stream.
                    self.write(kind::WINDOW_UPDATE, 0, 0, &length.to_be_bytes())?;
                    self.write(kind::WINDOW_UPDATE, 0, stream, &length.to_be_bytes())?;
                }
                reply.data(&frame)?;
            }
            kind::HEADERS | kind::CONTINUATION if frame.stream == stream => reply.head(&frame)?,
            _ => {}
        }
        Ok(0)
    }

    fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if length > FRAME_BYTES {
            return Err(bad("it does not speak HTTP/2"));
        }
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(9 + payload.len());
        put_frame(&mut frame, kind, flags, stream, payload);
        self.stream.write_all(&frame)
    }
}

impl Reply {
    fn data(&mut self, frame: &Frame) -> io::Result<()> {
        self.data.extend_from_slice(unpadded(frame)?);
        if self.data.len() > MESSAGE_BYTES_MAX {
            return Err(bad("an answer that is too long"));
        }
        self.is_ended |= frame.flags & END_STREAM != 0;
        Ok(())
    }

    fn head(&mut self, frame: &Frame) -> io::Result<()> {
        let mut payload = match frame.kind {
            kind::HEADERS => unpadded(frame)?,
            _ => &frame.payload,
        };
        if frame.kind == kind::HEADERS {
            self.block.clear();
            self.is_ended |= frame.flags & END_STREAM != 0;
            if frame.flags & PRIORITY != 0 {
                payload = payload.get(5..).ok_or_else(|| bad("a frame that is too short"))?;
            }
        }
        self.block.extend_from_slice(payload);
        if self.block.len() > MESSAGE_BYTES_MAX {
            return Err(bad("headers that are too long"));
        }
        if frame.flags & END_HEADERS == 0 {
            return Ok(());
        }
        let fields = hpack::fields(&self.block).ok_or_else(|| bad("headers that are none"))?;
        for (name, value) in fields {
            let value = String::from_utf8_lossy(&value);
            match name.as_slice() {
                b"grpc-status" => self.status = value.parse().ok(),
                b"grpc-message" => self.message = value.into_owned(),
                _ => {}
            }
        }
        Ok(())
    }

    fn judge(self) -> Result<Vec<u8>, Fault> {
        match self.status {
            Some(0) => {}
            Some(status) => {
                // Of the codes these may pass: cancelled, unknown, deadline exceeded, resource
                // exhausted, aborted, internal, unavailable.
                return Err(Fault {
                    reason: format!("gRPC status {status}: {}", self.message),
                    is_retryable: matches!(status, 1 | 2 | 4 | 8 | 10 | 13 | 14),
                    status: 0,
                });
            }
            None => return Err(Fault::last("it answers without a gRPC status")),
        }
        let Some((head, message)) = self.data.split_at_checked(5) else {
            return Err(Fault::last("it answers without a message"));
        };
        let length = u32::from_be_bytes(head[1..].try_into().expect("four bytes")) as usize;
        if head[0] != 0 || length != message.len() {
            return Err(Fault::last("it answers with a message of another length"));
        }
        Ok(message.to_vec())
    }
}

fn unpadded(frame: &Frame) -> io::Result<&[u8]> {
    if frame.flags & PADDED == 0 {
        return Ok(&frame.payload);
    }
    let padding = usize::from(*frame.payload.first().unwrap_or(&0));
    let end = frame.payload.len().checked_sub(padding).filter(|end| *end > 0);
    end.map(|end| &frame.payload[1..end]).ok_or_else(|| bad("more padding than bytes"))
}

fn put_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
