//! Tracking where the system call cannot be lent: always refused.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::{errno::Errno, unistd::Pid};

/// Why a new process's writes cannot be tracked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrackingRefused {
    /// The process could not be traced at all.
    #[error("tracing a new QEMU is forbidden ({0})")]
    Trace(Errno),
    /// Only x86-64 is implemented.
    #[error("dirty tracking is implemented for x86-64 only")]
    Architecture,
    /// The launch did not ask for it.
    #[error("tracking was not asked for")]
    NotAsked,
}

impl TrackingRefused {
    pub(crate) fn left_it_running(&self) -> bool {
        true
    }
}

pub(crate) fn trace_me() -> Result<(), Errno> {
    Err(Errno::ENOSYS)
}

pub(crate) fn take_userfaultfd(_: Pid, _: BorrowedFd<'_>) -> Result<OwnedFd, TrackingRefused> {
    Err(TrackingRefused::Architecture)
}
