//! Times of work as the card's own clock has them.

use super::{Busy, Error, Event, Lane};

impl Lane {
    /// Milliseconds that the card takes for what `add` adds to the stream. Waits.
    ///
    /// # Errors
    /// What `add` or the driver says.
    pub fn time(&self, add: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
        let (begin, end) = (Event::open(self.gpu())?, Event::open(self.gpu())?);
        begin.record(self.stream())?;
        add()?;
        end.record(self.stream())?;
        self.synchronize()?;
        let kernel_ms = end.milliseconds_since(&begin)?;
        self.gpu().count_busy(Busy { kernel_ms, ..Busy::default() });
        Ok(kernel_ms)
    }

    /// The same of what `add(i)` adds for i from 0 to `inputs`, captured as one graph: samples of
    /// at least `least_ms`, each over as many replays as that takes. Milliseconds of one call.
    ///
    /// # Errors
    /// What `add` or the driver says; also where it allocates from the driver once it is warm.
    pub fn time_graph(
        &self,
        inputs: usize,
        samples: usize,
        least_ms: f64,
        mut add: impl FnMut(usize) -> Result<(), Error>,
    ) -> Result<Vec<f64>, Error> {
        (0..inputs).try_for_each(&mut add)?;
        self.synchronize()?;
        let graph = self.stream().capture(|| (0..inputs).try_for_each(&mut add))?;
        let replay = |times: u32| {
            self.time(|| {
                for _ in 0..times {
                    // SAFETY: `add` borrows what it uses, so it lives until this function ends;
                    // what it took from this lane's pools and gave back is still memory of these
                    // pools, which nobody else uses meanwhile.
                    unsafe { self.stream().replay(&graph)? };
                }
                Ok(())
            })
        };
        replay(1)?;
        let once = replay(1)?.max(1e-3);
        let times = ((least_ms / once).ceil()).clamp(1.0, 4096.0) as u32;
        let calls = f64::from(times) * inputs as f64;
        (0..samples).map(|_| Ok(replay(times)? / calls)).collect()
    }
}
