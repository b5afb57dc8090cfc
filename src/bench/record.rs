//! The one shape that results have, as a file that can be drawn, compared and run again.
//!
//! ```text
//! {"cnse": "0.1.0", "record": 1, "command": ["bench", "latency", …],
//!  "started_at": "2026-11-24T18:00:00.000Z", "wall_s": 12.5, "ok": 1000, "errors": 0,
//!  "requests_per_s": 80.0, "ttft_ms": D, …, "environment": {…}, "series": {…}, "runs": [RUN, …]}
//! D = {"n": 1000, "mean": …, "min": …, "p50": …, …, "max": …, "ci": {"p50": [low, high], …},
//!      "confidence": 0.95, "inflation": 1.8, "histogram": "HdrHistogram V2 in base64, of µs"}
//! RUN = {"settings": {"inflight": 16}, "repeat": 0, "sequence": 3, "ok": …, …: as a result}
//! ```
//!
//! What a reader does not know it keeps: a file of a later version goes through `compare` and
//! `report` and loses nothing. Figures are numbers or `D`s under their own names, and one inside
//! another has the path's parts joined by `_`: `ttft_ms_p99`, `steals_won`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::statistics::quantile::{self, Steps};
use super::statistics::{CONFIDENCE, Interval};
use crate::machine::environment::Environment;
use crate::metrics::durations::{Durations, PERCENTILES};

/// The version of the shape. It grows when a reader of the old one would misread the new one; a
/// name that is added needs no new version.
pub const VERSION: u32 = 1;

/// A result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The version of the program.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cnse: String,
    /// The version of the shape; 0: of `client` and `schedule`, which have the common part only.
    #[serde(skip_serializing_if = "is_zero")]
    pub record: u32,
    /// The command line, without the program.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// When it began (RFC 3339).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub started_at: String,
    /// How long it took, in seconds.
    pub wall_s: f64,
    /// Requests, or whatever was counted, that ended well.
    pub ok: u64,
    /// That failed.
    pub errors: u64,
    /// Failures by what they said.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub errors_by_kind: BTreeMap<String, u64>,
    /// All figures, by name: numbers, `D`s, lists, and what a later version says.
    #[serde(flatten)]
    pub figures: Map<String, Value>,
    /// What happened when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<Series>,
    /// Where and with what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// Of an experiment: its runs, in the order in which they were made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<Run>,
}

/// A run of an experiment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// What was set: `{"inflight": 16}`.
    pub settings: Map<String, Value>,
    /// The block of the experiment: each setting is run once in each.
    pub repeat: u32,
    /// Its place in the order in which the runs were made, from 0.
    pub sequence: u32,
    /// Why it brought no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What it brought.
    #[serde(flatten)]
    pub record: Record,
}

/// Figures over time, in intervals of one length; column by column.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Series {
    /// The first interval's start, in seconds since the run's.
    pub start_s: f64,
    /// The length of an interval, in seconds.
    pub interval_s: f64,
    /// Figures by name (`ok`, `errors`, `tokens`, `in_flight`, `e2e_ms_p50`, `e2e_ms_max`, …), a
    /// value for each interval; null: nothing happened in it.
    pub columns: BTreeMap<String, Vec<Option<f64>>>,
    /// Single events worth a point of their own: `{"t_s": 3.2, "figure": "e2e_ms", "value": 950}`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outliers: Vec<Outlier>,
}

/// One event that stands out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outlier {
    /// When, in seconds since the run's start.
    pub t_s: f64,
    /// Of which figure.
    pub figure: String,
    /// How much.
    pub value: f64,
}

/// Durations of one kind, in milliseconds: the `D` of the shape.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Distribution {
    /// Samples.
    pub n: u64,
    /// The mean; percentiles and ends as their names say. What the samples cannot carry is null.
    pub mean: Option<f64>,
    /// The least.
    pub min: Option<f64>,
    /// The median.
    pub p50: Option<f64>,
    /// As named.
    pub p90: Option<f64>,
    /// As named.
    pub p95: Option<f64>,
    /// As named.
    pub p99: Option<f64>,
    /// The 99.9th.
    pub p999: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
    /// Intervals of the percentiles, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ci: BTreeMap<String, Interval>,
    /// What these intervals cover.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// How many of the samples stand for one independent one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inflation: Option<f64>,
    /// The whole histogram: HdrHistogram's V2 format in base64, of microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub histogram: Option<String>,
    /// What a later version says, kept as it is.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn is_zero(version: &u32) -> bool {
    *version == 0
}

