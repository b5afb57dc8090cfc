//! A card that fails, at each of the driver's calls: the work is done all the same, with the same
//! bytes, and it is said once. The driver is `tests/peers/fake_driver.c`, whose kernels do nothing:
//! what a card gave before it failed must not be seen either.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::common::{Server, cnse, run, text, wait_until};
use crate::schedule::Folder;

/// What is said when the card is given up, before the reason.
const SAID: &str = "from now on the CPU does the card's work: ";

/// The driver's folder; None: it cannot be built, or the binary would not use it.
fn driver(folder: &Folder) -> Option<PathBuf> {
    if !text(&run(&["--version"]).stdout).contains("cuda") {
        println!("skipped: the binary was built without --features cuda");
        return None;
    }
    let library = PathBuf::from(folder.path("libcuda.so.1"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/fake_driver.c");
    let cc = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    if !cc.is_ok_and(|status| status.success()) {
        println!("skipped: there is no C compiler");
        return None;
    }
    library.parent().map(Path::to_owned)
}

fn with_fault(driver: &Path, fault: &str) -> Command {
    let mut command = cnse();
    command.env("LD_LIBRARY_PATH", driver).env("FAKE_FAULT", fault);
    command
}

/// That it went well, and that the fault was said in one line, with what failed and its code.
fn said_once(output: &Output, call: &str, code: &str) {
    let said = text(&output.stderr);
    assert!(output.status.success(), "{call}: {said}");
    assert_eq!(said.matches(SAID).count(), 1, "{call}: {said}");
    let reason = said.split(SAID).nth(1).unwrap().lines().next().unwrap();
    let names_it = match code {
        "2" => reason.contains("no room") || reason.contains("pinned memory"),
        _ => reason.contains(call.trim_end_matches("_v2")) && reason.contains(code),
    };
    assert!(names_it || call == "cuModuleLoadDataEx", "{call}: {reason}");
}

/// A `.npy` matrix of floats that look random, all of their own direction.
fn matrix(path: &str, rows: usize, dims: usize) {
    let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dims}), }}");
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend(format!("{dict:<117}\n").as_bytes());
    let mut x = 1u32;
    for _ in 0..rows * dims {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend((f32::from((x >> 16) as u16) - 30_000.0).to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_search_goes_on_without_its_card() {
    let folder = Folder::new();
    let Some(driver) = driver(&folder) else { return };
    let (corpus, queries) = (folder.path("corpus.npy"), folder.path("queries.npy"));
    matrix(&corpus, 20_000, 64);
    matrix(&queries, 5, 64);
    let args = ["search", "--matrix", &corpus, "--query", &queries, "--topk", "7"];
    let wanted = cnse().args(args).args(["--device", "cpu"]).output().unwrap();
    assert!(wanted.status.success() && wanted.stdout.len() > 500, "{wanted:?}");
    for (call, number, code) in [
        ("cuMemAlloc_v2", "1", "2"),
        ("cuMemAlloc_v2", "3", "2"),
        ("cuMemHostAlloc", "3", "2"),
        ("cuStreamCreateWithPriority", "3", "999"),
        ("cuLaunchKernel", "1", "719"),
        ("cuLaunchKernel", "4", "700"),
        ("cuMemcpyHtoDAsync_v2", "3", "700"),
        ("cuEventRecord", "9", "214"),
        ("cuMemcpyDtoHAsync_v2", "2", "46"),
        ("cuStreamSynchronize", "2", "702"),
    ] {
        let mut search = with_fault(&driver, &format!("{call}:{number}:{code}"));
        let found = search.args(args).args(["--device", "cuda:0"]).output().unwrap();
        said_once(&found, call, code);
        assert_eq!(text(&found.stdout), text(&wanted.stdout), "{call}");
    }
    // A card that was asked for and is not there.
    let absent = cnse().args(args).args(["--device", "cuda:0"]).output().unwrap();
    if !absent.status.success() {
        assert!(text(&absent.stderr).contains("no NVIDIA driver"), "{absent:?}");
    }
}

#[test]
fn a_matrix_is_made_without_its_card() {
    let (folder, server) = (Folder::new(), Server::start(&[]));
    let Some(driver) = driver(&folder) else { return };
    let (input, corpus) = (folder.path("texts.jsonl"), folder.path("corpus.npy"));
    matrix(&corpus, 400, 512);
    let row = |i: usize| {
        let body = json!({ "input": [format!("a {i}"), format!("b {i}")], "dimensions": 1024 });
        let id = format!("text-{i}");
        json!({ "custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": body })
            .to_string()
            + "\n"
    };
    fs::write(&input, (0..150).map(row).collect::<String>()).unwrap();
    let (output, made) = (folder.path("out.jsonl"), folder.path("made.npy"));
    let post = format!("normalize,truncate=512,quantize=int8,topk=3:{corpus}");
    let url = server.url();
    let args = ["schedule", "--input", &input, "--output", &output, "--server", &url, "--quiet"];
    let args = [&args[..], &["--post", &post, "--matrix", &made]].concat();
    let files = || {
        ["npy", "ids.jsonl", "topk.jsonl"]
            .map(|e| fs::read(folder.path(&format!("made.{e}"))).unwrap())
    };
    let first = cnse().args(&args).args(["--device", "cpu"]).output().unwrap();
    assert!(first.status.success(), "{first:?}");
    let wanted = files();
    // Each fails in the first thing that is asked: its kernels do nothing, and what came of them
    // would be taken for true.
    for (call, number, code) in [
        ("cuModuleLoadDataEx", "2", "218"),
        ("cuMemAlloc_v2", "2", "2"),
        ("cuLaunchKernel", "1", "719"),
        ("cuMemcpyDtoHAsync_v2", "2", "700"),
        ("cuStreamSynchronize", "2", "719"),
    ] {
        let mut again = with_fault(&driver, &format!("{call}:{number}:{code}"));
        let again = again.args(&args).args(["--device", "cuda:0"]).output().unwrap();
        said_once(&again, call, code);
        assert!(files() == wanted, "{call}");
    }
}

#[test]
fn a_gateway_serves_on_without_its_card() {
    let folder = Folder::new();
    let Some(driver) = driver(&folder) else { return };
    let settings = ["--threads", "1", "--sim-vocab", "2000", "--post", "normalize,quantize=int8"];
    let plain = Server::start(&[&settings[..], &["--device", "cpu"]].concat());
    let texts: Vec<String> = (0..128).map(|i| format!("text {i}")).collect();
    let embed = json!({ "input": texts, "dimensions": 1024 }).to_string();
    let ask = json!({ "prompt": "the river", "max_tokens": 12, "seed": 7, "logprobs": 2 });
    let ask = ask.to_string();
    let answers = |server: &Server| {
        ["/v1/embeddings", "/v1/completions"].map(|path| {
            let body = if path.ends_with("embeddings") { &embed } else { &ask };
            let (status, _, answer) = server.post(path, body);
            assert_eq!(status, 200, "{answer}");
            let answer: Value = serde_json::from_str(&answer).unwrap();
            let choice = &answer["choices"][0];
            json!([answer["data"], choice["text"], choice["logprobs"]])
        })
    };
    let wanted = answers(&plain);
    for (call, number, code) in
        [("cuLaunchKernel", "1", "700"), ("cuMemAlloc_v2", "1", "2"), ("cuInit", "1", "999")]
    {
        let mut command = with_fault(&driver, &format!("{call}:{number}:{code}"));
        command.args(["serve", "--port", "0", "--device", "cuda:0"]).args(settings);
        let server = Server::spawn(command);
        // It answers while the card is not yet open, when it fails, and after.
        wait_until("the card fails", || {
            assert_eq!(answers(&server), wanted, "{call}");
            server.log().contains(SAID).then_some(())
        });
        assert_eq!(answers(&server), wanted, "{call}");
        assert_eq!(server.log().matches(SAID).count(), 1, "{}", server.log());
        if call != "cuInit" {
            let (_, _, page) = server.ask("GET", "/metrics", "", "");
            let memory = "cnse_gpu_memory_bytes{device=\"cuda:0\"} 1073741824\n";
            let card = "cnse_gpu_info{device=\"cuda:0\",name=\"Fake 0\"} 1\n";
            assert!(page.contains(memory) && page.contains(card), "{page}");
        }
    }
}
