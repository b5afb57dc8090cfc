//! What the commands that put load on a server share: flags, the plan that they make, a measured
//! run, and where its result goes.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use crate::backend::{Dialect, discover};
use crate::bench::arrival::{self, Arrivals};
use crate::bench::outcome::slo::Slo;
use crate::bench::outcome::{Outcome, arrivals_name, request_line};
use crate::bench::plan::{Plan, Progress, Watcher, Wire};
use crate::bench::record::Record;
use crate::bench::sample::Recording;
use crate::bench::workload::{Length, Source, Synthetic, Workload};
use crate::bench::{dataset, intervals, load};
use crate::cli::client::{Endpoint, endpoint};
use crate::cli::flags::{Flag, Parsed, duration};
use crate::cli::{Error, FEATURES, print};
use crate::machine::environment::{self, Environment, NoiseWatch};
use crate::metrics::interval_log::IntervalLog;
use crate::net::socket;
use crate::prng::Prng;
use crate::wire::message::{Infer, Input};

/// What is asked, of whom, and when.
pub const FLAGS: [Flag; 29] = [
    Flag::new("server", "URL", "http://host:port (found out) or cnse://host:port; needed"),
    Flag::new("prompt", "TEXT", "what is asked, each time (made-up prompts)"),
    Flag::new("dataset", "FILE", "what is asked: JSON lines with prompt or messages, or ShareGPT"),
    Flag::new(
        "input-tokens",
        "LENGTH",
        "words of made-up prompts: 64, uniform:A,B, normal:M,SD or lognormal:M,SIGMA (64)",
    ),
    Flag::new(
        "n-predict",
        "LENGTH",
        "tokens of an answer at most, in the same forms; what a file says goes first (64)",
    ),
    Flag::new("shared-prefix", "N", "words that all made-up prompts begin with (0)"),
    Flag::switch("chat", "ask each prompt as a chat's message"),
    Flag::new(
        "turns",
        "N",
        "requests of a session, each with what was said before; sessions are made whole (1)",
    ),
    Flag::new("think", "TIME", "in a session: from an answer to the next question (0)"),
    Flag::new("model", "NAME", "the model (the server's default)"),
    Flag::new("temperature", "X", "sampling: temperature"),
    Flag::switch("ignore-eos", "answers end at their length (llama-server, vLLM, SGLang)"),
    Flag::new("extra", "JSON", "an object that is merged into the server's request"),
    Flag::new("iters", "N", "requests that count (100; with --duration as many as fit)"),
    Flag::new("duration", "TIME", "no request starts later"),
    Flag::new(
        "warmup",
        "N",
        "requests ahead of those that count; auto: enough to fill the server, and what of the \
         rest is found to be a start-up (auto)",
    ),
    Flag::new("concurrency", "N", "requests at once (1); with --rate a bound, whose wait counts"),
    Flag::new("rate", "R", "requests a second, whether or not others have ended"),
    Flag::new("arrival", "KIND", "with --rate: poisson, fixed, or gamma:SHAPE (poisson)"),
    Flag::new("trace", "FILE", "starts as recorded: seconds a line, or JSON with timestamp in ms"),
    Flag::new("seed", "N", "what arrivals, lengths and prompts depend on (1)"),
    Flag::switch("same-prompts", "the prompts of the last run again, for a warm cache"),
    Flag::new("cores", "N", "threads that generate the load (1)"),
    Flag::new("timeout", "TIME", "give up on a request after so long (10m)"),
    Flag::new(
        "max-error-rate",
        "SHARE",
        "more failures end the run, and the exit code is 1 (0.01)",
    ),
    Flag::new("slo", "BOUNDS", "goodput under ttft=500ms,itl=50ms,tpot=…,e2e=…"),
    Flag::new(
        "model-file",
        "FILE",
        "the model, whose SHA-256 goes into the result (what a local llama-server has loaded)",
    ),
    Flag::new("output", "FILE", "the result as JSON into a file, besides what is printed"),
    Flag::switch("json", "the result as one JSON object on stdout"),
];

