//! A filer in memory, for tests: files, folders and TUS uploads over real sockets, and at a request
//! of the test's choice a fault.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It answers with this status and does nothing.
    Status(u16),
    /// It closes the connection and does nothing.
    Gone,
    /// It does what it was asked, and the answer is lost.
    Lost,
    /// It takes or gives half of the body and dies.
    Half,
    /// It says that it stored another size.
    WrongSize,
    /// The answer comes in small pieces.
    Slow,
}

/// The filer, until it is dropped.
pub struct Fake {
    pub url: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    uploads: Mutex<BTreeMap<String, (usize, Vec<u8>)>>,
    /// Folders that have files and no entry.
    lost: Mutex<BTreeSet<String>>,
    /// Requests so far.
    count: AtomicU32,
    fault: Mutex<Option<(u32, u32, Fault)>>,
    has_tus: bool,
    /// Bytes of files and uploads that arrived, and that were sent.
    taken: Mutex<(u64, u64)>,
}

struct Asked {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Fake {
    pub fn start(has_tus: bool) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/s", listener.local_addr().unwrap());
        let state = Arc::new(State { has_tus, ..State::default() });
        let shared = Arc::downgrade(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let Some(state) = shared.upgrade() else { return };
                std::thread::spawn(move || state.serve(stream));
            }
        });
        Fake { url, state }
    }

    /// From request `from` on (0: the next one), `times` of them meet a fault.
    pub fn fail(&self, from: u32, times: u32, fault: Fault) {
        let now = self.state.count.load(Ordering::SeqCst);
        let from = now + from;
        *self.state.fault.lock().unwrap() = Some((from, from.saturating_add(times), fault));
    }

    pub fn heal(&self) {
        *self.state.fault.lock().unwrap() = None;
    }

    /// Whether the fault was met.
    pub fn has_failed(&self) -> bool {
        let fault = *self.state.fault.lock().unwrap();
        fault.is_some_and(|(from, _, _)| self.state.count.load(Ordering::SeqCst) > from)
    }

    /// Uploads under way belong to a process that has died.
    pub fn leave(&self) {
        let mut files = self.state.files.lock().unwrap();
        let all = std::mem::take(&mut *files);
        *files = all
            .into_iter()
            .map(|(name, bytes)| match name.split_once("/tmp/") {
                Some((root, rest)) if !rest.contains(".left-") => {
                    (format!("{root}/tmp/{}", rest.replacen('.', ".left-", 1)), bytes)
                }
                _ => (name, bytes),
            })
            .collect();
    }

    pub fn set(&self, path: &str, bytes: &[u8]) {
        self.state.files.lock().unwrap().insert(path.to_owned(), bytes.to_vec());
    }

    /// A folder that the filer had no time to make, before it was killed.
    pub fn lose_folder(&self, path: &str) {
        self.state.lost.lock().unwrap().insert(path.to_owned());
    }

    pub fn names(&self) -> Vec<String> {
        self.state.files.lock().unwrap().keys().cloned().collect()
    }

    /// Bytes of bodies that came and went since the last call.
    pub fn traffic(&self) -> (u64, u64) {
        std::mem::take(&mut *self.state.taken.lock().unwrap())
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        // The listener wakes up, finds nobody, and ends.
        let address = self.url.trim_start_matches("http://").trim_end_matches("/s").to_owned();
        self.state = Arc::default();
        let _ = TcpStream::connect(address);
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        while self.serve_one(&mut stream).is_some() {}
    }

    fn serve_one(&self, stream: &mut TcpStream) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let fault = *self.fault.lock().unwrap();
        let fault = fault.filter(|(from, to, _)| (*from..*to).contains(&number));
        let fault = fault.map(|(_, _, fault)| fault);
        let mut asked = parse(&head);
        if fault == Some(Fault::Gone) {
            return None;
        }
        if asked.headers.contains_key("expect") && !matches!(fault, Some(Fault::Status(_))) {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
        let length = asked.headers.get("content-length").map_or(0, |text| text.parse().unwrap());
        let half = fault == Some(Fault::Half) && length > 1;
        let mut body = vec![0; if half { length / 2 } else { length }];
        if let Some(Fault::Status(status)) = fault {
            // Of no bytes at all a read would wait for some.
            if length > 0 {
                let _ = stream.read(&mut body);
            }
            reply(stream, &plain(status), "GET", None)?;
            return None;
        }
        stream.read_exact(&mut body).ok()?;
        self.taken.lock().unwrap().0 += body.len() as u64;
        asked.body = body;
        if half {
            // What arrived of an upload is kept, what arrived of a file is not.
            if asked.method == "PATCH" {
                self.answer(&asked);
            }
            return None;
        }
        let mut answer = self.answer(&asked);
        if fault == Some(Fault::Lost) {
            return None;
        }
        if fault == Some(Fault::WrongSize) && asked.method == "PUT" {
            answer.body = b"{\"size\":1}".to_vec();
        }
        let sent = match (asked.method.as_str(), fault) {
            ("HEAD", _) => 0,
            (_, Some(Fault::Half)) => answer.body.len() / 2,
            _ => answer.body.len(),
        };
        self.taken.lock().unwrap().1 += sent as u64;
        reply(stream, &answer, &asked.method, fault)
    }

    fn answer(&self, asked: &Asked) -> Answer {
        if let Some(target) = asked.path.strip_prefix("/.tus") {
            return self.tus(asked, target);
        }
        let path = asked.path.trim_end_matches('/').to_owned();
        let mut files = self.files.lock().unwrap();
        match asked.method.as_str() {
            "PUT" => {
                let size = asked.body.len();
                files.insert(path, asked.body.clone());
                Answer { body: format!("{{\"size\":{size}}}").into_bytes(), ..plain(201) }
            }
            "POST" if asked.query.is_empty() => {
                self.lost.lock().unwrap().remove(&path);
                plain(201)
            }
            "POST" => {
                let from = asked.query.strip_prefix("mv.from=").unwrap();
                let is_moved = |name: &&String| **name == from || inside(name, from).is_some();
                let moved: Vec<String> = files.keys().filter(is_moved).cloned().collect();
                for name in &moved {
                    let bytes = files.remove(name).unwrap();
                    files.insert(name.replacen(from, &path, 1), bytes);
                }
                plain(if moved.is_empty() { 400 } else { 204 })
            }
            "DELETE" => {
                files.retain(|name, _| *name != path && inside(name, &path).is_none());
                plain(204)
            }
            _ if asked.path == "/healthz" => plain(200),
            _ if asked.query == "metadata=true" => {
                let is_lost = self.lost.lock().unwrap().contains(&path);
                let is_there = !is_lost
                    && files.keys().any(|name| *name == path || inside(name, &path).is_some());
                let body = format!("{{\"FullPath\":\"{path}\"}}").into_bytes();
                if is_there { Answer { body, ..plain(200) } } else { plain(404) }
            }
            _ if asked.path.ends_with('/') => {
                listing(&files, &self.lost.lock().unwrap(), asked, &path)
            }
            _ => read(&files, asked, &path),
        }
    }

    fn tus(&self, asked: &Asked, target: &str) -> Answer {
        let mut uploads = self.uploads.lock().unwrap();
        let header = |name: &str| asked.headers.get(name).map_or("", String::as_str);
        let id = asked.path.clone();
        let offset = |bytes: &[u8]| ("Upload-Offset", bytes.len().to_string());
        match asked.method.as_str() {
            "OPTIONS" if self.has_tus => {
                let headers = vec![
                    ("Tus-Extension", "creation,concatenation".to_owned()),
                    ("Tus-Max-Size", (1u64 << 40).to_string()),
                ];
                Answer { headers, ..plain(200) }
            }
            "POST" if header("upload-concat") == "partial" => {
                let id = format!("/.tus/.uploads/{:08}", self.count.load(Ordering::SeqCst));
                uploads.insert(id.clone(), (header("upload-length").parse().unwrap(), vec![]));
                Answer { headers: vec![("Location", id)], ..plain(201) }
            }
            "POST" => {
                let parts: Vec<&str> =
                    header("upload-concat").strip_prefix("final;").unwrap().split(' ').collect();
                if parts.iter().any(|part| !uploads.contains_key(*part)) {
                    return plain(404);
                }
                let bytes = parts.iter().map(|part| uploads.remove(*part).unwrap());
                let whole = bytes.flat_map(|(length, bytes)| {
                    assert_eq!(length, bytes.len());
                    bytes
                });
                self.files.lock().unwrap().insert(target.to_owned(), whole.collect());
                plain(201)
            }
            "DELETE" => {
                uploads.remove(&id);
                plain(204)
            }
            "HEAD" | "PATCH" => {
                let Some((_, bytes)) = uploads.get_mut(&id) else { return plain(404) };
                if asked.method == "PATCH" {
                    if header("upload-offset") != bytes.len().to_string() {
                        return plain(409);
                    }
                    bytes.extend_from_slice(&asked.body);
                }
                Answer { headers: vec![offset(bytes)], ..plain(204) }
            }
            _ => plain(404),
        }
    }
}

