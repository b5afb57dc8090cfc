//! The batch's executor against real servers: gateways over the binary protocol, and llama-servers
//! of unequal speed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cnse::backend::Dialect;
use cnse::batch::attempt::{Prompt, PromptOptions, Work};
use cnse::batch::executor::BatchExecutor;
use cnse::batch::factory::{BatchFactory, Config};
use cnse::batch::retry::Backoff;
use cnse::batch::row::RowOptions;
use cnse::batch::servers::{Server as Endpoint, parse_servers, probe};
use cnse::clock::MonotonicClock;
use cnse::net::{Reactor, Token};
use cnse::sched::executor::{End, Executor, ExecutorFactory};
use cnse::sched::tasks::Task;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::{PATIENCE, Server, cnse};
use crate::llama;

/// A worker's loop that keeps one executor full.
struct Rig {
    reactor: Reactor,
    executor: BatchExecutor,
    _factory: BatchFactory,
    lines: Arc<Mutex<Vec<Value>>>,
    ends: BTreeMap<u64, End>,
    ready: Vec<Task>,
}

impl Rig {
    fn new(servers: &str, key: Option<&str>, change: impl FnOnce(&mut Config)) -> Rig {
        let specs = parse_servers(servers, key).unwrap();
        let servers: Vec<Endpoint> =
            specs.iter().map(|spec| spec.server(&probe(spec).unwrap())).collect();
        let lines: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = lines.clone();
        let mut config = Config {
            permits: vec![2; servers.len()],
            servers,
            retries: 5,
            backoff: Backoff { base: Duration::from_millis(5), max: Duration::from_millis(100) },
            timeout: PATIENCE,
            work: Work::Rows(Arc::new(RowOptions::default())),
            results: Some(Box::new(move |line| {
                kept.lock().unwrap().push(serde_json::from_slice(&line).unwrap());
            })),
            seed: 1,
            quiet: true,
        };
        change(&mut config);
        let factory = BatchFactory::start(config).unwrap();
        let mut reactor = Reactor::open(MonotonicClock::new()).unwrap();
        let executor = factory.open(&mut reactor, 0, 1).unwrap();
        let (ends, ready) = (BTreeMap::new(), Vec::new());
        Rig { reactor, executor, _factory: factory, lines, ends, ready }
    }

    fn rows(&mut self, count: u64, row: impl Fn(u64) -> Value) {
        let task = |at| {
            let body = Some(format!("{}\n", row(at)).into_bytes().into_boxed_slice());
            Task { at, mass: 1, body, ..Task::default() }
        };
        self.ready = (0..count).rev().map(task).collect();
    }

    fn turn(&mut self) {
        let tick = self.reactor.now + Duration::from_millis(10);
        self.reactor.timers.set(tick, Token::single(15));
        while self.executor.room() > 0
            && let Some(task) = self.ready.pop()
        {
            self.executor.start(&mut self.reactor, task);
        }
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
            match completion.end {
                End::Returned => self.ready.push(completion.task),
                end => assert!(self.ends.insert(completion.task.at, end).is_none(), "ended twice"),
            }
        }
    }

    fn until(&mut self, what: &str, mut check: impl FnMut(&Rig) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !check(self) {
            assert!(Instant::now() < end, "waited too long: {what}");
            self.turn();
        }
    }

    fn all_well(&self, count: u64) {
        assert_eq!(self.ends.len() as u64, count);
        let well = |end: &End| matches!(end, End::Done { ok: true, .. });
        assert!(self.ends.values().all(well), "{:?}", self.lines.lock().unwrap());
        let mut ids: Vec<String> =
            self.lines.lock().unwrap().iter().map(|line| line["custom_id"].to_string()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len() as u64, count, "each row has one line");
    }
}

