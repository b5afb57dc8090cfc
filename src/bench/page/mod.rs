//! `bench report`: from saved results to a document that a person understands unaided.
//!
//! ```text
//! record(s) --single, experiment, several--> Document --html, markdown--> text
//!              curves, terms, notices            charts ----------------> SVG, PNG files
//! ```
//!
//! What a reader must know first stands first: whether the figures are to be believed, and what was
//! asked and answered. Then figures, charts, tables; then where they come from and what the words
//! mean.

mod curves;
pub mod document;
mod experiment;
mod gateway;
pub mod html;
mod judged;
pub mod markdown;
mod notices;
mod scaling;
mod several;
mod single;
mod storage;
mod terms;

use std::collections::BTreeSet;

use document::{Block, Document, Table};
use serde_json::Value;

use super::chart::text::{figure, grouped, measured};
use super::record::{Distribution, Record};

/// A saved result and what to call it.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its file's name, without folder and ending.
    pub name: String,
    /// What it says.
    pub record: Record,
}

/// The report of one result, or of several side by side.
///
/// # Panics
/// There is none.
pub fn report(sources: &[Source], title: Option<&str>) -> Document {
    assert!(!sources.is_empty(), "a report is of something");
    let title = title.map_or_else(|| own_title(sources), str::to_owned);
    let mut document = Document { title, ..Document::default() };
    if let [source] = sources {
        single::write(&mut document, source);
    } else {
        several::write(&mut document, sources);
    }
    origin(&mut document, sources);
    glossary(&mut document, sources);
    document
}

fn own_title(sources: &[Source]) -> String {
    let command = |record: &Record| match record.command.as_slice() {
        [bench, what, ..] if bench == "bench" => format!("cnse bench {what}"),
        [what, ..] => format!("cnse {what}"),
        [] => "A result of cnse".to_owned(),
    };
    match sources {
        [one] => format!("{}: {}", command(&one.record), one.name),
        _ => {
            let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
            format!("{} results: {}", sources.len(), names.join(", "))
        }
    }
}

/// Where everything comes from, and how to make it again.
fn origin(document: &mut Document, sources: &[Source]) {
    let under = "Two figures can be compared only if these are the same, or differ in what was to \
                 be studied.";
    document.blocks.push(Block::Heading("Where it was measured".to_owned(), under.to_owned()));
    let mut names: Vec<String> = Vec::new();
    let columns: Vec<Vec<(String, String)>> =
        sources.iter().map(|source| environment(&source.record)).collect();
    for (name, _) in columns.iter().flatten() {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let rows = names.iter().map(|name| {
        let cell = |column: &Vec<(String, String)>| {
            let found = column.iter().find(|(known, _)| known == name);
            found.map_or("–".to_owned(), |(_, value)| value.clone())
        };
        [name.clone()].into_iter().chain(columns.iter().map(cell)).collect()
    });
    let heads = sources.iter().map(|source| source.name.clone());
    document.blocks.push(Block::Table(Table {
        columns: ["".to_owned()].into_iter().chain(heads).collect(),
        rows: rows.collect(),
        is_text: true,
        ..Table::default()
    }));
    document.blocks.push(Block::Part("Run it again".to_owned()));
    for source in sources.iter().filter(|source| !source.record.command.is_empty()) {
        let command = format!("cnse {}", quoted(&source.record.command));
        document.blocks.push(Block::Code(command));
    }
    document.words(
        "Or, with the saved file: cnse bench rerun FILE. It says first what is different on the \
         machine.",
    );
}

/// As names and values for people.
fn environment(record: &Record) -> Vec<(String, String)> {
    let mut rows = vec![
        ("began".to_owned(), record.started_at.clone()),
        ("took".to_owned(), format!("{} s", figure(record.wall_s))),
        ("cnse".to_owned(), record.cnse.clone()),
    ];
    let Some(environment) = &record.environment else { return rows };
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push((name.to_owned(), value));
        }
    };
    put("build", environment.build.clone());
    put("features", environment.features.join(", "));
    put("processor", environment.cpu.clone());
    put("cores", environment.cores.to_string());
    put(
        "memory",
        environment
            .memory_mib
            .map_or(String::new(), |mib| format!("{} GiB", figure(mib as f64 / 1024.0))),
    );
    put("kernel", environment.kernel.clone());
    put("host", environment.host.clone());
    put("clock governor", environment.governor.clone().unwrap_or_default());
    put("GPUs", environment.gpus.join(", "));
    put("GPU driver", environment.gpu_driver.clone().unwrap_or_default());
    for gpu in &environment.gpu_state {
        let gib = |bytes: u64| figure(bytes as f64 / f64::from(1 << 30));
        let busy =
            gpu.utilisation.map_or(String::new(), |share| format!(", {:.0} % busy", 100.0 * share));
        let (used, all) = (gib(gpu.used_bytes), gib(gpu.memory_bytes));
        put(&format!("{} at the end", gpu.name), format!("{used} of {all} GiB{busy}"));
    }
    put("seed", environment.seed.map_or(String::new(), |seed| seed.to_string()));
    if let Some(noise) = &environment.noise {
        put("other load, cores", grouped(noise.other_cores, 2));
        put("own load, cores", grouped(noise.own_cores, 2));
        put("taken by the hypervisor", format!("{} %", grouped(100.0 * noise.steal_share, 2)));
    }
    for (address, server) in &environment.servers {
        put(&format!("server {address}"), short(server));
    }
    for (model, digest) in &environment.models {
        put(&format!("model {model}"), digest.chars().take(16).collect::<String>() + "…");
    }
    rows
}

