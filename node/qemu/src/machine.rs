//! A running machine, as the VM's actor drives it.
//!
//! ```text
//!            start                cont                 guest shuts down
//!   Fresh ----------> paused <------------> running ----------------> paused (GuestShutdown)
//!                       ^         stop
//!   Incoming ----> waiting -- load_state
//!
//!   from anywhere: quit, kill, dropping the Machine, QEMU's own death -> Exited
//! ```
//!
//! The VM's actor owns it. Every command has a deadline, and a slow reply is not a failure: QEMU may still carry the
//! command out, and asking again is allowed.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::{
    Child, Console, Event, Exit, Launch, Qmp, QmpError, SpawnError, Spawner, Tracking, TrackingRefused,
    throttle::{Throttle, ThrottleError},
};

/// How long QEMU may take to answer.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);

/// Between two attempts to send a command for which there is no room.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// QEMU's own limits on a migration would delay the saving of device state: none. Bytes per second and milliseconds, each
/// the largest that every supported QEMU takes.
const BANDWIDTH_MAX: i64 = i64::MAX;
const DOWNTIME_LIMIT_MS_MAX: u64 = 2_000_000;

/// A machine was not started. No process is left.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no process.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// QEMU exited before it was ready, and said why.
    #[error("VM `{name}` was not started: QEMU ended with {exit}")]
    Exited {
        /// The VM.
        name: String,
        /// Its end.
        exit: Exit,
    },
    /// QEMU runs, but cannot be driven; it was killed.
    #[error("VM `{name}` was not started: QEMU cannot be driven")]
    Qmp {
        /// The VM.
        name: String,
        /// Why.
        #[source]
        source: QmpError,
    },
    /// Its sockets could not be used; it was killed.
    #[error("VM `{name}` was not started: its sockets cannot be watched")]
    Sockets {
        /// The VM.
        name: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// A guest was not slowed down: it has its whole speed.
#[derive(Debug, thiserror::Error)]
pub enum SlowDownError {
    /// QEMU did not say which threads run it.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The kernel does not do it.
    #[error(transparent)]
    Throttle(#[from] ThrottleError),
}

/// What a machine does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The guest runs.
    Running,
    /// The guest is paused, for the reason QEMU names: `prelaunch`, `paused`, `postmigrate`, `shutdown`, ...
    Paused(String),
    /// It waits for device state.
    Incoming,
}

/// Something a machine did by itself, or in answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest switched itself off (`guest`) or QEMU was told to end. The process remains, paused.
    GuestShutdown {
        /// By the guest's own doing.
        guest: bool,
        /// QEMU's word for why: `guest-shutdown`, `host-qmp-quit`, ...
        reason: String,
    },
    /// The guest started over.
    Reset {
        /// By the guest's own doing.
        guest: bool,
    },
    /// It stands still.
    Stopped,
    /// It runs.
    Resumed,
    /// The guest's kernel gave up; the machine is paused.
    Panicked,
    /// A request of a disk failed. It is parked in the device and the guest is paused; `cont` issues it again.
    DiskFailed {
        /// Which of the disks, from 0.
        disk: usize,
        /// What QEMU knows of it.
        reason: String,
    },
    /// QEMU lives but cannot be driven any more: kill it.
    ControlLost {
        /// What happened.
        reason: String,
    },
    /// The process has ended. The last event; told again to whoever asks again.
    Exited(Exit),
}

/// A QEMU that answers. Dropping it kills the process.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    qmp: Qmp,
    console: Console,
    control_lost_told: AtomicBool,
    /// Of a guest that is slowed down.
    throttle: Mutex<Option<Throttle>>,
    pub(crate) state_lock: Mutex<()>,
    /// A save began that is not known to have ended.
    pub(crate) unsettled: AtomicBool,
}

