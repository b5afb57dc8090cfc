//! `cnse bench compare`: two saved results, or two live targets in turn.

use std::path::Path;

use serde_json::{Value, json};

use super::runner::{self, Runner};
use crate::bench::experiment::compare::{self, Change, FIGURES, Ground, Limit, Passed};
use crate::bench::experiment::order;
use crate::bench::experiment::space::Settings;
use crate::bench::page::quoted;
use crate::bench::record::Record;
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::machine::environment::Environment;

pub const HELP: &str = "\
usage: cnse bench compare A.json[,A.json…] B.json[,B.json…] [FLAGS]
       cnse bench compare URL URL [--repeat N] [FLAGS] -- COMMAND with {target}

Says how B differs from A, and how surely. Of two saved results also what differs in their
environments. A and B may each be several results of one command, with commas between them: the
change is then that of their means over the runs, with an interval that holds for how runs differ
(it takes three of each). Two live targets are measured in turn, in random and mirrored order, so
that what drifts meanwhile falls on both alike.

--fail-if makes it a check: exit code 1 if the change surely is past the limit. Where the interval
holds the limit nothing is sure, and only --strict fails.

examples:
  cnse bench compare monday.json tuesday.json --fail-if \"ttft_ms_p99 > +5%\"
  cnse bench compare mon-1.json,mon-2.json,mon-3.json tue-1.json,tue-2.json,tue-3.json
  cnse bench compare http://127.0.0.1:8090 http://127.0.0.1:5050 --repeat 10 \\
    -- client --server {target} --prompt Hi --iters 200 --concurrency 4
";

pub const FLAGS: &[Flag] = &[
    Flag::words(
        "A B [-- COMMAND]",
        "two results that --json printed or lists of them, or two targets",
    ),
    Flag::list("figure", "NAME", "what is compared besides the usual, such as steals_won"),
    Flag::list("fail-if", "LIMIT", "\"FIGURE > +5%\" or \"FIGURE < -5%\""),
    Flag::switch("strict", "--fail-if: fail also where it is not sure"),
    Flag::new("alpha", "X", "the chance that an interval misses the truth (0.05)"),
    Flag::new("repeat", "N", "pairs of runs of two targets (10)"),
    runner::RUN_TIMEOUT,
    Flag::new("output", "FILE", "the result"),
    runner::JOURNAL,
    Flag::new("seed", "N", "of the order and the bootstrap (0)"),
    Flag::switch("json", "the result as one JSON object on stdout"),
    Flag::switch("quiet", "no progress on stderr"),
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let words = parsed.texts("");
    let [a, b, child @ ..] = &words[..] else {
        return Err(Error::Usage("two results or two targets are needed: A B".to_owned()));
    };
    let limits = parsed.texts("fail-if").into_iter().map(Limit::parse);
    let limits = limits.collect::<Result<Vec<_>, _>>().map_err(Error::Usage)?;
    let mut figures = FIGURES.to_vec();
    let named = parsed.texts("figure").into_iter().chain(limits.iter().map(|l| l.figure.as_str()));
    for name in named {
        if !figures.contains(&name) {
            figures.push(name);
        }
    }
    let alpha = parsed.number("alpha", 1e-6, 0.5).map_err(Error::Usage)?.unwrap_or(0.05);
    let seed = parsed.number("seed", 0, u64::MAX).map_err(Error::Usage)?.unwrap_or(0);
    let live = [a, b].iter().all(|target| target.contains("://"));
    let (mut record, changes, mut notes) = if live {
        targets(parsed, [a, b], child, &figures, (alpha, seed))?
    } else {
        if let Some(flag) = ["repeat", "run-timeout", "journal"].iter().find(|f| parsed.has(f)) {
            let message = format!("--{flag} is for two targets, http://… or cnse://…");
            return Err(Error::Usage(message));
        }
        if !child.is_empty() {
            let message = "-- COMMAND is for two targets, http://… or cnse://…";
            return Err(Error::Usage(message.to_owned()));
        }
        files([a, b], &figures, (alpha, seed))?
    };
    let (verdicts, failed) = judge(&limits, &changes, parsed.has("strict"));
    notes.extend(verdicts.iter().map(|(_, sentence)| sentence.clone()));
    record.set("changes", changes.iter().map(Change::to_json).collect::<Vec<Value>>());
    record.set("limits", verdicts.into_iter().map(|(object, _)| object).collect::<Vec<Value>>());
    record.set("alpha", alpha);
    if let Some(path) = parsed.text("output") {
        runner::write(path, &record.to_json())?;
    }
    if parsed.has("json") {
        crate::cli::print(&record.to_json())?;
        notes.iter().for_each(|note| eprintln!("{note}"));
    } else {
        let mut text = format!(
            "{:<28} {:>12} {:>12} {:>10}  {:.0} % interval\n",
            "",
            "A",
            "B",
            "change",
            (1.0 - alpha) * 100.0
        );
        changes.iter().for_each(|change| text += &change.to_text());
        notes.iter().for_each(|note| text += &format!("{note}\n"));
        crate::cli::print(&text)?;
    }
    if changes.is_empty() {
        return Err(Error::Failed("A and B have no figure in common".to_owned()));
    }
    if failed || record.errors > 0 { Err(Error::Reported) } else { Ok(()) }
}

