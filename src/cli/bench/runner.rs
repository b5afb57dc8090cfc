//! Runs of an experiment: a server from a template if one is asked for, a command of this program
//! against it, and its result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::bench::experiment::child::{Fault, Guarded, Host, free_port, how_it_ended};
use crate::bench::experiment::journal::Journal;
use crate::bench::experiment::space::{Settings, describe};
use crate::bench::experiment::template;
use crate::bench::record::{Record, Run};
use crate::cli::flags::{Flag, Parsed};
use crate::cli::{Error, FEATURES};
use crate::machine::environment::{Environment, NoiseWatch, file_sha256};
use crate::machine::processes::local_ports;

/// Flags of all commands that make runs.
pub const START: Flag = Flag::new(
    "start",
    "TEMPLATE",
    "a server that each run starts and ends; {port} is a free port, {NAME} a varied value",
);
pub const READY: Flag = Flag::new(
    "ready",
    "URL",
    "where the server is asked until it answers; tcp://… looks for a listener, none does not wait \
     (http://127.0.0.1:{port}/health)",
);
pub const READY_TIMEOUT: Flag = Flag::new("ready-timeout", "TIME", "what a start may take (2m)");
pub const RUN_TIMEOUT: Flag = Flag::new("run-timeout", "TIME", "what a run may take (30m)");
pub const JOURNAL: Flag =
    Flag::new("journal", "FILE", "each run as it ends; the same command goes on (OUTPUT.journal)");

/// The exit code of an experiment that was interrupted and can go on, as `schedule` has it.
pub const GO_ON: u8 = 75;

/// Makes runs.
pub struct Runner {
    host: Host,
    start: Option<Vec<String>>,
    child: Vec<String>,
    /// What starts the command, if it is not this program itself.
    launcher: Vec<String>,
    ready: Option<String>,
    ready_timeout: Duration,
    run_timeout: Duration,
    quiet: bool,
    journal: Option<Journal>,
    /// All that have been made, in their order.
    pub runs: Vec<Run>,
    noise: NoiseWatch,
    started_at: String,
    began: std::time::Instant,
}

impl Runner {
    /// As the flags say; `child` is the command, `plan` what must be alike for a journal to go on.
    pub fn open(parsed: &Parsed, child: &[&str], plan: Value) -> Result<Runner, Error> {
        let usage = Error::Usage;
        let mut child: Vec<String> = child.iter().map(|&word| word.to_owned()).collect();
        if child.first().is_some_and(|word| word == "cnse") {
            child.remove(0);
        }
        if child.is_empty() {
            let message =
                "what is run is missing: -- bench latency …, -- client … or -- schedule …";
            return Err(usage(message.to_owned()));
        }
        if !child.iter().any(|word| word == "--json") {
            let end = child.iter().position(|word| word == "--").unwrap_or(child.len());
            child.insert(end, "--json".to_owned());
        }
        let start = parsed.text("start").map(template::words).transpose();
        let start = start.map_err(|error| usage(format!("--start {error}")))?;
        let ready = match parsed.text("ready") {
            Some("none") => None,
            Some(url) => Some(url.to_owned()),
            None => start
                .as_ref()
                .filter(|words| template::mentions(words, "port"))
                .map(|_| "http://127.0.0.1:{port}/health".to_owned()),
        };
        let limit = |name, default| {
            parsed.duration(name).map_err(Error::Usage).map(|time| time.unwrap_or(default))
        };
        let path = parsed.text("journal").map(PathBuf::from).or_else(|| {
            let output = parsed.text("output")?;
            Some(PathBuf::from(format!("{output}.journal")))
        });
        let plan = json!({ "start": start, "child": child, "ready": ready, "plan": plan });
        // A server's address may stand in the command, or be what is varied.
        let ports = local_ports(&[child.join(" "), plan.to_string()]);
        let journal = path.map(|path| Journal::open(&path, &plan)).transpose();
        let journal = journal.map_err(Error::Failed)?;
        let runs = journal.as_ref().map(|journal| journal.runs.clone()).unwrap_or_default();
        Ok(Runner {
            host: Host::new().map_err(Error::Failed)?,
            noise: NoiseWatch::start(&ports),
            start,
            child,
            launcher: Vec::new(),
            ready,
            ready_timeout: limit("ready-timeout", Duration::from_secs(120))?,
            run_timeout: limit("run-timeout", Duration::from_secs(1_800))?,
            quiet: parsed.has("quiet"),
            journal,
            runs,
            started_at: crate::log::utc(SystemTime::now()),
            began: std::time::Instant::now(),
        })
    }

