//! The MPI fabric, under a real mpirun: each rank runs its half of every test. `scripts/mpi.sh`
//! starts it; by itself, as `cargo test` does it, it has nothing to test.
//!
//! ```text
//! mpirun -np 4 mpi                               conformance, and what it costs
//! mpirun --with-ft mpi -np 4 mpi --kill 1,2      ranks 1 and 2 die, one after the other
//!     --apart-ms N     between two deaths (0)
//!     --in-shrink      the later ones die while they shrink after the first
//!     --in-close       they die while the others close
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cnse::prng::Prng;
use cnse::sched::fabric::{Arrival, Fabric, Full};
use cnse::sched::launcher::Launched;
use cnse::sched::message::Message;
use cnse::sched::mpi::MpiFabric;
use cnse::sched::tasks::{Rank, Span};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// Messages from each rank to each other one.
const COUNT: u32 = 120;
const LEN_MAX: u64 = 2 << 20;
/// Nothing here takes so long, on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(120);

static PASSED: AtomicU32 = AtomicU32::new(0);

fn main() {
    let mut plan = Plan::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--kill" => {
                let list = args.next().expect("--kill R[,R]");
                plan.victims = list.split(',').map(|r| Rank(r.parse().expect("a rank"))).collect();
            }
            "--apart-ms" => plan.apart_ms = args.next().unwrap().parse().expect("milliseconds"),
            "--in-shrink" => plan.in_shrink = true,
            "--in-close" => plan.in_close = true,
            // What cargo hands to every test.
            _ => {}
        }
    }
    let Some(launched) = Launched::from_environment().expect("a launcher that is understood")
    else {
        println!("skipped: no mpirun started this (scripts/mpi.sh does)\n0 passed; 0 failed");
        return;
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        hook(info);
        println!("{} passed; 1 failed", PASSED.load(Ordering::Relaxed));
    }));
    let fabric = match MpiFabric::open(&launched) {
        Ok(fabric) => fabric,
        Err(text) => {
            eprintln!("error: {text}");
            println!("0 passed; 1 failed");
            std::process::exit(1);
        }
    };
    assert!(fabric.waker().is_none(), "MPI has nothing that wakes");
    let mut end = End::new(fabric);
    let speaks = if plan.victims.is_empty() { conformance(&mut end) } else { end.survive(&plan) };
    end.close();
    if speaks {
        println!("{} passed; 0 failed", PASSED.load(Ordering::Relaxed));
    }
}

fn conformance(end: &mut End) -> bool {
    let speaks = end.me() == 0;
    let topology = end.fabric.topology().clone();
    let names = end.fabric.node_names().to_vec();
    assert_eq!(topology.nodes(), names.len());
    if speaks {
        println!("{} ranks, {}, on {names:?}", end.size(), end.fabric.library());
    }
    end.test("all to all, of all sizes", |end| {
        end.all_to_all(COUNT, |from, to, number| {
            let mut prng = Prng::new(u64::from(from * 1000 + to) << 32 | u64::from(number));
            let len = match number % 20 {
                0 => prng.below(LEN_MAX + 1),
                1 => [0, 1, LEN_MAX][prng.below(3) as usize],
                2..6 => prng.below(64 << 10),
                _ => prng.below(256),
            };
            Message::Job(vec![(from * 31 + to * 17 + number) as u8; len as usize])
        });
    });
    end.test("all to all, small and many", |end| {
        end.all_to_all(3_000, |from, to, number| Message::Ask {
            free: number,
            queued_us: u64::from(from),
            bodies: to % 2 == 0,
        });
    });
    end.test("a window fills, and nothing blocks or is lost", End::windows);
    end.test("both ways at once, of 2 MiB each", |end| {
        end.all_to_all(8, |from, to, number| {
            Message::Job(vec![(from + to + number) as u8; LEN_MAX as usize])
        });
    });
    end.ping_pong();
    end.empty_polls();
    speaks
}

/// Which ranks die, and when.
#[derive(Default)]
struct Plan {
    victims: Vec<Rank>,
    apart_ms: u64,
    in_shrink: bool,
    in_close: bool,
}

