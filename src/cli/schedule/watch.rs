//! What a person sees while a job runs, and what is left of it afterwards.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::cli::flags::Parsed;
use crate::cli::{Error, print};
use crate::clock::Instant;
use crate::metrics::interval_log::IntervalLog;
use crate::sched::progress::{Progress, RankStatus, Whole};
use crate::sched::report::{JobReport, write_interval};
use crate::sched::tally::Tally;

/// Where results of the job as a whole go.
#[derive(Clone, Debug)]
pub struct Outputs {
    json: bool,
    csv: Option<PathBuf>,
    histogram_log: Option<PathBuf>,
    quiet: bool,
}

impl Outputs {
    /// As the flags say.
    pub fn new(parsed: &Parsed) -> Outputs {
        Outputs {
            json: parsed.has("json"),
            csv: parsed.text("csv").map(PathBuf::from),
            histogram_log: parsed.text("histogram-log").map(PathBuf::from),
            quiet: parsed.has("quiet"),
        }
    }

    /// Prints and writes what a job did.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn report(&self, report: &JobReport) -> Result<(), Error> {
        if let Some(path) = &self.csv {
            std::fs::write(path, report.to_csv())
                .map_err(|error| Error::Failed(format!("writing {path:?}: {error}")))?;
        }
        if self.json { print(&format!("{}\n", report.to_json())) } else { print(&report.to_text()) }
    }
}

/// Shows how far a job is, and keeps its times by the second.
pub struct Watch {
    progress: Option<Progress>,
    log: Option<(PathBuf, IntervalLog<BufWriter<File>>)>,
    logged: Duration,
    began: Option<Instant>,
    failure: Option<String>,
}

impl Watch {
    /// For the root of a job that begins now.
    ///
    /// # Errors
    /// The log cannot be made.
    pub fn open(outputs: &Outputs, whole: Whole) -> Result<Watch, String> {
        let terminal = std::io::stderr().is_terminal().then(columns);
        let log = match &outputs.histogram_log {
            None => None,
            Some(path) => {
                let open =
                    || IntervalLog::open(BufWriter::new(File::create(path)?), SystemTime::now());
                let log = open().map_err(|error| format!("writing {path:?}: {error}"))?;
                Some((path.clone(), log))
            }
        };
        let progress = (!outputs.quiet).then(|| Progress::new(whole, terminal));
        Ok(Watch { progress, log, logged: Duration::ZERO, began: None, failure: None })
    }

    /// The whole is known now, or has grown.
    pub fn set_whole(&mut self, whole: Whole) {
        if let Some(progress) = &mut self.progress {
            progress.set_whole(whole);
        }
    }

    /// Nothing can run, and why.
    pub fn set_waiting(&mut self, why: Option<&str>) {
        if let Some(progress) = &mut self.progress {
            progress.set_waiting(why);
        }
    }

    /// A second has passed.
    pub fn update(&mut self, now: Instant, ranks: &[RankStatus], since: &Tally) {
        let began = *self.began.get_or_insert(now);
        if let Some(progress) = &mut self.progress
            && progress.update(now, ranks)
        {
            // A terminal that is gone is no reason to stop.
            let _ = std::io::stderr().write_all(progress.render().as_bytes());
        }
        self.interval(now.since(began), since);
    }

    fn interval(&mut self, until: Duration, since: &Tally) {
        let Some((path, log)) = &mut self.log else { return };
        let length = until.saturating_sub(self.logged);
        if let Err(error) = write_interval(log, self.logged, length, since, "") {
            self.failure.get_or_insert(format!("writing {path:?}: {error}"));
        }
        self.logged = until;
    }

    /// Takes the last drawing away, and ends the log with what was counted since.
    ///
    /// # Errors
    /// The log could not be written.
    pub fn close(&mut self, rest: &Tally, wall: Duration) -> Result<(), String> {
        if let Some(progress) = &self.progress {
            let _ = std::io::stderr().write_all(progress.clear().as_bytes());
        }
        self.interval(wall.max(self.logged), rest);
        if let Some((path, log)) = &mut self.log
            && let Err(error) = log.flush()
        {
            self.failure.get_or_insert(format!("writing {path:?}: {error}"));
        }
        self.failure.take().map_or(Ok(()), Err)
    }
}

/// The width of the terminal, as `stty` tells it; 80 where it does not.
fn columns() -> u16 {
    let output = Command::new("stty").arg("size").stdin(Stdio::inherit()).output();
    let size = output.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    let columns = size.and_then(|size| size.split_whitespace().nth(1)?.parse().ok());
    columns.filter(|&columns| columns > 0).unwrap_or(80)
}
