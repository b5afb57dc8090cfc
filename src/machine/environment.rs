//! Where and with what a figure came about, and how much else the machine was doing.
//!
//! Everything is read from `/proc` and `/sys`; what cannot be read is left out, never guessed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::processes;

/// The machine, the program and the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// The processor's model.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Cargo features that were built in.
    pub features: Vec<String>,
    /// `release` or `debug`: figures of the latter are worth little.
    pub build: String,
    /// The machine's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// How the kernel sets the processor's clock (`performance`, `powersave`, …).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub governor: Option<String>,
    /// Memory, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// GPUs, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
    /// The GPUs' driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_driver: Option<String>,
    /// The seed of all that was random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What each server says of itself (build, slots, context, model), by its address.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub servers: Map<String, Value>,
    /// SHA-256 of models' files, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, String>,
    /// What else the machine did meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
    /// What a later version says, kept as it is.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Load on the machine while something was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Noise {
    /// Cores' worth of processor time that others took: all, less this process, those that it
    /// started, and the servers on this machine that it measured.
    pub other_cores: f64,
    /// Cores' worth that these took.
    pub own_cores: f64,
    /// The share of processor time that the hypervisor kept for other machines, 0 to 1.
    pub steal_share: f64,
    /// The share in which processors waited for disks, 0 to 1.
    pub iowait_share: f64,
    /// The share of time in which some task waited for a processor, whoever's it was, 0 to 1
    /// (pressure stall information); None: the kernel does not say.
    pub cpu_pressure: Option<f64>,
    /// The same of memory.
    pub memory_pressure: Option<f64>,
    /// The same of disks.
    pub io_pressure: Option<f64>,
}

/// The kernel's unit of processor time towards programs: 100 Hz on every Linux of today, whatever
/// its own clock is (USER_HZ).
const TICK_S: f64 = 0.01;
/// Cores' worth of others past which figures of run times are doubtful.
pub const OTHER_CORES_MAX: f64 = 0.1;
/// Share of time taken by the hypervisor past which they are.
pub const STEAL_SHARE_MAX: f64 = 0.01;

impl Noise {
    /// What makes the figures doubtful, in a sentence; None: nothing.
    pub fn warning(&self) -> Option<String> {
        if self.other_cores > OTHER_CORES_MAX {
            let cores = self.other_cores;
            return Some(format!("other processes took {cores:.2} cores' worth meanwhile"));
        }
        (self.steal_share > STEAL_SHARE_MAX).then(|| {
            let share = self.steal_share * 100.0;
            format!("the hypervisor kept {share:.1} % of the processor time")
        })
    }
}

