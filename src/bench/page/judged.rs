//! What was asked of results and what came of it: verdicts on expectations (`bench sweep`), changes
//! and limits (`bench compare`), the best setting (`--tune`).

use serde_json::Value;

use super::document::{Block, Document, Notice, Table, Weight};
use super::{notices, terms};
use crate::bench::chart::forest::{Effect, Forest};
use crate::bench::chart::text::{change, figure, measured};
use crate::bench::record::Record;

/// The answers, at the top.
pub fn answers(document: &mut Document, record: &Record) {
    let verdicts = list(record, "verdicts").map(verdict);
    let limits = list(record, "limits").map(limit);
    let best = record.figures.get("best").and_then(best);
    let answers: Vec<Notice> = verdicts.chain(limits).chain(best).collect();
    if !answers.is_empty() {
        document.blocks.push(Block::Notices(answers));
    }
}

/// Effects and changes, drawn.
pub fn write(document: &mut Document, record: &Record) {
    let verdicts = list(record, "verdicts").filter(|one| one["is_ratio"] == true);
    let rows: Vec<Effect> = verdicts.filter_map(effect_of_verdict).collect();
    let subtitle = "How much more, or less, the left setting brought than the right one. Bars are \
                    the confidence intervals of the verdicts; where a bar does not reach the line \
                    of no effect the point is filled and bold.";
    forest(document, "Effects of what was expected", subtitle, rows);
    let changes: Vec<&Value> = list(record, "changes").collect();
    if changes.is_empty() {
        return;
    }
    let under = "The second result against the first: B against A.";
    document.blocks.push(Block::Heading("Changes".to_owned(), under.to_owned()));
    for note in list(record, "differences").filter_map(Value::as_str) {
        document.words(notices::sentence(note));
    }
    let rows = changes.iter().filter_map(|one| effect_of_change(one)).collect();
    let subtitle = "Left of the line B has less than A, right of it more: of times less is better, \
                    of rates more. Bars are 95 % confidence intervals; where a bar does not reach \
                    the line the two differ, and the point is filled and bold.";
    forest(document, "Changes from A to B", subtitle, rows);
    let row = |one: &&Value| {
        let number = |name: &str| one[name].as_f64().map_or("–".to_owned(), measured);
        let (value, interval) = share(one, "change");
        let value = value.map_or("–".to_owned(), |value| format!("{} %", change(value)));
        let cell = match interval {
            Some((low, high)) => format!("{value}\n{} to {} %", change(low), change(high)),
            None => value,
        };
        vec![name_of_change(one), number("a"), number("b"), cell, ground(one)]
    };
    document.blocks.push(Block::Table(Table {
        columns: ["", "A", "B", "change", "from"].map(str::to_owned).to_vec(),
        rows: changes.iter().map(row).collect(),
        ..Table::default()
    }));
}

fn forest(document: &mut Document, title: &str, subtitle: &str, rows: Vec<Effect>) {
    if rows.is_empty() {
        return;
    }
    let forest = Forest {
        title: title.to_owned(),
        subtitle: subtitle.to_owned(),
        label: "change, %".to_owned(),
        none_at: 0.0,
        rows,
    };
    document.chart(title, title, forest.to_svg());
}

