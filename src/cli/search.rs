//! `cnse search`: nearest neighbours in an embedding matrix.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::flags::{Flag, Parsed};
use super::{Error, print};
use crate::backend::discover::{call, resolve, target};
use crate::batch::matrix::ids_path;
use crate::cuda::{Choice, Device, Offload};
use crate::post::embedding::search::{Hit, Kind};
use crate::post::embedding::truncate;
use crate::post::matrix::{Matrix, Values};
use crate::post::nearest::{OVERSAMPLE_MAX, Wanted, nearest, oversample};
use crate::post::plan::TOPK_MAX;
use crate::post::threads;
use crate::wire::embeddings::Answer;

pub const HELP: &str = "\
usage: cnse search --matrix FILE.npy --query FILE|- [FLAGS]
       cnse search --matrix FILE.npy --text TEXT --server URL [FLAGS]

Nearest neighbours by cosine in a matrix of embeddings: 32-bit floats, int8, or bits (uint8, as
numpy's packbits). The matrix is read in blocks and need not fit into memory. Where FILE.ids.jsonl
stands beside it, as schedule --post writes it, rows are named. Of bits four times as many rows are
found, and put in order by the query's floats.

examples:
  cnse search --matrix texts.npy --text \"how do I reset it\" --server http://127.0.0.1:8090
  cnse search --matrix texts.npy --query queries.npy --topk 100 --json
  echo '[0.1, 0.2, 0.3, 0.4]' | cnse search --matrix texts.npy --query -
  cnse search --matrix bits.npy --rescore floats.npy --query queries.npy --oversample 10

environment:
  CNSE_API_KEY   sent to the server
";

pub const FLAGS: &[Flag] = &[
    Flag::new("matrix", "FILE", "where to look: a .npy file, a row for each embedding"),
    Flag::new(
        "query",
        "FILE",
        "queries: .npy, or JSON (a list of numbers, or of such lists); - is stdin",
    ),
    Flag::list("text", "TEXT", "a text to embed at --server; may stand several times"),
    Flag::new("server", "URL", "what embeds --text: a llama-server, cnse serve, or alike"),
    Flag::new("model", "NAME", "which of its models"),
    Flag::switch("truncate", "cut queries to the matrix' width, as its rows were"),
    Flag::new("topk", "N", "neighbours of each query (10)"),
    Flag::new(
        "oversample",
        "N",
        "so many times more are found first, and put in order by the query's floats (bits: 4, else 1)",
    ),
    Flag::new(
        "rescore",
        "FILE",
        "the same rows in a finer form, for --oversample (the matrix itself)",
    ),
    Flag::new("threads", "N", "threads that look (one for each core)"),
    Flag::new(
        "device",
        "NAME",
        "where it looks: auto, cpu or cuda:N; the same rows on each (auto: a card if it is worth it)",
    ),
    Flag::switch("json", "the result as one JSON object on stdout"),
    Flag::new("log", "LEVEL", "error, warn, info or debug (info)"),
];

/// A file of queries.
const QUERY_BYTES_MAX: u64 = 1 << 30;
/// What the server may take to embed.
const EMBED_TIMEOUT: Duration = Duration::from_secs(60);

/// Queries as they come.
struct Queries {
    rows: Vec<f32>,
    dims: usize,
}

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    super::log_level(parsed)?;
    let began = (Instant::now(), SystemTime::now());
    let usage = Error::Usage;
    let path = parsed.text("matrix").ok_or("--matrix FILE.npy is needed: where to look");
    let path = PathBuf::from(path.map_err(|error| usage(error.to_owned()))?);
    let k = parsed.number("topk", 1, TOPK_MAX).map_err(usage)?.unwrap_or(10);
    let asked = parsed.number("oversample", 1, OVERSAMPLE_MAX).map_err(usage)?;
    let threads = parsed.number("threads", 1, 1024).map_err(usage)?.unwrap_or_else(threads::cores);
    let texts = parsed.texts("text");
    let source = match (parsed.text("query"), texts.as_slice(), parsed.text("server")) {
        (Some(query), [], None) => Ok(query),
        (None, [_, ..], Some(server)) => Err(server),
        (None, [_, ..], None) => {
            return Err(usage("--text needs --server URL: what embeds it".to_owned()));
        }
        _ => return Err(usage("--query FILE, or --text TEXT and --server URL".to_owned())),
    };
    let failed = |error: &dyn std::fmt::Display| Error::Failed(error.to_string());
    let device = Device::new(parsed.device().map_err(usage)?);
    let is_wanted = matches!(device.choice(), Choice::Device(_));
    if is_wanted {
        device.start();
    }
    let matrix = Matrix::open(&path).map_err(|error| failed(&error))?;
    let finer = parsed.text("rescore").map(|path| Matrix::open(Path::new(path))).transpose();
    let finer = finer.map_err(|error| failed(&error))?;
    let queries = match source {
        Ok(file) => from_file(file),
        Err(server) => from_server(server, parsed.text("model"), &texts),
    };
    let mut queries = queries.map_err(Error::Failed)?;
    if parsed.has("truncate") {
        truncate(&mut queries.rows, queries.dims, matrix.dims()).map_err(|error| failed(&error))?;
        queries.dims = matrix.dims();
    }
    let rescored = if finer.is_some() { 4 } else { oversample(matrix.kind()) };
    let oversample = asked.unwrap_or(rescored);
    let wanted = Wanted { queries: &queries.rows, dims: queries.dims, k, oversample, threads };
    if is_wanted && let Err(why) = device.start().wait() {
        return Err(failed(why));
    }
    let found = nearest(&matrix, finer.as_ref(), &wanted, &mut Offload::new(&device));
    let found = found.map_err(|error| failed(&error))?;
    let names = names(&path, matrix.rows(), &found).map_err(Error::Failed)?;
    if parsed.has("json") {
        return print(&as_json(&matrix, &queries, &found, &names, began));
    }
    print(&as_text(&found, &names))
}

