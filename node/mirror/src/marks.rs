//! What a replica keeps on disk beside its data: which extents may differ from other replicas, and what those outside of the set
//! lack (DESIGN, rule 14).
//!
//! The store keeps a log of [`Record`]s. One that [`Marks::before_change`] or [`Marks::miss`] returns is on stable storage before the
//! data is touched, or the answer given; the others may get there later, in order. What is lost of them costs copying, never
//! content. After any end [`Marks::replay`] gives back a state that covers what was.
//!
//! What a replica lacks is written down only when the extent in which it lies settles: until then the extent is active, and what
//! is active counts as lacking.

use alloc::{collections::BTreeMap, vec::Vec};
use core::ops::Range;

use pollux_wire::id::ReplicaId;
use serde::{Deserialize, Serialize};

use crate::grains::{Extents, Grains};

/// Replicas outside of the set that are kept account of: a volume has at most four replicas, while one of them is on its way to
/// another pool, and one of them is this one.
const MISSING_MAX: usize = 3;

/// The state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Marks {
    active: Extents,
    missing: BTreeMap<ReplicaId, Grains>,
}

/// A change of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// All there is: where a log begins.
    Whole(Marks),
    /// These extents may differ from here on.
    Active(Extents),
    /// These do not, and this is what others lack in them.
    Settled(Extents, Vec<(ReplicaId, Grains)>),
    /// That replica leaves the set, and lacks this.
    Missing(ReplicaId, Grains),
    /// It does not lack this range any more.
    Regained(ReplicaId, Range<u64>),
    /// It is in the set, or none of the volume's any more: there is nothing to note of it.
    Returned(ReplicaId),
    /// This replica is: only these extents may differ, and nobody is missing that it would know of.
    Welcome(Extents),
}

/// Why a record cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MarksError {
    /// More replicas are missing than a volume can have.
    #[error("{0} replicas are missing already, which is all that a volume can have beside this one")]
    TooMany(usize),
}

impl Marks {
    /// What has to be on stable storage before a byte of `range` is changed; `None`: nothing more.
    #[must_use]
    pub fn before_change(&self, range: &Range<u64>) -> Option<Record> {
        let cold = Extents::touching(range).without(&self.active);
        (!cold.is_empty()).then_some(Record::Active(cold))
    }

    /// A change of `range` begins: whoever is missing lacks it. Its extents are active.
    ///
    /// # Panics
    /// When they are not: then nothing would tell after a crash that the range may differ.
    pub fn changes(&mut self, range: &Range<u64>) {
        assert!(self.before_change(range).is_none(), "a change of {range:?} begins before it is marked (rule 14)");
        self.missing.values_mut().for_each(|lacks| lacks.insert(range));
    }

    /// These extents have settled.
    #[must_use]
    pub fn settle(&self, extents: &Extents) -> Record {
        let lacks = self.missing.iter().map(|(id, lacks)| (*id, lacks.within(extents)));
        Record::Settled(extents.clone(), lacks.filter(|(_, lacks)| !lacks.is_empty()).collect())
    }

    /// A replica is about to leave the set.
    ///
    /// # Errors
    /// [`MarksError::TooMany`].
    pub fn miss(&self, replica: ReplicaId) -> Result<Record, MarksError> {
        self.has_room(replica)?;
        Ok(Record::Missing(replica, Grains::from(&self.active)))
    }

    fn has_room(&self, replica: ReplicaId) -> Result<(), MarksError> {
        if !self.missing.contains_key(&replica) && self.missing.len() >= MISSING_MAX {
            return Err(MarksError::TooMany(self.missing.len()));
        }
        Ok(())
    }

    /// A replica outside of the set lacks all this, as its members' logs tell; and, for all that is known here, what is active: what
    /// is being written now may be in neither.
    ///
    /// # Errors
    /// [`MarksError::TooMany`].
    pub fn note(&self, replica: ReplicaId, lacks: &Grains) -> Result<Record, MarksError> {
        self.has_room(replica)?;
        let mut all = Grains::from(&self.active);
        all.union(lacks);
        Ok(Record::Missing(replica, all))
    }

