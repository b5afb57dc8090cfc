//! Finds out where backends are and how they do, on a thread of its own, where it may block.
//!
//! llama-server is asked for `/health`, which it answers at once however busy it is, and, when that
//! turns good, for its slots in `/props`. Of another server any answer to `/v1/models` says that it
//! is up.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde::Deserialize;

use crate::backend::Dialect;
use crate::backend::engine::Target;
use crate::backend::pool::Health;
use crate::proto::http_client::{HttpClient, ResponseEvent};
use crate::wire::http1::RequestLine;

/// Between two looks at a backend that is up.
const INTERVAL_UP: Duration = Duration::from_secs(1);
/// Between two looks at one that is not.
const INTERVAL_DOWN: Duration = Duration::from_millis(200);
/// How long a backend may take to connect and to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most that an answer may have.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Looks that must fail before a backend that was up counts as down because it answers too slowly.
const SLOW_LOOKS: u32 = 3;

/// Looks at one backend.
#[derive(Debug)]
pub struct Prober {
    dialect: Dialect,
    target: Target,
    inflight: Option<u32>,
    health: Health,
    slow: u32,
}

/// What a look brought.
pub struct Look {
    /// How it is.
    pub health: Health,
    /// Where it is.
    pub address: Option<SocketAddr>,
    /// When to look again.
    pub again: Duration,
}

impl Prober {
    /// For one backend; `inflight` takes the place of its own number of slots.
    pub fn new(dialect: Dialect, target: Target, inflight: Option<u32>) -> Prober {
        Prober { dialect, target, inflight, health: Health::Loading, slow: 0 }
    }

    /// Looks once.
    pub fn look(&mut self) -> Look {
        let (mut health, address) = match self.resolve() {
            Ok(address) => (self.ask(address), Some(address)),
            Err(error) => (Err(error), None),
        };
        let timed_out =
            |e: &io::Error| matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock);
        self.slow = if health.as_ref().is_err_and(timed_out) { self.slow + 1 } else { 0 };
        if self.slow > 0 && self.slow < SLOW_LOOKS && matches!(self.health, Health::Up { .. }) {
            health = Ok(self.health.clone());
        }
        let health = health.unwrap_or_else(|error| Health::Down { reason: error.to_string() });
        if health != self.health {
            self.log(&health);
        }
        self.health = health.clone();
        let up = matches!(health, Health::Up { .. });
        let again = if up { INTERVAL_UP } else { INTERVAL_DOWN };
        Look { health, address, again }
    }

    fn log(&self, health: &Health) {
        let name = &self.target.name;
        match health {
            Health::Up { slots } => log::info!("backend {name} is up, {slots} slots"),
            Health::Loading => log::info!("backend {name} is loading"),
            Health::Down { reason } => log::warn!("backend {name} is down: {reason}"),
        }
    }

    fn resolve(&self) -> io::Result<SocketAddr> {
        // The first address that can be connected to is not looked for: a model server with two is
        // set up wrongly.
        let mut addresses = self.target.authority.to_socket_addrs()?;
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        addresses.next().ok_or_else(none)
    }

    fn ask(&self, address: SocketAddr) -> io::Result<Health> {
        if self.dialect == Dialect::OpenAi {
            let (status, _) = self.get(address, "/v1/models")?;
            if status == 401 || status == 403 {
                log::warn!("{} answers {status}: set CNSE_UPSTREAM_API_KEY", self.target.name);
            }
            return Ok(Health::Up { slots: self.inflight.unwrap_or(u32::MAX) });
        }
        let (status, _) = self.get(address, "/health")?;
        match status {
            503 => return Ok(Health::Loading),
            200..300 => {}
            status => return Err(io::Error::other(format!("/health answers {status}"))),
        }
        // Slots do not change while it is up; asking goes through its main loop, which may be busy.
        if let (Health::Up { .. }, _) | (_, Some(_)) = (&self.health, self.inflight) {
            let slots = match self.health {
                Health::Up { slots } => slots,
                _ => self.inflight.unwrap_or(1),
            };
            return Ok(Health::Up { slots });
        }
        #[derive(Deserialize)]
        struct Props {
            total_slots: u32,
        }
        let (status, body) = self.get(address, "/props")?;
        match (status, serde_json::from_slice::<Props>(&body)) {
            (200, Ok(props)) => Ok(Health::Up { slots: props.total_slots.max(1) }),
            (401 | 403, _) => {
                let message = format!("/props answers {status}: set CNSE_UPSTREAM_API_KEY");
                Err(io::Error::other(message))
            }
            (503, _) => Ok(Health::Loading),
            (status, _) => {
                let message =
                    format!("/props answers {status} without total_slots: set --inflight");
                Err(io::Error::other(message))
            }
        }
    }

    fn get(&self, address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut headers = vec![("Connection", "close")];
        headers.extend(self.target.authorization.as_deref().map(|a| ("Authorization", a)));
        let target = format!("{}{path}", self.target.prefix);
        let host = &self.target.authority;
        let line = RequestLine { method: "GET", target: &target, host, headers: &headers };
        let mut client = HttpClient::new();
        client.request(&line, None);
        stream.write_all(client.pending())?;
        client.sent(client.pending().len());
        let (mut input, mut status, mut body) = (Vec::new(), 0, Vec::new());
        let mut buffer = [0; 8192];
        loop {
            let count = stream.read(&mut buffer)?;
            input.extend_from_slice(&buffer[..count]);
            loop {
                let step = client.receive(&input).map_err(|e| io::Error::other(e.to_string()))?;
                let (used, stuck) = (step.consumed, step.is_stuck());
                match step.event {
                    Some(ResponseEvent::Head(head)) => status = head.status,
                    Some(ResponseEvent::Body(bytes)) => body.extend_from_slice(bytes),
                    Some(ResponseEvent::End { .. }) => return Ok((status, body)),
                    None => {}
                }
                input.drain(..used);
                if stuck {
                    break;
                }
            }
            if count == 0 {
                return match client.eof() {
                    Ok(Some(_)) => Ok((status, body)),
                    _ => Err(io::Error::other("it closed the connection inside an answer")),
                };
            }
            if body.len() > ANSWER_BYTES_MAX {
                return Err(io::Error::other(format!("{path} answers without end")));
            }
        }
    }
}
