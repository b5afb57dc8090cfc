//! `cnse schedule`: batches over real servers, killed, interrupted, and run again.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::{Server, cnse, run, text, wait_until};

/// A fresh folder, gone when dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cnse-schedule-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Rows that chat, complete and embed, `count` of them.
    pub fn rows(&self, count: usize) -> String {
        let path = self.path("rows.jsonl");
        let rows: String = (0..count).map(|i| row(i, "once") + "\n").collect();
        fs::write(&path, rows).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn row(number: usize, word: &str) -> String {
    let (url, body) = match number % 3 {
        0 => (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": format!("{word} {number}") }],
                    "max_tokens": 4 + number % 7 }),
        ),
        1 => (
            "/v1/completions",
            json!({ "prompt": format!("{word} {number}"), "max_tokens": 4 + number % 5 }),
        ),
        _ => ("/v1/embeddings", json!({ "input": format!("{word} {number}") })),
    };
    let id = format!("row-{number}");
    json!({ "custom_id": id, "method": "POST", "url": url, "body": body }).to_string()
}

fn schedule(args: &[&str]) -> Command {
    let mut command = cnse();
    command.arg("schedule").args(args).stdin(Stdio::null());
    command
}

/// Result lines by custom_id; each must stand once.
pub fn results(path: &str) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for line in fs::read_to_string(path).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let id = line["custom_id"].as_str().unwrap().to_owned();
        assert!(found.insert(id.clone(), line).is_none(), "{id} stands twice");
    }
    found
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn rows_go_to_several_servers_and_come_back_once() {
    let folder = Folder::new();
    let servers = [Server::start(&["--sim-slots", "4"]), Server::start(&["--sim-slots", "2"])];
    let list = format!("{},cnse://{}", servers[0].url(), servers[1].address);
    let (input, output) = (folder.rows(90), folder.path("out.jsonl"));
    let args = ["--input", &input, "--output", &output, "--server", &list, "--ranks", "3"];
    let done = schedule(&args).args(["--ordered", "--json"]).output().unwrap();
    let report = json_of(&done);
    assert_eq!((&report["ok"], &report["errors"]), (&json!(90), &json!(0)));
    assert_eq!(report["ranks"].as_array().unwrap().len(), 3);
    assert!(report["e2e_ms"]["p50"].is_number() && report["efficiency"].is_number());
    let lines = fs::read_to_string(&output).unwrap();
    let ids: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["custom_id"].clone())
        .collect();
    assert!(ids.iter().enumerate().all(|(i, id)| *id == format!("row-{i}")));
    let results = results(&output);
    assert_eq!(results["row-0"]["response"]["status_code"], 200);
    assert_eq!(results["row-0"]["response"]["body"]["object"], "chat.completion");
    assert_eq!(results["row-1"]["response"]["body"]["object"], "text_completion");
    assert!(results["row-2"]["response"]["body"]["data"][0]["embedding"].is_array());
    assert!(!Path::new(&folder.path("out.jsonl.parts")).exists());
    assert!(servers.iter().all(|server| server.metric("cnse_tokens_total") > 0));
    // Once more: all is done.
    let again = json_of(&schedule(&args).arg("--json").output().unwrap());
    assert_eq!((&again["ok"], &again["skipped"]), (&json!(0), &json!(90)));
    assert_eq!(self::results(&output), results);
}