fn chat(at: u64, tokens: u32) -> Value {
    let messages = json!([{ "role": "user", "content": format!("row {at}") }]);
    let body = json!({ "messages": messages, "max_tokens": tokens });
    json!({ "custom_id": format!("r{at}"), "url": "/v1/chat/completions", "body": body })
}

fn url(server: &Server) -> String {
    format!("cnse://{}", server.address)
}

#[test]
fn rows_go_over_binary_connections() {
    let gateway = Server::start(&["--sim-ttft", "5ms", "--threads", "2"]);
    let mut rig = Rig::new(&url(&gateway), None, |config| config.permits = vec![100]);
    rig.rows(400, |at| chat(at, 5));
    rig.until("all end", |rig| rig.ends.len() == 400);
    rig.all_well(400);
    assert!(rig.ends.values().all(|end| matches!(end, End::Done { tokens: 5, .. })));
    assert_eq!(rig.executor.take_tally().ok, 400);
    let lines = rig.lines.lock().unwrap();
    let body = &lines[0]["response"]["body"];
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["usage"]["completion_tokens"], 5);
    // 100 at once need two connections; besides them the health check's and this one's stand.
    let connections = gateway.metric("cnse_connections");
    assert!((2..=4).contains(&connections), "{connections}");
}

#[test]
fn a_prompt_and_a_row_too_large_for_a_frame() {
    let gateway = Server::start(&["--echo"]);
    let mut rig = Rig::new(&url(&gateway), None, |config| {
        let options = PromptOptions { max_tokens: Some(3), ..PromptOptions::default() };
        let prompt = Prompt {
            prompt: "one two three four".to_owned(),
            options,
            keep_text: true,
            ..Prompt::default()
        };
        config.work = Work::Prompt(Arc::new(prompt));
    });
    rig.ready = (0..10).map(|at| Task { at, mass: 1, ..Task::default() }).collect();
    rig.until("all end", |rig| rig.ends.len() == 10);
    rig.all_well(10);
    let line = rig.lines.lock().unwrap()[0].clone();
    let body = &line["response"]["body"];
    assert_eq!(
        (&body["object"], &body["usage"]["completion_tokens"]),
        (&"text_completion".into(), &3.into())
    );
    assert!(body["choices"][0]["text"].as_str().unwrap().contains("one"), "{body}");

    let mut rig = Rig::new(&url(&gateway), None, |_| {});
    let long = "word ".repeat(300_000);
    rig.rows(2, |at| {
        let prompt = if at == 0 { long.as_str() } else { "short" };
        let body = json!({ "prompt": prompt, "max_tokens": 2 });
        json!({ "custom_id": format!("r{at}"), "url": "/v1/completions", "body": body })
    });
    rig.until("both end", |rig| rig.ends.len() == 2);
    rig.all_well(2);
}

#[test]
fn a_late_request_is_cancelled_at_the_gateway_and_errors_are_kept() {
    let gateway = Server::start(&["--sim-ttft", "1m"]);
    let mut rig = Rig::new(&url(&gateway), None, |c| c.timeout = Duration::from_millis(200));
    rig.rows(3, |at| chat(at, 5));
    rig.until("all end", |rig| rig.ends.len() == 3);
    assert!(rig.lines.lock().unwrap().iter().all(|line| line["error"]["code"] == "timeout"));
    rig.until("the gateway has none left", |_| gateway.metric("cnse_requests_active") == 0);

    let gateway = Server::start(&[]);
    let mut rig = Rig::new(&url(&gateway), None, |_| {});
    rig.rows(1, |_| json!({ "custom_id": "x", "url": "/v1/completions", "body": { "prompt": 1 } }));
    rig.until("it ends", |rig| rig.ends.len() == 1);
    let line = rig.lines.lock().unwrap()[0].clone();
    assert_eq!(line["response"]["status_code"], 400, "{line}");
    assert!(line["response"]["body"]["error"]["message"].is_string(), "{line}");
}

