//! A model guest: memory with a stamp per page, a counter that lives in memory alone, device state.
//!
//! Every beat of a running guest adds one to its counter, writes the counter into page 0 and into another page, and sends
//! it out as a frame. The device state holds the counter and a digest of all of memory, so that a guest which is loaded
//! over memory that is not what it was when it was saved is noticed at once.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use pollux::vm::host::{GuestError, Memory};
use pollux_vm::pages::{PAGE_BYTES, PageSet};

use super::recorder::Recorder;
use crate::Rng;

/// Pages of a guest.
pub(super) const PAGES: u64 = 256;
/// Bytes of device state.
const STATE_BYTES: usize = 24;

/// A guest's memory: one stamp per page, 0 for a page that is zero. As bytes a page is its stamp and its own number.
pub(super) struct Stamps {
    stamps: Mutex<Vec<u64>>,
    recorder: Arc<Recorder>,
}

impl Stamps {
    pub(super) fn new(recorder: Arc<Recorder>) -> Self {
        let pages = usize::try_from(PAGES).unwrap_or_default();
        Self { stamps: Mutex::new(vec![0; pages]), recorder }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u64>> {
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, page: u64, stamp: u64) {
        let place = usize::try_from(page).ok().and_then(|page| self.lock().get_mut(page).map(|place| *place = stamp));
        if place.is_none() {
            self.recorder.violation(format!("page {page} does not exist"));
        }
    }

    /// Pages that were ever written.
    pub(super) fn populated(&self) -> PageSet {
        let mut set = PageSet::empty(PAGES);
        (0..PAGES).zip(self.lock().iter()).filter(|(_, stamp)| **stamp != 0).for_each(|(page, _)| set.insert(page));
        set
    }

    fn digest(&self) -> u64 {
        self.lock().iter().fold(0, |digest, stamp| Rng::new(digest ^ stamp).bits())
    }
}

impl Memory for Stamps {
    fn pages(&self) -> u64 {
        PAGES
    }

    fn read(&self, page: u64, into: &mut [u8; PAGE_BYTES]) {
        into.fill(0);
        let stamp = usize::try_from(page).ok().and_then(|page| self.lock().get(page).copied()).unwrap_or_default();
        if stamp != 0 {
            into[..8].copy_from_slice(&stamp.to_le_bytes());
            into[8..16].copy_from_slice(&page.to_le_bytes());
        }
    }

    fn write(&self, first: u64, content: &[u8]) -> Result<(), GuestError> {
        for (page, bytes) in (first..).zip(content.chunks(PAGE_BYTES)) {
            let (stamp, number) = (word(bytes, 0), word(bytes, 8));
            if number != page {
                self.recorder.violation(format!("the content of page {number} was put into page {page}"));
            }
            self.set(page, stamp);
        }
        Ok(())
    }

    fn zero(&self, pages: Range<u64>) -> Result<(), GuestError> {
        pages.for_each(|page| self.set(page, 0));
        Ok(())
    }
}

/// What runs in a machine.
pub(super) struct Program {
    pub(super) memory: Arc<Stamps>,
    /// Which start from nothing this guest goes back to; 0 in a standby that was not loaded.
    pub(super) boot: u64,
    pub(super) counter: u64,
    dirty: Option<PageSet>,
    dice: Rng,
}

impl Program {
    pub(super) fn new(memory: Arc<Stamps>, boot: u64, dice: Rng) -> Self {
        Self { memory, boot, counter: 0, dirty: None, dice }
    }

    /// The guest does something.
    pub(super) fn beat(&mut self) {
        self.counter += 1;
        let other = self.dice.between(1, PAGES - 1);
        for page in [0, other] {
            self.memory.set(page, self.counter);
            if let Some(dirty) = &mut self.dirty {
                dirty.insert(page);
            }
        }
    }

    pub(super) fn track(&mut self) {
        self.dirty = Some(PageSet::empty(PAGES));
    }

    /// Moves what was written since the last scan into `into`; `false`: nobody tracks.
    pub(super) fn scan(&mut self, into: &mut PageSet, forgetful: bool) -> bool {
        let Some(dirty) = &mut self.dirty else { return false };
        let first = dirty.iter().next();
        first.filter(|_| forgetful).into_iter().for_each(|page| dirty.remove(page));
        into.union_with(dirty);
        dirty.clear();
        true
    }

    pub(super) fn save(&self) -> Bytes {
        [self.boot, self.counter, self.memory.digest()].into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// Takes device state over; `Err` when memory is not what it was when that was saved.
    pub(super) fn load(&mut self, state: &[u8]) -> Result<(), String> {
        if state.len() != STATE_BYTES {
            return Err(format!("a device state of {} bytes", state.len()));
        }
        self.boot = word(state, 0);
        self.counter = word(state, 8);
        if self.memory.digest() != word(state, 16) {
            return Err(format!("boot {} was loaded at {} over other memory than it had", self.boot, self.counter));
        }
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}
