//! Whom a rank that runs short asks, and when.
//!
//! First one rank of its own node, then others, each at random: that finds work fast while there is
//! much of it (Blumofe and Leiserson, 1999). When asking found nothing, it leaves word with a few
//! fixed ranks, which pass work on as soon as they have some to spare, and goes quiet (the
//! lifelines of Saraswat et al., 2011): so an idle rank costs nearly nothing and is woken by
//! whoever has work. If nothing comes of that either, it leaves word with many: at the end of a job
//! few have a task more than they can run, and they are seldom among the few fixed ones. Now and
//! then it asks again all the same, ever more rarely, since those few may be busy and without
//! anything to spare while somebody else has plenty.
//!
//! Where the longest tasks go first a rank also asks while it has enough, a few times each time
//! that what it has is halved: ranks that fall behind would begin what is long too late.

use std::time::Duration;

use super::fabric::Topology;
use super::message::More;
use super::tasks::Rank;
use crate::clock::Instant;
use crate::prng::Prng;

/// Ranks asked on the own node, and then on others, before word is left.
const TRIES: u32 = 2;
/// An answer that takes longer comes from a rank that is stalled: another is asked.
const PATIENCE: Duration = Duration::from_millis(20);
/// From leaving word to asking again, the first time; it grows from there.
const BACKOFF: Duration = Duration::from_millis(2);
/// And no longer than this: whom it asks is random, so no rank is asked more often than it asks.
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// It grows so much each time.
const BACKOFF_GROWTH: f64 = 1.5;
/// A rank that waits longer than this asks one other at a time.
const RARE: Duration = Duration::from_millis(100);
/// Word stands with so many at most, once the few that are asked first have none to spare.
const WORD_MAX: usize = 64;
/// Among so few, word is left with everybody.
const FEW: usize = 9;

/// How much a rank needs work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It has enough, or can run nothing.
    None,
    /// It has enough, and somebody else may have too much.
    Level,
    /// What waits will soon be used up.
    Soon,
    /// Slots stand idle.
    Now,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, for now.
    Rest,
    /// Ask this rank.
    Ask(Rank),
    /// Leave word with these.
    LeaveWord(Vec<Rank>),
}

/// A rank's asking.
#[derive(Debug)]
pub struct Thief {
    me: Rank,
    prng: Prng,
    asked: Option<(Rank, Instant)>,
    tries: u32,
    rest_until: Instant,
    backoff: Duration,
    /// It asked before its slots stood idle, found nothing, and left no word.
    silent: bool,
    /// With whom word stands.
    word: Vec<Rank>,
    /// Who is thought to have the most.
    hint: Option<More>,
}

impl Thief {
    /// For one rank; `hint` is thought to have work.
    pub fn new(me: Rank, seed: u64, hint: Option<More>) -> Thief {
        Thief {
            me,
            prng: Prng::new(seed ^ u64::from(me.0) << 20),
            asked: None,
            tries: 0,
            rest_until: Instant::default(),
            backoff: BACKOFF,
            silent: false,
            word: Vec::new(),
            hint,
        }
    }

    /// What to do now. `alive` is in ascending order.
    pub fn step(&mut self, now: Instant, need: Need, topology: &Topology, alive: &[Rank]) -> Step {
        if need == Need::None || alive.len() < 2 {
            return Step::Rest;
        }
        if now < self.rest_until {
            return if need == Need::Now && self.silent { self.speak(alive) } else { Step::Rest };
        }
        if let Some((_, since)) = self.asked {
            if now < since + PATIENCE {
                return Step::Rest;
            }
            self.asked = None;
        }
        if need == Need::Level {
            let others = alive.iter().filter(|rank| **rank != self.me);
            let nth = self.prng.below(alive.len() as u64 - 1) as usize;
            self.asked = others.copied().nth(nth).map(|rank| (rank, now));
            return self.asked.map_or(Step::Rest, |(rank, _)| Step::Ask(rank));
        }
        let all = alive.len() == topology.size() as usize;
        let is_alive = |rank: &Rank| *rank != self.me && (all || alive.binary_search(rank).is_ok());
        let node = topology.members(topology.node(self.me));
        let near = node.iter().filter(|rank| is_alive(rank)).count();
        let far = alive.len() - 1 - near;
        let (mut near_tries, mut far_tries) = (TRIES.min(near as u32), TRIES.min(far as u32));
        if self.backoff > RARE && self.tries == 0 {
            // One will do: there was nothing anywhere for a while.
            let is_far = near == 0 || far > 0 && self.prng.below(4) > 0;
            (near_tries, far_tries) = (u32::from(!is_far), u32::from(is_far));
        } else if self.backoff > RARE {
            (near_tries, far_tries) = (0, 0);
        }
        let hint = self.hint.map(|more| more.rank).filter(|rank| is_alive(rank));
        let is_near = hint.is_some_and(|hint| topology.node(hint) == topology.node(self.me));
        let is_due = self.tries < near_tries + far_tries && (is_near || self.tries >= near_tries);
        if let Some(hint) = hint.filter(|_| is_due) {
            self.hint = None;
            self.tries += 1;
            self.asked = Some((hint, now));
            return Step::Ask(hint);
        }
        if self.tries < near_tries + far_tries {
            let victim = if self.tries < near_tries {
                let nth = self.prng.below(near as u64) as usize;
                node.iter().copied().filter(is_alive).nth(nth)
            } else {
                self.far_rank(topology, alive)
            };
            self.tries += 1;
            self.asked = victim.map(|victim| (victim, now));
            return victim.map_or(Step::Rest, Step::Ask);
        }
        self.tries = 0;
        self.rest_until = now + self.backoff.mul_f64(0.75 + 0.5 * self.prng.unit());
        self.backoff = self.backoff.mul_f64(BACKOFF_GROWTH).min(BACKOFF_MAX);
        self.silent = need == Need::Soon;
        if self.silent { Step::Rest } else { self.speak(alive) }
    }

