//! The executor against small servers of a given behaviour, over real sockets.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::super::attempt::{Prompt, PromptOptions, Work};
use super::super::factory::{BatchFactory, Config};
use super::super::retry::Backoff;
use super::super::row::RowOptions;
use super::super::servers::parse_servers;
use super::*;
use crate::backend::Dialect;
use crate::clock::MonotonicClock;
use crate::sched::executor::{End, ExecutorFactory};

/// Longer than any test takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a server does with a request.
enum Reply {
    Answer(u16, &'static str, String),
    /// Closes the connection without a word.
    Cut,
    /// Says nothing until the client goes.
    Silence,
}

/// A server whose answers a closure makes of each request's number and text.
struct Fake {
    address: SocketAddr,
    /// Requests, health checks apart.
    hits: Arc<AtomicUsize>,
    /// Clients that went while nothing was said.
    abandoned: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn start(reply: impl Fn(usize, &str) -> Reply + Send + Sync + 'static) -> Fake {
        Fake::on(TcpListener::bind("127.0.0.1:0").unwrap(), reply)
    }

    fn on(
        listener: TcpListener,
        reply: impl Fn(usize, &str) -> Reply + Send + Sync + 'static,
    ) -> Fake {
        let address = listener.local_addr().unwrap();
        let (hits, abandoned) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let fake = Fake { address, hits, abandoned, seen };
        let (hits, abandoned, seen) =
            (fake.hits.clone(), fake.abandoned.clone(), fake.seen.clone());
        let reply = Arc::new(reply);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (hits, abandoned, seen) = (hits.clone(), abandoned.clone(), seen.clone());
                let reply = reply.clone();
                std::thread::spawn(move || {
                    serve(stream, |request| {
                        if request.starts_with("GET ") {
                            return Some(Reply::Answer(200, "", "{}".to_owned()));
                        }
                        seen.lock().unwrap().push(request.to_owned());
                        Some(reply(hits.fetch_add(1, Ordering::SeqCst), request))
                    })
                    .then(|| abandoned.fetch_add(1, Ordering::SeqCst))
                });
            }
        });
        fake
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

/// Serves one connection. True: its client went while nothing was said.
fn serve(mut stream: TcpStream, reply: impl Fn(&str) -> Option<Reply>) -> bool {
    let (mut input, mut buffer) = (Vec::new(), [0; 65536]);
    loop {
        let text = String::from_utf8_lossy(&input).into_owned();
        let whole = text.split_once("\r\n\r\n").and_then(|(head, body)| {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            (body.len() >= length).then_some(head.len() + 4 + length)
        });
        let Some(whole) = whole else {
            match stream.read(&mut buffer) {
                Ok(count) if count > 0 => input.extend_from_slice(&buffer[..count]),
                _ => return false,
            }
            continue;
        };
        let request = String::from_utf8_lossy(&input[..whole]).into_owned();
        input.drain(..whole);
        match reply(&request) {
            Some(Reply::Answer(status, headers, body)) => {
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
                );
                if stream.write_all(answer.as_bytes()).is_err() {
                    return false;
                }
            }
            Some(Reply::Silence) => return matches!(stream.read(&mut buffer), Ok(0) | Err(_)),
            Some(Reply::Cut) | None => return false,
        }
    }
}

/// A worker's loop around one executor.
struct Rig {
    reactor: Reactor,
    executor: BatchExecutor,
    _factory: BatchFactory,
    lines: Arc<Mutex<Vec<Value>>>,
    ends: BTreeMap<u64, End>,
}

impl Rig {
    fn new(servers: &str, change: impl FnOnce(&mut Config)) -> Rig {
        let specs = parse_servers(servers, Some("secret")).unwrap();
        let server = |spec: &super::super::servers::ServerSpec| Server {
            address: spec.target.authority.parse().ok(),
            ..spec.unseen(Dialect::OpenAi)
        };
        let lines: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = lines.clone();
        let mut config = Config {
            servers: specs.iter().map(server).collect(),
            permits: vec![4; specs.len()],
            retries: 5,
            backoff: Backoff { base: Duration::from_millis(2), max: Duration::from_millis(50) },
            timeout: PATIENCE,
            work: Work::Rows(Arc::new(RowOptions::default())),
            results: Some(Box::new(move |line| {
                assert_eq!(line.last(), Some(&b'\n'));
                kept.lock().unwrap().push(serde_json::from_slice(&line).unwrap());
            })),
            seed: 1,
            quiet: true,
        };
        change(&mut config);
        let factory = BatchFactory::start(config).unwrap();
        let mut reactor = Reactor::open(MonotonicClock::new()).unwrap();
        let executor = factory.open(&mut reactor, 0, 1).unwrap();
        Rig { reactor, executor, _factory: factory, lines, ends: BTreeMap::new() }
    }

