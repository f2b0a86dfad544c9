//! An open replica and its log: what is asked of a replica, carried out. It belongs to one session at a time ([`super::Keeper`]), and
//! goes from one to the next when nothing of the first is under way any more.

use std::{
    ops::Range,
    pin::Pin,
    task::{Context, Poll},
};

use pollux_disk::{Completion, Disk, DiskError, Operation, Outcome, Piece, Tag as DiskTag};
use pollux_mirror::{Change, Failure, Marks, MarksError, Part, Record, Tag};
use pollux_wire::id::Generation;
use slab::Slab;
use tokio::task::JoinHandle;

use crate::{
    digest,
    log::{
        file::{LogFile, Worked},
        ledger::{JobEnd, Ledger},
    },
    side::{Ask, Done},
};

/// See the module's text.
pub(crate) struct Works {
    replica: Box<dyn Disk>,
    size: u64,
    ledger: Ledger,
    log: LogFile,
    /// What is being done with the log.
    job: Option<JoinHandle<Worked>>,
    open: Slab<Open>,
    completions: Vec<Completion>,
    /// Why nothing is done any more.
    failed: Option<String>,
}

/// Something that was asked and has not ended.
struct Open {
    tag: Tag,
    /// Operations of the disk that are under way for it.
    under_way: u32,
    failure: Option<Failure>,
    pieces: Vec<Piece>,
    waits: Waits,
}

enum Waits {
    /// For its operations.
    Disk,
    /// For what it reads, of which a digest is told.
    Digest,
    /// To begin, for its extents to be marked.
    Mark(Ask),
    /// For what it says to be on stable storage.
    Note,
}

impl Works {
    pub(crate) fn new(replica: Box<dyn Disk>, ledger: Ledger, log: LogFile) -> Self {
        let size = replica.size();
        let (open, completions) = (Slab::new(), Vec::new());
        Self { replica, size, ledger, log, job: None, open, completions, failed: None }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn marks(&self) -> &Marks {
        self.ledger.marks()
    }

    pub(crate) fn fence(&self) -> Generation {
        self.ledger.fence()
    }

    /// Why nothing is done any more, once that is so.
    pub(crate) fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty() && self.job.is_none() && self.ledger.is_idle()
    }

    /// What is under way.
    pub(crate) fn tags(&self) -> Vec<Tag> {
        self.open.iter().map(|(_, open)| open.tag).collect()
    }

    /// Writes down a generation: [`Done`] of `tag` when it is on stable storage.
    pub(crate) fn raise(&mut self, generation: Generation, tag: Tag) {
        let who = self.insert(tag, Waits::Note);
        self.ledger.raise(generation, who);
    }

    fn insert(&mut self, tag: Tag, waits: Waits) -> usize {
        self.open.insert(Open { tag, under_way: 0, failure: None, pieces: Vec::new(), waits })
    }

    /// Begins what is asked.
    pub(crate) fn begin(&mut self, ask: Ask, done: &mut Vec<Done>) {
        let tag = ask.tag;
        let answer = |outcome| Done { tag, outcome };
        if let Some(why) = &self.failed {
            return done.push(answer(Err(Failure::Io(why.clone()))));
        }
        match &ask.part {
            Part::Read | Part::Digest => {
                if let Err(failure) = self.check(&ask.range) {
                    return done.push(answer(Err(failure)));
                }
                let bytes = u32::try_from(ask.range.end - ask.range.start).unwrap_or(u32::MAX);
                let who = self.insert(tag, if ask.part == Part::Read { Waits::Disk } else { Waits::Digest });
                self.operation(who, Operation::Read { offset: ask.range.start, bytes });
            }
            Part::Change { .. } | Part::Copy { .. } => {
                if let Err(failure) = self.check(&ask.range).and_then(|()| check_data(&ask)) {
                    return done.push(answer(Err(failure)));
                }
                let who = self.insert(tag, Waits::Disk);
                self.change(who, ask);
            }
            Part::Flush => {
                let who = self.insert(tag, Waits::Disk);
                self.operation(who, Operation::Flush);
            }
            Part::Miss(replica) => self.note(self.ledger.marks().miss(*replica), tag, done),
            Part::Lacks(replica, lacks) => self.note(self.ledger.marks().note(*replica, lacks), tag, done),
            Part::Regained(replica) => match self.check(&ask.range) {
                Ok(()) => self.tell(Record::Regained(*replica, ask.range), tag, done),
                Err(failure) => done.push(answer(Err(failure))),
            },
            Part::Returned(replica) => self.tell(Record::Returned(*replica), tag, done),
            Part::Welcome(hot) => self.tell(Record::Welcome(hot.clone()), tag, done),
            Part::Settled(extents) => self.tell(self.ledger.marks().settle(extents), tag, done),
        }
    }

