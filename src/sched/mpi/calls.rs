//! Each call of MPI that is made, with its code looked at.
//!
//! A `Transfer` is a request together with the bytes that it reads or writes: they live in one
//! place, on the heap, until MPI has let go of the request.

use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;

use mpi::ffi::{self, MPI_Comm, MPI_Group, MPI_Request};

use super::ulfm::Ulfm;

/// The one tag: order is kept within a communicator, a pair and a tag.
const TAG: c_int = 0;
/// Bytes of a node's key; Linux bounds a host's name by 64.
const KEY_BYTES: usize = 96;

/// A call that failed.
#[derive(Clone, Debug)]
pub struct Fault {
    call: &'static str,
    text: String,
    /// MPI's class of it.
    pub class: c_int,
}

impl Fault {
    /// What MPI says of a code.
    pub fn new(call: &'static str, code: c_int) -> Fault {
        let (mut class, mut len) = (0, 0);
        let mut text = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
        // SAFETY: the buffer has the length that MPI asks for, and all three outlive the calls.
        unsafe {
            ffi::MPI_Error_class(code, &raw mut class);
            ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &raw mut len);
        }
        Fault { call, text: string(&text, len), class }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {} (class {})", self.call, self.text, self.class)
    }
}

fn check(call: &'static str, code: c_int) -> Result<(), Fault> {
    // MPI_SUCCESS is 0 by the standard.
    if code == 0 { Ok(()) } else { Err(Fault::new(call, code)) }
}

/// A request and its bytes. Dropped only when MPI has let go of it, or leaked.
#[derive(Debug)]
pub struct Transfer {
    request: MPI_Request,
    bytes: Vec<u8>,
}

impl Transfer {
    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it is over.
    pub fn test(&mut self) -> Result<bool, Fault> {
        let mut flag = 0;
        // SAFETY: the request is one that MPI made for this transfer, or null, which is over;
        // STATUS_IGNORE is what the standard names for a status that nobody wants.
        let code = unsafe { ffi::MPI_Test(&raw mut self.request, &raw mut flag, status_ignore()) };
        check("MPI_Test", code)?;
        Ok(flag != 0)
    }

    /// Whether MPI has let go of it, well or not.
    pub fn test_buried(&mut self) -> bool {
        match self.test() {
            Ok(is_over) => is_over,
            Err(fault) => !Ulfm::is_pending(fault.class) && self.request == null(),
        }
    }

    /// Its bytes, when it is over.
    pub fn into_bytes(self) -> Vec<u8> {
        assert_eq!(self.request, null(), "MPI sets it to null when it is over");
        self.bytes
    }
}

