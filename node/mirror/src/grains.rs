//! Sets of parts of a volume, in two sizes: grains, in which it is remembered what a replica lacks, and extents, in which it is
//! remembered what may differ.

use alloc::vec::Vec;
use core::ops::Range;

use roaring::RoaringBitmap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Bytes of a grain. Finer means less to copy after a short absence, coarser fewer and larger copies; a disk streams 64 KiB in
/// about the time in which it seeks.
pub const GRAIN_BYTES: u64 = 64 * 1024;
/// Bytes of an extent. Marking one costs a write to stable storage before the guest's own, so one has to last for many writes;
/// all that are active are copied after a crash (DRBD's activity log has the same size for the same reasons).
pub const EXTENT_BYTES: u64 = 4 * 1024 * 1024;
const GRAINS_PER_EXTENT: u32 = 64;
const _: () = assert!(GRAINS_PER_EXTENT as u64 * GRAIN_BYTES == EXTENT_BYTES, "an extent is whole grains");

/// A set of grains. Of a volume of up to 256 TiB.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grains(RoaringBitmap);

impl Eq for Grains {}

/// A set of extents.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extents(RoaringBitmap);

impl Eq for Extents {}

impl Grains {
    /// Those that hold a byte of `range`.
    #[must_use]
    pub fn touching(range: &Range<u64>) -> Self {
        let mut grains = Self::default();
        grains.insert(range);
        grains
    }

    /// Adds those that hold a byte of `range`.
    pub fn insert(&mut self, range: &Range<u64>) {
        self.0.insert_range(numbers(range, GRAIN_BYTES));
    }

    /// Removes those that hold a byte of `range`: it was cut from a run of them, and at most the volume ends in its last.
    pub fn remove(&mut self, range: &Range<u64>) {
        self.0.remove_range(numbers(range, GRAIN_BYTES));
    }

    /// Those of a volume of `size` bytes: the last extent of one may have grains beyond its end.
    pub fn clip(&mut self, size: u64) {
        self.0.remove_range(number(size.div_ceil(GRAIN_BYTES))..);
    }

    /// Is there any that holds a byte of `range`?
    #[must_use]
    pub fn touches(&self, range: &Range<u64>) -> bool {
        self.0.range_cardinality(numbers(range, GRAIN_BYTES)) > 0
    }

    /// The first run of them at or after the byte `from`, in bytes and at most `most` long. A volume may end within its last.
    #[must_use]
    pub fn run(&self, from: u64, most: u64) -> Option<Range<u64>> {
        let mut rest = self.0.range(number(from / GRAIN_BYTES)..);
        let run = rest.next_range()?;
        let start = u64::from(*run.start()) * GRAIN_BYTES;
        let end = (u64::from(*run.end()) + 1) * GRAIN_BYTES;
        Some(start..end.min(start + most.max(GRAIN_BYTES)))
    }

    /// Adds another set.
    pub fn union(&mut self, other: &Self) {
        self.0 |= &other.0;
    }

    /// Leaves what is in `other` too.
    pub fn intersect(&mut self, other: &Self) {
        self.0 &= &other.0;
    }

    /// No grain is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes in it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.len() * GRAIN_BYTES
    }

    /// All of it, and perhaps more, in no more than `runs_max` runs: what is told of it then has a limit.
    #[must_use]
    pub fn in_runs(&self, runs_max: usize) -> Self {
        let too_many = |grains: &Self| {
            let mut rest = grains.0.iter();
            (0..=runs_max).all(|_| rest.next_range().is_some())
        };
        if !too_many(self) {
            return self.clone();
        }
        let mut extents = Extents::default();
        let mut rest = self.0.iter();
        while let Some(run) = rest.next_range() {
            extents.0.insert_range(run.start() / GRAINS_PER_EXTENT..=run.end() / GRAINS_PER_EXTENT);
        }
        let mut all = Self::from(&extents);
        if too_many(&all)
            && let (Some(first), Some(last)) = (all.0.min(), all.0.max())
        {
            all.0.insert_range(first..=last);
        }
        all
    }

    /// What lies in an extent of `extents`.
    #[must_use]
    pub fn within(&self, extents: &Extents) -> Self {
        let mut all = Self::from(extents);
        all.0 &= &self.0;
        all
    }
}

impl Extents {
    /// Those that hold a byte of `range`.
    #[must_use]
    pub fn touching(range: &Range<u64>) -> Self {
        let mut extents = RoaringBitmap::new();
        extents.insert_range(numbers(range, EXTENT_BYTES));
        Self(extents)
    }

    /// The numbers of those that hold a byte of `range`, without making a set of them.
    pub(crate) fn numbers(range: &Range<u64>) -> Range<u32> {
        numbers(range, EXTENT_BYTES)
    }

    /// The bytes of one.
    #[must_use]
    pub fn range_of(extent: u32) -> Range<u64> {
        let start = u64::from(extent) * EXTENT_BYTES;
        start..start + EXTENT_BYTES
    }

    /// Adds another set.
    pub fn union(&mut self, other: &Self) {
        self.0 |= &other.0;
    }

    /// Takes another set away.
    pub fn subtract(&mut self, other: &Self) {
        self.0 -= &other.0;
    }

    /// What is not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    /// None is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Their numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter()
    }

    /// Adds one by its number.
    pub fn insert(&mut self, extent: u32) {
        self.0.insert(extent);
    }

    /// Is this one in it?
    #[must_use]
    pub fn contains(&self, extent: u32) -> bool {
        self.0.contains(extent)
    }
}

