//! Random, mutated and re-split inputs through the machines: never a panic or a hang, the same
//! events for any split.
//!
//! `CNSE_FUZZ_INPUTS` says how many (200,000), `CNSE_FUZZ_SEED` where to begin; a failure prints
//! the seed of its case.

use std::fmt::Write as _;
use std::rc::Rc;

use cnse::clock::Instant;
use cnse::limits::{HTTP_HEAD_BYTES_MAX, SERVER_PAYLOAD_BYTES_MAX};
use cnse::prng::Prng;
use cnse::proto::binary_client::{BinaryClient, ClientEvent};
use cnse::proto::binary_server::{BinaryServer, ServerConfig, ServerEvent};
use cnse::proto::http_client::{HttpClient, ResponseEvent};
use cnse::proto::http_server::{HttpEvent, HttpServer};
use cnse::store::Digest;
use cnse::store::gguf::parse;
use cnse::store::manifest::Manifest;
use cnse::store::record::{Layout, Record};
use cnse::wire::frame::{ErrorCode, FrameType, decode_frame, encode_frame};
use cnse::wire::http1::RequestLine;
use cnse::wire::message::{Hello, Infer, Input};
use cnse::wire::sse::SseSplitter;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// What a machine said of an input: events in order, bodies joined, and the error that ended it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    events: String,
    body: Vec<u8>,
    error: Option<String>,
}

impl Told {
    fn event(&mut self, event: std::fmt::Arguments<'_>) {
        // A body ends where another event begins, however it was split.
        let body = std::mem::take(&mut self.body);
        if !body.is_empty() {
            writeln!(self.events, "body {:?}", String::from_utf8_lossy(&body)).unwrap();
        }
        writeln!(self.events, "{event}").unwrap();
    }
}

/// A machine as the fuzzer drives it: a step at the start of the input, how much of it was used,
/// whether it is stuck.
trait Machine {
    fn step(&mut self, input: &[u8], told: &mut Told) -> (usize, bool);
}

struct Server(BinaryServer);

impl Machine for Server {
    fn step(&mut self, input: &[u8], told: &mut Told) -> (usize, bool) {
        let now = Instant(1);
        match self.0.receive(now, input) {
            Ok(step) => {
                let stuck = step.is_stuck();
                if let Some(event) = step.event {
                    told.event(format_args!("{event:?}"));
                    if let ServerEvent::Infer { stream, .. } = event {
                        self.0.text(stream, now, "tëxt".as_bytes(), 1);
                    }
                }
                if stuck && self.0.is_choked() {
                    self.0.sent(self.0.pending().len());
                    return (step.consumed, false);
                }
                (step.consumed, stuck)
            }
            Err(error) => {
                assert!(self.0.wants_close());
                told.error = Some(error.to_string());
                check_last_error(self.0.pending(), error.code);
                (0, true)
            }
        }
    }
}

/// What is pending ends with an ERROR of request 0 that names `code`.
fn check_last_error(mut pending: &[u8], code: ErrorCode) {
    let mut last = None;
    while let Some((frame, len)) = decode_frame(pending, SERVER_PAYLOAD_BYTES_MAX).unwrap() {
        last = Some((frame.kind, frame.id, frame.aux));
        pending = &pending[len..];
    }
    assert!(pending.is_empty());
    assert_eq!(last, Some((Some(FrameType::Error), 0, code as u32)));
}

struct Client(BinaryClient);

impl Machine for Client {
    fn step(&mut self, input: &[u8], told: &mut Told) -> (usize, bool) {
        match self.0.receive(input) {
            Ok(step) => {
                match &step.event {
                    Some(ClientEvent::Chunk { text, .. }) => told.body.extend_from_slice(text),
                    Some(event) => told.event(format_args!("{event:?}")),
                    None => {}
                }
                (step.consumed, step.is_stuck())
            }
            Err(error) => {
                told.error = Some(error.to_string());
                (0, true)
            }
        }
    }
}

