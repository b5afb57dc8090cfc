//! `cnse bench latency`: what one load feels like.

use std::time::SystemTime;

use super::interrupt::Interrupt;
use super::load::{self, Setup};
use super::measured;
use super::runner::GO_ON;
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};

pub const HELP: &str = "\
usage: cnse bench latency --server URL [FLAGS]

Puts load on a server and prints the times from each request's intended start: queue, first token,
between tokens, end to end; beside them those from its write. Closed loop (--concurrency), or open
loop (--rate, --trace), whose starts are fixed beforehand. Prompts are made up and begin differently
unless it is said otherwise. If the generator was the bound, that is said first. Ctrl-C ends the
load and prints what was measured (exit code 75); a second one ends it at once.

examples:
  cnse bench latency --iters 1000 --server http://127.0.0.1:8090 --n_predict 64
  cnse bench latency --server http://127.0.0.1:8090 --concurrency 4 --duration 60s --json
  cnse bench latency --server http://127.0.0.1:8090 --rate 5 --iters 600 --slo ttft=500ms,itl=50ms
  cnse bench latency --server cnse://127.0.0.1:5050 --trace arrivals.jsonl --requests raw.jsonl

environment:
  CNSE_API_KEY   sent to the server
";

pub const FLAGS: &[Flag] = &load::with::<{ load::FLAGS.len() + 2 }>(&[
    Flag::new("requests", "FILE", "each request with all its times, a JSON line each"),
    Flag::new("histogram-log", "FILE", "histograms of each second in HdrHistogram's log format"),
]);

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let interrupt = Interrupt::hold()?;
    let setup = Setup::read(parsed)?;
    let plan = setup.plan(parsed).map_err(Error::Usage)?;
    let started = SystemTime::now();
    let (recording, mut outcome) = measured::measure_until(&plan, &setup, "", &interrupt)?;
    measured::describe(&mut outcome.record, parsed, &setup.endpoint)?;
    let requests = parsed.text("requests").map(|file| measured::write_requests(file, &recording));
    let log = parsed.text("histogram-log");
    let log = log.map(|file| measured::write_histograms(file, &recording, started));
    measured::print_result(parsed, &outcome.record, &outcome.to_text())?;
    requests.transpose()?;
    log.transpose()?;
    if outcome.record.ok + outcome.record.errors > 0 || !recording.interrupted {
        measured::check_errors(&setup, &outcome.record)?;
    }
    if recording.interrupted { Err(Error::Exit(GO_ON.into())) } else { Ok(()) }
}
