//! Loops compiled twice: for every processor of the architecture, and for those with wide vectors.
//!
//! Nothing here is written with vector instructions: the compiler makes them of plain loops, once
//! for what the target promises (SSE2 on x86-64: 4 floats at once, and no instruction that counts
//! bits) and once for AVX2 and POPCNT, and the processor says which runs. The results are the same:
//! the compiler neither reorders floating-point sums nor contracts a product and a sum.

/// A loop that is worth wide vectors.
pub trait Kernel {
    /// What it gives.
    type Output;

    /// Runs it. To be marked `#[inline(always)]`, as all that it calls: only what is inlined into
    /// `widest` is compiled for wide vectors.
    fn run(self) -> Self::Output;
}

/// Runs a kernel with the widest vectors that this processor has.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub fn widest<K: Kernel>(kernel: K) -> K::Output {
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
        // SAFETY: the processor has just said that it has what the function is compiled for.
        unsafe { with_avx2(kernel) }
    } else {
        kernel.run()
    }
}

/// Runs a kernel with what the target promises.
#[cfg(not(target_arch = "x86_64"))]
pub fn widest<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
