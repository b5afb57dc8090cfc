//! `cnse bench sweep`, `compare`, `rerun` and `guard`: experiments, interrupted and killed.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{Server, cnse, run, text, wait_until};
use crate::schedule::Folder;

fn json(output: &Output) -> Value {
    let said = text(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// A sweep over tasks in virtual time, with `flags` before the command.
fn sweep(flags: &[&str]) -> Output {
    let command = ["--", "schedule", "--plan", "1", "--simulate", "fixed:0", "--iters", "{iters}"];
    let vary = ["bench", "sweep", "--vary", "iters=10,20"];
    run(&[&vary, flags, &command].concat())
}

/// Whether a process is there; one that has ended and waits to be asked is not.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn pid_in(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[test]
fn hypotheses_are_answered_and_an_experiment_goes_on() {
    let folder = Folder::new();
    let (result, table) = (folder.path("r.json"), folder.path("r.csv"));
    let (output, csv) = (["--output", &result], ["--csv", &table]);
    let expect = [
        "--expect",
        "tasks: iters=20 > iters=10 by 50%",
        "--expect",
        "tasks: iters=20 > iters=10 by 150%",
        "--expect",
        "tasks: iters=20 > iters=10 by 100%",
        "--json",
    ];
    let verdicts = |found: &Value| -> Vec<String> {
        let all = found["verdicts"].as_array().unwrap();
        all.iter().map(|v| v["verdict"].as_str().unwrap().to_owned()).collect()
    };
    let first = sweep(&[&output[..], &csv, &expect, &["--repeat", "2"]].concat());
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    assert_eq!(verdicts(&json(&first)), ["undecided"; 3]);
    let second = sweep(&[&output[..], &csv, &expect, &["--repeat", "4"]].concat());
    let found = json(&second);
    assert_eq!(verdicts(&found), ["supported", "refuted", "undecided"]);
    // The four runs of the first are kept, and this is the second look at them.
    assert_eq!(text(&second.stderr).lines().filter(|line| line.contains(" of 8: ")).count(), 4);
    let alpha = found["verdicts"][0]["alpha"].as_f64().unwrap();
    assert!((alpha - 0.05 / 3.0 * 0.8 * 0.2).abs() < 1e-12, "{alpha}");
    let runs = found["runs"].as_array().unwrap();
    assert_eq!((runs.len(), &found["ok"], &found["errors"]), (8, &8.into(), &0.into()));
    for run in runs {
        assert_eq!(run["tasks"], run["settings"]["iters"]);
    }
    assert!(found["environment"]["noise"]["own_cores"].as_f64().unwrap() > 0.0);
    let csv = fs::read_to_string(&table).unwrap();
    let head = "iters,throughput_tok_s,latency_p50_ms,latency_p95_ms,latency_p99_ms,repeat,";
    assert!(csv.starts_with(head) && csv.lines().count() == 9, "{csv}");
    assert_eq!(fs::read_to_string(&result).unwrap(), text(&second.stdout));
    // Another experiment does not take over its journal.
    let other = sweep(&[&output[..], &["--seed", "2"]].concat());
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("is of another experiment (plan differs)"));
    // Once more, from the file.
    let again = run(&["bench", "rerun", &result, "--", "--repeat", "3", "--strict"]);
    assert_eq!(again.status.code(), Some(1), "one is refuted: {}", text(&again.stderr));
    assert_eq!(verdicts(&json(&again)), ["supported", "refuted", "undecided"]);
    let dry = run(&["bench", "rerun", &result, "--dry-run"]);
    assert!(text(&dry.stdout).starts_with("cnse bench sweep --vary iters=10,20 --expect 'tasks: "));
}

#[test]
fn each_run_has_its_server() {
    let found = run(&[
        "bench",
        "sweep",
        "--start",
        "cnse serve --port {port} --sim-slots {slots} --threads 1",
        "--vary",
        "slots=1,2",
        "--repeat",
        "2",
        "--json",
        "--quiet",
        "--",
        "client",
        "--server",
        "http://127.0.0.1:{port}",
        "--prompt",
        "Hi",
        "--iters",
        "8",
        "--concurrency",
        "2",
        "--n_predict",
        "4",
    ]);
    assert_eq!(found.status.code(), Some(0), "{}", text(&found.stderr));
    let found = json(&found);
    let runs = found["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    for run in runs {
        assert_eq!((&run["ok"], run["failure"].as_str()), (&8.into(), None));
        let words = run["command"].as_array().unwrap();
        let server = words.iter().filter_map(Value::as_str).find(|word| word.contains("://"));
        let address = server.unwrap().trim_start_matches("http://");
        assert!(TcpStream::connect(address).is_err(), "{address} is still served");
    }
}

#[test]
fn what_fails_is_said_and_the_rest_is_done() {
    let broken = |flags: &[&str]| {
        let head = ["bench", "sweep", "--vary", "n=1,x", "--repeat", "1", "--json"];
        run(&[&head, flags].concat())
    };
    let output = broken(&["--", "schedule", "--plan", "1", "--iters", "{n}"]);
    assert_eq!(output.status.code(), Some(1));
    let found = json(&output);
    assert_eq!((&found["ok"], &found["errors"]), (&1.into(), &1.into()));
    let failed = found["runs"].as_array().unwrap().iter().find(|run| run["failure"].is_string());
    let failure = failed.unwrap()["failure"].as_str().unwrap();
    assert!(failure.starts_with("the command ended with 2; it said: "), "{failure}");
    assert!(failure.contains("--iters x: not a number"), "{failure}");
    for (start, message) in [
        ("cnse serve --port {port} --prot {n}", "cnse ended with 2 before it was ready; it said: "),
        ("no-such-program {n} {port}", "no-such-program: there is no such program"),
    ] {
        let output = broken(&["--start", start, "--", "client", "--prompt", "Hi"]);
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
        assert_eq!(json(&output)["errors"], 2);
    }
    let script = "sh -c 'echo out of memory >&2; exit {n}3'";
    let dies = ["--start", script, "--ready", "none", "--", "client", "--prompt", "Hi"];
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let output = broken(&[&dies[..], &["--port", &port, "--timeout", "200ms"]].concat());
    let said = text(&output.stderr);
    assert!(said.contains("; the server, sh ended with 13; it said: out of memory"), "{said}");
    let slow = ["--start", "sleep 60{n}{port}", "--ready-timeout", "200ms", "--", "client"];
    let output = broken(&slow);
    let said = text(&output.stderr);
    assert!(said.contains("within 200ms; --ready-timeout gives it more"), "{said}");
    let client = ["--", "client", "--port", &port, "--prompt", "{n}"];
    let output = broken(&[&["--run-timeout", "100ms"][..], &client].concat());
    assert!(text(&output.stderr).contains("did not end within 100ms"), "{}", text(&output.stderr));
}

#[test]
fn another_program_takes_its_turn() {
    let script = r#"echo "{\"cnse\": \"0\", \"ok\": 1, \"tokens_per_s\": $0}""#;
    let output = run(&[
        "bench", "sweep", "--vary", "x=5,7", "--repeat", "1", "--json", "--", "/bin/sh", "-c",
        script, "{x}",
    ]);
    let found = json(&output);
    assert_eq!((&found["ok"], &found["errors"]), (&2.into(), &0.into()), "{found}");
    for run in found["runs"].as_array().unwrap() {
        assert_eq!(run["tokens_per_s"], run["settings"]["x"]);
    }
}

#[test]
fn faults_of_the_command_line() {
    let client = ["--", "client", "--prompt", "{x}"];
    for (flags, message) in [
        (&["--vary", "x=1"][..], "what is run is missing: "),
        (&["--", "client"], "--vary NAME=VALUES or --point NAME=VALUE,… is needed"),
        (&["--vary", "y=1"], "y is varied, but {y} stands nowhere"),
        (&["--vary", "x=1", "--expect", "f: y=1 > x=1"], "y is not varied"),
        (&["--vary", "x=1", "--slo", "f < 1"], "--slo is for --tune"),
        (&["--vary", "x=1", "--tune", "max f", "--repeat", "2"], "--repeat and --tune exclude"),
        (&["--vary", "port=1"], "--start fills in a free port itself"),
        (&["--vary", "x=1", "--start", "a 'b"], "' is not closed"),
        (&["--point", "x=1", "--point", "y=1"], "each has to set the same names"),
    ] {
        let needs_child = !flags.contains(&"--") && !message.starts_with("what is run");
        let child = if needs_child { &client[..] } else { &[] };
        let output = run(&[&["bench", "sweep"], flags, child].concat());
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    }
    let output = run(&["bench", "swep"]);
    let message = "cnse: error: there is no command bench swep; did you mean sweep?\n";
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(2), message));
    assert_eq!(run(&["bench"]).status.code(), Some(2));
    assert_eq!(run(&["help", "bench", "sweep"]).stdout, run(&["bench", "sweep", "--help"]).stdout);
}

