//! `cnse bench rerun`: the command of a saved result, again.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::bench::page::quoted;
use crate::bench::record::Record;
use crate::cli::flags::{Flag, Parsed};
use crate::cli::{Error, FEATURES};
use crate::machine::environment::Environment;

pub const HELP: &str = "\
usage: cnse bench rerun FILE [--dry-run] [-- FLAGS]

Runs the command that a saved result holds, with the same flags and the same seed, and prints its
result as JSON. What is different on this machine is said first. FLAGS are added to the command, or
replace those of their name. It begins anew, and writes no file unless FLAGS name one: what the
first run wrote stays as it is.

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
    let command = again(&record.command, added);
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

/// The command with the flags that are added, of which each replaces its like. Files that the first
/// run wrote stay as they are, and its journal too, which would say that all is done.
fn again(command: &[String], added: &[&str]) -> Vec<String> {
    let name = |word: &str| {
        let word = word.strip_prefix("--").filter(|word| !word.is_empty())?;
        Some(word.split('=').next().unwrap_or(word).replace('_', "-"))
    };
    // Whether a flag has a value is seen by what stands behind it.
    let has_value = |at: usize| added.get(at + 1).is_some_and(|next| !next.starts_with("--"));
    let of_added = |(at, word): (usize, &&str)| Some((name(word)?, has_value(at)));
    let replaced: Vec<(String, bool)> = added.iter().enumerate().filter_map(of_added).collect();
    let of_files = ["output", "csv", "journal", "requests", "histogram-log", "errors"];
    let mut words = Vec::new();
    let (own, child) = match command.iter().position(|word| word == "--") {
        Some(at) => command.split_at(at),
        None => (command, &[][..]),
    };
    let mut rest = own.iter();
    while let Some(word) = rest.next() {
        let named = name(word);
        let like = replaced.iter().find(|(other, _)| named.as_ref() == Some(other));
        let of_file = named.is_some_and(|n| of_files.contains(&n.as_str()));
        match like.map(|(_, has_value)| *has_value).or(of_file.then_some(true)) {
            None => words.push(word.clone()),
            Some(true) if !word.contains('=') => drop(rest.next()),
            Some(_) => {}
        }
    }
    words.extend(added.iter().map(|&word| word.to_owned()));
    if !words.iter().any(|word| word == "--json") {
        words.push("--json".to_owned());
    }
    words.extend_from_slice(child);
    words
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_again() {
        let split = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (command, added, expected) in [
            ("client --iters 5 --json", "", "client --iters 5 --json"),
            ("bench storage --output a.json --iters 2", "", "bench storage --iters 2 --json"),
            ("client --iters 5 --seed=3", "--seed 4", "client --iters 5 --seed 4 --json"),
            (
                "bench latency --output a.json --requests=r --iters 5 --histogram-log h",
                "--output b.json",
                "bench latency --iters 5 --output b.json --json",
            ),
            (
                "bench sweep --output a.json --csv=b --json --vary x=1 -- client --output {x}",
                "--n_predict 3",
                "bench sweep --json --vary x=1 --n_predict 3 -- client --output {x}",
            ),
        ] {
            let added: Vec<&str> = added.split_whitespace().collect();
            assert_eq!(again(&split(command), &added), split(expected));
        }
    }
}
