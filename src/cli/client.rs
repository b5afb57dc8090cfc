//! `cnse client`: one prompt to the terminal, or many with percentiles.

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use super::Error;
use super::flags::{Flag, Parsed};
use crate::backend::discover;
use crate::bench::arrival::Arrivals;
use crate::bench::load;
use crate::bench::plan::{Plan, Progress, Watcher, Wire};
use crate::bench::workload::Workload;
use crate::limits::{CREDIT_MAX, OPEN_REQUESTS_MAX};
use crate::machine::environment::Environment;
use crate::net::socket;
use crate::wire::message::{Infer, Input, PRIORITY_DEFAULT};

pub const HELP: &str = "\
usage: cnse client [FLAGS]

Asks a cnse gateway over the binary protocol, or any llama-server or OpenAI-compatible server over
HTTP. One request is streamed to the terminal; of many the percentiles are printed. The exit code is
0 if every request ended well.

examples:
  cnse client --port 5050 --prompt \"Explain quantum computing\"
  cnse client --port 5050 --prompt \"What is AI?\" --iters 1000 --concurrency 32 --n_predict 64
  cnse client --server http://127.0.0.1:8090 --prompt Hi --iters 100 --rate 20 --json
  cnse client --port 5050 --prompt Hi --iters 100 --concurrency 8 --cancel-after 50ms

environment:
  CNSE_API_KEY   sent to the server
";

pub const FLAGS: &[Flag] = &[
    Flag::new("server", "ADDRESS", "HOST, cnse://host:port or http://host:port (127.0.0.1)"),
    Flag::new("port", "N", "the port of --server HOST (5050)"),
    Flag::new("prompt", "TEXT", "what is asked"),
    Flag::new("prompt-file", "FILE", "what is asked: a prompt a line, in turn"),
    Flag::switch("chat", "ask each prompt as a chat's message"),
    Flag::new("model", "NAME", "the model (the server's default)"),
    Flag::new("n-predict", "N", "tokens of an answer at most (the server's default)"),
    Flag::new("temperature", "X", "sampling: temperature"),
    Flag::new("top-k", "N", "sampling: the N most likely tokens"),
    Flag::new("top-p", "X", "sampling: the likeliest tokens that add up to X"),
    Flag::new("min-p", "X", "sampling: tokens at least X as likely as the likeliest"),
    Flag::new("repeat-penalty", "X", "sampling: penalty of repetition; 1 is none"),
    Flag::new("seed", "N", "sampling: the seed"),
    Flag::list("stop", "TEXT", "a text that ends the answer; may stand several times"),
    Flag::new("extra", "JSON", "an object that is merged into the backend's request"),
    Flag::new("session", "NAME", "requests of one session go to one backend"),
    Flag::new("priority", "N", "0 goes first, 255 last (128)"),
    Flag::new("deadline", "TIME", "what the server is told that an answer may take"),
    Flag::new("iters", "N", "requests (1; with --duration as many as fit)"),
    Flag::new(
        "concurrency",
        "N",
        "requests at once (1; with --rate as many as it takes, up to 1024)",
    ),
    Flag::new("connections", "N", "binary connections that share them (concurrency / 64)"),
    Flag::new("rate", "R", "requests a second from fixed moments, whether or not others ended"),
    Flag::switch("poisson", "with --rate: random intervals, as of many independent users"),
    Flag::new("duration", "TIME", "no request starts later"),
    Flag::new("warmup", "N", "requests ahead of those that count (0)"),
    Flag::new("credit", "BYTES", "first credit of a request, topped up as it is read (256KiB)"),
    Flag::new("slow", "BYTES", "a reader that takes so many bytes a second (binary)"),
    Flag::new("cancel-after", "TIME", "cancel each request after so long"),
    Flag::new("timeout", "TIME", "give up on a request after so long (10m)"),
    Flag::new("source", "IP[,IP]", "local addresses to connect from, in turn (binary)"),
    Flag::switch("json", "the result as one JSON object on stdout"),
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let usage = Error::Usage;
    let key = std::env::var("CNSE_API_KEY").ok().filter(|key| !key.is_empty());
    let prompts = prompts(parsed)?;
    let options = infer(parsed).map_err(usage)?;
    let workload = Workload::listed(options, prompts, parsed.has("chat"));
    socket::raise_descriptor_limit();
    let server = parsed.text("server").unwrap_or("127.0.0.1");
    let port = parsed.number("port", 1, u16::MAX).map_err(usage)?;
    let Endpoint { wire, address, .. } = endpoint(server, port, key)?;
    let plan = plan(parsed, wire, address, workload).map_err(usage)?;
    let single = plan.iters == Some(1) && plan.warmup == 0 && !parsed.has("json");
    let mut screen = Screen {
        single,
        terminal: std::io::stderr().is_terminal() && !single && !parsed.has("json"),
        total: plan.iters,
        broken_pipe: false,
    };
    let started_at = crate::log::utc(SystemTime::now());
    let mut report = load::run(&plan, &mut screen).map_err(Error::Failed)?.report;
    report.started_at = started_at;
    report.command = std::env::args().skip(1).collect();
    screen.end();
    if parsed.has("json") {
        report.environment = Environment::of_this_machine(super::FEATURES);
        super::print(&format!("{}\n", report.to_json()))?;
    } else if single {
        // The answer has stdout to itself.
        eprint!("{}", report.to_text());
    } else {
        super::print(&report.to_text())?;
    }
    let expected = report.ok + report.cancelled;
    if report.error_count() > 0 || expected == 0 { Err(Error::Reported) } else { Ok(()) }
}

