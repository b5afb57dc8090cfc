//! Which backend serves a request, and when: slots, the queue, health, affinity and the breaker.
//! Pure: it is handed moments and says who may go.
//!
//! One core owns the pool, so the order is one order: waiting requests stand by priority, then
//! arrival. A request goes to the least loaded healthy backend with room for its weight (its number
//! of sequences). One that belongs to a session waits for the session's backend while that is
//! healthy; what stands behind it may go elsewhere, but not ahead of it to the same backend.
//!
//! Invariants: a backend's granted weight never exceeds its slots while these do not shrink; a
//! ticket is granted or refused once, or withdrawn.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Instant;
use crate::net::Token;
use crate::prng;

/// Who asks: a request of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// The core.
    pub core: usize,
    /// The request there.
    pub request: Token,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Who asks.
    pub ticket: Ticket,
    /// Sequences that run at once; 0 for a request that occupies no slot.
    pub weight: u32,
    /// 0 goes first.
    pub priority: u8,
    /// The hash of the session's name, if it has one.
    pub session: Option<u64>,
    /// A backend that has just failed this request: another is taken if one is healthy.
    pub avoid: Option<usize>,
}

/// A place at a backend, to be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whose it is.
    pub ticket: Ticket,
    /// Which backend.
    pub backend: usize,
    /// The slots it takes.
    pub weight: u32,
}

/// Why there is no place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The queue is full; try again after so many seconds.
    QueueFull {
        /// How many wait.
        waiting: usize,
        /// A guess from the rate at which requests leave.
        retry_after_s: u32,
    },
    /// The queue's own timeout passed.
    WaitedTooLong {
        /// How long it was.
        waited: Duration,
    },
    /// No backend is up, and none came up in time.
    NoneUp {
        /// What each said, for a person.
        reason: String,
    },
}

/// What is known of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers, and takes so many sequences at once.
    Up {
        /// `total_slots`, or `--inflight`.
        slots: u32,
    },
    /// It answers that it is loading its model, or it has not been asked yet.
    Loading,
    /// It does not answer.
    Down {
        /// What happened, for a person.
        reason: String,
    },
}

/// How a granted place was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It served the request.
    Served,
    /// The request ended for a reason that says nothing of the backend: cancelled, refused as bad,
    /// a deadline.
    Neutral,
    /// The backend failed: 5xx, a timeout, an answer that broke off.
    Failed,
    /// There is no connection to the backend: down, until the health check finds it up.
    Unreachable,
    /// The backend says that it is loading.
    Loading,
}

/// Bounds of the pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Requests that may wait.
    pub queue_max: usize,
    /// How long each may wait.
    pub queue_timeout: Duration,
    /// How long a request waits while every backend is down.
    pub unavailable_timeout: Duration,
}

/// Backends, their places, and who waits for one.
#[derive(Debug)]
pub struct Pool {
    config: PoolConfig,
    members: Vec<Member>,
    waiting: BTreeMap<(u8, u64), Waiter>,
    keys: HashMap<Ticket, (u8, u64)>,
    arrivals: u64,
    /// When the last places were given back, newest last: the rate at which the queue moves.
    departures: VecDeque<Instant>,
}

#[derive(Debug)]
struct Member {
    name: String,
    health: Health,
    used: u32,
    breaker: Breaker,
}

#[derive(Debug)]
struct Waiter {
    ask: Ask,
    since: Instant,
}

/// Keeps requests from a backend that fails each: closed, open for a while, then one request as a
/// probe.
#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    open_until: Instant,
    probing: bool,
}

/// Failures in a row that open the breaker. A client's fault (4xx) is none of them.
const BREAKER_FAILURES: u32 = 5;
/// How long the breaker stays open the first time; it doubles from there.
const BREAKER_OPEN: Duration = Duration::from_millis(500);
/// And no longer than this: a backend that came back must not be left idle for minutes.
const BREAKER_OPEN_MAX: Duration = Duration::from_secs(10);
/// Departures that the rate is taken from.
const DEPARTURES_MAX: usize = 64;

impl Pool {
    /// A pool of the named backends, which all count as loading until told otherwise.
    pub fn new(config: PoolConfig, names: &[String]) -> Pool {
        let member = |name: &String| Member {
            name: name.clone(),
            health: Health::Loading,
            used: 0,
            breaker: Breaker::default(),
        };
        Pool {
            config,
            members: names.iter().map(member).collect(),
            waiting: BTreeMap::new(),
            keys: HashMap::new(),
            arrivals: 0,
            departures: VecDeque::new(),
        }
    }

