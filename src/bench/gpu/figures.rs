//! What was measured, as a table, as CSV and as runs of a record.

use serde_json::{Map, Value, json};

use super::measure::Times;
use crate::bench::record::{Record, Run};

/// What stands at the top of each column of the CSV.
const COLUMNS: &str =
    "group,name,shape,bytes,time_us_p50,time_us_p10,time_us_p90,gb_per_s,copy_share";

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// `kernel` for what the card's clock timed, `host` for the host's.
    pub group: &'static str,
    /// Of what.
    pub name: String,
    /// Of which size.
    pub shape: String,
    /// Bytes that it must read and write at least; 0 where that says nothing.
    pub bytes: usize,
    /// How long a call takes.
    pub times: Times,
    /// What else it says.
    pub more: Vec<(&'static str, f64)>,
}

impl Figure {
    /// Of a kernel, by the card's clock.
    pub fn kernel(name: String, shape: String, bytes: usize, times: Times) -> Figure {
        Figure { group: "kernel", name, shape, bytes, times, more: Vec::new() }
    }

    /// By the host's clock.
    pub fn host(name: &str, shape: &str, bytes: usize, times: Times) -> Figure {
        let (name, shape) = (name.to_owned(), shape.to_owned());
        Figure { group: "host", name, shape, bytes, times, more: Vec::new() }
    }

    /// With a number more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: f64) -> Figure {
        self.more.push((name, value));
        self
    }

    /// Bytes a second, in 10^9.
    fn gb_per_s(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.bytes as f64 / self.times.median() / 1e3)
    }
}

/// The share of the copy's bytes a second that each kernel has: the copy is the one in this list.
fn shares(figures: &[Figure]) -> impl Fn(&Figure) -> Option<f64> {
    let copy = figures.iter().find(|figure| figure.group == "kernel" && figure.name == "copy");
    let copy = copy.and_then(Figure::gb_per_s);
    move |figure| (figure.group == "kernel").then_some(figure.gb_per_s()? / copy?)
}

/// For people.
pub fn table(figures: &[Figure]) -> String {
    let share = shares(figures);
    let mut text = format!(
        "{:<34} {:<34} {:>11} {:>11} {:>9} {:>6}\n",
        "", "", "median us", "p90 us", "GB/s", "copy"
    );
    for figure in figures {
        let rate = figure.gb_per_s().map_or_else(String::new, |rate| format!("{rate:.1}"));
        let share = share(figure).map_or_else(String::new, |s| format!("{:.1}%", 100.0 * s));
        let line = format!(
            "{:<34} {:<34} {:>11.3} {:>11.3} {rate:>9} {share:>6}",
            figure.name,
            figure.shape,
            figure.times.median(),
            figure.times.quantile(0.9),
        );
        text.push_str(line.trim_end());
        for (name, value) in &figure.more {
            text.push_str(&format!("  {name} {value:.3}"));
        }
        text.push('\n');
    }
    text
}

/// A line for each.
pub fn csv(figures: &[Figure]) -> String {
    let share = shares(figures);
    let mut text = format!("{COLUMNS}\n");
    for figure in figures {
        let number = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.4}"));
        text.push_str(&format!(
            "{},\"{}\",\"{}\",{},{:.3},{:.3},{:.3},{},{}\n",
            figure.group,
            figure.name,
            figure.shape,
            figure.bytes,
            figure.times.median(),
            figure.times.quantile(0.1),
            figure.times.quantile(0.9),
            number(figure.gb_per_s()),
            number(share(figure)),
        ));
    }
    text
}

/// A run for each.
pub fn runs(figures: &[Figure]) -> Vec<Run> {
    let share = shares(figures);
    let run = |(sequence, figure): (usize, &Figure)| {
        let object = |value: Value| match value {
            Value::Object(object) => object,
            _ => Map::new(),
        };
        let settings = json!({
            "group": figure.group, "name": figure.name, "shape": figure.shape,
        });
        let mut numbers = object(json!({
            "bytes": figure.bytes,
            "time_us": {
                "p10": figure.times.quantile(0.1),
                "p50": figure.times.median(),
                "p90": figure.times.quantile(0.9),
            },
            "gb_per_s": figure.gb_per_s(),
            "copy_share": share(figure),
        }));
        for (name, value) in &figure.more {
            numbers.insert((*name).to_owned(), json!(value));
        }
        let record = Record { ok: 1, figures: numbers, ..Record::default() };
        let sequence = u32::try_from(sequence).unwrap_or(u32::MAX);
        Run { settings: object(settings), sequence, record, ..Run::default() }
    };
    figures.iter().enumerate().map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_copy() {
        let kernel = |name: &str, us: f64| {
            Figure::kernel(name.to_owned(), "[1]".to_owned(), 1_000_000, Times::new(vec![us; 3]))
        };
        let figures = vec![
            kernel("copy", 1.0),
            kernel("half", 2.0).with("hidden", 0.5),
            Figure::host("launch", "the call alone", 0, Times::new(vec![4.0])),
        ];
        let text = table(&figures);
        assert!(text.contains("1000.0 100.0%") && text.contains("50.0%  hidden 0.500"), "{text}");
        let csv = csv(&figures);
        assert!(csv.contains("kernel,\"half\",\"[1]\",1000000,2.000,2.000,2.000,500.0000,0.5000"));
        assert!(csv.ends_with("host,\"launch\",\"the call alone\",0,4.000,4.000,4.000,,\n"));
        let runs = runs(&figures);
        assert_eq!(runs[1].record.figures["copy_share"], json!(0.5));
        assert!(runs[2].record.figures["gb_per_s"].is_null());
    }
}
