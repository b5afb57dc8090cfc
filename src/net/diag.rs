//! Sockets that listen on this machine, as the kernel's sock_diag tells them (man 7 sock_diag).
//!
//! `/proc/net/tcp` tells the same, but goes through the table of all connections for it, which
//! takes tens of milliseconds on a machine that has memory for many.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// `SOCK_DIAG_BY_FAMILY`, of linux/sock_diag.h; the others are of linux/netlink.h.
const BY_FAMILY: u16 = 20;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const HEAD_BYTES: usize = 16;
/// `inet_diag_req_v2`: family, protocol, extensions, a byte of padding, states, and a socket's id.
const REQUEST_BYTES: usize = 56;
/// Of `inet_diag_msg`, where the port (big-endian) and the inode stand, and its length.
const PORT_AT: usize = 4;
const INODE_AT: usize = 68;
const ANSWER_BYTES: usize = 72;
/// The state LISTEN, as a bit.
const LISTEN: u32 = 1 << 10;
/// What the kernel fills at most for one read of a dump.
const BLOCK_BYTES: usize = 32 << 10;

/// Inodes of TCP sockets that listen on one of these ports.
///
/// # Errors
/// The kernel has no sock_diag, or does not let this process use it.
pub fn listening(ports: &[u16]) -> io::Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let protocol = SockProtocol::NetlinkSockDiag;
        let kind = SockType::Datagram;
        let fd = socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
        send(fd.as_raw_fd(), &request(family as u8), MsgFlags::empty())?;
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let count = recv(fd.as_raw_fd(), &mut block, MsgFlags::empty())?;
            if !answers(&block[..count], ports, &mut inodes)? {
                break;
            }
        }
    }
    Ok(inodes)
}

fn request(family: u8) -> Vec<u8> {
    const TCP: u8 = 6;
    let mut bytes = Vec::with_capacity(HEAD_BYTES + REQUEST_BYTES);
    bytes.extend(((HEAD_BYTES + REQUEST_BYTES) as u32).to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(DUMP.to_ne_bytes());
    bytes.resize(HEAD_BYTES, 0);
    bytes.extend([family, TCP, 0, 0]);
    bytes.extend(LISTEN.to_ne_bytes());
    bytes.resize(HEAD_BYTES + REQUEST_BYTES, 0);
    bytes
}

/// Takes the inodes out of a block of answers. False: it has the last of them.
fn answers(mut block: &[u8], ports: &[u16], inodes: &mut Vec<u64>) -> io::Result<bool> {
    while let Some(head) = block.first_chunk::<HEAD_BYTES>() {
        let bytes = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = block.get(HEAD_BYTES..bytes);
        let body = body.ok_or_else(|| io::Error::other("sock_diag: an answer that is cut off"))?;
        match u16::from_ne_bytes([head[4], head[5]]) {
            DONE => return Ok(false),
            ERROR => {
                let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            BY_FAMILY if body.len() >= ANSWER_BYTES => {
                let port = u16::from_be_bytes([body[PORT_AT], body[PORT_AT + 1]]);
                let inode = &body[INODE_AT..ANSWER_BYTES];
                if ports.contains(&port) {
                    let inode = u32::from_ne_bytes([inode[0], inode[1], inode[2], inode[3]]);
                    inodes.push(inode.into());
                }
            }
            _ => {}
        }
        // Answers stand at multiples of four bytes.
        block = block.get(bytes.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEAD_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEAD_BYTES, 0);
        bytes.extend(body);
        bytes
    }

    fn socket_at(port: u16, inode: u32) -> Vec<u8> {
        let mut body = vec![0; ANSWER_BYTES];
        body[PORT_AT..PORT_AT + 2].copy_from_slice(&port.to_be_bytes());
        body[INODE_AT..].copy_from_slice(&inode.to_ne_bytes());
        body
    }

    #[test]
    fn answers_are_read_up_to_the_last() {
        let mut inodes = Vec::new();
        let block = [
            answer(BY_FAMILY, &socket_at(80, 7)),
            answer(99, b"odd"),
            vec![0],
            answer(BY_FAMILY, &socket_at(81, 8)),
        ]
        .concat();
        assert!(answers(&block, &[80, 82], &mut inodes).unwrap());
        assert_eq!(inodes, [7]);
        let done = answer(DONE, &[]);
        assert!(!answers(&done, &[80], &mut inodes).unwrap());
        let refused = answer(ERROR, &(-1_i32).to_ne_bytes());
        let error = answers(&refused, &[80], &mut inodes).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(1));
        assert!(answers(&block[..40], &[80], &mut inodes).is_err());
        assert!(answers(&[], &[80], &mut inodes).unwrap());
    }

    #[test]
    fn a_socket_of_this_process_is_told() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        // Where the kernel has no sock_diag there is nothing to compare.
        let Ok(found) = listening(&[port]) else { return };
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        assert_eq!(link.to_str(), Some(format!("socket:[{}]", found[0]).as_str()));
        assert_eq!(found.len(), 1);
    }
}