fn null() -> MPI_Request {
    // SAFETY: a constant that the C side defines and nobody writes.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

fn status_ignore() -> *mut ffi::MPI_Status {
    // SAFETY: as `null`.
    unsafe { ffi::RSMPI_STATUS_IGNORE }
}

/// All ranks that were started.
pub fn world() -> MPI_Comm {
    // SAFETY: as `null`.
    unsafe { ffi::RSMPI_COMM_WORLD }
}

fn byte() -> ffi::MPI_Datatype {
    // SAFETY: as `null`.
    unsafe { ffi::RSMPI_UINT8_T }
}

/// Starts MPI for a process of several threads of which one calls it.
pub fn init() -> Result<(), String> {
    let (mut is_initialized, mut provided) = (0, 0);
    // SAFETY: MPI_Initialized may be called at any time.
    let code = unsafe { ffi::MPI_Initialized(&raw mut is_initialized) };
    if code != 0 || is_initialized != 0 {
        return Err("MPI is started already".to_owned());
    }
    // SAFETY: null stands for the arguments of main since MPI-2, and it is not started yet.
    let code = unsafe {
        let asked = ffi::RSMPI_THREAD_FUNNELED;
        ffi::MPI_Init_thread(ptr::null_mut(), ptr::null_mut(), asked, &raw mut provided)
    };
    check("MPI_Init_thread", code).map_err(|fault| fault.to_string())?;
    // SAFETY: as `null`. The standard orders the levels.
    if provided < unsafe { ffi::RSMPI_THREAD_FUNNELED } {
        let _ = finalize();
        return Err(format!(
            "{} was built without threads (MPI_THREAD_FUNNELED), and cnse has several",
            library_version()
        ));
    }
    Ok(())
}

/// Ends MPI.
pub fn finalize() -> Result<(), Fault> {
    // SAFETY: it was started by `init` and is ended once: `LIVE` says so.
    check("MPI_Finalize", unsafe { ffi::MPI_Finalize() })
}

/// Ends the job.
pub fn abort(code: c_int) {
    // SAFETY: MPI runs, as `LIVE` says.
    unsafe {
        ffi::MPI_Abort(world(), code);
    }
}

/// The library's name and version, without what follows on further lines.
pub fn library_version() -> String {
    let mut len = 0;
    let mut text = vec![0u8; ffi::MPI_MAX_LIBRARY_VERSION_STRING as usize + 1];
    // SAFETY: the buffer has the length that MPI asks for.
    let code =
        unsafe { ffi::MPI_Get_library_version(text.as_mut_ptr().cast::<c_char>(), &raw mut len) };
    let text = if code == 0 { string(&text, len) } else { "an MPI without a name".to_owned() };
    let first = text.lines().next().unwrap_or_default();
    let short: Vec<&str> = first.split(',').next().unwrap_or_default().split_whitespace().collect();
    short.join(" ").replace(" Version: ", " ")
}

/// From a buffer of C, which may count the NUL at its end.
fn string(buffer: &[u8], len: c_int) -> String {
    let text = &buffer[..usize::try_from(len).unwrap_or(0).min(buffer.len())];
    String::from_utf8_lossy(text).trim_matches(['\0', ' ', '\n']).to_owned()
}

/// Ranks of a communicator.
pub fn size(comm: MPI_Comm) -> Result<u32, Fault> {
    let mut size = 0;
    // SAFETY: a live communicator, and a number that outlives the call.
    check("MPI_Comm_size", unsafe { ffi::MPI_Comm_size(comm, &raw mut size) })?;
    Ok(u32::try_from(size).expect("a size is positive"))
}

/// This rank's place in a communicator.
pub fn rank(comm: MPI_Comm) -> Result<u32, Fault> {
    let mut rank = 0;
    // SAFETY: as `size`.
    check("MPI_Comm_rank", unsafe { ffi::MPI_Comm_rank(comm, &raw mut rank) })?;
    Ok(u32::try_from(rank).expect("a rank is not negative"))
}

/// Errors come back as codes, rather than end the process.
pub fn errors_return(comm: MPI_Comm) -> Result<(), Fault> {
    // SAFETY: as `size`, and as `null`.
    let code = unsafe { ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN) };
    check("MPI_Comm_set_errhandler", code)
}

/// A communicator of the same ranks, for nobody else. Waits for all.
pub fn duplicate(comm: MPI_Comm) -> Result<MPI_Comm, Fault> {
    let mut copy = comm;
    // SAFETY: as `size`.
    check("MPI_Comm_dup", unsafe { ffi::MPI_Comm_dup(comm, &raw mut copy) })?;
    Ok(copy)
}

/// Everyone's short text. Waits for all.
pub fn gather(comm: MPI_Comm, size: u32, text: &str) -> Result<Vec<String>, Fault> {
    let mut mine = text.as_bytes().to_vec();
    mine.resize(KEY_BYTES, 0);
    let mut all = vec![0u8; KEY_BYTES * size as usize];
    let count = KEY_BYTES as c_int;
    // SAFETY: `mine` has KEY_BYTES bytes, and `all` as many for each rank of `comm`.
    let code = unsafe {
        let (from, to) = (mine.as_ptr().cast::<c_void>(), all.as_mut_ptr().cast::<c_void>());
        ffi::MPI_Allgather(from, count, byte(), to, count, byte(), comm)
    };
    check("MPI_Allgather", code)?;
    Ok(all.chunks(KEY_BYTES).map(|key| string(key, count)).collect())
}

