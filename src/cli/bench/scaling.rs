//! `cnse bench scaling`: the scheduler on 1 to N ranks, from one command.
//!
//! Each run is `cnse schedule` in a process of its own, as its users run it. Under mpirun or srun
//! the first rank makes the runs and starts each through a launcher of its own; the others leave
//! before MPI is touched, so that their places are free.

use std::fs;

use serde_json::{Value, json};

use super::runner::{self, Runner};
use crate::bench::experiment::space::Settings;
use crate::bench::experiment::{order, template};
use crate::bench::scaling::{self, Mode, Step};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::sched::launcher::{Launched, Launcher};

pub const HELP: &str = "\
usage: cnse bench scaling --simulate TASKS [FLAGS]
       cnse bench scaling --server URL --prompt TEXT [FLAGS]
       mpirun -np N cnse bench scaling …

How much faster the same work is done by more ranks (strong scaling), how much more work is done in
the same time (weak scaling), and what it is worth that ranks take work from one another. Each
setting is run --repeat times, interleaved and in random order. Ranks are threads; with --launcher,
or under mpirun or srun, processes: the command is given once, and makes runs of 1 to N ranks.

examples:
  cnse bench scaling --simulate lognormal:20ms,1 --iters 400 --ranks 1,2,4,8 --skew all-on-one
  cnse bench scaling --server http://127.0.0.1:8090 --prompt Hi --iters 200 --ranks 1,2,4
  mpirun -np 8 cnse bench scaling --server http://127.0.0.1:8090 --prompt Hi --iters 1000 \\
    --json > scaling.json && cnse bench report scaling.json --html scaling.html

environment:
  CNSE_API_KEY   sent to the servers
";

pub const FLAGS: &[Flag] = &[
    Flag::new("simulate", "TASKS", "tasks are sleeps, as of cnse schedule: lognormal:20ms,1 …"),
    Flag::new("server", "URL[,URL]", "where requests go: http://host:port or cnse://host:port"),
    Flag::new("prompt", "TEXT", "what is asked, each time (What is AI?)"),
    Flag::new("n-predict", "N", "tokens of an answer at most (64)"),
    Flag::new("iters", "N", "tasks of strong scaling, and of each rank in weak scaling (200)"),
    Flag::new("ranks", "N[,N]", "how many (1,2,4 …, up to mpirun's -np or this machine's cores)"),
    Flag::new("mode", "MODES", "strong,weak: the same work for all, more for more (strong)"),
    Flag::new("steal", "on,off", "ranks take work from others, or not, or both in turn (on,off)"),
    Flag::new("skew", "START", "who begins with the tasks: even, or all-on-one (even)"),
    Flag::new("inflight", "N", "tasks at once of each rank (4)"),
    Flag::new("repeat", "N", "runs of each setting (3)"),
    Flag::new(
        "launcher",
        "TEMPLATE",
        "what starts a run's ranks, as 'mpirun --hostfile hosts -np {ranks}' (threads; under a \
         launcher that one)",
    ),
    runner::RUN_TIMEOUT,
    Flag::new("output", "FILE", "the result with all runs, for report, compare and rerun"),
    runner::JOURNAL,
    Flag::new("seed", "N", "of the order and of --simulate (0)"),
    Flag::switch("json", "the result as one JSON object on stdout"),
    Flag::switch("quiet", "no progress on stderr"),
];

/// Ranks of one run.
const RANKS_MAX: u32 = 1024;
/// What launchers tell the processes that they start. A launcher that is itself started by such a
/// process must not see it: it would take itself for a rank.
const LAUNCHERS_WORDS: [&str; 6] = ["OMPI_", "PMIX_", "PMI_", "PRTE_", "HYDRA_", "HYDI_"];
/// What people set for Open MPI, and is to stay.
const PEOPLES_WORDS: &str = "OMPI_ALLOW_RUN_AS_ROOT";

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let launched = Launched::from_environment().map_err(Error::Failed)?;
    let scaling = Scaling::new(parsed, launched.as_ref()).map_err(Error::Usage)?;
    if launched.as_ref().is_some_and(|launched| launched.rank > 0) {
        return Ok(());
    }
    let child = scaling.child(parsed);
    let child: Vec<&str> = child.iter().map(String::as_str).collect();
    let plan = json!({ "settings": scaling.settings, "seed": scaling.seed,
                       "launcher": scaling.launcher });
    let mut runner = Runner::open(parsed, &child, plan)?;
    if let Some(launcher) = &scaling.launcher {
        runner.launched_by(launcher.clone());
    }
    let of = scaling.settings.len() * scaling.repeat as usize;
    for block in 0..scaling.repeat {
        for which in order::of_block(scaling.settings.len(), block, scaling.seed) {
            let settings = &scaling.settings[which];
            if !runner.has(settings, block) {
                runner.run(settings, block, of)?;
            }
        }
    }
    let mut record = runner.record(scaling.seed);
    let steps = scaling::steps(&record.runs);
    record.set("scaling", steps.iter().map(Step::to_json).collect::<Vec<Value>>());
    if let Some(path) = parsed.text("output") {
        runner::write(path, &record.to_json())?;
    }
    if parsed.has("json") {
        crate::cli::print(&record.to_json())?;
    } else {
        let noise = record.environment.as_ref().and_then(|found| found.noise.as_ref());
        let warning = noise.and_then(|noise| noise.warning());
        let warning = warning.map_or(String::new(), |warning| format!("doubtful: {warning}\n"));
        let shared = if parsed.has("server") {
            "all ranks ask the same servers: where those are busy, more ranks make nothing faster\n"
        } else {
            ""
        };
        crate::cli::print(&format!("{}{shared}{warning}", scaling::text(&steps)))?;
    }
    if record.errors > 0 { Err(Error::Reported) } else { Ok(()) }
}

