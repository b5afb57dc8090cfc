//! A measured run, and where its result goes.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::interrupt::Interrupt;
use super::load::Setup;
use crate::backend::{Dialect, discover};
use crate::bench::outcome::{Outcome, arrivals_name, request_line};
use crate::bench::plan::{Plan, Progress, Watcher, Wire};
use crate::bench::record::Record;
use crate::bench::sample::Recording;
use crate::bench::{intervals, load};
use crate::cli::client::Endpoint;
use crate::cli::flags::Parsed;
use crate::cli::{Error, FEATURES, print};
use crate::machine::environment::{self, Environment, NoiseWatch};
use crate::metrics::interval_log::IntervalLog;

/// A model up to this size is hashed unasked: it takes some seconds.
const HASH_BYTES_MAX: u64 = 4 << 30;

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

/// Does a run, and says what it brought; environment and noise are in its record.
pub fn measure(plan: &Plan<'_>, setup: &Setup, label: &str) -> Result<(Recording, Outcome), Error> {
    measure_until(plan, setup, label, &Interrupt::default())
}

/// The same, until it is interrupted.
pub fn measure_until(
    plan: &Plan<'_>,
    setup: &Setup,
    label: &str,
    interrupt: &Interrupt,
) -> Result<(Recording, Outcome), Error> {
    let started_at = crate::log::utc(SystemTime::now());
    let ports =
        if plan.address.ip().is_loopback() { vec![plan.address.port()] } else { Vec::new() };
    let noise = NoiseWatch::start(&ports);
    let total = plan.iters.map(|iters| iters + plan.warmup);
    let mut screen = Screen::new(total, label, interrupt.clone());
    interrupt.load_begins();
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
    interrupt: Interrupt,
}

impl<'l> Screen<'l> {
    pub fn new(total: Option<u64>, label: &'l str, interrupt: Interrupt) -> Screen<'l> {
        Screen { on: std::io::stderr().is_terminal(), total, label, interrupt }
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

    fn interrupts(&self) -> bool {
        self.interrupt.is_set()
    }
}
