//! Starts servers, stops them, and talks to them with nothing but sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test.
pub fn cnse() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cnse"));
    command.env_remove("CNSE_API_KEY").env_remove("CNSE_UPSTREAM_API_KEY");
    command
}

/// Runs it to its end.
pub fn run(args: &[&str]) -> Output {
    cnse().args(args).output().unwrap()
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Waits until `check` brings something.
pub fn wait_until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < end, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A server process with what it says on stderr; killed when dropped.
pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts `cnse serve` on a free port. Where no backend and no model is named, its answers are
    /// words: they cost nothing, and end where a request says.
    pub fn start(args: &[&str]) -> Server {
        const NAMED: [&str; 6] =
            ["--sim-model", "--sim-vocab", "--echo", "--llama-url", "--openai-url", "--device"];
        let mut command = cnse();
        command.args(["serve", "--port", "0"]).args(args);
        if !args.iter().any(|arg| NAMED.contains(arg)) {
            command.args(["--sim-model", "words"]);
        }
        Server::spawn(command)
    }

    /// Starts a command that says `listening on ADDRESS` or `listening on http://ADDRESS`.
    pub fn spawn(mut command: Command) -> Server {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, kept) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                kept.lock().unwrap().extend([line.as_str(), "\n"]);
            }
        });
        let address = wait_until("the server listens", || {
            let log = log.lock().unwrap();
            let found = log.split("listening on ").nth(1)?.split_once(['\n', ' '])?.0;
            if let Some(status) = child.try_wait().unwrap() {
                panic!("it ended with {status}: {log}");
            }
            found.trim_start_matches("http://").trim().parse().ok()
        });
        Server { child, address, log }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Its exit code, once it has ended.
    pub fn exit_code(&mut self) -> Option<i32> {
        wait_until("the server ends", || self.child.try_wait().unwrap()).code()
    }

    pub fn port(&self) -> String {
        self.address.port().to_string()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// One request on a connection of its own: status, head, body (chunks taken apart).
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> (u16, String, String) {
        let mut stream = self.connect();
        let len = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {len}\r\n\
             {headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        parse(text(&answer))
    }

    pub fn post(&self, path: &str, body: &str) -> (u16, String, String) {
        self.ask("POST", path, "", body)
    }

    /// A value of `/metrics`.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, _, page) = self.ask("GET", "/metrics", "", "");
        let line = page.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name} in {page}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Waits until nothing is under way and only the asking connection is open.
    pub fn wait_idle(&self) {
        wait_until("the server is idle again", || {
            let idle = self.metric("cnse_requests_active") == 0
                && self.metric("cnse_requests_waiting") == 0
                && self.metric("cnse_connections") <= 1;
            idle.then_some(())
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(answer: &str) -> (u16, String, String) {
    let (head, rest) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = String::new();
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        let mut rest = rest;
        while let Some((size, more)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            body.push_str(&more[..size]);
            if size == 0 {
                break;
            }
            rest = &more[size + 2..];
        }
    } else {
        body.push_str(rest);
    }
    (status, head.to_owned(), body)
}
