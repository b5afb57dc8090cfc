//! `cnse serve`: flags to a `gateway::Config` that cannot be wrong.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use super::Error;
use super::flags::{Flag, Parsed, duration};
use crate::backend::Dialect;
use crate::backend::builtin::ngrams::Model;
use crate::backend::builtin::sampler::Language;
use crate::backend::builtin::vocabulary::SIZE_MIN;
use crate::backend::builtin::{BuiltinConfig, Delay, Stall};
use crate::backend::discover::target;
use crate::backend::engine::{Target, Timeouts};
use crate::backend::pool::PoolConfig;
use crate::cuda::Device;
use crate::gateway::{self, BackendConfig, Config};
use crate::net::socket;
use crate::post::plan::Plan;
use crate::post::sampling::VOCAB_MAX;

pub const HELP: &str = "\
usage: cnse serve [FLAGS]

Serves the binary protocol and OpenAI-style HTTP on one port, in front of the built-in backend,
of llama-servers, or of other OpenAI-compatible servers. SIGTERM drains it.

examples:
  cnse serve
  cnse serve --backend llama --llama-url http://127.0.0.1:8090 --port 5050
  cnse serve --llama-url http://10.0.0.1:8090,http://10.0.0.2:8090 --queue 256
  cnse serve --openai-url http://127.0.0.1:8000 --inflight 64
  cnse serve --llama-url http://127.0.0.1:8090 --post normalize,truncate=256,quantize=int8
  cnse serve --sim-ttft 200ms --sim-itl lognormal:20ms,0.5 --sim-slots 4

environment:
  CNSE_API_KEY            clients must send it: a token in HELLO, Authorization: Bearer over HTTP
  CNSE_UPSTREAM_API_KEY   sent to the backends
";

pub const FLAGS: &[Flag] = &[
    Flag::new("host", "ADDRESS", "where to listen (127.0.0.1)"),
    Flag::new("port", "N", "where to listen; 0 takes a free port (5050)"),
    Flag::new("backend", "NAME", "builtin, llama or openai (builtin, or what the URLs say)"),
    Flag::new(
        "llama-url",
        "URL[,URL]",
        "llama-servers: http://host:port, with a path prefix if any",
    ),
    Flag::new("openai-url", "URL[,URL]", "OpenAI-compatible servers, without the /v1"),
    Flag::new(
        "inflight",
        "N",
        "sequences at once for each backend (llama-server: its slots; others: 1024)",
    ),
    Flag::new("queue", "N", "requests that may wait for a slot; more are refused (1024)"),
    Flag::new("queue-timeout", "TIME", "how long each may wait (5m)"),
    Flag::new(
        "unavailable-timeout",
        "TIME",
        "how long each waits while every backend is down (5s)",
    ),
    Flag::new("connect-timeout", "TIME", "for a connection to a backend (5s)"),
    Flag::new("first-token-timeout", "TIME", "from sending a request to its first token (10m)"),
    Flag::new("token-timeout", "TIME", "between two tokens (60s)"),
    Flag::new("stall-timeout", "TIME", "how long a client may leave its text unread (60s)"),
    Flag::new("deadline", "TIME", "for a whole request that names none; 0 is none (0)"),
    Flag::new("drain-timeout", "TIME", "how long SIGTERM waits for requests under way (30s)"),
    Flag::new(
        "sse-keepalive",
        "TIME",
        "after so long a silence a stream gets a comment; 0 is never (15s)",
    ),
    Flag::new(
        "coalesce",
        "TIME",
        "with 32 streams or more whose tokens come fast, gather them so long; 0 is never (600us)",
    ),
    Flag::new(
        "max-connections",
        "N",
        "client connections at once (what the descriptor limit allows)",
    ),
    Flag::new(
        "post",
        "STEPS",
        "what becomes of embeddings: normalize, truncate=N, quantize=int8 or binary, with commas",
    ),
    Flag::new("threads", "N", "workers (one for each core)"),
    Flag::switch("no-pin", "do not pin workers to cores"),
    Flag::new("model", "NAME", "built-in backend: the model's name (built-in)"),
    Flag::switch("echo", "built-in backend: answer with the prompt"),
    Flag::new(
        "sim-model",
        "KIND",
        "built-in backend: ngrams, a small language model, or words (endless, next to free) (ngrams)",
    ),
    Flag::new("sim-vocab", "N", "ngrams: pieces of its vocabulary, up to 262144 (32000)"),
    Flag::new(
        "device",
        "NAME",
        "where ngrams' tokens are drawn and --post works: auto, cpu or cuda:N; the same on each (auto)",
    ),
    Flag::new(
        "sim-ttft",
        "TIME",
        "built-in backend: delay of the first token, or lognormal:MEAN,SIGMA (0)",
    ),
    Flag::new(
        "sim-itl",
        "TIME",
        "built-in backend: delay between tokens, or lognormal:MEAN,SIGMA (0)",
    ),
    Flag::new(
        "sim-stall",
        "LENGTH,EVERY",
        "built-in backend: tells nothing for so long, every so often, as in 2s,10s",
    ),
    Flag::new(
        "sim-log",
        "FILE",
        "built-in backend: appends a JSON line for each answer: its id and its true times",
    ),
    Flag::new("sim-slots", "N", "built-in backend: sequences at once; 0 is no bound (0)"),
    Flag::new("seed", "N", "built-in backend: the seed of requests that name none (0)"),
    Flag::new("log", "LEVEL", "error, warn, info or debug (info)"),
];

