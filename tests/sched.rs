//! Ranks in virtual time, over many seeds: every world is drawn from its seed, and `sim::run`
//! judges it. `CNSE_SIM_SEEDS` says how many; a failure prints the seed, and `CNSE_SIM_SEED`
//! replays it.

use std::sync::Arc;
use std::time::Duration;

use cnse::clock::Instant;
use cnse::prng::Prng;
use cnse::sched::fabric::{Topology, conforms};
use cnse::sched::local::local;
use cnse::sched::message::Message;
use cnse::sched::queue::Gift;
use cnse::sched::rank::{Core, RankConfig};
use cnse::sched::sim::{self, Breakage, Faults, Input, Latency, Plan, Rows};
use cnse::sched::tasks::{Rank, Span};
use cnse::sched::workload::{Distribution, Workload, WorkloadSource};

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seeds of the test that has most of them.
const SEEDS: u64 = 150;

/// Runs a test for each seed that is asked for; `CNSE_SIM_SEEDS` is of the test that has most, and
/// the dearer ones have as many fewer as they have without it.
fn for_seeds(default: u64, test: impl Fn(u64)) {
    let asked = env("CNSE_SIM_SEEDS").unwrap_or(SEEDS);
    match env("CNSE_SIM_SEED") {
        Some(seed) => test(seed),
        None => (0..(asked * default).div_ceil(SEEDS)).for_each(test),
    }
}

fn judge(plan: &Plan) {
    if let Err(error) = sim::run(plan) {
        panic!("{error}\nreplay it with CNSE_SIM_SEED={}: {plan:?}", plan.seed);
    }
}

/// A world without faults.
fn world(prng: &mut Prng, seed: u64) -> Plan {
    let ranks = if prng.below(2) == 0 { 1 + prng.below(6) } else { 1 + prng.below(40) } as u32;
    let tasks = if prng.below(4) == 0 { prng.below(8) } else { prng.below(401) };
    let mean = [100.0, 1_000.0, 5_000.0, 50_000.0, 1_000_000.0][prng.below(5) as usize];
    let distribution = match prng.below(6) {
        0 => Distribution::Fixed(0.0),
        1 => Distribution::Fixed(mean),
        2 => Distribution::Exponential(mean),
        3 => Distribution::LogNormal(mean, 2.0 * prng.unit()),
        4 => Distribution::Pareto(mean, 1.1 + 2.0 * prng.unit()),
        _ => Distribution::Trace(Arc::new(vec![0, mean as u32, 7, 20 * mean as u32])),
    };
    let estimate_sigma = [None, Some(0.0), Some(0.3), Some(2.0)][prng.below(4) as usize];
    // From 1 us to 50 ms, evenly on a scale of logarithms.
    let mut us = |most: f64| most.powf(prng.unit());
    let latency = Latency {
        near_us: us(50_000.0),
        far_us: us(50_000.0),
        ring_us: us(3_000.0) - 1.0,
        look_us: us(3_000.0) - 1.0,
        idle_look_us: us(10_000.0) - 1.0,
        start_us: us(100.0),
    };
    Plan {
        ranks,
        ranks_per_node: 1 + prng.below(4) as u32,
        slots: 1 + prng.below(6) as usize,
        tasks,
        input: Input::Numbers,
        workload: Arc::new(Workload { distribution, estimate_sigma, seed }),
        all_on_one: prng.below(2) == 0,
        window: [1, 2, 8, 64, 4096][prng.below(5) as usize],
        steals: true,
        latency,
        faults: Faults::default(),
        seed,
    }
}

/// When something happens: at the start, at the end, or in between; sometimes long after.
fn moment(prng: &mut Prng, plan: &Plan) -> Instant {
    let slots = plan.slots * plan.ranks as usize;
    let us = plan.workload.ideal_us(plan.tasks, slots) + plan.latency.far_us;
    let part = [0.0, prng.unit(), prng.unit(), 1.0, 1.0 + prng.unit()][prng.below(5) as usize];
    Instant::default() + Duration::from_nanos((us * part * 1e3) as u64)
}

fn some_rank(prng: &mut Prng, plan: &Plan) -> Rank {
    Rank(prng.below(u64::from(plan.ranks)) as u32)
}

/// Slow and stalled ranks, closed slots and small windows.
fn trouble(prng: &mut Prng, plan: &mut Plan) {
    let mut faults = Faults::default();
    for _ in 0..prng.below(4) {
        let rank = some_rank(prng, plan);
        let from = moment(prng, plan);
        let to = from + Duration::from_micros(1 + prng.below(300_000));
        match prng.below(3) {
            0 => faults.stalls.push((rank, from, to)),
            1 => faults.slow.push((rank, 1.0 + 9.0 * prng.unit())),
            _ => faults.closed.push((rank, from, to)),
        }
    }
    faults.window = (prng.below(2) == 0).then(|| 1 + prng.below(8) as usize);
    plan.faults = faults;
}

