//! Who waits for what of the log to be on stable storage. Pure: the owner carries the [`Job`]s to the file, one at a time.
//!
//! ```text
//!   change(range), note(record) --> may begin | waits --> batch --job()--> file --ended()--> these wait no more
//!   tell(record) --------------------------------------> the same batch, and nobody waits
//! ```
//!
//! What comes while a job is under way makes up the next, so all of it shares one sync. Records are applied to the marks at once, in
//! the order in which they get into the log. Whether a change may begin is told by something else: by `covers`, the extents that are
//! active by records that are on stable storage, and that nothing after those has settled.
//!
//! A batch that finds no room is kept, in front of what comes after it: who waited for it is told, and it is tried again when somebody
//! waits again. After any other failure the log is not written any more, and the replica is out of use.

use std::ops::Range;

use pollux_mirror::{EXTENT_BYTES, Extents, Grains, Marks, Record};
use pollux_wire::{codec::EncodeError, id::Generation, limits::Limit};

use super::{
    bits::Bits,
    frames::{self, Begun, Body, Replayed},
};

/// A record of more bytes is not appended; the log is begun anew instead.
const RECORD_LIMIT: Limit = Limit::Control;
/// Marks of more bytes than this are made coarser when the log is begun anew: what lacks is told by the extent.
const FINE_BYTES_MAX: usize = 4 << 20;
/// While so many records are to be written, whoever brings another waits for it.
const TOLD_MAX: usize = 4096;

/// Who waits, by a number that means something to the owner.
pub(crate) type Waiter = usize;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Ledger {
    size: u64,
    marks: Marks,
    fence: Generation,
    covers: Bits,
    file: File,
    /// To be written next.
    next: Batch,
    /// Being written, and how the file is then.
    writing: Option<(Batch, File)>,
    /// The last job found no room.
    full: bool,
    /// Nothing is written any more.
    dead: bool,
    #[cfg(test)]
    pub(crate) fault: Option<Fault>,
}

/// What a wrong ledger would do, to see that it is noticed.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A change begins when its mark is written, stable or not.
    NobodyWaits,
    /// Who comes while a job is under way is covered by it.
    JoinsTheRunning,
}

/// How the file is, in bytes.
#[derive(Debug, Clone, Copy)]
struct File {
    end: usize,
    capacity: usize,
    /// So much of it is on stable storage, as far as is known.
    stable: usize,
    records: u64,
}

#[derive(Debug, Default)]
struct Batch {
    records: Vec<Body>,
    /// Relied on when this is on stable storage.
    active: Extents,
    waiters: Vec<Waiter>,
    sync: bool,
}

/// What is to be done with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Job {
    /// Write there; with `sync`, put all of the file on stable storage.
    Append { at: usize, bytes: Vec<u8>, sync: bool },
    /// Have another file be the log, on stable storage.
    Begin { bytes: Vec<u8> },
}

/// How that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobEnd {
    Done,
    /// There was no room; what was there is there still.
    Full,
    /// Anything may be there.
    Failed,
}

impl Ledger {
    /// Goes on with a log of a replica of `size` bytes, in a file of `capacity` bytes that holds nothing but zeros after its end.
    pub(crate) fn new(replayed: Replayed, size: u64, capacity: usize) -> Self {
        let Replayed { fence, marks, end, records, .. } = replayed;
        Self {
            size,
            // It was read from the disk; whether it would be again nobody knows before the next sync.
            covers: Bits::new(size),
            file: File { end, capacity, stable: 0, records },
            marks,
            fence,
            next: Batch::default(),
            writing: None,
            full: false,
            dead: false,
            #[cfg(test)]
            fault: None,
        }
    }

    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// The highest generation in the log.
    pub(crate) fn fence(&self) -> Generation {
        self.fence
    }

    /// A change of `range` is wanted; it is not empty, and within the volume. `true`: it has begun. Otherwise `who` waits, and asks
    /// again.
    pub(crate) fn change(&mut self, range: &Range<u64>, who: Waiter) -> bool {
        if self.covers.all(range) {
            // There is nothing else that it would change.
            if !self.marks.missing().is_empty() {
                self.marks.changes(range);
            }
            return true;
        }
        if let Some(record) = self.marks.before_change(range) {
            self.record(record);
        }
        #[cfg(test)]
        if self.fault == Some(Fault::NobodyWaits) {
            self.marks.changes(range);
            return true;
        }
        let mut uncovered = Extents::touching(range);
        self.covers.take_from(&mut uncovered);
        match &mut self.writing {
            Some((writing, _)) if writing.sync && uncovered.without(&writing.active).is_empty() => {
                writing.waiters.push(who);
            }
            #[cfg(test)]
            Some((writing, _)) if self.fault == Some(Fault::JoinsTheRunning) => {
                writing.active.union(&uncovered);
                writing.waiters.push(who);
            }
            Some(_) | None => {
                self.next.active.union(&uncovered);
                self.wait(who);
            }
        }
        false
    }

    /// `who` waits for this to be on stable storage.
    pub(crate) fn note(&mut self, record: Record, who: Waiter) {
        self.record(record);
        self.wait(who);
    }