/// A result, its changes, and sentences about it.
type Found = (Record, Vec<Change>, Vec<String>);

/// Results of one side; a file's name may hold a comma.
fn side(text: &str) -> Result<Vec<(String, Record)>, Error> {
    let paths =
        if Path::new(text).is_file() { vec![text] } else { text.split(',').collect::<Vec<_>>() };
    if paths.len() > FILES_MAX {
        let message = format!("{} results on one side: {FILES_MAX} at most", paths.len());
        return Err(Error::Usage(message));
    }
    let read = |path: &&str| {
        let record = Record::read(Path::new(path)).map_err(Error::Failed)?;
        Ok(((*path).to_owned(), record))
    };
    paths.iter().map(read).collect()
}

/// Of one side; each is in memory, with its histograms.
const FILES_MAX: usize = 1_000;

fn files(paths: [&str; 2], figures: &[&str], (alpha, seed): (f64, u64)) -> Result<Found, Error> {
    let (a, b) = (side(paths[0])?, side(paths[1])?);
    let names = |side: &[(String, Record)]| {
        side.iter().map(|(name, _)| name.clone()).collect::<Vec<String>>()
    };
    let (of_a, of_b): (Vec<&Record>, Vec<&Record>) = (
        a.iter().map(|(_, record)| record).collect(),
        b.iter().map(|(_, record)| record).collect(),
    );
    let changes = compare::results(&of_a, &of_b, figures, alpha, seed);
    let mut notes = differences(&a, &b);
    if changes.iter().any(|change| change.ground == Ground::Samples) {
        notes.push(
            "one run of each: the intervals tell of chance within a run, not of how runs differ \
             from each other; give several of each, or use bench sweep --repeat"
                .to_owned(),
        );
    }
    if a.len().max(b.len()) > 1 && a.len().min(b.len()) < 3 {
        notes.push(format!(
            "{} and {} results: it takes three of each for an interval over runs",
            a.len(),
            b.len()
        ));
    }
    notes.extend(compare::not_in_turn(&of_a, &of_b));
    let command = std::env::args().skip(1).collect();
    let mut record = Record::new(command, crate::log::utc(std::time::SystemTime::now()));
    record.set("files", json!({ "a": names(&a), "b": names(&b) }));
    record.set("differences", notes.clone());
    Ok((record, changes, notes))
}

/// What is not the same about the results, besides their figures: of the first of each side, and
/// within each side.
fn differences(a: &[(String, Record)], b: &[(String, Record)]) -> Vec<String> {
    let mut found = differ(&a[0].1, &b[0].1, "different: ");
    for (name, side) in [("A", a), ("B", b)] {
        let (first, one) = (&side[0], side.len() == 1);
        for (path, record) in &side[1..] {
            let head = format!("different within {name}: {} / {path}: ", first.0);
            found.extend(differ(&first.1, record, &head));
        }
        for (path, record) in side {
            let of = if one { name.to_owned() } else { format!("{name}: {path}") };
            let environment = record.environment.as_ref();
            let noise = environment.and_then(|environment| environment.noise.as_ref());
            let warning = noise.and_then(|noise| noise.warning());
            found.extend(warning.map(|warning| format!("doubtful: {of}: {warning}")));
            if record.errors > 0 {
                found.push(format!("doubtful: {of}: {} errors", record.errors));
            }
        }
    }
    found
}

