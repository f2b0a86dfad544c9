//! A machine's device state, saved and loaded: everything but the guest's memory.
//!
//! QEMU writes it as a migration stream into a pipe. The guest's memory is shared, so the capability `x-ignore-shared`
//! leaves it out, and what remains is a few hundred KiB.

use std::{io, os::fd::OwnedFd, sync::atomic::Ordering, time::Duration};

use bytes::{Bytes, BytesMut};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
};

use crate::{Exit, Machine, QmpError};

/// The largest device state that is accepted, in bytes.
pub const STATE_BYTES_MAX: usize = 64 << 20;

/// How long a save or a load may take. Milliseconds are usual; a held disk write can make it longer.
const STATE_DEADLINE: Duration = Duration::from_secs(30);

/// Between two questions whether QEMU has finished with a failed save.
const SETTLE_PAUSE: Duration = Duration::from_millis(2);

/// The pipe holds a usual state whole, so that QEMU need not wait for the reader. The limit for unprivileged users.
const PIPE_BYTES: usize = 1 << 20;

/// The name under which QEMU is given the pipe.
const PIPE_NAME: &str = "pollux-state";

/// The device state was not saved. The machine is stopped as it was; it can be continued or saved again.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// No pipe.
    #[error("VM `{name}`: cannot make a pipe for its device state")]
    Pipe {
        /// The VM.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// QEMU refused or did not answer.
    #[error("VM `{name}`: its device state was not saved")]
    Qmp {
        /// The VM.
        name: String,
        /// Why.
        #[source]
        source: QmpError,
    },
    /// QEMU began and gave up.
    #[error("VM `{name}`: saving its device state ended as `{status}`")]
    Failed {
        /// The VM.
        name: String,
        /// QEMU's word.
        status: String,
    },
    /// More than a device state can be.
    #[error("VM `{name}`: its device state is larger than {STATE_BYTES_MAX} bytes; is its memory not shared?")]
    TooLarge {
        /// The VM.
        name: String,
    },
    /// Not within the deadline; it was cancelled.
    #[error("VM `{name}`: its device state was not saved within {STATE_DEADLINE:?}; is a disk not answering?")]
    Slow {
        /// The VM.
        name: String,
    },
}

/// What every device state begins with.
const MAGIC: &[u8] = b"QEVM";

/// The device state was not loaded. The machine is of no use any more: drop it and start another.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bytes are no device state. QEMU was not shown them: it would wait for ever for the rest of too few.
    #[error("VM `{name}`: these {bytes} bytes are no device state")]
    NotState {
        /// The VM.
        name: String,
        /// How many there are.
        bytes: usize,
    },
    /// No pipe.
    #[error("VM `{name}`: cannot make a pipe for its device state")]
    Pipe {
        /// The VM.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// QEMU refused or did not answer.
    #[error("VM `{name}`: its device state was not loaded")]
    Qmp {
        /// The VM.
        name: String,
        /// Why.
        #[source]
        source: QmpError,
    },
    /// QEMU did not understand the state, which makes it exit.
    #[error(
        "VM `{name}`: QEMU exited while it loaded the device state ({exit}); is it the same machine type, with the same devices?"
    )]
    Exited {
        /// The VM.
        name: String,
        /// Its end.
        exit: Exit,
    },
    /// QEMU gave up without exiting.
    #[error("VM `{name}`: loading its device state ended as `{status}`")]
    Failed {
        /// The VM.
        name: String,
        /// QEMU's word.
        status: String,
    },
    /// Not within the deadline.
    #[error("VM `{name}`: its device state was not loaded within {STATE_DEADLINE:?}")]
    Slow {
        /// The VM.
        name: String,
    },
}

impl Machine {
    /// Saves the device state of a stopped machine. It stays stopped; [`cont`](Self::cont) must come before the next save.
    ///
    /// Cancelling it is safe: QEMU's attempt ends at the pipe, and what follows, [`cont`](Self::cont) or another save, waits
    /// for that.
    ///
    /// # Errors
    /// See [`SaveError`]; the machine remains as it was.
    pub async fn save_state(&self) -> Result<Bytes, SaveError> {
        let name = || self.name().to_owned();
        let failed = |source| SaveError::Qmp { name: name(), source };
        let _one_at_a_time = self.state_lock.lock().await;
        self.settle().await.map_err(failed)?;
        let (ours, theirs) = state_pipe().map_err(|source| SaveError::Pipe { name: name(), source })?;
        let mut ours =
            pipe::Receiver::from_owned_fd(ours).map_err(|source| SaveError::Pipe { name: name(), source })?;
        let mut migration = self.qmp().migration();
        let before = migration.borrow().run;
        self.unsettled.store(true, Ordering::Relaxed);
        // Both are on their way before the first is answered; QEMU carries them out in order.
        let mut lend = self.qmp().begin("getfd", json!({ "fdname": PIPE_NAME }), Some(theirs)).map_err(failed)?;
        let uri = json!({ "uri": format!("fd:{PIPE_NAME}") });
        let mut migrate = self.qmp().begin("migrate", uri, None).map_err(failed)?;

        let save = async {
            lend.wait(STATE_DEADLINE).await.map_err(failed)?;
            migrate.wait(STATE_DEADLINE).await.map_err(failed)?;
            let state = read_all(&mut ours).await.map_err(|source| SaveError::Pipe { name: name(), source })?;
            let state = state.ok_or_else(|| SaveError::TooLarge { name: name() })?;
            let ended = tokio::select! {
                ended = migration.wait_for(|now| now.run > before && now.ended().is_some()) => ended,
                exit = self.child().exited() => {
                    return Err(SaveError::Failed { name: name(), status: format!("QEMU ended: {exit}") });
                }
            };
            match ended.ok().and_then(|run| run.ended()) {
                Some(Ok(())) => {
                    self.unsettled.store(false, Ordering::Relaxed);
                    Ok(state)
                }
                Some(Err(status)) => Err(SaveError::Failed { name: name(), status }),
                None => Err(SaveError::Failed { name: name(), status: "the connection ended".to_owned() }),
            }
        };
        match tokio::time::timeout(STATE_DEADLINE, save).await {
            Ok(saved) => saved,
            Err(_) => {
                // Best effort: its reply is taken whenever it comes.
                let _ = self.qmp().begin("migrate_cancel", json!({}), None);
                Err(SaveError::Slow { name: name() })
            }
        }
    }