fn list<'r>(record: &'r Record, name: &str) -> impl Iterator<Item = &'r Value> + use<'r> {
    record.figures.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// A ratio in per cent, and its interval.
fn share(one: &Value, name: &str) -> (Option<f64>, Option<(f64, f64)>) {
    let end = |at: usize| one["ci"][at].as_f64().map(|share| 100.0 * share);
    let interval = end(0).zip(end(1));
    (one[name].as_f64().map(|share| 100.0 * share), interval)
}

fn verdict(one: &Value) -> Notice {
    let text = |name: &str| one[name].as_str().unwrap_or_default();
    let word = match text("verdict") {
        "supported" => "Supported",
        "refuted" => "Refuted",
        _ => "Undecided",
    };
    let mut words = format!("{word}: {}", text("expect"));
    let is_ratio = one["is_ratio"] == true;
    let plain = || (one["effect"].as_f64(), one["ci"][0].as_f64().zip(one["ci"][1].as_f64()));
    let (effect, interval) = if is_ratio { share(one, "effect") } else { plain() };
    if let Some(effect) = effect {
        let show = if is_ratio { change } else { measured };
        let unit = if is_ratio { " %" } else { "" };
        words += &format!(". Measured: {}{unit}", show(effect));
        if let (Some((low, high)), Some(alpha)) = (interval, one["alpha"].as_f64()) {
            words += &format!(
                " ({} to {}{unit} with {} % confidence)",
                show(low),
                show(high),
                figure(100.0 * (1.0 - alpha))
            );
        }
    }
    words.push('.');
    match (word, one["repeats_needed"].as_u64(), effect) {
        ("Undecided", Some(needed), _) => {
            words += &format!(" About {needed} more repeats would tell.");
        }
        ("Undecided", None, Some(_)) => {
            words += " Too near the limit to tell with any sensible number of repeats.";
        }
        ("Undecided", None, None) => words += " Three blocks with figures are needed at least.",
        _ => {}
    }
    Notice { weight: Weight::Answer, words }
}

fn limit(one: &Value) -> Notice {
    let failed = one["failed"] == true;
    let text = |name: &str| one[name].as_str().unwrap_or_default();
    let words = format!(
        "{}: to fail if {}: {}",
        if failed { "Failed" } else { "Passed" },
        text("fail_if"),
        notices::sentence(text("verdict"))
    );
    Notice { weight: Weight::Answer, words }
}

fn best(one: &Value) -> Option<Notice> {
    let settings = one["settings"].as_object()?;
    let settings = settings.iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name} {text}"),
        other => format!("{name} {other}"),
    });
    let words = format!(
        "The best setting that was found: {}, with {} of about {}.",
        settings.collect::<Vec<_>>().join(", "),
        terms::label(one["figure"].as_str().unwrap_or_default()),
        measured(one["value"].as_f64()?)
    );
    Some(Notice { weight: Weight::Answer, words })
}

fn effect_of_verdict(one: &Value) -> Option<Effect> {
    let (effect, interval) = share(one, "effect");
    let away = interval.is_some_and(|(low, high)| low > 0.0 || high < 0.0);
    Some(Effect {
        name: one["expect"].as_str()?.to_owned(),
        effect: Some(effect?),
        interval,
        words: one["verdict"].as_str().unwrap_or_default().to_owned(),
        stands_out: away,
    })
}

fn effect_of_change(one: &Value) -> Option<Effect> {
    let (value, interval) = share(one, "change");
    let value = value?;
    let words = match interval {
        Some((low, high)) => format!("{} % ({} to {})", change(value), change(low), change(high)),
        None => format!("{} %", change(value)),
    };
    let away = interval.is_some_and(|(low, high)| low > 0.0 || high < 0.0);
    Some(Effect {
        name: name_of_change(one),
        effect: Some(value),
        interval,
        words,
        stands_out: away,
    })
}

fn name_of_change(one: &Value) -> String {
    let mut name = terms::label(one["figure"].as_str().unwrap_or_default());
    for (setting, value) in one["settings"].as_object().into_iter().flatten() {
        name += &match value {
            Value::String(text) => format!(", {setting} {text}"),
            other => format!(", {setting} {other}"),
        };
    }
    name
}

/// What a change stands on.
fn ground(one: &Value) -> String {
    let ground = &one["ground"];
    if let Some(pairs) = ground["pairs"].as_u64() {
        return format!("{pairs} pairs");
    }
    if let (Some(a), Some(b)) = (ground["runs"][0].as_u64(), ground["runs"][1].as_u64()) {
        return format!("{a} and {b} runs");
    }
    ground.as_str().unwrap_or("–").to_owned()
}
