//! `cnse bench`: measurements and experiments, one file for each.

mod gpu;
mod rerun;

use super::{Command, Run};

pub const HELP: &str = "\
usage: cnse bench COMMAND [FLAGS]

Measures from outside, as a client does. Every command prints one result for people, or with --json
one object that compare, report and rerun read.

examples:
  cnse bench gpu
  cnse bench rerun result.json
";

pub const COMMANDS: &[Command] = &[
    Command {
        name: "gpu",
        summary: "kernels, launches, transfers, overlap and memory of an NVIDIA card",
        help: gpu::HELP,
        flags: gpu::FLAGS,
        run: Run::With(gpu::run),
    },
    Command {
        name: "rerun",
        summary: "runs what a saved result says, again",
        help: rerun::HELP,
        flags: rerun::FLAGS,
        run: Run::With(rerun::run),
    },
];
