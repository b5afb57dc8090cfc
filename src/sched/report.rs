//! What a job brought: of each rank, and in total.
//!
//! A rank sends its `RankReport` to rank 0 when it ends; `JobReport` holds them all. The total is
//! the sum of the ranks, its histograms merged count by count: an average of percentiles is none.
//! `figures` prints it for programs, `summary` for people.

use std::io;
use std::time::{Duration, SystemTime};

use super::message::Reader;
use super::tally::{Tally, encode_text, read_text};
use crate::machine::environment::Environment;
use crate::metrics::interval_log::IntervalLog;

/// What one rank did, or all of them together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankReport {
    /// Its number.
    pub rank: u32,
    /// The machine that it ran on.
    pub node: String,
    /// Tasks that it could run at once.
    pub slots: u32,
    /// From the job's start to this rank's end, in microseconds, as all times here; of the total
    /// the mean over all slots.
    pub wall_us: u64,
    /// From the job's start to its first task's; 0 too if it had none.
    pub first_us: u64,
    /// From the job's start to the end of its last task.
    pub last_us: u64,
    /// What was counted.
    pub tally: Tally,
    /// Times that it asked another rank for work.
    pub steals_tried: u64,
    /// Times that it was given some.
    pub steals_won: u64,
    /// Those of them that a rank of its own node gave.
    pub steals_near: u64,
    /// Tasks that it got from other ranks.
    pub tasks_in: u64,
    /// Tasks that it gave to other ranks.
    pub tasks_out: u64,
    /// Time that its slots stood idle between the job's start and its own end, added up.
    pub idle_us: u64,
    /// Processor time.
    pub cpu_us: u64,
    /// Most memory that its process ever took.
    pub rss_max_kib: u64,
    /// Rows that it passed over, since an earlier run had done them.
    pub skipped_rows: u64,
}

impl RankReport {
    /// Appends its bytes: the numbers and texts in the order in which they stand above, as the
    /// tally's.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.rank.to_le_bytes());
        encode_text(out, &self.node);
        out.extend(self.slots.to_le_bytes());
        let RankReport { wall_us, first_us, last_us, .. } = *self;
        [wall_us, first_us, last_us].iter().for_each(|us| out.extend(us.to_le_bytes()));
        self.tally.encode(out);
        self.counts().iter().for_each(|count| out.extend(count.to_le_bytes()));
        out.extend(self.rss_max_kib.to_le_bytes());
    }

    /// From all of its bytes; None: they are none of a report.
    pub fn decode(bytes: &[u8]) -> Option<RankReport> {
        let mut reader = Reader(bytes);
        let mut report = RankReport {
            rank: reader.u32()?,
            node: read_text(&mut reader)?.to_owned(),
            slots: reader.u32()?,
            wall_us: reader.u64()?,
            first_us: reader.u64()?,
            last_us: reader.u64()?,
            tally: Tally::read(&mut reader)?,
            ..RankReport::default()
        };
        for count in report.counts_mut() {
            *count = reader.u64()?;
        }
        report.rss_max_kib = reader.u64()?;
        reader.0.is_empty().then_some(report)
    }

    /// Ranks together.
    pub(super) fn sum<'a>(ranks: impl Iterator<Item = &'a RankReport>) -> RankReport {
        let mut sum = RankReport::default();
        let mut slots_us = 0.0;
        for rank in ranks {
            sum.add(rank);
            slots_us += f64::from(rank.slots) * rank.wall_us as f64;
        }
        sum.wall_us = ratio(slots_us, f64::from(sum.slots)).unwrap_or(0.0) as u64;
        sum
    }

    /// Adds what another rank did.
    fn add(&mut self, other: &RankReport) {
        self.slots = self.slots.saturating_add(other.slots);
        if other.tally.ended() > 0 {
            let first = if self.tally.ended() > 0 { self.first_us } else { u64::MAX };
            self.first_us = first.min(other.first_us);
            self.last_us = self.last_us.max(other.last_us);
        }
        self.tally.merge(&other.tally);
        for (mine, theirs) in self.counts_mut().into_iter().zip(other.counts()) {
            *mine = mine.saturating_add(theirs);
        }
        self.rss_max_kib = self.rss_max_kib.max(other.rss_max_kib);
    }

    /// What adds up.
    fn counts(&self) -> [u64; 8] {
        [
            self.steals_tried,
            self.steals_won,
            self.steals_near,
            self.tasks_in,
            self.tasks_out,
            self.idle_us,
            self.cpu_us,
            self.skipped_rows,
        ]
    }

    fn counts_mut(&mut self) -> [&mut u64; 8] {
        [
            &mut self.steals_tried,
            &mut self.steals_won,
            &mut self.steals_near,
            &mut self.tasks_in,
            &mut self.tasks_out,
            &mut self.idle_us,
            &mut self.cpu_us,
            &mut self.skipped_rows,
        ]
    }

    /// Slot time held for each slot.
    pub(super) fn busy_per_slot_us(&self) -> f64 {
        self.tally.busy_us as f64 / f64::from(self.slots.max(1))
    }

    /// The shortest time in which these tasks can be done on these slots, in seconds, whoever
    /// deals them out and however often it is dealt again, each task as fast as it was: all work
    /// spread evenly, or the longest task (the lower bound of R. L. Graham, "Bounds on
    /// multiprocessing timing anomalies", 1969).
    pub fn ideal_s(&self) -> f64 {
        self.busy_per_slot_us().max(self.tally.longest_us as f64) / 1e6
    }

    /// The part of its slots' time in which they were held.
    pub fn busy_share(&self) -> Option<f64> {
        self.share(self.tally.busy_us)
    }

    /// The part of its slots' time in which they stood idle.
    pub fn idle_share(&self) -> Option<f64> {
        self.share(self.idle_us)
    }

    fn share(&self, us: u64) -> Option<f64> {
        ratio(us as f64, f64::from(self.slots) * self.wall_us as f64)
    }
}

