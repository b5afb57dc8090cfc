//! Tasks that only take time: for scaling studies without a backend, and for the simulation.
//!
//! A task is its number; how long it takes follows from the number and a seed, so every rank and
//! every run knows the same task by it.

use std::sync::Arc;

use super::tasks::{Size, Source, Span, Task};
use crate::prng::{self, Prng};

/// How task times are distributed; times in microseconds.
#[derive(Clone, Debug, PartialEq)]
pub enum Distribution {
    /// All the same.
    Fixed(f64),
    /// Exponential, with this mean.
    Exponential(f64),
    /// Lognormal: the mean, and the sigma of the logarithm.
    LogNormal(f64, f64),
    /// Pareto: the mean, and the shape, over 1.
    Pareto(f64, f64),
    /// As measured, in turn.
    Trace(Arc<Vec<u32>>),
}

/// A mass of tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// How long they take.
    pub distribution: Distribution,
    /// What is known beforehand: the time itself times a lognormal error of this sigma; None:
    /// nothing.
    pub estimate_sigma: Option<f64>,
    /// Which of all such masses.
    pub seed: u64,
}

impl Workload {
    /// How long a task takes.
    pub fn duration_us(&self, number: u64) -> f64 {
        let mut prng = self.prng(number, 1);
        match &self.distribution {
            Distribution::Fixed(us) => *us,
            Distribution::Exponential(mean) => -mean * (1.0 - prng.unit()).ln(),
            Distribution::LogNormal(mean, sigma) => {
                mean * (sigma * prng.normal() - sigma * sigma / 2.0).exp()
            }
            Distribution::Pareto(mean, shape) => {
                mean * (shape - 1.0) / shape * (1.0 - prng.unit()).powf(-1.0 / shape)
            }
            Distribution::Trace(times) => f64::from(times[number as usize % times.len()]),
        }
    }

    /// What is thought beforehand that it takes.
    pub fn estimate_us(&self, number: u64) -> f64 {
        match self.estimate_sigma {
            None => 1_000.0,
            Some(0.0) => self.duration_us(number),
            Some(sigma) => self.duration_us(number) * (sigma * self.prng(number, 2).normal()).exp(),
        }
    }

    /// Whether the order of starts can be chosen.
    pub fn has_estimates(&self) -> bool {
        self.estimate_sigma.is_some() && !matches!(self.distribution, Distribution::Fixed(_))
    }

    fn prng(&self, number: u64, what: u64) -> Prng {
        let mut seed = self.seed ^ what << 56;
        let first = prng::splitmix64(&mut seed);
        Prng::new(first.wrapping_add(number))
    }

    /// The makespan of `tasks` tasks from one perfect queue, as if it cost nothing to ask it: the
    /// order is that of the numbers, or of the estimates where there are any (list scheduling,
    /// Graham 1966), over `slots` slots. In microseconds.
    pub fn shared_queue_us(&self, tasks: u64, slots: usize) -> f64 {
        let mut order: Vec<u64> = (0..tasks).collect();
        if self.has_estimates() {
            order.sort_by(|&a, &b| self.estimate_us(b).total_cmp(&self.estimate_us(a)));
        }
        // Nanoseconds, which can be compared.
        let mut free: std::collections::BinaryHeap<std::cmp::Reverse<u64>> =
            (0..slots).map(|_| std::cmp::Reverse(0)).collect();
        let mut last = 0;
        for number in order {
            let Some(std::cmp::Reverse(at)) = free.pop() else { return 0.0 };
            let end = at + (self.duration_us(number) * 1e3) as u64;
            last = last.max(end);
            free.push(std::cmp::Reverse(end));
        }
        last as f64 / 1e3
    }

    /// The ideal makespan: no schedule can be shorter than all work spread over all slots, nor than
    /// the longest task (Graham, 1969). In microseconds.
    pub fn ideal_us(&self, tasks: u64, slots: usize) -> f64 {
        let (mut total, mut longest) = (0.0, 0.0f64);
        for number in 0..tasks {
            let us = self.duration_us(number);
            total += us;
            longest = longest.max(us);
        }
        (total / slots.max(1) as f64).max(longest)
    }
}

/// The tasks of a workload as a source.
#[derive(Clone, Debug)]
pub struct WorkloadSource {
    workload: Arc<Workload>,
}

impl WorkloadSource {
    /// The tasks of `workload`.
    pub fn new(workload: Arc<Workload>) -> WorkloadSource {
        WorkloadSource { workload }
    }
}

impl Source for WorkloadSource {
    fn read(&mut self, span: &mut Span, max: usize, into: &mut Vec<Task>) -> Result<u64, String> {
        for _ in 0..max {
            if span.is_empty() {
                break;
            }
            let at = span.start;
            let cost_us = self.workload.estimate_us(at).min(f64::from(u32::MAX)) as u32;
            into.push(Task { at, mass: 1, cost_us, size: Size::default(), body: None });
            span.start += u64::from(span.stride.max(1));
        }
        Ok(0)
    }

    fn is_uniform(&self) -> bool {
        !self.workload.has_estimates()
    }

    fn cost_us(&self, task: &Task) -> u32 {
        task.cost_us
    }

    fn cost_us_per_mass(&self) -> f64 {
        match &self.workload.distribution {
            _ if !self.workload.has_estimates() => 1_000.0,
            Distribution::Fixed(mean)
            | Distribution::Exponential(mean)
            | Distribution::LogNormal(mean, _)
            | Distribution::Pareto(mean, _) => *mean,
            Distribution::Trace(times) => {
                times.iter().map(|&us| f64::from(us)).sum::<f64>() / times.len().max(1) as f64
            }
        }
    }

    fn embed(&mut self, _: &mut Task) -> Result<(), String> {
        Ok(())
    }

    fn measured(&mut self, _: Size, _: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(distribution: Distribution) -> Workload {
        Workload { distribution, estimate_sigma: Some(0.3), seed: 3 }
    }

    #[test]
    fn means_are_what_they_are_said_to_be() {
        for distribution in [
            Distribution::Fixed(100.0),
            Distribution::Exponential(100.0),
            Distribution::LogNormal(100.0, 1.0),
            Distribution::Pareto(100.0, 3.0),
            Distribution::Trace(Arc::new(vec![50, 150])),
        ] {
            let workload = workload(distribution);
            let count = 200_000;
            let sum: f64 = (0..count).map(|number| workload.duration_us(number)).sum();
            let mean = sum / count as f64;
            assert!((97.0..103.0).contains(&mean), "{:?}: {mean}", workload.distribution);
        }
    }

    #[test]
    fn the_shared_queue_and_the_ideal_bound_each_other() {
        let fixed = workload(Distribution::Fixed(10.0));
        assert_eq!((fixed.ideal_us(40, 4), fixed.shared_queue_us(40, 4)), (100.0, 100.0));
        assert_eq!((fixed.ideal_us(41, 4), fixed.shared_queue_us(41, 4)), (102.5, 110.0));
        let tailed = workload(Distribution::LogNormal(100.0, 1.0));
        let (ideal, queue) = (tailed.ideal_us(1000, 16), tailed.shared_queue_us(1000, 16));
        assert!(ideal <= queue && queue < 1.1 * ideal, "{ideal} {queue}");
    }
}