fn prompts(parsed: &Parsed) -> Result<Vec<String>, Error> {
    let prompts: Vec<String> = match (parsed.text("prompt"), parsed.text("prompt-file")) {
        (Some(prompt), None) => vec![prompt.to_owned()],
        (None, Some(file)) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Error::Failed(format!("reading {file:?}: {error}")))?;
            text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
        (None, None) => return Err(Error::Usage("--prompt TEXT is needed".to_owned())),
        _ => {
            let message = "--prompt and --prompt-file exclude each other";
            return Err(Error::Usage(message.to_owned()));
        }
    };
    if prompts.is_empty() {
        return Err(Error::Failed("the prompt file holds no prompt".to_owned()));
    }
    Ok(prompts)
}

fn infer(parsed: &Parsed) -> Result<Infer<'_>, String> {
    let deadline = parsed.duration("deadline")?;
    Ok(Infer {
        input: Input::Prompt(""),
        model: parsed.text("model"),
        max_tokens: parsed.number("n-predict", 1, u32::MAX)?,
        temperature: parsed.number("temperature", 0.0, 100.0)?,
        top_k: parsed.number("top-k", 0, u32::MAX)?,
        top_p: parsed.number("top-p", 0.0, 1.0)?,
        min_p: parsed.number("min-p", 0.0, 1.0)?,
        repeat_penalty: parsed.number("repeat-penalty", 0.0, 100.0)?,
        seed: parsed.number("seed", 0, u64::MAX)?,
        stop: parsed.texts("stop"),
        deadline_ms: deadline.map(|d| u32::try_from(d.as_millis()).unwrap_or(u32::MAX)),
        session: parsed.text("session").map(str::as_bytes),
        traceparent: None,
        priority: parsed.number("priority", 0, u8::MAX)?.unwrap_or(PRIORITY_DEFAULT),
        extra: parsed.text("extra"),
    })
}