/// What a server says of itself, as far as it fits into a cell.
fn short(value: &Value) -> String {
    const CHARS: usize = 120;
    let text = match value {
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| match value {
                Value::String(text) => format!("{name} {text}"),
                other => format!("{name} {other}"),
            };
            members.iter().map(member).collect::<Vec<_>>().join(", ")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.chars().count() <= CHARS {
        return text;
    }
    text.chars().take(CHARS).chain(['…']).collect()
}

/// The meaning of every figure that the report shows.
fn glossary(document: &mut Document, sources: &[Source]) {
    let mut known = BTreeSet::new();
    for source in sources {
        let records = source.record.runs.iter().map(|run| &run.record);
        for record in records.chain([&source.record]) {
            known.extend(record.figures.keys().cloned());
        }
    }
    let shown = terms::FIGURES.iter().filter(|figure| known.contains(figure.name));
    let shown = shown.map(|figure| (figure.label.to_owned(), figure.meaning.to_owned()));
    let common =
        terms::COMMON.iter().map(|(term, meaning)| (term.to_string(), meaning.to_string()));
    document.blocks.push(Block::Heading("What the words mean".to_owned(), String::new()));
    document.blocks.push(Block::Terms(shown.chain(common).collect()));
}

/// A row a distribution: how many, and the percentiles that it carries, with their intervals.
fn percentile_table(rows: &[(String, Distribution)]) -> Table {
    let heads = ["ms", "n", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"];
    let row = |(name, d): &(String, Distribution)| {
        let mut cells = vec![name.clone(), grouped(d.n as f64, 0), plain(d.mean)];
        let named = [("p50", d.p50), ("p90", d.p90), ("p95", d.p95), ("p99", d.p99)];
        for (name, value) in named.into_iter().chain([("p999", d.p999)]) {
            cells.push(plain_with(value, d.ci.get(name).map(|ci| (ci.low, ci.high))));
        }
        cells.push(plain(d.max));
        cells
    };
    let has_intervals = rows.iter().any(|(_, d)| !d.ci.is_empty());
    Table {
        columns: heads.map(str::to_owned).to_vec(),
        rows: rows.iter().map(row).collect(),
        note: if has_intervals {
            "Under each figure its 95 % confidence interval. – : too few samples to carry it."
        } else {
            "– : too few samples to carry the figure."
        }
        .to_owned(),
        is_text: false,
    }
}

fn plain(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), measured)
}

/// A figure, and on a line of its own its interval.
fn plain_with(value: Option<f64>, interval: Option<(f64, f64)>) -> String {
    match (value, interval) {
        (Some(value), Some((low, high))) => {
            format!("{}\n{}–{}", measured(value), measured(low), measured(high))
        }
        (Some(value), None) => measured(value),
        (None, _) => "–".to_owned(),
    }
}

/// As one would type it into a shell.
pub fn quoted(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@%+".contains(c);
    let quote = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