impl Distribution {
    /// Of what was recorded, with intervals and the histogram. Of dependent samples `inflation`
    /// tells for each quantile how many stand for one (`dependence::quantile_inflation`). A
    /// percentile without an interval is null: the samples cannot carry it.
    pub fn new(durations: &Durations, inflation: impl Fn(f64) -> f64) -> Distribution {
        let mut distribution = Distribution {
            n: durations.count(),
            mean: durations.mean_ms(),
            min: durations.min_ms(),
            max: durations.max_ms(),
            ..Distribution::default()
        };
        if distribution.n == 0 {
            return distribution;
        }
        let steps = steps_ms(durations);
        for (name, percentile, _) in PERCENTILES {
            let q = percentile / 100.0;
            let found = quantile::estimate(&steps, q, CONFIDENCE, inflation(q));
            let Some(found) = found else { continue };
            if let Some(place) = distribution.place(name) {
                *place = Some(found.value);
            }
            distribution.ci.insert(name.to_owned(), found.interval);
        }
        let mut bytes = Vec::new();
        durations.encode(&mut bytes);
        distribution.confidence = Some(CONFIDENCE);
        distribution.inflation = Some(inflation(0.5));
        distribution.histogram = Some(STANDARD.encode(&bytes));
        distribution
    }

    /// Of independent samples.
    pub fn independent(durations: &Durations) -> Distribution {
        Distribution::new(durations, |_| 1.0)
    }

    fn place(&mut self, name: &str) -> Option<&mut Option<f64>> {
        match name {
            "p50" => Some(&mut self.p50),
            "p90" => Some(&mut self.p90),
            "p95" => Some(&mut self.p95),
            "p99" => Some(&mut self.p99),
            "p999" => Some(&mut self.p999),
            _ => None,
        }
    }

    /// What was recorded; None: the file has no histogram, or a damaged one.
    pub fn durations(&self) -> Option<Durations> {
        let bytes = STANDARD.decode(self.histogram.as_ref()?).ok()?;
        Durations::decode(&bytes)
    }
}

/// What was recorded, as milliseconds of which quantiles can be told.
pub fn steps_ms(durations: &Durations) -> Steps {
    durations.recorded_us().map(|(us, count)| (us as f64 / 1e3, count)).collect()
}

impl Record {
    /// An empty one of this program, begun at a moment (RFC 3339).
    pub fn new(command: Vec<String>, started_at: String) -> Record {
        Record {
            cnse: env!("CARGO_PKG_VERSION").to_owned(),
            record: VERSION,
            command,
            started_at,
            ..Record::default()
        }
    }

    /// Sets a figure.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// Sets a figure that is a distribution.
    pub fn set_distribution(&mut self, name: &str, distribution: &Distribution) {
        let value = serde_json::to_value(distribution);
        self.figures.insert(name.to_owned(), value.expect("numbers and texts are JSON"));
    }

    /// A distribution by its name (`ttft_ms`); None: there is none.
    pub fn distribution(&self, name: &str) -> Option<Distribution> {
        let value = self.figures.get(name).filter(|value| value.is_object())?;
        Distribution::deserialize(value).ok().filter(|found| found.n > 0)
    }

    /// Names of all distributions.
    pub fn distributions(&self) -> impl Iterator<Item = &str> {
        let is_one = |value: &Value| value.get("n").is_some() && value.get("max").is_some();
        let found = self.figures.iter().filter(move |(_, value)| is_one(value));
        found.map(|(name, _)| name.as_str())
    }

    /// A number by its name, with `_` between a figure and what is in it (`ttft_ms_p99`), or by one
    /// of the short names of the first users (`throughput_tok_s`, `latency_p99_ms`); None: it is
    /// not there, or null.
    pub fn number(&self, name: &str) -> Option<f64> {
        match name {
            "wall_s" => return Some(self.wall_s),
            "ok" => return Some(self.ok as f64),
            "errors" => return Some(self.errors as f64),
            _ => {}
        }
        within(&self.figures, name).or_else(|| within(&self.figures, &long_name(name)?))
    }

