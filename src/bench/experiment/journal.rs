//! What has been measured, on disk as soon as it has: an experiment that was interrupted or killed
//! goes on where it stopped.
//!
//! JSON lines: the plan, then a line for each run, synced, and one for each look at the hypotheses.
//! A line that a crash cut off is dropped, and its run made again.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bench::record::Run;

/// The version of the format.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Plan {
        version: u32,
        plan: Value,
    },
    Run(Box<Run>),
    /// Runs that there were when the hypotheses were judged.
    Look(usize),
}

/// A journal that is open, and belongs to this process alone.
#[derive(Debug)]
pub struct Journal {
    file: Flock<File>,
    path: PathBuf,
    /// What it held, without runs that failed: those are made again.
    pub runs: Vec<Run>,
    /// How many runs there were at each look.
    pub looks: Vec<usize>,
}

impl Journal {
    /// Opens it, or begins it with this plan.
    ///
    /// # Errors
    /// A sentence: the file cannot be used, another process has it, or it is of another plan.
    pub fn open(path: &Path, plan: &Value) -> Result<Journal, String> {
        let wrong = |what: &str| format!("the journal {path:?}: {what}");
        let failed = |error: std::io::Error| format!("the journal {path:?}: {error}");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(failed)?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| wrong("another process is writing it"))?;
        let mut journal =
            Journal { file, path: path.to_owned(), runs: Vec::new(), looks: Vec::new() };
        let mut text = String::new();
        journal.file.read_to_string(&mut text).map_err(failed)?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        journal.file.set_len(whole as u64).map_err(failed)?;
        journal.file.seek(SeekFrom::End(0)).map_err(failed)?;
        if whole == 0 {
            journal.write(&Line::Plan { version: VERSION, plan: plan.clone() })?;
            return Ok(journal);
        }
        for (number, line) in (1..).zip(text[..whole].lines()) {
            let line = serde_json::from_str(line)
                .map_err(|error| wrong(&format!("line {number}: {error}")))?;
            match line {
                Line::Plan { version: VERSION, plan: known } if number == 1 => {
                    journal.check(&known, plan)?;
                }
                Line::Run(run) if number > 1 => journal.runs.push(*run),
                Line::Look(runs) if number > 1 => journal.looks.push(runs),
                _ => return Err(wrong("it is none of this version of cnse")),
            }
        }
        journal.runs.retain(|run| run.failure.is_none());
        Ok(journal)
    }

    fn check(&self, known: &Value, plan: &Value) -> Result<(), String> {
        if known == plan {
            return Ok(());
        }
        let names = plan.as_object().into_iter().flatten();
        let differ = names.filter(|(name, value)| known.get(name) != Some(value));
        let differ: Vec<&str> = differ.map(|(name, _)| name.as_str()).collect();
        Err(format!(
            "the journal {:?} is of another experiment ({} differs); the same command goes on, \
             --journal names another file, or delete it to begin anew",
            self.path,
            differ.join(", ")
        ))
    }

    /// Adds a run; when this returns, it is on disk.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn add(&mut self, run: &Run) -> Result<(), String> {
        self.write(&Line::Run(Box::new(run.clone())))
    }

    /// Tells at which look this is, from 0, with so many runs there: one that sees no more than the
    /// last look saw is the same look.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn look(&mut self, runs: usize) -> Result<u32, String> {
        if self.looks.last() != Some(&runs) {
            self.write(&Line::Look(runs))?;
            self.looks.push(runs);
        }
        Ok((self.looks.len() - 1) as u32)
    }

    fn write(&mut self, line: &Line) -> Result<(), String> {
        let mut text = serde_json::to_string(line).expect("numbers and texts are JSON");
        text.push('\n');
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|error| format!("writing the journal {:?}: {error}", self.path))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            Scratch(std::env::temp_dir().join(format!("cnse-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn what_was_written_is_there_but_for_a_torn_line() {
        let scratch = Scratch::new("journal");
        let plan = json!({ "child": ["x"], "seed": 1 });
        let mut journal = Journal::open(&scratch.0, &plan).unwrap();
        let mut run = Run { repeat: 2, ..Run::default() };
        run.record.set("tokens_per_s", 5.5);
        journal.add(&run).unwrap();
        journal.add(&Run { failure: Some("it broke".to_owned()), ..Run::default() }).unwrap();
        assert_eq!((journal.look(1), journal.look(1), journal.look(2)), (Ok(0), Ok(0), Ok(1)));
        let busy = Journal::open(&scratch.0, &plan).unwrap_err();
        assert!(busy.ends_with("another process is writing it"), "{busy}");
        drop(journal);
        let mut file = OpenOptions::new().append(true).open(&scratch.0).unwrap();
        file.write_all(b"{\"run\":{\"sett").unwrap();
        drop(file);
        let mut journal = Journal::open(&scratch.0, &plan).unwrap();
        assert_eq!((&journal.runs[..], journal.looks.len()), (&[run.clone()][..], 2));
        journal.add(&run).unwrap();
        drop(journal);
        assert_eq!(Journal::open(&scratch.0, &plan).unwrap().runs.len(), 2);
        let other = json!({ "child": ["x"], "seed": 2 });
        let error = Journal::open(&scratch.0, &other).unwrap_err();
        assert!(error.contains("is of another experiment (seed differs)"), "{error}");
    }

    #[test]
    fn what_is_no_journal_is_said() {
        let scratch = Scratch::new("no-journal");
        for text in ["{}\n", "x\n", "{\"look\":1}\n"] {
            std::fs::write(&scratch.0, text).unwrap();
            assert!(Journal::open(&scratch.0, &json!({})).is_err(), "{text}");
        }
        let folder = std::env::temp_dir();
        assert!(Journal::open(&folder, &json!({})).unwrap_err().starts_with("the journal "));
    }
}
