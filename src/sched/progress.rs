//! How far a job is, while it runs: what ranks tell of themselves, and the lines that people see.
//!
//! Pure: moments and counts go in, text comes out. On a terminal that is a few lines which are
//! drawn again in place, elsewhere a line every ten seconds.
//!
//! A drawing ends with the cursor where it began, at its first line. So whatever else is written
//! (a line of the log) stands above the next drawing, and nobody needs to know how many lines the
//! last one had.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::Duration;

use super::message::Reader;
use crate::clock::Instant;

/// What a rank says of itself, about every second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankStatus {
    /// Tasks that ended well.
    pub done: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Tokens of answers.
    pub tokens: u64,
    /// Tasks that run now.
    pub running: u32,
    /// Tasks that can run at once; 0: no server is up.
    pub slots: u32,
    /// Tasks that wait.
    pub queued: u64,
    /// Bytes or numbers of the input that it is through with, those of earlier runs included.
    pub mass_done: u64,
}

impl RankStatus {
    /// Bytes of an encoded one.
    pub const BYTES: usize = 48;

    /// Appends its bytes: the numbers as they stand above, little-endian.
    pub fn encode(&self, out: &mut Vec<u8>) {
        [self.done, self.failed, self.tokens].iter().for_each(|n| out.extend(n.to_le_bytes()));
        [self.running, self.slots].iter().for_each(|n| out.extend(n.to_le_bytes()));
        [self.queued, self.mass_done].iter().for_each(|n| out.extend(n.to_le_bytes()));
    }

    /// From all of its bytes; None: they are none of a status.
    pub fn decode(bytes: &[u8]) -> Option<RankStatus> {
        let mut reader = Reader(bytes);
        let status = RankStatus {
            done: reader.u64()?,
            failed: reader.u64()?,
            tokens: reader.u64()?,
            running: reader.u32()?,
            slots: reader.u32()?,
            queued: reader.u64()?,
            mass_done: reader.u64()?,
        };
        reader.0.is_empty().then_some(status)
    }

    fn ended(&self) -> u64 {
        self.done.saturating_add(self.failed)
    }

    fn add(&mut self, other: &RankStatus) {
        self.done = self.done.saturating_add(other.done);
        self.failed = self.failed.saturating_add(other.failed);
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.running = self.running.saturating_add(other.running);
        self.slots = self.slots.saturating_add(other.slots);
        self.queued = self.queued.saturating_add(other.queued);
        self.mass_done = self.mass_done.saturating_add(other.mass_done);
    }
}

/// What the whole job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// Nobody knows yet: the input comes from a pipe.
    Unknown,
    /// So many rows, each of which is a mass of 1.
    Rows(u64),
    /// So many bytes; how many rows they are is not known.
    Bytes(u64),
}

/// A rate is that of the last so long: what ran before (rows that were skipped at once) is
/// forgotten, and what a few slow tasks do in a few seconds is evened out.
const WINDOW: Duration = Duration::from_secs(60);
/// Fewer tasks than these in the window say little; then the rate is that of the whole run.
const WINDOW_TASKS_MIN: u64 = 30;
/// Between two samples.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Between two drawings.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// Ranks that have a line of their own.
const RANK_LINES_MAX: usize = 16;

/// Where a job stood at a moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    ended: u64,
    tokens: u64,
    mass: u64,
}

/// How far a job is.
#[derive(Clone, Debug)]
pub struct Progress {
    whole: Whole,
    /// Of the terminal; None: there is none.
    columns: Option<u16>,
    ranks: Vec<RankStatus>,
    total: RankStatus,
    waiting: Option<String>,
    first: Option<Sample>,
    latest: Option<Sample>,
    window: VecDeque<Sample>,
    shown: Option<Instant>,
}

impl Progress {
    /// Of a job that has just begun. `columns` is the width of the terminal; None: there is none.
    pub fn new(whole: Whole, columns: Option<u16>) -> Progress {
        Progress {
            whole,
            columns,
            ranks: Vec::new(),
            total: RankStatus::default(),
            waiting: None,
            first: None,
            latest: None,
            window: VecDeque::new(),
            shown: None,
        }
    }

    /// The whole is known now, or has grown.
    pub fn set_whole(&mut self, whole: Whole) {
        self.whole = whole;
    }

    /// The terminal has this width now.
    pub fn resize(&mut self, columns: u16) {
        self.columns = self.columns.and(Some(columns));
    }

    /// Nothing can run, and why, for a person ("no server is up (…)"); None: it can again.
    pub fn set_waiting(&mut self, why: Option<&str>) {
        self.waiting = why.map(printable);
    }

