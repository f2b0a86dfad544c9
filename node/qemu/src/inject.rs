//! One system call inside a process that has not run yet.
//!
//! Dirty tracking needs a userfaultfd that belongs to QEMU's address space, and only QEMU itself can open it. QEMU is not
//! modified, so the spawner lends it the call: the child asks to be traced, stops right after exec, before its first
//! instruction, and the spawner makes it execute `userfaultfd` there, takes the descriptor and lets it go as if nothing
//! had been. Tracing belongs to a thread: all of this happens on the spawner's.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::{ptrace, signal::Signal},
    unistd::Pid,
};
use rustix::process::{PidfdGetfdFlags, WaitId, WaitIdOptions, waitid};

/// `userfaultfd` on x86-64.
const SYS_USERFAULTFD: u64 = 323;
/// `close` on x86-64.
const SYS_CLOSE: u64 = 3;
/// `O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY`: the last needs no privilege, and writes by the kernel on QEMU's behalf
/// are seen all the same in asynchronous mode.
const UFFD_FLAGS: u64 = 0o2_000_000 | 0o4000 | 1;
/// The instruction `syscall`, as the low bytes of a little-endian word.
const SYSCALL_INSTRUCTION: i64 = 0x050f;

/// Why a new process's writes cannot be tracked, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrackingRefused {
    /// The process could not be traced at all.
    #[error(
        "tracing a new QEMU is forbidden ({0}): allow it in kernel.yama.ptrace_scope (at most 2, and 2 needs CAP_SYS_PTRACE) or in the security module's profile of the daemon"
    )]
    Trace(Errno),
    /// It refused the system call.
    #[error(
        "QEMU may not open a userfaultfd ({0}): the kernel needs CONFIG_USERFAULTFD, and a container's seccomp profile must allow the call"
    )]
    Userfaultfd(Errno),
    /// Its descriptor could not be taken.
    #[error(
        "a new QEMU's userfaultfd cannot be taken with pidfd_getfd ({0}): the daemon needs CAP_SYS_PTRACE, and the security module must allow it"
    )]
    Take(rustix::io::Errno),
    /// The process did something else than stop.
    #[error("a new QEMU did not stop where expected: {0}")]
    Unexpected(String),
    /// Only x86-64 is implemented.
    #[error("dirty tracking is implemented for x86-64 only")]
    Architecture,
    /// The launch did not ask for it.
    #[error("tracking was not asked for")]
    NotAsked,
}

impl TrackingRefused {
    /// The process was not harmed and runs: only the tracking is missing.
    pub(crate) fn left_it_running(&self) -> bool {
        match self {
            Self::Userfaultfd(_) | Self::Take(_) | Self::Architecture | Self::NotAsked => true,
            Self::Trace(_) | Self::Unexpected(_) => false,
        }
    }
}

/// Asks to be traced by the parent's thread; runs in the new process.
pub(crate) fn trace_me() -> Result<(), Errno> {
    ptrace::traceme()
}

/// Takes a userfaultfd out of a child that stopped at exec, and lets the child run.
///
/// After an error the child may still be stopped, and must be killed unless the error left it running: see
/// [`TrackingRefused::left_it_running`].
pub(crate) fn take_userfaultfd(pid: Pid, pidfd: BorrowedFd<'_>) -> Result<OwnedFd, TrackingRefused> {
    wait_for_trap(pidfd)?;
    let traced = |errno| TrackingRefused::Trace(errno);
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_EXITKILL).map_err(traced)?;
    let registers = ptrace::getregs(pid).map_err(traced)?;
    let place = registers.rip as ptrace::AddressType;
    let word = ptrace::read(pid, place).map_err(traced)?;
    ptrace::write(pid, place, (word & !0xffff) | SYSCALL_INSTRUCTION).map_err(traced)?;

    let call = |number: u64, first: u64| {
        let mut lent = registers;
        // Not in a system call: otherwise the kernel might restart the exec that has just ended.
        lent.orig_rax = u64::MAX;
        (lent.rax, lent.rdi) = (number, first);
        ptrace::setregs(pid, lent).map_err(traced)?;
        ptrace::step(pid, None).map_err(traced)?;
        wait_for_trap(pidfd)?;
        // The kernel answers in two's complement: negative is an error number.
        Ok(ptrace::getregs(pid).map_err(traced)?.rax.cast_signed())
    };
    let taken = match call(SYS_USERFAULTFD, UFFD_FLAGS)? {
        descriptor @ 0.. => {
            let number = i32::try_from(descriptor).map_err(|_| TrackingRefused::Userfaultfd(Errno::EOVERFLOW))?;
            let taken = rustix::process::pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty());
            call(SYS_CLOSE, descriptor.cast_unsigned())?;
            taken.map_err(TrackingRefused::Take)
        }
        error => Err(TrackingRefused::Userfaultfd(Errno::from_raw(i32::try_from(-error).unwrap_or(i32::MAX)))),
    };

    ptrace::write(pid, place, word).map_err(traced)?;
    ptrace::setregs(pid, registers).map_err(traced)?;
    ptrace::detach(pid, None).map_err(traced)?;
    taken
}

/// Waits until the child stops with the trap that ends an exec or a single step. A child that died instead is left to be
/// reaped by its owner.
fn wait_for_trap(child: BorrowedFd<'_>) -> Result<(), TrackingRefused> {
    let wait = |options| loop {
        match waitid(WaitId::PidFd(child), options) {
            Err(rustix::io::Errno::INTR) => {}
            result => {
                return result.map_err(|errno| TrackingRefused::Unexpected(format!("waiting failed with {errno}")));
            }
        }
    };
    wait(WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT)?;
    let trap = Some(Signal::SIGTRAP as i32);
    match wait(WaitIdOptions::STOPPED | WaitIdOptions::NOHANG)? {
        Some(status) if status.trapping_signal() == trap || status.stopping_signal() == trap => Ok(()),
        Some(status) => Err(TrackingRefused::Unexpected(format!("it stopped otherwise: {status:?}"))),
        None => Err(TrackingRefused::Unexpected("it exited".to_owned())),
    }
}
