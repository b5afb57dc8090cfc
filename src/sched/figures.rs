//! What a job brought, for programs: the one shape that every result has, as JSON and as CSV.

use serde_json::{Map, Value, json};

use super::report::{JobReport, RankReport, ratio};
use super::tally::ServerTally;

impl JobReport {
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
        object.insert("environment".to_owned(), json!(self.environment));
        Value::Object(object)
    }

    /// What is said of the total and of each rank with the same names.
    fn figures(&self, of: &RankReport, balance: Option<f64>) -> Map<String, Value> {
        let tally = &of.tally;
        let server = |(name, server): (&String, &ServerTally)| {
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
                "own_node": of.steals_near,
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
    use super::super::report::tests::job;
    use super::*;

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
        assert_eq!(
            json["steals"],
            json!({ "tried": 6, "won": 1, "own_node": 0, "moved": 40, "given": 40 })
        );
        assert_eq!(keys(&json["e2e_ms"]).len(), 9);
        assert_eq!(json["servers"]["b:2"]["ok"], 79);
        // All that is said of a rank is said of the job.
        for name in keys(&json["ranks"][1]) {
            let own = ["rank", "node"].contains(&name.as_str());
            assert!(own || json.get(&name).is_some(), "{name}");
        }
        assert_eq!(json["ranks"][1]["node"], "b");
        assert_eq!(json["environment"]["cores"], 2);
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
}
