//! The gateway with its built-in backend, through real sockets.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cnse::proto::binary_client::{BinaryClient, ClientEvent};
use cnse::wire::frame::ErrorCode;
use cnse::wire::message::{Hello, Infer, Input};
use nix::sys::signal::Signal;

use crate::common::{PATIENCE, Server, cnse, run, text, wait_until};

/// A binary connection over a blocking socket.
struct Binary {
    stream: std::net::TcpStream,
    client: BinaryClient,
    input: Vec<u8>,
}

impl Binary {
    fn connect(server: &Server) -> Binary {
        Binary { stream: server.connect(), client: BinaryClient::new(), input: Vec::new() }
    }

    fn send(&mut self) {
        self.stream.write_all(self.client.pending()).unwrap();
        self.client.sent(self.client.pending().len());
    }

    fn infer(&mut self, id: u64, prompt: &str, max_tokens: u32, credit: u32) {
        let infer = Infer { max_tokens: Some(max_tokens), ..Infer::new(Input::Prompt(prompt)) };
        self.client.infer(id, &infer, credit);
        self.send();
    }

    /// The next event but HELLO, as text; None at the connection's end.
    fn next(&mut self) -> Option<String> {
        loop {
            let step = self.client.receive(&self.input).unwrap();
            let told = match &step.event {
                Some(ClientEvent::Hello(_)) | None => None,
                Some(ClientEvent::Chunk { id, tokens, text }) => {
                    Some(format!("chunk {id} {tokens} {}", String::from_utf8_lossy(text)))
                }
                Some(ClientEvent::Done { id, reason, .. }) => Some(format!("done {id} {reason:?}")),
                Some(ClientEvent::Error { id, code, message }) => {
                    let code = ErrorCode::from_u32(*code).unwrap().name();
                    Some(format!("error {id} {code} {message}"))
                }
                Some(ClientEvent::Status { id, running, position, .. }) => {
                    Some(format!("status {id} {running} {position}"))
                }
                Some(event) => Some(format!("{event:?}")),
            };
            let stuck = step.is_stuck();
            let used = step.consumed;
            self.input.drain(..used);
            if told.is_some() {
                return told;
            }
            if stuck {
                let mut buffer = [0; 4096];
                match self.stream.read(&mut buffer).unwrap() {
                    0 => return None,
                    count => self.input.extend_from_slice(&buffer[..count]),
                }
            }
        }
    }

    fn expect(&mut self, wanted: &str) {
        let told = self.next();
        assert!(told.as_deref().is_some_and(|told| told.starts_with(wanted)), "{told:?} {wanted}");
    }
}

