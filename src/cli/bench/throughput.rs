//! `cnse bench throughput`: what a server gives at each load, and which load is worth it.

use std::fmt::Write as _;

use serde_json::{Map, json};

use super::asked;
use super::load::{self, Setup};
use super::measured;
use super::runner;
use crate::backend::Dialect;
use crate::bench::frontier::{self, Point};
use crate::bench::outcome::Outcome;
use crate::bench::plan::{Plan, Wire};
use crate::bench::record::{Record, Run};
use crate::bench::workload::{Length, Source};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::limits::OPEN_REQUESTS_MAX;
use crate::prng::Prng;

pub const HELP: &str = "\
usage: cnse bench throughput --server URL (--concurrency LIST | --batch LIST) [FLAGS]

Runs one load after the other and prints tokens/s, requests/s and latency at each; then the knee
(the smallest load that gives 90 % of the best rate) and the Pareto frontier (loads of which no
other has both more tokens/s and less latency). Lists of prompt and answer lengths multiply the
points; each pair of lengths has a knee and a frontier of its own. With --repeat the points are run
in a random order each time, so that drift is not taken for an effect.

--batch N is N prompts in one request where the server takes lists (llama-server's own API), else N
requests at once. Of such a request's tokens nobody can say which follow which, so times between
them are not told.

examples:
  cnse bench throughput --batch 1,2,4,8,16,32 --iters 100 --server http://127.0.0.1:8090
  cnse bench throughput --concurrency 1,2,4,8 --repeat 5 --server http://127.0.0.1:8090
  cnse bench throughput --concurrency 4 --input-tokens 64,512 --n_predict 16,128 \\
      --server http://127.0.0.1:8090 --csv points.csv

environment:
  CNSE_API_KEY   sent to the server
";

pub const FLAGS: &[Flag] = &load::with::<{ load::FLAGS.len() + 3 }>(&[
    Flag::new("batch", "LIST", "prompts in one request: 1,2,4,…"),
    Flag::new("repeat", "N", "runs of each point (1)"),
    Flag::new("csv", "FILE", "a row for each run"),
]);

/// Points of one experiment: more take days.
const POINTS_MAX: usize = 4096;

/// One setting.
#[derive(Clone, Copy, Debug)]
struct Setting {
    at_once: usize,
    batch: bool,
    input: Option<u32>,
    output: Option<u32>,
}

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let usage = Error::Usage;
    let settings = settings(parsed).map_err(usage)?;
    let lists = ["concurrency", "input-tokens", "n-predict"];
    // What is a list here is set point by point; the setup reads the rest.
    let rest = parsed.without(&lists);
    let setup = Setup::read(&rest)?;
    let repeat = parsed.number("repeat", 1, 1_000_u32).map_err(usage)?.unwrap_or(1);
    let mut prng = Prng::new(rest.number("seed", 0, u64::MAX).map_err(usage)?.unwrap_or(1));
    let mut whole = Record::default();
    let mut runs = Vec::new();
    let mut sequence = 0;
    for block in 0..repeat {
        let mut order: Vec<usize> = (0..settings.len()).collect();
        if repeat > 1 {
            (1..order.len()).rev().for_each(|i| order.swap(i, prng.below(i as u64 + 1) as usize));
        }
        for index in order {
            let setting = &settings[index];
            let mut plan = setup.plan(&rest).map_err(usage)?;
            apply(&mut plan, setting);
            let label = format!("{} at once: ", setting.at_once);
            let (_, mut outcome) = measured::measure(&plan, &setup, &label)?;
            if plan.workload.batch > 0 {
                for figure in ["itl_ms", "tpot_ms", "server_tpot_ms"] {
                    outcome.record.figures.remove(figure);
                }
            }
            measured::check_errors(&setup, &outcome.record)?;
            if runs.is_empty() {
                whole = first(&outcome);
            }
            runs.push((index, run_of(setting, &outcome, block, sequence)));
            sequence += 1;
        }
    }
    measured::describe(&mut whole, parsed, &setup.endpoint)?;
    let points = points(&settings, &runs);
    let best = best(&settings, &points);
    sum_up(&mut whole, &settings, &points, &best, &runs);
    let text = to_text(&settings, &best, &runs);
    whole.runs = runs.into_iter().map(|(_, run)| run).collect();
    let written = parsed.text("csv").map(|file| runner::write(file, &to_csv(&whole.runs)));
    measured::print_result(parsed, &whole, &text)?;
    written.unwrap_or(Ok(()))
}

