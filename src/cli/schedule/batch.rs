//! `--input` and `--prompt`: rows that are sent to servers.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::ranks::{self, Job, Start};
use super::source::BatchSource;
use super::watch::Outputs;
use super::{Common, all_on_one};
use crate::batch::attempt::{Prompt, PromptOptions, Work};
use crate::batch::factory::{BatchFactory, Config, RETRIES_DEFAULT, TIMEOUT_DEFAULT};
use crate::batch::input::{DoneSet, FileSource, RepeatSource};
use crate::batch::journal::{Journal, load};
use crate::batch::matrix::{self, MatrixPlan};
use crate::batch::merge::{MergePlan, Merged, Rows, merge};
use crate::batch::retry::Backoff;
use crate::batch::row::RowOptions;
use crate::batch::servers::{ServerSpec, parse_servers};
use crate::batch::setup::{Setup, SetupConfig, Views, settle};
use crate::batch::ship;
use crate::batch::spool::Spool;
use crate::cli::Error;
use crate::cli::flags::Parsed;
use crate::cuda::Device;
use crate::net::Waker;
use crate::post::matrix::Matrix;
use crate::post::plan::Plan;
use crate::post::threads;
use crate::sched::collect::{Fault, Staged};
use crate::sched::fabric::Fabric;
use crate::sched::tasks::{Rank, Span};

/// Results that wait to be written, past which no more are asked for.
const BEHIND_BYTES: u64 = 64 << 20;

/// A batch, as the command line tells of it.
pub struct BatchJob {
    common: Common,
    specs: Vec<ServerSpec>,
    inflight: Option<u32>,
    input: Input,
    options: Arc<RowOptions>,
    files: Option<Files>,
    ordered: bool,
    /// What is made of the output at the end.
    matrix: Option<MatrixPlan>,
    retry_failed: bool,
    retries: u32,
    timeout: Duration,
    all_on_one: bool,
    /// What earlier runs did, read once for all ranks of a process.
    done: OnceLock<Result<Arc<DoneSet>, String>>,
}

/// What is asked.
enum Input {
    /// Rows of a file.
    File(PathBuf),
    /// Rows of a pipe.
    Pipe,
    /// A prompt, so many times.
    Prompt(Arc<Prompt>, u64),
}

/// Where results go.
pub struct Files {
    /// The job's folder, of which the parts are the journal.
    pub folder: PathBuf,
    /// Answers.
    pub output: PathBuf,
    /// Failures.
    pub errors: PathBuf,
}

/// What a rank of a batch holds until its end.
#[derive(Default)]
pub struct Held {
    /// Its part of the journal.
    pub journal: Option<Journal>,
    /// At rank 0, where rows come from a pipe.
    pub spool: Option<Spool>,
    /// Bytes of the pipe that were dealt out.
    pub dealt: u64,
    /// Its end was told.
    pub ended: bool,
    /// At rank 0: the ranks that bring parts from other folders.
    pub apart: Vec<Rank>,
    /// This rank does so.
    pub ships: bool,
    /// Which rank it is.
    pub rank: Rank,
    /// The servers as all ranks see them.
    pub views: Views,
}

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let usage = Error::Usage;
    let job = BatchJob::new(parsed).map_err(usage)?;
    ranks::run(&job, &Outputs::new(parsed))
}

