//! The house rules that a machine can check: who may use whom, how long lines, functions and files
//! are, and words that must not stay.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules, from the top of the house to the bottom, and which of those below each may use.
const LAYERS: [(&str, &[&str]); 18] = [
    (
        "cli",
        &[
            "bench", "gateway", "batch", "sched", "backend", "cuda", "post", "store", "proto",
            "net", "wire", "machine", "metrics", "limits", "clock", "prng", "log",
        ],
    ),
    (
        "bench",
        &[
            "backend", "cuda", "post", "store", "proto", "net", "wire", "machine", "metrics",
            "limits", "clock", "prng", "log",
        ],
    ),
    (
        "gateway",
        &[
            "backend", "cuda", "post", "proto", "net", "wire", "metrics", "limits", "clock",
            "prng", "log",
        ],
    ),
    (
        "batch",
        &[
            "sched", "backend", "cuda", "post", "proto", "net", "wire", "metrics", "limits",
            "clock", "prng", "log",
        ],
    ),
    ("sched", &["net", "machine", "metrics", "limits", "clock", "prng", "log"]),
    (
        "backend",
        &["cuda", "post", "proto", "net", "wire", "metrics", "limits", "clock", "prng", "log"],
    ),
    ("machine", &["cuda", "net"]),
    ("cuda", &["post", "limits"]),
    ("post", &["limits", "prng"]),
    ("store", &["limits", "prng", "log"]),
    ("proto", &["wire", "limits", "clock"]),
    ("net", &["limits", "clock", "prng"]),
    ("wire", &["limits", "clock"]),
    ("metrics", &["limits", "clock"]),
    ("limits", &[]),
    ("clock", &[]),
    ("prng", &[]),
    ("log", &[]),
];
const LINE_MAX: usize = 100;
const FILE_MAX: usize = 600;
const FUNCTION_MAX: usize = 80;
/// Files in which unsafe code may stand.
const UNSAFE: [&str; 20] = [
    "src/bench/storage/resident.rs",
    "src/cuda/driver.rs",
    "src/cuda/kernels/dequant.rs",
    "src/cuda/kernels/embedding.rs",
    "src/cuda/kernels/probe.rs",
    "src/cuda/kernels/search.rs",
    "src/cuda/lane.rs",
    "src/cuda/memory.rs",
    "src/cuda/nvml.rs",
    "src/cuda/sampling.rs",
    "src/cuda/stream.rs",
    "src/cuda/symbols.rs",
    "src/cuda/timing.rs",
    "src/net/heap.rs",
    "src/post/simd.rs",
    "src/sched/mpi/calls.rs",
    "src/sched/mpi/ulfm.rs",
    "src/store/map.rs",
    "src/store/sha.rs",
    "tests/cuda/offload.rs",
];

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found.sort();
    found
}

fn check(folders: &[&str], mut rule: impl FnMut(&Path, &str, &mut Vec<String>)) {
    let mut faults = Vec::new();
    for folder in folders {
        for (path, text) in sources(folder) {
            rule(&path, &text, &mut faults);
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn layers_use_only_what_is_below() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    check(&["src"], |path, text, faults| {
        let inside = path.strip_prefix(&root).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else { return };
        let end = text.find("#[cfg(test)]").unwrap_or(text.len());
        for (number, line) in text[..end].lines().enumerate() {
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
                // What is in capitals is no module.
                let is_constant = used.chars().all(|c| c.is_ascii_uppercase());
                let fine = used == module || allowed.contains(&used.as_str()) || is_constant;
                if !fine && !line.trim_start().starts_with("//") {
                    faults.push(format!("{}:{}: {module} uses {used}", path.display(), number + 1));
                }
            }
        }
    });
}

#[test]
fn lines_files_and_functions_are_short() {
    check(&["src", "tests", "benches"], |path, text, faults| {
        let name = path.display();
        if text.lines().count() > FILE_MAX {
            faults.push(format!("{name}: {} lines, over {FILE_MAX}", text.lines().count()));
        }
        if !text.starts_with("//!") && !path.ends_with("tests.rs") {
            faults.push(format!("{name}:1: no //! says what it is"));
        }
        let mut function: Option<(usize, usize)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let is_text = line.contains('"');
            if line.chars().count() > LINE_MAX && !is_text {
                faults.push(format!("{name}:{}: {} columns", number + 1, line.chars().count()));
            }
            let head = line.trim_start();
            let is_fn = head.starts_with("fn ") || head.contains(" fn ") && head.starts_with("pub");
            if is_fn && !head.ends_with(';') {
                function = Some((number, indent));
            } else if let Some((start, of)) = function
                && indent == of
                && head.starts_with('}')
            {
                if number - start > FUNCTION_MAX {
                    faults.push(format!("{name}:{}: {} lines", start + 1, number - start));
                }
                function = None;
            }
        }
    });
}

#[test]
fn nothing_is_left_unfinished_or_unsafe() {
    let words = ["todo", "dbg", "unimplemented"].map(|word| format!("{word}!("));
    let (attribute, keyword) = (["#[ign", "ore]"].concat(), ["uns", "afe "].concat());
    check(&["src", "tests", "benches"], |path, text, faults| {
        for (number, line) in text.lines().enumerate() {
            let at = format!("{}:{}", path.display(), number + 1);
            if words.iter().any(|word| line.contains(word)) || line.contains(&attribute) {
                faults.push(format!("{at}: unfinished"));
            }
            let may = UNSAFE.iter().any(|file: &&str| path.ends_with(file));
            if line.contains(&keyword) && !line.trim_start().starts_with("//") && !may {
                faults.push(format!("{at}: {keyword}is not allowed here"));
            }
        }
    });
}
