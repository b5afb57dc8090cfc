//! Flags: one table a subcommand, which parsing and help both read, and the types that values have.
//!
//! Long flags only, `--name value` or `--name=value`; `_` and `-` in a name are the same. What
//! stands twice is an error unless the table says that it is a list. An unknown flag is answered
//! with the nearest that there is.

use std::ffi::OsString;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use crate::cuda::Choice;

/// A flag of a subcommand.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name, with `-` between words.
    pub name: &'static str,
    /// What its value is called in the help; empty: it has none.
    pub value: &'static str,
    /// May stand several times.
    pub list: bool,
    /// Stands alone, without its name.
    pub is_operand: bool,
    /// What it does, and its default.
    pub doc: &'static str,
}

impl Flag {
    /// A flag with a value.
    pub const fn new(name: &'static str, value: &'static str, doc: &'static str) -> Flag {
        Flag { name, value, list: false, is_operand: false, doc }
    }

    /// A flag without one.
    pub const fn switch(name: &'static str, doc: &'static str) -> Flag {
        Flag { name, value: "", list: false, is_operand: false, doc }
    }

    /// A flag with a value, which may stand several times.
    pub const fn list(name: &'static str, value: &'static str, doc: &'static str) -> Flag {
        Flag { name, value, list: true, is_operand: false, doc }
    }

    /// Values that stand alone, any number of them.
    pub const fn operands(name: &'static str, value: &'static str, doc: &'static str) -> Flag {
        Flag { name, value, list: true, is_operand: true, doc }
    }

    /// Words that stand without a flag, or behind `--`; `texts("")` has them.
    pub const fn words(value: &'static str, doc: &'static str) -> Flag {
        Flag { name: "", value, list: true, is_operand: true, doc }
    }
}

/// What was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    values: Vec<(&'static str, String)>,
}

/// What a command line asks for besides running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To run.
    Run(Parsed),
    /// The help.
    Help,
}

/// Reads the arguments of a subcommand.
///
/// # Errors
/// A sentence that names the flag and what is wrong with it.
pub fn parse(flags: &'static [Flag], args: Vec<OsString>) -> Result<Asked, String> {
    let mut parsed = Parsed::default();
    let mut parser = lexopt::Parser::from_args(args);
    loop {
        let name = match parser.next().map_err(|error| error.to_string())? {
            None => return Ok(Asked::Run(parsed)),
            Some(lexopt::Arg::Short('h')) => return Ok(Asked::Help),
            Some(lexopt::Arg::Long(name)) => name.replace('_', "-"),
            Some(lexopt::Arg::Short(short)) => {
                return Err(format!("there is no flag -{short}; flags are long, such as --help"));
            }
            Some(lexopt::Arg::Value(value)) => {
                if let Some(operand) = flags.iter().find(|flag| flag.is_operand) {
                    let value = value.into_string();
                    let text = value.map_err(|value| format!("{value:?} is not UTF-8"))?;
                    parsed.values.push((operand.name, text));
                    continue;
                }
                return Err(format!("{value:?} stands alone; did you mean a flag's value?"));
            }
        };
        if name == "help" {
            return Ok(Asked::Help);
        }
        let Some(flag) = flags.iter().find(|flag| !flag.is_operand && flag.name == name) else {
            let known = flags.iter().filter(|flag| !flag.is_operand);
            return Err(unknown(&name, known.map(|flag| flag.name)));
        };
        if !flag.list && parsed.values.iter().any(|(given, _)| *given == flag.name) {
            return Err(format!("--{name} stands twice"));
        }
        let value = if flag.value.is_empty() {
            if parser.optional_value().is_some() {
                return Err(format!("--{name} takes no value"));
            }
            String::new()
        } else {
            let missing = |_| format!("--{name} needs a value: --{name} {}", flag.value);
            let value = parser.value().map_err(missing)?;
            value.into_string().map_err(|_| format!("--{name}: its value is not UTF-8"))?
        };
        parsed.values.push((flag.name, value));
    }
}

/// `there is no flag --x`, and the nearest that there is.
pub fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = known.map(|k| (distance(name, k), k)).min();
    match near {
        Some((d, k)) if d <= 2 || d * 3 <= name.len() => {
            format!("there is no flag --{name}; did you mean --{k}?")
        }
        _ => format!("there is no flag --{name}; --help lists those that there are"),
    }
}

/// Edits that make one word of the other (Levenshtein), with neighbours swapped as one.
pub fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let substitute = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = substitute.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

impl Parsed {
    /// A flag's value, as it was typed.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    /// The same without some of the flags.
    pub fn without(&self, names: &[&str]) -> Parsed {
        let kept = self.values.iter().filter(|(name, _)| !names.contains(name));
        Parsed { values: kept.cloned().collect() }
    }

    /// All values of a list.
    pub fn texts(&self, name: &str) -> Vec<&str> {
        let of_name = self.values.iter().filter(|(given, _)| *given == name);
        of_name.map(|(_, value)| value.as_str()).collect()
    }

