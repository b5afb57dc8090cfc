//! `cnse bench rerun`: the command of a saved result, again.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::bench::environment::Environment;
use crate::bench::record::Record;
use crate::cli::flags::{Flag, Parsed};
use crate::cli::{Error, FEATURES};

pub const HELP: &str = "\
usage: cnse bench rerun FILE [--dry-run] [-- FLAGS]

Runs the command that a saved result holds, with the same flags and the same seed, and prints its
result. What is different on this machine is said first. FLAGS are added to the command.

examples:
  cnse bench rerun monday.json > tuesday.json
  cnse bench rerun monday.json --dry-run
";

pub const FLAGS: &[Flag] = &[
    Flag::words("FILE", "the result, as --json printed it; then flags that are added"),
    Flag::switch("dry-run", "print the command, and do not run it"),
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let words = parsed.texts("");
    let Some((file, added)) = words.split_first() else {
        return Err(Error::Usage("FILE is needed: a result that --json printed".to_owned()));
    };
    let record = Record::read(Path::new(file)).map_err(Error::Failed)?;
    if record.command.is_empty() {
        return Err(Error::Failed(format!("{file:?} does not say by what command it came")));
    }
    if record.command.iter().take(2).eq(["bench", "rerun"]) {
        return Err(Error::Failed(format!("{file:?} says it came by a rerun, not of what")));
    }
    let mut command = record.command.clone();
    command.extend(added.iter().map(|&word| word.to_owned()));
    if parsed.has("dry-run") {
        return crate::cli::print(&format!("cnse {}\n", quoted(&command)));
    }
    if let Some(then) = &record.environment {
        let now = Environment::of_this_machine(FEATURES);
        for difference in now.differences(&without_what_the_run_adds(then)) {
            eprintln!("different now: {difference}");
        }
    }
    if record.cnse != env!("CARGO_PKG_VERSION") {
        eprintln!("different now: cnse: {} / {}", env!("CARGO_PKG_VERSION"), record.cnse);
    }
    let own = std::env::current_exe()
        .map_err(|error| Error::Failed(format!("finding this program's file: {error}")))?;
    let error = Command::new(own).args(&command).exec();
    Err(Error::Failed(format!("running cnse {}: {error}", quoted(&command))))
}

/// What a run finds out of servers and models is known only after it.
fn without_what_the_run_adds(then: &Environment) -> Environment {
    Environment {
        servers: Default::default(),
        models: Default::default(),
        other: Default::default(),
        ..then.clone()
    }
}

/// As one would type it into a shell.
pub fn quoted(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@%+".contains(c);
    let quote = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        let words = ["--prompt", "What is AI?", "", "it's", "a=b"].map(str::to_owned);
        assert_eq!(quoted(&words), "--prompt 'What is AI?' '' 'it'\\''s' a=b");
    }
}
