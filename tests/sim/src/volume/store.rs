//! A replica: its marks, their log, and a disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use pollux_mirror::{Extents, Grains, Marks, MarksError, Record};
use pollux_wire::id::ReplicaId;

use super::{Control, UNIT_BYTES, oracle::Stamp};
use crate::Rng;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// Counts its processes, so that nothing of a dead one goes on.
    pub(super) life: u64,
    pub(super) up: bool,
    /// Counts how often its host was started.
    pub(super) boot: u64,
    pub(super) full: bool,
    pub(super) slow: bool,
    /// Its disk says no, now and then.
    pub(super) broken: bool,
    /// It was removed.
    pub(super) gone: bool,
    /// The highest it has seen; on stable storage at once.
    pub(super) generation: u64,
    pub(super) session: u64,
    /// It has lost what it had not synced, and was not made equal since.
    pub(super) lossy: bool,
    cache: BTreeMap<u64, Stamp>,
    stable: BTreeMap<u64, Stamp>,
    marks: Marks,
    log: Vec<Record>,
    synced: usize,
}

/// The units of a range.
pub(super) fn units(range: &Range<u64>) -> Range<u64> {
    range.start / UNIT_BYTES..range.end.div_ceil(UNIT_BYTES)
}

impl Store {
    pub(super) fn marks(&self) -> &Marks {
        &self.marks
    }

    pub(super) fn get(&self, unit: u64) -> Stamp {
        self.cache.get(&unit).copied().unwrap_or(0)
    }

    /// What is there after a power failure, if nothing more is synced.
    pub(super) fn get_stable(&self, unit: u64) -> Stamp {
        self.stable.get(&unit).copied().unwrap_or(0)
    }

    /// What the log says then.
    pub(super) fn durable_marks(&self) -> Marks {
        Marks::replay(&self.log[..self.synced])
    }

    pub(super) fn put(&mut self, unit: u64, stamp: Stamp) {
        self.cache.insert(unit, stamp);
    }

    /// It changes, and nobody has asked for that.
    pub(super) fn rots(&mut self, unit: u64, stamp: Stamp) {
        self.cache.insert(unit, stamp);
        self.stable.insert(unit, stamp);
    }

    /// What has to be in the log before the range is changed.
    pub(super) fn before_change(&self, range: &Range<u64>) -> Option<Record> {
        self.marks.before_change(range)
    }

    /// One that has never held anything.
    pub(super) fn new() -> Self {
        Self { up: true, ..Self::default() }
    }

    /// Appends to the log. It is known from now on; on stable storage with [`Store::sync_log`].
    pub(super) fn record(&mut self, record: Record, control: Option<Control>) {
        self.marks.apply(&record);
        if !(matches!(record, Record::Active(_)) && control == Some(Control::NoActivityLog)) {
            self.log.push(record);
        }
    }

    pub(super) fn sync_log(&mut self) {
        self.synced = self.log.len();
    }

    /// A change begins.
    pub(super) fn changes(&mut self, range: &Range<u64>, control: Option<Control>) {
        if control == Some(Control::ForgetOneGrain) && !self.marks.missing().is_empty() {
            // It forgets by claiming that nobody lacks it.
            self.marks.changes(range);
            let missing: Vec<ReplicaId> = self.marks.missing().keys().copied().collect();
            for replica in missing {
                self.marks.apply(&Record::Regained(replica, range.clone()));
            }
            return;
        }
        self.marks.changes(range);
    }

    pub(super) fn settle(&mut self, extents: &Extents) {
        let record = self.marks.settle(extents);
        self.record(record, None);
    }

    pub(super) fn miss(&mut self, replica: ReplicaId) -> Result<(), MarksError> {
        let record = self.marks.miss(replica)?;
        self.record(record, None);
        self.sync_log();
        Ok(())
    }

    pub(super) fn note(
        &mut self,
        replica: ReplicaId,
        lacks: &Grains,
        control: Option<Control>,
    ) -> Result<(), MarksError> {
        let nothing = Grains::default();
        let lacks = if control == Some(Control::NoteTooLittle) { &nothing } else { lacks };
        let record = self.marks.note(replica, lacks)?;
        self.record(record, None);
        self.sync_log();
        Ok(())
    }

    pub(super) fn flush(&mut self) {
        self.stable = self.cache.clone();
        self.sync_log();
    }

    /// Only these units: a durable write, whose neighbours may wait.
    pub(super) fn sync_units(&mut self, range: Range<u64>) {
        for unit in range {
            self.stable.insert(unit, self.get(unit));
        }
    }

    /// Its process ends; the page cache stays.
    pub(super) fn dies(&mut self) {
        self.up = false;
        self.life += 1;
        self.session = 0;
    }

    /// Its host loses power: of what was not synced each unit, and each further record up to the first that is not, may be
    /// there or not.
    pub(super) fn loses_power(&mut self, rng: &mut Rng) {
        self.dies();
        self.boot += 1;
        let changed: BTreeSet<u64> = self
            .cache
            .iter()
            .filter(|(unit, stamp)| self.stable.get(unit) != Some(stamp))
            .map(|(unit, _)| *unit)
            .collect();
        for unit in changed {
            if rng.chance(500) {
                let old = self.stable.get(&unit).copied().unwrap_or(0);
                self.cache.insert(unit, old);
                self.lossy = true;
            }
        }
        self.stable = self.cache.clone();
        let kept = self.synced + rng.index(self.log.len() - self.synced + 1);
        self.log.truncate(kept);
        self.synced = kept;
    }

    /// Its process starts, and reads its log.
    pub(super) fn starts(&mut self) {
        self.up = true;
        self.life += 1;
        self.marks = Marks::replay(&self.log);
        // What was read is written as a whole, as a log is begun anew.
        self.log = vec![Record::Whole(self.marks.clone())];
        self.synced = 1;
    }
}
