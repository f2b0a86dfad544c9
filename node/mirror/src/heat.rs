//! Which extents may differ between the replicas of the set, and which have settled (DESIGN, rule 14).
//!
//! An extent becomes hot with its first change and settles when every replica of the set has all of its changes on stable
//! storage: nothing of it is under way, and a flush that was begun after the last of them ended has reached them all. What was
//! answered with an error may be on some replicas and not on others; it stays until something whole has been written over it.

use alloc::{collections::BTreeMap, vec::Vec};
use core::ops::Range;

use crate::grains::Extents;

/// Failed changes remembered by their range; more are remembered by their extents, for good.
const SUSPECTS_MAX: usize = 64;

#[derive(Debug, Clone, Default)]
pub(crate) struct Heat {
    hot: BTreeMap<u32, Extent>,
    /// Changes ended so far.
    clock: u64,
    suspects: Vec<Range<u64>>,
    doubtful: Extents,
}

#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    under_way: u32,
    /// When its last change ended.
    changed: u64,
}

impl Heat {
    /// How many extents are hot.
    pub(crate) fn len(&self) -> usize {
        self.hot.len()
    }

    /// How many of those that `range` touches are not.
    pub(crate) fn cold(&self, range: &Range<u64>) -> usize {
        Extents::touching(range).iter().filter(|extent| !self.hot.contains_key(extent)).count()
    }

    /// A change begins.
    pub(crate) fn begin(&mut self, range: &Range<u64>) {
        for extent in Extents::touching(range).iter() {
            self.hot.entry(extent).or_default().under_way += 1;
        }
    }

    /// It has ended everywhere; `done`: every replica of the set has it.
    pub(crate) fn end(&mut self, range: &Range<u64>, done: bool) {
        self.clock += 1;
        for extent in Extents::touching(range).iter() {
            if let Some(hot) = self.hot.get_mut(&extent) {
                hot.under_way = hot.under_way.saturating_sub(1);
                hot.changed = self.clock;
            }
        }
        if done {
            self.suspects.retain(|suspect| !(range.start <= suspect.start && suspect.end <= range.end));
        } else if self.suspects.len() < SUSPECTS_MAX {
            self.suspects.push(range.clone());
        } else {
            self.doubtful.union(&Extents::touching(range));
        }
    }

    /// Extents that may differ when this mirror begins, until they were copied.
    pub(crate) fn inherit(&mut self, extents: &Extents) {
        for extent in extents.iter() {
            self.hot.entry(extent).or_default();
        }
    }

    /// What a flush that begins now will cover.
    pub(crate) fn now(&self) -> u64 {
        self.clock
    }

    /// A flush that began at `covers` has reached every replica of the set: what has settled by it, and is hot no more.
    pub(crate) fn settle(&mut self, covers: u64, keep: impl Fn(u32) -> bool) -> Extents {
        let mut suspect = self.doubtful.clone();
        self.suspects.iter().for_each(|range| suspect.union(&Extents::touching(range)));
        let mut settled = Extents::default();
        self.hot.retain(|extent, hot| {
            let settles = hot.under_way == 0 && hot.changed <= covers && !suspect.contains(*extent) && !keep(*extent);
            if settles {
                settled.insert(*extent);
            }
            !settles
        });
        settled
    }

    /// All that may differ.
    pub(crate) fn extents(&self) -> Extents {
        let mut all = Extents::default();
        self.hot.keys().for_each(|extent| all.insert(*extent));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grains::EXTENT_BYTES as E;

    #[test]
    fn an_extent_settles_by_a_flush_that_began_after_its_last_change_ended() {
        let mut heat = Heat::default();
        let never = |_| false;
        heat.begin(&(0..10));
        heat.begin(&(E..E + 10));
        heat.end(&(0..10), true);
        let flush = heat.now();
        assert_eq!(heat.settle(flush, never).iter().collect::<Vec<_>>(), [0], "the other is under way");

        heat.end(&(E..E + 10), true);
        assert!(heat.settle(flush, never).is_empty(), "it ended after the flush began");
        assert!(heat.settle(heat.now(), |extent| extent == 1).is_empty());
        assert_eq!(heat.settle(heat.now(), never).len(), 1);
        assert_eq!(heat.len(), 0);
    }

    #[test]
    fn what_failed_settles_when_it_was_written_over_whole() {
        let mut heat = Heat::default();
        let never = |_| false;
        heat.begin(&(0..100));
        heat.end(&(0..100), false);
        heat.begin(&(0..99));
        heat.end(&(0..99), true);
        assert!(heat.settle(heat.now(), never).is_empty(), "a byte of it may still differ");
        heat.begin(&(0..100));
        heat.end(&(0..100), true);
        assert_eq!(heat.settle(heat.now(), never).len(), 1);

        for number in 0..=SUSPECTS_MAX as u64 {
            let range = number * E..number * E + 1;
            heat.begin(&range);
            heat.end(&range, false);
        }
        let last = SUSPECTS_MAX as u64 * E;
        heat.begin(&(last..last + E));
        heat.end(&(last..last + E), true);
        assert!(heat.settle(heat.now(), never).is_empty(), "there are too many to know them by their range");
    }
}