/// What a job did.
#[derive(Clone, Debug, Default)]
pub struct JobReport {
    /// The command line.
    pub command: Vec<String>,
    /// When it began (RFC 3339).
    pub started_at: String,
    /// From its start to its end, in seconds.
    pub wall_s: f64,
    /// The ranks that ended; those that died are missing.
    pub ranks: Vec<RankReport>,
    /// Rows that were done in earlier runs.
    pub skipped: u64,
    /// What a reader must know first: that it ended early and how to go on, that ranks died.
    pub note: Option<String>,
    /// Who counted the tokens.
    pub tokens_source: &'static str,
    /// Where it was done, as the root saw it.
    pub environment: Environment,
}

impl JobReport {
    /// All ranks together.
    pub fn total(&self) -> RankReport {
        RankReport::sum(self.ranks.iter())
    }

    /// The ideal time over the time that it took (see `RankReport::ideal_s`).
    pub fn efficiency(&self, of: &RankReport) -> Option<f64> {
        ratio(of.ideal_s(), self.wall_s).filter(|_| of.tally.busy_us > 0)
    }

    /// How much longer the slots of the busiest rank were held than those of the mean one: 1 is
    /// even. Per slot, since a rank with twice the slots should do twice the work.
    pub fn balance(&self) -> Option<f64> {
        let most = self.ranks.iter().map(RankReport::busy_per_slot_us).fold(0.0, f64::max);
        ratio(most, self.busy_mean_us())
    }

    pub(super) fn busy_mean_us(&self) -> f64 {
        let sum: f64 = self.ranks.iter().map(RankReport::busy_per_slot_us).sum();
        sum / self.ranks.len().max(1) as f64
    }

    /// So many in the whole time of the job, for each of its seconds: the ranks' add up to the
    /// job's.
    pub fn per_second(&self, count: u64) -> f64 {
        ratio(count as f64, self.wall_s).unwrap_or(0.0)
    }

    /// As a log that the viewers of HdrHistogram read: what all ranks together saw, and each of
    /// them, in one interval that is the whole job. Tags are `queue`, `ttft` and `latency`, and
    /// `latency-rank3` and so on.
    ///
    /// # Errors
    /// `out` does not take it.
    pub fn histogram_log(&self, out: &mut dyn io::Write, start: SystemTime) -> io::Result<()> {
        let mut log = IntervalLog::open(out, start)?;
        let whole = Duration::try_from_secs_f64(self.wall_s).unwrap_or_default();
        write_interval(&mut log, Duration::ZERO, whole, &self.total().tally, "")?;
        if self.ranks.len() > 1 {
            for rank in &self.ranks {
                let tail = format!("-rank{}", rank.rank);
                write_interval(&mut log, Duration::ZERO, whole, &rank.tally, &tail)?;
            }
        }
        Ok(())
    }
}

/// Writes the three lines of what was counted in an interval; `tail` ends their tags.
///
/// # Errors
/// The log does not take them.
pub fn write_interval<W: io::Write>(
    log: &mut IntervalLog<W>,
    start: Duration,
    length: Duration,
    tally: &Tally,
    tail: &str,
) -> io::Result<()> {
    let kinds = [("queue", &tally.queue), ("ttft", &tally.ttft), ("latency", &tally.latency)];
    for (kind, durations) in kinds {
        log.write(start, length, &format!("{kind}{tail}"), durations)?;
    }
    Ok(())
}

pub(super) fn ratio(of: f64, to: f64) -> Option<f64> {
    (to > 0.0).then(|| of / to)
}

#[cfg(test)]
pub(super) mod tests {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use proptest::prelude::*;

