//! Wakes a rank of the same node to which something was sent.
//!
//! MPI has nothing that a sleeping thread can wait for, so a rank would have to look all the time,
//! and each look is a wake-up of tens of microseconds. Among the ranks of a node a datagram of no
//! bytes, on a socket in the abstract namespace, says that a look is worth while. It carries
//! nothing and is trusted with nothing: one that is lost, or forged, costs a rank a look more or a
//! moment, since each still looks now and then.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, recv, sendto, socket,
};

/// One rank's bell, and how to reach those of others.
#[derive(Debug)]
pub struct Bell {
    socket: OwnedFd,
    /// Others are rung from a socket of its own: the other would wake this rank each time that one
    /// of them takes note.
    hammer: OwnedFd,
    name: String,
    /// By rank; None: it is on another node, or has none.
    peers: Vec<Option<UnixAddr>>,
}

impl Bell {
    /// A bell that nobody knows of yet.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn open() -> io::Result<Bell> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let open = || socket(AddressFamily::Unix, SockType::Datagram, flags, None);
        let (socket, hammer) = (open()?, open()?);
        // A process id comes back, so the moment is in the name too.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("cnse-bell.{}.{}", std::process::id(), since.as_nanos());
        bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        Ok(Bell { socket, hammer, name, peers: Vec::new() })
    }

    /// Under which others reach it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of the others, by rank; empty: it cannot be reached.
    pub fn set_peers(&mut self, names: &[&str]) {
        let address = |name: &str| UnixAddr::new_abstract(name.as_bytes()).ok();
        let reachable = names.iter().map(|name| Some(*name).filter(|name| !name.is_empty()));
        self.peers = reachable.map(|name| name.and_then(address)).collect();
    }

    /// Whether that one can be rung.
    pub fn reaches(&self, rank: usize) -> bool {
        self.peers.get(rank).is_some_and(Option::is_some)
    }

    /// Rings, if that one can be reached. One that does not answer, because it is gone or has been
    /// rung often enough, needs no bell.
    pub fn ring(&self, rank: usize) {
        if let Some(Some(address)) = self.peers.get(rank) {
            let _ = sendto(self.hammer.as_raw_fd(), &[], address, MsgFlags::MSG_DONTWAIT);
        }
    }

    /// Takes note of all that rang: whoever rings from here on wakes this rank again.
    pub fn hear(&self) {
        while recv(self.socket.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT).is_ok() {}
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, MonotonicClock};
    use crate::net::{Poller, Token};
    use std::time::Duration;

    #[test]
    fn it_wakes_whom_it_reaches_each_time() {
        let (mut own, other) = (Bell::open().unwrap(), Bell::open().unwrap());
        own.set_peers(&["", other.name()]);
        assert!(!own.reaches(0) && own.reaches(1) && !own.reaches(2));
        let (clock, mut poller) = (MonotonicClock::new(), Poller::open().unwrap());
        poller.register(&other, Token::single(3)).unwrap();
        for _ in 0..3 {
            // More than the socket holds: the rest is not needed.
            (0..3000).for_each(|_| own.ring(1));
            own.ring(0);
            let readable = |poller: &mut Poller| {
                (0..poller.event_count()).any(|i| poller.event(i).is_some_and(|(_, r)| r.readable))
            };
            let until = clock.now() + Duration::from_secs(10);
            poller.wait(clock.now(), Some(until)).unwrap();
            assert!(readable(&mut poller));
            other.hear();
        }
        drop(other);
        own.ring(1);
    }
}