impl BatchJob {
    fn new(parsed: &Parsed) -> Result<BatchJob, String> {
        let mut common = Common::new(parsed)?;
        let mut options = RowOptions { defaults: defaults(parsed)? };
        let output = parsed.text("output").map(PathBuf::from);
        let input = match (parsed.text("input"), parsed.text("prompt")) {
            (Some("-"), None) => Input::Pipe,
            (Some(path), None) => Input::File(PathBuf::from(path)),
            (None, Some(_)) => {
                let mut prompt = prompt(parsed, output.is_some())?;
                common.longest_first = false;
                if prompt.is_chat {
                    // A chat is another question, and has keys of its own.
                    options.defaults.insert("chat".to_owned(), true.into());
                }
                prompt.key = Arc::new(options.clone());
                let count = parsed.number("iters", 1, u64::from(u32::MAX))?.unwrap_or(1);
                Input::Prompt(Arc::new(prompt), count)
            }
            _ => return Err("--input FILE or --prompt TEXT is needed, and not both".to_owned()),
        };
        let is_rows = !matches!(input, Input::Prompt(..));
        if is_rows && output.is_none() {
            return Err("--output FILE is needed: where the results go".to_owned());
        }
        if is_rows && let Some(flag) = ["iters", "chat"].iter().find(|flag| parsed.has(flag)) {
            return Err(format!("--{flag} is for --prompt; rows say themselves what they are"));
        }
        let files = output.map(|output| {
            let errors = parsed.text("errors").map(PathBuf::from);
            let errors = errors.unwrap_or_else(|| output.with_extension("errors.jsonl"));
            let mut folder = output.clone().into_os_string();
            folder.push(".parts");
            Files { folder: PathBuf::from(folder), output, errors }
        });
        let server = parsed.text("server").ok_or("--server URL[,URL] is needed")?;
        let key = std::env::var("CNSE_API_KEY").ok().filter(|key| !key.is_empty());
        Ok(BatchJob {
            specs: parse_servers(server, key.as_deref())?,
            inflight: parsed.number("inflight", 1, 65_536)?,
            common,
            input,
            options: Arc::new(options),
            // A matrix has the order of the input, and is made of the output.
            ordered: parsed.has("ordered") || parsed.has("post"),
            matrix: matrix_plan(parsed, is_rows, files.as_ref())?,
            files,
            retry_failed: parsed.has("retry-failed"),
            retries: parsed.number("retries", 0, 1000)?.unwrap_or(RETRIES_DEFAULT),
            timeout: parsed.duration("timeout")?.unwrap_or(TIMEOUT_DEFAULT),
            all_on_one: all_on_one(parsed)?,
            done: OnceLock::new(),
        })
    }

    /// The rows that earlier runs did.
    fn done(&self) -> Result<Arc<DoneSet>, String> {
        let load = || self.load();
        self.done.get_or_init(load).clone()
    }

    fn load(&self) -> Result<Arc<DoneSet>, String> {
        let Some(files) = &self.files else { return Ok(Arc::default()) };
        let Files { folder, output, errors } = files;
        let loaded = load(folder, output, errors, self.retry_failed);
        loaded.map(|loaded| Arc::new(loaded.done)).map_err(|error| error.to_string())
    }

    /// The file of rows, wherever it is.
    fn rows(&self) -> Option<PathBuf> {
        match (&self.input, &self.files) {
            (Input::File(path), _) => Some(path.clone()),
            (Input::Pipe, Some(files)) => Some(files.folder.join(crate::batch::spool::FILE)),
            _ => None,
        }
    }

    fn source(&self, reads: bool) -> Result<BatchSource, String> {
        let options = self.options.clone();
        if let Input::Prompt(prompt, _) = &self.input {
            let prompt: Arc<str> = prompt.prompt.as_str().into();
            return Ok(BatchSource::Repeat(RepeatSource::new(prompt, options, self.done()?)));
        }
        let rows = self.rows().filter(|_| reads);
        let Some(path) = rows else { return Ok(BatchSource::given()) };
        let source = FileSource::open(&path, options, self.done()?);
        source.map(BatchSource::File).map_err(|error| error.to_string())
    }

    fn spans(&self, setup: &Setup, rank: Rank, size: u32) -> (Vec<Span>, Option<u64>) {
        match (&self.input, setup.input_bytes) {
            (Input::Prompt(_, count), _) => {
                let span = match (self.all_on_one, rank) {
                    (true, Rank(0)) => Some(Span::numbers(0, *count)),
                    (true, _) => None,
                    (false, Rank(rank)) => {
                        Some(Span { start: u64::from(rank), end: *count, stride: size })
                    }
                };
                (span.into_iter().collect(), Some(*count))
            }
            (Input::File(_), Some(bytes)) => {
                let (place, readers) = setup.reader;
                let at = |place: u32| {
                    (u128::from(bytes) * u128::from(place) / u128::from(readers.max(1))) as u64
                };
                let span = match (self.all_on_one, rank, setup.reads) {
                    (true, Rank(0), _) => Some(Span::bytes(0, bytes)),
                    (false, _, true) => Some(Span::bytes(at(place), at(place + 1))),
                    _ => None,
                };
                (span.into_iter().collect(), Some(bytes))
            }
            _ => (Vec::new(), None),
        }
    }

    fn factory(
        &self,
        setup: Setup,
        journal: Option<&Journal>,
        quiet: bool,
    ) -> Result<BatchFactory, String> {
        let work = match &self.input {
            Input::Prompt(prompt, _) => Work::Prompt(prompt.clone()),
            _ => Work::Rows(self.options.clone()),
        };
        let results = journal.map(|journal| {
            let appender = std::sync::Mutex::new(journal.appender());
            let results = move |lines: Vec<u8>| {
                appender.lock().unwrap_or_else(std::sync::PoisonError::into_inner).append(lines);
            };
            Box::new(results) as crate::batch::factory::Results
        });
        let config = Config {
            servers: setup.servers,
            permits: setup.permits,
            retries: self.retries,
            backoff: Backoff::default(),
            timeout: self.timeout,
            work,
            results,
            seed: self.common.seed,
            quiet,
        };
        BatchFactory::start(config).map_err(|error| format!("watching the servers: {error}"))
    }