    /// The same for a generation.
    pub(crate) fn raise(&mut self, fence: Generation, who: Waiter) {
        self.fence = self.fence.max(fence);
        self.next.records.push(Body::Fence(fence));
        self.wait(who);
    }

    /// Gets into the log some time. `false`: there is much to be written, and `who` waits.
    pub(crate) fn tell(&mut self, record: Record, who: Waiter) -> bool {
        self.record(record);
        let few = self.next.records.len() < TOLD_MAX;
        if !few {
            self.wait(who);
        }
        few
    }

    fn wait(&mut self, who: Waiter) {
        self.next.sync = true;
        self.next.waiters.push(who);
    }

    fn record(&mut self, record: Record) {
        self.marks.apply(&record);
        match &record {
            Record::Settled(extents, _) => {
                self.covers.remove(extents);
                self.batches(|active| active.subtract(extents));
            }
            Record::Whole(_) | Record::Welcome(_) => {
                let gone = self.covers.without(self.marks.active());
                self.covers.remove(&gone);
                let active = self.marks.active().clone();
                self.batches(|extents| extents.subtract(&extents.without(&active)));
            }
            Record::Active(_) | Record::Missing(..) | Record::Regained(..) | Record::Returned(_) => {}
        }
        self.next.records.push(Body::Marks(record));
    }

    /// What batches will have made active when they are on stable storage.
    fn batches(&mut self, change: impl Fn(&mut Extents)) {
        change(&mut self.next.active);
        if let Some((writing, _)) = &mut self.writing {
            change(&mut writing.active);
        }
    }

    /// What is to be done with the file now; it counts as begun.
    ///
    /// # Errors
    /// When the marks cannot be written down at all.
    pub(crate) fn job(&mut self) -> Result<Option<Job>, EncodeError> {
        let nobody = self.next.waiters.is_empty();
        let idle = nobody && (self.next.records.is_empty() || self.full);
        if self.writing.is_some() || self.dead || idle {
            return Ok(None);
        }
        self.full = false;
        let mut then = self.file;
        let mut bytes = Vec::new();
        let fits = self.next.records.iter().all(|record| {
            then.records += 1;
            frames::append(record, then.records, self.file.stable as u64, RECORD_LIMIT, &mut bytes).is_ok()
        });
        let at = self.file.end;
        let job = if fits && at + bytes.len() <= then.capacity {
            then.end += bytes.len();
            if self.next.sync {
                then.stable = then.end;
            }
            Job::Append { at, bytes, sync: self.next.sync }
        } else {
            let Begun { bytes, end, records } = self.begin()?;
            then = File { end, capacity: bytes.len(), stable: end, records };
            self.next.sync = true;
            Job::Begin { bytes }
        };
        self.writing = Some((std::mem::take(&mut self.next), then));
        Ok(Some(job))
    }

    /// All there is, less exact when that would be much.
    fn begin(&mut self) -> Result<Begun, EncodeError> {
        let fine = frames::begin(self.fence, &self.marks);
        if let Ok(begun) = fine
            && begun.end <= FINE_BYTES_MAX
        {
            return Ok(begun);
        }
        self.coarsen(by_the_extent);
        if let Ok(begun) = frames::begin(self.fence, &self.marks) {
            return Ok(begun);
        }
        let all = Grains::touching(&(0..self.size));
        self.coarsen(|_| all.clone());
        frames::begin(self.fence, &self.marks)
    }

    /// More than what lacks may be said to lack: that costs copying.
    fn coarsen(&mut self, coarser: impl Fn(&Grains) -> Grains) {
        let missing: Vec<_> = self.marks.missing().iter().map(|(id, lacks)| (*id, coarser(lacks))).collect();
        for (id, lacks) in missing {
            self.marks.apply(&Record::Missing(id, lacks));
        }
    }

    /// The job has ended. These waited for it: their turn has come, or with `Full` and `Failed` it will not.
    pub(crate) fn ended(&mut self, end: JobEnd) -> Vec<Waiter> {
        let (mut batch, then) = self.writing.take().expect("a job that ends has begun");
        let mut waiters = std::mem::take(&mut batch.waiters);
        match end {
            JobEnd::Done => {
                self.file = then;
                if batch.sync {
                    self.covers.insert(&batch.active);
                }
            }
            JobEnd::Full => {
                self.full = true;
                let after = std::mem::replace(&mut self.next, batch);
                self.next.records.extend(after.records);
                self.next.active.union(&after.active);
                self.next.waiters = after.waiters;
                self.next.sync |= after.sync;
            }
            JobEnd::Failed => {
                self.dead = true;
                waiters.append(&mut self.next.waiters);
            }
        }
        waiters
    }

    /// Nothing is being written.
    pub(crate) fn is_idle(&self) -> bool {
        self.writing.is_none()
    }
}

fn by_the_extent(lacks: &Grains) -> Grains {
    let (mut extents, mut from) = (Extents::default(), 0);
    while let Some(run) = lacks.run(from, EXTENT_BYTES) {
        let (first, end) = (run.start / EXTENT_BYTES, run.end.div_ceil(EXTENT_BYTES));
        (first..end).filter_map(|extent| u32::try_from(extent).ok()).for_each(|extent| extents.insert(extent));
        from = end * EXTENT_BYTES;
    }
    Grains::from(&extents)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
