//! `cnse bench gateway`: what a gateway costs, by pairs of runs; and how many requests the binary
//! protocol carries.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::asked;
use super::load::{self, Setup};
use super::measured;
use crate::backend::Dialect;
use crate::bench::outcome::Outcome;
use crate::bench::plan::{Plan, Wire};
use crate::bench::record::{Record, Run};
use crate::bench::statistics::effect::{self, Effect};
use crate::bench::statistics::{CONFIDENCE, median};
use crate::bench::workload::{Source, Workload};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::limits::OPEN_REQUESTS_MAX;
use crate::prng::Prng;
use crate::wire::message::{Infer, Input};

pub const HELP: &str = "\
usage: cnse bench gateway --server URL [--gateway URL] [FLAGS]

What a gateway adds: the same load goes to the server directly and through the gateway, in pairs of
runs whose order is drawn, with the same starts and lengths. Without --gateway a cnse serve is
started in front of the server, and stopped. The cost is the mean difference of the pairs, with its
interval.

--raw counts what a cnse:// server does over the binary protocol, at each --depth of requests open
on each of --connections connections; the server should echo (cnse serve --echo).

examples:
  cnse bench gateway --server http://127.0.0.1:8090 --concurrency 4 --iters 200 --rounds 10
  cnse bench gateway --server http://127.0.0.1:8090 --gateway http://127.0.0.1:5050 --rate 20
  cnse bench gateway --server cnse://127.0.0.1:5050 --raw --connections 50 --depth 1,8,32

environment:
  CNSE_API_KEY   sent to the server and to the gateway
";

pub const FLAGS: &[Flag] = &load::with::<{ load::FLAGS.len() + 5 }>(&[
    Flag::new("gateway", "URL", "the gateway in front of the server (one is started)"),
    Flag::new("rounds", "N", "pairs of runs, each of --iters requests on either way (10)"),
    Flag::switch("raw", "requests/s of the binary protocol instead"),
    Flag::new("connections", "N", "with --raw: connections (50)"),
    Flag::new("depth", "LIST", "with --raw: requests open on each, 1 to 64 (1,8,32)"),
]);

/// Figures whose cost is told.
const FIGURES: [&str; 7] = [
    "ttft_ms_p50",
    "ttft_ms_p99",
    "itl_ms_p50",
    "itl_ms_p99",
    "e2e_ms_p50",
    "e2e_ms_p99",
    "tokens_per_s",
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let pairs_only = ["gateway", "rounds"];
    let raw_only = ["connections", "depth"];
    let raw = parsed.has("raw");
    let wrong = if raw { &pairs_only } else { &raw_only };
    if let Some(flag) = wrong.iter().find(|flag| parsed.has(flag)) {
        let which = if raw { "without" } else { "with" };
        return Err(Error::Usage(format!("--{flag} goes {which} --raw")));
    }
    if raw { count(parsed) } else { pairs(parsed) }
}

fn pairs(parsed: &Parsed) -> Result<(), Error> {
    let usage = Error::Usage;
    let rounds = parsed.number("rounds", 3, 1_000_u32).map_err(usage)?.unwrap_or(10);
    let direct = Setup::read(parsed)?;
    let own = match parsed.text("gateway") {
        Some(_) => None,
        None => Some(Gateway::start(parsed, &direct)?),
    };
    let url = parsed.text("gateway").or(own.as_ref().map(|own| own.url.as_str()));
    let through = Setup::of(parsed, url.unwrap_or_default())?;
    let ways = [("direct", &direct), ("gateway", &through)];
    let mut prng = Prng::new(parsed.number("seed", 0, u64::MAX).map_err(usage)?.unwrap_or(1));
    let (mut whole, mut runs) = (Record::default(), Vec::new());
    for round in 0..rounds {
        let first = prng.below(2) as usize;
        for way in [first, 1 - first] {
            let (name, setup) = ways[way];
            let mut plan = setup.plan(parsed).map_err(usage)?;
            // Both of a pair are compared over the same requests.
            plan.settle = false;
            plan.seed = plan.seed.wrapping_add(u64::from(round));
            if let Source::Synthetic(synthetic) = &mut plan.workload.source {
                synthetic.seed = plan.seed;
                synthetic.salt = asked::salt();
            }
            let label = format!("round {} of {rounds}, {name}: ", round + 1);
            let (_, outcome) = measured::measure(&plan, setup, &label)?;
            measured::check_errors(setup, &outcome.record)?;
            if runs.is_empty() {
                whole = begin(&outcome);
            }
            let settings = Map::from_iter([("way".to_owned(), json!(name))]);
            runs.push(run_of(settings, outcome, round, runs.len()));
        }
    }
    measured::describe(&mut whole, parsed, &direct.endpoint)?;
    let text = compare(&mut whole, &runs);
    whole.runs = runs;
    measured::print_result(parsed, &whole, &text)
}