    fn merge_plan(&self) -> Option<MergePlan> {
        let Files { folder, output, errors } = self.files.as_ref()?;
        let input = match &self.input {
            Input::Prompt(prompt, count) => {
                Rows::Prompt { prompt: prompt.prompt.clone(), count: *count }
            }
            _ => Rows::File(self.rows()?),
        };
        Some(MergePlan {
            input,
            options: self.options.clone(),
            folder: folder.clone(),
            output: output.clone(),
            errors: errors.clone(),
            ordered: self.ordered,
        })
    }
}

impl Job for BatchJob {
    type Source = BatchSource;
    type Factory = BatchFactory;
    type Held = Held;

    fn common(&self) -> &Common {
        &self.common
    }

    fn start<F: Fabric>(
        &self,
        fabric: &mut Staged<'_, F>,
        waker: &Waker,
    ) -> Result<Start<BatchSource, BatchFactory, Held>, Fault> {
        let (rank, size) = (fabric.rank(), fabric.topology().size());
        let waker = waker.clone();
        let wake = move || waker.wake();
        let mut held = Held { rank, ..Held::default() };
        // Rank 0 locks the job before anybody reads what earlier runs left.
        if let (Some(files), Rank(0)) = (&self.files, rank) {
            held.journal = Some(journal(&files.folder, rank, wake.clone())?);
            if let Some((_, corpus)) = self.matrix.as_ref().and_then(|m| m.plan.topk.as_ref()) {
                // Not only found missing when all is embedded.
                Matrix::open(corpus).map_err(|error| format!("--post: {error}"))?;
            }
            if matches!(self.input, Input::Pipe) {
                let spool = Spool::start(&files.folder, std::io::stdin(), wake.clone());
                held.spool = Some(spool.map_err(|error| error.to_string())?);
            }
        }
        let input = match &self.input {
            Input::File(path) => Some(path.as_path()),
            _ => None,
        };
        let config = SetupConfig {
            specs: &self.specs,
            inflight: self.inflight,
            folder: self.files.as_ref().map(|files| files.folder.as_path()),
            input,
        };
        let setup = settle(fabric, &config)?;
        held.apart = setup.apart.clone();
        held.ships = setup.ships;
        held.views = setup.views.clone();
        // What an earlier run left elsewhere is wanted here before anybody asks what is done, and
        // before anybody writes there again.
        self.gather_parts(fabric, &held)?;
        let all = (rank == Rank(0)).then(|| vec![Vec::new(); size as usize]);
        fabric.scatter(all)?;
        if let (Some(files), None) = (&self.files, &held.journal) {
            held.journal = Some(journal(&files.folder, rank, wake)?);
        }
        let (spans, whole) = self.spans(&setup, rank, size);
        if setup.permits.iter().all(|&permits| permits == 0) {
            log::info!("rank {rank} has no place at any server, and only reads and gives");
        }
        let reads = setup.reads;
        let topology = fabric.topology();
        let is_first = topology.members(topology.node(rank)).first() == Some(&rank);
        Ok(Start {
            source: self.source(reads)?,
            factory: self.factory(setup, held.journal.as_ref(), !is_first)?,
            held,
            spans,
            whole,
            bytes: !matches!(self.input, Input::Prompt(..)),
            reads: reads || matches!(self.input, Input::Prompt(..)),
        })
    }

    fn is_behind(&self, held: &Held) -> bool {
        held.journal.as_ref().is_some_and(|journal| journal.waiting_bytes() > BEHIND_BYTES)
    }

    fn failure(&self, held: &Held) -> Option<String> {
        let journal = held.journal.as_ref().and_then(Journal::failure);
        let spool = held.spool.as_ref().and_then(Spool::failure);
        journal.or(spool).map(|error| error.to_string())
    }

    fn more_input(&self, held: &mut Held) -> Option<(Vec<Span>, Option<u64>)> {
        let (length, ended) = held.spool.as_ref()?.progress();
        if length == held.dealt && (!ended || held.ended) {
            return None;
        }
        let span = Span::bytes(held.dealt, length);
        (held.dealt, held.ended) = (length, ended);
        Some((vec![span], ended.then_some(length)))
    }

