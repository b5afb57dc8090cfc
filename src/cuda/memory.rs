//! Memory of a card and pinned memory of the host, handed out from slabs that the driver gave once.
//!
//! Both pools belong to one stream. A block of the card may be dropped while the stream still works
//! on it: whoever gets it next uses it in the same stream, so later. Pinned blocks are touched by
//! the host too, so those that are dropped rest until the stream was waited for.
//!
//! The memory is the driver's as long as the pool or a block of it lives; `cuMemFree` waits for the
//! whole device, so slabs are given back only when nothing else fits, and at the end.

use std::cell::RefCell;
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use super::Error;
use super::driver::{Gpu, check};
use super::slab::{Block, Slabs};
use super::symbols;

/// CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP: pinned for all contexts, and seen by the
/// card.
const PORTABLE_AND_MAPPED: u32 = 1 | 2;
const OUT_OF_MEMORY: i32 = 2;

/// Numbers without padding, for which any bytes are a value.
///
/// # Safety
/// Just that.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty),*) => {$(
        // SAFETY: a primitive number.
        unsafe impl Plain for $type {}
    )*};
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// What a pool holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Taken from the driver.
    pub held: usize,
    /// Handed out.
    pub in_use: usize,
    /// The most that was ever handed out.
    pub high_water: usize,
}

#[derive(Default)]
struct State {
    slabs: Slabs,
    /// Where each slab begins and how long it is.
    places: Vec<(u64, usize)>,
    held: usize,
}

impl State {
    fn place(&mut self, index: u32, at: u64, bytes: usize) {
        let index = index as usize;
        if self.places.len() <= index {
            self.places.resize(index + 1, (0, 0));
        }
        self.places[index] = (at, bytes);
        self.held += bytes;
    }

    fn usage(&self) -> Usage {
        let (in_use, high_water) = (self.slabs.in_use(), self.slabs.high_water());
        Usage { held: self.held, in_use, high_water }
    }

    /// Bytes of the slab that is to be added so that so many fit.
    fn growth(bytes: usize, slab_bytes: usize) -> usize {
        Slabs::needed(bytes).unwrap_or(usize::MAX).max(slab_bytes)
    }
}

/// Memory of the card for one stream.
pub struct DevicePool {
    gpu: Arc<Gpu>,
    state: RefCell<State>,
    /// What the slabs are made of.
    memory: RefCell<Vec<(u32, Unpooled)>>,
    slab_bytes: usize,
}

impl fmt::Debug for DevicePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DevicePool({:?})", self.usage())
    }
}

impl DevicePool {
    /// A pool that takes at least `slab_bytes` from the driver at a time, the first now.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn open(gpu: &Arc<Gpu>, slab_bytes: usize) -> Result<Rc<DevicePool>, Error> {
        let pool = DevicePool {
            gpu: gpu.clone(),
            state: RefCell::default(),
            memory: RefCell::default(),
            slab_bytes,
        };
        pool.grow(slab_bytes)?;
        Ok(Rc::new(pool))
    }

    /// `len` elements, of no particular value.
    ///
    /// # Errors
    /// `OutOfMemory` where neither the slabs nor the budget nor the card has room.
    pub fn take<T: Plain>(self: &Rc<Self>, len: usize) -> Result<DeviceVec<T>, Error> {
        let bytes = len.saturating_mul(size_of::<T>());
        let block = self.block(bytes)?;
        let at = self.state.borrow().places[block.slab as usize].0 + block.offset as u64;
        self.gpu.count_use(block.bytes());
        Ok(DeviceVec { at, len, block, pool: self.clone(), of: PhantomData })
    }

    fn block(&self, bytes: usize) -> Result<Block, Error> {
        let found = self.state.borrow_mut().slabs.take(bytes);
        if let Some(block) = found {
            return Ok(block);
        }
        // Slabs whose blocks all came back may be cut anew.
        let mut state = self.state.borrow_mut();
        if state.slabs.reclaim()
            && let Some(block) = state.slabs.take(bytes)
        {
            return Ok(block);
        }
        drop(state);
        let wanted = State::growth(bytes, self.slab_bytes);
        if let Err(error) = self.grow(wanted) {
            // Less than a whole slab may do, and idle ones may be given back.
            let least = State::growth(bytes, 0);
            let is_memory = matches!(error, Error::OutOfMemory { .. });
            if !is_memory {
                return Err(error);
            }
            let freed = self.shrink();
            if !(freed || least < wanted) {
                return Err(error);
            }
            self.grow(least)?;
        }
        let block = self.state.borrow_mut().slabs.take(bytes);
        Ok(block.expect("the slab that was added has room for it"))
    }

    fn grow(&self, bytes: usize) -> Result<(), Error> {
        let slab = Unpooled::open(&self.gpu, bytes)?;
        let mut state = self.state.borrow_mut();
        let index = state.slabs.add(bytes);
        state.place(index, slab.at, bytes);
        self.memory.borrow_mut().push((index, slab));
        Ok(())
    }

    /// Gives slabs that nobody uses back to the driver, and tells whether there were any.
    pub fn shrink(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let idle = state.slabs.remove_idle();
        for index in &idle {
            let (_, bytes) = std::mem::take(&mut state.places[*index as usize]);
            state.held -= bytes;
        }
        self.memory.borrow_mut().retain(|(index, _)| !idle.contains(index));
        !idle.is_empty()
    }

    /// What it holds.
    pub fn usage(&self) -> Usage {
        self.state.borrow().usage()
    }
}

