//! `cnse bench`: measurements and experiments, one file for each.

mod gateway;
mod latency;
mod load;
mod rerun;
mod throughput;

use super::{Command, Run};

pub const HELP: &str = "\
usage: cnse bench COMMAND [FLAGS]

Measures from outside, as a client does. Every command prints one result for people, or with --json
one object that compare, report and rerun read.

examples:
  cnse bench latency --server http://127.0.0.1:8090 --iters 1000 --n_predict 64
  cnse bench rerun result.json
";

pub const COMMANDS: &[Command] = &[
    Command {
        name: "latency",
        summary: "times of requests under one load, closed or open loop",
        help: latency::HELP,
        flags: latency::FLAGS,
        run: Run::With(latency::run),
    },
    Command {
        name: "throughput",
        summary: "tokens/s and latency at each load, the knee, the Pareto frontier",
        help: throughput::HELP,
        flags: throughput::FLAGS,
        run: Run::With(throughput::run),
    },
    Command {
        name: "gateway",
        summary: "what a gateway costs, by pairs of runs; requests/s of the binary protocol",
        help: gateway::HELP,
        flags: gateway::FLAGS,
        run: Run::With(gateway::run),
    },
    Command {
        name: "rerun",
        summary: "runs what a saved result says, again",
        help: rerun::HELP,
        flags: rerun::FLAGS,
        run: Run::With(rerun::run),
    },
];
