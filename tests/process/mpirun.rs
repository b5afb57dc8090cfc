//! `mpirun cnse schedule`, with the binary that `CNSE_TEST_MPI` names (built with the feature
//! `mpi`; `scripts/mpi.sh` builds one). Where it is not set, each test says so and does nothing;
//! `CNSE_TEST_PEERS=required` makes that a failure.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::{Server, cnse, text, wait_until};
use crate::llama::llama;
use crate::schedule::{Folder, recorded_in, results};

/// mpirun of so many ranks.
fn mpirun(ranks: &str, args: &[&str]) -> Option<Command> {
    let Ok(binary) = std::env::var("CNSE_TEST_MPI") else {
        let why = "CNSE_TEST_MPI is not set";
        assert!(std::env::var("CNSE_TEST_PEERS").is_err(), "{why}");
        println!("skipped: {why}");
        return None;
    };
    Some(mpirun_of(&binary, ranks, args))
}

/// mpirun of `cnse bench`.
fn mpirun_bench(ranks: &str, what: &str, args: &[&str]) -> Option<Command> {
    mpirun(ranks, &[]).map(|_| ())?;
    let binary = std::env::var("CNSE_TEST_MPI").ok()?;
    Some(mpirun_with(&binary, ranks, &[&["bench", what], args].concat()))
}

fn mpirun_of(binary: &str, ranks: &str, args: &[&str]) -> Command {
    mpirun_with(binary, ranks, &[&["schedule"], args].concat())
}

fn mpirun_with(binary: &str, ranks: &str, args: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env_remove("CNSE_API_KEY").stdin(Stdio::null());
    command.args(["--oversubscribe", "--bind-to", "none", "-np", ranks, binary]);
    command.args(args);
    command
}

#[test]
fn work_that_starts_on_one_rank_reaches_all() {
    for ranks in ["1", "3", "8"] {
        let args = ["--simulate", "fixed:2ms", "--iters", "1000", "--skew", "all-on-one"];
        let Some(mut command) = mpirun(ranks, &[&args[..], &["--json", "--quiet"]].concat()) else {
            return;
        };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["ok"], 1000);
        let each = report["ranks"].as_array().unwrap();
        assert_eq!(each.len().to_string(), ranks);
        assert!(each.iter().all(|rank| rank["ok"].as_u64().unwrap() > 0), "{report}");
    }
}

#[test]
fn four_llama_servers_of_unequal_speed_share_one_batch() {
    let folder = Folder::new();
    let models = std::env::var("CNSE_TEST_MODELS").unwrap_or_default();
    let large = format!("{models}/mid-16l.gguf");
    let mut servers = Vec::new();
    // The later of two flags counts: larger models are slower, and so is one slot.
    for more in [&[][..], &["-np", "1"], &["-m", &large], &["-m", &large, "-np", "1"]] {
        let Some(server) = llama(more) else { return };
        servers.push(server);
    }
    let list = servers.iter().map(Server::url).collect::<Vec<_>>().join(",");
    let input = folder.path("rows.jsonl");
    let rows: String = (0..160)
        .map(|i| {
            let tokens = 2 + (i * 7) % 40;
            let content = format!("Tell me about the number {i}.");
            let row = if i % 2 == 0 {
                json!({ "custom_id": format!("c{i}"), "method": "POST",
                        "url": "/v1/chat/completions",
                        "body": { "messages": [{ "role": "user", "content": content }],
                                  "max_tokens": tokens } })
            } else {
                json!({ "custom_id": format!("c{i}"), "method": "POST", "url": "/v1/completions",
                        "body": { "prompt": content, "max_tokens": tokens } })
            };
            format!("{row}\n")
        })
        .collect();
    fs::write(&input, rows).unwrap();
    let output = folder.path("out.jsonl");
    let args = ["--input", &input, "--output", &output, "--server", &list, "--json"];
    let Some(mut command) = mpirun("4", &args) else { return };
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&report["ok"], &report["errors"]), (&json!(160), &json!(0)));
    assert!(report["ttft_ms"]["n"].as_u64() == Some(160), "{report}");
    assert_eq!(report["servers"].as_object().unwrap().len(), 4, "{report}");
    assert_eq!(results(&output).len(), 160);
    println!("efficiency {}, balance {}", report["efficiency"], report["balance"]);
}

