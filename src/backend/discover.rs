//! Finds out where a server is and what it speaks, by asking it: for the set-up of whoever means to
//! send it requests. It blocks.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::Value;

use super::Dialect;
use super::engine::Target;
use crate::proto::http_client::{HttpClient, ResponseEvent};
use crate::wire::http1::RequestLine;

/// How long a server may take to connect and to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most that an answer may have.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// What a server said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it speaks.
    pub dialect: Dialect,
    /// Sequences that it runs at once, if it says so.
    pub slots: Option<u32>,
    /// Where it is.
    pub address: SocketAddr,
}

/// What an HTTP server is: `/props` with slots says llama-server, and so does the way in which that
/// says that its model loads. All else is taken for OpenAI-compatible.
///
/// # Errors
/// Its name has no address, or nothing answers there.
pub fn ask(target: &Target) -> Result<Found, String> {
    let address = resolve(&target.authority)?;
    let (status, body) = get(target, address, "/props", TIMEOUT)
        .map_err(|error| format!("connecting to {address}: {error}"))?;
    let props: Value = serde_json::from_slice(&body).unwrap_or_default();
    let slots = props["total_slots"].as_u64().map(|slots| u32::try_from(slots).unwrap_or(u32::MAX));
    let loading = status == 503 && props["error"]["type"] == "unavailable_error";
    let dialect = if slots.is_some() || loading { Dialect::Llama } else { Dialect::OpenAi };
    Ok(Found { dialect, slots: slots.map(|slots| slots.max(1)), address })
}

/// The first address of `host:port`.
///
/// # Errors
/// It has none.
pub fn resolve(authority: &str) -> Result<SocketAddr, String> {
    let failed = |error: String| format!("finding {authority}: {error}");
    let mut found = authority.to_socket_addrs().map_err(|error| failed(error.to_string()))?;
    found.next().ok_or_else(|| failed("the name has no address".to_owned()))
}

/// A server's URL.
///
/// # Errors
/// It is none, or asks for TLS.
pub fn target(url: &str) -> Result<Target, String> {
    let Some(rest) = url.strip_prefix("http://") else {
        return Err(if url.starts_with("https://") {
            format!("{url}: TLS is not spoken; put a proxy such as stunnel ahead of the backend")
        } else {
            format!("{url:?} is not a URL such as http://127.0.0.1:8090")
        });
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let bad = |what: &str| format!("{url}: {what}");
    if authority.is_empty() || authority.contains(['@', '?', '#', ' ']) {
        return Err(bad("no host, or what does not belong there"));
    }
    let port = authority.rsplit_once(':').filter(|(host, _)| !host.ends_with(':'));
    let has_port = match port {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            port.parse::<u16>().map_err(|_| bad("the port is not a number up to 65535"))?;
            true
        }
        _ => false,
    };
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    let prefix = path.trim_end_matches('/').to_owned();
    let name = url.trim_end_matches('/').to_owned();
    Ok(Target { name, authority, prefix, authorization: None, address: None })
}

/// A GET on a connection of its own: the answer's status and body.
///
/// # Errors
/// No connection, no answer within `limit`, or none that is HTTP.
pub fn get(
    target: &Target,
    address: SocketAddr,
    path: &str,
    limit: Duration,
) -> io::Result<(u16, Vec<u8>)> {
    call(target, address, path, None, limit)
}

/// A GET, or a POST of a JSON body, on a connection of its own: the answer's status and body.
///
/// # Errors
/// No connection, no answer within `limit`, or none that is HTTP.
pub fn call(
    target: &Target,
    address: SocketAddr,
    path: &str,
    json: Option<&[u8]>,
    limit: Duration,
) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut headers = vec![("Connection", "close")];
    headers.extend(target.authorization.as_deref().map(|a| ("Authorization", a)));
    let whole = format!("{}{path}", target.prefix);
    let host = &target.authority;
    let method = if json.is_some() { "POST" } else { "GET" };
    headers.extend(json.map(|_| ("Content-Type", "application/json")));
    let line = RequestLine { method, target: &whole, host, headers: &headers };
    let mut client = HttpClient::new();
    client.request(&line, json);
    stream.write_all(client.pending())?;
    client.sent(client.pending().len());
    let (mut input, mut status, mut body) = (Vec::new(), 0, Vec::new());
    let mut buffer = [0; 8192];
    loop {
        let count = stream.read(&mut buffer)?;
        input.extend_from_slice(&buffer[..count]);
        loop {
            let step = client.receive(&input).map_err(|e| io::Error::other(e.to_string()))?;
            let (used, stuck) = (step.consumed, step.is_stuck());
            match step.event {
                Some(ResponseEvent::Head(head)) => status = head.status,
                Some(ResponseEvent::Body(bytes)) => body.extend_from_slice(bytes),
                Some(ResponseEvent::End { .. }) => return Ok((status, body)),
                None => {}
            }
            input.drain(..used);
            if stuck {
                break;
            }
        }
        if count == 0 {
            return match client.eof() {
                Ok(Some(_)) => Ok((status, body)),
                _ => Err(io::Error::other("it closed the connection inside an answer")),
            };
        }
        if body.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other(format!("{path} answers without end")));
        }
    }
}