#[test]
fn a_row_that_changed_is_asked_again_and_one_that_failed_if_it_is_wanted() {
    let folder = Folder::new();
    let server = Server::start(&["--echo"]);
    let (input, output) = (folder.rows(30), folder.path("out.jsonl"));
    let url = server.url();
    let args = ["--input", &input, "--output", &output, "--server", &url, "--json"];
    json_of(&schedule(&args).output().unwrap());
    let mut rows: Vec<String> = (0..30).map(|i| row(i, "once")).collect();
    rows[4] = row(4, "changed");
    rows[7] = json!({ "custom_id": "row-7", "method": "POST", "url": "/v1/embeddings",
                      "body": { "input": "x", "dimensions": 100_000 } })
    .to_string();
    rows[8] = "{not json".to_owned();
    rows.push(row(3, "another row 3"));
    fs::write(&input, rows.join("\n")).unwrap();
    let mended = schedule(&args).output().unwrap();
    assert_eq!(mended.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&mended.stdout).unwrap();
    assert_eq!((&report["ok"], &report["errors"]), (&json!(2), &json!(2)), "{report}");
    let found = results(&output);
    assert_eq!(found.len(), 28);
    assert!(found["row-4"].to_string().contains("changed"));
    assert!(!found["row-3"].to_string().contains("another"), "the first of two counts");
    // The error file is input too, but for what is no row.
    let errors = results(&folder.path("out.errors.jsonl"));
    let line = |id: &str| errors[id]["error"]["line"].clone();
    assert_eq!((line("row-7"), line("line-9"), line("row-3")), (json!(8), json!(9), json!(31)));
    assert_eq!(errors["row-3"]["error"]["code"], "duplicate_custom_id");
    assert_eq!(errors["row-7"]["error"]["status"], 400);
    // What failed is asked again only if that is wanted.
    let again = schedule(&args).output().unwrap();
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((again.status.code(), &report["errors"]), (Some(1), &json!(0)));
    let retried = schedule(&args).arg("--retry-failed").output().unwrap();
    let report: Value = serde_json::from_slice(&retried.stdout).unwrap();
    assert_eq!(report["errors"], 2, "{report}");
}

#[test]
fn the_whole_input_can_be_looked_at_first() {
    let folder = Folder::new();
    let input = folder.path("rows.jsonl");
    let rows = [row(0, "a"), String::new(), "{".to_owned(), row(0, "b"), row(1, "c")];
    fs::write(&input, rows.join("\n")).unwrap();
    let looked = run(&["schedule", "--input", &input, "--dry-run"]);
    assert_eq!(looked.status.code(), Some(1));
    let lines: Vec<&str> = text(&looked.stdout).lines().collect();
    assert!(lines[0].starts_with("line 3: the row is not JSON"), "{lines:?}");
    assert_eq!(lines[1], "line 4 (row-0): the custom_id is that of line 1");
    assert!(lines[2].starts_with("4 rows in "), "{lines:?}");
    fs::write(&input, row(0, "a")).unwrap();
    let looked = run(&["schedule", "--input", &input, "--dry-run", "--json"]);
    assert_eq!(json_of(&looked)["rows"], 1);
}