/// Up to all ranks but one die, now and then several at once or in a row.
fn deaths(prng: &mut Prng, plan: &mut Plan) {
    let mut ranks: Vec<u32> = (0..plan.ranks).collect();
    let most = u64::from(plan.ranks - 1);
    let count = if prng.below(2) == 0 { most.min(1) } else { prng.below(most + 1) };
    let mut at = moment(prng, plan);
    for _ in 0..count {
        let index = if prng.below(3) == 0 { 0 } else { prng.below(ranks.len() as u64) };
        let rank = Rank(ranks.swap_remove(index as usize));
        plan.faults.deaths.push((at, rank));
        at = match prng.below(3) {
            0 => at,
            1 => at + Duration::from_micros(prng.below(100_000)),
            _ => moment(prng, plan),
        };
    }
}

/// The same tasks as rows of a text, which all ranks or the first few can read.
fn rows(prng: &mut Prng, plan: &mut Plan, all_read: bool) {
    let bytes_max = [1, 300, 3_000, 40_000][prng.below(4) as usize];
    let rows = Arc::new(Rows::drawn(plan.tasks, bytes_max, plan.seed));
    let some = 1 + prng.below(u64::from(plan.ranks)) as u32;
    plan.input = Input::Rows { rows, readers: if all_read { plan.ranks } else { some } };
}

#[test]
fn each_task_runs_once_and_all_ends() {
    for_seeds(150, |seed| {
        let mut prng = Prng::new(seed);
        let mut plan = world(&mut prng, seed);
        trouble(&mut prng, &mut plan);
        judge(&plan);
    });
}

#[test]
fn survivors_finish_the_work_of_the_dead() {
    for_seeds(150, |seed| {
        let mut prng = Prng::new(seed);
        let mut plan = world(&mut prng, seed);
        trouble(&mut prng, &mut plan);
        deaths(&mut prng, &mut plan);
        judge(&plan);
    });
}

#[test]
fn rows_are_split_stolen_and_recovered_by_bytes() {
    for_seeds(80, |seed| {
        let mut prng = Prng::new(seed);
        let mut plan = world(&mut prng, seed);
        rows(&mut prng, &mut plan, true);
        trouble(&mut prng, &mut plan);
        if prng.below(2) == 0 {
            deaths(&mut prng, &mut plan);
        }
        judge(&plan);
    });
}

#[test]
fn ranks_that_cannot_read_are_given_the_rows() {
    for_seeds(80, |seed| {
        let mut prng = Prng::new(seed);
        let mut plan = world(&mut prng, seed);
        rows(&mut prng, &mut plan, false);
        trouble(&mut prng, &mut plan);
        if prng.below(2) == 0 {
            deaths(&mut prng, &mut plan);
            // Whoever takes over must be able to read.
            let readers = plan.ranks;
            if let Input::Rows { readers: some, .. } = &mut plan.input {
                let lost = plan.faults.deaths.iter().any(|death| death.1.0 < *some);
                *some = if lost { readers } else { *some };
            }
        }
        judge(&plan);
    });
}

#[test]
fn a_broken_rank_is_noticed() {
    let broken = [
        (Breakage::DropsGifts, ["no end"; 2]),
        (Breakage::StopsEarly, ["takes it for done"; 2]),
        (Breakage::CountsTwice, ["takes it for done", "a mass of 101 is done"]),
        (Breakage::RunsTwice, ["ran 2 times"; 2]),
    ];
    for (breakage, complaints) in broken {
        let mut plan = equal(4, 1, 100, 50_000.0);
        judge(&plan);
        plan.faults.broken = Some((Rank(1), breakage));
        let error = sim::run(&plan).expect_err("it must not pass");
        assert!(error.starts_with("seed=1: "), "{error}");
        assert!(complaints.iter().any(|complaint| error.contains(complaint)), "{error}");
    }
}

/// Equal tasks on ranks without faults.
fn equal(ranks: u32, slots: usize, tasks: u64, us: f64) -> Plan {
    let mut plan = world(&mut Prng::new(1), 1);
    (plan.ranks, plan.ranks_per_node, plan.slots, plan.tasks) = (ranks, 8, slots, tasks);
    let distribution = Distribution::Fixed(us);
    plan.workload = Arc::new(Workload { distribution, estimate_sigma: None, seed: 1 });
    (plan.all_on_one, plan.window, plan.latency) = (true, 4096, Latency::default());
    plan
}

fn at_us(us: u64) -> Instant {
    Instant::default() + Duration::from_micros(us)
}

#[test]
fn a_rank_alone_rests() {
    judge(&equal(1, 5, 50, 100_000.0));
}

#[test]
fn a_window_below_the_slots_leaves_none_idle() {
    let mut plan = equal(1, 5, 50, 10_000.0);
    plan.window = 1;
    let outcome = sim::run(&plan).unwrap();
    assert!(outcome.efficiency() > 0.95, "{outcome:?}");
}

