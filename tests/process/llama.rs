//! Against the real llama-server: `CNSE_TEST_LLAMA_SERVER` names the binary, `CNSE_TEST_MODELS` the
//! folder of `scripts/make_gguf.py`. Where they are not set, each test says so and does nothing;
//! `CNSE_TEST_PEERS=required` makes that a failure.

use std::io::{Read, Write};
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use crate::common::{Server, run, text, wait_until};

/// A llama-server on a tiny model.
pub fn llama(more: &[&str]) -> Option<Server> {
    let binary = std::env::var("CNSE_TEST_LLAMA_SERVER");
    let models = std::env::var("CNSE_TEST_MODELS");
    let (Ok(binary), Ok(models)) = (binary, models) else {
        let why = "CNSE_TEST_LLAMA_SERVER and CNSE_TEST_MODELS are not set";
        assert!(std::env::var("CNSE_TEST_PEERS").is_err(), "{why}");
        eprintln!("skipped: {why}");
        return None;
    };
    let mut command = Command::new(binary);
    let model = format!("{models}/tiny.gguf");
    command.args([
        "-m", &model, "--alias", "tiny", "-t", "1", "-c", "4096", "-np", "2", "--port", "0",
    ]);
    command
        .args(["--cache-ram", "0", "--offline", "--sse-ping-interval", "2", "--slots"])
        .args(more);
    let server = Server::spawn(command);
    wait_until("the model is loaded", || {
        (server.ask("GET", "/health", "", "").0 == 200).then_some(())
    });
    Some(server)
}

fn gateway(llama: &Server, more: &[&str]) -> Server {
    let url = llama.url();
    let server = Server::start(&[&["--llama-url", &url], more].concat());
    wait_until("the backend is up", || {
        (server.ask("GET", "/health", "", "").0 == 200).then_some(())
    });
    server
}

fn busy(llama: &Server) -> usize {
    let (_, _, slots) = llama.ask("GET", "/slots", "", "");
    let slots: Value = serde_json::from_str(&slots).unwrap();
    slots.as_array().unwrap().iter().filter(|slot| slot["is_processing"] == true).count()
}

fn events(body: &str) -> Vec<Value> {
    let data = body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// Of an answer, plain or streamed, of any path.
fn content(body: &str) -> String {
    let one = |event: &Value| {
        let choice = &event["choices"][0];
        let parts = [
            &event["content"],
            &choice["text"],
            &choice["delta"]["content"],
            &choice["message"]["content"],
        ];
        parts.iter().find_map(|part| part.as_str()).unwrap_or_default().to_owned()
    };
    match serde_json::from_str::<Value>(body) {
        Ok(plain) => one(&plain),
        Err(_) => events(body).iter().map(one).collect(),
    }
}

#[test]
fn the_same_text_whichever_way_it_is_asked() {
    let Some(llama) = llama(&[]) else { return };
    let server = gateway(&llama, &[]);
    let sampling = json!({ "seed": 7, "temperature": 0.8, "cache_prompt": false, "max_tokens": 24, "n_predict": 24 });
    for (path, input, flag) in [
        ("/completion", json!({ "prompt": "the way of" }), "--seed=7"),
        ("/v1/completions", json!({ "prompt": "the way of" }), "--seed=7"),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": "the way of" }] }),
            "--chat",
        ),
    ] {
        let mut request = sampling.clone();
        request.as_object_mut().unwrap().extend(input.as_object().unwrap().clone());
        let (_, _, direct) = llama.post(path, &request.to_string());
        let wanted = content(&direct);
        assert!(!wanted.is_empty(), "{direct}");
        let (status, _, plain) = server.post(path, &request.to_string());
        assert_eq!((status, content(&plain).as_str()), (200, wanted.as_str()), "{path}");
        same_shape(path, &direct, &plain);
        request["stream"] = true.into();
        let (_, _, stream) = server.post(path, &request.to_string());
        assert_eq!(content(&stream), wanted, "{path}, streamed");
        let binary = run(&[
            "client",
            "--port",
            &server.port(),
            "--prompt",
            "the way of",
            "--n_predict",
            "24",
            "--temperature",
            "0.8",
            "--seed",
            "7",
            "--extra",
            r#"{"cache_prompt":false}"#,
        ]
        .into_iter()
        .chain((flag == "--chat").then_some(flag))
        .collect::<Vec<_>>());
        if path != "/v1/completions" {
            assert_eq!(text(&binary.stdout).trim_end_matches('\n'), wanted, "{path}, binary");
        }
        assert!(text(&binary.stderr).contains("1 ok"), "{}", text(&binary.stderr));
    }
    server.wait_idle();
}

/// A collected answer has the members of the direct one, in one of both orders.
fn same_shape(path: &str, direct: &str, collected: &str) {
    let names = |text: &str| {
        let object: Value = serde_json::from_str(text).unwrap();
        let mut names: Vec<String> = object.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(direct), names(collected), "{path}");
    let (direct, collected): (Value, Value) =
        (serde_json::from_str(direct).unwrap(), serde_json::from_str(collected).unwrap());
    for name in
        ["stop_type", "tokens_predicted", "tokens_evaluated", "object", "generation_settings"]
    {
        assert_eq!(direct[name], collected[name], "{path} {name}");
    }
    assert_eq!(direct["usage"]["completion_tokens"], collected["usage"]["completion_tokens"]);
}

