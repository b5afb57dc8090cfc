//! What the cards of a host are and do at the moment, for all processes: NVIDIA's management
//! library, found at run time. It takes no context on a card, and none of its memory.
//!
//! A host whose kernel shows no NVIDIA device is told from one that does by a look at `/dev`, so
//! that it does not even look for the library.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::transmute;
use std::path::Path;
use std::ptr;

const LIBRARY: &CStr = c"libnvidia-ml.so.1";
/// The kernel module's own device: there is no card in use without it.
const DEVICE: &str = "/dev/nvidiactl";
/// NVML_DEVICE_NAME_V2_BUFFER_SIZE.
const NAME_BYTES: usize = 96;
/// More than any host has.
const CARDS_MAX: c_uint = 64;

/// A card at the moment.
#[derive(Clone, Debug, PartialEq)]
pub struct CardNow {
    /// What the vendor calls it.
    pub name: String,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    /// What all processes have taken of it, in bytes.
    pub used_bytes: u64,
    /// The share of the last moments (a sixth of a second to one) in which a kernel ran, 0 to 1;
    /// None: the card does not tell.
    pub utilisation: Option<f64>,
}

/// nvmlMemory_t.
#[derive(Default)]
#[repr(C)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// nvmlUtilization_t, in percent.
#[derive(Default)]
#[repr(C)]
struct Utilisation {
    gpu: c_uint,
    memory: c_uint,
}

type Device = *mut c_void;

/// The functions that are used.
struct Library {
    shutdown: unsafe extern "C" fn() -> c_int,
    count: unsafe extern "C" fn(*mut c_uint) -> c_int,
    handle: Handle,
    name: Name,
    memory: OfMemory,
    utilisation: OfUse,
}

type Handle = unsafe extern "C" fn(c_uint, *mut Device) -> c_int;
type Name = unsafe extern "C" fn(Device, *mut c_char, c_uint) -> c_int;
type OfMemory = unsafe extern "C" fn(Device, *mut Memory) -> c_int;
type OfUse = unsafe extern "C" fn(Device, *mut Utilisation) -> c_int;

/// The cards; none where there is no driver, or it does not tell.
pub fn cards() -> Vec<CardNow> {
    if !Path::new(DEVICE).exists() {
        return Vec::new();
    }
    let Some(library) = Library::open() else { return Vec::new() };
    let mut count = 0;
    // SAFETY: a place that outlives the call.
    let told = unsafe { (library.count)(&raw mut count) };
    let count = if told == 0 { count.min(CARDS_MAX) } else { 0 };
    (0..count).filter_map(|index| library.card(index)).collect()
}

impl Library {
    /// Opens and starts it.
    fn open() -> Option<Library> {
        // SAFETY: a NUL-terminated name of a library that is made to be loaded into any process;
        // it is never closed.
        let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            return None;
        }
        let find = |name: &CStr| {
            // SAFETY: a handle from above and a NUL-terminated name.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        let (init, shutdown) = (find(c"nvmlInit_v2")?, find(c"nvmlShutdown")?);
        let (count, handle) =
            (find(c"nvmlDeviceGetCount_v2")?, find(c"nvmlDeviceGetHandleByIndex_v2")?);
        let (name, memory) = (find(c"nvmlDeviceGetName")?, find(c"nvmlDeviceGetMemoryInfo")?);
        let utilisation = find(c"nvmlDeviceGetUtilizationRates")?;
        // SAFETY: the library's ABI (nvml.h): this name has no parameters.
        let init = unsafe { transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(init) };
        // SAFETY: it takes nothing.
        if unsafe { init() } != 0 {
            return None;
        }
        // SAFETY: the library's ABI (nvml.h): these names have these parameters.
        Some(unsafe {
            Library {
                shutdown: transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(shutdown),
                count: transmute::<*mut c_void, unsafe extern "C" fn(*mut c_uint) -> c_int>(count),
                handle: transmute::<*mut c_void, Handle>(handle),
                name: transmute::<*mut c_void, Name>(name),
                memory: transmute::<*mut c_void, OfMemory>(memory),
                utilisation: transmute::<*mut c_void, OfUse>(utilisation),
            }
        })
    }

    fn card(&self, index: c_uint) -> Option<CardNow> {
        let mut device: Device = ptr::null_mut();
        let mut name = [0u8; NAME_BYTES];
        let (mut memory, mut busy) = (Memory::default(), Utilisation::default());
        // SAFETY: started, an index below the count, and a place that outlives the call.
        if unsafe { (self.handle)(index, &raw mut device) } != 0 {
            return None;
        }
        // SAFETY: a handle from above, and a buffer of the length that is told.
        let named =
            unsafe { (self.name)(device, name.as_mut_ptr().cast(), NAME_BYTES as c_uint) } == 0;
        // SAFETY: as above, and a place of the library's layout.
        let told = unsafe { (self.memory)(device, &raw mut memory) } == 0;
        // SAFETY: as above.
        let busy_told = unsafe { (self.utilisation)(device, &raw mut busy) } == 0;
        let name = CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy().into_owned();
        (named && told).then(|| CardNow {
            name,
            memory_bytes: memory.total,
            used_bytes: memory.used,
            utilisation: busy_told.then(|| f64::from(busy.gpu) / 100.0),
        })
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: it was started, once.
        unsafe { (self.shutdown)() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_driver_has_no_cards() {
        let found = cards();
        assert!(Path::new(DEVICE).exists() || found.is_empty());
        for card in found {
            assert!(!card.name.is_empty() && card.used_bytes <= card.memory_bytes);
        }
    }
}
