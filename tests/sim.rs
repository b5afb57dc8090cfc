//! Client and server machines wired as a pair, on a simulated clock: partial reads and writes,
//! little credit, cancels, stalls, a drain. `CNSE_SIM_SEEDS` says how many runs; a failure prints
//! the seed, and `CNSE_SIM_SEED` replays it.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use cnse::clock::Instant;
use cnse::limits::{OPEN_REQUESTS_MAX, STREAM_BUFFER_BYTES_MAX};
use cnse::prng::Prng;
use cnse::proto::binary_client::{BinaryClient, ClientEvent};
use cnse::proto::binary_server::{BinaryServer, ServerConfig, ServerEvent, Stream};
use cnse::proto::{Finish, Flow};
use cnse::wire::frame::{ErrorCode, FinishReason};
use cnse::wire::message::{Infer, Input};

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn pairs_keep_the_protocol() {
    if let Some(seed) = env("CNSE_SIM_SEED") {
        return Pair::new(seed).run();
    }
    for seed in 0..env("CNSE_SIM_SEEDS").unwrap_or(300) {
        let run = std::panic::catch_unwind(|| Pair::new(seed).run());
        assert!(run.is_ok(), "seed={seed}: replay it with CNSE_SIM_SEED={seed}");
    }
}

/// What the client knows of a request of its own.
#[derive(Default)]
struct Asked {
    granted: u64,
    received: Vec<u8>,
    tokens: u32,
    cancelled: bool,
    ended: bool,
    reader_stopped: bool,
}

/// A request at the server: what is still to be said.
struct Serving {
    stream: Stream,
    id: u64,
    text: Vec<String>,
    full: bool,
}

struct Pair {
    prng: Prng,
    now: Instant,
    client: BinaryClient,
    server: BinaryServer,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    asked: HashMap<u64, Asked>,
    /// By id: what the whole answer is, and whether it was finished.
    answers: HashMap<u64, (String, u32)>,
    serving: HashMap<u64, Serving>,
    next_tag: u64,
    draining: bool,
}

impl Pair {
    fn new(seed: u64) -> Pair {
        let config = Rc::new(ServerConfig { token: None, agent: "sim".to_owned() });
        Pair {
            prng: Prng::new(seed),
            now: Instant(1),
            client: BinaryClient::new(),
            server: BinaryServer::new(config),
            to_server: Vec::new(),
            to_client: Vec::new(),
            asked: HashMap::new(),
            answers: HashMap::new(),
            serving: HashMap::new(),
            next_tag: 1,
            draining: false,
        }
    }

    fn run(mut self) {
        let requests = 1 + self.prng.below(80);
        let mut next_id = 1;
        let drain_at = if self.prng.below(4) == 0 { self.prng.below(2_000) } else { u64::MAX };
        let mut step = 0;
        while next_id <= requests || self.asked.values().any(|a| !a.ended) {
            step += 1;
            assert!(step < 1_000_000, "no end: {}", self.describe());
            self.now = self.now + Duration::from_micros(self.prng.below(500));
            if step == drain_at {
                self.server.goaway("drain");
                self.draining = true;
            }
            match self.prng.below(6) {
                0 if next_id <= requests => {
                    self.ask(next_id);
                    next_id += 1;
                }
                1 => self.credit_or_cancel(),
                2 => self.serve(),
                3 => self.carry_to_server(),
                4 => self.carry_to_client(),
                _ => {
                    self.serve();
                    self.carry_to_client();
                }
            }
        }
        self.carry_all();
        assert!(self.server.is_quiet() && self.serving.is_empty());
    }

    fn ask(&mut self, id: u64) {
        let prompt = format!("prompt {id}");
        let credit = [0, 3, 4, 7, 100, 1 << 20][self.prng.below(6) as usize];
        self.client.infer(id, &Infer::new(Input::Prompt(&prompt)), credit);
        let reader_stopped = self.prng.below(8) == 0;
        let asked = Asked { granted: u64::from(credit), reader_stopped, ..Asked::default() };
        self.asked.insert(id, asked);
    }

