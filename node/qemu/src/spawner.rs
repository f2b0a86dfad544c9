//! The one permanent thread that starts every QEMU.
//!
//! Two things belong to a thread and not to a process: tracing, and the signal a child gets when its parent dies. A QEMU
//! started from a thread of a pool would be killed when the pool retires that thread. So one thread lives as long as the
//! [`Spawner`], and when it ends, with the daemon or before, the kernel kills every QEMU it started.
//!
//! Launches come in through a bounded mailbox; processes go back to the caller. A caller that has gone away meanwhile
//! costs nothing: its process is killed and reaped.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    os::unix::net::UnixStream,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Mutex,
    thread::JoinHandle,
};

use nix::unistd::{Gid, Pid};
use rustix::{
    fs::{Mode, OFlags},
    pipe::PipeFlags,
    process::{PidfdFlags, Resource, Rlimit, Signal},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::{
    Accelerator, Child, Identity, Launch, TrackingRefused, TrackingWish,
    boot::OpenBoot,
    child::{Process, Spawned},
    inject,
    launch::Inherited,
    sys,
};

/// Launches that may wait for the thread.
const LAUNCHES_MAX: usize = 16;

/// A QEMU was not started. No process is left.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The launch contradicts itself or QEMU.
    #[error("VM `{name}` cannot be started: {reason}")]
    BadLaunch {
        /// The VM.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// What it boots could not be opened.
    #[error("VM `{name}` cannot be started: cannot open `{}`, which it boots", path.display())]
    BootFile {
        /// The VM.
        name: String,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// One step of the start failed.
    #[error("VM `{name}` cannot be started: cannot {step}")]
    Step {
        /// The VM.
        name: String,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// QEMU itself could not be executed.
    #[error("VM `{name}` cannot be started: cannot execute `{}`; is QEMU installed?", binary.display())]
    Exec {
        /// The VM.
        name: String,
        /// The program.
        binary: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Its writes cannot be tracked, and the launch requires that.
    #[error("VM `{name}` cannot be started with dirty tracking")]
    Untracked {
        /// The VM.
        name: String,
        /// Why, and what to do.
        #[source]
        source: TrackingRefused,
    },
    /// The spawner was shut down.
    #[error("VM `{name}` cannot be started: the spawner has ended")]
    Ended {
        /// The VM.
        name: String,
    },
}

struct Job {
    launch: Box<Launch>,
    reply: oneshot::Sender<Result<Spawned, SpawnError>>,
}

/// Starts QEMUs. When it is dropped or [shut down](Self::shutdown), all of them are killed.
#[derive(Debug)]
pub struct Spawner {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    tasks: TaskTracker,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start() -> io::Result<Self> {
        let (jobs, mut inbox) = mpsc::channel::<Job>(LAUNCHES_MAX);
        let thread = std::thread::Builder::new().name("qemu-spawner".to_owned()).spawn(move || {
            while let Some(Job { launch, reply }) = inbox.blocking_recv() {
                // A process whose caller has gone is dropped here: killed and reaped.
                let _ = reply.send(start(*launch));
            }
        })?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)), tasks: TaskTracker::new() })
    }

    /// Starts one QEMU, and returns when it executes: its machine is not initialised yet.
    ///
    /// # Errors
    /// Why it was not started; nothing is left of it.
    pub async fn spawn(&self, launch: Launch) -> Result<Child, SpawnError> {
        let name = launch.name.clone();
        let ended = || SpawnError::Ended { name: name.clone() };
        let jobs = self.jobs.lock().expect("no holder panics").clone().ok_or_else(ended)?;
        let (reply, answer) = oneshot::channel();
        jobs.send(Job { launch: Box::new(launch), reply }).await.map_err(|_| ended())?;
        let spawned = answer.await.map_err(|_| ended())??;
        Child::watch(spawned, &self.tasks).map_err(|source| SpawnError::Step {
            name,
            step: "watch the process",
            source,
        })
    }

    /// The tracker that the tasks of children and machines belong to.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Ends the thread, and with it every QEMU, and waits until all are reaped.
    pub async fn shutdown(&self) {
        self.jobs.lock().expect("no holder panics").take();
        let thread = self.thread.lock().expect("no holder panics").take();
        if let Some(thread) = thread {
            // The thread ends after the launch it is at, within milliseconds.
            let _ = tokio::task::spawn_blocking(|| thread.join()).await;
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What the new process does before it becomes QEMU, in this order.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Step {
    Session,
    Cgroup,
    Core,
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
    const ALL: [(Self, &'static str); 11] = [
        (Self::Session, "leave the daemon's session"),
        (Self::Cgroup, "join the VM's control group"),
        (Self::Core, "forbid core dumps"),
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

/// Starts one QEMU; runs on the spawner's thread.
fn start(launch: Launch) -> Result<Spawned, SpawnError> {
    let name = launch.name.clone();
    let failed = |step| {
        let name = name.clone();
        move |source: io::Error| SpawnError::Step { name, step, source }
    };
    launch.check().map_err(|reason| SpawnError::BadLaunch { name: name.clone(), reason })?;
    let boot = OpenBoot::open(&launch.boot, launch.identity).map_err(|(path, source)| SpawnError::BootFile {
        name: name.clone(),
        path,
        source,
    })?;
    let (qmp, qmp_theirs) = UnixStream::pair().map_err(failed("make its control socket"))?;
    let (serial, serial_theirs) = UnixStream::pair().map_err(failed("make its serial port"))?;
    let cgroup = launch.cgroup.as_ref().map(|procs| {
        rustix::fs::open(procs, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failed("open the control group's `cgroup.procs`")(errno.into()))
    });
    let cgroup = cgroup.transpose()?;
    let (progress, progress_theirs) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed("make a pipe")(errno.into()))?;

    let inherited = Inherited {
        memory: launch.memory.as_raw_fd(),
        qmp: qmp_theirs.as_raw_fd(),
        serial: serial_theirs.as_raw_fd(),
        boot: &boot,
    };
    let arguments: Vec<OsString> = launch.arguments(&inherited);
    let mut descriptors = vec![inherited.memory, inherited.qmp, inherited.serial];
    descriptors.extend(boot.descriptors());
    descriptors.extend(launch.nics.iter().map(|nic| nic.socket.as_raw_fd()));

    let mut command = Command::new(&launch.binary);
    command.args(&arguments).arg0("qemu").env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let groups = if launch.accelerator == Accelerator::Kvm { kvm_group() } else { None };
    let groups = groups.into_iter().collect();
    let preparation = Preparation {
        groups,
        cgroup,
        identity: launch.identity,
        parent: rustix::process::getpid(),
        progress: progress_theirs,
    };
    let wish = if cfg!(target_arch = "x86_64") { launch.tracking } else { TrackingWish::Off };
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
        (Err(source), None) => return Err(SpawnError::Exec { name, binary: launch.binary, source }),
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
        Err(source) if launch.tracking == TrackingWish::Required || !source.left_it_running() && told.is_none() => {
            Err(SpawnError::Untracked { name, source })
        }
        uffd => Ok(Spawned { name, process, stderr, qmp, serial, uffd }),
    }
}

/// The group that may use KVM, if there is one: an unprivileged QEMU needs it.
fn kvm_group() -> Option<Gid> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata("/dev/kvm").ok()?;
    (device.mode() & 0o060 == 0o060).then(|| Gid::from_raw(device.gid()))
}

/// What the new process needs between fork and exec; allocated before.
struct Preparation {
    groups: Vec<Gid>,
    cgroup: Option<OwnedFd>,
    identity: Option<Identity>,
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
        if let Some(Identity { uid, gid }) = self.identity {
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
