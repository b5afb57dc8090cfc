//! How fast the codecs are: `cargo bench`. Each checks what it made, and `cargo bench -- --test`
//! runs each once.

use std::hint::black_box;
use std::rc::Rc;

use cnse::clock::Instant;
use cnse::proto::Finish;
use cnse::proto::binary_client::BinaryClient;
use cnse::proto::binary_server::{BinaryServer, ServerConfig, ServerEvent};
use cnse::wire::frame::{FinishReason, FrameType, decode_frame, encode_frame};
use cnse::wire::http1::parse_request_head;
use cnse::wire::message::{Infer, Input};
use cnse::wire::sse::SseSplitter;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    for (name, len) in [("64 B", 64), ("16 KiB", 16 << 10)] {
        let payload = vec![b'x'; len];
        group.throughput(Throughput::Bytes(len as u64));
        let mut out = Vec::new();
        group.bench_function(format!("encode and decode {name}, checksummed"), |b| {
            b.iter(|| {
                out.clear();
                encode_frame(&mut out, FrameType::Chunk, 7, 1, black_box(&payload), true);
                let (frame, used) = decode_frame(&out, 1 << 20).unwrap().unwrap();
                assert_eq!((frame.payload.len(), used), (len, len + 32));
            });
        });
    }
    group.finish();
}

fn exchange(c: &mut Criterion) {
    let config = Rc::new(ServerConfig { token: None, agent: "bench".to_owned() });
    let (mut server, mut client) = (BinaryServer::new(config), BinaryClient::new());
    server.sent(server.pending().len());
    let infer = Infer::new(Input::Prompt("hello"));
    let finish =
        Finish { reason: FinishReason::Stop, prompt_tokens: 5, completion_tokens: 5, queue_us: 0 };
    c.bench_function("INFER to DONE through both machines", |b| {
        let mut id = 0;
        b.iter(|| {
            id += 1;
            client.infer(id, &infer, 1024);
            let step = server.receive(Instant(id), client.pending()).unwrap();
            let Some(ServerEvent::Infer { stream, .. }) = step.event else { panic!() };
            client.sent(step.consumed);
            server.text(stream, Instant(id), b"hello", 5);
            assert!(server.finish(stream, Instant(id), finish));
            let mut events = 0;
            while !server.pending().is_empty() {
                let step = client.receive(server.pending()).unwrap();
                events += u32::from(step.event.is_some());
                server.sent(step.consumed);
            }
            assert_eq!(events, 2);
        });
    });
}

fn http(c: &mut Criterion) {
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:5050\r\n\
        User-Agent: client/1.0\r\nAccept: */*\r\nContent-Type: application/json\r\n\
        Authorization: Bearer secret\r\nContent-Length: 150\r\n\r\n";
    c.bench_function("request head", |b| {
        b.iter(|| assert!(parse_request_head(black_box(head)).unwrap().keep_alive));
    });
    let event = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"}}]}\n\n";
    let stream = event.repeat(32);
    let mut group = c.benchmark_group("sse");
    group.throughput(Throughput::Bytes(stream.len() as u64));
    group.bench_function("32 events", |b| {
        b.iter(|| {
            let mut count = 0;
            SseSplitter::new().feed(black_box(stream.as_bytes()), |_| count += 1).unwrap();
            assert_eq!(count, 32);
        });
    });
    group.finish();
}

criterion_group!(benches, frames, exchange, http);
criterion_main!(benches);
