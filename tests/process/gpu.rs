//! The GPU layer on a host without a card, and how the binary is linked.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{cnse, run, text};

/// What `cnse gpu` says of a host without a driver, with and without the feature.
fn has_card() -> bool {
    text(&run(&["gpu", "--cases", "0"]).stdout).contains("cuda:0: ")
}

#[test]
fn without_a_card_it_says_why_and_what_else() {
    if has_card() {
        println!("skipped: this host has a card");
        return;
    }
    let found = run(&["gpu"]);
    assert_eq!(found.status.code(), Some(0));
    assert!(text(&found.stdout).contains("no card is used, and the CPU does its work: "));
    let json = run(&["gpu", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(json["gpus"].as_array().unwrap().is_empty() && json["cpu_because"].is_string());
    assert!(json["compiled"].is_string() && json["errors"] == 0);
    for args in [&["gpu", "--device", "cuda:0"][..], &["bench", "gpu"]] {
        let refused = run(args);
        assert_eq!(refused.status.code(), Some(1), "{args:?}");
        assert!(text(&refused.stderr).starts_with("cnse: error: "), "{args:?}");
    }
    let wanted = run(&["gpu", "--device", "cpu"]);
    assert_eq!(wanted.status.code(), Some(0));
    assert!(text(&wanted.stdout).contains("--device cpu was given"));
}

/// Runs `cnse gpu` with a driver's library of this source.
fn with_driver(name: &str, source: &str) -> Option<String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    let (c, library) = (folder.join("driver.c"), folder.join("libcuda.so.1"));
    fs::write(&c, source).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&c).status();
    let found = built.is_ok_and(|status| status.success()).then(|| {
        let found = cnse().arg("gpu").env("LD_LIBRARY_PATH", &folder).output().unwrap();
        assert_eq!(found.status.code(), Some(0));
        text(&found.stdout).to_owned()
    });
    fs::remove_dir_all(&folder).unwrap();
    found
}

#[test]
fn what_a_driver_says_or_lacks_is_told() {
    if !text(&run(&["--version"]).stdout).contains("cuda") {
        println!("skipped: the binary was built without --features cuda");
        return;
    }
    let name = "int cuGetErrorName(int e, const char **s) { *s = \"CUDA_ERROR_X\"; return 0; }\n";
    for (index, (source, says)) in [
        // A code that is newer than the crate's enum, and what it means.
        (
            "int cuInit(unsigned f) { return 46; }\n",
            "cuInit failed: CUDA_ERROR_X (46); another process has the card to itself",
        ),
        ("int cuInit(unsigned f) { return 12345; }\n", "cuInit failed: CUDA_ERROR_X (12345)"),
        ("int cuInit(unsigned f) { return 100; }\n", "the NVIDIA driver shows no card"),
        ("", "cuInit failed: CUDA_ERROR_X (500)"),
        (
            "int cuInit(unsigned f) { return 0; }\n\
             int cuDeviceGetCount(int *n) { *n = 0; return 0; }\n",
            "the NVIDIA driver shows no card",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = format!("driver-{index}");
        let Some(said) = with_driver(&folder, &format!("{source}{name}")) else {
            println!("skipped: there is no C compiler");
            return;
        };
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn what_is_no_device_is_refused() {
    for command in [&["gpu"][..], &["bench", "gpu"]] {
        let refused = cnse().args(command).args(["--device", "gpu0"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains("--device gpu0: not auto, cpu or cuda:N"));
    }
    let refused = run(&["bench", "gpu", "--only", "all"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn the_driver_is_not_linked_and_its_names_are_not_shown() {
    let binary = env!("CARGO_BIN_EXE_cnse");
    let readelf = |flag: &str| Command::new("readelf").args(["-W", flag, binary]).output();
    let (Ok(needed), Ok(symbols)) = (readelf("-d"), readelf("--dyn-syms")) else {
        println!("skipped: there is no readelf");
        return;
    };
    let needed = text(&needed.stdout);
    assert!(needed.contains("(NEEDED)") && needed.contains("libc.so"), "{needed}");
    assert!(!needed.lines().any(|line| line.contains("NEEDED") && line.contains("cuda")));
    // Else a library in the process that opens the real driver, as a CUDA-aware MPI does, would be
    // given these.
    let shown = text(&symbols.stdout).lines().filter_map(|line| line.split_whitespace().nth(7));
    let cuda = |name: &&str| name.starts_with("cu") && name[2..].starts_with(char::is_uppercase);
    assert_eq!(shown.filter(cuda).count(), 0);
}
