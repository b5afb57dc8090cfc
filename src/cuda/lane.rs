//! A stream with its memory: what one thread needs to work on a card.

use std::ffi::c_void;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::Error;
use super::driver::{Gpu, check};
use super::memory::{DevicePool, DeviceVec, PinnedArena, PinnedVec, Plain, Usage};
use super::meter::Work;
use super::stream::Stream;
use super::symbols;

/// What a lane takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneBounds {
    /// Taken of the card's memory at least, and at a time.
    pub device_slab_bytes: usize,
    /// Pinned of the host's memory at least, and at a time.
    pub pinned_slab_bytes: usize,
    /// Pinned at most.
    pub pinned_bytes_max: usize,
}

impl Default for LaneBounds {
    /// What suits a card of 1 GB, too.
    fn default() -> LaneBounds {
        LaneBounds {
            device_slab_bytes: 32 << 20,
            pinned_slab_bytes: 4 << 20,
            pinned_bytes_max: 1 << 30,
        }
    }
}

/// A stream, a device pool and a pinned arena. Stays in the thread that opened it.
pub struct Lane {
    // Dropped first: it waits for work that may use the memory.
    stream: Stream,
    device: Rc<DevicePool>,
    pinned: Rc<PinnedArena>,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane({:?}, {:?})", self.device, self.pinned)
    }
}

impl Lane {
    /// Opens one, and makes the card current in this thread.
    ///
    /// # Errors
    /// `OutOfMemory`, `NoPinned`, or what the driver says.
    pub fn open(gpu: &Arc<Gpu>, bounds: &LaneBounds) -> Result<Lane, Error> {
        gpu.make_current()?;
        Ok(Lane {
            stream: Stream::open(gpu)?,
            device: DevicePool::open(gpu, bounds.device_slab_bytes)?,
            pinned: PinnedArena::open(gpu, bounds.pinned_slab_bytes, bounds.pinned_bytes_max)?,
        })
    }

    /// Its stream. To wait, use the lane's `synchronize`.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The card.
    pub fn gpu(&self) -> &Arc<Gpu> {
        self.stream.gpu()
    }

    /// Of the card's memory, what it holds and has not handed out, in bytes.
    pub fn idle_bytes(&self) -> usize {
        let usage = self.device.usage();
        usage.held - usage.in_use
    }

    /// What it holds pinned.
    pub fn pinned_usage(&self) -> Usage {
        self.pinned.usage()
    }

