//! A port: one NIC of one QEMU process, and the task that moves its frames.
//!
//! The VM's actor starts it, holds its [`PortHandle`] and ends it. The task owns everything: the socket, the TAP, the
//! gate. It is reached by commands through one bounded mailbox, which it looks at before any frame; each command is
//! answered when it has taken effect.
//!
//! ```text
//!   start --> frames flow, as far as the gate lets them --+--> stop(), or the last handle is dropped
//!                                                         +--> QEMU closed its end, or broke the framing
//!                                                         '--> someone deleted the TAP
//! ```
//!
//! However it ends, the TAP is gone before [`PortHandle::ended`] says so.
//!
//! Two things are told apart, see [`crate::Gate`]: which generation *QEMU runs under* ([`PortConfig::runs_under`],
//! [`PortHandle::runs_under`]), and which one is *committed* ([`PortHandle::open_gate`]).

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    sync::{Arc, Mutex, PoisonError},
};

use pollux_wire::id::{Generation, MacAddr, VmId};
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::{
    counters::Counters,
    fence::{Fence, FenceError},
    frames::FrameError,
    gate::{OpenRefused, Refusal},
    pump::Pump,
    tap::Tap,
};

/// What either end of a NIC's socket holds for the other, in bytes, as far as the host allows. Room for what a guest emits
/// while the daemon is busy: QEMU drops what does not fit.
pub const NIC_SOCKET_BYTES: usize = 1024 * 1024;

/// Commands that wait for the port's task. One actor sends them, nearly always one at a time.
const COMMANDS_MAX: usize = 16;

/// Which NIC this is.
#[derive(Debug, Clone, Copy)]
pub struct PortConfig {
    /// The VM.
    pub vm: VmId,
    /// Which of its NICs, from 0.
    pub nic: u8,
    /// The generation under which its QEMU runs, or will run once it is continued.
    pub runs_under: Generation,
}

/// Why a port ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PortEnd {
    /// It was asked to, or nobody holds its handle any more.
    #[error("the port was stopped")]
    Stopped,
    /// QEMU closed its end, most likely because it is no more.
    #[error("QEMU closed the NIC's socket")]
    QemuClosed,
    /// QEMU sent what is no frame.
    #[error("the NIC's socket carries no frames; the QEMU on it cannot be trusted and should be ended")]
    Protocol(
        /// What it sent.
        #[from]
        FrameError,
    ),
    /// The socket failed otherwise.
    #[error("the NIC's socket failed")]
    Socket {
        /// How.
        #[source]
        source: Arc<io::Error>,
    },
    /// The interface was deleted, by someone else.
    #[error("the TAP was deleted under the port; stop and start the VM to make it again")]
    TapGone,
    /// The task was dropped with its runtime, or panicked.
    #[error("the port's task ended without a word")]
    Lost,
}

/// The gate was not opened.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The gate refused.
    #[error(transparent)]
    Refused(#[from] OpenRefused),
    /// There is no port any more.
    #[error("the port has ended")]
    Ended(#[source] PortEnd),
}

/// Nothing was announced.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// Only the owner may speak for the guest.
    #[error("the announcement was refused; open the gate first")]
    Refused(#[source] Refusal),
    /// There is no port any more.
    #[error("the port has ended")]
    Ended(#[source] PortEnd),
}

/// What [`PortHandle::drained`] found in QEMU's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Frames that were still in it. Each went through the gate.
    pub frames: u64,
    /// Bytes of a frame that QEMU has not sent to its end.
    pub partial_bytes: usize,
    /// The socket is empty. False only when QEMU emitted faster than it was read, which one that is stopped does not do.
    pub complete: bool,
}

enum Command {
    Open(Generation, oneshot::Sender<Result<(), OpenRefused>>),
    Close(oneshot::Sender<()>),
    Fence(Generation, oneshot::Sender<()>),
    RunsUnder(Generation, oneshot::Sender<()>),
    Drain(oneshot::Sender<Drained>),
    Announce(MacAddr, oneshot::Sender<Result<(), Refusal>>),
    Stop,
}

/// The task of one NIC. See the module's text.
pub struct Port {
    pump: Pump,
    commands: mpsc::Receiver<Command>,
    published: Arc<Mutex<Counters>>,
    heard: watch::Sender<Option<Instant>>,
}

/// How the VM's actor reaches a port. Dropping it ends the port; the fence goes with it, after the TAP where it is stopped.
#[derive(Debug)]
pub struct PortHandle {
    commands: mpsc::Sender<Command>,
    published: Arc<Mutex<Counters>>,
    heard: watch::Receiver<Option<Instant>>,
    /// The TAP's name.
    tap: String,
    fence: Option<Fence>,
    end: watch::Receiver<Option<PortEnd>>,
}

/// The two ends of a NIC's socket: ours for [`Port::start`], QEMU's to inherit as `-netdev stream,addr.type=fd`. Both have
/// buffers of [`NIC_SOCKET_BYTES`], which for QEMU's end only its maker can arrange.
///
/// # Errors
/// When the process has no file descriptors left.
///
/// # Panics
/// Outside a tokio runtime with I/O.
pub fn nic_socket_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, qemus) = StdUnixStream::pair()?;
    for end in [&ours, &qemus] {
        enlarge(end)?;
        end.set_nonblocking(true)?;
    }
    Ok((UnixStream::from_std(ours)?, qemus.into()))
}

