//! A model guest in a model machine: memory of 64 pages, dirty tracking, a counter that lives in memory alone, a device state
//! that fits the memory it was saved with, frames on their way to the gate.

use std::collections::VecDeque;

use pollux_state::id::Generation;

use super::fence::{Clocks, Fence};

/// Pages of a guest, one bit each in a `u64`.
pub(super) const PAGES: usize = 64;
/// The page that holds which boot this is.
const BOOT: usize = 0;
/// The page that holds the counter.
const COUNTER: usize = 1;

/// What a guest is made of: versions of pages, and the device state saved with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) pages: [u64; PAGES],
    /// Fits exactly one content of the memory.
    pub(super) device: u64,
}

impl Snapshot {
    /// As QEMU would save it.
    pub(super) fn digest(&self) -> u64 {
        self.pages
            .iter()
            .fold(0xCBF2_9CE4_8422_2325, |hash, page| (hash ^ page).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(17))
    }
}

/// A frame: the guest acknowledges that it counted to `counter` in its life `boot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) boot: u64,
    pub(super) counter: u64,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// QEMU is being started.
    Making,
    /// The guest stands still.
    Still,
    /// The guest runs.
    Runs,
    /// The guest switched itself off.
    Off,
    /// QEMU is gone.
    Dead,
}

/// One QEMU.
#[derive(Debug)]
pub(super) struct Machine {
    /// Never used again in a run.
    pub(super) serial: u64,
    pub(super) standby: bool,
    pub(super) state: State,
    pub(super) guest: Snapshot,
    /// The device state is in it (a standby), or is its own.
    pub(super) loaded: bool,
    /// The guest was let run in this machine.
    pub(super) acted: bool,
    /// The gate let something of it out since it was last let run.
    pub(super) let_out: bool,
    /// It ended when its guest was let run, and nobody knows whether that executed anything.
    pub(super) unknown: bool,
    /// That its guest may act cannot be recorded on its host.
    pub(super) unfit: bool,
    /// It is being ended.
    pub(super) doomed: bool,
    /// Its core has heard of its end.
    pub(super) mourned: bool,
    /// Pages written since the last scan; `None`: not tracked.
    pub(super) dirty: Option<u64>,
    /// What the guest sent and the gate has not seen yet.
    pub(super) frames: VecDeque<Frame>,
    /// The generation for which the gate is open.
    pub(super) gate: Option<Generation>,
    /// Of its network cards.
    pub(super) fence: Fence,
}

impl Machine {
    /// `boot`: of a guest started from nothing; `None`: a standby.
    pub(super) fn new(serial: u64, boot: Option<u64>, fence: Fence) -> Self {
        let mut guest = Snapshot { pages: [0; PAGES], device: 0 };
        guest.pages[BOOT] = boot.unwrap_or_default();
        Self {
            serial,
            standby: boot.is_none(),
            state: State::Making,
            guest,
            loaded: boot.is_some(),
            acted: false,
            let_out: false,
            unknown: false,
            unfit: false,
            doomed: false,
            mourned: false,
            dirty: None,
            frames: VecDeque::new(),
            gate: None,
            fence,
        }
    }

    pub(super) fn alive(&self) -> bool {
        !matches!(self.state, State::Dead)
    }

    /// Could let something out, on a host with these clocks.
    pub(super) fn emits(&self, clocks: Clocks) -> bool {
        self.gate.is_some() && self.state == State::Runs && self.fence.passes(clocks)
    }

    /// The guest answers a request and writes to `others`, in all with values never used before.
    pub(super) fn count(&mut self, others: &[usize], version: &mut u64) -> Frame {
        for page in others.iter().map(|page| COUNTER + 1 + page % (PAGES - COUNTER - 1)) {
            *version += 1;
            self.write(page, *version);
        }
        self.write(COUNTER, self.guest.pages[COUNTER] + 1);
        let frame = self.counted();
        self.frames.push_back(frame);
        frame
    }

    /// How far the guest has counted, as its memory says.
    pub(super) fn counted(&self) -> Frame {
        Frame { boot: self.guest.pages[BOOT], counter: self.guest.pages[COUNTER] }
    }

    pub(super) fn boot(&self) -> u64 {
        self.guest.pages[BOOT]
    }

    fn write(&mut self, page: usize, value: u64) {
        self.guest.pages[page] = value;
        if let Some(dirty) = &mut self.dirty {
            *dirty |= 1 << page;
        }
    }
}

/// The numbers of the pages in a set.
pub(super) fn numbers(set: u64) -> impl Iterator<Item = usize> {
    (0..PAGES).filter(move |page| set >> page & 1 == 1)
}
