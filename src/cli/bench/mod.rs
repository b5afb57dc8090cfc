//! `cnse bench`: measurements and experiments, one file for each.

mod asked;
mod compare;
mod gateway;
mod gpu;
mod guard;
mod interrupt;
mod latency;
mod load;
mod measured;
mod report;
mod rerun;
mod runner;
mod scaling;
mod scratch;
mod storage;
mod sweep;
mod throughput;

use super::{Command, Run};

pub const HELP: &str = "\
usage: cnse bench COMMAND [FLAGS]

Measures from outside, as a client does. Every command prints one result for people, or with --json
one object that compare, report and rerun read.

examples:
  cnse bench latency --server http://127.0.0.1:8090 --iters 1000 --n_predict 64
  cnse bench sweep --vary inflight=1,8,16 --repeat 6 -- schedule --server http://127.0.0.1:8090 \\
    --prompt Hi --iters 200 --inflight {inflight}
  cnse bench report monday.json --html monday.html
  cnse bench compare monday.json tuesday.json --fail-if \"ttft_ms_p99 > +5%\"
  cnse bench rerun monday.json
  cnse bench storage --file model.gguf --filer http://127.0.0.1:8888 --iters 10
  cnse bench gpu
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
        name: "storage",
        summary: "hash, put, get and verify, cold and warm, as a share of the machine's limits",
        help: storage::HELP,
        flags: storage::FLAGS,
        run: Run::With(storage::run),
    },
    Command {
        name: "gateway",
        summary: "what a gateway costs, by pairs of runs; requests/s of the binary protocol",
        help: gateway::HELP,
        flags: gateway::FLAGS,
        run: Run::With(gateway::run),
    },
    Command {
        name: "sweep",
        summary: "one command under many settings, hypotheses, and the best setting",
        help: sweep::HELP,
        flags: sweep::FLAGS,
        run: Run::With(sweep::run),
    },
    Command {
        name: "scaling",
        summary: "the scheduler on 1 to N ranks: speed-up, efficiency, stealing on and off",
        help: scaling::HELP,
        flags: scaling::FLAGS,
        run: Run::With(scaling::run),
    },
    Command {
        name: "compare",
        summary: "two saved results or two live targets, with intervals and an exit code",
        help: compare::HELP,
        flags: compare::FLAGS,
        run: Run::With(compare::run),
    },
    Command {
        name: "report",
        summary: "draws saved results: HTML, SVG, PNG, Markdown",
        help: report::HELP,
        flags: report::FLAGS,
        run: Run::With(report::run),
    },
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
    Command {
        name: "guard",
        summary: "runs a command that ends when its starter does",
        help: guard::HELP,
        flags: guard::FLAGS,
        run: Run::With(guard::run),
    },
];
