//! `cnse bench sweep`: one command under many settings, and what may be concluded from it.

use serde_json::{Value, json};

use super::runner::{self, Runner};
use crate::bench::experiment::hypothesis::{Hypothesis, Verdict};
use crate::bench::experiment::space::{self, Settings, Space, describe};
use crate::bench::experiment::tune::{self, Goal};
use crate::bench::experiment::{order, table};
use crate::bench::record::Record;
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::prng::Prng;

pub const HELP: &str = "\
usage: cnse bench sweep --vary NAME=VALUE,… [--repeat N] [FLAGS] -- COMMAND

Runs a command of this program under each setting, --repeat times, in random and mirrored order,
so that what drifts meanwhile falls on all settings alike. {NAME} in the command and in --start is
filled in. A server that --start names is started for each run, waited for, and ended after it,
also on Ctrl-C and when this program is killed. With --output it goes on where it stopped.
COMMAND may also be another program by its path, such as ./run.sh {x}: it is given --json too, and
prints a result of the same shape.

--expect states what should come out, and is answered supported, refuted or undecided; the chance
of a wrong answer is at most --alpha, shared by all --expect, also if the experiment goes on with a
higher --repeat after a first look. --tune looks for the best setting within --budget runs.

examples:
  cnse bench sweep --vary inflight=1,8,16 --repeat 6 --csv inflight.csv --output inflight.json \\
    --expect \"throughput_tok_s: inflight=16 > inflight=8 by 10%\" \\
    -- schedule --server http://127.0.0.1:8090 --prompt Hi --iters 200 --inflight {inflight}
  cnse bench sweep --start 'llama-server -m m.gguf -ngl {ngl} -b {batch} --port {port}' \\
    --vary ngl=0,4,8 --vary batch=256,512 --repeat 3 \\
    -- client --server http://127.0.0.1:{port} --prompt Hi --iters 50 --concurrency 4
  cnse bench sweep --tune \"max tokens_per_s\" --slo \"ttft_ms_p99 < 500\" --budget 30 \\
    --vary inflight=1..64:log -- client --port 5050 --prompt Hi --iters 400 --concurrency {inflight}

exit codes: 0 done, 1 a run failed or, with --strict, not all that was expected is supported, 2 the
command line is wrong, 75 it was interrupted and the same command goes on
";

pub const FLAGS: &[Flag] = &[
    Flag::list("vary", "NAME=VALUES", "1,2,4 or a,b or, for --sample and --tune, 1..64[:log]"),
    Flag::list(
        "point",
        "NAME=VALUE,…",
        "instead of --vary: this setting, and no other combination",
    ),
    Flag::new("sample", "N", "so many random settings instead of all"),
    Flag::new("repeat", "N", "runs of each setting (5)"),
    Flag::list("expect", "CLAIM", "FIGURE: A=1 > A=2 [by 10%], or FIGURE: A=1 < NUMBER"),
    Flag::new("alpha", "X", "the chance of a wrong verdict (0.05)"),
    Flag::switch("strict", "exit with 1 unless all that is expected is supported"),
    Flag::new("tune", "GOAL", "look for the best setting: \"max FIGURE\" or \"min FIGURE\""),
    Flag::list("slo", "BOUND", "--tune: what must hold: \"FIGURE < NUMBER\""),
    Flag::new("budget", "N", "--tune: runs (30)"),
    runner::START,
    runner::READY,
    runner::READY_TIMEOUT,
    runner::RUN_TIMEOUT,
    Flag::new("output", "FILE", "the result with all runs, for report, compare and rerun"),
    Flag::new("csv", "FILE", "a row for each run"),
    runner::JOURNAL,
    Flag::new("seed", "N", "of the order, the sample and --tune (0)"),
    Flag::switch("json", "the result as one JSON object on stdout"),
    Flag::switch("quiet", "no progress on stderr"),
    Flag::words("-- COMMAND", "what is run: bench latency, client, schedule … with its flags"),
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let sweep = Sweep::new(parsed).map_err(Error::Usage)?;
    let plan = json!({ "vary": parsed.texts("vary"), "point": parsed.texts("point"),
                       "sample": parsed.text("sample"), "seed": sweep.seed,
                       "tune": parsed.text("tune"), "slo": parsed.texts("slo") });
    let mut runner = Runner::open(parsed, &parsed.texts(""), plan)?;
    for name in &sweep.names {
        if !runner.mentions(name) {
            let message = format!("{name} is varied, but {{{name}}} stands nowhere");
            return Err(Error::Usage(message));
        }
    }
    match &sweep.goal {
        None => sweep.blocks(&mut runner)?,
        Some(goal) => sweep.search(goal, &mut runner)?,
    }
    let mut record = runner.record(sweep.seed);
    let verdicts = sweep.judge(&mut runner, &mut record)?;
    let best = sweep.goal.as_ref().map(|goal| sweep.best(goal, &mut record));
    if let Some(path) = parsed.text("csv") {
        runner::write(path, &table::csv(&record.runs))?;
    }
    if let Some(path) = parsed.text("output") {
        runner::write(path, &record.to_json())?;
    }
    if parsed.has("json") {
        crate::cli::print(&record.to_json())?;
    } else {
        let verdicts: String = verdicts.iter().map(|(_, text)| text.as_str()).collect();
        let warning = warning(&record).unwrap_or_default();
        let best = best.unwrap_or_default();
        let text = format!("{}{warning}{verdicts}{best}", table::text(&record.runs));
        crate::cli::print(&text)?;
    }
    let disappointed = verdicts.iter().any(|(verdict, _)| *verdict != Verdict::Supported);
    if record.errors > 0 || parsed.has("strict") && disappointed {
        return Err(Error::Reported);
    }
    Ok(())
}

