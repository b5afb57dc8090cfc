//! Processes that an experiment starts, and that never outlive it.
//!
//! Each is started through a guard (`guard`), which is this program again: it holds the other end
//! of a pipe, and when that closes (the experiment is done with the process, was interrupted, or
//! was killed outright) it ends the process and all that came of it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

/// What is kept of what a process says on stderr: enough for its last words.
const TAIL_BYTES: usize = 4 << 10;
/// A result on stdout; a record of thousands of runs fits.
const RESULT_BYTES_MAX: u64 = 256 << 20;
/// How often a server that is starting is asked.
const READY_EVERY: Duration = Duration::from_millis(25);
/// What one question to it may take.
const READY_ASK: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The experiment was interrupted.
    Interrupted,
    /// A sentence that names what went wrong.
    Failed(String),
}

/// What the experiment waits for.
enum Event {
    Interrupt,
    Output(u32, Vec<u8>),
}

/// Starts processes, and hears of SIGINT and SIGTERM.
pub struct Host {
    events: Receiver<Event>,
    sender: Sender<Event>,
}

/// A process and its guard. Dropped, it is ended.
pub struct Guarded {
    guard: Child,
    lifeline: Option<ChildStdin>,
    name: String,
    tail: Arc<Mutex<Vec<u8>>>,
}

impl Host {
    /// From now on SIGINT and SIGTERM interrupt the experiment instead of ending this process. To
    /// be called before there are other threads.
    ///
    /// # Errors
    /// The signals cannot be held back.
    pub fn new() -> Result<Host, String> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        signals.thread_block().map_err(|error| format!("holding signals back: {error}"))?;
        let (sender, events) = channel();
        let interrupts = sender.clone();
        std::thread::spawn(move || {
            while signals.wait().is_ok() && interrupts.send(Event::Interrupt).is_ok() {}
        });
        Ok(Host { events, sender })
    }

    /// Starts a process. `cnse` as the first word is this program.
    ///
    /// # Errors
    /// There is no word, or this program's file is gone.
    fn start(&self, words: &[String], result: bool) -> Result<Guarded, String> {
        let own = std::env::current_exe()
            .map_err(|error| format!("finding this program's file: {error}"))?;
        let name = words.first().ok_or("the command has no word")?.clone();
        let mut command = Command::new(&own);
        command.args(["bench", "guard", "--"]);
        match (name.as_str(), own.to_str()) {
            ("cnse", Some(own)) => command.arg(own).args(&words[1..]),
            _ => command.args(words),
        };
        command.process_group(0).stdin(Stdio::piped()).stderr(Stdio::piped());
        command.stdout(Stdio::piped());
        let mut guard = command.spawn().map_err(|error| format!("starting {own:?}: {error}"))?;
        let lifeline = guard.stdin.take();
        let tail = Arc::new(Mutex::new(Vec::new()));
        let said = guard.stderr.take();
        spawn_reader(said, tail.clone());
        if result {
            let (output, sender, id) = (guard.stdout.take(), self.sender.clone(), guard.id());
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if let Some(output) = output {
                    // A failure reads as an end; what is missing is seen by who reads the result.
                    let _ = output.take(RESULT_BYTES_MAX).read_to_end(&mut bytes);
                }
                let _ = sender.send(Event::Output(id, bytes));
            });
        } else {
            spawn_reader(guard.stdout.take(), tail.clone());
        }
        Ok(Guarded { guard, lifeline, name, tail })
    }

    /// Runs a command to its end: its exit status and what it printed on stdout.
    ///
    /// # Errors
    /// It could not be started, took too long, or the experiment was interrupted.
    pub fn run(
        &self,
        words: &[String],
        limit: Duration,
    ) -> Result<(ExitStatus, Vec<u8>, String), Fault> {
        let mut process = self.start(words, true).map_err(Fault::Failed)?;
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Interrupt) => return Err(Fault::Interrupted),
                Ok(Event::Output(id, bytes)) if id == process.guard.id() => {
                    let status = process.guard.wait();
                    let status = status.map_err(|error| {
                        Fault::Failed(format!("waiting for {}: {error}", process.name))
                    })?;
                    return Ok((status, bytes, process.last_words()));
                }
                Ok(Event::Output(..)) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let said = process.last_words();
                    return Err(Fault::Failed(format!(
                        "{} did not end within {limit:?}{said}",
                        process.name
                    )));
                }
            }
        }
    }

    /// Starts a server and waits until it is ready.
    ///
    /// # Errors
    /// It ended, did not become ready in time, or the experiment was interrupted.
    pub fn serve(
        &self,
        words: &[String],
        ready: Option<&str>,
        limit: Duration,
    ) -> Result<Guarded, Fault> {
        let mut server = self.start(words, false).map_err(Fault::Failed)?;
        let Some(url) = ready else { return Ok(server) };
        let end = Instant::now() + limit;
        loop {
            if is_ready(url).map_err(Fault::Failed)? {
                return Ok(server);
            }
            if let Ok(Some(status)) = server.guard.try_wait() {
                let said = server.last_words();
                return Err(Fault::Failed(format!(
                    "{} {} before it was ready{said}",
                    server.name,
                    how_it_ended(status)
                )));
            }
            if Instant::now() >= end {
                let said = server.last_words();
                return Err(Fault::Failed(format!(
                    "{} was not ready at {url} within {limit:?}; --ready-timeout gives it more\
                     {said}",
                    server.name
                )));
            }
            self.pause(READY_EVERY)?;
        }
    }

    /// Waits.
    ///
    /// # Errors
    /// The experiment was interrupted.
    pub fn pause(&self, time: Duration) -> Result<(), Fault> {
        match self.events.recv_timeout(time) {
            Ok(Event::Interrupt) => Err(Fault::Interrupted),
            _ => Ok(()),
        }
    }
}

