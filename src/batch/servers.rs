//! The servers of a job: what `--server` says, what is found there, and whether they are on this
//! host.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::backend::Dialect;
use crate::backend::discover;
use crate::backend::engine::Target;

/// The port of `cnse serve`.
const GATEWAY_PORT: u16 = 5050;
/// How long a server may take to say that it takes the key.
const KEY_TIMEOUT: Duration = Duration::from_secs(10);

/// A server as it was given.
#[derive(Clone, Debug)]
pub struct ServerSpec {
    /// For people: as it was given.
    pub name: String,
    /// Its HTTP side; a gateway has one too.
    pub target: Target,
    /// It is a gateway, and is spoken to in the binary protocol.
    pub is_gateway: bool,
    /// What it must be told.
    key: Option<String>,
}

/// What was found of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// What its HTTP side speaks.
    pub dialect: Dialect,
    /// Sequences that it runs at once, if it says so.
    pub slots: Option<u32>,
    /// Where it is.
    pub address: SocketAddr,
}

/// How a server is spoken to.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// HTTP.
    Http {
        /// What it speaks.
        dialect: Dialect,
        /// Where it is.
        target: Target,
    },
    /// The binary protocol, and HTTP for what is too large for it.
    Binary {
        /// `host:port`.
        authority: String,
        /// What its HELLO carries.
        token: Option<String>,
    },
}

/// A server to be used.
#[derive(Clone, Debug)]
pub struct Server {
    /// For people: as it was given.
    pub name: String,
    /// How it is spoken to.
    pub endpoint: Endpoint,
    /// Where it was found; with it the server counts as up until its health says otherwise, without
    /// it as not known.
    pub address: Option<SocketAddr>,
}

/// The servers in a list such as `http://a:8080,cnse://b:5050`; `key` is for all of them.
///
/// # Errors
/// One is no address, or stands twice.
pub fn parse_servers(list: &str, key: Option<&str>) -> Result<Vec<ServerSpec>, String> {
    let mut specs = Vec::<ServerSpec>::new();
    for server in list.split(',').map(str::trim) {
        let spec = parse_server(server, key)?;
        let same = |other: &ServerSpec| {
            (&other.target.authority, &other.target.prefix)
                == (&spec.target.authority, &spec.target.prefix)
        };
        if specs.iter().any(same) {
            return Err(format!("{server} stands twice"));
        }
        specs.push(spec);
    }
    Ok(specs)
}

fn parse_server(server: &str, key: Option<&str>) -> Result<ServerSpec, String> {
    let gateway = server.strip_prefix("cnse://");
    if gateway.is_none() && !server.contains("://") {
        return Err(format!("{server:?} is neither http://host:port nor cnse://host:port"));
    }
    let mut target = match gateway {
        None => discover::target(server)?,
        Some(authority) => {
            let target = discover::target(&format!("http://{authority}"))
                .map_err(|error| error.replacen("http://", "cnse://", 1))?;
            if !target.prefix.is_empty() {
                return Err(format!("{server}: the binary protocol has no paths"));
            }
            target
        }
    };
    if let Some(authority) = gateway {
        let authority = authority.trim_end_matches('/');
        let has_port = target.authority == authority;
        if !has_port {
            target.authority = format!("{authority}:{GATEWAY_PORT}");
        }
    }
    target.name = server.trim_end_matches('/').to_owned();
    target.authorization = key.map(|key| format!("Bearer {key}"));
    let (is_gateway, key) = (gateway.is_some(), key.map(str::to_owned));
    Ok(ServerSpec { name: target.name.clone(), target, is_gateway, key })
}