impl Machine {
    /// Starts a QEMU and waits until its machine is initialised, its memory mapped. It is paused, or waits for state.
    ///
    /// # Errors
    /// See [`StartError`]; no process is left.
    pub async fn start(spawner: &Spawner, launch: Launch) -> Result<Self, StartError> {
        let name = launch.name.clone();
        let mut child = spawner.spawn(launch).await?;
        let (qmp, serial) = (child.qmp.take(), child.serial.take());
        let (Some(qmp), Some(serial)) = (qmp, serial) else { unreachable!("a new child has both sockets") };
        let console = Console::drain(serial, spawner.tasks())
            .map_err(|source| StartError::Sockets { name: name.clone(), source })?;
        let ready = async {
            let qmp = Qmp::connect(qmp, spawner.tasks()).await?;
            let on = |capability: &str| json!({ "capability": capability, "state": true });
            let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
            qmp.execute("migrate-set-capabilities", capabilities, REPLY_DEADLINE).await?;
            let parameters = json!({
                "max-bandwidth": BANDWIDTH_MAX,
                "downtime-limit": DOWNTIME_LIMIT_MS_MAX,
                "announce-rounds": 0,
            });
            qmp.execute("migrate-set-parameters", parameters, REPLY_DEADLINE).await?;
            Ok(qmp)
        };
        let qmp = match ready.await {
            Ok(qmp) => qmp,
            // The connection ends a moment before the process does, and the process knows why.
            Err(source @ QmpError::Closed { .. }) => {
                return Err(match tokio::time::timeout(REPLY_DEADLINE, child.exited()).await {
                    Ok(exit) => StartError::Exited { name, exit },
                    Err(_) => StartError::Qmp { name, source },
                });
            }
            Err(source) => return Err(StartError::Qmp { name, source }),
        };
        Ok(Self {
            child,
            qmp,
            console,
            control_lost_told: false.into(),
            throttle: Mutex::new(None),
            state_lock: Mutex::new(()),
            unsettled: false.into(),
        })
    }

