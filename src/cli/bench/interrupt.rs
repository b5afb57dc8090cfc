//! Ctrl-C during a measurement: the first ends the load and keeps what was measured, the second
//! ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::signal::{SigSet, Signal};

use super::runner::GO_ON;
use crate::cli::Error;

/// A load is under way; until then a signal ends the program.
const LOADING: u8 = 1;
/// It is to end.
const INTERRUPTED: u8 = 2;

/// Whether a load was interrupted.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<AtomicU8>);

impl Interrupt {
    /// Holds SIGINT back from now on, to be called before there are other threads.
    ///
    /// # Errors
    /// The signal cannot be held back, or there is no thread to wait for it.
    pub fn hold() -> Result<Interrupt, Error> {
        let failed = |error: String| Error::Failed(format!("holding SIGINT back: {error}"));
        let signals: SigSet = [Signal::SIGINT].into_iter().collect();
        signals.thread_block().map_err(|error| failed(error.to_string()))?;
        let interrupt = Interrupt::default();
        let state = interrupt.0.clone();
        let wait = move || {
            while signals.wait().is_ok() {
                let first = state.compare_exchange(
                    LOADING,
                    INTERRUPTED,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                if first.is_err() {
                    std::process::exit(GO_ON.into());
                }
                eprintln!(
                    "cnse: interrupted: no request starts any more, and those under way are waited \
                     for; a second interrupt ends at once"
                );
            }
        };
        let thread = std::thread::Builder::new().name("cnse-signals".to_owned()).spawn(wait);
        thread.map_err(|error| failed(error.to_string()))?;
        Ok(interrupt)
    }

    /// A load begins: from now on an interrupt ends it alone.
    pub fn load_begins(&self) {
        self.0.store(LOADING, Ordering::Relaxed);
    }

    /// Whether the load is to end.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) == INTERRUPTED
    }
}