    fn start(&mut self, at: u64, line: &str) {
        let body = Some(format!("{line}\n").into_bytes().into_boxed_slice());
        let task = Task { at, mass: line.len() as u32 + 1, body, ..Task::default() };
        self.executor.start(&mut self.reactor, task);
    }

    fn turn(&mut self) {
        // A timer of the test's own, so that it looks at its condition now and then.
        self.reactor.timers.set(self.reactor.now + Duration::from_millis(10), Token::single(15));
        let busy = self.executor.turn(&mut self.reactor);
        self.reactor.wait(busy).unwrap();
        for index in 0..self.reactor.poller.event_count() {
            if let Some((token, readiness)) = self.reactor.poller.event(index) {
                self.executor.event(&mut self.reactor, token, readiness);
            }
        }
        while let Some((at, token)) = self.reactor.timers.fire(self.reactor.now) {
            self.executor.timer(&mut self.reactor, at, token);
        }
        self.executor.turn(&mut self.reactor);
        while let Some(completion) = self.executor.next_completion() {
            let before = self.ends.insert(completion.task.at, completion.end);
            assert!(before.is_none_or(|end| end == End::Returned), "a task ended twice");
        }
    }

    /// As if the health thread had found it so.
    fn hear(&mut self, health: Health) {
        let news = News { server: 0, health, address: None };
        self.executor.hear(self.reactor.now, news);
    }

    fn until(&mut self, what: &str, check: impl Fn(&Rig) -> bool) {
        let end = std::time::Instant::now() + PATIENCE;
        while !check(self) {
            assert!(std::time::Instant::now() < end, "waited too long: {what}");
            self.turn();
        }
    }

    /// Starts one row and waits for its end; its line.
    fn one(&mut self, line: &str) -> Value {
        let at = self.ends.len() as u64;
        self.start(at, line);
        self.until("the row ends", |rig| rig.ends.contains_key(&at));
        self.lines.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

const ROW: &str = r#"{"custom_id":"a","url":"/v1/chat/completions","body":{"messages":[]}}"#;
const ANSWER: &str =
    r#"{"choices":[{"text":"hi"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;

fn ok() -> Reply {
    Reply::Answer(200, "Content-Type: application/json\r\n", ANSWER.to_owned())
}

fn is_done(end: &End, well: bool) -> bool {
    matches!(end, End::Done { ok, .. } if *ok == well)
}

#[test]
fn a_row_is_sent_and_its_answer_kept() {
    let fake = Fake::start(|_, _| ok());
    let mut rig = Rig::new(&fake.url(), |_| {});
    let line = rig.one(ROW);
    assert_eq!(line["custom_id"], "a");
    assert_eq!(line["error"], Value::Null);
    assert_eq!(line["response"]["status_code"], 200);
    assert_eq!(line["response"]["body"].to_string(), ANSWER);
    let id = line["response"]["request_id"].as_str().unwrap();
    let key = line["id"].as_str().unwrap().strip_prefix("batch_req_").unwrap().to_owned();
    assert_eq!(id, format!("cnse-{}", &key[..16]));
    let seen = fake.seen.lock().unwrap().concat();
    assert!(seen.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains(&format!("X-Request-Id: {id}\r\n")), "{seen}");
    assert!(seen.contains("Authorization: Bearer secret\r\n"), "{seen}");
    assert!(matches!(rig.ends[&0], End::Done { ok: true, busy_us: 1.., tokens: 2 }));
    assert_eq!(rig.executor.take_tally().ok, 1);
    assert_eq!(rig.executor.take_tally().ok, 0);
}

#[test]
fn many_rows_and_never_more_at_once_than_there_are_places() {
    let (now, most) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let (counted, peak) = (now, most.clone());
    let fake = Fake::start(move |_, _| {
        peak.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2));
        counted.fetch_sub(1, Ordering::SeqCst);
        ok()
    });
    let mut rig = Rig::new(&fake.url(), |_| {});
    assert_eq!((rig.executor.slots(), rig.executor.room()), (4, 4));
    for at in 0..40 {
        rig.start(at, ROW);
    }
    assert_eq!(rig.executor.room(), 0);
    rig.until("all rows end", |rig| rig.ends.len() == 40);
    assert_eq!((rig.executor.slots(), rig.executor.room()), (4, 4));
    assert!(rig.ends.values().all(|end| is_done(end, true)));
    assert!(most.load(Ordering::SeqCst) <= 4);
    assert_eq!(fake.hits(), 40);
}

