//! What a job brought: of each rank, and in total.
//!
//! A rank sends its `RankReport` to rank 0 when it ends; `JobReport` holds them all. The total is
//! the sum of the ranks, its histograms merged count by count: an average of percentiles is none.

use std::io;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::message::Reader;
use super::tally::{Tally, encode_text, read_text};
use crate::metrics::durations::environment;
use crate::metrics::interval_log::IntervalLog;

/// What one rank did, or all of them together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankReport {
    /// Its number.
    pub rank: u32,
    /// The machine that it ran on.
    pub node: String,
    /// Tasks that it could run at once.
    pub slots: u32,
    /// From the job's start to this rank's end, in microseconds, as all times here; of the total
    /// the mean over all slots.
    pub wall_us: u64,
    /// From the job's start to its first task's; 0 too if it had none.
    pub first_us: u64,
    /// From the job's start to the end of its last task.
    pub last_us: u64,
    /// What was counted.
    pub tally: Tally,
    /// Times that it asked another rank for work.
    pub steals_tried: u64,
    /// Times that it was given some.
    pub steals_won: u64,
    /// Tasks that it got from other ranks.
    pub tasks_in: u64,
    /// Tasks that it gave to other ranks.
    pub tasks_out: u64,
    /// Time that its slots stood idle between the job's start and its own end, added up.
    pub idle_us: u64,
    /// Processor time.
    pub cpu_us: u64,
    /// Most memory that its process ever took.
    pub rss_max_kib: u64,
    /// Rows that it passed over, since an earlier run had done them.
    pub skipped_rows: u64,
}

impl RankReport {
    /// Appends its bytes: the numbers and texts in the order in which they stand above, as the
    /// tally's.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.rank.to_le_bytes());
        encode_text(out, &self.node);
        out.extend(self.slots.to_le_bytes());
        let RankReport { wall_us, first_us, last_us, .. } = *self;
        [wall_us, first_us, last_us].iter().for_each(|us| out.extend(us.to_le_bytes()));
        self.tally.encode(out);
        self.counts().iter().for_each(|count| out.extend(count.to_le_bytes()));
        out.extend(self.rss_max_kib.to_le_bytes());
    }

    /// From all of its bytes; None: they are none of a report.
    pub fn decode(bytes: &[u8]) -> Option<RankReport> {
        let mut reader = Reader(bytes);
        let mut report = RankReport {
            rank: reader.u32()?,
            node: read_text(&mut reader)?.to_owned(),
            slots: reader.u32()?,
            wall_us: reader.u64()?,
            first_us: reader.u64()?,
            last_us: reader.u64()?,
            tally: Tally::read(&mut reader)?,
            ..RankReport::default()
        };
        for count in report.counts_mut() {
            *count = reader.u64()?;
        }
        report.rss_max_kib = reader.u64()?;
        reader.0.is_empty().then_some(report)
    }

    /// Adds what another rank did.
    fn add(&mut self, other: &RankReport) {
        self.slots = self.slots.saturating_add(other.slots);
        if other.tally.ended() > 0 {
            let first = if self.tally.ended() > 0 { self.first_us } else { u64::MAX };
            self.first_us = first.min(other.first_us);
            self.last_us = self.last_us.max(other.last_us);
        }
        self.tally.merge(&other.tally);
        for (mine, theirs) in self.counts_mut().into_iter().zip(other.counts()) {
            *mine = mine.saturating_add(theirs);
        }
        self.rss_max_kib = self.rss_max_kib.max(other.rss_max_kib);
    }

    /// What adds up.
    fn counts(&self) -> [u64; 7] {
        [
            self.steals_tried,
            self.steals_won,
            self.tasks_in,
            self.tasks_out,
            self.idle_us,
            self.cpu_us,
            self.skipped_rows,
        ]
    }

    fn counts_mut(&mut self) -> [&mut u64; 7] {
        [
            &mut self.steals_tried,
            &mut self.steals_won,
            &mut self.tasks_in,
            &mut self.tasks_out,
            &mut self.idle_us,
            &mut self.cpu_us,
            &mut self.skipped_rows,
        ]
    }

    /// Slot time held for each slot.
    fn busy_per_slot_us(&self) -> f64 {
        self.tally.busy_us as f64 / f64::from(self.slots.max(1))
    }

    /// The shortest time in which these tasks can be done on these slots, in seconds, whoever
    /// deals them out: all work spread evenly, or the longest task (R. L. Graham, "Bounds for
    /// certain multiprocessing anomalies", 1966; the lower bound of his theorem).
    pub fn ideal_s(&self) -> f64 {
        self.busy_per_slot_us().max(self.tally.longest_us as f64) / 1e6
    }

    /// The part of its slots' time in which they were held.
    pub fn busy_share(&self) -> Option<f64> {
        self.share(self.tally.busy_us)
    }

    /// The part of its slots' time in which they stood idle.
    pub fn idle_share(&self) -> Option<f64> {
        self.share(self.idle_us)
    }

    fn share(&self, us: u64) -> Option<f64> {
        ratio(us as f64, f64::from(self.slots) * self.wall_us as f64)
    }
}

