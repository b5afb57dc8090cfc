use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::*;
use crate::bench::chart::svg::tests::check;
use crate::bench::record::{Outlier, Run, Series};
use crate::machine::environment::{Environment, Noise};
use crate::metrics::durations::Durations;

fn distribution(count: u64, scale: u64) -> Distribution {
    let mut durations = Durations::default();
    (1..=count).for_each(|n| durations.record(scale * (1_000 + n * n % 7_919)));
    Distribution::independent(&durations)
}

fn latency(scale: u64) -> Record {
    let command = ["bench", "latency", "--server", "http://h:1", "--prompt", "a <b> & 'c'"];
    let mut record =
        Record::new(command.map(str::to_owned).to_vec(), "2026-11-24T18:00:00.000Z".to_owned());
    (record.wall_s, record.ok) = (12.5, 2_000);
    record.set("requests_per_s", 160.0);
    record.set("tokens_per_s", 10_240.0);
    record.set("tokens_source", "usage");
    for name in ["ttft_ms", "ttft_service_ms", "itl_ms", "tpot_ms", "e2e_ms", "service_ms"] {
        record.set_distribution(name, &distribution(2_000, scale));
    }
    let columns = BTreeMap::from([
        ("ok".to_owned(), vec![Some(100.0), None, Some(300.0)]),
        ("e2e_ms_p50".to_owned(), vec![Some(3.0), None, Some(4.0)]),
        ("e2e_ms_max".to_owned(), vec![Some(30.0), None, Some(40.0)]),
    ]);
    let outliers = vec![Outlier { t_s: 2.0, figure: "e2e_ms".to_owned(), value: 900.0 }];
    record.series = Some(Series { start_s: 0.0, interval_s: 1.0, columns, outliers });
    let noise = Some(Noise::default());
    record.environment = Some(Environment {
        cpu: "C & Sons <8>".to_owned(),
        cores: 2,
        build: "release".to_owned(),
        noise,
        ..Environment::default()
    });
    record
}

fn source(name: &str, record: Record) -> Source {
    Source { name: name.to_owned(), record }
}

/// Settings, repeats and figures by a formula.
fn experiment(what: &str, settings: &[Value], figures: impl Fn(&Value, u32) -> Record) -> Record {
    let command = ["bench", what].map(str::to_owned).to_vec();
    let mut record = Record::new(command, "2026-11-24T18:00:00.000Z".to_owned());
    for repeat in 0..3 {
        for setting in settings {
            let settings = setting.as_object().cloned().unwrap_or_default();
            let sequence = record.runs.len() as u32;
            let run =
                Run { settings, repeat, sequence, failure: None, record: figures(setting, repeat) };
            record.runs.push(run);
        }
    }
    record
}

fn run(tokens_per_s: f64, ms: u64, wall_s: f64) -> Record {
    let mut record = Record { ok: 10, wall_s, ..Record::default() };
    record.set("tokens_per_s", tokens_per_s);
    record.set_distribution("e2e_ms", &distribution(500, ms));
    record
}

fn words(document: &Document) -> String {
    let text = html::html(document);
    check(&text[text.find("<main>").unwrap()..text.find("</body>").unwrap()]);
    markdown::markdown(document, Some("charts"), "svg");
    text
}

