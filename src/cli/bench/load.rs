//! What the commands that put load on a server share: their flags, and the plan that these make.

use std::time::Duration;

use super::asked::{self, TURNS_MAX};
use super::measured::check_files;
use crate::bench::arrival::Arrivals;
use crate::bench::outcome::slo::Slo;
use crate::bench::plan::Plan;
use crate::bench::workload::{Length, Source, Workload};
use crate::cli::Error;
use crate::cli::client::{Endpoint, endpoint};
use crate::cli::flags::{Flag, Parsed, duration};
use crate::net::socket;
use crate::wire::message::{Infer, Input};

/// What is asked, of whom, and when.
pub const FLAGS: [Flag; 29] = [
    Flag::new("server", "URL", "http://host:port (found out) or cnse://host:port; needed"),
    Flag::new("prompt", "TEXT", "what is asked, each time (made-up prompts)"),
    Flag::new("dataset", "FILE", "what is asked: JSON lines with prompt or messages, or ShareGPT"),
    Flag::new(
        "input-tokens",
        "LENGTH",
        "words of made-up prompts: 64, uniform:A,B, normal:M,SD or lognormal:M,SIGMA (64)",
    ),
    Flag::new(
        "n-predict",
        "LENGTH",
        "tokens of an answer at most, in the same forms; what a file says goes first (64)",
    ),
    Flag::new("shared-prefix", "N", "words that all made-up prompts begin with (0)"),
    Flag::switch("chat", "ask each prompt as a chat's message"),
    Flag::new(
        "turns",
        "N",
        "requests of a session, each with what was said before; sessions are made whole (1)",
    ),
    Flag::new("think", "TIME", "in a session: from an answer to the next question (0)"),
    Flag::new("model", "NAME", "the model (the server's default)"),
    Flag::new("temperature", "X", "sampling: temperature"),
    Flag::switch("ignore-eos", "answers end at their length (llama-server, vLLM, SGLang)"),
    Flag::new("extra", "JSON", "an object that is merged into the server's request"),
    Flag::new("iters", "N", "requests that count (100; with --duration as many as fit)"),
    Flag::new("duration", "TIME", "no request starts later"),
    Flag::new(
        "warmup",
        "N",
        "requests ahead of those that count; auto: enough to fill the server, and what of the \
         rest is found to be a start-up (auto)",
    ),
    Flag::new("concurrency", "N", "requests at once (1); with --rate a bound, whose wait counts"),
    Flag::new("rate", "R", "requests a second, whether or not others have ended"),
    Flag::new("arrival", "KIND", "with --rate: poisson, fixed, or gamma:SHAPE (poisson)"),
    Flag::new("trace", "FILE", "starts as recorded: seconds a line, or JSON with timestamp in ms"),
    Flag::new("seed", "N", "what arrivals, lengths and prompts depend on (1)"),
    Flag::switch("same-prompts", "the prompts of the last run again, for a warm cache"),
    Flag::new("cores", "N", "threads that generate the load (1)"),
    Flag::new("timeout", "TIME", "give up on a request after so long (10m)"),
    Flag::new(
        "max-error-rate",
        "SHARE",
        "more failures end the run, and the exit code is 1 (0.01)",
    ),
    Flag::new("slo", "BOUNDS", "goodput under ttft=500ms,itl=50ms,tpot=…,e2e=…"),
    Flag::new(
        "model-file",
        "FILE",
        "the model, whose SHA-256 goes into the result (what a local llama-server has loaded)",
    ),
    Flag::new("output", "FILE", "the result as JSON into a file, besides what is printed"),
    Flag::switch("json", "the result as one JSON object on stdout"),
];

/// `FLAGS` and a command's own.
pub const fn with<const N: usize>(own: &[Flag]) -> [Flag; N] {
    let mut all = [FLAGS[0]; N];
    let mut index = 0;
    while index < N {
        all[index] = if index < FLAGS.len() { FLAGS[index] } else { own[index - FLAGS.len()] };
        index += 1;
    }
    all
}

/// Everything that a plan borrows, read from the flags.
pub struct Setup {
    pub endpoint: Endpoint,
    pub slo: Option<Slo>,
    pub errors_max: f64,
    extra: Option<String>,
    source: Source,
    arrivals: Arrivals,
    n_predict: Option<u32>,
}

const OUTPUT_TOKENS: u32 = 64;

impl Setup {
    /// Reads the flags, and asks the server what it is.
    pub fn read(parsed: &Parsed) -> Result<Setup, Error> {
        let server = parsed.text("server");
        let server = server.ok_or_else(|| Error::Usage("--server URL is needed".to_owned()))?;
        Setup::of(parsed, server)
    }

