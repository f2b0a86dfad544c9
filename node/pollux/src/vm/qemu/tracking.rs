//! How a guest's writes are found, and whose turn it is to look for them.

use pollux_memory::{DirtyTracker, GuestMemory};
use pollux_qemu::Tracking;
use pollux_vm::pages::PageSet;

use super::{
    super::{
        host::GuestError,
        turns::{Purpose, Turn, Turns},
    },
    failed,
};

/// The tracker, and whose turn with it it is.
pub(super) struct Tracked {
    tracker: Tracker,
    pub(super) turns: Turns,
}

/// How the guest's writes are found.
enum Tracker {
    /// They could not be: why.
    Refused(String),
    /// They have not been needed yet.
    Unused(Tracking),
    /// They are, since the first move away. It stays, for its descriptor cannot be had again; the guest pays a microsecond
    /// for the first write to each page after a scan.
    Attached(DirtyTracker),
}

impl Tracked {
    /// Of a machine whose writes can be tracked, or cannot: why.
    pub(super) fn new(tracking: Result<Tracking, String>) -> Self {
        let tracker = tracking.map_or_else(Tracker::Refused, Tracker::Unused);
        Self { tracker, turns: Turns::default() }
    }

    /// Begins to track, or to count anew.
    pub(super) fn begin(&mut self, memory: &GuestMemory, purpose: Purpose) -> Result<Turn, GuestError> {
        let turn = self.turns.begin(purpose)?;
        let tracker = std::mem::replace(&mut self.tracker, Tracker::Refused("tracking could not be begun".into()));
        let attached = match tracker {
            Tracker::Unused(Tracking { pid, pidfd, uffd }) => {
                DirtyTracker::attach(pid, pidfd, uffd, memory).map_err(failed("tracking"))?
            }
            Tracker::Attached(mut attached) => {
                // What was written until now is all pages that exist; from here on it counts.
                let counted = attached.scan(&mut PageSet::empty(memory.pages()));
                self.tracker = Tracker::Attached(attached);
                return counted.map(|_| turn).map_err(failed("tracking"));
            }
            Tracker::Refused(why) => {
                self.tracker = Tracker::Refused(why.clone());
                return Err(GuestError(why));
            }
        };
        self.tracker = Tracker::Attached(attached);
        Ok(turn)
    }

    pub(super) fn scan(&mut self, dirty: &mut PageSet) -> Result<(), GuestError> {
        match &mut self.tracker {
            Tracker::Attached(tracker) => tracker.scan(dirty).map(drop).map_err(failed("tracking")),
            Tracker::Refused(why) => Err(GuestError(why.clone())),
            Tracker::Unused(_) => Err(GuestError("tracking has not begun".into())),
        }
    }
}
