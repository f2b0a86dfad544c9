//! Who waits for stable storage, and which sync is enough for whom. Pure.
//!
//! A sync covers what was written before it *began*. So who comes while one runs, after something was written, needs the next; all
//! of those share it. Nobody needs one when nothing was written since the last that succeeded began.

/// See the module's text. Whoever waits is a number that means something to the owner.
#[derive(Debug)]
pub(crate) struct Syncs {
    /// Those that the one under way covers.
    running: Option<Vec<usize>>,
    /// Those that the next one covers.
    waiting: Vec<usize>,
    /// Something was written since the one under way, or the last one, began.
    changed: bool,
    #[cfg(test)]
    pub(crate) fault: Option<Fault>,
}

/// What a wrong coalescing would do, to see that it is noticed.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Whoever comes is covered by the sync that runs.
    JoinsTheRunning,
    /// Nobody waits at all.
    NobodyWaits,
}

/// The answer to who asks for stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Covered {
    /// It is all there.
    Already,
    /// When a sync has ended.
    Later,
}

impl Syncs {
    pub(crate) fn new() -> Self {
        // What an earlier owner of the file left unsynced nobody knows.
        Self {
            running: None,
            waiting: Vec::new(),
            changed: true,
            #[cfg(test)]
            fault: None,
        }
    }

    /// Something was written, and its end is about to be told.
    pub(crate) fn changed(&mut self) {
        self.changed = true;
    }

    /// `who` wants everything on stable storage that was written so far.
    pub(crate) fn cover(&mut self, who: usize) -> Covered {
        #[cfg(test)]
        match (self.fault, &mut self.running) {
            (Some(Fault::NobodyWaits), _) => return Covered::Already,
            (Some(Fault::JoinsTheRunning), Some(running)) => {
                running.push(who);
                return Covered::Later;
            }
            (Some(Fault::JoinsTheRunning) | None, _) => {}
        }
        match &mut self.running {
            _ if self.changed => self.waiting.push(who),
            Some(running) => running.push(who),
            None => return Covered::Already,
        }
        Covered::Later
    }

    /// Whether a sync is to be started now; it counts as begun.
    pub(crate) fn begin(&mut self) -> bool {
        if self.running.is_some() || self.waiting.is_empty() {
            return false;
        }
        self.running = Some(std::mem::take(&mut self.waiting));
        self.changed = false;
        true
    }

    /// The one under way has ended: these were waiting for it.
    pub(crate) fn ended(&mut self) -> Vec<usize> {
        self.running.take().expect("a sync that ends has begun")
    }

    /// There will be no more: these wait in vain.
    pub(crate) fn give_up(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_while_one_runs_shares_the_next() {
        let mut syncs = Syncs::new();
        assert_eq!(syncs.cover(1), Covered::Later);
        assert!(syncs.begin());
        assert!(!syncs.begin(), "one at a time");
        syncs.changed();
        assert_eq!(syncs.cover(2), Covered::Later);
        assert_eq!(syncs.cover(3), Covered::Later);

        assert_eq!(syncs.ended(), [1]);
        assert!(syncs.begin());
        assert_eq!(syncs.ended(), [2, 3]);
        assert!(!syncs.begin(), "nobody waits");
    }

    #[test]
    fn without_a_write_in_between_the_running_one_is_enough_and_then_none_is_needed() {
        let mut syncs = Syncs::new();
        syncs.cover(1);
        syncs.begin();
        assert_eq!(syncs.cover(2), Covered::Later);
        assert_eq!(syncs.ended(), [1, 2]);
        assert_eq!(syncs.cover(3), Covered::Already);

        syncs.changed();

        assert_eq!(syncs.cover(4), Covered::Later);
    }
}