/// What an openai backend takes at once when nothing is said: such servers have queues of their
/// own.
const OPENAI_INFLIGHT: u32 = 1024;
/// Pieces of the language model's vocabulary: those of Llama 2.
const VOCABULARY_DEFAULT: usize = 32_000;
/// What only the built-in backend has.
const BUILTIN_FLAGS: [&str; 10] = [
    "model",
    "echo",
    "sim-model",
    "sim-vocab",
    "sim-stall",
    "sim-log",
    "sim-ttft",
    "sim-itl",
    "sim-slots",
    "seed",
];
/// Descriptors that are not for clients: backends' connections, epolls, timers, logs.
const RESERVED_DESCRIPTORS: u64 = 256;

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    super::log_level(parsed)?;
    let secret = |name: &str| match std::env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(Error::Usage(format!("{name}: {error}"))),
    };
    let descriptors = socket::raise_descriptor_limit();
    let config =
        config(parsed, secret("CNSE_API_KEY")?, secret("CNSE_UPSTREAM_API_KEY")?, descriptors)
            .map_err(Error::Usage)?;
    if config.api_key.is_none() && !config.listen.ip().is_loopback() {
        log::warn!("open to the network without a key: set CNSE_API_KEY");
    }
    let settings = describe(&config);
    let ready = |address: SocketAddr| log::info!("listening on {address} {settings}");
    gateway::run(config, ready).map_err(|error| Error::Failed(error.to_string()))
}

/// One line of what was decided.
fn describe(config: &Config) -> String {
    let backend = match &config.backend {
        BackendConfig::Builtin(builtin) => {
            let vocabulary = builtin.language.as_ref().map_or(String::new(), |language| {
                format!(" vocabulary={}", language.model.vocabulary().size())
            });
            format!("backend=builtin model={}{vocabulary}", builtin.model)
        }
        BackendConfig::Remote { dialect, targets, inflight } => {
            let urls: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
            let kind = if *dialect == Dialect::Llama { "llama" } else { "openai" };
            let slots = inflight.map_or("slots".to_owned(), |n| n.to_string());
            format!("backend={kind} urls={} inflight={slots}", urls.join(","))
        }
    };
    let key = if config.api_key.is_some() { "yes" } else { "no" };
    format!(
        "{backend} threads={} pin={} queue={} connections={} key={key}",
        config.threads, config.pin, config.pool.queue_max, config.connections_max
    )
}