impl Guarded {
    /// That it has ended, and what it said last; None: it runs still.
    pub fn obituary(&mut self) -> Option<String> {
        let status = self.guard.try_wait().ok()??;
        let said = self.last_words();
        Some(format!("{} {}{said}", self.name, how_it_ended(status)))
    }

    /// Behind a sentence: what it said last.
    fn last_words(&mut self) -> String {
        let tail = self.tail.lock().map(|tail| tail.clone()).unwrap_or_default();
        let text = String::from_utf8_lossy(&tail);
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        let lines: Vec<&str> = lines.into_iter().rev().map(str::trim).collect();
        if lines.is_empty() { String::new() } else { format!("; it said: {}", lines.join(" | ")) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // The guard sees the end of its stdin, and ends when all that it guards has.
        drop(self.lifeline.take());
        let _ = self.guard.wait();
    }
}

/// `ended with 1`, `was ended by SIGKILL`.
pub fn how_it_ended(status: ExitStatus) -> String {
    // A guard tells of a signal as shells do.
    let signal =
        status.signal().or(status.code().filter(|code| *code > 128).map(|code| code - 128));
    match signal.map(Signal::try_from) {
        Some(Ok(signal)) => format!("was ended by {signal}"),
        _ => format!("ended with {}", status.code().unwrap_or(-1)),
    }
}

/// Keeps the last of what a process says.
fn spawn_reader(from: Option<impl Read + Send + 'static>, tail: Arc<Mutex<Vec<u8>>>) {
    let Some(mut from) = from else { return };
    std::thread::spawn(move || {
        let mut block = [0; 1 << 12];
        while let Ok(n @ 1..) = from.read(&mut block) {
            let Ok(mut tail) = tail.lock() else { return };
            tail.extend(&block[..n]);
            let over = tail.len().saturating_sub(TAIL_BYTES);
            tail.drain(..over);
        }
    });
}

/// A port of this machine that nobody listens on.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16, String> {
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr());
    port.map(|address| address.port()).map_err(|error| format!("finding a free port: {error}"))
}

/// Whether a server answers. Over HTTP every status under 500 will do, since not every server has
/// the page; one that speaks something else is ready when it takes connections (`tcp://…`).
///
/// # Errors
/// The address is none.
fn is_ready(url: &str) -> Result<bool, String> {
    let wrong = || format!("--ready {url}: not http://host:port/path or tcp://host:port");
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let address = authority.to_socket_addrs().map_err(|_| wrong())?.next().ok_or_else(wrong)?;
    let Ok(mut stream) = TcpStream::connect_timeout(&address, READY_ASK) else { return Ok(false) };
    match scheme {
        "tcp" => Ok(true),
        "http" => {
            let mut ask = || -> std::io::Result<Vec<u8>> {
                stream.set_read_timeout(Some(READY_ASK))?;
                let head = format!(
                    "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
                );
                stream.write_all(head.as_bytes())?;
                let mut line = vec![0; 12];
                stream.read_exact(&mut line)?;
                Ok(line)
            };
            let line = ask().unwrap_or_default();
            let status = std::str::from_utf8(&line).ok().and_then(|line| line.split(' ').nth(1));
            Ok(status
                .and_then(|status| status.parse().ok())
                .is_some_and(|status: u16| status < 500))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_who_answers() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(is_ready(&format!("tcp://127.0.0.1:{port}")), Ok(true));
        drop(socket.accept().unwrap());
        for (answer, ready) in [
            ("HTTP/1.1 503 Loading\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.1 404 Not Found\r\n\r\n", true),
            ("what?", false),
        ] {
            let thread = std::thread::spawn({
                let socket = socket.try_clone().unwrap();
                move || {
                    let (mut stream, _) = socket.accept().unwrap();
                    let mut head = [0; 1024];
                    let n = stream.read(&mut head).unwrap();
                    stream.write_all(answer.as_bytes()).unwrap();
                    String::from_utf8_lossy(&head[..n]).into_owned()
                }
            });
            let found = is_ready(&format!("http://127.0.0.1:{port}/health"));
            let asked = thread.join().unwrap();
            assert_eq!(found, Ok(ready), "{answer}");
            assert!(asked.starts_with("GET /health HTTP/1.1\r\n"), "{asked}");
        }
        drop(socket);
        assert_eq!(is_ready(&format!("http://127.0.0.1:{port}/")), Ok(false));
        for url in ["x", "ftp://127.0.0.1:1", "http://"] {
            assert!(is_ready(url).is_err() || url.starts_with("ftp"), "{url}");
        }
    }

    #[test]
    fn ends_are_told_in_words() {
        assert_eq!(how_it_ended(ExitStatus::from_raw(1 << 8)), "ended with 1");
        assert_eq!(how_it_ended(ExitStatus::from_raw(9)), "was ended by SIGKILL");
        assert_eq!(how_it_ended(ExitStatus::from_raw(143 << 8)), "was ended by SIGTERM");
    }
}