#[test]
fn failures_that_pass_are_tried_again() {
    for bad in [
        || Reply::Answer(500, "", "oops".to_owned()),
        || Reply::Answer(503, "", String::new()),
        || Reply::Answer(429, "", String::new()),
        || Reply::Cut,
    ] {
        let fake = Fake::start(move |n, _| if n < 2 { bad() } else { ok() });
        let mut rig = Rig::new(&fake.url(), |_| {});
        let line = rig.one(ROW);
        assert_eq!(line["response"]["status_code"], 200, "{line}");
        assert_eq!(fake.hits(), 3);
    }
}

#[test]
fn after_the_last_try_the_servers_own_words_are_kept() {
    let fake = Fake::start(|_, _| Reply::Answer(500, "", r#"{"why":"no"}"#.to_owned()));
    let mut rig = Rig::new(&fake.url(), |config| config.retries = 2);
    let line = rig.one(ROW);
    assert_eq!(line["response"]["status_code"], 500);
    assert_eq!(line["response"]["body"]["why"], "no");
    assert!(is_done(&rig.ends[&0], false));
    assert_eq!(fake.hits(), 3);

    let fake = Fake::start(|_, _| Reply::Cut);
    let mut rig = Rig::new(&fake.url(), |config| config.retries = 1);
    let line = rig.one(ROW);
    assert_eq!(line["response"], Value::Null);
    assert_eq!(line["error"]["code"], "connection", "{line}");
    assert_eq!(fake.hits(), 2);
}

#[test]
fn what_is_the_rows_fault_is_not_tried_again() {
    let body = r#"{"error":{"code":400,"message":"m","type":"invalid_request_error"}}"#;
    for status in [400, 401, 404, 422, 501] {
        let fake = Fake::start(move |_, _| Reply::Answer(status, "", body.to_owned()));
        let mut rig = Rig::new(&fake.url(), |_| {});
        let line = rig.one(ROW);
        assert_eq!(line["response"]["status_code"], status);
        assert_eq!(line["response"]["body"].to_string(), body);
        assert_eq!(fake.hits(), 1);
        assert!(is_done(&rig.ends[&0], false));
    }
}

#[test]
fn a_bad_row_is_recorded_and_asked_of_nobody() {
    let fake = Fake::start(|_, _| ok());
    let mut rig = Rig::new(&fake.url(), |_| {});
    let line = rig.one(r#"{"custom_id":"b","url":"/x","body":{}}"#);
    assert_eq!((&line["custom_id"], &line["error"]["code"]), (&"b".into(), &"invalid_row".into()));
    assert_eq!(rig.one("{")["custom_id"], "");
    assert_eq!(rig.ends[&0], End::Done { ok: false, busy_us: 0, tokens: 0 });
    assert_eq!(fake.hits(), 0);
}

#[test]
fn retry_after_is_waited_for_and_the_server_left_alone() {
    let fake = Fake::start(|n, _| match n {
        0 => Reply::Answer(429, "Retry-After: 1\r\n", String::new()),
        _ => ok(),
    });
    let mut rig = Rig::new(&fake.url(), |config| config.backoff.max = PATIENCE);
    let began = std::time::Instant::now();
    rig.start(0, ROW);
    rig.until("the server is left alone", |rig| rig.executor.slots() == 0);
    rig.start(1, ROW);
    rig.until("both rows end", |rig| rig.ends.len() == 2);
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(rig.ends.values().all(|end| is_done(end, true)));
    assert_eq!((fake.hits(), rig.executor.slots()), (3, 4));
}

#[test]
fn a_server_that_asks_for_a_long_rest_keeps_no_task() {
    let fake = Fake::start(|_, _| Reply::Answer(429, "Retry-After: 3600\r\n", String::new()));
    let mut rig = Rig::new(&fake.url(), |config| config.permits = vec![1]);
    rig.start(0, ROW);
    rig.start(1, ROW);
    rig.until("both are returned", |rig| rig.ends.len() == 2);
    assert!(rig.ends.values().all(|end| *end == End::Returned));
    assert_eq!((fake.hits(), rig.executor.slots()), (1, 0));
}

#[test]
fn what_a_server_was_doing_when_it_vanished_goes_elsewhere() {
    let silent = Fake::start(|_, _| Reply::Silence);
    let other = Fake::start(|_, _| ok());
    let mut rig = Rig::new(&format!("{},{}", silent.url(), other.url()), |_| {});
    rig.start(0, ROW);
    let hits = silent.hits.clone();
    rig.until("it is asked", |_| hits.load(Ordering::SeqCst) == 1);
    rig.hear(Health::Down { reason: "no answer".to_owned() });
    assert!(rig.executor.over.is_empty(), "one look says little");
    rig.executor.seats[0].down_since = Some(Instant::default());
    let before = rig.reactor.now;
    rig.reactor.now = before + GONE_AFTER;
    rig.hear(Health::Down { reason: "no answer".to_owned() });
    rig.reactor.now = before;
    rig.until("the row ends", |rig| rig.ends.len() == 1);
    assert!(is_done(&rig.ends[&0], true));
    assert_eq!((silent.hits(), other.hits()), (1, 1));
}

#[test]
fn another_server_is_tried_where_there_is_one() {
    let bad = Fake::start(|_, _| Reply::Answer(500, "", String::new()));
    let good = Fake::start(|_, _| ok());
    let servers = format!("{},{}", bad.url(), good.url());
    let mut rig = Rig::new(&servers, |config| config.retries = 1);
    for at in 0..8 {
        rig.start(at, ROW);
    }
    rig.until("all rows end", |rig| rig.ends.len() == 8);
    assert!(rig.ends.values().all(|end| is_done(end, true)));
    assert!(bad.hits() > 0 && good.hits() == 8);
}

#[test]
fn what_takes_too_long_ends_at_the_server_too() {
    let fake = Fake::start(|_, _| Reply::Silence);
    let mut rig = Rig::new(&fake.url(), |c| c.timeout = Duration::from_millis(100));
    let line = rig.one(ROW);
    assert_eq!((&line["response"], &line["error"]["code"]), (&Value::Null, &"timeout".into()));
    assert!(is_done(&rig.ends[&0], false));
    let abandoned = fake.abandoned.clone();
    rig.until("the server sees it", |_| abandoned.load(Ordering::SeqCst) == 1);
    assert_eq!(rig.executor.room(), 4);
}

#[test]
fn while_no_server_is_up_tasks_are_given_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut rig = Rig::new(&format!("http://{address}"), |config| config.retries = 0);
    rig.one(ROW);
    assert_eq!(rig.ends[&0], End::Returned);
    assert_eq!((rig.executor.slots(), rig.executor.room()), (0, 0));
    rig.start(1, ROW);
    rig.until("it is returned", |rig| rig.ends.len() == 2);
    assert_eq!(rig.ends[&1], End::Returned);
    // It comes up, and the tasks end well: to find nobody there has used up no try.
    let fake = Fake::on(TcpListener::bind(address).unwrap(), |_, _| ok());
    rig.until("the server is found", |rig| rig.executor.slots() == 4);
    rig.start(0, ROW);
    rig.start(1, ROW);
    rig.until("both rows end", |rig| rig.ends.values().all(|end| is_done(end, true)));
    assert_eq!(fake.hits(), 2);
}

#[test]
fn a_row_that_was_given_back_keeps_its_tries() {
    let fake = Fake::start(|_, _| Reply::Answer(500, "", String::new()));
    let mut rig = Rig::new(&fake.url(), |config| {
        config.retries = 1;
        config.backoff = Backoff { base: PATIENCE, max: PATIENCE };
        config.timeout = 10 * PATIENCE;
    });
    rig.start(0, ROW);
    let hits = fake.hits.clone();
    rig.until("the first try fails", |_| hits.load(Ordering::SeqCst) == 1);
    rig.until("it waits", |rig| rig.executor.room() == 4);
    // As if the health thread had found the server down.
    let reason = "gone".to_owned();
    let health = Health::Down { reason };
    rig.hear(health);
    rig.executor.return_if_none_up(rig.reactor.now);
    rig.until("it is returned", |rig| rig.ends.len() == 1);
    rig.until("the server is found", |rig| rig.executor.seats[0].is_up == Some(true));
    rig.start(0, ROW);
    rig.until("its last try fails", |rig| is_done(&rig.ends[&0], false));
    assert_eq!(fake.hits(), 2);
}

#[test]
fn a_drain_ends_what_runs_and_gives_back_what_waits() {
    let fake = Fake::start(|n, _| match n {
        0 => Reply::Answer(500, "", String::new()),
        _ => {
            std::thread::sleep(Duration::from_millis(50));
            ok()
        }
    });
    let mut rig = Rig::new(&fake.url(), |config| {
        config.permits = vec![1];
        config.backoff = Backoff { base: PATIENCE, max: PATIENCE };
        config.timeout = 10 * PATIENCE;
    });
    rig.start(0, ROW);
    rig.until("the first fails", |rig| rig.executor.room() == 1);
    rig.start(1, ROW);
    rig.start(2, ROW);
    rig.executor.drain();
    rig.start(3, ROW);
    rig.until("all end", |rig| rig.ends.len() == 4);
    assert!(is_done(&rig.ends[&1], true));
    assert!([0, 2, 3].iter().all(|at| rig.ends[at] == End::Returned), "{:?}", rig.ends);
    assert_eq!((fake.hits(), rig.executor.room()), (2, 0));
}

#[test]
fn each_row_ends_once_whatever_the_servers_do() {
    for seed in 0..2 {
        let servers: Vec<Fake> = (0..3)
            .map(|server| {
                let prng = Mutex::new(Prng::new(seed << 8 | server));
                Fake::start(move |_, _| match prng.lock().unwrap().below(10) {
                    0 => Reply::Cut,
                    1 => Reply::Answer(500, "", String::new()),
                    2 => Reply::Answer(429, "", String::new()),
                    3 => Reply::Answer(503, "Retry-After: 0\r\n", "busy".to_owned()),
                    4 => Reply::Answer(400, "Connection: close\r\n", String::new()),
                    5 => Reply::Silence,
                    6 => Reply::Answer(200, "", "no JSON".to_owned()),
                    _ => ok(),
                })
            })
            .collect();
        let urls: Vec<String> = servers.iter().map(Fake::url).collect();
        let mut rig = Rig::new(&urls.join(","), |config| {
            config.timeout = Duration::from_millis(200);
            config.retries = 2;
            config.permits = vec![2, 3, 4];
            config.seed = seed;
        });
        let (mut next, mut health) = (0, Prng::new(seed));
        while rig.ends.len() < 80 || rig.ends.values().any(|end| *end == End::Returned) {
            while rig.executor.room() > 0 && next < 80 {
                rig.start(next, ROW);
                next += 1;
            }
            let returned: Vec<u64> = rig
                .ends
                .iter()
                .filter(|(_, end)| **end == End::Returned)
                .map(|(at, _)| *at)
                .collect();
            for at in returned {
                rig.ends.remove(&at);
                rig.start(at, ROW);
            }
            if health.below(20) == 0 {
                rig.hear(Health::Loading);
            }
            rig.turn();
            let members: Vec<_> =
                rig.executor.pool.members(rig.reactor.now).map(|(_, _, used, _)| used).collect();
            assert!(members.iter().zip([2, 3, 4]).all(|(used, most)| *used <= most));
        }
        assert_eq!(rig.lines.lock().unwrap().len(), 80, "seed={seed}");
        let used: u32 = rig.executor.pool.members(rig.reactor.now).map(|member| member.2).sum();
        assert_eq!((used, rig.executor.attempts.len()), (0, 0), "seed={seed}");
    }
}

#[test]
fn a_prompt_is_streamed_and_its_answer_put_together() {
    for (is_chat, keep_text) in [(false, true), (true, true), (false, false)] {
        let fake = Fake::start(move |_, _| {
            let text = |text: &str| {
                let choice = if is_chat {
                    format!(r#"{{"index":0,"delta":{{"content":"{text}"}}}}"#)
                } else {
                    format!(r#"{{"index":0,"text":"{text}"}}"#)
                };
                format!("data: {{\"choices\":[{choice}]}}\n\n")
            };
            let end = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\
                       \"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
            let body = [text("a").as_str(), &text("b"), end].concat();
            Reply::Answer(200, "Content-Type: text/event-stream\r\n", body)
        });
        let mut rig = Rig::new(&fake.url(), |config| {
            let options = PromptOptions { max_tokens: Some(2), ..PromptOptions::default() };
            let prompt = "p".to_owned();
            let key = Arc::default();
            config.work =
                Work::Prompt(Arc::new(Prompt { prompt, is_chat, options, key, keep_text }));
        });
        rig.executor.start(&mut rig.reactor, Task { at: 7, mass: 1, ..Task::default() });
        rig.until("it ends", |rig| rig.ends.len() == 1);
        assert!(matches!(rig.ends[&7], End::Done { ok: true, tokens: 2, .. }));
        let line = rig.lines.lock().unwrap()[0].clone();
        assert_eq!(line["custom_id"], "request-7");
        let (body, text) = (&line["response"]["body"], if keep_text { "ab" } else { "" });
        let choice = &body["choices"][0];
        if is_chat {
            assert_eq!(body["object"], "chat.completion");
            assert_eq!(choice["message"]["content"], text);
        } else {
            assert_eq!(
                (&body["object"], &choice["text"]),
                (&"text_completion".into(), &text.into())
            );
        }
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(body["usage"]["total_tokens"], 5);
    }
}
