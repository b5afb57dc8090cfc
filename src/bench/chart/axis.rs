//! Axes: from numbers to places, and where the ticks are.

use super::text::{figure, grouped};

/// How numbers become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equally far.
    Linear,
    /// Equal ratios are equally far; only what is over zero has a place.
    Log,
    /// HdrHistogram's: each further nine of a percentile is equally far, so that the tail, of which
    /// most of a user's bad moments are made, has room. A percentile of 100 has no place.
    Percentile,
}

/// An axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// The number at its start.
    pub min: f64,
    /// The number at its end.
    pub max: f64,
    /// Numbers that are named, and how.
    pub ticks: Vec<(f64, String)>,
}

/// Ticks of an axis, about.
const TICKS: f64 = 6.0;
/// Ticks that are put where the data is: of more the names would hide one another.
const TICKS_GIVEN_MAX: usize = 24;
/// Decades of a logarithmic axis; what is smaller is drawn at its edge, since a picture of more
/// shows nothing.
const DECADES_MAX: i32 = 12;
/// Nines of a percentile axis at most: a run has no more samples than that carries.
const NINES_MAX: f64 = 9.0;

impl Axis {
    /// From the smallest number to the largest, and a little further to round ticks.
    pub fn linear(label: &str, numbers: impl IntoIterator<Item = f64>) -> Axis {
        let (min, max) = extent(numbers).unwrap_or((0.0, 1.0));
        let (min, max) = if min == max { around(min) } else { (min, max) };
        let step = nice_step((max - min) / TICKS);
        let (first, last) = ((min / step).floor(), (max / step).ceil());
        let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
        let ticks = (0..=(last - first) as i64).map(|index| (first + index as f64) * step);
        let named = |tick: f64| {
            let big = tick.abs() >= 1e12 || step < 1e-9;
            (tick, if big { figure(tick) } else { grouped(tick, decimals) })
        };
        Axis {
            label: label.to_owned(),
            scale: Scale::Linear,
            min: first * step,
            max: last * step,
            ticks: ticks.map(named).collect(),
        }
    }

    /// The same, from zero.
    pub fn from_zero(label: &str, numbers: impl IntoIterator<Item = f64>) -> Axis {
        Axis::linear(label, numbers.into_iter().chain([0.0]))
    }

    /// A logarithmic one; numbers that are not over zero are not shown.
    pub fn log(label: &str, numbers: impl IntoIterator<Item = f64>) -> Axis {
        // What is closer to zero cannot be divided by any more.
        let positive = numbers.into_iter().filter(|number| *number > 1e-150);
        let (min, max) = extent(positive).unwrap_or((1.0, 10.0));
        let min = min.max(max * 10f64.powi(-DECADES_MAX));
        if max / min < 4.0 && max / min > 1.0 + 1e-9 {
            // Within so little, round numbers are those of a linear axis.
            let linear = Axis::linear(label, [min, max]);
            if linear.min > 0.0 {
                return Axis { scale: Scale::Log, ..linear };
            }
        }
        let (low, high) = (below(min), above(max));
        let (low, high) = if low == high { (low / 2.0, high * 2.0) } else { (low, high) };
        let decades = (high / low).log10();
        let digits: &[f64] = if decades <= 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let stride = (decades / 8.0).ceil().max(1.0) as i32;
        let from = low.log10().floor() as i32;
        let to = high.log10().ceil() as i32;
        let exponents = (from..=to).filter(|exponent| (exponent - from) % stride == 0);
        let all = exponents.flat_map(|e| digits.iter().map(move |digit| digit * power(e)));
        let inside = |tick: &f64| (low * 0.999..=high * 1.001).contains(tick);
        let ticks = all.filter(inside).map(|tick| (tick, figure(tick))).collect();
        Axis { label: label.to_owned(), scale: Scale::Log, min: low, max: high, ticks }
    }

    /// HdrHistogram's percentiles, as far as `count` samples carry them.
    pub fn percentiles(label: &str, count: u64) -> Axis {
        let nines = (count.max(10) as f64).log10().min(NINES_MAX);
        let mut ticks = vec![(0.0, "min".to_owned()), (50.0, "p50".to_owned())];
        let mut tail = 10.0;
        let mut name = String::from("p90");
        for nine in 1..=nines.floor() as u32 {
            ticks.push((100.0 - tail, name.clone()));
            tail /= 10.0;
            name = match nine {
                1 => "p99".to_owned(),
                2 => "p99.9".to_owned(),
                _ => name + "9",
            };
        }
        let max = 100.0 - 100.0 / 10f64.powf(nines);
        Axis { label: label.to_owned(), scale: Scale::Percentile, min: 0.0, max, ticks }
    }

    /// The same axis, ending where its data ends and not at the next round number.
    pub fn ending_at(mut self, number: f64) -> Axis {
        if number.is_finite() && self.min < number && number < self.max {
            self.max = number;
            self.ticks.retain(|(tick, _)| *tick <= number);
        }
        self
    }

