//! Processes as ranks, by MPI.
//!
//! Only the thread that opened it calls MPI, and no call waits: sends are immediate and own their
//! bytes, what arrives is found by a matched probe and received at once into a buffer of its size.
//! Calls go through the library's own functions, whose codes are looked at; the safe ones of the
//! crate drop them, and with them the news of a death.
//!
//! Sends are synchronous (Issend): one counts as under way until its receiver has matched it, so
//! that the window bounds what a slow rank must hold, small messages included, which MPI otherwise
//! takes without end. It is also what lets the end be found by a barrier that does not block
//! (Hoefler, Siebert, Lumsdaine: "Scalable communication protocols for dynamic sparse data
//! exchange", 2010): a rank enters it when all that it sent was matched, so when it is over nothing
//! is under way.
//!
//! ```text
//!   send --> window of the peer (64 messages, 4 MiB) --Issend--> Improbe --Imrecv--> poll
//! ```
//!
//! After a death (see `ulfm`) the communicator is revoked, which wakes every survivor, and shrunk.
//! Shrinking is the one call that waits, for the other survivors, who come to it with their next
//! `poll`. Each communicator is what an epoch of the job is: what was sent on an old one is never
//! seen on the next. Its buffers are kept until MPI lets go of them.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::mpi::ffi::{MPI_Comm, MPI_Group};

use super::fabric::{Arrival, Fabric, Full, Topology};
use super::launcher::Launched;
use super::message::Message;
use super::tasks::Rank;
use bell::Bell;
use calls::{Fault, Transfer};
use ulfm::Ulfm;

mod bell;
#[allow(unsafe_code)]
mod calls;
#[allow(unsafe_code)]
mod ulfm;

/// Messages under way to one rank: as in `local`.
const WINDOW_MESSAGES: usize = 64;
/// Bytes under way to one rank: two of the largest messages, so that one is sent while the next is
/// made. A message that is larger goes alone.
const WINDOW_BYTES: usize = 4 << 20;
/// A message up to this size arrives without another word of its sender: the least that the
/// libraries send eagerly within a node.
const EAGER_BYTES: usize = 2 << 10;
/// Messages that are being received.
const INCOMING_MESSAGES: usize = 64;
/// Bytes that are being received.
const INCOMING_BYTES: usize = 16 << 20;

/// MPI is started and not yet ended.
static LIVE: AtomicBool = AtomicBool::new(false);

/// One process's end.
#[derive(Debug)]
pub struct MpiFabric {
    rank: Rank,
    topology: Arc<Topology>,
    node_names: Vec<String>,
    library: String,
    world: MPI_Group,
    comm: MPI_Comm,
    /// The rank of each place in `comm`.
    members: Vec<Rank>,
    /// The place in `comm` of each rank; None: it died.
    places: Vec<Option<c_int>>,
    outgoing: Vec<Outgoing>,
    /// Ranks to which something is under way.
    busy: Vec<Rank>,
    /// In the order in which they arrived.
    incoming: VecDeque<Incoming>,
    incoming_bytes: usize,
    /// Of communicators that were given up.
    buried: Vec<Transfer>,
    ulfm: Option<Ulfm>,
    /// None: every rank is polled for.
    bell: Option<Bell>,
    fault: Option<Fault>,
    word: Option<Arrival>,
    /// What arrived during `close`.
    late: VecDeque<Arrival>,
    closing: Closing,
    /// Only the thread that started MPI may call it.
    thread: PhantomData<*const ()>,
}

#[derive(Debug, Default)]
struct Outgoing {
    transfers: VecDeque<Transfer>,
    bytes: usize,
}

#[derive(Debug)]
struct Incoming {
    from: Rank,
    transfer: Transfer,
    is_here: bool,
}

#[derive(Debug)]
enum Closing {
    No,
    /// What was sent is still under way.
    Sending,
    /// This rank has nothing under way, and waits until all say so.
    Barrier(Transfer),
    /// All have, and this rank waits until all know it.
    Parting(Transfer),
    /// MPI is ended, or given up.
    Done,
}

impl MpiFabric {
    /// Starts MPI, and waits until every rank has. To be called once, by the main thread, before it
    /// has changed to another folder or network namespace than the others.
    ///
    /// # Errors
    /// MPI says something else than the launcher did, cannot do with threads, or fails.
    pub fn open(launched: &Launched) -> Result<MpiFabric, String> {
        assert!(!LIVE.swap(true, Ordering::SeqCst), "MPI is started once");
        calls::init().inspect_err(|_| LIVE.store(false, Ordering::SeqCst))?;
        let library = calls::library_version();
        let opened = MpiFabric::begin(launched, library);
        if opened.is_err() {
            // The others may not come to the end; a rank that is alone need not wait for any.
            LIVE.store(false, Ordering::SeqCst);
            if calls::size(calls::world()).is_ok_and(|size| size == 1) {
                let _ = calls::finalize();
            } else {
                calls::abort(1);
            }
        }
        opened
    }

