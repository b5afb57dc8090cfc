//! Binary connections to gateways: up to 64 requests each, as many connections as that takes.
//!
//! A connection that breaks fails the requests on it, and the next request opens another. What is
//! told of a request comes under the tag that it was sent with.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::backend::{Answer, Failure, FailureKind};
use crate::limits::{OPEN_REQUESTS_MAX, SERVER_PAYLOAD_BYTES_MAX};
use crate::net::socket::{self, Incoming};
use crate::net::{Reactor, Readiness, Slab, Token};
use crate::proto::binary_client::{BinaryClient, ClientEvent};
use crate::wire::frame::{Done, ErrorCode, FinishReason};
use crate::wire::message::{Hello, Infer};
use crate::wire::openai::error_body;

/// What a gateway told of a request.
#[derive(Debug)]
pub enum Told<'a> {
    /// Text, or a part of a plain answer.
    Bytes {
        /// Any bytes.
        bytes: &'a [u8],
        /// Tokens that end in it.
        tokens: u32,
    },
    /// The good end.
    Done(FinishReason, Done),
    /// The bad end.
    Fail(Failure),
}

/// Receives what is told, under a request's tag.
pub type Sink<'s> = dyn FnMut(u64, Told<'_>) + 's;

/// The connections of one worker.
#[derive(Debug)]
pub struct Links {
    links: Slab<Link>,
    peers: Vec<Peer>,
    connect_timeout: Duration,
}

/// A gateway.
#[derive(Debug)]
struct Peer {
    name: String,
    token: Option<String>,
    address: Option<SocketAddr>,
    /// The largest payload that it takes.
    payload_max: u32,
    links: Vec<Token>,
}

#[derive(Debug)]
struct Link {
    stream: TcpStream,
    client: BinaryClient,
    peer: usize,
    /// Input that the machine could not use yet.
    held: Vec<u8>,
    open: HashMap<u64, Open>,
    last_id: u64,
    requests_max: u32,
    connected: bool,
    greeted: bool,
    /// It takes no new requests: the gateway drains.
    going: bool,
    readable: bool,
    hangup: bool,
}

#[derive(Debug)]
struct Open {
    tag: u64,
    /// Bytes that came and are not granted anew yet.
    owed_credit: u32,
}

/// Credit of a request. It is granted anew in halves, so that none is sent for each token.
const CREDIT: u32 = 256 << 10;
/// Room in a payload for the fields besides what is asked.
const FIELD_BYTES_MAX: usize = 4 << 10;

impl Links {
    /// No connection yet; `peers` have a name and a token each.
    pub fn new(
        kind: u8,
        peers: impl Iterator<Item = (String, Option<String>, Option<SocketAddr>)>,
        connect_timeout: Duration,
    ) -> Links {
        let payload_max = SERVER_PAYLOAD_BYTES_MAX;
        let peer =
            |(name, token, address)| Peer { name, token, address, payload_max, links: Vec::new() };
        Links { links: Slab::new(kind), peers: peers.map(peer).collect(), connect_timeout }
    }

    /// Notes where a gateway is now.
    pub fn set_address(&mut self, peer: usize, address: SocketAddr) {
        self.peers[peer].address = Some(address);
    }

    /// Whether a request of so many bytes fits a payload.
    pub fn fits(&self, peer: usize, bytes: usize) -> bool {
        bytes + FIELD_BYTES_MAX <= self.peers[peer].payload_max as usize
    }

    /// Sends a request; what it was given is for `cancel`.
    ///
    /// # Errors
    /// There is no connection, and none can be had.
    pub fn send(
        &mut self,
        reactor: &mut Reactor,
        peer: usize,
        tag: u64,
        infer: &Infer<'_>,
    ) -> Result<(Token, u64), Failure> {
        let has_room = |token: &Token| self.links.get(*token).is_some_and(Link::has_room);
        let token = match self.peers[peer].links.iter().copied().find(has_room) {
            Some(token) => token,
            None => self.connect(reactor, peer)?,
        };
        let link = self.links.get_mut(token).expect("it was found or put in just now");
        link.last_id += 1;
        let id = link.last_id;
        link.client.infer(id, infer, CREDIT);
        link.open.insert(id, Open { tag, owed_credit: 0 });
        link.write();
        Ok((token, id))
    }

    /// Ends a request; nothing more is told of it.
    pub fn cancel(&mut self, token: Token, id: u64) {
        let Some(link) = self.links.get_mut(token) else { return };
        if link.open.remove(&id).is_some() {
            link.client.cancel(id);
            link.write();
        }
    }

    /// Handles an event of a connection. True: it has more to read, call `read` again soon.
    pub fn event(
        &mut self,
        reactor: &mut Reactor,
        token: Token,
        readiness: Readiness,
        sink: &mut Sink<'_>,
    ) -> bool {
        let Some(link) = self.links.get_mut(token) else { return false };
        link.readable |= readiness.readable;
        link.hangup |= readiness.closed;
        if readiness.writable && !link.connected {
            if let Ok(Some(error)) = link.stream.take_error() {
                self.lost(token, &error.to_string(), sink);
                return false;
            }
            link.connected = !readiness.closed;
        }
        link.write();
        self.read(reactor, token, sink)
    }

