//! The model of the kernel's fence on a machine's network cards, and of the clocks of a host (docs/adr/0012).
//!
//! The fence belongs to the kernel: what it believes ends also while the daemon sleeps. Its clock stands still while the whole
//! host is suspended; the cores' clock goes on. Each order is one transaction, as with the real one.
//!
//! What the model leaves out: the moment between the waking of a suspended host and the next renewal, in which its guests are
//! heard (docs/adr/0012, *A host suspended as a whole*). Here the renewal is the first thing that happens.

use std::collections::BTreeMap;

use pollux_state::id::VmId;
use pollux_vm::{Event, Ticket};

use super::{
    Control, Time,
    agenda::{Process, Task},
    world::World,
};

/// For how long the fence believes what it was told; the times of the product, in proportion to the pace of this world, like
/// [`LIMITS`](super::daemon::LIMITS).
pub(super) const FENCE_MS: Time = 200;
/// As long as a guest may act, the fence is told so this often.
const KEEP_MS: Time = 40;
/// An operator's word that a host is lost is taken when it was silent for so long.
pub(super) const LOST_AFTER_MS: Time = 2 * FENCE_MS + KEEP_MS;

/// What a host's kernel knows of time: for how long it has run, without and with the times in which it was suspended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    /// `CLOCK_MONOTONIC`.
    pub(super) awake: Time,
    /// `CLOCK_BOOTTIME`.
    pub(super) all: Time,
}

impl Clocks {
    fn suspended(self) -> Time {
        self.all - self.awake
    }
}

/// The fence of one machine; locked when made.
#[derive(Debug)]
pub(super) struct Fence {
    /// Frames pass until then, by the clock that stands still.
    right: Option<Time>,
    /// Questions that were noted, and until when each may unlock it.
    asked: BTreeMap<Ticket, Time>,
    /// For how long the host had been suspended when the log was last asked.
    suspended: Time,
    defect: Option<Control>,
}

impl Fence {
    pub(super) fn raise(clocks: Clocks, defect: Option<Control>) -> Self {
        Self { right: None, asked: BTreeMap::new(), suspended: clocks.suspended(), defect }
    }

    fn note(&mut self, question: Ticket, clocks: Clocks) {
        if self.slept(clocks) {
            self.asked.clear();
            self.right = None;
            self.suspended = clocks.suspended();
        }
        self.asked.insert(question, clocks.awake + FENCE_MS);
    }

    fn unlock(&mut self, question: Ticket, clocks: Clocks) {
        let young = self.asked.remove(&question).is_some_and(|until| clocks.awake < until);
        if young && !self.slept(clocks) {
            self.right = Some(clocks.awake + FENCE_MS);
        }
    }

    /// `false`: it is locked, and only an answer of the log unlocks it.
    fn keep(&mut self, clocks: Clocks) -> bool {
        let kept = self.passes(clocks) && !self.slept(clocks);
        self.right = kept.then_some(clocks.awake + FENCE_MS);
        kept
    }

    /// By a defect, which asked nobody.
    pub(super) fn pry_open(&mut self, clocks: Clocks) {
        self.right = Some(clocks.awake + FENCE_MS);
    }

    pub(super) fn lock(&mut self) {
        self.right = None;
    }

    pub(super) fn passes(&self, clocks: Clocks) -> bool {
        self.defect == Some(Control::NoFence) || self.right.is_some_and(|until| clocks.awake < until)
    }

    fn slept(&self, clocks: Clocks) -> bool {
        self.defect != Some(Control::FenceSleepsToo) && self.suspended != clocks.suspended()
    }
}

impl World {
    pub(super) fn clocks(&self, node: usize) -> Clocks {
        let host = &self.nodes[node];
        let suspended = host.suspended + host.suspended_since.map_or(0, |since| self.now - since);
        Clocks { awake: self.now - suspended, all: self.now }
    }

    /// What time it is for the cores of a node.
    pub(super) fn core_time(&self, node: usize) -> Time {
        let clocks = self.clocks(node);
        if self.settings.control == Some(Control::CoresClockStandsStill) { clocks.awake } else { clocks.all }
    }

    /// The log is about to be asked.
    pub(super) fn note(&mut self, process: Process, vm: VmId, question: Ticket) {
        let clocks = self.clocks(process.node);
        if let Some(machine) = self.machine(process, vm) {
            machine.fence.note(question, clocks);
        }
    }

    /// The log has answered the question that made the core certain.
    pub(super) fn unlock(&mut self, process: Process, vm: VmId) {
        let clocks = self.clocks(process.node);
        let Some(part) = self.part(process, vm) else { return };
        if let (Some(machine), Some(proof)) = (&mut part.machine, part.core.proof()) {
            machine.fence.unlock(proof, clocks);
        }
    }

    /// Begins to keep what was unlocked, or ends it, as the core has it. `resumed`: the guest was just let go on.
    pub(super) fn keep_or_not(&mut self, process: Process, vm: VmId, resumed: bool) {
        let serial = self.serial();
        let Some(part) = self.part(process, vm) else { return };
        match part.core.gate() {
            Some(_) if resumed => {
                part.keeper = Some(serial);
                self.put_to(process, 0, Task::Keep { vm, keeper: serial });
            }
            Some(_) => {}
            None => part.keeper = None,
        }
    }

    pub(super) fn keep_on(&mut self, process: Process, vm: VmId, keeper: u64) {
        if self.part(process, vm).is_some_and(|part| part.keeper == Some(keeper)) {
            self.put_to(process, KEEP_MS, Task::Keep { vm, keeper });
            self.keep(process, vm);
        }
    }

    pub(super) fn keep(&mut self, process: Process, vm: VmId) {
        let clocks = self.clocks(process.node);
        let Some(part) = self.part(process, vm).filter(|part| part.core.gate().is_some()) else { return };
        let kept = part.machine.as_mut().is_none_or(|machine| machine.fence.keep(clocks));
        if !kept && !part.core.is_fenced() {
            self.tell(process, vm, Event::FenceExpired);
        }
    }
}