fn begin(outcome: &Outcome) -> Record {
    let of = &outcome.record;
    Record {
        environment: of.environment.clone(),
        ..Record::new(of.command.clone(), of.started_at.clone())
    }
}

fn run_of(settings: Map<String, Value>, outcome: Outcome, round: u32, sequence: usize) -> Run {
    let record = Record { command: Vec::new(), environment: None, ..outcome.record };
    Run { settings, repeat: round, sequence: sequence as u32, failure: None, record }
}

/// Each figure both ways, and their difference.
fn compare(whole: &mut Record, runs: &[Run]) -> String {
    let mut text = "                  direct   gateway      cost  95 % of the cost\n".to_owned();
    whole.ok = runs.iter().map(|run| run.record.ok).sum();
    whole.errors = runs.iter().map(|run| run.record.errors).sum();
    whole.wall_s = runs.iter().map(|run| run.record.wall_s).sum();
    for figure in FIGURES {
        let of = |way: &str| -> Vec<f64> {
            let mut of: Vec<&Run> = runs.iter().filter(|run| run.settings["way"] == way).collect();
            of.sort_by_key(|run| run.repeat);
            of.iter().filter_map(|run| run.record.number(figure)).collect()
        };
        let (direct, through) = (of("direct"), of("gateway"));
        if direct.len() != through.len() || direct.is_empty() {
            continue;
        }
        let pairs: Vec<(f64, f64)> = through.iter().copied().zip(direct.iter().copied()).collect();
        let Some(Effect { value, interval, .. }) = effect::paired(&pairs, 1.0 - CONFIDENCE) else {
            continue;
        };
        let medians = (median(&direct).unwrap_or(0.0), median(&through).unwrap_or(0.0));
        let cost = json!({
            "direct": medians.0, "gateway": medians.1, "cost": value,
            "ci": [interval.low, interval.high], "rounds": pairs.len(),
        });
        whole.set(&format!("gateway_cost_{figure}"), cost);
        let written = writeln!(
            text,
            "{figure:<14}{:>10.3}{:>10.3}{value:>10.3}  {:.3} to {:.3}",
            medians.0, medians.1, interval.low, interval.high
        );
        debug_assert!(written.is_ok(), "a String takes every write");
    }
    for run in runs {
        for reason in run.record.figures["generator"]["reasons"].as_array().into_iter().flatten() {
            let reason = reason.as_str().unwrap_or_default();
            text += &format!("GENERATOR-LIMITED in round {}: {reason}\n", run.repeat + 1);
        }
    }
    text + "medians of rounds; the cost is the mean difference of the pairs (ms, tokens/s)\n"
}

/// A gateway of our own, in front of the server; stopped when dropped.
struct Gateway {
    child: Child,
    url: String,
}

impl Gateway {
    fn start(parsed: &Parsed, direct: &Setup) -> Result<Gateway, Error> {
        let failed = |what: String| Error::Failed(format!("starting a gateway: {what}"));
        let flag = match &direct.endpoint.wire {
            Wire::Http { dialect: Dialect::Llama, .. } => "--llama-url",
            Wire::Http { dialect: Dialect::OpenAi, .. } => "--openai-url",
            Wire::Binary { .. } => {
                let message = "a cnse:// server is a gateway; name what is behind it, or use --raw";
                return Err(Error::Usage(message.to_owned()));
            }
        };
        let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
        let mut command = Command::new(program);
        command.args(["serve", "--port", "0", flag, parsed.text("server").unwrap_or_default()]);
        if let Ok(key) = std::env::var("CNSE_API_KEY") {
            command.env("CNSE_UPSTREAM_API_KEY", key);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let stderr = child.stderr.take();
        let mut gateway = Gateway { child, url: String::new() };
        let mut lines =
            BufReader::new(stderr.ok_or_else(|| failed("no stderr".to_owned()))?).lines();
        let (mut said, mut address) = (String::new(), None);
        // It says where it listens, and then that its backend is up.
        for line in lines.by_ref().map_while(Result::ok) {
            let found = line.split("listening on ").nth(1);
            address =
                found.map(|at| at.split(' ').next().unwrap_or_default().to_owned()).or(address);
            said += &line;
            if line.contains(" is up") {
                break;
            }
        }
        let address = address.ok_or_else(|| failed(said))?;
        gateway.url = format!("http://{address}");
        // What it says later must go somewhere, or it would wait for a reader.
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| eprintln!("{line}"))
        });
        Ok(gateway)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Requests/s at each depth.