    /// The same axis with ticks at these numbers, named as they are; of many it keeps its own.
    pub fn ticks_at(mut self, numbers: &[f64]) -> Axis {
        if numbers.len() > TICKS_GIVEN_MAX {
            return self;
        }
        let inside = numbers.iter().filter(|number| (self.min..=self.max).contains(*number));
        self.ticks = inside.map(|number| (*number, figure(*number))).collect();
        self
    }

    /// The place of a number, 0 at the start of the axis and 1 at its end; None: it has none. What
    /// lies outside is drawn at the edge.
    pub fn place(&self, number: f64) -> Option<f64> {
        if !number.is_finite() || self.scale == Scale::Log && number <= 0.0 {
            return None;
        }
        let on = |number: f64| match self.scale {
            Scale::Linear => number,
            Scale::Log => number.log10(),
            Scale::Percentile => -(1.0 - number.clamp(0.0, 100.0 - 1e-9) / 100.0).log10(),
        };
        let (min, max) = (on(self.min), on(self.max));
        let share = (on(number) - min) / (max - min);
        share.is_finite().then(|| share.clamp(0.0, 1.0))
    }
}

/// The smallest and the largest of the finite.
fn extent(numbers: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    // What is further out cannot be subtracted and divided any more.
    let finite = numbers.into_iter().filter(|number| number.abs() < 1e150);
    finite.fold(None, |extent, number| match extent {
        None => Some((number, number)),
        Some((min, max)) => Some((number.min(min), number.max(max))),
    })
}

/// Bounds around a single number.
fn around(number: f64) -> (f64, f64) {
    let margin = if number == 0.0 { 1.0 } else { number.abs() / 2.0 };
    if number == 0.0 { (0.0, 1.0) } else { (number - margin, number + margin) }
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn nice_step(step: f64) -> f64 {
    above(step.max(1e-300))
}

/// The least of 1, 2 and 5 times a power of ten that is not below.
fn above(number: f64) -> f64 {
    let base = power(number.log10().floor() as i32);
    let found = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * base >= number * 0.999_999);
    found.unwrap_or(10.0) * base
}

/// The greatest of them that is not above.
fn below(number: f64) -> f64 {
    let base = power(number.log10().floor() as i32);
    let found = [5.0, 2.0, 1.0].into_iter().find(|digit| digit * base <= number * 1.000_001);
    found.unwrap_or(1.0) * base
}

fn power(exponent: i32) -> f64 {
    10f64.powi(exponent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, name)| name.as_str()).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(names(&Axis::linear("", [0.0, 11.3])), ["0", "2", "4", "6", "8", "10", "12"]);
        assert_eq!(
            names(&Axis::linear("", [-0.031, 0.05])),
            ["−0.04", "−0.02", "0.00", "0.02", "0.04", "0.06"]
        );
        assert_eq!(names(&Axis::log("", [0.7, 40.0])), ["0.5", "1", "2", "5", "10", "20", "50"]);
        assert_eq!(
            names(&Axis::log("", [0.001, 90_000.0])),
            ["0.001", "0.01", "0.1", "1", "10", "100", "1,000", "10,000", "100,000"]
        );
        assert_eq!(
            names(&Axis::log("", [100.0, 130.0])),
            ["100", "105", "110", "115", "120", "125", "130"]
        );
        assert_eq!(
            names(&Axis::percentiles("", 20_000)),
            ["min", "p50", "p90", "p99", "p99.9", "p99.99"]
        );
        assert_eq!(names(&Axis::percentiles("", 0)), ["min", "p50", "p90"]);
        assert_eq!(names(&Axis::log("", [1.0, 8.0]).ticks_at(&[1.0, 3.0, 99.0])), ["1", "3"]);
    }

    #[test]
    fn each_nine_is_equally_far() {
        let axis = Axis::percentiles("", 1000);
        let places: Vec<f64> = [0.0, 90.0, 99.0, 99.9].map(|p| axis.place(p).unwrap()).to_vec();
        for (place, expected) in places.iter().zip([0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0]) {
            assert!((place - expected).abs() < 1e-9, "{places:?}");
        }
        assert_eq!(axis.place(100.0), Some(1.0));
    }

    #[test]
    fn nothing_and_what_has_no_place() {
        for axis in [Axis::linear("", []), Axis::log("", [-1.0, 0.0]), Axis::linear("", [7.0; 3])] {
            assert!(axis.min < axis.max && axis.ticks.len() > 1, "{axis:?}");
            assert_eq!((axis.place(f64::NAN), axis.place(f64::INFINITY)), (None, None));
        }
        assert_eq!(Axis::log("", [1.0, 10.0]).place(0.0), None);
    }

    proptest! {
        #[test]
        fn any_numbers_have_an_axis(numbers in prop::collection::vec(any::<f64>(), 0..20)) {
            let axes = [
                Axis::linear("", numbers.clone()),
                Axis::from_zero("", numbers.clone()),
                Axis::log("", numbers.clone()),
            ];
            for axis in axes {
                prop_assert!(axis.min < axis.max, "{axis:?}");
                prop_assert!((1..=40).contains(&axis.ticks.len()), "{axis:?}");
                for number in &numbers {
                    let place = axis.place(*number);
                    prop_assert!(place.is_none_or(|place| (0.0..=1.0).contains(&place)));
                }
            }
        }
    }
}