fn config(
    parsed: &Parsed,
    api_key: Option<String>,
    upstream_key: Option<String>,
    descriptors: u64,
) -> Result<Config, String> {
    let time = |name: &str, default: Duration| -> Result<Duration, String> {
        Ok(parsed.duration(name)?.unwrap_or(default))
    };
    let positive = |name: &str, default: Duration| -> Result<Duration, String> {
        match time(name, default)? {
            Duration::ZERO => Err(format!("--{name} 0: it must be more than nothing")),
            duration => Ok(duration),
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let seconds = Duration::from_secs;
    let free = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(64);
    let nonzero = |duration: Duration| Some(duration).filter(|d| *d > Duration::ZERO);
    let device = Device::new(parsed.device()?);
    let backend = backend(parsed, upstream_key, &device)?;
    let has_model =
        matches!(&backend, BackendConfig::Builtin(builtin) if builtin.language.is_some());
    if parsed.has("device") && !has_model && !parsed.has("post") {
        return Err("--device is for --sim-model ngrams and --post".to_owned());
    }
    Ok(Config {
        listen: SocketAddr::new(host(parsed)?, parsed.number("port", 0, u16::MAX)?.unwrap_or(5050)),
        threads: parsed.number("threads", 1, 256)?.unwrap_or(cores),
        pin: !parsed.has("no-pin"),
        backend,
        timeouts: Timeouts {
            connect: positive("connect-timeout", seconds(5))?,
            first_token: positive("first-token-timeout", seconds(600))?,
            token: positive("token-timeout", seconds(60))?,
        },
        pool: PoolConfig {
            queue_max: parsed.number("queue", 0, 1_000_000)?.unwrap_or(1024),
            queue_timeout: positive("queue-timeout", seconds(300))?,
            unavailable_timeout: time("unavailable-timeout", seconds(5))?,
        },
        stall_timeout: positive("stall-timeout", seconds(60))?,
        deadline: nonzero(time("deadline", Duration::ZERO)?),
        drain_timeout: time("drain-timeout", seconds(30))?,
        sse_keepalive: nonzero(time("sse-keepalive", seconds(15))?),
        coalesce: time("coalesce", Duration::from_micros(600))?.min(Duration::from_millis(10)),
        api_key,
        request_log: parsed.text("sim-log").map(Into::into),
        post: post(parsed)?,
        device,
        connections_max: parsed
            .number("max-connections", 1, usize::MAX)?
            .unwrap_or(usize::try_from(free).unwrap_or(usize::MAX)),
    })
}

fn post(parsed: &Parsed) -> Result<Option<Plan>, String> {
    let Some(text) = parsed.text("post") else { return Ok(None) };
    let plan = Plan::parse(text).map_err(|error| format!("--post: {error}"))?;
    if plan.topk.is_some() {
        // A pass over a corpus would keep a core from its streams.
        return Err("--post: topk is for cnse schedule; cnse search looks in a matrix".to_owned());
    }
    Ok(Some(plan))
}

fn host(parsed: &Parsed) -> Result<IpAddr, String> {
    let host = parsed.text("host").unwrap_or("127.0.0.1");
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Ok(address);
    }
    let mut found =
        (host, 0).to_socket_addrs().map_err(|error| format!("--host {host}: {error}"))?;
    found.next().map(|address| address.ip()).ok_or_else(|| format!("--host {host}: no address"))
}

fn backend(
    parsed: &Parsed,
    upstream_key: Option<String>,
    device: &Device,
) -> Result<BackendConfig, String> {
    let (llama, openai) = (parsed.text("llama-url"), parsed.text("openai-url"));
    let said = match (llama, openai) {
        (Some(_), Some(_)) => return Err("--llama-url and --openai-url exclude each other".into()),
        (Some(_), None) => "llama",
        (None, Some(_)) => "openai",
        (None, None) => "builtin",
    };
    let name = parsed.text("backend").unwrap_or(said);
    let (dialect, urls) = match (name, llama, openai) {
        ("builtin", None, None) => return builtin(parsed, device).map(BackendConfig::Builtin),
        ("llama", Some(urls), None) => (Dialect::Llama, urls),
        ("openai", None, Some(urls)) => (Dialect::OpenAi, urls),
        ("llama" | "openai", None, None) => {
            return Err(format!("--backend {name} needs --{name}-url http://host:port"));
        }
        ("builtin" | "llama" | "openai", ..) => {
            return Err(format!("--backend {name} and --{said}-url exclude each other"));
        }
        _ => return Err(format!("--backend {name}: not builtin, llama or openai")),
    };
    for flag in BUILTIN_FLAGS {
        if parsed.has(flag) {
            return Err(format!("--{flag} is for the built-in backend, not for {name}"));
        }
    }
    let authorization = upstream_key.map(|key| format!("Bearer {key}"));
    let targets = urls
        .split(',')
        .map(|url| {
            let target = target(url.trim())?;
            Ok(Target { authorization: authorization.clone(), ..target })
        })
        .collect::<Result<Vec<_>, String>>()?;
    let inflight = parsed.number("inflight", 1, 1_000_000)?;
    let inflight = if dialect == Dialect::OpenAi {
        Some(inflight.unwrap_or(OPENAI_INFLIGHT))
    } else {
        inflight
    };
    Ok(BackendConfig::Remote { dialect, targets, inflight })
}

fn builtin(parsed: &Parsed, device: &Device) -> Result<BuiltinConfig, String> {
    if parsed.has("inflight") {
        return Err("--inflight is for llama and openai; the built-in one has --sim-slots".into());
    }
    let language = language(parsed, device)?;
    Ok(BuiltinConfig {
        language,
        model: parsed.text("model").unwrap_or("built-in").to_owned(),
        echo: parsed.has("echo"),
        stall: stall(parsed)?,
        ttft: delay(parsed, "sim-ttft")?,
        itl: delay(parsed, "sim-itl")?,
        slots: parsed.number("sim-slots", 0, 1_000_000)?.unwrap_or(0),
        seed: parsed.number("seed", 0, u64::MAX)?.unwrap_or(0),
    })
}

fn stall(parsed: &Parsed) -> Result<Option<Stall>, String> {
    let Some(text) = parsed.text("sim-stall") else { return Ok(None) };
    let wrong = |error: &str| format!("--sim-stall {text}: {error}");
    let (length, every) =
        text.split_once(',').ok_or_else(|| wrong("a length and a period, as in 2s,10s"))?;
    let length = duration(length).map_err(wrong)?;
    let every = duration(every).map_err(wrong)?;
    if length >= every {
        return Err(wrong("the length is not under the period"));
    }
    Ok(Some(Stall { length, every }))
}

/// The language model, unless something else was asked for.
fn language(parsed: &Parsed, device: &Device) -> Result<Option<Language>, String> {
    match (parsed.text("sim-model"), parsed.has("sim-vocab"), parsed.has("echo")) {
        (Some("ngrams") | None, _, false) => {}
        (Some("words"), true, _) => return Err("--sim-vocab is for --sim-model ngrams".to_owned()),
        (Some("words"), false, false) | (None, false, true) => return Ok(None),
        (Some("words" | "ngrams"), _, true) | (None, true, true) => {
            return Err("--echo answers with the prompt, and no model".to_owned());
        }
        (Some(other), ..) => return Err(format!("--sim-model {other}: not words or ngrams")),
    }
    let size = parsed.number("sim-vocab", SIZE_MIN, VOCAB_MAX)?.unwrap_or(VOCABULARY_DEFAULT);
    Ok(Some(Language::new(Model::new(size), device.clone())))
}

fn delay(parsed: &Parsed, name: &str) -> Result<Delay, String> {
    let Some(text) = parsed.text(name) else { return Ok(Delay::NONE) };
    let wrong = |error: &str| format!("--{name} {text}: {error}");
    let Some(parameters) = text.strip_prefix("lognormal:") else {
        return duration(text).map(Delay::Fixed).map_err(wrong);
    };
    let (mean, sigma) = parameters
        .split_once(',')
        .ok_or_else(|| wrong("lognormal needs a mean and a sigma, as in lognormal:20ms,0.5"))?;
    let mean = duration(mean).map_err(wrong)?;
    match sigma.parse::<f64>() {
        Ok(sigma) if (0.0..=4.0).contains(&sigma) => Ok(Delay::LogNormal { mean, sigma }),
        _ => Err(wrong("sigma is not a number from 0 to 4")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::flags::{Asked, parse};
    use super::*;

    fn with(args: &[&str]) -> Result<Config, String> {
        let Asked::Run(parsed) = parse(FLAGS, args.iter().map(Into::into).collect())? else {
            panic!("help")
        };
        config(&parsed, None, Some("k".to_owned()), 1024)
    }

    #[test]
    fn defaults_and_urls() {
        let config = with(&[]).unwrap();
        assert_eq!(config.listen, "127.0.0.1:5050".parse().unwrap());
        assert!(matches!(config.backend, BackendConfig::Builtin(_)));
        assert_eq!(config.connections_max, 768);
        let config =
            with(&["--llama-url", "http://a:1,http://[::1]:2/x/", "--host", "::1"]).unwrap();
        let BackendConfig::Remote { targets, inflight: None, dialect: Dialect::Llama } =
            config.backend
        else {
            panic!()
        };
        assert_eq!((targets[0].authority.as_str(), targets[1].prefix.as_str()), ("a:1", "/x"));
        assert_eq!(targets[1].authorization.as_deref(), Some("Bearer k"));
        assert_eq!(target("http://h").unwrap().authority, "h:80");
        let config = with(&["--sim-itl", "lognormal:20ms,0.5", "--sim-ttft", "1s"]).unwrap();
        let BackendConfig::Builtin(builtin) = config.backend else { panic!() };
        let mean = Duration::from_millis(20);
        assert_eq!(builtin.itl, Delay::LogNormal { mean, sigma: 0.5 });
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        for (args, message) in [
            (&["--backend", "llama"][..], "--backend llama needs --llama-url http://host:port"),
            (&["--backend", "vllm"], "--backend vllm: not builtin, llama or openai"),
            (
                &["--backend", "builtin", "--llama-url", "http://a:1"],
                "--backend builtin and --llama-url exclude each other",
            ),
            (
                &["--llama-url", "http://a:1", "--echo"],
                "--echo is for the built-in backend, not for llama",
            ),
            (
                &["--llama-url", "https://a"],
                "https://a: TLS is not spoken; put a proxy such as stunnel ahead of the backend",
            ),
            (&["--llama-url", "a:1"], "\"a:1\" is not a URL such as http://127.0.0.1:8090"),
            (
                &["--post", "halve"],
                "--post: halve: not normalize, truncate=N, quantize=int8, \
                                    quantize=binary or topk=K:FILE.npy",
            ),
            (
                &["--post", "topk=1:a.npy"],
                "--post: topk is for cnse schedule; cnse search looks in a matrix",
            ),
            (&["--sim-model", "gpt"], "--sim-model gpt: not words or ngrams"),
            (
                &["--sim-model", "words", "--device", "cpu"],
                "--device is for --sim-model ngrams and --post",
            ),
            (
                &["--sim-model", "words", "--sim-vocab", "600"],
                "--sim-vocab is for --sim-model ngrams",
            ),
            (&["--echo", "--sim-vocab", "600"], "--echo answers with the prompt, and no model"),
            (&["--sim-vocab", "5"], "--sim-vocab 5: not a number from 512 to 262144"),
            (&["--device", "gpu"], "--device gpu: not auto, cpu or cuda:N (from cuda:0)"),
            (&["--port", "70000"], "--port 70000: not a number from 0 to 65535"),
            (&["--queue-timeout", "5"], "--queue-timeout 5: it needs a unit: us, ms, s, m"),
            (
                &["--sim-itl", "lognormal:5ms"],
                "--sim-itl lognormal:5ms: lognormal needs a mean and a sigma, as in \
                 lognormal:20ms,0.5",
            ),
            (&["--sim-stall", "2s"], "--sim-stall 2s: a length and a period, as in 2s,10s"),
            (&["--sim-stall", "2s,2s"], "--sim-stall 2s,2s: the length is not under the period"),
            (
                &["--inflight", "4"],
                "--inflight is for llama and openai; the built-in one has --sim-slots",
            ),
        ] {
            assert_eq!(with(args).unwrap_err(), message);
        }
    }
}