    /// Grants a place, or lets the request wait (`Ok(None)`), or refuses it.
    ///
    /// # Errors
    /// The queue is full.
    pub fn acquire(&mut self, now: Instant, ask: Ask) -> Result<Option<Grant>, Refusal> {
        debug_assert!(!self.keys.contains_key(&ask.ticket));
        // Nobody overtakes, unless it takes no slot.
        if (self.waiting.is_empty() || ask.weight == 0)
            && let Some(backend) = self.choose(now, &ask, &mut vec![false; self.members.len()])
        {
            return Ok(Some(self.grant(&ask, backend)));
        }
        if self.waiting.len() >= self.config.queue_max {
            let waiting = self.waiting.len();
            let seconds = self.eta(now, waiting).map_or(1, |eta| eta.as_secs() + 1);
            let retry_after_s = u32::try_from(seconds.min(60)).unwrap_or(60);
            return Err(Refusal::QueueFull { waiting, retry_after_s });
        }
        self.arrivals += 1;
        let key = (ask.priority, self.arrivals);
        self.keys.insert(ask.ticket, key);
        self.waiting.insert(key, Waiter { ask, since: now });
        // Whoever is ahead may be bound elsewhere or stand lower: `next_grant` finds out.
        Ok(None)
    }

    /// Takes a waiting request out; false if it does not wait (any more).
    pub fn withdraw(&mut self, ticket: Ticket) -> bool {
        match self.keys.remove(&ticket) {
            Some(key) => self.waiting.remove(&key).is_some(),
            None => false,
        }
    }

    /// Gives a place back.
    pub fn release(&mut self, now: Instant, backend: usize, weight: u32, outcome: Outcome) {
        let member = &mut self.members[backend];
        assert!(member.used >= weight, "more places were given back than granted");
        member.used -= weight;
        match outcome {
            Outcome::Served => member.breaker = Breaker::default(),
            Outcome::Neutral => member.breaker.probing = false,
            Outcome::Failed => member.breaker.failed(now),
            Outcome::Loading => member.health = Health::Loading,
            Outcome::Unreachable => {
                let reason = "no connection".to_owned();
                member.health = Health::Down { reason };
            }
        }
        if weight > 0 {
            if self.departures.len() == DEPARTURES_MAX {
                self.departures.pop_front();
            }
            self.departures.push_back(now);
        }
    }

    /// Notes what the health check found. A backend that comes up starts with a clean slate.
    pub fn set_health(&mut self, backend: usize, health: Health) {
        let member = &mut self.members[backend];
        let was_up = matches!(member.health, Health::Up { .. });
        if matches!(health, Health::Up { .. }) && !was_up {
            member.breaker = Breaker::default();
        }
        member.health = health;
    }

    /// Grants what can be granted now, in order; call it after a release or a change of health,
    /// until None.
    pub fn next_grant(&mut self, now: Instant) -> Option<Grant> {
        if self.waiting.is_empty() {
            return None;
        }
        let mut blocked = vec![false; self.members.len()];
        let mut found = None;
        for (&key, waiter) in &self.waiting {
            if let Some(backend) = self.choose(now, &waiter.ask, &mut blocked) {
                found = Some((key, waiter.ask, backend));
                break;
            }
            if blocked.iter().all(|&b| b) {
                break;
            }
        }
        let (key, ask, backend) = found?;
        self.waiting.remove(&key);
        self.keys.remove(&ask.ticket);
        Some(self.grant(&ask, backend))
    }

    /// Refuses one request that has waited too long; call it now and then, until None.
    pub fn next_refusal(&mut self, now: Instant) -> Option<(Ticket, Refusal)> {
        let all_down = self.members.iter().all(|m| matches!(m.health, Health::Down { .. }));
        let bound = if all_down {
            self.config.unavailable_timeout.min(self.config.queue_timeout)
        } else {
            self.config.queue_timeout
        };
        let (&key, waiter) =
            self.waiting.iter().find(|(_, waiter)| now.since(waiter.since) >= bound)?;
        let (ticket, waited) = (waiter.ask.ticket, now.since(waiter.since));
        self.waiting.remove(&key);
        self.keys.remove(&ticket);
        let refusal = if all_down {
            Refusal::NoneUp { reason: self.reasons() }
        } else {
            Refusal::WaitedTooLong { waited }
        };
        Some((ticket, refusal))
    }