/// What a job did.
#[derive(Clone, Debug, Default)]
pub struct JobReport {
    /// The command line.
    pub command: Vec<String>,
    /// When it began (RFC 3339).
    pub started_at: String,
    /// From its start to its end, in seconds.
    pub wall_s: f64,
    /// The ranks that ended; those that died are missing.
    pub ranks: Vec<RankReport>,
    /// Rows that were done in earlier runs.
    pub skipped: u64,
    /// What a reader must know first: that it ended early and how to go on, that ranks died.
    pub note: Option<String>,
    /// Who counted the tokens.
    pub tokens_source: &'static str,
}

impl JobReport {
    /// All ranks together.
    pub fn total(&self) -> RankReport {
        let mut total = RankReport::default();
        self.ranks.iter().for_each(|rank| total.add(rank));
        let slot_us = |rank: &RankReport| f64::from(rank.slots) * rank.wall_us as f64;
        let slots_us: f64 = self.ranks.iter().map(slot_us).sum();
        total.wall_us = ratio(slots_us, f64::from(total.slots)).unwrap_or(0.0) as u64;
        total
    }

    /// The ideal time over the time that it took (see `RankReport::ideal_s`).
    pub fn efficiency(&self, of: &RankReport) -> Option<f64> {
        ratio(of.ideal_s(), self.wall_s).filter(|_| of.tally.busy_us > 0)
    }

    /// How much longer the slots of the busiest rank were held than those of the mean one: 1 is
    /// even. Per slot, since a rank with twice the slots should do twice the work.
    pub fn balance(&self) -> Option<f64> {
        let most = self.ranks.iter().map(RankReport::busy_per_slot_us).fold(0.0, f64::max);
        ratio(most, self.busy_mean_us())
    }

    fn busy_mean_us(&self) -> f64 {
        let sum: f64 = self.ranks.iter().map(RankReport::busy_per_slot_us).sum();
        sum / self.ranks.len().max(1) as f64
    }

    /// So many in the whole time of the job, for each of its seconds: the ranks' add up to the
    /// job's.
    pub fn per_second(&self, count: u64) -> f64 {
        ratio(count as f64, self.wall_s).unwrap_or(0.0)
    }