fn differ(a: &Record, b: &Record, head: &str) -> Vec<String> {
    let mut found = Vec::new();
    if a.cnse != b.cnse {
        found.push(format!("{head}cnse: {} / {}", a.cnse, b.cnse));
    }
    let (of_a, of_b) = (without_files(&a.command), without_files(&b.command));
    if of_a != of_b {
        found.push(format!("{head}command: {} / {}", quoted(&of_a), quoted(&of_b)));
    }
    let empty = Environment::default();
    let environment = |record: &'_ Record| record.environment.clone().unwrap_or(empty.clone());
    let differences = environment(a).differences(&environment(b));
    found.extend(differences.into_iter().map(|difference| format!("{head}{difference}")));
    found
}

/// A command without where its result goes, which changes nothing about it.
fn without_files(command: &[String]) -> Vec<String> {
    let (mut words, mut rest) = (Vec::new(), command.iter());
    while let Some(word) = rest.next() {
        let name = word.strip_prefix("--").map(|word| word.split('=').next().unwrap_or(word));
        match name {
            Some("json" | "quiet") => {}
            Some("output" | "csv" | "journal") => {
                if !word.contains('=') {
                    rest.next();
                }
            }
            _ => words.push(word.clone()),
        }
    }
    words
}

fn targets(
    parsed: &Parsed,
    targets: [&str; 2],
    child: &[&str],
    figures: &[&str],
    (alpha, seed): (f64, u64),
) -> Result<Found, Error> {
    let repeat = parsed.number("repeat", 1, 10_000).map_err(Error::Usage)?.unwrap_or(10);
    let points = targets.map(|target| Settings::from_iter([("target".to_owned(), target.into())]));
    let mut runner = Runner::open(parsed, child, json!({ "targets": targets, "seed": seed }))?;
    if !runner.mentions("target") {
        let message = "{target} stands nowhere in the command: -- client --server {target} …";
        return Err(Error::Usage(message.to_owned()));
    }
    for block in 0..repeat {
        for which in order::of_block(2, block, seed) {
            if !runner.has(&points[which], block) {
                runner.run(&points[which], block, 2 * repeat as usize)?;
            }
        }
    }
    let record = runner.record(seed);
    let changes = compare::paired(&record.runs, &points[0], &points[1], figures, alpha);
    let noise = record.environment.as_ref().and_then(|environment| environment.noise.as_ref());
    let warning = noise.and_then(|noise| noise.warning());
    let mut notes: Vec<String> =
        warning.into_iter().map(|warning| format!("doubtful: {warning}")).collect();
    if repeat < 3 {
        notes.push("an interval needs three pairs at least: --repeat 3".to_owned());
    }
    Ok((record, changes, notes))
}

/// Of each limit an object and a sentence, and whether the check failed.
fn judge(limits: &[Limit], changes: &[Change], strict: bool) -> (Vec<(Value, String)>, bool) {
    let mut found = Vec::new();
    let mut failed = false;
    for limit in limits {
        let of: Vec<&Change> =
            changes.iter().filter(|change| change.figure == limit.figure).collect();
        let passed = |passed| of.iter().any(|change| limit.passed(change) == passed);
        let (verdict, fails) = if of.is_empty() {
            ("not to be told, since A or B lacks the figure", true)
        } else if passed(Passed::Yes) {
            ("passed", true)
        } else if passed(Passed::Unsure) {
            ("not sure", strict)
        } else {
            ("kept", false)
        };
        failed |= fails;
        let object = json!({ "fail_if": limit.text, "verdict": verdict, "failed": fails });
        found.push((
            object,
            format!("{}: {}: {verdict}", if fails { "FAILED" } else { "ok" }, limit.text),
        ));
    }
    (found, failed)
}