    /// Leaves word with those with whom it does not stand yet.
    fn speak(&mut self, alive: &[Rank]) -> Step {
        self.silent = false;
        let mut lines = lifelines(self.me, alive);
        lines.retain(|rank| !self.word.contains(rank));
        // Those have heard, and nothing came: whoever has more than it can run is not among them.
        if lines.is_empty() && self.backoff < RARE {
            let first = self.prng.below(alive.len() as u64) as usize;
            let others = alive[first..].iter().chain(&alive[..first]).copied();
            let others = others.filter(|rank| *rank != self.me && !self.word.contains(rank));
            lines.extend(others.take(WORD_MAX.saturating_sub(self.word.len())));
        }
        self.word.extend(&lines);
        if lines.is_empty() { Step::Rest } else { Step::LeaveWord(lines) }
    }

    /// A rank of another node, of which there is one.
    fn far_rank(&mut self, topology: &Topology, alive: &[Rank]) -> Option<Rank> {
        let home = topology.node(self.me);
        for _ in 0..8 {
            let rank = alive[self.prng.below(alive.len() as u64) as usize];
            if topology.node(rank) != home {
                return Some(rank);
            }
        }
        let far = alive.iter().copied().filter(|&rank| topology.node(rank) != home);
        let far: Vec<Rank> = far.collect();
        far.get(self.prng.below(far.len().max(1) as u64) as usize).copied()
    }

    /// A rank has answered, with nothing or with work.
    pub fn answered(&mut self, from: Rank) {
        if self.asked.is_some_and(|(rank, _)| rank == from) {
            self.asked = None;
        }
    }

    /// A rank told who has the most: believed if it speaks of more than this one knows of, or if
    /// the one that was thought to have the most speaks itself.
    pub fn heard(&mut self, from: Rank, more: Option<More>) {
        self.hint = self.hint.filter(|hint| hint.rank != from);
        let known = self.hint.map_or(0, |hint| hint.count);
        self.hint = more.filter(|more| more.rank != self.me && more.count > known).or(self.hint);
    }

    /// Who is thought to have the most, and is asked first.
    pub fn hint(&self) -> Option<More> {
        self.hint
    }

    /// Work has come; with `by_word` because word was left with `from`. Those with whom word still
    /// stands come back: they are to forget it, since a rank that has work is to get no more.
    pub fn fed(&mut self, from: Rank, by_word: bool) -> Vec<Rank> {
        self.tries = 0;
        self.silent = false;
        self.backoff = BACKOFF;
        self.rest_until = Instant::default();
        let mut word = std::mem::take(&mut self.word);
        word.retain(|rank| !by_word || *rank != from);
        word
    }

    /// Ranks died: nobody is asked any more.
    pub fn forget(&mut self) {
        self.asked = None;
        self.hint = None;
        self.fed(self.me, false);
    }

    /// When it wants to be asked again; `FAR` while it waits for nothing.
    pub fn wake_at(&self) -> Instant {
        match self.asked {
            Some((_, since)) => since + PATIENCE,
            None => self.rest_until,
        }
    }
}

