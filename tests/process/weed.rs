//! A real SeaweedFS: `CNSE_TEST_WEED` names the `weed` to run. Where it is not set, each test says
//! so and does nothing; `CNSE_TEST_PEERS=required` makes that a failure.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};

/// A server in a folder of its own, which goes with it.
pub struct Weed {
    folder: PathBuf,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    pub url: String,
}

impl Weed {
    /// A fresh one. None: there is no `weed` here.
    pub fn start(flags: &[&str], environment: &[(&str, &str)]) -> Option<Weed> {
        if std::env::var("CNSE_TEST_WEED").is_err() {
            let why = "CNSE_TEST_WEED is not set";
            assert!(std::env::var("CNSE_TEST_PEERS").is_err(), "{why}");
            eprintln!("skipped: {why}");
            return None;
        }
        static NEXT: Mutex<u32> = Mutex::new(0);
        let mut next = NEXT.lock().unwrap();
        *next += 1;
        let folder = std::env::temp_dir().join(format!("cnse-weed-{}-{next}", std::process::id()));
        drop(next);
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut weed = Weed {
            folder,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            environment: environment.iter().map(own).collect(),
            url: String::new(),
        };
        weed.restart();
        Some(weed)
    }

    /// One that tests share which only add to it.
    pub fn shared() -> Option<Arc<Weed>> {
        static SHARED: Mutex<Weak<Weed>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(weed) = shared.upgrade() {
            return Some(weed);
        }
        let weed = Arc::new(Weed::start(&[], &[])?);
        *shared = Arc::downgrade(&weed);
        Some(weed)
    }

    fn script(&self, verb: &str, more: &[String]) -> Option<String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/seaweed.sh");
        let weed = std::env::var("CNSE_TEST_WEED").unwrap();
        let output = Command::new(script)
            .arg(verb)
            .arg(&self.folder)
            .args(more)
            .env("CNSE_WEED", weed)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    /// Starts it, again, on the same ports and with what it had.
    pub fn restart(&mut self) {
        self.url = self.script("start", &self.flags).expect("weed starts");
    }

    /// SIGKILL.
    pub fn kill(&self) {
        let pid = std::fs::read_to_string(self.folder.join("pid")).unwrap();
        let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    /// The files of its volumes.
    pub fn volumes(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.folder.join("data")).unwrap();
        let files = files.map(|file| file.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|end| end == "dat")).collect()
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        self.script("stop", &[]);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