/// What else the machine did, for people.
fn warning(record: &Record) -> Option<String> {
    let noise = record.environment.as_ref()?.noise.as_ref()?;
    Some(format!("doubtful: {}\n", noise.warning()?))
}

struct Sweep {
    space: Space,
    points: Vec<Settings>,
    names: Vec<String>,
    repeat: u32,
    hypotheses: Vec<Hypothesis>,
    alpha: f64,
    goal: Option<Goal>,
    budget: usize,
    seed: u64,
}

impl Sweep {
    fn new(parsed: &Parsed) -> Result<Sweep, String> {
        let space = Space::parse(&parsed.texts("vary"))?;
        let seed = parsed.number("seed", 0, u64::MAX)?.unwrap_or(0);
        let listed = parsed.texts("point").into_iter().map(space::settings);
        let listed = listed.collect::<Result<Vec<_>, _>>().map_err(|e| format!("--point {e}"))?;
        let goal = parsed.text("tune").map(|goal| Goal::parse(goal, &parsed.texts("slo")));
        let goal = goal.transpose()?;
        let sample = parsed.number("sample", 1, space::POINTS_MAX)?;
        check_together(parsed, &space, &listed)?;
        let points = match sample {
            _ if goal.is_some() => Vec::new(),
            _ if !listed.is_empty() => listed,
            Some(count) => space.sample(count, &mut Prng::new(seed)),
            None => space.grid()?,
        };
        let varied = space.dimensions.iter().map(|dimension| &dimension.name);
        let mut names: Vec<String> =
            varied.chain(points.iter().flat_map(Settings::keys)).cloned().collect();
        names.sort();
        names.dedup();
        if points.iter().any(|point| point.len() != names.len()) {
            return Err("--point: each has to set the same names".to_owned());
        }
        if let Some(name) = names.iter().find(|name| *name == "port") {
            return Err(format!("--vary {name}: --start fills in a free port itself"));
        }
        let hypotheses = parsed.texts("expect").into_iter().map(Hypothesis::parse);
        let hypotheses = hypotheses.collect::<Result<Vec<_>, _>>()?;
        for hypothesis in &hypotheses {
            if let Some(name) = hypothesis.names().find(|name| !names.contains(name)) {
                return Err(format!("--expect {:?}: {name} is not varied", hypothesis.text));
            }
        }
        Ok(Sweep {
            space,
            points,
            names,
            repeat: parsed.number("repeat", 1, 10_000)?.unwrap_or(5),
            hypotheses,
            alpha: parsed.number("alpha", 1e-6, 0.5)?.unwrap_or(0.05),
            goal,
            budget: parsed.number("budget", 1, 1_000)?.unwrap_or(30),
            seed,
        })
    }