fn numbers(parsed: &Parsed, name: &str, max: u32) -> Result<Vec<u32>, String> {
    let Some(text) = parsed.text(name) else { return Ok(Vec::new()) };
    let number = |part: &str| {
        let number = part.trim().parse().ok().filter(|number| (1..=max).contains(number));
        number.ok_or_else(|| format!("--{name} {text}: not numbers from 1 to {max}, as 1,2,4"))
    };
    text.split(',').map(number).collect()
}

/// Lengths that are plain numbers multiply the points; another form is one for all of them.
fn lengths(parsed: &Parsed, name: &str) -> Result<Vec<Option<u32>>, String> {
    match parsed.text(name) {
        None => Ok(vec![None]),
        Some(text) if text.contains(':') => {
            Err(format!("--{name} {text}: a list of plain numbers here, as 16,128"))
        }
        Some(_) => Ok(numbers(parsed, name, 1 << 20)?.into_iter().map(Some).collect()),
    }
}

fn settings(parsed: &Parsed) -> Result<Vec<Setting>, String> {
    if parsed.has("rate") || parsed.has("trace") {
        return Err("the loads of throughput are closed: --concurrency or --batch".to_owned());
    }
    let (concurrency, batch) =
        (numbers(parsed, "concurrency", 1_000_000)?, numbers(parsed, "batch", 4096)?);
    let (at_once, is_batch) = match (concurrency.is_empty(), batch.is_empty()) {
        (false, true) => (concurrency, false),
        (true, false) => (batch, true),
        (true, true) => return Err("--concurrency LIST or --batch LIST is needed".to_owned()),
        _ => return Err("--concurrency and --batch exclude each other".to_owned()),
    };
    let (inputs, outputs) = (lengths(parsed, "input-tokens")?, lengths(parsed, "n-predict")?);
    let mut settings = Vec::new();
    for input in &inputs {
        for output in &outputs {
            for &at_once in &at_once {
                let at_once = at_once as usize;
                settings.push(Setting { at_once, batch: is_batch, input: *input, output: *output });
            }
        }
    }
    if settings.len() > POINTS_MAX {
        return Err(format!("{} points; {POINTS_MAX} is the most", settings.len()));
    }
    Ok(settings)
}

fn apply(plan: &mut Plan<'_>, setting: &Setting) {
    let takes_lists = matches!(plan.wire, Wire::Http { dialect: Dialect::Llama, .. });
    if setting.batch && takes_lists {
        plan.workload.batch = setting.at_once as u32;
        plan.concurrency = Some(1);
    } else {
        plan.concurrency = Some(setting.at_once);
        if let Wire::Binary { connections, .. } = &mut plan.wire {
            *connections = setting.at_once.div_ceil(OPEN_REQUESTS_MAX as usize);
        }
    }
    plan.cores = plan.cores.min(setting.at_once);
    if let Source::Synthetic(synthetic) = &mut plan.workload.source {
        synthetic.salt = asked::salt();
        if let Some(input) = setting.input {
            synthetic.input = Length::Fixed(input);
        }
        if let Some(output) = setting.output {
            synthetic.output = Some(Length::Fixed(output));
        }
    }
    if let Some(output) = setting.output {
        plan.workload.options.max_tokens = Some(output);
    }
}

/// The experiment's own record, begun with its first run's surroundings.
fn first(outcome: &Outcome) -> Record {
    let of = &outcome.record;
    Record {
        environment: of.environment.clone(),
        ..Record::new(of.command.clone(), of.started_at.clone())
    }
}

fn run_of(setting: &Setting, outcome: &Outcome, repeat: u32, sequence: u32) -> Run {
    let name = if setting.batch { "batch" } else { "concurrency" };
    let mut settings = Map::from_iter([(name.to_owned(), json!(setting.at_once))]);
    for (name, value) in [("input_tokens", setting.input), ("n_predict", setting.output)] {
        if let Some(value) = value {
            settings.insert(name.to_owned(), json!(value));
        }
    }
    let record = Record { command: Vec::new(), environment: None, ..outcome.record.clone() };
    Run { settings, repeat, sequence, failure: None, record }
}

