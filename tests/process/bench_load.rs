//! `cnse bench latency`, `throughput` and `gateway` against the built-in backend and servers that
//! misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{Server, cnse, run, text, wait_until};

/// A file of this test's own, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        Scratch(std::env::temp_dir().join(format!("cnse-bench-{}-{name}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.0).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn bench(args: &[&str]) -> Value {
    let output = run(&[&["bench"], args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_open_loop_reports_what_the_server_logged() {
    let (log, requests) = (Scratch::new("log"), Scratch::new("requests"));
    let mut server =
        Server::start(&["--sim-ttft", "5ms", "--sim-itl", "1ms", "--sim-log", log.path()]);
    let url = server.url();
    let result = bench(&[
        "latency",
        "--server",
        &url,
        "--rate",
        "200",
        "--iters",
        "150",
        "--warmup",
        "10",
        "--n_predict",
        "4",
        "--seed",
        "3",
        "--requests",
        requests.path(),
        "--slo",
        "e2e=1h",
    ]);
    assert_eq!((&result["ok"], &result["errors"]), (&150.into(), &0.into()));
    assert_eq!((&result["tokens"], &result["tokens_source"]), (&600.into(), &"timings".into()));
    assert_eq!((&result["ttft_ms"]["n"], &result["itl_ms"]["n"]), (&150.into(), &450.into()));
    assert_eq!(result["goodput_share"], 1.0);
    assert_eq!(result["offered_requests_per_s"], 200.0);
    assert_eq!(result["environment"]["seed"], 3);
    assert_eq!(result["environment"]["servers"][&url]["kind"], "llama-server");
    assert!(result["generator"]["limits"]["lag_p99_ms"].is_number());
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(server.exit_code(), Some(0));
    let (asked, logged) = (requests.lines(), log.lines());
    assert_eq!((asked.len(), logged.len()), (160, 160));
    for request in &asked {
        let true_times = logged.iter().find(|line| line["id"] == request["id"]).unwrap();
        let ms = |us: &Value| us.as_f64().unwrap() / 1e3;
        // None is told before its delay, and so none seen before it, but for the length of a turn:
        // the server counts from where its turn began. (It logs a time once the write is over, by
        // when the client may have it.)
        assert!(request["ttft_service_ms"].as_f64().unwrap() >= 4.0, "{request}");
        assert!(
            ms(&true_times["first_us"]) >= 5.0 && true_times["told_us"][3].as_f64() >= Some(8e3)
        );
    }
}

#[test]
fn a_stall_shows_in_the_response_time() {
    let server = Server::start(&["--sim-stall", "400ms,1s"]);
    let result = bench(&[
        "latency",
        "--server",
        &server.url(),
        "--rate",
        "100",
        "--arrival",
        "fixed",
        "--duration",
        "2500ms",
        "--warmup",
        "0",
        "--concurrency",
        "4",
        "--n_predict",
        "1",
    ]);
    assert!(result["ttft_ms"]["max"].as_f64().unwrap() > 300.0, "{result}");
    assert!(result["queue_ms"]["max"].as_f64().unwrap() > 200.0, "the bound on requests counts");
}

#[test]
fn sessions_carry_their_history() {
    let requests = Scratch::new("sessions");
    let server = Server::start(&[]);
    let result = bench(&[
        "latency",
        "--server",
        &server.url(),
        "--turns",
        "3",
        "--iters",
        "30",
        "--warmup",
        "0",
        "--concurrency",
        "2",
        "--n_predict",
        "8",
        "--input-tokens",
        "10",
        "--requests",
        requests.path(),
    ]);
    assert_eq!(result["ok"], 30);
    let mut lines = requests.lines();
    lines.sort_by_key(|line| line["id"].as_str().unwrap()[5..].parse::<u64>().unwrap());
    let prompts: Vec<u64> = lines.iter().map(|l| l["prompt_tokens"].as_u64().unwrap()).collect();
    for session in prompts.chunks(3) {
        assert!(session[0] < session[1] && session[1] < session[2], "{prompts:?}");
    }
}

#[test]
fn both_protocols_several_cores_and_a_trace() {
    let server = Server::start(&["--sim-ttft", "2ms"]);
    let binary = format!("cnse://{}", server.address);
    for url in [server.url(), binary] {
        let result = bench(&[
            "latency",
            "--server",
            &url,
            "--rate",
            "400",
            "--iters",
            "200",
            "--cores",
            "2",
            "--n_predict",
            "2",
        ]);
        assert_eq!((&result["ok"], &result["tokens"]), (&200.into(), &400.into()), "{url}");
        assert_eq!(result["generator"]["cores"], 2);
    }
    let trace = Scratch::new("trace");
    let lines = "{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 3}\n\
                 {\"timestamp\": 20, \"input_length\": 5, \"output_length\": 4}\n";
    std::fs::write(&trace.0, lines).unwrap();
    let log = Scratch::new("histograms");
    let latency = ["latency", "--server", &server.url(), "--histogram-log", log.path()];
    let result = bench(&[&latency[..], &["--trace", trace.path()]].concat());
    assert_eq!((&result["ok"], &result["tokens"]), (&2.into(), &7.into()));
    // They are as long as the trace asks for, and not short.
    let warnings = result["warnings"].to_string();
    assert!(!warnings.contains("asked for"), "{warnings}");
    let log = std::fs::read_to_string(&log.0).unwrap();
    for tag in ["queue", "ttft", "ttft_service", "itl", "tpot", "e2e", "service"] {
        assert!(log.contains(&format!("\nTag={tag},")), "{tag} in {log}");
    }
}

#[test]
fn conversations_of_a_file() {
    let server = Server::start(&[]);
    let (file, requests) = (Scratch::new("sharegpt"), Scratch::new("of-file"));
    let turn = |who: &str, what: &str| format!("{{\"from\": \"{who}\", \"value\": \"{what}\"}}");
    let (one, two) = (turn("human", "One"), turn("human", "Two"));
    let answer = turn("gpt", "1");
    let text_of_file = format!(
        "[{{\"conversations\": [{one}, {answer}]}}, {{\"conversations\": [{one}, {answer}, {two}]}}]"
    );
    std::fs::write(&file.0, text_of_file).unwrap();
    let args = |more: &[&'static str]| {
        let url = server.url();
        let head = ["bench", "latency", "--server", &url, "--dataset", file.path(), "--json"];
        run(&[&head[..], &["--requests", requests.path()], more].concat())
    };
    // The short conversation is left out, and no session is half in the warm-up.
    let output = args(&["--turns", "2", "--iters", "4", "--warmup", "1", "--n-predict", "3"]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&result["ok"], &result["tokens"]), (&4.into(), &12.into()));
    assert!(text(&output.stderr).contains("1 of 2 have fewer than 2 turns"));
    let output = args(&["--turns", "3", "--iters", "3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("none of its 2 conversations has so many turns"));
    // Lengths that are drawn hold for a file's requests as well.
    let output = args(&["--iters", "8", "--warmup", "0", "--n-predict", "uniform:2,5"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let tokens: Vec<u64> =
        requests.lines().iter().map(|line| line["tokens"].as_u64().unwrap()).collect();
    assert!(tokens.iter().all(|tokens| (2..=5).contains(tokens)), "{tokens:?}");
}

#[test]
fn each_load_has_its_row_and_the_knee_is_told() {
    let (csv, output) = (Scratch::new("csv"), Scratch::new("json"));
    let server = Server::start(&["--sim-itl", "1ms", "--sim-slots", "4"]);
    let result = bench(&[
        "throughput",
        "--server",
        &server.url(),
        "--concurrency",
        "1,2",
        "--n_predict",
        "2,4",
        "--iters",
        "20",
        "--repeat",
        "2",
        "--csv",
        csv.path(),
        "--output",
        output.path(),
    ]);
    let runs = result["runs"].as_array().unwrap();
    assert_eq!((runs.len(), &result["ok"]), (8, &160.into()));
    assert_eq!(result["tokens_source"], "timings");
    let knees = result["knees"].as_array().unwrap();
    assert_eq!((&knees[0]["n_predict"], &knees[1]["n_predict"]), (&2.into(), &4.into()));
    assert!(knees[1]["at_once"].is_number() && result["pareto"].is_array());
    assert!(result["knee"].is_null(), "each length has its own");
    let table = std::fs::read_to_string(&csv.0).unwrap();
    assert_eq!(table.lines().count(), 9);
    assert!(table.starts_with("inflight,throughput_tok_s,latency_p50_ms,latency_p95_ms,"));
    assert_eq!(output.lines()[0]["runs"].as_array().unwrap().len(), 8);
    let result = bench(&[
        "throughput",
        "--server",
        &server.url(),
        "--batch",
        "1,3",
        "--iters",
        "10",
        "--n_predict",
        "2",
    ]);
    assert_eq!(result["runs"][1]["settings"]["batch"], 3);
    assert_eq!(result["runs"][1]["tokens"], 60, "three prompts in each of ten requests");
    assert!(result["knee"]["at_once"].is_number() && result["pareto_at_once"].is_array());
    assert!(result["runs"][1]["itl_ms"].is_null() && result["runs"][1]["ttft_ms"]["n"] == 10);
}

#[test]
fn a_gateways_cost_is_had_in_pairs() {
    let server = Server::start(&["--sim-ttft", "3ms"]);
    let result = bench(&[
        "gateway",
        "--server",
        &server.url(),
        "--rounds",
        "3",
        "--iters",
        "40",
        "--n_predict",
        "2",
    ]);
    assert_eq!((result["runs"].as_array().unwrap().len(), &result["errors"]), (6, &0.into()));
    let cost = &result["gateway_cost_ttft_ms_p50"];
    assert!(cost["ci"][0].as_f64().unwrap() <= cost["cost"].as_f64().unwrap(), "{cost}");
    let echo = Server::start(&["--echo"]);
    let url = format!("cnse://{}", echo.address);
    let result = bench(&[
        "gateway",
        "--raw",
        "--server",
        &url,
        "--connections",
        "4",
        "--depth",
        "1,8",
        "--iters",
        "500",
    ]);
    assert_eq!(
        (&result["ok"], &result["runs"][1]["settings"]["depth"]),
        (&1_000.into(), &8.into())
    );
}

/// Answers each request with `answer` and closes the connection after `answers` of them, whatever
/// the head said; until the test ends.
fn serve(answers: usize, answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                for _ in 0..answers {
                    if !read_request(&mut reader) {
                        return;
                    }
                    let _ = (&stream).write_all(answer.as_bytes());
                }
            });
        }
    });
    url
}

