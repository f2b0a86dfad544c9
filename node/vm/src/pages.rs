//! Sets of guest pages.

use alloc::{vec, vec::Vec};
use core::ops::Range;

/// Bytes in a page: the unit of dirty tracking and of sending.
pub const PAGE_BYTES: usize = 4096;

/// A set of page numbers below a fixed bound, one bit each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: u64,
}

impl PageSet {
    /// The empty set over pages `0..pages`.
    #[must_use]
    pub fn empty(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).expect("guest memory fits the address space");
        Self { words: vec![0; words], pages }
    }

    /// All of `0..pages`.
    #[must_use]
    pub fn full(pages: u64) -> Self {
        let mut set = Self::empty(pages);
        set.insert_range(0..pages);
        set
    }

    /// The bound: pages are `0..pages()`.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// How many pages are in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// No page is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Is `page` in it? `false` beyond the bound.
    #[must_use]
    pub fn contains(&self, page: u64) -> bool {
        page < self.pages && self.words[index(page)] & bit(page) != 0
    }

    /// Adds a page.
    ///
    /// # Panics
    /// When it is not below the bound.
    pub fn insert(&mut self, page: u64) {
        assert!(page < self.pages, "page {page} is beyond the guest's {} pages", self.pages);
        self.words[index(page)] |= bit(page);
    }

    /// Removes a page.
    ///
    /// # Panics
    /// When it is not below the bound.
    pub fn remove(&mut self, page: u64) {
        assert!(page < self.pages, "page {page} is beyond the guest's {} pages", self.pages);
        self.words[index(page)] &= !bit(page);
    }

    /// Adds a range of pages.
    ///
    /// # Panics
    /// When it ends beyond the bound.
    pub fn insert_range(&mut self, range: Range<u64>) {
        assert!(range.end <= self.pages, "page {} is beyond the guest's {} pages", range.end, self.pages);
        let mut page = range.start;
        while page < range.end {
            if page.is_multiple_of(64) && range.end - page >= 64 {
                self.words[index(page)] = u64::MAX;
                page += 64;
            } else {
                self.words[index(page)] |= bit(page);
                page += 1;
            }
        }
    }

    /// Adds everything that is in `other`.
    ///
    /// # Panics
    /// When the bounds differ.
    pub fn union_with(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "sets over different guests");
        self.words.iter_mut().zip(&other.words).for_each(|(mine, theirs)| *mine |= theirs);
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The pages in it, rising.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().zip(0u64..).flat_map(|(word, at)| {
            let mut rest = *word;
            core::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let low = u64::from(rest.trailing_zeros());
                    rest &= rest - 1;
                    at * 64 + low
                })
            })
        })
    }
}

fn index(page: u64) -> usize {
    usize::try_from(page / 64).expect("the bound was checked when the set was made")
}

const fn bit(page: u64) -> u64 {
    1 << (page % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_set_holds_what_was_put_in_and_nothing_else() {
        let mut set = PageSet::empty(200);
        set.insert(0);
        set.insert_range(60..130);
        set.insert(199);
        set.remove(100);

        let expected: Vec<u64> = [0].into_iter().chain(60..100).chain(101..130).chain([199]).collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), expected);
        assert_eq!(set.len(), 71);
        assert!(!set.contains(100) && set.contains(129) && !set.contains(5000));
    }

    #[test]
    fn full_is_every_page_below_the_bound() {
        let set = PageSet::full(130);
        assert_eq!(set.len(), 130);
        assert!(set.contains(129) && !set.contains(130));
    }

    #[test]
    #[should_panic(expected = "beyond the guest")]
    fn a_page_beyond_the_guest_is_a_defect() {
        PageSet::empty(64).insert(64);
    }
}
