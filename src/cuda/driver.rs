//! Devices and what is loaded into them. With `stream.rs` and `symbols.rs` all that knows cust:
//! devices, contexts and the names of CUDA's types are its. Its modules lose the compiler's log, so
//! they are here, on the functions of `symbols`.
//!
//! A context belongs to a thread: a `Gpu` is shared, and a `Lane` (`lane.rs`) makes it current in
//! the thread that opens it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cust::context::{Context, CurrentContext};
use cust::device::{Device, DeviceAttribute};
use cust::error::CudaError;
use cust::sys;

use super::symbols;
use super::{Busy, CardUse, Error, Family};

/// Kept free beside what cnse takes: the driver's own needs grow while it runs.
const RESERVE_BYTES_MIN: usize = 64 << 20;
/// Text of the driver's compiler that an error shows.
const LOG_BYTES: usize = 8 << 10;

/// A result that is not success, as an error.
pub(super) fn check(call: &'static str, code: c_int) -> Result<(), Error> {
    if code == 0 { Ok(()) } else { Err(fault(call, symbols::last_code())) }
}

pub(super) fn fault(call: &'static str, code: c_int) -> Error {
    let mut name: *const c_char = ptr::null();
    // SAFETY: any number may be asked for, and the place for the name outlives the call.
    let found = unsafe { symbols::cuGetErrorName(code, &raw mut name) };
    let name = if found == 0 && !name.is_null() {
        // SAFETY: the driver's own constant.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    } else {
        "a result that this driver has no name for".to_owned()
    };
    Error::Driver { call, code, name }
}

/// The same for what cust called; its enum may have lost the code.
fn told(call: &'static str) -> impl Fn(CudaError) -> Error {
    move |_| fault(call, symbols::last_code())
}

/// Starts the driver, once, and counts its devices.
///
/// # Errors
/// `NoDriver`, `NoDevice`, or what the driver says.
pub fn devices() -> Result<u32, Error> {
    static STARTED: OnceLock<Result<u32, Error>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        symbols::open().map_err(|why| Error::NoDriver { why: why.to_owned() })?;
        if cust::init(cust::CudaFlags::empty()).is_err() {
            let code = symbols::last_code();
            return Err(if code == 100 { Error::NoDevice } else { fault("cuInit", code) });
        }
        match Device::num_devices().map_err(told("cuDeviceGetCount"))? {
            0 => Err(Error::NoDevice),
            count => Ok(count),
        }
    });
    started.clone()
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which, from 0.
    pub ordinal: u32,
    /// What the vendor calls it.
    pub name: String,
    /// Its place on the bus.
    pub bus: String,
    /// Compute capability, such as (9, 0).
    pub capability: (u32, u32),
    /// Memory in bytes.
    pub memory_bytes: usize,
    /// Second-level cache in bytes.
    pub cache_bytes: usize,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Engines that copy beside kernels.
    pub copy_engines: u32,
    /// CUDA's version that the driver has, such as (13, 0).
    pub driver: (u32, u32),
    /// Taken by the driver's start and the context.
    pub opened: Duration,
    /// Taken by the kernels' load, which compiles them where the driver's cache has them not.
    pub loaded: Duration,
}