/// Prints how long it took; llama-server itself needs 1 to 3 ms.
fn freed(llama: &Server, what: &str, since: Instant) {
    wait_until("the slot is free", || (busy(llama) == 0).then_some(()));
    eprintln!("{what}: slot free after {:.1} ms", since.elapsed().as_secs_f64() * 1e3);
}

#[test]
fn a_cancel_or_a_disconnect_in_decode_frees_the_slot() {
    let Some(llama) = llama(&[]) else { return };
    let server = gateway(&llama, &[]);
    let body = r#"{"prompt":"the way","n_predict":1900,"stream":true}"#;
    let request = format!(
        "POST /completion HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    for plain in [false, true] {
        let request = if plain { request.replace("true", "null") } else { request.clone() };
        let mut stream = server.connect();
        stream.write_all(request.as_bytes()).unwrap();
        wait_until("it runs", || (busy(&llama) == 1).then_some(()));
        if !plain {
            stream.read_exact(&mut [0; 600]).unwrap();
        }
        let since = Instant::now();
        drop(stream);
        freed(
            &llama,
            if plain { "plain HTTP, disconnect" } else { "HTTP stream, disconnect" },
            since,
        );
    }
    let output = run(&[
        "client",
        "--port",
        &server.port(),
        "--prompt",
        "the way",
        "--n_predict",
        "1900",
        "--cancel-after",
        "60ms",
    ]);
    let since = Instant::now();
    assert!(text(&output.stderr).contains("1 cancelled"), "{}", text(&output.stderr));
    freed(&llama, "binary CANCEL", since);
    server.wait_idle();
}

#[test]
fn a_cancelled_queued_request_never_reaches_it() {
    let Some(llama) = llama(&["--metrics"]) else { return };
    let server = gateway(&llama, &[]);
    let output = run(&[
        "client",
        "--port",
        &server.port(),
        "--prompt",
        "the way",
        "--n_predict",
        "1900",
        "--iters",
        "12",
        "--concurrency",
        "12",
        "--cancel-after",
        "100ms",
    ]);
    assert!(text(&output.stdout).contains("12 cancelled"), "{}", text(&output.stdout));
    server.wait_idle();
    let queued = server.metric("cnse_cancelled_total{stage=\"queued\"}");
    assert!(queued >= 8, "{queued} were cancelled while queued");
    let (_, _, page) = llama.ask("GET", "/metrics", "", "");
    let deferred = page.lines().find(|line| line.starts_with("llamacpp:requests_deferred "));
    assert_eq!(deferred, Some("llamacpp:requests_deferred 0"));
}

#[test]
fn errors_are_openai_shaped() {
    let Some(llama) = llama(&[]) else { return };
    let server = gateway(&llama, &[]);
    let long = "the way ".repeat(3000);
    for (path, body, status, code) in [
        ("/completion", "{".to_owned(), 400, "invalid_request"),
        ("/completion", "{}".to_owned(), 400, "invalid_request"),
        ("/v1/chat/completions", r#"{"messages":1}"#.to_owned(), 400, "invalid_request"),
        ("/completion", json!({ "prompt": long }).to_string(), 400, "context_length_exceeded"),
        ("/nope", "{}".to_owned(), 404, "not_found"),
        ("/v1/embeddings", r#"{"input":"x"}"#.to_owned(), 502, "backend_error"),
    ] {
        let (got, _, answer) = server.post(path, &body);
        let error: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(
            (got, error["error"]["code"].as_str()),
            (status, Some(code)),
            "{path}: {answer}"
        );
        assert!(error["error"]["message"].is_string());
    }
    server.wait_idle();
}

#[test]
fn what_one_backend_cannot_do_another_does() {
    let (Some(mut first), Some(second)) = (llama(&[]), llama(&[])) else { return };
    let urls = format!("{},{}", first.url(), second.url());
    let server = Server::start(&["--llama-url", &urls]);
    let ask = || server.post("/completion", r#"{"prompt":"x","n_predict":3}"#).0;
    // Asked before the first look at them: it waits, and is served.
    assert_eq!(ask(), 200);
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    for _ in 0..6 {
        assert_eq!(ask(), 200, "{}", server.log());
    }
    server.wait_idle();
}

#[test]
fn a_backend_that_dies_is_told_of() {
    let Some(mut llama) = llama(&[]) else { return };
    let server = gateway(&llama, &["--unavailable-timeout", "300ms"]);
    let mut stream = server.connect();
    let body = r#"{"prompt":"the way","n_predict":1900,"stream":true}"#;
    let head =
        format!("POST /completion HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).unwrap();
    stream.read_exact(&mut [0; 600]).unwrap();
    llama.child.kill().unwrap();
    llama.child.wait().unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(rest.contains("llama-server broke off after") && !rest.contains("[DONE]"), "{rest}");
    let (status, _, answer) = server.post("/completion", r#"{"prompt":"x"}"#);
    assert_eq!(status, 502);
    assert!(answer.contains("no backend is up: http://127.0.0.1:"), "{answer}");
    server.wait_idle();
}
