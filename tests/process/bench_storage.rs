//! `cnse bench storage`, in a folder and on a real SeaweedFS.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::{cnse, run, text, wait_until};
use crate::schedule::Folder;
use crate::store_on_filer::ask;
use crate::weed::Weed;

/// Small and quick.
const SMALL: [&str; 7] = ["bench", "storage", "--size", "1MiB", "--part-size", "256KiB", "--quiet"];

/// What is in a folder.
fn names(folder: &str) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A folder on the disk that has what was built: the system's own for such may be in memory.
fn on_disk(name: &str) -> String {
    let folder = std::env::current_exe()
        .unwrap()
        .with_file_name(format!("bench-storage-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn all_is_measured_told_and_removed() {
    let (results, dir) = (Folder::new(), on_disk("all"));
    let [a, page] = ["a.json", "a.html"].map(|name| results.path(name));
    let more = ["--iters", "2", "--threads", "1,2", "--dir", &dir, "--output", &a];
    let output = run(&[&SMALL[..], &more].concat());
    let left = names(&dir);
    fs::remove_dir_all(&dir).unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(left, [""; 0]);
    let table = text(&output.stdout);
    let found: Value = serde_json::from_str(&fs::read_to_string(&a).unwrap()).unwrap();
    // Where the disk is one in memory there is no cold, and it says so.
    let is_cold = found["page_cache"]["cold"] == true;
    assert_eq!(found["left_out"].as_array().unwrap().is_empty(), is_cold, "{found}");
    assert_eq!(table.contains("left out: cold"), !is_cold, "{table}");
    let settings = 1 + (3 + 2 + 1 + 2) * if is_cold { 2 } else { 1 };
    let figures = found["storage"].as_array().unwrap();
    assert_eq!((figures.len(), &found["ok"]), (settings, &json!(2 * settings)));
    for figure in figures {
        assert!(figure["mb_per_s"]["p50"].as_f64().unwrap() > 0.0, "{figure}");
        let is_limit = ["sha256", "read", "copy"].iter().any(|name| figure["operation"] == *name);
        let share = figure["limit_share"]["p50"].as_f64();
        assert_eq!(share.is_some_and(|share| share > 0.0), !is_limit, "{figure}");
        assert!(figure["operation"] != "get" || figure["linked"] == true, "{figure}");
    }
    for run in found["runs"].as_array().unwrap() {
        let share = run["resident_share"].as_f64();
        match run["settings"]["page_cache"].as_str() {
            None => assert_eq!(share, None),
            Some("cold") => assert!(share.unwrap() <= 0.01, "{run}"),
            Some(_) => assert!(share.unwrap() >= 0.99, "{run}"),
        }
    }
    // The other commands read it.
    let output = run(&["bench", "report", &a, "--html", &page]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("put to a directory") && page.contains("SHA-256 on one core"));
    let output = run(&["bench", "compare", &a, &a, "--fail-if", "mb_per_s < -5%"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("mb_per_s "), "{}", text(&output.stdout));
    let again = run(&["bench", "rerun", &a, "--dry-run"]);
    assert!(!text(&again.stdout).contains("--output"), "{}", text(&again.stdout));
}

#[test]
fn a_file_of_yours_is_only_read() {
    let (folder, dir) = (Folder::new(), on_disk("given"));
    let file = folder.path("model.bin");
    fs::write(&file, vec![7; 300_000]).unwrap();
    let before = fs::metadata(&file).unwrap().modified().unwrap();
    let asked = ["--op", "hash,put", "--iters", "1", "--dir", &dir, "--json", "--quiet"];
    let output = run(&[&["bench", "storage", "--file", &file][..], &asked].concat());
    let left = names(&dir);
    fs::remove_dir_all(&dir).unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!((left, names(&folder.path("."))), (vec![], vec!["model.bin".to_owned()]));
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), before);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["storage"][0]["bytes"], 300_000);
    assert_eq!(found["environment"]["models"][&file].as_str().unwrap().len(), 64);
}