/// A device with its primary context and what was loaded into it. Shared by all threads.
pub struct Gpu {
    facts: Facts,
    since: Instant,
    budget: AtomicUsize,
    held: AtomicUsize,
    in_use: AtomicUsize,
    high_water: AtomicUsize,
    allocations: AtomicU64,
    kernel_ns: AtomicU64,
    transfer_ns: AtomicU64,
    modules: Mutex<Vec<(&'static str, Arc<Module>)>>,
    context: Context,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens a device and loads these families, as far as it can run them. Takes about 0.3 s, and
    /// more where the driver must compile first.
    ///
    /// # Errors
    /// What is missing, or what the driver says.
    pub fn open(ordinal: u32, families: &[&'static Family]) -> Result<Arc<Gpu>, Error> {
        let begun = Instant::now();
        let count = devices()?;
        if ordinal >= count {
            return Err(Error::NoSuchDevice { ordinal, count });
        }
        let device = Device::get_device(ordinal).map_err(told("cuDeviceGet"))?;
        let context = Context::new(device).map_err(told("cuDevicePrimaryCtxRetain"))?;
        let mut facts = facts(device, ordinal)?;
        facts.opened = begun.elapsed();
        let mut gpu = Gpu {
            facts,
            since: Instant::now(),
            budget: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            in_use: AtomicUsize::new(0),
            high_water: AtomicUsize::new(0),
            allocations: AtomicU64::new(0),
            kernel_ns: AtomicU64::new(0),
            transfer_ns: AtomicU64::new(0),
            modules: Mutex::new(Vec::new()),
            context,
        };
        gpu.make_current()?;
        for family in families.iter().filter(|family| gpu.facts.capability >= family.least) {
            gpu.module(family)?;
        }
        gpu.facts.loaded = begun.elapsed() - gpu.facts.opened;
        let (free, _) = gpu.memory()?;
        gpu.set_budget(free.saturating_sub(RESERVE_BYTES_MIN.max(free / 16)));
        Ok(Arc::new(gpu))
    }

    /// What it is.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Makes the calls of this thread go to it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn make_current(&self) -> Result<(), Error> {
        CurrentContext::set_current(&self.context).map_err(told("cuCtxSetCurrent"))
    }

    /// Free and all memory in bytes, as the driver counts them: of all processes.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(usize, usize), Error> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both numbers outlive the call.
        let code = unsafe { symbols::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        check("cuMemGetInfo", code)?;
        Ok((free, total))
    }

    /// What cnse may take of the memory, in bytes.
    pub fn budget(&self) -> usize {
        self.budget.load(Ordering::Relaxed)
    }

    /// Bounds what cnse may take from here on; what it has it keeps.
    pub fn set_budget(&self, bytes: usize) {
        self.budget.store(bytes, Ordering::Relaxed);
    }

    /// What cnse has taken, in bytes.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How often memory was asked of the driver, for the device or pinned on the host. It stays as
    /// it is once everything is warm.
    pub fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::Relaxed)
    }

    /// What it is, and what this process has used it for. Needs no call of the driver.
    pub fn usage(&self) -> CardUse {
        let ms = |ns: &AtomicU64| ns.load(Ordering::Relaxed) as f64 / 1e6;
        CardUse {
            ordinal: self.facts.ordinal,
            name: self.facts.name.clone(),
            memory_bytes: self.facts.memory_bytes,
            held_bytes: self.held(),
            high_water_bytes: self.high_water.load(Ordering::Relaxed),
            allocations: self.allocations(),
            kernel_ms: ms(&self.kernel_ns),
            transfer_ms: ms(&self.transfer_ns),
            open_ms: self.since.elapsed().as_secs_f64() * 1e3,
        }
    }

    pub(super) fn count_busy(&self, busy: Busy) {
        let ns = |ms: f64| (ms * 1e6) as u64;
        self.kernel_ns.fetch_add(ns(busy.kernel_ms), Ordering::Relaxed);
        self.transfer_ns.fetch_add(ns(busy.transfer_ms), Ordering::Relaxed);
    }

    /// Bytes of a pool that were handed out.
    pub(super) fn count_use(&self, bytes: usize) {
        let now = self.in_use.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.high_water.fetch_max(now, Ordering::Relaxed);
    }

    /// And came back.
    pub(super) fn count_return(&self, bytes: usize) {
        self.in_use.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_allocation(&self) {
        self.allocations.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes as taken, if the budget has room.
    pub(super) fn reserve(&self, bytes: usize) -> Result<(), Error> {
        let budget = self.budget();
        let within = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= budget);
        match self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within) {
            Ok(_) => Ok(()),
            Err(held) => {
                let free = self.memory().map_or(0, |(free, _)| free);
                Err(Error::OutOfMemory { asked: bytes, held, budget, free })
            }
        }
    }

    pub(super) fn release(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A kernel. The family is loaded if it is not yet.
    ///
    /// # Errors
    /// `Module` with the compiler's log, or `NoKernel`.
    pub fn function(&self, family: &'static Family, kernel: &str) -> Result<Function, Error> {
        let module = self.module(family)?;
        let missing = || Error::NoKernel { family: family.name, kernel: kernel.to_owned() };
        let name = CString::new(kernel).map_err(|_| missing())?;
        let mut raw = ptr::null_mut();
        // SAFETY: a loaded module, a NUL-terminated name, and a place that outlives the call.
        let code = unsafe { symbols::cuModuleGetFunction(&raw mut raw, module.raw, name.as_ptr()) };
        match code {
            0 => Ok(Function { raw, _module: module }),
            500 => Err(missing()),
            _ => Err(fault("cuModuleGetFunction", symbols::last_code())),
        }
    }

    fn module(&self, family: &'static Family) -> Result<Arc<Module>, Error> {
        self.make_current()?;
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, module)) = modules.iter().find(|(name, _)| *name == family.name) {
            return Ok(module.clone());
        }
        let module = Arc::new(Module::load(family)?);
        modules.push((family.name, module.clone()));
        Ok(module)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Modules are unloaded from the current context.
        let _ = self.make_current();
        self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn facts(device: Device, ordinal: u32) -> Result<Facts, Error> {
    let attribute = |which| {
        let value = device.get_attribute(which).map_err(told("cuDeviceGetAttribute"))?;
        Ok::<u32, Error>(u32::try_from(value).unwrap_or(0))
    };
    let mut bus = [0u8; 32];
    // SAFETY: the buffer has the length that is told, and outlives the call.
    let code = unsafe {
        symbols::cuDeviceGetPCIBusId(bus.as_mut_ptr().cast::<c_char>(), 32, device.as_raw())
    };
    let bus = if code == 0 { text(&bus) } else { String::new() };
    let mut version = 0;
    // SAFETY: the number outlives the call.
    check("cuDriverGetVersion", unsafe { symbols::cuDriverGetVersion(&raw mut version) })?;
    let version = u32::try_from(version).unwrap_or(0);
    Ok(Facts {
        ordinal,
        name: device.name().map_err(told("cuDeviceGetName"))?,
        bus,
        capability: (
            attribute(DeviceAttribute::ComputeCapabilityMajor)?,
            attribute(DeviceAttribute::ComputeCapabilityMinor)?,
        ),
        memory_bytes: device.total_memory().map_err(told("cuDeviceTotalMem"))?,
        cache_bytes: attribute(DeviceAttribute::L2CacheSize)? as usize,
        multiprocessors: attribute(DeviceAttribute::MultiprocessorCount)?,
        copy_engines: attribute(DeviceAttribute::AsyncEngineCount)?,
        driver: (version / 1000, version % 1000 / 10),
        opened: Duration::ZERO,
        loaded: Duration::ZERO,
    })
}