    /// Waits until QEMU has finished with a save that failed or was given up: before that it refuses to continue. There is
    /// no event for it, so QEMU is asked again and again; after a save that succeeded it is not asked at all.
    pub(crate) async fn settle(&self) -> Result<(), QmpError> {
        let ask = async {
            while self.unsettled.load(Ordering::Relaxed) {
                let migration = self.qmp().execute("query-migrate", json!({}), STATE_DEADLINE).await?;
                let status = self.qmp().execute("query-status", json!({}), STATE_DEADLINE).await?;
                let over =
                    matches!(migration["status"].as_str(), None | Some("none" | "completed" | "failed" | "cancelled"));
                if over && status["status"] != "finish-migrate" {
                    self.unsettled.store(false, Ordering::Relaxed);
                    break;
                }
                tokio::time::sleep(SETTLE_PAUSE).await;
            }
            Ok(())
        };
        let slow =
            || QmpError::Slow { command: "the end of a save that was given up".to_owned(), waited: STATE_DEADLINE };
        tokio::time::timeout(STATE_DEADLINE, ask).await.unwrap_or_else(|_| Err(slow()))
    }

    /// Loads the device state of another machine into one started as [`crate::Role::Incoming`], whose memory already holds
    /// what that machine's held. It changes no page of it. Afterwards the machine is paused.
    ///
    /// # Errors
    /// See [`LoadError`]; the machine is of no use any more.
    pub async fn load_state(&self, state: Bytes) -> Result<(), LoadError> {
        let name = || self.name().to_owned();
        let failed = |source| LoadError::Qmp { name: name(), source };
        if !state.starts_with(MAGIC) {
            return Err(LoadError::NotState { name: name(), bytes: state.len() });
        }
        let _one_at_a_time = self.state_lock.lock().await;
        let (theirs, ours) = state_pipe().map_err(|source| LoadError::Pipe { name: name(), source })?;
        let mut ours = pipe::Sender::from_owned_fd(ours).map_err(|source| LoadError::Pipe { name: name(), source })?;
        let mut migration = self.qmp().migration();
        let load = async {
            let mut lend = self.qmp().begin("getfd", json!({ "fdname": PIPE_NAME }), Some(theirs)).map_err(failed)?;
            let uri = json!({ "uri": format!("fd:{PIPE_NAME}") });
            let mut incoming = self.qmp().begin("migrate-incoming", uri, None).map_err(failed)?;
            lend.wait(STATE_DEADLINE).await.map_err(failed)?;
            incoming.wait(STATE_DEADLINE).await.map_err(failed)?;
            // A QEMU that dislikes the beginning does not read the end: the pipe breaks, and its status says why.
            let sent = ours.write_all(&state).await;
            drop(ours);
            let ended = migration.wait_for(|now| now.ended().is_some()).await.ok().and_then(|run| run.ended());
            match (ended, sent) {
                (Some(Ok(())), Ok(())) => Ok(()),
                (Some(Ok(())), Err(source)) => Err(LoadError::Pipe { name: name(), source }),
                (Some(Err(status)), _) => Err(LoadError::Failed { name: name(), status }),
                (None, _) => Err(LoadError::Failed { name: name(), status: "the connection ended".to_owned() }),
            }
        };
        let loaded = tokio::time::timeout(STATE_DEADLINE, load).await.unwrap_or(Err(LoadError::Slow { name: name() }));
        let Err(error) = loaded else { return Ok(()) };
        // A failed load usually ends QEMU, and its last words say more than a broken connection.
        match tokio::time::timeout(EXIT_GRACE, self.child().exited()).await {
            Ok(exit) => Err(LoadError::Exited { name: name(), exit }),
            Err(_) => Err(error),
        }
    }
}

/// After a failed load QEMU exits by itself within this time, or does not.
const EXIT_GRACE: Duration = Duration::from_secs(2);

/// A pipe, its reading end first, that holds a usual state whole where the system allows.
fn state_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Less is slower and still right.
    let _ = fcntl_setpipe_size(&writing, PIPE_BYTES);
    Ok((reading, writing))
}

/// Reads to the end, or `None` beyond the limit.
async fn read_all(from: &mut pipe::Receiver) -> io::Result<Option<Bytes>> {
    let mut state = BytesMut::with_capacity(PIPE_BYTES);
    while from.read_buf(&mut state).await? > 0 {
        if state.len() > STATE_BYTES_MAX {
            return Ok(None);
        }
    }
    Ok(Some(state.freeze()))
}
