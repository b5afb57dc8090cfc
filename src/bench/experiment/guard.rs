//! Runs a command and sees to its end: when stdin closes, or on SIGTERM, SIGINT or SIGHUP, the
//! command and all that came of it are asked to end, and after a while made to.
//!
//! Orphans of the command come to this process (`PR_SET_CHILD_SUBREAPER`), so none is lost,
//! whatever group or session it made for itself. What a guard cannot survive is its own SIGKILL.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, read};

use crate::machine::processes;

/// What a process has to end by itself; llama-server takes under a second to free a GPU.
const GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether all have ended.
const LOOK: Duration = Duration::from_millis(5);

/// Runs the command: its exit code, or 128 and the signal that ended it.
///
/// # Errors
/// It could not be started.
pub fn run(words: &[&str]) -> Result<u8, String> {
    let (program, args) = words.split_first().ok_or("a command is needed behind --")?;
    let io = |what: &str, error: Errno| format!("{what}: {error}");
    // Who started this process may have held signals back, and a mask is inherited.
    SigSet::all().thread_unblock().map_err(|error| io("letting signals in", error))?;
    prctl::set_child_subreaper(true).map_err(|error| io("taking orphans in", error))?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).process_group(0);
    let child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{program}: there is no such program"),
        _ => format!("starting {program}: {error}"),
    })?;
    let child = Pid::from_raw(child.id() as i32);
    let signals = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    let mask: SigSet = signals.into_iter().collect();
    mask.thread_block().map_err(|error| io("holding signals back", error))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let told = SignalFd::with_flags(&mask, flags).map_err(|error| io("hearing signals", error))?;
    let mut code = None;
    while code.is_none() && !asked_to_end(&told) {
        reap(child, &mut code);
        if code.is_none() {
            let stdin = std::io::stdin();
            let mut fds = [
                PollFd::new(told.as_fd(), PollFlags::POLLIN),
                PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
            ];
            let _ = poll(&mut fds, PollTimeout::NONE);
        }
    }
    end_all(child, &mut code);
    Ok(code.unwrap_or(0))
}

/// Whether a signal says so, or stdin has ended.
fn asked_to_end(told: &SignalFd) -> bool {
    while let Ok(Some(signal)) = told.read_signal() {
        if signal.ssi_signo != Signal::SIGCHLD as u32 {
            return true;
        }
    }
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    if !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1)) {
        return false;
    }
    !matches!(read(&stdin, &mut [0; 64]), Ok(1..))
}

/// Takes note of all that have ended.
fn reap(child: Pid, code: &mut Option<u8>) {
    loop {
        let (pid, found) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, status as u8),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as u8),
            Ok(WaitStatus::StillAlive) | Err(_) => return,
            Ok(_) => continue,
        };
        if pid == child {
            *code = Some(found);
        }
    }
}

/// Ends all that came of this process.
fn end_all(child: Pid, code: &mut Option<u8>) {
    let began = Instant::now();
    let mut asked = false;
    loop {
        reap(child, code);
        let me = std::process::id();
        let table = processes::table();
        let left = processes::descendants(&table, &[me]);
        let living = table.iter().filter(|p| p.pid != me && !p.ended && left.contains(&p.pid));
        let left: Vec<Pid> = living.map(|p| Pid::from_raw(p.pid as i32)).collect();
        if left.is_empty() {
            reap(child, code);
            return;
        }
        let over = began.elapsed() >= GRACE;
        if over || !asked {
            let signal = if over { Signal::SIGKILL } else { Signal::SIGTERM };
            for pid in left {
                // Who has ended meanwhile needs no signal.
                let _ = kill(pid, signal);
            }
            asked = true;
        }
        std::thread::sleep(LOOK);
    }
}
