//! `--simulate`: tasks that only take time, on real ranks.

use std::fs;
use std::sync::Arc;

use super::ranks::{self, Job, Start};
use super::watch::Outputs;
use super::{Common, all_on_one, micros};
use crate::cli::Error;
use crate::cli::flags::{Parsed, duration};
use crate::net::Waker;
use crate::sched::collect::{Fault, Staged};
use crate::sched::fabric::Fabric;
use crate::sched::sleep::SleepFactory;
use crate::sched::tasks::{Rank, Span};
use crate::sched::workload::{Distribution, Workload, WorkloadSource};

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let common = Common::new(parsed).map_err(Error::Usage)?;
    let workload = Arc::new(workload(parsed)?);
    let tasks = tasks(parsed, &workload).map_err(Error::Usage)?;
    let all_on_one = all_on_one(parsed).map_err(Error::Usage)?;
    let slots = parsed.number("inflight", 1, 65_536).map_err(Error::Usage)?.unwrap_or(4);
    let longest_first = common.longest_first && workload.has_estimates();
    let job = SimulateJob {
        common: Common { longest_first, ..common },
        workload,
        tasks,
        all_on_one,
        slots,
    };
    ranks::run(&job, &Outputs::new(parsed))
}

/// Sleeps.
struct SimulateJob {
    common: Common,
    workload: Arc<Workload>,
    tasks: u64,
    all_on_one: bool,
    slots: usize,
}

impl Job for SimulateJob {
    type Source = WorkloadSource;
    type Factory = SleepFactory;
    type Held = ();

    fn common(&self) -> &Common {
        &self.common
    }

    fn start<F: Fabric>(
        &self,
        fabric: &mut Staged<'_, F>,
        _: &Waker,
    ) -> Result<Start<WorkloadSource, SleepFactory, ()>, Fault> {
        let spans = match (self.all_on_one, fabric.rank()) {
            (true, Rank(0)) => vec![Span::numbers(0, self.tasks)],
            (true, _) => vec![],
            (false, Rank(rank)) => {
                let stride = fabric.topology().size();
                vec![Span { start: u64::from(rank), end: self.tasks, stride }]
            }
        };
        // All begin at once: what is measured is the work, not the start of processes.
        let told = fabric.gather(Vec::new())?;
        fabric.scatter(told)?;
        Ok(Start {
            source: WorkloadSource::new(self.workload.clone()),
            factory: SleepFactory { workload: self.workload.clone(), slots: self.slots },
            held: (),
            spans,
            whole: Some(self.tasks),
            bytes: false,
            reads: true,
        })
    }
}

/// How many tasks there are.
pub fn tasks(parsed: &Parsed, workload: &Workload) -> Result<u64, String> {
    let default = match &workload.distribution {
        Distribution::Trace(times) => times.len() as u64,
        _ => 1,
    };
    Ok(parsed.number("iters", 1, u64::from(u32::MAX))?.unwrap_or(default))
}

/// The workload that the flags tell of.
pub fn workload(parsed: &Parsed) -> Result<Workload, Error> {
    let text = parsed.text("simulate").unwrap_or("fixed:10ms");
    let seed = parsed.number("seed", 0, u64::MAX).map_err(Error::Usage)?.unwrap_or(0);
    let estimate_sigma = match parsed.text("estimate-error") {
        None | Some("none") => None,
        Some(_) => parsed.number("estimate-error", 0.0, 10.0).map_err(Error::Usage)?,
    };
    let distribution = distribution(text)?;
    Ok(Workload { distribution, estimate_sigma, seed })
}

fn distribution(text: &str) -> Result<Distribution, Error> {
    let wrong = |what: &str| Error::Usage(format!("--simulate {text}: {what}"));
    let (kind, parameters) = text.split_once(':').ok_or_else(|| {
        wrong(
            "not fixed:T, exponential:MEAN, lognormal:MEAN,SIGMA, pareto:MEAN,SHAPE or trace:FILE",
        )
    })?;
    if kind == "trace" {
        return trace(parameters).map_err(Error::Failed);
    }
    let (first, second) = match parameters.split_once(',') {
        Some((first, second)) => (first, Some(second)),
        None => (parameters, None),
    };
    let mean = micros(duration(first).map_err(&wrong)?);
    let second = match second.map(str::parse::<f64>) {
        None => None,
        Some(Ok(number)) => Some(number),
        Some(Err(_)) => return Err(wrong("its second number is none")),
    };
    match (kind, second) {
        ("fixed", None) => Ok(Distribution::Fixed(mean)),
        ("exponential", None) => Ok(Distribution::Exponential(mean)),
        ("lognormal", Some(sigma)) if (0.0..=4.0).contains(&sigma) => {
            Ok(Distribution::LogNormal(mean, sigma))
        }
        ("lognormal", _) => Err(wrong("lognormal needs a mean and a sigma from 0 to 4")),
        ("pareto", Some(shape)) if shape > 1.0 && shape <= 100.0 => {
            Ok(Distribution::Pareto(mean, shape))
        }
        ("pareto", _) => Err(wrong("pareto needs a mean and a shape over 1")),
        ("fixed" | "exponential", Some(_)) => Err(wrong("one time is enough")),
        _ => Err(wrong("not fixed, exponential, lognormal, pareto or trace")),
    }
}

/// A time a line; a bare number is of milliseconds. Blank lines and `#` are passed over.
fn trace(path: &str) -> Result<Distribution, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("reading {path:?}: {error}"))?;
    let mut times = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let us = match line.parse::<f64>() {
            Ok(ms) if ms >= 0.0 => ms * 1e3,
            _ => micros(duration(line).map_err(|error| format!("{path}:{number}: {error}"))?),
        };
        times.push(us.min(f64::from(u32::MAX)) as u32);
    }
    if times.is_empty() {
        return Err(format!("{path:?} holds no time"));
    }
    Ok(Distribution::Trace(Arc::new(times)))
}
