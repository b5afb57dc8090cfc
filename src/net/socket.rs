//! Non-blocking TCP: listeners that share a port, connections that are under way, reads and writes
//! that say what happened.

use std::io::{self, IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage,
    bind, connect as connect_fd, listen as listen_fd, recvmsg, setsockopt, socket, sockopt,
};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// Connections that the kernel holds ready to be accepted; it lowers this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A stamp that seems older was taken before somebody set the machine's clock.
const STAMP_AGE_MAX: Duration = Duration::from_secs(60);

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// So many bytes; fewer than there was room for means that there is no more for now.
    Bytes(usize),
    /// Nothing for now.
    WouldBlock,
    /// The peer has closed.
    Closed,
    /// The connection is broken, or never came about: the error's number.
    Broken(i32),
}

/// A listener on `address` that shares its port with the other cores' listeners (SO_REUSEPORT).
///
/// # Errors
/// The address is not this machine's, or is in use.
pub fn listen(address: SocketAddr, share: bool) -> io::Result<TcpListener> {
    let fd = open(address)?;
    // Without this a restarted server would wait a minute for the connections of its predecessor.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if share {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen_fd(&fd, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(fd))
}

/// Listeners for `count` cores on one port. Port 0 takes a free one.
///
/// A port that another server holds is refused even if that server would share it: two gateways on
/// one port, each with a share of the connections, is never what was meant.
///
/// # Errors
/// The address is not this machine's, or is in use.
pub fn listen_shared(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    if address.port() != 0 {
        drop(listen(address, false)?);
    }
    let first = listen(address, true)?;
    let bound = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..count {
        listeners.push(listen(bound, true)?);
    }
    Ok(listeners)
}

/// Starts to connect to `address`, from `source` if given. The socket turns writable when the
/// attempt has ended; `TcpStream::take_error` then tells how.
///
/// # Errors
/// The attempt failed at once: no route, no descriptor or no port left.
pub fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let fd = open(address)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    if let Some(source) = source {
        // The port is chosen at connect, so that one source address serves as many connections as
        // it has ports for each destination, not in all.
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    }
    match connect_fd(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(fd)),
        Err(errno) => Err(errno.into()),
    }
}

/// Prepares an accepted connection: non-blocking, no delay of small writes (Nagle's algorithm with
/// delayed ACKs holds a token back for 43 ms), and probes that find a peer who vanished.
///
/// # Errors
/// The peer is gone already.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &60)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &15)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)?;
    Ok(())
}

/// Reads what there is.
pub fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> Incoming {
    loop {
        match stream.read(buffer) {
            Ok(0) => return Incoming::Closed,
            Ok(count) => return Incoming::Bytes(count),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Incoming::WouldBlock,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Incoming::Broken(e.raw_os_error().unwrap_or(0)),
        }
    }
}

/// Has the kernel note when each packet of `stream` came, for `read_stamped`.
///
/// # Errors
/// The kernel cannot.
pub fn stamp_arrivals(stream: &TcpStream) -> io::Result<()> {
    Ok(setsockopt(stream, sockopt::ReceiveTimestampns, &true)?)
}

/// Reads what there is; how long ago the last of it came, by the kernel's own clock, if it says so.
/// That tells a server's lateness from the reader's, who may have had others to read first.
pub fn read_stamped(stream: &TcpStream, buffer: &mut [u8]) -> (Incoming, Option<Duration>) {
    let mut space = nix::cmsg_space!(TimeSpec);
    loop {
        let mut slices = [IoSliceMut::new(buffer)];
        let read =
            recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty());
        let message = match read {
            Ok(message) if message.bytes == 0 => return (Incoming::Closed, None),
            Ok(message) => message,
            Err(Errno::EAGAIN) => return (Incoming::WouldBlock, None),
            Err(Errno::EINTR) => continue,
            Err(errno) => return (Incoming::Broken(errno as i32), None),
        };
        let stamp = message.cmsgs().ok().and_then(|mut all| {
            all.find_map(|one| match one {
                ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
                _ => None,
            })
        });
        let now = clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from).ok();
        let ago = stamp.zip(now).and_then(|(stamp, now)| now.checked_sub(stamp));
        return (Incoming::Bytes(message.bytes), ago.filter(|ago| *ago < STAMP_AGE_MAX));
    }
}

/// Writes what fits; `Ok(0)` if nothing does for now.
///
/// # Errors
/// The connection is broken.
pub fn write(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match stream.write(bytes) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Raises the soft limit of open descriptors to the hard one, and returns it.
pub fn raise_descriptor_limit() -> u64 {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => {
            if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
        }
        Ok((soft, _)) => soft,
        Err(_) => 1024,
    }
}

fn open(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_share_a_port_that_others_do_not_get() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listeners = listen_shared(any, 3).unwrap();
        let bound = listeners[0].local_addr().unwrap();
        assert!(listeners.iter().all(|l| l.local_addr().unwrap() == bound));
        let error = listen_shared(bound, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_connection_says_what_happened() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let source = "127.0.0.2".parse().unwrap();
        let stream = connect(listener.local_addr().unwrap(), Some(source)).unwrap();
        let (peer, from) = loop {
            match listener.accept() {
                Ok(accepted) => break accepted,
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
            }
        };
        assert_eq!(from.ip(), source);
        prepare(&peer).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(read(&peer, &mut buffer), Incoming::WouldBlock);
        assert_eq!(write(&stream, b"abc").unwrap(), 3);
        stamp_arrivals(&peer).unwrap();
        assert_eq!(read_stamped(&peer, &mut buffer).0, Incoming::Bytes(3));
        assert_eq!(read_stamped(&peer, &mut buffer), (Incoming::WouldBlock, None));
        assert_eq!(write(&stream, b"abc").unwrap(), 3);
        drop(stream);
        assert_eq!(read(&peer, &mut buffer), Incoming::Bytes(3));
        assert_eq!(read(&peer, &mut buffer), Incoming::Closed);
    }
}
