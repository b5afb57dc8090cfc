//! `cnse schedule`: batch inference over ranks.

mod batch;
mod plan;
mod ranks;
mod simulate;
mod source;
mod watch;

use std::time::Duration;

use super::Error;
use super::flags::{Flag, Parsed};

pub const HELP: &str = "\
usage: cnse schedule --input ROWS.jsonl --output RESULTS.jsonl --server URL[,URL] [FLAGS]
       cnse schedule --prompt TEXT --iters N --server URL[,URL] [FLAGS]
       mpirun -np N cnse schedule …

Batch inference: rows of OpenAI's Batch format in, result lines out. Work is spread over ranks,
which are threads (--ranks) or, under mpirun or srun, processes; a rank that runs short takes work
from others. What is done is kept: the same command, run again with any number of ranks, goes on
where it stopped.

examples:
  cnse schedule --input rows.jsonl --output results.jsonl --server http://127.0.0.1:8090
  mpirun -np 4 cnse schedule --server http://127.0.0.1:8090 --iters 1000 --inflight 16 \\
    --n_predict 64 --prompt \"What is AI?\"
  cnse schedule --input rows.jsonl --dry-run
  cnse schedule --input texts.jsonl --output texts.out.jsonl --server http://127.0.0.1:8090 \\
    --post normalize,truncate=256,quantize=int8 --matrix texts.npy
  cnse schedule --simulate lognormal:50ms,1 --iters 1000 --ranks 8 --skew all-on-one
  cnse schedule --plan 1024 --simulate lognormal:1s,1 --iters 102400 --skew all-on-one

exit codes: 0 all rows ended well, 1 some failed, 2 the command line is wrong, 75 it was stopped
early and the same command goes on

environment:
  CNSE_API_KEY   sent to the servers
";

pub const FLAGS: &[Flag] = &[
    Flag::new("server", "URL[,URL]", "where rows go: http://host:port or cnse://host:port"),
    Flag::new("input", "FILE", "rows of OpenAI's Batch format; - is a pipe"),
    Flag::new("output", "FILE", "where results go; FILE.parts is the journal until then"),
    Flag::new("errors", "FILE", "where failed rows go, as rows (OUTPUT.errors.jsonl)"),
    Flag::switch("ordered", "results in the order of the input, not of completion"),
    Flag::new(
        "post",
        "STEPS",
        "what becomes of embeddings: normalize, truncate=N, quantize=int8 or binary, \
         topk=K:CORPUS.npy, with commas",
    ),
    Flag::new(
        "matrix",
        "FILE",
        "--post: where the vectors go, .npy or .jsonl, with their names in FILE.ids.jsonl \
         (OUTPUT.npy)",
    ),
    Flag::new(
        "device",
        "NAME",
        "--post: where it works: auto, cpu or cuda:N; the same bytes on each (auto)",
    ),
    Flag::switch("retry-failed", "ask rows again that failed in an earlier run"),
    Flag::switch("dry-run", "look at the whole input, and send nothing"),
    Flag::new("prompt", "TEXT", "instead of rows: one prompt, --iters times"),
    Flag::switch("chat", "--prompt: as a chat's message"),
    Flag::new("model", "NAME", "for rows that name none"),
    Flag::new("n-predict", "N", "tokens of an answer at most, for rows that set no bound"),
    Flag::new("temperature", "X", "for rows that set none"),
    Flag::new("top-p", "X", "for rows that set none"),
    Flag::new("extra", "JSON", "an object whose members are added to each request's body"),
    Flag::new("retries", "N", "tries after the first, on 429, 5xx and broken connections (5)"),
    Flag::new("timeout", "TIME", "what a row may take, all its tries together (10m)"),
    Flag::new("ranks", "N", "threads as ranks (1)"),
    Flag::new("workers", "N", "threads of a rank that run tasks (1)"),
    Flag::new("inflight", "N", "tasks at once of each rank (its share of the servers' slots)"),
    Flag::new("iters", "N", "tasks of --prompt and --simulate (1)"),
    Flag::new(
        "window",
        "N",
        "rows that a rank reads ahead and puts in order, longest first (4096)",
    ),
    Flag::new(
        "order",
        "ORDER",
        "longest: what takes longest first; input: as they stand (longest)",
    ),
    Flag::switch("no-steal", "work does not move between ranks; to measure what it is worth"),
    Flag::new("steal", "on|off", "off is --no-steal, for scripts that try both (on)"),
    Flag::new(
        "simulate",
        "TASKS",
        "tasks are sleeps: fixed:T, exponential:MEAN, lognormal:MEAN,SIGMA, pareto:MEAN,SHAPE or \
         trace:FILE (a time a line)",
    ),
    Flag::new("skew", "START", "who begins with the tasks: even, or all-on-one (even)"),
    Flag::new(
        "estimate-error",
        "SIGMA",
        "--simulate: what is known of a task's time is off by lognormal(SIGMA); none: nothing (none)",
    ),
    Flag::new("seed", "N", "of all that is random (0)"),
    Flag::new("plan", "N", "run it in virtual time on N ranks, and print what it would take"),
    Flag::new("nodes", "N", "--plan: machines that the ranks are spread over (1 for each 32)"),
    Flag::new("latency", "TIME", "--plan: a message to another machine, until it is seen (50us)"),
    Flag::switch("json", "the result as one JSON object on stdout"),
    Flag::new("csv", "FILE", "a row for each rank and one for the total"),
    Flag::new("histogram-log", "FILE", "the times as a log that HdrHistogram's viewers read"),
    Flag::switch("quiet", "no progress on stderr"),
    Flag::new("log", "LEVEL", "error, warn, info or debug (info)"),
];

