//! A kernel that copies, and may take its time: `cuda/probe.cu`. What launches, transfers and
//! overlap cost is measured with it.

use std::sync::Arc;

use super::blocks;
use crate::cuda::{Arguments, DeviceVec, Error, Family, Function, Gpu, Grid, Lane, PinnedVec};

/// The kernel of `cuda/probe.cu`.
pub static PROBE: Family = family!("probe");

const THREADS: u32 = 256;

/// The kernel.
#[derive(Clone, Debug)]
pub struct Probe {
    function: Function,
    multiprocessors: u32,
}

impl Probe {
    /// Takes the kernel from a card.
    ///
    /// # Errors
    /// What the driver says.
    pub fn load(gpu: &Arc<Gpu>) -> Result<Probe, Error> {
        let function = gpu.function(&PROBE, "probe")?;
        Ok(Probe { function, multiprocessors: gpu.facts().multiprocessors })
    }

    /// Copies on the card, with `turns` multiplications for each element. Does not wait.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn copy(
        &self,
        lane: &Lane,
        from: &DeviceVec<f32>,
        to: &mut DeviceVec<f32>,
        turns: u32,
    ) -> Result<(), Error> {
        assert_eq!(from.len(), to.len());
        self.launch(lane, from, to.at_mut(), turns)
    }

    /// Writes to the host's memory, where it is when the lane was waited for: waits.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn copy_to_host(
        &self,
        lane: &Lane,
        from: &DeviceVec<f32>,
        to: &mut PinnedVec<f32>,
    ) -> Result<(), Error> {
        assert_eq!(from.len(), to.len());
        self.launch(lane, from, to.mapped()?, 0)?;
        lane.synchronize()
    }

    fn launch(&self, lane: &Lane, from: &DeviceVec<f32>, to: u64, turns: u32) -> Result<(), Error> {
        let count = u32::try_from(from.len()).expect("elements are counted in 32 bits");
        let blocks = blocks(u64::from(count.div_ceil(THREADS)), self.multiprocessors);
        let arguments = Arguments::new().with(from.at()).with(to).with(count).with(turns);
        // SAFETY: pointers and counts as the kernel has them, of two places that are as long; the
        // callers hold both, and wait where one is the host's.
        unsafe { lane.stream().launch(&self.function, Grid::line(blocks, THREADS), &arguments) }
    }
}