    fn begin(launched: &Launched, library: String) -> Result<MpiFabric, String> {
        let plain = |fault: Fault| fault.to_string();
        let world = calls::world();
        let (size, rank) = (calls::size(world).map_err(plain)?, calls::rank(world).map_err(plain)?);
        launched.check(size, rank, &library)?;
        calls::errors_return(world).map_err(plain)?;
        let comm = calls::duplicate(world).map_err(plain)?;
        calls::errors_return(comm).map_err(plain)?;
        let keys = calls::gather(comm, size, &node_key()).map_err(plain)?;
        let topology = Topology::new(&keys);
        let mut bell = Bell::open().ok();
        let name = bell.as_ref().map_or("", Bell::name);
        let names = calls::gather(comm, size, name).map_err(plain)?;
        if let Some(bell) = &mut bell {
            let near =
                |(name, key): (_, &String)| if *key == keys[rank as usize] { name } else { "" };
            let names: Vec<&str> = names.iter().map(String::as_str).zip(&keys).map(near).collect();
            bell.set_peers(&names);
        }
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            hook(info);
            abort(101);
        }));
        Ok(MpiFabric {
            rank: Rank(rank),
            node_names: node_names(&topology, &keys),
            topology: Arc::new(topology),
            library,
            world: calls::group(world).map_err(plain)?,
            comm,
            members: (0..size).map(Rank).collect(),
            places: (0..size).map(|place| c_int::try_from(place).ok()).collect(),
            outgoing: (0..size).map(|_| Outgoing::default()).collect(),
            busy: Vec::new(),
            incoming: VecDeque::new(),
            incoming_bytes: 0,
            buried: Vec::new(),
            bell,
            ulfm: Ulfm::find(|name| std::env::var(name).ok()),
            fault: None,
            word: None,
            late: VecDeque::new(),
            closing: Closing::No,
            thread: PhantomData,
        })
    }

    /// What each node of the topology is called.
    pub fn node_names(&self) -> &[String] {
        &self.node_names
    }

    /// The library's name and version.
    pub fn library(&self) -> &str {
        &self.library
    }

    /// Lets go of what was sent and matched.
    fn test_sends(&mut self) -> Result<(), Fault> {
        let mut index = 0;
        while let Some(&to) = self.busy.get(index) {
            let outgoing = &mut self.outgoing[to.0 as usize];
            while let Some(first) = outgoing.transfers.front_mut() {
                if !first.test()? {
                    break;
                }
                outgoing.bytes -= first.len();
                outgoing.transfers.pop_front();
            }
            if outgoing.transfers.is_empty() {
                self.busy.swap_remove(index);
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    /// The next message that is here whole, and before which nothing of its sender is missing.
    fn receive(&mut self) -> Result<Option<(Rank, Vec<u8>)>, Fault> {
        let room = self.incoming.len() < INCOMING_MESSAGES && self.incoming_bytes < INCOMING_BYTES;
        if room && let Some((place, mut transfer)) = calls::take(self.comm)? {
            let from = self.members[place];
            // A small message is here by now; no list, no second look.
            let tested = transfer.test();
            if matches!(tested, Ok(true)) && self.incoming.is_empty() {
                return Ok(Some((from, transfer.into_bytes())));
            }
            self.incoming_bytes += transfer.len();
            let is_here = matches!(tested, Ok(true));
            self.incoming.push_back(Incoming { from, transfer, is_here });
            tested?;
        }
        for index in 0..self.incoming.len() {
            let next = &mut self.incoming[index];
            if !next.is_here {
                next.is_here = next.transfer.test()?;
            }
            let (from, is_here) = (next.from, next.is_here);
            if is_here && self.incoming.iter().take(index).all(|other| other.from != from) {
                let Some(taken) = self.incoming.remove(index) else { break };
                self.incoming_bytes -= taken.transfer.len();
                return Ok(Some((from, taken.transfer.into_bytes())));
            }
        }
        Ok(None)
    }

    fn advance(&mut self) -> Result<Option<Arrival>, Fault> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        self.test_sends()?;
        let Some((from, bytes)) = self.receive()? else { return Ok(None) };
        Ok(Some(match Message::decode(&bytes) {
            Some(message) => Arrival::Message(from, message),
            None => Arrival::Broken(format!(
                "rank {from} sent {} bytes that are no message; are all ranks one version of cnse?",
                bytes.len()
            )),
        }))
    }

    /// What a fault means: that ranks died, where this can be survived.
    fn explain(&mut self, fault: Fault) -> Arrival {
        let Some(ulfm) = self.ulfm.filter(|_| Ulfm::is_death(fault.class)) else {
            return Arrival::Broken(fault.to_string());
        };
        self.shrink(ulfm).unwrap_or_else(|fault| Arrival::Broken(fault.to_string()))
    }

    /// Goes on among those that are left.
    fn shrink(&mut self, ulfm: Ulfm) -> Result<Arrival, Fault> {
        self.bury();
        // A rank that dies meanwhile can make it fail, on all alike; each attempt takes a death.
        let mut attempts = self.members.len();
        let comm = loop {
            // It fails on a communicator that is revoked already, which is as well.
            let _ = ulfm.revoke(self.comm);
            match ulfm.shrink(self.comm) {
                Ok(comm) => break comm,
                Err(code) => {
                    let fault = Fault::new("MPIX_Comm_shrink", code);
                    if attempts == 0 || !Ulfm::is_death(fault.class) {
                        return Err(fault);
                    }
                    attempts -= 1;
                }
            }
        };
        calls::errors_return(comm)?;
        let members: Vec<Rank> =
            calls::translate(comm, self.world)?.into_iter().map(Rank).collect();
        assert!(members.is_sorted() && members.contains(&self.rank), "shrinking keeps the order");
        self.comm = comm;
        self.places.fill(None);
        for (place, rank) in (0..).zip(&members) {
            self.places[rank.0 as usize] = Some(place);
        }
        self.members.clone_from(&members);
        Ok(Arrival::Survivors(members))
    }

    /// Gives up what is under way. MPI may still read or write it, so it is kept.
    fn bury(&mut self) {
        for outgoing in &mut self.outgoing {
            self.buried.extend(outgoing.transfers.drain(..));
            outgoing.bytes = 0;
        }
        self.busy.clear();
        self.buried.extend(self.incoming.drain(..).map(|incoming| incoming.transfer));
        self.incoming_bytes = 0;
        if let Closing::Barrier(barrier) = std::mem::replace(&mut self.closing, Closing::No) {
            self.buried.push(barrier);
            self.closing = Closing::Sending;
        }
        self.buried.retain_mut(|transfer| !transfer.test_buried());
    }

    fn end(&mut self) {
        self.closing = Closing::Done;
        LIVE.store(false, Ordering::SeqCst);
    }

    /// One step towards the end.
    ///
    /// Where deaths are survived MPI is not finalized. A rank can die while some have seen the
    /// barrier end and others have not, who then shrink: whoever waits in MPI_Finalize would keep
    /// them waiting, while one that has gone is to them as one that died. (And after two deaths
    /// Open MPI 5.0.11 never comes back from it.) A second barrier keeps a job without deaths from
    /// taking the first to leave for dead.
    fn step(&mut self) -> Result<bool, Fault> {
        if matches!(self.closing, Closing::Done) {
            return Ok(true);
        }
        let is_parting = matches!(self.closing, Closing::Parting(_));
        while !is_parting && let Some(arrival) = self.advance()? {
            self.late.push_back(arrival);
        }
        match &mut self.closing {
            Closing::No | Closing::Sending if self.busy.is_empty() => {
                self.closing = Closing::Barrier(calls::barrier(self.comm)?);
                Ok(false)
            }
            Closing::No | Closing::Sending => {
                self.closing = Closing::Sending;
                Ok(false)
            }
            Closing::Barrier(barrier) => {
                if !barrier.test()? || !self.incoming.is_empty() {
                    return Ok(false);
                }
                if self.survives() {
                    self.closing = Closing::Parting(calls::barrier(self.comm)?);
                    return Ok(false);
                }
                self.end();
                calls::finalize()?;
                Ok(true)
            }
            Closing::Parting(barrier) => {
                // A death, or that another rank saw one, no longer matters to this one.
                let is_over = barrier.test().unwrap_or(true);
                if is_over {
                    self.end();
                }
                Ok(is_over)
            }
            Closing::Done => Ok(true),
        }
    }
}

impl Fabric for MpiFabric {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    fn send(&mut self, to: Rank, message: Message) -> Result<(), Full> {
        assert_ne!(to, self.rank, "a rank sends nothing to itself");
        let Some(place) = self.places[to.0 as usize] else { return Ok(()) };
        let outgoing = &mut self.outgoing[to.0 as usize];
        let is_full = outgoing.transfers.len() >= WINDOW_MESSAGES || outgoing.bytes >= WINDOW_BYTES;
        if is_full || !matches!(self.closing, Closing::No | Closing::Sending) {
            return Err(Full(message));
        }
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        // That word is taken back can be heard of later.
        let is_urgent = !matches!(message, Message::Hunger { free: 0, .. });
        match calls::send(self.comm, place, bytes) {
            Ok(transfer) => {
                if outgoing.transfers.is_empty() {
                    self.busy.push(to);
                }
                outgoing.bytes += transfer.len();
                outgoing.transfers.push_back(transfer);
                if let Some(bell) = self.bell.as_ref().filter(|_| is_urgent) {
                    bell.ring(to.0 as usize);
                }
            }
            // Said by the next poll; after a death what was sent before is dropped anyway.
            Err(fault) => self.fault = Some(fault),
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<Arrival> {
        if let Some(arrival) = self.late.pop_front().or_else(|| self.word.take()) {
            return Some(arrival);
        }
        if matches!(self.closing, Closing::Parting(_) | Closing::Done) {
            return None;
        }
        match self.advance() {
            Ok(arrival) => arrival,
            Err(fault) => Some(self.explain(fault)),
        }
    }

    fn survives(&self) -> bool {
        self.ulfm.is_some()
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(Bell::as_fd)
    }

    fn hear(&mut self) {
        if let Some(bell) = &self.bell {
            bell.hear();
        }
    }

    fn is_rung(&self) -> bool {
        let Some(bell) = &self.bell else { return false };
        let is_large = |to: &Rank| {
            let transfers = &self.outgoing[to.0 as usize].transfers;
            transfers.iter().any(|transfer| transfer.len() > EAGER_BYTES)
        };
        let mut others = self.members.iter().filter(|&&rank| rank != self.rank);
        self.incoming.is_empty()
            && !self.busy.iter().any(is_large)
            && others.all(|rank| bell.reaches(rank.0 as usize))
    }

    /// What arrives meanwhile can be polled before the next call, and is dropped otherwise. After a
    /// death among ranks that close, those that are left begin anew, and the word of it can be
    /// polled too; what this rank had under way is dropped.
    fn close(&mut self) -> bool {
        self.late.clear();
        match self.step() {
            Ok(is_closed) => {
                self.word = self.word.take().filter(|_| !is_closed);
                is_closed
            }
            Err(_) if matches!(self.closing, Closing::Done) => true,
            Err(fault) => {
                let word = self.explain(fault);
                if let Arrival::Broken(text) = &word {
                    log::warn!("MPI is not ended in good order: {text}");
                    self.closing = Closing::Done;
                }
                self.word = Some(word);
                matches!(self.closing, Closing::Done)
            }
        }
    }
}

impl Drop for MpiFabric {
    /// What is under way is MPI's: its memory is not given back.
    fn drop(&mut self) {
        if !matches!(self.closing, Closing::Done) {
            self.bury();
        }
        std::mem::take(&mut self.buried).into_iter().for_each(std::mem::forget);
    }
}

/// Ends the whole job at once, with this exit code: every rank, or this process if MPI is not
/// running. MPI asks that the main thread calls it; from another one it works wherever it was
/// tried, and what is lost if it does not is only that the launcher must notice by itself.
pub fn abort(code: i32) -> ! {
    if LIVE.load(Ordering::SeqCst) {
        calls::abort(code);
    }
    std::process::exit(code)
}

/// What two ranks have in common that can reach each other without a network: the host, and its
/// network namespace, since containers and tests have several of them on one host.
fn node_key() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let net = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let net = net.to_string_lossy();
    let inode: String = net.chars().filter(char::is_ascii_digit).collect();
    format!("{} {inode}", host.trim())
}

/// The host's name, and, where several nodes are on one host, its namespace.
fn node_names(topology: &Topology, keys: &[String]) -> Vec<String> {
    let nodes = 0..u32::try_from(topology.nodes()).expect("there are at most as many as ranks");
    let key = |node| {
        let key = keys[topology.members(node)[0].0 as usize].as_str();
        key.split_once(' ').unwrap_or((key, ""))
    };
    let name = |node| {
        let (host, inode) = key(node);
        match nodes.clone().filter(|&other| key(other).0 == host).count() {
            1 => host.to_owned(),
            _ => format!("{host}/net:{inode}"),
        }
    };
    nodes.clone().map(name).collect()
}