    fn died(&self, source: &mut BatchSource, factory: &BatchFactory, held: &Held, alive: &[Rank]) {
        factory.set_permits(&held.views.permits(held.rank, alive));
        match self.load() {
            Ok(done) => source.set_done(done),
            Err(error) => log::warn!("what the dead had recorded is asked again: {error}"),
        }
    }

    fn close(&self, held: &mut Held) -> Result<(), String> {
        match &mut held.journal {
            Some(journal) => journal.close().map(drop).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    fn gather_parts<F: Fabric>(
        &self,
        fabric: &mut Staged<'_, F>,
        held: &Held,
    ) -> Result<(), String> {
        let Some(Files { folder, .. }) = &self.files else { return Ok(()) };
        if held.ships {
            return ship::send(fabric, folder);
        }
        ship::receive(fabric, folder, &held.apart)
    }

    fn merge(&self) -> Result<bool, String> {
        let (Some(plan), Some(files)) = (self.merge_plan(), &self.files) else { return Ok(true) };
        let merged = merge(&plan).map_err(|error| error.to_string())?;
        say(&merged, files);
        if let Some(plan) = self.matrix.as_ref().filter(|_| merged.missing == 0) {
            let made = matrix::make(plan).map_err(|error| error.to_string())?;
            let rows = made.rows;
            log::info!("{rows} embeddings of {} dimensions in {:?}", made.dims, plan.matrix);
            if let Some(topk) = made.topk {
                log::info!("the nearest rows of each in {topk:?}");
            }
        }
        Ok(merged.failed + merged.bad + merged.duplicates + merged.missing == 0)
    }

    fn advice(&self) -> &'static str {
        if self.files.is_some() { "; the same command goes on where it stopped" } else { "" }
    }
}

/// `--post` and `--matrix`.
fn matrix_plan(
    parsed: &Parsed,
    is_rows: bool,
    files: Option<&Files>,
) -> Result<Option<MatrixPlan>, String> {
    let matrix = parsed.text("matrix").map(PathBuf::from);
    let (Some(text), Some(files), true) = (parsed.text("post"), files, is_rows) else {
        return match (parsed.has("post"), matrix) {
            (true, _) => Err("--post is for --input, whose rows call /v1/embeddings".to_owned()),
            (false, Some(_)) => Err("--matrix is written with --post STEPS".to_owned()),
            (false, None) if parsed.has("device") => {
                Err("--device is where --post STEPS works".to_owned())
            }
            (false, None) => Ok(None),
        };
    };
    let plan = Plan::parse(text).map_err(|error| format!("--post: {error}"))?;
    let matrix = matrix.unwrap_or_else(|| files.output.with_extension("npy"));
    if !matrix.extension().is_some_and(|extension| extension == "npy" || extension == "jsonl") {
        return Err(format!("--matrix {matrix:?}: its name must end in .npy or .jsonl"));
    }
    if [&files.output, &files.errors].contains(&&matrix) {
        return Err(format!("--matrix {matrix:?}: results or failed rows go there"));
    }
    let (output, threads) = (files.output.clone(), threads::cores());
    let device = Device::new(parsed.device()?);
    Ok(Some(MatrixPlan { plan, output, matrix, threads, device }))
}

fn journal(
    folder: &Path,
    rank: Rank,
    on_failure: impl Fn() + Send + 'static,
) -> Result<Journal, String> {
    Journal::create(folder, rank.0, on_failure).map_err(|error| error.to_string())
}

/// Says where everything is.
fn say(merged: &Merged, files: &Files) {
    let Merged { ok, failed, bad, duplicates, missing, dropped, .. } = *merged;
    log::info!("{ok} results in {:?}", files.output);
    let faulty = failed + bad + duplicates;
    if faulty > 0 {
        log::warn!(
            "{faulty} rows failed ({bad} bad, {duplicates} with the custom_id of another): {:?} has \
             them, with why; --retry-failed asks them again",
            files.errors
        );
    }
    if missing > 0 {
        log::error!(
            "{missing} rows have no result; the same command asks them again, and {:?} keeps the rest",
            files.folder
        );
    }
    // A repeated custom_id's own answer, if it was asked for, is dropped too, and was told above.
    let dropped = dropped.saturating_sub(duplicates);
    if dropped > 0 {
        log::warn!("{dropped} earlier results are of rows that the input does not have any more");
    }
}

/// What the command line adds to rows.
fn defaults(parsed: &Parsed) -> Result<Map<String, Value>, String> {
    let mut defaults = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            defaults.insert(name.to_owned(), value);
        }
    };
    set("model", parsed.text("model").map(Value::from));
    set("max_tokens", parsed.number("n-predict", 1, u32::MAX)?.map(Value::from));
    set("temperature", parsed.number("temperature", 0.0, 100.0)?.map(Value::from));
    set("top_p", parsed.number("top-p", 0.0, 1.0)?.map(Value::from));
    // The seed of a request is the job's, so that a rerun asks the same.
    set("seed", parsed.number("seed", 0, u32::MAX)?.map(Value::from));
    if let Some(extra) = parsed.text("extra") {
        let Ok(Value::Object(extra)) = serde_json::from_str(extra) else {
            return Err(format!("--extra {extra}: not a JSON object"));
        };
        defaults.extend(extra);
    }
    Ok(defaults)
}

