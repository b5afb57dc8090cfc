//! What the runs say: medians with intervals, and each as a share of the limit that binds it.
//!
//! A limit is measured in the same experiment, once in each block: SHA-256 of memory, since every
//! byte is hashed on the way; reading the file, or copying it, with the same pages in memory. Which
//! of them binds is what was slowest of those that an operation cannot do without. The share is
//! taken block by block, so that what drifts falls on both alike.

use serde_json::{Value, json};

use super::plan::{Operation, PageCache, Place, Setting};
use crate::bench::chart::text::{figure, measured};
use crate::bench::record::Run;
use crate::bench::statistics::{CONFIDENCE, Interval, median, quantile};

/// A median over runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Middle {
    /// Runs.
    pub n: usize,
    /// The median.
    pub p50: f64,
    /// Where the true one is, with 95 %; None: it takes six runs to say.
    pub interval: Option<Interval>,
}

/// A limit and what there is of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// What was measured.
    pub of: Operation,
    /// Cores that it is taken times.
    pub cores: u32,
    /// Its rate, with all of these cores.
    pub mb_per_s: f64,
    /// The rate as a share of it, block by block: 1 is all.
    pub share: Middle,
}

/// What a setting brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The setting.
    pub setting: Setting,
    /// Megabytes (10^6) a second.
    pub mb_per_s: Middle,
    /// Seconds.
    pub wall_s: Middle,
    /// Of processors.
    pub cpu_s: Middle,
    /// Of a get: nothing was copied.
    pub is_linked: bool,
    /// None: it is one itself, or none was measured beside it.
    pub limit: Option<Limit>,
}

/// Of all settings, sorted; runs that brought nothing are left out. `cores` are those of the
/// machine.
pub fn figures(runs: &[Run], cores: usize) -> Vec<Figure> {
    let mut settings: Vec<Setting> =
        runs.iter().filter_map(|run| Setting::from_json(&run.settings)).collect();
    settings.sort_unstable();
    settings.dedup();
    let of = |setting: Setting| {
        let of = Of { runs, setting };
        let is_linked = of.runs().any(|run| run.record.figures.get("linked") == Some(&true.into()));
        Some(Figure {
            setting,
            mb_per_s: middle(of.numbers("mb_per_s"))?,
            wall_s: middle(of.numbers("wall_s"))?,
            cpu_s: middle(of.numbers("cpu_s"))?,
            is_linked,
            limit: limit(runs, setting, is_linked, cores),
        })
    };
    settings.into_iter().filter_map(of).collect()
}

/// The runs of a setting.
#[derive(Clone, Copy)]
struct Of<'r> {
    runs: &'r [Run],
    setting: Setting,
}

impl<'r> Of<'r> {
    fn runs(self) -> impl Iterator<Item = &'r Run> {
        let fine = self.runs.iter().filter(|run| run.failure.is_none());
        fine.filter(move |run| Setting::from_json(&run.settings) == Some(self.setting))
    }

    fn numbers(self, name: &str) -> Vec<f64> {
        self.runs().filter_map(|run| run.record.number(name)).collect()
    }

    /// Its rate in a block.
    fn rate(self, block: u32) -> Option<f64> {
        self.runs().find(|run| run.repeat == block)?.record.number("mb_per_s")
    }
}

fn middle(mut values: Vec<f64>) -> Option<Middle> {
    values.sort_by(f64::total_cmp);
    let found = quantile::estimate(values.as_slice(), 0.5, CONFIDENCE, 1.0);
    Some(Middle {
        n: values.len(),
        p50: median(&values)?,
        interval: found.map(|found| found.interval),
    })
}

/// What an operation cannot be faster than, and the cores by which each is taken times.
fn candidates(setting: Setting, is_linked: bool, cores: usize) -> Vec<(Operation, u32)> {
    let sha256 = (Operation::Sha256, 1);
    let cores = setting.threads.min(u32::try_from(cores).unwrap_or(u32::MAX)).max(1);
    match (setting.operation, setting.place) {
        (Operation::Sha256 | Operation::Read | Operation::Copy, _) => vec![],
        (Operation::Hash, _) => vec![sha256, (Operation::Read, 1)],
        (Operation::Get, _) if is_linked => vec![sha256, (Operation::Read, 1)],
        // The whole is hashed in order, whatever the parts do.
        (Operation::Put | Operation::Get, _) => vec![sha256, (Operation::Copy, 1)],
        (Operation::Verify, Some(Place::Filer)) => vec![(Operation::Sha256, cores)],
        (Operation::Verify, _) => vec![(Operation::Sha256, cores), (Operation::Read, 1)],
    }
}