#[test]
fn a_killed_rank_or_mpirun_loses_nothing() {
    let folder = Folder::new();
    let server = Server::start(&["--sim-slots", "6", "--sim-ttft", "20ms", "--sim-itl", "3ms"]);
    let (input, output, url) = (folder.rows(120), folder.path("out.jsonl"), server.url());
    let args = ["--input", &input, "--output", &output, "--server", &url, "--quiet"];
    for (kill_at, of_rank) in [(10, true), (50, false)] {
        let Some(mut command) = mpirun("3", &args) else { return };
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let parts = folder.path("out.jsonl.parts");
        wait_until("results are recorded", || (recorded_in(&parts) >= kill_at).then_some(()));
        let victim = if of_rank { rank_of(&parts, 2) } else { child.id() as i32 };
        kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
        assert!(!child.wait().unwrap().success());
        // Ranks whose mpirun was killed end a little later, and hold the lock until then.
        let lock = || fs::File::open(Path::new(&parts).join("lock")).unwrap().try_lock().is_ok();
        wait_until("the ranks are gone", || lock().then_some(()));
    }
    let Some(mut command) = mpirun("2", &args) else { return };
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(results(&output).len(), 120);
}

#[test]
fn ranks_that_share_no_folder_are_given_rows_and_bring_their_parts() {
    let Ok(binary) = std::env::var("CNSE_TEST_MPI") else {
        drop(mpirun("1", &[]));
        return;
    };
    let (here, there) = (Folder::new(), Folder::new());
    let server = Server::start(&["--sim-slots", "6", "--sim-ttft", "20ms", "--sim-itl", "3ms"]);
    let (input, url) = (here.rows(120), server.url());
    // The same relative paths in two folders are what two machines without a common one would see.
    let start = || {
        let args = ["--input", "rows.jsonl", "--output", "out.jsonl", "--server", &url, "--json"];
        let mut command = mpirun_of(&binary, "1", &args);
        command.args([":", "-np", "2", "--wdir", &there.path(""), &binary, "schedule"]);
        command.args(args).current_dir(here.path("")).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    assert!(Path::new(&input).exists());
    let child = start();
    let parts = there.path("out.jsonl.parts");
    wait_until("results are recorded there", || (recorded_in(&parts) >= 20).then_some(()));
    kill(Pid::from_raw(rank_of(&parts, 2)), Signal::SIGKILL).unwrap();
    assert!(!child.wait_with_output().unwrap().status.success());
    let done = start().wait_with_output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(report["skipped"].as_u64().unwrap() >= 20, "{report}");
    assert_eq!(results(&here.path("out.jsonl")).len(), 120);
    assert_eq!(recorded_in(&parts), 0);
}

/// The process of a rank, from the name of its part.
fn rank_of(parts: &str, rank: u32) -> i32 {
    let tail = format!("-r{rank}.jsonl");
    let names = fs::read_dir(parts).unwrap().map(|part| part.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let name = names.filter(|name| name.ends_with(&tail)).max().unwrap();
    name.trim_end_matches(&tail).rsplit('-').next().unwrap().parse().unwrap()
}

#[test]
fn a_build_without_mpi_refuses_to_be_several() {
    let run = |size: &str, rank: &str| {
        let args = ["schedule", "--simulate", "fixed:1ms", "--iters", "3"];
        let mut command = cnse();
        command.args(args).env("OMPI_COMM_WORLD_SIZE", size).env("OMPI_COMM_WORLD_RANK", rank);
        command.output().unwrap()
    };
    let (first, second) = (run("4", "0"), run("4", "1"));
    assert_eq!((first.status.code(), second.status.code()), (Some(1), Some(1)));
    let said = text(&first.stderr);
    assert!(said.contains("built without MPI") && said.contains("--ranks"), "{said}");
    assert!(second.stderr.is_empty() && first.stdout.is_empty());
    assert!(run("1", "0").status.success());
}

#[test]
fn scaling_is_measured_from_within_mpirun() {
    let args = ["--simulate", "fixed:2ms", "--iters", "40", "--repeat", "1", "--steal", "on"];
    let Some(mut command) = mpirun_bench("4", "scaling", &[&args[..], &["--json"]].concat()) else {
        return;
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ranks: Vec<usize> = report["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["ranks"].as_array().unwrap().len())
        .collect();
    let mut sorted = ranks.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [1, 2, 4], "{report}");
    assert!(report["runs"].as_array().unwrap().iter().all(|run| run["ok"] == 40));
}