    /// Who waits, in order, each with the guess of how long it will yet.
    pub fn positions(&self, now: Instant) -> impl Iterator<Item = (Ticket, u32, Option<Duration>)> {
        (1u32..).zip(self.waiting.values()).map(move |(position, waiter)| {
            (waiter.ask.ticket, position, self.eta(now, position as usize))
        })
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a backend would take a request, now or when it has a free slot.
    pub fn is_any_up(&self) -> bool {
        self.members.iter().any(|m| matches!(m.health, Health::Up { .. }))
    }

    /// Per backend: name, slots (0: not up), slots in use, whether the breaker keeps requests away.
    pub fn members(&self, now: Instant) -> impl Iterator<Item = (&str, u32, u32, bool)> {
        self.members.iter().map(move |m| {
            let slots = if let Health::Up { slots } = m.health { slots } else { 0 };
            (m.name.as_str(), slots, m.used, m.breaker.is_open(now))
        })
    }

    /// What keeps the backends from serving, for a person.
    fn reasons(&self) -> String {
        let of = |member: &Member| match &member.health {
            Health::Down { reason } => format!("{}: {reason}", member.name),
            Health::Loading => format!("{}: loading", member.name),
            Health::Up { .. } => format!("{}: up", member.name),
        };
        self.members.iter().map(of).collect::<Vec<_>>().join("; ")
    }

    /// When `position` requests will have left, by the latest departures.
    fn eta(&self, now: Instant, position: usize) -> Option<Duration> {
        let oldest = self.departures.front()?;
        let span = now.since(*oldest).max(Duration::from_millis(1));
        let each = span / u32::try_from(self.departures.len()).unwrap_or(u32::MAX);
        Some(each.saturating_mul(u32::try_from(position).unwrap_or(u32::MAX)))
    }

    /// The backend for `ask`, of those not `blocked`. When there is none, those it waits for are
    /// blocked for whoever stands behind it.
    fn choose(&self, now: Instant, ask: &Ask, blocked: &mut [bool]) -> Option<usize> {
        let usable = |i: usize| {
            let member = &self.members[i];
            matches!(member.health, Health::Up { .. }) && member.breaker.lets_through(now)
        };
        let healthy: Vec<usize> = (0..self.members.len()).filter(|&i| usable(i)).collect();
        let fresh: Vec<usize> = healthy.iter().copied().filter(|&i| ask.avoid != Some(i)).collect();
        let mut candidates = if fresh.is_empty() { healthy } else { fresh };
        if let Some(session) = ask.session {
            // Rendezvous hashing (Thaler and Ravishankar, 1998): a backend that comes or goes moves
            // only its own sessions.
            let score = |&i: &usize| prng::hash(session, self.members[i].name.as_bytes());
            candidates = candidates.iter().copied().max_by_key(score).into_iter().collect();
        }
        let room = |&i: &usize| !blocked[i] && self.members[i].room_for(ask.weight);
        let load = |&i: &usize| self.members[i].load();
        let best = candidates.iter().copied().filter(room).min_by_key(load);
        if best.is_none() {
            candidates.iter().for_each(|&i| blocked[i] = true);
            if candidates.is_empty() {
                // Nothing is healthy: nobody behind it can go either.
                blocked.fill(true);
            }
        }
        best
    }

    fn grant(&mut self, ask: &Ask, backend: usize) -> Grant {
        let member = &mut self.members[backend];
        let Health::Up { slots } = member.health else { unreachable!("only what is up is chosen") };
        let weight = ask.weight.min(slots);
        member.used += weight;
        if member.breaker.failures >= BREAKER_FAILURES {
            member.breaker.probing = true;
        }
        Grant { ticket: ask.ticket, backend, weight }
    }
}

impl Member {
    /// A request heavier than the backend goes when that is idle.
    fn room_for(&self, weight: u32) -> bool {
        match self.health {
            Health::Up { slots } => self.used + weight.min(slots) <= slots,
            _ => false,
        }
    }

    /// In use, in parts of 2^16 of its slots.
    fn load(&self) -> u64 {
        match self.health {
            Health::Up { slots } => (u64::from(self.used) << 16) / u64::from(slots.max(1)),
            _ => u64::MAX,
        }
    }
}

impl Breaker {
    fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.probing = false;
        if let Some(times) = self.failures.checked_sub(BREAKER_FAILURES) {
            let open = BREAKER_OPEN.saturating_mul(1 << times.min(10)).min(BREAKER_OPEN_MAX);
            self.open_until = now + open;
        }
    }

