//! `cnse bench gpu`: kernels, launches, transfers, overlap and memory of a card.

use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::cuda::start;

pub const HELP: &str = "\
usage: cnse bench gpu [FLAGS]

Measures an NVIDIA card: each kernel's time, with its bytes a second as a share of a copy's that is
measured in the same run; what launches and transfers cost (pageable, pinned, mapped); what overlap
hides; what drawing tokens costs; what the memory pool saves, and that a warm loop asks the driver
for no memory.

examples:
  cnse bench gpu
  cnse bench gpu --only kernels --csv gpu.csv
  cnse bench gpu --device cuda:1 --json > gpu.json
";

pub const FLAGS: &[Flag] = &[
    Flag::new("device", "NAME", "auto or cuda:N (auto: the first)"),
    Flag::new("only", "PART", "kernels, sampling or transfers (all)"),
    Flag::new("seed", "N", "of the numbers that kernels get (1)"),
    Flag::new("csv", "FILE", "the figures as CSV, too"),
    Flag::switch("json", "the result as one JSON object on stdout"),
];

/// What `--only` may name.
const PARTS: [&str; 3] = ["kernels", "sampling", "transfers"];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let choice = parsed.device().map_err(Error::Usage)?;
    if let Some(part) = parsed.text("only").filter(|part| !PARTS.contains(part)) {
        return Err(Error::Usage(format!("--only {part}: not kernels, sampling or transfers")));
    }
    match start(choice).wait() {
        Ok(gpu) => measure(parsed, gpu),
        Err(why) => Err(Error::Failed(format!("bench gpu: {why}"))),
    }
}

#[cfg(not(feature = "cuda"))]
fn measure(_: &Parsed, gpu: &crate::cuda::Gpu) -> Result<(), Error> {
    match *gpu {}
}

#[cfg(feature = "cuda")]
fn measure(parsed: &Parsed, gpu: &std::sync::Arc<crate::cuda::Gpu>) -> Result<(), Error> {
    use std::time::{Instant, SystemTime};

    use crate::bench::gpu::{figures, kernels, sampling, transfers};
    use crate::bench::record::Record;
    use crate::cli::{FEATURES, print};
    use crate::machine::environment::Environment;

    let failed = |error: crate::cuda::Error| Error::Failed(format!("bench gpu: {error}"));
    let seed = parsed.number("seed", 0, u64::MAX).map_err(Error::Usage)?.unwrap_or(1);
    let begun = Instant::now();
    let started_at = crate::log::utc(SystemTime::now());
    let mut found = Vec::new();
    let wants = |part: &str| parsed.text("only").is_none_or(|only| only == part);
    if wants("kernels") {
        found.extend(kernels::run(gpu, seed).map_err(failed)?);
    } else if wants("sampling") {
        found.extend(kernels::copy(gpu, seed).map_err(failed)?);
    }
    if wants("sampling") {
        found.extend(sampling::run(gpu).map_err(failed)?);
    }
    if wants("transfers") {
        found.extend(transfers::run(gpu).map_err(failed)?);
    }
    let facts = gpu.facts();
    if let Some(path) = parsed.text("csv") {
        std::fs::write(path, figures::csv(&found))
            .map_err(|error| Error::Failed(format!("writing {path:?}: {error}")))?;
    }
    if !parsed.has("json") {
        let driver = facts.driver;
        let head = format!("{}, driver for CUDA {}.{}\n", facts.name, driver.0, driver.1);
        return print(&(head + &figures::table(&found)));
    }
    let mut record = Record::new(std::env::args().skip(1).collect(), started_at);
    record.wall_s = begun.elapsed().as_secs_f64();
    record.ok = found.len() as u64;
    record.set("gpu", gpu.usage().json());
    record.set("gpu_open_ms", facts.opened.as_secs_f64() * 1e3);
    record.set("gpu_load_ms", facts.loaded.as_secs_f64() * 1e3);
    let mut environment = Environment::of_this_machine(FEATURES);
    environment.gpus = vec![facts.name.clone()];
    environment.gpu_driver = Some(format!("CUDA {}.{}", facts.driver.0, facts.driver.1));
    environment.seed = Some(seed);
    record.environment = Some(environment);
    record.runs = figures::runs(&found);
    print(&format!("{}\n", record.to_json()))
}
