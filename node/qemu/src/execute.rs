//! From a command line to a process: what happens between fork and QEMU's first instruction.
//!
//! Runs on the spawner's thread, which is the parent and the tracer of every QEMU.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::fd::{OwnedFd, RawFd},
    os::unix::process::CommandExt,
    path::Path,
    process::{ChildStderr, Command, Stdio},
};

use nix::unistd::{Gid, Pid};
use rustix::{
    pipe::PipeFlags,
    process::{PidfdFlags, Resource, Rlimit, Signal},
};

use crate::{Identity, SpawnError, TrackingRefused, TrackingWish, child::Process, inject, sys};

/// A program to execute as QEMU is executed.
pub(crate) struct Execution<'a> {
    pub(crate) name: &'a str,
    pub(crate) binary: &'a Path,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) descriptors: Vec<RawFd>,
    pub(crate) groups: Vec<Gid>,
    pub(crate) cgroup: Option<OwnedFd>,
    pub(crate) identity: Option<Identity>,
    /// Most threads that its user may have.
    pub(crate) threads: u64,
    pub(crate) wish: TrackingWish,
}

/// The same, at its first instruction or later.
pub(crate) struct Executing {
    pub(crate) process: Process,
    pub(crate) stderr: ChildStderr,
    pub(crate) uffd: Result<OwnedFd, TrackingRefused>,
}

/// Starts the program and, if wished for, takes a userfaultfd out of it.
///
/// # Errors
/// Why it was not started; nothing is left of it.
pub(crate) fn execute(order: Execution<'_>) -> Result<Executing, SpawnError> {
    let Execution { name, binary, arguments, descriptors, groups, cgroup, identity, threads, wish } = order;
    let name = name.to_owned();
    let failed = |step| {
        let name = name.clone();
        move |source: io::Error| SpawnError::Step { name, step, source }
    };
    let (progress, progress_theirs) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed("make a pipe")(errno.into()))?;
    let mut command = Command::new(binary);
    command.args(&arguments).arg0("qemu").env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let parent = rustix::process::getpid();
    let preparation = Preparation { groups, cgroup, identity, threads, parent, progress: progress_theirs };
    let required = wish == TrackingWish::Required;
    let wish = if cfg!(target_arch = "x86_64") { wish } else { TrackingWish::Off };
    sys::before_exec(&mut command, descriptors, move || preparation.run(wish));

    let started = command.spawn();
    // The last copies of the writing end: from here on reading ends with what the child wrote.
    drop(command);
    let mut told = [0; 1];
    let told = matches!(std::fs::File::from(progress).read(&mut told), Ok(1)).then(|| Step::explain(told[0])).flatten();
    let mut child = match (started, told) {
        (Ok(child), _) => child,
        (Err(source), Some((Step::Trace, _))) => {
            let errno = nix::errno::Errno::from_raw(source.raw_os_error().unwrap_or(0));
            return Err(SpawnError::Untracked { name, source: TrackingRefused::Trace(errno) });
        }
        (Err(source), Some((_, step))) => return Err(SpawnError::Step { name, step, source }),
        (Err(source), None) => return Err(SpawnError::Exec { name, binary: binary.to_owned(), source }),
    };
    let stderr = child.stderr.take().expect("standard error was asked for");
    let number = i32::try_from(child.id()).expect("process numbers are positive and small");
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(errno) => {
            // Not reaped yet, so its number is still its own.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed("watch the process")(errno.into()));
        }
    };
    let process = Process::new(number, pidfd);

    let uffd = match (wish, told) {
        (TrackingWish::Off, _) => {
            Err(if cfg!(target_arch = "x86_64") { TrackingRefused::NotAsked } else { TrackingRefused::Architecture })
        }
        (TrackingWish::Optional, Some((Step::Trace, _))) => Err(TrackingRefused::Trace(nix::errno::Errno::EPERM)),
        (TrackingWish::Optional | TrackingWish::Required, _) => {
            inject::take_userfaultfd(Pid::from_raw(number), process.pidfd())
        }
    };
    match uffd {
        Err(source) if required || !source.left_it_running() && told.is_none() => {
            Err(SpawnError::Untracked { name, source })
        }
        uffd => Ok(Executing { process, stderr, uffd }),
    }
}

