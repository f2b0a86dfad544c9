//! Which ranges are being worked on, so that nothing overlaps with what changes one.
//!
//! Two writes to the same place that are under way at once may reach two replicas in different order, and the replicas differ
//! from then on although each write succeeded everywhere. So the second waits for the first. A read waits too: what it
//! would see depends on the replica, and a guest must not see a write first done and then undone.

use alloc::collections::BTreeMap;
use core::ops::Range;

/// Do they have a byte in common?
pub(crate) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Ranges under way. Those that change never overlap with anything; those that read may overlap each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranges {
    /// By their start.
    changing: BTreeMap<u64, u64>,
    /// Each with how many read it.
    reading: BTreeMap<(u64, u64), u32>,
    /// No read is longer than this.
    longest_read: u64,
}

impl Ranges {
    /// Is something under way that `range` has to wait for?
    pub(crate) fn conflicts(&self, range: &Range<u64>, changes: bool) -> bool {
        if range.is_empty() {
            return false;
        }
        let before = self.changing.range(..range.end).next_back();
        if before.is_some_and(|(_, end)| *end > range.start) {
            return true;
        }
        let first = range.start.saturating_sub(self.longest_read);
        changes && self.reading.range((first, 0)..(range.end, 0)).any(|((_, end), _)| *end > range.start)
    }

    /// It is under way. It must not conflict.
    pub(crate) fn enter(&mut self, range: &Range<u64>, changes: bool) {
        assert!(!self.conflicts(range, changes), "{range:?} is worked on while something is changed there");
        if range.is_empty() {
            return;
        }
        if changes {
            self.changing.insert(range.start, range.end);
        } else {
            *self.reading.entry((range.start, range.end)).or_default() += 1;
            self.longest_read = self.longest_read.max(range.end - range.start);
        }
    }

    /// It is no more.
    pub(crate) fn leave(&mut self, range: &Range<u64>, changes: bool) {
        if range.is_empty() {
            return;
        }
        if changes {
            let left = self.changing.remove(&range.start);
            debug_assert_eq!(left, Some(range.end), "what leaves has entered");
        } else if let Some(readers) = self.reading.get_mut(&(range.start, range.end)) {
            *readers -= 1;
            if *readers == 0 {
                self.reading.remove(&(range.start, range.end));
                if self.reading.is_empty() {
                    self.longest_read = 0;
                }
            }
        }
    }

    /// Whether no two that change overlap.
    #[cfg(test)]
    fn are_apart(&self) -> bool {
        self.changing.iter().zip(self.changing.iter().skip(1)).all(|(one, next)| one.1 <= next.0)
    }
}

/// Bytes, as what is asked covers them; it may overlap.
#[derive(Debug, Default)]
pub(crate) struct Spans(BTreeMap<u64, u64>);

impl Spans {
    /// Adds a range.
    pub(crate) fn insert(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut all = range.clone();
        while let Some((start, end)) = self.0.range(..=all.end).next_back().map(|(start, end)| (*start, *end)) {
            if end < all.start {
                break;
            }
            self.0.remove(&start);
            all = all.start.min(start)..all.end.max(end);
        }
        self.0.insert(all.start, all.end);
    }

    /// Has it a byte of `range`?
    pub(crate) fn touches(&self, range: &Range<u64>) -> bool {
        !range.is_empty() && self.0.range(..range.end).next_back().is_some_and(|(_, end)| *end > range.start)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spans_are_a_set_of_bytes(ranges in prop::collection::vec((0_u64..60, 0_u64..12), 0..20), asked in (0_u64..60, 0_u64..12)) {
            let mut spans = Spans::default();
            let mut bytes = std::collections::BTreeSet::new();
            for (start, many) in ranges {
                spans.insert(&(start..start + many));
                bytes.extend(start..start + many);
            }
            let (start, many) = asked;
            prop_assert_eq!(spans.touches(&(start..start + many)), (start..start + many).any(|byte| bytes.contains(&byte)));
        }

        #[test]
        fn it_finds_what_a_look_at_each_pair_finds(steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0_u64..60, 1_u64..20), 0..60)) {
            let mut ranges = Ranges::default();
            let mut all: Vec<(Range<u64>, bool)> = Vec::new();
            for (add, changes, start, bytes) in steps {
                let range = start..start + bytes;
                if add || all.is_empty() {
                    let overlap = |(other, other_changes): &(Range<u64>, bool)| {
                        (changes || *other_changes) && other.start < range.end && range.start < other.end
                    };
                    prop_assert_eq!(ranges.conflicts(&range, changes), all.iter().any(overlap));
                    if !ranges.conflicts(&range, changes) {
                        ranges.enter(&range, changes);
                        all.push((range, changes));
                    }
                } else {
                    let (range, changes) = all.swap_remove(usize::try_from(start).unwrap() % all.len());
                    ranges.leave(&range, changes);
                }
                prop_assert!(ranges.are_apart());
            }
        }
    }
}
