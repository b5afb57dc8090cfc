//! One client connection: its socket, and the machine of the protocol it speaks.

use std::net::TcpStream;

use crate::clock::Instant;
use crate::net::Token;
use crate::net::socket;
use crate::proto::binary_server::BinaryServer;
use crate::proto::http_server::HttpServer;

/// A client connection.
#[derive(Debug)]
pub struct Connection {
    /// Its socket.
    pub stream: TcpStream,
    /// The machine.
    pub protocol: Protocol,
    /// Input that the machine could not use yet.
    pub held: Vec<u8>,
    /// There may be something to read.
    pub readable: bool,
    /// The poller said that the peer sends no more.
    pub hangup: bool,
    /// The end of what it sends was read.
    pub ended: bool,
    /// When what was read last came, by the kernel's stamp; None: none was asked for.
    pub arrived: Option<Instant>,
    /// It waits to be flushed at the end of the turn.
    pub is_dirty: bool,
    /// All that is pending goes out, then what the peer still sends is read over until it closes or
    /// this passes.
    pub lingering: Option<Instant>,
    /// Since when it has owed a whole head.
    pub head_since: Instant,
    /// The nearest entry of it among the timers.
    pub timer_at: Instant,
}

/// What a connection speaks.
#[derive(Debug)]
pub enum Protocol {
    /// Not known yet.
    Undetected,
    /// The binary protocol.
    Binary(Box<BinaryServer>),
    /// HTTP/1.
    Http(Box<Http>),
}

/// An HTTP connection, and the request that is being read or answered.
#[derive(Debug, Default)]
pub struct Http {
    /// The machine.
    pub server: HttpServer,
    /// The request that is being answered.
    pub request: Option<Token>,
    /// What is known of the request that is being read.
    pub asked: Asked,
}

/// A request's head and body, as they come.
#[derive(Debug, Default)]
pub struct Asked {
    /// The method.
    pub method: String,
    /// The path with its query.
    pub target: String,
    /// What goes out as `X-Request-Id`.
    pub request_id: String,
    /// `traceparent`.
    pub traceparent: Option<String>,
    /// `X-Session-Id`.
    pub session: Option<String>,
    /// `X-Priority`.
    pub priority: Option<String>,
    /// `X-Deadline-Ms`.
    pub deadline_ms: Option<String>,
    /// The body so far.
    pub body: Vec<u8>,
}

impl Connection {
    /// A connection that was accepted just now.
    pub fn new(stream: TcpStream, now: Instant) -> Connection {
        Connection {
            stream,
            protocol: Protocol::Undetected,
            held: Vec::new(),
            readable: true,
            hangup: false,
            ended: false,
            arrived: None,
            is_dirty: false,
            lingering: None,
            head_since: now,
            timer_at: Instant::FAR,
        }
    }

    /// What the socket should write.
    pub fn pending(&self) -> &[u8] {
        match &self.protocol {
            Protocol::Undetected => &[],
            Protocol::Binary(server) => server.pending(),
            Protocol::Http(http) => http.server.pending(),
        }
    }

    fn sent(&mut self, count: usize) {
        match &mut self.protocol {
            Protocol::Undetected => {}
            Protocol::Binary(server) => server.sent(count),
            Protocol::Http(http) => http.server.sent(count),
        }
    }

    /// Writes what the socket takes; false: the connection is broken.
    pub fn write(&mut self) -> bool {
        while !self.pending().is_empty() {
            match socket::write(&self.stream, self.pending()) {
                Ok(0) => return true,
                Ok(count) => self.sent(count),
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether its machine wants it closed once all is sent.
    pub fn wants_close(&self) -> bool {
        match &self.protocol {
            Protocol::Undetected => false,
            Protocol::Binary(server) => server.wants_close(),
            Protocol::Http(http) => http.server.wants_close(),
        }
    }

    /// Whether it owes a whole head, so that it must not take for ever.
    pub fn owes_head(&self) -> bool {
        match &self.protocol {
            // One that has said nothing costs no more than one that is idle after a request.
            Protocol::Undetected | Protocol::Binary(_) => !self.held.is_empty(),
            Protocol::Http(http) => http.server.is_reading(),
        }
    }

    /// Whether nothing is under way on it.
    pub fn is_quiet(&self) -> bool {
        let quiet = match &self.protocol {
            Protocol::Undetected => true,
            Protocol::Binary(server) => server.open_streams() == 0,
            Protocol::Http(http) => !http.server.is_answering() && !http.server.is_reading(),
        };
        quiet && self.pending().is_empty()
    }
}
