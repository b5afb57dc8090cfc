//! The commands of the store: where models are, what they are called, and what is told of them.

pub mod cache;
pub mod gc;
pub mod get;
pub mod list;
mod progress;
pub mod put;
pub mod rm;
pub mod show;
pub mod tag;
pub mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde_json::{Map, Value, json};

use super::Error;
use super::flags::Parsed;
use crate::store::cache::Cache;
use crate::store::files::Disk;
use crate::store::model::{Resolved, resolve};
use crate::store::name::Reference;
use crate::store::pace::Pace;
use crate::store::remote::Remote;
use crate::store::remote::directory::Directory;
use crate::store::remote::filer::{self, Filer};
use crate::store::{Digest, Error as StoreError};

/// The files of this machine.
static DISK: Disk = Disk;

/// What the help of each command says of the environment.
macro_rules! environment {
    () => {
        "\nenvironment:
  CNSE_STORE        the folder of models, unless --store says so (the XDG data folder's cnse/store)
  CNSE_FILER        a SeaweedFS filer to have them on instead, unless --filer or --store says so;
                    CNSE_FILER_TOKEN, or CNSE_FILER_KEY and CNSE_FILER_READ_KEY, are what it asks
                    for; of https CNSE_FILER_CA is a PEM file of whom to believe, CNSE_FILER_CERT
                    one of our own certificate and key; CNSE_FILER_UPLOAD is how to send (auto,
                    chunks, tus or parts)
  CNSE_CACHE        the folder of what was fetched (the XDG cache folder's cnse/models)
  CNSE_CACHE_SIZE   bytes that it may hold, unless --cache-size says so (what the disk has)
"
    };
}
pub(super) use environment;

/// Flags that several commands have.
macro_rules! common {
    (store) => {
        $crate::cli::flags::Flag::new("store", "DIR", "the folder of models ($CNSE_STORE)")
    };
    (filer) => {
        $crate::cli::flags::Flag::new(
            "filer",
            "URL",
            "models on a SeaweedFS filer: http://host:8888, or with a folder ($CNSE_FILER)",
        )
    };
    (json) => {
        $crate::cli::flags::Flag::switch("json", "the result as one JSON object on stdout")
    };
    (quiet) => {
        $crate::cli::flags::Flag::switch("quiet", "the essential alone, and no progress")
    };
    (threads) => {
        $crate::cli::flags::Flag::new("threads", "N", "parts at once (as many as there are cores)")
    };
    (cache_size) => {
        $crate::cli::flags::Flag::new("cache-size", "BYTES", "what the cache may hold: 40GiB")
    };
    (limit_rate) => {
        $crate::cli::flags::Flag::new(
            "limit-rate",
            "BYTES",
            "at most so many a second to or from where the models are: 20MiB",
        )
    };
    (log) => {
        $crate::cli::flags::Flag::new("log", "LEVEL", "error, warn, info or debug (info)")
    };
}
pub(super) use common;

/// Puts what was tried in front of why it failed.
fn failed(doing: &str) -> impl Fn(StoreError) -> Error {
    move |error| Error::Failed(format!("{doing}: {error}"))
}

/// A folder that the environment names, else one of the XDG folders, else one at home.
fn folder(variable: &str, xdg: &str, home: &str, inside: &str) -> Result<PathBuf, Error> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = set(variable) {
        return Ok(PathBuf::from(path));
    }
    let base = set(xdg).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| Some(Path::new(&set("HOME")?).join(home)));
    base.map(|base| base.join(inside)).ok_or_else(|| {
        Error::Failed(format!("there is no home folder: set {variable} to a folder"))
    })
}

/// What `--limit-rate` asks for.
fn pace(parsed: &Parsed) -> Result<Option<Arc<Pace>>, Error> {
    let Some(rate) = parsed.bytes("limit-rate", u64::MAX).map_err(Error::Usage)? else {
        return Ok(None);
    };
    if rate < RATE_LEAST {
        return Err(Error::Usage(format!(
            "--limit-rate {rate}: a server that is sent less than 256KiB a second gives up"
        )));
    }
    Ok(Some(Arc::new(Pace::new(rate))))
}

/// Below it the threads' pauses come near to what a filer waits for the next byte (20 s).
const RATE_LEAST: u64 = 256 << 10;

/// Where models are kept.
fn remote(parsed: &Parsed) -> Result<Box<dyn Remote>, Error> {
    paced_remote(parsed, None)
}

/// The same, with a bound for what is sent there.
fn paced_remote(parsed: &Parsed, pace: Option<&Arc<Pace>>) -> Result<Box<dyn Remote>, Error> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let url = match (parsed.text("filer"), parsed.text("store")) {
        (Some(_), Some(_)) => {
            return Err(Error::Usage("--store or --filer: models are in one place".to_owned()));
        }
        (Some(url), None) => Some(url.to_owned()),
        (None, Some(_)) => None,
        (None, None) => variable("CNSE_FILER"),
    };
    if let Some(url) = url {
        let settings = filer::Settings::from_environment(variable).map_err(Error::Usage)?;
        let settings = settings.paced(pace.cloned());
        let filer = Filer::new(&DISK, &url, settings).map_err(Error::Usage)?;
        return Ok(Box::new(filer));
    }
    let root = match parsed.text("store") {
        Some(path) => PathBuf::from(path),
        None => folder("CNSE_STORE", "XDG_DATA_HOME", ".local/share", "cnse/store")?,
    };
    // A folder that is named by a relative path stays the same one.
    let root = std::path::absolute(&root)
        .map_err(|error| Error::Failed(format!("the folder {root:?}: {error}")))?;
    Ok(Box::new(Directory::new(&DISK, &root)))
}

