//! Streams, what is launched on them, events and graphs; each is freed when it is dropped.
//!
//! cust has them too, but its streams wait for the default one, its events hide their handle, which
//! another stream needs to wait for them, and its graphs cannot be launched.

use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use cust::sys;

use super::Error;
use super::driver::{Function, Gpu, check, fault};
use super::memory::Plain;
use super::meter::{Meter, Work};
use super::symbols;

/// Arguments of a kernel at most, and bytes of each: ours have fewer, and pass pointers.
const ARGUMENTS_MAX: usize = 32;
const ARGUMENT_BYTES_MAX: usize = 16;

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x, y, z.
    pub blocks: [u32; 3],
    /// Threads of a block along x, y, z.
    pub threads: [u32; 3],
    /// Shared memory of a block that the kernel does not declare itself, in bytes.
    pub shared_bytes: u32,
}

impl Grid {
    /// One row of blocks.
    pub const fn line(blocks: u32, threads: u32) -> Grid {
        Grid::plane(blocks, 1, threads)
    }

    /// Rows of blocks.
    pub const fn plane(x: u32, y: u32, threads: u32) -> Grid {
        Grid { blocks: [x, y, 1], threads: [threads, 1, 1], shared_bytes: 0 }
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Slot([u8; ARGUMENT_BYTES_MAX]);

/// What a kernel is called with, in the order of its parameters.
pub struct Arguments {
    slots: [Slot; ARGUMENTS_MAX],
    count: usize,
}

impl Default for Arguments {
    fn default() -> Arguments {
        Arguments::new()
    }
}

impl fmt::Debug for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} arguments", self.count)
    }
}

impl Arguments {
    /// None yet.
    pub fn new() -> Arguments {
        Arguments { slots: [Slot([0; ARGUMENT_BYTES_MAX]); ARGUMENTS_MAX], count: 0 }
    }

    /// One more: a number, or a pointer as `u64`.
    #[must_use]
    pub fn with<T: Plain>(mut self, value: T) -> Arguments {
        const { assert!(size_of::<T>() <= ARGUMENT_BYTES_MAX) }
        let slot = &mut self.slots[self.count];
        // SAFETY: the slot is aligned to 16 and has room for the value, which is plain bytes.
        unsafe { slot.0.as_mut_ptr().cast::<T>().write(value) };
        self.count += 1;
        self
    }
}

/// Work in order. Does not wait for the default stream.
pub struct Stream {
    raw: sys::CUstream,
    gpu: Arc<Gpu>,
    meter: Meter,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

/// CU_STREAM_NON_BLOCKING.
const NON_BLOCKING: u32 = 1;

impl Stream {
    /// A new one, in this thread's context: `gpu`'s must be current.
    ///
    /// # Errors
    /// What the driver says.
    pub fn open(gpu: &Arc<Gpu>) -> Result<Stream, Error> {
        let mut raw = ptr::null_mut();
        // SAFETY: a place that outlives the call.
        let code = unsafe { symbols::cuStreamCreateWithPriority(&raw mut raw, NON_BLOCKING, 0) };
        check("cuStreamCreateWithPriority", code)?;
        Ok(Stream { raw, gpu: gpu.clone(), meter: Meter::default() })
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Its meter.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Adds a kernel.
    ///
    /// # Safety
    /// The arguments are of the number and types of the kernel's parameters, and it touches only
    /// memory that is valid until the stream has come past it.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn launch(
        &self,
        function: &Function,
        grid: Grid,
        arguments: &Arguments,
    ) -> Result<(), Error> {
        let mut places = [ptr::null_mut::<c_void>(); ARGUMENTS_MAX];
        for (place, slot) in places.iter_mut().zip(&arguments.slots[..arguments.count]) {
            *place = (&raw const *slot).cast_mut().cast::<c_void>();
        }
        let ([x, y, z], [tx, ty, tz]) = (grid.blocks, grid.threads);
        self.meter.around(self, Work::Kernel, || {
            // SAFETY: a live function and stream; a place for each argument, which the driver
            // copies before it returns; for the rest the caller's word.
            let code = unsafe {
                symbols::cuLaunchKernel(
                    function.raw,
                    x,
                    y,
                    z,
                    tx,
                    ty,
                    tz,
                    grid.shared_bytes,
                    self.raw,
                    places.as_mut_ptr(),
                    ptr::null_mut(),
                )
            };
            check("cuLaunchKernel", code)
        })
    }

    /// Waits for all that was added.
    ///
    /// # Errors
    /// What the driver says, also of work that was added before.
    pub fn synchronize(&self) -> Result<(), Error> {
        // SAFETY: a live stream.
        check("cuStreamSynchronize", unsafe { symbols::cuStreamSynchronize(self.raw) })
    }

