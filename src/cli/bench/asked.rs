//! What is asked of a server and when, read from the flags: prompts, lengths, arrivals.

use std::time::SystemTime;

use serde_json::{Map, Value};

use crate::bench::arrival::{self, Arrivals};
use crate::bench::dataset;
use crate::bench::workload::{Length, Source, Synthetic, Workload};
use crate::cli::Error;
use crate::cli::flags::Parsed;
use crate::prng::Prng;
use crate::wire::message::{Infer, Input};

/// Requests of a session: each carries all before it, so more would be megabytes.
pub const TURNS_MAX: u32 = 10_000;

pub fn arrivals(parsed: &Parsed) -> Result<Arrivals, Error> {
    let rate = parsed.number("rate", 1e-3, 1e7).map_err(Error::Usage)?;
    if let Some(file) = parsed.text("trace") {
        if rate.is_some() || parsed.has("arrival") {
            let message = "--trace has its own arrivals, without --rate and --arrival";
            return Err(Error::Usage(message.to_owned()));
        }
        let lines = arrival::trace(&read(file)?);
        return lines
            .map(Arrivals::Trace)
            .map_err(|error| Error::Failed(format!("{file:?}: {error}")));
    }
    let Some(rate) = rate else {
        if parsed.has("arrival") {
            return Err(Error::Usage("--arrival needs --rate".to_owned()));
        }
        return Ok(Arrivals::Closed);
    };
    let kind = parsed.text("arrival").unwrap_or("poisson");
    let shape = kind.strip_prefix("gamma:").map(str::parse::<f64>);
    match (kind, shape) {
        ("poisson", _) => Ok(Arrivals::Gamma { rate, shape: 1.0 }),
        ("fixed", _) => Ok(Arrivals::Fixed { rate }),
        (_, Some(Ok(shape))) if (0.01..=1e4).contains(&shape) => {
            Ok(Arrivals::Gamma { rate, shape })
        }
        _ => Err(Error::Usage(format!(
            "--arrival {kind}: not poisson, fixed, or gamma:SHAPE with a shape from 0.01 to 10000"
        ))),
    }
}

pub fn source(parsed: &Parsed, input: Length, output: Length) -> Result<Source, Error> {
    let made_up = ["input-tokens", "shared-prefix", "same-prompts"];
    let given = parsed.has("prompt") || parsed.has("dataset");
    if let Some(flag) = made_up.iter().find(|flag| given && parsed.has(flag)) {
        return Err(Error::Usage(format!("--{flag} is for made-up prompts")));
    }
    match (parsed.text("prompt"), parsed.text("dataset")) {
        (Some(_), Some(_)) => {
            Err(Error::Usage("--prompt and --dataset exclude each other".to_owned()))
        }
        (Some(prompt), None) => {
            if !matches!(output, Length::Fixed(_)) {
                let message =
                    "--n-predict: with --prompt a plain number, since all requests are alike";
                return Err(Error::Usage(message.to_owned()));
            }
            Ok(Workload::listed(Infer::new(Input::Prompt("")), vec![prompt.to_owned()], false)
                .source)
        }
        (None, Some(file)) => {
            let turns = parsed.number("turns", 1, TURNS_MAX).map_err(Error::Usage)?.unwrap_or(1);
            let failed = |error| Error::Failed(format!("{file:?}: {error}"));
            let mut items = dataset::read(&read(file)?).map_err(failed)?;
            let all = items.len();
            if turns > 1 {
                items.retain(|item| item.turns.len() >= turns as usize);
            }
            if items.is_empty() {
                let what = "conversations has so many turns of a user";
                return Err(failed(format!("--turns {turns}: none of its {all} {what}")));
            }
            if items.len() < all {
                let left = all - items.len();
                eprintln!(
                    "cnse: {file:?}: {left} of {all} have fewer than {turns} turns: left out"
                );
            }
            Ok(Source::Items(items))
        }
        (None, None) => {
            let seed = seed(parsed)?;
            let shared = parsed.number("shared-prefix", 0, 1 << 20).map_err(Error::Usage)?;
            let salt = if parsed.has("same-prompts") { 0 } else { salt() };
            let shared = shared.unwrap_or(0);
            Ok(Source::Synthetic(Synthetic { seed, salt, input, output: Some(output), shared }))
        }
    }
}

pub fn seed(parsed: &Parsed) -> Result<u64, Error> {
    Ok(parsed.number("seed", 0, u64::MAX).map_err(Error::Usage)?.unwrap_or(1))
}

/// Where a file says how long answers are it says so for each request, and `output` is for those of
/// which it does not. Whether it is so.
pub fn fill_lengths(
    arrivals: &mut Arrivals,
    source: &mut Source,
    output: Length,
    seed: u64,
) -> bool {
    let mut prng = Prng::new(seed);
    let mut fill = |lengths: &mut dyn Iterator<Item = &mut Option<u32>>| {
        for length in lengths {
            let drawn = output.draw(&mut prng);
            length.get_or_insert(drawn);
        }
    };
    let is_fixed = matches!(output, Length::Fixed(_));
    let mut by_file = false;
    if let Source::Items(items) = source
        && (!is_fixed || items.iter().any(|item| item.output.is_some()))
    {
        fill(&mut items.iter_mut().map(|item| &mut item.output));
        by_file = true;
    }
    if let Arrivals::Trace(lines) = arrivals
        && lines.iter().any(|line| line.output.is_some())
    {
        fill(&mut lines.iter_mut().map(|line| &mut line.output));
        by_file = true;
    }
    by_file
}

/// What tells this run's prompts apart from those of every other.
pub fn salt() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}

pub fn extra(parsed: &Parsed) -> Result<Option<String>, Error> {
    let mut object = match parsed.text("extra").map(serde_json::from_str::<Value>) {
        None => Map::new(),
        Some(Ok(Value::Object(object))) => object,
        Some(_) => return Err(Error::Usage("--extra is not a JSON object".to_owned())),
    };
    if parsed.has("ignore-eos") {
        object.insert("ignore_eos".to_owned(), true.into());
    }
    Ok((!object.is_empty()).then(|| Value::Object(object).to_string()))
}

pub fn read(file: &str) -> Result<String, Error> {
    std::fs::read_to_string(file)
        .map_err(|error| Error::Failed(format!("reading {file:?}: {error}")))
}