    /// The result object.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
        put("cnse", json!(env!("CARGO_PKG_VERSION")));
        put("command", json!(self.command));
        put("started_at", json!(self.started_at));
        put("wall_s", json!(self.wall_s));
        put("note", json!(self.note));
        let total = self.total();
        let mut figures = self.figures(&total, self.balance());
        figures.insert("skipped".to_owned(), json!(self.skipped));
        figures.shift_remove("wall_s");
        object.extend(figures);
        let mean = self.busy_mean_us();
        let rank = |rank: &RankReport| {
            let mut object = Map::new();
            object.insert("rank".to_owned(), json!(rank.rank));
            object.insert("node".to_owned(), json!(rank.node));
            object.extend(self.figures(rank, ratio(rank.busy_per_slot_us(), mean)));
            Value::Object(object)
        };
        let ranks: Vec<Value> = self.ranks.iter().map(rank).collect();
        object.insert("ranks".to_owned(), Value::Array(ranks));
        object.insert("environment".to_owned(), environment(&[]));
        Value::Object(object)
    }

    /// What is said of the total and of each rank with the same names.
    fn figures(&self, of: &RankReport, balance: Option<f64>) -> Map<String, Value> {
        let tally = &of.tally;
        let server = |(name, server): (&String, &super::tally::ServerTally)| {
            let value = json!({
                "ok": server.ok,
                "errors": server.failed,
                "tokens": server.completion_tokens,
                "tokens_per_s": self.per_second(server.completion_tokens),
                "busy_s": server.busy_us as f64 / 1e6,
            });
            (name.clone(), value)
        };
        let servers: Map<String, Value> = tally.servers.iter().map(server).collect();
        let figures = json!({
            "wall_s": of.wall_us as f64 / 1e6,
            "slots": of.slots,
            "ok": tally.ok,
            "errors": tally.failed,
            "errors_by_kind": tally.errors,
            "retries": tally.retries,
            "skipped": of.skipped_rows,
            "requests_per_s": self.per_second(tally.ok),
            "tokens_per_s": self.per_second(tally.completion_tokens),
            "tokens": tally.completion_tokens,
            "prompt_tokens": tally.prompt_tokens,
            "tokens_source": self.tokens_source,
            "queue_ms": tally.queue.to_json(),
            "ttft_ms": tally.ttft.to_json(),
            "e2e_ms": tally.latency.to_json(),
            "first_s": of.first_us as f64 / 1e6,
            "last_s": of.last_us as f64 / 1e6,
            "busy_s": tally.busy_us as f64 / 1e6,
            "busy_share": of.busy_share(),
            "idle_s": of.idle_us as f64 / 1e6,
            "idle_share": of.idle_share(),
            "longest_s": tally.longest_us as f64 / 1e6,
            "ideal_s": of.ideal_s(),
            "efficiency": self.efficiency(of),
            "balance": balance,
            "steals": {
                "tried": of.steals_tried,
                "won": of.steals_won,
                "moved": of.tasks_in,
                "given": of.tasks_out,
            },
            "cpu_s": of.cpu_us as f64 / 1e6,
            "rss_max_mib": of.rss_max_kib as f64 / 1024.0,
            "servers": servers,
        });
        match figures {
            Value::Object(figures) => figures,
            _ => Map::new(),
        }
    }

    /// A row a rank and one of the total, under the names of the JSON joined by `_`. What differs
    /// from row to row (errors by kind, servers) is in the JSON only.
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        for (index, row) in self.rows().iter().enumerate() {
            if index == 0 {
                text += &line(row.iter().map(|(name, _)| name));
            }
            text += &line(row.iter().map(|(_, value)| value));
        }
        text
    }

    /// Those of `to_csv`, as names and values; all have the same names.
    fn rows(&self) -> Vec<Vec<(String, String)>> {
        let job = self.to_json();
        let mut rows = Vec::with_capacity(self.ranks.len() + 1);
        for rank in job["ranks"].as_array().into_iter().flatten() {
            rows.push(flat(rank));
        }
        let mut total = vec![
            ("rank".to_owned(), "total".to_owned()),
            ("node".to_owned(), String::new()),
            ("wall_s".to_owned(), self.wall_s.to_string()),
        ];
        let seen = ["cnse", "command", "started_at", "wall_s", "note", "ranks", "environment"];
        let figures = job.as_object().into_iter().flatten();
        let figures = figures.filter(|(name, _)| !seen.contains(&name.as_str()));
        let figures = figures.map(|(name, value)| (name.clone(), value.clone())).collect();
        total.extend(flat(&Value::Object(figures)));
        rows.push(total);
        rows.iter_mut().for_each(add_short_names);
        rows
    }

    /// As a log that the viewers of HdrHistogram read: what all ranks together saw, and each of
    /// them, in one interval that is the whole job. Tags are `queue`, `ttft` and `latency`, and
    /// `latency-rank3` and so on.
    ///
    /// # Errors
    /// `out` does not take it.
    pub fn histogram_log(&self, out: &mut dyn io::Write, start: SystemTime) -> io::Result<()> {
        let mut log = IntervalLog::open(out, start)?;
        let whole = Duration::try_from_secs_f64(self.wall_s).unwrap_or_default();
        write_interval(&mut log, Duration::ZERO, whole, &self.total().tally, "")?;
        if self.ranks.len() > 1 {
            for rank in &self.ranks {
                let tail = format!("-rank{}", rank.rank);
                write_interval(&mut log, Duration::ZERO, whole, &rank.tally, &tail)?;
            }
        }
        Ok(())
    }
}

