//! What is varied: names, and the values that each may take.

use serde_json::{Map, Value};

use crate::prng::Prng;

/// A value for each name that is varied: `{"inflight": 16}`.
pub type Settings = Map<String, Value>;

/// Settings of one experiment: more would take weeks, and is a typing error.
pub const POINTS_MAX: usize = 10_000;

/// One name and what it may be.
#[derive(Clone, Debug, PartialEq)]
pub struct Dimension {
    /// Its name.
    pub name: String,
    /// Its values.
    pub values: Values,
}

/// What a name may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// One of these.
    List(Vec<Value>),
    /// Anything between two numbers.
    Range {
        /// The least.
        low: f64,
        /// The most.
        high: f64,
        /// Whole numbers only.
        whole: bool,
        /// What counts is the ratio, not the difference: 1 to 2 is as far as 32 to 64.
        log: bool,
    },
}

/// All names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Space {
    /// In the order in which they were told.
    pub dimensions: Vec<Dimension>,
}

impl Dimension {
    /// From `name=1,2,4`, `name=on,off`, `name=1..64` or `name=1..64:log`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Dimension, String> {
        let wrong = |what: &str| Err(format!("--vary {text}: {what}"));
        let Some((name, values)) = text.split_once('=') else {
            return wrong("not NAME=VALUE,VALUE or NAME=LOW..HIGH");
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(fits) {
            return wrong("a name has letters, digits, - and _ only");
        }
        let name = name.to_owned();
        if let Some((low, high)) = values.split_once("..") {
            let (high, log) = match high.strip_suffix(":log") {
                Some(high) => (high, true),
                None => (high, false),
            };
            let whole = low.parse::<i64>().is_ok() && high.parse::<i64>().is_ok();
            let (Ok(low), Ok(high)) = (low.parse::<f64>(), high.parse::<f64>()) else {
                return wrong("a range is of two numbers");
            };
            if !(low < high && low.is_finite() && high.is_finite()) || log && low <= 0.0 {
                return wrong("a range goes upwards, and one of :log from over 0");
            }
            return Ok(Dimension { name, values: Values::Range { low, high, whole, log } });
        }
        let values: Vec<Value> = values.split(',').map(value).collect();
        if values.iter().any(|value| value == "") {
            return wrong("a value is empty");
        }
        if (1..values.len()).any(|n| values[..n].contains(&values[n])) {
            return wrong("a value stands twice");
        }
        Ok(Dimension { name, values: Values::List(values) })
    }

    fn sample(&self, prng: &mut Prng) -> Value {
        match &self.values {
            Values::List(values) => values[prng.below(values.len() as u64) as usize].clone(),
            Values::Range { low, high, whole: true, log: false } => {
                number(low + prng.below((high - low) as u64 + 1) as f64)
            }
            Values::Range { .. } => self.at(prng.unit()),
        }
    }

    /// Of a range, the value at a place from 0 to 1.
    fn at(&self, place: f64) -> Value {
        let Values::Range { low, high, whole, log } = self.values else { return Value::Null };
        let value = if log {
            (low.ln() + place * (high / low).ln()).exp()
        } else {
            low + place * (high - low)
        };
        number(if whole { value.round() } else { value }.clamp(low, high))
    }

    /// Where a value is, from 0 to 1; of values that are no numbers, which one it is.
    fn place(&self, value: &Value) -> f64 {
        let of = value.as_f64().unwrap_or(0.0);
        match &self.values {
            Values::Range { low, high, log: true, .. } => (of / low).ln() / (high / low).ln(),
            Values::Range { low, high, .. } => (of - low) / (high - low),
            Values::List(values) if self.is_categorical() => {
                values.iter().position(|known| known == value).unwrap_or(0) as f64
            }
            Values::List(values) => {
                let numbers = values.iter().filter_map(Value::as_f64);
                let (low, high) = numbers.fold((f64::MAX, f64::MIN), |(low, high), number| {
                    (low.min(number), high.max(number))
                });
                // Lists that double from value to value are meant as ratios.
                if low > 0.0 && high >= 8.0 * low {
                    (of / low).ln() / (high / low).ln()
                } else {
                    (of - low) / (high - low).max(f64::MIN_POSITIVE)
                }
            }
        }
    }

