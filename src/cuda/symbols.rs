//! The functions of CUDA's driver, each found in `libcuda.so.1` when it is first called.
//!
//! cust (and this crate) refer to them by name, and would have the binary linked with the driver:
//! then it would not start where there is none. So they are defined here, and forward. Without a
//! driver each returns 100 (no device), and 500 (not found) where the driver lacks it.
//!
//! Two more things hold. A code that cust's enum, which knows CUDA 11.4, does not have becomes 999
//! (unknown), since an enum with another value would be undefined behaviour; `last_code` has the
//! true one. And the names are hidden, so that a library in this process which opens the real
//! driver, such as a CUDA-aware MPI, never gets these.
#![allow(non_snake_case, reason = "CUDA's own names")]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use cust::sys::*;

/// What a driver is called by the dynamic linker.
const LIBRARY: &CStr = c"libcuda.so.1";
const NO_DEVICE: c_int = 100;
const NOT_FOUND: c_int = 500;
const UNKNOWN: c_int = 999;
/// Ranges of codes that `CUresult` of CUDA 11.4 has.
const KNOWN: [(c_int, c_int); 14] = [
    (0, 8),
    (34, 34),
    (100, 102),
    (200, 202),
    (205, 224),
    (300, 304),
    (400, 401),
    (500, 500),
    (600, 600),
    (700, 705),
    (708, 720),
    (800, 809),
    (900, 911),
    (UNKNOWN, UNKNOWN),
];

thread_local! {
    static LAST: Cell<c_int> = const { Cell::new(0) };
}

/// The code that the last call of this thread returned, as the driver gave it.
pub fn last_code() -> c_int {
    LAST.get()
}

/// Opens the driver, once.
///
/// # Errors
/// What the dynamic linker says.
pub fn open() -> Result<(), &'static str> {
    library().as_ref().map(|_| ()).map_err(String::as_str)
}

/// An address as a number: a library is never closed, so any thread may have it.
fn library() -> &'static Result<usize, String> {
    static OPENED: OnceLock<Result<usize, String>> = OnceLock::new();
    OPENED.get_or_init(|| {
        // SAFETY: a NUL-terminated name; what the library does when it is loaded is its business,
        // and a process that is to use a card has no choice but to load it.
        let handle = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if !handle.is_null() {
            return Ok(handle.addr());
        }
        // SAFETY: dlopen failed in this thread, so dlerror tells why, as a C string or null.
        let said = unsafe { libc::dlerror() };
        if said.is_null() {
            return Err(format!("{} cannot be opened", LIBRARY.to_string_lossy()));
        }
        // SAFETY: not null, and valid until the next call of dlerror in this thread.
        Err(unsafe { CStr::from_ptr(said) }.to_string_lossy().into_owned())
    })
}

/// Where the driver has a function, or the code to return instead.
fn find(at: &AtomicPtr<c_void>, name: &str) -> Result<*mut c_void, c_int> {
    let known = at.load(Ordering::Relaxed);
    if !known.is_null() {
        return Ok(known);
    }
    let handle = library().as_ref().map_err(|_| NO_DEVICE)?;
    let name = CStr::from_bytes_with_nul(name.as_bytes()).map_err(|_| NOT_FOUND)?;
    let handle = ptr::with_exposed_provenance_mut::<c_void>(*handle);
    // SAFETY: a handle that dlopen returned, never closed, and a NUL-terminated name.
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if found.is_null() {
        return Err(NOT_FOUND);
    }
    at.store(found, Ordering::Relaxed);
    Ok(found)
}

/// Keeps the code for `last_code` and returns one that `CUresult` has.
fn keep(code: c_int) -> c_int {
    LAST.set(code);
    let is_known = KNOWN.iter().any(|(first, last)| (*first..=*last).contains(&code));
    if is_known { code } else { UNKNOWN }
}