/// Writes the three lines of what was counted in an interval; `tail` ends their tags.
///
/// # Errors
/// The log does not take them.
pub fn write_interval<W: io::Write>(
    log: &mut IntervalLog<W>,
    start: Duration,
    length: Duration,
    tally: &Tally,
    tail: &str,
) -> io::Result<()> {
    let kinds = [("queue", &tally.queue), ("ttft", &tally.ttft), ("latency", &tally.latency)];
    for (kind, durations) in kinds {
        log.write(start, length, &format!("{kind}{tail}"), durations)?;
    }
    Ok(())
}

fn ratio(of: f64, to: f64) -> Option<f64> {
    (to > 0.0).then(|| of / to)
}

/// Names joined by `_`, and values; without lists, and without objects whose names are data.
fn flat(value: &Value) -> Vec<(String, String)> {
    let mut row = Vec::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) if name == "errors_by_kind" || name == "servers" => {}
            Value::Object(_) => {
                let inner = flat(value).into_iter();
                row.extend(inner.map(|(tail, value)| (format!("{name}_{tail}"), value)));
            }
            Value::Array(_) => {}
            Value::Null => row.push((name.clone(), String::new())),
            Value::String(text) => row.push((name.clone(), text.clone())),
            other => row.push((name.clone(), other.to_string())),
        }
    }
    row
}

/// The columns that the first users' scripts know, with the values of those that say the same.
fn add_short_names(row: &mut Vec<(String, String)>) {
    let names = [
        ("inflight", "slots"),
        ("throughput_tok_s", "tokens_per_s"),
        ("latency_p50_ms", "e2e_ms_p50"),
        ("latency_p95_ms", "e2e_ms_p95"),
        ("latency_p99_ms", "e2e_ms_p99"),
    ];
    for (short, long) in names {
        let value = row.iter().find(|(name, _)| name == long).map(|(_, value)| value.clone());
        row.push((short.to_owned(), value.unwrap_or_default()));
    }
}

