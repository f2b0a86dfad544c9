//! One QEMU process, from its start to its exit.
//!
//! Its pidfd is watched by a task of the spawner's tracker, which reaps it and publishes how it ended; a second task keeps
//! the last of what it wrote to standard error. Dropping the [`Child`] kills the process; it is reaped either way.

use std::{
    collections::VecDeque,
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
    process::ChildStderr,
    sync::Arc,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid},
};
use tokio::{io::AsyncReadExt, sync::watch};
use tokio_util::task::TaskTracker;

use crate::{TrackingRefused, sys};

/// How much of QEMU's standard error is kept, in bytes: its last words say why it exited.
pub const STDERR_TAIL_BYTES: usize = 4096;

/// After QEMU exited its standard error ends at once, unless somebody else holds it open.
const STDERR_GRACE: Duration = Duration::from_secs(1);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
    /// It was reaped by somebody else; nothing is known.
    Unknown,
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("an unknown end"),
        }
    }
}

/// The end of a QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// How it ended.
    pub status: ExitStatus,
    /// The last of its standard error, at most [`STDERR_TAIL_BYTES`].
    pub stderr_tail: String,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        match self.stderr_tail.trim() {
            "" => Ok(()),
            tail => write!(f, ": {tail}"),
        }
    }
}

/// What dirty tracking needs of a process.
#[derive(Debug)]
pub struct Tracking {
    /// Its number.
    pub pid: i32,
    /// A descriptor that refers to it and to no other.
    pub pidfd: OwnedFd,
    /// A userfaultfd opened inside it, unused.
    pub uffd: OwnedFd,
}

/// A process of ours that is not reaped yet. Dropping it kills and reaps.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pidfd: Arc<OwnedFd>,
    reaped: bool,
}

impl Process {
    /// Takes charge of a child that nobody else waits for.
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd: Arc::new(pidfd), reaped: false }
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Reaps it, waiting for its end unless `options` say otherwise.
    fn reap(&mut self, options: WaitIdOptions) -> Option<ExitStatus> {
        loop {
            return match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | options) {
                Ok(Some(status)) => {
                    self.reaped = true;
                    Some(describe(&status))
                }
                Ok(None) => None,
                Err(Errno::INTR) => continue,
                Err(_) => {
                    self.reaped = true;
                    Some(ExitStatus::Unknown)
                }
            };
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            kill(self.pidfd.as_fd());
            self.reap(WaitIdOptions::empty());
        }
    }
}

fn describe(status: &WaitIdStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        (None, None) => ExitStatus::Unknown,
    }
}

fn kill(pidfd: BorrowedFd<'_>) {
    // The only refusal left is that it has exited.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
}

/// What the spawner's thread hands over.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) name: String,
    pub(crate) process: Process,
    pub(crate) stderr: ChildStderr,
    pub(crate) qmp: UnixStream,
    pub(crate) serial: UnixStream,
    pub(crate) uffd: Result<OwnedFd, TrackingRefused>,
}

/// A running QEMU. Dropping it kills the process.
#[derive(Debug)]
pub struct Child {
    name: String,
    pid: i32,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
    pub(crate) qmp: Option<UnixStream>,
    pub(crate) serial: Option<UnixStream>,
    tracking: Option<Result<Tracking, TrackingRefused>>,
}

impl Child {
    /// Begins to watch a new process; its tasks belong to `tasks` and end with it.
    pub(crate) fn watch(spawned: Spawned, tasks: &TaskTracker) -> std::io::Result<Self> {
        let Spawned { name, process, stderr, qmp, serial, uffd } = spawned;
        let (pid, pidfd) = (process.pid, Arc::clone(&process.pidfd));
        let stderr = tokio::process::ChildStderr::from_std(stderr)?;
        let watched = sys::watch(pidfd.as_fd().try_clone_to_owned()?)?;
        let tracked = pidfd.as_fd().try_clone_to_owned()?;
        let tracking = uffd.map(|uffd| Tracking { pid, pidfd: tracked, uffd });
        let (publish, exit) = watch::channel(None);

        let last_words = tasks.spawn(tail(name.clone(), stderr));
        tasks.spawn(async move {
            let mut process = process;
            let status = loop {
                // Readable means exited; an error of the runtime's is its end, and then ours.
                let Ok(mut guard) = watched.readable().await else { break ExitStatus::Unknown };
                match process.reap(WaitIdOptions::NOHANG) {
                    Some(status) => break status,
                    None => guard.clear_ready(),
                }
            };
            let stderr_tail = match tokio::time::timeout(STDERR_GRACE, last_words).await {
                Ok(Ok(tail)) => tail,
                Ok(Err(_)) | Err(_) => String::new(),
            };
            publish.send_replace(Some(Exit { status, stderr_tail }));
        });
        Ok(Self { name, pid, pidfd, exit, qmp: Some(qmp), serial: Some(serial), tracking: Some(tracking) })
    }

    /// The VM's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A descriptor of the process.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Kills it. Its end is told by [`exited`](Self::exited), as ever.
    pub fn kill(&self) {
        kill(self.pidfd.as_fd());
    }

    /// Waits until it has exited and is reaped. May be called any number of times, also afterwards.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let seen = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        seen.unwrap_or(Exit { status: ExitStatus::Unknown, stderr_tail: String::new() })
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Gives away what dirty tracking needs, once.
    ///
    /// # Errors
    /// Why there is none; [`TrackingRefused::NotAsked`] also the second time.
    pub fn take_tracking(&mut self) -> Result<Tracking, TrackingRefused> {
        self.tracking.take().unwrap_or(Err(TrackingRefused::NotAsked))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.borrow().is_none() {
            kill(self.pidfd.as_fd());
        }
    }
}

/// Reads standard error to its end and returns the last of it.
async fn tail(name: String, mut stderr: tokio::process::ChildStderr) -> String {
    let mut kept = VecDeque::with_capacity(2 * STDERR_TAIL_BYTES);
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        tracing::debug!(vm = name, "QEMU says: {}", String::from_utf8_lossy(&buffer[..count]).trim_end());
        kept.extend(&buffer[..count]);
        kept.drain(..kept.len().saturating_sub(STDERR_TAIL_BYTES));
    }
    String::from_utf8_lossy(kept.make_contiguous()).into_owned()
}