macro_rules! forward {
    ($($name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {$(
        /// Forwards to the driver's function of this name.
        ///
        /// # Safety
        /// As the driver's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> c_int {
            static AT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
            match find(&AT, concat!(stringify!($name), "\0")) {
                Ok(at) => {
                    // SAFETY: the driver's ABI: this name has these parameters.
                    let call = unsafe {
                        std::mem::transmute::<
                            *mut c_void,
                            unsafe extern "C" fn($($type),*) -> c_int,
                        >(at)
                    };
                    // SAFETY: the caller keeps to what the driver asks for.
                    keep(unsafe { call($($arg),*) })
                }
                Err(code) => keep(code),
            }
        }
        std::arch::global_asm!(concat!(".hidden ", stringify!($name)));
    )*};
}

// As in CUDA's header (cuda.h); those that cust may call, and those that src/cuda does.
forward! {
    cuArray3DCreate_v2(
        p_handle: *mut CUarray, p_allocate_array: *const CUDA_ARRAY3D_DESCRIPTOR
    );
    cuArray3DGetDescriptor_v2(
        p_array_descriptor: *mut CUDA_ARRAY3D_DESCRIPTOR, h_array: CUarray
    );
    cuArrayDestroy(h_array: CUarray);
    cuCtxCreate_v2(pctx: *mut CUcontext, flags: c_uint, dev: CUdevice);
    cuCtxDestroy_v2(ctx: CUcontext);
    cuCtxGetApiVersion(ctx: CUcontext, version: *mut c_uint);
    cuCtxGetCacheConfig(pconfig: *mut CUfunc_cache);
    cuCtxGetCurrent(pctx: *mut CUcontext);
    cuCtxGetDevice(device: *mut CUdevice);
    cuCtxGetFlags(flags: *mut c_uint);
    cuCtxGetLimit(pvalue: *mut usize, limit: CUlimit);
    cuCtxGetSharedMemConfig(p_config: *mut CUsharedconfig);
    cuCtxGetStreamPriorityRange(least_priority: *mut c_int, greatest_priority: *mut c_int);
    cuCtxPopCurrent_v2(pctx: *mut CUcontext);
    cuCtxSetCacheConfig(config: CUfunc_cache);
    cuCtxSetCurrent(ctx: CUcontext);
    cuCtxSetLimit(limit: CUlimit, value: usize);
    cuCtxSetSharedMemConfig(config: CUsharedconfig);
    cuCtxSynchronize();
    cuDestroyExternalMemory(ext_mem: CUexternalMemory);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetAttribute(pi: *mut c_int, attrib: CUdevice_attribute, dev: CUdevice);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGetName(name: *mut c_char, len: c_int, dev: CUdevice);
    cuDeviceGetPCIBusId(pci_bus_id: *mut c_char, len: c_int, dev: CUdevice);
    cuDevicePrimaryCtxRelease_v2(dev: CUdevice);
    cuDevicePrimaryCtxReset_v2(dev: CUdevice);
    cuDevicePrimaryCtxRetain(pctx: *mut CUcontext, dev: CUdevice);
    cuDevicePrimaryCtxSetFlags_v2(dev: CUdevice, flags: c_uint);
    cuDeviceTotalMem_v2(bytes: *mut usize, dev: CUdevice);
    cuDriverGetVersion(driver_version: *mut c_int);
    cuEventCreate(ph_event: *mut CUevent, flags: c_uint);
    cuEventDestroy_v2(h_event: CUevent);
    cuEventElapsedTime(p_milliseconds: *mut f32, h_start: CUevent, h_end: CUevent);
    cuEventQuery(h_event: CUevent);
    cuEventRecord(h_event: CUevent, h_stream: CUstream);
    cuEventSynchronize(h_event: CUevent);
    cuFuncGetAttribute(pi: *mut c_int, attrib: CUfunction_attribute, hfunc: CUfunction);
    cuFuncSetAttribute(hfunc: CUfunction, attrib: CUfunction_attribute, value: c_int);
    cuFuncSetCacheConfig(hfunc: CUfunction, config: CUfunc_cache);
    cuFuncSetSharedMemConfig(hfunc: CUfunction, config: CUsharedconfig);
    cuGetErrorName(error: c_int, p_str: *mut *const c_char);
    cuGetErrorString(error: c_int, p_str: *mut *const c_char);
    cuGraphDestroy(h_graph: CUgraph);
    cuGraphExecDestroy(h_graph_exec: CUgraphExec);
    cuGraphInstantiate_v2(
        ph_graph_exec: *mut CUgraphExec, h_graph: CUgraph, ph_error_node: *mut CUgraphNode,
        log_buffer: *mut c_char, buffer_size: usize
    );
    cuGraphLaunch(h_graph_exec: CUgraphExec, h_stream: CUstream);
    cuImportExternalMemory(
        ext_mem_out: *mut CUexternalMemory,
        mem_handle_desc: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC
    );
    cuInit(flags: c_uint);
    cuLaunchKernel(
        f: CUfunction, grid_dim_x: c_uint, grid_dim_y: c_uint, grid_dim_z: c_uint,
        block_dim_x: c_uint, block_dim_y: c_uint, block_dim_z: c_uint, shared_mem_bytes: c_uint,
        h_stream: CUstream, kernel_params: *mut *mut c_void, extra: *mut *mut c_void
    );
    cuLinkComplete(state: CUlinkState, cubin_out: *mut *mut c_void, size_out: *mut usize);
    cuLinkCreate_v2(
        num_options: c_uint, options: *mut CUjit_option, option_values: *mut *mut c_void,
        state_out: *mut CUlinkState
    );
    cuLinkDestroy(state: CUlinkState);
    cuMemAllocAsync(dptr: *mut CUdeviceptr, bytesize: usize, h_stream: CUstream);
    cuMemAlloc_v2(dptr: *mut CUdeviceptr, bytesize: usize);
    cuMemFreeAsync(dptr: CUdeviceptr, h_stream: CUstream);
    cuMemFreeHost(p: *mut c_void);
    cuMemFree_v2(dptr: CUdeviceptr);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemHostAlloc(pp: *mut *mut c_void, bytesize: usize, flags: c_uint);
    cuMemHostGetDevicePointer_v2(pdptr: *mut CUdeviceptr, p: *mut c_void, flags: c_uint);
    cuMemcpyDtoDAsync_v2(
        dst_device: CUdeviceptr, src_device: CUdeviceptr, byte_count: usize, h_stream: CUstream
    );
    cuMemcpyDtoHAsync_v2(
        dst_host: *mut c_void, src_device: CUdeviceptr, byte_count: usize, h_stream: CUstream
    );
    cuMemcpyDtoH_v2(dst_host: *mut c_void, src_device: CUdeviceptr, byte_count: usize);
    cuMemcpyHtoDAsync_v2(
        dst_device: CUdeviceptr, src_host: *const c_void, byte_count: usize, h_stream: CUstream
    );
    cuMemcpyHtoD_v2(dst_device: CUdeviceptr, src_host: *const c_void, byte_count: usize);
    cuMemsetD8Async(dst_device: CUdeviceptr, uc: u8, n: usize, h_stream: CUstream);
    cuModuleGetFunction(hfunc: *mut CUfunction, hmod: CUmodule, name: *const c_char);
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleLoadDataEx(
        module: *mut CUmodule, image: *const c_void, num_options: c_uint,
        options: *mut CUjit_option, option_values: *mut *mut c_void
    );
    cuModuleUnload(hmod: CUmodule);
    cuOccupancyAvailableDynamicSMemPerBlock(
        dynamic_smem_size: *mut usize, func: CUfunction, num_blocks: c_int, block_size: c_int
    );
    cuOccupancyMaxActiveBlocksPerMultiprocessor(
        num_blocks: *mut c_int, func: CUfunction, block_size: c_int, dynamic_smem_size: usize
    );
    cuOccupancyMaxPotentialBlockSize(
        min_grid_size: *mut c_int, block_size: *mut c_int, func: CUfunction,
        block_size_to_dynamic_smem_size: CUoccupancyB2DSize, dynamic_smem_size: usize,
        block_size_limit: c_int
    );
    cuStreamBeginCapture_v2(h_stream: CUstream, mode: CUstreamCaptureMode);
    cuStreamCreateWithPriority(ph_stream: *mut CUstream, flags: c_uint, priority: c_int);
    cuStreamDestroy_v2(h_stream: CUstream);
    cuStreamEndCapture(h_stream: CUstream, ph_graph: *mut CUgraph);
    cuStreamGetFlags(h_stream: CUstream, flags: *mut c_uint);
    cuStreamGetPriority(h_stream: CUstream, priority: *mut c_int);
    cuStreamQuery(h_stream: CUstream);
    cuStreamSynchronize(h_stream: CUstream);
    cuStreamWaitEvent(h_stream: CUstream, h_event: CUevent, flags: c_uint);
    cuSurfObjectCreate(p_surf_object: *mut CUsurfObject, p_res_desc: *const CUDA_RESOURCE_DESC);
    cuSurfObjectDestroy(surf_object: CUsurfObject);
    cuSurfObjectGetResourceDesc(p_res_desc: *mut CUDA_RESOURCE_DESC, surf_object: CUsurfObject);
    cuTexObjectCreate(
        p_tex_object: *mut CUtexObject, p_res_desc: *const CUDA_RESOURCE_DESC,
        p_tex_desc: *const CUDA_TEXTURE_DESC, p_res_view_desc: *const CUDA_RESOURCE_VIEW_DESC
    );
    cuTexObjectDestroy(tex_object: CUtexObject);
    cuTexObjectGetResourceDesc(p_res_desc: *mut CUDA_RESOURCE_DESC, tex_object: CUtexObject);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_the_enum_lacks_are_unknown_and_kept() {
        for (code, seen) in [(0, 0), (2, 2), (46, 999), (100, 100), (226, 999), (912, 999)] {
            assert_eq!((keep(code), last_code()), (seen, code));
        }
    }

    #[test]
    fn a_function_that_the_driver_lacks_is_an_error() {
        let at = AtomicPtr::new(ptr::null_mut());
        let code = find(&at, "cuNoSuchThing\0").unwrap_err();
        assert_eq!(code, if open().is_ok() { NOT_FOUND } else { NO_DEVICE });
    }
}