    /// The VM's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.child.name()
    }

    /// The process.
    #[must_use]
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Its control connection.
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// The guest's serial port.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Gives away what dirty tracking needs, once.
    ///
    /// # Errors
    /// Why there is none.
    pub fn take_tracking(&mut self) -> Result<Tracking, TrackingRefused> {
        self.child.take_tracking()
    }

    /// Pauses the guest. On return its CPUs stand still, disk requests are done and the network cards send nothing. QEMU
    /// waits for disk writes first, which may be held: however slow it is, that is no failure (DESIGN, rule 16).
    ///
    /// # Errors
    /// [`QmpError::Rejected`] or [`QmpError::Closed`].
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.patient("stop").await
    }

    /// Lets the guest run; however slow, it is no failure.
    ///
    /// # Errors
    /// [`QmpError::Rejected`]: it does not run. [`QmpError::Closed`]: it may.
    pub async fn cont(&self) -> Result<(), QmpError> {
        loop {
            match self.settle().await {
                Err(slow @ (QmpError::Slow { .. } | QmpError::Busy { .. })) => {
                    tracing::warn!(vm = self.name(), %slow);
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                settled => break settled?,
            }
        }
        self.patient("cont").await
    }

    /// Presses the guest's power button. What it does about that is up to it.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn powerdown(&self) -> Result<(), QmpError> {
        self.command("system_powerdown").await
    }

    /// Takes `percent` of its speed from the guest, at most 99; 0 gives all of it back, also when this fails.
    ///
    /// # Errors
    /// QEMU does not name the threads of its processors, or the kernel does not slow them down.
    pub async fn throttle(&self, percent: u8) -> Result<(), SlowDownError> {
        let mut throttle = self.throttle.lock().await;
        if percent == 0 {
            // Dropped, it gives the speed back.
            *throttle = None;
            return Ok(());
        }
        let slowed = match throttle.take() {
            Some(throttle) => throttle,
            None => Throttle::new(self.child.pid(), &self.vcpu_threads().await?)?,
        };
        slowed.set(percent)?;
        *throttle = Some(slowed);
        Ok(())
    }

    /// The threads that run the guest's processors.
    async fn vcpu_threads(&self) -> Result<Vec<i32>, QmpError> {
        let reply = self.qmp.execute("query-cpus-fast", json!({}), REPLY_DEADLINE).await?;
        let threads = reply.as_array().into_iter().flatten().filter_map(|cpu| cpu["thread-id"].as_i64());
        Ok(threads.filter_map(|thread| i32::try_from(thread).ok()).collect())
    }

    /// Tells QEMU to end; [`MachineEvent::Exited`] follows.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.command("quit").await {
            // It may be gone before it answered.
            Err(QmpError::Closed { .. }) => Ok(()),
            result => result,
        }
    }

    /// Kills QEMU; [`MachineEvent::Exited`] follows.
    pub fn kill(&self) {
        self.child.kill();
    }

    /// What the machine does now.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn status(&self) -> Result<Status, QmpError> {
        let reply = self.qmp.execute("query-status", json!({}), REPLY_DEADLINE).await?;
        Ok(match (reply["running"].as_bool(), reply["status"].as_str()) {
            (Some(true), _) => Status::Running,
            (_, Some("inmigrate")) => Status::Incoming,
            (_, status) => Status::Paused(status.unwrap_or_default().to_owned()),
        })
    }

    /// The next event. One consumer at a time. Cancelling it loses nothing. After [`MachineEvent::Exited`] it returns that
    /// again at once.
    pub async fn next_event(&self) -> MachineEvent {
        while let Some(event) = self.qmp.next_event().await {
            if let Some(event) = translate(&event) {
                return event;
            }
        }
        // Usually the connection ends because the process does; tell the other case once.
        if !self.control_lost_told.load(Ordering::Relaxed) {
            if let Ok(exit) = tokio::time::timeout(CONTROL_GRACE, self.child.exited()).await {
                return MachineEvent::Exited(exit);
            }
            self.control_lost_told.store(true, Ordering::Relaxed);
            let reason = self.qmp.closed().unwrap_or_default();
            return MachineEvent::ControlLost { reason };
        }
        MachineEvent::Exited(self.child.exited().await)
    }

    /// Sends a command once and waits for its answer, however long that takes.
    async fn patient(&self, command: &'static str) -> Result<(), QmpError> {
        let mut pending = loop {
            match self.qmp.begin(command, json!({}), None) {
                Err(QmpError::Busy { .. }) => tokio::time::sleep(BUSY_PAUSE).await,
                begun => break begun?,
            }
        };
        loop {
            match pending.wait(REPLY_DEADLINE).await {
                Err(slow @ QmpError::Slow { .. }) => tracing::warn!(vm = self.name(), %slow),
                answered => return answered.map(drop),
            }
        }
    }

    async fn command(&self, command: &'static str) -> Result<(), QmpError> {
        self.qmp.execute(command, json!({}), REPLY_DEADLINE).await.map(|_: Value| ())
    }
}

/// Between the end of the connection and the end of the process.
const CONTROL_GRACE: Duration = Duration::from_secs(2);

/// What an event of QEMU's means, if anything.
fn translate(event: &Event) -> Option<MachineEvent> {
    let guest = || event.data["guest"].as_bool().unwrap_or(false);
    match event.name.as_str() {
        "SHUTDOWN" => {
            let reason = event.data["reason"].as_str().unwrap_or_default().to_owned();
            Some(MachineEvent::GuestShutdown { guest: guest(), reason })
        }
        "RESET" => Some(MachineEvent::Reset { guest: guest() }),
        "STOP" => Some(MachineEvent::Stopped),
        "RESUME" => Some(MachineEvent::Resumed),
        "GUEST_PANICKED" => Some(MachineEvent::Panicked),
        "BLOCK_IO_ERROR" if event.data["action"] == "stop" => {
            let node = event.data["node-name"].as_str().unwrap_or_default();
            let disk = node.strip_prefix("disk").and_then(|number| number.parse().ok())?;
            let said = |name: &str| event.data[name].as_str().unwrap_or_default();
            Some(MachineEvent::DiskFailed { disk, reason: format!("{}: {}", said("operation"), said("reason")) })
        }
        _ => None,
    }
}
