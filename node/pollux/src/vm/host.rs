//! What a VM's actor needs of the host it runs on. The product's host is QEMU ([`super::qemu`]); the simulator has its own
//! behind the same traits, and nothing else differs.

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use pollux_state::{
    id::{Generation, VmId, VolumeId},
    vm::VmSpec,
};
use pollux_vm::{
    Ticket,
    pages::{PAGE_BYTES, PageSet},
};
use pollux_volume::{Handover, Volume, VolumeHandle};
use tokio::sync::{mpsc, watch};

use super::turns::{Purpose, Turn};

/// Something could not be done with a guest or a machine: what, for people.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct GuestError(pub String);

/// A guest was not seen to run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResumeError {
    /// It has not executed anything that anybody could know of, and its gate is closed.
    #[error("{0}")]
    StandsStill(GuestError),
    /// It may have.
    #[error("{0}")]
    Unknown(GuestError),
}

/// Makes guests.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// Makes a machine whose guest waits, paused: from nothing, or a standby to be loaded. Until it is ended, what it has
    /// to say goes to `order.events`. When this fails, nothing of it is left.
    async fn launch(&self, order: Order) -> Result<Arc<dyn Guest>, GuestError>;
}

/// What machine to make.
#[derive(Debug, Clone)]
pub struct Order {
    /// Which VM.
    pub vm: VmId,
    /// What it is.
    pub spec: VmSpec,
    /// The generation for which it is made, for names and logs.
    pub generation: Generation,
    /// A standby that will be loaded.
    pub standby: bool,
    /// Where it reports to.
    pub events: mpsc::Sender<GuestEvent>,
}

/// The volumes of a node, as its guests' disks.
#[async_trait]
pub trait Disks: Send + Sync + 'static {
    /// How a volume is called, if it is in the cluster.
    fn name(&self, volume: VolumeId) -> Option<String>;

    /// A volume's size, in bytes.
    fn size(&self, volume: VolumeId) -> Result<u64, GuestError>;

    /// Brings a volume into use, by the right that this node has to run `vm` under `generation`. `handover`: the guest lives, and
    /// this is what who had its volume before says; `None`: it is being started.
    async fn open(
        &self,
        vm: VmId,
        generation: Generation,
        volume: VolumeId,
        handover: Option<Handover>,
    ) -> Result<(Volume, VolumeHandle), GuestError>;
}

/// What a machine says by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest switched itself off and is kept, paused.
    Off,
    /// The machine ended: what was seen.
    Ended(String),
}

/// One machine with its guest.
#[async_trait]
pub trait Guest: Send + Sync + 'static {
    /// The guest's memory.
    fn memory(&self) -> Arc<dyn Memory>;

    /// Opens the gate for frames of `generation`, then lets the guest run.
    async fn resume(&self, generation: Generation) -> Result<(), ResumeError>;

    /// What makes the pause that comes next shorter, while the guest runs.
    async fn before_pause(&self) {}

    /// Pauses the guest, lets every frame that it sent before leave, closes the gate. However slow, it is not a failure.
    async fn pause(&self) -> Result<(), GuestError>;

    /// Has the kernel know that the log is about to be asked `question`. To be called before.
    fn note(&self, _question: Ticket) {}

    /// The log has answered `question` within the kernel's time: frames that pass the gate may leave, for that time again.
    /// Where that cannot be had, the next [`Guest::keep`] says so.
    fn unlock(&self, _question: Ticket) {}

    /// Has the kernel let frames leave for another while, as long as it does so now. `false`: it does not, for this process
    /// slept; only [`Guest::unlock`] helps (DESIGN, rule 5).
    fn keep(&self) -> bool {
        true
    }

    /// Closes the gate for good: when this returns, nothing more leaves, and no resume opens it again.
    async fn close_gate(&self);

    /// Tells the bridges where the guest's network cards are.
    async fn announce(&self);

    /// Slows the guest down by so many percent, through the threads of its processors; 0 gives it its speed back.
    async fn throttle(&self, percent: u8) -> Result<(), GuestError>;

    /// Waits until a frame that the guest sent has left through this machine's gate. Never, if it has no network card.
    async fn heard(&self) -> tokio::time::Instant;

    /// Presses the power button.
    async fn power_button(&self) -> Result<(), GuestError>;

    /// The guest is off: puts what it wrote on stable storage, within a few seconds or not.
    async fn settle(&self) {}

    /// Pages of its memory that were ever written; all others are zero.
    async fn populated(&self) -> Result<PageSet, GuestError>;

    /// Begins tracking anew: from here on every write of the guest is found by [`Guest::scan`] in the turn returned, and scans
    /// in an earlier one fail.
    async fn track(&self, purpose: Purpose) -> Result<Turn, GuestError>;

    /// Adds the pages written since the last scan (or since tracking began) to `dirty`, and protects them again first.
    async fn scan(&self, turn: &Turn, dirty: &mut PageSet) -> Result<(), GuestError>;

    /// The device state of a paused guest, without its memory.
    async fn save(&self) -> Result<Bytes, GuestError>;

    /// Loads device state into a standby whose memory is complete.
    async fn load(&self, state: Bytes) -> Result<(), GuestError>;

    /// Ends the machine. When this returns, no process, tap, socket or memory of it is left. Can be called twice.
    async fn end(&self);

    /// The volumes for which it stands still although it may run, each with why, for people.
    fn troubles(&self) -> Vec<(VolumeId, String)> {
        Vec::new()
    }

    /// What its firmware has written and no volume has taken for a while: which volume should, and in words what is wrong. The guest
    /// knows nothing of it and runs.
    fn unsaved(&self) -> Option<(VolumeId, String)> {
        None
    }

    /// What the guest wrote to its serial console.
    fn log(&self) -> Log;

    /// Moves whenever the guest has written to it: the place of what comes next.
    fn written(&self) -> watch::Receiver<u64>;

    /// Types at its serial console: as much of `bytes` as it takes at once, and nothing while the guest does not run behind an
    /// open gate.
    fn type_in(&self, bytes: &[u8]) -> Typed;

    /// Puts what the guest wrote elsewhere, or before it was started again, before what it writes here. It must not run yet.
    fn remember(&self, log: &Log);
}

/// What became of what was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Typed {
    /// The machine has so many bytes of it.
    Taken(usize),
    /// It has not read what was typed before; it will.
    Full,
    /// The guest stands still.
    Shut,
}

/// What a guest wrote to its serial console lately: the last 64 KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// Place of the first byte in all that the VM ever wrote.
    pub start: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Log {
    /// Place of the byte that comes next.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// The same from place `from` on, as far as it is kept. A place that lies beyond the end belongs to another log: all of it.
    #[must_use]
    pub fn since(mut self, from: u64) -> Self {
        if from <= self.end() {
            let skip = usize::try_from(from.saturating_sub(self.start)).unwrap_or(usize::MAX);
            self.bytes.drain(..skip.min(self.bytes.len()));
            self.start = self.start.max(from);
        }
        self
    }
}

/// A guest's memory, in pages.
pub trait Memory: Send + Sync + 'static {
    /// How many.
    fn pages(&self) -> u64;

    /// Copies a page out, which the guest may be writing at this moment: tracking will then find it again.
    fn read(&self, page: u64, into: &mut [u8; PAGE_BYTES]);

    /// Copies consecutive pages in, the first of them at `page`. The guest must not have run yet.
    fn write(&self, page: u64, content: &[u8]) -> Result<(), GuestError>;

    /// Makes consecutive pages zero. The guest must not have run yet.
    fn zero(&self, pages: Range<u64>) -> Result<(), GuestError>;
}