#[test]
fn in_memory_nothing_is_cold() {
    let memory = "/dev/shm";
    let is_tmpfs = nix::sys::statfs::statfs(memory)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
    if !is_tmpfs {
        eprintln!("skipped: {memory} is no tmpfs");
        return;
    }
    let asked = [&SMALL[..], &["--op", "hash", "--iters", "1", "--dir", memory]].concat();
    let output = run(&[&asked[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = json!([false, true]);
    assert_eq!(json!([found["page_cache"]["cold"], found["page_cache"]["warm"]]), expected);
    assert!(found["left_out"][0].as_str().unwrap().contains("stay in memory"), "{found}");
    let output = run(&[&asked[..], &["--page-cache", "cold"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("stay in memory"), "{}", text(&output.stderr));
}

#[test]
fn what_cannot_be_is_said() {
    let folder = Folder::new();
    let (dir, empty) = (folder.path("."), folder.path("empty"));
    fs::write(&empty, b"").unwrap();
    let cases: [(&[&str], i32, &str); 12] = [
        (&["--file", "/nonexistent/m.gguf"], 1, "--file \"/nonexistent/m.gguf\": No such file"),
        (&["--file", &empty], 1, "it is empty"),
        (&["--file", "/dev"], 1, "it is no file"),
        (&["--file", &empty, "--size", "1MiB"], 2, "--size is of files that are made"),
        (&["--dir", "/nonexistent/x"], 1, "the folder \"/nonexistent/x\": No such file"),
        (&["--size", "1TiB"], 1, "choose a smaller --size, or --dir on another disk"),
        (&["--size", "0"], 2, "--size 0: \"0\" is not of sizes"),
        (&["--op", "put,copy"], 2, "\"copy\" is not of hash,put,get,verify"),
        (&["--threads", "0"], 2, "numbers from 1 to 64"),
        (&["--place", "filer"], 2, "--filer URL is needed"),
        (&["--filer", "ftp://h"], 2, "is no filer"),
        (&["--filer", "http://127.0.0.1:1", "--size", "4KiB"], 1, "http://127.0.0.1:1"),
    ];
    for (args, code, message) in cases {
        let output = run(&[&["bench", "storage", "--dir", &dir][..], args].concat());
        let output = match args.contains(&"--dir") {
            true => run(&[&["bench", "storage"][..], args].concat()),
            false => output,
        };
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(message), "{args:?}: {said}");
    }
    assert_eq!(names(&dir), ["empty"]);
}

/// One that runs for long, once it has made its folder and files.
fn long(dir: &str) -> Child {
    let mut command = cnse();
    command.args(SMALL).args(["--iters", "10000", "--dir", dir]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.unwrap();
    wait_until("it measures", || {
        let made = names(dir).into_iter().find(|name| name.starts_with("cnse-bench-"))?;
        fs::metadata(format!("{dir}/{made}/kept/blobs")).ok()
    });
    child
}

#[test]
fn interrupted_it_leaves_nothing_and_killed_the_next_removes_it() {
    let folder = Folder::new();
    let dir = folder.path(".");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut child = long(&dir);
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal as i32));
        assert_eq!(names(&dir), [""; 0]);
    }
    let mut child = long(&dir);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(&dir).len(), 1);
    let asked = ["--op", "hash", "--iters", "1", "--dir", &dir];
    let output = run(&[&SMALL[..], &asked].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("removing what a killed one left"));
    assert_eq!(names(&dir), [""; 0]);
}

/// What a filer lists in its root.
fn on_filer(weed: &Weed) -> String {
    let (_, body) = ask(&format!("{}/?limit=1000", weed.url));
    text(&body).to_owned()
}

#[test]
fn on_a_real_filer_and_in_a_folder_at_once() {
    let Some(weed) = Weed::start(&[], &[]) else { return };
    let folder = Folder::new();
    let dir = folder.path(".");
    let more = [
        "--filer",
        &weed.url,
        "--place",
        "filer,directory",
        "--threads",
        "1,2",
        "--iters",
        "1",
        "--dir",
        &dir,
        "--json",
    ];
    let output = run(&[&SMALL[..], &more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |operation: &str, place: &str| {
        let runs = found["runs"].as_array().unwrap().iter();
        let of = |run: &&Value| {
            run["settings"]["operation"] == operation && run["settings"]["place"] == place
        };
        runs.filter(of).cloned().collect::<Vec<_>>()
    };
    for operation in ["put", "get", "verify"] {
        assert!(of(operation, "filer").len() >= 2 && !of(operation, "directory").is_empty());
    }
    assert!(of("get", "filer").iter().all(|run| run["linked"] == false), "{found}");
    assert!(found["left_out"].to_string().contains("cold on the filer"), "{found}");
    assert!(names(&dir).is_empty());
    // Of what it made on the filer nothing is left.
    let listed = on_filer(&weed);
    assert!(!listed.contains("cnse-bench-"), "{listed}");
}

#[test]
fn a_filer_that_dies_ends_it() {
    let Some(weed) = Weed::start(&[], &[]) else { return };
    let folder = Folder::new();
    let dir = folder.path(".");
    let mut command = cnse();
    command.args(["bench", "storage", "--size", "1MiB", "--filer", &weed.url]);
    command.args(["--iters", "10000", "--dir", &dir]).env("CNSE_FILER_UPLOAD", "parts");
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_until("it measures", || on_filer(&weed).contains("cnse-bench-").then_some(()));
    weed.kill();
    // It is patient with a filer that may come back; whoever is not interrupts it.
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success() && names(&dir).is_empty());
    let said = text(&output.stderr);
    assert!(said.contains("what was made on the filer could not be removed"), "{said}");
}