/// What all jobs are told.
#[derive(Clone, Debug)]
struct Common {
    ranks: Option<u32>,
    workers: usize,
    window: usize,
    longest_first: bool,
    steals: bool,
    seed: u64,
}

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    super::log_level(parsed)?;
    if parsed.has("plan") {
        return plan::run(parsed);
    }
    if parsed.has("simulate") {
        return simulate::run(parsed);
    }
    if parsed.has("dry-run") {
        return batch::dry_run(parsed);
    }
    if parsed.has("input") || parsed.has("prompt") {
        return batch::run(parsed);
    }
    Err(Error::Usage("--input FILE, --prompt TEXT or --simulate TASKS is needed".to_owned()))
}

impl Common {
    fn new(parsed: &Parsed) -> Result<Common, String> {
        let longest_first = match parsed.text("order").unwrap_or("longest") {
            "longest" => true,
            "input" => false,
            other => return Err(format!("--order {other}: not longest or input")),
        };
        Ok(Common {
            ranks: parsed.number("ranks", 1, 1024)?,
            workers: parsed.number("workers", 1, 64)?.unwrap_or(1),
            window: parsed.number("window", 1, 1 << 24)?.unwrap_or(4096),
            longest_first,
            steals: steals(parsed)?,
            seed: parsed.number("seed", 0, u64::MAX)?.unwrap_or(0),
        })
    }
}

/// Whether work moves between ranks.
fn steals(parsed: &Parsed) -> Result<bool, String> {
    match parsed.text("steal") {
        Some("on") if parsed.has("no-steal") => {
            Err("--steal on and --no-steal exclude each other".to_owned())
        }
        None => Ok(!parsed.has("no-steal")),
        Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(other) => Err(format!("--steal {other}: not on or off")),
    }
}

/// Whether everything starts on rank 0.
fn all_on_one(parsed: &Parsed) -> Result<bool, String> {
    match parsed.text("skew").unwrap_or("even") {
        "even" => Ok(false),
        "all-on-one" => Ok(true),
        other => Err(format!("--skew {other}: not even or all-on-one")),
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
