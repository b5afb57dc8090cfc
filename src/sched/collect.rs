//! What ranks settle before work begins: everybody tells rank 0, and rank 0 tells everybody.
//!
//! Some are through with it while others still wait, and their first messages must not be lost:
//! `Staged` keeps what came early, and brings it once the rank's own work begins.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::fabric::{Arrival, Fabric, Full, Topology};
use super::message::Message;
use super::tasks::Rank;
use crate::net::Waker;

/// Why a rank cannot take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Something is wrong here; the others do not know.
    Here(String),
    /// All ranks know the same: one of them is to say it.
    Everywhere(String),
}

impl From<String> for Fault {
    fn from(message: String) -> Fault {
        Fault::Here(message)
    }
}

/// How long ranks may take to tell.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_micros(200);

/// A fabric that keeps what came early.
pub struct Staged<'f, F> {
    fabric: &'f mut F,
    early: VecDeque<Arrival>,
}

impl<'f, F: Fabric> Staged<'f, F> {
    /// On top of `fabric`.
    pub fn new(fabric: &'f mut F) -> Staged<'f, F> {
        Staged { fabric, early: VecDeque::new() }
    }

    /// At rank 0: what each rank tells, its own included. Elsewhere: nothing.
    ///
    /// # Errors
    /// A rank died, or says nothing.
    pub fn gather(&mut self, told: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>, String> {
        if self.rank() != Rank(0) {
            self.tell(Rank(0), told)?;
            return Ok(None);
        }
        let size = self.topology().size();
        let mut all: Vec<Option<Vec<u8>>> = vec![None; size as usize];
        all[0] = Some(told);
        while let Some(missing) = all.iter().position(Option::is_none) {
            let (from, bytes) = self.hear(|from| from != Rank(0), missing as u32)?;
            all[from.0 as usize] = Some(bytes);
        }
        Ok(Some(all.into_iter().flatten().collect()))
    }

    /// Gives each rank its own of what rank 0 has for all.
    ///
    /// # Errors
    /// As `gather`.
    pub fn scatter(&mut self, all: Option<Vec<Vec<u8>>>) -> Result<Vec<u8>, String> {
        let Some(all) = all else {
            return self.hear(|from| from == Rank(0), 0).map(|(_, bytes)| bytes);
        };
        let mut own = Vec::new();
        for (rank, bytes) in (0..).map(Rank).zip(all) {
            if rank == self.rank() {
                own = bytes;
            } else {
                self.tell(rank, bytes)?;
            }
        }
        Ok(own)
    }

    /// Sends a message, however long it takes to be taken.
    ///
    /// # Errors
    /// It is not taken.
    pub fn tell(&mut self, to: Rank, bytes: Vec<u8>) -> Result<(), String> {
        let mut message = Message::Job(bytes);
        let until = std::time::Instant::now() + PATIENCE;
        while let Err(Full(back)) = self.fabric.send(to, message) {
            message = back;
            if std::time::Instant::now() > until {
                return Err(format!("rank {to} takes no messages"));
            }
            if let Some(arrival) = self.fabric.poll() {
                self.early.push_back(arrival);
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits for a message of the job's own parts from somebody of whom `of` is true; `missing` is
    /// named if none comes.
    ///
    /// # Errors
    /// None comes.
    pub fn hear(
        &mut self,
        of: impl Fn(Rank) -> bool,
        missing: u32,
    ) -> Result<(Rank, Vec<u8>), String> {
        let is_it = |arrival: &Arrival| match arrival {
            Arrival::Message(from, Message::Job(_)) => of(*from),
            _ => false,
        };
        let until = std::time::Instant::now() + PATIENCE;
        let mut found = self.early.iter().position(is_it).and_then(|at| self.early.remove(at));
        loop {
            match found.or_else(|| self.fabric.poll()) {
                Some(Arrival::Message(from, Message::Job(bytes))) if of(from) => {
                    return Ok((from, bytes));
                }
                Some(Arrival::Survivors(_)) => {
                    return Err("a rank died before the work began".to_owned());
                }
                Some(Arrival::Broken(reason)) => return Err(reason),
                Some(other) => self.early.push_back(other),
                None if std::time::Instant::now() > until => {
                    let limit = PATIENCE.as_secs();
                    return Err(format!("rank {missing} has said nothing for {limit} s"));
                }
                None => std::thread::sleep(LOOK),
            }
            found = None;
        }
    }
}

impl<F: Fabric> Fabric for Staged<'_, F> {
    fn rank(&self) -> Rank {
        self.fabric.rank()
    }

    fn topology(&self) -> &Arc<Topology> {
        self.fabric.topology()
    }

    fn send(&mut self, to: Rank, message: Message) -> Result<(), Full> {
        self.fabric.send(to, message)
    }

    fn poll(&mut self) -> Option<Arrival> {
        self.early.pop_front().or_else(|| self.fabric.poll())
    }

    fn survives(&self) -> bool {
        self.fabric.survives()
    }

    fn waker(&self) -> Option<&Waker> {
        self.fabric.waker()
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.fabric.bell()
    }

    fn hear(&mut self) {
        self.fabric.hear();
    }

    fn is_rung(&self) -> bool {
        self.fabric.is_rung()
    }

    fn close(&mut self) -> bool {
        self.fabric.close()
    }
}

#[cfg(test)]
mod tests {
    use super::super::local::local;
    use super::*;

    #[test]
    fn everybody_tells_and_is_told_and_nothing_early_is_lost() {
        let ends = local(Topology::new(&[0, 0, 0])).unwrap();
        let threads = ends.into_iter().map(|mut end| {
            std::thread::spawn(move || {
                let mut staged = Staged::new(&mut end);
                let me = staged.rank().0 as u8;
                // The next rank hears this while it still waits for rank 0.
                staged.send(Rank(u32::from(me + 1) % 3), Message::Stop).unwrap();
                let all = staged.gather(vec![me]).unwrap();
                if let Some(all) = &all {
                    assert_eq!(*all, [[0], [1], [2]]);
                }
                let own =
                    staged.scatter(all.map(|all| all.iter().map(|b| vec![b[0] * 2]).collect()));
                assert_eq!(own.unwrap(), [me * 2]);
                let early = loop {
                    match staged.poll() {
                        Some(arrival) => break arrival,
                        None => std::thread::yield_now(),
                    }
                };
                assert!(matches!(early, Arrival::Message(_, Message::Stop)));
            })
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.join().unwrap();
        }
    }
}