#[test]
fn rows_come_through_a_pipe() {
    let folder = Folder::new();
    let server = Server::start(&[]);
    let output = folder.path("out.jsonl");
    let url = server.url();
    let args = ["--input", "-", "--output", &output, "--server", &url, "--ranks", "2", "--json"];
    let mut child = schedule(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    for part in 0..3 {
        for i in 0..20 {
            writeln!(pipe, "{}", row(part * 20 + i, "piped")).unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // The last line has no end.
    write!(pipe, "{}", row(60, "piped")).unwrap();
    drop(pipe);
    let report = json_of(&child.wait_with_output().unwrap());
    assert_eq!(report["ok"], 61, "{report}");
    assert_eq!(results(&output).len(), 61);
}

#[test]
fn a_prompt_can_be_asked_many_times() {
    let folder = Folder::new();
    let server = Server::start(&["--sim-slots", "4"]);
    let (output, url) = (folder.path("out.jsonl"), server.url());
    let (csv, log) = (folder.path("ranks.csv"), folder.path("times.hlog"));
    let done = schedule(&["--prompt", "What is AI?", "--iters", "40", "--n_predict", "8"])
        .args(["--server", &url, "--ranks", "2", "--output", &output, "--json"])
        .args(["--csv", &csv, "--histogram-log", &log])
        .output()
        .unwrap();
    let report = json_of(&done);
    assert_eq!((&report["ok"], &report["tokens"]), (&json!(40), &json!(320)));
    assert!(report["ttft_ms"]["n"].as_u64() == Some(40), "{report}");
    let results = results(&output);
    assert_eq!(results.len(), 40);
    assert!(results["request-39"]["response"]["body"]["choices"][0]["text"].is_string());
    let csv = fs::read_to_string(&csv).unwrap();
    assert_eq!(csv.lines().count(), 1 + 2 + 1, "{csv}");
    assert!(fs::read_to_string(&log).unwrap().contains("Tag=latency"));
}

/// A slow server, rows that take a while, and their arguments.
fn slow() -> (Folder, Server, Vec<String>) {
    let folder = Folder::new();
    let server = Server::start(&["--sim-slots", "4", "--sim-ttft", "20ms", "--sim-itl", "3ms"]);
    let input = folder.rows(120);
    let args = ["--input", &input, "--output", &folder.path("out.jsonl"), "--server"];
    let mut args: Vec<String> = args.map(str::to_owned).to_vec();
    args.extend([server.url(), "--quiet".to_owned(), "--ranks".to_owned()]);
    (folder, server, args)
}

fn spawn(args: &[String], ranks: &str) -> Child {
    let args: Vec<&str> = args.iter().map(String::as_str).chain([ranks]).collect();
    schedule(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Result lines in the parts.
fn recorded(folder: &Folder) -> usize {
    recorded_in(&folder.path("out.jsonl.parts"))
}

/// Result lines in the parts of a folder.
pub fn recorded_in(parts: &str) -> usize {
    let Ok(parts) = fs::read_dir(parts) else { return 0 };
    let parts = parts.filter_map(Result::ok).filter_map(|part| fs::read(part.path()).ok());
    parts.map(|bytes| bytes.iter().filter(|&&byte| byte == b'\n').count()).sum()
}

#[test]
fn killed_at_any_moment_it_goes_on_where_it_was() {
    let (folder, server, args) = slow();
    for (kill_at, ranks) in [(1, "1"), (20, "3"), (45, "2"), (80, "4")] {
        let mut child = spawn(&args, ranks);
        wait_until("results are recorded", || (recorded(&folder) >= kill_at).then_some(()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let before = recorded(&folder);
    let child = spawn(&args, "2");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(results(&folder.path("out.jsonl")).len(), 120);
    // What was recorded was not asked again: only what ran when it was killed.
    // (4 runs that were killed with 4 slots, and what each rank asks of the server at its start).
    let asked = server.metric("cnse_queue_seconds_count");
    assert!(before >= 80 && asked < 120 + 4 * 4 + 12 * 4, "{asked} asked, {before} recorded");
}

#[test]
fn an_interrupted_job_lets_end_what_runs_and_says_how_to_go_on() {
    let (folder, server, args) = slow();
    let child = spawn(&args, "2");
    wait_until("results are recorded", || (recorded(&folder) > 5).then_some(()));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("SIGINT") && said.contains("goes on where it stopped"), "{said}");
    server.wait_idle();
    // Nothing that was asked is lost.
    assert_eq!(server.metric("cnse_requests_failed_total{code=\"CANCELLED\"}"), 0);
    assert!(spawn(&args, "3").wait_with_output().unwrap().status.success());
    assert_eq!(results(&folder.path("out.jsonl")).len(), 120);
}

#[test]
fn a_server_that_dies_leaves_its_work_to_the_other() {
    let folder = Folder::new();
    let slow = ["--sim-slots", "4", "--sim-ttft", "10ms", "--sim-itl", "2ms"];
    let (stays, mut dies) = (Server::start(&slow), Server::start(&slow));
    let (input, output) = (folder.rows(120), folder.path("out.jsonl"));
    let list = format!("{},{}", stays.url(), dies.url());
    let args = ["--input", &input, "--output", &output, "--server", &list, "--ranks", "2"];
    let child = schedule(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("results are recorded", || (recorded(&folder) > 20).then_some(()));
    dies.child.kill().unwrap();
    dies.child.wait().unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(results(&output).len(), 120);
}

#[test]
fn a_full_disk_ends_the_job_and_loses_nothing() {
    let (folder, _server, mut args) = slow();
    let small = folder.path("small");
    fs::create_dir(&small).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=48k", "none", &small];
    let mounted = Command::new("mount").args(mount).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("skipped: a file system that fills up needs root and mount");
        return;
    }
    struct Unmount(String);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").args(["-l", &self.0]).status();
        }
    }
    let _unmount = Unmount(small.clone());
    args[3] = format!("{small}/out.jsonl");
    let full = spawn(&args, "2").wait_with_output().unwrap();
    assert_eq!(full.status.code(), Some(1), "{}", text(&full.stderr));
    let said = text(&full.stderr);
    assert!(said.contains("No space left on device") && said.contains("out.jsonl.parts"), "{said}");
    // Room is made, and the same command goes on.
    let grow = Command::new("mount").args(["-o", "remount,size=4m", &small]).status().unwrap();
    assert!(grow.success());
    let done = spawn(&args, "3").wait_with_output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(results(&args[3]).len(), 120);
}

#[test]
fn two_jobs_on_one_output_and_other_faults_are_told() {
    let (_folder, server, args) = slow();
    let mut first = spawn(&args, "1");
    let lock = format!("{}.parts/lock", args[3]);
    wait_until("the first job holds the lock", || Path::new(&lock).exists().then_some(()));
    let second = spawn(&args, "1").wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another job"), "{}", text(&second.stderr));
    first.kill().unwrap();
    first.wait().unwrap();
    let url = server.url();
    for (args, code, message) in [
        (&["--input", "x", "--server", &url][..], 2, "--output FILE is needed"),
        (&["--input", "/nowhere/x", "--output", "/tmp/y", "--server", &url], 1, "/nowhere/x"),
        (&["--prompt", "x", "--server", "http://127.0.0.1:9"], 1, "no server is up: "),
        (&["--prompt", "x"], 2, "--server URL[,URL] is needed"),
        (&["--simulate", "fixed:5"], 2, "--simulate fixed:5: it needs a unit"),
        (&["--simulate", "zipf:5ms"], 2, "not fixed, exponential, lognormal, pareto or trace"),
        (&[], 2, "--input FILE, --prompt TEXT or --simulate TASKS is needed"),
    ] {
        let output = schedule(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    }
}

#[test]
fn simulated_work_is_all_done_however_it_is_skewed() {
    for (tasks, skew) in [("lognormal:2ms,1", "all-on-one"), ("fixed:0", "even")] {
        let args = ["--simulate", tasks, "--iters", "500", "--ranks", "4", "--skew", skew];
        let report = json_of(&schedule(&args).args(["--json", "--quiet"]).output().unwrap());
        assert_eq!(report["ok"], 500);
        let each = report["ranks"].as_array().unwrap();
        assert_eq!(each.iter().map(|rank| rank["ok"].as_u64().unwrap()).sum::<u64>(), 500);
        if skew == "all-on-one" {
            assert!(each.iter().all(|rank| rank["ok"].as_u64().unwrap() > 0), "{report}");
        }
    }
    let kept = ["--simulate", "fixed:1ms", "--iters", "40", "--ranks", "2", "--no-steal"];
    let args = [&kept[..], &["--skew", "all-on-one", "--json"]].concat();
    let report = json_of(&schedule(&args).output().unwrap());
    assert_eq!(report["ranks"][1]["ok"], 0);
}

#[test]
fn a_plan_is_the_same_each_time() {
    let args = ["schedule", "--plan", "64", "--simulate", "pareto:20ms,1.8", "--iters", "2000"];
    let args = [&args[..], &["--skew", "all-on-one", "--json"]].concat();
    let first = json_of(&run(&args));
    assert_eq!(first, json_of(&run(&args)));
    assert!(first["efficiency"].as_f64().unwrap() > 0.5, "{first}");
}
