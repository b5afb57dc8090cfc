//! What a rank tells of itself: every second where it stands, and at its end its report.

use std::time::Duration;

use super::super::fabric::Fabric;
use super::super::message::Reader;
use super::super::progress::RankStatus;
use super::super::rank::Over;
use super::super::report::RankReport;
use super::super::tally::Tally;
use super::super::tasks::{Rank, Source};
use super::super::worker::{self, Order};
use super::{Driver, TICK};
use crate::clock::Clock;

/// A rank stands so and so, and has counted this since it last told.
const TELLS_STATUS: u8 = 1;
/// A rank is done: what went wrong with it, and its report.
const TELLS_END: u8 = 2;

impl<F: Fabric, S: Source> Driver<'_, F, S> {
    /// About every second: collects what the workers counted, and tells the root.
    pub(super) fn tick(&mut self) {
        self.tick_at = self.now + TICK;
        self.collect();
        self.shared.ask_tallies();
        self.tell_status();
        if self.core.alive()[0] == self.core.config().rank {
            let ranks: Vec<RankStatus> = self.gathered.statuses.values().copied().collect();
            let since = self.gathered.since.take();
            self.hooks.watch(self.now, &ranks, &since);
        }
    }

    pub(super) fn tell_status(&mut self) {
        let (status, since) = (self.status(), self.since_told.take());
        let root = self.core.alive()[0];
        if root == self.core.config().rank {
            self.gathered.statuses.insert(root, status);
            self.gathered.since.merge(&since);
        } else {
            let mut bytes = vec![TELLS_STATUS];
            status.encode(&mut bytes);
            since.encode(&mut bytes);
            self.core.send_job(root, bytes);
        }
    }

    fn collect(&mut self) {
        while let Some(tally) = self.shared.tally() {
            self.tally.merge(&tally);
            self.since_told.merge(&tally);
        }
    }

    fn status(&self) -> RankStatus {
        let (done, failed, tokens) = self.ended;
        // What has ended a moment ago may still be in hand.
        let running = self.core.in_hand().saturating_sub(self.shared.unbegun());
        let slots = self.shared.slots().unwrap_or(0);
        let running = running.min(slots);
        RankStatus {
            done,
            failed,
            tokens,
            running: u32::try_from(running).unwrap_or(u32::MAX),
            slots: u32::try_from(slots).unwrap_or(u32::MAX),
            queued: self.core.waiting(),
            mass_done: self.core.own_mass_done(),
        }
    }

    /// At the root: what a rank tells.
    pub(super) fn told(&mut self, from: Rank, bytes: &[u8]) {
        let Some((kind, bytes)) = bytes.split_first() else { return };
        match *kind {
            TELLS_STATUS => {
                let Some((status, tally)) = bytes.split_at_checked(RankStatus::BYTES) else {
                    return;
                };
                if let (Some(status), Some(tally)) =
                    (RankStatus::decode(status), Tally::decode(tally))
                {
                    self.gathered.statuses.insert(from, status);
                    self.gathered.since.merge(&tally);
                }
            }
            TELLS_END => {
                let mut reader = Reader(bytes);
                let text = reader.u32().and_then(|len| reader.take(len as usize));
                let text = text.map(String::from_utf8_lossy).unwrap_or_default();
                if !text.is_empty() {
                    self.failures.push((from, text.into_owned()));
                }
                match RankReport::decode(reader.rest()) {
                    Some(report) => {
                        self.gathered.reports.insert(from, report);
                    }
                    None => {
                        self.failures.push((from, "its report is not understood".to_owned()));
                        self.gathered.reports.insert(from, RankReport::default());
                    }
                }
            }
            _ => {}
        }
    }

    /// Lets end what runs, unless the job is to end at once.
    pub(super) fn drain(&mut self, is_broken: &impl Fn() -> bool) -> Result<(), String> {
        self.shared.order(Order::Drain);
        loop {
            self.look();
            self.arrivals()?;
            let busy = self.completions();
            self.notices();
            self.take_back();
            self.send();
            let at_once = matches!(self.core.over(), Some(Over::Halted { now: true, .. }));
            if (self.core.in_hand() == 0 && !busy) || at_once || is_broken() {
                return Ok(());
            }
            if self.now >= self.tick_at {
                self.tick();
            }
            self.wait(busy)?;
        }
    }

    /// Makes the results safe, and tells the root, or hears of all.
    pub(super) fn close(&mut self) -> Result<(), String> {
        let me = self.core.config().rank;
        self.shared.order(Order::Quit);
        let report = self.report();
        self.tell_status();
        let failure = self.hooks.close().err().unwrap_or_default();
        let mut bytes = vec![TELLS_END];
        bytes.extend(u32::try_from(failure.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(failure.as_bytes());
        report.encode(&mut bytes);
        let mut told_to = None;
        loop {
            self.look();
            self.arrivals()?;
            let root = self.core.alive()[0];
            // After a death the root may be another, which must be told anew.
            let death = self.dead.len();
            if told_to != Some((root, death)) {
                told_to = Some((root, death));
                if root == me {
                    self.told(me, &bytes);
                } else {
                    self.core.send_job(root, bytes.clone());
                }
            }
            self.send();
            let all = self.core.alive().iter().all(|r| self.gathered.reports.contains_key(r));
            if !self.core.has_outgoing() && (root != me || all) {
                return Ok(());
            }
            self.wait(false)?;
        }
    }

    fn report(&mut self) -> RankReport {
        // Workers hand in their last tallies when they quit.
        let end = self.clock.now();
        let deadline = end + Duration::from_secs(5);
        while self.shared.is_running() && self.clock.now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.collect();
        let moves = self.core.moves();
        let slots = self.shared.slots().unwrap_or(0);
        let wall_us = end.micros_since(self.began);
        let busy_us = self.tally.busy_us;
        RankReport {
            rank: self.core.config().rank.0,
            node: self.node.clone(),
            slots: u32::try_from(slots).unwrap_or(u32::MAX),
            wall_us,
            first_us: self.first.map_or(0, |first| first.micros_since(self.began)),
            last_us: self.last.micros_since(self.began),
            tally: self.tally.clone(),
            steals_tried: moves.steals_tried,
            steals_won: moves.steals_won,
            steals_near: moves.steals_near,
            tasks_in: moves.tasks_in,
            tasks_out: moves.tasks_out,
            idle_us: (wall_us * slots as u64).saturating_sub(busy_us),
            cpu_us: worker::thread_cpu_us() - self.cpu_before_us + self.shared.cpu_us(),
            rss_max_kib: worker::rss_max_kib(),
            skipped_rows: self.core.source().skipped_rows(),
        }
    }
}