    /// From now on the command is started through these words, as mpirun.
    pub fn launched_by(&mut self, words: Vec<String>) {
        self.launcher = words;
    }

    /// Whether a name has a place in the server's or the command's template.
    pub fn mentions(&self, name: &str) -> bool {
        let start = self.start.as_deref().unwrap_or_default();
        template::mentions(start, name) || template::mentions(&self.child, name)
    }

    /// Whether this setting has been run in this block.
    pub fn has(&self, settings: &Settings, repeat: u32) -> bool {
        self.runs.iter().any(|run| run.repeat == repeat && run.settings == *settings)
    }

    /// Makes a run and keeps it. One that fails is kept with why.
    pub fn run(&mut self, settings: &Settings, repeat: u32, of: usize) -> Result<(), Error> {
        let mut run = Run {
            settings: settings.clone(),
            repeat,
            sequence: self.runs.len() as u32,
            ..Run::default()
        };
        match self.measure(settings) {
            Ok((record, failure)) => (run.record, run.failure) = (record, failure),
            Err(Fault::Failed(failure)) => run.failure = Some(failure),
            Err(Fault::Interrupted) => return Err(self.interrupted()),
        }
        if let Some(failure) = &run.failure {
            eprintln!("cnse: {}: {failure}", describe(settings));
        } else if !self.quiet {
            let done = self.runs.len() + 1;
            eprintln!("{done} of {of}: {}: {}", describe(settings), short(&run.record));
        }
        if let Some(journal) = &mut self.journal {
            journal.add(&run).map_err(Error::Failed)?;
        }
        self.runs.push(run);
        Ok(())
    }

    fn interrupted(&self) -> Error {
        let done = self.runs.len();
        match &self.journal {
            Some(_) => eprintln!("cnse: interrupted after {done} runs; the same command goes on"),
            None => eprintln!(
                "cnse: interrupted after {done} runs, which are lost; with --output or --journal \
                 the same command would go on"
            ),
        }
        Error::Exit(GO_ON.into())
    }

    /// The result of a run, and why it is not to be used.
    fn measure(&self, settings: &Settings) -> Result<(Record, Option<String>), Fault> {
        let mut places = settings.clone();
        let mut server = match &self.start {
            None => None,
            Some(words) => {
                let port = free_port().map_err(Fault::Failed)?;
                places.insert("port".to_owned(), port.into());
                let words = filled(words, &places);
                let ready = self.ready.as_ref().map(|url| template::fill(url, &places));
                Some(self.host.serve(&words, ready.as_deref(), self.ready_timeout)?)
            }
        };
        let mut words = filled(&self.launcher, &places);
        if !is_other_program(&self.child) {
            words.push(if words.is_empty() { "cnse".to_owned() } else { own()? });
        }
        words.extend(filled(&self.child, &places));
        // A command whose server dies fails for that, whatever it says itself.
        let mut of_server = || {
            let obituary = server.as_mut().and_then(Guarded::obituary);
            obituary.map_or(String::new(), |obituary| format!("; the server, {obituary}"))
        };
        let (status, output, said) = match self.host.run(&words, self.run_timeout) {
            Err(Fault::Failed(failure)) => return Err(Fault::Failed(failure + &of_server())),
            other => other?,
        };
        let said = said + &of_server();
        let text = String::from_utf8_lossy(&output);
        let ended = how_it_ended(status);
        match Record::parse(&text) {
            Ok(record) if status.success() => Ok((record, None)),
            Ok(record) => {
                let failure = format!("the command {ended}, {} errors{said}", record.errors);
                Ok((record, Some(failure)))
            }
            Err(error) if status.success() => {
                Err(Fault::Failed(format!("what it printed: {error}{said}")))
            }
            Err(_) => Err(Fault::Failed(format!("the command {ended}{said}"))),
        }
    }

    /// At which look at the hypotheses this is, from 0.
    pub fn look(&mut self) -> Result<u32, Error> {
        let whole = self.runs.iter().filter(|run| run.failure.is_none()).count();
        let journal = self.journal.as_mut();
        journal.map_or(Ok(0), |journal| journal.look(whole).map_err(Error::Failed))
    }

