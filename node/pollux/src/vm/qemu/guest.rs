//! One guest in QEMU: everything that an actor's worker and the sessions of its moves do to it.

use std::{
    ops::Range,
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use pollux_memory::GuestMemory;
use pollux_net::{FenceError, PortHandle};
use pollux_qemu::{Group, Machine, MachineEvent, QmpError};
use pollux_state::id::{Generation, VolumeId};
use pollux_vm::{
    Ticket,
    pages::{PAGE_BYTES, PageSet},
};
use tokio::{
    sync::{Mutex, RwLock, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        host::{Guest, GuestError, GuestEvent, Log, Memory, ResumeError, Typed},
        turns::{Purpose, Turn},
    },
    Census, Drives, NicPort, blocking, empty, end_group, end_ports, failed, in_words,
    tracking::Tracked,
};

/// A killed QEMU is gone within this, in milliseconds; one that the kernel cannot end is waited for, and said so as often.
const END_MS: u64 = 10_000;
/// How long the guest's disks may take to be flushed before it is paused. What is not by then is flushed in the pause.
const FLUSH_BEFORE_PAUSE_MAX: Duration = Duration::from_millis(1_000);
/// The console of a QEMU that is gone has been read to its end within this, in milliseconds. One that has not counts as one
/// that said something.
const CONSOLE_END_MS: u64 = 2_000;
/// What a disk refused is asked of it again after this, in milliseconds.
const AGAIN_MS: u64 = 1_000;
/// A guest whose disk has not failed again for so long after that, in milliseconds, has been answered, or waits for a volume that says so
/// itself.
const TROUBLE_MS: u64 = 2_000;

/// A request that failed: when, of which disk, and what QEMU said of it.
type Failed = (Instant, usize, String);

/// A guest in QEMU.
pub(super) struct QemuGuest {
    machine: Machine,
    memory: Arc<GuestMemory>,
    group: Option<Arc<Group>>,
    pub(super) ports: RwLock<Vec<NicPort>>,
    drives: Drives,
    /// The request of a disk that failed last, until the guest has run again for a while.
    failed: StdMutex<Option<Failed>>,
    tracker: Arc<Mutex<Tracked>>,
    /// Whether the guest may be typed to: it runs behind an open gate. What is typed is written under this lock, so that nothing
    /// is after a pause has begun.
    listens: StdMutex<bool>,
    census: Arc<Census>,
    /// Held while it is being resumed.
    resuming: Mutex<()>,
    pub(super) over: CancellationToken,
}

/// A question as the kernel's fence knows it: any two that are open within its time differ.
fn key(question: Ticket) -> u32 {
    u32::try_from(question.0 & u64::from(u32::MAX)).unwrap_or_default()
}

impl QemuGuest {
    pub(super) fn new(
        mut machine: Machine,
        memory: Arc<GuestMemory>,
        group: Option<Arc<Group>>,
        ports: Vec<NicPort>,
        drives: Drives,
        census: Arc<Census>,
    ) -> Arc<Self> {
        let tracked = Tracked::new(machine.take_tracking().map_err(|refused| refused.to_string()));
        Arc::new(Self {
            machine,
            memory,
            group,
            ports: RwLock::new(ports),
            drives,
            failed: StdMutex::default(),
            tracker: Arc::new(Mutex::new(tracked)),
            listens: StdMutex::new(false),
            census,
            resuming: Mutex::new(()),
            over: CancellationToken::new(),
        })
    }

    /// Passes on what its machine says by itself, until it has ended.
    pub(super) async fn report(self: Arc<Self>, events: mpsc::Sender<GuestEvent>) {
        let mut again_at: Option<Instant> = None;
        loop {
            let again = async {
                match again_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let said = tokio::select! {
                said = self.machine.next_event() => said,
                () = again => {
                    again_at = None;
                    self.issue_again().await;
                    continue;
                }
            };
            let event = match said {
                MachineEvent::DiskFailed { disk, reason } => {
                    tracing::warn!(vm = self.machine.name(), disk, reason, "a disk failed, and the guest waits for it");
                    *self.failed() = Some((Instant::now(), disk, reason));
                    again_at = Some(Instant::now() + Duration::from_millis(AGAIN_MS));
                    continue;
                }
                MachineEvent::GuestShutdown { guest: true, .. } => GuestEvent::Off,
                MachineEvent::GuestShutdown { guest: false, reason } => {
                    GuestEvent::Ended(format!("QEMU shut down: {reason}"))
                }
                MachineEvent::Panicked => GuestEvent::Ended("the guest's kernel panicked".into()),
                MachineEvent::ControlLost { reason } => GuestEvent::Ended(format!("QEMU cannot be driven: {reason}")),
                MachineEvent::Exited(exit) => {
                    drop(self.resuming.lock().await);
                    let _ = events.send(GuestEvent::Ended(exit.to_string())).await;
                    return;
                }
                MachineEvent::Reset { .. } | MachineEvent::Stopped | MachineEvent::Resumed => continue,
            };
            // What became of a resume under way is for the resume to say.
            drop(self.resuming.lock().await);
            // An actor that is gone ends the guest.
            if events.send(event).await.is_err() {
                return;
            }
        }
    }

    fn failed(&self) -> MutexGuard<'_, Option<Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a guest whose disk failed run again, if it may: the device asks again for what it was refused (DESIGN, rule 16).
    async fn issue_again(&self) {
        let _resuming = self.resuming.lock().await;
        let may_run = *self.listens();
        if may_run && let Err(error) = self.machine.cont().await {
            tracing::warn!(vm = self.machine.name(), %error, "a guest that waits for its disk cannot go on");
        }
    }

    fn listens(&self) -> MutexGuard<'_, bool> {
        self.listens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the fence of every network card; `false`: one is locked, or its kernel refuses. While the guest is
    /// being ended there is none.
    fn each_fence(&self, what: &str, done: impl Fn(&PortHandle) -> Result<(), FenceError>) -> bool {
        let Ok(ports) = self.ports.try_read() else { return true };
        let mut all = true;
        for (mac, port) in &*ports {
            match done(port) {
                Ok(()) => {}
                Err(error @ FenceError::Expired { .. }) => {
                    tracing::debug!(vm = self.machine.name(), %mac, %error, "cannot {what}");
                    all = false;
                }
                Err(error) => {
                    tracing::error!(vm = self.machine.name(), %mac, %error, "cannot {what}");
                    all = false;
                }
            }
        }
        all
    }

    async fn open_gates(&self, generation: Generation) -> Result<(), GuestError> {
        for (_, port) in &*self.ports.read().await {
            match port.runs_under(generation).await {
                Ok(()) => port.open_gate(generation).await.map_err(failed("a network card's gate"))?,
                // A port that ended emits nothing; the guest lives on without that card.
                Err(end) => tracing::error!(vm = self.machine.name(), %end, "a network card is gone"),
            }
        }
        Ok(())
    }

    /// Closes the gate for good and ends the process; when this returns, it is no more.
    async fn shut_down(&self) {
        self.close_gate().await;
        self.machine.kill();
        // Nothing else may be begun for this VM beside a process that still exists (DESIGN, rule 18).
        while tokio::time::timeout(Duration::from_millis(END_MS), self.machine.child().exited()).await.is_err() {
            tracing::error!(vm = self.machine.name(), "a killed QEMU has not ended; the kernel holds it");
        }
    }

    /// All that was ever let out of this machine: frames, bytes of its console, changes of its disks.
    async fn emitted(&self) -> (u64, u64, u64) {
        let frames = self.ports.read().await.iter().map(|(_, port)| port.frames_out()).sum();
        (frames, self.log().end(), self.drives.changes())
    }

    /// It has not been let run: nor will it send anything.
    async fn stands_still(&self, why: GuestError) -> ResumeError {
        for (_, port) in &*self.ports.read().await {
            port.close_gate().await;
        }
        ResumeError::StandsStill(why)
    }
}

#[async_trait]
impl Guest for QemuGuest {
    fn memory(&self) -> Arc<dyn Memory> {
        self.memory.clone()
    }

    async fn resume(&self, generation: Generation) -> Result<(), ResumeError> {
        let _resuming = self.resuming.lock().await;
        let before = self.emitted().await;
        let opened = match self.drives.open(generation).await {
            Ok(()) => self.open_gates(generation).await,
            Err(error) => Err(error),
        };
        let told = match opened {
            Ok(()) => self.machine.cont().await,
            Err(error) => return Err(self.stands_still(error).await),
        };
        match told {
            Ok(()) => {
                *self.listens() = !self.over.is_cancelled();
                Ok(())
            }
            Err(error @ (QmpError::Rejected { .. } | QmpError::Busy { .. })) => {
                Err(self.stands_still(failed("cont")(error)).await)
            }
            Err(error @ (QmpError::Slow { .. } | QmpError::Closed { .. })) => {
                let why = failed("cont")(error);
                self.shut_down().await;
                // What it says of its end is said here.
                self.over.cancel();
                // Its guest may have executed something; if nothing of it was let out, nobody will ever know. What it wrote last
                // may still lie in its console's socket.
                let console =
                    tokio::time::timeout(Duration::from_millis(CONSOLE_END_MS), self.machine.console().ended());
                if console.await.is_ok() && self.emitted().await == before {
                    return Err(ResumeError::StandsStill(why));
                }
                Err(ResumeError::Unknown(why))
            }
        }
    }

    async fn before_pause(&self) {
        self.drives.flush(FLUSH_BEFORE_PAUSE_MAX).await;
    }

    async fn settle(&self) {
        self.drives.settle().await;
    }

    async fn pause(&self) -> Result<(), GuestError> {
        *self.listens() = false;
        // Who lets it go on after its disk failed has looked at that before, or will.
        drop(self.resuming.lock().await);
        self.machine.stop().await.map_err(failed("stop"))?;
        // QEMU sends nothing more; what it has sent belongs to before the pause (DESIGN, section 5: the cut).
        for (_, port) in &*self.ports.read().await {
            if let Err(end) = port.drained().await {
                tracing::error!(vm = self.machine.name(), %end, "a network card is gone");
            }
            port.close_gate().await;
        }
        self.machine.console().drained();
        Ok(())
    }

    fn note(&self, question: Ticket) {
        self.each_fence("note a question", |port| port.note(key(question)));
    }

    fn unlock(&self, question: Ticket) {
        self.each_fence("unlock", |port| port.unlock(key(question)));
    }

    fn keep(&self) -> bool {
        self.each_fence("keep unlocked", PortHandle::keep)
    }

    async fn close_gate(&self) {
        *self.listens() = false;
        // For good: a continue that still waits in the worker's queue must not open it again.
        for (_, port) in &*self.ports.read().await {
            port.fence(Generation(u64::MAX)).await;
        }
    }

    async fn announce(&self) {
        for (mac, port) in &*self.ports.read().await {
            if let Err(error) = port.announce(*mac).await {
                tracing::warn!(%mac, %error, "the guest's network card could not be announced");
            }
        }
    }

    async fn throttle(&self, percent: u8) -> Result<(), GuestError> {
        self.machine.throttle(percent).await.map_err(failed("its speed"))
    }

    async fn heard(&self) -> Instant {
        let heard: Vec<_> = self.ports.read().await.iter().map(|(_, port)| port.heard()).collect();
        let mut heard: FuturesUnordered<_> = heard.into_iter().collect();
        while let Some(first) = heard.next().await {
            if let Some(first) = first {
                return first;
            }
        }
        std::future::pending().await
    }

    async fn power_button(&self) -> Result<(), GuestError> {
        self.machine.powerdown().await.map_err(failed("system_powerdown"))
    }

    async fn populated(&self) -> Result<PageSet, GuestError> {
        let memory = self.memory.clone();
        blocking(move || {
            let mut set = PageSet::empty(memory.pages());
            let ranges = memory.data_ranges().map_err(failed("the memory's extents"))?;
            ranges.into_iter().for_each(|range| set.insert_range(range));
            Ok(set)
        })
        .await
    }

    async fn track(&self, purpose: Purpose) -> Result<Turn, GuestError> {
        let (mut tracked, memory) = (self.tracker.clone().lock_owned().await, self.memory.clone());
        blocking(move || tracked.begin(&memory, purpose)).await
    }

    async fn scan(&self, turn: &Turn, dirty: &mut PageSet) -> Result<(), GuestError> {
        let (mut tracked, pages) = (self.tracker.clone().lock_owned().await, self.memory.pages());
        tracked.turns.check(turn)?;
        let scanned = blocking(move || {
            let mut found = PageSet::empty(pages);
            let outcome = tracked.scan(&mut found);
            Ok((found, outcome))
        });
        let (found, outcome) = scanned.await?;
        // Also after a failure: the marks of what was found are gone.
        dirty.union_with(&found);
        outcome
    }

    async fn save(&self) -> Result<Bytes, GuestError> {
        // QEMU flushes its disks for that; nothing is asked of them after it.
        let state = self.machine.save_state().await.map_err(|error| GuestError(in_words(&error)))?;
        self.drives.hand_over(state).await
    }

    async fn load(&self, state: Bytes) -> Result<(), GuestError> {
        let state = self.drives.receive(state)?;
        self.machine.load_state(state).await.map_err(|error| GuestError(in_words(&error)))
    }

    async fn end(&self) {
        self.over.cancel();
        self.shut_down().await;
        // Its vCPUs may have groups of their own within that of the VM, which goes next.
        if let Err(error) = self.machine.throttle(0).await {
            tracing::warn!(%error, "the throttle of an ended guest");
        }
        end_group(self.group.clone()).await;
        self.drives.end().await;
        let mut gone = self.census.gone.lock().await;
        *gone += end_ports(&mut *self.ports.write().await).await;
        drop(gone);
        // Sessions of a move may still hold the memory; its pages go now. What they read of it they cannot hand over any
        // more: they were called off before.
        if let Err(error) = empty(&self.memory).await {
            tracing::error!(vm = self.machine.name(), %error, "the memory of an ended guest could not be freed");
        }
    }

    fn troubles(&self) -> Vec<(VolumeId, String)> {
        let mut troubles = self.drives.troubles();
        let lately = |(at, ..): &Failed| at.elapsed() < Duration::from_millis(AGAIN_MS + TROUBLE_MS);
        // The volume knows better than QEMU why.
        if troubles.is_empty()
            && let Some((_, disk, reason)) = self.failed().clone().filter(lately)
            && let Some(volume) = self.drives.volume(disk)
        {
            troubles.push((volume, reason));
        }
        troubles
    }

    fn unsaved(&self) -> Option<(VolumeId, String)> {
        let (volume, lasts, why) = self.drives.unsaved()?;
        Some((volume, format!("not saved for {} s: {why}", lasts.as_secs())))
    }

    fn log(&self) -> Log {
        let (start, bytes) = self.machine.console().placed_log();
        Log { start, bytes }
    }

    fn written(&self) -> watch::Receiver<u64> {
        self.machine.console().written()
    }

    fn type_in(&self, bytes: &[u8]) -> Typed {
        let listens = self.listens();
        if !*listens {
            return Typed::Shut;
        }
        // A console that QEMU has closed takes nothing; its machine's end is told elsewhere.
        self.machine.console().type_in(bytes).map_or(Typed::Shut, |taken| match taken {
            0 => Typed::Full,
            taken => Typed::Taken(taken),
        })
    }

    fn remember(&self, log: &Log) {
        self.machine.console().remember(log.start, &log.bytes);
    }
}

impl Memory for GuestMemory {
    fn pages(&self) -> u64 {
        Self::pages(self)
    }

    fn read(&self, page: u64, into: &mut [u8; PAGE_BYTES]) {
        self.read_page(page, into);
    }

    fn write(&self, page: u64, content: &[u8]) -> Result<(), GuestError> {
        self.put_pages(page, content).map_err(failed("the memory"))
    }

    fn zero(&self, pages: Range<u64>) -> Result<(), GuestError> {
        self.zero_range(pages).map_err(failed("the memory"))
    }
}