/// A rank's end, and what has arrived there by sender.
struct End {
    fabric: MpiFabric,
    inbox: Vec<VecDeque<Message>>,
    barriers: u32,
}

impl End {
    fn new(fabric: MpiFabric) -> End {
        let inbox = (0..fabric.topology().size()).map(|_| VecDeque::new()).collect();
        End { fabric, inbox, barriers: 0 }
    }

    fn me(&self) -> u32 {
        self.fabric.rank().0
    }

    fn size(&self) -> u32 {
        self.fabric.topology().size()
    }

    fn others(&self) -> impl Iterator<Item = u32> + use<> {
        let me = self.me();
        (0..self.size()).filter(move |&rank| rank != me)
    }

    fn test(&mut self, name: &str, body: impl FnOnce(&mut End)) {
        let started = Instant::now();
        body(self);
        self.barrier();
        PASSED.fetch_add(1, Ordering::Relaxed);
        if self.me() == 0 {
            println!("ok: {name} ({:.2} s)", started.elapsed().as_secs_f64());
        }
    }

    fn poll(&mut self) -> bool {
        match self.fabric.poll() {
            Some(Arrival::Message(from, message)) => {
                assert_ne!(from.0, self.me());
                self.inbox[from.0 as usize].push_back(message);
                true
            }
            Some(other) => panic!("{other:?}"),
            None => false,
        }
    }

    fn send(&mut self, to: u32, mut message: Message) {
        let started = Instant::now();
        while let Err(Full(back)) = self.fabric.send(Rank(to), message) {
            message = back;
            self.poll();
            assert!(started.elapsed() < PATIENCE, "rank {to} takes nothing");
        }
    }

    fn take(&mut self, from: u32, nap: Duration) -> Message {
        let started = Instant::now();
        loop {
            if let Some(message) = self.inbox[from as usize].pop_front() {
                return message;
            }
            if !self.poll() && !nap.is_zero() {
                std::thread::sleep(nap);
            }
            assert!(started.elapsed() < PATIENCE, "nothing comes from rank {from}");
        }
    }

    /// Also sees that nothing else is left over.
    fn barrier(&mut self) {
        self.barriers += 1;
        let word = Message::Done { epoch: self.barriers, mass: 0 };
        for to in self.others() {
            self.send(to, word.clone());
        }
        for from in self.others() {
            assert_eq!(self.take(from, Duration::from_millis(1)), word, "from rank {from}");
        }
    }

    fn all_to_all(&mut self, count: u32, message: impl Fn(u32, u32, u32) -> Message) {
        let me = self.me();
        let mut sent = vec![0; self.size() as usize];
        let mut seen = vec![0; self.size() as usize];
        let started = Instant::now();
        let all = self.others().count() as u32 * count;
        while sent.iter().sum::<u32>() < all || seen.iter().sum::<u32>() < all {
            for to in self.others() {
                let next = &mut sent[to as usize];
                while *next < count {
                    match self.fabric.send(Rank(to), message(me, to, *next)) {
                        Ok(()) => *next += 1,
                        Err(Full(back)) => {
                            assert_eq!(back, message(me, to, *next), "another one came back");
                            break;
                        }
                    }
                }
            }
            while self.poll() {}
            for from in self.others() {
                let seen = &mut seen[from as usize];
                while *seen < count
                    && let Some(next) = self.inbox[from as usize].pop_front()
                {
                    let fine = next == message(from, me, *seen);
                    assert!(fine, "rank {me} from {from}, number {seen}: order or loss");
                    *seen += 1;
                }
            }
            assert!(started.elapsed() < PATIENCE, "sent {sent:?}, seen {seen:?} of {count}");
            std::thread::yield_now();
        }
    }

