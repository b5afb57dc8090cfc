//! Whether figures are to be believed: what stands at the top of a report.

use serde_json::Value;

use super::Source;
use super::document::{Block, Document, Notice, Weight};
use crate::bench::chart::text::{capital, figure, grouped};
use crate::bench::record::Record;

/// A share of failures past which the figures of the rest say little: the slowest are missing.
const ERROR_SHARE_MAX: f64 = 0.01;
/// Notices of one report; more would hide the figures.
const NOTICES_MAX: usize = 12;

/// Puts them at the top, the gravest first.
pub fn write(document: &mut Document, sources: &[Source]) {
    let mut notices = Vec::new();
    for source in sources {
        let name = if sources.len() > 1 { format!("{}: ", source.name) } else { String::new() };
        for notice in of(&source.record) {
            let words = format!("{name}{}", notice.words);
            notices.push(Notice { words, ..notice });
        }
    }
    notices.sort_by_key(|notice| notice.weight);
    let doubts = notices.iter().any(|notice| notice.weight < Weight::Answer);
    if !doubts {
        let words = "Nothing was found that puts the figures in doubt: no failures, no other load \
                     on the machine to speak of, a generator that kept up.";
        let known = sources.iter().all(|source| {
            let environment = source.record.environment.as_ref();
            environment.is_some_and(|environment| environment.noise.is_some())
        });
        let words = if known {
            words.to_owned()
        } else {
            "No failures. The result does not say what else the machine did meanwhile.".to_owned()
        };
        notices.push(Notice { weight: Weight::Good, words });
    }
    if notices.len() > NOTICES_MAX {
        let rest = notices.len() - NOTICES_MAX;
        notices.truncate(NOTICES_MAX);
        let words = format!("{rest} more warnings are in the results' files.");
        notices.push(Notice { weight: Weight::Doubt, words });
    }
    document.blocks.push(Block::Notices(notices));
}

fn of(record: &Record) -> Vec<Notice> {
    let mut notices = Vec::new();
    let mut say = |weight, words: String| notices.push(Notice { weight, words });
    let generator = record.figures.get("generator");
    if generator.is_some_and(|generator| generator["limited"] == true) {
        let reasons = generator.map(|generator| texts(&generator["reasons"])).unwrap_or_default();
        let what = match generator.is_some_and(|generator| generator["touches"] == "itl_ms") {
            true => "the times between texts are its own",
            false => "these are its figures",
        };
        say(
            Weight::Bad,
            format!(
                "The load generator was the bound, so {what} as much as the server's: {}.",
                reasons.join("; ")
            ),
        );
    }
    let limited = record.runs.iter().filter(|run| {
        run.record.figures.get("generator").is_some_and(|generator| generator["limited"] == true)
    });
    match limited.count() {
        0 => {}
        count => say(
            Weight::Doubt,
            format!(
                "In {count} of {} runs the load generator was the bound; their figures are its own \
                 as much as the server's.",
                record.runs.len()
            ),
        ),
    }
    failures(record, &mut say);
    if let Some(environment) = &record.environment {
        if environment.build == "debug" {
            let words = "Measured with a debug build of cnse: figures of its own speed are worth \
                         little.";
            say(Weight::Bad, words.to_owned());
        }
        if let Some(warning) = environment.noise.as_ref().and_then(|noise| noise.warning()) {
            say(
                Weight::Doubt,
                format!("The machine was not quiet: {warning}. Tails suffer first."),
            );
        }
    }
    for name in ["warnings", "warning", "note"] {
        match record.figures.get(name) {
            Some(Value::String(text)) => say(Weight::Doubt, sentence(text)),
            Some(list) => texts(list).iter().for_each(|text| say(Weight::Doubt, sentence(text))),
            None => {}
        }
    }
    // A run may warn of what its environment says as well.
    let mut said: Vec<String> = Vec::new();
    notices.retain(|notice| {
        let core = notice.words.trim_end_matches('.').to_lowercase();
        let is_new = !said.iter().any(|earlier| earlier.contains(&core));
        said.push(core);
        is_new
    });
    notices
}

fn failures(record: &Record, say: &mut impl FnMut(Weight, String)) {
    let all = record.ok + record.errors;
    if record.errors > 0 {
        let mut kinds: Vec<(&String, &u64)> = record.errors_by_kind.iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let most: Vec<String> =
            kinds.iter().take(3).map(|(kind, count)| format!("{count} × {kind}")).collect();
        let share = record.errors as f64 / all as f64;
        let weight = if share > ERROR_SHARE_MAX { Weight::Bad } else { Weight::Doubt };
        let most = if most.is_empty() { String::new() } else { format!(" ({})", most.join(", ")) };
        say(
            weight,
            format!(
                "{} of {} failed, {} %{most}. Failed ones are in no latency; what fails is often \
                 what would have been slow.",
                grouped(record.errors as f64, 0),
                grouped(all as f64, 0),
                figure(100.0 * share),
            ),
        );
    }
    if all == 0 && record.runs.is_empty() && record.figures.contains_key("e2e_ms") {
        say(Weight::Bad, "Nothing was measured: no request ended well.".to_owned());
    }
    let failed: Vec<&str> = record.runs.iter().filter_map(|run| run.failure.as_deref()).collect();
    if let Some(first) = failed.first() {
        say(
            Weight::Doubt,
            format!(
                "{} of {} runs brought no figures; the first said: {}",
                failed.len(),
                record.runs.len(),
                sentence(first)
            ),
        );
    }
}

fn texts(list: &Value) -> Vec<String> {
    let texts = list.as_array().into_iter().flatten();
    texts.filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// With a capital and a full stop.
pub fn sentence(text: &str) -> String {
    let text = text.trim();
    let end = if text.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{}{end}", capital(text))
}
