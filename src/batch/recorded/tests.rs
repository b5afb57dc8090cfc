use super::super::result::{FailedRow, Failure, Outcome, encode};
use super::super::test_folder;
use super::*;

fn key(number: u8) -> Key {
    Key([number; 16])
}

fn line(number: u8, status: u16) -> String {
    let mut out = Vec::new();
    let outcome = Outcome::Response { status, request_id: "", body: b"{}" };
    encode(&mut out, key(number), "a", &outcome);
    String::from_utf8(out).unwrap()
}

fn failed_line(number: u8) -> String {
    let failure = Failure { code: "c".to_owned(), message: String::new(), status: None };
    let mut out = Vec::new();
    failure
        .encode(&mut out, &FailedRow { line: 1, key: Some(key(number)), members: None, text: b"" });
    String::from_utf8(out).unwrap()
}

struct Job {
    folder: PathBuf,
    output: PathBuf,
    errors: PathBuf,
}

impl Job {
    fn new() -> Job {
        let root = test_folder("recorded");
        let at = |name: &str| root.join(name);
        let job = Job { folder: at("o.parts"), output: at("o"), errors: at("e") };
        fs::create_dir(&job.folder).unwrap();
        job
    }

    fn part(&self, name: &str, text: &str) {
        fs::write(self.folder.join(format!("{PART_PREFIX}{name}{PART_SUFFIX}")), text).unwrap();
    }

    fn load(&self, retry_failed: bool) -> Result<Loaded, Error> {
        load(&self.folder, &self.output, &self.errors, retry_failed)
    }
}

#[test]
fn a_fresh_job_has_nothing_done() {
    let job = Job::new();
    fs::remove_dir(&job.folder).unwrap();
    let loaded = job.load(false).unwrap();
    assert!(loaded.done.is_empty());
    assert_eq!((loaded.ok, loaded.failed, loaded.torn), (0, 0, 0));
}

#[test]
fn ok_supersedes_failed_wherever_it_stands() {
    let job = Job::new();
    fs::write(&job.output, line(1, 200)).unwrap();
    fs::write(&job.errors, failed_line(2) + &failed_line(3)).unwrap();
    job.part("1", &(line(2, 200) + &line(1, 500)));
    job.part("2", &(line(4, 404) + &line(4, 404) + &line(5, 201)));
    fs::write(job.folder.join("input.jsonl"), "no result\n").unwrap();
    let loaded = job.load(false).unwrap();
    assert_eq!((loaded.ok, loaded.failed, loaded.torn, loaded.done.len()), (3, 2, 0, 5));
    assert!((1..=5).all(|number| loaded.done.contains(key(number))));
    let retried = job.load(true).unwrap();
    assert_eq!((retried.ok, retried.failed, retried.done.len()), (3, 2, 3));
    assert!([1, 2, 5].into_iter().all(|number| retried.done.contains(key(number))));
}

#[test]
fn a_part_may_end_anywhere() {
    let whole = line(1, 200) + &line(2, 200);
    for cut in 0..=whole.len() {
        let job = Job::new();
        job.part("1", &whole[..cut]);
        // Space that was set aside and never written, and a line in the middle that is none.
        job.part("2", &format!("garbage\n{}\0\0\0", line(3, 200)));
        let loaded = job.load(false).unwrap();
        let lines = whole[..cut].matches('\n').count() as u64;
        let torn = u64::from(!whole[..cut].is_empty() && !whole[..cut].ends_with('\n'));
        assert_eq!((loaded.ok, loaded.torn), (lines + 1, torn + 2), "cut at {cut}");
    }
}

#[test]
fn what_is_not_ours_is_not_replaced() {
    let job = Job::new();
    fs::write(&job.output, line(1, 200) + "\n" + line(2, 200).trim_end()).unwrap();
    assert_eq!(job.load(false).unwrap().ok, 2);
    fs::write(&job.output, line(1, 200) + "my notes\n").unwrap();
    assert!(matches!(job.load(false), Err(Error::Foreign { line: 2, .. })));
    fs::write(&job.output, "").unwrap();
    fs::write(&job.errors, "{\"custom_id\":\"a\"}\n").unwrap();
    assert!(matches!(job.load(false), Err(Error::Foreign { line: 1, .. })));
    let devices = load(&job.folder, Path::new("/dev/null"), &job.errors, false);
    assert!(matches!(devices, Err(Error::NotAFile { .. })));
    let same = load(&job.folder, &job.output, &job.output, false);
    assert!(matches!(same, Err(Error::SamePath { .. })));
    let no_folder = load(&job.errors, &job.output, Path::new("none"), false);
    assert!(matches!(no_folder, Err(Error::Read { .. })));
}

#[test]
fn more_parts_than_can_be_numbered_are_told() {
    let parts = || vec![PathBuf::new(); 3];
    assert!(numbered(Path::new("f"), parts(), 3).is_ok());
    let error = numbered(Path::new("f"), parts(), 2);
    assert!(matches!(error, Err(Error::Parts { count: 3, limit: 2, .. })));
}

#[test]
fn a_part_that_is_too_long_is_told() {
    let job = Job::new();
    job.part("1", "");
    let path = parts(&job.folder).unwrap().remove(0);
    // A hole: no disk has this much. File systems with shorter files have nothing to refuse.
    if File::options().write(true).open(&path).unwrap().set_len(PART_BYTES_MAX).is_ok() {
        assert!(matches!(job.load(false), Err(Error::Length { .. })));
    }
}

#[test]
fn a_million_keys_are_eight_bytes_each() {
    let mut list = Vec::new();
    (0..1_000_000u64).for_each(|number| push_tightly(&mut list, number));
    assert!(list.capacity() * size_of::<u64>() < 9_200_000);
}