/// `FLAGS` and a command's own.
pub const fn with<const N: usize>(own: &[Flag]) -> [Flag; N] {
    let mut all = [FLAGS[0]; N];
    let mut index = 0;
    while index < N {
        all[index] = if index < FLAGS.len() { FLAGS[index] } else { own[index - FLAGS.len()] };
        index += 1;
    }
    all
}

/// Everything that a plan borrows, read from the flags.
pub struct Setup {
    pub endpoint: Endpoint,
    pub slo: Option<Slo>,
    pub errors_max: f64,
    extra: Option<String>,
    source: Source,
    arrivals: Arrivals,
    n_predict: Option<u32>,
}

const OUTPUT_TOKENS: u32 = 64;
/// A model up to this size is hashed unasked: it takes some seconds.
const HASH_BYTES_MAX: u64 = 4 << 30;
/// Requests of a session: each carries all before it, so more would be megabytes.
const TURNS_MAX: u32 = 10_000;

impl Setup {
    /// Reads the flags, and asks the server what it is.
    pub fn read(parsed: &Parsed) -> Result<Setup, Error> {
        let server = parsed.text("server");
        let server = server.ok_or_else(|| Error::Usage("--server URL is needed".to_owned()))?;
        Setup::of(parsed, server)
    }

    /// The same for a server that another flag names.
    pub fn of(parsed: &Parsed, server: &str) -> Result<Setup, Error> {
        let usage = Error::Usage;
        check_files(parsed)?;
        let slo = parsed.text("slo").map(|text| Slo::parse(text, duration)).transpose();
        let slo = slo.map_err(|error| usage(format!("--slo: {error}")))?;
        let length = |name: &str| {
            let parsed = parsed.text(name).map(|text| (text, Length::parse(text)));
            let fault = |(text, length): (&str, Result<Length, String>)| {
                length.map_err(|error| usage(format!("--{name} {text}: {error}")))
            };
            parsed.map(fault).transpose()
        };
        let output = length("n-predict")?.unwrap_or(Length::Fixed(OUTPUT_TOKENS));
        let input = length("input-tokens")?.unwrap_or(Length::Fixed(64));
        let mut arrivals = arrivals(parsed)?;
        let mut source = source(parsed, input, output)?;
        let by_file = fill_lengths(&mut arrivals, &mut source, output, seed_of(parsed)?);
        let errors_max = parsed.number("max-error-rate", 0.0, 1.0).map_err(usage)?;
        let errors_max = errors_max.unwrap_or(0.01);
        let extra = extra(parsed)?;
        let n_predict = match output {
            Length::Fixed(tokens) if !by_file => Some(tokens),
            _ => None,
        };
        let key = std::env::var("CNSE_API_KEY").ok().filter(|key| !key.is_empty());
        socket::raise_descriptor_limit();
        let endpoint = endpoint(server, None, key)?;
        Ok(Setup { endpoint, slo, errors_max, extra, source, arrivals, n_predict })
    }

