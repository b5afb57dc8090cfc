//! A request under way, and the recorder that takes it when it has ended.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::look::{BLUR_MAX, BLUR_SHARE, Look};
use crate::backend::Account;
use crate::bench::plan::{Plan, Progress, Watcher};
use crate::bench::sample::{Ended, Recording, Sample};
use crate::clock::Instant;
use crate::wire::frame::Done;

/// What was said in a session: user, answer, user, …
#[derive(Debug, Default)]
pub struct Session {
    pub said: Vec<String>,
}

/// A request under way.
#[derive(Debug)]
pub struct Flight {
    /// Its number in the run.
    pub number: u64,
    /// Its id on the wire (binary protocol).
    pub id: u64,
    /// When it should have been sent.
    pub intended: Instant,
    /// When it could have been.
    pub startable: Instant,
    /// When it was.
    pub sent: Instant,
    /// When the first text came.
    pub first: Option<Instant>,
    /// When the last text came.
    pub last: Option<Instant>,
    /// Tokens so far.
    pub tokens: u64,
    /// Bytes of text so far.
    pub bytes: u64,
    /// Gaps that were lost in late reads.
    pub blurred: u32,
    /// The first text was read late, and with another: it has the other's stamp.
    pub first_blurred: bool,
    /// Times between arrivals of text, in milliseconds.
    pub gaps_ms: Vec<f32>,
    /// Text that was received and not yet granted anew.
    pub owed_credit: u32,
    /// It was cancelled by this side.
    pub cancelled: bool,
    /// What the server says of its cost.
    pub account: Account,
    /// The session that it belongs to, and what was answered, if it belongs to one.
    pub session: Option<Box<Session>>,
    pub answer: String,
}

/// How far all cores are.
#[derive(Debug, Default)]
pub struct Shared {
    pub ok: AtomicU64,
    pub failed: AtomicU64,
    pub cancelled: AtomicU64,
    pub tokens: AtomicU64,
    /// No core starts another request.
    pub stop: AtomicBool,
    /// When the run was interrupted, in nanoseconds of the run's clock; 0: it was not.
    pub interrupted_at: AtomicU64,
    /// Cores that have ended.
    pub over: AtomicU64,
}

/// Requests that must have ended before their failures are too many.
const ERRORS_LEAST: u64 = 20;

impl Shared {
    pub fn progress(&self) -> Progress {
        Progress {
            ok: self.ok.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            cancelled: self.cancelled.load(Ordering::Relaxed),
            tokens: self.tokens.load(Ordering::Relaxed),
        }
    }

