//! Opening a card off the start-up path: the driver takes some tenths of a second, and longer where
//! it has to compile the kernels; until then whoever asks works on the CPU.

use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use super::{Error, Gpu};

/// Which card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first, if there is one.
    #[default]
    Auto,
    /// None.
    Cpu,
    /// That one, from 0.
    Device(u32),
}

impl FromStr for Choice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Choice, &'static str> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Choice::Auto),
            ("cpu", _) => Ok(Choice::Cpu),
            ("cuda", _) => Ok(Choice::Device(0)),
            (_, Some(Ok(ordinal))) => Ok(Choice::Device(ordinal)),
            _ => Err("not auto, cpu or cuda:N (from cuda:0)"),
        }
    }
}

type Outcome = Result<Arc<Gpu>, Error>;

/// A card that is being opened. Clones share it.
#[derive(Clone, Debug)]
pub struct Starting {
    outcome: Arc<OnceLock<Outcome>>,
}

/// Begins to open a card, in a thread of its own. The process must not fork afterwards: the driver
/// has threads.
pub fn start(choice: Choice) -> Starting {
    let outcome = Arc::new(OnceLock::new());
    let place = outcome.clone();
    let thread = std::thread::Builder::new().name("cuda".to_owned());
    let spawned: std::io::Result<JoinHandle<()>> = thread.spawn(move || {
        place.get_or_init(|| open(choice));
    });
    if spawned.is_err() {
        outcome.get_or_init(|| open(choice));
    }
    Starting { outcome }
}

impl Starting {
    /// The card, or why there is none; `None`: not known yet.
    pub fn poll(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// The same, when it is known.
    pub fn wait(&self) -> &Outcome {
        self.outcome.wait()
    }
}

#[cfg(feature = "cuda")]
fn open(choice: Choice) -> Outcome {
    match choice {
        Choice::Cpu => Err(Error::NotWanted),
        Choice::Auto => Gpu::open(0, super::FAMILIES),
        Choice::Device(ordinal) => Gpu::open(ordinal, super::FAMILIES),
    }
}

#[cfg(not(feature = "cuda"))]
fn open(choice: Choice) -> Outcome {
    match choice {
        Choice::Cpu => Err(Error::NotWanted),
        Choice::Auto | Choice::Device(_) => Err(Error::NotBuilt),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        for (text, choice) in [
            ("auto", Ok(Choice::Auto)),
            ("cpu", Ok(Choice::Cpu)),
            ("cuda", Ok(Choice::Device(0))),
            ("cuda:3", Ok(Choice::Device(3))),
            ("cuda:", Err("not auto, cpu or cuda:N (from cuda:0)")),
            ("gpu", Err("not auto, cpu or cuda:N (from cuda:0)")),
        ] {
            assert_eq!(text.parse(), choice);
        }
    }

    #[test]
    fn without_a_card_it_says_why() {
        let starting = start(Choice::Cpu);
        assert_eq!(starting.wait().as_ref().err(), Some(&Error::NotWanted));
        assert!(starting.poll().is_some());
        let outcome = start(Choice::Device(4095)).wait().clone();
        let error = outcome.expect_err("nobody has so many cards");
        assert!(!error.to_string().is_empty(), "{error}");
    }
}
