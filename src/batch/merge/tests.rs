use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::Value;

use super::super::recorded::load;
use super::super::result::{self, Outcome};
use super::super::test_folder;
use super::*;

struct Job {
    plan: MergePlan,
    parts: usize,
}

fn row(custom_id: &str, prompt: &str) -> String {
    format!(
        "{{\"custom_id\":\"{custom_id}\",\"method\":\"POST\",\"url\":\"/v1/completions\",\
         \"body\":{{\"prompt\":\"{prompt}\"}}}}"
    )
}

impl Job {
    fn new(ordered: bool) -> Job {
        let root = test_folder("merge");
        let at = |name: &str| root.join(name);
        let plan = MergePlan {
            input: Rows::File(at("in.jsonl")),
            options: Arc::default(),
            folder: at("out.jsonl.parts"),
            output: at("out.jsonl"),
            errors: at("errors.jsonl"),
            ordered,
        };
        Job { plan, parts: 0 }
    }

    fn input(&self, rows: &[String]) {
        let Rows::File(path) = &self.plan.input else { panic!("no file") };
        fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    }

    /// A part of one more run: each row with the status of its answer and a word in it.
    fn part(&mut self, results: &[(&str, u16, &str)]) {
        let mut text = Vec::new();
        for (row, status, word) in results {
            let key = self.plan.options.key(row.as_bytes());
            let custom_id = row::peek(row.as_bytes(), &self.plan.options)
                .map(|peek| peek.custom_id.into_owned());
            let body = format!("\"{word}\"");
            let outcome = match status {
                0 => Outcome::Error { code: "timeout", message: word },
                _ => Outcome::Response { status: *status, request_id: "", body: body.as_bytes() },
            };
            result::encode(&mut text, key, &custom_id.unwrap_or_default(), &outcome);
        }
        self.parts += 1;
        fs::create_dir_all(&self.plan.folder).unwrap();
        for (name, text) in [(spool::FILE, &b""[..]), (LOCK, b"")] {
            fs::write(self.plan.folder.join(name), text).unwrap();
        }
        // The process ended within a line.
        text.extend_from_slice(&b"{\"id\":\"batch_req_"[..self.parts % 10]);
        fs::write(self.plan.folder.join(format!("part-{:04}.jsonl", self.parts)), text).unwrap();
    }

    /// custom_id and word of each line of the output.
    fn output(&self) -> Vec<(String, String)> {
        let values = values(&self.plan.output);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        values.iter().map(|v| (text(&v["custom_id"]), text(&v["response"]["body"]))).collect()
    }

    /// custom_id, code and line of each line of the error file.
    fn errors(&self) -> Vec<(String, String, u64)> {
        let values = values(&self.plan.errors);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let line = |v: &Value| v["error"]["line"].as_u64().unwrap();
        values.iter().map(|v| (text(&v["custom_id"]), text(&v["error"]["code"]), line(v))).collect()
    }
}