    /// Ends the run, as it is asked to from outside.
    pub fn interrupt(&self, now: Instant) {
        let unset = self.interrupted_at.compare_exchange(
            0,
            now.0.max(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if unset.is_ok() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    /// When the run was interrupted.
    pub fn interrupted(&self) -> Option<Instant> {
        let at = self.interrupted_at.load(Ordering::Relaxed);
        (at > 0).then_some(Instant(at))
    }

    fn check_errors(&self, errors_max: Option<f64>) {
        let Some(share) = errors_max else { return };
        let progress = self.progress();
        let ended = progress.ended();
        if ended >= ERRORS_LEAST && progress.failed as f64 > share * ended as f64 {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// What is kept of what happens.
pub struct Recorder<'r> {
    plan: &'r Plan<'r>,
    pub shared: &'r Shared,
    watcher: Option<&'r mut dyn Watcher>,
    pub recording: Recording,
    since: Option<Instant>,
    latest_end: Instant,
    /// When what comes was looked for.
    pub look: Look,
    /// Texts that have come so far, of all requests.
    pub arrivals: u64,
    /// Memory of gaps that can be used again.
    spare: Vec<Vec<f32>>,
}

impl<'r> Recorder<'r> {
    pub fn new(
        plan: &'r Plan<'r>,
        shared: &'r Shared,
        watcher: Option<&'r mut dyn Watcher>,
    ) -> Recorder<'r> {
        let recording = Recording::default();
        let (latest_end, look) = (Instant::default(), Look::default());
        let (since, spare) = (None, Vec::new());
        let arrivals = 0;
        Recorder { plan, shared, watcher, recording, since, latest_end, look, arrivals, spare }
    }

    pub fn flight(&mut self, number: u64, intended: Instant, startable: Instant) -> Flight {
        Flight {
            number,
            id: 0,
            intended,
            startable,
            sent: startable,
            first: None,
            last: None,
            tokens: 0,
            bytes: 0,
            blurred: 0,
            first_blurred: false,
            gaps_ms: self.spare.pop().unwrap_or_default(),
            owed_credit: 0,
            cancelled: false,
            account: Account::default(),
            session: None,
            answer: String::new(),
        }
    }

    /// Text came, or thoughts of which nothing is told.
    pub fn text(&mut self, flight: &mut Flight, now: Instant, text: &[u8], tokens: u64) {
        flight.tokens += tokens;
        flight.bytes += text.len() as u64;
        if text.is_empty() {
            return;
        }
        if let Some(watcher) = &mut self.watcher {
            watcher.text(text);
        }
        if flight.session.is_some() {
            flight.answer.push_str(&String::from_utf8_lossy(text));
        }
        self.arrived(flight, now);
    }

    /// Something of the answer came: text, or a thought.
    pub fn arrived(&mut self, flight: &mut Flight, now: Instant) {
        self.arrivals += 1;
        match flight.last {
            None => flight.first = Some(now),
            Some(last) => {
                let gap = now.since(last);
                flight.gaps_ms.push((gap.as_nanos() as f64 / 1e6) as f32);
                if gap == Duration::ZERO {
                    let reach = self.look.reach(now);
                    flight.blurred += u32::from(reach > BLUR_MAX);
                    let first = last.since(flight.sent) / BLUR_SHARE;
                    flight.first_blurred |=
                        flight.first == Some(last) && reach > first.max(BLUR_MAX);
                }
            }
        }
        flight.last = Some(now);
    }

    pub fn tick(&mut self, now: Instant) {
        if let Some(watcher) = &mut self.watcher {
            watcher.progress(self.shared.progress());
            if watcher.interrupts() {
                self.shared.interrupt(now);
            }
        }
    }

    /// A request has ended, at `now`.
    pub fn end(&mut self, flight: &mut Flight, now: Instant, result: Result<Done, String>) {
        let ended = match &result {
            Ok(_) => Ended::Ok,
            Err(_) if flight.cancelled => Ended::Cancelled,
            Err(_) => Ended::Failed,
        };
        let counter = match ended {
            Ended::Ok => &self.shared.ok,
            Ended::Cancelled => &self.shared.cancelled,
            Ended::Failed => &self.shared.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if ended == Ended::Failed {
            self.shared.check_errors(self.plan.errors_max);
        }
        let done = result.as_ref().copied().unwrap_or_default();
        let events = flight.first.map_or(0, |_| flight.gaps_ms.len() as u64 + 1);
        let told = flight.tokens.max(u64::from(done.completion_tokens));
        let tokens = if told == 0 { events } else { told };
        self.shared.tokens.fetch_add(tokens, Ordering::Relaxed);
        if self.plan.keep {
            self.keep(flight, now, ended, done, tokens);
        }
        if flight.number >= self.plan.warmup {
            self.count(flight, now, tokens, result);
        }
        let mut gaps = std::mem::take(&mut flight.gaps_ms);
        gaps.clear();
        self.spare.push(gaps);
    }

    fn keep(&mut self, flight: &Flight, now: Instant, ended: Ended, done: Done, tokens: u64) {
        let timed = done.total_us > 0;
        let recording = &mut self.recording;
        let gaps_at = recording.gaps_ms.len();
        recording.gaps_ms.extend_from_slice(&flight.gaps_ms);
        recording.samples.push(Sample {
            number: flight.number,
            warmup: flight.number < self.plan.warmup,
            ended,
            intended: flight.intended,
            startable: flight.startable,
            sent: flight.sent,
            first: flight.first,
            last: flight.last,
            end: now,
            prompt_tokens: done.prompt_tokens,
            tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            events: flight.first.map_or(0, |_| flight.gaps_ms.len() as u32 + 1),
            blurred: flight.blurred,
            first_blurred: flight.first_blurred,
            gaps_at,
            account: flight.account,
            server_queue_us: timed.then_some(done.queue_us),
            server_first_us: timed.then_some(done.first_us),
        });
    }

    fn count(&mut self, flight: &Flight, now: Instant, tokens: u64, result: Result<Done, String>) {
        self.since = Some(self.since.unwrap_or(flight.intended).min(flight.intended));
        self.latest_end = self.latest_end.max(now);
        let report = &mut self.recording.report;
        if flight.sent.since(flight.intended) > Duration::from_millis(1) {
            report.late += 1;
        }
        report.tokens += tokens;
        report.text_bytes += flight.bytes;
        match result {
            Ok(done) => {
                report.ok += 1;
                if let Some(first) = flight.first {
                    report.ttft.record(first.micros_since(flight.intended));
                }
                // Where each request is kept, its gaps are with it, and nobody reads these.
                for gap in flight.gaps_ms.iter().filter(|_| !self.plan.keep) {
                    report.itl.record((f64::from(*gap) * 1e3) as u64);
                }
                report.e2e.record(now.micros_since(flight.intended));
                report.service.record(now.micros_since(flight.sent));
                if done.total_us > 0 {
                    report.queue.record(done.queue_us);
                }
            }
            Err(_) if flight.cancelled => report.cancelled += 1,
            Err(error) => *report.errors.entry(error).or_default() += 1,
        }
    }

    /// The whole, with the first intended start and the last end among those that count.
    pub fn finish(self) -> (Recording, Option<(Instant, Instant)>) {
        let span = self.since.map(|since| (since, self.latest_end));
        (self.recording, span)
    }
}
