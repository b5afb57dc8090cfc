//! Counters of one core. Only that core writes, so an addition is a load and a store, without a
//! locked instruction; a reader on another core sees a value that is a moment old.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds, on the owner's core.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    /// The count.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it, on the owner's core.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds in microseconds: 100 us to 100 s, three in each decade, and beyond.
pub const BOUNDS_US: [u64; 19] = [
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
];

/// Durations in fixed buckets, as Prometheus wants them.
#[derive(Debug, Default)]
pub struct LatencyHistogram {
    buckets: [Counter; BOUNDS_US.len() + 1],
    sum_us: Counter,
}

impl LatencyHistogram {
    /// Records a duration in microseconds.
    pub fn record(&self, us: u64) {
        self.buckets[BOUNDS_US.partition_point(|&bound| bound < us)].add(1);
        self.sum_us.add(us);
    }

    /// The count of each bucket, and the sum in microseconds.
    pub fn read(&self) -> ([u64; BOUNDS_US.len() + 1], u64) {
        (std::array::from_fn(|i| self.buckets[i].read()), self.sum_us.read())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = LatencyHistogram::default();
        [0, 100, 101, 200_000_000].into_iter().for_each(|us| histogram.record(us));
        let (buckets, sum) = histogram.read();
        assert_eq!((buckets[0], buckets[1], buckets[BOUNDS_US.len()]), (2, 1, 1));
        assert_eq!(sum, 200_000_201);
    }
}