impl Drop for DevicePool {
    fn drop(&mut self) {
        let _ = self.gpu.make_current();
        self.memory.borrow_mut().clear();
    }
}

/// Memory of the card that was asked of the driver alone, by `cuMemAlloc`, and goes back by
/// `cuMemFree`: what a pool saves is measured with it.
#[derive(Debug)]
pub struct Unpooled {
    at: u64,
    bytes: usize,
    gpu: Arc<Gpu>,
}

impl Unpooled {
    /// So many bytes.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn open(gpu: &Arc<Gpu>, bytes: usize) -> Result<Unpooled, Error> {
        gpu.reserve(bytes)?;
        let mut at = 0;
        // SAFETY: a place that outlives the call.
        let code = unsafe { symbols::cuMemAlloc_v2(&raw mut at, bytes) };
        gpu.count_allocation();
        if code != 0 {
            gpu.release(bytes);
            if code == OUT_OF_MEMORY {
                let (held, budget) = (gpu.held(), gpu.budget());
                let free = gpu.memory().map_or(0, |(free, _)| free);
                return Err(Error::OutOfMemory { asked: bytes, held, budget, free });
            }
            check("cuMemAlloc", code)?;
        }
        Ok(Unpooled { at, bytes, gpu: gpu.clone() })
    }
}

impl Drop for Unpooled {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once; the driver waits for work on it that is not done.
        unsafe { symbols::cuMemFree_v2(self.at) };
        self.gpu.release(self.bytes);
    }
}

/// `[T]` on the card; goes back to its pool when it is dropped.
pub struct DeviceVec<T: Plain> {
    at: u64,
    len: usize,
    block: Block,
    pool: Rc<DevicePool>,
    of: PhantomData<T>,
}

impl<T: Plain> fmt::Debug for DeviceVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceVec({} at {:#x})", self.len, self.at)
    }
}

impl<T: Plain> DeviceVec<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Where it is, for a kernel that reads it. A multiple of 256.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Where it is, for a kernel that writes it.
    pub fn at_mut(&mut self) -> u64 {
        self.at
    }
}

impl<T: Plain> Drop for DeviceVec<T> {
    fn drop(&mut self) {
        self.pool.state.borrow_mut().slabs.give(self.block);
        self.pool.gpu.count_return(self.block.bytes());
    }
}

/// Pinned memory of the host for one stream, which the card sees too.
pub struct PinnedArena {
    gpu: Arc<Gpu>,
    state: RefCell<State>,
    resting: RefCell<Vec<Block>>,
    bytes_max: usize,
    slab_bytes: usize,
}

impl fmt::Debug for PinnedArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedArena({:?})", self.usage())
    }
}

impl PinnedArena {
    /// An arena that takes at least `slab_bytes` from the driver at a time, the first now, and
    /// `bytes_max` in all.
    ///
    /// # Errors
    /// `NoPinned`, or what the driver says.
    pub fn open(
        gpu: &Arc<Gpu>,
        slab_bytes: usize,
        bytes_max: usize,
    ) -> Result<Rc<PinnedArena>, Error> {
        let arena = PinnedArena {
            gpu: gpu.clone(),
            state: RefCell::default(),
            resting: RefCell::default(),
            bytes_max,
            slab_bytes,
        };
        arena.grow(slab_bytes)?;
        Ok(Rc::new(arena))
    }