fn limit(runs: &[Run], setting: Setting, is_linked: bool, cores: usize) -> Option<Limit> {
    let found = candidates(setting, is_linked, cores).into_iter().filter_map(|(of, cores)| {
        let at = Setting { operation: of, place: None, threads: 1, ..setting };
        let states = match (of, setting.page_cache) {
            (Operation::Sha256, _) => vec![None],
            (_, Some(state)) => vec![Some(state)],
            // A blob of a filer: what it is copied to is written all the same.
            (_, None) => vec![Some(PageCache::Warm), Some(PageCache::Cold)],
        };
        let mut limits =
            states.into_iter().map(|page_cache| Of { runs, setting: Setting { page_cache, ..at } });
        let limit = limits.find(|limit| limit.runs().next().is_some())?;
        let rate = median(&limit.numbers("mb_per_s"))? * f64::from(cores);
        Some((of, cores, limit, rate))
    });
    let (of, cores, limit, mb_per_s) = found.min_by(|a, b| a.3.total_cmp(&b.3))?;
    let own = Of { runs, setting };
    let share = |run: &Run| {
        let limit = limit.rate(run.repeat)? * f64::from(cores);
        Some(run.record.number("mb_per_s")? / limit)
    };
    let share = middle(own.runs().filter_map(share).collect())?;
    Some(Limit { of, cores, mb_per_s, share })
}

impl Middle {
    /// As results have medians.
    pub fn to_json(&self) -> Value {
        let ci = self.interval.map_or(json!({}), |interval| json!({ "p50": interval }));
        json!({ "n": self.n, "p50": self.p50, "ci": ci })
    }

    /// `1,640 to 1,700`, of the value by a factor.
    fn range(&self, factor: f64) -> String {
        self.interval.map_or("–".to_owned(), |interval| {
            format!("{} to {}", measured(factor * interval.low), measured(factor * interval.high))
        })
    }
}

impl Limit {
    /// `SHA-256 on 2 cores`.
    pub fn name(&self) -> String {
        match (self.of, self.cores) {
            (Operation::Sha256, 1) => "SHA-256 on one core".to_owned(),
            (Operation::Sha256, cores) => format!("SHA-256 on {cores} cores"),
            (of, _) => format!("{} of the file", of.name()),
        }
    }
}

impl Figure {
    /// As the result has it: a setting's names, and what it brought.
    pub fn to_json(&self) -> Value {
        let mut object = self.setting.to_json();
        object.insert("mb_per_s".to_owned(), self.mb_per_s.to_json());
        object.insert("wall_s".to_owned(), self.wall_s.to_json());
        object.insert("cpu_s".to_owned(), self.cpu_s.to_json());
        if self.setting.operation == Operation::Get {
            object.insert("linked".to_owned(), self.is_linked.into());
        }
        if let Some(limit) = &self.limit {
            object.insert("limit".to_owned(), limit.of.name().into());
            object.insert("limit_cores".to_owned(), limit.cores.into());
            object.insert("limit_mb_per_s".to_owned(), limit.mb_per_s.into());
            object.insert("limit_share".to_owned(), limit.share.to_json());
        }
        Value::Object(object)
    }

    /// What it is called: `get from a directory (linked)`.
    pub fn what(&self) -> String {
        let linked = if self.is_linked { " (linked)" } else { "" };
        format!("{}{linked}", self.setting.what())
    }
}

/// For people: a line for each, those of a file together.
pub fn text(figures: &[Figure]) -> String {
    let (mut lines, mut bytes) = (String::new(), None);
    for found in figures {
        if bytes != Some(found.setting.bytes) {
            bytes = Some(found.setting.bytes);
            let head = format!("{} bytes", found.setting.bytes);
            lines += &format!(
                "{head:<30} {:>7}  {:<5} {:>9}  {:<16} {:>8}  {:>7}  {:<14}  of\n",
                "threads", "cache", "MB/s", "95 %", "CPU s", "share", "95 %"
            );
        }
        lines += &line(found);
    }
    lines
}

