//! Models in and out: what users type, what they see, and what a kill or a full disk leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cnse::prng::Prng;
use serde_json::Value;

use crate::common::{cnse, text};

/// A folder with a store and a cache of its own; removed at the end.
struct World {
    folder: PathBuf,
    store: PathBuf,
}

impl World {
    fn new(name: &str) -> World {
        let name = format!("cnse-test-store-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        World { store: folder.join("store"), folder }
    }

    /// The store on another file system than the cache, so that blobs have to be copied. None:
    /// there is no other one.
    fn apart(name: &str) -> Option<World> {
        let mut world = World::new(name);
        let memory = Path::new("/dev/shm");
        let device =
            |path: &Path| fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::dev(&m));
        if device(memory).ok()? == device(&world.folder).ok()? {
            return None;
        }
        world.store = memory.join(world.folder.file_name().unwrap());
        fs::create_dir_all(&world.store).ok()?;
        Some(world)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = cnse();
        command.current_dir(&self.folder).args(args);
        command.env("CNSE_STORE", &self.store).env("CNSE_CACHE", self.folder.join("cache"));
        command.env_remove("CNSE_CACHE_SIZE");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command that ends well says.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout).to_owned()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// What a command that fails says.
    fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?}: {}", text(&output.stdout));
        text(&output.stderr).to_owned()
    }

    /// A file of random bytes.
    fn file(&self, name: &str, bytes: usize) -> Vec<u8> {
        let mut prng = Prng::new(bytes as u64);
        let content: Vec<u8> = (0..bytes).map(|_| prng.next_u64() as u8).collect();
        fs::write(self.folder.join(name), &content).unwrap();
        content
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.join(name)).unwrap()
    }

    fn cached(&self, hash: &str) -> PathBuf {
        self.folder.join("cache/blobs").join(hash)
    }

    fn stored(&self, hash: &str) -> PathBuf {
        self.store.join("blobs/sha256").join(&hash[..2]).join(hash)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir_all(&self.store);
    }
}

/// Writes where only readers may.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    let mode = fs::metadata(path).unwrap().permissions();
    let draft = path.with_extension("draft");
    fs::write(&draft, bytes).unwrap();
    fs::set_permissions(&draft, mode).unwrap();
    fs::rename(draft, path).unwrap();
}

#[test]
fn round_trip_and_names() {
    let world = World::new("round");
    let content = world.file("tiny-Q4_K_M.gguf.bin", 300_000);
    let put = ["put", "--file", "tiny-Q4_K_M.gguf.bin", "--name", "tiny", "--tag", "q4"];
    let hash = world
        .ok(&[&put[..], &["--quiet", "--part-size", "64KiB", "--manifest", "m.json"]].concat());
    let hash = hash.trim();
    assert_eq!(hash, cnse::store::Digest::of(&content).to_string());
    // The hash alone, a prefix of it, name and tag, the name alone, the manifest's file.
    for (i, from) in
        [&["--hash", hash][..], &[&hash[..8]], &["tiny:q4"], &["tiny"], &["--manifest", "m.json"]]
            .iter()
            .enumerate()
    {
        let output = format!("out{i}");
        world.ok(&[&["get"][..], from, &["--output", &output]].concat());
        assert_eq!(world.read(&output), content, "{from:?}");
    }
    let path = world.ok(&["get", "tiny", "--path"]);
    assert_eq!(fs::read(path.trim()).unwrap(), content);
    assert!(fs::metadata(path.trim()).unwrap().permissions().readonly());
    world.ok(&["get", "tiny", "--output", "linked", "--link"]);
    assert_eq!(world.read("linked"), content);
    let again = world.json(&put);
    assert_eq!((&again["sent_bytes"], &again["files"][0]["was_there"]), (&0.into(), &true.into()));
    world.ok(&["tag", "tiny:q4", "other:x"]);
    let models = world.json(&["ls"]);
    assert_eq!(models["models"].as_array().unwrap().len(), 2);
    for (flag, licence) in [("--licence", "MIT"), ("--license", "gemma")] {
        let name = format!("licensed:{}", &flag[2..]);
        let file = "tiny-Q4_K_M.gguf.bin";
        world.ok(&["put", file, "--name", &name, flag, licence, "--quiet"]);
        assert!(world.ok(&["show", &name]).contains(licence), "{name}");
        world.ok(&["rm", &name]);
    }
    assert!(world.ok(&["show", "other:x"]).contains(hash));
    world.ok(&["get", "tiny:q4", "--offline", "--quiet"]);
    world.ok(&["get", "tiny", "--offline", "--quiet"]);
    world.ok(&["rm", "tiny:q4", "other:x"]);
    assert!(world.fails(&["get", "tiny"]).contains("cnse ls lists what is there"));
    assert!(world.ok(&["gc", "--dry-run", "--grace", "0"]).contains("would go"));
    world.ok(&["gc"]);
    assert!(world.stored(hash).exists(), "it is young");
    world.ok(&["gc", "--grace", "0"]);
    assert!(!world.stored(hash).exists());
    assert!(world.cached(hash).exists());
}

