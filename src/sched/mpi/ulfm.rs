//! What goes on after a death: the calls of ULFM (user-level failure mitigation), where there are
//! any.
//!
//! They are looked up at run time, since Open MPI 4 and most others lack them and one source is to
//! be built with each. Open MPI 5 has them always, and they mean something only if the job was
//! started with `mpirun --with-ft mpi`: without, the launcher ends the whole job at the first
//! death.

use std::ffi::{CStr, c_int, c_void};

use mpi::ffi::MPI_Comm;

/// Error classes of Open MPI; they are looked at only where `Ulfm::find` found it.
const PROC_FAILED: c_int = 75;
const PROC_FAILED_PENDING: c_int = 76;
const REVOKED: c_int = 77;

/// The calls.
#[derive(Clone, Copy, Debug)]
pub struct Ulfm {
    revoke: unsafe extern "C" fn(MPI_Comm) -> c_int,
    shrink: unsafe extern "C" fn(MPI_Comm, *mut MPI_Comm) -> c_int,
}

impl Ulfm {
    /// They are there, and this job was started so that they work.
    pub fn find(lookup: impl Fn(&'static str) -> Option<String>) -> Option<Ulfm> {
        // What `--with-ft mpi` does is to set this for every rank.
        let asked = lookup("OMPI_MCA_mpi_ft_enable")?;
        if !matches!(asked.as_str(), "1" | "true" | "yes" | "on" | "enabled" | "t" | "y") {
            return None;
        }
        let (revoke, shrink) = (symbol(c"MPIX_Comm_revoke")?, symbol(c"MPIX_Comm_shrink")?);
        // SAFETY: the library's header, mpiext_ftmpi_c.h, declares both with these types; handles
        // of MPI are the same type there as in the binding, which was made from its mpi.h.
        unsafe {
            Some(Ulfm {
                revoke: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(MPI_Comm) -> c_int>(
                    revoke,
                ),
                shrink: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(MPI_Comm, *mut MPI_Comm) -> c_int,
                >(shrink),
            })
        }
    }

    /// Whether an error of this class means that a rank died, or that another rank saw one die.
    pub fn is_death(class: c_int) -> bool {
        matches!(class, PROC_FAILED | PROC_FAILED_PENDING | REVOKED)
    }

    /// Whether an operation that failed with this class is still under way.
    pub fn is_pending(class: c_int) -> bool {
        class == PROC_FAILED_PENDING
    }

    /// Makes every call on `comm` fail, on every rank; returns at once.
    pub fn revoke(self, comm: MPI_Comm) -> c_int {
        // SAFETY: `find` saw the function; `comm` is a live communicator, which `MpiFabric` never
        // frees.
        unsafe { (self.revoke)(comm) }
    }

    /// The ranks of `comm` that are alive, as a communicator. It waits for all of them, and they
    /// come, since `comm` is revoked.
    ///
    /// # Errors
    /// MPI's code.
    pub fn shrink(self, comm: MPI_Comm) -> Result<MPI_Comm, c_int> {
        let mut left = comm;
        // SAFETY: as `revoke`; `left` is a handle that outlives the call.
        match unsafe { (self.shrink)(comm, &raw mut left) } {
            0 => Ok(left),
            code => Err(code),
        }
    }
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: dlsym(3) reads a string that ends in NUL, which a CStr does.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}