    /// The same for a server that another flag names.
    pub fn of(parsed: &Parsed, server: &str) -> Result<Setup, Error> {
        let usage = Error::Usage;
        check_files(parsed)?;
        let slo = parsed.text("slo").map(|text| Slo::parse(text, duration)).transpose();
        let slo = slo.map_err(|error| usage(format!("--slo: {error}")))?;
        let length = |name: &str| {
            let parsed = parsed.text(name).map(|text| (text, Length::parse(text)));
            let fault = |(text, length): (&str, Result<Length, String>)| {
                length.map_err(|error| usage(format!("--{name} {text}: {error}")))
            };
            parsed.map(fault).transpose()
        };
        let output = length("n-predict")?.unwrap_or(Length::Fixed(OUTPUT_TOKENS));
        let input = length("input-tokens")?.unwrap_or(Length::Fixed(64));
        let mut arrivals = asked::arrivals(parsed)?;
        let mut source = asked::source(parsed, input, output)?;
        let seed = asked::seed(parsed)?;
        let by_file = asked::fill_lengths(&mut arrivals, &mut source, output, seed);
        let errors_max = parsed.number("max-error-rate", 0.0, 1.0).map_err(usage)?;
        let errors_max = errors_max.unwrap_or(0.01);
        let extra = asked::extra(parsed)?;
        let n_predict = match output {
            Length::Fixed(tokens) if !by_file => Some(tokens),
            _ => None,
        };
        let key = std::env::var("CNSE_API_KEY").ok().filter(|key| !key.is_empty());
        socket::raise_descriptor_limit();
        let endpoint = endpoint(server, None, key)?;
        Ok(Setup { endpoint, slo, errors_max, extra, source, arrivals, n_predict })
    }

    /// The plan that the flags make.
    pub fn plan<'a>(&'a self, parsed: &'a Parsed) -> Result<Plan<'a>, String> {
        let seed = parsed.number("seed", 0, u64::MAX)?.unwrap_or(1);
        let concurrency = parsed.number("concurrency", 1, 1_000_000_usize)?;
        let is_open = self.arrivals.is_open();
        let concurrency = if is_open { concurrency } else { Some(concurrency.unwrap_or(1)) };
        let cores = parsed.number("cores", 1, 256_usize)?.unwrap_or(1);
        if concurrency.is_some_and(|places| places < cores) {
            return Err(format!("--cores {cores}: fewer requests at once have no use for them"));
        }
        let duration = parsed.duration("duration")?;
        let mut iters = parsed.number("iters", 1, u64::MAX)?;
        if let Arrivals::Trace(lines) = &self.arrivals {
            iters = Some(iters.unwrap_or(u64::MAX).min(lines.len() as u64));
        }
        let iters = iters.or(if duration.is_some() { None } else { Some(100) });
        let warmup = match parsed.text("warmup") {
            None | Some("auto") => None,
            Some(_) => parsed.number("warmup", 0, u64::MAX)?,
        };
        let lengths = match &self.arrivals {
            Arrivals::Trace(lines) => lines.clone(),
            _ => Vec::new(),
        };
        // Of a trace the start is a part, whatever it looks like.
        let settle = warmup.is_none() && !matches!(self.arrivals, Arrivals::Trace(_));
        let warmup = warmup.unwrap_or_else(|| warmup_default(&self.arrivals, concurrency));
        let turns = parsed.number("turns", 1, TURNS_MAX)?.unwrap_or(1);
        // No session is half in the warm-up.
        let warmup = warmup.checked_next_multiple_of(turns.into()).unwrap_or(warmup);
        let options = Infer {
            model: parsed.text("model"),
            max_tokens: self.n_predict,
            temperature: parsed.number("temperature", 0.0, 100.0)?,
            extra: self.extra.as_deref(),
            ..Infer::new(Input::Prompt(""))
        };
        Ok(Plan {
            wire: self.endpoint.wire.clone(),
            address: self.endpoint.address,
            workload: Workload {
                options,
                source: self.source.clone(),
                chat: parsed.has("chat"),
                turns,
                lengths,
                batch: 0,
            },
            arrivals: self.arrivals.clone(),
            seed,
            iters,
            warmup,
            duration,
            concurrency,
            cores,
            think: parsed.duration("think")?.unwrap_or(Duration::ZERO),
            credit: 256 << 10,
            slow: None,
            cancel_after: None,
            timeout: parsed.duration("timeout")?.unwrap_or(Duration::from_secs(600)),
            sources: Vec::new(),
            errors_max: Some(self.errors_max),
            keep: true,
            settle,
        })
    }
}

/// Twice what is under way at once, or a second's worth; of a trace nothing, since its start is a
/// part of it.
fn warmup_default(arrivals: &Arrivals, concurrency: Option<usize>) -> u64 {
    match arrivals {
        Arrivals::Closed => (2 * concurrency.unwrap_or(1) as u64).max(5),
        Arrivals::Trace(_) => 0,
        _ => (arrivals.rate().unwrap_or(0.0) as u64).clamp(5, 1_000),
    }
}