    use super::super::tally::Sample;
    use super::*;

    pub(in super::super) fn rank(rank: u32, tasks: u64) -> RankReport {
        let mut tally = Tally::default();
        for n in 0..tasks {
            let error = (n % 50 == 49).then_some("HTTP 503: busy");
            tally.record(&Sample {
                ok: error.is_none(),
                queue_us: 100,
                ttft_us: Some(2_000),
                latency_us: 50_000,
                busy_us: 50_000,
                prompt_tokens: 10,
                completion_tokens: 20,
                retries: 0,
                error,
                server: if rank == 0 { "a:1" } else { "b:2" },
            });
        }
        RankReport {
            rank,
            node: if rank == 0 { "a, first" } else { "b" }.to_owned(),
            slots: 2,
            wall_us: 2_600_000,
            first_us: 1_000 * u64::from(rank),
            last_us: 25_000 * tasks,
            tally,
            steals_tried: 3,
            steals_won: u64::from(rank),
            steals_near: 0,
            tasks_in: 40 * u64::from(rank),
            tasks_out: 40 * u64::from(1 - rank),
            idle_us: 5_200_000 - 50_000 * tasks,
            cpu_us: 4_000,
            rss_max_kib: 10_240,
            skipped_rows: 5,
        }
    }

    pub(in super::super) fn job() -> JobReport {
        JobReport {
            command: vec!["schedule".to_owned()],
            started_at: "2026-11-23T18:00:00.000Z".to_owned(),
            wall_s: 2.6,
            ranks: vec![rank(0, 100), rank(1, 80)],
            skipped: 10,
            note: None,
            tokens_source: "usage",
            environment: Environment { cores: 2, ..Environment::default() },
        }
    }

    #[test]
    fn round_trip_and_cuts() {
        for report in [RankReport::default(), rank(1, 60)] {
            let mut bytes = Vec::new();
            report.encode(&mut bytes);
            for n in (0..bytes.len()).step_by(7) {
                assert_eq!(RankReport::decode(&bytes[..n]), None, "{n}");
            }
            assert_eq!(RankReport::decode(&bytes), Some(report));
            bytes.push(0);
            assert_eq!(RankReport::decode(&bytes), None);
        }
    }

    #[test]
    fn the_total_is_the_sum() {
        let job = job();
        let total = job.total();
        assert_eq!((total.slots, total.wall_us, total.tally.ended()), (4, 2_600_000, 180));
        assert_eq!((total.first_us, total.last_us), (0, 2_500_000));
        assert_eq!((total.tasks_in, total.tasks_out, total.skipped_rows), (40, 40, 10));
        let close = |value: Option<f64>, to: f64| (value.unwrap() - to).abs() < 1e-9;
        // 180 tasks of 50 ms on 4 slots take 2.25 s at least.
        assert!(close(job.efficiency(&total), 2.25 / 2.6));
        assert!(close(job.balance(), 5.0 / 4.5));
        assert!(close(total.idle_share(), 1.4 / 10.4));
        assert!(close(total.busy_share(), 9.0 / 10.4));
    }

    #[test]
    fn one_long_task_bounds_the_ideal() {
        let mut report = rank(0, 1);
        report.tally.record(&Sample { ok: true, busy_us: 2_000_000, ..Sample::default() });
        assert!((report.ideal_s() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn the_log_has_the_whole_and_each_rank() {
        let mut bytes = Vec::new();
        job().histogram_log(&mut bytes, SystemTime::UNIX_EPOCH).unwrap();
        let entries = IntervalLogIterator::new(&bytes).map(Result::unwrap);
        let intervals = entries.filter_map(|entry| match entry {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        });
        let mut tags = Vec::new();
        for interval in intervals {
            assert_eq!(interval.duration(), Duration::from_millis(2_600));
            tags.push(interval.tag().unwrap().as_str());
        }
        let whole = ["queue", "ttft", "latency"];
        let ranks = [
            "queue-rank0",
            "ttft-rank0",
            "latency-rank0",
            "queue-rank1",
            "ttft-rank1",
            "latency-rank1",
        ];
        assert_eq!(tags, [&whole[..], &ranks[..]].concat());
    }

    proptest! {
        #[test]
        fn fuzz_decode(noise in prop::collection::vec(any::<u8>(), 0..300), at in 0..400_usize) {
            let _ = RankReport::decode(&noise);
            let mut bytes = Vec::new();
            rank(0, 30).encode(&mut bytes);
            let at = at % bytes.len();
            bytes[at] ^= 0x40;
            // What decodes can be reported, however large its numbers are.
            if let Some(damaged) = RankReport::decode(&bytes) {
                let job = JobReport { ranks: vec![damaged.clone(), damaged], ..job() };
                job.to_csv();
            }
        }
    }
}
