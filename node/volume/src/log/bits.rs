//! A set of extents in which it costs next to nothing to look: once for each write of the guest.

use std::ops::Range;

use pollux_mirror::{EXTENT_BYTES, Extents};

/// See the module's text.
#[derive(Debug, Clone)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// None, of a volume of `size` bytes.
    pub(super) fn new(size: u64) -> Self {
        let words = usize::try_from(size.div_ceil(EXTENT_BYTES).div_ceil(64)).expect("a volume has few extents");
        Self(vec![0; words])
    }

    /// All that hold a byte of `range`, which is not empty, are in it.
    pub(super) fn all(&self, range: &Range<u64>) -> bool {
        (range.start / EXTENT_BYTES..range.end.div_ceil(EXTENT_BYTES)).all(|extent| self.has(extent))
    }

    fn has(&self, extent: u64) -> bool {
        let word = usize::try_from(extent / 64).ok().and_then(|word| self.0.get(word));
        word.is_some_and(|word| word >> (extent % 64) & 1 == 1)
    }

    pub(super) fn insert(&mut self, extents: &Extents) {
        for extent in extents.iter() {
            if let Some(word) = self.0.get_mut(extent as usize / 64) {
                *word |= 1 << (extent % 64);
            }
        }
    }

    pub(super) fn remove(&mut self, extents: &Extents) {
        for extent in extents.iter() {
            if let Some(word) = self.0.get_mut(extent as usize / 64) {
                *word &= !(1 << (extent % 64));
            }
        }
    }

    /// What is in it, and not in `others`.
    pub(super) fn without(&self, others: &Extents) -> Extents {
        let mut extents = Extents::default();
        for (number, word) in self.0.iter().enumerate().filter(|(_, word)| **word != 0) {
            for bit in 0..64 {
                let extent = u32::try_from(number * 64 + bit).expect("a volume has few extents");
                if word >> bit & 1 == 1 && !others.contains(extent) {
                    extents.insert(extent);
                }
            }
        }
        extents
    }

    /// Takes what is in it from `extents`.
    pub(super) fn take_from(&self, extents: &mut Extents) {
        let known: Vec<u32> = extents.iter().filter(|extent| self.has(u64::from(*extent))).collect();
        let mut mine = Extents::default();
        known.into_iter().for_each(|extent| mine.insert(extent));
        extents.subtract(&mine);
    }
}