/// A sweep whose server leaves word of itself and of a process that it sends away, and whose
/// client waits for an answer that does not come.
fn endless(folder: &Folder, silent: &TcpListener) -> (Child, u32, u32) {
    let (server, away) = (folder.path("server"), folder.path("away"));
    let script = format!(
        "setsid sleep 1000 & echo $! > {away}.new; mv {away}.new {away}; \
         echo $$ > {server}.new; mv {server}.new {server}; exec sleep 100{{x}}"
    );
    let start = format!("sh -c '{script}'");
    let output = folder.path("r.json");
    let mut command = cnse();
    command.args(["bench", "sweep", "--vary", "x=1", "--output", &output, "--ready", "none"]);
    let port = silent.local_addr().unwrap().port().to_string();
    command.args(["--start", &start, "--", "client", "--port", &port, "--prompt", "Hi"]);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pids = [&server, &away].map(|path| wait_until("the server starts", || pid_in(path)));
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    (child, pids[0], pids[1])
}

#[test]
fn nothing_outlives_an_interrupt_or_a_kill() {
    for (signal, code) in
        [(Signal::SIGINT, Some(75)), (Signal::SIGTERM, Some(75)), (Signal::SIGKILL, None)]
    {
        let folder = Folder::new();
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let (child, server, away) = endless(&folder, &silent);
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), code, "{signal}: {}", text(&output.stderr));
        if code.is_some() {
            let said = text(&output.stderr);
            assert!(said.contains("interrupted after 0 runs; the same command goes on"), "{said}");
            assert!(!is_alive(server) && !is_alive(away), "{signal}");
        }
        wait_until("all has ended", || (!is_alive(server) && !is_alive(away)).then_some(()));
    }
}