    fn is_open(&self, now: Instant) -> bool {
        self.failures >= BREAKER_FAILURES && (now < self.open_until || self.probing)
    }

    fn lets_through(&self, now: Instant) -> bool {
        !self.is_open(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    const CONFIG: PoolConfig = PoolConfig {
        queue_max: 4,
        queue_timeout: Duration::from_secs(60),
        unavailable_timeout: Duration::from_secs(5),
    };

    fn pool(slots: &[u32]) -> Pool {
        let names: Vec<String> = (0..slots.len()).map(|i| format!("b{i}")).collect();
        let mut pool = Pool::new(CONFIG, &names);
        for (i, &slots) in slots.iter().enumerate() {
            pool.set_health(i, Health::Up { slots });
        }
        pool
    }

    fn ask(request: u64) -> Ask {
        let ticket = Ticket { core: 0, request: Token(request) };
        Ask { ticket, weight: 1, priority: 128, session: None, avoid: None }
    }

    fn granted(pool: &mut Pool, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| pool.next_grant(now)).map(|g| g.ticket.request.0).collect()
    }

    #[test]
    fn the_least_loaded_serves_and_the_rest_wait_in_order() {
        let (mut pool, now) = (pool(&[1, 2]), Instant(1));
        let backends: Vec<usize> =
            (0..3).map(|i| pool.acquire(now, ask(i)).unwrap().unwrap().backend).collect();
        assert_eq!(backends, [0, 1, 1]);
        assert_eq!(pool.acquire(now, ask(3)), Ok(None));
        assert_eq!(pool.acquire(now, Ask { priority: 1, ..ask(4) }), Ok(None));
        assert_eq!(pool.acquire(now, ask(5)), Ok(None));
        assert!(pool.withdraw(ask(3).ticket) && !pool.withdraw(ask(3).ticket));
        assert_eq!(granted(&mut pool, now), [] as [u64; 0]);
        pool.release(now, 1, 1, Outcome::Served);
        assert_eq!(granted(&mut pool, now), [4]);
        pool.release(now, 0, 1, Outcome::Neutral);
        assert_eq!(granted(&mut pool, now), [5]);
        assert_eq!(pool.waiting(), 0);
    }

    #[test]
    fn the_queue_is_bounded_and_says_when_to_come_back() {
        let (mut pool, now) = (pool(&[1]), Instant(1));
        pool.acquire(now, ask(0)).unwrap().unwrap();
        for i in 1..=4 {
            assert_eq!(pool.acquire(now, ask(i)), Ok(None));
        }
        let refusal = pool.acquire(now, ask(9)).unwrap_err();
        assert_eq!(refusal, Refusal::QueueFull { waiting: 4, retry_after_s: 1 });
        // What takes no slot is not held up.
        assert!(pool.acquire(now, Ask { weight: 0, ..ask(10) }).unwrap().is_some());
        let later = now + CONFIG.queue_timeout;
        let refused: Vec<_> = std::iter::from_fn(|| pool.next_refusal(later)).collect();
        assert_eq!(refused.len(), 4);
        assert!(matches!(refused[0].1, Refusal::WaitedTooLong { .. }));
    }

    #[test]
    fn a_heavy_request_is_not_overtaken_for_ever() {
        let (mut pool, now) = (pool(&[4]), Instant(1));
        pool.acquire(now, Ask { weight: 3, ..ask(0) }).unwrap().unwrap();
        assert_eq!(pool.acquire(now, Ask { weight: 9, ..ask(1) }), Ok(None));
        assert_eq!(pool.acquire(now, ask(2)), Ok(None));
        assert_eq!(granted(&mut pool, now), [] as [u64; 0]);
        pool.release(now, 0, 3, Outcome::Served);
        let heavy = pool.next_grant(now).unwrap();
        assert_eq!((heavy.ticket.request.0, heavy.weight), (1, 4));
        assert_eq!(pool.next_grant(now), None);
    }

    #[test]
    fn a_session_keeps_its_backend_and_blocks_nobody_else() {
        let (mut pool, now) = (pool(&[1, 1]), Instant(1));
        let mine = Ask { session: Some(77), ..ask(0) };
        let home = pool.acquire(now, mine).unwrap().unwrap().backend;
        let mine_too = Ask { session: Some(77), ..ask(1) };
        assert_eq!(pool.acquire(now, mine_too), Ok(None));
        assert_eq!(pool.acquire(now, ask(2)), Ok(None));
        let other = pool.next_grant(now).unwrap();
        assert_eq!((other.ticket.request.0, other.backend), (2, 1 - home));
        pool.release(now, 1 - home, 1, Outcome::Served);
        assert_eq!(pool.next_grant(now), None);
        pool.set_health(home, Health::Down { reason: "gone".into() });
        assert_eq!(pool.next_grant(now).unwrap().backend, 1 - home);
    }

    #[test]
    fn a_breaker_opens_probes_and_heals() {
        let (mut pool, mut now) = (pool(&[8]), Instant(1));
        for i in 0..u64::from(BREAKER_FAILURES) {
            pool.acquire(now, ask(i)).unwrap().unwrap();
            pool.release(now, 0, 1, Outcome::Failed);
        }
        assert_eq!(pool.acquire(now, ask(20)), Ok(None));
        assert_eq!(pool.acquire(now, ask(21)), Ok(None));
        now = now + BREAKER_OPEN;
        assert_eq!(granted(&mut pool, now), [20], "one probe");
        pool.release(now, 0, 1, Outcome::Failed);
        assert_eq!(granted(&mut pool, now + BREAKER_OPEN), [] as [u64; 0], "twice as long");
        now = now + BREAKER_OPEN * 2;
        assert_eq!(granted(&mut pool, now), [21]);
        pool.release(now, 0, 1, Outcome::Served);
        assert!(pool.acquire(now, ask(22)).unwrap().is_some());
    }

    #[test]
    fn while_none_is_up_requests_wait_a_little() {
        let (mut pool, now) = (pool(&[1]), Instant(1));
        pool.set_health(0, Health::Down { reason: "connection refused".into() });
        assert_eq!(pool.acquire(now, ask(1)), Ok(None));
        assert_eq!(pool.next_refusal(now), None);
        let (_, refusal) = pool.next_refusal(now + CONFIG.unavailable_timeout).unwrap();
        assert_eq!(refusal, Refusal::NoneUp { reason: "b0: connection refused".into() });
        // While it loads, the queue's own timeout holds.
        pool.set_health(0, Health::Loading);
        assert_eq!(pool.acquire(now, ask(2)), Ok(None));
        assert_eq!(pool.next_refusal(now + CONFIG.unavailable_timeout), None);
    }

    #[test]
    fn a_failed_backend_is_avoided_if_there_is_another() {
        let (mut pool, now) = (pool(&[4, 4]), Instant(1));
        let grant = pool.acquire(now, Ask { avoid: Some(0), ..ask(1) }).unwrap().unwrap();
        assert_eq!(grant.backend, 1);
        pool.set_health(1, Health::Loading);
        let grant = pool.acquire(now, Ask { avoid: Some(0), ..ask(2) }).unwrap().unwrap();
        assert_eq!(grant.backend, 0);
    }

    #[test]
    fn never_more_than_the_slots_whatever_happens() {
        let mut prng = Prng::new(11);
        for _ in 0..200 {
            let slots = [1 + prng.below(4) as u32, 1 + prng.below(4) as u32];
            let (mut pool, mut held) = (pool(&slots), Vec::<Grant>::new());
            let (mut waiting, mut now) = (0usize, Instant(1));
            for request in 0..300 {
                now = now + Duration::from_millis(prng.below(50));
                if prng.below(2) == 0 {
                    let weight = prng.below(6) as u32;
                    let session = (prng.below(3) == 0).then(|| prng.below(4));
                    let ask = Ask { weight, session, ..ask(request) };
                    match pool.acquire(now, ask) {
                        Ok(Some(grant)) => held.push(grant),
                        Ok(None) => waiting += 1,
                        Err(_) => {}
                    }
                } else if !held.is_empty() {
                    let grant = held.swap_remove(prng.below(held.len() as u64) as usize);
                    pool.release(now, grant.backend, grant.weight, Outcome::Served);
                }
                while let Some(grant) = pool.next_grant(now) {
                    held.push(grant);
                    waiting -= 1;
                }
                for (backend, &slots) in slots.iter().enumerate() {
                    let of = held.iter().filter(|g| g.backend == backend);
                    assert!(of.map(|g| g.weight).sum::<u32>() <= slots);
                }
                assert_eq!(pool.waiting(), waiting);
                assert!(held.len() + waiting == 0 || !held.is_empty(), "idle, yet somebody waits");
            }
        }
    }
}
