//! Which extents may differ between the replicas of the set, and which have settled (DESIGN, rule 14).
//!
//! An extent becomes hot with its first change and settles when every replica of the set has all of its changes on stable
//! storage: nothing of it is under way, and a flush that was begun after the last of them ended has reached them all.

use alloc::{collections::BTreeMap, vec::Vec};
use core::ops::Range;

use crate::grains::Extents;

#[derive(Debug, Clone, Default)]
pub(crate) struct Heat {
    hot: BTreeMap<u32, Extent>,
    /// Changes ended so far.
    clock: u64,
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
        Extents::numbers(range).filter(|extent| !self.hot.contains_key(extent)).count()
    }

    /// A change begins.
    pub(crate) fn begin(&mut self, range: &Range<u64>) {
        for extent in Extents::numbers(range) {
            self.hot.entry(extent).or_default().under_way += 1;
        }
    }

    /// It has ended everywhere.
    pub(crate) fn end(&mut self, range: &Range<u64>) {
        for extent in Extents::numbers(range) {
            if let Some(hot) = self.hot.get_mut(&extent) {
                hot.under_way = hot.under_way.saturating_sub(1);
            }
        }
        self.changed(range);
    }

    /// Something there is not on stable storage everywhere.
    pub(crate) fn changed(&mut self, range: &Range<u64>) {
        self.clock += 1;
        for extent in Extents::numbers(range) {
            if let Some(hot) = self.hot.get_mut(&extent) {
                hot.changed = self.clock;
            }
        }
    }

    /// What there is in the beginning: changes of another life, of which nobody knows whether they are on stable storage.
    pub(crate) fn of_another_life(active: &Extents) -> Self {
        let mut heat = Self::default();
        heat.inherit(active);
        heat.clock = u64::from(!active.is_empty());
        heat.hot.values_mut().for_each(|hot| hot.changed = heat.clock);
        heat
    }

    /// Extents that may differ though nothing was changed in them here.
    pub(crate) fn inherit(&mut self, extents: &Extents) {
        for extent in extents.iter() {
            self.hot.entry(extent).or_default();
        }
    }

    /// What a flush that begins now will cover.
    pub(crate) fn now(&self) -> u64 {
        self.clock
    }

    /// What settles by a flush that began at `covers` and has reached every replica of the set, except where they are `unequal`: what
    /// was changed least recently, until no more than `keep` are hot.
    pub(crate) fn settling(&self, covers: u64, keep: usize, unequal: impl Fn(u32) -> bool) -> Extents {
        let mut able: Vec<(u64, u32)> = Vec::new();
        for (extent, hot) in &self.hot {
            if hot.under_way == 0 && hot.changed <= covers && !unequal(*extent) {
                able.push((hot.changed, *extent));
            }
        }
        let most = self.hot.len().saturating_sub(keep);
        if able.len() > most {
            able.sort_unstable();
            able.truncate(most);
        }
        let mut settling = Extents::default();
        able.into_iter().for_each(|(_, extent)| settling.insert(extent));
        settling
    }

    /// Would a flush that begins now settle any?
    pub(crate) fn may_settle(&self, unequal: impl Fn(u32) -> bool) -> bool {
        self.hot.iter().any(|(extent, hot)| hot.under_way == 0 && !unequal(*extent))
    }

    /// They have settled.
    pub(crate) fn settle(&mut self, extents: &Extents) {
        for extent in extents.iter() {
            self.hot.remove(&extent);
        }
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

    fn settling(heat: &Heat, covers: u64) -> Vec<u32> {
        heat.settling(covers, 0, |_| false).iter().collect()
    }

    #[test]
    fn an_extent_settles_by_a_flush_that_began_after_its_last_change_ended() {
        let mut heat = Heat::default();
        heat.begin(&(0..10));
        heat.begin(&(E..E + 10));
        heat.end(&(0..10));
        let flush = heat.now();
        assert_eq!(settling(&heat, flush), [0], "the other is under way");

        heat.end(&(E..E + 10));
        assert_eq!(settling(&heat, flush), [0], "it ended after the flush began");
        assert_eq!(heat.settling(heat.now(), 0, |extent| extent == 1).iter().collect::<Vec<_>>(), [0]);
        assert_eq!(settling(&heat, heat.now()), [0, 1]);
        heat.settle(&Extents::touching(&(0..1)));
        assert_eq!((heat.len(), heat.cold(&(0..2 * E))), (1, 1));
    }

    #[test]
    fn what_was_changed_least_recently_settles_first() {
        let mut heat = Heat::default();
        for extent in [2, 0, 3, 1, 2] {
            heat.begin(&(extent * E..extent * E + 10));
            heat.end(&(extent * E..extent * E + 10));
        }
        let settling = |keep| heat.settling(heat.now(), keep, |_| false).iter().collect::<Vec<_>>();
        assert_eq!((settling(4), settling(2), settling(1)), (Vec::new(), [0, 3].into(), [0, 1, 3].into()));
        let but_the_oldest = heat.settling(heat.now(), 3, |extent| extent == 0);
        assert_eq!(but_the_oldest.iter().collect::<Vec<_>>(), [3], "one that cannot is not waited for");
    }
}