    fn credit_or_cancel(&mut self) {
        let mut open: Vec<u64> =
            self.asked.iter().filter(|(_, a)| !a.ended).map(|(id, _)| *id).collect();
        open.sort_unstable();
        if open.is_empty() {
            return;
        }
        let id = open[self.prng.below(open.len() as u64) as usize];
        let others = open.iter().any(|id| !self.asked[id].reader_stopped);
        let Some(asked) = self.asked.get_mut(&id) else { return };
        // A reader who has stopped reads on only when nothing else is left, so that others must not
        // need it.
        if asked.reader_stopped && others {
            return;
        }
        if self.prng.below(20) == 0 {
            self.client.cancel(id);
            asked.cancelled = true;
        } else {
            let bound = if self.prng.below(2) == 0 { 8 } else { 20_000 };
            let bytes = 1 + self.prng.below(bound) as u32;
            self.client.credit(id, bytes);
            asked.granted += u64::from(bytes);
        }
    }

    /// The backend's part: a token of some request, or its end.
    fn serve(&mut self) {
        let mut tags: Vec<u64> = self.serving.keys().copied().collect();
        tags.sort_unstable();
        if tags.is_empty() {
            return;
        }
        let tag = tags[self.prng.below(tags.len() as u64) as usize];
        let Some(serving) = self.serving.get_mut(&tag) else { return };
        if serving.full {
            return;
        }
        let (stream, id) = (serving.stream, serving.id);
        if self.prng.below(100) == 0 {
            self.server.fail(stream, ErrorCode::Backend, "broke off");
            self.serving.remove(&tag);
        } else if !serving.text.is_empty() {
            for _ in 0..self.prng.below(200) {
                let Some(text) = serving.text.pop() else { break };
                serving.full = self.server.text(stream, self.now, text.as_bytes(), 1) == Flow::Full;
                if serving.full {
                    break;
                }
            }
        } else {
            let finish = Finish {
                reason: FinishReason::Stop,
                prompt_tokens: 2,
                completion_tokens: self.answers[&id].1,
                queue_us: 1,
            };
            if self.server.finish(stream, self.now, finish) {
                self.serving.remove(&tag);
            } else {
                serving.full = true; // Nothing more is said: `Finished` or `Cancelled` ends it.
            }
        }
    }

    fn carry_to_server(&mut self) {
        let wanted = self.part(self.client.pending().len());
        self.to_server.extend_from_slice(&self.client.pending()[..wanted]);
        self.client.sent(wanted);
        self.server_reads();
    }

    fn server_reads(&mut self) {
        loop {
            let input = std::mem::take(&mut self.to_server);
            let step =
                self.server.receive(self.now, &input).expect("the client keeps the protocol");
            let (consumed, stuck) = (step.consumed, step.is_stuck());
            if let Some(event) = step.event {
                self.server_event(event);
            }
            self.to_server = input[consumed..].to_vec();
            if stuck {
                return;
            }
        }
    }

    fn server_event(&mut self, event: ServerEvent<'_>) {
        match event {
            ServerEvent::Infer { stream, infer } => {
                assert!(!self.draining, "a request behind GOAWAY");
                let Input::Prompt(prompt) = infer.input else { panic!("{infer:?}") };
                let id: u64 = prompt[7..].parse().unwrap();
                let bound = if self.prng.below(12) == 0 { 15_000 } else { 40 };
                let count = self.prng.below(bound);
                let piece =
                    |i: u64| ["ab", "ü", "漢字", "", "🙂", " word"][(i % 6) as usize].to_owned();
                let mut text: Vec<String> = (0..count).map(piece).collect();
                self.answers.insert(id, (text.concat(), count as u32));
                text.reverse();
                let tag = self.next_tag;
                self.next_tag += 1;
                self.server.set_tag(stream, tag);
                self.serving.insert(tag, Serving { stream, id, text, full: false });
            }
            ServerEvent::Cancelled { tag, .. } | ServerEvent::Finished { tag, .. } => {
                assert!(self.serving.remove(&tag).is_some());
            }
            ServerEvent::Resumed { tag, .. } => {
                let serving = self.serving.get_mut(&tag).expect("it is open");
                assert!(std::mem::replace(&mut serving.full, false));
            }
        }
        assert_eq!(self.server.open_streams(), self.serving.len());
        assert!(self.serving.len() <= OPEN_REQUESTS_MAX as usize);
    }

    fn carry_to_client(&mut self) {
        let count = self.part(self.server.pending().len());
        self.to_client.extend_from_slice(&self.server.pending()[..count]);
        self.server.sent(count);
        while let Some(event) = self.server.poll(self.now) {
            self.server_event(event);
        }
        self.client_reads();
    }

