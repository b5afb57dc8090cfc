//! What a rank gives of its work, to whom, and what it takes in.

use super::super::message::{Message, More};
use super::super::queue::Gift;
use super::super::tasks::{Rank, Source};
use super::{Core, RankConfig};

/// A rank that left word.
#[derive(Clone, Copy, Debug)]
pub struct Hungry {
    pub rank: Rank,
    /// Slots that stood idle.
    pub free: u32,
    /// Rows must come with their text.
    pub bodies: bool,
}

/// More ranks than these share out work by halves: with few the one that has it can serve all.
const GUIDED_RANKS_MAX: usize = 16;
/// Ranks that are fed in one go.
const FED_MAX: usize = 16;

/// Where work is to be had at first, if ranks are few: with the first, which has the input.
pub fn hint(config: &RankConfig, alive: &[Rank]) -> Option<More> {
    let root = alive.first().copied().filter(|_| alive.len() <= GUIDED_RANKS_MAX);
    root.filter(|root| *root != config.rank).map(|rank| More { rank, count: 1 })
}

impl<S: Source> Core<S> {
    /// What a rank that asks is given.
    pub(super) fn gift(&mut self, free: u32, queued_us: u64, bodies: bool) -> Result<Gift, String> {
        if self.over.is_some() || self.queue.is_empty() {
            return Ok(Gift::default());
        }
        let mut gift = if self.can_run_nothing() {
            self.queue.give_all(bodies)
        } else {
            // What has just come is for the own slots first: two ranks whose answer and question
            // travel together would hand one task to and fro for ever.
            let spare = self.queue.count().saturating_sub(self.free() as u64);
            if spare == 0 {
                return Ok(Gift::default());
            }
            // A rank whose slots are all at work gets nothing unless clearly more waits here than
            // there, or near-equals would hand the same tasks to and fro.
            let (count, mine) = (self.queue.count(), self.queue.cost_us(&self.source));
            let ahead = mine.saturating_sub(queued_us);
            let few = mine / count.max(1) * self.slots.max(2) as u64;
            if free == 0 && ahead <= few {
                return Ok(Gift::default());
            }
            let half = (count as f64 * (ahead as f64 / mine.max(1) as f64) / 2.0).ceil() as u64;
            match self.portion(free) {
                // One at a time would take as many steals as tasks.
                Some(portion) if free == 0 => {
                    let portion = portion.max(self.slots as u64 / 2).min(half);
                    self.queue.front(portion.min(spare), self.free(), bodies)
                }
                Some(portion) => self.queue.front(portion.min(spare), self.free(), bodies),
                None => {
                    let cap = if free == 0 && queued_us > mine / 4 { ahead / 2 } else { u64::MAX };
                    self.queue.share(&[cap], self.free(), bodies).pop().unwrap_or_default()
                }
            }
        };
        self.wrap(&mut gift, bodies)?;
        Ok(gift)
    }

    /// Tasks for one rank, where their order is the input's and the ranks are few: a small part of
    /// what waits, the smaller the less there is (guided self-scheduling, Polychronopoulos and Kuck
    /// 1987), so that all ranks keep close to the order of one queue. Else None: half goes.
    fn portion(&self, free: u32) -> Option<u64> {
        if self.is_ordered() || self.alive.len() > GUIDED_RANKS_MAX {
            return None;
        }
        let count = self.queue.count();
        let part = count / (2 * self.alive.len() as u64);
        Some(part.max(u64::from(free).min(count.div_ceil(2))).max(1))
    }

    fn can_run_nothing(&self) -> bool {
        self.slots == 0 && self.knows_slots
    }

    /// Whether ranks tell one another who has the most. Where the longest goes first all do better
    /// to ask at random, since each is to have its share of what is long.
    pub(super) fn is_led(&self) -> bool {
        !self.is_ordered() && self.alive.len() <= GUIDED_RANKS_MAX
    }

    /// Who has the most, as far as is known here.
    pub(super) fn more(&self) -> Option<More> {
        let own = More { rank: self.config.rank, count: self.queue.count() };
        let best = self.thief.hint().into_iter().chain([own]).max_by_key(|more| more.count);
        best.filter(|more| more.count > 0 && self.is_led())
    }

    /// Whether tasks are put in an order of their own.
    pub(super) fn is_ordered(&self) -> bool {
        self.config.longest_first && !self.source.is_uniform()
    }

    /// Gives to whoever left word.
    pub(super) fn feed(&mut self) -> Result<(), String> {
        while let Some(&Hungry { free, bodies, .. }) = self.hungry.front()
            && self.queue.count() > self.free() as u64
        {
            let gifts = if self.can_run_nothing() {
                vec![self.queue.give_all(bodies)]
            } else if let Some(portion) = self.portion(free) {
                vec![self.queue.front(portion, self.free(), bodies)]
            } else {
                let alike = self.hungry.iter().take_while(|hungry| hungry.bodies == bodies);
                let caps = vec![u64::MAX; alike.take(FED_MAX).count()];
                self.queue.share(&caps, self.free(), bodies)
            };
            let mut any = false;
            for mut gift in gifts.into_iter().filter(|gift| !gift.is_empty()) {
                any = true;
                self.wrap(&mut gift, bodies)?;
                let Some(Hungry { rank, .. }) = self.hungry.pop_front() else { break };
                let more = self.more();
                self.outbox.push_back((rank, Message::Give { answer: false, gift, more }));
            }
            if !any {
                break;
            }
        }
        Ok(())
    }

    fn wrap(&mut self, gift: &mut Gift, bodies: bool) -> Result<(), String> {
        self.moves.tasks_out += gift.tasks.len() as u64;
        if bodies {
            for task in gift.tasks.iter_mut().filter(|task| task.body.is_none()) {
                self.source.embed(task)?;
            }
        }
        Ok(())
    }

    pub(super) fn take_in(&mut self, from: Rank, answer: bool, mut gift: Gift) {
        if gift.is_empty() {
            return;
        }
        self.moves.steals_won += 1;
        let (topology, me) = (&self.config.topology, self.config.rank);
        self.moves.steals_near += u64::from(topology.node(from) == topology.node(me));
        self.moves.tasks_in += gift.tasks.len() as u64;
        for task in &mut gift.tasks {
            task.cost_us = self.source.cost_us(task);
        }
        let bodies = !self.config.reads;
        for rank in self.thief.fed(from, !answer) {
            self.outbox.push_back((rank, Message::Hunger { free: 0, bodies }));
        }
        self.queue.add(gift);
    }
}
