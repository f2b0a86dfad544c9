//! Processes, named so that no other is ever meant: a process id and the time it started. An id alone is reused.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sys::wait::{WaitPidFlag, waitpid};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

/// One process, for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// When it started, in clock ticks since the machine did.
    pub started_ticks: u64,
}

/// What a node's daemon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum DaemonState {
    /// It runs.
    Running {
        /// As this process.
        pid: i32,
    },
    /// It is paused.
    Paused {
        /// This process.
        pid: i32,
    },
    /// It ended, was killed, or was never started.
    Stopped,
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) parent: i32,
    started_ticks: u64,
}

impl Process {
    /// The process with this id now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|stat| Self { pid, started_ticks: stat.started_ticks })
    }

    /// Its state, unless it has ended. One that has ended and that its parent has not noticed has ended.
    fn alive(self) -> Option<Stat> {
        stat(self.pid).filter(|stat| stat.started_ticks == self.started_ticks && !matches!(stat.state, 'Z' | 'X'))
    }

    pub(crate) fn daemon_state(self) -> DaemonState {
        match self.alive() {
            Some(Stat { state: 'T', .. }) => DaemonState::Paused { pid: self.pid },
            Some(_) => DaemonState::Running { pid: self.pid },
            None => DaemonState::Stopped,
        }
    }

    pub(crate) fn is_alive(self) -> bool {
        self.alive().is_some()
    }

    /// Sends it a signal; false when it has ended.
    pub(crate) fn signal(self, signal: Signal) -> bool {
        self.open().is_some_and(|fd| pidfd_send_signal(fd, signal).is_ok())
    }

    /// Waits until it has ended, its last thread too; false when it has not by `deadline`.
    pub(crate) fn wait(self, deadline: Instant) -> bool {
        if let Some(fd) = self.open_even_if_ending() {
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let timeout = Timespec::try_from(left).unwrap_or_default();
                let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
                if matches!(ready, Ok(events) if events > 0) {
                    break;
                }
                if left == Duration::ZERO {
                    return false;
                }
            }
        }
        self.reap();
        true
    }

    /// Waits until it is paused or has ended, or `deadline` passes.
    pub(crate) fn wait_paused(self, deadline: Instant) {
        const STEP: Duration = Duration::from_millis(1);
        while matches!(self.daemon_state(), DaemonState::Running { .. }) && Instant::now() < deadline {
            thread::sleep(STEP);
        }
    }

    /// If it is a child of this very process, nobody else will ever ask how it ended.
    pub(crate) fn reap(self) {
        let _ = waitpid(nix::unistd::Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
    }

    /// The same of a process whose first thread has ended and whose others have not: it still holds its locks and files.
    fn open_even_if_ending(self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        stat(self.pid).filter(|stat| stat.started_ticks == self.started_ticks).map(|_| fd)
    }

    /// A handle on this process. Checked after it was had: from then on it cannot come to mean another.
    fn open(self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(fd)
    }
}

/// Everything that runs now.
pub(crate) fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// What was started by `root`, directly or not, as far as it still runs.
pub(crate) fn descendants(root: i32) -> Vec<Process> {
    let parents: Vec<(i32, i32)> = all().into_iter().filter_map(|pid| Some((pid, stat(pid)?.parent))).collect();
    let mut family = vec![root];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    family.into_iter().skip(1).filter_map(Process::of).filter(|process| process.is_alive()).collect()
}

/// The calling process and everything it was started by.
pub(crate) fn self_and_ancestors() -> Vec<i32> {
    let mut line = Vec::new();
    let mut next = i32::try_from(std::process::id()).ok();
    while let Some(pid) = next.filter(|pid| *pid > 0 && !line.contains(pid)) {
        line.push(pid);
        next = stat(pid).map(|stat| stat.parent);
    }
    line
}

/// A file of `/proc/PID`.
pub(crate) fn proc_file(pid: i32, file: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(file)
}

pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(proc_file(pid, "stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything, parentheses and spaces too.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Field 22; the two before this point, the state and the parent make four.
    let started_ticks = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, parent, started_ticks })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_process_is_told_from_another_with_its_id() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        let another = Process { started_ticks: process.started_ticks + 1, ..process };

        assert!(!another.signal(Signal::KILL), "a signal went to a process that was not meant");
        assert!(process.is_alive());
        assert!(process.signal(Signal::KILL));

        assert!(process.wait(soon()));
        assert_eq!(process.daemon_state(), DaemonState::Stopped);
        drop(child.try_wait());
    }

    #[test]
    fn a_paused_process_is_seen_to_be_paused() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();

        process.signal(Signal::STOP);
        let since = Instant::now();
        while process.daemon_state() != (DaemonState::Paused { pid: process.pid }) {
            assert!(since.elapsed() < Duration::from_secs(10), "never paused");
        }

        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_deadline_that_passes_is_no_end() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();

        assert!(!process.wait(Instant::now() + Duration::from_millis(20)));

        assert_eq!(descendants(i32::try_from(std::process::id()).unwrap()).len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