impl Machine for HttpServer {
    fn step(&mut self, input: &[u8], told: &mut Told) -> (usize, bool) {
        match self.receive(input) {
            Ok(step) => {
                let stuck = step.is_stuck();
                match step.event {
                    Some(HttpEvent::Body(bytes)) => told.body.extend_from_slice(bytes),
                    Some(HttpEvent::End) => {
                        told.event(format_args!("end"));
                        self.respond(200, &[], b"ok");
                        self.sent(self.pending().len());
                    }
                    Some(event) => told.event(format_args!("{event:?}")),
                    None => {}
                }
                (step.consumed, stuck)
            }
            Err(error) => {
                assert!((400..506).contains(&error.status()));
                self.respond(error.status(), &[], b"no");
                assert!(self.wants_close());
                told.error = Some(error.to_string());
                (0, true)
            }
        }
    }
}

impl Machine for HttpClient {
    fn step(&mut self, input: &[u8], told: &mut Told) -> (usize, bool) {
        match self.receive(input) {
            Ok(step) => {
                match step.event {
                    Some(ResponseEvent::Body(bytes)) => told.body.extend_from_slice(bytes),
                    Some(event) => told.event(format_args!("{event:?}")),
                    None => {}
                }
                (step.consumed, step.is_stuck())
            }
            Err(error) => {
                told.error = Some(error.to_string());
                (0, true)
            }
        }
    }
}

/// Feeds `input` in parts that end at `cuts`.
fn drive(mut machine: impl Machine, input: &[u8], cuts: &[usize]) -> Told {
    let (mut told, mut from, mut to) = (Told::default(), 0, 0);
    let ends = cuts.iter().copied().chain([input.len()]);
    for end in ends {
        to = end.max(to);
        let mut steps = 0;
        while told.error.is_none() {
            let (used, stuck) = machine.step(&input[from..to], &mut told);
            from += used;
            steps += 1;
            assert!(from <= to, "more was used than there was");
            assert!(steps <= 4 * (to + 4), "no progress");
            if stuck {
                break;
            }
        }
        assert!(to - from <= HTTP_HEAD_BYTES_MAX.max(SERVER_PAYLOAD_BYTES_MAX as usize));
    }
    told
}

fn frames(prng: &mut Prng, out: &mut Vec<u8>) {
    for _ in 0..1 + prng.below(4) {
        let mut payload = Vec::new();
        let kind = match prng.below(12) {
            0 => {
                let hello = Hello { agent: Some("a"), max_payload: Some(1024), ..Hello::default() };
                hello.encode(&mut payload);
                FrameType::Hello
            }
            1..=4 => {
                let mut infer = Infer::new(Input::Prompt("the way"));
                infer.max_tokens = Some(1 + prng.below(9) as u32);
                infer.stop = vec!["x"];
                infer.encode(&mut payload);
                FrameType::Infer
            }
            5 => FrameType::Credit,
            6 => FrameType::Cancel,
            7 => FrameType::Ping,
            8 => FrameType::Chunk,
            9 => FrameType::Done,
            10 => FrameType::Status,
            _ => FrameType::Error,
        };
        if payload.is_empty() {
            payload = (0..prng.below(40)).map(|_| prng.next_u64() as u8).collect();
        }
        let (id, aux) = (prng.below(4), prng.next_u64() as u32 >> prng.below(32));
        encode_frame(out, kind, id, aux, &payload, prng.below(2) == 0);
    }
}

const REQUESTS: [&str; 6] = [
    "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "\r\nHEAD /x HTTP/1.1\r\nHost: h\r\nX-Request-Id: 1\r\nExpect: 100-continue\r\n\r\n",
];
const RESPONSES: [&str; 4] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: x\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n",
];

