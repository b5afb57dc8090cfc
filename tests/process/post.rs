//! `--post` and `cnse search`: embeddings become a matrix that is searched; and the built-in
//! language model, served.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::common::{Server, cnse, run, text};
use crate::schedule::Folder;

const WORDS: [&str; 8] = ["water", "night", "river", "city", "light", "earth", "hand", "home"];

fn input(folder: &Folder, count: usize) -> String {
    let path = folder.path("texts.jsonl");
    let row = |i: usize| {
        let texts: Vec<String> = (0..1 + i % 3)
            .map(|j| format!(" {} of {} {i}", WORDS[(i + j) % 8], WORDS[i / 8 % 8]))
            .collect();
        let body = json!({ "input": texts, "dimensions": 64 });
        let id = format!("text-{i}");
        json!({ "custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": body })
            .to_string()
            + "\n"
    };
    fs::write(&path, (0..count).map(row).collect::<String>()).unwrap();
    path
}

fn schedule(folder: &Folder, input: &str, server: &str, more: &[&str]) -> Command {
    let mut command = cnse();
    let output = folder.path("out.jsonl");
    command.args(["schedule", "--input", input, "--output", &output, "--server", server]);
    command.args(more).stdin(Stdio::null());
    command
}

fn search(args: &[&str]) -> Value {
    let output = cnse().args(["search", "--json"]).args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_batch_of_texts_becomes_a_matrix_that_finds_them() {
    let (folder, server) = (Folder::new(), Server::start(&[]));
    let input = input(&folder, 50);
    let post = ["--post", "normalize,truncate=32,quantize=int8", "--ranks", "3"];
    let done = schedule(&folder, &input, &server.url(), &post).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let matrix = folder.path("out.npy");
    let bytes = fs::read(&matrix).unwrap();
    // 50 rows of 1, 2 and 3 texts.
    assert_eq!(bytes.len(), 128 + 99 * 32);
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00v\x00{'descr': '|i1'"));
    let ids = fs::read_to_string(folder.path("out.ids.jsonl")).unwrap();
    let names: Vec<Value> = ids.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wanted: Vec<Value> = (0..50)
        .flat_map(|i| (0..1 + i % 3).map(move |j| (i, j)))
        .map(|(i, j)| json!({ "custom_id": format!("text-{i}"), "index": j }))
        .collect();
    assert_eq!(names, wanted, "in the order of the input");
    // A rerun asks nothing and makes the same; another plan makes another of the same results.
    let skips_all = |more: &[&str]| {
        let again = schedule(&folder, &input, &server.url(), more).arg("--json").output().unwrap();
        let report: Value = serde_json::from_slice(&again.stdout).unwrap();
        assert_eq!((&report["ok"], &report["skipped"]), (&json!(0), &json!(50)));
    };
    skips_all(&post);
    assert_eq!(fs::read(&matrix).unwrap(), bytes);
    let bits = folder.path("bits.npy");
    let topk = format!("truncate=32,quantize=binary,topk=2:{matrix}");
    skips_all(&["--post", &topk, "--matrix", &bits]);
    assert_eq!(fs::read(&bits).unwrap().len(), 128 + 99 * 4);
    let lines = fs::read_to_string(folder.path("bits.topk.jsonl")).unwrap();
    for (number, line) in lines.lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["nearest"][0]["row"], number, "each is nearest to itself: {line}");
    }
    // A text finds itself, by way of a server, in both.
    let url = server.url();
    for matrix in [&matrix, &bits] {
        let text = ["--text", " river of water 2", "--server", &url, "--truncate"];
        let found = search(&[&["--matrix", matrix.as_str()], &text[..]].concat());
        let first = &found["results"][0]["nearest"][0];
        assert_eq!((&first["custom_id"], &first["index"]), (&json!("text-2"), &json!(0)));
    }
}

