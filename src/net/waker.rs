//! Wakes a thread that waits in its poller, from another thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd that is written at most once between two looks of the thread it wakes.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fd: EventFd,
    pending: AtomicBool,
}

impl Waker {
    /// A waker; whoever is to be woken registers it with its poller.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn open() -> io::Result<Waker> {
        let fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Waker { shared: Arc::new(Shared { fd, pending: AtomicBool::new(false) }) })
    }

    /// Wakes the thread, if nobody has since it last looked.
    pub fn wake(&self) {
        if self.shared.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        // The counter cannot be full, since one write happens per look; and were it, the thread
        // would be awake.
        let _ = self.shared.fd.write(1);
    }

    /// Called by the thread that was woken, before it looks at what there is: whatever comes later
    /// wakes it again. The eventfd is not read: the poller is edge-triggered, and each write is an
    /// edge.
    pub fn looking(&self) {
        // A swap, not a store: it reads what the sender wrote, and so sees what was sent before.
        self.shared.pending.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.fd.as_fd()
    }
}
