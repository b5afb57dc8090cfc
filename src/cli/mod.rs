//! The command line: which subcommand, its flags, and what becomes of its result.
//!
//! Exit codes: 0 done, 1 failed, 2 the command line is wrong. Results go to stdout, everything else
//! to stderr.

mod client;
mod flags;
mod schedule;
mod search;
mod serve;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use self::flags::{Asked, Flag};
use crate::sched::launcher::Launched;

/// What this build has that not every build has.
pub const FEATURES: &[&str] = &[
    #[cfg(feature = "cuda")]
    "cuda",
    #[cfg(feature = "mpi")]
    "mpi",
];

/// Why a subcommand did not do what it was asked.
#[derive(Debug)]
pub enum Error {
    /// The command line is wrong.
    Usage(String),
    /// It failed.
    Failed(String),
    /// It failed, and has said so already.
    Reported,
    /// It ended with a code of its own, and has said why.
    Exit(ExitCode),
}

/// A subcommand.
struct Command {
    name: &'static str,
    summary: &'static str,
    /// Usage and examples, for people.
    help: &'static str,
    flags: &'static [Flag],
    run: fn(&flags::Parsed) -> Result<(), Error>,
}

const COMMANDS: [Command; 4] = [
    Command {
        name: "serve",
        summary: "the gateway: binary protocol and OpenAI-style HTTP on one port",
        help: serve::HELP,
        flags: serve::FLAGS,
        run: serve::run,
    },
    Command {
        name: "client",
        summary: "talks to it: one prompt streamed to the terminal, or a stress run",
        help: client::HELP,
        flags: client::FLAGS,
        run: client::run,
    },
    Command {
        name: "schedule",
        summary: "batch inference over ranks: threads, or processes under mpirun",
        help: schedule::HELP,
        flags: schedule::FLAGS,
        run: schedule::run,
    },
    Command {
        name: "search",
        summary: "nearest neighbours in a matrix that schedule --post wrote",
        help: search::HELP,
        flags: search::FLAGS,
        run: search::run,
    },
];

/// Runs the program; the whole of `main`.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(first) = args.next() else {
        eprint!("{}", overview());
        return ExitCode::from(2);
    };
    let first = first.to_string_lossy().into_owned();
    let rest: Vec<OsString> = args.collect();
    let result = match first.as_str() {
        "--help" | "-h" => print(&overview()),
        "--version" | "-V" => print(&version()),
        "help" => match rest.first().map(|name| name.to_string_lossy().into_owned()) {
            None => print(&overview()),
            Some(name) => find(&name).and_then(|command| print(&help(command))),
        },
        name => find(name).and_then(|command| run(command, rest)),
    };
    // Of the ranks that a launcher started, one says what is wrong with all of them.
    let is_first = !matches!(Launched::from_environment(), Ok(Some(Launched { rank: 1.., .. })));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Reported) => ExitCode::from(1),
        Err(Error::Exit(code)) => code,
        Err(Error::Failed(message)) => {
            eprintln!("cnse: error: {message}");
            ExitCode::from(1)
        }
        Err(Error::Usage(message)) => {
            if is_first {
                eprintln!("cnse: error: {message}");
            }
            ExitCode::from(2)
        }
    }
}

fn find(name: &str) -> Result<&'static Command, Error> {
    let known = COMMANDS.iter().find(|command| command.name == name);
    known.ok_or_else(|| {
        let near = COMMANDS.iter().map(|c| (flags::distance(name, c.name), c.name)).min();
        let hint = match near {
            Some((distance, near)) if distance <= 2 => format!("did you mean {near}?"),
            _ => "cnse --help lists those that there are".to_owned(),
        };
        Error::Usage(format!("there is no command {name}; {hint}"))
    })
}

fn run(command: &Command, args: Vec<OsString>) -> Result<(), Error> {
    let usage = |message| Error::Usage(format!("{message} (cnse {} --help)", command.name));
    match flags::parse(command.flags, args).map_err(usage)? {
        Asked::Help => print(&help(command)),
        Asked::Run(parsed) => (command.run)(&parsed),
    }
}

/// Writes to stdout. A reader who has seen enough and closed the pipe is no failure.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("writing to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

fn version() -> String {
    let features = if FEATURES.is_empty() { &["none"] } else { FEATURES };
    format!("cnse {}\nfeatures: {}\n", env!("CARGO_PKG_VERSION"), features.join(", "))
}

/// Sends log lines to stderr, from the level on that `--log` names.
fn log_level(parsed: &flags::Parsed) -> Result<(), Error> {
    let level = match parsed.text("log").unwrap_or("info") {
        "error" => log::LevelFilter::Error,
        "warn" => log::LevelFilter::Warn,
        "info" => log::LevelFilter::Info,
        "debug" => log::LevelFilter::Debug,
        other => {
            return Err(Error::Usage(format!("--log {other}: not error, warn, info or debug")));
        }
    };
    crate::log::init(level);
    Ok(())
}

fn overview() -> String {
    let mut text = "cnse: infrastructure for llama.cpp's llama-server on modest machines\n\n\
                    usage: cnse COMMAND [FLAGS]\n\ncommands:\n"
        .to_owned();
    for command in &COMMANDS {
        line(&mut text, &format!("  {:<8} {}", command.name, command.summary));
    }
    text.push_str(
        "\ncnse COMMAND --help tells the flags of each, with examples.\n\
         cnse --version tells the version and the features that are in.\n\n\
         example: a gateway in front of a llama-server, and a question\n  \
         cnse serve --backend llama --llama-url http://127.0.0.1:8090 --port 5050\n  \
         cnse client --server 127.0.0.1 --port 5050 --prompt \"Explain quantum computing\"\n",
    );
    text
}

/// Usage and examples as written, then the flags from the table.
fn help(command: &Command) -> String {
    let mut text = command.help.to_owned();
    text.push_str("\nflags:\n");
    for flag in command.flags {
        let name = match flag.value {
            "" => format!("--{}", flag.name),
            value => format!("--{} {value}", flag.name),
        };
        let mut lines = wrap(flag.doc, 64);
        // A long name has a line of its own.
        if name.len() > 29 {
            line(&mut text, &format!("  {name}"));
        } else {
            line(&mut text, &format!("  {name:<29} {}", lines.remove(0)));
        }
        for part in lines {
            line(&mut text, &format!("  {:<29} {part}", ""));
        }
    }
    text
}

fn line(text: &mut String, line: &str) {
    let written = writeln!(text, "{}", line.trim_end());
    debug_assert!(written.is_ok(), "a String takes every write");
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is always a line");
        if !last.is_empty() && last.len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_documented_once() {
        for command in &COMMANDS {
            let text = help(command);
            assert!(text.contains("\nusage:") || text.starts_with("usage:"), "{}", command.name);
            assert!(text.contains("examples:"), "{}", command.name);
            for (i, flag) in command.flags.iter().enumerate() {
                assert!(!flag.doc.is_empty() && !flag.name.contains('_'), "--{}", flag.name);
                assert!(command.flags[..i].iter().all(|other| other.name != flag.name));
                assert!(text.contains(&format!("  --{}", flag.name)));
            }
            assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        }
    }
}