    /// Whether it is a place in the volume.
    fn check(&self, range: &Range<u64>) -> Result<(), Failure> {
        if range.start < range.end && range.end <= self.size {
            return Ok(());
        }
        let Range { start, end } = range;
        Err(Failure::Io(format!("{start}..{end} is no range of a replica of {} bytes", self.size)))
    }

    fn note(&mut self, record: Result<Record, MarksError>, tag: Tag, done: &mut Vec<Done>) {
        match record {
            Ok(record) => {
                let who = self.insert(tag, Waits::Note);
                self.ledger.note(record, who);
            }
            Err(error) => done.push(Done { tag, outcome: Err(Failure::Io(error.to_string())) }),
        }
    }

    fn tell(&mut self, record: Record, tag: Tag, done: &mut Vec<Done>) {
        let who = self.insert(tag, Waits::Note);
        if self.ledger.tell(record, who) {
            self.open.remove(who);
            done.push(Done { tag, outcome: Ok(Vec::new()) });
        }
    }

    /// Changes a range when it is marked: now, or when that is on stable storage.
    fn change(&mut self, who: usize, ask: Ask) {
        if !self.ledger.change(&ask.range, who) {
            self.open[who].waits = Waits::Mark(ask);
            return;
        }
        let Ask { part, range, data, .. } = ask;
        let (offset, bytes) = (range.start, range.end - range.start);
        match part {
            Part::Change { change: Change::Write, durable } => self.write(who, offset, data, durable),
            Part::Copy { .. } => self.write(who, offset, data, false),
            Part::Change { change: Change::Zero { punch }, durable } => {
                let zeroes = Operation::WriteZeroes { offset, bytes, may_punch: punch, fast_only: false, durable };
                self.operation(who, zeroes);
            }
            Part::Change { change: Change::Trim, durable } => {
                self.operation(who, Operation::Trim { offset, bytes, durable });
            }
            Part::Read
            | Part::Flush
            | Part::Miss(_)
            | Part::Regained(_)
            | Part::Returned(_)
            | Part::Welcome(_)
            | Part::Settled(_)
            | Part::Lacks(..)
            | Part::Digest => unreachable!("nothing is changed by it"),
        }
    }

    fn write(&mut self, who: usize, mut offset: u64, data: Vec<Piece>, durable: bool) {
        for piece in data {
            let bytes = u64::from(piece.bytes());
            let operation = match piece {
                Piece::Data(data) => Operation::Write { offset, data, durable },
                Piece::Zeroes(_) => {
                    Operation::WriteZeroes { offset, bytes, may_punch: true, fast_only: false, durable }
                }
            };
            self.operation(who, operation);
            offset += bytes;
        }
    }

    fn operation(&mut self, who: usize, operation: Operation) {
        let open = &mut self.open[who];
        // One of several for the same: which, nobody needs to know, but they differ.
        let tag = DiskTag(who as u64 | u64::from(open.under_way) << 32);
        open.under_way += 1;
        self.replica.submit(tag, operation);
    }