fn from_file(file: &str) -> Result<Queries, String> {
    if file.ends_with(".npy") {
        let matrix = Matrix::open(Path::new(file)).map_err(|error| error.to_string())?;
        if matrix.kind() != Kind::F32 {
            return Err(format!(
                "{file}: queries are 32-bit floats, and become what the matrix is"
            ));
        }
        let (dims, rows) = (matrix.dims(), matrix.rows());
        if rows.saturating_mul(dims as u64 * 4) > QUERY_BYTES_MAX {
            return Err(format!("{file}: more than {QUERY_BYTES_MAX} bytes of queries"));
        }
        let values = matrix.read(0, rows).map_err(|error| error.to_string())?;
        let Values::F32(rows) = values else { unreachable!("floats, as was just seen") };
        return Ok(Queries { rows, dims });
    }
    let name = if file == "-" { "the query on stdin" } else { file };
    let mut bytes = Vec::new();
    let read = |reader: &mut dyn Read, bytes: &mut Vec<u8>| {
        reader.take(QUERY_BYTES_MAX + 1).read_to_end(bytes).map(drop)
    };
    let done = match file {
        "-" => read(&mut std::io::stdin(), &mut bytes),
        file => File::open(file).and_then(|mut file| read(&mut file, &mut bytes)),
    };
    done.map_err(|error| format!("cannot read {name}: {error}"))?;
    if bytes.len() as u64 > QUERY_BYTES_MAX {
        return Err(format!("{name}: more than {QUERY_BYTES_MAX} bytes"));
    }
    from_json(&bytes).map_err(|error| format!("{name}: {error}"))
}

/// A list of numbers, a list of such lists, or an answer of `/v1/embeddings`.
fn from_json(bytes: &[u8]) -> Result<Queries, String> {
    if bytes.trim_ascii_start().starts_with(b"{") {
        let answer = Answer::parse(bytes).map_err(|error| error.to_string())?;
        return whole(answer.vectors, answer.dims);
    }
    if let Ok(row) = serde_json::from_slice::<Vec<f32>>(bytes) {
        let dims = row.len();
        return whole(row, dims);
    }
    let rows: Vec<Vec<f32>> = serde_json::from_slice(bytes)
        .map_err(|error| format!("not a list of numbers, or of such lists: {error}"))?;
    let dims = rows.first().map_or(0, Vec::len);
    match rows.iter().position(|row| row.len() != dims) {
        Some(at) => Err(format!("query 0 has {dims} dimensions and query {at} {}", rows[at].len())),
        None => whole(rows.concat(), dims),
    }
}

fn whole(rows: Vec<f32>, dims: usize) -> Result<Queries, String> {
    if dims == 0 { Err("there is no query in it".to_owned()) } else { Ok(Queries { rows, dims }) }
}