#[test]
fn the_word_that_all_is_done_outlives_whoever_carries_it() {
    for us in (10_000..14_000).step_by(50) {
        let mut plan = equal(20, 1, 20, 10_000.0);
        plan.all_on_one = false;
        plan.faults.deaths = vec![(at_us(us), Rank(1)), (at_us(us + 500), Rank(0))];
        judge(&plan);
    }
}

#[test]
fn two_deaths_in_one_look_are_two() {
    let mut plan = equal(6, 2, 200, 5_000.0);
    plan.faults.stalls = vec![(Rank(3), at_us(1_000), at_us(400_000))];
    plan.faults.deaths = vec![(at_us(5_000), Rank(1)), (at_us(150_000), Rank(2))];
    judge(&plan);
}

/// One of three ranks, that nobody runs.
fn core(rank: Rank) -> Core<WorkloadSource> {
    let config = RankConfig {
        rank,
        topology: Arc::new(Topology::new(&[0; 3])),
        window: 64,
        longest_first: false,
        steals: true,
        reads: true,
        survives: true,
        whole: None,
        bytes: false,
        seed: 1,
    };
    Core::new(config, WorkloadSource::new(equal(1, 1, 1, 1.0).workload))
}

#[test]
fn what_is_put_in_while_survivors_tell_is_not_lost_too() {
    let mut core = core(Rank(0));
    core.add(vec![Span::numbers(0, 10)]);
    core.survivors(vec![Rank(0), Rank(1)]);
    core.add(vec![Span::numbers(10, 20)]);
    let told = Message::Held { epoch: 1, last: true, done: vec![], held: vec![] };
    core.message(Rank(1), told).unwrap();
    assert_eq!(core.waiting(), 20);
}

#[test]
fn questions_do_not_pile_up_behind_a_full_fabric() {
    let mut core = core(Rank(1));
    core.set_slots(1);
    for ms in 1..1_000 {
        core.turn(at_us(ms * 1_000)).unwrap();
        let (to, message) = core.outgoing().expect("it asks");
        core.unsent(to, message);
    }
    assert_eq!(std::iter::from_fn(|| core.outgoing()).count(), 1);
}

#[test]
fn a_task_that_has_just_come_is_not_given_back() {
    let mut core = core(Rank(1));
    core.set_slots(1);
    let gift = Gift { tasks: vec![], spans: vec![Span::numbers(0, 1)] };
    core.message(Rank(0), Message::Give { answer: true, gift, more: None }).unwrap();
    core.message(Rank(0), Message::Ask { free: 1, queued_us: 0, bodies: false }).unwrap();
    let Some((_, Message::Give { gift, .. })) = core.outgoing() else { panic!("no answer") };
    core.turn(at_us(1)).unwrap();
    assert!(gift.is_empty() && core.hand().unwrap().is_some());
}

#[test]
fn near_equal_ranks_do_not_trade() {
    for all_on_one in [true, false] {
        let plan = Plan { all_on_one, ..equal(2, 4, 4_000, 5_000.0) };
        let moves = sim::run(&plan).unwrap().moves;
        assert!(moves.steals_won <= 20, "{moves:?}");
    }
}

#[test]
fn ranks_that_fall_behind_are_relieved_before_others_run_short() {
    let distribution = Distribution::LogNormal(50_000.0, 1.0);
    let workload = Arc::new(Workload { distribution, estimate_sigma: Some(0.3), seed: 5 });
    let plan = Plan { workload, ..equal(8, 4, 1_000, 1.0) };
    let queue_us = plan.workload.shared_queue_us(plan.tasks, 32);
    let outcome = sim::run(&plan).unwrap();
    assert!(outcome.makespan_us < 1.02 * queue_us, "{outcome:?}");
}

#[test]
fn the_same_seed_gives_the_same_world() {
    for seed in 0..20 {
        let mut prng = Prng::new(seed);
        let mut plan = world(&mut prng, seed);
        trouble(&mut prng, &mut plan);
        deaths(&mut prng, &mut plan);
        assert_eq!(sim::run(&plan), sim::run(&plan));
    }
}

#[test]
fn fabrics_conform() {
    conforms(&mut local(Topology::new(&[0, 0, 1])).unwrap(), || {});
    for_seeds(3, |seed| {
        let mut prng = Prng::new(seed);
        let latency = world(&mut prng, seed).latency;
        let nodes: Vec<u64> = (0..2 + prng.below(3)).map(|_| prng.below(2)).collect();
        let topology = Arc::new(Topology::new(&nodes));
        let window = 1 + prng.below(64) as usize;
        let (mut fabrics, mut step) = sim::fabrics(topology, latency, window, seed);
        conforms(&mut fabrics, || step(latency.far_us / 4.0));
    });
}
