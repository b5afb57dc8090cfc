//! Whatever comes over a socket.

use std::io::{Read, Write};

use cnse::prng::Prng;
use cnse::wire::frame::{FrameType, encode_frame};
use cnse::wire::message::{Infer, Input};

use crate::common::Server;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn input(prng: &mut Prng) -> Vec<u8> {
    let mut bytes = Vec::new();
    match prng.below(4) {
        0 => bytes.extend((0..prng.below(300)).map(|_| prng.next_u64() as u8)),
        1 => {
            for _ in 0..1 + prng.below(4) {
                let mut payload = Vec::new();
                Infer::new(Input::Prompt("the way")).encode(&mut payload);
                let kind =
                    [FrameType::Infer, FrameType::Credit, FrameType::Cancel, FrameType::Ping]
                        [prng.below(4) as usize];
                let id = prng.below(3);
                encode_frame(&mut bytes, kind, id, prng.below(99) as u32, &payload, true);
            }
        }
        2 => bytes.extend_from_slice(
            b"POST /completion HTTP/1.1\r\nHost: h\r\nContent-Length: 30\r\n\r\n\
              {\"prompt\":\"x\",\"n_predict\":2}  ",
        ),
        _ => bytes.extend_from_slice(
            b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
              1d\r\n{\"prompt\":\"x\",\"stream\":true} \r\n0\r\n\r\n",
        ),
    }
    for _ in 0..prng.below(4) {
        if !bytes.is_empty() {
            let at = prng.below(bytes.len() as u64) as usize;
            bytes[at] = prng.next_u64() as u8;
        }
    }
    bytes
}

/// Whatever comes over a socket: the server answers or closes, lives, and keeps nothing.
#[test]
fn random_bytes_through_real_sockets() {
    let server = Server::start(&[]);
    let count = env("CNSE_HOSTILE_INPUTS", 2_000);
    for seed in 0..count {
        let prng = &mut Prng::new(seed);
        let bytes = input(prng);
        let mut stream = server.connect();
        let cut = prng.below(bytes.len() as u64 + 1) as usize;
        // The server may close before all is sent.
        let sent = stream.write_all(&bytes[..cut]).and_then(|()| stream.write_all(&bytes[cut..]));
        if sent.is_ok() && prng.below(2) == 0 {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
        }
    }
    assert_eq!(server.ask("GET", "/health", "", "").0, 200, "{}", server.log());
    server.wait_idle();
}