/// Past the host's limit where we may, up to it where we may not.
fn enlarge(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    set_socket_send_buffer_size_force(socket, NIC_SOCKET_BYTES)
        .or_else(|_| set_socket_send_buffer_size(socket, NIC_SOCKET_BYTES))?;
    Ok(())
}

impl Port {
    /// Starts the task of one NIC on `tasks`, with its gate closed. Without a `fence` a daemon that slept emits when it wakes:
    /// that is for tests, which show what it is there for.
    pub fn start(
        config: PortConfig,
        qemu: UnixStream,
        tap: Tap,
        fence: Option<Fence>,
        tasks: &TaskTracker,
    ) -> PortHandle {
        if let Err(error) = enlarge(&qemu) {
            tracing::debug!(%error, "the NIC's socket keeps the host's default buffer");
        }
        let span = tracing::info_span!("port", vm = %config.vm, nic = config.nic, tap = tap.name());
        let published = Arc::new(Mutex::new(Counters::default()));
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (ended, end) = watch::channel(None);
        let (first_heard, heard) = watch::channel(None);
        let name = tap.name().to_owned();
        let pump = Pump::new(qemu, tap, config.runs_under);
        let port = Self { pump, commands, published: Arc::clone(&published), heard: first_heard };
        tasks.spawn(
            async move {
                let end = port.run().await; // which drops the port, and with it the TAP
                tracing::debug!(%end, "ended");
                ended.send_replace(Some(end));
            }
            .instrument(span),
        );
        PortHandle { commands: sender, published, heard, tap: name, fence, end }
    }

    async fn run(mut self) -> PortEnd {
        loop {
            let end = match self.next().await {
                Ok(Some(Command::Stop) | None) => Err(PortEnd::Stopped),
                Ok(Some(command)) => self.apply(command),
                Err(Woken) => self.pump.turn(),
            };
            if let Err(end) = end {
                // The last look at what ends with the TAP.
                self.pump.counters.dropped_in_full = Tap::dropped(self.pump.tap.name()).unwrap_or_default();
                self.publish();
                return end;
            }
            self.publish();
        }
    }

    /// Waits for a command, or for anything else there is to do, which is then done by a turn of the pump.
    async fn next(&mut self) -> Result<Option<Command>, Woken> {
        let due = self.pump.announcement_due();
        tokio::select! {
            biased;
            command = self.commands.recv() => return Ok(command),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if let Err(reason) = self.pump.announce_due() {
                    tracing::debug!(%reason, "the rest of the announcement is not sent");
                }
            }
            // An error here is found again, and told apart, by the read or write that follows.
            _ = self.pump.qemu.readable() => {}
            _ = self.pump.tap.readable(), if self.pump.takes_in() => {}
            _ = self.pump.qemu.writable(), if self.pump.has_waiting() => {}
        }
        Err(Woken)
    }

    /// Whoever asked may be gone by the time of the answer; what was asked has happened all the same.
    fn apply(&mut self, command: Command) -> Result<(), PortEnd> {
        match command {
            Command::Open(generation, answer) => {
                let opened = self.pump.gate.open(generation);
                self.answer(answer, opened);
            }
            Command::Close(answer) => {
                self.pump.gate.close();
                self.answer(answer, ());
            }
            Command::Fence(generation, answer) => {
                self.pump.gate.fence(generation);
                self.answer(answer, ());
            }
            Command::RunsUnder(generation, answer) => {
                self.pump.restamp(generation)?;
                self.answer(answer, ());
            }
            Command::Drain(answer) => {
                let drained = self.pump.drain()?;
                self.answer(answer, drained);
            }
            Command::Announce(mac, answer) => {
                let announced = self.pump.announce(mac, Instant::now());
                self.answer(answer, announced);
            }
            Command::Stop => return Err(PortEnd::Stopped),
        }
        Ok(())
    }

    /// The figures first: who has the answer may rely on them.
    fn answer<T>(&self, to: oneshot::Sender<T>, answer: T) {
        self.publish();
        drop(to.send(answer));
    }

    fn publish(&self) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped_in_full = self.pump.counters.dropped_in_full.max(published.dropped_in_full);
        *published = Counters { dropped_in_full, ..self.pump.counters };
        drop(published);
        if self.pump.counters.frames_out > 0 {
            self.heard.send_if_modified(|heard| {
                let first = heard.is_none();
                heard.get_or_insert_with(Instant::now);
                first
            });
        }
    }
}

/// There may be frames to move.
struct Woken;

