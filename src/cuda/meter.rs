//! How long a stream's kernels and copies keep the card busy. Off unless asked for: two events
//! around each cost some microseconds.

use std::cell::{Cell, RefCell};

use super::stream::Event;
use super::{Error, Gpu, Stream};

/// What the time went into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A kernel, or a copy on the card.
    Kernel,
    /// A copy from or to the host.
    Transfer,
}

/// Milliseconds of the card.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Busy {
    /// In kernels.
    pub kernel_ms: f64,
    /// In copies from or to the host.
    pub transfer_ms: f64,
}

/// A stream's meter.
#[derive(Debug, Default)]
pub struct Meter {
    is_on: Cell<bool>,
    pending: RefCell<Vec<(Work, Event, Event)>>,
    spare: RefCell<Vec<Event>>,
}

impl Meter {
    /// Begins to measure.
    pub fn start(&self) {
        self.is_on.set(true);
    }

    pub(super) fn around(
        &self,
        stream: &Stream,
        work: Work,
        add: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        if !self.is_on.get() {
            return add();
        }
        let (begin, end) = (self.event(stream)?, self.event(stream)?);
        begin.record(stream)?;
        add()?;
        end.record(stream)?;
        self.pending.borrow_mut().push((work, begin, end));
        Ok(())
    }

    fn event(&self, stream: &Stream) -> Result<Event, Error> {
        let spare = self.spare.borrow_mut().pop();
        spare.map_or_else(|| Event::open(stream.gpu()), Ok)
    }

    /// To be called when the stream has done all that was added.
    pub(super) fn settle(&self, gpu: &Gpu) -> Result<(), Error> {
        let mut busy = Busy::default();
        for (work, begin, end) in self.pending.borrow_mut().drain(..) {
            let ms = end.milliseconds_since(&begin)?;
            match work {
                Work::Kernel => busy.kernel_ms += ms,
                Work::Transfer => busy.transfer_ms += ms,
            }
            self.spare.borrow_mut().extend([begin, end]);
        }
        gpu.count_busy(busy);
        Ok(())
    }
}
