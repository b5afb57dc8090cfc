//! `bench storage`: rates, and each as a share of what binds it.

use super::document::{Block, Document, Notice, Table, Weight};
use crate::bench::chart::forest::{Effect, Forest};
use crate::bench::chart::text::{figure, grouped, measured};
use crate::bench::record::Record;
use crate::bench::storage::figures::{Figure, Middle, figures};

/// Whether a result is one.
pub fn is_one(record: &Record) -> bool {
    record.figures.get("storage").is_some_and(serde_json::Value::is_array)
}

/// Writes a chart and a table for each length of file.
pub fn write(document: &mut Document, record: &Record) {
    let cores = record.environment.as_ref().map_or(1, |environment| environment.cores);
    let all = figures(&record.runs, cores);
    let left_out = record.figures.get("left_out").and_then(|all| all.as_array());
    let left_out = left_out.into_iter().flatten().filter_map(|words| words.as_str());
    let notices: Vec<Notice> = left_out
        .map(|words| {
            let words = format!("Not measured: {words}.");
            Notice { weight: Weight::Doubt, words }
        })
        .collect();
    if !notices.is_empty() {
        document.blocks.push(Block::Notices(notices));
    }
    let mut sizes: Vec<u64> = all.iter().map(|figure| figure.setting.bytes).collect();
    sizes.dedup();
    let runs = all.iter().map(|figure| figure.mb_per_s.n).max().unwrap_or(0);
    for bytes in sizes {
        let of_size: Vec<&Figure> =
            all.iter().filter(|figure| figure.setting.bytes == bytes).collect();
        let under = format!(
            "{runs} runs of each, interleaved and in random order; medians. Warm: the file is in \
             the kernel's memory before, which is checked; cold: nothing of it is."
        );
        let heading = format!("A file of {} MB", figure_of(bytes));
        document.blocks.push(Block::Heading(heading.clone(), under));
        let forest = Forest {
            title: format!("{heading}: how near to what binds it"),
            subtitle: "Each as a share of the slower of what it cannot do without, measured in \
                       the same blocks: SHA-256 in memory on one core, reading the file, copying \
                       it. On the line there is nothing left to win. Bars are 95 % confidence \
                       intervals; where a bar does not reach the line, the point is filled and \
                       bold."
                .to_owned(),
            label: "share of what binds it, %".to_owned(),
            none_at: 100.0,
            rows: of_size.iter().filter_map(|figure| row(figure)).collect(),
        };
        if !forest.rows.is_empty() {
            document.chart(&format!("storage {bytes}"), &forest.title, forest.to_svg());
        }
        document.blocks.push(Block::Table(table(&of_size)));
    }
}

/// Megabytes.
fn figure_of(bytes: u64) -> String {
    figure(bytes as f64 / 1e6)
}

fn row(found: &Figure) -> Option<Effect> {
    let limit = found.limit?;
    let interval = limit.share.interval.map(|ci| (100.0 * ci.low, 100.0 * ci.high));
    Some(Effect {
        name: name(found),
        effect: Some(100.0 * limit.share.p50),
        interval,
        words: format!("{} MB/s", measured(found.mb_per_s.p50)),
        stands_out: interval.is_some_and(|(low, high)| high < 100.0 || low > 100.0),
    })
}

/// `put to a directory, 2 threads, cold`.
fn name(found: &Figure) -> String {
    let name = found.setting.to_string();
    if found.is_linked { format!("{name} (linked)") } else { name }
}

fn table(all: &[&Figure]) -> Table {
    let cell = |middle: &Middle, factor: f64| match middle.interval {
        None => measured(factor * middle.p50),
        Some(ci) => format!(
            "{}\n{}–{}",
            measured(factor * middle.p50),
            measured(factor * ci.low),
            measured(factor * ci.high)
        ),
    };
    let row = |found: &&Figure| {
        let (share, of) = found.limit.map_or_else(
            || ("–".to_owned(), "–".to_owned()),
            |limit| (cell(&limit.share, 100.0), limit.name()),
        );
        vec![
            name(found),
            cell(&found.mb_per_s, 1.0),
            cell(&found.wall_s, 1.0),
            grouped(found.cpu_s.p50, 3),
            share,
            of,
        ]
    };
    let heads = ["", "MB/s", "time, s", "processors, s", "share, %", "of"];
    let has_linked = all.iter().any(|figure| figure.is_linked);
    Table {
        columns: heads.map(str::to_owned).to_vec(),
        rows: all.iter().map(row).collect(),
        note: "1 MB is 10^6 bytes. Under each median its 95 % confidence interval, where there are \
               six runs or more."
            .to_owned() + if has_linked {
            " Linked: blobs and cache are on one disk, so a get hashes the file and gives it a \
                 second name instead of copying it."
        } else {
            ""
        },
        is_text: false,
    }
}