fn text(buffer: &[u8]) -> String {
    let end = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
    String::from_utf8_lossy(&buffer[..end]).trim().to_owned()
}

/// A family in a context.
struct Module {
    raw: sys::CUmodule,
}

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Module {}
// SAFETY: as above; nothing of it changes.
unsafe impl Sync for Module {}

impl Module {
    fn load(family: &'static Family) -> Result<Module, Error> {
        let log_of = |log: &[u8]| {
            let said = text(log);
            if said.is_empty() { "it says nothing more".to_owned() } else { said }
        };
        let ptx = CString::new(family.ptx).map_err(|_| Error::Module {
            family: family.name,
            code: 0,
            log: "its text has a NUL".to_owned(),
        })?;
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The driver takes numbers as pointers of that value, and writes the log's length back.
        let mut values =
            [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(LOG_BYTES)];
        let mut raw = ptr::null_mut();
        // SAFETY: NUL-terminated text; two options with two values, of which one is a buffer of the
        // length that the other tells; all outlive the call.
        let code = unsafe {
            symbols::cuModuleLoadDataEx(
                &raw mut raw,
                ptx.as_ptr().cast::<c_void>(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        match code {
            0 => Ok(Module { raw }),
            _ => Err(Error::Module {
                family: family.name,
                code: symbols::last_code(),
                log: log_of(&log),
            }),
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once and unloaded once; functions of it hold it alive.
        unsafe { symbols::cuModuleUnload(self.raw) };
    }
}

/// A kernel of a loaded family.
#[derive(Clone)]
pub struct Function {
    pub(super) raw: sys::CUfunction,
    _module: Arc<Module>,
}

// SAFETY: as `Module`.
unsafe impl Send for Function {}
// SAFETY: as `Module`.
unsafe impl Sync for Function {}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Function")
    }
}

impl Function {
    /// Blocks of so many threads that a multiprocessor can hold at once.
    ///
    /// # Errors
    /// What the driver says.
    pub fn blocks_per_multiprocessor(&self, threads: u32, shared: u32) -> Result<u32, Error> {
        let mut blocks = 0;
        // SAFETY: a live function, and a number that outlives the call.
        let code = unsafe {
            symbols::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &raw mut blocks,
                self.raw,
                threads as c_int,
                shared as usize,
            )
        };
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", code)?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }
}
