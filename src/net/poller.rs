//! Epoll, edge-triggered.
//!
//! Why edges: each socket is registered once, for everything, and never touched again, so a request
//! costs no `epoll_ctl`. The price is the usual one: after an event its owner reads until a short
//! read or `WouldBlock`, or remembers that it has not (the gateway's ready list). Waiting ends to
//! the microsecond through a timerfd, because `epoll_wait` itself rounds to milliseconds; the
//! timerfd is set only when the nearest moment changed.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::slab::Token;
use crate::clock::Instant;

/// What happened to a descriptor: a hint, the read or write tells the truth.
#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    /// There may be something to read, an end or an error included.
    pub readable: bool,
    /// There may be room to write, or a connection attempt ended.
    pub writable: bool,
    /// The peer sends no more (EPOLLRDHUP), or the connection is broken (EPOLLHUP, EPOLLERR).
    pub closed: bool,
}

/// An epoll instance with its timer.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    timer: TimerFd,
    /// What the timer is set to; `FAR` when it is not.
    armed: Instant,
    events: Vec<EpollEvent>,
    ready: usize,
}

/// The timer's own token, which is never given out.
const TIMER: u64 = u64::MAX;
/// Events taken in one wait.
const EVENTS_MAX: usize = 512;

impl Poller {
    /// A poller for the calling thread, whose timer slack it lowers to a microsecond.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn open() -> io::Result<Poller> {
        // The kernel's default lets a sleep end 50 us late. Failing to lower it costs accuracy
        // only.
        let _ = nix::sys::prctl::set_timerslack(1_000);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER))?;
        let events = vec![EpollEvent::empty(); EVENTS_MAX];
        Ok(Poller { epoll, timer, armed: Instant::FAR, events, ready: 0 })
    }

    /// Reports everything that happens to `fd`, until it is closed.
    ///
    /// # Errors
    /// The kernel is out of memory or of watches (`fs.epoll.max_user_watches`).
    pub fn register(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token.0))?)
    }

    /// Waits until something happens, or until `until` (None: for ever); `until <= now` does not
    /// wait.
    ///
    /// # Errors
    /// Only a fault of the program.
    pub fn wait(&mut self, now: Instant, until: Option<Instant>) -> io::Result<()> {
        let timeout = match until {
            Some(at) if at <= now => EpollTimeout::ZERO,
            Some(at) => {
                self.arm(now, at)?;
                EpollTimeout::NONE
            }
            None => EpollTimeout::NONE,
        };
        self.ready = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        Ok(())
    }

    /// How many events the last wait brought.
    pub fn event_count(&self) -> usize {
        self.ready
    }

    /// The event at `index` of the last wait; None if it was the poller's own timer.
    pub fn event(&mut self, index: usize) -> Option<(Token, Readiness)> {
        let event = self.events[..self.ready][index];
        if event.data() == TIMER {
            self.armed = Instant::FAR;
            return None;
        }
        let flags = event.events();
        let closed =
            flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        let readiness = Readiness {
            readable: closed || flags.contains(EpollFlags::EPOLLIN),
            writable: closed || flags.contains(EpollFlags::EPOLLOUT),
            closed,
        };
        Some((Token(event.data()), readiness))
    }

    /// Lets the timer end a wait at `at` or before: one that is set to an earlier moment is left,
    /// since the wait that it ends for nothing costs less than setting it each time.
    fn arm(&mut self, now: Instant, at: Instant) -> io::Result<()> {
        if self.armed <= at && self.armed > now {
            return Ok(());
        }
        let delay = TimeSpec::from_duration((at - now).max(Duration::from_nanos(1)));
        self.timer.set(Expiration::OneShot(delay), TimerSetTimeFlags::empty())?;
        self.armed = at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, MonotonicClock};
    use crate::net::Waker;

    #[test]
    fn a_wait_ends_at_its_moment() {
        let (clock, mut poller) = (MonotonicClock::new(), Poller::open().unwrap());
        for _ in 0..3 {
            let until = clock.now() + Duration::from_micros(300);
            while clock.now() < until {
                poller.wait(clock.now(), Some(until)).unwrap();
                for i in 0..poller.event_count() {
                    assert!(poller.event(i).is_none());
                }
            }
        }
    }

    #[test]
    fn a_waker_wakes_each_time() {
        let (clock, mut poller) = (MonotonicClock::new(), Poller::open().unwrap());
        let waker = Waker::open().unwrap();
        poller.register(&waker, Token::single(2)).unwrap();
        for _ in 0..3 {
            let other = waker.clone();
            let thread = std::thread::spawn(move || other.wake());
            loop {
                poller.wait(clock.now(), None).unwrap();
                let readable = (0..poller.event_count())
                    .any(|i| poller.event(i).is_some_and(|(_, r)| r.readable));
                if readable {
                    break;
                }
            }
            waker.looking();
            thread.join().unwrap();
        }
    }
}