/// What the new process does before it becomes QEMU, in this order.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Step {
    Session,
    Cgroup,
    Core,
    Limits,
    Groups,
    Group,
    User,
    Death,
    Orphan,
    Privileges,
    Inherit,
    Trace,
}

impl Step {
    const ALL: [(Self, &'static str); 12] = [
        (Self::Session, "leave the daemon's session"),
        (Self::Cgroup, "join the VM's control group"),
        (Self::Core, "forbid core dumps"),
        (Self::Limits, "limit its open files and threads"),
        (Self::Groups, "give up supplementary groups; run the daemon as root or leave `identity` out"),
        (Self::Group, "become the unprivileged group"),
        (Self::User, "become the unprivileged user"),
        (Self::Death, "bind its life to the daemon's"),
        (Self::Orphan, "find its parent, which has just died"),
        (Self::Privileges, "give up gaining privileges"),
        (Self::Inherit, "inherit its descriptors"),
        (Self::Trace, "be traced"),
    ];

    fn explain(byte: u8) -> Option<(Self, &'static str)> {
        Self::ALL.into_iter().find(|(step, _)| *step as u8 == byte)
    }
}

/// Files a QEMU may have open; it has a few dozen.
const FILES_MAX: u64 = 1024;

/// What the new process needs between fork and exec; allocated before.
struct Preparation {
    groups: Vec<Gid>,
    cgroup: Option<OwnedFd>,
    identity: Option<Identity>,
    threads: u64,
    parent: rustix::process::Pid,
    progress: OwnedFd,
}

impl Preparation {
    /// System calls only: see [`sys::before_exec`].
    fn run(&self, wish: TrackingWish) -> io::Result<()> {
        let at = |step: Step| move |error: io::Error| self.tell(step, error);
        rustix::process::setsid().map_err(io::Error::from).map_err(at(Step::Session))?;
        if let Some(procs) = &self.cgroup {
            rustix::io::write(procs, b"0").map_err(io::Error::from).map_err(at(Step::Cgroup))?;
        }
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(Resource::Core, none).map_err(io::Error::from).map_err(at(Step::Core))?;
        let most = |count| Rlimit { current: Some(count), maximum: Some(count) };
        rustix::process::setrlimit(Resource::Nofile, most(FILES_MAX))
            .map_err(io::Error::from)
            .map_err(at(Step::Limits))?;
        if let Some(Identity { uid, gid }) = self.identity {
            // Counted per user: of a user that is the VM's own it is the VM's.
            rustix::process::setrlimit(Resource::Nproc, most(self.threads))
                .map_err(io::Error::from)
                .map_err(at(Step::Limits))?;
            let (uid, gid) = (nix::unistd::Uid::from_raw(uid), Gid::from_raw(gid));
            nix::unistd::setgroups(&self.groups).map_err(io::Error::from).map_err(at(Step::Groups))?;
            nix::unistd::setresgid(gid, gid, gid).map_err(io::Error::from).map_err(at(Step::Group))?;
            nix::unistd::setresuid(uid, uid, uid).map_err(io::Error::from).map_err(at(Step::User))?;
        }
        // After the change of user, which clears it; and the parent may have died before it was set.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(io::Error::from)
            .map_err(at(Step::Death))?;
        if rustix::process::getppid() != Some(self.parent) {
            return Err(self.tell(Step::Orphan, io::Error::from(rustix::io::Errno::SRCH)));
        }
        rustix::thread::set_no_new_privs(true).map_err(io::Error::from).map_err(at(Step::Privileges))?;
        match wish {
            TrackingWish::Off => Ok(()),
            TrackingWish::Required => inject::trace_me().map_err(io::Error::from).map_err(at(Step::Trace)),
            TrackingWish::Optional => {
                // Told, and started without.
                inject::trace_me().map_err(io::Error::from).map_err(at(Step::Trace)).or(Ok(()))
            }
        }
    }

    /// Tells the parent which step failed; what failed travels with the error.
    fn tell(&self, step: Step, error: io::Error) -> io::Error {
        let _ = rustix::io::write(&self.progress, &[step as u8]);
        error
    }
}