    /// Goes on with everything, and appends what has ended.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Done>) {
        while self.poll_log(cx, done) {}
        if self.replica.poll(cx, &mut self.completions).is_pending() {
            return;
        }
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            self.completed(completion, done);
        }
        self.completions = completions;
    }

    fn completed(&mut self, completion: Completion, done: &mut Vec<Done>) {
        let who = usize::try_from(completion.tag.0 & u64::from(u32::MAX)).expect("a slot's number");
        let open = &mut self.open[who];
        open.under_way -= 1;
        match completion.result {
            Ok(Outcome::Read(pieces)) => open.pieces = pieces,
            Ok(Outcome::Done | Outcome::Extents(_)) => {}
            Err(error) => {
                open.failure.get_or_insert_with(|| failure(&error));
            }
        }
        if open.under_way == 0 {
            let Open { tag, failure, mut pieces, waits, .. } = self.open.remove(who);
            if matches!(waits, Waits::Digest) {
                pieces = digest::of(&pieces);
            }
            done.push(Done { tag, outcome: failure.map_or(Ok(pieces), Err) });
        }
    }

    /// Whether a job has ended.
    fn poll_log(&mut self, cx: &mut Context<'_>, done: &mut Vec<Done>) -> bool {
        if self.job.is_none() && self.failed.is_none() {
            match self.ledger.job() {
                Ok(Some(job)) => {
                    let log = self.log.clone();
                    self.job = Some(tokio::task::spawn_blocking(move || log.work(&job)));
                }
                Ok(None) => {}
                Err(error) => self.fail(format!("what it may differ in cannot be written down: {error}"), done),
            }
        }
        let Some(job) = &mut self.job else { return false };
        let Poll::Ready(worked) = Pin::new(job).poll(cx) else { return false };
        self.job = None;
        match worked {
            Ok(Worked { end, error, file }) => {
                self.log = file;
                self.log_ended(end, error, done);
            }
            // It was not done, or what it did is not known; the runtime ends, or it panicked. The log itself may be sound.
            Err(error) => {
                let why = format!("what was written to its log is not known: {error}");
                self.failed = Some(why.clone());
                self.go_on(JobEnd::Failed, Some(&Failure::Io(why)), done);
            }
        }
        true
    }

    fn log_ended(&mut self, end: JobEnd, error: Option<std::io::Error>, done: &mut Vec<Done>) {
        let failure = match end {
            JobEnd::Done => None,
            JobEnd::Full => Some(Failure::NoSpace),
            JobEnd::Failed => {
                let said = error.map(|error| format!(": {error}")).unwrap_or_default();
                let why = format!("writing its log failed{said}");
                self.out_of_use(&why);
                Some(Failure::Io(why))
            }
        };
        self.go_on(end, failure.as_ref(), done);
    }

    /// Those that waited for the job go on, or fail.
    fn go_on(&mut self, end: JobEnd, failure: Option<&Failure>, done: &mut Vec<Done>) {
        for who in self.ledger.ended(end) {
            match (failure, std::mem::replace(&mut self.open[who].waits, Waits::Disk)) {
                (None, Waits::Mark(ask)) => self.change(who, ask),
                (_, Waits::Disk | Waits::Digest | Waits::Note | Waits::Mark(_)) => {
                    let Open { tag, .. } = self.open.remove(who);
                    done.push(Done { tag, outcome: failure.map_or(Ok(Vec::new()), |failure| Err(failure.clone())) });
                }
            }
        }
    }

    /// Nothing can be marked any more: whoever waits for that waits in vain.
    fn fail(&mut self, why: String, done: &mut Vec<Done>) {
        self.out_of_use(&why);
        let waiting = self.open.iter().filter(|(_, open)| open.under_way == 0).map(|(who, _)| who);
        for who in waiting.collect::<Vec<_>>() {
            let Open { tag, .. } = self.open.remove(who);
            done.push(Done { tag, outcome: Err(Failure::Io(why.clone())) });
        }
    }

    fn out_of_use(&mut self, why: &str) {
        tracing::error!(log = ?self.log, why, "the replica is out of use");
        self.failed = Some(format!("the replica is out of use: {why}; delete it, and make a copy of another"));
        let (log, why) = (self.log.clone(), why.to_owned());
        // Whoever has the log has the replica: it is not opened again before this is written down.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = log.mark_failed(&why) {
                tracing::error!(%error, "that could not be written down; it holds until the replica is closed");
            }
        });
    }
}

impl std::fmt::Debug for Works {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Works").field("log", &self.log).field("open", &self.open.len()).finish_non_exhaustive()
    }
}

/// Data is there where it has to be, and as long as the range.
fn check_data(ask: &Ask) -> Result<(), Failure> {
    let wanted = match ask.part {
        Part::Change { change: Change::Write, .. } | Part::Copy { .. } => ask.range.end - ask.range.start,
        Part::Change { change: Change::Zero { .. } | Change::Trim, .. }
        | Part::Read
        | Part::Flush
        | Part::Miss(_)
        | Part::Regained(_)
        | Part::Returned(_)
        | Part::Welcome(_)
        | Part::Settled(_)
        | Part::Lacks(..)
        | Part::Digest => 0,
    };
    let bytes: u64 = ask.data.iter().map(|piece| u64::from(piece.bytes())).sum();
    if bytes == wanted { Ok(()) } else { Err(Failure::Io(format!("{bytes} bytes of data for a range of {wanted}"))) }
}

fn failure(error: &DiskError) -> Failure {
    match error {
        DiskError::NoSpace { .. } => Failure::NoSpace,
        DiskError::Fenced => Failure::Fenced,
        DiskError::Io { source, .. } | DiskError::Failed { source } => Failure::Io(format!("{error}: {source}")),
        DiskError::NotFast | DiskError::OutOfRange { .. } | DiskError::Closed => Failure::Io(error.to_string()),
    }
}