    /// `len` elements on the card, of no particular value.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn device<T: Plain>(&self, len: usize) -> Result<DeviceVec<T>, Error> {
        self.device.take(len)
    }

    /// `len` elements in pinned memory, of no particular value.
    ///
    /// # Errors
    /// `NoPinned`, or what the driver says of work that had to be waited for.
    pub fn pinned<T: Plain>(&self, len: usize) -> Result<PinnedVec<T>, Error> {
        if let Some(found) = self.pinned.try_take(len) {
            return Ok(found);
        }
        if self.pinned.has_resting() {
            self.synchronize()?;
            if let Some(found) = self.pinned.try_take(len) {
                return Ok(found);
            }
        }
        let bytes = len.saturating_mul(size_of::<T>());
        self.pinned.grow_for(bytes)?;
        Ok(self.pinned.try_take(len).expect("the slab that was added has room for it"))
    }

    /// Waits for all that was added to the stream.
    ///
    /// # Errors
    /// What the driver says, also of work that was added before.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.stream.synchronize()?;
        self.pinned.wake();
        self.stream.meter().settle(self.gpu())
    }

    /// Copies to the card through pinned memory, in the stream's order, and does not wait.
    ///
    /// # Errors
    /// As `device` and `pinned`.
    pub fn upload<T: Plain>(&self, from: &[T]) -> Result<DeviceVec<T>, Error> {
        let mut to = self.device(from.len())?;
        self.upload_to(from, &mut to)?;
        Ok(to)
    }

    /// The same into the beginning of what is there already.
    ///
    /// # Errors
    /// As `pinned`.
    ///
    /// # Panics
    /// Where `to` is shorter.
    pub fn upload_to<T: Plain>(&self, from: &[T], to: &mut DeviceVec<T>) -> Result<(), Error> {
        let mut staged = self.pinned::<T>(from.len())?;
        staged.copy_from_slice(from);
        self.send(staged, to)
    }

    /// Copies pinned memory to the card, in the stream's order, and does not wait. The pinned block
    /// goes back to the arena when the stream was waited for.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// Where `to` is shorter.
    #[expect(clippy::needless_pass_by_value, reason = "nobody may write it any more")]
    pub fn send<T: Plain>(&self, from: PinnedVec<T>, to: &mut DeviceVec<T>) -> Result<(), Error> {
        assert!(from.len() <= to.len(), "{} elements into {}", from.len(), to.len());
        // SAFETY: both have that many bytes; `from` is consumed, and its block rests until the
        // stream was waited for; `to` is used in this stream only, so after the copy.
        unsafe { self.copy_in(to.at_mut(), from.as_ptr().cast(), size_of_val(&*from)) }
    }

    /// Copies from any memory of the host, and waits. Where it is not pinned, the driver does what
    /// `upload` does, and slower.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// Where `to` is shorter.
    pub fn upload_and_wait<T: Plain>(
        &self,
        from: &[T],
        to: &mut DeviceVec<T>,
    ) -> Result<(), Error> {
        assert!(from.len() <= to.len(), "{} elements into {}", from.len(), to.len());
        // SAFETY: both have that many bytes, and the driver has read `from` when it returns.
        unsafe { self.copy_in(to.at_mut(), from.as_ptr().cast(), size_of_val(from))? };
        self.synchronize()
    }

    /// Copies to any memory of the host, and waits.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// Where `to` is shorter.
    pub fn download_to<T: Plain>(&self, from: &DeviceVec<T>, to: &mut [T]) -> Result<(), Error> {
        assert!(from.len() <= to.len(), "{} elements into {}", from.len(), to.len());
        // SAFETY: both have that many bytes, and `to` is borrowed until the stream was waited for.
        unsafe { self.copy_out(to.as_mut_ptr().cast(), from.at(), from.bytes())? };
        self.synchronize()
    }

    /// Begins to copy to the card from pinned memory, which comes back when it is done.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// Where `to` is shorter.
    pub fn begin_upload<T: Plain>(
        &self,
        from: PinnedVec<T>,
        to: &mut DeviceVec<T>,
    ) -> Result<Landing<'_, T>, Error> {
        assert!(from.len() <= to.len(), "{} elements into {}", from.len(), to.len());
        // SAFETY: as `send`; the landing lets nobody write `from` before the stream was waited for.
        unsafe { self.copy_in(to.at_mut(), from.as_ptr().cast(), size_of_val(&*from))? };
        Ok(Landing { lane: self, to: from })
    }

    /// Begins to copy from the card into pinned memory, in the stream's order.
    ///
    /// # Errors
    /// As `pinned`.
    pub fn begin_download<T: Plain>(&self, from: &DeviceVec<T>) -> Result<Landing<'_, T>, Error> {
        let mut to = self.pinned::<T>(from.len())?;
        // SAFETY: both have that many bytes; the landing lets nobody see `to` before the stream was
        // waited for, and if it is dropped the block rests.
        unsafe { self.copy_out(to.as_mut_ptr().cast(), from.at(), from.bytes())? };
        Ok(Landing { lane: self, to })
    }

    /// Copies from the card, and waits.
    ///
    /// # Errors
    /// As `pinned`.
    pub fn download<T: Plain>(&self, from: &DeviceVec<T>) -> Result<PinnedVec<T>, Error> {
        self.begin_download(from)?.wait()
    }

    /// Sets each byte, in the stream's order.
    ///
    /// # Errors
    /// What the driver says.
    pub fn fill<T: Plain>(&self, to: &mut DeviceVec<T>, byte: u8) -> Result<(), Error> {
        // SAFETY: `to` has that many bytes and is used in this stream only.
        let code =
            unsafe { symbols::cuMemsetD8Async(to.at_mut(), byte, to.bytes(), self.stream.raw()) };
        check("cuMemsetD8Async", code)
    }

    /// Copies on the card, in the stream's order.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// Where the lengths differ.
    pub fn copy<T: Plain>(&self, from: &DeviceVec<T>, to: &mut DeviceVec<T>) -> Result<(), Error> {
        assert_eq!(from.len(), to.len());
        self.stream.meter().around(&self.stream, Work::Kernel, || {
            // SAFETY: both have that many bytes and are used in this stream only.
            let code = unsafe {
                symbols::cuMemcpyDtoDAsync_v2(to.at_mut(), from.at(), to.bytes(), self.stream.raw())
            };
            check("cuMemcpyDtoDAsync", code)
        })
    }

    /// Adds a copy from the host.
    ///
    /// # Safety
    /// Both have so many bytes, and until the stream has come past the copy nobody writes `from`,
    /// nor frees it if it is pinned, and nobody uses `to` in another stream.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn copy_in(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), Error> {
        self.stream.meter().around(&self.stream, Work::Transfer, || {
            // SAFETY: the caller's word.
            let code = unsafe {
                let from = from.cast::<c_void>();
                symbols::cuMemcpyHtoDAsync_v2(to, from, bytes, self.stream.raw())
            };
            check("cuMemcpyHtoDAsync", code)
        })
    }

    /// Adds a copy to the host.
    ///
    /// # Safety
    /// Both have so many bytes, and until the stream has come past the copy nobody reads, writes or
    /// frees `to`, and nobody writes `from` in another stream.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn copy_out(&self, to: *mut u8, from: u64, bytes: usize) -> Result<(), Error> {
        self.stream.meter().around(&self.stream, Work::Transfer, || {
            // SAFETY: the caller's word.
            let code = unsafe {
                let to = to.cast::<c_void>();
                symbols::cuMemcpyDtoHAsync_v2(to, from, bytes, self.stream.raw())
            };
            check("cuMemcpyDtoHAsync", code)
        })
    }
}

/// A copy from or to pinned memory that is under way.
#[derive(Debug)]
pub struct Landing<'a, T: Plain> {
    lane: &'a Lane,
    to: PinnedVec<T>,
}

impl<T: Plain> Landing<'_, T> {
    /// Waits for the stream.
    ///
    /// # Errors
    /// What the driver says.
    pub fn wait(self) -> Result<PinnedVec<T>, Error> {
        self.lane.synchronize()?;
        Ok(self.to)
    }
}
