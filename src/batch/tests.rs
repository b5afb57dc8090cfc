use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::input::FileSource;
use super::journal::{Journal, load};
use super::merge::{MergePlan, Rows, merge};
use super::result::{Outcome, encode};
use super::row::{self, RowOptions};
use crate::sched::tasks::{Source, Span};

/// Removed when the test's thread ends.
struct Folders(Vec<PathBuf>);

impl Drop for Folders {
    fn drop(&mut self) {
        self.0.iter().for_each(|folder| _ = fs::remove_dir_all(folder));
    }
}

thread_local! {
    static FOLDERS: RefCell<Folders> = const { RefCell::new(Folders(Vec::new())) };
}

/// A fresh folder for a test, which is gone when the test ends.
pub(super) fn test_folder(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(format!("cnse-batch-{name}-{pid}-{number}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    FOLDERS.with_borrow_mut(|folders| folders.0.push(folder.clone()));
    folder
}

/// One run: reads what is to be done in `ranks` spans, answers up to `stop` rows, the last of which
/// loses `torn` bytes of its line; the rows that were left come back.
fn run(plan: &MergePlan, ranks: u64, stop: usize, torn: u64, asked: &mut Vec<String>) -> usize {
    let Rows::File(input) = &plan.input else { panic!("no file") };
    let loaded = load(&plan.folder, &plan.output, &plan.errors, false).unwrap();
    let mut source =
        FileSource::open(input, Arc::clone(&plan.options), Arc::new(loaded.done)).unwrap();
    let length = source.mass().unwrap();
    let (mut tasks, mut passed) = (Vec::new(), 0);
    for rank in 0..ranks {
        let mut span = Span::bytes(length * rank / ranks, length * (rank + 1) / ranks);
        while !span.is_empty() {
            passed += source.read(&mut span, 3, &mut tasks).unwrap();
        }
    }
    let mass: u64 = tasks.iter().map(|task| u64::from(task.mass)).sum();
    assert_eq!(mass + passed, length);
    let mut journals: Vec<Journal> = (0..ranks as u32)
        .map(|rank| Journal::create(&plan.folder, rank, || panic!("the disk is full")).unwrap())
        .collect();
    let left = tasks.len().saturating_sub(stop);
    for (number, mut task) in tasks.into_iter().take(stop).enumerate() {
        source.embed(&mut task).unwrap();
        let body = task.body.unwrap();
        let key = plan.options.key(&body);
        let mut line = Vec::new();
        match row::parse(&body, &plan.options) {
            Ok(row) => {
                let outcome = Outcome::Response { status: 200, request_id: "", body: &row.body };
                encode(&mut line, key, &row.custom_id, &outcome);
                asked.push(row.custom_id);
            }
            Err(bad) => {
                let outcome = Outcome::Error { code: "bad_row", message: &bad.message };
                encode(&mut line, key, &bad.custom_id.unwrap_or_default(), &outcome);
            }
        }
        journals[number % ranks as usize].appender().append(line);
    }
    for journal in &mut journals {
        journal.close().unwrap();
        if let Ok(length) = fs::metadata(journal.path()).map(|part| part.len()) {
            let part = fs::OpenOptions::new().write(true).open(journal.path()).unwrap();
            part.set_len(length.saturating_sub(torn)).unwrap();
        }
    }
    left
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn a_job_that_is_killed_again_and_again_answers_each_row_once(
        rows in 1usize..30, bad in 0usize..30, ordered: bool,
        runs in proptest::collection::vec((1u64..4, 0usize..12, 0u64..200), 0..6),
    ) {
        let root = test_folder("job");
        let plan = MergePlan {
            input: Rows::File(root.join("in")),
            options: Arc::new(RowOptions::default()),
            folder: root.join("out.parts"),
            output: root.join("out"),
            errors: root.join("errors"),
            ordered,
        };
        let text: String = (0..rows).map(|number| match number {
            number if number == bad => "no row\n\n".to_owned(),
            number => format!(
                "{{\"custom_id\":\"{number}\",\"url\":\"/v1/completions\",\"body\":{{}}}}\r\n"
            ),
        }).collect();
        fs::write(root.join("in"), text).unwrap();
        let mut asked = Vec::new();
        for (ranks, stop, torn) in &runs {
            run(&plan, *ranks, *stop, *torn, &mut asked);
        }
        let left = run(&plan, 2, usize::MAX, 0, &mut asked);
        let merged = merge(&plan).unwrap();
        let good = rows - usize::from(bad < rows);
        prop_assert_eq!((left, merged.missing), (0, 0));
        prop_assert_eq!((merged.ok, merged.bad), (good as u64, (rows - good) as u64));
        let mut lines: BTreeMap<String, u32> = BTreeMap::new();
        for line in fs::read_to_string(&plan.output).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            *lines.entry(line["custom_id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        prop_assert!(lines.len() == good && lines.values().all(|&count| count == 1));
        // And once more: nothing is left to ask.
        let before = asked.len();
        run(&plan, 3, usize::MAX, 0, &mut asked);
        prop_assert_eq!(asked.len(), before);
    }
}