    /// The plan that the flags make.
    pub fn plan<'a>(&'a self, parsed: &'a Parsed) -> Result<Plan<'a>, String> {
        let seed = parsed.number("seed", 0, u64::MAX)?.unwrap_or(1);
        let concurrency = parsed.number("concurrency", 1, 1_000_000_usize)?;
        let is_open = self.arrivals.is_open();
        let concurrency = if is_open { concurrency } else { Some(concurrency.unwrap_or(1)) };
        let cores = parsed.number("cores", 1, 256_usize)?.unwrap_or(1);
        if concurrency.is_some_and(|places| places < cores) {
            return Err(format!("--cores {cores}: fewer requests at once have no use for them"));
        }
        let duration = parsed.duration("duration")?;
        let mut iters = parsed.number("iters", 1, u64::MAX)?;
        if let Arrivals::Trace(lines) = &self.arrivals {
            iters = Some(iters.unwrap_or(u64::MAX).min(lines.len() as u64));
        }
        let iters = iters.or(if duration.is_some() { None } else { Some(100) });
        let warmup = match parsed.text("warmup") {
            None | Some("auto") => None,
            Some(_) => parsed.number("warmup", 0, u64::MAX)?,
        };
        let lengths = match &self.arrivals {
            Arrivals::Trace(lines) => lines.clone(),
            _ => Vec::new(),
        };
        // Of a trace the start is a part, whatever it looks like.
        let settle = warmup.is_none() && !matches!(self.arrivals, Arrivals::Trace(_));
        let warmup = warmup.unwrap_or_else(|| warmup_default(&self.arrivals, concurrency));
        let turns = parsed.number("turns", 1, TURNS_MAX)?.unwrap_or(1);
        // No session is half in the warm-up.
        let warmup = warmup.checked_next_multiple_of(turns.into()).unwrap_or(warmup);
        let options = Infer {
            model: parsed.text("model"),
            max_tokens: self.n_predict,
            temperature: parsed.number("temperature", 0.0, 100.0)?,
            extra: self.extra.as_deref(),
            ..Infer::new(Input::Prompt(""))
        };
        Ok(Plan {
            wire: self.endpoint.wire.clone(),
            address: self.endpoint.address,
            workload: Workload {
                options,
                source: self.source.clone(),
                chat: parsed.has("chat"),
                turns,
                lengths,
                batch: 0,
            },
            arrivals: self.arrivals.clone(),
            seed,
            iters,
            warmup,
            duration,
            concurrency,
            cores,
            think: parsed.duration("think")?.unwrap_or(Duration::ZERO),
            credit: 256 << 10,
            slow: None,
            cancel_after: None,
            timeout: parsed.duration("timeout")?.unwrap_or(Duration::from_secs(600)),
            sources: Vec::new(),
            errors_max: Some(self.errors_max),
            keep: true,
            settle,
        })
    }
}

/// Twice what is under way at once, or a second's worth; of a trace nothing, since its start is a
/// part of it.
fn warmup_default(arrivals: &Arrivals, concurrency: Option<usize>) -> u64 {
    match arrivals {
        Arrivals::Closed => (2 * concurrency.unwrap_or(1) as u64).max(5),
        Arrivals::Trace(_) => 0,
        _ => (arrivals.rate().unwrap_or(0.0) as u64).clamp(5, 1_000),
    }
}

fn arrivals(parsed: &Parsed) -> Result<Arrivals, Error> {
    let rate = parsed.number("rate", 1e-3, 1e7).map_err(Error::Usage)?;
    if let Some(file) = parsed.text("trace") {
        if rate.is_some() || parsed.has("arrival") {
            let message = "--trace has its own arrivals, without --rate and --arrival";
            return Err(Error::Usage(message.to_owned()));
        }
        let lines = arrival::trace(&read(file)?);
        return lines
            .map(Arrivals::Trace)
            .map_err(|error| Error::Failed(format!("{file:?}: {error}")));
    }
    let Some(rate) = rate else {
        if parsed.has("arrival") {
            return Err(Error::Usage("--arrival needs --rate".to_owned()));
        }
        return Ok(Arrivals::Closed);
    };
    let kind = parsed.text("arrival").unwrap_or("poisson");
    let shape = kind.strip_prefix("gamma:").map(str::parse::<f64>);
    match (kind, shape) {
        ("poisson", _) => Ok(Arrivals::Gamma { rate, shape: 1.0 }),
        ("fixed", _) => Ok(Arrivals::Fixed { rate }),
        (_, Some(Ok(shape))) if (0.01..=1e4).contains(&shape) => {
            Ok(Arrivals::Gamma { rate, shape })
        }
        _ => Err(Error::Usage(format!(
            "--arrival {kind}: not poisson, fixed, or gamma:SHAPE with a shape from 0.01 to 10000"
        ))),
    }
}

