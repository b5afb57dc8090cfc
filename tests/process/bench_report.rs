//! `cnse bench report` and `bench scaling`.

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use crate::common::{Server, cnse, run, text};
use crate::schedule::Folder;

/// A saved result of a load against the built-in backend.
fn client(folder: &Folder, server: &Server, name: &str) -> String {
    let url = server.url();
    let args = ["client", "--server", &url, "--prompt", "a <b> & c", "--iters", "60", "--json"];
    let output = run(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let path = folder.path(name);
    fs::write(&path, &output.stdout).unwrap();
    path
}

#[test]
fn one_result_becomes_a_page_pictures_and_markdown() {
    let (folder, server) = (Folder::new(), Server::start(&[]));
    let result = client(&folder, &server, "run.json");
    let (page, readme, charts) =
        (folder.path("run.html"), folder.path("README.md"), folder.path("charts"));
    let output = run(&[
        "bench",
        "report",
        &result,
        "--html",
        &page,
        "--markdown",
        &readme,
        "--svg",
        &charts,
        "--title",
        "Monday <1>",
    ]);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stderr));
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<h1>Monday &lt;1&gt;</h1>") && page.ends_with("</html>\n"));
    assert!(page.contains("a &lt;b&gt; &amp; c") && !page.contains("<script"));
    let names: Vec<String> = fs::read_dir(&charts)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name == "end-to-end-by-percentile.svg"), "{names:?}");
    let readme = fs::read_to_string(readme).unwrap();
    for name in &names {
        assert!(readme.contains(&format!("](charts/{name})")), "{name}: {readme}");
    }
    // Nothing half written stays behind.
    let left = fs::read_dir(folder.path(".")).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.ends_with(".part")));
}

#[test]
fn without_flags_the_page_goes_to_stdout_and_results_may_come_from_stdin() {
    let (folder, server) = (Folder::new(), Server::start(&[]));
    let result = client(&folder, &server, "before.json");
    let input = fs::File::open(client(&folder, &server, "after.json")).unwrap();
    let mut command = cnse();
    command.args(["bench", "report", &result, "-"]).stdin(Stdio::from(input));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let page = text(&output.stdout);
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("2 results: before, stdin"));
}

#[test]
fn what_is_no_result_or_cannot_be_written_is_said() {
    let (folder, server) = (Folder::new(), Server::start(&[]));
    let result = client(&folder, &server, "run.json");
    let bad = folder.path("bad.json");
    fs::write(&bad, "{\"half\": ").unwrap();
    let cases: [(&[&str], i32, &str); 7] = [
        (&[], 2, "FILE is needed"),
        (&[&bad], 1, "bad.json\": it is no result of cnse --json"),
        (&["/nonexistent/r.json"], 1, "reading \"/nonexistent/r.json\""),
        (&[&result, "--html", "/nonexistent/r.html"], 1, "writing \"/nonexistent/r.html\""),
        (&[&result, "--html", "/dev/full"], 1, "writing \"/dev/full\": No space left"),
        (&[&result, "--svg", "/dev/null/x"], 1, "making \"/dev/null/x\""),
        (&["-", "-"], 2, "- stands twice"),
    ];
    for (args, code, message) in cases {
        let output = run(&[&["bench", "report"], args].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(message), "{args:?}: {said}");
    }
}

#[test]
fn scaling_runs_all_settings_and_its_result_is_drawn() {
    let folder = Folder::new();
    let (result, page) = (folder.path("scaling.json"), folder.path("scaling.html"));
    let args = [
        "bench",
        "scaling",
        "--simulate",
        "fixed:2ms",
        "--iters",
        "40",
        "--ranks",
        "1,2",
        "--mode",
        "strong,weak",
        "--skew",
        "all-on-one",
        "--repeat",
        "1",
        "--quiet",
        "--output",
        &result,
    ];
    let output = run(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().filter(|line| line.contains(" %  ")).count(), 8);
    let json: Value = serde_json::from_str(&fs::read_to_string(&result).unwrap()).unwrap();
    let runs = json["runs"].as_array().unwrap();
    assert_eq!((runs.len(), &json["ok"]), (8, &Value::from(8)));
    for run in runs {
        let (tasks, ranks) = (&run["settings"]["tasks"], run["ranks"].as_array().unwrap());
        assert_eq!(&run["ok"], tasks);
        assert_eq!(run["settings"]["ranks"], ranks.len());
        // Everything began on rank 0: without stealing it stays there.
        let stays = run["settings"]["stealing"] == "off" || ranks.len() == 1;
        assert_eq!(run["steals"]["moved"] == 0, stays, "{run}");
    }
    assert_eq!(json["scaling"].as_array().unwrap().len(), 8);
    let output = run(&["bench", "report", &result, "--html", &page]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("Speed-up, strong scaling") && page.contains("no stealing"));
}
