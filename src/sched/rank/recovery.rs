//! After a death: the survivors tell the root what they have done and what they hold; what nobody
//! knows of was lost, and the root takes it on.
//!
//! What the root puts in while they tell is no part of it: nobody knows of that yet either.

use super::super::ledger;
use super::super::message::Message;
use super::super::tasks::{Rank, Source, Span};
use super::{Core, Over, RankConfig};

/// At the root: what the survivors have told.
#[derive(Debug)]
pub struct Recovery {
    /// The mass that had been put in when the word of the death came, if it is known.
    whole: Option<u64>,
    known: Vec<Span>,
    /// Who has yet to tell.
    waiting: Vec<Rank>,
}

/// Spans in one part of what a survivor tells.
const HELD_SPANS_MAX: usize = 4096;

impl<S: Source> Core<S> {
    /// Ranks died, and these are left, in ascending order. What was under way is lost; the lowest
    /// that is left finds out what nobody knows of, and takes it on.
    pub fn survivors(&mut self, alive: Vec<Rank>) {
        let me = self.config.rank;
        self.quiesce.survivors(me, &alive);
        self.outbox.clear();
        self.hungry.clear();
        self.thief.forget();
        let root = alive[0];
        self.alive = alive;
        if self.over == Some(Over::Done) {
            // Whoever knows says so to all: the word may have been lost on its way down the tree.
            let others = self.alive.iter().filter(|&&rank| rank != me);
            self.outbox.extend(others.map(|&rank| (rank, Message::Stop)));
            return;
        }
        let done = self.ledger.spans();
        let mut held: Vec<Span> = self.queue.spans().to_vec();
        let range = |at: u64, mass: u32| Span { start: at, end: at + u64::from(mass), stride: 1 };
        held.extend(self.queue.tasks().map(|task| range(task.at, task.mass)));
        held.extend(self.hands.iter().map(|(&at, &mass)| range(at, mass)));
        if root == me {
            let others = self.alive[1..].to_vec();
            let put_in = (me == Rank(0)).then_some(self.granted);
            let whole = self.config.whole.or(put_in);
            self.recovery = Some(Recovery { whole, known: Vec::new(), waiting: others });
            self.heard_of(me, true, [done, held].concat());
            return;
        }
        self.recovery = None;
        let epoch = self.quiesce.epoch();
        let parts = done.len().div_ceil(HELD_SPANS_MAX) + held.len().div_ceil(HELD_SPANS_MAX);
        let (mut done, mut held) = (done.chunks(HELD_SPANS_MAX), held.chunks(HELD_SPANS_MAX));
        for part in 0..parts.max(1) {
            let done = done.next().unwrap_or_default().to_vec();
            let rest = if done.is_empty() { held.next() } else { None };
            let held = rest.unwrap_or_default().to_vec();
            let last = part + 1 == parts.max(1);
            self.outbox.push_back((root, Message::Held { epoch, last, done, held }));
        }
    }

    /// At the root: a survivor has told what it knows.
    pub(super) fn heard_of(&mut self, from: Rank, last: bool, spans: Vec<Span>) {
        let Some(recovery) = &mut self.recovery else { return };
        recovery.known.extend(spans);
        if last {
            recovery.waiting.retain(|rank| *rank != from);
        }
        if !recovery.waiting.is_empty() {
            return;
        }
        let Some(Recovery { whole, known, .. }) = self.recovery.take() else { return };
        let RankConfig { bytes, reads, .. } = self.config;
        match whole {
            Some(whole) if reads || !bytes => self.add(ledger::missing(&known, whole, bytes)),
            _ => self.request_halt(false, "rank 0 died, and nobody else can read the input"),
        }
    }
}