fn source(parsed: &Parsed, input: Length, output: Length) -> Result<Source, Error> {
    let made_up = ["input-tokens", "shared-prefix", "same-prompts"];
    let given = parsed.has("prompt") || parsed.has("dataset");
    if let Some(flag) = made_up.iter().find(|flag| given && parsed.has(flag)) {
        return Err(Error::Usage(format!("--{flag} is for made-up prompts")));
    }
    match (parsed.text("prompt"), parsed.text("dataset")) {
        (Some(_), Some(_)) => {
            Err(Error::Usage("--prompt and --dataset exclude each other".to_owned()))
        }
        (Some(prompt), None) => {
            if !matches!(output, Length::Fixed(_)) {
                let message =
                    "--n-predict: with --prompt a plain number, since all requests are alike";
                return Err(Error::Usage(message.to_owned()));
            }
            Ok(Workload::listed(Infer::new(Input::Prompt("")), vec![prompt.to_owned()], false)
                .source)
        }
        (None, Some(file)) => {
            let turns = parsed.number("turns", 1, TURNS_MAX).map_err(Error::Usage)?.unwrap_or(1);
            let failed = |error| Error::Failed(format!("{file:?}: {error}"));
            let mut items = dataset::read(&read(file)?).map_err(failed)?;
            let all = items.len();
            if turns > 1 {
                items.retain(|item| item.turns.len() >= turns as usize);
            }
            if items.is_empty() {
                let what = "conversations has so many turns of a user";
                return Err(failed(format!("--turns {turns}: none of its {all} {what}")));
            }
            if items.len() < all {
                let left = all - items.len();
                eprintln!(
                    "cnse: {file:?}: {left} of {all} have fewer than {turns} turns: left out"
                );
            }
            Ok(Source::Items(items))
        }
        (None, None) => {
            let seed = seed_of(parsed)?;
            let shared = parsed.number("shared-prefix", 0, 1 << 20).map_err(Error::Usage)?;
            let salt = if parsed.has("same-prompts") { 0 } else { salt() };
            let shared = shared.unwrap_or(0);
            Ok(Source::Synthetic(Synthetic { seed, salt, input, output: Some(output), shared }))
        }
    }
}

fn seed_of(parsed: &Parsed) -> Result<u64, Error> {
    Ok(parsed.number("seed", 0, u64::MAX).map_err(Error::Usage)?.unwrap_or(1))
}

/// Where a file says how long answers are it says so for each request, and `output` is for those of
/// which it does not. Whether it is so.
fn fill_lengths(arrivals: &mut Arrivals, source: &mut Source, output: Length, seed: u64) -> bool {
    let mut prng = Prng::new(seed);
    let mut fill = |lengths: &mut dyn Iterator<Item = &mut Option<u32>>| {
        for length in lengths {
            let drawn = output.draw(&mut prng);
            length.get_or_insert(drawn);
        }
    };
    let is_fixed = matches!(output, Length::Fixed(_));
    let mut by_file = false;
    if let Source::Items(items) = source
        && (!is_fixed || items.iter().any(|item| item.output.is_some()))
    {
        fill(&mut items.iter_mut().map(|item| &mut item.output));
        by_file = true;
    }
    if let Arrivals::Trace(lines) = arrivals
        && lines.iter().any(|line| line.output.is_some())
    {
        fill(&mut lines.iter_mut().map(|line| &mut line.output));
        by_file = true;
    }
    by_file
}

/// Files that are written or read once the run is over: that one cannot be is told before it.
pub fn check_files(parsed: &Parsed) -> Result<(), Error> {
    for flag in ["output", "requests", "histogram-log", "csv"] {
        let Some(file) = parsed.text(flag) else { continue };
        let found = std::fs::metadata(file);
        if found.as_ref().is_ok_and(|found| !found.is_file()) {
            // A pipe's reader would take this look for the end.
            continue;
        }
        let opened = File::options().append(true).create(true).open(file);
        opened.map_err(|error| writing(file, &error))?;
        if found.is_err() {
            // It is made again when there is something to write.
            let _ = std::fs::remove_file(file);
        }
    }
    if let Some(file) = parsed.text("model-file") {
        File::open(file).map_err(|error| Error::Failed(format!("reading {file:?}: {error}")))?;
    }
    Ok(())
}

