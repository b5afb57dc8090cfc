use std::fs;

use proptest::prelude::*;

use super::super::test_folder;
use super::*;

fn row(number: usize, prompt: &str) -> String {
    format!(
        "{{\"custom_id\":\"{number}\",\"url\":\"/v1/completions\",\
         \"body\":{{\"prompt\":\"{prompt}\",\"max_tokens\":{}}}}}",
        number % 7 + 1
    )
}

fn open(path: &Path, done: Vec<u64>) -> FileSource {
    let done = Arc::new(DoneSet::new(done));
    FileSource::open(path, Arc::new(RowOptions::default()), done).unwrap()
}

/// Reads all spans, in turns, and checks what the source promises of them.
fn read_all(
    source: &mut FileSource,
    mut spans: Vec<Span>,
    max: usize,
    pick: impl Fn(usize) -> usize,
) -> (Vec<Task>, u64) {
    let (mut tasks, mut skipped, mut turn) = (Vec::new(), 0, 0);
    while !spans.is_empty() {
        let index = pick(turn) % spans.len();
        turn += 1;
        let before = tasks.len();
        skipped += source.read(&mut spans[index], max, &mut tasks).unwrap();
        assert!(tasks.len() - before <= max);
        spans.retain(|span| !span.is_empty());
    }
    (tasks, skipped)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn each_row_is_read_once_however_the_file_is_cut(
        lines in proptest::collection::vec((0usize..5, "[a-z]{0,60}", 0..3u8), 0..40),
        ended: bool,
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        picks in proptest::collection::vec(any::<prop::sample::Index>(), 1..20),
        (max, every) in (1usize..5, 1usize..5),
    ) {
        let (mut text, mut rows) = (String::new(), Vec::new());
        for (number, (kind, prompt, end)) in lines.iter().enumerate() {
            let begin = text.len() as u64;
            match kind {
                0 => text.push_str(&" ".repeat(prompt.len())),
                1 => text.push_str(&format!("{{\"broken{number}{prompt}")),
                _ => text.push_str(&row(number, prompt)),
            }
            text.push_str(["\n", "\r\n", "\n"][usize::from(*end)]);
            if *kind > 0 {
                rows.push((begin, text.len() as u64));
            }
        }
        if !ended && text.ends_with('\n') {
            text.pop();
            if let Some(last) = rows.last_mut() {
                last.1 = last.1.min(text.len() as u64);
            }
        }
        let path = test_folder("cut").join("rows");
        fs::write(&path, &text).unwrap();
        let options = RowOptions::default();
        let wanted = |index: usize| !index.is_multiple_of(every);
        let done: Vec<u64> = rows.iter().enumerate().filter(|(index, _)| !wanted(*index))
            .map(|(_, &(from, to))| options.key(&text.as_bytes()[from as usize..to as usize]))
            .map(|key| key.prefix()).collect();
        let mut places: Vec<u64> =
            cuts.iter().map(|cut| cut.index(text.len() + 1) as u64).collect();
        places.extend([0, text.len() as u64]);
        places.sort_unstable();
        let spans: Vec<Span> = places.windows(2).map(|two| Span::bytes(two[0], two[1]))
            .filter(|span| !span.is_empty()).collect();
        let mut source = open(&path, done.clone());
        let (mut tasks, skipped) =
            read_all(&mut source, spans, max, |turn| picks[turn % picks.len()].index(64));
        let mass: u64 = tasks.iter().map(|task| u64::from(task.mass)).sum();
        prop_assert_eq!(mass + skipped, text.len() as u64);
        tasks.sort_by_key(|task| task.at);
        let expected: Vec<(u64, u64)> = rows.iter().enumerate()
            .filter(|(index, _)| wanted(*index)).map(|(_, row)| *row).collect();
        let found: Vec<(u64, u64)> =
            tasks.iter().map(|task| (task.at, task.at + u64::from(task.mass))).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(source.skipped_rows() as usize, done.len());
        for task in &mut tasks {
            source.embed(task).unwrap();
            let body = task.body.as_deref().unwrap();
            let from = task.at as usize;
            prop_assert_eq!(body, &text.as_bytes()[from..from + task.mass as usize]);
            prop_assert_eq!(task.size, row::estimate(body, &options));
        }
    }
}