    /// SHA-256 of the models that the servers loaded; what is no file is left out.
    fn models(&self) -> BTreeMap<String, String> {
        let words = self.start.as_deref().unwrap_or_default();
        let mut found = BTreeMap::new();
        for run in &self.runs {
            let words = filled(words, &run.settings);
            for file in model_files(&words) {
                if !found.contains_key(file)
                    && let Ok(hash) = file_sha256(Path::new(file))
                {
                    found.insert(file.to_owned(), hash);
                }
            }
        }
        found
    }

    /// All runs as one result.
    pub fn record(&self, seed: u64) -> Record {
        let command = std::env::args().skip(1).collect();
        let mut record = Record::new(command, self.started_at.clone());
        record.wall_s = self.began.elapsed().as_secs_f64();
        record.ok = self.runs.iter().filter(|run| run.failure.is_none()).count() as u64;
        record.errors = self.runs.len() as u64 - record.ok;
        let mut environment = Environment::of_this_machine(FEATURES);
        environment.seed = Some(seed);
        environment.noise = self.noise.stop();
        environment.models = self.models();
        record.environment = Some(environment);
        record.runs.clone_from(&self.runs);
        record
    }
}

/// Whether a command is not one of this program but a program by its path, which prints a result in
/// the one shape too: how another tool takes its turn in an experiment.
fn is_other_program(child: &[String]) -> bool {
    child.first().is_some_and(|word| word.contains('/'))
}

/// This program's file, for those who start it.
fn own() -> Result<String, Fault> {
    let own = std::env::current_exe().map_err(|error| error.to_string());
    let own =
        own.and_then(|own| own.into_os_string().into_string().map_err(|own| format!("{own:?}")));
    own.map_err(|error| Fault::Failed(format!("finding this program's file: {error}")))
}

/// Files that a server's command line loads as models, as llama-server and others name the flag.
fn model_files(words: &[String]) -> impl Iterator<Item = &str> {
    let flags = ["-m", "--model"];
    let behind = words.windows(2).filter(move |pair| flags.contains(&pair[0].as_str()));
    let joined = words.iter().filter_map(|word| word.strip_prefix("--model="));
    behind.map(|pair| pair[1].as_str()).chain(joined)
}

fn filled(words: &[String], places: &Settings) -> Vec<String> {
    words.iter().map(|word| template::fill(word, places)).collect()
}

/// What is told of a run while it goes on.
fn short(record: &Record) -> String {
    let names =
        ["throughput_tok_s", "requests_per_s", "latency_p50_ms", "latency_p99_ms", "wall_s"];
    let told = names.iter().filter_map(|name| Some((name, record.number(name)?)));
    let told = told
        .filter(|(_, value)| *value > 0.0)
        .take(3)
        .map(|(name, value)| format!("{name} {value:.2}"));
    told.collect::<Vec<_>>().join(", ")
}

/// Writes a file at once: its readers see the old one or the new one.
pub fn write(path: &str, text: &str) -> Result<(), Error> {
    let beside = format!("{path}.new");
    let written = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&beside);
        Error::Failed(format!("writing {:?}: {error}", Path::new(path)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_a_server() {
        let words = ["llama-server", "-m", "a.gguf", "--model=b.gguf", "--model", "c.gguf", "-m"];
        let words = words.map(str::to_owned);
        let files: Vec<&str> = model_files(&words).collect();
        assert_eq!(files, ["a.gguf", "c.gguf", "b.gguf"]);
    }

    #[test]
    fn another_program_is_named_by_its_path() {
        for (word, is_one) in [("./run.py", true), ("/usr/bin/env", true), ("client", false)] {
            assert_eq!(is_other_program(&[word.to_owned()]), is_one);
        }
        assert!(!is_other_program(&[]));
    }

    #[test]
    fn ports_of_this_machine() {
        let words = ["--server", "http://127.0.0.1:8090,cnse://localhost:5050/x", "10.0.0.1:7"];
        assert_eq!(local_ports(&words.map(str::to_owned)), [8_090, 5_050]);
        assert!(local_ports(&["127.0.0.1:{port}".to_owned()]).is_empty());
    }
}
