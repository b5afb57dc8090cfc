//! How long tasks will take: from their size, corrected by what was measured.
//!
//! A size predicts work in units that no machine has: a token of the answer is one, a byte of the
//! prompt is a small part of one, since prompts are read in batches. What was measured in each
//! class (model and kind of call) gives the microseconds of a unit there; a class of which nothing
//! is known yet takes the mean of all. Each rank measures its own backends, so the same task may
//! have another cost elsewhere.

use std::collections::HashMap;

use super::tasks::Size;

/// Microseconds of a unit, until something was measured: a token on a small machine.
const UNIT_US: f64 = 20_000.0;
/// Units of a prompt's byte: some 4 bytes are a token, and reading one takes about a tenth of
/// writing one.
const PROMPT_UNITS: f64 = 0.025;
/// Units that every call has.
const BASE_UNITS: f64 = 1.0;
/// Tokens of an answer whose request names no bound.
const TOKENS_DEFAULT: u32 = 128;
/// A new measurement counts for at least this part of the whole: servers change their pace.
const FRESH: f64 = 1.0 / 256.0;

/// The estimates of one rank.
#[derive(Clone, Debug, Default)]
pub struct Model {
    classes: HashMap<u16, Mean>,
    all: Mean,
    version: u64,
}

/// The mean of microseconds per unit, weighted by units.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    us: f64,
    units: f64,
    count: u64,
}

impl Model {
    /// Nothing measured yet.
    pub fn new() -> Model {
        Model::default()
    }

    /// Microseconds that a task of this size will hold a slot.
    pub fn estimate(&self, size: &Size) -> u32 {
        (units(size) * self.unit_us(size.class)).min(f64::from(u32::MAX)) as u32
    }

    /// Takes note of a task's time.
    pub fn measured(&mut self, size: &Size, busy_us: u64) {
        let units = units(size);
        self.classes.entry(size.class).or_default().add(busy_us as f64, units);
        self.all.add(busy_us as f64, units);
        // Estimates are worth making anew when much was learnt since: after 1, 2, 4, … tasks.
        if self.all.count.is_power_of_two() {
            self.version += 1;
        }
    }

    /// Changes when estimates should be made anew.
    pub fn version(&self) -> u64 {
        self.version
    }

    fn unit_us(&self, class: u16) -> f64 {
        let known = self.classes.get(&class).filter(|mean| mean.count > 0).unwrap_or(&self.all);
        if known.count == 0 { UNIT_US } else { known.us / known.units }
    }
}

impl Mean {
    fn add(&mut self, us: f64, units: f64) {
        if self.count as f64 * FRESH > 1.0 {
            let keep = 1.0 - FRESH;
            (self.us, self.units) = (self.us * keep, self.units * keep);
        }
        self.us += us;
        self.units += units;
        self.count += 1;
    }
}

fn units(size: &Size) -> f64 {
    let tokens = if size.tokens == 0 { TOKENS_DEFAULT } else { size.tokens };
    BASE_UNITS + f64::from(tokens) + f64::from(size.prompt) * PROMPT_UNITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(prompt: u32, tokens: u32, class: u16) -> Size {
        Size { prompt, tokens, class }
    }

    #[test]
    fn measured_classes_are_told_apart() {
        let mut model = Model::new();
        let before = model.estimate(&size(400, 100, 1));
        assert!(before > model.estimate(&size(400, 10, 1)));
        for _ in 0..100 {
            model.measured(&size(0, 99, 1), 1_000_000);
            model.measured(&size(0, 99, 2), 100_000);
        }
        assert_eq!(model.estimate(&size(0, 99, 1)), 1_000_000);
        assert_eq!(model.estimate(&size(0, 199, 2)), 200_000);
        let unknown = model.estimate(&size(0, 99, 3));
        assert!((500_000..600_000).contains(&unknown), "{unknown}");
        assert_eq!(model.version(), 8);
    }

    #[test]
    fn what_changes_is_followed() {
        let mut model = Model::new();
        (0..10_000).for_each(|_| model.measured(&size(0, 9, 0), 1_000));
        (0..1_000).for_each(|_| model.measured(&size(0, 9, 0), 3_000));
        let now = model.estimate(&size(0, 9, 0));
        assert!((2_900..=3_000).contains(&now), "{now}");
    }
}
