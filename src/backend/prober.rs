//! Finds out where backends are and how they do, on a thread of its own, where it may block.
//!
//! llama-server is asked for `/health`, which it answers at once however busy it is, and, when that
//! turns good, for its slots in `/props`. Of another server any answer to `/v1/models` says that it
//! is up.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use serde::Deserialize;

use super::Dialect;
use super::discover;
use super::engine::Target;
use super::pool::Health;

/// Between two looks at a backend that is up.
const INTERVAL_UP: Duration = Duration::from_secs(1);
/// Between two looks at one that is not.
const INTERVAL_DOWN: Duration = Duration::from_millis(200);
/// How long a backend may take to connect and to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
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
    quiet: bool,
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
        Prober { dialect, target, inflight, health: Health::Loading, slow: 0, quiet: false }
    }

    /// One that logs nothing: another looks at the same backend, and does.
    pub fn quiet(self, quiet: bool) -> Prober {
        Prober { quiet, ..self }
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
        if health != self.health && !self.quiet {
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
            Health::Up { slots } => {
                let what = if self.inflight.is_some() { "at once from here" } else { "slots" };
                log::info!("backend {name} is up, {slots} {what}");
            }
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
        discover::get(&self.target, address, path, TIMEOUT)
    }
}