/// With whom `me` leaves word: the neighbours in a hypercube, whose diameter is log2 of the ranks.
/// The part of it that has only the first n corners is connected too.
pub fn lifelines(me: Rank, alive: &[Rank]) -> Vec<Rank> {
    let Ok(index) = alive.binary_search(&me) else { return Vec::new() };
    if alive.len() <= FEW {
        return alive.iter().copied().filter(|&rank| rank != me).collect();
    }
    let bits = usize::BITS - (alive.len() - 1).leading_zeros();
    (0..bits).filter_map(|bit| alive.get(index ^ (1 << bit)).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(count: u32) -> Vec<Rank> {
        (0..count).map(Rank).collect()
    }

    #[test]
    fn the_own_node_is_asked_first_then_others_then_word_is_left() {
        let (topology, alive) = (Topology::new(&["a", "a", "b", "b"]), ranks(4));
        let mut thief = Thief::new(Rank(0), 7, None);
        let mut now = Instant(1);
        for expected in [&[1][..], &[2, 3], &[2, 3]] {
            let Step::Ask(rank) = thief.step(now, Need::Now, &topology, &alive) else { panic!() };
            assert!(expected.contains(&rank.0), "{rank}");
            assert_eq!(thief.step(now, Need::Now, &topology, &alive), Step::Rest);
            thief.answered(rank);
        }
        let word = Step::LeaveWord(vec![Rank(1), Rank(2), Rank(3)]);
        assert_eq!(thief.step(now, Need::Now, &topology, &alive), word);
        assert_eq!(thief.step(now, Need::Now, &topology, &alive), Step::Rest);
        now = thief.wake_at();
        assert!(matches!(thief.step(now, Need::Now, &topology, &alive), Step::Ask(_)));
        // Nobody waits for ever for a rank that is stalled.
        now = now + PATIENCE;
        assert!(matches!(thief.step(now, Need::Now, &topology, &alive), Step::Ask(_)));
        assert_eq!(thief.step(now, Need::None, &topology, &alive), Step::Rest);
    }

    #[test]
    fn a_rank_that_levels_asks_one_and_leaves_no_word() {
        let (topology, alive) = (Topology::new(&["a", "b", "b"]), ranks(3));
        let mut thief = Thief::new(Rank(1), 3, None);
        let Step::Ask(rank) = thief.step(Instant(1), Need::Level, &topology, &alive) else {
            panic!()
        };
        assert_eq!(thief.step(Instant(2), Need::Level, &topology, &alive), Step::Rest);
        thief.answered(rank);
        assert!(rank != Rank(1) && thief.word.is_empty() && thief.rest_until == Instant(0));
    }

    #[test]
    fn a_slot_that_falls_idle_while_the_rank_rests_leaves_word_at_once() {
        let (topology, alive) = (Topology::new(&["a", "a", "a"]), ranks(3));
        let mut thief = Thief::new(Rank(0), 7, None);
        while let Step::Ask(rank) = thief.step(Instant(1), Need::Soon, &topology, &alive) {
            thief.answered(rank);
        }
        assert!(thief.word.is_empty() && thief.rest_until > Instant(2));
        let word = Step::LeaveWord(vec![Rank(1), Rank(2)]);
        assert_eq!(thief.step(Instant(2), Need::Now, &topology, &alive), word);
        assert_eq!(thief.step(Instant(2), Need::Now, &topology, &alive), Step::Rest);
    }

    #[test]
    fn who_is_not_fed_leaves_word_with_many() {
        let (topology, alive) = (Topology::new(&[0; 100]), ranks(100));
        let mut thief = Thief::new(Rank(3), 7, None);
        let mut now = Instant(1);
        let mut words = Vec::new();
        for _ in 0..40 {
            match thief.step(now, Need::Now, &topology, &alive) {
                Step::Ask(rank) => thief.answered(rank),
                Step::LeaveWord(ranks) => words.push(ranks),
                Step::Rest => now = thief.wake_at(),
            }
        }
        assert_eq!(words.iter().map(Vec::len).collect::<Vec<_>>(), [7, WORD_MAX - 7]);
        let mut all = words.concat();
        all.sort();
        all.dedup();
        assert!(all.len() == WORD_MAX && !all.contains(&Rank(3)));
        // Once fed, all of them are told to forget it.
        assert_eq!(thief.fed(Rank(50), false).len(), WORD_MAX);
    }

    #[test]
    fn lifelines_reach_everybody() {
        for count in [2, 9, 10, 33, 100] {
            let alive: Vec<Rank> = (0..count).map(|i| Rank(3 * i)).collect();
            let mut reached = vec![alive[0]];
            let mut next = 0;
            while next < reached.len() {
                for rank in lifelines(reached[next], &alive) {
                    if !reached.contains(&rank) {
                        reached.push(rank);
                    }
                }
                next += 1;
            }
            assert_eq!(reached.len(), alive.len());
        }
    }
}