#[test]
fn queries_come_from_files_and_pipes() {
    let (folder, server) = (Folder::new(), Server::start(&[]));
    let input = input(&folder, 20);
    let mut job = schedule(&folder, &input, &server.url(), &["--post", "normalize"]);
    assert!(job.status().unwrap().success());
    let matrix = folder.path("out.npy");
    let url = server.url();
    let words = " river of water 2";
    let found = search(&["--matrix", &matrix, "--text", words, "--server", &url, "--topk", "3"]);
    assert_eq!(
        (&found["rows"], &found["dims"], &found["kind"]),
        (&json!(39), &json!(64), &json!("f32"))
    );
    let nearest = &found["results"][0]["nearest"];
    assert_eq!((&nearest[0]["custom_id"], &nearest[0]["index"]), (&json!("text-2"), &json!(0)));
    assert!(nearest[0]["score"].as_f64().unwrap() > 0.9999);
    assert_eq!(nearest.as_array().unwrap().len(), 3);
    // The matrix' own rows as queries, from the file, and the server's answer as one.
    let found = search(&["--matrix", &matrix, "--query", &matrix, "--topk", "1"]);
    for (query, result) in found["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!(result["nearest"][0]["row"], query);
    }
    let body = json!({ "input": words }).to_string();
    let (_, _, answer) = server.post("/v1/embeddings", &body);
    let file = folder.path("answer.json");
    fs::write(&file, answer).unwrap();
    let output = run(&["search", "--matrix", &matrix, "--query", &file, "--topk", "1"]);
    let line = text(&output.stdout);
    assert!(line.starts_with("    1   1.000000  row ") && line.ends_with("  text-2\n"), "{line}");
}

