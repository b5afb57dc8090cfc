use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::super::test_folder;
use super::*;

fn folder(name: &str) -> PathBuf {
    test_folder(name).join("out.jsonl.parts")
}

fn lines(number: usize) -> Vec<u8> {
    format!("{{\"n\":{number}}}\n").into_bytes()
}

#[test]
fn all_that_was_appended_is_in_a_part_of_its_own() {
    let folder = folder("append");
    let mut parts = Vec::new();
    for run in 0..2 {
        let mut journals: Vec<Journal> =
            (0..2).map(|rank| Journal::create(&folder, rank, || ()).unwrap()).collect();
        for journal in &journals {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let appender = journal.appender();
                    thread::spawn(move || (0..100).for_each(|n| appender.append(lines(n))))
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
        for journal in &mut journals {
            assert_eq!(journal.close().unwrap(), 400, "run {run}");
            assert_eq!((journal.close().unwrap(), journal.waiting_bytes()), (0, 0));
            parts.push(journal.path().to_owned());
        }
    }
    parts.sort();
    assert_eq!(super::super::recorded::parts(&folder).unwrap(), parts);
    for part in parts {
        let text = fs::read_to_string(part).unwrap();
        assert_eq!(text.lines().filter(|line| *line == "{\"n\":7}").count(), 4);
    }
}

#[test]
fn a_part_without_lines_does_not_stay() {
    let folder = folder("empty");
    let mut journal = Journal::create(&folder, 3, || ()).unwrap();
    assert!(journal.path().to_str().unwrap().ends_with("-r3.jsonl"));
    assert_eq!(journal.close().unwrap(), 0);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn a_close_does_not_wait_for_appenders_to_go() {
    let mut journal = Journal::create(&folder("close"), 0, || ()).unwrap();
    let appender = journal.appender();
    appender.append(lines(1));
    assert_eq!(journal.close().unwrap(), 1);
    appender.append(lines(2));
    assert_eq!(fs::read(journal.path()).unwrap(), lines(1));
}

#[test]
fn lines_reach_the_file_without_a_close() {
    let journal = Journal::create(&folder("kill"), 0, || ()).unwrap();
    let appender = journal.appender();
    appender.append(lines(1));
    while appender.waiting_bytes() > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    // What a process has written, its death does not take.
    assert_eq!(fs::read(journal.path()).unwrap(), lines(1));
}

#[test]
fn a_second_job_on_the_same_output_is_refused() {
    let folder = folder("lock");
    let mut journal = Journal::create(&folder, 0, || ()).unwrap();
    let second = Journal::create(&folder, 0, || ()).err().unwrap();
    assert!(matches!(second, Error::Locked { .. }), "{second}");
    // Held to the end of the merge; other ranks are of the same job.
    journal.close().unwrap();
    assert!(matches!(Journal::create(&folder, 0, || ()), Err(Error::Locked { .. })));
    drop(Journal::create(&folder, 1, || ()).unwrap());
    drop(journal);
    Journal::create(&folder, 0, || ()).unwrap();
}

#[test]
fn a_folder_that_cannot_be_made_is_told() {
    for rank in 0..2 {
        let error = Journal::create(Path::new("/dev/null/parts"), rank, || ()).err().unwrap();
        assert!(matches!(error, Error::Write { .. }), "{error}");
    }
}

/// A disk with room for so many bytes, which fails at the so-manieth sync, and tells of both.
struct Disk {
    room: usize,
    syncs_left: usize,
    written: Arc<AtomicU64>,
    synced: Arc<AtomicU64>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.room);
        if count == 0 {
            return Err(io::Error::from_raw_os_error(nix::libc::ENOSPC));
        }
        self.room -= count;
        self.written.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Durable for Disk {
    fn sync(&mut self) -> io::Result<()> {
        let Some(left) = self.syncs_left.checked_sub(1) else {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        };
        self.syncs_left = left;
        self.synced.store(self.written.load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn nothing_is_acknowledged_that_the_disk_did_not_take() {
    for (room, syncs_left, fails) in [(1000, 9, false), (20, 9, true), (1000, 0, true)] {
        let (written, synced) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let disk = Disk { room, syncs_left, written, synced: Arc::clone(&synced) };
        let (sender, receiver) = mpsc::channel();
        let writer = Writer { file: disk, receiver, shared: Arc::default(), lines: 0 };
        (0..4).for_each(|number| sender.send(Order::Append(lines(number))).unwrap());
        drop(sender);
        let (count, written) = writer.run();
        assert_eq!(written.is_err(), fails);
        assert!(fails || (count, synced.load(Ordering::Relaxed)) == (4, 32));
    }
}

#[test]
fn what_trickles_in_is_synced_in_groups() {
    let (written, synced) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let disk = Disk { room: 1 << 20, syncs_left: 4, written, synced: Arc::clone(&synced) };
    let (sender, receiver) = mpsc::channel();
    let writer = Writer { file: disk, receiver, shared: Arc::default(), lines: 0 };
    let thread = thread::spawn(move || writer.run());
    for number in 0..60 {
        sender.send(Order::Append(lines(number % 10))).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    drop(sender);
    // One at once, one after each 200 ms, one at the end; a busy machine may take its time.
    let (count, written) = thread.join().unwrap();
    assert!(written.is_ok() && count == 60);
    assert_eq!(synced.load(Ordering::Relaxed), 480);
}

#[test]
fn a_full_disk_is_told_once_and_nobody_waits() {
    // /dev/full is a disk without room that every Linux has.
    let told = Arc::new(AtomicU64::new(0));
    let folder = folder("full");
    let shared = Arc::new(Shared::default());
    let (sender, receiver) = mpsc::channel();
    let file = File::options().write(true).open("/dev/full").unwrap();
    let writer = Writer { file, receiver, shared: Arc::clone(&shared), lines: 0 };
    let part = folder.join("part");
    let mut journal = Journal::spawn(part, writer, sender, None, {
        let told = Arc::clone(&told);
        move || _ = told.fetch_add(1, Ordering::Relaxed)
    })
    .unwrap();
    let appender = journal.appender();
    let failed = AtomicBool::new(false);
    while !failed.load(Ordering::Relaxed) {
        appender.append(lines(1));
        failed.store(journal.failure().is_some(), Ordering::Relaxed);
    }
    appender.append(lines(2));
    assert_eq!((appender.waiting_bytes(), journal.waiting_bytes()), (0, 0));
    let error = journal.close().unwrap_err();
    assert!(matches!(error, Error::Journal { .. }), "{error}");
    assert_eq!(told.load(Ordering::Relaxed), 1);
}
