//! Gives memory that is no longer used back to the system.
//!
//! glibc keeps what was freed in its heaps, in case it is needed again. After ten thousand
//! connections have gone that is most of the process, for good; other allocators give it back by
//! themselves.

/// Trims all heaps; takes a millisecond or so for each 10 MiB.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub fn trim() {
    // SAFETY: malloc_trim(3) has no precondition: it locks each arena itself, and touches free
    // memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Nothing to be done.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}