/// Each setting's median rate and latency.
fn points(settings: &[Setting], runs: &[(usize, Run)]) -> Vec<Point> {
    let median = |index: usize, name: &str| {
        let of = runs.iter().filter(|(of, _)| *of == index);
        let values: Vec<f64> = of.filter_map(|(_, run)| run.record.number(name)).collect();
        crate::bench::statistics::median(&values).unwrap_or(0.0)
    };
    let point = |(index, setting): (usize, &Setting)| Point {
        load: setting.at_once as f64,
        rate: median(index, "tokens_per_s"),
        latency: median(index, "e2e_ms_p50"),
    };
    settings.iter().enumerate().map(point).collect()
}

/// Which settings are worth it among those of the same lengths: a rate of short answers and one of
/// long answers are not the same server's choice.
struct Best {
    knees: Vec<usize>,
    pareto: Vec<usize>,
}

fn best(settings: &[Setting], points: &[Point]) -> Best {
    let mut best = Best { knees: Vec::new(), pareto: Vec::new() };
    let shape = |setting: &Setting| (setting.input, setting.output);
    let mut shapes: Vec<_> = settings.iter().map(shape).collect();
    shapes.dedup();
    for of in shapes {
        let of: Vec<usize> = (0..settings.len()).filter(|i| shape(&settings[*i]) == of).collect();
        let alike: Vec<Point> = of.iter().map(|index| points[*index]).collect();
        best.knees.extend(frontier::knee(&alike).map(|index| of[index]));
        best.pareto.extend(frontier::pareto(&alike).iter().map(|index| of[*index]));
    }
    best
}

fn sum_up(
    whole: &mut Record,
    settings: &[Setting],
    points: &[Point],
    best: &Best,
    runs: &[(usize, Run)],
) {
    whole.ok = runs.iter().map(|(_, run)| run.record.ok).sum();
    whole.errors = runs.iter().map(|(_, run)| run.record.errors).sum();
    whole.wall_s = runs.iter().map(|(_, run)| run.record.wall_s).sum();
    let at = |index: usize| {
        let (setting, point) = (&settings[index], &points[index]);
        json!({ "at_once": setting.at_once, "tokens_per_s": point.rate, "e2e_ms_p50": point.latency,
                "input_tokens": setting.input, "n_predict": setting.output })
    };
    if let [knee] = best.knees[..] {
        whole.set("knee", at(knee));
        let pareto: Vec<usize> = best.pareto.iter().map(|i| settings[*i].at_once).collect();
        whole.set("pareto_at_once", pareto);
    }
    whole.set("tokens_source", token_sources(runs).join(", "));
    whole.set("knees", best.knees.iter().map(|i| at(*i)).collect::<Vec<_>>());
    whole.set("pareto", best.pareto.iter().map(|i| at(*i)).collect::<Vec<_>>());
}

fn to_text(settings: &[Setting], best: &Best, runs: &[(usize, Run)]) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        let written = writeln!(text, "{line}");
        debug_assert!(written.is_ok(), "a String takes every write");
    };
    for (_, run) in runs {
        let limited = &run.record.figures["generator"]["reasons"];
        for reason in limited.as_array().into_iter().flatten() {
            let place = serde_json::to_string(&run.settings).unwrap_or_default();
            line(format!("GENERATOR-LIMITED at {place}: {}", reason.as_str().unwrap_or_default()));
        }
    }
    line(
        "at once  input output   tokens/s requests/s   ttft p50    p99    e2e p50    p95    p99"
            .to_owned(),
    );
    for (index, setting) in settings.iter().enumerate() {
        let of: Vec<&Run> = runs.iter().filter(|(of, _)| *of == index).map(|(_, r)| r).collect();
        let cell = |name: &str, digits: usize| {
            let values: Vec<f64> = of.iter().filter_map(|run| run.record.number(name)).collect();
            let median = crate::bench::statistics::median(&values);
            median.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let length = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
        let mut row = format!(
            "{:>7} {:>6} {:>6} {:>10} {:>10} {:>10} {:>6} {:>10} {:>6} {:>6}",
            setting.at_once,
            length(setting.input),
            length(setting.output),
            cell("tokens_per_s", 1),
            cell("requests_per_s", 2),
            cell("ttft_ms_p50", 1),
            cell("ttft_ms_p99", 1),
            cell("e2e_ms_p50", 1),
            cell("e2e_ms_p95", 1),
            cell("e2e_ms_p99", 1)
        );
        if best.knees.contains(&index) {
            row += "  knee";
        }
        if best.pareto.contains(&index) {
            row += "  Pareto";
        }
        line(row);
    }
    line(format!(
        "tokens as counted by {}; latencies in ms, from each request's intended start; medians \
         where runs were repeated",
        token_sources(runs).join(" and ")
    ));
    text
}