impl From<&Extents> for Grains {
    fn from(extents: &Extents) -> Self {
        let mut grains = RoaringBitmap::new();
        for extent in &extents.0 {
            let first = extent.saturating_mul(GRAINS_PER_EXTENT);
            grains.insert_range(first..first.saturating_add(GRAINS_PER_EXTENT));
        }
        Self(grains)
    }
}

fn number(unit: u64) -> u32 {
    u32::try_from(unit).expect("a volume has at most 256 TiB")
}

fn numbers(range: &Range<u64>, unit: u64) -> Range<u32> {
    if range.is_empty() { 0..0 } else { number(range.start / unit)..number(range.end.div_ceil(unit)) }
}

/// Written as runs: first and last number.
macro_rules! as_runs {
    ($set:ident) => {
        impl Serialize for $set {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut runs: Vec<(u32, u32)> = Vec::new();
                let mut iter = self.0.iter();
                while let Some(run) = iter.next_range() {
                    runs.push((*run.start(), *run.end()));
                }
                runs.serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $set {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let runs: Vec<(u32, u32)> = Vec::deserialize(deserializer)?;
                let mut set = RoaringBitmap::new();
                for (first, last) in runs {
                    // In order, or it was not written here.
                    if first > last || set.max().is_some_and(|max| first <= max) {
                        return Err(D::Error::custom("the runs of a set are not in order"));
                    }
                    set.insert_range(first..=last);
                }
                Ok(Self(set))
            }
        }
    };
}

as_runs!(Grains);
as_runs!(Extents);

#[cfg(test)]
mod tests {
    use pollux_wire::{codec, limits::Limit};
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const UNITS: u64 = 200;

    proptest! {
        /// Against a set of numbers.
        #[test]
        fn grains_are_a_set_of_what_ranges_touch(ranges in prop::collection::vec((any::<bool>(), 0..UNITS * GRAIN_BYTES, 0..3 * EXTENT_BYTES), 0..20)) {
            let mut grains = Grains::default();
            let mut model = BTreeSet::new();
            for (add, start, bytes) in ranges {
                let range = start..start + bytes;
                if add {
                    grains.insert(&range);
                    if bytes > 0 {
                        model.extend(start / GRAIN_BYTES..(start + bytes).div_ceil(GRAIN_BYTES));
                    }
                } else {
                    grains.remove(&range);
                    model.retain(|grain| bytes == 0 || (grain + 1) * GRAIN_BYTES <= range.start || grain * GRAIN_BYTES >= range.end);
                }
            }
            prop_assert_eq!(grains.bytes(), model.len() as u64 * GRAIN_BYTES);
            let mut found = BTreeSet::new();
            let mut from = 0;
            while let Some(run) = grains.run(from, 3 * GRAIN_BYTES) {
                prop_assert!(run.end - run.start <= 3 * GRAIN_BYTES && grains.touches(&run));
                found.extend(run.start / GRAIN_BYTES..run.end / GRAIN_BYTES);
                from = run.end;
            }
            prop_assert_eq!(&found, &model);
            let bytes = codec::encode(&grains, Limit::State).unwrap();
            prop_assert_eq!(codec::decode::<Grains>(&bytes, Limit::State).unwrap(), grains);
        }
    }

    #[test]
    fn an_extent_is_all_its_grains() {
        let extents = Extents::touching(&(EXTENT_BYTES - 1..EXTENT_BYTES + 1));
        assert_eq!(extents.len(), 2);
        let grains = Grains::from(&extents);
        assert_eq!(grains.bytes(), 2 * EXTENT_BYTES);
        assert_eq!(grains.run(0, u64::MAX), Some(0..2 * EXTENT_BYTES));
        let some = Grains::touching(&(3 * EXTENT_BYTES - 1..4 * EXTENT_BYTES));
        assert!(some.within(&extents).is_empty());
        assert_eq!(some.within(&Extents::touching(&(3 * EXTENT_BYTES..3 * EXTENT_BYTES + 1))).bytes(), EXTENT_BYTES);
    }

    #[test]
    fn what_lies_scattered_is_told_in_few_runs() {
        let mut grains = Grains::default();
        for extent in [0, 2, 4] {
            for grain in [0, 2, 4] {
                let start = extent * EXTENT_BYTES + grain * GRAIN_BYTES;
                grains.insert(&(start..start + 1));
            }
        }
        assert_eq!(grains.in_runs(9), grains);
        let by_extent = grains.in_runs(8);
        assert_eq!(
            (by_extent.bytes(), by_extent.within(&Extents::touching(&(0..1))).bytes()),
            (3 * EXTENT_BYTES, EXTENT_BYTES)
        );
        assert_eq!(grains.in_runs(3), by_extent);
        assert_eq!(grains.in_runs(2).bytes(), 5 * EXTENT_BYTES);
    }

    #[test]
    fn runs_out_of_order_are_no_set() {
        let bytes = codec::encode(&std::vec![(5_u32, 9_u32), (7, 12)], Limit::State).unwrap();
        assert!(codec::decode::<Grains>(&bytes, Limit::State).is_err());
        let bytes = codec::encode(&std::vec![(5_u32, 4_u32)], Limit::State).unwrap();
        assert!(codec::decode::<Extents>(&bytes, Limit::State).is_err());
    }
}
