//! Kernels on NVIDIA cards, where this build has the feature `cuda` and the host has a driver.
//!
//! Nothing above needs a card: each kernel has a CPU twin in `post`, and whoever asks for a card
//! gets it or an `Error` that says why not.
//!
//! ```text
//! start(Choice) --thread--> Gpu --each thread--> Lane = Stream + DevicePool + PinnedArena
//!
//! symbols   the driver's functions, found at run time                  (unsafe)
//! driver    device, context, module; with stream.rs all that knows cust (unsafe)
//! stream    launches, events, graphs                                   (unsafe)
//! slab      size classes over slabs: where a block lies                pure
//! memory    device pool, pinned arena, what is allocated from them     (unsafe)
//! lane      a stream with its memory; copies                           (unsafe)
//! nvml      the cards of a host, whoever uses them                      (unsafe)
//! rows      embeddings and searches on a card, copies overlapped
//! offload   the same on a card if there is one, else by the twins; what fails goes to the twins
//! sampling  safe functions for the kernels of that name                (unsafe)
//! ```
//!
//! # A kernel family
//! One file `cuda/NAME.cu`, with `extern "C"` names. build.rs compiles each; a
//! `static NAME: Family = family!("NAME")` embeds its PTX, and is named in `FAMILIES` to be loaded at
//! the start. To launch:
//!
//! ```ignore
//! let function = gpu.function(&SCALE, "scale")?;          // once; cheap to clone
//! let lane = Lane::open(&gpu, &LaneBounds::default())?;      // once a thread
//! let x = lane.upload(&[1.0f32, 2.0])?;                   // through pinned memory, in order
//! let mut y = lane.device::<f32>(2)?;                     // from the pool
//! let arguments = Arguments::new().with(x.at()).with(y.at_mut()).with(2u32);
//! // SAFETY: both have two elements, and the kernel touches as many as its last argument says.
//! unsafe { lane.stream().launch(&function, Grid::line(1, 32), &arguments)? };
//! let y = lane.download(&y)?;                             // waits; a pinned slice
//! ```

/// The family of `cuda/NAME.cu`, and the compute capability of its `// target:` line, if it has
/// one. It stands above the modules, which so see it without a path.
#[cfg(feature = "cuda")]
#[macro_export]
macro_rules! family {
    ($name:literal) => {
        family!($name, (5, 0))
    };
    ($name:literal, $least:expr) => {
        $crate::cuda::Family {
            name: $name,
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
            least: $least,
        }
    };
}

#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub mod driver;
mod error;
#[cfg(feature = "cuda")]
pub mod kernels;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub mod lane;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub mod memory;
#[cfg(feature = "cuda")]
pub mod meter;
#[allow(unsafe_code)]
pub mod nvml;
mod offload;
#[cfg(feature = "cuda")]
mod rows;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub mod sampling;
#[cfg(feature = "cuda")]
pub mod slab;
mod start;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub mod stream;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub mod symbols;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod timing;

pub use error::Error;
pub use offload::Offload;
pub use start::{Choice, Device, Starting, start};

#[cfg(feature = "cuda")]
pub use self::{
    driver::{Facts, Function, Gpu, devices},
    lane::{Landing, Lane, LaneBounds},
    memory::{DeviceVec, PinnedVec, Plain, Usage},
    meter::Busy,
    stream::{Arguments, Event, Graph, Grid, Stream},
};

/// A card, which a build without the feature `cuda` never has.
#[cfg(not(feature = "cuda"))]
#[derive(Debug)]
pub enum Gpu {}

/// What a card is, and what this process has used it for since it was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CardUse {
    /// Which, from 0.
    pub ordinal: u32,
    /// What the vendor calls it.
    pub name: String,
    /// Its memory, in bytes.
    pub memory_bytes: usize,
    /// Taken from the driver, in bytes.
    pub held_bytes: usize,
    /// The most of it that was handed out at once, in bytes.
    pub high_water_bytes: usize,
    /// How often memory was asked of the driver.
    pub allocations: u64,
    /// In kernels, by the card's clock, where the work was metered.
    pub kernel_ms: f64,
    /// In copies from and to the host.
    pub transfer_ms: f64,
    /// Since it was opened.
    pub open_ms: f64,
}

impl CardUse {
    /// The share of the time since it was opened in which it did something for this process; over 1
    /// where kernels and copies overlap.
    pub fn utilisation(&self) -> f64 {
        if self.open_ms > 0.0 { (self.kernel_ms + self.transfer_ms) / self.open_ms } else { 0.0 }
    }

    /// All of it, by the names that `cnse gpu --json` has.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "device": format!("cuda:{}", self.ordinal),
            "name": self.name,
            "memory_bytes": self.memory_bytes,
            "pool_held_bytes": self.held_bytes,
            "pool_high_water_bytes": self.high_water_bytes,
            "driver_allocations": self.allocations,
            "kernel_ms": self.kernel_ms,
            "transfer_ms": self.transfer_ms,
            "utilisation": self.utilisation(),
        })
    }
}

/// The kernels of one file `cuda/NAME.cu`; made by `family!`.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The file's name.
    pub name: &'static str,
    /// What nvcc made of it.
    pub ptx: &'static str,
    /// The least compute capability that it needs.
    pub least: (u32, u32),
}

/// What the build compiled the kernels with and for: nvcc's release and the PTX target.
#[cfg(feature = "cuda")]
pub const COMPILED: &str = env!("CNSE_CUDA_COMPILED");

/// Loaded when a card is opened, so that no request waits for the driver's compiler.
#[cfg(feature = "cuda")]
pub static FAMILIES: &[&Family] = &[
    &kernels::dequant::DEQUANT,
    &kernels::embedding::EMBEDDING,
    &kernels::probe::PROBE,
    &kernels::search::SEARCH,
    &kernels::search::SEARCH_INT8,
    &kernels::search::SEARCH_TF32,
    &sampling::SAMPLING,
];
