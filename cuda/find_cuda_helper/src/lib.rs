//! A stand-in for the crate of this name, which the build scripts of `cust` and `cust_raw` call.
//!
//! That one panics where there is no CUDA toolkit, and where there is one it links `libcuda.so`, so
//! that the binary would not start without a driver. cnse defines the functions of the driver
//! itself (`src/cuda/symbols.rs`) and opens the library at run time: there is nothing to find.

/// Links nothing.
pub fn include_cuda() {}