    /// Whether a flag stands.
    pub fn has(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    /// A number within a range.
    ///
    /// # Errors
    /// A sentence that names the flag and the range.
    pub fn number<T>(&self, name: &str, min: T, max: T) -> Result<Option<T>, String>
    where
        T: FromStr + PartialOrd + Display + Copy,
    {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse::<T>() {
            Ok(number) if number >= min && number <= max => Ok(Some(number)),
            _ => Err(format!("--{name} {text}: not a number from {min} to {max}")),
        }
    }

    /// A duration.
    ///
    /// # Errors
    /// A sentence that names the flag and the units.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        duration(text).map(Some).map_err(|error| format!("--{name} {text}: {error}"))
    }

    /// `--device`.
    ///
    /// # Errors
    /// A sentence that names the flag and what there is.
    pub fn device(&self) -> Result<Choice, String> {
        let text = self.text("device").unwrap_or("auto");
        text.parse().map_err(|error| format!("--device {text}: {error}"))
    }

    /// A number of bytes.
    ///
    /// # Errors
    /// A sentence that names the flag and the units.
    pub fn bytes(&self, name: &str, max: u64) -> Result<Option<u64>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match bytes(text) {
            Some(count) if count <= max => Ok(Some(count)),
            Some(_) => Err(format!("--{name} {text}: over {max} bytes")),
            None => Err(format!("--{name} {text}: not a size such as 4096, 64KiB or 1MiB")),
        }
    }
}

/// `250ms`, `1.5s`, `2m`, `1h`, `80us`; a bare 0 needs no unit.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    const WRONG: &str = "not a time such as 80us, 250ms, 1.5s or 2m";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or("it needs a unit: us, ms, s, m")?;
    let (number, unit) = text.split_at(at);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(WRONG),
    };
    let number: f64 = number.parse().map_err(|_| WRONG)?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| WRONG)
}

/// `64KiB`, `40GiB`, `1TiB`, or a plain number of bytes.
pub fn bytes(text: &str) -> Option<u64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_for_those_who_take_them() {
        const FLAGS: &[Flag] = &[Flag::operands("ref", "REF", "x"), Flag::switch("json", "x")];
        let args = |args: &[&str]| args.iter().map(OsString::from).collect();
        let Ok(Asked::Run(parsed)) = parse(FLAGS, args(&["a", "--json", "b:c", "--", "--d"]))
        else {
            panic!()
        };
        assert_eq!((parsed.texts("ref"), parsed.has("json")), (vec!["a", "b:c", "--d"], true));
        assert!(parse(FLAGS, args(&["--ref", "x"])).unwrap_err().starts_with("there is no flag"));
        assert!(run(&["alone"]).unwrap_err().contains("stands alone"));
    }

    const FLAGS: &[Flag] = &[
        Flag::new("n-predict", "N", "tokens"),
        Flag::list("stop", "TEXT", "stop word"),
        Flag::switch("json", "machine-readable"),
    ];

    fn run(args: &[&str]) -> Result<Asked, String> {
        parse(FLAGS, args.iter().map(OsString::from).collect())
    }

    #[test]
    fn both_spellings_and_lists() {
        let Ok(Asked::Run(parsed)) = run(&["--n_predict=5", "--stop", "a", "--stop=b", "--json"])
        else {
            panic!()
        };
        assert_eq!(parsed.number("n-predict", 1, 9), Ok(Some(5)));
        assert_eq!((parsed.texts("stop"), parsed.has("json")), (vec!["a", "b"], true));
        let range = "--n-predict 5: not a number from 6 to 9";
        assert_eq!(parsed.number("n-predict", 6, 9), Err(range.to_owned()));
        assert_eq!(run(&["--json", "-h"]), Ok(Asked::Help));
    }

    #[test]
    fn words_stand_alone_or_behind_a_dash() {
        const WORDS: &[Flag] = &[Flag::words("FILE", "files"), Flag::switch("json", "as JSON")];
        let args = ["a", "--json", "b", "--", "--json", "-x"].map(OsString::from).to_vec();
        let Ok(Asked::Run(parsed)) = parse(WORDS, args) else { panic!() };
        assert_eq!(parsed.texts(""), ["a", "b", "--json", "-x"]);
        assert!(parsed.has("json"));
    }

    #[test]
    fn faults_are_sentences() {
        let cases: [(&[&str], &str); 7] = [
            (&["--n-predct", "5"], "there is no flag --n-predct; did you mean --n-predict?"),
            (&["--jsno"], "there is no flag --jsno; did you mean --json?"),
            (
                &["--wholly-else"],
                "there is no flag --wholly-else; --help lists those that there are",
            ),
            (&["--json", "--json"], "--json stands twice"),
            (&["--json=1"], "--json takes no value"),
            (&["--n-predict"], "--n-predict needs a value: --n-predict N"),
            (&["-x"], "there is no flag -x; flags are long, such as --help"),
        ];
        for (args, message) in cases {
            assert_eq!(run(args), Err(message.to_owned()));
        }
    }

    #[test]
    fn units() {
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("80us"), Ok(Duration::from_micros(80)));
        assert_eq!(
            (duration("0"), duration("2m")),
            (Ok(Duration::ZERO), Ok(Duration::from_secs(120)))
        );
        assert!(duration("5").is_err() && duration("-1s").is_err() && duration("x").is_err());
        assert_eq!((bytes("64KiB"), bytes("7"), bytes("1x")), (Some(65536), Some(7), None));
    }
}