    /// Reads what there is, once. True: there may be more.
    pub fn read(&mut self, reactor: &mut Reactor, token: Token, sink: &mut Sink<'_>) -> bool {
        let Some(link) = self.links.get_mut(token) else { return false };
        if !link.readable {
            return false;
        }
        let mut scratch = std::mem::take(&mut reactor.scratch);
        let more = match socket::read(&link.stream, &mut scratch) {
            Incoming::WouldBlock => {
                link.readable = false;
                false
            }
            Incoming::Bytes(count) => {
                link.readable = count == scratch.len() || link.hangup;
                let more = link.readable;
                self.received(token, &scratch[..count], sink);
                more
            }
            Incoming::Closed => {
                self.lost(token, "it closed the connection", sink);
                false
            }
            Incoming::Broken(code) => {
                let error = std::io::Error::from_raw_os_error(code);
                self.lost(token, &error.to_string(), sink);
                false
            }
        };
        reactor.scratch = scratch;
        more
    }

    /// A connection's timer fired: it should stand by now.
    pub fn timer(&mut self, token: Token, sink: &mut Sink<'_>) {
        let Some(link) = self.links.get(token) else { return };
        if !link.greeted {
            let limit = self.connect_timeout.as_secs_f64();
            let message = format!("{}: no connection after {limit} s", self.peers[link.peer].name);
            self.fail(token, &Failure::backend(ErrorCode::Deadline, message), sink);
        }
    }

    fn connect(&mut self, reactor: &mut Reactor, peer: usize) -> Result<Token, Failure> {
        let Peer { name, token, address, .. } = &self.peers[peer];
        let failure = |message: String| Failure::backend(ErrorCode::Backend, message);
        let address =
            address.ok_or_else(|| failure(format!("{name}: its address is not known")))?;
        let connecting = |error| failure(format!("connecting to {name}: {error}"));
        let stream = socket::connect(address, None).map_err(connecting)?;
        let mut client = BinaryClient::new();
        client.hello(&Hello {
            agent: Some(concat!("cnse/", env!("CARGO_PKG_VERSION"))),
            token: token.as_deref().map(str::as_bytes),
            max_payload: None,
            max_requests: None,
        });
        let link = self.links.insert(Link {
            stream,
            client,
            peer,
            held: Vec::new(),
            open: HashMap::new(),
            last_id: 0,
            requests_max: OPEN_REQUESTS_MAX,
            connected: false,
            greeted: false,
            going: false,
            readable: false,
            hangup: false,
        });
        let stream = &self.links.get(link).expect("it was put in just now").stream;
        if let Err(error) = reactor.poller.register(stream, link) {
            let error = connecting(error);
            self.links.remove(link);
            return Err(error);
        }
        reactor.timers.set(reactor.now + self.connect_timeout, link);
        self.peers[peer].links.push(link);
        Ok(link)
    }

    fn received(&mut self, token: Token, input: &[u8], sink: &mut Sink<'_>) {
        let Some(link) = self.links.get_mut(token) else { return };
        link.connected = true;
        let mut held = std::mem::take(&mut link.held);
        let whole = !held.is_empty();
        if whole {
            held.extend_from_slice(input);
        }
        let input = if whole { &held } else { input };
        let mut used = 0;
        loop {
            let Some(link) = self.links.get_mut(token) else { return };
            let payload_max = &mut self.peers[link.peer].payload_max;
            match link.step(&input[used..], payload_max, sink) {
                Ok(0) => break,
                Ok(consumed) => used += consumed,
                Err(failure) => return self.fail(token, &failure, sink),
            }
        }
        let Some(link) = self.links.get_mut(token) else { return };
        link.held.extend_from_slice(&input[used..]);
        link.write();
    }

    fn lost(&mut self, token: Token, reason: &str, sink: &mut Sink<'_>) {
        let Some(link) = self.links.get(token) else { return };
        let name = &self.peers[link.peer].name;
        let failure = if link.connected {
            Failure::backend(ErrorCode::Backend, format!("{name}: {reason}"))
        } else {
            Failure::unreachable(format!("connecting to {name}: {reason}"))
        };
        self.fail(token, &failure, sink);
    }

    /// Closes a connection; its requests have failed.
    fn fail(&mut self, token: Token, failure: &Failure, sink: &mut Sink<'_>) {
        let Some(link) = self.links.remove(token) else { return };
        self.peers[link.peer].links.retain(|other| *other != token);
        for open in link.open.values() {
            sink(open.tag, Told::Fail(failure.clone()));
        }
    }
}

impl Link {
    fn has_room(&self) -> bool {
        !self.going && self.open.len() < self.requests_max as usize
    }