/// What tells this run's prompts apart from those of every other.
pub fn salt() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}

fn extra(parsed: &Parsed) -> Result<Option<String>, Error> {
    let mut object = match parsed.text("extra").map(serde_json::from_str::<Value>) {
        None => Map::new(),
        Some(Ok(Value::Object(object))) => object,
        Some(_) => return Err(Error::Usage("--extra is not a JSON object".to_owned())),
    };
    if parsed.has("ignore-eos") {
        object.insert("ignore_eos".to_owned(), true.into());
    }
    Ok((!object.is_empty()).then(|| Value::Object(object).to_string()))
}

pub fn read(file: &str) -> Result<String, Error> {
    std::fs::read_to_string(file)
        .map_err(|error| Error::Failed(format!("reading {file:?}: {error}")))
}

/// Does a run, and says what it brought; environment and noise are in its record.
pub fn measure(plan: &Plan<'_>, setup: &Setup, label: &str) -> Result<(Recording, Outcome), Error> {
    let started_at = crate::log::utc(SystemTime::now());
    let ports =
        if plan.address.ip().is_loopback() { vec![plan.address.port()] } else { Vec::new() };
    let noise = NoiseWatch::start(&ports);
    let mut screen = Screen::new(plan.iters.map(|iters| iters + plan.warmup), label);
    let recording = load::run(plan, &mut screen);
    screen.end();
    let mut recording = recording.map_err(Error::Failed)?;
    let mut outcome = Outcome::new(&mut recording, plan, setup.slo.as_ref());
    let record = &mut outcome.record;
    record.started_at = started_at;
    record.command = std::env::args().skip(1).collect();
    record.set("arrivals", arrivals_name(&plan.arrivals));
    record.set("concurrency", json!(plan.concurrency));
    let mut environment = Environment::of_this_machine(FEATURES);
    environment.seed = Some(plan.seed);
    environment.noise = noise.stop();
    if let Some(warning) = environment.noise.as_ref().and_then(|noise| noise.warning()) {
        outcome.warnings.push(warning);
    }
    outcome.record.environment = Some(environment);
    outcome.record.set("warnings", outcome.warnings.clone());
    Ok((recording, outcome))
}

/// Notes what the server says of itself, and the hash of the model: of the file that is named, or
/// of the one that a server on this machine says that it has loaded.
pub fn describe(record: &mut Record, parsed: &Parsed, endpoint: &Endpoint) -> Result<(), Error> {
    let Some(environment) = &mut record.environment else { return Ok(()) };
    let server = parsed.text("server").unwrap_or_default();
    let kind = match &endpoint.wire {
        Wire::Binary { .. } => "cnse",
        Wire::Http { dialect: Dialect::Llama, .. } => "llama-server",
        Wire::Http { .. } => "openai",
    };
    let mut said = Map::from_iter([("kind".to_owned(), json!(kind))]);
    if let Some(slots) = endpoint.slots {
        said.insert("slots".to_owned(), json!(slots));
    }
    if let Wire::Http { dialect: Dialect::Llama, target } = &endpoint.wire
        && let Ok((200, body)) =
            discover::get(target, endpoint.address, "/props", Duration::from_secs(10))
    {
        let props: Value = serde_json::from_slice(&body).unwrap_or_default();
        for name in ["build_info", "model_alias", "model_path", "model_ftype", "gpu"] {
            if !props[name].is_null() {
                said.insert(name.to_owned(), props[name].clone());
            }
        }
        let n_ctx = &props["default_generation_settings"]["n_ctx"];
        if !n_ctx.is_null() {
            said.insert("n_ctx".to_owned(), n_ctx.clone());
        }
    }
    let loaded = said.get("model_path").and_then(Value::as_str).map(str::to_owned);
    let loaded = loaded.filter(|file| {
        let size = std::fs::metadata(file).ok().filter(|found| found.is_file());
        endpoint.address.ip().is_loopback() && size.is_some_and(|f| f.len() <= HASH_BYTES_MAX)
    });
    environment.servers.insert(server.to_owned(), Value::Object(said));
    match (parsed.text("model-file"), loaded) {
        (None, Some(file)) => {
            // Whoever did not ask for it is not kept from the result by a file that cannot be read.
            if let Ok(hash) = environment::file_sha256(file.as_ref()) {
                environment.models.insert(file, hash);
            }
        }
        (Some(file), _) => {
            let hash = environment::file_sha256(file.as_ref()).map_err(Error::Failed)?;
            environment.models.insert(file.to_owned(), hash);
        }
        (None, None) => {}
    }
    Ok(())
}