    fn client_reads(&mut self) {
        loop {
            let input = std::mem::take(&mut self.to_client);
            let step = self.client.receive(&input).expect("the server keeps the protocol");
            let (consumed, stuck) = (step.consumed, step.is_stuck());
            if let Some(event) = step.event {
                self.client_event(event);
            }
            self.to_client = input[consumed..].to_vec();
            if stuck {
                return;
            }
        }
    }

    fn client_event(&mut self, event: ClientEvent<'_>) {
        match event {
            ClientEvent::Chunk { id, tokens, text } => {
                let asked = self.asked.get_mut(&id).unwrap();
                assert!(!asked.ended, "a chunk behind the end");
                asked.received.extend_from_slice(text);
                asked.tokens += tokens;
                assert!(asked.received.len() as u64 <= asked.granted, "more than the credit");
                assert!(std::str::from_utf8(text).is_ok(), "a chunk ends inside a character");
            }
            ClientEvent::Done { id, done, .. } => {
                let asked = self.asked.get_mut(&id).unwrap();
                assert!(!std::mem::replace(&mut asked.ended, true), "two ends");
                let (text, count) = &self.answers[&id];
                assert_eq!(asked.received, text.as_bytes());
                assert_eq!((asked.tokens, done.completion_tokens), (*count, *count));
                assert!(done.total_us >= done.first_us);
            }
            ClientEvent::Error { id, code, message } => {
                let asked = self.asked.get_mut(&id).unwrap_or_else(|| panic!("{id}: {message}"));
                assert!(!std::mem::replace(&mut asked.ended, true), "two ends");
                let code = ErrorCode::from_u32(code).unwrap();
                match code {
                    ErrorCode::Cancelled => assert!(asked.cancelled),
                    ErrorCode::ShuttingDown => assert!(self.draining),
                    ErrorCode::Overloaded | ErrorCode::Backend => {}
                    code => panic!("{code:?}: {message}"),
                }
            }
            ClientEvent::Hello(hello) => assert_eq!(hello.agent, Some("sim")),
            ClientEvent::Goaway { .. } => assert!(self.draining),
            ClientEvent::Status { .. } | ClientEvent::Pong { .. } => panic!("{event:?}"),
        }
    }

    fn part(&mut self, len: usize) -> usize {
        match self.prng.below(3) {
            0 => len,
            1 => self.prng.below(len as u64 + 1) as usize,
            _ => len.min(self.prng.below(50) as usize),
        }
    }

    fn describe(&self) -> String {
        let open = self.asked.iter().filter(|(_, asked)| !asked.ended);
        let of = |(id, a): (&u64, &Asked)| {
            format!("{id}: granted {} received {}", a.granted, a.received.len())
        };
        let serving = self.serving.values().map(|s| (s.id, s.text.len(), s.full));
        format!("{:?} {:?}", open.map(of).collect::<Vec<_>>(), serving.collect::<Vec<_>>())
    }

    fn carry_all(&mut self) {
        while !self.client.pending().is_empty() || !self.server.pending().is_empty() {
            self.carry_to_server();
            self.carry_to_client();
        }
    }
}

#[test]
fn a_reader_that_stops_holds_back_its_own_stream_only() {
    let config = Rc::new(ServerConfig { token: None, agent: "sim".to_owned() });
    let (mut server, mut client) = (BinaryServer::new(config), BinaryClient::new());
    for id in 1..=2 {
        client.infer(id, &Infer::new(Input::Prompt("p")), if id == 1 { 0 } else { 1 << 30 });
    }
    let mut input = client.pending();
    let mut opened = 0;
    while !input.is_empty() {
        let step = server.receive(Instant(1), input).unwrap();
        opened += u32::from(step.event.is_some());
        input = &input[step.consumed..];
    }
    assert_eq!(opened, 2);
    let text = [b'x'; 1024];
    let mut flows =
        (0..STREAM_BUFFER_BYTES_MAX / 1024).map(|_| server.text(0, Instant(5), &text, 1));
    assert_eq!(flows.by_ref().last(), Some(Flow::Full));
    assert_eq!(server.stalled_since(0), Some(Instant(5)));
    for _ in 0..1_000 {
        assert_eq!(server.text(1, Instant(6), &text, 1), Flow::Sent);
        server.sent(server.pending().len());
        assert_eq!(server.poll(Instant(6)), None);
    }
    assert_eq!((server.stalled_since(0), server.stalled_since(1)), (Some(Instant(5)), None));
}