    /// Rank 0 sends until the windows of all others are full, of whom none looks.
    fn windows(&mut self) {
        for len in [10usize, LEN_MAX as usize, 5 << 20] {
            let message = Message::Job(vec![7; len]);
            if self.me() == 0 {
                let mut taken = vec![0u32; self.size() as usize];
                let started = Instant::now();
                for to in self.others() {
                    while self.fabric.send(Rank(to), message.clone()).is_ok() {
                        taken[to as usize] += 1;
                    }
                }
                let expected = if len == 10 { 64 } else { (4 << 20) / len as u32 + 1 };
                let fine = |&to: &u32| (1..=expected).contains(&taken[to as usize]);
                assert!(self.others().all(|to| fine(&to)), "{taken:?} of {len} bytes");
                assert!(started.elapsed() < Duration::from_secs(5), "a send blocked");
                for to in self.others() {
                    self.send(to, Message::Done { epoch: 0, mass: taken[to as usize].into() });
                }
            } else {
                std::thread::sleep(Duration::from_millis(100));
                let mut seen = 0;
                loop {
                    match self.take(0, Duration::ZERO) {
                        Message::Done { mass, .. } => {
                            assert_eq!(mass, seen);
                            break;
                        }
                        other => assert_eq!(other, message),
                    }
                    seen += 1;
                }
            }
            self.barrier();
        }
    }

    fn ping_pong(&mut self) {
        const ROUNDS: usize = 2_000;
        for len in [64usize, 4 << 10, 128 << 10] {
            let other = match self.me() {
                _ if self.size() < 2 => break,
                0 => 1,
                1 => 0,
                _ => {
                    self.barrier();
                    continue;
                }
            };
            let mut one_way_us = Vec::with_capacity(ROUNDS);
            for _ in 0..ROUNDS {
                let started = Instant::now();
                if other == 1 {
                    self.send(1, Message::Job(vec![1; len]));
                    self.spin(1);
                    one_way_us.push(started.elapsed().as_secs_f64() * 1e6 / 2.0);
                } else {
                    self.spin(0);
                    self.send(0, Message::Job(vec![1; len]));
                }
            }
            if other == 1 {
                one_way_us.sort_by(f64::total_cmp);
                let at = |share: f64| one_way_us[(ROUNDS as f64 * share) as usize];
                let (half, most) = (at(0.5), at(0.99));
                println!("one way, {len} bytes: p50 {half:.1} us, p99 {most:.1} us");
            }
            self.barrier();
        }
    }

    fn spin(&mut self, from: u32) {
        while self.inbox[from as usize].is_empty() {
            if !self.poll() {
                std::thread::yield_now();
            }
        }
        self.inbox[from as usize].pop_front();
    }

    fn empty_polls(&mut self) {
        const POLLS: u32 = 20_000;
        self.barrier();
        if self.me() == 0 {
            let busy_us = || {
                let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
                usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
            };
            let before = busy_us();
            for _ in 0..POLLS {
                // All but a few are empty: the others' words that they wait.
                self.poll();
            }
            let spent = (busy_us() - before) as f64 / f64::from(POLLS);
            println!("an empty poll: {spent:.2} us of CPU");
        }
        self.barrier();
    }

    fn close(mut self) {
        let started = Instant::now();
        while !self.fabric.close() {
            std::thread::sleep(Duration::from_micros(200));
            assert!(started.elapsed() < PATIENCE / 4, "it does not close");
        }
        assert!(self.fabric.close() && self.fabric.poll().is_none());
    }