#[test]
fn an_overlong_row_is_one_bad_task_with_one_key() {
    let path = test_folder("overlong").join("rows");
    let long = row(1, &"a".repeat(HTTP_BODY_BYTES_MAX));
    let text = format!("{}\n{long}\n{}", row(0, "b"), row(2, "c"));
    fs::write(&path, &text).unwrap();
    let mut source = open(&path, Vec::new());
    assert_eq!(source.mass().unwrap(), text.len() as u64);
    let middle = text.len() as u64 / 2;
    let spans = vec![Span::bytes(middle, text.len() as u64), Span::bytes(0, middle)];
    let (mut tasks, skipped) = read_all(&mut source, spans, 9, |turn| turn);
    tasks.sort_by_key(|task| task.at);
    assert_eq!((tasks.len(), skipped), (3, 0));
    source.embed(&mut tasks[1]).unwrap();
    let body = tasks[1].body.as_deref().unwrap();
    assert!(body.len() < 2 * row::HEAD_BYTES);
    let options = RowOptions::default();
    let bad = row::parse(body, &options).unwrap_err();
    assert_eq!(bad.custom_id.as_deref(), Some("1"));
    assert!(bad.message.contains("more than 16777216"), "{}", bad.message);
    assert_eq!(tasks[1].size, row::estimate(body, &options));
    // The row is known again by the key of what was embedded.
    let mut again = open(&path, vec![options.key(body).prefix()]);
    let spans = vec![Span::bytes(0, text.len() as u64)];
    let (tasks, skipped) = read_all(&mut again, spans, 9, |turn| turn);
    assert_eq!((tasks.len(), skipped), (2, long.len() as u64 + 1));
}

#[test]
fn what_cannot_be_read_is_told() {
    let folder = test_folder("unreadable");
    let open_at = |path: &Path| {
        FileSource::open(path, Arc::default(), Arc::default()).err().expect("it opened")
    };
    assert!(matches!(open_at(&folder.join("none")), Error::Read { .. }));
    assert!(matches!(open_at(&folder), Error::NotAFile { .. }));
    let path = folder.join("rows");
    fs::write(&path, format!("{}\n", row(0, "a"))).unwrap();
    let mut source = open(&path, Vec::new());
    let (mut span, mut tasks) = (Span::bytes(0, 1000), Vec::new());
    let error = source.read(&mut span, 9, &mut tasks).unwrap_err();
    assert!(error.contains("was cut off"), "{error}");
    fs::write(&path, "").unwrap();
    let error = source.embed(&mut tasks[0]).unwrap_err();
    assert!(error.contains("was cut off at byte 0"), "{error}");
}

#[test]
fn a_read_of_done_rows_comes_back_in_between() {
    let path = test_folder("done").join("rows");
    let text: String = (0..6000).map(|number| format!("{}\n", row(number, ""))).collect();
    fs::write(&path, &text).unwrap();
    let options = RowOptions::default();
    let done = text.lines().map(|line| options.key(line.as_bytes()).prefix()).collect();
    let mut source = open(&path, done);
    let (mut span, mut tasks) = (Span::bytes(0, text.len() as u64), Vec::new());
    let (mut passed, mut calls) = (0, 0);
    while !span.is_empty() {
        passed += source.read(&mut span, 512, &mut tasks).unwrap();
        calls += 1;
    }
    assert_eq!((passed, tasks.len(), calls), (text.len() as u64, 0, 6));
    assert_eq!(source.skipped_rows(), 6000);
}

#[test]
fn costs_follow_what_was_measured() {
    let path = test_folder("costs").join("rows");
    let text: String = (0..100).map(|_| format!("{}\n", row(0, "abcd"))).collect();
    fs::write(&path, &text).unwrap();
    let mut source = open(&path, Vec::new());
    assert!(!source.is_uniform());
    assert_eq!(source.cost_us_per_mass(), PER_BYTE_US);
    let (mut span, mut tasks) = (Span::bytes(0, text.len() as u64), Vec::new());
    source.read(&mut span, 50, &mut tasks).unwrap();
    let of_tasks = |source: &FileSource| f64::from(source.cost_us(&tasks[0]));
    let bytes = text.len() as f64 / 100.0;
    assert!((source.cost_us_per_mass() * bytes / of_tasks(&source) - 1.0).abs() < 0.01);
    source.measured(tasks[0].size, 5_000);
    assert_eq!(of_tasks(&source), 5_000.0);
    assert!((source.cost_us_per_mass() * bytes / 5_000.0 - 1.0).abs() < 0.01);
}

#[test]
fn requests_of_a_prompt_are_numbers_and_those_done_are_passed_over() {
    let options = Arc::new(RowOptions::default());
    let done = [3, 4].map(|number| row::prompt_key(&options, "p", number).prefix());
    let done = Arc::new(DoneSet::new(done.to_vec()));
    let mut source = RepeatSource::new("p".into(), options, done);
    assert!(source.is_uniform());
    let (mut tasks, mut skipped) = (Vec::new(), 0);
    let mut span = Span { start: 0, end: 9, stride: 2 };
    while !span.is_empty() {
        skipped += source.read(&mut span, 2, &mut tasks).unwrap();
    }
    let numbers: Vec<u64> = tasks.iter().map(|task| task.at).collect();
    assert_eq!((numbers, skipped, source.skipped_rows()), (vec![0, 2, 6, 8], 1, 1));
    let before = source.cost_us_per_mass();
    assert_eq!(before, f64::from(source.cost_us(&tasks[0])));
    assert_eq!((tasks[0].size.prompt, tasks[0].size.tokens), (1, 0));
    source.measured(tasks[0].size, 77);
    assert_eq!(source.cost_us_per_mass(), 77.0);
    source.embed(&mut tasks[0]).unwrap();
    assert_eq!((tasks[0].body.as_ref(), tasks[0].mass), (None, 1));
}
