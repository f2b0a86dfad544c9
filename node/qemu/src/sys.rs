//! The unsafe parts: what runs in the new process between fork and exec, giving a descriptor to the runtime, and asking the
//! kernel what the other end of a socket has not read.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    os::unix::process::CommandExt,
    process::Command,
};

use tokio::io::unix::AsyncFd;

/// Runs `prepare` in the new process, then lets it inherit `descriptors`.
///
/// `prepare` must do nothing but system calls: no allocation, no lock, since other threads of the daemon may hold the
/// allocator's lock at the fork, for ever as far as the new process is concerned.
pub(crate) fn before_exec<F>(command: &mut Command, descriptors: Vec<RawFd>, mut prepare: F)
where
    F: FnMut() -> io::Result<()> + Send + Sync + 'static,
{
    let hook = move || {
        prepare()?;
        for &descriptor in &descriptors {
            // SAFETY: the caller keeps these descriptors open until the process was started.
            let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: the hook makes system calls only; what it captures was allocated before the fork and is not freed here.
    unsafe { command.pre_exec(hook) };
}

/// Has the current tokio runtime watch `descriptor`.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and says the same number each time it is asked. The `AsyncFd` owns it from here on and
    // hands out shared references only, through which it can be neither closed nor replaced.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

nix::ioctl_read_bad!(outq, nix::libc::TIOCOUTQ, nix::libc::c_int);

/// Has the other end of a socket still to read something that was written here?
pub(crate) fn unread(socket: &impl AsFd) -> io::Result<bool> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the request writes one int to where it is told.
    unsafe { outq(socket.as_fd().as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes > 0)
}
