//! Durations of one kind: recorded, merged, sent, and printed in the one shape that every result
//! has.
//!
//! Nothing is averaged twice: what many recorded is merged count by count, so that a percentile of
//! the whole is one of the whole's.

use std::fmt::{self, Write};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use serde_json::{Map, Value, json};

/// Durations of one kind, to a thousandth of their size.
#[derive(Clone, Default, PartialEq)]
pub struct Durations {
    /// In microseconds; what is over an hour counts as an hour. Made when the first is recorded,
    /// since it takes 190 KB and thousands of simulated ranks record nothing.
    histogram: Option<Box<Histogram<u64>>>,
}

const HOUR_US: u64 = 3_600_000_000;
const DIGITS: u8 = 3;

/// A percentile and the samples below which it is an invention.
pub const PERCENTILES: [(&str, f64, u64); 5] = [
    ("p50", 50.0, 1),
    ("p90", 90.0, 10),
    ("p95", 95.0, 20),
    ("p99", 99.0, 100),
    ("p999", 99.9, 1000),
];

/// What stands over the rows of a table for people.
pub const HEADING: &str =
    "ms                  n       p50       p95       p99     p99.9       max\n";

impl Durations {
    /// Records microseconds.
    pub fn record(&mut self, us: u64) {
        self.histogram
            .get_or_insert_with(|| Box::new(empty()))
            .saturating_record(us.clamp(1, HOUR_US));
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.histogram.as_ref().map_or(0, |histogram| histogram.len())
    }

    /// Adds what another recorded.
    pub fn merge(&mut self, other: &Durations) {
        let Some(theirs) = &other.histogram else { return };
        match &mut self.histogram {
            Some(mine) => mine.add(&**theirs).expect("all have the same bounds"),
            None => self.histogram = Some(theirs.clone()),
        }
    }

    /// The duration that `percentile` of a hundred do not exceed, in milliseconds; None: there
    /// are fewer than `least`, or none at all.
    pub fn percentile_ms(&self, percentile: f64, least: u64) -> Option<f64> {
        let histogram = self.histogram.as_ref().filter(|all| all.len() >= least.max(1))?;
        Some(histogram.value_at_quantile(percentile / 100.0) as f64 / 1e3)
    }

    /// In milliseconds.
    pub fn mean_ms(&self) -> Option<f64> {
        self.filled().map(|histogram| histogram.mean() / 1e3)
    }

    /// In milliseconds.
    pub fn min_ms(&self) -> Option<f64> {
        self.filled().map(|histogram| histogram.min() as f64 / 1e3)
    }

    /// In milliseconds.
    pub fn max_ms(&self) -> Option<f64> {
        self.filled().map(|histogram| histogram.max() as f64 / 1e3)
    }

    fn filled(&self) -> Option<&Histogram<u64>> {
        self.histogram.as_deref().filter(|histogram| !histogram.is_empty())
    }

    /// The microseconds that were recorded, and how often; of those that are not told apart the
    /// middle.
    pub fn recorded_us(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.histogram.iter().flat_map(|histogram| {
            histogram.iter_recorded().map(|step| {
                let middle = histogram.median_equivalent(step.value_iterated_to());
                (middle, step.count_since_last_iteration())
            })
        })
    }

    /// Appends its bytes: none if nothing was recorded, else HdrHistogram's V2 format.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if let Some(histogram) = self.filled() {
            let written = V2Serializer::new().serialize(histogram, out);
            written.expect("a Vec takes every write, and no count is above an i64's");
        }
    }

    /// From all of its bytes; None: they are none of these durations.
    pub fn decode(mut bytes: &[u8]) -> Option<Durations> {
        if bytes.is_empty() {
            return Some(Durations::default());
        }
        if !is_sound(bytes) {
            return None;
        }
        let histogram = Deserializer::new().deserialize(&mut bytes).ok()?;
        Some(Durations { histogram: Some(Box::new(histogram)) })
    }

    /// In milliseconds: `n`, `mean`, `min`, percentiles (null where there are too few samples),
    /// `max`.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("n".to_owned(), self.count().into());
        object.insert("mean".to_owned(), json!(self.mean_ms()));
        object.insert("min".to_owned(), json!(self.min_ms()));
        for (name, percentile, least) in PERCENTILES {
            object.insert(name.to_owned(), json!(self.percentile_ms(percentile, least)));
        }
        object.insert("max".to_owned(), json!(self.max_ms()));
        Value::Object(object)
    }

    /// A row of the table for people, of which `HEADING` is the first.
    pub fn row(&self, name: &str) -> String {
        let cell = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.2}"));
        let mut row = format!("{name:<12}{:>9}", self.count());
        for index in [0, 2, 3, 4] {
            let (_, percentile, least) = PERCENTILES[index];
            let written = write!(row, "{:>10}", cell(self.percentile_ms(percentile, least)));
            debug_assert!(written.is_ok(), "a String takes every write");
        }
        row + &format!("{:>10}", cell(self.max_ms()))
    }
}

impl fmt::Debug for Durations {
    /// Without the counts, which are thousands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?} ms at most", self.count(), self.max_ms())
    }
}