#[test]
fn several_files_and_a_pipe() {
    let world = World::new("several");
    let shards = ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf", "mmproj.gguf"];
    let contents = [1000, 2000, 3000].map(|n| world.file(shards[n / 1000 - 1], n));
    let id = world.ok(&[&["put", "--quiet"], &shards[..]].concat());
    let path = world.ok(&["get", id.trim(), "--path"]);
    let path = Path::new(path.trim());
    assert!(path.ends_with(shards[0]));
    for (shard, content) in shards.iter().zip(&contents) {
        assert_eq!(&fs::read(path.with_file_name(shard)).unwrap(), content);
    }
    world.ok(&["get", "big", "--output", "folder"]);
    assert_eq!(world.read("folder/mmproj.gguf"), contents[2]);
    let mut child = world
        .command(&["put", "--file", "-", "--name", "piped", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &contents[1]).unwrap();
    let output = child.wait_with_output().unwrap();
    let hash = cnse::store::Digest::of(&contents[1]).to_string();
    assert_eq!(text(&output.stdout).trim(), hash);
    world.ok(&["get", "piped", "--output", "out"]);
    assert_eq!(world.read("out"), contents[1]);
}

#[test]
fn faults_are_sentences() {
    let world = World::new("faults");
    world.file("a.bin", 10);
    fs::write(world.folder.join("broken.gguf"), b"GGUF\x03\0\0\0").unwrap();
    fs::create_dir(world.folder.join("folder.d")).unwrap();
    for (args, says) in [
        (&["put"][..], "--file FILE is needed"),
        (&["put", "nothere"], "cannot read \"nothere\": No such file"),
        (&["put", "folder.d"], "is not a file"),
        (&["put", "broken.gguf"], "begins as a GGUF and is none"),
        (&["put", "a.bin", "--name", "a/b"], "letters, digits"),
        (&["put", "a.bin", "--part-size", "1KiB"], "--part-size 1024: under 65536"),
        (&["put", "--file", "-"], "--name NAME is needed"),
        (&["get", "none:such"], "none:such is not in"),
        (&["get"], "a model is needed"),
        (&["get", "none", "--offline"], "not in the cache"),
        (&["get", "../etc"], "does not begin with a dot"),
        (&["rm", "none:such"], "not in"),
        (&["tag", "none:such", "x:y"], "none:such is not in"),
        (&["cache", "eat"], "ls, prune, pin REF or unpin REF"),
        (&["verify", "--file", "x"], "--file is for --heal"),
    ] {
        let stderr = world.fails(args);
        assert!(stderr.contains(says), "{args:?}: {stderr}");
    }
    world.ok(&["put", "broken.gguf", "--raw"]);
}

#[test]
fn a_flipped_byte_is_found_and_mended_by_one_part() {
    let world = World::new("flip");
    let content = world.file("a.bin", 300_000);
    let hash = world.ok(&["put", "a.bin", "--quiet", "--part-size", "64KiB"]);
    let hash = hash.trim();
    world.ok(&["get", "a.bin"]);
    assert_eq!(world.json(&["verify", "--full"])["blobs"][0]["sound"], true);
    // On the server: told, nothing visible, mended from the file.
    flip(&world.stored(hash), 100_000);
    fs::remove_file(world.cached(hash)).unwrap();
    assert!(world.fails(&["get", "a.bin"]).contains("part 1"));
    assert!(!world.cached(hash).exists());
    assert!(!world.run(&["verify", "--full"]).status.success());
    let mended = world.json(&["verify", "--full", "--heal", "--file", "a.bin"]);
    assert_eq!(mended["blobs"][0]["mended_parts"], serde_json::json!([1]));
    world.ok(&["verify", "--whole"]);
    // In the cache: one part comes again.
    world.ok(&["get", "a.bin"]);
    flip(&world.cached(hash), 200_000);
    let healed = world.json(&["verify", "--cache", "--full", "--heal"]);
    assert_eq!(healed["blobs"][0]["mended_parts"], serde_json::json!([3]));
    assert_eq!(fs::read(world.cached(hash)).unwrap(), content);
}

#[test]
fn twenty_at_once_fetch_once() {
    let Some(world) = World::apart("twenty") else {
        println!("skipped: there is no second file system");
        return;
    };
    let content = world.file("a.bin", 20_000_000);
    world.ok(&["put", "a.bin", "--part-size", "1MiB"]);
    let spawn = |_| {
        let mut command = world.command(&["get", "a.bin", "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..20).map(spawn).collect();
    let mut fetched = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        fetched += said["fetched_bytes"].as_u64().unwrap();
        assert_eq!(fs::read(said["path"].as_str().unwrap()).unwrap(), content);
    }
    assert_eq!(fetched, 20_000_000);
}

#[test]
fn killed_transfers_go_on() {
    let Some(world) = World::apart("killed") else {
        println!("skipped: there is no second file system");
        return;
    };
    let size = 24_000_000_u64;
    let content = world.file("a.bin", size as usize);
    let mut prng = Prng::new(7);
    for (args, again) in [
        (&["put", "a.bin", "--part-size", "256KiB", "--json"][..], "sent_bytes"),
        (&["get", "a.bin", "--json"], "fetched_bytes"),
    ] {
        for _ in 0..8 {
            let mut child =
                world.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_micros(prng.below(60_000)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let said: Value = serde_json::from_str(&world.ok(args)).unwrap();
        let moved = said[again].as_u64().unwrap();
        assert!(moved + said["reused_bytes"].as_u64().unwrap() <= size, "{said}");
    }
    world.ok(&["get", "a.bin", "--output", "out"]);
    assert_eq!(world.read("out"), content);
    world.ok(&["verify", "--whole"]);
    world.ok(&["verify", "--cache", "--whole"]);
}

#[test]
fn killed_at_any_moment_nothing_is_lost() {
    let world = World::new("kills");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kill-store.sh");
    let mut command = Command::new(script);
    command.args(["-n", "6", "-s", "8", "-f", "100"]).env("CNSE", env!("CARGO_BIN_EXE_cnse"));
    let output = command.env("TMPDIR", &world.folder).output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("nothing was lost, nothing half-written was visible"), "{said}");
}

#[test]
fn a_full_disk_is_a_sentence_and_no_loss() {
    let world = World::new("full");
    let small = world.folder.join("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
        .arg(&small)
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("skipped: a small file system needs root");
        return;
    }
    /// Unmounts at the end, before the folder is removed.
    struct Mount<'a>(&'a Path);
    impl Drop for Mount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
    let mount = Mount(&small);
    let content = world.file("a.bin", 12_000_000);
    world.file("b.bin", 12_000_001);
    let on_small = |args: &[&str], variable: &str| {
        let mut command = world.command(args);
        command.env(variable, small.join(variable)).output().unwrap()
    };
    assert!(on_small(&["put", "a.bin", "--part-size", "1MiB"], "CNSE_STORE").status.success());
    let full = on_small(&["put", "b.bin", "--part-size", "1MiB"], "CNSE_STORE");
    let said = text(&full.stderr);
    assert!(!full.status.success() && said.contains("No space left") && said.contains("make room"));
    let got = on_small(&["get", "a.bin", "--output", "out"], "CNSE_STORE");
    assert!(got.status.success(), "{}", text(&got.stderr));
    assert_eq!(world.read("out"), content);
    // A cache that is too small says so before it fetches.
    world.ok(&["put", "b.bin", "--part-size", "1MiB"]);
    let full = on_small(&["get", "b.bin"], "CNSE_CACHE");
    let said = text(&full.stderr);
    assert!(!full.status.success() && said.contains("are needed"), "{said}");
    drop(mount);
}
