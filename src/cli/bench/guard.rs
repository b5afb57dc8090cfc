//! `cnse bench guard`: a command that ends when its starter does.

use std::process::ExitCode;

use crate::bench::experiment::guard;
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};

pub const HELP: &str = "\
usage: cnse bench guard -- COMMAND

Runs a command, and ends it and all that came of it when stdin closes or on SIGTERM, SIGINT or
SIGHUP. sweep starts everything through it, so that nothing outlives an experiment that was
killed. The exit code is the command's.

examples:
  cnse bench guard -- llama-server -m gemma-2-2b-it-Q4_K_M.gguf --port 8090
";

pub const FLAGS: &[Flag] = &[Flag::words("-- COMMAND", "the command, with its flags")];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    if parsed.texts("").is_empty() {
        return Err(Error::Usage("a command is needed: cnse bench guard -- COMMAND".to_owned()));
    }
    match guard::run(&parsed.texts("")).map_err(Error::Failed)? {
        0 => Ok(()),
        code => Err(Error::Exit(ExitCode::from(code))),
    }
}