    /// `len` elements of any value, if there is room without waiting for the stream.
    pub(super) fn try_take<T: Plain>(self: &Rc<Self>, len: usize) -> Option<PinnedVec<T>> {
        let bytes = len.checked_mul(size_of::<T>())?;
        let block = self.state.borrow_mut().slabs.take(bytes)?;
        let at = self.state.borrow().places[block.slab as usize].0 + block.offset as u64;
        let host = ptr::with_exposed_provenance_mut::<T>(usize::try_from(at).ok()?);
        Some(PinnedVec { host, len, block, arena: self.clone() })
    }

    /// Takes more from the driver, so that so many bytes fit.
    pub(super) fn grow_for(&self, bytes: usize) -> Result<(), Error> {
        self.state.borrow_mut().slabs.reclaim();
        self.grow(State::growth(bytes, self.slab_bytes))
    }

    fn grow(&self, bytes: usize) -> Result<(), Error> {
        let refused = Error::NoPinned { asked: bytes, bound: self.bytes_max };
        if bytes > self.bytes_max - self.state.borrow().held.min(self.bytes_max) {
            return Err(refused);
        }
        let mut at = ptr::null_mut::<c_void>();
        // SAFETY: a place that outlives the call.
        let code = unsafe { symbols::cuMemHostAlloc(&raw mut at, bytes, PORTABLE_AND_MAPPED) };
        self.gpu.count_allocation();
        if code == OUT_OF_MEMORY {
            return Err(refused);
        }
        check("cuMemHostAlloc", code)?;
        // The host may read what nobody wrote: let it be zeroes.
        // SAFETY: the driver gave that many bytes.
        unsafe { at.cast::<u8>().write_bytes(0, bytes) };
        let mut state = self.state.borrow_mut();
        let index = state.slabs.add(bytes);
        state.place(index, at.expose_provenance() as u64, bytes);
        Ok(())
    }

    /// Whether blocks were dropped since the stream was last waited for.
    pub(super) fn has_resting(&self) -> bool {
        !self.resting.borrow().is_empty()
    }

    /// To be called when the stream has done all that was added.
    pub(super) fn wake(&self) {
        let mut state = self.state.borrow_mut();
        self.resting.borrow_mut().drain(..).for_each(|block| state.slabs.give(block));
    }

    /// What it holds.
    pub fn usage(&self) -> Usage {
        self.state.borrow().usage()
    }
}

impl Drop for PinnedArena {
    fn drop(&mut self) {
        let _ = self.gpu.make_current();
        for (at, bytes) in &self.state.borrow().places {
            if *bytes > 0 {
                let host = ptr::with_exposed_provenance_mut(*at as usize);
                // SAFETY: allocated once, freed once; no block of it is left, or it would hold
                // the arena, and the lane waited for its stream before it let go.
                unsafe { symbols::cuMemFreeHost(host) };
            }
        }
    }
}

/// `[T]` in pinned memory of the host.
pub struct PinnedVec<T: Plain> {
    host: *mut T,
    len: usize,
    block: Block,
    arena: Rc<PinnedArena>,
}

impl<T: Plain> fmt::Debug for PinnedVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedVec({})", self.len)
    }
}

impl<T: Plain> PinnedVec<T> {
    /// Where the card sees it: what a kernel writes there needs no copy, once the stream was waited
    /// for.
    ///
    /// # Errors
    /// What the driver says.
    pub fn mapped(&self) -> Result<u64, Error> {
        let mut at = 0;
        let host = self.host.cast::<c_void>();
        // SAFETY: inside of memory that was allocated with CU_MEMHOSTALLOC_DEVICEMAP.
        let code = unsafe { symbols::cuMemHostGetDevicePointer_v2(&raw mut at, host, 0) };
        check("cuMemHostGetDevicePointer", code)?;
        Ok(at)
    }
}

impl<T: Plain> Deref for PinnedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the block is this value's alone, aligned to 256, has room for `len` elements, and
        // any bytes are a value of a plain type.
        unsafe { std::slice::from_raw_parts(self.host, self.len) }
    }
}

impl<T: Plain> DerefMut for PinnedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.host, self.len) }
    }
}

impl<T: Plain> Drop for PinnedVec<T> {
    fn drop(&mut self) {
        self.arena.resting.borrow_mut().push(self.block);
    }
}