fn inside<'a>(name: &'a str, folder: &str) -> Option<&'a str> {
    name.strip_prefix(folder)?.strip_prefix('/')
}

fn plain(status: u16) -> Answer {
    Answer { status, headers: Vec::new(), body: Vec::new() }
}

fn read(files: &BTreeMap<String, Vec<u8>>, asked: &Asked, path: &str) -> Answer {
    let Some(bytes) = files.get(path) else { return plain(404) };
    let Some(range) = asked.headers.get("range") else {
        return Answer { body: bytes.clone(), ..plain(200) };
    };
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    if first >= bytes.len() {
        return plain(416);
    }
    let last = last.min(bytes.len() - 1);
    let said = format!("bytes {first}-{last}/{}", bytes.len());
    let headers = vec![("Content-Range", said)];
    Answer { headers, body: bytes[first..=last].to_vec(), ..plain(206) }
}

fn listing(
    files: &BTreeMap<String, Vec<u8>>,
    lost: &BTreeSet<String>,
    asked: &Asked,
    path: &str,
) -> Answer {
    assert_eq!(asked.headers.get("accept").map(String::as_str), Some("application/json"));
    let mut rows: BTreeMap<String, String> = BTreeMap::new();
    for (name, bytes) in files {
        let Some(rest) = inside(name, path) else { continue };
        let (name, is_folder) =
            rest.split_once('/').map_or((rest, false), |(name, _)| (name, true));
        if lost.contains(&format!("{path}/{name}")) {
            continue;
        }
        let (mode, size) = if is_folder { (1u32 << 31, 0) } else { (432, bytes.len()) };
        let row = format!(
            r#"{{"FullPath":"{path}/{name}","Mtime":"2026-11-24T19:42:56Z","Mode":{mode},"FileSize":{size}}}"#
        );
        rows.insert(name.to_owned(), row);
    }
    if rows.is_empty() {
        return plain(404);
    }
    let all: Vec<String> = rows.into_values().collect();
    Answer { body: format!("{{\"Entries\":[{}]}}", all.join(",")).into_bytes(), ..plain(200) }
}

fn parse(head: &[u8]) -> Asked {
    let head = std::str::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, target) = (first.next().unwrap().to_owned(), first.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    Asked {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: headers.collect(),
        body: Vec::new(),
    }
}

fn reply(
    stream: &mut TcpStream,
    answer: &Answer,
    method: &str,
    fault: Option<Fault>,
) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} x\r\nServer: SeaweedFS 30GB 4.53\r\n", answer.status);
    head += "Date: Tue, 24 Nov 2026 19:42:57 GMT\r\n";
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if answer.status != 204 {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).ok()?;
    let body = if method == "HEAD" { &[] } else { answer.body.as_slice() };
    match fault {
        Some(Fault::Half) => {
            stream.write_all(&body[..body.len() / 2]).ok()?;
            return None;
        }
        Some(Fault::Slow) => {
            for piece in body.chunks((body.len() / 8).max(1)) {
                stream.write_all(piece).ok()?;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        _ => stream.write_all(body).ok()?,
    }
    Some(())
}
