//! Which protocol a connection speaks: its first four bytes tell.

use crate::wire::frame::MAGIC;

/// What a connection's first bytes are the start of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// The binary protocol.
    Binary,
    /// HTTP/1.
    Http,
    /// A TLS handshake, which is not spoken here.
    Tls,
}

/// Tells the protocol from a connection's first bytes; None: more are needed.
pub fn detect(input: &[u8]) -> Option<Detected> {
    let len = input.len().min(MAGIC.len());
    if input[..len] == MAGIC[..len] {
        (len == MAGIC.len()).then_some(Detected::Binary)
    } else if input[0] == 0x16 {
        Some(Detected::Tls)
    } else {
        Some(Detected::Http)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bytes_decide() {
        let cases: [(&[u8], Option<Detected>); 6] = [
            (b"", None),
            (b"CNS", None),
            (b"CNSE\x01", Some(Detected::Binary)),
            (b"CONNECT", Some(Detected::Http)),
            (b"G", Some(Detected::Http)),
            (b"\x16\x03", Some(Detected::Tls)),
        ];
        for (input, detected) in cases {
            assert_eq!(detect(input), detected);
        }
    }
}
