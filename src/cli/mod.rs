//! The command line: which subcommand, its flags, and what becomes of its result.
//!
//! Exit codes: 0 done, 1 failed, 2 the command line is wrong. Results go to stdout, everything else
//! to stderr.

mod bench;
mod client;
mod flags;
mod gpu;
mod schedule;
mod search;
mod serve;
mod store;

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
    #[cfg(feature = "tls")]
    "tls",
    #[cfg(feature = "png")]
    "png",
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
#[derive(Clone, Copy)]
struct Command {
    name: &'static str,
    summary: &'static str,
    /// Usage and examples, for people.
    help: &'static str,
    flags: &'static [Flag],
    run: Run,
}

/// What becomes of a subcommand.
#[derive(Clone, Copy)]
enum Run {
    /// It is run with its flags.
    With(fn(&flags::Parsed) -> Result<(), Error>),
    /// Its next word says which of these.
    Of(&'static [Command]),
}

const COMMANDS: &[Command] = &[
    Command {
        name: "serve",
        summary: "the gateway: binary protocol and OpenAI-style HTTP on one port",
        help: serve::HELP,
        flags: serve::FLAGS,
        run: Run::With(serve::run),
    },
    Command {
        name: "client",
        summary: "talks to it: one prompt streamed to the terminal, or a stress run",
        help: client::HELP,
        flags: client::FLAGS,
        run: Run::With(client::run),
    },
    Command {
        name: "schedule",
        summary: "batch inference over ranks: threads, or processes under mpirun",
        help: schedule::HELP,
        flags: schedule::FLAGS,
        run: Run::With(schedule::run),
    },
    Command {
        name: "bench",
        summary: "measurements and experiments; cnse bench --help lists them",
        help: bench::HELP,
        flags: &[],
        run: Run::Of(bench::COMMANDS),
    },
    Command {
        name: "put",
        summary: "stores a model: blobs by SHA-256, a manifest, a tag",
        help: store::put::HELP,
        flags: store::put::FLAGS,
        run: Run::With(store::put::run),
    },
    Command {
        name: "get",
        summary: "fetches a model, once a machine, and checks every byte",
        help: store::get::HELP,
        flags: store::get::FLAGS,
        run: Run::With(store::get::run),
    },
    Command {
        name: "ls",
        summary: "the models that are stored",
        help: store::list::HELP,
        flags: store::list::FLAGS,
        run: Run::With(store::list::run),
    },
    Command {
        name: "show",
        summary: "a model's manifest, and what its header says",
        help: store::show::HELP,
        flags: store::show::FLAGS,
        run: Run::With(store::show::run),
    },
    Command {
        name: "tag",
        summary: "another name for a stored model",
        help: store::tag::HELP,
        flags: store::tag::FLAGS,
        run: Run::With(store::tag::run),
    },
    Command {
        name: "rm",
        summary: "removes names; gc removes what they named",
        help: store::rm::HELP,
        flags: store::rm::FLAGS,
        run: Run::With(store::rm::run),
    },
    Command {
        name: "verify",
        summary: "checks what is stored, and mends it part by part",
        help: store::verify::HELP,
        flags: store::verify::FLAGS,
        run: Run::With(store::verify::run),
    },
    Command {
        name: "gc",
        summary: "removes what no name leads to",
        help: store::gc::HELP,
        flags: store::gc::FLAGS,
        run: Run::With(store::gc::run),
    },
    Command {
        name: "cache",
        summary: "what this machine has fetched: ls, pin, unpin, prune",
        help: store::cache::HELP,
        flags: store::cache::FLAGS,
        run: Run::With(store::cache::run),
    },
    Command {
        name: "gpu",
        summary: "what the GPU layer found, and a self-test",
        help: gpu::HELP,
        flags: gpu::FLAGS,
        run: Run::With(gpu::run),
    },
    Command {
        name: "search",
        summary: "nearest neighbours in a matrix that schedule --post wrote",
        help: search::HELP,
        flags: search::FLAGS,
        run: Run::With(search::run),
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
            Some(name) => find(COMMANDS, "", &name).and_then(|command| {
                let words = rest[1..].iter().map(|word| word.to_string_lossy().into_owned());
                run(command, command.name, words.map(OsString::from).chain(["--help".into()]))
            }),
        },
        name => find(COMMANDS, "", name).and_then(|command| run(command, name, rest)),
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

fn find(commands: &'static [Command], of: &str, name: &str) -> Result<&'static Command, Error> {
    let known = commands.iter().find(|command| command.name == name);
    known.ok_or_else(|| {
        let near = commands.iter().map(|c| (flags::distance(name, c.name), c.name)).min();
        let hint = match near {
            Some((distance, near)) if distance <= 2 => format!("did you mean {near}?"),
            _ => format!("cnse {of}--help lists those that there are"),
        };
        Error::Usage(format!("there is no command {of}{name}; {hint}"))
    })
}

/// Runs a command, whose whole name is `path`.
fn run(
    command: &'static Command,
    path: &str,
    args: impl IntoIterator<Item = OsString>,
) -> Result<(), Error> {
    let mut args = args.into_iter();
    match command.run {
        Run::With(run) => {
            let usage = |message| Error::Usage(format!("{message} (cnse {path} --help)"));
            match flags::parse(command.flags, args.collect()).map_err(usage)? {
                Asked::Help => print(&help(command)),
                Asked::Run(parsed) => run(&parsed),
            }
        }
        Run::Of(commands) => match args.next().map(|word| word.to_string_lossy().into_owned()) {
            None => {
                eprint!("{}", help(command));
                Err(Error::Exit(ExitCode::from(2)))
            }
            Some(word) if word == "--help" || word == "-h" => print(&help(command)),
            Some(word) => {
                let found = find(commands, &format!("{path} "), &word)?;
                run(found, &format!("{path} {word}"), Box::new(args) as Box<dyn Iterator<Item = _>>)
            }
        },
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
    for command in COMMANDS {
        line(&mut text, &format!("  {:<8} {}", command.name, command.summary));
    }
    text.push_str(
        "\ncnse COMMAND --help tells the flags of each, with examples.\n\
         cnse --version tells the version and the features that are in.\n\n\
         example: a gateway in front of a llama-server, and a question\n  \
         cnse serve --backend llama --llama-url http://127.0.0.1:8090 --port 5050\n  \
         cnse client --server 127.0.0.1 --port 5050 --prompt \"Explain quantum computing\"\n\n\
         example: a model is stored, and served where it is needed\n  \
         cnse put --file gemma-2-2b-it-Q4_K_M.gguf\n  \
         llama-server -m \"$(cnse get gemma-2-2b-it:Q4_K_M --path)\" --port 8090\n",
    );
    text
}

/// Usage and examples as written, then the flags from the table.
fn help(command: &Command) -> String {
    let mut text = command.help.to_owned();
    if let Run::Of(commands) = command.run {
        text.push_str("\ncommands:\n");
        for command in commands {
            line(&mut text, &format!("  {:<11} {}", command.name, command.summary));
        }
        return text;
    }
    text.push_str("\nflags:\n");
    for flag in command.flags {
        let name = match flag.value {
            value if flag.is_operand => value.to_owned(),
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
        let mut commands = COMMANDS.to_vec();
        while let Some(command) = commands.pop() {
            let text = help(&command);
            assert!(text.contains("\nusage:") || text.starts_with("usage:"), "{}", command.name);
            assert!(text.contains("examples:"), "{}", command.name);
            for (i, flag) in command.flags.iter().enumerate() {
                assert!(!flag.doc.is_empty() && !flag.name.contains('_'), "--{}", flag.name);
                assert!(command.flags[..i].iter().all(|other| other.name != flag.name));
                let shown = if flag.is_operand { flag.value } else { flag.name };
                assert!(text.contains(shown), "{shown}");
            }
            assert!(text.lines().all(|line| line.len() <= 100), "{text}");
            if let Run::Of(inner) = command.run {
                commands.extend(inner);
            }
        }
    }
}
