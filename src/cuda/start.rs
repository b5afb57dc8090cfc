//! Opening a card off the start-up path: the driver takes some tenths of a second, and longer where
//! it has to compile the kernels; until then whoever asks works on the CPU.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use super::{CardUse, Error, Gpu};

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

/// The card that a command's work is for: opened when it is first wanted, and given up where it
/// fails. Clones share it.
#[derive(Clone, Debug)]
pub struct Device {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    choice: Choice,
    starting: OnceLock<Starting>,
    /// Somebody has said why the CPU does its work.
    told: AtomicBool,
}

impl Device {
    /// None is opened yet.
    pub fn new(choice: Choice) -> Device {
        let (starting, told) = (OnceLock::new(), AtomicBool::new(false));
        Device { shared: Arc::new(Shared { choice, starting, told }) }
    }

    /// What was asked for.
    pub fn choice(&self) -> Choice {
        self.shared.choice
    }

    /// Begins to open it, if that has not begun. The driver's threads take over the mask of signals
    /// of whoever does: those that another thread awaits must be blocked.
    pub fn start(&self) -> &Starting {
        self.shared.starting.get_or_init(|| start(self.shared.choice))
    }

    /// Says why the CPU does a card's work from now on; once, however many threads come to it.
    pub fn give_up(&self, error: &Error) {
        if self.shared.told.swap(true, Ordering::Relaxed) {
            return;
        }
        match (error.is_absence(), self.shared.choice) {
            (true, Choice::Device(_)) => log::warn!("the CPU does the card's work: {error}"),
            (true, _) => log::info!("the CPU does the card's work: {error}"),
            (false, _) => log::warn!("from now on the CPU does the card's work: {error}"),
        }
    }

    /// Whether it was begun to be opened.
    pub fn is_started(&self) -> bool {
        self.shared.starting.get().is_some()
    }

    /// What it is and did; None: there is none, or it is not open yet.
    pub fn usage(&self) -> Option<CardUse> {
        let outcome = self.shared.starting.get()?.poll()?;
        outcome.as_ref().ok().map(|gpu| gpu.usage())
    }
}

impl Drop for Shared {
    /// A process must not end while another thread of it starts the driver.
    fn drop(&mut self) {
        if let Some(starting) = self.starting.get() {
            starting.wait();
        }
    }
}

#[cfg(not(feature = "cuda"))]
impl Gpu {
    fn usage(&self) -> CardUse {
        match *self {}
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
        let device = Device::new(Choice::Cpu);
        assert!(device.start().wait().is_err() && device.clone().usage().is_none());
    }
}