fn count(parsed: &Parsed) -> Result<(), Error> {
    let usage = Error::Usage;
    let rest = parsed.without(&["concurrency", "rate"]);
    let setup = Setup::read(&rest)?;
    let Wire::Binary { token, .. } = &setup.endpoint.wire else {
        return Err(usage(
            "--raw is for the binary protocol: --server cnse://host:port".to_owned(),
        ));
    };
    let count = parsed.number("connections", 1, 100_000_usize).map_err(usage)?.unwrap_or(50);
    let depths = parsed.text("depth").unwrap_or("1,8,32").split(',');
    let depth = |text: &str| {
        let depth = text.trim().parse().ok();
        depth
            .filter(|depth| (1..=OPEN_REQUESTS_MAX as usize).contains(depth))
            .ok_or_else(|| usage(format!("--depth {text}: not numbers from 1 to 64, as 1,8,32")))
    };
    let depths = depths.map(depth).collect::<Result<Vec<usize>, Error>>()?;
    let mut whole = Record::default();
    let mut text =
        "connections   depth   requests/s   p50 ms   p99 ms   generator's core\n".to_owned();
    let mut runs = Vec::new();
    for (sequence, depth) in depths.into_iter().enumerate() {
        let plan = raw_plan(&setup, &rest, count, depth, token.clone()).map_err(usage)?;
        let (recording, mut outcome) =
            measured::measure(&plan, &setup, &format!("depth {depth}: "))?;
        // Single requests are not kept, of which there are millions.
        for (name, durations) in
            [("ttft_ms", &recording.report.ttft), ("e2e_ms", &recording.report.e2e)]
        {
            let of = crate::bench::record::Distribution::independent(durations);
            outcome.record.set_distribution(name, &of);
        }
        measured::check_errors(&setup, &outcome.record)?;
        let number = |name: &str| outcome.record.number(name).unwrap_or(0.0);
        text += &format!(
            "{count:>11} {depth:>7} {:>12.0} {:>8.3} {:>8.3} {:>16.0} %\n",
            number("requests_per_s"),
            number("e2e_ms_p50"),
            number("e2e_ms_p99"),
            100.0 * number("generator_cpu_share"),
        );
        if runs.is_empty() {
            whole = begin(&outcome);
        }
        let settings = [("connections", count), ("depth", depth)];
        let settings = settings.map(|(name, value)| (name.to_owned(), json!(value)));
        runs.push(run_of(Map::from_iter(settings), outcome, 0, sequence));
    }
    whole.ok = runs.iter().map(|run| run.record.ok).sum();
    whole.wall_s = runs.iter().map(|run| run.record.wall_s).sum();
    whole.runs = runs;
    measured::print_result(parsed, &whole, &text)
}

fn raw_plan<'a>(
    setup: &'a Setup,
    parsed: &'a Parsed,
    connections: usize,
    depth: usize,
    token: Option<String>,
) -> Result<Plan<'a>, String> {
    let mut plan = setup.plan(parsed)?;
    let options = Infer::new(Input::Prompt(""));
    plan.workload = Workload::listed(options, vec!["ping".to_owned()], false);
    plan.wire = Wire::Binary { connections, token };
    plan.concurrency = Some(connections * depth);
    plan.warmup = 2 * (connections * depth) as u64;
    if !parsed.has("iters") {
        plan.iters = None;
        plan.duration = Some(plan.duration.unwrap_or(Duration::from_secs(3)));
    }
    plan.keep = false;
    Ok(plan)
}
