//! When a job is over: the masses that are done, summed up a tree of the ranks, are the whole.
//!
//! Work that moves changes no sum, and only what is done counts, so no message can be overlooked:
//! there is no need to count those under way (as Safra's algorithm does where tasks make tasks).
//! The sum that the root sees is at most what is true, and reaches it.

use std::time::Duration;

use super::tasks::Rank;
use crate::clock::Instant;

/// Ranks that report to one.
const ARITY: usize = 8;
/// A busy rank reports at most so often.
const PERIOD: Duration = Duration::from_millis(50);

/// A rank's place in the tree.
#[derive(Debug)]
pub struct Quiesce {
    epoch: u32,
    parent: Option<Rank>,
    children: Vec<(Rank, u64)>,
    own: u64,
    told: u64,
    told_at: Instant,
}

impl Quiesce {
    /// For `me` among `alive`, in ascending order.
    pub fn new(me: Rank, alive: &[Rank]) -> Quiesce {
        let mut quiesce = Quiesce {
            epoch: 0,
            parent: None,
            children: Vec::new(),
            own: 0,
            told: 0,
            told_at: Instant::default(),
        };
        quiesce.place(me, alive);
        quiesce
    }

    fn place(&mut self, me: Rank, alive: &[Rank]) {
        let index = alive.iter().position(|&rank| rank == me).unwrap_or(0);
        self.parent = index.checked_sub(1).map(|i| alive[i / ARITY]);
        let first = index * ARITY + 1;
        let children = alive.iter().skip(first).take(ARITY);
        self.children = children.map(|&rank| (rank, 0)).collect();
        self.told = 0;
        self.told_at = Instant::default();
    }

    /// Ranks died: the tree is a new one, and the dead's sums are gone.
    pub fn survivors(&mut self, me: Rank, alive: &[Rank]) {
        self.epoch += 1;
        self.place(me, alive);
    }

    /// Deaths seen.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether this rank is the tree's root.
    pub fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// Ranks that report to this one.
    pub fn children(&self) -> impl Iterator<Item = Rank> {
        self.children.iter().map(|(rank, _)| *rank)
    }

    /// Some mass is done here.
    pub fn add(&mut self, mass: u64) {
        self.own += mass;
    }

    /// A child's sum has come.
    pub fn child(&mut self, from: Rank, epoch: u32, mass: u64) {
        if epoch == self.epoch
            && let Some((_, sum)) = self.children.iter_mut().find(|(rank, _)| *rank == from)
        {
            *sum = mass;
        }
    }

    /// What is done here.
    pub fn own(&self) -> u64 {
        self.own
    }

    /// What is done here and below.
    pub fn sum(&self) -> u64 {
        self.own + self.children.iter().map(|(_, sum)| sum).sum::<u64>()
    }

    /// What is to be told to whom: at once by a rank that is idle, else now and then.
    pub fn report(&mut self, now: Instant, idle: bool) -> Option<(Rank, u64)> {
        let parent = self.parent?;
        let sum = self.sum();
        if sum == self.told || !(idle || now >= self.told_at + PERIOD) {
            return None;
        }
        (self.told, self.told_at) = (sum, now);
        Some((parent, sum))
    }

    /// When a report is due.
    pub fn wake_at(&self) -> Instant {
        let due = self.parent.is_some() && self.sum() != self.told;
        if due { self.told_at + PERIOD } else { Instant::FAR }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_go_up_and_the_dead_are_left_out() {
        let alive: Vec<Rank> = (0..20).map(Rank).collect();
        let mut all: Vec<Quiesce> = alive.iter().map(|&rank| Quiesce::new(rank, &alive)).collect();
        let settle = |all: &mut Vec<Quiesce>, dead: Option<usize>| {
            for i in (0..all.len()).rev().filter(|&i| Some(i) != dead) {
                let epoch = all[i].epoch();
                if let Some((to, sum)) = all[i].report(Instant(1), true) {
                    all[to.0 as usize].child(Rank(i as u32), epoch, sum);
                }
            }
        };
        all.iter_mut().for_each(|q| q.add(10));
        settle(&mut all, None);
        assert!(all[0].is_root() && !all[1].is_root());
        assert_eq!((all[0].sum(), all[1].sum()), (200, 90));
        let alive: Vec<Rank> = alive.into_iter().filter(|&rank| rank != Rank(1)).collect();
        for (i, quiesce) in all.iter_mut().enumerate() {
            quiesce.survivors(Rank(i as u32), &alive);
        }
        settle(&mut all, Some(1));
        assert_eq!(all[0].sum(), 190);
        assert_eq!(all[0].report(Instant(9), true), None);
        all[19].add(1);
        assert_eq!(all[19].report(Instant(2), false), None);
        assert!(all[19].report(Instant(60_000_000), false).is_some());
    }
}