fn from_server(server: &str, model: Option<&str>, texts: &[&str]) -> Result<Queries, String> {
    let mut target = target(server)?;
    let key = std::env::var("CNSE_API_KEY").ok().filter(|key| !key.is_empty());
    target.authorization = key.map(|key| format!("Bearer {key}"));
    let mut body = json!({ "input": texts });
    if let Some(model) = model {
        body["model"] = model.into();
    }
    let address = resolve(&target.authority)?;
    let body = body.to_string();
    let (status, answer) =
        call(&target, address, "/v1/embeddings", Some(body.as_bytes()), EMBED_TIMEOUT)
            .map_err(|error| format!("{server}: {error}"))?;
    if status != 200 {
        let answer = String::from_utf8_lossy(&answer);
        return Err(format!("{server} answers {status}: {}", answer.trim_ascii()));
    }
    let answer = Answer::parse(&answer).map_err(|error| format!("{server}: {error}"))?;
    whole(answer.vectors, answer.dims)
}

/// The names of the rows that were found; none if the matrix has no file of names.
fn names(matrix: &Path, rows: u64, found: &[Vec<Hit>]) -> Result<HashMap<u64, Value>, String> {
    let path = ids_path(matrix);
    let mut wanted: Vec<u64> = found.iter().flatten().map(|hit| hit.row).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashMap::new()),
        opened => opened.map_err(|error| format!("cannot read {path:?}: {error}"))?,
    };
    let (mut reader, mut line) = (BufReader::with_capacity(1 << 20, file), Vec::new());
    let (mut number, mut next) = (0u64, wanted.iter().peekable());
    let mut names = HashMap::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line);
        if read.map_err(|error| format!("cannot read {path:?}: {error}"))? == 0 {
            break;
        }
        if next.next_if(|row| **row == number).is_some() {
            let name = serde_json::from_slice(&line);
            let name = name.map_err(|error| format!("line {} of {path:?}: {error}", number + 1))?;
            names.insert(number, name);
        }
        number += 1;
    }
    if number != rows {
        return Err(format!(
            "{path:?} names {number} rows, and {matrix:?} has {rows}: they are not of one run; the \
             job's command makes both again"
        ));
    }
    Ok(names)
}

fn as_json(
    matrix: &Matrix,
    queries: &Queries,
    found: &[Vec<Hit>],
    names: &HashMap<u64, Value>,
    began: (Instant, SystemTime),
) -> String {
    let hit = |hit: &Hit| {
        let mut object = json!({ "row": hit.row, "score": hit.score });
        if let Some(Value::Object(name)) = names.get(&hit.row) {
            object.as_object_mut().expect("it was made above").extend(name.clone());
        }
        object
    };
    let results: Vec<Value> = found
        .iter()
        .enumerate()
        .map(|(query, hits)| json!({ "query": query, "nearest": hits.iter().map(hit).collect::<Vec<_>>() }))
        .collect();
    let kind = match matrix.kind() {
        Kind::F32 => "f32",
        Kind::Int8 => "int8",
        Kind::Binary => "binary",
    };
    let object = json!({
        "cnse": env!("CARGO_PKG_VERSION"),
        "command": std::env::args().skip(1).collect::<Vec<_>>(),
        "started_at": crate::log::utc(began.1),
        "wall_s": began.0.elapsed().as_secs_f64(),
        "rows": matrix.rows(), "dims": queries.dims, "kind": kind, "queries": found.len(),
        "results": results,
    });
    format!("{object}\n")
}

fn as_text(found: &[Vec<Hit>], names: &HashMap<u64, Value>) -> String {
    let mut text = String::new();
    for (query, hits) in found.iter().enumerate() {
        if found.len() > 1 {
            text += &format!("query {query}\n");
        }
        for (place, hit) in (1..).zip(hits) {
            let name = names.get(&hit.row).map_or(String::new(), |name| {
                let id = name["custom_id"].as_str().unwrap_or_default();
                match name["index"].as_u64() {
                    Some(0) | None => format!("  {id}"),
                    Some(index) => format!("  {id} [{index}]"),
                }
            });
            text += &format!("{place:>5}  {:>9.6}  row {}{name}\n", hit.score, hit.row);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_in_json() {
        let read = |text: &str| from_json(text.as_bytes()).map(|q| (q.rows, q.dims));
        assert_eq!(read("[1, 2.5]"), Ok((vec![1.0, 2.5], 2)));
        assert_eq!(read(" [[1,2],[3,4]]"), Ok((vec![1.0, 2.0, 3.0, 4.0], 2)));
        assert_eq!(read(r#"{"data":[{"embedding":[7]}]}"#), Ok((vec![7.0], 1)));
        for (text, says) in [
            ("[]", "no query"),
            ("[[1],[2,3]]", "query 1 2"),
            ("{\"x\":1}", "no answer of /v1/embeddings"),
            ("\"x\"", "not a list of numbers"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
