//! Who asks: a ready token, or one that is made from the filer's signing key.
//!
//! The filer takes JSON web tokens signed with HMAC-SHA-256 (RFC 7519, RFC 7515, RFC 2104) and
//! looks at `exp` only, once, when a request begins: so a short life is enough for a long body.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// Credentials; from the environment, since a command line is for all to see.
#[derive(Clone, Default)]
pub struct Auth {
    /// A ready token, sent as it is.
    pub token: Option<String>,
    /// `jwt.filer_signing.key`: for what changes something.
    pub key: Option<String>,
    /// `jwt.filer_signing.read.key`: for what only reads.
    pub read_key: Option<String>,
}

/// What a token that was made here is good for.
const LIFE: Duration = Duration::from_secs(60);
/// HMAC's block for SHA-256.
const BLOCK: usize = 64;

impl Auth {
    /// The value of `Authorization` for a request. `now`: since 1970, by the server's clock.
    pub fn header(&self, is_write: bool, now: Duration) -> Option<String> {
        if let Some(token) = &self.token {
            return Some(format!("Bearer {token}"));
        }
        let key = if is_write { &self.key } else { &self.read_key };
        key.as_ref().map(|key| format!("Bearer {}", token(key.as_bytes(), now + LIFE)))
    }
}

/// A token that ends at `expires`, since 1970.
fn token(key: &[u8], expires: Duration) -> String {
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{}}}"#, expires.as_secs()));
    let signed = format!("{head}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(hmac(key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0u8; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn hmac_as_in_rfc_4231() {
        let short = hmac(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(hex(&short), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let long = hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(hex(&long), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    }

    #[test]
    fn tokens() {
        let now = Duration::from_secs(1_000);
        let none = Auth::default();
        assert_eq!((none.header(true, now), none.header(false, now)), (None, None));
        let ready =
            Auth { token: Some("abc".to_owned()), key: Some("k".to_owned()), ..none.clone() };
        assert_eq!(ready.header(false, now).as_deref(), Some("Bearer abc"));
        let keyed = Auth { key: Some("k".to_owned()), ..none };
        assert_eq!(keyed.header(false, now), None);
        let header = keyed.header(true, now).unwrap();
        let parts: Vec<&str> = header.strip_prefix("Bearer ").unwrap().split('.').collect();
        let claims = URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
        assert_eq!(claims, br#"{"exp":1060}"#);
        let signature = hmac(b"k", format!("{}.{}", parts[0], parts[1]).as_bytes());
        assert_eq!(URL_SAFE_NO_PAD.encode(signature), parts[2]);
    }
}