fn line(found: &Figure) -> String {
    let Setting { threads, page_cache, .. } = found.setting;
    let state = page_cache.map_or("–", PageCache::name);
    let (share, range, name) = found.limit.map_or_else(Default::default, |limit| {
        let share = format!("{} %", figure(100.0 * limit.share.p50));
        (share, limit.share.range(100.0), limit.name())
    });
    let line = format!(
        "{:<30} {threads:>7}  {state:<5} {:>9}  {:<16} {:>8.3}  {share:>7}  {range:<14}  {name}",
        found.what(),
        measured(found.mb_per_s.p50),
        found.mb_per_s.range(1.0),
        found.cpu_s.p50,
    );
    line.trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::bed::Measured;
    use super::*;

    fn setting(operation: Operation, place: Option<Place>, threads: u32) -> Setting {
        let page_cache = (operation != Operation::Sha256).then_some(PageCache::Warm);
        Setting { bytes: 1_000_000_000, operation, place, page_cache, threads }
    }

    /// Runs of so many seconds each, by block.
    fn runs(setting: Setting, seconds: &[f64], is_linked: Option<bool>) -> Vec<Run> {
        let run = |(repeat, wall_s): (usize, &f64)| Run {
            settings: setting.to_json(),
            repeat: repeat as u32,
            record: Measured {
                bytes: setting.bytes,
                wall_s: *wall_s,
                cpu_s: 0.5,
                resident_share: Some(1.0),
                is_linked,
            }
            .to_record(),
            ..Run::default()
        };
        seconds.iter().enumerate().map(run).collect()
    }

    fn all() -> Vec<Run> {
        let drift = [1.0, 1.2, 0.9, 1.1, 1.3, 1.0, 1.0];
        let of = |factor: f64| drift.map(|of_block| factor * of_block);
        let directory = Some(Place::Directory);
        [
            runs(setting(Operation::Sha256, None, 1), &of(0.5), None),
            runs(setting(Operation::Read, None, 1), &of(0.25), None),
            runs(setting(Operation::Copy, None, 1), &of(1.0), None),
            runs(setting(Operation::Hash, None, 1), &of(0.625), None),
            runs(setting(Operation::Put, directory, 2), &of(2.0), None),
            runs(setting(Operation::Get, directory, 1), &of(1.0), Some(true)),
            runs(setting(Operation::Verify, directory, 2), &of(0.5), None),
        ]
        .concat()
    }

    #[test]
    fn each_is_held_against_what_binds_it() {
        let found = figures(&all(), 2);
        let limits: Vec<Option<(Operation, u32)>> =
            found.iter().map(|figure| figure.limit.map(|limit| (limit.of, limit.cores))).collect();
        let sha256 = |cores| Some((Operation::Sha256, cores));
        let copy = Some((Operation::Copy, 1));
        // Hashed on two cores it would be as fast as it is read; the first named counts then.
        assert_eq!(limits, [None, None, None, sha256(1), copy, sha256(1), sha256(2)]);
        let shares: Vec<f64> =
            found.iter().filter_map(|figure| Some(figure.limit?.share.p50)).collect();
        let expected = [0.8, 0.5, 0.5, 0.5];
        assert!(shares.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{shares:?}");
        // What drifts from block to block falls on both.
        let share = found[3].limit.unwrap().share.interval.unwrap();
        assert!(share.high - share.low < 1e-9, "{share:?}");
        assert!((found[0].mb_per_s.p50 - 2000.0).abs() < 1e-6 && found[5].is_linked);
        let on_one = figures(&all(), 1);
        assert_eq!(on_one[6].limit.unwrap().cores, 1);
    }

    #[test]
    fn without_six_runs_there_is_no_interval_and_without_a_limit_no_share() {
        let few = runs(setting(Operation::Put, Some(Place::Filer), 1), &[1.0, 3.0], None);
        let found = figures(&few, 2);
        assert_eq!((found.len(), found[0].limit, found[0].mb_per_s.interval), (1, None, None));
        assert!((found[0].wall_s.p50 - 2.0).abs() < 1e-9);
        let mut failed = few.clone();
        failed.iter_mut().for_each(|run| run.failure = Some("not cold".to_owned()));
        assert_eq!(figures(&failed, 2), []);
    }

    #[test]
    fn a_table_and_json() {
        let found = figures(&all(), 2);
        let text = text(&found);
        assert_eq!(text.lines().count(), 8);
        let hash = text.lines().find(|line| line.starts_with("hash")).unwrap();
        assert!(
            hash.contains("80 %  80.0 to 80.0") && hash.ends_with("SHA-256 on one core"),
            "{hash}"
        );
        assert!(text.contains("get from a directory (linked)"), "{text}");
        let json = found[4].to_json();
        assert_eq!((&json["limit"], &json["threads"]), (&json!("copy"), &json!(2)));
        assert!(json["limit_share"]["ci"]["p50"].is_array());
    }
}