    fn is_categorical(&self) -> bool {
        matches!(&self.values, Values::List(values) if !values.iter().all(Value::is_number))
    }
}

impl Space {
    /// From the values of `--vary`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(texts: &[&str]) -> Result<Space, String> {
        let dimensions =
            texts.iter().map(|text| Dimension::parse(text)).collect::<Result<Vec<_>, _>>()?;
        for (n, dimension) in dimensions.iter().enumerate() {
            if dimensions[..n].iter().any(|other| other.name == dimension.name) {
                return Err(format!("--vary {} stands twice", dimension.name));
            }
        }
        Ok(Space { dimensions })
    }

    /// All settings, the last name's values fastest.
    ///
    /// # Errors
    /// A name has a range, or there are too many.
    pub fn grid(&self) -> Result<Vec<Settings>, String> {
        let mut points = vec![Settings::new()];
        for dimension in &self.dimensions {
            let Values::List(values) = &dimension.values else {
                return Err(format!(
                    "--vary {}: a grid needs a list of values; a range is for --sample and --tune",
                    dimension.name
                ));
            };
            if points.len() * values.len() > POINTS_MAX {
                return Err(format!("--vary: over {POINTS_MAX} settings; --sample N takes some"));
            }
            let with = |point: &Settings, value: &Value| {
                let mut point = point.clone();
                point.insert(dimension.name.clone(), value.clone());
                point
            };
            let longer = points.iter().flat_map(|point| values.iter().map(|v| with(point, v)));
            points = longer.collect();
        }
        Ok(points)
    }

    /// Random settings, `count` of them and no two alike, or all that there are if that is fewer.
    pub fn sample(&self, count: usize, prng: &mut Prng) -> Vec<Settings> {
        let mut points: Vec<Settings> = Vec::new();
        // Of small spaces the last are found rarely; so the tries have a bound.
        for _ in 0..count.saturating_mul(100) {
            if points.len() == count {
                break;
            }
            let point = self.point(prng);
            if !points.contains(&point) {
                points.push(point);
            }
        }
        points
    }

    /// A random setting.
    pub fn point(&self, prng: &mut Prng) -> Settings {
        let pair = |dimension: &Dimension| (dimension.name.clone(), dimension.sample(prng));
        self.dimensions.iter().map(pair).collect()
    }

    /// The same but for one name, whose value is near (of a range) or any other.
    pub fn neighbour(&self, of: &Settings, prng: &mut Prng) -> Settings {
        let mut point = of.clone();
        if self.dimensions.is_empty() {
            return point;
        }
        let which = &self.dimensions[prng.below(self.dimensions.len() as u64) as usize];
        let value = match (&which.values, of.get(&which.name)) {
            (Values::Range { .. }, Some(value)) => {
                which.at((which.place(value) + 0.1 * prng.normal()).clamp(0.0, 1.0))
            }
            _ => which.sample(prng),
        };
        point.insert(which.name.clone(), value);
        point
    }

    /// A setting as a point of the unit cube; of names that are no numbers, which value it is.
    pub fn coordinates(&self, of: &Settings) -> Vec<f64> {
        let null = Value::Null;
        let place = |d: &Dimension| d.place(of.get(&d.name).unwrap_or(&null));
        self.dimensions.iter().map(place).collect()
    }

    /// Of each name, whether its values are no numbers: two of them are alike or not, never near.
    pub fn categorical(&self) -> Vec<bool> {
        self.dimensions.iter().map(Dimension::is_categorical).collect()
    }
}

/// A setting from `inflight=8,batch=256`.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn settings(text: &str) -> Result<Settings, String> {
    let pair = |part: &str| match part.trim().split_once('=') {
        Some((name, text)) if !name.is_empty() && !text.is_empty() => {
            Ok((name.trim().to_owned(), value(text.trim())))
        }
        _ => Err(format!("{part:?} is not NAME=VALUE")),
    };
    text.split(',').map(pair).collect()
}