#[test]
fn one_prompt_to_the_terminal_and_many_with_percentiles() {
    let server = Server::start(&[]);
    let port = server.port();
    let ask = |args: &[&str]| run(&[&["client", "--port", &port, "--prompt", "Hi"], args].concat());
    let first = ask(&["--n_predict", "9"]);
    assert_eq!(first.status.code(), Some(0));
    assert_eq!(first.stdout, ask(&["--n-predict=9"]).stdout, "the same prompt gives the same text");
    assert!(text(&first.stderr).contains("TTFT"));
    let many = ask(&["--iters", "50", "--concurrency", "8", "--n_predict", "5", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&many.stdout).unwrap();
    assert_eq!(
        (&json["ok"], &json["errors"], &json["tokens"]),
        (&50.into(), &0.into(), &250.into())
    );
    assert_eq!(json["e2e_ms"]["n"], 50);
    assert!(json["e2e_ms"]["p999"].is_null(), "50 samples carry no p99.9");
    let url = server.url();
    let http = run(&["client", "--server", &url, "--prompt", "Hi", "--n_predict", "9"]);
    assert_eq!((http.status.code(), http.stdout), (Some(0), first.stdout));
    let open = ask(&["--rate", "500", "--iters", "50", "--n_predict", "2", "--json"]);
    assert!(text(&open.stdout).contains("\"ok\":50"));
    server.wait_idle();
}

#[test]
fn credit_holds_text_back_and_a_cancel_ends_it() {
    let server = Server::start(&["--echo"]);
    let mut binary = Binary::connect(&server);
    binary.infer(1, "hello there", 99, 5);
    binary.expect("chunk 1 5 hello");
    binary.infer(2, "other", 99, 1000);
    binary.expect("chunk 2 5 other");
    binary.expect("done 2 Stop");
    binary.client.credit(1, 1000);
    binary.send();
    binary.expect("chunk 1 6  there");
    binary.expect("done 1 Stop");
    binary.infer(3, "hello", 99, 0);
    binary.client.cancel(3);
    binary.send();
    binary.expect("error 3 CANCELLED");
    binary.infer(4, "", 99, 0);
    binary.expect("done 4 Stop");
    binary.infer(0, "x", 1, 1);
    binary.expect("error 0 BAD_FRAME");
    assert_eq!(binary.next(), None);
    server.wait_idle();
}

#[test]
fn slots_a_queue_in_order_and_a_bound() {
    let server = Server::start(&["--sim-slots", "1", "--queue", "2", "--sim-ttft", "1h"]);
    let mut binary = Binary::connect(&server);
    for id in 1..=3 {
        binary.infer(id, "x", 1, 100);
    }
    binary.expect("status 2 false 1");
    binary.expect("status 3 false 2");
    binary.infer(4, "x", 1, 100);
    binary.expect("error 4 OVERLOADED the queue is full: 2 requests wait");
    let (status, head, body) = server.post("/completion", r#"{"prompt":"x"}"#);
    assert_eq!(status, 429);
    assert!(head.contains("\r\nRetry-After: ") && body.contains("rate_limit_error"), "{head}");
    // What waits can be cancelled; what runs too, and the next one goes.
    binary.client.cancel(2);
    binary.client.cancel(1);
    binary.send();
    binary.expect("error 2 CANCELLED");
    binary.expect("error 1 CANCELLED");
    binary.expect("status 3 true");
    assert_eq!(server.metric("cnse_requests_active"), 1);
    assert_eq!(server.metric("cnse_cancelled_total{stage=\"queued\"}"), 1);
    drop(binary);
    server.wait_idle();
}

#[test]
fn a_client_that_leaves_in_silence_frees_its_slot() {
    let server = Server::start(&["--sim-slots", "1", "--sim-ttft", "1h"]);
    for (before, half) in [(0, false), (1, true)] {
        let mut stream = server.connect();
        let request =
            "POST /completion HTTP/1.1\r\nHost: h\r\nContent-Length: 14\r\n\r\n{\"prompt\":\"x\"}";
        stream.write_all(request.as_bytes()).unwrap();
        // It has its slot, and is not on its way to it from one core to the other.
        let dispatched = || server.metric("cnse_queue_seconds_count") > before;
        wait_until("it runs", || dispatched().then_some(()));
        if half {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            server.wait_idle();
        } else {
            drop(stream);
            server.wait_idle();
        }
    }
    assert_eq!(server.metric("cnse_cancelled_total{stage=\"prefill\"}"), 2);
}

#[test]
fn deadlines_stalls_and_keepalives() {
    let server = Server::start(&[
        "--sim-ttft",
        "1h",
        "--deadline",
        "80ms",
        "--stall-timeout",
        "150ms",
        "--sse-keepalive",
        "20ms",
    ]);
    let (status, _, body) = server.post("/completion", r#"{"prompt":"x"}"#);
    assert_eq!(status, 504);
    assert!(body.contains("the request's deadline of 0.08 s passed"), "{body}");
    let (status, _, body) = server.post("/completion", r#"{"prompt":"x","stream":true}"#);
    assert_eq!(status, 200, "the first comment sent the head");
    assert!(body.starts_with(":\n\n") && body.contains("data: {\"error\":"), "{body}");
    let (status, _, _) =
        server.ask("POST", "/completion", "X-Deadline-Ms: x\r\n", r#"{"prompt":"x"}"#);
    assert_eq!(status, 400);
    drop(server);
    let server = Server::start(&["--stall-timeout", "100ms"]);
    let mut binary = Binary::connect(&server);
    binary.infer(1, "x", 9, 4);
    binary.expect("chunk 1");
    binary.expect("error 1 DEADLINE its reader took nothing for 0.1 s (--stall-timeout)");
}

#[test]
fn a_key_for_both_protocols() {
    let mut command = cnse();
    command.args(["serve", "--sim-model", "words", "--port", "0"]).env("CNSE_API_KEY", "secret");
    let server = Server::spawn(command);
    let body = r#"{"prompt":"x","max_tokens":1}"#;
    assert_eq!(server.post("/v1/completions", body).0, 401);
    let with = |header: &str| server.ask("POST", "/v1/completions", header, body).0;
    assert_eq!(with("Authorization: Bearer wrong\r\n"), 401);
    assert_eq!(with("Authorization: Bearer secret\r\n"), 200);
    assert_eq!(with("X-Api-Key: secret\r\n"), 200);
    assert_eq!(server.ask("GET", "/health", "", "").0, 200);
    let mut binary = Binary::connect(&server);
    binary.infer(1, "x", 1, 100);
    binary.expect("error 0 UNAUTHENTICATED");
    assert_eq!(binary.next(), None);
    let mut binary = Binary::connect(&server);
    binary.client.hello(&Hello { token: Some(b"secret"), ..Hello::default() });
    binary.infer(1, "x", 1, 100);
    binary.expect("chunk 1");
}

#[test]
fn sigterm_finishes_what_was_accepted() {
    let mut server = Server::start(&["--sim-ttft", "300ms", "--sim-slots", "1"]);
    let mut binary = Binary::connect(&server);
    binary.infer(1, "x", 1, 100);
    binary.infer(2, "x", 1, 100);
    binary.expect("status 2 false 1");
    let mut idle = server.connect();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut head = [0; 15];
    idle.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    server.signal(Signal::SIGTERM);
    binary.expect("Goaway");
    binary.infer(3, "x", 1, 100);
    binary.expect("error 3 SHUTTING_DOWN");
    binary.expect("chunk 1");
    binary.expect("done 1");
    binary.expect("status 2 true");
    binary.expect("chunk 2");
    binary.expect("done 2");
    assert_eq!(binary.next(), None);
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
    assert_eq!(server.exit_code(), Some(0), "{}", server.log());
}

#[test]
fn a_drain_has_an_end_and_a_second_signal_ends_it() {
    for second in [false, true] {
        let limit = if second { "1h" } else { "100ms" };
        let mut server = Server::start(&["--sim-ttft", "1h", "--drain-timeout", limit]);
        let mut binary = Binary::connect(&server);
        binary.infer(1, "x", 1, 100);
        wait_until("it runs", || (server.metric("cnse_requests_active") == 1).then_some(()));
        server.signal(Signal::SIGTERM);
        binary.expect("Goaway");
        if second {
            server.signal(Signal::SIGTERM);
        }
        assert_eq!(server.exit_code(), Some(1), "{}", server.log());
    }
}

#[test]
fn http_in_all_its_forms() {
    let server = Server::start(&["--echo"]);
    let mut stream = server.connect();
    let get = "GET /health HTTP/1.1\r\nHost: h\r\nX-Request-Id: mine\r\n\r\n";
    stream.write_all(get.repeat(3).as_bytes()).unwrap();
    let mut answers = String::new();
    while answers.matches("{\"status\":\"ok\"}").count() < 3 {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        answers.push_str(text(&buffer[..count]));
    }
    assert_eq!(answers.matches("X-Request-Id: mine\r\n").count(), 3);
    drop(stream);
    let (status, head, body) = server.post("/v1/chat/completions", "{");
    assert_eq!(status, 400);
    assert!(head.contains("X-Request-Id: ") && body.contains("invalid_request_error"), "{body}");
    assert_eq!(server.post("/nope", "{}").0, 404);
    let (_, _, props) = server.ask("GET", "/props", "", "");
    assert!(props.contains("total_slots"));
    let stream = r#"{"prompt":"a b","stream":true}"#;
    let (_, head, body) = server.post("/v1/completions", stream);
    assert!(head.contains("text/event-stream") && body.ends_with("data: [DONE]\n\n"), "{body}");
    server.wait_idle();
}

/// A llama-server of which every answer breaks off in the middle, or none: its URL, and how often
/// it was asked.
fn fake_llama(breaks_off: bool) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, asked) = (format!("http://{}", listener.local_addr().unwrap()), Arc::default());
    let counted: Arc<AtomicUsize> = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap_or(0);
            let events = if text(&buffer[..count]).starts_with("GET") {
                let body = r#"{"status":"ok","total_slots":4}"#;
                let length = body.len();
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
            } else {
                counted.fetch_add(1, Ordering::SeqCst);
                let end = if breaks_off { "" } else { END };
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
                format!("{head}data: {TOKEN}\n\n{end}")
            };
            let _ = stream.write_all(events.as_bytes());
        }
    });
    (url, asked)
}