    /// Takes note of where each rank stands. True: it is time to `render`.
    pub fn update(&mut self, now: Instant, ranks: &[RankStatus]) -> bool {
        self.ranks.clear();
        self.ranks.extend_from_slice(ranks);
        self.total = RankStatus::default();
        ranks.iter().for_each(|rank| self.total.add(rank));
        let RankStatus { tokens, mass_done, .. } = self.total;
        let sample = Sample { at: now, ended: self.total.ended(), tokens, mass: mass_done };
        self.first.get_or_insert(sample);
        self.latest = Some(sample);
        if self.window.back().is_none_or(|last| now.since(last.at) >= SAMPLE_EVERY) {
            self.window.push_back(sample);
        }
        while self.window.front().is_some_and(|oldest| now.since(oldest.at) > WINDOW) {
            self.window.pop_front();
        }
        let every = if self.columns.is_some() { DRAW_EVERY } else { LINE_EVERY };
        let due = match self.shown {
            Some(shown) => now.since(shown) >= every,
            // The first line elsewhere comes when there is something to tell.
            None => self.columns.is_some(),
        };
        if due || self.shown.is_none() {
            self.shown = Some(now);
        }
        due
    }

    /// What to write to stderr now.
    pub fn render(&self) -> String {
        let Some(columns) = self.columns else { return self.line() + "\n" };
        let mut lines = vec![self.line()];
        if self.ranks.len() > RANK_LINES_MAX {
            lines.push(self.crowd());
        } else if self.ranks.len() > 1 {
            let bar = usize::from(columns).saturating_sub(60).clamp(10, 40);
            lines.extend(self.ranks.iter().enumerate().map(|(rank, at)| row(rank, at, bar)));
        }
        // The last column stays free: some terminals go to the next line when it is filled.
        let width = usize::from(columns).saturating_sub(1).max(1);
        let up = lines.len() - 1;
        let lines: Vec<String> =
            lines.iter().map(|line| line.chars().take(width).collect()).collect();
        let mut text = format!("\r\x1b[J{}\r", lines.join("\n"));
        if up > 0 {
            push(&mut text, format_args!("\x1b[{up}A"));
        }
        text
    }

    /// Takes the last drawing off the terminal.
    pub fn clear(&self) -> &'static str {
        if self.columns.is_some() { "\r\x1b[J" } else { "" }
    }

    /// `12,345 of 1,000,000 done (1.2 %), 3 failed, 512.3/s, 65,012 tok/s, ETA 32m, load 96 %`
    fn line(&self) -> String {
        let RankStatus { done, failed, mass_done, running, slots, .. } = self.total;
        let percent = |whole: u64| {
            // Down, so that 100 % is the end.
            (mass_done as f64 / whole.max(1) as f64 * 1e3).floor().min(1e3) / 10.0
        };
        let mut line = match self.whole {
            Whole::Unknown => format!("{} done", grouped(done)),
            Whole::Rows(rows) => {
                format!("{} of {} done ({:.1} %)", grouped(mass_done), grouped(rows), percent(rows))
            }
            Whole::Bytes(bytes) => format!("{} done ({:.1} %)", grouped(done), percent(bytes)),
        };
        push(&mut line, format_args!(", {} failed", grouped(failed)));
        if let Some(why) = &self.waiting {
            push(&mut line, format_args!(", waiting: {why}"));
            return line;
        }
        if let Some((tasks, tokens, _)) = self.rates() {
            push(&mut line, format_args!(", {}/s", decimal(tasks)));
            if self.total.tokens > 0 {
                push(&mut line, format_args!(", {} tok/s", grouped(tokens.round() as u64)));
            }
        }
        if let Some(eta) = self.eta() {
            push(&mut line, format_args!(", ETA {}", brief(eta)));
        }
        if slots > 0 {
            let load = 100.0 * f64::from(running) / f64::from(slots);
            push(&mut line, format_args!(", load {load:.0} %"));
        }
        line
    }

    /// Tasks, tokens and mass in a second.
    fn rates(&self) -> Option<(f64, f64, f64)> {
        let (first, latest) = (self.first?, self.latest?);
        let oldest = *self.window.front()?;
        let few = latest.ended.saturating_sub(oldest.ended) < WINDOW_TASKS_MIN;
        let since = if few { first } else { oldest };
        let seconds = latest.at.since(since.at).as_secs_f64();
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        (seconds > 0.0).then(|| {
            (
                rate(latest.ended, since.ended),
                rate(latest.tokens, since.tokens),
                rate(latest.mass, since.mass),
            )
        })
    }

    fn eta(&self) -> Option<Duration> {
        let (Whole::Rows(whole) | Whole::Bytes(whole)) = self.whole else { return None };
        let (_, _, rate) = self.rates()?;
        let left = whole.saturating_sub(self.total.mass_done) as f64;
        let seconds = (rate > 0.0).then(|| left / rate)?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Ranks that are too many for a line each.
    fn crowd(&self) -> String {
        let count = |of: fn(&RankStatus) -> bool| self.ranks.iter().filter(|rank| of(rank)).count();
        let full = count(|rank| rank.slots > 0 && rank.running >= rank.slots);
        let down = count(|rank| rank.slots == 0);
        let idle = count(|rank| rank.slots > 0 && rank.running == 0);
        let all = self.ranks.len();
        format!(
            "{} ranks: {} full, {} in part, {} idle, {} without a server; {} tasks wait",
            grouped(all as u64),
            grouped(full as u64),
            grouped((all - full - idle - down) as u64),
            grouped(idle as u64),
            grouped(down as u64),
            grouped(self.total.queued)
        )
    }
}