impl PortHandle {
    /// Lets frames pass whose QEMU runs under `generation`, which the caller knows to be committed.
    ///
    /// # Errors
    /// When a higher generation was seen, or the port has ended.
    pub async fn open_gate(&self, generation: Generation) -> Result<(), GateError> {
        let opened = self.ask(|answer| Command::Open(generation, answer)).await.map_err(GateError::Ended)?;
        Ok(opened?)
    }

    /// Closes the gate, and returns when no frame is under way any more: after this nothing leaves until the gate is
    /// opened again. A port that has ended is as closed as can be.
    ///
    /// Not undone when the caller stops waiting: the gate may close all the same.
    pub async fn close_gate(&self) {
        // Both outcomes are the promised one: an ended port has no TAP.
        drop(self.ask(Command::Close).await);
        self.lock();
    }

    /// Says that `generation` was committed, by whomever: the gate closes if it is open at a lower one, and never opens at
    /// one again. A barrier like [`PortHandle::close_gate`].
    pub async fn fence(&self, generation: Generation) {
        drop(self.ask(|answer| Command::Fence(generation, answer)).await);
        // One that is still open is the owner's; then the next `keep` finds this, and the log is asked again.
        self.lock();
    }

    /// The log is about to be asked `question`; see [`Fence::note`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn note(&self, question: u32) -> Result<(), FenceError> {
        self.fence.as_ref().map_or(Ok(()), |fence| fence.note(question))
    }

    /// The log has answered `question`: the kernel may let this port's frames pass, as far as its gate does; see
    /// [`Fence::unlock`].
    ///
    /// # Errors
    /// When the answer came too late, or the kernel refuses.
    pub fn unlock(&self, question: u32) -> Result<(), FenceError> {
        self.fence.as_ref().map_or(Ok(()), |fence| fence.unlock(question))
    }

    /// To be called more often than the fence's time is long, as long as the gate has a right to be open; see
    /// [`Fence::keep`].
    ///
    /// # Errors
    /// When the time has run out: nothing leaves until [`PortHandle::unlock`].
    pub fn keep(&self) -> Result<(), FenceError> {
        self.fence.as_ref().map_or(Ok(()), Fence::keep)
    }

    fn lock(&self) {
        if let Some(fence) = &self.fence
            && let Err(error) = fence.lock()
        {
            tracing::warn!(%error, "what the kernel lets pass ends by itself, not now");
        }
    }

    /// Says that QEMU runs under `generation` from here on: before it is continued, after the entry was committed. What it
    /// emitted before is read first, and judged by the former generation.
    ///
    /// # Errors
    /// When the port has ended.
    pub async fn runs_under(&self, generation: Generation) -> Result<(), PortEnd> {
        self.ask(|answer| Command::RunsUnder(generation, answer)).await
    }

    /// Reads QEMU's socket until it is empty. After QEMU has answered `stop` this makes everything it emitted so far count
    /// as emitted before.
    ///
    /// # Errors
    /// When the port has ended.
    pub async fn drained(&self) -> Result<Drained, PortEnd> {
        self.ask(Command::Drain).await
    }

    /// Tells the network that the guest with address `mac` is here now: three frames within 200 ms, as far as the gate
    /// stays open. Returns when the first is out.
    ///
    /// # Errors
    /// When the gate is not open for this port's QEMU, or the port has ended.
    pub async fn announce(&self, mac: MacAddr) -> Result<(), AnnounceError> {
        let announced = self.ask(|answer| Command::Announce(mac, answer)).await.map_err(AnnounceError::Ended)?;
        announced.map_err(AnnounceError::Refused)
    }

    /// The figures as of the last frames moved, and what the kernel has dropped by now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        // Once it has ended, another port's TAP may bear the name.
        let dropped = if self.end.borrow().is_none() { Tap::dropped(&self.tap) } else { None };
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.dropped_in_full = published.dropped_in_full.max(dropped.unwrap_or_default());
        *published
    }

    /// Frames of the guest that were written to the TAP, as of the last ones moved. Asks the kernel nothing, unlike
    /// [`PortHandle::counters`]: it is wanted while a guest stands still.
    #[must_use]
    pub fn frames_out(&self) -> u64 {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).frames_out
    }

    /// Waits for the first frame of the guest that left through this port, and says when that was. `None`: the port has
    /// ended, and there was none.
    pub fn heard(&self) -> impl Future<Output = Option<Instant>> + Send + use<> {
        let mut heard = self.heard.clone();
        async move { heard.wait_for(Option::is_some).await.ok().and_then(|first| *first) }
    }

    /// Waits until the port has ended and its TAP is gone, and says why.
    pub async fn ended(&self) -> PortEnd {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(PortEnd::Lost),
            Err(_) => PortEnd::Lost,
        }
    }

    /// Ends the port; returns when its TAP is gone, with the last figures.
    pub async fn stop(self) -> Counters {
        // A port that no longer takes commands has ended already.
        drop(self.commands.send(Command::Stop).await);
        self.ended().await;
        self.counters()
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, PortEnd> {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(command(answer)).await.is_ok()
            && let Ok(answer) = answered.await
        {
            return Ok(answer);
        }
        Err(self.ended().await)
    }
}