    /// A record is on stable storage, or will be.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Whole(marks) => *self = marks.clone(),
            Record::Active(extents) => self.active.union(extents),
            Record::Settled(extents, lacks) => {
                self.active.subtract(extents);
                for (replica, lacks) in lacks {
                    if let Some(known) = self.missing.get_mut(replica) {
                        known.union(lacks);
                    }
                }
            }
            Record::Missing(replica, lacks) => self.missing.entry(*replica).or_default().union(lacks),
            Record::Regained(replica, range) => {
                if let Some(known) = self.missing.get_mut(replica) {
                    known.remove(range);
                }
            }
            Record::Returned(replica) => drop(self.missing.remove(replica)),
            Record::Welcome(extents) => {
                self.active = extents.clone();
                self.missing.clear();
            }
        }
    }

    /// What the records of a log come to, of which the last may have been cut off.
    #[must_use]
    pub fn replay<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut marks = Self::default();
        records.into_iter().for_each(|record| marks.apply(record));
        let active = Grains::from(&marks.active);
        marks.missing.values_mut().for_each(|lacks| lacks.union(&active));
        marks
    }

    /// Extents that may differ from other replicas.
    #[must_use]
    pub fn active(&self) -> &Extents {
        &self.active
    }

    /// What each replica lacks that was missed here.
    #[must_use]
    pub fn missing(&self) -> &BTreeMap<ReplicaId, Grains> {
        &self.missing
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;
    use crate::grains::{EXTENT_BYTES, GRAIN_BYTES};

    const R2: ReplicaId = ReplicaId(2);

    /// A store: marks, and the log they are kept in.
    #[derive(Default)]
    struct Store {
        marks: Marks,
        log: Vec<Record>,
    }

    impl Store {
        fn write(&mut self, record: Record) {
            self.marks.apply(&record);
            self.log.push(record);
        }

        fn change(&mut self, range: &Range<u64>) {
            if let Some(record) = self.marks.before_change(range) {
                self.write(record);
            }
            self.marks.changes(range);
        }
    }

    #[test]
    fn an_extent_is_marked_once_until_it_has_settled() {
        let mut store = Store::default();
        store.change(&(0..512));
        store.change(&(4_096..8_192));
        assert_eq!(store.log.len(), 1, "one mark lasts for many writes");
        store.write(store.marks.settle(&Extents::touching(&(0..1))));
        assert!(store.marks.active().is_empty());
        store.change(&(0..512));
        assert_eq!(store.log.len(), 3);
    }

    #[test]
    #[should_panic(expected = "before it is marked")]
    fn a_change_without_a_mark_is_noticed() {
        Marks::default().changes(&(0..512));
    }

    /// Whatever prefix of the log survives, what was written while a replica was missing is known to lack there.
    #[test]
    fn what_a_missing_replica_lacks_survives_any_end() {
        let mut store = Store::default();
        store.change(&(0..512)); // before it left, and perhaps lost on its way there
        store.write(store.marks.miss(R2).unwrap());
        let mut wanted = vec![(store.log.len(), 0..512)];
        for number in 0..6 {
            let range = number * EXTENT_BYTES / 2..number * EXTENT_BYTES / 2 + 512;
            store.change(&range);
            wanted.push((store.log.len(), range.clone()));
            if number % 2 == 1 {
                store.write(store.marks.settle(&Extents::touching(&range)));
            }
        }
        for kept in 2..=store.log.len() {
            let after = Marks::replay(&store.log[..kept]);
            for (_, range) in wanted.iter().filter(|(written, _)| *written <= kept) {
                assert!(after.missing()[&R2].touches(range), "{range:?} of {kept} records");
            }
        }
        assert!(store.marks.missing()[&R2].bytes() < EXTENT_BYTES * 2, "but not everything");

        store.write(Record::Regained(R2, 0..GRAIN_BYTES));
        assert!(!store.marks.missing()[&R2].touches(&(0..GRAIN_BYTES)));
        store.change(&(0..512));
        assert!(store.marks.missing()[&R2].touches(&(0..512)), "written again");
        store.write(Record::Returned(R2));
        assert!(Marks::replay(&store.log).missing().is_empty());
    }

    #[test]
    fn a_note_of_one_that_was_added_is_kept_and_has_what_is_being_written() {
        let mut store = Store::default();
        store.change(&(EXTENT_BYTES..EXTENT_BYTES + 512));
        let lacks = Grains::touching(&(5 * EXTENT_BYTES..7 * EXTENT_BYTES));
        store.write(store.marks.note(R2, &lacks).unwrap());
        let mut wanted = lacks;
        wanted.union(&Grains::from(&Extents::touching(&(EXTENT_BYTES..EXTENT_BYTES + 1))));
        assert_eq!(Marks::replay(&store.log).missing()[&R2], wanted);
    }

    #[test]
    fn more_replicas_than_there_can_be_are_not_missed() {
        let mut store = Store::default();
        store.write(store.marks.miss(ReplicaId(2)).unwrap());
        store.write(store.marks.miss(ReplicaId(3)).unwrap());
        store.marks.miss(ReplicaId(3)).expect("it is missed already");
        store.write(store.marks.miss(ReplicaId(4)).unwrap());
        assert_eq!(store.marks.miss(ReplicaId(5)), Err(MarksError::TooMany(3)));
        store.write(Record::Returned(ReplicaId(4)));
        store.marks.miss(ReplicaId(5)).expect("there is room again");
        store.write(Record::Welcome(Extents::default()));
        assert!(store.marks.missing().is_empty());
    }
}
