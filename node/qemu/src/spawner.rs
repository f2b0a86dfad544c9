//! The one permanent thread that starts every QEMU.
//!
//! Two things belong to a thread and not to a process: tracing, and the signal a child gets when its parent dies. A QEMU
//! started from a thread of a pool would be killed when the pool retires that thread. So one thread lives as long as the
//! [`Spawner`], and when it ends, with the daemon or before, the kernel kills every QEMU it started.
//!
//! Launches come in through a bounded mailbox; processes go back to the caller. A caller that has gone away meanwhile
//! costs nothing: its process is killed and reaped.

use std::{
    ffi::OsString, io, os::fd::AsRawFd, os::unix::net::UnixStream, path::PathBuf, sync::Mutex, thread::JoinHandle,
};

use nix::unistd::Gid;
use rustix::fs::{Mode, OFlags};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::{
    Accelerator, Child, Identity, Launch, TrackingRefused, TrackingWish,
    boot::OpenBoot,
    cgroup::THREADS_BEYOND_VCPUS,
    child::Spawned,
    execute::{Executing, Execution, execute},
    launch::Inherited,
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

enum Job {
    Start { launch: Box<Launch>, reply: oneshot::Sender<Result<Spawned, SpawnError>> },
    Trial { binary: PathBuf, identity: Option<Identity>, reply: oneshot::Sender<Result<(), SpawnError>> },
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
            while let Some(job) = inbox.blocking_recv() {
                // A process whose caller has gone is dropped here: killed and reaped.
                match job {
                    Job::Start { launch, reply } => drop(reply.send(start(*launch))),
                    Job::Trial { binary, identity, reply } => drop(reply.send(trial(binary, identity))),
                }
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
        let spawned = self.ask(&name, |reply| Job::Start { launch: Box::new(launch), reply }).await?;
        Child::watch(spawned, &self.tasks).map_err(|source| SpawnError::Step {
            name,
            step: "watch the process",
            source,
        })
    }

    /// Tries whether the writes of a QEMU that runs as `identity` can be tracked: starts `binary --version` exactly as a
    /// machine is started, takes a userfaultfd out of it and drops it.
    ///
    /// # Errors
    /// [`SpawnError::Untracked`] if its writes cannot be tracked, others if it cannot be started.
    pub async fn try_tracking(&self, binary: PathBuf, identity: Option<Identity>) -> Result<(), SpawnError> {
        self.ask(TRIAL, |reply| Job::Trial { binary, identity, reply }).await
    }

    async fn ask<T>(
        &self,
        name: &str,
        job: impl FnOnce(oneshot::Sender<Result<T, SpawnError>>) -> Job,
    ) -> Result<T, SpawnError> {
        let ended = || SpawnError::Ended { name: name.to_owned() };
        let jobs = self.jobs.lock().expect("no holder panics").clone().ok_or_else(ended)?;
        let (reply, answer) = oneshot::channel();
        jobs.send(job(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
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
    descriptors.extend(launch.disks.iter().map(|disk| disk.socket.as_raw_fd()));
    let flash = launch.firmware.iter().flat_map(|firmware| [&firmware.code, &firmware.variables]);
    descriptors.extend(flash.map(AsRawFd::as_raw_fd));

    let groups = if launch.accelerator == Accelerator::Kvm { kvm_group() } else { None };
    let order = Execution {
        name: &launch.name,
        binary: &launch.binary,
        arguments,
        descriptors,
        groups: groups.into_iter().collect(),
        cgroup,
        identity: launch.identity,
        threads: u64::from(launch.vcpus.saturating_add(THREADS_BEYOND_VCPUS)),
        wish: launch.tracking,
    };
    let Executing { process, stderr, uffd } = execute(order)?;
    Ok(Spawned { name, process, stderr, qmp, serial, uffd })
}

/// The name under which the trial of tracking shows.
const TRIAL: &str = "trial";

/// See [`Spawner::try_tracking`]; runs on the spawner's thread.
fn trial(binary: PathBuf, identity: Option<Identity>) -> Result<(), SpawnError> {
    let order = Execution {
        name: TRIAL,
        binary: &binary,
        arguments: vec!["--version".into()],
        descriptors: Vec::new(),
        groups: Vec::new(),
        cgroup: None,
        identity,
        threads: THREADS_BEYOND_VCPUS.into(),
        wish: TrackingWish::Required,
    };
    // What was started ends with the value.
    execute(order).map(drop)
}

/// The group that may use KVM, if there is one: an unprivileged QEMU needs it.
fn kvm_group() -> Option<Gid> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata("/dev/kvm").ok()?;
    (device.mode() & 0o060 == 0o060).then(|| Gid::from_raw(device.gid()))
}
