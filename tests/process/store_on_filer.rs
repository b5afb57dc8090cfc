//! `cnse put`, `get` and the others with `--filer`, on a real SeaweedFS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cnse::prng::Prng;
use serde_json::Value;

use crate::common::{cnse, text, wait_until};
use crate::weed::Weed;

/// A machine: a folder with files, a cache, and a store on the filer.
struct Home {
    folder: PathBuf,
    filer: String,
}

impl Home {
    fn new(weed: &Weed, name: &str) -> Home {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(format!("cnse-filer-{name}-{pid}-{number}"));
        std::fs::create_dir_all(&folder).unwrap();
        Home { folder, filer: format!("{}/{name}", weed.url) }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// A file of random bytes.
    fn file(&self, name: &str, bytes: usize) -> (String, Vec<u8>) {
        let mut prng = Prng::new(bytes as u64);
        let bytes: Vec<u8> = (0..bytes).map(|_| prng.next_u64() as u8).collect();
        std::fs::write(self.path(name), &bytes).unwrap();
        (self.path(name), bytes)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = cnse();
        command.args(args).args(["--filer", &self.filer]).env("CNSE_CACHE", self.path("cache"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it, and it does what it should; what it prints.
    fn done(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.done(&[args, &["--json"]].concat())).unwrap()
    }

    /// A listing of the filer's.
    fn list(&self, folder: &str) -> Vec<String> {
        let (status, body) = ask(&format!("{}/{folder}/?limit=1000", self.filer));
        if status == 404 {
            return Vec::new();
        }
        let page: Value = serde_json::from_slice(&body).unwrap();
        let entries = page["Entries"].as_array().cloned().unwrap_or_default();
        let name = |entry: &Value| {
            entry["FullPath"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()
        };
        entries.iter().map(name).collect()
    }

    /// How many parts an upload has stored.
    fn parts(&self) -> usize {
        let uploads = self.list("tmp");
        uploads.iter().map(|upload| self.list(&format!("tmp/{upload}/parts")).len()).sum()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What curl would print: status and body.
pub fn ask(url: &str) -> (u16, Vec<u8>) {
    let (host, path) = url.trim_start_matches("http://").split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let head = format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let status = text(&answer[9..12]).parse().unwrap();
    (status, answer.split_off(end + 4))
}

#[test]
fn a_transfer_keeps_to_its_rate() {
    let Some(weed) = Weed::shared() else { return };
    let home = Home::new(&weed, "rate");
    let (path, bytes) = home.file("model.bin", 3 << 19);
    let folder = home.path("folder");
    let limit = ["--limit-rate", "1MiB", "--quiet"];
    // 1.5 MiB at 1 MiB a second, of which a tenth of a second's is ahead: never under 1.3 s.
    let slow = |command: &mut Command| {
        let begun = Instant::now();
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(begun.elapsed() > Duration::from_millis(1300), "{:?}", begun.elapsed());
    };
    let put = ["put", "--file", &path, "--name", "m", "--tag", "q"];
    for way in ["chunks", "tus", "parts"] {
        let home = Home { filer: format!("{}/{way}", home.filer), folder: home.path(way).into() };
        std::fs::create_dir(&home.folder).unwrap();
        slow(home.command(&[&put[..], &limit].concat()).env("CNSE_FILER_UPLOAD", way));
        let output = home.path("out.bin");
        slow(&mut home.command(&[&["get", "m:q", "--output", &output], &limit[..]].concat()));
        assert!(std::fs::read(output).unwrap() == bytes, "{way}");
        slow(&mut home.command(&[&["verify", "--full"], &limit[..]].concat()));
    }
    let in_folder = |args: &[&str]| {
        let mut command = cnse();
        command.args(args).args(["--store", &folder]).env("CNSE_CACHE", home.path("cache"));
        command
    };
    slow(&mut in_folder(&[&put[..], &limit].concat()));
    let output = in_folder(&["get", "m:q", "--limit-rate", "1KiB"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--limit-rate 1024: "), "{}", text(&output.stderr));
}

fn blob_url(home: &Home, hash: &str) -> String {
    format!("{}/blobs/sha256/{}/{hash}", home.filer, &hash[..2])
}

#[test]
fn a_model_goes_there_and_back_by_its_name() {
    let Some(weed) = Weed::shared() else { return };
    for way in ["chunks", "tus", "parts"] {
        let home = Home::new(&weed, &format!("round-{way}"));
        let (path, bytes) = home.file("model.bin", 5_000_000);
        let put =
            ["put", "--file", &path, "--name", "m", "--tag", "q", "--part-size", "1MiB", "--quiet"];
        let mut command = home.command(&put);
        let output = command.env("CNSE_FILER_UPLOAD", way).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let hash = text(&output.stdout).trim();
        let got = home.path("got");
        home.done(&["get", "m:q", "--output", &got]);
        assert!(std::fs::read(&got).unwrap() == bytes);
        assert_eq!(home.done(&["get", "--hash", &hash[..8], "--quiet"]), hash);
        assert!(home.done(&["ls"]).contains("m:q"));
        let verified = home.json(&["verify", "m:q", "--full"]);
        assert_eq!(verified["blobs"][0]["sound"], true);
        // Another program reads it at its place, where it is one file.
        let (status, body) = ask(&blob_url(&home, hash));
        if way == "parts" {
            assert_eq!(status, 404);
        } else {
            assert!(status == 200 && body == bytes);
        }
        // It is known by its bytes.
        assert_eq!(home.json(&put[..put.len() - 1])["sent_bytes"], 0);
        home.done(&["rm", "m:q"]);
        home.done(&["gc", "--grace", "0s"]);
        assert_eq!((home.list("manifests").len(), home.list("tmp").len()), (0, 0));
        assert_eq!(ask(&blob_url(&home, hash)).0, 404);
    }
}

#[test]
fn put_goes_on_where_it_was_killed() {
    let Some(weed) = Weed::shared() else { return };
    for way in ["chunks", "tus", "parts"] {
        let home = Home::new(&weed, &format!("killed-put-{way}"));
        let (path, bytes) = home.file("model.bin", 40 << 20);
        let put = [
            "put",
            "--file",
            &path,
            "--name",
            "m",
            "--part-size",
            "1MiB",
            "--threads",
            "2",
            "--json",
        ];
        let mut kept = 0;
        for kill in 1..=3 {
            let mut child = home.command(&put).env("CNSE_FILER_UPLOAD", way).spawn().unwrap();
            wait_until("it sends more", || {
                (home.parts() >= kept + 3 || child.try_wait().unwrap().is_some()).then_some(())
            });
            child.kill().unwrap();
            child.wait().unwrap();
            // Nothing is there that is not whole.
            let tags = home.list("tags");
            assert!(tags.is_empty() || kill > 1, "{tags:?}");
            kept = home.parts();
        }
        let last = home.command(&put).env("CNSE_FILER_UPLOAD", way).output().unwrap();
        assert!(last.status.success(), "{}", text(&last.stderr));
        let last: Value = serde_json::from_slice(&last.stdout).unwrap();
        let (sent, reused) = (last["sent_bytes"].as_u64(), last["reused_bytes"].as_u64());
        let was_there = last["files"][0]["was_there"] == true;
        assert!(was_there || sent.unwrap() + reused.unwrap() == bytes.len() as u64, "{last}");
        assert!(was_there || reused.unwrap() >= (kept as u64) << 20, "{kept} parts: {last}");
        let got = home.path("got");
        home.done(&["get", "m", "--output", &got]);
        assert!(std::fs::read(&got).unwrap() == bytes, "{way}");
        assert_eq!(home.list("tmp").len(), 0);
    }
}

/// Bytes of the disk that a running download has filled.
fn partial_bytes(folder: &Path) -> u64 {
    let Ok(files) = std::fs::read_dir(folder) else { return 0 };
    files.filter_map(|file| Some(file.ok()?.metadata().ok()?.blocks() * 512)).sum()
}

#[test]
fn get_goes_on_where_it_was_killed() {
    let Some(weed) = Weed::shared() else { return };
    let home = Home::new(&weed, "killed-get");
    let (path, bytes) = home.file("model.bin", 40 << 20);
    home.done(&["put", "--file", &path, "--name", "m", "--part-size", "1MiB"]);
    let partial = home.folder.join("cache/partial");
    let mut kept = 0;
    for _ in 0..3 {
        let mut child = home.command(&["get", "m", "--threads", "2", "--quiet"]).spawn().unwrap();
        wait_until("it fetches more", || {
            let is_ended = child.try_wait().unwrap().is_some();
            (is_ended || partial_bytes(&partial) >= kept + (3 << 20)).then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        kept = partial_bytes(&partial);
    }
    let last = home.json(&["get", "m"]);
    let was_cached = last["files"][0]["was_cached"] == true;
    let (fetched, reused) = (last["fetched_bytes"].as_u64(), last["reused_bytes"].as_u64());
    assert!(was_cached || fetched.unwrap() + reused.unwrap() == bytes.len() as u64, "{last}");
    // Of the parts that were under way, one for each thread, some blocks may be there.
    assert!(was_cached || reused.unwrap() + (2 << 20) >= kept, "{kept} bytes: {last}");
    assert!(std::fs::read(last["path"].as_str().unwrap()).unwrap() == bytes);
}

#[test]
fn twenty_who_want_one_model_fetch_it_once() {
    let Some(weed) = Weed::shared() else { return };
    let home = Home::new(&weed, "twenty");
    let (path, bytes) = home.file("model.bin", 8 << 20);
    home.done(&["put", "--file", &path, "--name", "m", "--part-size", "1MiB"]);
    let children: Vec<_> =
        (0..20).map(|_| home.command(&["get", "m", "--json"]).spawn().unwrap()).collect();
    let mut fetched = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        fetched += result["fetched_bytes"].as_u64().unwrap();
    }
    assert_eq!(fetched, bytes.len() as u64);
}

/// Flips a bit of the volume file that has these bytes.
fn flip(weed: &Weed, bytes: &[u8]) {
    for path in weed.volumes() {
        let all = std::fs::read(&path).unwrap();
        if let Some(at) = all.windows(bytes.len()).position(|window| window == bytes) {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[bytes[0] ^ 1], at as u64).unwrap();
            return;
        }
    }
    panic!("no volume has the bytes");
}

#[test]
fn a_flipped_bit_on_the_server_costs_one_part() {
    let Some(weed) = Weed::start(&[], &[]) else { return };
    for (number, way) in ["chunks", "tus", "parts"].into_iter().enumerate() {
        let home = Home::new(&weed, &format!("flip-{way}"));
        // Not the bytes of another one, which would be found first.
        let (path, bytes) = home.file("model.bin", (6 << 20) + number);
        let put = ["put", "--file", &path, "--name", "m", "--part-size", "1MiB"];
        let output = home.command(&put).env("CNSE_FILER_UPLOAD", way).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        flip(&weed, &bytes[(2 << 20) + 1000..][..64]);
        let output = home.run(&["verify", "m", "--full", "--json"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["blobs"][0]["damaged_parts"], serde_json::json!([2]), "{way}");
        let output = home.run(&["get", "m", "--quiet"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("part 2 of"), "{}", text(&output.stderr));
        let healed = home.json(&["verify", "m", "--full", "--heal", "--file", &path]);
        assert_eq!(healed["blobs"][0]["mended_parts"], serde_json::json!([2]), "{way}");
        // What had been fetched before is not fetched again.
        let got = home.json(&["get", "m"]);
        assert!(got["fetched_bytes"].as_u64().unwrap() < bytes.len() as u64, "{got}");
        assert!(std::fs::read(got["path"].as_str().unwrap()).unwrap() == bytes);
    }
}

#[test]
fn nobody_there_and_no_such_flag() {
    let output = cnse().args(["ls", "--filer", "http://127.0.0.1:1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("http://127.0.0.1:1"), "{}", text(&output.stderr));
    for (args, says) in [
        (&["ls", "--filer", "ftp://h"][..], "\"ftp://h\" is no filer"),
        (&["ls", "--filer", "http://h:99999"], "no port"),
        (&["ls", "--filer", "http://h", "--store", "/x"], "--store or --filer"),
    ] {
        let output = cnse().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
    }
}