#[test]
fn a_gateway_wants_its_key() {
    let mut command = cnse();
    command.env("CNSE_API_KEY", "k").args(["serve", "--sim-model", "words", "--port", "0"]);
    let gateway = Server::spawn(command);
    let refused = probe(&parse_servers(&url(&gateway), Some("wrong")).unwrap()[0]).unwrap_err();
    let wanted = format!("{}: it refuses the key: set CNSE_API_KEY", url(&gateway));
    assert_eq!(refused, wanted);
    let mut rig = Rig::new(&url(&gateway), Some("k"), |_| {});
    rig.rows(5, |at| chat(at, 2));
    rig.until("all end", |rig| rig.ends.len() == 5);
    rig.all_well(5);
}

#[test]
fn work_moves_when_a_gateway_is_killed_and_comes_back_with_it() {
    let [mut first, second] = [(); 2].map(|()| Server::start(&["--sim-ttft", "20ms"]));
    let servers = format!("{},{}", url(&first), url(&second));
    let mut rig = Rig::new(&servers, None, |config| config.permits = vec![8, 8]);
    rig.rows(200, |at| chat(at, 2));
    rig.until("some have ended", |rig| rig.ends.len() > 50);
    first.signal(Signal::SIGKILL);
    first.exit_code();
    rig.until("it is noticed", |rig| rig.executor.slots() == 8);
    rig.until("the rest ends elsewhere", |rig| rig.ends.len() == 200);
    rig.all_well(200);
    let port = first.port();
    let mut command = cnse();
    command.args(["serve", "--sim-model", "words", "--sim-ttft", "20ms", "--port", &port]);
    let back = Server::spawn(command);
    rig.until("it is found again", |rig| rig.executor.slots() == 16);
    rig.rows(250, |at| chat(at, 2));
    rig.ready.retain(|task| task.at >= 200);
    rig.until("all end", |rig| rig.ends.len() == 250);
    rig.all_well(250);
    assert!(back.metric("cnse_requests_completed_total") > 0);
}

#[test]
fn a_gateway_that_drains_ends_what_it_has_and_gets_no_more() {
    let [first, second] = [(); 2].map(|()| Server::start(&["--sim-ttft", "30ms"]));
    let servers = format!("{},{}", url(&first), url(&second));
    let mut rig = Rig::new(&servers, None, |config| config.permits = vec![4, 4]);
    rig.rows(100, |at| chat(at, 2));
    rig.until("some have ended", |rig| rig.ends.len() > 20);
    first.signal(Signal::SIGTERM);
    rig.until("all end", |rig| rig.ends.len() == 100);
    rig.all_well(100);
}

#[test]
fn unequal_llama_servers_share_the_work_and_either_may_die() {
    for dies in [0, 1] {
        let Some(fast) = llama::llama(&[]) else { return };
        let models = std::env::var("CNSE_TEST_MODELS").unwrap();
        let Some(slow) = llama::llama(&["-m", &format!("{models}/mid-16l.gguf")]) else { return };
        let found = probe(&parse_servers(&fast.url(), None).unwrap()[0]).unwrap();
        assert_eq!((found.dialect, found.slots), (Dialect::Llama, Some(2)));
        let servers = format!("{},{}", fast.url(), slow.url());
        let mut rig = Rig::new(&servers, None, |_| {});
        let tokens = |at: u64| 1 + (at as u32 * 37) % 60;
        rig.rows(60, |at| chat(at, tokens(at)));
        rig.until("some have ended", |rig| rig.ends.len() > 20);
        [&fast, &slow][dies].signal(Signal::SIGKILL);
        rig.until("all end", |rig| rig.ends.len() == 60);
        rig.all_well(60);
        for line in rig.lines.lock().unwrap().iter() {
            let at: u64 = line["custom_id"].as_str().unwrap()[1..].parse().unwrap();
            let usage = &line["response"]["body"]["usage"]["completion_tokens"];
            assert_eq!(*usage, tokens(at), "{line}");
        }
    }
}