/// The ranks of a communicator, as a group.
pub fn group(comm: MPI_Comm) -> Result<MPI_Group, Fault> {
    let mut group = MaybeUninit::<MPI_Group>::uninit();
    // SAFETY: as `size`.
    check("MPI_Comm_group", unsafe { ffi::MPI_Comm_group(comm, group.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it was written.
    Ok(unsafe { group.assume_init() })
}

/// What the ranks of a communicator are called in `world`.
pub fn translate(comm: MPI_Comm, world: MPI_Group) -> Result<Vec<u32>, Fault> {
    let count = size(comm)? as c_int;
    let mut group = group(comm)?;
    let places: Vec<c_int> = (0..count).collect();
    let mut ranks = vec![0; places.len()];
    // SAFETY: both groups are live, and both lists have `count` numbers.
    let code = unsafe {
        let (from, to) = (places.as_ptr(), ranks.as_mut_ptr());
        ffi::MPI_Group_translate_ranks(group, count, from, world, to)
    };
    check("MPI_Group_translate_ranks", code)?;
    // SAFETY: it came from `group` above, and is not used again.
    check("MPI_Group_free", unsafe { ffi::MPI_Group_free(&raw mut group) })?;
    Ok(ranks.into_iter().map(|rank| u32::try_from(rank).expect("each is of the world")).collect())
}

/// Begins to send.
pub fn send(comm: MPI_Comm, place: c_int, bytes: Vec<u8>) -> Result<Transfer, Fault> {
    let mut transfer = Transfer { request: null(), bytes };
    let count = c_int::try_from(transfer.bytes.len()).expect("messages are of a few MiB at most");
    // SAFETY: the bytes stay where they are until the request is over, since a `Transfer` owns
    // both, and its owner drops it only then.
    let code = unsafe {
        let from = transfer.bytes.as_ptr().cast::<c_void>();
        ffi::MPI_Issend(from, count, byte(), place, TAG, comm, &raw mut transfer.request)
    };
    match check("MPI_Issend", code) {
        Ok(()) => Ok(transfer),
        Err(fault) => {
            if transfer.request != null() {
                // A failed call should have made no request; if it did, the bytes are MPI's.
                std::mem::forget(transfer);
            }
            Err(fault)
        }
    }
}

/// Begins to receive what has arrived, and from which place.
pub fn take(comm: MPI_Comm) -> Result<Option<(usize, Transfer)>, Fault> {
    let mut flag = 0;
    let mut message = MaybeUninit::<ffi::MPI_Message>::uninit();
    let mut status = MaybeUninit::<ffi::MPI_Status>::zeroed();
    // SAFETY: as `size`; the constants as `null`.
    let code = unsafe {
        let (flag, message, status) = (&raw mut flag, message.as_mut_ptr(), status.as_mut_ptr());
        ffi::MPI_Improbe(ffi::RSMPI_ANY_SOURCE, TAG, comm, flag, message, status)
    };
    check("MPI_Improbe", code)?;
    if flag == 0 {
        return Ok(None);
    }
    // SAFETY: the call succeeded and found a message, so it wrote both; and a status is plain
    // numbers, for which zeroes do too.
    let (mut message, status) = unsafe { (message.assume_init(), status.assume_init()) };
    let mut count = 0;
    // SAFETY: the status is of a probe that found something.
    check("MPI_Get_count", unsafe {
        ffi::MPI_Get_count(&raw const status, byte(), &raw mut count)
    })?;
    let bytes = vec![0u8; usize::try_from(count).expect("bytes have a count")];
    let mut transfer = Transfer { request: null(), bytes };
    // SAFETY: the buffer has the length of the message; for the rest as `send`.
    let code = unsafe {
        let to = transfer.bytes.as_mut_ptr().cast::<c_void>();
        let request = &raw mut transfer.request;
        ffi::MPI_Imrecv(to, count, byte(), &raw mut message, request)
    };
    match check("MPI_Imrecv", code) {
        Ok(()) => {
            let place = usize::try_from(status.MPI_SOURCE).expect("a place is not negative");
            Ok(Some((place, transfer)))
        }
        Err(fault) => {
            if transfer.request != null() {
                std::mem::forget(transfer);
            }
            Err(fault)
        }
    }
}

/// Begins a barrier.
pub fn barrier(comm: MPI_Comm) -> Result<Transfer, Fault> {
    let mut transfer = Transfer { request: null(), bytes: Vec::new() };
    // SAFETY: as `size`; MPI writes the request before it returns.
    let code = unsafe { ffi::MPI_Ibarrier(comm, &raw mut transfer.request) };
    check("MPI_Ibarrier", code)?;
    Ok(transfer)
}