fn texts(prng: &mut Prng, list: &[&str], out: &mut Vec<u8>) {
    for _ in 0..1 + prng.below(3) {
        out.extend_from_slice(list[prng.below(list.len() as u64) as usize].as_bytes());
    }
}

fn mutate(prng: &mut Prng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() || prng.below(3) == 0 {
        return;
    }
    for _ in 0..1 + prng.below(3) {
        let at = prng.below(bytes.len() as u64) as usize;
        match prng.below(5) {
            0 => bytes[at] ^= 1 << prng.below(8),
            1 => bytes[at] = prng.next_u64() as u8,
            2 => bytes.insert(at, b"\r\n \t;:0\xff"[prng.below(8) as usize]),
            3 => {
                bytes.truncate(at.max(1));
            }
            _ => {
                let end = (at + prng.below(9) as usize).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

fn server() -> Server {
    let config = ServerConfig { token: None, agent: "fuzz".to_owned() };
    Server(BinaryServer::new(Rc::new(config)))
}

fn http_client() -> HttpClient {
    let mut client = HttpClient::new();
    client.request(&RequestLine { method: "GET", target: "/", host: "h", headers: &[] }, None);
    client.sent(client.pending().len());
    client
}

fn case(seed: u64) {
    let prng = &mut Prng::new(seed);
    let kind = prng.below(5);
    let mut input = Vec::new();
    match kind {
        _ if prng.below(20) == 0 => {
            input.extend((0..prng.below(200)).map(|_| prng.next_u64() as u8));
        }
        0 | 1 => frames(prng, &mut input),
        2 => texts(prng, &REQUESTS, &mut input),
        3 => texts(prng, &RESPONSES, &mut input),
        _ => texts(
            prng,
            &["data: {\"a\":1}\n\n", ":\n\n", "data: x\r\n\r\n", "event: e\n"],
            &mut input,
        ),
    }
    mutate(prng, &mut input);
    let mut cuts: Vec<usize> =
        (0..prng.below(6)).map(|_| prng.below(input.len() as u64 + 1) as usize).collect();
    cuts.sort_unstable();
    if prng.below(16) == 0 {
        cuts = (0..input.len()).collect();
    }
    match kind {
        0 => assert_eq!(drive(server(), &input, &[]), drive(server(), &input, &cuts)),
        1 => {
            let client = || Client(BinaryClient::new());
            assert_eq!(drive(client(), &input, &[]), drive(client(), &input, &cuts));
        }
        2 => {
            let server = HttpServer::new;
            assert_eq!(drive(server(), &input, &[]), drive(server(), &input, &cuts));
        }
        3 => assert_eq!(drive(http_client(), &input, &[]), drive(http_client(), &input, &cuts)),
        _ => {
            let split = |cuts: &[usize]| {
                let (mut splitter, mut events, mut from) = (SseSplitter::new(), Vec::new(), 0);
                for &to in cuts.iter().chain([&input.len()]) {
                    let fed = splitter
                        .feed(&input[from..to], |e| events.push((e.raw.to_vec(), e.data.to_vec())));
                    fed.unwrap();
                    from = to;
                }
                events
            };
            assert_eq!(split(&[]), split(&cuts));
        }
    }
}

#[test]
fn random_mutated_and_resplit_inputs() {
    let (first, count) = (env("CNSE_FUZZ_SEED", 1), env("CNSE_FUZZ_INPUTS", 200_000));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for seed in (first + thread..first + count).step_by(threads as usize) {
                    let run = std::panic::catch_unwind(|| case(seed));
                    let replay = "CNSE_FUZZ_INPUTS=1 CNSE_FUZZ_SEED=";
                    assert!(run.is_ok(), "replay it with {replay}{seed}");
                }
            });
        }
    });
}

#[test]
fn one_flipped_bit_in_a_frame_is_refused() {
    let mut frame = Vec::new();
    encode_frame(&mut frame, FrameType::Ping, 0, 7, b"payload", true);
    for bit in 0..frame.len() * 8 {
        let mut flipped = frame.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_frame(&flipped, 64).is_err(), "bit {bit}");
    }
}