/// `rank  0 [######----]   3/8   1,234 done, 0 failed, 12 wait`
fn row(rank: usize, status: &RankStatus, bar: usize) -> String {
    let load = f64::from(status.running) / f64::from(status.slots.max(1));
    let full = ((load.min(1.0) * bar as f64).round() as usize).min(bar);
    let running = format!("{}/{}", status.running, status.slots);
    format!(
        "rank {rank:>2} [{}{}] {running:>7} {:>9} done, {} failed, {} wait",
        "#".repeat(full),
        "-".repeat(bar - full),
        grouped(status.done),
        grouped(status.failed),
        grouped(status.queued)
    )
}

fn push(text: &mut String, more: std::fmt::Arguments<'_>) {
    let written = text.write_fmt(more);
    debug_assert!(written.is_ok(), "a String takes every write");
}

/// `1,234,567`
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1,234.5`
pub(super) fn decimal(number: f64) -> String {
    let tenths = (number * 10.0).round().max(0.0) as u64;
    format!("{}.{}", grouped(tenths / 10), tenths % 10)
}

/// Without what a terminal would obey: errors are texts of others.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `45s`, `32m`, `2h05m`, `3d04h`; up.
fn brief(time: Duration) -> String {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let minutes = seconds.div_ceil(60);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..=3_540 => format!("{minutes}m"),
        3_541..=172_740 => format!("{}h{:02}m", minutes / 60, minutes % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const START: Instant = Instant(1_000_000_000);

    fn status(done: u64, running: u32) -> RankStatus {
        RankStatus { done, tokens: 100 * done, running, slots: 8, mass_done: done, ..BASE }
    }

    const BASE: RankStatus = RankStatus {
        done: 0,
        failed: 0,
        tokens: 0,
        running: 0,
        slots: 0,
        queued: 12,
        mass_done: 0,
    };

    #[test]
    fn a_line_every_ten_seconds_where_there_is_no_terminal() {
        let mut progress = Progress::new(Whole::Rows(10_000), None);
        let mut lines = String::new();
        for second in 0..=25 {
            let failed = RankStatus { failed: 3, mass_done: 3, ..BASE };
            let ranks = [status(50 * second, 8), status(30 * second, 7), failed];
            if progress.update(START + SECOND * second as u32, &ranks) {
                lines += &progress.render();
            }
        }
        let expected = "\
            803 of 10,000 done (8.0 %), 3 failed, 80.0/s, 8,000 tok/s, ETA 2m, load 94 %\n\
            1,603 of 10,000 done (16.0 %), 3 failed, 80.0/s, 8,000 tok/s, ETA 2m, load 94 %\n";
        assert_eq!(lines, expected);
        assert_eq!(progress.clear(), "");
    }

    #[test]
    fn drawn_in_place_within_the_terminals_width() {
        let mut progress = Progress::new(Whole::Bytes(1 << 20), Some(80));
        assert!(progress.update(START, &[status(0, 8), status(0, 2)]));
        assert!(!progress.update(START + SECOND / 10, &[status(1, 8), status(0, 2)]));
        assert!(progress.update(START + SECOND, &[status(1_234, 8), status(0, 2)]));
        let expected = "\r\x1b[J\
            1,234 done (0.1 %), 0 failed, 1,234.0/s, 123,400 tok/s, ETA 15m, load 62 %\n\
            rank  0 [####################]     8/8     1,234 done, 0 failed, 12 wait\n\
            rank  1 [#####---------------]     2/8         0 done, 0 failed, 12 wait\
            \r\x1b[2A";
        assert_eq!(progress.render(), expected);
        assert_eq!(progress.clear(), "\r\x1b[J");
        for columns in [0, 1, 30, 500] {
            progress.resize(columns);
            let text = progress.render();
            let text = text.trim_start_matches("\r\x1b[J").trim_end_matches("\r\x1b[2A");
            let width = usize::from(columns).max(2);
            assert!(text.split('\n').all(|line| line.chars().count() < width), "{text}");
        }
    }

    #[test]
    fn many_ranks_are_told_together() {
        let mut progress = Progress::new(Whole::Unknown, Some(100));
        let mut ranks = vec![status(1, 8); 1_000];
        ranks.extend([status(1, 0), status(1, 3), BASE]);
        progress.update(START, &ranks);
        let text = progress.render();
        let expected = "1,003 ranks: 1,000 full, 1 in part, 1 idle, 1 without a server; \
                        12,036 tasks wait\r\x1b[1A";
        assert!(text.ends_with(expected), "{text}");
        assert!(text.contains("1,002 done, 0 failed, load 100 %\n"), "{text}");
    }

    #[test]
    fn waiting_says_why_and_obeys_no_one() {
        let mut progress = Progress::new(Whole::Rows(10), None);
        progress.update(START, &[BASE]);
        progress.set_waiting(Some("no server is up (a:1: \x1b[2Jrefused)"));
        let expected = "0 of 10 done (0.0 %), 0 failed, \
                        waiting: no server is up (a:1:  [2Jrefused)\n";
        assert_eq!(progress.render(), expected);
        progress.set_waiting(None);
        assert_eq!(progress.render(), "0 of 10 done (0.0 %), 0 failed\n");
    }

    #[test]
    fn rows_that_were_skipped_at_once_do_not_promise_an_early_end() {
        let mut progress = Progress::new(Whole::Rows(1_000_000), None);
        progress.update(START, &[BASE]);
        for second in 1..=100_u64 {
            let rank = RankStatus { mass_done: 900_000 + 10 * second, ..status(10 * second, 8) };
            progress.update(START + SECOND * second as u32, &[rank]);
        }
        // 99,000 are left, at 10/s.
        assert_eq!(progress.eta().map(brief).as_deref(), Some("2h45m"));
        assert!(progress.window.len() <= 62, "{}", progress.window.len());
    }

    #[test]
    fn slow_tasks_have_the_rate_of_the_whole_run() {
        let mut progress = Progress::new(Whole::Rows(100), None);
        for second in 0..=600_u64 {
            progress.update(START + SECOND * second as u32, &[status(second / 100, 8)]);
        }
        assert!(progress.render().contains("0.0/s, 1 tok/s, ETA 2h37m"), "{}", progress.render());
    }

    #[test]
    fn numbers_and_times() {
        let times = [(0, "0s"), (59, "59s"), (60, "1m"), (3_540, "59m"), (3_541, "1h00m")];
        for (seconds, text) in times {
            assert_eq!(brief(SECOND * seconds), text);
        }
        assert_eq!(brief(SECOND * 7_500), "2h05m");
        assert_eq!(brief(SECOND * 274_000), "3d04h");
        assert_eq!(brief(SECOND / 2), "1s");
        let grouped = [0, 999, 1_000, 123_456, 1_234_567].map(grouped);
        assert_eq!(grouped, ["0", "999", "1,000", "123,456", "1,234,567"]);
        assert_eq!([decimal(0.04), decimal(1_234.56)], ["0.0", "1,234.6"]);
    }

    proptest! {
        #[test]
        fn round_trip(numbers in any::<[u64; 5]>(), small in any::<[u32; 2]>()) {
            let [done, failed, tokens, queued, mass_done] = numbers;
            let [running, slots] = small;
            let status = RankStatus { done, failed, tokens, running, slots, queued, mass_done };
            let mut bytes = Vec::new();
            status.encode(&mut bytes);
            prop_assert_eq!(RankStatus::decode(&bytes), Some(status));
            prop_assert_eq!(RankStatus::decode(&bytes[..bytes.len() - 1]), None);
            // However large: it can be shown.
            let mut progress = Progress::new(Whole::Rows(done), Some(80));
            progress.update(START, &[status, BASE]);
            progress.update(START + SECOND, &[status, status]);
            progress.render();
            bytes.push(0);
            prop_assert_eq!(RankStatus::decode(&bytes), None);
        }
    }
}