/// What this machine has fetched.
fn cache(parsed: &Parsed) -> Result<Cache<'static>, Error> {
    let root = folder("CNSE_CACHE", "XDG_CACHE_HOME", ".cache", "cnse/models")?;
    let root = std::path::absolute(&root)
        .map_err(|error| Error::Failed(format!("the folder {root:?}: {error}")))?;
    Ok(Cache::new(&DISK, &root, budget(parsed)?))
}

fn budget(parsed: &Parsed) -> Result<Option<u64>, Error> {
    if let Some(budget) = parsed.bytes("cache-size", u64::MAX).map_err(Error::Usage)? {
        return Ok(Some(budget));
    }
    match std::env::var("CNSE_CACHE_SIZE") {
        Ok(text) if !text.is_empty() => match super::flags::bytes(&text) {
            Some(budget) => Ok(Some(budget)),
            None => Err(Error::Usage(format!(
                "CNSE_CACHE_SIZE is {text:?}, and not a size such as 40GiB"
            ))),
        },
        _ => Ok(None),
    }
}

/// As many threads as there are cores; more would only hold more parts in memory, of what is sent.
fn threads(parsed: &Parsed) -> Result<usize, Error> {
    let asked = parsed.number("threads", 1, THREADS_MAX).map_err(Error::Usage)?;
    let cores =
        || std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_DEFAULT_MAX);
    Ok(asked.unwrap_or_else(cores))
}

/// Each thread that sends to a filer has a part in memory.
const THREADS_MAX: usize = 64;
/// Past it a disk or a filer is the limit.
const THREADS_DEFAULT_MAX: usize = 8;

/// Reads what a user calls a model by.
fn reference(text: &str) -> Result<Reference, Error> {
    text.parse().map_err(|error: StoreError| Error::Usage(error.to_string()))
}

/// The only operand, or that of `--hash`.
fn one_reference<'p>(parsed: &'p Parsed, names: &[&str]) -> Result<&'p str, Error> {
    let mut given: Vec<&str> = names.iter().flat_map(|name| parsed.texts(name)).collect();
    match (given.pop(), given.is_empty()) {
        (Some(text), true) => Ok(text),
        (None, _) => Err(Error::Usage("a model is needed: NAME:TAG or a SHA-256".to_owned())),
        (Some(_), false) => Err(Error::Usage("one model at a time".to_owned())),
    }
}

/// The model that a reference names.
fn find(
    remote: &dyn Remote,
    cache: &Cache<'_>,
    is_offline: bool,
    text: &str,
) -> Result<Resolved, Error> {
    let reference = reference(text)?;
    resolve(remote, cache, is_offline, &reference).map_err(failed("looking it up"))
}

/// Started when the command was.
struct Started {
    at: Instant,
    utc: String,
}

impl Started {
    fn now() -> Started {
        Started { at: Instant::now(), utc: crate::log::utc(SystemTime::now()) }
    }

    /// The one shape of results, and what this command adds to it.
    fn report(&self, errors: u64, body: Value) -> String {
        let command: Vec<String> = std::env::args().skip(1).collect();
        let mut report = json!({
            "cnse": env!("CARGO_PKG_VERSION"),
            "command": command,
            "started_at": self.utc,
            "wall_s": self.at.elapsed().as_secs_f64(),
            "ok": u64::from(errors == 0),
            "errors": errors,
        });
        if let (Value::Object(report), Value::Object(body)) = (&mut report, body) {
            report.extend::<Map<String, Value>>(body);
        }
        format!("{report}\n")
    }
}

/// `1.5 GiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if amount < 9.95 => format!("{amount:.1} {}", UNITS[unit]),
        _ => format!("{amount:.0} {}", UNITS[unit]),
    }
}

/// `7.2B`, `137M`.
fn parameters(count: u64) -> String {
    let (amount, unit) = match count {
        0..1_000_000 => return count.to_string(),
        1_000_000..1_000_000_000 => (count as f64 / 1e6, "M"),
        _ => (count as f64 / 1e9, "B"),
    };
    if amount < 9.95 { format!("{amount:.1}{unit}") } else { format!("{amount:.0}{unit}") }
}

/// Aligns the columns of a table.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell: &String| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Names that a digest's first digits stand for in a table.
fn short(digest: &Digest) -> String {
    digest.short()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        assert_eq!(
            (size(0), size(1023), size(1536)),
            ("0 B".into(), "1023 B".into(), "1.5 KiB".into())
        );
        assert_eq!((size(40 << 30), size(u64::MAX)), ("40 GiB".into(), "16777216 TiB".into()));
        assert_eq!(parameters(137_000_000), "137M");
        assert_eq!((parameters(7_240_000_000), parameters(12)), ("7.2B".into(), "12".into()));
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), "d".to_owned()]];
        assert_eq!(table(&rows), "a    bb\nccc  d\n");
    }
}