#[test]
fn a_latency_result_explains_itself() {
    let document = report(&[source("monday", latency(1))], None);
    let text = words(&document);
    let names: Vec<&str> = document.charts().map(|chart| chart.name.as_str()).collect();
    for name in [
        "time-to-first-token-by-percentile",
        "end-to-end-cumulative-share",
        "from-token-to-token-by-percentile",
        "response-time-over-time",
        "answers-over-time",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    for part in [
        "In order.",
        "10,240",
        "as the server counts (usage)",
        "time to first token (TTFT)",
        "95 % confidence interval",
        "response time = service time",
        "C &amp; Sons &lt;8&gt;",
        "cnse bench latency --server http://h:1 --prompt &#39;a &lt;b&gt; &amp; &#39;\\&#39;&#39;c",
    ] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn what_puts_figures_in_doubt_stands_first() {
    let mut record = latency(1);
    record.errors = 500;
    record.errors_by_kind.insert("HTTP 503: <busy>".to_owned(), 500);
    record.set("generator", json!({ "limited": true, "reasons": ["it used 97 % of its core"] }));
    record.set("warnings", json!(["40 % of the prompt came from a warm cache"]));
    let environment = record.environment.as_mut().unwrap();
    environment.build = "debug".to_owned();
    environment.noise = Some(Noise { other_cores: 0.7, ..Noise::default() });
    let document = report(&[source("noisy", record)], None);
    let Some(Block::Notices(notices)) = document.blocks.get(1) else { panic!() };
    let said: Vec<(document::Weight, &str)> =
        notices.iter().map(|notice| (notice.weight, notice.words.as_str())).collect();
    let bad = document::Weight::Bad;
    assert!(said[0].0 == bad && said[0].1.contains("it used 97 % of its core"), "{said:?}");
    assert!(
        said[1].1.starts_with("500 of 2,500 failed, 20 % (500 × HTTP 503: <busy>)"),
        "{said:?}"
    );
    assert!(said[2].1.contains("debug build"), "{said:?}");
    assert!(said[3].1.contains("0.70 cores' worth"), "{said:?}");
    assert!(said[4].1.ends_with("from a warm cache."), "{said:?}");
    assert_eq!(said.len(), 5);
}

#[test]
fn several_results_are_held_against_the_first() {
    let sources = [source("before", latency(1)), source("after", latency(2))];
    let document = report(&sources, Some("A title"));
    let text = words(&document);
    assert_eq!(document.title, "A title");
    for part in ["Change of latency against before", ">+100 % (", "held against"] {
        assert!(text.contains(part), "{part}");
    }
    assert!(document.charts().any(|chart| chart.name == "ttft-ms-by-percentile"));
}

#[test]
fn an_experiment_shows_settings_factors_and_verdicts() {
    let settings: Vec<Value> = [1, 2, 4]
        .iter()
        .flat_map(|inflight| {
            ["a", "b"].map(|model| json!({ "inflight": inflight, "model": model, "fixed": 7 }))
        })
        .collect();
    let mut record = experiment("sweep", &settings, |setting, repeat| {
        let inflight = setting["inflight"].as_f64().unwrap();
        run(100.0 * inflight + f64::from(repeat), inflight as u64, 1.0)
    });
    record.set(
        "verdicts",
        json!([{
            "expect": "tokens_per_s: inflight=4 > inflight=2 by 10%", "figure": "tokens_per_s",
            "verdict": "undecided", "effect": 0.12, "ci": [0.05, 0.2], "threshold": 0.1,
            "is_ratio": true, "alpha": 0.04, "pairs": 3, "repeats_needed": 5,
        }]),
    );
    record.runs[0].failure = Some("the server died".to_owned());
    let document = report(&[source("sweep", record)], None);
    let text = words(&document);
    for part in [
        "Undecided: tokens_per_s: inflight=4 &gt; inflight=2 by 10%. Measured: +12.0 % (+5.0 to +20.0 % \
         with 96 % confidence). About 5 more repeats would tell.",
        "1 of 18 runs brought no figures; the first said: The server died.",
        "inflight 4, model b",
        "401<small>399–403</small>",
        "Pareto frontier",
        "model a",
    ] {
        assert!(text.contains(part), "{part}");
    }
    assert!(!text.contains("fixed 7"), "what does not vary is no setting");
    let names: Vec<&str> = document.charts().map(|chart| chart.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "effects-of-what-was-expected",
            "tokens-per-s-heat",
            "tokens-per-s-by-inflight",
            "e2e-ms-p99-heat",
            "e2e-ms-p99-by-inflight",
            "throughput-against-latency"
        ]
    );
}

#[test]
fn scaling_has_speed_up_and_efficiency() {
    let settings: Vec<Value> = ["strong", "weak"]
        .iter()
        .flat_map(|mode| {
            [1, 2, 4].iter().flat_map(move |ranks| {
                ["on", "off"].map(|s| json!({ "mode": mode, "ranks": ranks, "stealing": s }))
            })
        })
        .collect();
    let record = experiment("scaling", &settings, |setting, repeat| {
        let ranks = setting["ranks"].as_f64().unwrap();
        let loss = 1.0 + f64::from(repeat) / 100.0;
        let wall = if setting["mode"] == "strong" { 8.0 * loss / ranks } else { 2.0 * loss };
        Record { wall_s: wall, ok: 100, ..Record::default() }
    });
    let document = report(&[source("scaling", record)], None);
    let text = words(&document);
    assert!(text.contains("no stealing") && text.contains("ideal"));
    let names: Vec<&str> = document.charts().map(|chart| chart.name.as_str()).collect();
    assert_eq!(names, ["speed-up", "efficiency-strong-scaling", "efficiency-weak-scaling"]);
}

#[test]
fn a_comparison_shows_changes_and_limits() {
    let mut record = latency(1);
    record.command = ["bench", "compare", "a", "b"].map(str::to_owned).to_vec();
    record.set(
        "changes",
        json!([
            { "figure": "ttft_ms_p99", "settings": {}, "a": 10.0, "b": 11.5, "change": 0.15,
              "ci": [0.05, 0.25], "ground": { "pairs": 10 } },
            { "figure": "wall_s", "settings": { "x": 1 }, "a": 1.0, "b": 1.0, "change": null,
              "ci": null, "ground": "two numbers" },
        ]),
    );
    let limits = json!([{ "fail_if": "ttft_ms_p99 > +5%", "verdict": "it is", "failed": true }]);
    record.set("limits", limits);
    record.set("differences", json!(["different: kernel: 6.1 / 6.2"]));
    record.set("best", json!({ "settings": { "x": 4 }, "figure": "tokens_per_s", "value": 99.5 }));
    let text = words(&report(&[source("change", record)], None));
    for part in [
        "Failed: to fail if ttft_ms_p99 &gt; +5%: It is.",
        "<td>+15.0 %<small>+5.0 to +25.0 %</small></td><td>10 pairs</td>",
        "Different: kernel: 6.1 / 6.2.",
        "duration, s, x 1",
        "The best setting that was found: x 4, with output tokens/s of about 99.5.",
        "Changes from A to B",
    ] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn ranks_of_a_job_are_told() {
    let mut record = Record { ok: 2, cnse: "0.1.0".to_owned(), ..Record::default() };
    record.set("efficiency", 0.93);
    record.set(
        "ranks",
        json!([{ "rank": 0, "node": "a<b", "ok": 2, "busy_share": 0.5, "steals": { "won": 1 } }]),
    );
    let text = words(&report(&[source("job", record)], None));
    assert!(text.contains("0 on a&lt;b") && text.contains("50.0") && text.contains("93 %"));
}

#[test]
fn an_empty_result_is_still_a_report() {
    let document = report(&[source("empty", Record::default())], None);
    words(&document);
    assert_eq!(document.charts().count(), 0);
    let figures = Map::from_iter([("e2e_ms".to_owned(), json!({ "n": 0, "max": null }))]);
    let record = Record { figures, ..Record::default() };
    assert!(words(&report(&[source("x", record)], None)).contains("Nothing was measured"));
}

#[test]
fn words_are_quoted_where_a_shell_needs_it() {
    let words = ["--prompt", "What is AI?", "", "it's", "a=b"].map(str::to_owned);
    assert_eq!(quoted(&words), "--prompt 'What is AI?' '' 'it'\\''s' a=b");
}

#[test]
fn a_gateways_cost_is_told_by_pairs() {
    let run = |way: &str, repeat: u32, ms: f64| {
        let mut record = Record { ok: 10, ..Record::default() };
        record.set("ttft_ms", json!({ "p50": ms }));
        let settings = Map::from_iter([("way".to_owned(), json!(way))]);
        Run { settings, repeat, record, ..Run::default() }
    };
    let command = ["bench", "gateway", "--server", "http://h:1"].map(str::to_owned).to_vec();
    let mut record = Record::new(command, "2026-11-24T18:00:00.000Z".to_owned());
    for repeat in 0..4 {
        let drift = 10.0 + f64::from(repeat);
        record.runs.push(run("direct", repeat, drift));
        record.runs.push(run("gateway", repeat, drift + 0.25));
    }
    let cost = |low: f64| json!({ "direct": 11.5, "gateway": 11.75, "cost": 0.25, "ci": [low, 0.4], "rounds": 4 });
    record.set("gateway_cost_ttft_ms_p50", cost(0.1));
    record.set("gateway_cost_tokens_per_s", cost(-1.0));
    let document = report(&[source("pairs", record.clone())], None);
    let text = words(&document);
    let names: Vec<&str> = document.charts().map(|chart| chart.name.as_str()).collect();
    let expected = ["cost-of-the-gateway", "ttft-ms-p50-pairs", "ttft-ms-p50-differences"];
    assert_eq!(names, expected);
    for part in ["comes +0.250 ms later", "+0.100 to +0.400", "through the gateway", "4 pairs"] {
        assert!(text.contains(part), "{part}");
    }
    record.set("gateway_cost_ttft_ms_p50", cost(-0.1));
    let text = words(&report(&[source("pairs", record.clone())], None));
    assert!(text.contains("cannot be told from chance"));
    // Without pairs it is a count of requests.
    record.figures.clear();
    let text = words(&report(&[source("raw", record)], None));
    assert!(text.contains("How many requests the binary protocol carries"));
}

#[test]
fn storage_is_held_against_what_binds_it() {
    let mut record = Record::new(
        ["bench", "storage"].map(str::to_owned).to_vec(),
        "2026-11-24T18:00:00.000Z".to_owned(),
    );
    record.environment = Some(Environment { cores: 2, ..Environment::default() });
    record.set("storage", json!([]));
    record.set("left_out", json!(["cold: all of it stays in memory"]));
    for repeat in 0..7 {
        for (operation, place, rate) in [
            ("sha256", None, 1_000.0),
            ("read", None, 4_000.0),
            ("hash", None, 900.0),
            ("get", Some("directory"), 450.0),
        ] {
            let page_cache = (operation != "sha256").then_some("warm");
            let settings = json!({ "operation": operation, "place": place, "threads": 1,
                                   "page_cache": page_cache, "bytes": 2_000_000 });
            let mut brought = Record { ok: 1, wall_s: 2.0 / rate, ..Record::default() };
            brought.set("mb_per_s", rate + f64::from(repeat));
            brought.set("cpu_s", 0.001);
            brought.set("linked", operation == "get");
            let settings = settings.as_object().cloned().unwrap_or_default();
            record.runs.push(Run { settings, repeat, record: brought, ..Run::default() });
        }
    }
    let document = report(&[source("disk", record)], None);
    let text = words(&document);
    assert_eq!(document.charts().count(), 1);
    for part in [
        "A file of 2 MB",
        "get from a directory, warm (linked)",
        "SHA-256 on one core",
        "Not measured: cold: all of it stays in memory.",
        "gives it a second name",
    ] {
        assert!(text.contains(part), "{part}");
    }
}