fn plan<'p>(
    parsed: &Parsed,
    mut wire: Wire,
    address: SocketAddr,
    workload: Workload<'p>,
) -> Result<Plan<'p>, String> {
    let arrivals = match parsed.number("rate", 1e-3, 1e7)? {
        None => Arrivals::Closed,
        Some(rate) if parsed.has("poisson") => Arrivals::Gamma { rate, shape: 1.0 },
        Some(rate) => Arrivals::Fixed { rate },
    };
    let duration = parsed.duration("duration")?;
    let iters = parsed.number("iters", 1, u64::MAX)?;
    let default = if arrivals.is_open() { 1024 } else { 1 };
    let concurrency = parsed.number("concurrency", 1, 1_000_000_usize)?.unwrap_or(default);
    let asked = parsed.number("connections", 1, 1_000_000_usize)?;
    if let Wire::Binary { connections, .. } = &mut wire {
        let least = concurrency.div_ceil(OPEN_REQUESTS_MAX as usize);
        *connections = asked.unwrap_or(least);
        if *connections < least || *connections > concurrency {
            return Err(format!(
                "--connections {connections}: {concurrency} requests at once need {least} to \
                 {concurrency}, since a connection carries 64"
            ));
        }
    } else if let Some(flag) =
        ["connections", "slow", "source", "credit"].iter().find(|flag| parsed.has(flag))
    {
        return Err(format!("--{flag} is for the binary protocol"));
    }
    let sources = parsed.text("source").unwrap_or_default().split(',').filter(|s| !s.is_empty());
    let sources = sources
        .map(|ip| ip.parse::<IpAddr>().map_err(|_| format!("--source {ip}: not an address")))
        .collect::<Result<Vec<_>, _>>()?;
    let slow = parsed.bytes("slow", u64::from(u32::MAX))?;
    let credit = parsed.bytes("credit", u64::from(CREDIT_MAX))?.unwrap_or(256 << 10) as u32;
    if credit < 4 {
        return Err(format!("--credit {credit}: a character may need 4 bytes"));
    }
    Ok(Plan {
        wire,
        address,
        workload,
        arrivals,
        seed: 1,
        iters: iters.or(if duration.is_some() { None } else { Some(1) }),
        warmup: parsed.number("warmup", 0, u64::MAX)?.unwrap_or(0),
        duration,
        concurrency: Some(concurrency),
        cores: 1,
        think: Duration::ZERO,
        credit,
        slow: slow.map(|bytes| bytes as u32),
        cancel_after: parsed.duration("cancel-after")?,
        timeout: parsed.duration("timeout")?.unwrap_or(Duration::from_secs(600)),
        sources,
        errors_max: None,
        keep: false,
        settle: false,
    })
}

/// Where a server is and how it is spoken to.
pub(super) struct Endpoint {
    pub wire: Wire,
    pub address: SocketAddr,
    /// Sequences that it runs at once, if it says so.
    pub slots: Option<u32>,
}

/// Finds a server: `http://host:port`, `cnse://host:port`, or HOST with a port of its own flag.
pub(super) fn endpoint(
    server: &str,
    port: Option<u16>,
    key: Option<String>,
) -> Result<Endpoint, Error> {
    if server.contains("://") && port.is_some() {
        let message = format!("--port is for --server HOST; {server} has its own");
        return Err(Error::Usage(message));
    }
    if server.starts_with("http://") || server.starts_with("https://") {
        let mut target = discover::target(server).map_err(Error::Usage)?;
        target.authorization = key.map(|key| format!("Bearer {key}"));
        let found = discover::ask(&target).map_err(Error::Failed)?;
        let wire = Wire::Http { dialect: found.dialect, target };
        return Ok(Endpoint { wire, address: found.address, slots: found.slots });
    }
    let authority = match server.strip_prefix("cnse://") {
        Some(authority) => authority.trim_end_matches('/').to_owned(),
        None => {
            let port = port.unwrap_or(5050);
            let v6 = server.contains(':') && !server.starts_with('[');
            if v6 { format!("[{server}]:{port}") } else { format!("{server}:{port}") }
        }
    };
    let address = discover::resolve(&authority).map_err(Error::Failed)?;
    Ok(Endpoint { wire: Wire::Binary { connections: 1, token: key }, address, slots: None })
}

/// Shows a single answer as it comes, and how far many are.
struct Screen {
    single: bool,
    terminal: bool,
    total: Option<u64>,
    broken_pipe: bool,
}

impl Watcher for Screen {
    fn text(&mut self, text: &[u8]) {
        if self.single && !self.broken_pipe {
            let mut out = std::io::stdout().lock();
            self.broken_pipe = out.write_all(text).and_then(|()| out.flush()).is_err();
        }
    }

    fn progress(&mut self, progress: Progress) {
        if self.terminal {
            let of = self.total.map_or(String::new(), |total| format!(" of {total}"));
            let Progress { failed, tokens, .. } = progress;
            eprint!("\r{}{of} done, {failed} failed, {tokens} tokens ", progress.ended());
        }
    }
}

impl Screen {
    fn end(&mut self) {
        if self.single && !self.broken_pipe {
            println!();
        } else if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}