/// Finds out what a server is; for the set-up, since it blocks.
///
/// # Errors
/// It is not there, or does not take the key.
pub fn probe(spec: &ServerSpec) -> Result<Probed, String> {
    let wrong = |error: String| format!("{}: {error}", spec.name);
    let found = discover::ask(&spec.target).map_err(wrong)?;
    // Known now, it costs a message; later, the whole input.
    let (status, _) = discover::get(&spec.target, found.address, "/v1/models", KEY_TIMEOUT)
        .map_err(|error| wrong(error.to_string()))?;
    if matches!(status, 401 | 403) {
        let key = if spec.key.is_some() { "refuses the key" } else { "wants a key" };
        return Err(wrong(format!("it {key}: set CNSE_API_KEY")));
    }
    Ok(Probed { dialect: found.dialect, slots: found.slots, address: found.address })
}

/// Whether an address is this host's: a loopback's, or one of its interfaces'.
pub fn is_local(address: &SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return false };
    interfaces.filter_map(|interface| interface.address).any(|own| {
        let v4 = own.as_sockaddr_in().map(|own| IpAddr::from(own.ip()));
        let v6 = own.as_sockaddr_in6().map(|own| IpAddr::from(own.ip()));
        v4.or(v6) == Some(ip)
    })
}

impl ServerSpec {
    /// The server, with what was found there.
    pub fn server(&self, probed: &Probed) -> Server {
        Server { address: Some(probed.address), ..self.unseen(probed.dialect) }
    }

    /// The server, though nothing was found there yet: it is used once it answers.
    pub fn unseen(&self, dialect: Dialect) -> Server {
        let endpoint = if self.is_gateway {
            let (authority, token) = (self.target.authority.clone(), self.key.clone());
            Endpoint::Binary { authority, token }
        } else {
            Endpoint::Http { dialect, target: self.target.clone() }
        };
        Server { name: self.name.clone(), endpoint, address: None }
    }
}

impl Server {
    /// What its HTTP side speaks.
    pub fn dialect(&self) -> Dialect {
        match self.endpoint {
            Endpoint::Http { dialect, .. } => dialect,
            Endpoint::Binary { .. } => Dialect::OpenAi,
        }
    }

    /// Its HTTP side.
    pub fn http(&self) -> Target {
        match &self.endpoint {
            Endpoint::Http { target, .. } => Target { address: self.address, ..target.clone() },
            Endpoint::Binary { authority, token } => Target {
                name: self.name.clone(),
                authority: authority.clone(),
                prefix: String::new(),
                authorization: token.as_ref().map(|token| format!("Bearer {token}")),
                address: self.address,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_servers() {
        let list = "http://a:1, cnse://b:2/,cnse://[::1],http://c/x/";
        let specs = parse_servers(list, Some("k")).unwrap();
        let seen: Vec<(&str, &str, bool)> = specs
            .iter()
            .map(|s| (s.name.as_str(), s.target.authority.as_str(), s.is_gateway))
            .collect();
        let wanted = [
            ("http://a:1", "a:1", false),
            ("cnse://b:2", "b:2", true),
            ("cnse://[::1]", "[::1]:5050", true),
            ("http://c/x", "c:80", false),
        ];
        assert_eq!(seen, wanted);
        assert!(specs.iter().all(|s| s.target.authorization.as_deref() == Some("Bearer k")));
        for (list, error) in [
            ("", "\"\" is neither http://host:port nor cnse://host:port"),
            ("a:1", "\"a:1\" is neither http://host:port nor cnse://host:port"),
            ("http://a:1,cnse://a:1", "cnse://a:1 stands twice"),
            ("cnse://a:1/x", "cnse://a:1/x: the binary protocol has no paths"),
            ("cnse://a:x", "cnse://a:x: the port is not a number up to 65535"),
            (
                "https://a",
                "https://a: TLS is not spoken; put a proxy such as stunnel ahead of the backend",
            ),
        ] {
            assert_eq!(parse_servers(list, None).unwrap_err(), error);
        }
    }

    #[test]
    fn own_addresses_are_local() {
        for own in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(is_local(&own.parse().unwrap()), "{own}");
        }
        // Of the documentation's nets (RFC 5737, RFC 3849) no host has an address.
        for other in ["192.0.2.1:1", "[2001:db8::1]:1"] {
            assert!(!is_local(&other.parse().unwrap()), "{other}");
        }
    }
}