    /// Each setting once in each block.
    fn blocks(&self, runner: &mut Runner) -> Result<(), Error> {
        let of = self.points.len() * self.repeat as usize;
        for block in 0..self.repeat {
            for which in order::of_block(self.points.len(), block, self.seed) {
                if !runner.has(&self.points[which], block) {
                    runner.run(&self.points[which], block, of)?;
                }
            }
        }
        Ok(())
    }

    /// One run after the other, each where it is worth most.
    fn search(&self, goal: &Goal, runner: &mut Runner) -> Result<(), Error> {
        while runner.runs.len() < self.budget {
            let settings = tune::next(goal, &self.space, &runner.runs, self.seed);
            let repeat = runner.runs.iter().filter(|run| run.settings == settings).count();
            runner.run(&settings, repeat as u32, self.budget)?;
        }
        Ok(())
    }

    /// What came of each hypothesis, with a line for people; the result has them too.
    fn judge(
        &self,
        runner: &mut Runner,
        record: &mut Record,
    ) -> Result<Vec<(Verdict, String)>, Error> {
        if self.hypotheses.is_empty() {
            return Ok(Vec::new());
        }
        let look = runner.look()?;
        // All verdicts together keep the rate (Bonferroni).
        let alpha = self.alpha / self.hypotheses.len() as f64;
        let mut verdicts = Vec::new();
        let mut objects: Vec<Value> = Vec::new();
        for hypothesis in &self.hypotheses {
            let found = hypothesis.judge(&record.runs, alpha, look);
            objects.push(found.to_json(hypothesis));
            verdicts.push((found.verdict, found.to_text(hypothesis)));
        }
        record.set("verdicts", objects);
        record.set("alpha", self.alpha);
        Ok(verdicts)
    }

    /// The best setting, for people; the result has it too.
    fn best(&self, goal: &Goal, record: &mut Record) -> String {
        let Some(best) = tune::best(goal, &self.space, &record.runs, self.seed) else {
            return "best: none; two runs with figures are needed at least\n".to_owned();
        };
        let kept = record.runs.iter().filter(|run| run.settings == best.settings);
        let kept = kept.filter(|run| tune::keeps(goal, run)).count();
        record.set(
            "best",
            json!({ "settings": best.settings, "figure": goal.figure, "value": best.value,
                    "runs": best.runs, "runs_within_bounds": kept, "feasible": best.feasible }),
        );
        let bounds = match goal.bounds.is_empty() {
            true => String::new(),
            false => format!(
                "; all bounds kept in {kept} of its {} runs, {:.0} % likely",
                best.runs,
                best.feasible * 100.0
            ),
        };
        format!(
            "best: {}: {} about {:.2}{bounds}\n",
            describe(&best.settings),
            goal.figure,
            best.value
        )
    }
}

/// Flags that exclude or need each other.
fn check_together(parsed: &Parsed, space: &Space, listed: &[Settings]) -> Result<(), String> {
    let tunes = parsed.has("tune");
    if space.dimensions.is_empty() == listed.is_empty() {
        return Err("--vary NAME=VALUES or --point NAME=VALUE,… is needed, one of them".to_owned());
    }
    if let Some(flag) =
        ["point", "sample", "repeat", "expect"].iter().find(|f| tunes && parsed.has(f))
    {
        return Err(format!("--{flag} and --tune exclude each other"));
    }
    if let Some(flag) = ["slo", "budget"].iter().find(|flag| !tunes && parsed.has(flag)) {
        return Err(format!("--{flag} is for --tune"));
    }
    if parsed.has("sample") && !listed.is_empty() {
        return Err("--sample is for --vary".to_owned());
    }
    if let Some(flag) = ["ready", "ready-timeout"].iter().find(|flag| parsed.has(flag))
        && !parsed.has("start")
    {
        return Err(format!("--{flag} is for --start"));
    }
    Ok(())
}
