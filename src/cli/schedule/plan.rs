//! `--plan`: the same ranks in virtual time, as many as one likes.

use std::sync::Arc;

use serde_json::json;

use super::simulate::{tasks, workload};
use super::{Common, all_on_one, micros};
use crate::cli::flags::Parsed;
use crate::cli::{Error, print};
use crate::sched::sim::{self, Faults, Input, Latency, Plan};
use crate::sched::workload::Workload;

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let workload = Arc::new(workload(parsed)?);
    let plan = plan(parsed, workload.clone()).map_err(Error::Usage)?;
    let outcome = sim::run(&plan).map_err(Error::Failed)?;
    let slots = plan.slots * plan.ranks as usize;
    let queue_us = plan.workload.shared_queue_us(plan.tasks, slots);
    let (makespan_s, ideal_s) = (outcome.makespan_us / 1e6, outcome.ideal_us / 1e6);
    let moves = outcome.moves;
    if parsed.has("json") {
        let latency = plan.latency;
        let object = json!({
            "cnse": env!("CARGO_PKG_VERSION"),
            "command": std::env::args().skip(1).collect::<Vec<_>>(),
            "ranks": plan.ranks, "inflight": plan.slots, "tasks": plan.tasks,
            "makespan_s": makespan_s, "ideal_s": ideal_s, "efficiency": outcome.efficiency(),
            "shared_queue_s": queue_us / 1e6,
            "over_shared_queue": outcome.makespan_us / queue_us.max(1e-9),
            "balance": outcome.balance, "messages": outcome.messages,
            "steals": { "tried": moves.steals_tried, "won": moves.steals_won,
                        "own_node": moves.steals_near, "moved": moves.tasks_in },
            "latency_us": { "near": latency.near_us, "far": latency.far_us,
                            "ring": latency.ring_us, "look": latency.look_us, "idle_look": latency.idle_look_us,
                            "start": latency.start_us },
        });
        return print(&format!("{object}\n"));
    }
    print(&format!(
        "{} tasks on {} ranks with {} at once each, in virtual time\n\
         makespan          {makespan_s:>12.3} s\n\
         ideal             {ideal_s:>12.3} s   all work over all slots, or the longest task\n\
         efficiency        {:>12.1} %   ideal over makespan\n\
         perfect queue     {:>12.3} s   one queue that costs nothing, in the same order: {:+.1} %\n\
         balance           {:>12.3}     work of the busiest rank over the mean\n\
         steals            {:>12}     of {} tried, {} tasks moved, {} messages\n",
        plan.tasks,
        plan.ranks,
        plan.slots,
        outcome.efficiency() * 100.0,
        queue_us / 1e6,
        (outcome.makespan_us / queue_us.max(1e-9) - 1.0) * 100.0,
        outcome.balance,
        moves.steals_won,
        moves.steals_tried,
        moves.tasks_in,
        outcome.messages,
    ))
}

fn plan(parsed: &Parsed, workload: Arc<Workload>) -> Result<Plan, String> {
    let common = Common::new(parsed)?;
    let ranks: u32 = parsed.number("plan", 1, 10_000)?.unwrap_or(1);
    let nodes = parsed.number("nodes", 1, ranks)?.unwrap_or(ranks.div_ceil(32));
    let mut latency = Latency::default();
    if let Some(far) = parsed.duration("latency")? {
        latency.far_us = micros(far);
    }
    if parsed.has("ranks") {
        return Err("--ranks: --plan N says how many ranks there are".to_owned());
    }
    let workload = if common.longest_first {
        workload
    } else {
        Arc::new(Workload { estimate_sigma: None, ..(*workload).clone() })
    };
    Ok(Plan {
        ranks,
        ranks_per_node: ranks.div_ceil(nodes),
        slots: parsed.number("inflight", 1, 65_536)?.unwrap_or(4),
        tasks: tasks(parsed, &workload)?,
        input: Input::Numbers,
        workload,
        all_on_one: all_on_one(parsed)?,
        window: common.window,
        steals: common.steals,
        latency,
        faults: Faults::default(),
        seed: common.seed,
    })
}
