use std::fs;
use std::io;

use super::super::test_folder;
use super::*;

const INPUT: &str = r#"{"custom_id":"a","url":"/v1/completions","body":{"prompt":"abc","max_tokens":5}}
{"custom_id":"b","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}

{"custom_id":"a","url":"/v1/embeddings","body":{"model":"m","input":"abcd"}}
{"custom_id":"c","url":"/v2"}
{"custom_id":"b","url":"/v1/chat/completions","body":{"model":"n","messages":[]}}
{"custom"#;

fn check(options: &RowOptions, from: impl Read) -> (Result<Validation, Error>, Vec<Fault>) {
    let mut faults = Vec::new();
    let checked = validate_pipe(from, options, |fault| faults.push(fault));
    (checked, faults)
}

#[test]
fn all_that_is_wrong_is_told_in_order() {
    let (checked, faults) = check(&RowOptions::default(), INPUT.as_bytes());
    let found = checked.unwrap();
    let expected = [
        (4, Some("a"), "the custom_id is that of line 1"),
        (5, Some("c"), "the row's url \"/v2\" is none of"),
        (6, Some("b"), "the custom_id is that of line 2"),
        (7, None, "the row is not JSON"),
    ];
    assert_eq!(faults.len(), expected.len());
    for (fault, (line, custom_id, says)) in faults.iter().zip(expected) {
        assert_eq!((fault.line, fault.custom_id.as_deref()), (line, custom_id));
        assert!(fault.message.starts_with(says), "{}", fault.message);
    }
    assert_eq!(
        (found.rows, found.bad, found.duplicates, found.bytes),
        (6, 2, 2, INPUT.len() as u64)
    );
    assert_eq!((found.prompt_bytes, found.tokens_max, found.unbounded), (7, 6, 2));
    let counts = |counts: &BTreeMap<String, u64>| {
        counts.iter().map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(counts(&found.urls), "/v1/chat/completions=2 /v1/completions=1 /v1/embeddings=1");
    assert_eq!(counts(&found.models), "=1 m=2 n=1");
    assert!(found.work_us > found.longest_us && found.longest_us > 0);
}

#[test]
fn a_file_is_looked_at_as_a_pipe_is() {
    let folder = test_folder("validate");
    let path = folder.join("rows");
    fs::write(&path, INPUT).unwrap();
    let options = RowOptions::default();
    let mut faults = 0;
    let of_file = validate(&path, &options, |_| faults += 1).unwrap();
    assert_eq!((of_file, faults), (check(&options, INPUT.as_bytes()).0.unwrap(), 4));
    assert!(matches!(validate(&folder, &options, |_| ()), Err(Error::NotAFile { .. })));
    let none = folder.join("none");
    assert!(matches!(validate(&none, &options, |_| ()), Err(Error::Read { .. })));
}

#[test]
fn a_pipe_that_breaks_is_told() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("gone"))
        }
    }
    let (checked, _) = check(&RowOptions::default(), Broken);
    assert!(matches!(checked, Err(Error::Pipe { .. })));
}

#[test]
fn models_beyond_the_bound_count_as_one() {
    let mut counts = BTreeMap::new();
    (0..MODELS_MAX + 5).for_each(|number| count(&mut counts, &number.to_string()));
    assert_eq!((counts.len(), counts[OTHER_MODELS]), (MODELS_MAX + 1, 5));
}

#[test]
fn what_was_seen_is_known_in_24_bytes_each() {
    let mut seen = Seen::new();
    let rows = 300_000;
    for line in 1..=rows {
        assert_eq!(seen.first(&format!("row-{line}"), line), None);
    }
    for line in (1..=rows).step_by(97) {
        assert_eq!(seen.first(&format!("row-{line}"), rows + line), Some(line));
    }
    let room: usize = seen.shards.iter().map(|shard| shard.hashes.capacity()).sum();
    assert!(room * 12 <= 24 * rows as usize, "{room}");
    assert_eq!(seen.shards.iter().map(|shard| shard.count as u64).sum::<u64>(), rows);
}