    /// All numbers under their names, as columns of a table have them. Histograms and lists have
    /// none; of intervals the ends are `_low` and `_high`.
    pub fn numbers(&self) -> Vec<(String, f64)> {
        let mut numbers = vec![
            ("wall_s".to_owned(), self.wall_s),
            ("ok".to_owned(), self.ok as f64),
            ("errors".to_owned(), self.errors as f64),
        ];
        flatten("", &self.figures, &mut numbers);
        numbers
    }

    /// From the text of a file.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Record, String> {
        let record: Record = serde_json::from_str(text)
            .map_err(|error| format!("it is no result of cnse --json: {error}"))?;
        if record.record > VERSION {
            return Err(format!(
                "it has version {} of the shape, and this cnse {} reads up to {VERSION}; a newer \
                 cnse reads it",
                record.record,
                env!("CARGO_PKG_VERSION")
            ));
        }
        if record.cnse.is_empty() {
            return Err("it is no result of cnse --json: it has no \"cnse\"".to_owned());
        }
        Ok(record)
    }

    /// From a file.
    ///
    /// # Errors
    /// A sentence that names the file and says what is wrong with it.
    pub fn read(path: &Path) -> Result<Record, String> {
        let text =
            fs::read_to_string(path).map_err(|error| format!("reading {path:?}: {error}"))?;
        Record::parse(&text).map_err(|error| format!("{path:?}: {error}"))
    }

    /// As one line of JSON, with its end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string(self).expect("numbers and texts are JSON");
        text.push('\n');
        text
    }
}

/// The JSON's name for what the first users call it.
fn long_name(name: &str) -> Option<String> {
    if name == "throughput_tok_s" {
        return Some("tokens_per_s".to_owned());
    }
    let (kind, tail) = name.split_once('_')?;
    let kind = if kind == "latency" { "e2e" } else { kind };
    Some(format!("{kind}_ms_{}", tail.strip_suffix("_ms")?))
}

/// A number in nested objects, of whose names any may hold `_` itself.
fn within(object: &Map<String, Value>, name: &str) -> Option<f64> {
    if let Some(value) = object.get(name) {
        return value.as_f64();
    }
    name.match_indices('_').find_map(|(at, _)| match object.get(&name[..at]) {
        Some(Value::Object(inner)) => within(inner, &name[at + 1..]),
        _ => None,
    })
}

