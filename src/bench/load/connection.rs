//! One binary connection of a load generator: its socket, its machine, and the requests that are
//! open on it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};

use super::flight::Flight;
use crate::net::socket;
use crate::proto::binary_client::BinaryClient;
use crate::wire::message::Hello;

/// A connection.
#[derive(Debug)]
pub struct BinaryConnection {
    /// Its socket.
    pub stream: TcpStream,
    /// Its machine.
    pub client: BinaryClient,
    /// Input that the machine could not use yet.
    pub held: Vec<u8>,
    /// The server has said HELLO.
    pub greeted: bool,
    /// Requests by their place; the place is in the low byte of the id, from 1.
    pub flights: Vec<Option<Flight>>,
    /// Places that are free.
    pub free: Vec<u8>,
    opened: u64,
}

impl BinaryConnection {
    /// Starts to connect; up to `flights` requests (64 at most) can be open at once.
    ///
    /// # Errors
    /// No route, no descriptor or no port left.
    pub fn open(
        address: SocketAddr,
        source: Option<IpAddr>,
        token: Option<&str>,
        flights: usize,
    ) -> io::Result<BinaryConnection> {
        let mut client = BinaryClient::new();
        client.hello(&Hello {
            agent: Some(concat!("cnse/", env!("CARGO_PKG_VERSION"))),
            token: token.map(str::as_bytes),
            max_payload: None,
            max_requests: None,
        });
        let stream = socket::connect(address, source)?;
        socket::stamp_arrivals(&stream)?;
        Ok(BinaryConnection {
            stream,
            client,
            held: Vec::new(),
            greeted: false,
            flights: (0..flights).map(|_| None).collect(),
            free: (0..flights).rev().map(|place| place as u8).collect(),
            opened: 0,
        })
    }

    /// A place for a new request, and the id that goes with it.
    pub fn take_place(&mut self) -> Option<(usize, u64)> {
        let place = self.free.pop()?;
        self.opened += 1;
        Some((usize::from(place), self.opened << 8 | (u64::from(place) + 1)))
    }

    /// The request of an id.
    pub fn flight(&mut self, id: u64) -> Option<&mut Flight> {
        let place = (id & 0xff).checked_sub(1)? as usize;
        self.flights.get_mut(place)?.as_mut().filter(|flight| flight.id == id)
    }

    /// Takes the request of an id out: it has ended.
    pub fn take(&mut self, id: u64) -> Option<Flight> {
        self.flight(id)?;
        let place = (id & 0xff) as usize - 1;
        self.free.push(place as u8);
        self.flights[place].take()
    }

    /// Writes what is pending.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn write(&mut self) -> io::Result<()> {
        while !self.client.pending().is_empty() {
            match socket::write(&self.stream, self.client.pending())? {
                0 => return Ok(()),
                count => self.client.sent(count),
            }
        }
        Ok(())
    }
}