#[test]
fn what_does_not_fit_is_said() {
    let (folder, server) = (Folder::new(), Server::start(&[]));
    let input = input(&folder, 3);
    let url = server.url();
    for (more, code, says) in [
        (&["--post", "quantize=int3"][..], 2, "--post: quantize=int3: not int8 or binary"),
        (&["--matrix", "x.npy"], 2, "--matrix is written with --post"),
        (&["--post", "normalize", "--matrix", "x.txt"], 2, "must end in .npy or .jsonl"),
        (&["--post", "topk=3:/nowhere/c.npy"], 1, "/nowhere/c.npy"),
        (&["--post", "truncate=65"], 1, "64 dimensions cannot be truncated to 65"),
    ] {
        let output = schedule(&folder, &input, &url, more).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(text(&output.stderr).contains(says), "{output:?}");
    }
    assert!(!std::path::Path::new(&folder.path("out.npy")).exists());
    // The results are kept, and enough for a plan that fits.
    let done = schedule(&folder, &input, &url, &["--post", "truncate=8"]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let matrix = folder.path("out.npy");
    let query = folder.path("q.json");
    fs::write(&query, "[1,2,3]").unwrap();
    let full = fs::read(&matrix).unwrap();
    fs::write(folder.path("cut.npy"), &full[..full.len() - 1]).unwrap();
    let (cut, nowhere) = (folder.path("cut.npy"), folder.path("nowhere.npy"));
    for (args, code, says) in [
        (&["--matrix", matrix.as_str(), "--query", &query][..], 1, "8 dimensions, and the query 3"),
        (&["--matrix", &matrix, "--query", &query, "--truncate"], 1, "cannot be truncated to 8"),
        (&["--matrix", &cut, "--query", &query], 1, "it was cut off"),
        (&["--matrix", &nowhere, "--query", &query], 1, "cannot read"),
        (&["--matrix", &query, "--query", &query], 1, "it is no .npy file"),
        (&["--query", &query], 2, "--matrix FILE.npy is needed"),
        (&["--matrix", &matrix], 2, "--query FILE, or --text TEXT and --server URL"),
        (&["--matrix", &matrix, "--text", "x"], 2, "--text needs --server"),
    ] {
        let output = cnse().arg("search").args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(text(&output.stderr).contains(says), "{output:?}");
    }
    // Names that are not of this matrix.
    fs::write(folder.path("out.ids.jsonl"), "{\"custom_id\":\"a\",\"index\":0}\n").unwrap();
    fs::write(&query, "[1,2,3,4,5,6,7,8]").unwrap();
    let output = run(&["search", "--matrix", &matrix, "--query", &query]);
    assert!(text(&output.stderr).contains("names 1 rows, and"), "{output:?}");
}

#[test]
fn a_gateway_transforms_embeddings_on_their_way() {
    let plain = Server::start(&[]);
    let builtin = Server::start(&["--post", "normalize,truncate=8,quantize=int8"]);
    let ahead = Server::start(&["--openai-url", &plain.url(), "--post", "quantize=binary"]);
    let body = json!({ "input": [" the river", "x"] }).to_string();
    let vectors = |server: &Server, body: &str| -> Value {
        let (status, _, answer) = server.post("/v1/embeddings", body);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str::<Value>(&answer).unwrap()["data"].clone()
    };
    let (floats, small) = (vectors(&plain, &body), vectors(&builtin, &body));
    let bits = vectors(&ahead, &body);
    for row in 0..2 {
        let numbers = |data: &Value| -> Vec<f64> {
            let list = data[row]["embedding"].as_array().unwrap();
            list.iter().map(|value| value.as_f64().unwrap()).collect()
        };
        let (floats, small, bits) = (numbers(&floats), numbers(&small), numbers(&bits));
        assert_eq!((small.len(), bits.len()), (8, 8));
        let largest = floats[..8].iter().fold(0.0, |max: f64, v| max.max(v.abs()));
        for (float, small) in floats.iter().zip(&small) {
            assert!((float / largest * 127.0 - small).abs() <= 0.5001);
        }
        let first = floats[..8].iter().fold(0, |bits, &v| bits << 1 | u32::from(v > 0.0));
        assert_eq!(bits[0], f64::from(first));
    }
    let packed = json!({ "input": "x", "encoding_format": "base64" }).to_string();
    assert_eq!(vectors(&builtin, &packed)[0]["embedding"].as_str().unwrap().len(), 12);
    // Other calls stay as they are, and what cannot be done is told.
    let (status, _, answer) = builtin.post("/v1/completions", r#"{"prompt":"a","max_tokens":3}"#);
    assert_eq!(status, 200, "{answer}");
    let narrow = json!({ "input": "x", "dimensions": 4 }).to_string();
    let (status, _, answer) = builtin.post("/v1/embeddings", &narrow);
    assert_eq!(status, 502, "{answer}");
    assert!(answer.contains("--post: embeddings of 4 dimensions cannot be truncated to 8"));
    builtin.wait_idle();
}

#[test]
fn a_language_model_is_served_and_its_tokens_are_the_same_on_every_core() {
    let one = Server::start(&["--sim-model", "ngrams", "--sim-vocab", "2000", "--threads", "1"]);
    let two = Server::start(&["--sim-vocab", "2000", "--device", "cpu", "--threads", "3"]);
    assert!(one.log().contains("vocabulary=2000"), "{}", one.log());
    let ask = |server: &Server, seed: usize, stream: bool| -> String {
        let body = json!({ "messages": [{ "role": "user", "content": "what is a river" }],
                           "max_tokens": 30, "seed": seed, "stream": stream,
                           "logit_bias": { "1999": -100 }, "logprobs": true, "top_logprobs": 2 });
        let (status, _, answer) = server.post("/v1/chat/completions", &body.to_string());
        assert_eq!(status, 200, "{answer}");
        if !stream {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["usage"]["completion_tokens"], 30);
            let listed = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len();
            assert_eq!(listed, 30);
            return answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        }
        let events = answer.lines().filter_map(|line| line.strip_prefix("data: {"));
        let parts = events.map(|event| {
            let event: Value = serde_json::from_str(&format!("{{{event}")).unwrap();
            event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
        });
        parts.collect()
    };
    let alone: Vec<String> = (0..4).map(|seed| ask(&one, seed, false)).collect();
    assert!(alone[0] != alone[1]);
    std::thread::scope(|scope| {
        let (ask, alone, servers) = (&ask, &alone, [&one, &two]);
        for number in 0..16 {
            scope.spawn(move || {
                let text = ask(servers[number % 2], number % 4, number / 4 % 2 == 0);
                assert_eq!(text, alone[number % 4], "request {number}");
            });
        }
    });
    let (status, _, answer) = one.post("/completion", r#"{"prompt":"a","top_p":2}"#);
    assert_eq!(status, 400);
    assert!(answer.contains("top_p is 2; it must be above 0, at most 1"), "{answer}");
    one.wait_idle();
}