/// A GGUF header of a random shape, most of it valid.
fn gguf(prng: &mut Prng) -> Vec<u8> {
    let string = |input: &mut Vec<u8>, text: &str| {
        input.extend((text.len() as u64).to_le_bytes());
        input.extend(text.as_bytes());
    };
    let (tensors, pairs) = (prng.below(4), prng.below(6));
    let mut input = b"GGUF".to_vec();
    input.extend(3_u32.to_le_bytes());
    input.extend(tensors.to_le_bytes());
    input.extend(pairs.to_le_bytes());
    for pair in 0..pairs {
        let keys = ["general.architecture", "general.alignment", "split.no", "x", "y", "z"];
        string(&mut input, keys[pair as usize]);
        let kind = prng.below(14) as u32;
        input.extend(kind.to_le_bytes());
        match kind {
            0 | 1 | 7 => input.push(1),
            2 | 3 => input.extend([1, 0]),
            4..=6 => input.extend(32_u32.to_le_bytes()),
            8 => string(&mut input, "llama"),
            9 => {
                input.extend((prng.below(13) as u32).to_le_bytes());
                input.extend(prng.below(5).to_le_bytes());
                input.extend(vec![0; prng.below(64) as usize]);
            }
            _ => input.extend(64_u64.to_le_bytes()),
        }
    }
    for tensor in 0..tensors {
        string(&mut input, &format!("blk.{tensor}"));
        let dimensions = prng.below(4) as u32;
        input.extend(dimensions.to_le_bytes());
        (0..dimensions).for_each(|_| input.extend((32 * prng.below(9)).to_le_bytes()));
        input.extend((prng.below(42) as u32).to_le_bytes());
        input.extend((32 * prng.below(9)).to_le_bytes());
    }
    input.extend(vec![0; prng.below(512) as usize]);
    input
}

#[test]
fn hostile_headers_manifests_and_records() {
    let (first, count) = (env("CNSE_FUZZ_SEED", 1), env("CNSE_FUZZ_INPUTS", 200_000) / 4);
    let digest = Digest::of(b"");
    let mut read = 0;
    for seed in first..first + count {
        let mut prng = Prng::new(seed);
        let mut input = gguf(&mut prng);
        if prng.below(2) == 0 {
            mutate(&mut prng, &mut input);
        }
        let size = input.len() as u64;
        if let Ok(header) = parse(&input[..], size) {
            read += 1;
            assert!(header.data_offset <= size + (1 << 30), "seed {seed}");
            // Tensors may lie on top of each other, but each within the file.
            let bytes: u64 = header.quantization.bytes_per_type.values().sum();
            assert!(bytes <= size * header.tensor_count.max(1), "seed {seed}");
        }
        let record = Record::new(70_000, 65_536, Layout::Parts, vec![digest; 2]);
        let mut input = record.to_json();
        mutate(&mut prng, &mut input);
        if let Ok(record) = Record::parse(&input) {
            let parts = record.size.div_ceil(record.part_size);
            assert_eq!(record.parts.len() as u64, parts, "seed {seed}");
        }
        let mut input = MANIFEST.to_vec();
        mutate(&mut prng, &mut input);
        if let Ok(manifest) = Manifest::parse(&input, "m", "here") {
            let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            assert!(manifest.files.iter().all(|file| file.name.chars().all(fine)), "seed {seed}");
        }
    }
    assert!(count < 1000 || read > count / 50, "{read} of {count} headers were read");
}

const MANIFEST: &[u8] = br#"{"schema": 1, "name": "gemma", "tag": "q4", "size": 5,
    "uploaded_at": "2026-11-24T00:00:00.000Z", "uploader": "cnse 0.1.0", "files": [{"name": "a.gguf",
    "size": 5, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "part_size": 65536,
    "parts": ["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}]}"#;