fn prompt(parsed: &Parsed, keep_text: bool) -> Result<Prompt, String> {
    let options = PromptOptions {
        model: parsed.text("model").map(str::to_owned),
        max_tokens: parsed.number("n-predict", 1, u32::MAX)?,
        temperature: parsed.number("temperature", 0.0, 100.0)?,
        top_p: parsed.number("top-p", 0.0, 1.0)?,
        seed: parsed.number("seed", 0, u64::from(u32::MAX))?,
        extra: parsed.text("extra").map(str::to_owned),
        ..PromptOptions::default()
    };
    Ok(Prompt {
        prompt: parsed.text("prompt").unwrap_or_default().to_owned(),
        is_chat: parsed.has("chat"),
        options,
        key: Arc::default(),
        keep_text,
    })
}

/// `--dry-run`: looks at the whole input, and says what is wrong and what it would take.
pub fn dry_run(parsed: &Parsed) -> Result<(), Error> {
    let options = RowOptions { defaults: defaults(parsed).map_err(Error::Usage)? };
    let path = parsed.text("input").ok_or_else(|| {
        Error::Usage("--dry-run looks at rows: --input FILE is needed".to_owned())
    })?;
    let mut faults = Vec::new();
    let mut count = 0u64;
    let on_fault = |fault: crate::batch::validate::Fault| {
        count += 1;
        if faults.len() < FAULTS_MAX {
            faults.push(fault);
        }
    };
    let found = if path == "-" {
        if std::io::stdin().is_terminal() {
            return Err(Error::Usage("--input -: rows are awaited from a pipe".to_owned()));
        }
        crate::batch::validate::validate_pipe(std::io::stdin(), &options, on_fault)
    } else {
        crate::batch::validate::validate(Path::new(path), &options, on_fault)
    };
    let found = found.map_err(|error| Error::Failed(error.to_string()))?;
    let fault = |fault: &crate::batch::validate::Fault| {
        let id = fault.custom_id.as_deref().map_or(String::new(), |id| format!(" ({id})"));
        format!("line {}{id}: {}", fault.line, fault.message)
    };
    let hours = found.work_us as f64 / 3.6e9;
    let text = if parsed.has("json") {
        let faults: Vec<Value> = faults
            .iter()
            .map(|f| json!({ "line": f.line, "custom_id": f.custom_id, "message": f.message }))
            .collect();
        format!(
            "{}\n",
            json!({
                "rows": found.rows, "bad": found.bad, "duplicates": found.duplicates,
                "bytes": found.bytes, "urls": found.urls, "models": found.models,
                "prompt_bytes": found.prompt_bytes, "tokens_max": found.tokens_max,
                "unbounded": found.unbounded, "slot_hours_estimate": hours, "faults": faults,
            })
        )
    } else {
        let mut text: String = faults.iter().map(|f| fault(f) + "\n").collect();
        if count > faults.len() as u64 {
            text += &format!("… and {} more\n", count - faults.len() as u64);
        }
        let list = |counts: &std::collections::BTreeMap<String, u64>| {
            let each = counts.iter().map(|(name, count)| {
                format!("{count} {}", if name.is_empty() { "(none named)" } else { name })
            });
            each.collect::<Vec<_>>().join(", ")
        };
        text += &format!(
            "{} rows in {} bytes: {} bad, {} with the custom_id of another\n\
             calls   {}\nmodels  {}\n\
             prompts {} bytes; answers at most {} tokens, and {} rows without a bound\n\
             about {hours:.1} hours of one slot on a small machine (20 ms a token); nothing is \
             measured yet\n",
            found.rows,
            found.bytes,
            found.bad,
            found.duplicates,
            list(&found.urls),
            list(&found.models),
            found.prompt_bytes,
            found.tokens_max,
            found.unbounded,
        );
        text
    };
    crate::cli::print(&text)?;
    if count > 0 { Err(Error::Reported) } else { Ok(()) }
}

/// Faults that are shown.
const FAULTS_MAX: usize = 100;