    /// Whether all that was added is done.
    ///
    /// # Errors
    /// As `synchronize`.
    pub fn is_idle(&self) -> Result<bool, Error> {
        // SAFETY: a live stream.
        match unsafe { symbols::cuStreamQuery(self.raw) } {
            0 => Ok(true),
            600 => Ok(false),
            _ => Err(fault("cuStreamQuery", symbols::last_code())),
        }
    }

    /// Has what is added from here on wait for an event of another stream.
    ///
    /// # Errors
    /// What the driver says.
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        // SAFETY: a live stream and event; no flags are defined.
        let code = unsafe { symbols::cuStreamWaitEvent(self.raw, event.raw, 0) };
        check("cuStreamWaitEvent", code)
    }

    /// Records what `add` adds, without running it.
    ///
    /// # Errors
    /// What `add` or the driver says. What would allocate from the driver fails in here: warm up.
    pub fn capture(&self, add: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a live stream.
        let code = unsafe { symbols::cuStreamBeginCapture_v2(self.raw, mode) };
        check("cuStreamBeginCapture", code)?;
        let added = add();
        let mut graph = ptr::null_mut();
        // SAFETY: a stream whose capture began above, and a place that outlives the call.
        let code = unsafe { symbols::cuStreamEndCapture(self.raw, &raw mut graph) };
        added?;
        check("cuStreamEndCapture", code)?;
        let (mut raw, mut node) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a graph from above; no log is asked for.
        let made = unsafe {
            symbols::cuGraphInstantiate_v2(&raw mut raw, graph, &raw mut node, ptr::null_mut(), 0)
        };
        let made = check("cuGraphInstantiate", made);
        // SAFETY: made above and not used again: what was instantiated is a copy.
        unsafe { symbols::cuGraphDestroy(graph) };
        made.map(|()| Graph { raw, _gpu: self.gpu.clone() })
    }

    /// Adds all of a graph.
    ///
    /// # Safety
    /// As `launch`, of each kernel and copy that was captured.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<(), Error> {
        self.meter.around(self, Work::Kernel, || {
            // SAFETY: a live graph and stream; for the rest the caller's word.
            check("cuGraphLaunch", unsafe { symbols::cuGraphLaunch(graph.raw, self.raw) })
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // What is still running may use memory that is freed next.
        let _ = self.synchronize();
        // SAFETY: made once and destroyed once.
        unsafe { symbols::cuStreamDestroy_v2(self.raw) };
    }
}

/// Recorded work.
pub struct Graph {
    raw: sys::CUgraphExec,
    _gpu: Arc<Gpu>,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once.
        unsafe { symbols::cuGraphExecDestroy(self.raw) };
    }
}

/// A point of a stream.
pub struct Event {
    raw: sys::CUevent,
    _gpu: Arc<Gpu>,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Event")
    }
}

impl Event {
    /// One that keeps its time.
    ///
    /// # Errors
    /// What the driver says.
    pub fn open(gpu: &Arc<Gpu>) -> Result<Event, Error> {
        let mut raw = ptr::null_mut();
        // SAFETY: a place that outlives the call; 0 is CU_EVENT_DEFAULT.
        check("cuEventCreate", unsafe { symbols::cuEventCreate(&raw mut raw, 0) })?;
        Ok(Event { raw, _gpu: gpu.clone() })
    }

    /// Sets it to where the stream is now.
    ///
    /// # Errors
    /// What the driver says.
    pub fn record(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: a live event and stream.
        check("cuEventRecord", unsafe { symbols::cuEventRecord(self.raw, stream.raw) })
    }

    /// Waits until the stream has come here.
    ///
    /// # Errors
    /// What the driver says.
    pub fn synchronize(&self) -> Result<(), Error> {
        // SAFETY: a live event.
        check("cuEventSynchronize", unsafe { symbols::cuEventSynchronize(self.raw) })
    }

    /// Whether the stream has come here.
    ///
    /// # Errors
    /// What the driver says.
    pub fn is_past(&self) -> Result<bool, Error> {
        // SAFETY: a live event.
        match unsafe { symbols::cuEventQuery(self.raw) } {
            0 => Ok(true),
            600 => Ok(false),
            _ => Err(fault("cuEventQuery", symbols::last_code())),
        }
    }

    /// Milliseconds from an earlier event; both must be past.
    ///
    /// # Errors
    /// What the driver says.
    pub fn milliseconds_since(&self, earlier: &Event) -> Result<f64, Error> {
        let mut milliseconds = 0.0f32;
        // SAFETY: two live events, and a number that outlives the call.
        let code =
            unsafe { symbols::cuEventElapsedTime(&raw mut milliseconds, earlier.raw, self.raw) };
        check("cuEventElapsedTime", code)?;
        Ok(f64::from(milliseconds))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once.
        unsafe { symbols::cuEventDestroy_v2(self.raw) };
    }
}