/// Reads a request over; false: there is none.
fn read_request(reader: &mut impl BufRead) -> bool {
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
        let value = line.to_ascii_lowercase();
        let value = value.strip_prefix("content-length:").map(str::trim);
        length = value.and_then(|v| v.parse().ok()).unwrap_or(length);
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).is_ok() && !line.is_empty()
}

/// Answers each connection's first requests, as often as its number says, and closes it at one of
/// the moments that hurt: behind an answer, a moment later, or with the next request's bytes in it,
/// read or unread.
fn serve_and_close() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                for _ in 0..=number % 3 {
                    if !read_request(&mut reader) {
                        return;
                    }
                    let _ = (&stream).write_all(STREAM.as_bytes());
                }
                match number % 4 {
                    0 => {}
                    1 => std::thread::sleep(Duration::from_micros(number as u64 * 97 % 3_000)),
                    2 => {
                        read_request(&mut reader);
                    }
                    _ => {
                        let _ = reader.read_exact(&mut [0; 7]);
                    }
                }
            });
        }
    });
    url
}

const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: keep-alive\r\n\
    Content-Length: 164\r\n\r\n\
    data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n";

#[test]
fn a_connection_that_the_server_closed_costs_no_request() {
    let body = STREAM.split("\r\n\r\n").nth(1).unwrap();
    assert!(STREAM.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    let url = serve(2, STREAM);
    let result =
        bench(&["latency", "--server", &url, "--chat", "--iters", "100", "--concurrency", "4"]);
    assert_eq!((&result["ok"], &result["errors"]), (&100.into(), &0.into()), "{result}");
    assert_eq!(result["tokens_source"], "usage");
}

#[test]
fn whenever_the_server_closes_a_kept_connection_no_request_fails() {
    let url = serve_and_close();
    for load in [&["--concurrency", "8"][..], &["--rate", "400"]] {
        let common = ["latency", "--server", &url, "--chat", "--iters", "400", "--warmup", "0"];
        let result = bench(&[&common[..], load].concat());
        assert_eq!((&result["ok"], &result["errors"]), (&400.into(), &0.into()), "{result}");
        assert!(result["resent"].as_u64() > Some(0), "{result}");
    }
}

#[test]
fn a_start_up_is_dropped_unless_it_is_said_how_much_is() {
    let server = Server::start(&["--sim-ttft", "1ms"]);
    let args = ["latency", "--server", &server.url(), "--iters", "300", "--n_predict", "1"];
    let by_hand = bench(&[&args[..], &["--warmup", "7"]].concat());
    assert_eq!((&by_hand["ok"], &by_hand["warmup"]), (&300.into(), &7.into()));
    assert!(by_hand["settled"]["dropped"].is_null(), "{}", by_hand["settled"]);
    let found = bench(&[&args[..], &["--warmup", "auto"]].concat());
    let dropped = found["settled"]["dropped"]["requests"].as_u64().unwrap_or(0);
    assert_eq!(found["ok"].as_u64().unwrap() + dropped, 300, "{}", found["settled"]);
    assert_eq!(found["ttft_ms"]["n"], found["ok"]);
}

#[test]
fn too_many_failures_end_the_run_and_are_told() {
    let url = serve(9, "HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\nno");
    let output = run(&["bench", "latency", "--server", &url, "--iters", "100000", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let errors = result["errors"].as_u64().unwrap();
    assert!(result["ok"] == 0 && errors < 1_000 && result["ttft_ms"]["n"] == 0, "{result}");
    assert!(result["warnings"][0].as_str().unwrap().contains("ended early"), "{result}");
    assert!(text(&output.stderr).contains("requests failed (--max-error-rate)"));
}

#[test]
fn what_is_wrong_is_said() {
    let down = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    for (args, code, message) in [
        (&["latency"][..], 2, "--server URL is needed"),
        (&["latency", "--server", &down], 1, "connecting to 127.0.0.1:"),
        (&["latency", "--server", &down, "--arrival", "fixed"], 2, "--arrival needs --rate"),
        (&["latency", "--server", &down, "--slo", "ttft"], 2, "--slo: \"ttft\" is no bound"),
        (&["latency", "--server", &down, "--n-predict", "x"], 2, "--n-predict x: not a length"),
        (
            &["latency", "--server", &down, "--dataset", "/nonexistent"],
            1,
            "reading \"/nonexistent\"",
        ),
        (
            &["latency", "--server", &down, "--prompt", "a", "--input-tokens", "5"],
            2,
            "--input-tokens is for made-up prompts",
        ),
        // Told before anything is asked of the server.
        (
            &["latency", "--server", &down, "--output", "/nonexistent/r.json"],
            1,
            "writing \"/nonexistent/r.json\"",
        ),
        (
            &["latency", "--server", &down, "--model-file", "/nonexistent"],
            1,
            "reading \"/nonexistent\"",
        ),
        (
            &["latency", "--server", &down, "--prompt", "a", "--n-predict", "uniform:2,5"],
            2,
            "--n-predict: with --prompt a plain number",
        ),
        (&["throughput", "--server", &down], 2, "--concurrency LIST or --batch LIST is needed"),
        (&["gateway", "--server", &down, "--depth", "1"], 2, "--depth goes with --raw"),
        (&["gateway", "--server", &down, "--raw"], 1, "connecting to 127.0.0.1:"),
    ] {
        let output = run(&[&["bench"], args].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(message), "{args:?}: {}", text(&output.stderr));
    }
}

/// The first interrupt ends the load and keeps what was measured; of an open loop it says what was
/// due. The second ends the program.
#[test]
fn an_interrupted_run_reports_what_it_has() {
    let server = Server::start(&["--sim-ttft", "5ms", "--sim-itl", "1ms"]);
    let flags = ["bench", "latency", "--server", &server.url(), "--n-predict", "4", "--json"];
    for (load, kind) in [(["--concurrency", "2"], "closed"), (["--rate", "100"], "open")] {
        let requests = Scratch::new(&format!("interrupted-{kind}"));
        let more = ["--warmup", "0", "--iters", "1000000", "--requests", requests.path()];
        let child = start(&[&flags[..], &load[..], &more[..]].concat());
        let before = server.metric("cnse_tokens_total");
        wait_until("tokens have come", || {
            (server.metric("cnse_tokens_total") > before).then_some(())
        });
        signal(&child, Signal::SIGINT);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(75), "{kind}: {}", text(&output.stderr));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["interrupted"], true, "{kind}");
        let ok = result["ok"].as_u64().unwrap();
        assert!(ok > 0 && ok < 1_000_000 && result["errors"] == 0, "{kind}: {ok}");
        let warnings = result["warnings"].to_string();
        assert!(warnings.contains(&format!("interrupted after {ok} of 1000000")), "{warnings}");
        assert_eq!(requests.lines().len() as u64, ok, "{kind}: all that was sent has ended");
    }
}

#[test]
fn a_second_interrupt_ends_at_once() {
    let server = Server::start(&["--sim-ttft", "1h"]);
    let mut child = start(&["bench", "latency", "--server", &server.url(), "--json"]);
    wait_until("a request is under way", || {
        (server.metric("cnse_requests_active") > 0).then_some(())
    });
    signal(&child, Signal::SIGINT);
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("interrupted: no request starts any more")));
    signal(&child, Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(75), 0));
}

fn start(args: &[&str]) -> Child {
    cnse().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    nix::sys::signal::kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}