fn values(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn ok_beats_failed_and_later_beats_earlier() {
    for ordered in [false, true] {
        let mut job = Job::new(ordered);
        let [a, b, c, gone] = ["a", "b", "c", "gone"].map(|id| row(id, ""));
        job.input(&[a.clone(), String::new(), b.clone(), c.clone()]);
        job.part(&[(&c, 200, "c1"), (&b, 0, "b1"), (&gone, 200, "x"), (&a, 200, "a1")]);
        job.part(&[(&a, 200, "a2"), (&c, 500, "c2"), (&b, 429, "b2")]);
        let merged = merge(&job.plan).unwrap();
        let expected =
            Merged { ok: 2, failed: 1, superseded: 4, dropped: 1, torn: 2, ..Merged::default() };
        assert_eq!(merged, expected);
        let by_time = [("c", "c1"), ("a", "a2")];
        let by_input = [("a", "a2"), ("c", "c1")];
        assert_eq!(job.output(), owned(if ordered { &by_input } else { &by_time }));
        assert_eq!(job.errors(), [("b".to_owned(), "http_429".to_owned(), 3)]);
        assert!(!job.plan.folder.exists());
        // And again, with nothing new: the output is its own source.
        assert_eq!(
            merge(&job.plan).unwrap(),
            Merged { superseded: 0, dropped: 0, torn: 0, ..expected }
        );
        // And when the last failure is mended, no error file stays.
        job.part(&[(&b, 200, "b3")]);
        assert_eq!(merge(&job.plan).unwrap().ok, 3);
        assert_eq!(job.output().len(), 3);
        assert!(!job.plan.errors.exists());
    }
}

#[test]
fn every_custom_id_stands_once_and_bad_rows_are_told() {
    for ordered in [false, true] {
        let mut job = Job::new(ordered);
        let (first, second, other) = (row("a", "1"), row("a", "2"), row("b", ""));
        let bad = "{\"custom_id\":\"c\",\"url\":\"/v2\"}".to_owned();
        let broken = "{\"custom_id\":\"d\",".to_owned();
        let rows = [&first, &second, &bad, &other, &first, &broken].map(Clone::clone);
        job.input(&rows);
        job.part(&[(&second, 200, "2"), (&other, 200, "b"), (&first, 200, "1"), (&bad, 0, "")]);
        let merged = merge(&job.plan).unwrap();
        assert_eq!((merged.ok, merged.bad, merged.duplicates, merged.missing), (2, 2, 2, 0));
        let ids: BTreeSet<_> = job.output().into_iter().collect();
        assert_eq!(ids, owned(&[("a", "1"), ("b", "b")]).into_iter().collect());
        let errors = [
            ("a", "duplicate_custom_id", 2),
            ("c", "bad_row", 3),
            ("a", "duplicate_custom_id", 5),
            ("line-6", "bad_row", 6),
        ];
        assert_eq!(job.errors(), errors.map(|(id, code, n)| (id.to_owned(), code.to_owned(), n)));
        assert!(
            values(&job.plan.errors)[0]["error"]["message"].as_str().unwrap().contains("line 1")
        );
        // All are done; but the second, once the first is gone, is asked if that is wished.
        let plan = &job.plan;
        let key = plan.options.key(second.as_bytes());
        let load = |retry| load(&plan.folder, &plan.output, &plan.errors, retry).unwrap().done;
        assert!(load(false).contains(key) && !load(true).contains(key));
        job.input(&[second, other]);
        assert_eq!(merge(plan).unwrap().failed, 1);
        let message = values(&plan.errors)[0]["error"]["message"].to_string();
        assert!(message.contains("--retry-failed"), "{message}");
    }
}

#[test]
fn a_changed_row_replaces_its_line() {
    let mut job = Job::new(false);
    job.input(&[row("a", "old")]);
    job.part(&[(&row("a", "old"), 200, "old")]);
    merge(&job.plan).unwrap();
    job.input(&[row("a", "new")]);
    job.part(&[(&row("a", "new"), 200, "new")]);
    let merged = merge(&job.plan).unwrap();
    assert_eq!((merged.superseded, merged.dropped), (1, 1));
    assert_eq!(job.output(), owned(&[("a", "new")]));
}

#[test]
fn as_long_as_a_row_is_missing_the_parts_stay() {
    let mut job = Job::new(true);
    let [a, b] = ["a", "b"].map(|id| row(id, ""));
    job.input(&[a.clone(), b.clone()]);
    job.part(&[(&b, 200, "b")]);
    let merged = merge(&job.plan).unwrap();
    assert_eq!((merged.ok, merged.missing), (1, 1));
    assert_eq!(job.output(), owned(&[("b", "b")]));
    assert_eq!(parts(&job.plan.folder).unwrap().len(), 1);
    job.part(&[(&a, 200, "a")]);
    assert_eq!(merge(&job.plan).unwrap().missing, 0);
    assert_eq!(job.output(), owned(&[("a", "a"), ("b", "b")]));
}

#[test]
fn keys_that_begin_alike_are_told_apart() {
    let mut job = Job::new(false);
    job.plan.input = Rows::Recorded;
    fs::create_dir_all(&job.plan.folder).unwrap();
    let mut text = Vec::new();
    let (one, two) = ([7; 16], [7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
    let outcome = |body| Outcome::Response { status: 200, request_id: "", body };
    let failed = Outcome::Error { code: "c", message: "m" };
    result::encode(&mut text, Key(one), "one", &outcome(b"\"1\""));
    result::encode(&mut text, Key(two), "two", &outcome(b"\"2\""));
    result::encode(&mut text, Key([8; 16]), "three", &failed);
    result::encode(&mut text, Key(one), "one", &outcome(b"\"3\""));
    fs::write(job.plan.folder.join("part-1.jsonl"), &text).unwrap();
    let merged = merge(&job.plan).unwrap();
    assert_eq!((merged.ok, merged.failed, merged.superseded), (2, 1, 1));
    assert_eq!(job.output(), owned(&[("two", "2"), ("one", "3")]));
    assert_eq!(job.errors()[0].0, "three");
    job.parts = 0;
}

#[test]
fn requests_of_a_prompt_are_merged_by_their_numbers() {
    let mut job = Job::new(true);
    job.plan.input = Rows::Prompt { prompt: "p".to_owned(), count: 3 };
    fs::create_dir_all(&job.plan.folder).unwrap();
    let mut text = Vec::new();
    for (number, status) in [(2, 200), (0, 200), (1, 500)] {
        let key = row::prompt_key(&job.plan.options, "p", number);
        let outcome = Outcome::Response { status, request_id: "", body: b"\"x\"" };
        result::encode(&mut text, key, &row::prompt_custom_id(number), &outcome);
    }
    fs::write(job.plan.folder.join("part-1.jsonl"), &text).unwrap();
    assert_eq!(merge(&job.plan).unwrap().ok, 2);
    assert_eq!(job.output(), owned(&[("request-0", "x"), ("request-2", "x")]));
    let failed = fs::read(&job.plan.errors).unwrap();
    assert_eq!(row::parse(&failed, &RowOptions::default()).unwrap().body, br#"{"prompt":"p"}"#);
}

/// What stands in output and error file, by custom_id.
fn outcome(job: &Job) -> BTreeMap<String, String> {
    let output = job.output();
    let count = output.len();
    let mut all: BTreeMap<String, String> = output.into_iter().collect();
    assert_eq!(all.len(), count, "a custom_id stands twice");
    for (id, code, _) in job.errors() {
        assert_eq!(all.insert(id, code), None);
    }
    all
}

#[test]
fn a_merge_that_stops_anywhere_loses_nothing() {
    for ordered in [false, true] {
        let rows = ["a", "b", "c", "d", "e"].map(|id| row(id, ""));
        let [a, b, c, d, e] = rows.each_ref().map(String::as_str);
        let prepare = || {
            // Lines whose only copies are in output and error file, and newer ones in two parts.
            let mut job = Job::new(ordered);
            job.input(&rows[..4]);
            job.part(&[(a, 200, "a1"), (b, 500, ""), (c, 500, ""), (d, 500, "")]);
            merge(&job.plan).unwrap();
            job.input(&rows);
            job.part(&[(c, 200, "c2"), (e, 500, "")]);
            job.part(&[(e, 200, "e3"), (d, 404, "")]);
            job
        };
        let expected: BTreeMap<String, String> =
            [("a", "a1"), ("b", "http_500"), ("c", "c2"), ("d", "http_404"), ("e", "e3")]
                .map(|(id, word)| (id.to_owned(), word.to_owned()))
                .into();
        for stop in 0.. {
            let job = prepare();
            let mut steps = 0;
            let stopped = Merge::run(&job.plan, &mut |_| {
                steps += 1;
                if steps > stop { Err(io::Error::other("crash")) } else { Ok(()) }
            });
            if stopped.is_ok() {
                assert!(stop > 15, "{stop} steps are few");
                break;
            }
            // The next run finds all rows done, and its merge ends.
            let plan = &job.plan;
            let loaded = load(&plan.folder, &plan.output, &plan.errors, false).unwrap();
            assert_eq!((loaded.ok, loaded.failed), (3, 2), "stopped at {stop}");
            assert!(rows.iter().all(|row| loaded.done.contains(plan.options.key(row.as_bytes()))));
            assert_eq!(merge(plan).unwrap().missing, 0);
            assert_eq!(outcome(&job), expected, "stopped at {stop}");
            let left = fs::read_dir(plan.output.parent().unwrap()).unwrap().count();
            assert_eq!(left, 3, "only input, output and error file are left");
        }
    }
}

#[test]
fn a_merge_that_cannot_write_is_told_and_leaves_no_half_file() {
    let mut job = Job::new(false);
    job.input(&[row("a", "")]);
    job.part(&[(&row("a", ""), 200, "a")]);
    job.plan.errors = job.plan.output.join("below-a-file");
    assert!(matches!(merge(&job.plan), Err(Error::Write { .. } | Error::Read { .. })));
    assert!(!temporary(&job.plan.output).exists());
    assert_eq!(parts(&job.plan.folder).unwrap().len(), 1);
    job.plan.input = Rows::File(job.plan.folder.join("none"));
    assert!(matches!(merge(&job.plan), Err(Error::Read { .. })));
}

#[test]
fn a_link_stays_a_link() {
    let mut job = Job::new(false);
    job.input(&[row("a", "")]);
    job.part(&[(&row("a", ""), 200, "a")]);
    let target = job.plan.output.with_file_name("elsewhere");
    fs::write(&target, "").unwrap();
    std::os::unix::fs::symlink(&target, &job.plan.output).unwrap();
    merge(&job.plan).unwrap();
    assert!(fs::symlink_metadata(&job.plan.output).unwrap().is_symlink());
    assert_eq!(job.output(), owned(&[("a", "a")]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_history_merges_to_what_a_map_says(
        rows in proptest::collection::vec((0u8..6, 0u8..3), 0..10),
        runs in proptest::collection::vec(
            (proptest::collection::vec((0u8..6, 0u8..3, any::<bool>()), 0..8), any::<bool>()), 0..5,
        ),
        ordered: bool,
    ) {
        let mut job = Job::new(ordered);
        let text = |id: u8, prompt: u8| row(&id.to_string(), &prompt.to_string());
        let rows: Vec<(u8, u8)> = rows;
        job.input(&rows.iter().map(|&(id, prompt)| text(id, prompt)).collect::<Vec<_>>());
        let mut best: BTreeMap<(u8, u8), Option<String>> = BTreeMap::new();
        let mut firsts: BTreeMap<u8, u8> = BTreeMap::new();
        rows.iter().for_each(|&(id, prompt)| _ = firsts.entry(id).or_insert(prompt));
        for (number, (results, merges)) in runs.iter().enumerate() {
            let words: Vec<(String, u16, String)> = results.iter().enumerate()
                .map(|(at, &(id, prompt, ok))| {
                    (text(id, prompt), if ok { 200 } else { 500 }, format!("{number}.{at}"))
                }).collect();
            for (&(id, prompt, ok), (_, _, word)) in results.iter().zip(&words) {
                let known = best.entry((id, prompt)).or_default();
                if ok {
                    *known = Some(word.clone());
                }
            }
            let words: Vec<(&str, u16, &str)> =
                words.iter().map(|(row, status, word)| (&**row, *status, &**word)).collect();
            job.part(&words);
            if *merges {
                let merged = merge(&job.plan).unwrap();
                if merged.missing == 0 {
                    // What no row wants is dropped then.
                    best.retain(|&(id, prompt), _| firsts.get(&id) == Some(&prompt));
                }
            }
        }
        let merged = merge(&job.plan).unwrap();
        let mut ids = BTreeSet::new();
        let wanted: Vec<(u8, u8)> =
            rows.iter().copied().filter(|(id, _)| ids.insert(*id)).collect();
        let expected: Vec<(String, String)> = wanted.iter()
            .filter_map(|row| Some((row.0.to_string(), best.get(row)?.clone()?))).collect();
        let mut output = job.output();
        if ordered {
            prop_assert_eq!(&output, &expected);
        }
        output.sort();
        let mut expected = expected;
        expected.sort();
        prop_assert_eq!(output, expected);
        let missing = wanted.iter().filter(|row| !best.contains_key(row)).count() as u64;
        let duplicates = (rows.len() - wanted.len()) as u64;
        prop_assert_eq!((merged.missing, merged.duplicates, merged.bad), (missing, duplicates, 0));
        prop_assert_eq!(merged.ok + merged.failed + missing + duplicates, rows.len() as u64);
    }
}
