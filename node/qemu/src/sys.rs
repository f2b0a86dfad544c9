//! The unsafe parts: what runs in the new process between fork and exec, and giving a descriptor to the runtime.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{OwnedFd, RawFd},
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