    /// Messages between all, numbered anew after each death, until all who are to die have died and
    /// those who are left have heard enough of one another.
    fn survive(&mut self, plan: &Plan) -> bool {
        assert!(self.fabric.survives(), "started without --with-ft mpi, or no Open MPI 5");
        let me = Rank(self.me());
        let mut alive: Vec<Rank> = (0..self.size()).map(Rank).collect();
        let left = alive.len() - if plan.in_close { 0 } else { plan.victims.len() };
        let mut epoch = 0;
        let mut talks = vec![Talk::default(); alive.len()];
        let started = Instant::now();
        let watched = die(plan, me);
        loop {
            let is_over = alive.len() == left;
            for &to in alive.iter().filter(|&&rank| rank != me) {
                talks[to.0 as usize].speak(&mut self.fabric, to, epoch, is_over);
            }
            watched.store(started.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
            let arrival = self.fabric.poll();
            watched.store(0, Ordering::Relaxed);
            match arrival {
                Some(Arrival::Message(from, message)) => {
                    assert!(alive.contains(&from), "the dead speak");
                    talks[from.0 as usize].hear(message, epoch);
                }
                Some(Arrival::Survivors(list)) => {
                    assert!(list.is_sorted() && list.contains(&me), "{list:?}");
                    assert!(list.iter().all(|rank| alive.contains(rank)), "{list:?}");
                    let at_ms = started.elapsed().as_millis();
                    println!("rank {me}: {list:?} are left, after {at_ms} ms");
                    // Those that close already say no more.
                    if plan.in_close {
                        break;
                    }
                    (alive, epoch) = (list, epoch + 1);
                    talks.fill(Talk::default());
                }
                Some(other) => panic!("{other:?}"),
                None => std::thread::sleep(Duration::from_micros(100)),
            }
            let ended = |rank: &Rank| *rank == me || talks[rank.0 as usize].is_over();
            if is_over && alive.iter().all(ended) {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{alive:?} are left, {left} should; {talks:?}");
        }
        PASSED.fetch_add(1, Ordering::Relaxed);
        println!("rank {me}: closes");
        if plan.in_close && plan.victims.contains(&me) {
            for _ in 0..20 {
                self.fabric.close();
            }
            nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL).unwrap();
        }
        (0..).map(Rank).find(|rank| !plan.victims.contains(rank)) == Some(me)
    }
}

/// What this rank and another have said to each other since the last death.
#[derive(Clone, Debug, Default)]
struct Talk {
    sent: u64,
    seen: u64,
    said_stop: bool,
    heard_stop: bool,
}

impl Talk {
    /// Enough of each other.
    const ENOUGH: u64 = 60;

    fn is_over(&self) -> bool {
        self.said_stop && self.heard_stop
    }

    /// Numbered messages, large ones too, so that a death finds some half way; then the end.
    fn speak(&mut self, fabric: &mut MpiFabric, to: Rank, epoch: u32, is_over: bool) {
        if self.said_stop {
            return;
        }
        if is_over && self.seen >= Talk::ENOUGH && self.sent >= Talk::ENOUGH {
            self.said_stop = fabric.send(to, Message::Stop).is_ok();
            return;
        }
        let spans = if self.sent.is_multiple_of(16) { 20_000 } else { 1 };
        let held = vec![Span::bytes(0, self.sent); spans];
        let message = Message::Held { epoch, last: true, done: vec![], held };
        self.sent += u64::from(fabric.send(to, message).is_ok());
    }

    fn hear(&mut self, message: Message, epoch: u32) {
        match message {
            Message::Stop => self.heard_stop = true,
            Message::Held { epoch: theirs, held, .. } => {
                assert_eq!(theirs, epoch, "it was sent before the death");
                assert_eq!(held[0].end, self.seen, "order or loss");
                self.seen += 1;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Kills this process when the plan says so. What comes back holds, while it polls, since when.
fn die(plan: &Plan, me: Rank) -> Arc<AtomicU64> {
    let watched = Arc::new(AtomicU64::new(0));
    let Some(place) = plan.victims.iter().position(|&rank| rank == me) else { return watched };
    if plan.in_close {
        return watched;
    }
    let in_shrink = plan.in_shrink && place > 0;
    let after = Duration::from_millis(300 + plan.apart_ms * place as u64);
    let seen = watched.clone();
    std::thread::spawn(move || {
        let started = Instant::now();
        if in_shrink {
            // A poll that takes so long waits for the others to shrink.
            loop {
                let since = seen.load(Ordering::Relaxed);
                let now = started.elapsed().as_millis() as u64;
                if since != 0 && now > since + 2 && seen.load(Ordering::Relaxed) == since {
                    break;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        } else {
            std::thread::sleep(after);
        }
        nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL).unwrap();
    });
    watched
}
