//! Where a filer is, and how paths are written in its URLs.

use std::fmt::Write as _;

/// Of a `--filer`: `http://host:8888`, `http://host:8888/models`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `http` or `https`.
    pub is_https: bool,
    /// `host:port`; an IPv6 address in brackets.
    pub authority: String,
    /// The folder of the store, without a slash at its end.
    pub root: String,
}

/// The port of a filer, where none is given.
pub const PORT: u16 = 8888;
/// The folder of the store, where none is given: a filer is shared with others.
pub const ROOT: &str = "/cnse";
/// SeaweedFS serves gRPC at a server's port and so many more, unless told otherwise.
const GRPC_OFFSET: u16 = 10_000;

impl Address {
    /// # Errors
    /// Why the text is none; to be put behind it.
    pub fn parse(text: &str) -> Result<Address, String> {
        let (is_https, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => return Err(format!("{scheme}:// is not http:// or https://")),
            None => (false, text),
        };
        let (authority, root) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err("a token does not go into the URL; CNSE_FILER_TOKEN takes it".to_owned());
        }
        let fine = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        if authority.is_empty() || !authority.chars().all(fine) {
            return Err("it has no host (http://host:8888 is one)".to_owned());
        }
        let after_host = &authority[authority.rfind(']').unwrap_or(0)..];
        let authority = match after_host.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => {
                authority.to_owned()
            }
            Some((_, port)) => return Err(format!("{port:?} is no port from 1 to 65535")),
            None => format!("{authority}:{PORT}"),
        };
        let segments: Vec<&str> = root.split('/').filter(|segment| !segment.is_empty()).collect();
        if root.contains(['?', '#', '%']) || segments.iter().any(|s| matches!(*s, "." | "..")) {
            return Err(format!("{root:?} is no folder of a filer"));
        }
        // Its own, and what it serves beside files.
        if segments.first().is_some_and(|first| RESERVED.contains(first)) {
            return Err(format!("the filer keeps /{} for itself", segments[0]));
        }
        let root = match segments.is_empty() {
            true => ROOT.to_owned(),
            false => segments.iter().map(|segment| format!("/{segment}")).collect(),
        };
        Ok(Address { is_https, authority, root })
    }

    /// `http://host:8888`.
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.is_https { "https" } else { "http" }, self.authority)
    }

    /// Where its gRPC is, by SeaweedFS's rule; none: beyond the last port.
    pub fn grpc(&self) -> Option<String> {
        let (host, port) = self.authority.rsplit_once(':')?;
        let port = port.parse::<u16>().ok()?.checked_add(GRPC_OFFSET)?;
        Some(format!("{host}:{port}"))
    }
}

const RESERVED: [&str; 7] =
    [".tus", ".uploads.tus", "etc", "topics", "healthz", "readyz", ".well-known"];

/// A path for a URL or a query: all but unreserved characters (RFC 3986, 2.3) and slashes is
/// escaped. The filer takes `+` for a plus, and answers `//` and `..` with a redirect; neither is
/// ever in a path of the store.
pub fn encode(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, origin, root, grpc) in [
            ("http://localhost:8888", "http://localhost:8888", "/cnse", Some("localhost:18888")),
            ("localhost", "http://localhost:8888", "/cnse", Some("localhost:18888")),
            ("http://h:1/", "http://h:1", "/cnse", Some("h:10001")),
            ("https://h:60000//a/b c/", "https://h:60000", "/a/b c", None),
            ("http://[::1]:8888/x", "http://[::1]:8888", "/x", Some("[::1]:18888")),
            ("http://[::1]", "http://[::1]:8888", "/cnse", Some("[::1]:18888")),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.origin(), address.root.as_str()), (origin.to_owned(), root));
            assert_eq!(address.grpc().as_deref(), grpc);
        }
        for (text, why) in [
            ("ftp://h", "ftp"),
            ("http://", "no host"),
            ("http://user:pass@h", "CNSE_FILER_TOKEN"),
            ("http://h:0", "no port"),
            ("http://h:99999", "99999"),
            ("http://h:1/../x", "no folder"),
            ("http://h:1/a?b", "no folder"),
            ("http://h:1/.tus/x", "for itself"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn paths() {
        assert_eq!(encode("/a-b_c.d~/e f+g%h/é"), "/a-b_c.d~/e%20f%2Bg%25h/%C3%A9");
    }
}