/// A number, or else a text.
fn value(text: &str) -> Value {
    match text.parse::<i64>() {
        Ok(whole) => whole.into(),
        Err(_) => match text.parse::<f64>() {
            Ok(real) if real.is_finite() => number(real),
            _ => text.into(),
        },
    }
}

fn number(of: f64) -> Value {
    if of.fract() == 0.0 && of.abs() < 1e15 { (of as i64).into() } else { of.into() }
}

/// A value as it is put into a command line.
pub fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `inflight=8 batch=256`, for people.
pub fn describe(settings: &Settings) -> String {
    let pairs = settings.iter().map(|(name, value)| format!("{name}={}", show(value)));
    pairs.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn space(texts: &[&str]) -> Space {
        Space::parse(texts).unwrap()
    }

    #[test]
    fn a_grid_has_all_and_a_sample_no_two_alike() {
        let grid = space(&["a=1,2", "b=x,y,z"]).grid().unwrap();
        assert_eq!(grid.len(), 6);
        assert_eq!(Value::Object(grid[1].clone()), json!({ "a": 1, "b": "y" }));
        let mut prng = Prng::new(1);
        let sample = space(&["a=1..3", "b=0.5..2:log", "c=p,q"]).sample(20, &mut prng);
        assert_eq!(sample.len(), 20);
        for point in &sample {
            assert!((1..=3).contains(&point["a"].as_i64().unwrap()));
            assert!((0.5..=2.0).contains(&point["b"].as_f64().unwrap()));
        }
        assert_eq!(space(&["a=1,2", "b=1,2"]).sample(9, &mut prng).len(), 4);
    }

    #[test]
    fn faults_are_sentences() {
        for (texts, message) in [
            (&["a"][..], "--vary a: not NAME=VALUE,VALUE or NAME=LOW..HIGH"),
            (&["a b=1"], "--vary a b=1: a name has letters, digits, - and _ only"),
            (&["a=1,,2"], "--vary a=1,,2: a value is empty"),
            (&["a=1,1"], "--vary a=1,1: a value stands twice"),
            (&["a=1,2", "a=3"], "--vary a stands twice"),
            (&["a=1..x"], "--vary a=1..x: a range is of two numbers"),
            (&["a=2..1"], "--vary a=2..1: a range goes upwards, and one of :log from over 0"),
            (
                &["a=0..1:log"],
                "--vary a=0..1:log: a range goes upwards, and one of :log from over 0",
            ),
        ] {
            assert_eq!(Space::parse(texts), Err(message.to_owned()));
        }
        assert!(space(&["a=1..2"]).grid().unwrap_err().contains("--sample and --tune"));
        let numbers: Vec<String> = (0..200).map(|n| n.to_string()).collect();
        let (a, b) = (format!("a={}", numbers.join(",")), format!("b={}", numbers.join(",")));
        assert!(space(&[&a, &b]).grid().unwrap_err().contains("over 10000 settings"));
        assert!(settings("a").is_err() && settings("a=1,").is_err());
    }

    #[test]
    fn places_and_neighbours() {
        let space = space(&["a=1..64:log", "b=1,2,4,8", "c=x,y", "d=0..10"]);
        let point = settings("a=8,b=2,c=y,d=5").unwrap();
        let places = space.coordinates(&point);
        for (place, expected) in places.iter().zip([0.5, 1.0 / 3.0, 1.0, 0.5]) {
            assert!((place - expected).abs() < 1e-9, "{places:?}");
        }
        assert_eq!(space.categorical(), [false, false, true, false]);
        let mut prng = Prng::new(2);
        for _ in 0..50 {
            let other = space.neighbour(&point, &mut prng);
            let changed = other.iter().filter(|(name, value)| point[*name] != **value).count();
            assert!(changed <= 1, "{other:?}");
        }
        assert_eq!(describe(&point), "a=8 b=2 c=y d=5");
    }
}