const TOKEN: &str =
    r#"{"choices":[{"index":0,"text":"hi","finish_reason":null}],"timings":{"predicted_n":1}}"#;
const END: &str = "data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n\
                   data: [DONE]\n\n";

#[test]
fn a_plain_answer_that_breaks_off_is_had_from_another_backend() {
    let ((broken, asked), (whole, _)) = (fake_llama(true), fake_llama(false));
    let server = Server::start(&["--llama-url", &format!("{broken},{whole}")]);
    wait_until("the broken one was asked", || {
        let (status, _, body) = server.post("/v1/completions", r#"{"prompt":"x"}"#);
        // Its client had got nothing yet, so that it is no matter how far the first one came.
        assert_eq!(status, 200, "{body}");
        assert!(body.contains(r#""text":"hi""#), "{body}");
        (asked.load(Ordering::SeqCst) > 0).then_some(())
    });
    assert!(server.metric("cnse_retries_total") > 0);
}

#[test]
fn a_thousand_streams_on_connections_of_their_own() {
    let server = Server::start(&["--sim-itl", "20ms"]);
    let output = run(&[
        "client",
        "--port",
        &server.port(),
        "--prompt",
        "x",
        "--iters",
        "1000",
        "--concurrency",
        "1000",
        "--connections",
        "1000",
        "--n_predict",
        "10",
        "--source",
        "127.0.0.1,127.0.0.2",
    ]);
    assert!(text(&output.stdout).starts_with("1000 ok, 0 failed"), "{}", text(&output.stdout));
    server.wait_idle();
    let limit = PATIENCE.max(Duration::from_secs(1));
    let cancel = run(&[
        "client",
        "--port",
        &server.port(),
        "--prompt",
        "x",
        "--iters",
        "20",
        "--concurrency",
        "20",
        "--n_predict",
        "100000",
        "--cancel-after",
        "50ms",
        "--timeout",
        &format!("{}s", limit.as_secs()),
    ]);
    assert!(text(&cancel.stdout).starts_with("0 ok, 0 failed, 20 cancelled"));
    server.wait_idle();
}