#[test]
fn a_guard_passes_the_exit_code_on() {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
        let mut guard = cnse();
        guard.args(["bench", "guard", "--", "sh", "-c", script]).stdin(Stdio::piped());
        let mut guard = guard.spawn().unwrap();
        // To wait closes the pipe, which tells the guard that its starter has died.
        let alive = guard.stdin.take();
        assert_eq!(guard.wait().unwrap().code(), Some(code), "{script}");
        drop(alive);
    }
    let output = run(&["bench", "guard"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_real_llama_server_is_varied() {
    let binary = std::env::var("CNSE_TEST_LLAMA_SERVER");
    let (Ok(binary), Ok(models)) = (binary, std::env::var("CNSE_TEST_MODELS")) else {
        let why = "CNSE_TEST_LLAMA_SERVER and CNSE_TEST_MODELS are not set";
        assert!(std::env::var("CNSE_TEST_PEERS").is_err(), "{why}");
        eprintln!("skipped: {why}");
        return;
    };
    let folder = Folder::new();
    let (result, table) = (folder.path("r.json"), folder.path("r.csv"));
    let model = format!("{models}/tiny.gguf");
    let start = format!(
        "'{binary}' -m '{model}' -t 1 -c 4096 -np {{np}} -b {{batch}} --offline --port {{port}}"
    );
    let output = run(&[
        "bench",
        "sweep",
        "--start",
        &start,
        "--vary",
        "np=1,4",
        "--vary",
        "batch=256,512",
        "--repeat",
        "3",
        "--expect",
        "ok: np=4 < np=1 by 10%",
        "--output",
        &result,
        "--csv",
        &table,
        "--json",
        "--",
        "client",
        "--server",
        "http://127.0.0.1:{port}",
        "--prompt",
        "What is AI?",
        "--iters",
        "8",
        "--concurrency",
        "4",
        "--n_predict",
        "8",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let found = json(&output);
    assert_eq!(found["runs"].as_array().unwrap().len(), 12);
    assert_eq!(found["verdicts"][0]["verdict"], "refuted", "each answers all");
    let hash = found["environment"]["models"][&model].as_str().unwrap();
    assert_eq!(hash.len(), 64);
    let rows = fs::read_to_string(&table).unwrap();
    let head = "np,batch,throughput_tok_s,latency_p50_ms,";
    assert!(rows.starts_with(head) && rows.lines().count() == 13, "{rows}");
    let rates = rows.lines().skip(1).map(|row| row.split(',').nth(2).unwrap().parse::<f64>());
    assert!(rates.into_iter().all(|rate| rate.unwrap() > 0.0), "{rows}");
}

#[test]
fn the_best_setting_is_looked_for() {
    let folder = Folder::new();
    let result = folder.path("r.json");
    let tune = |budget: &str| {
        let output = run(&[
            "bench",
            "sweep",
            "--tune",
            "max tasks",
            "--slo",
            "tasks < 55",
            "--budget",
            budget,
            "--vary",
            "iters=10..90",
            "--output",
            &result,
            "--json",
            "--",
            "schedule",
            "--plan",
            "1",
            "--simulate",
            "fixed:0",
            "--iters",
            "{iters}",
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        json(&output)
    };
    let first = tune("6");
    assert_eq!(first["runs"].as_array().unwrap().len(), 6);
    let found = tune("12");
    assert_eq!(found["runs"].as_array().unwrap().len(), 12);
    assert_eq!(found["runs"][5]["settings"], first["runs"][5]["settings"]);
    let best = found["best"]["settings"]["iters"].as_u64().unwrap();
    assert!((45..55).contains(&best), "{}", found["best"]);
}

#[test]
fn saved_results_are_compared() {
    let folder = Folder::new();
    let save = |name: &str, iters: &str| {
        let output =
            run(&["schedule", "--plan", "1", "--simulate", "fixed:0", "--iters", iters, "--json"]);
        let path = folder.path(name);
        fs::write(&path, output.stdout).unwrap();
        path
    };
    let (a, b) = (save("a.json", "100"), save("b.json", "120"));
    let compare = |flags: &[&str]| run(&[&["bench", "compare", &a, &b], flags].concat());
    let output = compare(&["--figure", "tasks"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("tasks ") && said.contains("+20.0 %"), "{said}");
    assert!(said.contains("different: command: schedule ") && !said.contains("different: cpu"));
    for (limit, code, verdict) in [
        ("tasks > +5%", 1, "passed"),
        ("tasks > +25%", 0, "kept"),
        ("tasks < -5%", 0, "kept"),
        ("nothing > +5%", 1, "not to be told, since A or B lacks the figure"),
    ] {
        let output = compare(&["--fail-if", limit, "--json"]);
        assert_eq!(output.status.code(), Some(code), "{limit}");
        assert_eq!(json(&output)["limits"][0]["verdict"], verdict);
    }
    assert_eq!(compare(&["--fail-if", "ok"]).status.code(), Some(2));
    assert_eq!(compare(&["--repeat", "3"]).status.code(), Some(2));
    fs::write(&b, "{}").unwrap();
    let output = compare(&[]);
    let message = format!("cnse: error: {b:?}: it is no result of cnse --json");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with(&message), "{}", text(&output.stderr));
    assert_eq!(run(&["bench", "rerun", &b]).status.code(), Some(1));
}

#[test]
fn live_targets_are_measured_in_turn() {
    let [fast, slow] =
        ["1ms", "4ms"].map(|ttft| Server::start(&["--sim-ttft", ttft, "--threads", "1"]));
    let output = run(&[
        "bench",
        "compare",
        &fast.url(),
        &slow.url(),
        "--repeat",
        "4",
        "--json",
        "--quiet",
        "--",
        "client",
        "--server",
        "{target}",
        "--prompt",
        "Hi",
        "--iters",
        "10",
        "--n_predict",
        "2",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let found = json(&output);
    assert_eq!(found["runs"].as_array().unwrap().len(), 8);
    let changes = found["changes"].as_array().unwrap();
    let ttft = changes.iter().find(|change| change["figure"] == "ttft_ms_p50").unwrap();
    assert_eq!(ttft["ground"], serde_json::json!({ "pairs": 4 }));
    assert!(ttft["ci"].is_array() && ttft["change"].as_f64().unwrap() > 0.0, "{ttft}");
    let output = run(&["bench", "compare", &fast.url(), &slow.url(), "--", "client"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("{target} stands nowhere"));
}

#[test]
fn several_results_of_each_are_compared_over_runs() {
    let folder = Folder::new();
    let schedule = |name: &str, tasks: &str| {
        let output = run(&["schedule", "--simulate", tasks, "--iters", "20", "--quiet", "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        // It says where it was made, as every result does.
        let environment = &json(&output)["environment"];
        for name in ["cpu", "cores", "kernel", "features", "build", "host", "seed", "noise"] {
            assert!(!environment[name].is_null(), "{name}: {environment}");
        }
        let path = folder.path(name);
        fs::write(&path, &output.stdout).unwrap();
        path
    };
    let of = |side: &str, tasks: &str| -> Vec<String> {
        (0..3).map(|number| schedule(&format!("{side}-{number}.json"), tasks)).collect()
    };
    let (a, b) = (of("a", "fixed:2ms"), of("b", "fixed:8ms"));
    let (all_a, all_b) = (a.join(","), b.join(","));
    let limit = ["--figure", "wall_s", "--fail-if", "wall_s > +50%", "--json"];
    let output = run(&[&["bench", "compare", &all_a, &all_b][..], &limit].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let found = json(&output);
    assert_eq!(found["files"]["b"].as_array().unwrap().len(), 3);
    assert_eq!(found["limits"][0]["verdict"], "passed");
    let change =
        found["changes"].as_array().unwrap().iter().find(|change| change["figure"] == "wall_s");
    let change = change.unwrap();
    assert_eq!(change["ground"], serde_json::json!({ "runs": [3, 3] }));
    assert!(change["ci"][0].as_f64().unwrap() > 0.5, "{change}");
    let notes = found["differences"].to_string();
    assert!(notes.contains("were not measured in turn") && notes.contains("fixed:8ms"), "{notes}");
    assert!(!notes.contains("different within"), "{notes}");
    // Made in turn, and not all alike: that is said too.
    let mixed = format!("{},{}", a[0], b[2]);
    let output = run(&["bench", "compare", &mixed, &a[1]]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("different within A: ") && said.contains("it takes three of each"));
    assert!(!said.contains("in turn") && said.contains("no interval"), "{said}");
    let missing = format!("{all_a},/nonexistent/a.json");
    let output = run(&["bench", "compare", &missing, &all_b]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("reading \"/nonexistent/a.json\""));
}