    /// Takes one step at the start of `input`: how much of it that used up.
    ///
    /// # Errors
    /// The connection is at its end, for all requests on it.
    fn step(
        &mut self,
        input: &[u8],
        payload_max: &mut u32,
        sink: &mut Sink<'_>,
    ) -> Result<usize, Failure> {
        let step = self.client.receive(input).map_err(|error| {
            let message = format!("the gateway broke the protocol: {error}");
            Failure::backend(ErrorCode::Backend, message)
        })?;
        match step.event {
            Some(ClientEvent::Hello(hello)) => {
                self.greeted = true;
                *payload_max = hello.max_payload.unwrap_or(*payload_max);
                // One that allows none still has to be asked for it to say so.
                self.requests_max = hello.max_requests.unwrap_or(OPEN_REQUESTS_MAX).max(1);
            }
            Some(ClientEvent::Chunk { id, tokens, text }) => {
                if let Some(open) = self.open.get_mut(&id) {
                    open.owed_credit += text.len() as u32;
                    if open.owed_credit >= CREDIT / 2 {
                        let bytes = std::mem::take(&mut open.owed_credit);
                        self.client.credit(id, bytes);
                    }
                    sink(open.tag, Told::Bytes { bytes: text, tokens });
                }
            }
            Some(ClientEvent::Done { id, reason, done }) => {
                if let Some(open) = self.open.remove(&id) {
                    sink(open.tag, Told::Done(reason, done));
                }
            }
            Some(ClientEvent::Error { id: 0, code, message }) => {
                return Err(connection_failure(code, &message));
            }
            Some(ClientEvent::Error { id, code, message }) => {
                if let Some(open) = self.open.remove(&id) {
                    sink(open.tag, Told::Fail(failure(code, &message)));
                }
            }
            Some(ClientEvent::Goaway { .. }) => self.going = true,
            Some(ClientEvent::Status { .. } | ClientEvent::Pong { .. }) | None => {}
        }
        Ok(step.consumed)
    }

    fn write(&mut self) {
        while !self.client.pending().is_empty() {
            match socket::write(&self.stream, self.client.pending()) {
                Ok(0) => return,
                Ok(count) => {
                    self.connected = true;
                    self.client.sent(count);
                }
                // The read that follows the event tells what happened.
                Err(_) => {
                    self.readable = true;
                    return;
                }
            }
        }
    }
}

/// The failure of all requests on a connection that an ERROR ends. Unless the key is at fault, one
/// of them is, and the others have done nothing, so that each may be sent again.
fn connection_failure(code: u32, message: &str) -> Failure {
    if ErrorCode::from_u32(code) == Some(ErrorCode::Unauthenticated) {
        return failure(code, message);
    }
    Failure::backend(ErrorCode::Backend, format!("the gateway ended the connection: {message}"))
}

/// The failure that an ERROR tells. Of a path call's refusal the message is the answer's body.
fn failure(code: u32, message: &str) -> Failure {
    let code = ErrorCode::from_u32(code).unwrap_or(ErrorCode::Internal);
    let kind = match code {
        ErrorCode::Backend
        | ErrorCode::Internal
        | ErrorCode::Deadline
        | ErrorCode::ShuttingDown => FailureKind::Backend,
        _ => FailureKind::Request,
    };
    let is_body = message.starts_with('{');
    let body = if is_body { message.as_bytes().to_vec() } else { error_body(code, message) };
    let status = code.http_status();
    let answer = Some(Box::new(Answer { status, body }));
    Failure { kind, answer, ..Failure::request(code, message) }
}

#[cfg(test)]
mod tests {
    use super::super::retry::{Verdict, judge};
    use super::*;

    #[test]
    fn what_errors_mean() {
        for (code, verdict) in [
            (ErrorCode::BadRequest, Verdict::Final),
            (ErrorCode::NotFound, Verdict::Final),
            (ErrorCode::Overloaded, Verdict::Busy),
            (ErrorCode::Deadline, Verdict::Retry),
            (ErrorCode::Backend, Verdict::Retry),
            (ErrorCode::Internal, Verdict::Retry),
            (ErrorCode::ShuttingDown, Verdict::Retry),
        ] {
            let failure = failure(code as u32, "m");
            assert_eq!(judge(&failure), verdict, "{code:?}");
            let answer = failure.answer.unwrap();
            assert_eq!(answer.status, code.http_status());
            assert!(answer.body.starts_with(b"{\"error\""));
        }
        // One that is not known is the gateway's.
        assert_eq!(judge(&failure(999, "m")), Verdict::Retry);
        let body = r#"{"error":{"message":"own"}}"#;
        let told = failure(ErrorCode::BadRequest as u32, body).answer.unwrap();
        assert_eq!(told.body, body.as_bytes());
        let of_all = |code: ErrorCode| judge(&connection_failure(code as u32, "m"));
        assert_eq!(of_all(ErrorCode::TooLarge), Verdict::Retry);
        assert_eq!(of_all(ErrorCode::BadFrame), Verdict::Retry);
        assert_eq!(of_all(ErrorCode::Unauthenticated), Verdict::Final);
    }
}