/// A line of CSV (RFC 4180).
fn line<'a>(cells: impl Iterator<Item = &'a String>) -> String {
    let quoted = cells.map(|cell| {
        let plain = !cell.contains([',', '"', '\n', '\r']);
        if plain { cell.clone() } else { format!("\"{}\"", cell.replace('"', "\"\"")) }
    });
    quoted.collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tally::Sample;
    use super::*;

    fn rank(rank: u32, tasks: u64) -> RankReport {
        let mut tally = Tally::default();
        for n in 0..tasks {
            let error = (n % 50 == 49).then_some("HTTP 503: busy");
            tally.record(&Sample {
                ok: error.is_none(),
                queue_us: 100,
                ttft_us: Some(2_000),
                latency_us: 50_000,
                busy_us: 50_000,
                prompt_tokens: 10,
                completion_tokens: 20,
                retries: 0,
                error,
                server: if rank == 0 { "a:1" } else { "b:2" },
            });
        }
        RankReport {
            rank,
            node: if rank == 0 { "a, first" } else { "b" }.to_owned(),
            slots: 2,
            wall_us: 2_600_000,
            first_us: 1_000 * u64::from(rank),
            last_us: 25_000 * tasks,
            tally,
            steals_tried: 3,
            steals_won: u64::from(rank),
            tasks_in: 40 * u64::from(rank),
            tasks_out: 40 * u64::from(1 - rank),
            idle_us: 5_200_000 - 50_000 * tasks,
            cpu_us: 4_000,
            rss_max_kib: 10_240,
            skipped_rows: 5,
        }
    }

    fn job() -> JobReport {
        JobReport {
            command: vec!["schedule".to_owned()],
            started_at: "2026-11-23T18:00:00.000Z".to_owned(),
            wall_s: 2.6,
            ranks: vec![rank(0, 100), rank(1, 80)],
            skipped: 10,
            note: None,
            tokens_source: "usage",
        }
    }

    #[test]
    fn round_trip_and_cuts() {
        for report in [RankReport::default(), rank(1, 60)] {
            let mut bytes = Vec::new();
            report.encode(&mut bytes);
            for n in (0..bytes.len()).step_by(7) {
                assert_eq!(RankReport::decode(&bytes[..n]), None, "{n}");
            }
            assert_eq!(RankReport::decode(&bytes), Some(report));
            bytes.push(0);
            assert_eq!(RankReport::decode(&bytes), None);
        }
    }

    #[test]
    fn the_total_is_the_sum() {
        let job = job();
        let total = job.total();
        assert_eq!((total.slots, total.wall_us, total.tally.ended()), (4, 2_600_000, 180));
        assert_eq!((total.first_us, total.last_us), (0, 2_500_000));
        assert_eq!((total.tasks_in, total.tasks_out, total.skipped_rows), (40, 40, 10));
        let close = |value: Option<f64>, to: f64| (value.unwrap() - to).abs() < 1e-9;
        // 180 tasks of 50 ms on 4 slots take 2.25 s at least.
        assert!(close(job.efficiency(&total), 2.25 / 2.6));
        assert!(close(job.balance(), 5.0 / 4.5));
        assert!(close(total.idle_share(), 1.4 / 10.4));
        assert!(close(total.busy_share(), 9.0 / 10.4));
    }

    #[test]
    fn one_long_task_bounds_the_ideal() {
        let mut report = rank(0, 1);
        report.tally.record(&Sample { ok: true, busy_us: 2_000_000, ..Sample::default() });
        assert!((report.ideal_s() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn json_has_one_shape() {
        let json = job().to_json();
        let keys =
            |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
        for name in ["cnse", "command", "started_at", "wall_s", "ok", "errors", "requests_per_s"] {
            assert!(!json[name].is_null(), "{name}");
        }
        assert_eq!(
            (&json["ok"], &json["errors"], &json["skipped"]),
            (&json!(177), &json!(3), &json!(10))
        );
        assert_eq!(json["errors_by_kind"], json!({ "HTTP 503: busy": 3 }));
        assert_eq!(json["steals"], json!({ "tried": 6, "won": 1, "moved": 40, "given": 40 }));
        assert_eq!(keys(&json["e2e_ms"]).len(), 9);
        assert_eq!(json["servers"]["b:2"]["ok"], 79);
        // All that is said of a rank is said of the job.
        for name in keys(&json["ranks"][1]) {
            let own = ["rank", "node"].contains(&name.as_str());
            assert!(own || json.get(&name).is_some(), "{name}");
        }
        assert_eq!(json["ranks"][1]["node"], "b");
    }

    #[test]
    fn csv_has_a_row_a_rank_and_the_total() {
        let names = |row: &Vec<(String, String)>| -> Vec<String> {
            row.iter().map(|(name, _)| name.clone()).collect()
        };
        let columns: Vec<Vec<String>> = job().rows().iter().map(names).collect();
        assert!(columns.windows(2).all(|pair| pair[0] == pair[1]), "{columns:?}");
        let csv = job().to_csv();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 4);
        let head: Vec<&str> = lines[0].split(',').collect();
        assert!(lines[1].starts_with("0,\"a, first\",2.6,2,98,2,"), "{}", lines[1]);
        let at = |name: &str| head.iter().position(|column| *column == name).unwrap();
        let total: Vec<&str> = lines[3].split(',').collect();
        assert_eq!(total.len(), head.len());
        assert_eq!((total[0], total[at("ok")], total[at("skipped")]), ("total", "177", "10"));
        assert_eq!((total[at("inflight")], total[at("steals_moved")]), ("4", "40"));
        assert_eq!(total[at("latency_p99_ms")], total[at("e2e_ms_p99")]);
        assert_eq!(total[at("e2e_ms_p999")], "");
        assert_eq!(total[at("throughput_tok_s")], total[at("tokens_per_s")]);
        // 20 tokens each of 180 tasks.
        assert_eq!(total[at("tokens")], "3600");
    }

    #[test]
    fn nothing_done_has_no_shares() {
        let job = JobReport { ranks: vec![RankReport::default()], ..JobReport::default() };
        assert_eq!((job.efficiency(&job.total()), job.balance()), (None, None));
        assert!(job.to_json()["idle_share"].is_null());
        assert_eq!(job.to_csv().lines().count(), 3);
        let none = JobReport::default();
        assert_eq!(none.to_csv().lines().count(), 2);
    }

    proptest! {
        #[test]
        fn fuzz_decode(noise in prop::collection::vec(any::<u8>(), 0..300), at in 0..400_usize) {
            let _ = RankReport::decode(&noise);
            let mut bytes = Vec::new();
            rank(0, 30).encode(&mut bytes);
            let at = at % bytes.len();
            bytes[at] ^= 0x40;
            // What decodes can be reported, however large its numbers are.
            if let Some(damaged) = RankReport::decode(&bytes) {
                let job = JobReport { ranks: vec![damaged.clone(), damaged], ..job() };
                job.to_csv();
            }
        }
    }
}