impl Environment {
    /// This machine and this program, with the cargo features that were built in.
    pub fn of_this_machine(features: &[&str]) -> Environment {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let cpu =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        let (gpus, gpu_driver) = gpus(Path::new("/proc/driver/nvidia"));
        Environment {
            cpu: cpu.unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            features: features.iter().map(|&feature| feature.to_owned()).collect(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            host: read("/proc/sys/kernel/hostname").unwrap_or_default(),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            memory_mib: memory_mib(&read("/proc/meminfo").unwrap_or_default()),
            gpus,
            gpu_driver,
            ..Environment::default()
        }
    }

    /// What differs from another's, as `name: this / that`; noise and seeds apart, which always do.
    pub fn differences(&self, that: &Environment) -> Vec<String> {
        let object = |environment: &Environment| match serde_json::to_value(environment) {
            Ok(Value::Object(object)) => object,
            _ => Map::new(),
        };
        let (mine, theirs) = (object(self), object(that));
        let names = mine.keys().chain(theirs.keys().filter(|name| !mine.contains_key(*name)));
        let names = names.filter(|name| *name != "noise" && *name != "seed");
        let show = |value: Option<&Value>| match value {
            None => "not known".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        let differ = names.filter(|name| mine.get(*name) != theirs.get(*name));
        differ
            .map(|name| format!("{name}: {} / {}", show(mine.get(name)), show(theirs.get(name))))
            .collect()
    }
}

/// A file's trimmed text; None: there is none.
fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

/// Names of GPUs and their driver's version, as NVIDIA's kernel module tells them.
fn gpus(folder: &Path) -> (Vec<String>, Option<String>) {
    let cards = fs::read_dir(folder.join("gpus")).into_iter().flatten().flatten();
    let name = |card: fs::DirEntry| {
        let text = fs::read_to_string(card.path().join("information")).ok()?;
        let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(model.trim().to_owned())
    };
    let mut names: Vec<String> = cards.filter_map(name).collect();
    names.sort();
    let version = fs::read_to_string(folder.join("version")).unwrap_or_default();
    let line = version.lines().find_map(|line| line.strip_prefix("NVRM version:"));
    (names, line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// The SHA-256 of a file, as `sha256sum` prints it.
///
/// # Errors
/// A sentence that names the file.
pub fn file_sha256(path: &Path) -> Result<String, String> {
    let hash = || -> std::io::Result<String> {
        let mut file = fs::File::open(path)?;
        let mut hasher = Sha256::new();
        let mut block = vec![0; 1 << 20];
        loop {
            match file.read(&mut block)? {
                0 => break,
                n => hasher.update(&block[..n]),
            }
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    };
    hash().map_err(|error| format!("reading {path:?}: {error}"))
}

/// Watches the machine's load from `start` to `stop`.
#[derive(Debug)]
pub struct NoiseWatch {
    began: Instant,
    first: Load,
    /// Processes whose work, with that of what they started, is no noise: this one, and the servers
    /// that are measured.
    own: Vec<u32>,
}

/// What has been counted since the machine started, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    total: f64,
    busy: f64,
    steal: f64,
    iowait: f64,
    own: f64,
    pressures: [Option<f64>; 3],
}

impl NoiseWatch {
    /// From now on. What servers on these ports of this machine take is not noise.
    pub fn start(ports: &[u16]) -> NoiseWatch {
        NoiseWatch::among(ports, &[])
    }

    /// The same for one of several processes that do the work together: what came of `roots` is no
    /// noise either, such as the other ranks that a launcher started here.
    pub fn among(ports: &[u16], roots: &[u32]) -> NoiseWatch {
        let mut own = processes::listeners(ports);
        own.push(std::process::id());
        own.extend_from_slice(roots);
        NoiseWatch { began: Instant::now(), first: Load::now(&own), own }
    }

    /// What the machine did since; None: `/proc` does not tell, or no time has passed.
    pub fn stop(&self) -> Option<Noise> {
        let last = Load::now(&self.own);
        let first = &self.first;
        let (wall, total) = (self.began.elapsed().as_secs_f64(), last.total - first.total);
        if total <= 0.0 || wall <= 0.0 {
            return None;
        }
        let (busy, own) = (last.busy - first.busy, (last.own - first.own).max(0.0));
        let pressure = |index: usize| {
            let waited = last.pressures[index]? - first.pressures[index]?;
            Some((waited / wall).clamp(0.0, 1.0))
        };
        Some(Noise {
            // The kernel counts all in ticks of 10 ms and `own` in microseconds.
            other_cores: ((busy - own) / wall).max(0.0),
            own_cores: own / wall,
            steal_share: (last.steal - first.steal) / total,
            iowait_share: ((last.iowait - first.iowait) / total).max(0.0),
            cpu_pressure: pressure(0),
            memory_pressure: pressure(1),
            io_pressure: pressure(2),
        })
    }
}

impl Load {
    fn now(own: &[u32]) -> Load {
        let mut load = Load::default();
        load.read_stat(&fs::read_to_string("/proc/stat").unwrap_or_default());
        load.own = own_cpu_s(own);
        load.pressures = ["cpu", "memory", "io"].map(|name| {
            waited_s(&fs::read_to_string(format!("/proc/pressure/{name}")).unwrap_or_default())
        });
        load
    }

    /// From `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; what guests take
    /// is in user already (man 5 proc_stat).
    fn read_stat(&mut self, text: &str) {
        let Some(line) = text.lines().find_map(|line| line.strip_prefix("cpu ")) else { return };
        let mut ticks = line.split_whitespace().map(|word| word.parse().unwrap_or(0.0) * TICK_S);
        let [user, nice, system, idle, iowait, irq, softirq, steal] =
            std::array::from_fn(|_| ticks.next().unwrap_or(0.0));
        self.busy = user + nice + system + irq + softirq;
        (self.steal, self.iowait) = (steal, iowait);
        self.total = self.busy + idle + iowait + steal;
    }
}

/// Seconds in which some task waited, from a file of `/proc/pressure`.
fn waited_s(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let us: f64 = line.rsplit_once("total=")?.1.trim().parse().ok()?;
    Some(us / 1e6)
}

/// Processor time of `roots`, one of which is this process, and of those that they started.
fn own_cpu_s(roots: &[u32]) -> f64 {
    let ended = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(|who| {
        getrusage(who).map_or(0.0, |usage| {
            [usage.user_time(), usage.system_time()]
                .iter()
                .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
                .sum()
        })
    });
    let table = processes::table();
    let me = std::process::id();
    let living = processes::descendants(&table, roots);
    let ticks: u64 = table
        .iter()
        .filter(|process| process.pid != me && living.contains(&process.pid))
        .map(|process| process.ticks + process.waited_ticks)
        .sum();
    ended.iter().sum::<f64>() + ticks as f64 * TICK_S
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn this_machine_is_told_and_told_again() {
        let environment = Environment::of_this_machine(&["mpi"]);
        assert!(environment.cores > 0 && !environment.kernel.is_empty());
        let mut json = serde_json::to_value(&environment).unwrap();
        json["from_the_future"] = 7.into();
        let again: Environment = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(again.other["from_the_future"], 7);
        assert_eq!(serde_json::to_value(&again).unwrap(), json);
    }

    #[test]
    fn differences_are_named() {
        let mut a = Environment { cpu: "A".to_owned(), cores: 2, ..Environment::default() };
        let mut b = Environment { cpu: "B".to_owned(), cores: 2, ..Environment::default() };
        (a.seed, b.seed) = (Some(1), Some(2));
        b.noise = Some(Noise::default());
        b.governor = Some("powersave".to_owned());
        assert_eq!(a.differences(&b), ["cpu: A / B", "governor: not known / powersave"]);
    }

    #[test]
    fn files_of_proc() {
        let mut load = Load::default();
        load.read_stat("cpu  500 0 1000 3000 250 50 50 150 0 0\ncpu0 1\n");
        assert_eq!((load.total, load.busy, load.steal, load.iowait), (50.0, 16.0, 1.5, 2.5));
        let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull total=1\n";
        assert_eq!((waited_s(pressure), waited_s("")), (Some(2.5), None));
        assert_eq!(memory_mib("MemTotal:  2048 kB\n"), Some(2));
        assert_eq!(gpus(Path::new("/nonexistent")), (vec![], None));
    }

    #[test]
    fn own_work_is_no_noise() {
        let watch = NoiseWatch::start(&[]);
        let end = Instant::now() + Duration::from_millis(60);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        let noise = watch.stop().unwrap();
        assert!(noise.own_cores > 0.0 && noise.steal_share >= 0.0);
    }

    #[test]
    fn doubtful_figures_are_said() {
        let quiet = Noise { other_cores: 0.02, ..Noise::default() };
        assert_eq!(quiet.warning(), None);
        let loud = Noise { other_cores: 1.5, ..Noise::default() };
        let sentence = "other processes took 1.50 cores' worth meanwhile";
        assert_eq!(loud.warning().as_deref(), Some(sentence));
        let shared = Noise { steal_share: 0.05, ..Noise::default() };
        assert!(shared.warning().unwrap().contains("5.0 %"));
    }

    #[test]
    fn a_files_hash() {
        assert!(file_sha256(Path::new("/nonexistent")).unwrap_err().contains("/nonexistent"));
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(file_sha256(Path::new("/dev/null")).as_deref(), Ok(empty));
    }
}