fn flatten(head: &str, object: &Map<String, Value>, out: &mut Vec<(String, f64)>) {
    for (name, value) in object {
        let path = if head.is_empty() { name.clone() } else { format!("{head}_{name}") };
        match value {
            Value::Object(inner) => flatten(&path, inner, out),
            Value::Array(ends) if head.ends_with("_ci") && ends.len() == 2 => {
                for (tail, end) in ["low", "high"].iter().zip(ends) {
                    out.extend(end.as_f64().map(|end| (format!("{path}_{tail}"), end)));
                }
            }
            _ => out.extend(value.as_f64().map(|value| (path, value))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn durations(n: u64) -> Durations {
        let mut durations = Durations::default();
        (1..=n).for_each(|ms| durations.record(ms * 1_000));
        durations
    }

    fn sample() -> Record {
        let started_at = "2026-11-24T18:00:00.000Z".to_owned();
        let mut record = Record::new(vec!["bench".to_owned(), "latency".to_owned()], started_at);
        (record.wall_s, record.ok, record.errors) = (2.5, 1_000, 1);
        record.errors_by_kind.insert("HTTP 503".to_owned(), 1);
        record.set("tokens_per_s", 5_120.5);
        record.set("steals", json!({ "won": 3 }));
        record.set_distribution("e2e_ms", &Distribution::independent(&durations(1_000)));
        record.environment = Some(Environment::of_this_machine(&[]));
        let columns = BTreeMap::from([("ok".to_owned(), vec![Some(3.0), None])]);
        let outliers = vec![Outlier { t_s: 1.0, figure: "e2e_ms".to_owned(), value: 950.0 }];
        record.series = Some(Series { start_s: 0.0, interval_s: 1.0, columns, outliers });
        record
    }

    #[test]
    fn a_file_is_what_was_written() {
        let mut record = sample();
        let settings = Map::from_iter([("inflight".to_owned(), json!(16))]);
        let run = Run { settings, repeat: 1, sequence: 3, failure: None, record: sample() };
        record.runs.push(run);
        let text = record.to_json();
        assert_eq!(Record::parse(&text).as_ref(), Ok(&record));
        assert!(text.starts_with("{\"cnse\":\"0.1.0\",\"record\":1,\"command\":[\"bench\""));
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["runs"][0]["settings"], json!({ "inflight": 16 }));
        assert_eq!((&json["runs"][0]["ok"], &json["e2e_ms"]["n"]), (&json!(1_000), &json!(1_000)));
    }

    #[test]
    fn what_a_later_version_says_is_kept() {
        let mut json: Value = serde_json::from_str(&sample().to_json()).unwrap();
        json["energy_j"] = json!(12.5);
        json["e2e_ms"]["p9999"] = json!(1.0);
        json["environment"]["moon"] = json!("full");
        let record = Record::parse(&json.to_string()).unwrap();
        let again: Value = serde_json::from_str(&record.to_json()).unwrap();
        assert_eq!(again, json);
        assert_eq!(record.number("energy_j"), Some(12.5));
        assert_eq!(record.distribution("e2e_ms").unwrap().other["p9999"], 1.0);
    }

    #[test]
    fn what_is_no_result_is_said() {
        for (text, message) in [
            ("{}", "no \"cnse\""),
            ("[1]", "no result of cnse --json: "),
            ("{\"cnse\": \"9.0\", \"record\": 2}", "a newer cnse reads it"),
            ("{\"cnse\": 5}", "no result"),
        ] {
            let error = Record::parse(text).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        let error = Record::read(Path::new("/nonexistent")).unwrap_err();
        assert!(error.starts_with("reading \"/nonexistent\": "), "{error}");
    }

    #[test]
    fn figures_by_name() {
        let record = sample();
        for (name, value) in [
            ("ok", Some(1_000.0)),
            ("wall_s", Some(2.5)),
            ("tokens_per_s", Some(5_120.5)),
            ("throughput_tok_s", Some(5_120.5)),
            ("steals_won", Some(3.0)),
            ("e2e_ms_n", Some(1_000.0)),
            ("latency_n_ms", Some(1_000.0)),
            ("e2e_ms_p999", None),
            ("ttft_ms_p50", None),
            ("nothing", None),
        ] {
            assert_eq!(record.number(name), value, "{name}");
        }
        let p99 = record.number("latency_p99_ms").unwrap();
        assert!((p99 - 990.0).abs() < 1.0, "{p99}");
        let names: Vec<String> = record.numbers().into_iter().map(|(name, _)| name).collect();
        for name in ["ok", "tokens_per_s", "steals_won", "e2e_ms_p99", "e2e_ms_ci_p99_low"] {
            assert!(names.iter().any(|known| known == name), "{name} in {names:?}");
        }
        assert_eq!(record.distributions().collect::<Vec<_>>(), ["e2e_ms"]);
    }

    #[test]
    fn a_distribution_keeps_its_histogram_and_carries_what_it_can() {
        let durations = durations(400);
        let found = Distribution::independent(&durations);
        assert_eq!(found.durations(), Some(durations.clone()));
        assert!(found.p99.is_some() && found.p999.is_none());
        let ci = found.ci["p50"];
        assert!(ci.contains(200.0) && ci.low > 170.0 && ci.high < 230.0, "{ci:?}");
        let dependent = Distribution::new(&durations, |_| 10.0);
        assert!(dependent.p90.is_some() && dependent.p95.is_none());
        assert!(dependent.ci["p50"].low < ci.low);
        let damaged = Distribution { histogram: Some("AAAA".to_owned()), ..found };
        assert_eq!(damaged.durations(), None);
        let empty = Distribution::independent(&Durations::default());
        assert_eq!((empty.n, empty.p50, empty.histogram), (0, None, None));
    }

    #[test]
    fn what_client_and_schedule_print_is_read() {
        let environment = Environment { cores: 2, ..Environment::default() };
        let client = super::super::report::Report { ok: 5, environment, ..Default::default() };
        let record = Record::parse(&client.to_json().to_string()).unwrap();
        assert_eq!((record.ok, record.record), (5, 0));
        assert_eq!(record.distribution("ttft_ms"), None);
        assert!(record.environment.unwrap().cores > 0);
    }
}