fn empty() -> Histogram<u64> {
    let histogram = Histogram::new_with_bounds(1, HOUR_US, DIGITS);
    histogram.expect("the bounds are constants that it takes")
}

/// The head of a histogram with these bounds (cookie, length, normalizing offset, digits, lowest,
/// highest, ratio), then counts that fit. The library takes any bounds and allocates for them, and
/// negates and adds what it reads unchecked; so all of that is looked at ahead of it.
fn is_sound(bytes: &[u8]) -> bool {
    const HEAD_BYTES: usize = 40;
    const COUNTS_MAX: u64 = 1 << 16; // an hour's are 23,552
    let Some((head, mut counts)) = bytes.split_at_checked(HEAD_BYTES) else { return false };
    let mut expected = Vec::with_capacity(HEAD_BYTES);
    expected.extend(0x1c84_9313_u32.to_be_bytes());
    expected.extend(u32::try_from(counts.len()).unwrap_or(u32::MAX).to_be_bytes());
    expected.extend(0_u32.to_be_bytes());
    expected.extend(u32::from(DIGITS).to_be_bytes());
    expected.extend(1_u64.to_be_bytes());
    expected.extend(HOUR_US.to_be_bytes());
    expected.extend(1_f64.to_be_bytes());
    if head != expected {
        return false;
    }
    let (mut index, mut total) = (0_u64, 0_u64);
    while let Some(number) = varint(&mut counts) {
        // Zigzag: odd numbers stand for a run of zeros, even ones for a count.
        let (zeros, count) = if number & 1 == 1 { (number / 2 + 1, 0) } else { (1, number / 2) };
        let Some(sum) = total.checked_add(count) else { return false };
        index = index.saturating_add(zeros);
        total = sum;
        if index > COUNTS_MAX {
            return false;
        }
    }
    // Sums of a few thousand such totals fit an i64 still, which is what the format can carry.
    counts.is_empty() && total > 0 && total < 1 << 48
}

/// LEB128 of at most nine bytes, the ninth of which counts whole.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for index in 0..9 {
        let byte = *bytes.get(index)?;
        let bits = if index == 8 { byte } else { byte & 0x7f };
        value |= u64::from(bits) << (7 * index);
        if index == 8 || byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(samples: &[u64]) -> Durations {
        let mut durations = Durations::default();
        samples.iter().for_each(|us| durations.record(*us));
        durations
    }

    fn bytes(durations: &Durations) -> Vec<u8> {
        let mut bytes = Vec::new();
        durations.encode(&mut bytes);
        bytes
    }

    #[test]
    fn an_empty_one_costs_nothing_and_says_nothing() {
        let mut empty = Durations::default();
        assert!(size_of::<Durations>() == 8 && empty.histogram.is_none());
        assert!(bytes(&empty).is_empty());
        assert_eq!(Durations::decode(&[]), Some(Durations::default()));
        empty.merge(&Durations::default());
        assert!(empty.histogram.is_none());
        assert_eq!((empty.percentile_ms(50.0, 0), empty.max_ms()), (None, None));
        assert!(empty.to_json()["mean"].is_null());
    }

    #[test]
    fn the_merged_are_those_of_the_whole() {
        let (low, high): (Vec<_>, Vec<_>) = (1..=2_000).map(|n| n * 17).partition(|us| us % 3 == 0);
        let mut merged = of(&low);
        merged.merge(&of(&high));
        let whole = of(&[low, high].concat());
        assert_eq!(merged, whole);
        assert_eq!(merged.recorded_us().map(|(_, n)| n).sum::<u64>(), 2_000);
    }

    #[test]
    fn hostile_bounds_and_counts_are_refused() {
        let good = bytes(&of(&[5, 5_000_000]));
        assert!(Durations::decode(&good).is_some());
        (1..good.len()).for_each(|n| assert_eq!(Durations::decode(&good[..n]), None, "{n}"));
        for (at, value) in [(0, 0), (4, 0xff), (15, 5), (23, 0), (24, 0x7f), (32, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Durations::decode(&bad), None, "byte {at}");
        }
        // A run of 2^63 zeros, whose negative is no i64.
        let mut bad = good[..40].to_vec();
        bad.extend([0xff; 9]);
        bad[4..8].copy_from_slice(&9_u32.to_be_bytes());
        assert_eq!(Durations::decode(&bad), None);
    }

    proptest! {
        #[test]
        fn round_trip(samples in prop::collection::vec(0..2 * HOUR_US, 0..50)) {
            let durations = of(&samples);
            prop_assert_eq!(Durations::decode(&bytes(&durations)), Some(durations));
        }

        #[test]
        fn fuzz_decode(tail in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Durations::decode(&tail);
            let mut dressed = bytes(&of(&[5]))[..40].to_vec();
            dressed[4..8].copy_from_slice(&(tail.len() as u32).to_be_bytes());
            dressed.extend(tail);
            if let Some(durations) = Durations::decode(&dressed) {
                prop_assert_eq!(Durations::decode(&bytes(&durations)), Some(durations));
            }
        }
    }
}
