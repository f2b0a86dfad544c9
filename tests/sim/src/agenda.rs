//! What is going to happen, in order of model time. Of things due at the same moment chance decides which comes first.

use std::{cmp::Ordering, collections::BinaryHeap};

/// See the module.
pub(crate) struct Agenda<T> {
    heap: BinaryHeap<Entry<T>>,
    entries: u64,
}

struct Entry<T> {
    key: (u64, u64, u64),
    what: T,
}

impl<T> Agenda<T> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), entries: 0 }
    }

    /// `tie` decides among things due at the same time.
    pub(crate) fn put(&mut self, at: u64, tie: u64, what: T) {
        self.entries += 1;
        self.heap.push(Entry { key: (at, tie, self.entries), what });
    }

    pub(crate) fn next(&mut self) -> Option<(u64, T)> {
        self.heap.pop().map(|entry| (entry.key.0, entry.what))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    /// The earliest is the greatest, for the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key.cmp(&self.key)
    }
}