/// Who counted the tokens, in any of the runs.
fn token_sources(runs: &[(usize, Run)]) -> Vec<String> {
    let source = |record: &Record| Some(record.figures.get("tokens_source")?.as_str()?.to_owned());
    let mut found: Vec<String> = runs.iter().filter_map(|(_, run)| source(&run.record)).collect();
    found.sort_unstable();
    found.dedup();
    found
}

const COLUMNS: [&str; 12] = [
    "tokens_per_s",
    "requests_per_s",
    "ttft_ms_p50",
    "ttft_ms_p95",
    "ttft_ms_p99",
    "itl_ms_p50",
    "itl_ms_p99",
    "e2e_ms_p50",
    "e2e_ms_p95",
    "e2e_ms_p99",
    "goodput_requests_per_s",
    "errors",
];

fn to_csv(runs: &[Run]) -> String {
    let mut csv =
        "inflight,throughput_tok_s,latency_p50_ms,latency_p95_ms,latency_p99_ms".to_owned();
    csv += ",input_tokens,n_predict,repeat,sequence";
    for column in COLUMNS {
        csv += &format!(",{column}");
    }
    csv.push('\n');
    for run in runs {
        let number = |name: &str| run.record.number(name).map_or(String::new(), |n| n.to_string());
        let set = |name: &str| run.settings.get(name).map_or(String::new(), |n| n.to_string());
        let at_once = set("concurrency") + &set("batch");
        let short = ["throughput_tok_s", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms"];
        let mut cells = vec![at_once];
        cells.extend(short.iter().map(|name| number(name)));
        cells.extend([set("input_tokens"), set("n_predict")]);
        cells.extend([run.repeat.to_string(), run.sequence.to_string()]);
        cells.extend(COLUMNS.iter().map(|name| number(name)));
        csv += &(cells.join(",") + "\n");
    }
    csv
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::{Asked, parse};

    fn with(args: &[&str]) -> Result<Vec<Setting>, String> {
        let Asked::Run(parsed) = parse(FLAGS, args.iter().map(Into::into).collect())? else {
            panic!("help")
        };
        settings(&parsed)
    }

    #[test]
    fn lengths_have_knees_of_their_own() {
        let settings =
            with(&["--concurrency", "1,4", "--n_predict", "8,64", "--input-tokens", "5"]).unwrap();
        let point = |(load, rate)| Point { load, rate, latency: load };
        let points = [(1.0, 90.0), (4.0, 95.0), (1.0, 500.0), (4.0, 900.0)].map(point);
        let best = best(&settings, &points);
        assert_eq!((best.knees, best.pareto), (vec![0, 3], vec![0, 1, 2, 3]));
    }

    #[test]
    fn lists_multiply() {
        let settings =
            with(&["--concurrency", "1,4", "--input-tokens", "8,16,32", "--n_predict", "5"])
                .unwrap();
        assert_eq!(settings.len(), 6);
        let last = &settings[5];
        assert_eq!((last.at_once, last.input, last.output), (4, Some(32), Some(5)));
        assert!(with(&["--batch", "1,2"]).unwrap()[1].batch);
        for (args, message) in [
            (&[][..], "--concurrency LIST or --batch LIST is needed"),
            (
                &["--batch", "1", "--concurrency", "1"],
                "--concurrency and --batch exclude each other",
            ),
            (&["--batch", "1,x"], "--batch 1,x: not numbers from 1 to 4096, as 1,2,4"),
            (
                &["--batch", "1", "--rate", "5"],
                "the loads of throughput are closed: --concurrency or --batch",
            ),
            (
                &["--batch", "1", "--n-predict", "normal:5,1"],
                "--n-predict normal:5,1: a list of plain numbers here, as 16,128",
            ),
        ] {
            assert_eq!(with(args).unwrap_err(), message);
        }
    }
}
