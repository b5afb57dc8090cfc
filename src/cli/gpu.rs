//! `cnse gpu`: what the GPU layer found, and whether its kernels give what their twins give.

use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use super::flags::{Flag, Parsed};
use super::{Error, print};
use crate::cuda::{Choice, Gpu};
use crate::machine::environment::Environment;

pub const HELP: &str = "\
usage: cnse gpu [FLAGS]

Tells which NVIDIA cards there are, or why none is used, and holds each kernel against its twin on
the CPU over random shapes: the results must have the same bits. The exit code is 0 if they have,
also where there is no card, unless one was asked for.

examples:
  cnse gpu
  cnse gpu --device cuda:1 --cases 200 --json
";

pub const FLAGS: &[Flag] = &[
    Flag::new("device", "NAME", "auto, cpu or cuda:N (auto: each card there is)"),
    Flag::new("cases", "N", "random shapes for each kernel; 0 tests nothing (20)"),
    Flag::new("seed", "N", "of the shapes and their numbers (1)"),
    Flag::switch("json", "the result as one JSON object on stdout"),
];

/// Shapes for each kernel: a few seconds.
#[cfg(feature = "cuda")]
const CASES: u32 = 20;

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let choice = parsed.device().map_err(Error::Usage)?;
    let begun = (Instant::now(), crate::log::utc(SystemTime::now()));
    let (cards, refused) = cards(parsed, choice)?;
    let errors = cards.iter().map(|card| card.faults.len()).sum::<usize>();
    let tested = cards.iter().map(|card| card.cases).sum::<u64>();
    let values: Vec<&Value> = cards.iter().map(|card| &card.value).collect();
    if parsed.has("json") {
        let command: Vec<String> = std::env::args().skip(1).collect();
        let result = json!({
            "cnse": env!("CARGO_PKG_VERSION"),
            "command": command,
            "started_at": begun.1,
            "wall_s": begun.0.elapsed().as_secs_f64(),
            "ok": tested,
            "errors": errors,
            "compiled": compiled(),
            "cpu_because": refused,
            "gpus": values,
            "environment": Environment::of_this_machine(super::FEATURES),
        });
        print(&format!("{result:#}\n"))?;
    } else {
        let mut text = format!("kernels: {}\n", compiled());
        if let Some(why) = &refused {
            text.push_str(&format!("no card is used, and the CPU does its work: {why}\n"));
        }
        cards.iter().for_each(|card| text.push_str(&card.text));
        print(&text)?;
    }
    if errors > 0 {
        return Err(Error::Failed("kernels differ from their twins; see above".to_owned()));
    }
    match (refused, choice) {
        (Some(why), Choice::Device(_)) => Err(Error::Failed(why)),
        _ => Ok(()),
    }
}

/// What is said of one card.
struct Card {
    value: Value,
    text: String,
    cases: u64,
    faults: Vec<String>,
}

#[cfg(not(feature = "cuda"))]
fn compiled() -> &'static str {
    "none: this build has no CUDA"
}

#[cfg(feature = "cuda")]
fn compiled() -> &'static str {
    crate::cuda::COMPILED
}

#[cfg(not(feature = "cuda"))]
fn cards(_: &Parsed, choice: Choice) -> Result<(Vec<Card>, Option<String>), Error> {
    let starting = crate::cuda::start(choice);
    let outcome: &Result<std::sync::Arc<Gpu>, _> = starting.wait();
    Ok((Vec::new(), outcome.as_ref().err().map(ToString::to_string)))
}

#[cfg(feature = "cuda")]
fn cards(parsed: &Parsed, choice: Choice) -> Result<(Vec<Card>, Option<String>), Error> {
    let cases = parsed.number("cases", 0, 1_000_000).map_err(Error::Usage)?.unwrap_or(CASES);
    let seed = parsed.number("seed", 0, u64::MAX).map_err(Error::Usage)?.unwrap_or(1);
    let count = match (choice, crate::cuda::devices()) {
        (Choice::Cpu, _) => {
            return Ok((Vec::new(), Some(crate::cuda::Error::NotWanted.to_string())));
        }
        (_, Err(why)) => return Ok((Vec::new(), Some(why.to_string()))),
        (_, Ok(count)) => count,
    };
    let ordinals = match choice {
        Choice::Device(ordinal) => ordinal..ordinal + 1,
        Choice::Auto | Choice::Cpu => 0..count,
    };
    let mut cards = Vec::new();
    for ordinal in ordinals {
        match Gpu::open(ordinal, crate::cuda::FAMILIES) {
            Ok(gpu) => cards.push(card(&gpu, cases, seed)?),
            Err(why) => return Ok((cards, Some(why.to_string()))),
        }
    }
    Ok((cards, None))
}

#[cfg(feature = "cuda")]
fn card(gpu: &std::sync::Arc<Gpu>, cases: u32, seed: u64) -> Result<Card, Error> {
    use crate::bench::gpu::check;
    let failed = |error: crate::cuda::Error| Error::Failed(format!("cnse gpu: {error}"));
    let facts = gpu.facts();
    let report = check::run(gpu, cases, seed).map_err(failed)?;
    let (free, _) = gpu.memory().map_err(failed)?;
    let used = gpu.usage();
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let value = json!({
        "device": format!("cuda:{}", facts.ordinal),
        "name": facts.name,
        "bus": facts.bus,
        "capability": format!("{}.{}", facts.capability.0, facts.capability.1),
        "driver": format!("{}.{}", facts.driver.0, facts.driver.1),
        "memory_bytes": facts.memory_bytes,
        "free_bytes": free,
        "budget_bytes": gpu.budget(),
        "cache_bytes": facts.cache_bytes,
        "multiprocessors": facts.multiprocessors,
        "copy_engines": facts.copy_engines,
        "open_ms": ms(facts.opened),
        "load_ms": ms(facts.loaded),
        "pool_high_water_bytes": used.high_water_bytes,
        "pool_held_bytes": used.held_bytes,
        "pinned_high_water_bytes": report.pinned.high_water,
        "driver_allocations": gpu.allocations(),
        "kernel_ms": used.kernel_ms,
        "transfer_ms": used.transfer_ms,
        "wall_ms": report.wall_ms,
        "utilisation": used.utilisation(),
        "self_test": report.checks.iter().map(|check| json!({
            "kernel": check.name,
            "cases": check.cases,
            "fault": check.fault,
        })).collect::<Vec<_>>(),
    });
    let mut text = format!(
        "cuda:{}: {}, compute capability {}.{}, {} multiprocessors, driver for CUDA {}.{}\n  \
         memory: {} MiB, {} free, cnse takes up to {}; second-level cache {}\n  \
         opened in {:.0} ms, kernels loaded in {:.0} ms\n",
        facts.ordinal,
        facts.name,
        facts.capability.0,
        facts.capability.1,
        facts.multiprocessors,
        facts.driver.0,
        facts.driver.1,
        facts.memory_bytes >> 20,
        free >> 20,
        gpu.budget() >> 20,
        facts.cache_bytes >> 20,
        ms(facts.opened),
        ms(facts.loaded),
    );
    for check in &report.checks {
        let said = check.fault.as_deref().unwrap_or("the bits of its twin");
        text.push_str(&format!("  {:<20} {:>6} shapes: {said}\n", check.name, check.cases));
    }
    let faults = report.checks.iter().filter_map(|check| check.fault.clone()).collect();
    let cases = report.checks.iter().map(|check| u64::from(check.cases)).sum();
    Ok(Card { value, text, cases, faults })
}