/// Prints a result, and writes it where `--output` says; that a disk is full costs the file and not
/// what is printed.
pub fn print_result(parsed: &Parsed, record: &Record, text: &str) -> Result<(), Error> {
    let json = record.to_json();
    let written = parsed
        .text("output")
        .map_or(Ok(()), |file| std::fs::write(file, &json).map_err(|error| writing(file, &error)));
    print(if parsed.has("json") { &json } else { text })?;
    written
}

fn writing(file: &str, error: &std::io::Error) -> Error {
    Error::Failed(format!("writing {file:?}: {error}"))
}

/// Writes each request as a line of JSON.
pub fn write_requests(file: &str, recording: &Recording) -> Result<(), Error> {
    let write = || {
        let mut out = BufWriter::new(File::create(file)?);
        for sample in &recording.samples {
            writeln!(out, "{}", request_line(recording, sample))?;
        }
        out.flush()
    };
    write().map_err(|error| writing(file, &error))
}

/// Writes histograms of each second, kind by kind, in HdrHistogram's log format.
pub fn write_histograms(
    file: &str,
    recording: &Recording,
    started: SystemTime,
) -> Result<(), Error> {
    const LENGTH: Duration = Duration::from_secs(1);
    let write = || {
        let mut log = IntervalLog::open(BufWriter::new(File::create(file)?), started)?;
        for ((index, kind), durations) in intervals::of(recording, LENGTH) {
            log.write(LENGTH.mul_f64(index as f64), LENGTH, kind, &durations)?;
        }
        log.flush()
    };
    write().map_err(|error| writing(file, &error))
}

/// Whether so many failed that the figures are of no use.
pub fn check_errors(setup: &Setup, record: &Record) -> Result<(), Error> {
    let all = record.ok + record.errors;
    if record.ok == 0 || record.errors as f64 > setup.errors_max * all as f64 {
        eprintln!("cnse: error: {} of {all} requests failed (--max-error-rate)", record.errors);
        return Err(Error::Reported);
    }
    Ok(())
}

/// Shows how far a run is, on a terminal.
pub struct Screen<'l> {
    on: bool,
    total: Option<u64>,
    label: &'l str,
}

impl<'l> Screen<'l> {
    pub fn new(total: Option<u64>, label: &'l str) -> Screen<'l> {
        Screen { on: std::io::stderr().is_terminal(), total, label }
    }

    pub fn end(&self) {
        if self.on {
            eprint!("\r\x1b[K");
        }
    }
}

impl Watcher for Screen<'_> {
    fn text(&mut self, _: &[u8]) {}

    fn progress(&mut self, progress: Progress) {
        if self.on {
            let of = self.total.map_or(String::new(), |total| format!(" of {total}"));
            let (ended, failed) = (progress.ended(), progress.failed);
            eprint!("\r{}{ended}{of} done, {failed} failed ", self.label);
        }
    }
}