/// What is to be measured.
#[derive(Debug)]
struct Scaling {
    settings: Vec<Settings>,
    repeat: u32,
    seed: u64,
    launcher: Option<Vec<String>>,
}

impl Scaling {
    fn new(parsed: &Parsed, launched: Option<&Launched>) -> Result<Scaling, String> {
        if parsed.has("simulate") == parsed.has("server") {
            return Err("--simulate TASKS or --server URL is needed, and not both".to_owned());
        }
        if let Some(flag) = ["prompt", "n-predict"].into_iter().find(|flag| parsed.has(flag))
            && parsed.has("simulate")
        {
            return Err(format!("--{flag} is for --server; simulated tasks ask nothing"));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let most = launched.map_or(cores.max(4) as u32, |launched| launched.size);
        let ranks = ranks(parsed.text("ranks"), most)?;
        if let (Some(launched), Some(last)) = (launched, ranks.last())
            && *last > launched.size
        {
            let size = launched.size;
            return Err(format!("--ranks {last}: {} started {size}", launched.launcher));
        }
        let modes = list(parsed, "mode", "strong", &["strong", "weak"])?;
        let steals = list(parsed, "steal", "on,off", &["on", "off"])?;
        let iters = parsed.number("iters", 1, 1 << 24)?.unwrap_or(200_u64);
        let mut settings = Vec::new();
        for mode in &modes {
            for &ranks in &ranks {
                let is_weak = Mode::find(mode) == Some(Mode::Weak);
                let tasks = if is_weak { iters * u64::from(ranks) } else { iters };
                // Alone there is nobody to take from; the run is the base of both lines.
                settings.extend(steals.iter().map(|stealing| {
                    let pairs = json!({ "mode": mode, "ranks": ranks, "stealing": stealing,
                                        "tasks": tasks });
                    pairs.as_object().cloned().unwrap_or_default()
                }));
            }
        }
        let launcher = match (parsed.text("launcher"), launched) {
            (Some(text), _) => Some(template::words(text).map_err(|e| format!("--launcher {e}"))?),
            (None, Some(launched)) => Some(own_launcher(launched.launcher)),
            (None, None) => None,
        };
        if let Some(words) = &launcher
            && !template::mentions(words, "ranks")
        {
            return Err("--launcher: {ranks} stands nowhere in it".to_owned());
        }
        Ok(Scaling {
            settings,
            repeat: parsed.number("repeat", 1, 10_000)?.unwrap_or(3),
            seed: parsed.number("seed", 0, u64::MAX)?.unwrap_or(0),
            launcher: launcher.map(|words| [without_launchers_words(), words].concat()),
        })
    }

    /// The command of a run; names in braces are settings.
    fn child(&self, parsed: &Parsed) -> Vec<String> {
        let mut words = vec!["schedule".to_owned()];
        let mut put =
            |name: &str, value: &str| words.extend([format!("--{name}"), value.to_owned()]);
        match parsed.text("simulate") {
            Some(tasks) => put("simulate", tasks),
            None => {
                put("server", parsed.text("server").unwrap_or_default());
                put("prompt", parsed.text("prompt").unwrap_or("What is AI?"));
                put("n-predict", parsed.text("n-predict").unwrap_or("64"));
            }
        }
        put("iters", "{tasks}");
        put("steal", "{stealing}");
        put("skew", parsed.text("skew").unwrap_or("even"));
        put("inflight", parsed.text("inflight").unwrap_or("4"));
        put("seed", &self.seed.to_string());
        if self.launcher.is_none() {
            put("ranks", "{ranks}");
        }
        words.extend(["--quiet", "--log"].map(str::to_owned));
        words.extend(["warn", "--json"].map(str::to_owned));
        words
    }
}

/// The numbers that were given, or 1, 2, 4 … and the most.
fn ranks(given: Option<&str>, most: u32) -> Result<Vec<u32>, String> {
    let mut ranks = match given {
        None => {
            let doubles = std::iter::successors(Some(1u32), |n| n.checked_mul(2));
            doubles.take_while(|n| *n < most).chain([most]).collect()
        }
        Some(text) => {
            let number = |part: &str| match part.trim().parse() {
                Ok(number) if (1..=RANKS_MAX).contains(&number) => Ok(number),
                _ => Err(format!("--ranks {text}: not numbers from 1 to {RANKS_MAX}, as 1,2,4")),
            };
            text.split(',').map(number).collect::<Result<Vec<u32>, String>>()?
        }
    };
    ranks.sort_unstable();
    ranks.dedup();
    Ok(ranks)
}

fn list(parsed: &Parsed, name: &str, default: &str, known: &[&str]) -> Result<Vec<String>, String> {
    let text = parsed.text(name).unwrap_or(default);
    let mut found: Vec<String> = Vec::new();
    for part in text.split(',').map(str::trim) {
        if !known.contains(&part) {
            return Err(format!("--{name} {text}: not {}", known.join(" or ")));
        }
        if !found.iter().any(|other| other == part) {
            found.push(part.to_owned());
        }
    }
    Ok(found)
}

/// How the launcher that started this process starts others.
fn own_launcher(launcher: Launcher) -> Vec<String> {
    let words: &[&str] = match launcher {
        // The outer mpirun was let have as many ranks; the inner one must not count cores again.
        Launcher::OpenMpi | Launcher::Pmix => {
            &["mpirun", "--oversubscribe", "--bind-to", "none", "-np", "{ranks}"]
        }
        Launcher::Hydra => &["mpiexec", "-n", "{ranks}"],
        Launcher::SrunPmix => &["srun", "--overlap", "--mpi=pmix", "-n", "{ranks}"],
        Launcher::SrunPmi => &["srun", "--overlap", "--mpi=pmi2", "-n", "{ranks}"],
    };
    words.iter().map(|&word| word.to_owned()).collect()
}

/// `env -u NAME …` for all that a launcher has told this process.
fn without_launchers_words() -> Vec<String> {
    // The kernel's own copy: names that are no text are none of a launcher's.
    let environment = fs::read("/proc/self/environ").unwrap_or_default();
    let names = environment.split(|byte| *byte == 0).filter_map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        pair.split_once('=').map(|(name, _)| name.to_owned())
    });
    let told = |name: &String| {
        LAUNCHERS_WORDS.iter().any(|head| name.starts_with(head))
            && !name.starts_with(PEOPLES_WORDS)
    };
    let mut words = vec!["env".to_owned()];
    for name in names.filter(told) {
        words.extend(["-u".to_owned(), name]);
    }
    words
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::flags::{self, Asked};

    fn scaling(args: &[&str], launched: Option<Launched>) -> Result<Scaling, String> {
        let args = args.iter().map(OsString::from).collect();
        let Asked::Run(parsed) = flags::parse(FLAGS, args)? else { panic!() };
        Scaling::new(&parsed, launched.as_ref())
    }

    #[test]
    fn settings_are_a_grid_and_weak_work_grows() {
        let args = ["--simulate", "fixed:1ms", "--iters", "10", "--ranks", "4,1", "--mode"];
        let found = scaling(&[&args[..], &["strong,weak"]].concat(), None).unwrap();
        let tasks: Vec<u64> = found.settings.iter().filter_map(|s| s["tasks"].as_u64()).collect();
        assert_eq!(tasks, [10, 10, 10, 10, 10, 10, 40, 40]);
        assert_eq!((found.repeat, found.launcher), (3, None));
    }

    #[test]
    fn under_a_launcher_ranks_are_up_to_its_size() {
        let mpi = |size| Some(Launched { size, rank: 0, launcher: Launcher::OpenMpi });
        let found = scaling(&["--simulate", "fixed:1ms", "--steal", "on"], mpi(6)).unwrap();
        let ranks: Vec<u64> = found.settings.iter().filter_map(|s| s["ranks"].as_u64()).collect();
        assert_eq!(ranks, [1, 2, 4, 6]);
        let launcher = found.launcher.unwrap();
        assert_eq!((launcher[0].as_str(), launcher.last().unwrap().as_str()), ("env", "{ranks}"));
        let error = scaling(&["--simulate", "fixed:1ms", "--ranks", "8"], mpi(6)).unwrap_err();
        assert_eq!(error, "--ranks 8: Open MPI's mpirun started 6");
    }

    #[test]
    fn faults_are_sentences() {
        let task = ["--simulate", "fixed:1ms"];
        for (args, message) in [
            (&[][..], "--simulate TASKS or --server URL is needed, and not both"),
            (&["--ranks", "0"], "--ranks 0: not numbers from 1 to 1024, as 1,2,4"),
            (&["--mode", "both"], "--mode both: not strong or weak"),
            (&["--steal", "on,x"], "--steal on,x: not on or off"),
            (&["--prompt", "x"], "--prompt is for --server; simulated tasks ask nothing"),
            (&["--launcher", "mpirun -np 4"], "--launcher: {ranks} stands nowhere in it"),
        ] {
            let all = if args.is_empty() { vec![] } else { [&task[..], args].concat() };
            assert_eq!(scaling(&all, None).unwrap_err(), message);
        }
    }
}
